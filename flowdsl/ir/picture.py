"""Pictures of a graph: DOT text for Graphviz, and SVG drawn here, without any external program.

Network passes are boxes (filled where a reverse-mode graph is kept), all other values rounded; time
runs downwards, and arrows through which gradient flows back are bold.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import networkx as nx

from flowdsl.ir.gradient import gradient
from flowdsl.ir.graph import NETWORK_OPS, Graph, Node
from flowdsl.prelude.text import show

_SYMBOLS = {"add": "+", "sub": "-", "mul": "*", "div": "/", "lt": "<", "le": "<=", "gt": ">",
            "ge": ">=", "eq": "==", "ne": "!=", "sum_squares": "sum of squares",
            "mean_squares": "mean of squares"}  # fmt: skip
_ROW, _COLUMN, _HEIGHT, _LETTER = 70, 24, 34, 7.4
_STYLE = (
    "text{font:12px sans-serif;text-anchor:middle}.pass{fill:#fff;stroke:#1f4e8c;stroke-width:1.5}"
    ".live{fill:#cfe0f5}.value{fill:#f6f6f4;stroke:#aaa}.term{fill:#fde9d0;stroke:#c60}"
    ".edge{fill:none;stroke:#bbb}.flow{stroke:#1f4e8c;stroke-width:1.8}"
)


def label(graph: Graph, node: Node) -> str:
    """What stands in a node's box."""
    if node.op in NETWORK_OPS:
        word = "" if node.op == "call" else "d " if node.op == "derivative" else f"{node.op} "
        together = f", in call {node.call.together}" if node.call.together else ""
        rows = ", some rows" if node.call.on_rows else ""
        return f"{word}{node.call.network}{rows}{together}"
    if node.op == "number":
        return show(node.value)
    if isinstance(node.detail, str):
        return node.detail
    symbol = _SYMBOLS.get(node.op, node.op)
    return f"{node.name} ({symbol})" if node.name else symbol


def dot(graph: Graph) -> str:
    """The graph as DOT text."""
    flow = gradient(graph)
    lines = [f'digraph "{_quoted(graph.objective.name)}" {{', "  rankdir=TB; node [fontsize=10];"]
    for at in graph.used:
        node = graph[at]
        shape = "box" if node.op in NETWORK_OPS else "ellipse"
        filled = ", style=filled" if node.op in NETWORK_OPS and node.call.record else ""
        lines.append(f'  n{at} [label="{_quoted(label(graph, node))}", shape={shape}{filled}];')
        for i in node.inputs:
            bold = " [style=bold]" if flow.learns(i) and flow.learns(at) else ""
            lines.append(f"  n{i} -> n{at}{bold};")
    for k, output in enumerate(graph.outputs):
        lines.append(f'  t{k} [label="{_quoted(output.term)}", shape=box];')
        lines.append(f"  n{output.loss} -> t{k};")
    return "\n".join([*lines, "}"]) + "\n"


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def svg(graph: Graph) -> str:
    """The graph as an SVG picture; layers follow the longest way from the leaves."""
    layers = [list(layer) for layer in _layers(graph)]
    boxes, width, height = _place(graph, layers)
    flow = gradient(graph)
    parts: list[str] = []
    for at in graph.used:
        for i in graph[at].inputs:
            kind = "edge flow" if flow.learns(i) and flow.learns(at) else "edge"
            parts.append(_curve(boxes[i], boxes[at], kind))
    for at in graph.used:
        node = graph[at]
        kind = "value"
        if node.op in NETWORK_OPS:
            kind = "pass live" if node.call.record else "pass"
        parts.append(_box(boxes[at], label(graph, node), kind, node.op not in NETWORK_OPS))
    for output in graph.outputs:
        x, y, wide = boxes[output.loss]
        below = (x, y + _ROW, max(60.0, len(output.term) * _LETTER + 16))
        parts.append(_curve((x, y, wide), below, "edge flow"))
        parts.append(_box(below, output.term, "term", False))
    size = f'width="{width:.0f}" height="{height + _ROW:.0f}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}><title>'
        f"{escape(graph.objective.name)}</title><style>{_STYLE}</style>\n"
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _layers(graph: Graph) -> list[list[int]]:
    """Nodes by depth; a leaf stands just above its first reader."""
    network = graph.network()
    depth: dict[int, int] = {}
    for at in nx.topological_sort(network):
        depth[at] = 1 + max((depth[i] for i in network.predecessors(at)), default=0)
    for at in reversed(list(nx.topological_sort(network))):
        readers = [depth[r] for r in network.successors(at)]
        if not graph[at].inputs and readers:
            depth[at] = min(readers) - 1
    layers: dict[int, list[int]] = {}
    for at in sorted(depth):
        layers.setdefault(depth[at], []).append(at)
    return _ordered([layers[d] for d in sorted(layers)], network)


def _ordered(layers: list[list[int]], network: nx.DiGraph) -> list[list[int]]:
    """Fewer crossings: each node moves towards the middle of its neighbours in the layers around, a
    few times.
    """
    position = {at: float(k) for layer in layers for k, at in enumerate(layer)}
    for sweep in range(6):
        around = network.predecessors if sweep % 2 == 0 else network.successors
        for layer in layers if sweep % 2 == 0 else reversed(layers):
            middles = {}
            for at in layer:
                near = [position[n] for n in around(at)]
                middles[at] = sum(near) / len(near) if near else position[at]
            layer.sort(key=lambda at: (middles[at], at))
            position.update({at: float(k) for k, at in enumerate(layer)})
    return layers


Box = tuple[float, float, float]  # middle of the top edge, and width


def _place(graph: Graph, layers: list[list[int]]) -> tuple[Mapping[int, Box], float, float]:
    wide = {
        at: max(34.0, len(label(graph, graph[at])) * _LETTER + 16)
        for layer in layers
        for at in layer
    }
    totals = [sum(wide[at] + _COLUMN for at in layer) for layer in layers]
    width = max(totals, default=0) + 2 * _COLUMN
    boxes: dict[int, Box] = {}
    for depth, (layer, total) in enumerate(zip(layers, totals, strict=True)):
        x = (width - total) / 2
        for at in layer:
            boxes[at] = (x + (wide[at] + _COLUMN) / 2, 20.0 + depth * _ROW, wide[at])
            x += wide[at] + _COLUMN
    return boxes, width, 20.0 + len(layers) * _ROW


def _curve(start: Box, end: Box, kind: str) -> str:
    x, y, u, v = start[0], start[1] + _HEIGHT, end[0], end[1]
    half = (y + v) / 2
    bend = f"C{x:.1f},{half:.1f} {u:.1f},{half:.1f} {u:.1f},{v:.1f}"
    return f'<path class="{kind}" d="M{x:.1f},{y:.1f} {bend}"/>'


def _box(box: Box, text: str, kind: str, rounded: bool) -> str:
    x, y, wide = box
    radius = 12 if rounded else 2
    return (
        f'<rect class="{kind}" x="{x - wide / 2:.1f}" y="{y:.1f}" width="{wide:.1f}" '
        f'height="{_HEIGHT}" rx="{radius}"/>'
        f'<text x="{x:.1f}" y="{y + 21:.1f}">{escape(text)}</text>'
    )
