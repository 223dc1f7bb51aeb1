"""A row's loss in normal form: its value and its gradient, for every network.

Sizes of states are polynomials in symbols: one for the square of each state (up to a factor) and
one for each scalar product. A gradient is a sum of products <a, b> of an atom that moves and an
atom that does not, plus the changes of scalar networks; equal gradients have equal sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from flowdsl.calculus.context import Context
from flowdsl.calculus.errors import Undecided
from flowdsl.calculus.field import Element
from flowdsl.calculus.interpret import Reader
from flowdsl.calculus.state import Atom, State
from flowdsl.spec.core import Apply, Evaluate, Expr, Kind, Stop, walk

#: A moving atom beside a still one; or a scalar network by its expression.
Pair = tuple[Atom, Atom] | tuple[str, Expr]


@dataclass(frozen=True)
class Form:
    """A linear combination of products."""

    terms: dict[Pair, Element] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.terms)

    def plus(self, other: Form) -> Form:
        total = dict(self.terms)
        for pair, c in other.terms.items():
            value = total[pair] + c if pair in total else c
            if value:
                total[pair] = value
            else:
                total.pop(pair, None)
        return Form(total)

    def scaled(self, factor: Element) -> Form:
        return Form({p: c * factor for p, c in self.terms.items()}) if factor else Form()

    def minus(self, other: Form) -> Form:
        return self.plus(Form({p: -c for p, c in other.terms.items()}))

    def ratio(self, other: Form) -> Element | None:
        """λ with self = λ other, or None."""
        if not other.terms or self.terms.keys() != other.terms.keys():
            return None
        pair = next(iter(self.terms))
        factor = self.terms[pair] / other.terms[pair]
        same = all(c == other.terms[p] * factor for p, c in self.terms.items())
        return factor if same else None


def product(a: State, b: State) -> Form:
    """<a, b> of two states, taken apart."""
    total = Form()
    for p, c in a.terms.items():
        for q, d in b.terms.items():
            total = total.plus(Form({(p, q): c * d}))
    return total


def symmetric(form: Form) -> Form:
    """The same sum with <a, b> and <b, a> taken as one."""
    total = Form()
    for pair, c in form.terms.items():
        one, other = pair
        if isinstance(one, Atom) and isinstance(other, Atom) and other.serial < one.serial:
            pair = (other, one)
        total = total.plus(Form({pair: c}))
    return total


def sum_of(forms: Iterable[Form]) -> Form:
    total = Form()
    for form in forms:
        total = total.plus(form)
    return total


@dataclass
class LossReader:
    """Reads losses in one setting. `sizes` keeps what each symbol of a size stands for, as a sum of
    products."""

    reader: Reader
    sizes: dict[int, Form] = field(default_factory=dict)

    @property
    def context(self) -> Context:
        return self.reader.context

    def states(self, expr: Expr) -> tuple[State, State]:
        """A state, and how it moves."""
        series, eta = self.context.series, self.context.eta
        state = self.reader.state(expr, True)
        return series.at_zero(state, eta), series.coefficient(state, eta, 1)

    # values

    def value(self, expr: Expr) -> Element:
        """The loss, as a scalar in symbols of sizes."""
        match expr:
            case Stop(body):
                return self.value(body)
            case Apply("sum_squares", (arg,)):
                return self._square(self._still(arg))
            case Apply("mean_squares", (arg,)):
                return self._square(self._still(arg)) / self.entries
            case Apply("norm", (arg,)):
                return self.context.scalars.sqrt(self._square(self._still(arg)))
            case Apply("dot", (a, b)):
                return self._dot(self._still(a), self._still(b))
            case Apply("add", (a, b)):
                return self.value(a) + self.value(b)
            case Apply("sub", (a, b)):
                return self.value(a) - self.value(b)
            case Apply("neg", (a,)):
                return -self.value(a)
            case Apply("mul", (a, b)):
                return self.value(a) * self.value(b)
            case Apply("div", (a, b)):
                return self.context.scalars.divide(self.value(a), self.value(b))
            case Apply("pow", (a, b)):
                return self._power(expr, a, b)
            case Apply("sqrt" | "exp" | "log" as op, (a,)):
                function: Callable[[Element], Element] = getattr(self.context.scalars, op)
                return function(self.value(a))
        if any(self._is_size(node) for node in walk(expr)):
            raise Undecided("the loss is no rational function of sizes", expr.span)
        return self.reader.scalar(expr)

    def _is_size(self, node: Expr) -> bool:
        return isinstance(node, Apply) and node.op in ("sum_squares", "mean_squares", "norm", "dot")

    def _still(self, expr: Expr) -> State:
        return self.states(expr)[0]

    @property
    def entries(self) -> Element:
        """The number of entries of a sample."""
        return self.context.scalars.opaque("entries", "entries")

    def _square(self, state: State) -> Element:
        if not state:
            return self.context.scalars.zero
        unit, factor = _unit(state)
        return factor * factor * self._symbol(unit, unit)

    def _dot(self, a: State, b: State) -> Element:
        if not a or not b:
            return self.context.scalars.zero
        (one, f), (other, g) = _unit(a), _unit(b)
        if one == other:
            return f * g * self._symbol(one, one)
        if _rank(other) < _rank(one):
            one, other = other, one
        return f * g * self._symbol(one, other)

    def _symbol(self, a: State, b: State) -> Element:
        scalars = self.context.scalars
        symbol = scalars.opaque(("product", a, b), "error" if a == b else "product")
        index = next(iter(scalars.generators_in(symbol)))
        self.sizes[index] = symmetric(product(a, b))
        return symbol

    def _power(self, expr: Expr, base: Expr, exponent: Expr) -> Element:
        scalars = self.context.scalars
        power = scalars.rational(self.value(exponent))
        if power is None or power.denominator > 2 or abs(power.numerator) > 12:
            raise Undecided("a power that is not known", expr.span)
        value = self.value(base)
        value = scalars.sqrt(value) if power.denominator == 2 else value
        value = scalars.power(value, abs(power.numerator))
        return scalars.divide(scalars.one, value) if power < 0 else value

    # gradients

    def gradient(self, expr: Expr) -> Form:
        """How the loss moves with the networks."""
        scalars = self.context.scalars
        match expr:
            case Stop():
                return Form()
            case Apply("sum_squares", (arg,)):
                return self._pulled(arg, arg, scalars.number(2))
            case Apply("mean_squares", (arg,)):
                return self._pulled(arg, arg, 2 / self.entries)
            case Apply("norm", (arg,)):
                return self._pulled(arg, arg, scalars.divide(scalars.one, self.value(expr)))
            case Apply("dot", (a, b)):
                one = scalars.one
                return self._pulled(a, b, one).plus(self._pulled(b, a, one))
            case Apply("add", (a, b)):
                return self.gradient(a).plus(self.gradient(b))
            case Apply("sub", (a, b)):
                return self.gradient(a).minus(self.gradient(b))
            case Apply("neg", (a,)):
                return self.gradient(a).scaled(-scalars.one)
            case Apply("mul", (a, b)):
                first = self._times(a, lambda: self.value(b))
                return first.plus(self._times(b, lambda: self.value(a)))
            case Apply("div", (a, b)):
                top = self._times(a, lambda: scalars.divide(scalars.one, self.value(b)))
                return top.minus(
                    self._times(b, lambda: scalars.divide(self.value(a), self.value(b) ** 2))
                )
            case Apply("pow" | "sqrt" | "exp" | "log", (a, *_)):
                return self._times(a, lambda: self._slope(expr))
            case Evaluate() if self._learns(expr):
                return Form({("scalar", expr): scalars.one})
        if any(isinstance(node, Evaluate) and self._learns(node) for node in walk(expr)):
            raise Undecided("gradient flows through a function that is not known", expr.span)
        return Form()

    def _times(self, moving: Expr, factor: Callable[[], Element]) -> Form:
        form = self.gradient(moving)
        return form.scaled(factor()) if form else form

    def _pulled(self, moving: Expr, still: Expr, factor: Element) -> Form:
        if self.context.objective.kind(moving) is not Kind.STATE:
            raise Undecided("a product of something else than states", moving.span)
        return product(self.states(moving)[1], self.states(still)[0]).scaled(factor)

    def _slope(self, expr: Apply) -> Element:
        scalars = self.context.scalars
        value = self.value(expr)
        match expr.op:
            case "exp":
                return value
            case "log":
                return scalars.divide(scalars.one, self.value(expr.args[0]))
            case "sqrt":
                return scalars.divide(scalars.one, value + value)
        exponent = self.value(expr.args[1])
        return scalars.divide(exponent * value, self.value(expr.args[0]))

    def _learns(self, node: Evaluate) -> bool:
        network = self.context.objective.networks[node.network]
        return not network.frozen and network.average_of is None

    # taken apart

    def expanded(self, value: Element) -> Form | None:
        """A value that is linear in its sizes, as a sum of products; None when it is not."""
        scalars = self.context.scalars
        total, rest = Form(), value
        for index, size in self.sizes.items():
            slope = scalars.derivative(value, index)
            if scalars.generators_in(slope) & self.sizes.keys():
                return None
            if slope:
                total = total.plus(size.scaled(slope))
                rest = rest - slope * scalars.generator(index)
        return total if not rest else None


def _unit(state: State) -> tuple[State, Element]:
    """The state as a factor times a state whose first atom stands alone."""
    first = min(state.terms, key=lambda atom: atom.serial)
    factor = state.terms[first]
    return state.over(factor), factor


def _rank(state: State) -> tuple[tuple[int, str], ...]:
    return tuple(sorted((atom.serial, str(c)) for atom, c in state.terms.items()))
