"""Objectives built by hand from the core's constructors: what resolution makes of the specs in the
design.

The tests of the compiler's back half use them, so that they depend neither on the parser nor on the
shipped specs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

from flowdsl.diagnostics import Source
from flowdsl.spec.core import (
    ONE,
    ZERO,
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
    PathState,
    PathVelocity,
    Stop,
    Training,
    add,
    div,
    mul,
    number,
    select,
    sub,
)
from flowdsl.spec.objective import (
    DrawDeclaration,
    DrawLine,
    FlowMap,
    LawCall,
    Moving,
    Network,
    Objective,
    Path,
    Player,
    Term,
)

DATA, NOISE, LABEL = Given("data"), Given("noise"), Given("label")


def linear_path() -> Path:
    t = Formal("t", Kind.TIME)
    data, noise = Formal("data", Kind.STATE), Formal("noise", Kind.STATE)
    return Path("z", "t", add(mul(sub(ONE, t), data), mul(t, noise)), sub(noise, data))


def z(time: Expr) -> PathState:
    return PathState("z", time, DATA, NOISE)


def velocity(time: Expr) -> PathVelocity:
    return PathVelocity("z", time, DATA, NOISE)


def time(name: str) -> Draw:
    return Draw(name, Kind.TIME, Level.ROW)


def rows(name: str) -> Draw:
    return Draw(name, Kind.TRUTH, Level.ROW)


def law(name: str, *args: float | Expr | LawCall) -> LawCall:
    return LawCall(name, tuple(a if isinstance(a, Expr | LawCall) else number(a) for a in args))


def either(a: Expr, b: Expr) -> Apply:
    return Apply("or", (a, b))


def error(prediction: Expr, target: Expr) -> Apply:
    return Apply("sum_squares", (sub(prediction, target),))


def mse(prediction: Expr, target: Expr) -> Apply:
    return Apply("mean_squares", (sub(prediction, target),))


def adaptive(x: Expr, power: float, offset: float) -> Apply:
    return div(x, Stop(Apply("pow", (add(x, number(offset)), number(power)))))


@dataclass
class Draft:
    """Collects the parts of one objective."""

    name: str
    constants: dict[str, Fraction] = field(default_factory=dict)
    draws: dict[str, DrawDeclaration] = field(default_factory=dict)
    networks: dict[str, Network] = field(default_factory=dict)
    definitions: dict[str, Expr] = field(default_factory=dict)

    def draw(
        self, names: str, drawn: LawCall, on: Expr | None = None, kind: Kind = Kind.TIME
    ) -> None:
        split = tuple(names.split())
        line = DrawLine(split, drawn, on)
        truth = {"share": Level.ROW, "bernoulli": Level.ROW, "batch_bernoulli": Level.STEP}
        level = truth.get(drawn.law, Level.ROW)
        kind = Kind.TRUTH if drawn.law in truth else kind
        for name in split:
            before = self.draws[name].lines if name in self.draws else ()
            self.draws[name] = DrawDeclaration(name, kind, level, (*before, line))

    def network(
        self, name: str, arguments: str, *conditions: str, heads: str = "", **more: object
    ) -> None:
        pairs = tuple(
            (a, Kind.STATE if a in ("z", "x", "y") else Kind.TIME) for a in arguments.split()
        )
        outs = tuple(
            (h.rstrip("!"), Kind.SCALAR if h.endswith("!") else Kind.STATE)
            for h in (heads or name).split()
        )
        self.networks[name.rstrip("!")] = Network(
            name.rstrip("!"),
            pairs,
            tuple(sorted(conditions)),
            outs,
            **more,  # type: ignore[arg-type]
        )

    def define(self, name: str, value: Expr) -> Expr:
        self.definitions[name] = value
        return value

    def objective(self, *terms: Term, **more: object) -> Objective:
        path = linear_path()
        parts: dict[str, object] = {
            "title": self.name,
            "arxiv": "",
            "source": Source(self.name, ""),
            "maps": {},
            "moving": None,
            "paths": {"z": path},
            **more,
        }
        return Objective(  # type: ignore[arg-type]
            name=self.name,
            constants=self.constants,
            draws=self.draws,
            networks=self.networks,
            terms=terms,
            definitions=self.definitions,
            **parts,
        )


def average_map(network: str, call: tuple[tuple[str, Expr], ...]) -> FlowMap:
    """`map z(t) -> z(r) = z - (t - r) * u(z, t, r)`."""
    state, t, r = Formal("z", Kind.STATE), Formal("t", Kind.TIME), Formal("r", Kind.TIME)
    body = sub(state, mul(sub(t, r), Evaluate(network, network, (state, t, r), call)))
    return FlowMap("map", "z", state, t, r, body)


def flow_matching() -> Objective:
    d = Draft("flow_matching")
    d.draw("dropped", law("bernoulli", 0.1))
    d.draw("t", law("logit_normal", 0, 1))
    d.network("v", "z t", "label")
    t = time("t")
    label = d.define("label", select(rows("dropped"), Null(), LABEL))
    prediction = Evaluate("v", "v", (z(t), t), (("label", label),))
    target = velocity(t)
    return d.objective(Term("target", "target", prediction, target, error(prediction, target)))


def meanflow(omega: float = 1.0, kappa: float = 0.5, lo: float = 0, hi: float = 1) -> Objective:
    d = Draft("meanflow")
    given = {"omega": omega, "kappa": kappa, "lo": lo, "hi": hi}
    d.constants = {k: Fraction(repr(v)) for k, v in given.items()}
    d.draw("diagonal", law("share", 0.75))
    d.draw("dropped", LawCall("share", (number(Fraction(2, 15)),)), on=rows("diagonal"))
    d.draw("t r", law("sorted", law("logit_normal", -0.4, 1)))
    d.network("u", "z t r", "label")
    t, diagonal, dropped = time("t"), rows("diagonal"), rows("dropped")
    r = d.define("r", select(diagonal, t, time("r")))
    label = d.define("label", select(dropped, Null(), LABEL))
    conditions = (("label", label),)
    omega_, kappa_ = Constant("omega"), Constant("kappa")
    now = Evaluate("u", "u", (z(t), t, t), conditions)
    blind = Evaluate("u", "u", (z(t), t, t), (("label", Null()),))
    mixed = add(
        add(mul(omega_, velocity(t)), mul(kappa_, now)), mul(sub(sub(ONE, omega_), kappa_), blind)
    )
    outside = either(Apply("lt", (t, Constant("lo"))), Apply("gt", (t, Constant("hi"))))
    guided = d.define("guided", select(either(dropped, outside), velocity(t), mixed))
    prediction = Evaluate("u", "u", (z(t), t, r), conditions)
    change = Evaluate("u", "u", (z(t), t, r), conditions, ((guided, ONE, None),))
    target = Stop(sub(guided, mul(sub(t, r), change)))
    loss = adaptive(error(prediction, target), 1, 0.01)
    return d.objective(
        Term("target", "target", prediction, target, loss),
        maps={"map": average_map("u", conditions)},
        moving=Moving("t", guided),
        title="Mean Flows for One-step Generative Modeling",
        arxiv="2505.13447",
    )


def alphaflow(omega: float = 0.5, kappa: float = 0.25) -> Objective:
    d = Draft("alphaflow")
    given = {"omega": omega, "kappa": kappa, "lo": 0, "hi": 0.75}
    d.constants = {k: Fraction(repr(v)) for k, v in given.items()}
    t, diagonal, dropped = time("t"), rows("diagonal"), rows("dropped")
    lo, hi = Constant("lo"), Constant("hi")
    d.draw("diagonal", law("share", 0.25))
    base = law("logit_normal", -0.4, 1)
    d.draw("t r", law("sorted", base))
    d.draw("t", base, on=diagonal)
    inside = Apply("and", (Apply("lt", (lo, t)), Apply("lt", (t, hi))))
    d.draw("dropped", law("bernoulli", 0.1), on=inside)
    d.network("u", "z t r", "label")
    r = d.define("r", select(diagonal, t, time("r")))
    half = mul(number(25), sub(Training("progress"), number(0.5)))
    alpha = d.define(
        "alpha",
        Apply("snap", (sub(ONE, Apply("sigmoid", (half,))), number(0.005))),
    )
    s = d.define("s", sub(t, mul(alpha, sub(t, r))))
    label = d.define("label", select(dropped, Null(), LABEL))
    conditions = (("label", label),)
    now = Evaluate("u", "u", (z(t), t, t), conditions)
    blind = Evaluate("u", "u", (z(t), t, t), (("label", Null()),))
    omega_, kappa_ = Constant("omega"), Constant("kappa")
    mixed = add(
        add(mul(omega_, velocity(t)), mul(kappa_, now)), mul(sub(sub(ONE, omega_), kappa_), blind)
    )
    outside = either(Apply("le", (t, lo)), Apply("ge", (t, hi)))
    guided = d.define("guided", select(outside, velocity(t), mixed))
    change = Evaluate("u", "u", (z(t), t, r), conditions, ((guided, ONE, None),))
    further = Evaluate("u", "u", (sub(z(t), mul(sub(t, s), guided)), s, r), conditions)
    discrete = add(mul(alpha, guided), mul(sub(ONE, alpha), further))
    at_end = Apply("eq", (alpha, ZERO))
    goal = d.define(
        "goal",
        select(
            diagonal,
            guided,
            select(
                at_end,
                sub(guided, mul(sub(t, r), change)),
                Apply("clip", (discrete, number(-4), number(4))),
            ),
        ),
    )
    prediction = Evaluate("u", "u", (z(t), t, r), conditions)
    target = Stop(goal)
    weighted = adaptive(mse(prediction, target), 1, 0.001)
    loss = select(either(diagonal, at_end), weighted, mul(alpha, weighted))
    return d.objective(
        Term("target", "target", prediction, target, loss),
        maps={"map": average_map("u", conditions)},
        moving=Moving("t", guided),
    )


def tvm() -> Objective:
    d = Draft("tvm")
    d.constants = {"w": Fraction(2)}
    d.draw("dropped", law("bernoulli", 0.1))
    d.draw("gap", law("logit_normal", -0.8, 1), kind=Kind.SCALAR)
    gap, s, q, dropped = Draw("gap", Kind.SCALAR, Level.ROW), time("s"), time("q"), rows("dropped")
    d.draw("s", law("truncated", law("logit_normal", -0.4, 1), 0, sub(ONE, gap)))
    d.draw("q", law("logit_normal", -0.4, 1))
    d.network("F", "z t s", "label", "w")
    d.networks["slow"] = Network(
        "slow", d.networks["F"].arguments, ("label", "w"), (("slow", Kind.STATE),),
        average_of="F", decay=number(0.99),
    )  # fmt: skip
    t = d.define("t", add(s, gap))
    label = d.define("label", select(dropped, Null(), LABEL))
    w = d.define("w", select(dropped, ONE, Constant("w")))
    seen: tuple[tuple[str, Expr], ...] = (("label", label), ("w", w))
    blind: tuple[tuple[str, Expr], ...] = (("label", Null()), ("w", ONE))
    network = Evaluate("F", "F", (z(t), t, s), seen)
    change = Evaluate("F", "F", (z(t), t, s), seen, ((None, None, ONE),))
    landed = add(z(t), mul(mul(sub(s, t), w), network))
    prediction = add(mul(w, network), mul(mul(sub(s, t), w), change))
    target = Stop(mul(w, Evaluate("slow", "slow", (landed, s, s), seen)))
    anchor = mul(w, Evaluate("F", "F", (z(q), q, q), seen))
    free = Stop(Evaluate("slow", "slow", (z(q), q, q), blind))
    aim = add(mul(w, velocity(q)), mul(sub(ONE, w), free))
    square = Apply("pow", (w, number(2)))
    state, start, end = Formal("z", Kind.STATE), Formal("t", Kind.TIME), Formal("s", Kind.TIME)
    body = add(state, mul(mul(sub(end, start), w), Evaluate("F", "F", (state, start, end), seen)))
    return d.objective(
        Term("target", "target", prediction, target, div(mse(prediction, target), square),
             rows=Apply("gt", (t, s))),
        Term("anchor", "anchor", anchor, aim, div(mse(anchor, aim), square)),
        maps={"map": FlowMap("map", "z", state, start, end, body)},
        moving=Moving("s", None),
    )  # fmt: skip


ALL = {
    "flow_matching": flow_matching,
    "meanflow": meanflow,
    "meanflow_guided": lambda: meanflow(0.2, 0.92, 0, 0.8),
    "alphaflow": alphaflow,
    "tvm": tvm,
}


def imf() -> Objective:
    """Two heads, scalar conditions, the guidance scale an input, `stop` on the derivative only."""
    d = Draft("imf")
    d.draw("diagonal", law("share", 0.5))
    d.draw("dropped", law("share", 0.2), on=rows("diagonal"))
    d.draw("t r", law("sorted", law("logit_normal", -0.4, 1)))
    d.draw("omega", law("power_law", 1, 8, 1), kind=Kind.SCALAR)
    d.draw("lo", law("uniform", 0, 0.5), kind=Kind.SCALAR)
    d.network("net", "z h", "label", "omega", "lo", heads="u v")
    t, diagonal, dropped = time("t"), rows("diagonal"), rows("dropped")
    r = d.define("r", select(diagonal, t, time("r")))
    label = d.define("label", select(dropped, Null(), LABEL))
    omega = Draw("omega", Kind.SCALAR, Level.ROW)
    lo = d.define("lo", select(diagonal, ZERO, Draw("lo", Kind.SCALAR, Level.ROW)))
    k = d.define("k", select(Apply("lt", (t, lo)), ONE, omega))

    def seen(**changed: Expr) -> tuple[tuple[str, Expr], ...]:
        plain: dict[str, Expr] = {"label": label, "omega": omega, "lo": lo}
        return tuple(sorted({**plain, **changed}.items()))

    def v(**changed: Expr) -> Evaluate:
        return Evaluate("net", "v", (z(t), ZERO), seen(**changed))

    own = d.define("own", v(omega=k, lo=ZERO))
    gain = sub(own, v(omega=ONE, lo=ZERO, label=Null()))
    guided = d.define(
        "guided",
        select(
            dropped,
            velocity(t),
            add(velocity(t), mul(sub(ONE, div(ONE, k)), gain)),
        ),
    )
    gap = sub(t, r)
    u = Evaluate("net", "u", (z(t), gap), seen())
    change = Evaluate("net", "u", (z(t), gap), seen(), ((own, ONE),))
    average = add(u, mul(gap, Stop(change)))
    instant = Evaluate("net", "v", (z(t), gap), seen())
    aim = Stop(guided)
    state, start, end = Formal("z", Kind.STATE), Formal("t", Kind.TIME), Formal("r", Kind.TIME)
    step = sub(start, end)
    body = sub(state, mul(step, Evaluate("net", "u", (state, step), seen())))
    return d.objective(
        Term("average", "target", average, aim, adaptive(error(average, aim), 1, 0.01)),
        Term("instant", "target", instant, aim, adaptive(error(instant, aim), 1, 0.01)),
        maps={"map": FlowMap("map", "z", state, start, end, body)},
        moving=Moving("t", own),
    )


def distillation() -> Objective:
    """Data-free distillation: a frozen teacher, an auxiliary network, players, a batch mean."""
    d = Draft("distillation")
    d.constants = {"gamma": Fraction(2)}
    d.draw("corrected", law("share", 0.25))
    d.draw("s", law("uniform", 0, 1))
    d.draw("r", law("logit_normal", 0.8, 1))
    d.draw("noise'", law("normal", 0, 1), kind=Kind.STATE)
    d.network("F", "z s", "label")
    d.network("teacher", "z t", "label", frozen=True)
    d.network("fake", "z t", "label")
    s, r, corrected = time("s"), time("r"), rows("corrected")
    seen: tuple[tuple[str, Expr], ...] = (("label", LABEL),)
    fresh = Draw("noise'", Kind.STATE, Level.ROW)

    def jump(at: Expr) -> Expr:
        return add(NOISE, mul(sub(at, ONE), Evaluate("F", "F", (NOISE, at), seen)))

    def guided(x: Expr, at: Expr) -> Expr:
        known = Evaluate("teacher", "teacher", (x, at), seen)
        blind = Evaluate("teacher", "teacher", (x, at), (("label", Null()),))
        gamma = Constant("gamma")
        return add(mul(gamma, known), mul(sub(ONE, gamma), blind))

    x = d.define("x", PathState("z", r, jump(ZERO), fresh))
    rate = PathVelocity("z", r, jump(ZERO), fresh)
    own = Evaluate("F", "F", (NOISE, s), seen)
    moving = add(own, mul(sub(s, ONE), Evaluate("F", "F", (NOISE, s), seen, ((None, ONE),))))
    drift = d.define("drift", sub(moving, guided(jump(s), s)))
    excess = d.define("excess", sub(Evaluate("fake", "fake", (x, r), seen), guided(x, r)))
    sizes = [Apply("batch_mean", (Apply("norm", (e,)),)) for e in (drift, excess)]
    balance = d.define("balance", div(*sizes))
    target = Stop(sub(own, drift))
    end = Evaluate("F", "F", (NOISE, ZERO), seen)
    aim = Stop(sub(end, mul(balance, excess)))
    critic = Evaluate("fake", "fake", (x, r), seen)
    no = Apply("not", (corrected,))
    return d.objective(
        Term("target", "target", own, target, adaptive(mse(own, target), 1, 1e-4), rows=no),
        Term("correction", "correction", end, aim, mse(end, aim), rows=corrected),
        Term("critic", "critic", critic, rate, error(critic, rate)),
        players=(
            Player("student", ("F",), (("target", 1), ("correction", 2))),
            Player("critic", ("fake",), (("critic", 1),)),
        ),
    )


def curvature() -> Objective:
    """A second derivative, a learned weight, a curriculum that decides, rows outside rows."""
    d = Draft("curvature")
    d.draw("first", law("share", 0.5))
    d.draw("second", law("share", 0.5), on=Apply("not", (rows("first"),)))
    d.draw("whole", law("batch_bernoulli", 0.5))
    d.draw("τ s'", law("sorted", law("uniform", 0, 1), law("beta", 2, 3)))
    d.network("u", "z t r")
    d.network("phi", "t", heads="phi!")
    t, s = time("τ"), time("s'")
    whole = Draw("whole", Kind.TRUTH, Level.STEP)
    point = (z(t), t, s)
    rate = select(whole, ONE, number(0.5))
    twice = Evaluate(
        "u", "u", point, (), ((velocity(t), ONE, None), (None, None, rate))
    )  # fmt: skip
    late = Apply("gt", (Training("progress"), number(0.5)))
    weight = select(late, number(2), Apply("exp", (mul(number(-3), Training("progress")),)))
    extra = select(late, twice, Evaluate("u", "u", (z(s), s, s)))
    target = Stop(add(velocity(t), select(rows("first"), extra, mul(sub(t, t), twice))))
    prediction = Evaluate("u", "u", point)
    worth = Evaluate("phi", "phi", (t,))
    scored = add(mul(weight, div(error(prediction, target), Apply("exp", (worth,)))), worth)
    loss = select(rows("second"), scored, mul(number(0.5), scored))
    return d.objective(Term("target", "target", prediction, target, loss))


ALL |= {"imf": imf, "distillation": distillation, "curvature": curvature}
