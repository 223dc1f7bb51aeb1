"""From a typed objective to a graph, on purpose naively: each occurrence of a network is a forward
pass of its own.

A definition of the spec, a term's prediction and its target are computed once, as anyone would
write them down; nothing else is shared, and no row, no gradient and no equality is thought about.
The passes do all of that, so this graph is both their input and the yardstick of what they gain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction

from flowdsl.diagnostics import did_you_mean, fail
from flowdsl.ir.graph import NETWORK_OPS, Builder, Call, Graph, Node, Output, compact
from flowdsl.spec.core import (
    Apply,
    Constant,
    Draw,
    Evaluate,
    Expr,
    Formal,
    Given,
    Kind,
    Level,
    Null,
    Number,
    PathState,
    PathVelocity,
    Stop,
    Training,
    children,
    rebuild,
    replace_formals,
    sub,
    walk,
)
from flowdsl.spec.objective import Objective, Term

#: Above this many network passes an expression is shared after all: nobody would write it out by
#: hand.
MOST_COPIES = 400
DEEPEST_COPY = 60


def lower(objective: Objective, constants: Mapping[str, float | Fraction] | None = None) -> Graph:
    """The graph of an objective's loss. `constants` replaces values of the spec's `constants`."""
    objective = with_constants(objective, constants or {})
    if not objective.terms:
        names = ", ".join(stage.objective for stage in objective.stages)
        raise fail(
            "compile",
            f"{objective.name} has no loss of its own",
            hint=f"it is a sequence of stages; compile {names}" if names else "give it a target",
        )
    lowering = Lowering(objective)
    outputs = []
    for term in objective.terms:
        frozen = _frozen_in(objective, term)
        lowering.learn_names(objective.definitions, frozen)
        loss = lowering.expr(stop_unlearned(term.loss, frozen))
        if term.target is not None:
            prefix = f"{term.name}_" if len(objective.terms) > 1 and term.name != "target" else ""
            prediction, target = (stop_unlearned(e, frozen) for e in (term.prediction, term.target))
            lowering.name(prediction, f"{prefix}prediction")
            lowering.name(target, f"{prefix}target")
            for op, name in (("sum_squares", "error"), ("mean_squares", "mse")):
                lowering.name(Apply(op, (sub(prediction, target),)), f"{prefix}{name}")
        rows = None if term.rows is None else lowering.expr(term.rows)
        outputs.append(Output(term.name, loss, rows))
    implies = []
    for draw in objective.draws.values():
        if draw.kind is Kind.TRUTH and draw.lines[0].rows is not None and len(draw.lines) == 1:
            implies.append((lowering.expr(draw.symbol), lowering.expr(draw.lines[0].rows)))
    return unshare(compact(lowering.builder.finish(outputs, implies)))


def with_constants(objective: Objective, constants: Mapping[str, float | Fraction]) -> Objective:
    """The objective with other values of its constants."""
    for name in constants:
        if name not in objective.constants:
            known = ", ".join(objective.constants) or "none"
            raise fail(
                "constants",
                f'"{name}" is not a constant of {objective.name}',
                facts=[("constants", known)],
                hint=did_you_mean(name, objective.constants),
            )
    values = {
        n: Fraction(repr(v)) if isinstance(v, float) else Fraction(v) for n, v in constants.items()
    }
    return replace(objective, constants={**objective.constants, **values})


def _frozen_in(objective: Objective, term: Term) -> frozenset[str]:
    """The learned networks that, by `players`, do not learn from this term."""
    learning = [p for p in objective.players if term.name in dict(p.terms)]
    if not learning:
        return frozenset()
    learners = {name for player in learning for name in player.networks}
    return frozenset(
        n.name
        for n in objective.networks.values()
        if not n.frozen and n.average_of is None and n.name not in learners
    )


def stop_unlearned(expr: Expr, frozen: frozenset[str]) -> Expr:
    """The expression with `stop` around each evaluation through which a term would only reach
    networks in `frozen`.

    Where another network's gradient passes through such an evaluation it stays as it is.
    """
    if not frozen:
        return expr
    done: dict[Expr, Expr] = {}
    live: dict[Expr, bool] = {}
    for node in walk(expr):
        new = rebuild(node, lambda child: done[child])
        inside = any(live.get(done[child], False) for child in children(node))
        if isinstance(new, Evaluate):
            if new.network in frozen and not inside:
                new, inside = Stop(new, span=new.span), False
            else:
                inside = True
        live[new] = inside and not isinstance(new, Stop)
        done[node] = new
    return done[expr]


class Lowering:
    """Places core expressions in a graph; equal expressions become one node."""

    def __init__(self, objective: Objective, formals: Mapping[str, Node] | None = None) -> None:
        self.objective = objective
        self.builder = Builder(objective)
        self.formals = dict(formals or {})
        self.names: dict[Expr, str] = {}
        self._place: dict[Expr, int] = {}
        self.learn_names(objective.definitions, frozenset())

    def learn_names(self, definitions: Mapping[str, Expr], frozen: frozenset[str]) -> None:
        """Let the spec's names for its definitions be known."""
        for name, expr in definitions.items():
            self.names.setdefault(stop_unlearned(expr, frozen), name)

    def name(self, expr: Expr, name: str) -> None:
        """Name what has been placed for an expression, unless the spec has named it."""
        at = self._place.get(expr)
        if at is not None:
            self.builder.rename(at, name)

    def expr(self, expr: Expr) -> int:
        for node in walk(expr):
            if node not in self._place:
                at = self._place[node] = self._node(node)
                if node in self.names:
                    self.builder.rename(at, self.names[node])
        return self._place[expr]

    def _node(self, expr: Expr) -> int:
        add = self.builder.add
        inputs = tuple(self._place[child] for child in children(expr))
        match expr:
            case Number(value):
                return self.builder.number(value)
            case Constant(name):
                return add(Node("constant", (), Kind.SCALAR, Level.CONSTANT, name))
            case Training(name):
                return add(Node("training", (), Kind.SCALAR, Level.STEP, name))
            case Draw(name, kind, level):
                return add(Node("draw", (), kind, level, name))
            case Given("label" | "text"):
                return add(Node("given", (), Kind.LABEL, Level.ROW, "label"))
            case Given("noise"):
                return add(Node("draw", (), Kind.STATE, Level.ROW, "noise"))
            case Given(name):
                return add(Node("given", (), Kind.STATE, Level.ROW, name))
            case Null():
                return add(Node("null", (), Kind.LABEL, Level.CONSTANT))
            case Formal(name):
                return add(self.formals[name])
            case PathState() | PathVelocity():
                return self._path(expr)
            case Apply(op):
                return self.builder.apply(op, *inputs)
            case Stop():
                return self.builder.stop(inputs[0])
            case Evaluate():
                return self._evaluate(expr, inputs)
        raise TypeError(f"flowdsl/ir/lower.py has no rule for {type(expr).__name__}")

    def _path(self, expr: PathState | PathVelocity) -> int:
        path = self.objective.paths[expr.path]
        body = path.body if isinstance(expr, PathState) else path.velocity
        ends = {path.time: expr.time, "data": expr.data, "noise": expr.noise}
        at = self.expr(replace_formals(body, ends))
        plain = (expr.data, expr.noise) == (Given("data"), Given("noise"))
        time = self.names.get(expr.time) or getattr(expr.time, "name", "")
        if plain and isinstance(time, str) and time:
            name = path.state if isinstance(expr, PathState) else "velocity"
            self.builder.rename(at, name if time == path.time else f"{name}_{time}")
        return at

    def _evaluate(self, expr: Evaluate, inputs: tuple[int, ...]) -> int:
        network = self.objective.networks[expr.network]
        call = Call(
            expr.network,
            len(expr.args),
            tuple(name for name, _ in expr.conditions),
            tuple(tuple(entry is not None for entry in d) for d in expr.directions),
        )
        several = len(network.heads) > 1
        kind = dict(network.heads)[expr.head]
        op = "derivative" if expr.directions else "call"
        shown = Kind.FEATURES if several else kind
        at = self.builder.add(Node(op, inputs, shown, Level.ROW, call))
        if several:
            at = self.builder.add(Node("head", (at,), kind, Level.ROW, expr.head))
        return at


