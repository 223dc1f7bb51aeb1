"""The calculus of flow maps: its rules against an exact flow, its normal forms, its scalars."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mixture_flow import Numbers, along, flow, velocity

from flowdsl.calculus.errors import Clock, Pole, Undecided
from flowdsl.calculus.expand import Series, parts
from flowdsl.calculus.inequalities import Affine, Bound, feasible, implies
from flowdsl.calculus.scalars import Scalars
from flowdsl.calculus.state import Calculus, MapAtom, State
from flowdsl.identities import IDENTITIES, GaussianFlow, Identity
from flowdsl.pipeline import load, load_text
from flowdsl.proof.derive import derive

FIELD = ("flow", ())
TIMES = {"t": 0.75, "r": 0.2, "s": 0.45}
RULES = tuple(IDENTITIES.values())


class Setting:
    """A field, a calculus and numbers to go with them."""

    def __init__(self, rules: tuple[Identity, ...] = RULES) -> None:
        self.scalars = Scalars(["t", "r", "s", "k"])
        self.calculus = Calculus(self.scalars, rules, Clock(30.0))
        self.series = Series(self.calculus)
        self.t, self.r, self.s, self.k = (self.scalars.symbol(n) for n in "trsk")
        self.x, self.w, self.y = (self.calculus.symbol(n) for n in "xwy")
        self.e = self.scalars.small()
        self.step = self.scalars.generator(self.e)
        values = {self.scalars.index(n): v for n, v in TIMES.items()}
        values[self.scalars.index("k")] = 0.6
        values[self.e] = 0.0
        vectors = {
            "x": np.array([0.4, -0.3]) + 0j,
            "w": np.array([0.8, 0.5]) + 0j,
            "y": np.array([-0.2, 0.9]) + 0j,
        }
        self.numbers = Numbers(self.scalars, vectors, values)

    def phi(self, point: State, a: object, b: object, *directions: State) -> State:
        return self.calculus.flow(FIELD, point, a, b, directions)

    def v(self, point: State, time: object, *directions: State) -> State:
        return self.calculus.velocity(FIELD, point, time, directions)

    def average(self, point: State, a: object, b: object) -> State:
        """The average velocity (x - φ) / (a - b)."""
        return (point - self.phi(point, a, b)).over(a - b)  # type: ignore[operator]

    def slope(self, state: State) -> State:
        return self.series.at_zero(self.series.derivative(state, self.e), self.e)

    def numeric_slope(self, state: State, h: float = 2e-4) -> np.ndarray:
        """Central differences of fourth order of the state's value in e."""
        values = []
        for shift in (-2 * h, -h, h, 2 * h):
            self.numbers.values[self.e] = shift
            values.append(self.numbers.state(state))
        self.numbers.values[self.e] = 0.0
        far, near = values[3] - values[0], values[2] - values[1]
        return np.asarray((8 * near - far) / (12 * h))


def close(a: np.ndarray, b: np.ndarray, tolerance: float = 2e-6) -> bool:
    return bool(np.abs(a - b).max() <= tolerance * (1 + np.abs(b).max()))


# the oracle itself


def test_the_oracle_solves_the_differential_equation_and_does_not_commute() -> None:
    x = np.array([0.4, -0.3]) + 0j
    moved = along(lambda e: flow(x, 0.75, 0.2 + e))
    assert close(moved, velocity(flow(x, 0.75, 0.2), 0.2), 1e-4)
    w = np.array([0.8, 0.5]) + 0j

    def jacobian(a: float, b: float, direction: np.ndarray) -> np.ndarray:
        return along(lambda e: flow(x + e * direction, a, b))

    one = jacobian(0.75, 0.2, jacobian(0.5, 0.05, w))
    other = jacobian(0.5, 0.05, jacobian(0.75, 0.2, w))
    assert np.abs(one - other).max() > 5e-3 * np.abs(one).max()  # tests below see 2e-5


# differentiation, against differences on the exact flow


