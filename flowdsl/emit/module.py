"""The emitted file: header, constants, helpers, `draw`, `loss`, and the sampler's functions."""

from __future__ import annotations

from flowdsl.emit import helpers
from flowdsl.emit.averages import decays_function
from flowdsl.emit.draws import DrawWriter, uses_noise
from flowdsl.emit.function import Writer, lay_docstring
from flowdsl.emit.layout import lay_out
from flowdsl.emit.losses import dispatch, loss_function
from flowdsl.emit.names import identifier, spec_names
from flowdsl.emit.samplers import sampler_function
from flowdsl.emit.sampling import samplers
from flowdsl.passes.program import Program
from flowdsl.prelude.laws import LAW_HELPERS
from flowdsl.prelude.text import show
from flowdsl.spec.objective import Objective

#: Step of the central difference that replaces the derivative on request: a compromise between
#: networks that see raw times (best near 1e-2 in float32) and those that see times multiplied by
#: 1000 (best near 1e-4).
DIFFERENCE_STEP = "1e-4"


def emit(
    program: Program,
    *,
    derivative: str = "exact",
    errors: bool = False,
    chunk_rows: int | None = None,
) -> str:
    """The Python source of a compiled objective. It imports torch and nothing else.

    `derivative` is "exact" (forward mode) or "finite_difference" (a central difference); with
    `errors` the metrics hold squared errors beside the terms. Derivatives without gradient are
    taken of `chunk_rows` rows at a time, where that is given.
    """
    objective = program.common.objective
    _refuse_collisions(objective)
    writer = Writer(program, derivative == "exact", errors, chunk_rows)
    drawn = _draw_function(writer)
    losses: list[str] = []
    for phase in program.phases:
        name = "loss" if len(program.phases) == 1 else f"loss_{identifier(phase.name)}"
        losses += [*loss_function(writer, phase, name), "", ""]
    if len(program.phases) > 1:
        losses += [*dispatch(writer), "", ""]
    sampled: list[str] = []
    for sampler in samplers(objective):
        sampled += [*sampler_function(writer, sampler), "", ""]
    averaged = decays_function(writer)
    sampled += [*averaged, "", ""] if averaged else []
    blocks = [*_header(writer), *_helper_texts(writer), *drawn, "", "", *losses, *sampled]
    while blocks and not blocks[-1]:
        blocks.pop()
    return "\n".join(blocks) + "\n"


def _refuse_collisions(objective: Objective) -> None:
    spec_names(dict.fromkeys([*objective.draws, *objective.definitions, *objective.networks]))


def _header(writer: Writer) -> list[str]:
    objective = writer.objective
    paper = f" (arXiv:{objective.arxiv.removeprefix('arXiv:')})" if objective.arxiv else ""
    title = f": {objective.title}{paper}" if objective.title else paper
    lines = lay_docstring(
        f"{objective.name}{title}",
        "Compiled by flowdsl from the objective's specification. It needs torch only: "
        "`draws = draw(data)`, then `value, metrics = loss({network role: module}, data, draws)`.",
    )
    lines += ["", "import torch"]
    names = writer.shown_constants
    used = [c for c in objective.constants if c in writer.constants]
    chunked = "in_chunks" in writer.helpers
    if used or chunked or "difference" in writer.helpers:
        lines.append("")
    lines += [f"{names[c]} = {show(objective.constants[c])}" for c in used]
    if "difference" in writer.helpers:
        lines.append(f"STEP = {DIFFERENCE_STEP}  # of the finite differences")
    if chunked:
        lines.append(f"CHUNK = {writer.chunk_rows}  # rows whose derivative is taken at a time")
    return [*lines, "", ""]


def _helper_texts(writer: Writer) -> list[str]:
    used = writer.helpers | ({"jvp"} if "shared_jvp" in writer.helpers else set())
    texts = [LAW_HELPERS[name] for name in LAW_HELPERS if name in used]
    several = any(len(n.heads) > 1 for n in writer.objective.networks.values())
    plain = {
        "snap": helpers.SNAP,
        "snap_rows": helpers.SNAP_ROWS,
        "batch_mean": helpers.BATCH_MEAN,
        "jvp": helpers.RULED_JVP if writer.program.optimized else helpers.JVP,
        "shared_jvp": helpers.SHARED_JVP,
        "difference": helpers.DIFFERENCE.replace(
            "CHANGE", helpers.SEVERAL if several else helpers.ONE
        ),
        "only": helpers.ONLY,
        "in_chunks": helpers.IN_CHUNKS,
        "in_one_call": helpers.IN_ONE_CALL,
        "on_rows": helpers.ON_ROWS_OF_HEADS if "only" in used else helpers.ON_ROWS,
    }
    texts += [text for name, text in plain.items() if name in used]
    return [line for text in texts for line in [*text.rstrip("\n").split("\n"), "", ""]]


def _draw_function(writer: Writer) -> list[str]:
    draws = DrawWriter(writer.objective)
    lines = draws.write(uses_noise(writer.objective))
    writer.helpers |= draws.helpers
    head = [
        "def draw(data, generator=None, progress=0.0, step=0, steps=1):",
        '    """Every random number of the loss, by its name in the spec."""',
    ]
    text = "\n".join(lines)
    if "batch" in text:
        head.append("    batch = len(data)")
    if "kind" in text or "real" in text:
        head.append("    real = torch.float64 if data.dtype == torch.float64 else torch.float32")
    if "kind" in text:
        head.append('    kind = {"generator": generator, "dtype": real, "device": data.device}')
    body = [line for statement in lines for line in lay_out(statement, 4)]
    keys = ", ".join(f'"{name}": {local}' for name, local in draws.local.items())
    return [*head, *body, *lay_out(f"return {{{keys}}}", 4)]
