"""The emitted `decays`: of averages whose decay changes while training."""

from __future__ import annotations

from flowdsl.diagnostics import fail
from flowdsl.emit.function import Writer
from flowdsl.emit.layout import lay_out
from flowdsl.emit.names import identifier
from flowdsl.emit.printer import Printer
from flowdsl.ir.graph import Output
from flowdsl.ir.lower import Lowering
from flowdsl.ir.shares import exact
from flowdsl.passes.fold import fold


def decays_function(writer: Writer) -> list[str]:
    """`decays(progress, step, steps)`: the decay of each such average by name; nothing where all
    decays are constants.
    """
    objective = writer.objective
    moving = {
        name: network.decay
        for name, network in objective.networks.items()
        if network.decay is not None and exact(objective, network.decay) is None
    }
    if not moving:
        return []
    lowering = Lowering(objective)
    outputs = [Output(name, lowering.expr(decay)) for name, decay in moving.items()]
    graph = fold(lowering.builder.finish(outputs))
    printer = Printer(graph, writer.shown_constants)
    lines, names = [], []
    for output in graph.outputs:
        if not graph.is_python(output.loss):
            raise fail(
                "emit",
                f"the decay of `{output.term}` is no number of its step",
                objective.networks[output.term].span,
                hint="it may depend on constants and on the curriculum",
            )
        name = f"{identifier(output.term)}_decay"
        lines += lay_out(f"{name} = {printer.text(output.loss)}", 4)
        names.append(f'"{output.term}": {name}')
    writer.use(printer)
    return [
        "def decays(progress=0.0, step=0, steps=1):",
        '    """The decays of the averages at a step of training."""',
        *lines,
        *lay_out(f"return {{{', '.join(names)}}}", 4),
    ]
