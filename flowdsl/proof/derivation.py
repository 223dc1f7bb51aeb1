"""A derivation on paper: its steps as text and as LaTeX."""

from __future__ import annotations

from dataclasses import dataclass

from flowdsl.spec.core import Expr
from flowdsl.spec.notation import Notation


@dataclass(frozen=True)
class Step:
    """One line of a derivation: in words, and as an equation."""

    words: str
    left: Expr
    right: Expr


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
        notation = self.notation
        wide = max(len(step.words) for step in self.steps)
        return "\n".join(
            f"{step.words.ljust(wide)}  {notation.text(step.left)} = {notation.text(step.right)}"
            for step in self.steps
        )

    @property
    def latex(self) -> str:
        """The steps as an aligned environment."""
        notation = self.notation
        lines = [
            rf"  {notation.latex(step.left)} &= {notation.latex(step.right)}"
            rf" && \text{{{step.words}}}"
            for step in self.steps
        ]
        return "\\begin{aligned}\n" + " \\\\\n".join(lines) + "\n\\end{aligned}"

    @property
    def target_text(self) -> str:
        return self.notation.text(self.target)

    @property
    def prediction_text(self) -> str:
        return self.notation.text(self.prediction)
