"""Python text of a graph's values, as a person would write it: infix, named where named, lifted
where needed.
"""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction

from flowdsl.ir.graph import Graph, Node
from flowdsl.ir.ranges import Interval, of_nodes
from flowdsl.prelude.text import show
from flowdsl.runtime.contract import NULL_LABEL
from flowdsl.spec.core import Kind, Level
from flowdsl.spec.operations import OPERATIONS

# How tightly Python's operators bind.
CHOICE, OR, AND, NOT, COMPARE, BIT_OR, BIT_AND, SUM, PRODUCT, SIGN, POWER, ATOM = range(12)

_INFIX = {
    "add": ("+", SUM), "sub": ("-", SUM), "mul": ("*", PRODUCT), "div": ("/", PRODUCT),
    "lt": ("<", COMPARE), "le": ("<=", COMPARE), "gt": (">", COMPARE), "ge": (">=", COMPARE),
    "eq": ("==", COMPARE), "ne": ("!=", COMPARE),
}  # fmt: skip
_OPPOSITE = {"lt": "ge", "le": "gt", "gt": "le", "ge": "lt", "eq": "ne", "ne": "eq"}
_FUNCTIONS = {
    name: f"torch.{name}"
    for name in (
        "sin",
        "cos",
        "tan",
        "atan",
        "exp",
        "log",
        "sqrt",
        "sigmoid",
        "tanh",
        "abs",
        "floor",
        "ceil",
    )
}
_REDUCTIONS = {
    "sum_squares": ".square().sum(1)",
    "mean_squares": ".square().mean(1)",
    "norm": ".norm(dim=1)",
    "mean_abs": ".abs().mean(1)",
}

Text = tuple[str, int]


