"""From the scope to the typed objective: every part asked for, every name resolved and checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from flowdsl.diagnostics import Diagnostic, DiagnosticError, Span, did_you_mean, fail
from flowdsl.spec.core import (
    Apply,
    Draw,
    Expr,
    Kind,
    select,
    sub,
    walk,
)
from flowdsl.spec.env import Env
from flowdsl.spec.objective import Claim, DrawDeclaration, LawCall, Network, Objective, Term
from flowdsl.spec.resolve import Resolver
from flowdsl.spec.scope import Clause, Scope, TermLine
from flowdsl.syntax.lines import Binding, Labelled
from flowdsl.syntax.tree import Expression, Tree

#: Writes the target that map and moving time imply, for `target derived`.
Derive = Callable[[Objective, str, Span], tuple[Expr, Expr]]


def resolve(
    tree: Tree,
    clauses: Sequence[Clause],
    functions: Mapping[str, Binding],
    parse_rule: Callable[[str], Expression],
    derive: Derive | None = None,
) -> Objective:
    """The typed objective of a merged tree.

    `functions` are the prelude's; `parse_rule` reads an expression written in the language (the
    derivative rules of the operations are); `derive` is asked for targets that the spec leaves to
    the checker.
    """
    scope = Scope(tree, clauses, functions, parse_rule)
    by_keyword = {clause.keyword: clause for clause in clauses}
    for section in sorted(tree.sections, key=lambda s: by_keyword[s.keyword].place):
        by_keyword[section.keyword].enter(scope, section.lines)
    _no_clashes(scope)
    resolver = Resolver(scope)
    for name, entries in scope.entries.items():
        first = entries[0].line
        if not (isinstance(first, Binding) and first.parameters is not None):
            resolver.definition(name, first.span)
    paths = {name: resolver.path(name) for name in scope.path_lines}
    maps = {name: resolver.map(name) for name in scope.map_lines}
    moving = resolver.moving()
    claims = tuple(line(resolver.expression) for line in scope.claim_lines)
    sampler = tuple((line.name, line.value) for line in scope.sampler_lines)
    partial = Objective(
        name=tree.name,
        title=tree.title,
        arxiv=tree.arxiv,
        source=tree.source,
        constants=resolver.constants,
        paths=paths,
        draws={},
        networks=scope.networks,
        maps=maps,
        moving=moving,
        terms=(),
        definitions=resolver.definitions,
        players=tuple(scope.players),
        stages=tuple(scope.stages),
        claims=claims,
        sampler=tuple((name, resolver.expression(value)) for name, value in sampler),
        extends=tree.extends,
        line=tree.name_span.line,
    )
    terms = _Terms(scope, resolver, partial, derive).resolve()
    networks = {
        name: _finished(scope, resolver, network) for name, network in scope.networks.items()
    }
    return replace(
        partial,
        terms=terms,
        networks=networks,
        draws=_in_order(resolver.draws),
    )


def resolve_claims(
    tree: Tree, clauses: Sequence[Clause], objective: Objective
) -> tuple[Claim, ...]:
    """The claims of a spec that has nothing else, about an objective that is resolved already."""
    scope = Scope(tree, clauses, {}, _no_rule)
    for clause in clauses:
        clause.enter(scope, tree.lines(clause.keyword))
    resolver = Resolver(scope)
    claims = tuple(line(resolver.expression) for line in scope.claim_lines)
    for claim in claims:
        if claim.parameter is not None and claim.parameter not in objective.definitions:
            raise fail(
                "resolve",
                f"`{objective.name}` has no `{claim.parameter}`",
                claim.span,
                hint=did_you_mean(claim.parameter, objective.definitions),
            )
    return claims


def _no_rule(text: str) -> Expression:
    raise ValueError(f"a claim's value needs no derivative: {text}")


def _no_clashes(scope: Scope) -> None:
    """One name means one thing."""
    problems = []
    for name in scope.entries:
        where = scope.entries[name][0].line.span
        for table, what in (
            (scope.heads, "a network"),
            (scope.path_lines, "a path"),
            (scope.map_lines, "a map"),
        ):
            if name in table:
                problems.append(
                    Diagnostic("resolve", f"`{name}` is already {what}", where, hint="rename one")
                )
    if problems:
        raise DiagnosticError(*problems)


def _finished(scope: Scope, resolver: Resolver, network: Network) -> Network:
    """The network with the kinds its calls have shown; never called, the first is a state."""
    arguments = []
    for i, (name, kind) in enumerate(network.arguments):
        seen = scope.argument_kinds.get((network.average_of or network.name, i))
        seen = scope.argument_kinds.get((network.name, i), seen)
        if seen is Kind.SCALAR and kind is Kind.TIME:
            seen = Kind.TIME
        arguments.append((name, seen or kind))
    decay = scope.decays.get(network.name)
    value = resolver.expression(decay) if decay is not None else None
    return replace(network, arguments=tuple(arguments), decay=value)


def _in_order(draws: dict[str, DrawDeclaration]) -> dict[str, DrawDeclaration]:
    """Draws such that each stands after those its laws and rows read."""
    done: dict[str, DrawDeclaration] = {}

    def visit(name: str) -> None:
        if name in done:
            return
        for line in draws[name].lines:
            for needed in _needs(line.law, line.rows):
                if needed not in line.names and needed in draws:
                    visit(needed)
        done[name] = draws[name]

    for name in draws:
        visit(name)
    return done


def _needs(law: LawCall, rows: Expr | None) -> list[str]:
    parts: list[Expr] = [rows] if rows is not None else []
    stack: list[Expr | LawCall] = list(law.args)
    while stack:
        part = stack.pop()
        if isinstance(part, LawCall):
            stack.extend(part.args)
        else:
            parts.append(part)
    return [node.name for part in parts for node in walk(part) if isinstance(node, Draw)]


class _Terms:
    """The terms with their losses."""

    def __init__(
        self, scope: Scope, resolver: Resolver, objective: Objective, derive: Derive | None
    ) -> None:
        self._scope = scope
        self._resolver = resolver
        self._objective = objective
        self._derive = derive

    def resolve(self) -> tuple[Term, ...]:
        scope = self._scope
        if not scope.term_lines and not scope.stages:
            groups = ", ".join(clause.keyword for clause in scope.group_clauses())
            raise fail(
                "resolve",
                f"`{scope.tree.name}` has no term to learn from",
                scope.tree.name_span,
                hint=f"add a section ({groups}) with `match … to …` or `minimise …`",
            )
        labels = {t.name for t in scope.term_lines} | {t.group for t in scope.term_lines}
        for line in scope.loss_lines:
            if line.label is not None and line.label not in labels:
                raise fail(
                    "resolve",
                    f"there is no term `{line.label}`",
                    line.span,
                    hint=did_you_mean(line.label, labels) or f"terms: {', '.join(sorted(labels))}",
                )
        return tuple(self._term(line) for line in scope.term_lines)

    def _term(self, line: TermLine) -> Term:
        resolver = self._resolver
        rows = resolver.condition(line.rows) if line.rows is not None else None
        if line.prediction is None:
            if self._derive is None:
                raise fail("resolve", "nothing derives the target here", line.span)
            prediction, target = self._derive(self._objective, line.name, line.span)
            return self._matched(line, prediction, target, rows)
        prediction = resolver.expression(line.prediction)
        if line.target is None:
            if resolver.kind(prediction) not in (Kind.SCALAR, Kind.TIME):
                raise fail(
                    "kinds",
                    "what is minimised is one number per row",
                    line.prediction.span,
                    hint="to make two states equal, write `match … to …`",
                )
            return Term(line.name, line.group, prediction, None, prediction, rows, line.span)
        target = resolver.expression(line.target)
        for what, node in ((prediction, line.prediction), (target, line.target)):
            if resolver.kind(what) is not Kind.STATE:
                raise fail(
                    "kinds",
                    f"`match` compares states, and this is a {resolver.kind(what).value}",
                    node.span,
                    hint="for a number, write `minimise`"
                    if resolver.kind(what) in (Kind.SCALAR, Kind.TIME)
                    else "a state is data, noise, a point of the path, or what a network returns",
                )
        return self._matched(line, prediction, target, rows)

    def _matched(self, line: TermLine, prediction: Expr, target: Expr, rows: Expr | None) -> Term:
        loss = self._loss(line, sub(prediction, target))
        written = self._loss_lines(line)
        span = written[-1].value.span if written else None
        return Term(line.name, line.group, prediction, target, loss, rows, line.span, span)

    def _loss_lines(self, term: TermLine) -> list[Labelled]:
        """The lines labelled with the term or its group, else the unlabelled ones."""
        lines = [x for x in self._scope.loss_lines if x.label in (term.name, term.group)]
        return lines or [x for x in self._scope.loss_lines if x.label is None]

    def _loss(self, term: TermLine, residual: Expr) -> Expr:
        """The loss of a term, its lines folded."""
        error = Apply("sum_squares", (residual,), span=term.span)
        mean = Apply("mean_squares", (residual,), span=term.span)
        env = Env(values={"error": error, "mse": mean})
        value: Expr = error
        for position, line in enumerate(self._loss_lines(term)):
            new = self._resolver.expression(line.value, env)
            if self._resolver.kind(new) not in (Kind.SCALAR, Kind.TIME):
                raise fail("kinds", "a loss is one number per row", line.value.span)
            if line.rows is not None:
                if position == 0:
                    raise fail(
                        "resolve",
                        "the loss has no value on the other rows",
                        line.span,
                        hint="first give it everywhere, in a line without `on`",
                    )
                new = select(self._resolver.condition(line.rows), new, value)
            value = new
        return value


def learned_networks(objective: Objective) -> tuple[Network, ...]:
    """The networks whose parameters are trained."""
    return tuple(n for n in objective.networks.values() if not n.frozen and n.average_of is None)