def _moving_states(s: Setting) -> dict[str, State]:
    x, w, y, t, r, e = s.x, s.w, s.y, s.t, s.r, s.step
    moved = x + w.scaled(e)
    return {
        "base": s.phi(moved, t, r),
        "start": s.phi(x, t + e, r),
        "end": s.phi(x, t, r + e),
        "all": s.phi(moved, t + e, r - e * 2),
        "jacobian start": s.phi(x, t + e, r, w),
        "jacobian end": s.phi(x, t, r + e, w),
        "jacobian base": s.phi(x + y.scaled(e), t, r, w),
        "jacobian direction": s.phi(x, t, r, w + y.scaled(e)),
        "velocity": s.v(moved, t + e),
        "velocity jacobian": s.v(x + y.scaled(e), t, w),
        "composed": s.phi(s.phi(moved, t, s.s), r, s.s + e),
        "average": s.average(moved, t + e, r),
        "scaled": s.phi(x, t, r).scaled((t + e) / (s.scalars.one + e)),
    }


@pytest.mark.parametrize("name", list(_moving_states(Setting())))
def test_derivatives_agree_with_differences(name: str) -> None:
    s = Setting()
    state = _moving_states(s)[name]
    symbolic = s.numbers.state(s.slope(state))
    assert np.abs(symbolic).max() > 1e-3
    assert close(symbolic, s.numeric_slope(state), 2e-5), name


@settings(max_examples=12, deadline=None)
@given(
    st.tuples(*[st.integers(-2, 2) for _ in range(4)]),
    st.sampled_from(["map", "jacobian", "velocity", "nested"]),
)
def test_random_motions_agree_with_differences(c: tuple[int, ...], kind: str) -> None:
    s = Setting()
    e = s.step
    point = s.x + s.w.scaled(e * c[0]) + s.y.scaled(e * c[1])
    a, b = s.t + e * Fraction(c[2], 2), s.r + e * Fraction(c[3], 2)
    state = {
        "map": lambda: s.phi(point, a, b),
        "jacobian": lambda: s.phi(point, a, b, s.w + s.y.scaled(e)),
        "velocity": lambda: s.v(point, a),
        "nested": lambda: s.phi(s.phi(point, a, s.s), s.s + e, b),
    }[kind]()
    assert close(s.numbers.state(s.slope(state)), s.numeric_slope(state), 5e-5)


def test_second_derivatives_of_a_map_agree_with_differences() -> None:
    s = Setting()
    first = s.series.derivative(s.phi(s.x + s.w.scaled(s.step), s.t + s.step, s.r), s.e)
    symbolic = s.numbers.state(s.slope(first))
    assert close(symbolic, s.numeric_slope(first, 1e-3), 2e-3)


# normal forms


def test_boundary_semigroup_and_the_way_back() -> None:
    s = Setting()
    assert s.phi(s.x, s.t, s.t) == s.x
    assert s.phi(s.x, s.t, s.t, s.w) == s.w
    assert not s.phi(s.x, s.t, s.t, s.w, s.y)
    there = s.phi(s.x, s.t, s.r)
    assert s.phi(there, s.r, s.s) == s.phi(s.x, s.t, s.s)
    assert s.phi(there, s.r, s.t) == s.x
    assert s.phi(there, s.r, s.t, s.phi(s.x, s.t, s.r, s.w)) == s.w


def test_canonical_times_let_the_semigroup_fire() -> None:
    s = Setting()
    middle = (s.t * s.t - s.r * s.r) / (s.t - s.r) - s.r  # equals t
    assert s.phi(s.phi(s.x, s.s, middle), s.t, s.r) == s.phi(s.x, s.s, s.r)


def test_jacobians_do_not_commute() -> None:
    s = Setting()
    there = s.phi(s.x, s.t, s.s)
    right = s.phi(there, s.s, s.r, s.phi(s.x, s.t, s.s, s.w))
    wrong = s.phi(s.x, s.t, s.s, s.phi(there, s.s, s.r, s.w))
    assert right == s.phi(s.x, s.t, s.r, s.w)
    assert wrong != right
    assert close(s.numbers.state(right), s.numbers.state(s.phi(s.x, s.t, s.r, s.w)))
    assert np.abs(s.numbers.state(wrong) - s.numbers.state(right)).max() > 1e-3


