"""The emitted `loss`: one straight function per phase of training, and the choice between them."""

from __future__ import annotations

from fractions import Fraction

from flowdsl.emit import helpers
from flowdsl.emit.function import (
    Function,
    Writer,
    begin,
    indented,
    label_line,
    lay_docstring,
    open_networks,
    printed,
)
from flowdsl.emit.layout import lay_out
from flowdsl.emit.names import RESERVED, Names, identifier
from flowdsl.emit.printer import ATOM, BIT_OR, NOT, PRODUCT, Printer
from flowdsl.emit.statements import Statement
from flowdsl.passes.program import Phase
from flowdsl.prelude.text import show
from flowdsl.spec.core import Kind, Level

ARGUMENTS = "networks, data, draws, label=None, progress=0.0, step=0, steps=1, terms=None"
PASSED = "networks, data, draws, label, progress, step, steps, terms"


def loss_function(writer: Writer, phase: Phase, name: str) -> list[str]:
    graph = phase.graph
    made = begin(writer, graph, "data", frozenset())
    lines = [*open_networks(made), *_open_draws(made)]
    groups = _by_terms(made)
    several = len(graph.outputs) > 1
    guarded = several and bool(writer.objective.players)
    errors = _errors(made) if writer.errors else {}
    statements = _statements(made, groups, guarded, errors)
    writer.use(made.printer)
    head = [f"def {name}({ARGUMENTS if name == 'loss' else PASSED}):"]
    head += [f"    {line}" for line in _loss_doc(writer, phase, name)]
    if "lift" in made.printer.helpers:
        head += ["", *indented(helpers.LIFT.format(like="data"))]
    if "label" in {n.detail for n in graph.nodes if n.op == "given"}:
        head.append(label_line("data"))
    if "batch" in made.printer.helpers:
        head.append("    batch = len(data)")
    return [*head, *(f"    {line}" for line in lines), *statements]


def _loss_doc(writer: Writer, phase: Phase, name: str) -> list[str]:
    if name != "loss":
        return [f'"""The loss {_phase_words(writer, phase)}."""']
    return lay_docstring(
        "The loss and its terms. data: (batch, ...); label: (batch,), where -1 is no class."
    )


def _phase_words(writer: Writer, phase: Phase) -> str:
    if not phase.given:
        return "at all other times"
    printer = Printer(writer.program.common, {})
    for at, _ in phase.given:
        name = writer.program.common[at].name
        if name:
            printer.names[at] = name
    return "when " + " and ".join(_test(printer, at, value) for at, value in phase.given)


def _open_draws(made: Function) -> list[str]:
    """Give the draws local names, except those whose name the spec gives to something made from
    them.
    """
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


def _errors(made: Function) -> dict[str, int]:
    """By term, the squared error that its loss is made of, where that is one and not the loss
    itself."""
    found: dict[str, int] = {}
    for output in made.graph.outputs:
        squares, stack, seen = set[int](), [output.loss], set[int]()
        while stack:
            at = stack.pop()
            if at in seen:
                continue
            seen.add(at)
            if made.graph[at].op in ("sum_squares", "mean_squares"):
                squares.add(at)
            else:
                stack.extend(made.graph[at].inputs)
        if len(squares) == 1 and output.loss not in squares:
            found[output.term] = squares.pop()
    return found


def _error_text(made: Function, at: int, rows: int | None) -> str:
    """The mean of a squared error over the batch, as far as its term holds."""
    graph, printer = made.graph, made.printer
    name = printer.text(at, ATOM)
    if rows is None:
        return f"{name}.detach().mean()"
    if graph.is_python(rows):
        return f"{printer.text(rows, PRODUCT)} * {name}.detach().mean()"
    return f"torch.where({printer.text(rows)}, {name}.detach(), 0).mean()"


def _statements(
    made: Function, needed: dict[int, frozenset[str]], guarded: bool, squares: dict[str, int]
) -> list[str]:
    graph, body, printer = made.graph, made.body, made.printer
    results: list[tuple[str, str]] = []
    errors: dict[str, str] = {}
    for output in graph.outputs:
        for root in (output.rows, output.loss):
            if root is not None:
                body.need(root)
        square = squares.get(output.term)
        if square is not None:
            name = "error" if graph[square].op == "sum_squares" else "mse"
            body.need(square)
            errors[f"{output.term}.{name}"] = _error_text(made, square, output.rows)
        if graph.is_python(output.loss):
            mean = f"torch.as_tensor({printer.text(output.loss)}, device=data.device)"
        elif output.rows is not None and graph.is_python(output.rows):
            mean = (
                f"{printer.text(output.rows, PRODUCT)} * {printer.text(output.loss, ATOM)}.mean()"
            )
        elif output.rows is not None:
            rows, loss = printer.text(output.rows), printer.text(output.loss)
            mean = f"torch.where({rows}, {loss}, 0).mean()"
        else:
            mean = f"{printer.text(output.loss, ATOM)}.mean()"
        results.append((output.term, mean))
    if len(results) == 1:
        term, mean = results[0]
        told = "".join(f', "{key}": {text}' for key, text in errors.items())
        return [
            *printed(body.statements, 4),
            *lay_out(f"value = {mean}", 4),
            *lay_out(f'return value, {{"{term}": value.detach(){told}}}', 4),
        ]
    lines = ["    errors = {}"] if errors else []
    if guarded:
        lines += _guarded(body.statements, needed, results, errors)
    else:
        lines += [*printed(body.statements, 4), "    losses = {}"]
        for term, mean in results:
            lines += _entered(term, mean, errors, 4)
    lines += [
        "    value = sum(losses.values())"
        if guarded
        else "    value = sum(losses[name] for name in terms or losses)",
        "    return value, {name: term.detach() for name, term in losses.items()}"
        + (" | errors" if errors else ""),
    ]
    return lines


def _entered(term: str, mean: str, errors: dict[str, str], indent: int) -> list[str]:
    """A term's mean among the losses, and its squared error beside it."""
    lines = lay_out(f'losses["{term}"] = {mean}', indent)
    for key, text in errors.items():
        if key.rpartition(".")[0] == term:
            lines += lay_out(f'errors["{key}"] = {text}', indent)
    return lines


def _guarded(
    statements: list[Statement],
    needed: dict[int, frozenset[str]],
    results: list[tuple[str, str]],
    errors: dict[str, str],
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
            lines += printed(sets[key], 4)
            continue
        listed = [t for t in everything if t in key]
        if len(listed) == 1:
            lines.append(f'    if "{listed[0]}" in terms:')
        else:
            shown = ", ".join(f'"{t}"' for t in listed)
            lines.append(f"    if not terms.isdisjoint(({shown})):")
        lines += printed(sets[key], 8)
        if len(listed) == 1:
            lines += _entered(listed[0], dict(results)[listed[0]], errors, 8)
    return lines


def dispatch(writer: Writer) -> list[str]:
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
        call = f"return loss_{identifier(phase.name)}({PASSED})"
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
