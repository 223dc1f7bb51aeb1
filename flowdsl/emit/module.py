"""The emitted file: header, constants, helpers, `draw`, `loss`, and the sampler's `jump` and `velocity`."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

from flowdsl.emit import helpers
from flowdsl.emit.body import Body, Statement, arrange
from flowdsl.emit.draws import DrawWriter, uses_noise
from flowdsl.emit.layout import lay_out
from flowdsl.emit.names import RESERVED, Names, identifier, spec_names
from flowdsl.emit.printer import ATOM, BIT_OR, CHOICE, NOT, Printer
from flowdsl.ir.graph import Graph
from flowdsl.ir.sampling import Sampler, samplers
from flowdsl.passes.program import Phase, Program
from flowdsl.prelude.laws import LAW_HELPERS
from flowdsl.prelude.text import show
from flowdsl.spec.core import Kind, Level
from flowdsl.spec.objective import Objective

#: Step of the central difference that replaces the derivative on request: a compromise between networks that see
#: raw times (best near 1e-2 in float32) and those that see times multiplied by 1000 (best near 1e-4).
DIFFERENCE_STEP = "1e-4"
ARGUMENTS = "networks, data, draws, label=None, progress=0.0, step=0, steps=1, terms=None"
PASSED = "networks, data, draws, label, progress, step, steps, terms"


@dataclass
class Writer:
    """Collects the file's parts."""

    program: Program
    exact: bool
    lines: list[str] = field(default_factory=list)
    helpers: set[str] = field(default_factory=set)
    constants: set[str] = field(default_factory=set)

    @property
    def objective(self) -> Objective:
        return self.program.common.objective

    @property
    def shown_constants(self) -> dict[str, str]:
        """The names in the file of the constants that a reader may edit."""
        names = spec_names(self.objective.constants)
        return {spec: name.upper() for spec, name in names.items()}

    def use(self, printer: Printer) -> None:
        self.helpers |= printer.helpers
        for node in printer.graph.nodes:
            if node.op == "constant":
                self.constants.add(str(node.detail))


def emit(program: Program, *, derivative: str = "exact") -> str:
    """The Python source of a compiled objective. It imports torch and nothing else.

    `derivative` is "exact" (forward mode) or "finite_difference" (a central difference).
    """
    objective = program.common.objective
    _refuse_collisions(objective)
    writer = Writer(program, derivative == "exact")
    drawn = _draw_function(writer)
    losses: list[str] = []
    for phase in program.phases:
        name = "loss" if len(program.phases) == 1 else f"loss_{phase.name}"
        losses += [*_loss_function(writer, phase, name), "", ""]
    if len(program.phases) > 1:
        losses += [*_dispatch(writer), "", ""]
    sampled: list[str] = []
    for sampler in samplers(objective):
        sampled += [*_sampler_function(writer, sampler), "", ""]
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
    if used or not writer.exact:
        lines.append("")
    lines += [f"{names[c]} = {show(objective.constants[c])}" for c in used]
    if not writer.exact and "difference" in writer.helpers:
        lines.append(f"STEP = {DIFFERENCE_STEP}  # of the finite differences")
    return [*lines, "", ""]


def lay_docstring(first: str, rest: str = "", indent: int = 0, width: int = 100) -> list[str]:
    """A docstring, wrapped."""
    import textwrap

    first, rest = (text.replace("\\", "/").replace('"""', "'''") for text in (first, rest))
    pad = " " * indent
    head = textwrap.wrap(first, width - indent - 3) or [""]
    if not rest and len(head) == 1 and indent + len(first) + 6 <= width:
        return [f'{pad}"""{first}"""']
    body = textwrap.wrap(rest, width - indent)
    lines = [f'{pad}"""{head[0]}', *(pad + line for line in head[1:])]
    if body:
        lines += ["", *(pad + line for line in body)]
    return [*lines, f'{pad}"""']