def test_the_jacobian_does_not_carry_velocity_to_velocity() -> None:
    s = Setting()
    carried = s.phi(s.x, s.t, s.r, s.v(s.x, s.t))
    landing = s.v(s.phi(s.x, s.t, s.r), s.r)
    assert carried != landing  # an identity of autonomous fields only
    assert np.abs(s.numbers.state(carried) - s.numbers.state(landing)).max() > 1e-2


def test_second_order_chain_rule_against_the_exact_flow() -> None:
    s = Setting()
    there = s.phi(s.x, s.t, s.s)
    one, two = s.phi(s.x, s.t, s.s, s.w), s.phi(s.x, s.t, s.s, s.y)
    state = s.phi(there, s.s, s.r, one, two)
    assert all(
        len(a.directions) < 2 or a.point == s.x for a in state.terms if isinstance(a, MapAtom)
    )

    def outer(direction: np.ndarray) -> np.ndarray:
        base = s.numbers.state(there)
        return along(lambda e: flow(base + e * direction, TIMES["s"], TIMES["r"]), 2)

    a, b = s.numbers.state(one), s.numbers.state(two)
    direct = (outer(a + b) - outer(a - b)) / 4
    assert close(s.numbers.state(state), direct, 1e-3)


def test_directions_are_multilinear_and_symmetric() -> None:
    s = Setting()
    both = s.phi(s.x, s.t, s.r, s.w.scaled(s.k) + s.y, s.w)
    apart = s.phi(s.x, s.t, s.r, s.w, s.w).scaled(s.k) + s.phi(s.x, s.t, s.r, s.w, s.y)
    assert both == apart
    assert not s.phi(s.x, s.t, s.r, s.calculus.zero)


def test_the_average_velocity_on_the_diagonal() -> None:
    s = Setting()
    near = s.average(s.x, s.t, s.t - s.step)
    assert not s.series.coefficient(near, s.e, -1)
    assert s.series.coefficient(near, s.e, 0) == s.v(s.x, s.t)
    acceleration = s.v(s.x, s.t, s.v(s.x, s.t)) + s.calculus.velocity(FIELD, s.x, s.t, (), 1)
    half = s.scalars.number(Fraction(1, 2))
    moved = s.average(s.x + s.v(s.x, s.t).scaled(s.step), s.t + s.step, s.t)
    assert s.series.coefficient(moved, s.e, 1) == acceleration.scaled(half)


def test_the_zero_field_moves_nothing() -> None:
    s = Setting()
    zero = ("zero", ())
    assert s.calculus.flow(zero, s.x, s.t, s.r) == s.x
    assert s.calculus.flow(zero, s.x, s.t, s.r, [s.w]) == s.w
    assert not s.calculus.velocity(zero, s.x, s.t)


def test_expectation_sorts_by_the_degree_of_the_noise() -> None:
    s = Setting()
    noise = s.calculus.symbol("ξ")
    names = frozenset({"ξ"})
    state = (
        s.phi(s.x, s.t, s.r, s.w)
        + s.phi(s.x, s.t, s.r, noise)
        + s.phi(s.x, s.t, s.r, noise, noise)
        + s.phi(s.x + noise, s.t, s.r)
    )
    sorted_parts = parts(state, names)
    assert sorted_parts.mean == s.phi(s.x, s.t, s.r, s.w)
    assert sorted_parts.linear == s.phi(s.x, s.t, s.r, noise)
    assert sorted_parts.higher == s.phi(s.x, s.t, s.r, noise, noise)
    assert sorted_parts.inside == s.phi(s.x + noise, s.t, s.r)
    assert s.series.without(state, names) == s.phi(s.x, s.t, s.r, s.w) + s.phi(s.x, s.t, s.r)


# identities


