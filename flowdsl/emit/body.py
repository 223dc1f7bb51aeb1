"""From a graph to the statements of a function: what gets a name, in which order, and under which
gradient mode.
"""

from __future__ import annotations

from flowdsl.emit.draws import share_count
from flowdsl.emit.names import Names, identifier
from flowdsl.emit.notation import notation, value_names
from flowdsl.emit.printer import ATOM, Printer
from flowdsl.emit.statements import Statement
from flowdsl.ir.gradient import Gradient, gradient
from flowdsl.ir.graph import LEAVES, NETWORK_OPS, PAIRS, Count, Graph, Node
from flowdsl.ir.shares import static_shares
from flowdsl.ir.together import made_with
from flowdsl.spec.core import Kind

#: What to call a value that the spec does not name and that is used more than once.
_MEANINGS = {
    "sum_squares": "error",
    "mean_squares": "mse",
    "norm": "length",
    "mean_abs": "size",
    "batch_mean": "mean",
    "select": "chosen",
    "sub": "difference",
    "add": "total",
    "mul": "product",
    "div": "ratio",
    "pow": "power",
    "or": "either",
    "and": "both",
    "not": "others",
}
#: The reductions of a sample to a number; they are always worth a name.
REDUCTIONS = frozenset({"sum_squares", "mean_squares", "norm", "mean_abs", "dot"})
#: A number that is written with at most this many characters may be written twice.
SHORT = 24


