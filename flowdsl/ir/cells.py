"""On which rows each value is needed, and where two values are the same.

The rows of a batch fall into cells: the possible truth values of the conditions that decide
anything (drawn rows, comparisons of times). In each cell every selection is decided and every
exactly-zero coefficient shows (`t - r` where `r = t`), so one pass over the graph tells which
network passes the cell needs, and which of them coincide there.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field, replace
from fractions import Fraction

from flowdsl.ir.arithmetic import arithmetic
from flowdsl.ir.boolean import Cube, minimise
from flowdsl.ir.graph import NETWORK_OPS, Builder, Graph, Node
from flowdsl.ir.odds import weights
from flowdsl.spec.core import COMPARISONS, Kind

#: With more conditions than this, the last ones are not told apart.
MOST_ATOMS = 8

Truth = bool | None


@dataclass(frozen=True)
class Cells:
    """`atoms` are the deciding conditions (nodes); `cases` their possible truth values, one bit
    each; `weights` an estimate of each case's share of the batch. Sets of cases are integers: bit k
    is the k-th case.
    """

    atoms: tuple[int, ...]
    cases: tuple[int, ...]
    weights: tuple[float, ...]
    values: tuple[tuple[int, ...], ...]  # per case and node: equal numbers are equal values
    demand: dict[int, int]  # per network pass: the cases that need it
    reads: dict[tuple[int, int], int]  # per reader and input: the cases in which it is read

    @property
    def all(self) -> int:
        return (1 << len(self.cases)) - 1

    def share(self, cases: int) -> float:
        """The estimated share of the batch."""
        return sum(w for k, w in enumerate(self.weights) if cases >> k & 1)

    def same(self, a: int, b: int) -> int:
        """The cases in which two nodes have the same value."""
        return sum(1 << k for k, known in enumerate(self.values) if known[a] == known[b])

    def cubes(self, cases: int, others: int) -> list[Cube]:
        """A short condition that holds in `cases` and in none of `others`."""
        inside = [case for k, case in enumerate(self.cases) if cases >> k & 1]
        outside = [case for k, case in enumerate(self.cases) if others >> k & 1]
        return minimise(len(self.atoms), inside, outside)

    def widen(self, cases: int, atoms: set[int]) -> int:
        """The cases that agree with one of these on the given atoms (by index)."""
        mask = sum(1 << i for i in atoms)
        seen = {case & mask for k, case in enumerate(self.cases) if cases >> k & 1}
        return sum(1 << k for k, case in enumerate(self.cases) if case & mask in seen)


def build_condition(builder: Builder, atoms: tuple[int, ...], cubes: list[Cube]) -> int:
    """The node of a condition; `atoms` are nodes of the builder."""

    def conjunction(cube: Cube) -> int | None:
        part: int | None = None
        for index, value in sorted(cube.items()):
            literal = atoms[index] if value else builder.apply("not", atoms[index])
            part = literal if part is None else builder.apply("and", part, literal)
        return part

    if not cubes:
        return builder.apply("false")
    shared = dict(set(cubes[0].items()).intersection(*(set(c.items()) for c in cubes[1:])))
    result: int | None = None
    for cube in cubes:
        part = conjunction({i: v for i, v in cube.items() if i not in shared})
        if part is None:
            result = None
            break
        result = part if result is None else builder.apply("or", result, part)
    common = conjunction(shared)
    if result is None or common is None:
        return next((x for x in (common, result) if x is not None), builder.apply("true"))
    return builder.apply("and", common, result)


@dataclass
class _Table:
    """Values by what they are; `numbers` are known exactly, `learnt` depend on a network."""

    known: dict[Hashable, int] = field(default_factory=dict)
    numbers: dict[int, Fraction] = field(default_factory=dict)
    learnt: set[int] = field(default_factory=set)

    def intern(self, key: Hashable) -> int:
        return self.known.setdefault(key, len(self.known))

    def number(self, value: Fraction) -> int:
        at = self.intern(("number", value))
        self.numbers[at] = value
        return at


def analyse(graph: Graph) -> Cells:
    """The cells of a graph."""
    atoms = _atoms(graph)
    table = _Table()
    cases: list[int] = []
    values: list[tuple[int, ...]] = []
    truths: list[tuple[Truth, ...]] = []
    for case in range(1 << len(atoms)):
        truth = _truths(graph, atoms, case)
        if any(truth[a] is True and truth[b] is False for a, b in graph.implies):
            continue
        cases.append(case)
        truths.append(truth)
    odds = weights(graph, atoms, cases)
    kept = [k for k, w in enumerate(odds) if w > 0]
    cases, truths = [cases[k] for k in kept], [truths[k] for k in kept]
    for truth in truths:
        values.append(_values(graph, truth, table))
    demand, reads = _demand(graph, truths, values, table.numbers)
    chosen = tuple(odds[k] for k in kept)
    return Cells(atoms, tuple(cases), chosen, tuple(values), demand, reads)


def _atoms(graph: Graph) -> tuple[int, ...]:
    """The conditions that decide selections or terms: drawn rows first, then comparisons."""
    deciding: dict[Hashable, int] = {}
    stack = [graph[at].inputs[0] for at in graph.used if graph[at].op == "select"]
    stack += [o.rows for o in graph.outputs if o.rows is not None]
    while stack:
        at = stack.pop()
        node = graph[at]
        if node.op in ("and", "or", "not"):
            stack.extend(node.inputs)
        elif (node.op == "draw" or node.op in COMPARISONS) and not graph.is_python(at):
            key, _ = comparison(graph, at)
            deciding[key] = min(at, deciding.get(key, at))
    ordered = sorted(deciding.values(), key=lambda at: (graph[at].op != "draw", at))
    return tuple(ordered[:MOST_ATOMS])


def comparison(graph: Graph, at: int) -> tuple[Hashable, bool]:
    """What a condition says, and whether it says so or the opposite: `a >= b` is not `a < b`."""
    node = graph[at]
    if node.op not in COMPARISONS:
        return ("draw", node.detail), True
    a, b = node.inputs
    match node.op:
        case "lt" | "ge":
            return ("lt", a, b), node.op == "lt"
        case "gt" | "le":
            return ("lt", b, a), node.op == "gt"
    return ("eq", min(a, b), max(a, b)), node.op == "eq"


def _truths(graph: Graph, atoms: tuple[int, ...], case: int) -> tuple[Truth, ...]:
    """The truth value of each condition in a case, None where nothing decides it."""
    given: dict[Hashable, bool] = {}
    for i, at in enumerate(atoms):
        key, positive = comparison(graph, at)
        given[key] = bool(case >> i & 1) is positive
    known: list[Truth] = []
    for at, node in enumerate(graph.nodes):
        inputs = [known[i] for i in node.inputs]
        value: Truth = None
        key, positive = comparison(graph, at)
        if node.kind is Kind.TRUTH and key in given:
            value = given[key] is positive
        elif node.op in ("true", "false"):
            value = node.op == "true"
        elif node.op == "not":
            value = None if inputs[0] is None else not inputs[0]
        elif node.op in ("and", "or"):
            absorbing = node.op == "or"
            if absorbing in inputs:
                value = absorbing
            elif None not in inputs:
                value = not absorbing
        known.append(value)
    return tuple(known)


def _values(
    graph: Graph,
    truth: tuple[Truth, ...],
    table: _Table,
) -> tuple[int, ...]:
    """A number for each node's value in one case; equal numbers are equal values."""
    intern, number = table.intern, table.number
    known: list[int] = []
    for at, node in enumerate(graph.nodes):
        inputs = [known[i] for i in node.inputs]
        exact = [table.numbers.get(i) for i in inputs]
        if truth[at] is not None:
            known.append(intern(("truth", truth[at])))
        elif node.op == "number":
            known.append(number(node.value))
        elif node.op == "select" and truth[node.inputs[0]] is not None:
            known.append(inputs[1] if truth[node.inputs[0]] else inputs[2])
        else:
            learnt = node.op in NETWORK_OPS or any(i in table.learnt for i in inputs)
            simple = _simple(node.op, inputs, exact, learnt)
            if isinstance(simple, Fraction):
                known.append(number(simple))
            elif simple is not None:
                known.append(simple)
            else:
                detail = node.detail
                if node.op in NETWORK_OPS:
                    detail = replace(node.call, record=True, occurrence=0, together=0)
                known.append(intern((node.op, detail, *inputs)))
                if learnt:
                    table.learnt.add(known[-1])
    return tuple(known)