def _helper_texts(writer: Writer) -> list[str]:
    used = writer.helpers
    texts = [LAW_HELPERS[name] for name in LAW_HELPERS if name in used]
    plain = {"snap": helpers.SNAP, "snap_rows": helpers.SNAP_ROWS, "pick": helpers.PICK,
             "batch_mean": helpers.BATCH_MEAN, "spread": helpers.SPREAD, "jvp": helpers.JVP}  # fmt: skip
    nothing = "torch.zeros_like(point[0])"
    several = any(len(n.heads) > 1 for n in writer.objective.networks.values())
    if several and used & {"evaluate", "jvp_on", "difference_on"}:
        most = max(len(n.heads) for n in writer.objective.networks.values())
        nothing = f"({nothing},) * {most}"
    if "jvp_on" in used:
        used.add("jvp")
    if "difference_on" in used:
        used.add("difference")
    texts += [text for name, text in plain.items() if name in used]
    if "evaluate" in used:
        texts.append(helpers.EVALUATE.format(nothing=nothing))
    if "difference" in used:
        change = "(after - before) / (2 * STEP)"
        if several:
            change = (
                f"tuple((a - b) / (2 * STEP) for a, b in zip(after, before)) "
                f"if isinstance(after, tuple) else {change}"
            )
        texts.append("\n".join(
            line for raw in helpers.DIFFERENCE.format(change=change).splitlines()
            for line in (lay_out(raw.strip(), len(raw) - len(raw.lstrip())) if raw.strip() else [""])
        ) + "\n")  # fmt: skip
    if "jvp_on" in used:
        texts.append(helpers.JVP_ROWS.format(name="jvp", nothing=f"{nothing}, {nothing}"))
    if "difference_on" in used:
        texts.append(helpers.JVP_ROWS.format(name="difference", nothing=nothing))
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
    normal, uniform = "normal(" in text, "uniform(" in text
    if normal or uniform or "kind" in text:
        head += [
            "    real = torch.float64 if data.dtype == torch.float64 else torch.float32",
            '    kind = {"dtype": real, "device": data.device}',
        ]
    for name, function, used in (("normal", "randn", normal), ("uniform", "rand", uniform)):
        if used:
            head += [
                "",
                f"    def {name}(*shape):",
                f"        return torch.{function}(*shape, generator=generator, **kind)",
            ]
    if normal or uniform:
        head.append("")
    body = [line for statement in lines for line in lay_out(statement, 4)]
    keys = ", ".join(f'"{name}": {local}' for name, local in draws.local.items())
    return [*head, *body, *lay_out(f"return {{{keys}}}", 4)]


@dataclass
class Function:
    """What a function of the file is being built from."""

    graph: Graph
    printer: Printer
    names: Names
    body: Body


def _function(writer: Writer, graph: Graph, like: str, reserved: frozenset[str]) -> Function:
    printer = Printer(graph, writer.shown_constants, like)
    names = Names([*RESERVED, *reserved, *writer.shown_constants.values()])
    for node in graph.nodes:
        if node.op in ("call", "derivative", "dual"):
            names = names  # network names are taken below
    return Function(graph, printer, names, Body(graph, printer, names, writer.exact))


def _loss_function(writer: Writer, phase: Phase, name: str) -> list[str]:
    graph = phase.graph
    made = _function(writer, graph, "data", frozenset())
    lines = [*_open_networks(made), *_open_draws(made)]
    groups = _by_terms(made)
    several = len(graph.outputs) > 1
    guarded = several and bool(writer.objective.players)
    statements = _statements(made, groups, guarded)
    writer.use(made.printer)
    head = [f"def {name}({ARGUMENTS if name == 'loss' else PASSED}):"]
    head += [f"    {line}" for line in _loss_doc(writer, phase, name)]
    if "lift" in made.printer.helpers:
        head += ["", *_indented(helpers.LIFT.format(like="data"))]
    if "label" in {n.detail for n in graph.nodes if n.op == "given"}:
        head.append("    if label is None:")
        head.append("        label = torch.full((len(data),), -1, device=data.device)")
    return [*head, *(f"    {line}" for line in lines), *statements]


def _loss_doc(writer: Writer, phase: Phase, name: str) -> list[str]:
    if name != "loss":
        return [f'"""The loss {_phase_words(phase)}."""']
    return lay_docstring(
        "The loss and its terms. data: (batch, ...); label: (batch,), where -1 is no class."
    )


def _phase_words(phase: Phase) -> str:
    if not phase.given:
        return "in between"
    parts = []
    for at, value in phase.given:
        parts.append(phase.name.replace("_", " ") if isinstance(value, bool) or at < 0 else "")
    return f"at {phase.name.replace('_is_', ' = ')}" if any(parts) or phase.given else "in between"


