"""Operations on core expressions, with their kinds checked and their growth bounded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

from flowdsl.diagnostics import Span, fail
from flowdsl.spec.constants import constant_value
from flowdsl.spec.core import Apply, Expr, Kind, Level, select
from flowdsl.spec.kinds import HasHeads, kind_of, level_of
from flowdsl.spec.operations import OPERATIONS

MAX_SIZE = 20_000
MAX_DEPTH = 150
MAX_POWER = 64


class Operators:
    """Builds operations; `networks` and `constants` are those of the spec being resolved."""

    def __init__(self, networks: Mapping[str, HasHeads], constants: Mapping[str, Fraction]) -> None:
        self._networks = networks
        self._constants = constants

    def kind(self, expr: Expr) -> Kind:
        return kind_of(expr, self._networks)

    def checked(self, expr: Expr, span: Span) -> Expr:
        if expr.size > MAX_SIZE or expr.depth > MAX_DEPTH:
            raise fail(
                "resolve",
                "this expression grows too large once its names are written out",
                span,
                facts=(("at most", f"{MAX_SIZE} operations, {MAX_DEPTH} deep"),),
                hint="a definition that uses another twice doubles it; use each once",
            )
        return expr

    def apply(self, op: str, args: tuple[Expr, ...], span: Span) -> Expr:
        """An operation on arguments of the right number and kinds."""
        row = OPERATIONS[op]
        if len(args) != row.arity:
            raise fail(
                "resolve",
                f"`{op}` takes {row.arity} argument{'s' * (row.arity != 1)}, not {len(args)}",
                span,
                hint=row.meaning,
            )
        kinds = [self.kind(a) for a in args]
        shown = row.symbol or op
        match row.shape:
            case "arithmetic":
                self._arithmetic(op, shown, kinds, args, span)
            case "comparison" | "batch":
                _demand(kinds, (Kind.SCALAR, Kind.TIME), f"`{shown}` takes numbers", args, span)
            case "logic":
                _demand(kinds, (Kind.TRUTH,), f"`{shown}` joins conditions", args, span)
            case "reduction":
                _demand(kinds, (Kind.STATE,), f"`{shown}` takes states", args, span)
            case "elementwise":
                rule, numbers = f"`{shown}` takes numbers", (Kind.SCALAR, Kind.TIME)
                _demand(kinds[1:], numbers, rule, args[1:], span)
                _demand(kinds[:1], (*numbers, Kind.STATE), rule, args[:1], span)
                if kinds[0] is Kind.STATE and op not in ("clip",):
                    raise fail(
                        "kinds",
                        f"`{op}` of a state is not defined",
                        span,
                        hint="states are added and scaled; `norm`, `mean_abs` and `clip` take one",
                    )
        return Apply(op, args, span=span)

    def _arithmetic(
        self, op: str, shown: str, kinds: list[Kind], args: tuple[Expr, ...], span: Span
    ) -> None:
        allowed = (Kind.STATE, Kind.SCALAR, Kind.TIME)
        _demand(kinds, allowed, f"`{shown}` takes states and numbers", args, span)
        states = [k is Kind.STATE for k in kinds]
        if op in ("add", "sub") and states[0] != states[1]:
            raise fail(
                "kinds",
                f"a state and a {kinds[states.index(False)].value} cannot be "
                f"{'added' if op == 'add' else 'subtracted'}",
                span,
                hint="multiply the number by a state first",
            )
        if op == "mul" and all(states):
            raise fail(
                "kinds",
                "two states may not be multiplied",
                span,
                hint="states are added, and scaled by numbers; `dot(x, y)` is their inner product",
            )
        if op == "div" and states[1]:
            raise fail("kinds", "nothing can be divided by a state", span, hint="divide by `norm`")
        if op == "pow":
            if any(states):
                raise fail("kinds", "a state has no power", span, hint="`error` is a squared norm")
            power = constant_value(args[1], self._constants)
            if level_of(args[1]) is not Level.CONSTANT or power is None or abs(power) > MAX_POWER:
                raise fail(
                    "kinds",
                    f"a power is a constant between -{MAX_POWER} and {MAX_POWER}",
                    args[1].span or span,
                    hint="use `exp` and `log` for other powers",
                )

    def select_rows(self, rows: Expr, yes: Expr, no: Expr, span: Span) -> Expr:
        kinds = {self.kind(yes), self.kind(no)}
        numbers = {Kind.SCALAR, Kind.TIME}
        if len(kinds) > 1 and not kinds <= numbers:
            words = " and a ".join(sorted(k.value for k in kinds))
            raise fail("kinds", f"the same name cannot be a {words}", span)
        return self.checked(replace(select(rows, yes, no), span=span), span)


def _demand(
    kinds: Sequence[Kind], allowed: Sequence[Kind], rule: str, args: Sequence[Expr], span: Span
) -> None:
    for kind, arg in zip(kinds, args, strict=True):
        if kind not in allowed:
            raise fail("kinds", f"{rule}, and this is a {kind.value}", arg.span or span)
