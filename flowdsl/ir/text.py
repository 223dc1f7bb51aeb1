"""A graph as a readable listing: one line per value, its rows, whether gradient flows, and what it
costs.
"""

from __future__ import annotations

from flowdsl.ir.cells import analyse
from flowdsl.ir.cost import PLAIN, RULES, Prices, cost, pass_cost, rows_of
from flowdsl.ir.gradient import gradient
from flowdsl.ir.graph import LEAVES, NETWORK_OPS, Graph, Node
from flowdsl.ir.together import made
from flowdsl.prelude.text import show


def graph_text(graph: Graph, prices: Prices = RULES) -> str:
    """The listing: number, value, kind, the networks that learn through it, and for passes their
    share and cost.
    """
    cells, flow = analyse(graph), gradient(graph)
    lines = [f"{graph.objective.name}: {len(graph.used)} values, {len(made(graph))} network passes"]
    for at in graph.used:
        node = graph[at]
        if node.op in LEAVES:
            continue
        parts = [f"%{at}".rjust(5), "=", described(graph, node).ljust(56), node.kind.value.ljust(9)]
        learners = flow.learns(at)
        parts.append(f"-> {', '.join(sorted(learners))}" if learners else "")
        if node.op in NETWORK_OPS:
            share = cells.share(rows_of(graph, cells, at))
            price = pass_cost(graph, node, share, prices, bool(learners)).total
            parts.append(f"on {share:.0%} of the rows, {price:.2f} F")
        lines.append(" ".join(parts).rstrip())
    for output in graph.outputs:
        where = "" if output.rows is None else f" where %{output.rows}"
        lines.append(f"term {output.term}: mean of %{output.loss}{where}")
    lines.append(f"cost {cost(graph, prices, cells)}")
    return "\n".join(lines)


def evaluations_text(graph: Graph, prices: Prices = PLAIN) -> str:
    """The network passes alone: what each is, its share of the rows, and its cost."""
    cells, flow = analyse(graph), gradient(graph)
    lines = []
    for at in graph.calls():
        node = graph[at]
        share = cells.share(rows_of(graph, cells, at))
        price = pass_cost(graph, node, share, prices, bool(flow.learns(at))).total
        what = described(graph, node).split(" : ")[-1]
        lines.append(f"{f'%{at}':>5} = {what:<64} {share:>4.0%} of the rows, {price:.2f} F")
    return "\n".join([*lines, f"cost {cost(graph, prices, cells)}"])


def described(graph: Graph, node: Node) -> str:
    """One value in terms of its inputs."""
    named = f"{node.name} : " if node.name else ""
    inputs = [_reference(graph, i) for i in node.inputs]
    if node.op in NETWORK_OPS:
        call = node.call
        given = [
            f"{n}={i}" for n, i in zip(call.conditions, inputs[call.arguments :], strict=False)
        ]
        text = f"{call.network}({', '.join([*inputs[: call.arguments], *given])})"
        tangents = inputs[call.point : len(inputs) - call.on_rows]
        text = f"{node.op} {text}" + (f" along ({', '.join(tangents)})" if tangents else "")
        text += f" on {inputs[-1]}" if call.on_rows else ""
        graph_kept = ", value with graph" if node.op == "beside" else ""
        text += graph_kept if call.record else ", no graph"
        return named + text + (f", in call {call.together}" if call.together else "")
    detail = f" {node.detail}" if isinstance(node.detail, str) else ""
    return f"{named}{node.op}{detail} {', '.join(inputs)}".rstrip()


def _reference(graph: Graph, at: int) -> str:
    node = graph[at]
    match node.op:
        case "number":
            return show(node.value)
        case "null":
            return "null"
        case _ if node.op in LEAVES:
            return str(node.detail)
    return f"%{at}"