def _indented(text: str, indent: int = 4) -> list[str]:
    return [(" " * indent + line if line else "") for line in [*text.rstrip("\n").split("\n"), ""]]


def _open_networks(made: Function) -> list[str]:
    roles = dict.fromkeys(made.graph[c].call.network for c in made.graph.calls())
    lines = []
    for role in roles:
        local = made.names.take(identifier(role))
        lines.append(f'{local} = networks["{role}"]')
    return lines


def _open_draws(made: Function) -> list[str]:
    """Give the draws local names, except those whose name the spec gives to something made from them."""
    graph, printer = made.graph, made.printer
    defined = {node.name for at, node in enumerate(graph.nodes) if node.name and at in graph.users}
    lines: list[str] = []
    for at in graph.used:
        node = graph[at]
        if node.op != "draw":
            continue
        name = str(node.detail)
        if name in defined and len(graph.users[at]) == 1:
            continue
        local = made.names.take(identifier(name), f"{identifier(name)}_drawn")
        printer.names[at] = local
        lines.append(f'{local} = draws["{name}"]')
        if node.kind in (Kind.TIME, Kind.SCALAR) and node.level is Level.ROW:
            printer.time_like = printer.time_like or local
    left = ", ".join(line.split(" = ")[0] for line in lines)
    right = ", ".join(line.split(" = ")[1] for line in lines)
    one = f"{left} = {right}"
    return [one] if lines and len(one) <= 96 else lines


def _by_terms(made: Function) -> dict[int, frozenset[str]]:
    """For each node, the terms that need it."""
    graph = made.graph
    needed: dict[int, frozenset[str]] = {at: frozenset() for at in graph.used}
    for output in graph.outputs:
        stack = [output.loss, *(() if output.rows is None else (output.rows,))]
        while stack:
            at = stack.pop()
            if output.term not in needed[at]:
                needed[at] |= {output.term}
                stack.extend(graph[at].inputs)
    return needed


def _statements(made: Function, needed: dict[int, frozenset[str]], guarded: bool) -> list[str]:
    graph, body, printer = made.graph, made.body, made.printer
    results: list[tuple[str, str]] = []
    for output in graph.outputs:
        for root in (output.rows, output.loss):
            if root is not None:
                body.need(root)
        loss = printer.text(output.loss)
        if output.rows is not None:
            loss = f"torch.where({printer.text(output.rows)}, {loss}, 0)"
            mean = f"{loss}.mean()"
        else:
            mean = f"{printer.text(output.loss, ATOM)}.mean()"
        if not graph[output.loss].inputs or graph.is_python(output.loss):
            mean = f"torch.as_tensor({loss}, device=data.device)"
        results.append((output.term, mean))
    if len(results) == 1:
        term, mean = results[0]
        value = _printed(body.statements, 4)
        value += lay_out(f"value = {mean}", 4)
        return [*value, *lay_out(f'return value, {{"{term}": value.detach()}}', 4)]
    if not guarded:
        lines = _printed(body.statements, 4)
        lines.append("    losses = {")
        for term, mean in results:
            lines += [*_item(term, mean)]
        lines.append("    }")
    else:
        lines = _guarded(body.statements, needed, results)
    lines += [
        "    value = sum(losses[name] for name in terms or losses)",
        "    return value, {name: term.detach() for name, term in losses.items()}",
    ]
    return lines


def _item(term: str, mean: str) -> list[str]:
    parts = lay_out(f'"{term}": {mean}', 8, 99)
    if len(parts) > 1 or len(parts[0]) > 99:
        parts = lay_out(mean, 8, 99)
        parts[0] = f'        "{term}": {parts[0].strip()}'
    return [*parts[:-1], parts[-1] + ","]


