"""Gradient where it is wanted, and nowhere else.

A network pass that no gradient reaches (it stands under `stop`, or its network is frozen or an
average) keeps no reverse-mode graph. `stop` itself moves to where a value with gradient enters a
region without: `stop(error + c)` becomes `stop(error) + c`, and `stop` of what carries no gradient
disappears. So a target needs no `stop` around it once the passes inside keep no graph.
"""

from __future__ import annotations

from dataclasses import replace

from flowdsl.ir.gradient import gradient
from flowdsl.ir.graph import NETWORK_OPS, Builder, Graph, Node, rewrite
from flowdsl.spec.core import Kind

#: Nodes that read one output of a network pass.
PARTS_OF_A_CALL = frozenset({"head", "primal", "tangent"})


def stops(graph: Graph) -> Graph:
    """Mark passes that keep no graph, and move every `stop` to the border of its region."""
    facts = gradient(graph)

    def strip(builder: Builder, at: int) -> int:
        while builder.nodes[at].op == "stop":
            at = builder.nodes[at].inputs[0]
        return at

    def rule(builder: Builder, node: Node, old: int) -> int:
        if node.op == "stop":
            inside = graph[old].inputs[0]
            if not facts.carries[inside] or not facts.wanted[inside]:
                return node.inputs[0]
            return builder.stop(strip(builder, node.inputs[0]))
        if facts.wanted[old] and facts.carries[old]:
            return builder.add(node)
        if node.op in NETWORK_OPS:
            inputs = tuple(strip(builder, i) for i in node.inputs)
            call = replace(node.call, record=False)
            return builder.add(replace(node, inputs=inputs, detail=call))
        if node.kind is Kind.TRUTH or node.op == "batch_mean" or not facts.carries[old]:
            return builder.add(node)
        if node.op in PARTS_OF_A_CALL:  # a pass gives its outputs as they are: the stop comes after
            (whole,), (new,) = graph[old].inputs, node.inputs
            inside = strip(builder, new)
            own = builder.add(replace(node, inputs=(inside,)))
            still = inside == new and not (facts.wanted[whole] and facts.carries[whole])
            return own if still else builder.stop(own)
        inputs = tuple(
            builder.stop(strip(builder, new)) if facts.wanted[i] and facts.carries[i] else new
            for i, new in zip(graph[old].inputs, node.inputs, strict=True)
        )
        return builder.add(replace(node, inputs=inputs))

    return rewrite(graph, rule)