def _simple(
    op: str, inputs: list[int], exact: list[Fraction | None], learnt: bool
) -> int | Fraction | None:
    """An existing value or a number that the operation equals, or None.

    Two network values that are equal do not cancel here: their difference is zero only if both are
    computed on the same rows, which is what this analysis is asked to decide.
    """
    values = [v for v in exact if v is not None]
    if inputs and len(values) == len(inputs):
        return arithmetic(op, values)
    match op, exact:
        case ("add", [Fraction(numerator=0), _]) | (
            "mul",
            [Fraction(numerator=1, denominator=1), _],
        ):
            return inputs[1]
        case (("add" | "sub"), [_, Fraction(numerator=0)]):
            return inputs[0]
        case (("mul" | "div"), [_, Fraction(numerator=1, denominator=1)]):
            return inputs[0]
        case ("mul", _) if 0 in values:
            return Fraction(0)
        case ("div", [Fraction(numerator=0), _]):
            return Fraction(0)
        case ("sub", _) if inputs[0] == inputs[1] and not learnt:
            return Fraction(0)
        case ("select", _) if inputs[1] == inputs[2]:
            return inputs[1]
    return None


def _demand(
    graph: Graph,
    truths: list[tuple[Truth, ...]],
    values: list[tuple[int, ...]],
    numbers: dict[int, Fraction],
) -> tuple[dict[int, int], dict[tuple[int, int], int]]:
    """For each network pass, the cases whose loss depends on it; the same for each reading of a
    node by another.
    """
    demand = dict.fromkeys(graph.calls(), 0)
    reads: dict[tuple[int, int], int] = {}

    def read(at: int, k: int, inputs: Iterable[int]) -> None:
        for i in inputs:
            stack.append((k, i))
            reads[at, i] = reads.get((at, i), 0) | 1 << k

    seen: set[tuple[int, int]] = set()
    stack: list[tuple[int, int]] = []
    for output in graph.outputs:
        for k in range(len(truths)):
            if output.rows is None or truths[k][output.rows] is not False:
                stack.append((k, output.loss))
            if output.rows is not None:
                stack.append((k, output.rows))
    while stack:
        k, at = stack.pop()
        if (k, at) in seen or values[k][at] in numbers:
            continue
        seen.add((k, at))
        node: Node = graph[at]
        if node.op in NETWORK_OPS:
            demand[at] |= 1 << k
        if node.op == "batch_mean":
            for other in range(len(truths)):
                read(at, other, node.inputs)
        elif node.op == "select" and truths[k][node.inputs[0]] is not None:
            condition, yes, no = node.inputs
            read(at, k, (yes if truths[k][condition] else no, condition))
        else:
            read(at, k, node.inputs)
    return demand, reads
