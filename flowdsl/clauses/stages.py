"""`stages`: objectives one after the other, and what is carried over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from flowdsl.diagnostics import Span, did_you_mean, fail
from flowdsl.spec.objective import Stage
from flowdsl.spec.scope import Clause, Scope
from flowdsl.syntax.grammar import END, SectionSyntax, Wanted
from flowdsl.syntax.tree import Line


@dataclass(frozen=True)
class StageLine(Line):
    """`name: objective for share, network from stage, …`."""

    name: str
    objective: str
    share: str
    carried: tuple[tuple[str, str], ...]

    def parts(self) -> tuple[str, ...]:
        carried = "".join(f", {network} from {stage}" for network, stage in self.carried)
        return (f"{self.name}: {self.objective} for {self.share}{carried}",)


def _stage(span: Span, children: list[object]) -> Line:
    name, objective, share, *carried = children
    pairs = []
    for pair in carried:
        assert isinstance(pair, list)
        pairs.append((str(pair[0]), str(pair[1])))
    return StageLine(span, str(name), str(objective), str(share), tuple(pairs))


def _enter(scope: Scope, lines: Sequence[Line]) -> None:
    earlier: set[str] = set()
    total = Fraction(0)
    for line in lines:
        assert isinstance(line, StageLine)
        share = Fraction(line.share)
        total += share
        for network, stage in line.carried:
            if stage not in earlier:
                raise fail(
                    "resolve",
                    f"`{network}` cannot come from `{stage}`, which is no earlier stage",
                    line.span,
                    hint=did_you_mean(stage, earlier)
                    or f"earlier stages: {', '.join(sorted(earlier)) or 'none'}",
                )
        if line.name in earlier:
            raise fail("resolve", f"two stages are called `{line.name}`", line.span)
        earlier.add(line.name)
        scope.stages.append(Stage(line.name, line.objective, share, line.carried, line.span))
    if lines and total != 1:
        raise fail(
            "resolve",
            f"the stages share out {float(total):g} of the training, not 1",
            lines[-1].span,
        )


CLAUSES = (
    Clause(
        SectionSyntax(
            "stages",
            "NAME _COLON NAME _FOR NUMBER (_COMMA carried)* -> stage",
            "NAME: OBJECTIVE for SHARE, NETWORK from STAGE, …",
            {"stage": _stage},
            'carried: NAME _FROM NAME\n_FOR: "for"\n_FROM: "from"',
            {
                "NAME": Wanted("`:` and the objective of this stage"),
                "_COLON": Wanted("the objective of this stage: a name, or `this`"),
                "_COLON NAME": Wanted("`for` and the stage's share of the training"),
                "_FOR": Wanted("the stage's share of the training, such as `0.9`"),
                "NUMBER": Wanted("`,` and what is taken over, as in `u from velocity`, or " + END),
                "line_stages: carried": Wanted("`,` and what else is taken over, or " + END),
                "line_stages: _COMMA": Wanted("a network that is taken over"),
                "line_stages": Wanted("`,` and what else is taken over, or " + END),
                "carried: NAME": Wanted("`from` and the earlier stage"),
                "carried: _FROM": Wanted("the earlier stage it comes from"),
                "carried: _FROM NAME": Wanted("`,` and what else is taken over, or " + END),
            },
        ),
        "whole",
        _enter,
        "Objectives one after the other, their shares of training, what each takes over.",
        "velocity: flow_matching for 0.9; average: this for 0.1, u from velocity",
        17,
    ),
)
