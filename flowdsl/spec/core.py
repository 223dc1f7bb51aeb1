"""The core language: what every spec means once its names are resolved.

A handful of frozen nodes. The proof reads these trees, and the compiler lowers these very trees;
there is no second representation of an objective anywhere. Nothing simplifies on construction, and
equality is structural (spans do not count), so two equal trees are the same computation.

Derivatives `d/dX[…]` do not appear: resolution has carried them down to the networks, where they
stand as the `directions` of an `Evaluate` (see `differentiate.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from enum import Enum, IntEnum
from fractions import Fraction
from functools import cache, cached_property

from flowdsl.diagnostics import Span


class Kind(Enum):
    """What a value is. A `TIME` may stand wherever a `SCALAR` may."""

    STATE = "state"  # one image, latent or vector per sample: shape (batch, ...)
    TIME = "time"  # one point in time per sample: shape (batch,)
    SCALAR = "scalar"  # one number per sample, per step, or for good (see Level)
    TRUTH = "condition"  # true or false per sample, or per step
    LABEL = "label"  # a class index per sample
    FEATURES = "features"  # what one network hands to another; nothing is known about its shape


class Level(IntEnum):
    """How often a value changes. Python computes the first two, tensors the third."""

    CONSTANT = 0  # fixed when the objective is compiled
    STEP = 1  # one value per training step (curricula, batch statistics)
    ROW = 2  # one value per sample


@dataclass(frozen=True, eq=False)
class Expr:
    """A node; `span` is the text it came from, for messages, and is no part of its identity.

    What is computed of a node is kept: trees share subtrees, and walking them as trees would
    take time exponential in their depth.
    """

    span: Span | None = field(default=None, compare=False, repr=False, kw_only=True)

    @cached_property
    def _key(self) -> tuple[object, ...]:
        return (type(self), *(getattr(self, name) for name in _compared(type(self))))  # type: ignore[arg-type]

    @cached_property
    def _hash(self) -> int:
        return hash(self._key)

    @cached_property
    def parts(self) -> tuple[Expr, ...]:
        """The direct subexpressions, in order of evaluation."""
        return _parts(self)

    @cached_property
    def nodes(self) -> tuple[Expr, ...]:
        """Every node once (equal nodes count as one), subexpressions first."""
        return tuple(_nodes(self))

    @cached_property
    def level(self) -> Level:
        """How often the value changes: the highest level of what it is made of."""
        match self:
            case Draw(_, _, level):
                return level
            case Training() | Apply("batch_mean", _):
                return Level.STEP
            case Given() | Formal() | PathState() | PathVelocity() | Evaluate():
                return Level.ROW
        return max((part.level for part in self.parts), default=Level.CONSTANT)

    @cached_property
    def size(self) -> int:
        """The number of nodes, counted as a tree."""
        return 1 + sum(child.size for child in children(self))

    @cached_property
    def depth(self) -> int:
        """The length of the longest way down."""
        return 1 + max((child.depth for child in children(self)), default=0)

    def __getstate__(self) -> dict[str, object]:
        """The fields alone: hashes of strings differ from process to process."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Expr):
            return NotImplemented
        return self._hash == other._hash and self._key == other._key


@cache
def _compared(cls: type[object]) -> tuple[str, ...]:
    return tuple(f.name for f in fields(cls) if f.compare)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class Number(Expr):
    """An exact number; decimals in a spec are read exactly (0.1 is 1/10)."""

    value: Fraction


@dataclass(frozen=True, eq=False)
class Constant(Expr):
    """A name bound under `constants`; its value is `objective.constants[name]`."""

    name: str


@dataclass(frozen=True, eq=False)
class Training(Expr):
    """`progress` (0 to 1), `step` or `steps`: where training stands. Level STEP."""

    name: str


@dataclass(frozen=True, eq=False)
class Draw(Expr):
    """One named random quantity; a key of `draws`."""

    name: str
    kind: Kind
    level: Level


@dataclass(frozen=True, eq=False)
class Given(Expr):
    """What a caller supplies: `data` and `noise` (states), `label` and `text` (labels).

    `text` is what data are asked for by; where data have classes only, the class stands in for it,
    so both are the one label that a caller passes.

    `noise` is standard normal and is one of the `draws`; `data` and `label` are arguments of the
    loss.
    """

    name: str


@dataclass(frozen=True, eq=False)
class Null(Expr):
    """The label of no class."""


@dataclass(frozen=True, eq=False)
class Formal(Expr):
    """A parameter in the body of a map (`z`, `t`, `r` in `map z(t) -> z(r) = …`) or a path
    (`t`)."""

    name: str
    kind: Kind


@dataclass(frozen=True, eq=False)
class PathState(Expr):
    """A point of a path at a time: `z(t)`. `data` and `noise` are its ends, usually `Given`.

    It means `objective.paths[path].body` with the formal time and ends replaced (see
    `expand_path`).
    """

    path: str
    time: Expr
    data: Expr
    noise: Expr


@dataclass(frozen=True, eq=False)
class PathVelocity(Expr):
    """The conditional velocity d/dt of a path state at fixed ends: random, given the state."""

    path: str
    time: Expr
    data: Expr
    noise: Expr


@dataclass(frozen=True, eq=False)
class Apply(Expr):
    """An operation of `operations.py` applied to arguments; `select(c, a, b)` is `a` where `c`."""

    op: str
    args: tuple[Expr, ...]


Direction = tuple[Expr | None, ...]