class Body:
    """Writes the statements that compute a graph's values. With `leave_out`, networks are asked
    for those of several heads that are read.
    """

    def __init__(
        self,
        graph: Graph,
        printer: Printer,
        names: Names,
        exact: bool = True,
        leave_out: bool = False,
    ) -> None:
        self.graph = graph
        self.printer = printer
        self.names = names
        self.exact = exact
        self.leave_out = leave_out
        self.chunked = False  # whether derivatives without gradient are taken a few rows at a time
        self.gradient: Gradient = gradient(graph)
        self.statements: list[Statement] = []
        self._done: set[int] = set()
        self._results = self._find_results()

    def _find_results(self) -> dict[int, list[int]]:
        """For each network pass, the nodes that read its outputs: itself, or heads, primals and
        tangents.
        """
        found: dict[int, list[int]] = {}
        for at in self.graph.calls():
            several = len(self.graph.objective.networks[self.graph[at].call.network].heads) > 1
            layers = [at]
            if self.graph[at].op in PAIRS:
                layers = list(dict.fromkeys(self.graph.users[at]))
            if several:
                layers = [u for layer in layers for u in dict.fromkeys(self.graph.users[layer])]
            found[at] = layers
        return found

    def need(self, at: int) -> None:
        """Write the statements without which the value of a node cannot be written."""
        stack: list[tuple[int, bool]] = [(at, False)]
        while stack:
            node_at, ready = stack.pop()
            if node_at in self._done:
                continue
            if ready:
                self._done.add(node_at)
                self._place(node_at)
            else:
                stack.append((node_at, True))
                stack.extend((i, False) for i in reversed(self._inputs(node_at)))

    def _inputs(self, at: int) -> list[int]:
        """What must be there before a value: of a call, what all need that are made with it."""
        graph = self.graph
        made = made_with(graph, at) if graph[at].op in NETWORK_OPS else (at,)
        return [i for each in made for i in graph[each].inputs]

    def _place(self, at: int) -> None:
        node = self.graph[at]
        if at in self.printer.names or node.op in LEAVES:
            return
        if node.op in NETWORK_OPS:
            self._place_call(at, node)
        elif node.op == "rows":
            self._place_rows(at, node)
        elif node.op not in ("head", "primal", "tangent") and self._deserves_name(at, node):
            self._assign(at, node)

    def _deserves_name(self, at: int, node: Node) -> bool:
        if node.op in ("true", "false") or (node.op == "stop" and not node.name):
            return False
        if node.name:
            return True
        reduced = node.op in REDUCTIONS and self.printer.is_state(node.inputs[0])
        uses = len(self.graph.users.get(at, ())) + self.graph.roots.count(at)
        if reduced or uses < 2:
            return reduced
        simple = not self.printer.is_state(at) and node.op not in ("select", "batch_mean")
        return not (simple and len(self.printer.text(at)) <= SHORT)

    def _assign(self, at: int, node: Node) -> None:
        text = self.printer.text(at)
        wanted = identifier(node.name) if node.name else _MEANINGS.get(node.op, node.op)
        self.printer.names[at] = self.names.take(wanted)
        self.statements.append(
            Statement(
                (at,),
                f"{self.printer.names[at]} = {text}",
                neutral=not self.gradient.carries[at] or not self.gradient.wanted[at],
            )
        )

    def _place_rows(self, at: int, node: Node) -> None:
        mask = self.graph[node.inputs[0]]
        inner = self.graph[mask.inputs[0]] if mask.op == "not" else mask
        word = inner.name or (str(inner.detail) if inner.op == "draw" else "")
        wanted = "rows" if not word else f"not_{word}" if mask.op == "not" else f"{word}_rows"
        comment = ""
        if mask.op == "false":
            text, comment = "torch.arange(0, device=data.device)", "no rows"
        elif isinstance(node.detail, Count):
            # a stable sort of the mask's negation puts its rows first; shapes stay static
            outside = mask.inputs[0] if mask.op == "not" else node.inputs[0]
            text = self.printer.text(outside, ATOM)
            text = text if mask.op == "not" else f"(~{text})"
            text = f"{text}.int().argsort(stable=True)[: {self.count(node.detail)}]"
            comment = (
                f"the rows where {_words(self.printer.text(node.inputs[0]))}; their number is known"
            )
        else:
            text = f"{self.printer.text(node.inputs[0], ATOM)}.nonzero().squeeze(1)"
        self.printer.names[at] = name = self.names.take(identifier(wanted))
        self.statements.append(Statement((at,), f"{name} = {text}", comment, neutral=True))

    def count(self, count: Count) -> str:
        """A number of rows as a function of the batch size."""
        shares = static_shares(self.graph.objective)
        self.printer.helpers.add("batch")
        text = ""
        for multiple, share in sorted(count.parts, key=lambda part: -part[0]):
            part = "batch" if share is None else share_count(shares, share, "batch")
            part = part if abs(multiple) == 1 else f"{abs(multiple)} * ({part})"
            sign = "-" if multiple < 0 else "+"
            text = f"{text} {sign} {part}" if text else (part if multiple > 0 else f"-{part}")
        return text or "0"

    def _place_call(self, at: int, node: Node) -> None:
        made = made_with(self.graph, at)
        if len(made) > 1:
            self._place_together(made)
            return
        frozen = not node.call.record
        self.printer.quiet = frozen
        network = self._asked(at, node, self.printer.roles[node.call.network])
        arguments, conditions, rows = self._given(node)
        given = [f"{name}={value}" for name, value in conditions.items()]
        text, pair = self._call_text(node, network, arguments, given, rows)
        self.printer.quiet = False
        targets, text = self._targets(at, node, text, pair)
        comment = self._comment(at, node)
        self.statements.append(Statement((at,), f"{targets} = {text}", comment, frozen=frozen))

    def _place_together(self, made: tuple[int, ...]) -> None:
        """Several calls as one."""
        first = self.graph[made[0]]
        frozen = not first.call.record
        self.printer.quiet = frozen
        network = self._asked(made[0], first, self.printer.roles[first.call.network])
        calls = []
        for at in made:
            arguments, conditions, rows = self._given(self.graph[at])
            point = f"({', '.join(arguments)}{',' if len(arguments) == 1 else ''})"
            given = ", ".join(f'"{name}": {value}' for name, value in conditions.items())
            calls.append(f"({rows}, {point}, {{{given}}})")
        self.printer.quiet = False
        self.printer.helpers |= {"in_one_call", "batch"}
        heads = self.graph.objective.networks[first.call.network].heads
        names = [self._heads(at, self.graph[at], heads, self._results[at], True) for at in made]
        comments = [self._comment(at, self.graph[at]) for at in made]
        text = f"{', '.join(names)} = in_one_call({', '.join([network, 'batch', *calls])})"
        comment = "\n".join(["in one call:", *comments])
        self.statements.append(Statement(made, text, comment, frozen=frozen))
        self._done |= set(made)

    def _given(self, node: Node) -> tuple[list[str], dict[str, str], str | None]:
        """A call's arguments, its conditions, and its rows (None: all)."""
        call, vector = node.call, self.printer.vector
        arguments = [vector(i) for i in node.inputs[: call.arguments]]
        conditions = zip(call.conditions, node.inputs[call.arguments : call.point], strict=True)
        rows = None if node.rows is None else self.printer.names[node.rows]
        return arguments, {name: vector(i) for name, i in conditions}, rows

    def _comment(self, at: int, node: Node) -> str:
        comment = notation(self.graph, at)
        if node.rows is not None:
            where = self.printer.text(self.graph[node.rows].inputs[0])
            comment += f", only where {_words(where)}"
        return comment

    def _asked(self, at: int, node: Node, network: str) -> str:
        """The network, or that asked for those of its heads that are read."""
        heads = [name for name, _ in self.graph.objective.networks[node.call.network].heads]
        orders = len(node.call.directions)
        if len(heads) < 2 or not self.leave_out or orders > 1 or (orders and not self.exact):
            return network
        read = {False: set[str](), True: set[str]()}  # of the values, of the derivatives
        for result in self._results[at]:
            layer = self.graph[self.graph[result].inputs[0]].op
            derived = layer in ("tangent", "derivative")
            read[derived].add(str(self.graph[result].detail))
        wanted = [[h for h in heads if h in read[derived]] for derived in (False, True)]
        if wanted[0] == heads and (not node.call.directions or wanted[1] == heads):
            return network
        if not node.call.directions:
            wanted.pop()
        elif wanted == [[], heads]:
            return network
        self.printer.helpers.add("only")
        texts = (f"({', '.join(map(repr, w))}{',' if len(w) == 1 else ''})" for w in wanted)
        return f"only({', '.join([network, *texts])})".replace("'", '"')

    def _call_text(
        self, node: Node, network: str, arguments: list[str], given: list[str], rows: str | None
    ) -> tuple[str, bool]:
        """The call, and whether it returns value and change."""
        call = node.call
        point = f"({', '.join(arguments)}{',' if len(arguments) == 1 else ''})"
        if not call.directions:
            if rows is None:
                return f"{network}({', '.join([*arguments, *given])})", False
            self.printer.helpers |= {"on_rows", "batch"}
            return f"on_rows({', '.join([rows, 'batch', network, *arguments, *given])})", False
        tangents = iter(node.inputs[call.point :])
        directions = []
        for direction in call.directions:
            entries = [
                self.printer.text(next(tangents)) if moves else "None" for moves in direction
            ]
            directions.append(f"({', '.join(entries)}{',' if len(entries) == 1 else ''})")
        name = "jvp" if self.exact else "difference"
        if node.op == "beside":
            name = "shared_jvp"
        self.printer.helpers.add(name)
        function = network
        for inner in directions[:-1]:
            pick = "[1]" if self.exact else ""
            function = f"lambda *x, **c: {name}({function}, x, {inner}, **c){pick}"
        parts = [name, function, point, directions[-1], *given]
        if self.chunked and (node.op == "beside" or not call.record):
            self.printer.helpers.add("in_chunks")
            parts.insert(0, "in_chunks")
        if rows is not None:
            self.printer.helpers |= {"on_rows", "batch"}
            parts = ["on_rows", rows, "batch", *parts]
        return f"{parts[0]}({', '.join(parts[1:])})", self.exact

    def _targets(self, at: int, node: Node, text: str, pair: bool) -> tuple[str, str]:
        """The names on the left, and the text with what is not needed left out."""
        results = self._results[at]
        heads = self.graph.objective.networks[node.call.network].heads
        if node.op in PAIRS:
            layers = {self.graph[r].op: r for r in dict.fromkeys(self.graph.users[at])}
            return ", ".join(
                self._heads(layers.get(op), node, heads, results, op == "primal")
                for op in ("primal", "tangent")
            ), text
        names = self._heads(at, node, heads, results, not pair)
        if pair:
            return f"_, {names}", text
        if names.startswith("(") and names.endswith(")"):
            names = names[1:-1]
        return names, text

    def _heads(
        self,
        layer: int | None,
        node: Node,
        heads: tuple[tuple[str, Kind], ...],
        results: list[int],
        plain: bool,
    ) -> str:
        """The names for one layer of a pass: its value or its change."""
        if layer is None:
            return "_"
        if len(heads) == 1:
            return self._name_result(layer, node, "", plain)
        readers = {str(self.graph[r].detail): r for r in results if layer in self.graph[r].inputs}
        if not readers:
            return "_"
        return (
            "("
            + ", ".join(
                self._name_result(readers[head], node, head, plain) if head in readers else "_"
                for head, _ in heads
            )
            + ")"
        )

    def _name_result(self, result: int, node: Node, head: str, plain: bool) -> str:
        at = self.graph.nodes.index(node)
        own = self.graph[result].name
        wanted = value_names(self.graph, at, head)
        if plain and node.call.directions:  # the value that comes with a derivative
            wanted = [f"{identifier(head or node.call.network)}_value"]
        wanted = [identifier(own)] if own else wanted
        self.printer.names[result] = name = self.names.take(*wanted)
        return name


def _words(mask: str) -> str:
    """A mask in words: `~diagonal & (t < 0.8)` is `not diagonal and (t < 0.8)`."""
    return mask.replace("~", "not ").replace(" & ", " and ").replace(" | ", " or ")
