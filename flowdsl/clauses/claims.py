"""`claims`: theorems about the objective, proved or refuted by the checker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from flowdsl.diagnostics import Span, did_you_mean, fail
from flowdsl.spec.objective import Claim
from flowdsl.spec.scope import Clause, Resolve, Scope
from flowdsl.syntax.format import format_expression
from flowdsl.syntax.grammar import END, SectionSyntax, Wanted
from flowdsl.syntax.tree import Comparison, Expression, Line, Name


@dataclass(frozen=True)
class ClaimLine(Line):
    """`same gradient as OTHER at parameter == value`, `near …`, or neither; `up to` a term that is
    left out."""

    relation: str
    other: str
    mode: str
    condition: Expression | None
    upto: str | None = None

    def parts(self) -> tuple[str, ...]:
        text = f"same {self.relation} as {self.other}"
        if self.upto is not None:
            text += f" up to {self.upto}"
        if self.condition is not None:
            text += f" {self.mode} {format_expression(self.condition)}"
        return (text,)


def _claim(span: Span, children: list[object]) -> Line:
    relation, other, upto, *rest = children
    left_out = None if upto is None else str(upto)
    if str(relation) not in ("value", "gradient"):
        raise fail(
            "syntax",
            f"two objectives have the same value or gradient, not `{relation}`",
            span,
            hint=did_you_mean(str(relation), ("value", "gradient")),
        )
    if not rest or rest[0] is None:
        return ClaimLine(span, str(relation), str(other), "always", None, left_out)
    mode, condition = rest
    assert isinstance(condition, Expression)
    return ClaimLine(span, str(relation), str(other), str(mode), condition, left_out)


def _enter(scope: Scope, lines: Sequence[Line]) -> None:
    for line in lines:
        assert isinstance(line, ClaimLine)
        scope.claim_lines.append(partial(_claimed, line))


def _claimed(line: ClaimLine, resolve: Resolve) -> Claim:
    relation: Literal["value", "gradient"] = "value" if line.relation == "value" else "gradient"
    if line.condition is None:
        return Claim(relation, line.other, "always", upto=line.upto, span=line.span)
    mode: Literal["at", "near"] = "at" if line.mode == "at" else "near"
    match line.condition:
        case Comparison(_, (Name(_, parameter), value), ("==",)):
            return Claim(
                relation, line.other, mode, parameter, resolve(value), line.upto, line.span
            )
    raise fail(
        "resolve",
        "a claim holds at, or near, one value of one name",
        line.condition.span,
        hint="write `at alpha == 1`",
    )


_WHERE = "`at` or `near` and a value, as in `at alpha == 1`, or " + END

CLAUSES = (
    Clause(
        SectionSyntax(
            "claims",
            "_SAME NAME _AS NAME [_UPTO NAME] [MODE expression] -> claim",
            "same value as OTHER, or same gradient as OTHER up to TERM at NAME == VALUE (or near)",
            {"claim": _claim},
            '_SAME: "same"\n_AS: "as"\n_UPTO: /up[ \\t]+to/\nMODE: "at" | "near"',
            {
                "_SAME": Wanted("`value` or `gradient`"),
                "_SAME NAME": Wanted("`as` and the other objective"),
                "_AS": Wanted("the name of the other objective, such as `meanflow`"),
                "_AS NAME": Wanted("`up to` and a term, " + _WHERE),
                "_UPTO": Wanted("the term that is left out of the comparison"),
                "_UPTO NAME": Wanted(_WHERE),
                "MODE": Wanted("a name and its value, as in `alpha == 1`", END),
            },
        ),
        "never",
        _enter,
        "Theorems about the objective; never inherited.",
        "same gradient as trajectory_flow_matching at alpha == 1",
        19,
    ),
)
