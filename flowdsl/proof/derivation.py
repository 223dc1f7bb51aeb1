"""A derivation on paper: its steps as text and as LaTeX."""

from __future__ import annotations

from dataclasses import dataclass

from flowdsl.spec.core import Apply, Expr, Number, div, mul, neg
from flowdsl.spec.notation import Notation


@dataclass(frozen=True)
class Step:
    """One line of a derivation: in words, and as an equation; `notation` where it is written in
    another way than the rest, as a definition is without the name it gives."""

    words: str
    left: Expr
    right: Expr
    notation: Notation | None = None


@dataclass(frozen=True)
class Derivation:
    """The target that map and moving time imply: `prediction` is to equal `target`.

    `identity` is the identity used. The core expressions are those of the objective, so they can be
    compiled. `notation` is how they are written.
    """

    identity: str
    moving: str
    prediction: Expr
    target: Expr
    steps: tuple[Step, ...]
    notation: Notation

    @property
    def text(self) -> str:
        """The steps as a person would write them on paper."""
        wide = max(len(step.words) for step in self.steps)
        lines = []
        for step in self.steps:
            notation = step.notation or self.notation
            equation = f"{notation.text(step.left)} = {notation.text(step.right)}"
            lines.append(f"{step.words.ljust(wide)}  {equation}")
        return "\n".join(lines)

    @property
    def latex(self) -> str:
        """The steps as an aligned environment."""
        lines = []
        for step in self.steps:
            notation = step.notation or self.notation
            left, right = notation.latex(step.left), notation.latex(step.right)
            lines.append(rf"  {left} &= {right} && \text{{{step.words}}}")
        return "\\begin{aligned}\n" + " \\\\\n".join(lines) + "\n\\end{aligned}"

    @property
    def target_text(self) -> str:
        return self.notation.text(self.target)

    @property
    def prediction_text(self) -> str:
        return self.notation.text(self.prediction)


def oriented(expr: Expr, differences: frozenset[tuple[Expr, ...]]) -> tuple[bool, Expr]:
    """A product with the differences of times as the map writes them, `r - t` for `t - r`; and
    whether that turned its sign."""
    match expr:
        case Apply("mul" | "div" as op, (a, b)):
            one, first = oriented(a, differences)
            two, second = oriented(b, differences)
            return one != two, Apply(op, (first, second))
        case Apply("pow", (base, Number(power))) if power.denominator == 1:
            turned, inner = oriented(base, differences)
            return turned and power % 2 == 1, Apply("pow", (inner, Number(power)))
        case Apply("sub", (a, b)) if (b, a) in differences and (a, b) not in differences:
            return True, Apply("sub", (b, a))
    return False, expr


def negative(term: Expr) -> Expr:
    """The sign stands at the first factor, as one writes it."""
    match term:
        case Apply("mul" | "div" as op, (first, rest)):
            return Apply(op, (negative(first), rest))
    return neg(term)


def product(factor: Expr, expr: Expr) -> Expr:
    """`factor * expr`; one over a factor divides."""
    match factor:
        case Apply("div", (Number(value), below)) if value == 1:
            return div(expr, below)
    return mul(factor, expr)