def test_identities_are_discovered_and_hold() -> None:
    assert set(IDENTITIES) == {"boundary", "tangent", "lagrangian", "eulerian", "semigroup"}
    for identity in IDENTITIES.values():
        assert identity.error(GaussianFlow(mean=-0.4, std=1.7)) < 1e-8
        assert identity.statement
        assert identity.source


def test_a_wrong_identity_cannot_be_made() -> None:
    right = IDENTITIES["eulerian"]
    with pytest.raises(ValueError, match="eulerian is off by"):
        replace(
            right,
            residual=lambda flow, x, t, s: right.residual(flow, x, t, s) + flow.velocity(x, t),
        )


@pytest.mark.parametrize("name", ["eulerian", "lagrangian", "semigroup"])
def test_an_identity_can_be_switched_off(name: str) -> None:
    rules = tuple(rule for rule in RULES if rule.name != name)
    s, full = Setting(rules), Setting()

    def left(z: Setting) -> State:
        return {
            "eulerian": lambda: z.slope(
                z.phi(z.x + z.v(z.x, z.t).scaled(z.step), z.t + z.step, z.r)
            ),
            "lagrangian": lambda: (
                z.slope(z.phi(z.x, z.t, z.r + z.step)) - z.v(z.phi(z.x, z.t, z.r), z.r)
            ),
            "semigroup": lambda: z.phi(z.phi(z.x, z.t, z.s), z.s, z.r) - z.phi(z.x, z.t, z.r),
        }[name]()

    assert left(s)
    assert not left(full)


# scalars


@settings(max_examples=30, deadline=None)
@given(st.integers(-3, 3), st.integers(-3, 3))
def test_circular_functions(m: int, n: int) -> None:
    scalars = Scalars(["t", "r"])
    t, r = scalars.symbol("t"), scalars.symbol("r")
    x = t * m + r * n if m or n else scalars.zero
    c, s = scalars.cos(x), scalars.sin(x)
    assert c * c + s * s == scalars.one
    values = {0: 0.3, 1: 0.8}
    assert math.isclose(scalars.numeric(c, values), math.cos(0.3 * m + 0.8 * n), abs_tol=1e-12)
    assert math.isclose(scalars.numeric(s, values), math.sin(0.3 * m + 0.8 * n), abs_tol=1e-12)
    slope = scalars.derivative(s, 0)
    assert slope == c * m if m else not slope


@pytest.mark.parametrize("function", ["sin", "cos", "exp", "log", "sqrt", "atan"])
def test_functions_of_a_moving_argument(function: str) -> None:
    scalars = Scalars(["t"])
    t, index = scalars.symbol("t"), scalars.small()
    e = scalars.generator(index)
    x = getattr(scalars, function)(t + e * e + e * 2)
    value = {0: 0.7}
    f = getattr(math, function)
    h = 1e-3
    moved = [f(0.7 + k * k * h * h + 2 * k * h) for k in (-1, 0, 1)]
    first = scalars.at_zero(scalars.derivative(x, index), index)
    second = scalars.at_zero(scalars.derivative(scalars.derivative(x, index), index), index)
    assert math.isclose(
        scalars.numeric(first, value), (moved[2] - moved[0]) / (2 * h), rel_tol=1e-4
    )
    curvature = (moved[2] - 2 * moved[1] + moved[0]) / h**2
    assert math.isclose(scalars.numeric(second, value), curvature, rel_tol=1e-3)


def test_roots_are_reduced_on_sight() -> None:
    scalars = Scalars(["t"])
    t = scalars.symbol("t")
    root = scalars.sqrt(scalars.one - t * t)
    assert scalars.normal(root * root) == scalars.one - t * t
    assert scalars.normal(scalars.one / root - root / (scalars.one - t * t)) == scalars.zero
    inverse = scalars.normal(scalars.one / (scalars.one + root))
    assert not any(m[scalars.roots[0]] for m in inverse.denom)


def test_exponentials_multiply() -> None:
    scalars = Scalars(["t", "r"])
    t, r = scalars.symbol("t"), scalars.symbol("r")
    assert scalars.exp(t) * scalars.exp(-t) == scalars.one
    assert scalars.exp(t * 2 - r) == scalars.exp(t) ** 2 / scalars.exp(r)


