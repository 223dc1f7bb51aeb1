"""Row sets of network passes: whether a pass can run on some rows, and whether their number is
known beforehand.
"""

from __future__ import annotations

from flowdsl.ir.cells import Cells
from flowdsl.ir.graph import Count, Graph, Node
from flowdsl.ir.shares import static_shares
from flowdsl.runtime.contract import Share
from flowdsl.spec.core import Kind

Parts = dict[str | None, int]


def can_run_on_rows(graph: Graph, node: Node) -> bool:
    """Whether a pass can be given some rows only: its values are states, and it sees no other
    network's features.
    """
    network = graph.objective.networks[node.call.network]
    kinds = [graph[i].kind for i in node.inputs]
    return (
        bool(network.arguments)
        and network.arguments[0][1] is Kind.STATE
        and all(kind is Kind.STATE for _, kind in network.heads)
        and Kind.FEATURES not in kinds
        and len(node.call.directions) <= 1
        and not node.call.on_rows
    )


def static_atoms(graph: Graph, cells: Cells) -> dict[int, Share]:
    """The conditions (by index) that are shares of known size."""
    shares = static_shares(graph.objective)
    names = {i: str(graph[at].detail) for i, at in enumerate(cells.atoms) if graph[at].op == "draw"}
    return {i: shares[name] for i, name in names.items() if name in shares}


def count_of(graph: Graph, cells: Cells, cases: int) -> Count | None:
    """How many rows lie in these cases, where the batch size alone tells."""
    others = cells.all & ~cases
    cubes = cells.cubes(cases, others)
    atoms = {i for cube in cubes for i in cube}
    known = static_atoms(graph, cells)
    if not atoms <= set(known):
        return None
    regions = _regions([known[i] for i in sorted(atoms)], static_shares(graph.objective))
    if regions is None:
        return None
    total: Parts = {}
    for truth, parts in regions:
        if any(all(truth[known[i].name] == v for i, v in cube.items()) for cube in cubes):
            for name, multiple in parts.items():
                total[name] = total.get(name, 0) + multiple
    return Count(tuple((m, name) for name, m in total.items() if m))


def _regions(
    wanted: list[Share], shares: dict[str, Share]
) -> list[tuple[dict[str, bool], Parts]] | None:
    """The batch cut up by these shares and those they are part of, with the size of each part; None
    where two shares overlap in a way that only the draw decides.
    """
    chain: dict[str, Share] = {}

    def include(share: Share) -> None:
        if share.on is not None:
            include(shares[share.on])
        chain[share.name] = share

    for share in wanted:
        include(share)
    regions: list[tuple[dict[str, bool], Parts]] = [({}, {None: 1})]
    for share in chain.values():
        inside = [r for r in regions if share.on is None or r[0][share.on] is not share.on_others]
        if len(inside) != 1:
            return None
        new: list[tuple[dict[str, bool], Parts]] = []
        for truth, parts in regions:
            if (truth, parts) == inside[0]:
                new.append(({**truth, share.name: True}, {share.name: 1}))
                rest = dict(parts)
                rest[share.name] = rest.get(share.name, 0) - 1
                new.append(({**truth, share.name: False}, rest))
            else:
                new.append(({**truth, share.name: False}, parts))
        regions = new
    return regions