def unshare(graph: Graph) -> Graph:
    """Give each occurrence of a network its own pass; what has a name is still computed once."""
    holds_call: list[bool] = []
    depth: list[int] = []
    copies: list[int] = []
    keep: list[bool] = []
    outputs = set(graph.roots)
    for at, node in enumerate(graph.nodes):
        inner = [i for i in node.inputs if not keep[i]]
        holds_call.append(node.op in NETWORK_OPS or any(holds_call[i] for i in inner))
        depth.append(1 + max((depth[i] for i in inner), default=0))
        copies.append((node.op in NETWORK_OPS) + sum(copies[i] for i in inner))
        named = bool(node.name) or at in outputs or _is_difference(graph, node)
        keep.append(
            named or not holds_call[at] or depth[at] > DEEPEST_COPY or copies[at] > MOST_COPIES
        )
    builder = Builder(graph.objective)
    place: dict[int, int] = {}
    occurrence = 0

    def copy(at: int) -> int:
        nonlocal occurrence
        if at in place:
            return place[at]
        node = graph.nodes[at]
        detail = node.detail
        inputs = tuple(copy(i) for i in node.inputs)
        if isinstance(detail, Call):
            occurrence += 1
            detail = replace(detail, occurrence=occurrence)
        new = builder.add(replace(node, inputs=inputs, detail=detail))
        if keep[at]:
            place[at] = new
        return new

    for at in range(len(graph.nodes)):
        if keep[at]:
            copy(at)
    outs = [
        Output(o.term, place[o.loss], None if o.rows is None else copy(o.rows))
        for o in graph.outputs
    ]
    return compact(builder.finish(outs, [(copy(a), copy(b)) for a, b in graph.implies]))


def _is_difference(graph: Graph, node: Node) -> bool:
    """Whether the node is a term's prediction minus its target."""
    ends = [graph.nodes[i].name for i in node.inputs]
    return (
        node.op == "sub"
        and any(n.endswith("prediction") for n in ends)
        and any(n.endswith("target") for n in ends)
    )
