"""Probability laws in a spec: `t, r ~ sorted(logit_normal(-0.4, 1))` becomes a `LawCall`."""

from __future__ import annotations

import re

from flowdsl.diagnostics import Span, did_you_mean, fail
from flowdsl.prelude.laws import LAWS, Law, Parameter
from flowdsl.spec.constants import constant_value
from flowdsl.spec.core import Expr, Kind, Level, Number
from flowdsl.spec.objective import LawCall
from flowdsl.spec.operations import OPERATIONS
from flowdsl.spec.resolving import Resolving
from flowdsl.spec.scope import Clause
from flowdsl.syntax.tree import Binary, Call, Expression, Unary

_OPERATORS = {"+": "add", "-": "sub", "*": "mul", "/": "div"}
_NOISE = re.compile(r"noise'+$")
_NUMBERS = (Kind.SCALAR, Kind.TIME)


class LawResolver:
    """Reads laws. They nest (`sorted(normal(0, 1))`) and may be transformed (`atan(LAW)`)."""

    def __init__(self, resolver: Resolving) -> None:
        self._resolver = resolver

    def resolve(self, node: Expression) -> LawCall:
        """The law an expression denotes."""
        found = self._law(node)
        if isinstance(found, LawCall):
            return found
        raise fail(
            "resolve",
            "a name is drawn from a law, and this is a value",
            node.span,
            hint="laws: " + ", ".join(LAWS) + "; a fixed value is bound with `=`",
        )

    def kind(self, name: str, law: LawCall, clause: Clause) -> tuple[Kind, Level]:
        """What a drawn name is: rows for shares, a state for noise, else what the heading draws."""
        gives = LAWS[law.law].gives if law.law in LAWS else "number"
        if gives == "rows":
            return Kind.TRUTH, Level.ROW
        if gives == "flag":
            return Kind.TRUTH, Level.STEP
        if _NOISE.match(name):
            return Kind.STATE, Level.ROW
        return clause.draws, Level.ROW

    def together(self, names: tuple[str, ...], law: LawCall) -> tuple[str, ...]:
        """The names that are drawn at once: those of a pair, else none."""
        if law.law not in LAWS or LAWS[law.law].gives != "pair":
            return ()
        if len(names) != 2:
            raise fail(
                "resolve",
                f"`{law.law}` draws two numbers, the larger first",
                law.span,
                hint=f"write `t, r ~ {law.law}(…)`",
            )
        return names

    def _law(self, node: Expression) -> LawCall | Expr:
        """A law, or a value where no part of the expression is a law."""
        match node:
            case Call(span, function, arguments, _, _) if function in LAWS:
                return self._call(LAWS[function], node, span)
            case Call(span, function, arguments, _, _) if function in OPERATIONS:
                parts = tuple(self._law(a) for a in arguments)
                if any(isinstance(p, LawCall) for p in parts):
                    return LawCall(function, _of_numbers(parts, function), span)
            case Binary(span, op, left, right) if op in _OPERATORS:
                both = (self._law(left), self._law(right))
                if any(isinstance(p, LawCall) for p in both):
                    return LawCall(_OPERATORS[op], _of_numbers(both, op), span)
            case Unary(span, "-", operand):
                inner = self._law(operand)
                if isinstance(inner, LawCall):
                    return LawCall("neg", _of_numbers((inner,), "-"), span)
            case Call(span, function, _, _, _) if self._unknown(function):
                raise fail(
                    "resolve",
                    f"there is no law `{function}`",
                    Span(span.source, span.start, span.start + len(function)),
                    hint=did_you_mean(function, LAWS) or "laws: " + ", ".join(LAWS),
                )
        return self._resolver.expression(node)

    def _unknown(self, function: str) -> bool:
        scope = self._resolver.scope
        return function not in {*scope.known_names, *scope.functions, *OPERATIONS}

    def _call(self, law: Law, node: Call, span: Span) -> LawCall:
        parameters = {p.name: p for p in law.parameters}
        given: dict[str, Expression] = {}
        for parameter, argument in zip(law.parameters, node.arguments, strict=False):
            given[parameter.name] = argument
        for keyword in node.keywords:
            if keyword.name not in parameters or keyword.name in given:
                raise fail(
                    "resolve",
                    f"`{law.name}` has no free parameter `{keyword.name}`",
                    keyword.span,
                    hint=did_you_mean(keyword.name, parameters) or self._usage(law),
                )
            given[keyword.name] = keyword.value
        missing = [
            p.name
            for p in law.parameters
            if p.name not in given and p.default is None and not p.optional
        ]
        if missing or len(node.arguments) > len(law.parameters) or node.replaced:
            given_names = ", ".join(missing)
            what = f"without {given_names}" if missing else f"with {len(node.arguments)} numbers"
            raise fail("resolve", f"`{law.name}` is not drawn {what}", span,
                       hint=self._usage(law))  # fmt: skip
        args: list[Expr | LawCall] = []
        for parameter in law.parameters:
            if parameter.name in given:
                args.append(self._argument(law, parameter, given[parameter.name]))
            elif parameter.default is not None:
                args.append(Number(parameter.default))
        return LawCall(law.name, tuple(args), span)

    def _argument(self, law: Law, parameter: Parameter, node: Expression) -> Expr | LawCall:
        found = self._law(node)
        if parameter.kind == "number":
            if isinstance(found, LawCall):
                raise fail("resolve", f"`{parameter.name}` of `{law.name}` is a number", node.span)
            if self._resolver.kind(found) not in _NUMBERS:
                raise fail("kinds", f"`{parameter.name}` of `{law.name}` is a number", node.span)
            self._in_range(law, parameter, found, node.span)
            return found
        if not isinstance(found, LawCall):
            raise fail(
                "resolve",
                f"`{parameter.name}` of `{law.name}` is a law",
                node.span,
                hint="as in `sorted(logit_normal(-0.4, 1.0))`",
            )
        return found

    def _in_range(self, law: Law, parameter: Parameter, value: Expr, span: Span) -> None:
        """Refuse a number that is known now and that the law cannot be drawn with."""
        if parameter.range is None:
            return
        known = constant_value(value, self._resolver.constants)
        if known is not None and not parameter.range.holds(known):
            raise fail(
                "resolve",
                f"`{parameter.name}` of `{law.name}` is {float(known):g}, and must be "
                f"{parameter.range.text}",
                span,
                hint=self._usage(law),
            )

    def _usage(self, law: Law) -> str:
        shown = ", ".join(
            p.name if p.default is None and not p.optional else f"[{p.name}]"
            for p in law.parameters
        )
        return f"write `{law.name}({shown})`: {law.meaning}"


def _of_numbers(parts: tuple[Expr | LawCall, ...], operation: str) -> tuple[Expr | LawCall, ...]:
    """The parts of a law that is computed from laws: each must draw one number per sample."""
    for part in parts:
        gives = LAWS[part.law].gives if isinstance(part, LawCall) and part.law in LAWS else "number"
        if gives != "number" and isinstance(part, LawCall):
            raise fail(
                "resolve",
                f"`{part.law}` does not draw one number, so `{operation}` cannot be taken of it",
                part.span,
                hint="apply it to the law inside, as in `sorted(atan(normal(0, 1)))`",
            )
    return parts
