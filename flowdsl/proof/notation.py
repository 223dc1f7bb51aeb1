"""Core expressions as text in the language's own notation, and as LaTeX."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from flowdsl.spec.core import (
    ONE,
    Apply,
    Constant,
    Draw,
    Evaluate,
    Expr,
    Formal,
    Given,
    Null,
    Number,
    PathState,
    PathVelocity,
    Stop,
    Training,
    transform,
    walk,
)

#: Binding strengths: sum, product, negation, power, atom.
SUM, PRODUCT, MINUS, POWER, ATOM = range(1, 6)
_INFIX = {"add": ("+", SUM), "sub": ("-", SUM), "mul": ("*", PRODUCT), "div": ("/", PRODUCT)}
_COMPARED = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
_GREEK = {
    "alpha": "α", "beta": "β", "gamma": "γ", "omega": "ω", "kappa": "κ", "sigma": "σ", "tau": "τ",
    "phi": "φ", "xi": "ξ",
}  # fmt: skip


@dataclass(frozen=True)
class Notation:
    """How expressions are written. `names` are subexpressions that have a name of their own.

    `totals` are derivatives of networks that are known to be total ones, with their time: they are
    written `d/dt[…]` as in a spec, whatever the network reads.
    """

    names: Mapping[Expr, str] = field(default_factory=dict)
    latex: bool = False
    states: Mapping[Expr, str] = field(default_factory=dict)  # path states written short
    totals: Mapping[Expr, str] = field(default_factory=dict)

    def text(self, expr: Expr) -> str:
        return self._write(expr)[0]

    def _bracketed(self, expr: Expr, least: int) -> str:
        text, strength = self._write(expr)
        if strength >= least:
            return text
        return rf"\left({text}\right)" if self.latex else f"({text})"

    def _write(self, expr: Expr) -> tuple[str, int]:
        if expr in self.names:
            return self._name(self.names[expr]), ATOM
        match expr:
            case Number(value):
                return self._number(value)
            case Constant(name) | Draw(name, _, _) | Formal(name, _) | Training(name):
                return self._name(name), ATOM
            case Given(name):
                return self._name(name), ATOM
            case Null():
                return ("\\varnothing" if self.latex else "null"), ATOM
            case PathState(path, time, _, _):
                short = self.states.get(expr)
                if short is not None:
                    return self._name(short), ATOM
                return f"{self._name(path)}({self.text(time)})", ATOM
            case PathVelocity():
                return self._velocity(expr), ATOM
            case Stop(body):
                return f"{self._name('stop')}({self.text(body)})", ATOM
            case Evaluate():
                return self._network(expr), ATOM
            case Apply(op, args):
                return self._apply(op, args)
        raise TypeError(f"notation.py has no rule for {type(expr).__name__}")

    def _name(self, name: str) -> str:
        if not self.latex:
            return name
        if name.startswith("d/d"):
            time, inner = name[3:-1].split("[", 1)
            return rf"\frac{{d}}{{d{time}}}{self._name(inner)}"
        if "(" in name:
            head, rest = name.split("(", 1)
            return f"{self._name(head)}({rest.replace('φ', self._name('φ'))}"
        if name == "φ":
            return r"\varphi"
        bare, primes = name.rstrip("'"), "'" * (len(name) - len(name.rstrip("'")))
        if len(bare) == 1:
            return bare + primes
        if bare in _GREEK:
            return rf"\{bare}{primes}"
        return rf"\mathrm{{{bare}}}{primes}"

    def _number(self, value: Fraction) -> tuple[str, int]:
        if value.denominator == 1:
            return str(value.numerator), ATOM if value >= 0 else MINUS
        if self.latex:
            return rf"\tfrac{{{value.numerator}}}{{{value.denominator}}}", PRODUCT
        decimal = f"{float(value):g}"
        if Fraction(decimal) == value:
            return decimal, ATOM if value >= 0 else MINUS
        return f"{value.numerator} / {value.denominator}", PRODUCT

    def _velocity(self, expr: PathVelocity) -> str:
        state = PathState(expr.path, expr.time, expr.data, expr.noise)
        word = self._name("velocity")
        if state in self.states and "(" not in self.states[state]:
            return word
        return f"{word}({self.text(state)})"

    def _apply(self, op: str, args: tuple[Expr, ...]) -> tuple[str, int]:
        if op in _INFIX:
            return self._infix(op, args)
        if op == "neg":
            return f"-{self._bracketed(args[0], PRODUCT)}", MINUS
        if op == "pow":
            power = self.text(args[1])
            base = self._bracketed(args[0], ATOM)
            return (f"{base}^{{{power}}}" if self.latex
                    else f"{base}^{self._bracketed(args[1], POWER)}"), POWER  # fmt: skip
        if op in _COMPARED:
            return f"{self.text(args[0])} {_COMPARED[op]} {self.text(args[1])}", 0
        if op == "select":
            condition, yes, no = (self.text(a) for a in args)
            return f"({yes} on {condition}, else {no})", ATOM
        if op in ("true", "false"):
            return op, ATOM
        if op in ("and", "or"):
            return f"{self.text(args[0])} {op} {self.text(args[1])}", 0
        if self.latex and op in ("sin", "cos", "tan", "exp", "log"):
            return rf"\{op}({', '.join(self.text(a) for a in args)})", ATOM
        return f"{self._name(op)}({', '.join(self.text(a) for a in args)})", ATOM

    def _infix(self, op: str, args: tuple[Expr, ...]) -> tuple[str, int]:
        symbol, strength = _INFIX[op]
        if self.latex and op == "div":
            return rf"\frac{{{self.text(args[0])}}}{{{self.text(args[1])}}}", ATOM
        left = self._bracketed(args[0], strength)
        right = self._bracketed(args[1], strength + (op in ("sub", "div")))
        if self.latex and op == "mul":
            return rf"{left} \, {right}", strength
        return f"{left} {symbol} {right}", strength

    def _network(self, node: Evaluate) -> str:
        arguments = ", ".join(self.text(a) for a in node.args)
        shown = [
            f"{name} = {self.text(value)}" for name, value in node.conditions
            if isinstance(value, Null | Number)
        ]  # fmt: skip
        bar = (r" \mid " if self.latex else " | ") + ", ".join(shown) if shown else ""
        text = f"{self._name(node.head)}({arguments}{bar})"
        if node in self.totals:
            return self._total(text, self._name(self.totals[node]), "")
        for direction in node.directions:
            text = self._derivative(text, node, direction)
        return text

    def _derivative(self, text: str, node: Evaluate, direction: tuple[Expr | None, ...]) -> str:
        """`d/dt[…]` where one time moves at unit speed, else the tangent in full."""
        moving = [k for k, d in enumerate(direction) if d == ONE]
        others = [d for d in direction if d is not None and d != ONE]
        time = self._time(node, moving[0]) if len(moving) == 1 and len(others) <= 1 else ""
        if time:
            along = ""
            if others and not self._usual(node, others[0], direction):
                along = f" along {self.text(others[0])}"
            return self._total(text, time, along)
        tangent = ", ".join("0" if d is None else self.text(d) for d in direction)
        return f"J {text}[{tangent}]"

    def _total(self, text: str, time: str, along: str) -> str:
        if self.latex:
            return rf"\frac{{d}}{{d{time}}}\left[{text}\right]" + along
        return f"d/d{time}[{text}{along}]"

    def _time(self, node: Evaluate, place: int) -> str:
        """The time that moves when this argument does: itself, or that of the state it goes with.

        Of a network that sees `t - r` alone it is the time of its state; empty where neither is a
        name.
        """
        argument = node.args[place]
        if not isinstance(argument, Apply) or argument in self.names:
            return self.text(argument)
        parts = set(walk(argument))
        moments = [n.time for a in node.args for n in walk(a) if isinstance(n, PathState)]
        return next((self.text(m) for m in moments if m in parts), "")

    def _usual(self, node: Evaluate, moved: Expr, direction: tuple[Expr | None, ...]) -> bool:
        """Does the state move as it does when nothing is said: along its velocity, or along a
        direction that has a name?"""
        if moved in self.names or isinstance(moved, PathVelocity):
            return True
        argument = node.args[direction.index(moved)]

        def as_it_moves(inner: Expr) -> Expr:
            if not isinstance(inner, PathState):
                return inner
            return PathVelocity(inner.path, inner.time, inner.data, inner.noise)

        return transform(argument, as_it_moves) == moved
