"""What the functions of an emitted file share: opening lines, and how statements are printed."""

from __future__ import annotations

from dataclasses import dataclass, field

from flowdsl.emit.body import Body
from flowdsl.emit.layout import lay_out
from flowdsl.emit.names import RESERVED, Names, identifier, spec_names
from flowdsl.emit.printer import Printer
from flowdsl.emit.statements import Statement, arrange
from flowdsl.ir.graph import Graph
from flowdsl.passes.program import Program
from flowdsl.runtime.contract import NULL_LABEL
from flowdsl.spec.objective import Objective


@dataclass
class Writer:
    """Collects the file's parts."""

    program: Program
    exact: bool
    errors: bool = False
    chunk_rows: int | None = None
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


@dataclass
class Function:
    """What a function of the file is being built from."""

    graph: Graph
    printer: Printer
    names: Names
    body: Body


def begin(writer: Writer, graph: Graph, like: str, reserved: frozenset[str]) -> Function:
    printer = Printer(graph, writer.shown_constants, like)
    names = Names([*RESERVED, *reserved, *writer.shown_constants.values()])
    for at in graph.used:
        if graph[at].op == "given" and graph[at].detail == "label":
            readers = [graph[user] for user in graph.users[at]]
            if len(readers) == 1 and readers[0].name == "label":
                names.release("label")  # the spec's label takes the place of the given one
    body = Body(graph, printer, names, writer.exact, writer.program.optimized)
    body.chunked = writer.chunk_rows is not None
    return Function(graph, printer, names, body)


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


def label_line(state: str) -> str:
    """No labels at all are labels of no class."""
    none = f"torch.full((len({state}),), {NULL_LABEL}, device={state}.device)"
    return f"    label = {none} if label is None else label"


def indented(text: str, indent: int = 4) -> list[str]:
    return [(" " * indent + line if line else "") for line in [*text.rstrip("\n").split("\n"), ""]]


def open_networks(made: Function) -> list[str]:
    roles = dict.fromkeys(made.graph[c].call.network for c in made.graph.calls())
    lines = []
    for role in roles:
        local = made.printer.roles[role] = made.names.take(identifier(role))
        lines.append(f'{local} = networks["{role}"]')
    return lines


def printed(statements: list[Statement], indent: int) -> list[str]:
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
    comments = [" " * indent + f"# {line}" for line in statement.comment.splitlines()]
    return [*comments, *lay_out(statement.text, indent)]