def test_a_pole_is_no_value() -> None:
    scalars = Scalars(["t"])
    with pytest.raises(Pole):
        scalars.at_zero(scalars.one / scalars.symbol("t"), 0)
    with pytest.raises(Pole):
        scalars.divide(scalars.one, scalars.zero)


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda t, r: (t - r) * 2 / (t - t + 1 - t), "2 * (t - r) / (1 - t)"),
        (lambda t, r: r - t, "-(t - r)"),
        (lambda t, r: t * t - r * r, "(t - r) * (t + r)"),
        (lambda t, r: (t + r) / 2, "(t + r) / 2"),
        (lambda t, r: t / t - t, "1 - t"),
    ],
)
def test_scalars_read_like_a_spec(build, text: str) -> None:  # type: ignore[no-untyped-def]
    scalars = Scalars(["t", "r"])
    one = scalars.one
    value = build(*(scalars.symbol(n) for n in "tr")) * one
    assert scalars.text(value) == text


# inequalities


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(-3, 3), st.integers(-3, 3), st.integers(-3, 3)),
        min_size=1,
        max_size=6,
    )
)
def test_feasibility_agrees_with_a_search(rows: list[tuple[int, int, int]]) -> None:
    bounds = [Bound(Affine.of({"a": Fraction(p), "b": Fraction(q)}, c), False) for p, q, c in rows]
    box = [Bound(Affine.of({n: Fraction(s)}, 4), False) for n in "ab" for s in (1, -1)]
    system = bounds + box
    # a polygon that is not empty has a corner: an intersection of two of its lines
    lines = [(b.left.coefficient("a"), b.left.coefficient("b"), b.left.constant) for b in system]
    found = False
    for i, (p, q, c) in enumerate(lines):
        for u, v, d in lines[:i]:
            det = p * v - q * u
            if det:
                a, b = (q * d - v * c) / det, (u * c - p * d) / det
                found |= all(x * a + y * b + z >= 0 for x, y, z in lines)
    assert feasible(system) == found


def test_implication_is_exact() -> None:
    t, r = Affine.variable("t"), Affine.variable("r")
    one = Affine.number(1)
    bounds = [Bound(r, True), Bound(t - r, True), Bound(one - t, True)]
    assert implies(bounds, Bound(one - t.scaled(Fraction(1, 2)) - r.scaled(Fraction(1, 2)), True))
    assert implies(bounds, Bound(t - r, False))
    assert not implies(bounds, Bound(t.scaled(Fraction(1, 2)) - r, False))


# derivation


def test_meanflow_is_derived() -> None:
    found = derive(load("meanflow"))
    assert found.identity == "eulerian"
    assert found.prediction_text == "u(z, t, r)"
    assert found.target_text == "stop(guided - (t - r) * d/dt[u(z, t, r)])"
    assert "d/dt[φ] = 0" in found.text
    assert r"\frac{d}{dt}\left[u(z, t, r)\right]" in found.latex


def test_tvm_is_derived() -> None:
    found = derive(load("tvm"))
    assert found.identity == "lagrangian"
    assert found.target_text == "stop(F(map(z, t, s), s, s) - (s - t) * d/ds[F(z, t, s)])"


def test_nothing_is_derived_without_a_map() -> None:
    with pytest.raises(Undecided, match="from a map"):
        derive(load("flow_matching"))


def test_trigonometric_maps_are_derived() -> None:
    objective = load_text(
        """objective c "c" arXiv:1
path          z(t) = cos(t) * data + sin(t) * noise
times         t ~ uniform(0, 1)
network       F(z, t)
map           z(t) -> z(0) = cos(t) * z - sin(t) * F(z, t)
differentiate t along velocity
target        match F(z, t) to velocity
loss          mse
"""
    )
    target = derive(objective).target_text
    assert "d/dt[F(z, t)]" in target
    assert "sin(t)" in target
    assert "velocity" in target
