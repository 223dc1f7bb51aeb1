"""A derivation on paper: its steps as text and as LaTeX."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flowdsl.proof.notation import Notation
from flowdsl.spec.core import Expr


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
    compiled. `totals` are the total derivatives among them, with the time that moves.
    """

    identity: str
    moving: str
    prediction: Expr
    target: Expr
    steps: tuple[Step, ...]
    names: Mapping[Expr, str]
    states: Mapping[Expr, str]
    totals: Mapping[Expr, str]

    def notation(self, latex: bool = False) -> Notation:
        """How its expressions are written."""
        return Notation(self.names, latex, self.states, self.totals)

    @property
    def text(self) -> str:
        """The steps as a person would write them on paper."""
        notation = self.notation(False)
        wide = max(len(step.words) for step in self.steps)
        return "\n".join(
            f"{step.words.ljust(wide)}  {notation.text(step.left)} = {notation.text(step.right)}"
            for step in self.steps
        )

    @property
    def latex(self) -> str:
        """The steps as an aligned environment."""
        notation = self.notation(True)
        lines = [
            rf"  {notation.text(step.left)} &= {notation.text(step.right)}"
            rf" && \text{{{step.words}}}"
            for step in self.steps
        ]
        return "\\begin{aligned}\n" + " \\\\\n".join(lines) + "\n\\end{aligned}"

    @property
    def target_text(self) -> str:
        return self.notation(False).text(self.target)

    @property
    def prediction_text(self) -> str:
        return self.notation(False).text(self.prediction)