class Printer:
    """Writes the values of one graph. `names` holds what has a name already, by node."""

    def __init__(self, graph: Graph, constants: dict[str, str], like: str = "data") -> None:
        self.graph = graph
        self.constants = constants  # the spec's constants that the file lets a reader edit
        self.names: dict[int, str] = {}
        self.roles: dict[str, str] = {}  # the local name of each network
        self.like = like  # a state whose shape others take
        self.time_like = ""  # a vector of times, if there is one
        self.helpers: set[str] = set()
        self.quiet = False  # inside `torch.no_grad()`: nothing needs to be detached
        self._ranges: list[Interval] | None = None

    def range(self, at: int) -> Interval:
        if self._ranges is None:
            self._ranges = of_nodes(self.graph)
        return self._ranges[at]

    def is_state(self, at: int) -> bool:
        """Whether the value has a state's shape (numbers never have)."""
        return self.graph[at].kind is Kind.STATE and not self.graph.is_python(at)

    def is_row(self, at: int) -> bool:
        """Whether the value is a vector with one entry per sample."""
        node = self.graph[at]
        return node.level is Level.ROW and not self.is_state(at)

    def text(self, at: int, binding: int = CHOICE, state: bool = False) -> str:
        """The value of a node; `state`: in the shape that combines with states."""
        if state and self.is_row(at):
            self.helpers.add("lift")
            return f"lift({self.text(at)})"
        if at in self.names:
            return self.names[at]
        text, own = self._node(at, self.graph[at])
        return text if own >= binding else f"({text})"

    def vector(self, at: int) -> str:
        """The value as a network receives it: a state, or a vector with one entry per sample."""
        node = self.graph[at]
        if node.kind is Kind.LABEL and node.level is not Level.ROW:
            return f"torch.full_like(label, {self.text(at)})"
        if node.kind is Kind.STATE and self.graph.is_python(at):
            return self._filled(at, self.like)
        if self.is_state(at) or self.is_row(at) or node.kind is Kind.FEATURES:
            return self.text(at)
        if self.graph.is_python(at):
            return self._filled(at, self.time_like or f"{self.like}.flatten(1)[:, 0]")
        return f"{self.text(at, ATOM)}.expand(len({self.like}))"

    def _filled(self, at: int, like: str) -> str:
        node = self.graph[at]
        if node.op == "number" and node.value in (0, 1):
            return f"torch.{'zeros' if node.value == 0 else 'ones'}_like({like})"
        return f"torch.full_like({like}, {self.text(at)})"

    def _node(self, at: int, node: Node) -> Text:
        state = self.is_state(at)
        match node.op:
            case "number":
                return _number(node.value)
            case "constant":
                known = self.constants.get(str(node.detail))
                return (
                    (known, ATOM)
                    if known
                    else _number(self.graph.objective.constants[str(node.detail)])
                )
            case "training" | "given":
                return str(node.detail), ATOM
            case "draw":
                return f'draws["{node.detail}"]', ATOM
            case "null":
                return str(NULL_LABEL), ATOM
            case "true" | "false":
                return node.op.capitalize(), ATOM
            case "stop":
                return self._stop(node.inputs[0])
            case "select":
                return self._select(at, node, state)
            case "batch_mean":
                self.helpers.add("batch_mean")
                return f"batch_mean({self.text(node.inputs[0])})", ATOM
        shape = OPERATIONS[node.op].shape
        if shape == "logic":
            return self._logic(node)
        if shape == "reduction":
            return self._reduction(node)
        if node.op in _INFIX:
            return self._infix(at, node, state)
        if node.op == "neg":
            # more than an atom in brackets, as the formatter writes -(t**2)
            return f"-{self.text(node.inputs[0], ATOM, state)}", SIGN
        if node.op == "pow":
            base, exponent = node.inputs
            return _power(self.text(base, ATOM, state), self.text(exponent, SIGN, state)), POWER
        if self.graph.is_python(at):
            return self._python(node)
        return self._tensor(node, state)

    def _infix(self, at: int, node: Node, state: bool) -> Text:
        symbol, own = _INFIX[node.op]
        a, b = node.inputs
        left = self.text(a, own if node.op not in ("lt", "le", "gt", "ge", "eq", "ne") else BIT_OR,
                         state)  # fmt: skip
        right = self.text(b, own if node.op in ("add",) else own + 1, state)
        if node.op == "div" and self.graph.is_python(at):
            low, high = self.range(b)
            if low <= 0 <= high and self.graph[b].level is Level.STEP:
                check = self.text(b, COMPARE + 1)
                return f"({left} / {right} if {check} != 0 else torch.inf)", ATOM
        return f"{left} {symbol} {right}", own

    def _stop(self, inner: int) -> Text:
        if self.quiet or self.graph.is_python(inner):
            return self.text(inner), CHOICE if inner not in self.names else ATOM
        return f"{self.text(inner, ATOM)}.detach()", ATOM

    def _logic(self, node: Node) -> Text:
        python = all(self.graph.is_python(i) for i in node.inputs)
        if node.op == "not":
            inner = node.inputs[0]
            opposite = _OPPOSITE.get(self.graph[inner].op)
            if opposite is not None and inner not in self.names:
                return self._infix(inner, replace(self.graph[inner], op=opposite), False)
            if python:
                return f"not {self.text(inner, NOT)}", NOT
            return f"~{self.text(inner, SIGN)}", SIGN
        if python:
            own, symbol = (AND, "and") if node.op == "and" else (OR, "or")
        else:
            own, symbol = (BIT_AND, "&") if node.op == "and" else (BIT_OR, "|")
        return f" {symbol} ".join(self.text(i, own if k == 0 else own + 1)
                                  for k, i in enumerate(node.inputs)), own  # fmt: skip

    def _select(self, at: int, node: Node, state: bool) -> Text:
        condition, yes, no = node.inputs
        if self.graph.is_python(condition):
            parts = (
                self._branch(at, yes, OR),
                self.text(condition, OR),
                self._branch(at, no, CHOICE),
            )
            return f"{parts[0]} if {parts[1]} else {parts[2]}", CHOICE
        inner = self.graph[condition]
        if inner.op == "not" and self._decided(inner.inputs[0]) is not None:
            condition, yes, no = inner.inputs[0], no, yes
        decided = self._decided(condition)
        if decided is None:
            return self._where(node, node.inputs, state), ATOM
        # Where a number decides, the other side must not run backwards: it may divide by zero.
        mixed = self.graph[condition]
        other = next(i for i in mixed.inputs if i != decided)
        test, tensor = self.text(decided, OR), self._where(node, (other, yes, no), state)
        if mixed.op == "or":
            return f"{self._branch(at, yes, OR)} if {test} else {tensor}", CHOICE
        return f"{tensor} if {test} else {self._branch(at, no, CHOICE)}", CHOICE

    def _decided(self, condition: int) -> int | None:
        """Of two conditions joined by "and" or "or", the one that is a number's alone."""
        node = self.graph[condition]
        if node.op not in ("and", "or") or condition in self.names:
            return None
        found = [i for i in node.inputs if self.graph.is_python(i)]
        return found[0] if len(found) == 1 and len(node.inputs) == 2 else None

    def _where(self, node: Node, parts: tuple[int, ...], state: bool) -> str:
        condition, yes, no = parts
        numbers = self.graph.is_python(yes) and self.graph.is_python(no)
        first = self.text(yes, state=state)
        if numbers and node.kind not in (Kind.LABEL, Kind.TRUTH):
            # torch.where of two plain numbers has a type of its own choice
            first = f"{self._vector_like()}.new_tensor({first})"
        second = self.text(no, state=state)
        return f"torch.where({self.text(condition, state=state)}, {first}, {second})"

    def _branch(self, at: int, branch: int, binding: int) -> str:
        """A branch of a plain `if`, in the shape of the whole."""
        whole = self.graph[at]
        if whole.kind in (Kind.TRUTH, Kind.FEATURES) or self.graph.is_python(at):
            return self.text(branch, binding)
        if self.is_state(at) and not self.is_state(branch):
            return f"{self.text(branch, SUM + 1, state=True)} + torch.zeros_like({self.like})"
        if self.is_row(at) and not self.is_row(branch):
            return self.vector(branch)
        return self.text(branch, binding)

    def _vector_like(self) -> str:
        return self.time_like or f"{self.like}.flatten(1)[:, 0]"

    def _reduction(self, node: Node) -> Text:
        states = [self.is_state(i) for i in node.inputs]
        if node.op == "dot":
            a, b = (self.text(i, PRODUCT, any(states)) for i in node.inputs)
            product = f"{a} * {b}"
            return (f"({product}).flatten(1).sum(1)", ATOM) if any(states) else (product, PRODUCT)
        inner = node.inputs[0]
        if not states[0]:
            if node.op in ("sum_squares", "mean_squares"):
                return _power(self.text(inner, ATOM), "2"), POWER
            return f"{self.text(inner, ATOM)}.abs()", ATOM
        return f"{self.text(inner, ATOM)}.flatten(1){_REDUCTIONS[node.op]}", ATOM

    def _tensor(self, node: Node, state: bool) -> Text:
        """An elementwise function of tensors."""
        if node.op in _FUNCTIONS:
            return f"{_FUNCTIONS[node.op]}({self.text(node.inputs[0], state=state)})", ATOM
        if node.op == "softplus":
            # not torch.nn.functional.softplus, which is linear above 20
            inner = self.text(node.inputs[0], state=state)
            return f"torch.logaddexp({inner}, torch.zeros_like({inner}))", ATOM
        if node.op in ("min", "max"):
            python = [self.graph.is_python(i) for i in node.inputs]
            if any(python):
                x, limit = node.inputs if python[1] else node.inputs[::-1]
                side = "max" if node.op == "min" else "min"
                return f"{self.text(x, ATOM, state)}.clamp({side}={self.text(limit)})", ATOM
            a, b = (self.text(i, state=state) for i in node.inputs)
            return f"torch.{node.op}imum({a}, {b})", ATOM
        if node.op == "clip":
            x, low, high = node.inputs
            if self.graph.is_python(low) and self.graph.is_python(high):
                limits = f"{self.text(low)}, {self.text(high)}"
                return f"{self.text(x, ATOM, state)}.clamp({limits})", ATOM
            bounds = [self._bound(i, x, state) for i in (low, high)]
            return f"{self.text(x, ATOM, state)}.clamp({', '.join(bounds)})", ATOM
        if node.op == "snap":
            self.helpers.add("snap_rows")
            inside = ", ".join(self.text(i, state=state) for i in node.inputs)
            return f"snap_rows({inside})", ATOM
        raise TypeError(f"flowdsl/emit/printer.py has no text for {node.op}")

    def _bound(self, at: int, x: int, state: bool) -> str:
        if self.graph.is_python(at):
            return f"torch.full_like({self.text(x, state=state)}, {self.text(at)})"
        return self.text(at, state=state)

    def _python(self, node: Node) -> Text:
        """An elementwise function of plain numbers, without importing `math`."""
        texts = [self.text(i) for i in node.inputs]
        x = self.text(node.inputs[0], SIGN)
        match node.op:
            case "exp":
                return _power("torch.e", x), POWER
            case "sigmoid":
                low, _ = self.range(node.inputs[0])
                power = f"-{self.text(node.inputs[0], POWER)}"
                power = power if low > -700 else f"min(700, {power})"
                return f"1 / (1 + {_power('torch.e', power)})", PRODUCT
            case "sqrt":
                return _power(self.text(node.inputs[0], ATOM), "0.5"), POWER
            case "abs" | "min" | "max":
                return f"{node.op}({', '.join(texts)})", ATOM
            case "floor":
                return f"{self.text(node.inputs[0], PRODUCT)} // 1", PRODUCT
            case "ceil":
                return f"-({self.text(node.inputs[0], PRODUCT)} // -1)", SIGN
            case "clip":
                return f"min(max({texts[0]}, {texts[1]}), {texts[2]})", ATOM
            case "snap":
                self.helpers.add("snap")
                return f"snap({texts[0]}, {texts[1]})", ATOM
            case "softplus":
                name = "torch.nn.functional.softplus"
            case _:
                name = _FUNCTIONS[node.op]
        return f"{name}(torch.tensor({texts[0]}, dtype=torch.float64)).item()", ATOM


def _power(base: str, exponent: str) -> str:
    """`w**2`, but `(a + b) ** 2`: the formatter's convention."""
    simple = re.compile(r"[\w.]+$")
    space = "" if simple.match(base) and simple.match(exponent.removeprefix("-")) else " "
    return f"{base}{space}**{space}{exponent}"


def _number(value: Fraction) -> Text:
    text = show(value)
    if " / " in text:
        return text, PRODUCT
    return text, SIGN if value < 0 else ATOM
