"""The emitted `jump` and `velocity`: sampling from what the objective learns."""

from __future__ import annotations

from flowdsl.emit import helpers
from flowdsl.emit.function import (
    Writer,
    begin,
    indented,
    label_line,
    lay_docstring,
    open_networks,
    printed,
)
from flowdsl.emit.layout import lay_out
from flowdsl.emit.printer import CHOICE
from flowdsl.emit.sampling import Sampler
from flowdsl.prelude.text import show


def sampler_function(writer: Writer, sampler: Sampler) -> list[str]:
    made = begin(writer, sampler.graph, sampler.state, frozenset())
    printer, graph = made.printer, sampler.graph
    printer.time_like = sampler.times[0]
    for at, node in enumerate(graph.nodes):
        if node.op == "given":
            printer.names[at] = sampler.local.get(str(node.detail), str(node.detail))
    lines = open_networks(made)
    root = graph.outputs[0].loss
    made.body.need(root)
    result = printer.text(root, CHOICE)
    writer.use(printer)
    keywords = "".join(f", {name}={show(value)}" for name, value in sampler.conditions)
    given = ", ".join([*sampler.states, *sampler.times])
    arguments = f"networks, {given}, label=None{keywords}" if sampler.calls else given
    head = [f"def {sampler.name}({arguments}):"]
    head += [f"    {line}" for line in lay_docstring(sampler.meaning, indent=4)]
    head = [head[0], *(line[4:] if line.startswith("        ") else line for line in head[1:])]
    if "lift" in printer.helpers:
        head += ["", *indented(helpers.LIFT.format(like=sampler.state))]
    if sampler.uses_label:
        head.append(label_line(sampler.state))
    for name, _ in sampler.conditions:
        like = f"dtype={sampler.times[0]}.dtype, device={sampler.state}.device"
        lines.append(f"{name} = torch.as_tensor({name}, {like}).expand(len({sampler.state}))")
    body = printed(made.body.statements, 4)
    if len(made.body.statements) == 1 and made.body.statements[0].text.startswith(f"{result} = "):
        body = lay_out(f"return {made.body.statements[0].text.removeprefix(f'{result} = ')}", 4)
    else:
        body += lay_out(f"return {result}", 4)
    return [*head, *(f"    {line}" for line in lines), *body]