def _guarded(
    statements: list[Statement], needed: dict[int, frozenset[str]], results: list[tuple[str, str]]
) -> list[str]:
    """Statements under the terms that need them: a player's step computes only its own."""
    everything = [term for term, _ in results]
    names = ", ".join(f'"{t}"' for t in everything)
    lines = [*lay_out(f"terms = set(terms or ({names}))", 4), "    losses = {}"]
    sets: dict[frozenset[str], list[Statement]] = {}
    for statement in statements:
        key = frozenset().union(*(needed[n] for n in statement.nodes))
        sets.setdefault(key, []).append(statement)
    for term in everything:
        sets.setdefault(frozenset({term}), [])
    for key in sorted(sets, key=lambda k: (-len(k), [everything.index(t) for t in sorted(k)])):
        if key == frozenset(everything):
            lines += _printed(sets[key], 4)
            continue
        listed = [t for t in everything if t in key]
        if len(listed) == 1:
            lines.append(f'    if "{listed[0]}" in terms:')
        else:
            shown = ", ".join(f'"{t}"' for t in listed)
            lines.append(f"    if not terms.isdisjoint(({shown})):")
        lines += _printed(sets[key], 8)
        if len(listed) == 1:
            lines += lay_out(f'losses["{listed[0]}"] = {dict(results)[listed[0]]}', 8)
    return lines


def _printed(statements: list[Statement], indent: int) -> list[str]:
    lines: list[str] = []
    for item in arrange(statements):
        if isinstance(item, Statement):
            lines += _one(item, indent)
        else:
            lines.append(" " * indent + "with torch.no_grad():")
            for statement in item:
                lines += _one(statement, indent + 4)
    return lines


def _one(statement: Statement, indent: int) -> list[str]:
    comment = [" " * indent + f"# {statement.comment}"] if statement.comment else []
    return [*comment, *lay_out(statement.text, indent)]


def _dispatch(writer: Writer) -> list[str]:
    """`loss`: one decision per step, then the straight function of that phase."""
    program = writer.program
    printer = Printer(program.common, writer.shown_constants)
    names = Names(RESERVED)
    lines = [f"def loss({ARGUMENTS}):"]
    lines += [f"    {line}" for line in _loss_doc(writer, program.phases[0], "loss")]
    deciding = dict.fromkeys(at for phase in program.phases for at, _ in phase.given)
    for at in deciding:
        node = program.common[at]
        if node.kind is not Kind.TRUTH:
            text = printer.text(at)
            printer.names[at] = names.take(identifier(node.name) if node.name else "phase")
            lines += lay_out(f"{printer.names[at]} = {text}", 4)
    for phase in program.phases:
        call = f"return loss_{phase.name}({PASSED})"
        if not phase.given:
            lines.append(f"    {call}")
            continue
        tests = [_test(printer, at, value) for at, value in phase.given]
        lines += [f"    if {' and '.join(tests)}:", f"        {call}"]
    writer.use(printer)
    return lines


def _test(printer: Printer, at: int, value: Fraction | bool) -> str:
    if isinstance(value, bool):
        return printer.text(at, NOT) if value else f"not {printer.text(at, NOT)}"
    return f"{printer.text(at, BIT_OR)} == {show(value)}"


def _sampler_function(writer: Writer, sampler: Sampler) -> list[str]:
    made = _function(writer, sampler.graph, sampler.state, frozenset())
    printer, graph = made.printer, sampler.graph
    printer.time_like = sampler.times[0] if sampler.times else ""
    for at, node in enumerate(graph.nodes):
        if node.op == "given":
            printer.names[at] = sampler.local.get(str(node.detail), str(node.detail))
    lines = _open_networks(made)
    root = graph.outputs[0].loss
    made.body.need(root)
    result = printer.text(root, CHOICE)
    writer.use(printer)
    keywords = "".join(f", {name}={show(value)}" for name, value in sampler.conditions)
    arguments = ", ".join(["networks", sampler.state, *sampler.times])
    head = [f"def {sampler.name}({arguments}, label=None{keywords}):"]
    head += [f"    {line}" for line in lay_docstring(sampler.meaning, indent=4)]
    head = [head[0], *(line[4:] if line.startswith("        ") else line for line in head[1:])]
    if "lift" in printer.helpers:
        head += ["", *_indented(helpers.LIFT.format(like=sampler.state))]
    if sampler.uses_label:
        head.append("    if label is None:")
        head.append(
            f"        label = torch.full((len({sampler.state}),), -1, device={sampler.state}.device)"
        )
    for name, _ in sampler.conditions:
        like = f"dtype={sampler.times[0]}.dtype, device={sampler.state}.device"
        lines.append(f"{name} = torch.as_tensor({name}, {like}).expand(len({sampler.state}))")
    body = _printed(made.body.statements, 4)
    return [*head, *(f"    {line}" for line in lines), *body, *lay_out(f"return {result}", 4)]