@dataclass(frozen=True, eq=False)
class Evaluate(Expr):
    """A network's head at arguments, or its directional derivative there.

    `args` are in the order of the network's declaration; `conditions` are sorted by name.
    `directions` holds k tangents, each with one entry per argument (None is zero): the value is
    the k-th derivative of the head at `args`, applied to those k directions; k = 0 is the plain
    value. Conditions never carry a tangent.
    """

    network: str
    head: str
    args: tuple[Expr, ...]
    conditions: tuple[tuple[str, Expr], ...] = ()
    directions: tuple[Direction, ...] = ()


@dataclass(frozen=True, eq=False)
class Stop(Expr):
    """The value of `body`, through which no gradient flows."""

    body: Expr


def children(expr: Expr) -> tuple[Expr, ...]:
    """The direct subexpressions, in order of evaluation."""
    return expr.parts


def _parts(expr: Expr) -> tuple[Expr, ...]:
    match expr:
        case PathState(_, time, data, noise) | PathVelocity(_, time, data, noise):
            return (time, data, noise)
        case Apply(_, args):
            return args
        case Evaluate(_, _, args, conditions, directions):
            tangents = [
                entry for direction in directions for entry in direction if entry is not None
            ]
            return (*args, *(value for _, value in conditions), *tangents)
        case Stop(body):
            return (body,)
    return ()


def rebuild(expr: Expr, change: Callable[[Expr], Expr]) -> Expr:
    """The node with `change` applied to each direct subexpression; itself when nothing changes."""
    match expr:
        case PathState() | PathVelocity():
            new: dict[str, object] = {
                "time": change(expr.time),
                "data": change(expr.data),
                "noise": change(expr.noise),
            }
        case Apply(_, args):
            new = {"args": tuple(change(a) for a in args)}
        case Evaluate(_, _, args, conditions, directions):
            new = {
                "args": tuple(change(a) for a in args),
                "conditions": tuple((name, change(value)) for name, value in conditions),
                "directions": tuple(
                    tuple(None if entry is None else change(entry) for entry in direction)
                    for direction in directions
                ),
            }
        case Stop(body):
            new = {"body": change(body)}
        case _:
            return expr
    if all(getattr(expr, name) == value for name, value in new.items()):
        return expr
    return replace(expr, **new)  # type: ignore[arg-type]


def transform(expr: Expr, rule: Callable[[Expr], Expr]) -> Expr:
    """Rewrite bottom-up: `rule` sees each node once its subexpressions are rewritten."""
    done: dict[Expr, Expr] = {}

    def visit(node: Expr) -> Expr:
        found = done.get(node)
        if found is None:
            found = done[node] = rule(rebuild(node, visit))
        return found

    return visit(expr)


def walk(expr: Expr) -> Iterator[Expr]:
    """Every node once (equal nodes count as one), subexpressions first."""
    return iter(expr.nodes)


def _nodes(expr: Expr) -> Iterator[Expr]:
    seen: set[Expr] = set()
    stack: list[tuple[Expr, bool]] = [(expr, False)]
    while stack:
        node, ready = stack.pop()
        if ready:
            yield node
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((child, False) for child in reversed(children(node)))


def replace_formals(expr: Expr, values: dict[str, Expr]) -> Expr:
    """The expression with formals replaced by name."""
    return transform(expr, lambda e: values.get(e.name, e) if isinstance(e, Formal) else e)


def assume(expr: Expr, facts: dict[Expr, bool]) -> Expr:
    """The expression on rows where each condition in `facts` has the stated truth value.

    Conditions and the selections that depend on them are decided; nothing else is simplified.
    """

    def rule(node: Expr) -> Expr:
        if node in facts:
            return TRUE if facts[node] else FALSE
        if not isinstance(node, Apply):
            return node
        args = node.args
        match node.op:
            case "not" if args[0] in (TRUE, FALSE):
                return FALSE if args[0] == TRUE else TRUE
            case "and" if FALSE in args:
                return FALSE
            case "or" if TRUE in args:
                return TRUE
            case "and" if TRUE in args:
                return args[1] if args[0] == TRUE else args[0]
            case "or" if FALSE in args:
                return args[1] if args[0] == FALSE else args[0]
            case "select" if args[0] == TRUE:
                return args[1]
            case "select" if args[0] == FALSE:
                return args[2]
        return node

    return transform(expr, rule)


def conditions_of(expr: Expr) -> list[Expr]:
    """The draws and comparisons that decide selections inside, in order of appearance."""
    found: dict[Expr, None] = {}
    for node in walk(expr):
        if isinstance(node, Apply) and node.op == "select":
            for inner in walk(node.args[0]):
                if (isinstance(inner, Draw) and inner.kind is Kind.TRUTH) or (
                    isinstance(inner, Apply) and inner.op in COMPARISONS
                ):
                    found[inner] = None
    return list(found)


COMPARISONS = frozenset({"lt", "le", "gt", "ge", "eq", "ne"})
ZERO = Number(Fraction(0))
ONE = Number(Fraction(1))
TRUE = Apply("true", ())
FALSE = Apply("false", ())


def number(value: int | float | str | Fraction) -> Number:
    """A number node; floats are read by their shortest decimal form."""
    return Number(Fraction(repr(value)) if isinstance(value, float) else Fraction(value))


def apply(op: str, *args: Expr, span: Span | None = None) -> Apply:
    return Apply(op, args, span=span)


def add(a: Expr, b: Expr) -> Apply:
    return Apply("add", (a, b))


def sub(a: Expr, b: Expr) -> Apply:
    return Apply("sub", (a, b))


def mul(a: Expr, b: Expr) -> Apply:
    return Apply("mul", (a, b))


def div(a: Expr, b: Expr) -> Apply:
    return Apply("div", (a, b))


def neg(a: Expr) -> Apply:
    return Apply("neg", (a,))


def select(condition: Expr, yes: Expr, no: Expr) -> Apply:
    return Apply("select", (condition, yes, no))
