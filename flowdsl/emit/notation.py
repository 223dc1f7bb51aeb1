"""What to call a network's value, and how a paper would write it: `u_t_r`, `du_dt`; `u(z, t, r |
label = null)`.
"""

from __future__ import annotations

from flowdsl.emit.names import identifier
from flowdsl.ir.graph import Graph, Node
from flowdsl.prelude.text import show
from flowdsl.spec.core import Kind


def notation(graph: Graph, at: int) -> str:
    """A network pass in the notation of the spec."""
    node = graph[at]
    call = node.call
    names = [argument for argument, _ in graph.objective.networks[call.network].arguments]
    shown = [short(graph, i, n) for i, n in zip(node.inputs, names, strict=False)]
    given = [
        name if _plain(graph, i, name) else f"{name} = {short(graph, i, name)}"
        for name, i in zip(call.conditions, node.inputs[call.arguments : call.point], strict=True)
    ]
    bar = f" | {', '.join(given)}" if given else ""
    value = text = f"{call.network}({', '.join(shown)}{bar})"
    for order in range(len(call.directions)):
        text = f"d/d{moving_name(graph, node, order)}[{text}]"
    return f"{value}, and beside it {text}" if node.op == "beside" else text


def _plain(graph: Graph, at: int, name: str) -> bool:
    node = graph[at]
    return name in (node.name, node.detail)


def moving_name(graph: Graph, node: Node, order: int = 0) -> str:
    """The variable of a derivative: the time that moves, or the state where no time does."""
    call = node.call
    arguments = graph.objective.networks[call.network].arguments
    moves = [i for i, m in enumerate(call.directions[order]) if m]
    times = [i for i in moves if arguments[i][1] is not Kind.STATE] or moves
    return short(graph, node.inputs[times[0]], arguments[times[0]][0])


def short(graph: Graph, at: int, declared: str) -> str:
    """A value in one word: its name, a number, or the name of the network's argument."""
    node = graph[at]
    if node.name:
        return node.name
    if node.op in ("draw", "given", "constant", "training"):
        return str(node.detail)
    if node.op == "number":
        return show(node.value)
    return "null" if node.op == "null" else declared


def value_names(graph: Graph, at: int, head: str = "") -> list[str]:
    """Names for a network's value (or, of a derivative, its change), shortest first."""
    node = graph[at]
    call = node.call
    network = graph.objective.networks[call.network]
    arguments = network.arguments
    base = identifier(head or call.network)
    words = [
        short(graph, i, declared)
        for (declared, kind), i in zip(arguments, node.inputs, strict=False)
        if kind is not Kind.STATE
    ]
    null = any(graph[i].op == "null" for i in node.inputs[call.arguments : call.point])
    suffix = "".join(f"_{_word(w)}" for w in words)
    states = [
        _word(short(graph, i, declared))
        for (declared, kind), i in zip(arguments, node.inputs, strict=False)
        if kind is Kind.STATE
    ]
    if call.directions:
        names = [f"d{base}_d{_word(moving_name(graph, node))}"]
        return [*names, f"{names[0]}_at{suffix}"]
    name = f"{base}{suffix}" + ("_null" if null else "")
    return [name, *(f"{base}_{s}{suffix}" + ("_null" if null else "") for s in states)]


def _word(text: str) -> str:
    spelled = text.replace("-", "minus_").replace(".", "_").replace(" / ", "_over_")
    return identifier(spelled) if not spelled[:1].isdigit() else spelled
