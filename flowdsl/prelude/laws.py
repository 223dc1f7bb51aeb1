"""The probability laws of the standard library, one row each: parameters, support, and the torch
text that draws.

Plain data and strings; nothing here imports torch. A law's text is built from the texts of its
parameters; in it, `kind` holds the generator, type and device of what is drawn. A law with a
quantile function can be truncated exactly, with one uniform number and no rejection. To add a law,
add a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Literal

from flowdsl.prelude.text import (
    affine,
    call,
    group,
    lerp,
    literal,
    minus,
    over,
    plus,
    power,
    real,
    tensor,
    times,
)

Interval = tuple[float, float]
Texts = dict[str, str]
Gives = Literal["number", "pair", "values", "rows", "flag"]


@dataclass(frozen=True)
class Range:
    """Which numbers a parameter may be, in words and as a test."""

    text: str
    holds: Callable[[Fraction], bool]


NOT_NEGATIVE = Range("0 or more", lambda x: x >= 0)
POSITIVE = Range("positive", lambda x: x > 0)
PROBABILITY = Range("between 0 and 1", lambda x: 0 <= x <= 1)


def _count(least: int) -> Range:
    return Range(
        f"a whole number, at least {least}", lambda x: x.denominator == 1 and x.numerator >= least
    )


@dataclass(frozen=True)
class Parameter:
    """A parameter of a law: a number, a further law, or a list of values; `default` None means
    required. `range` holds for numbers that are known when a spec is read.
    """

    name: str
    kind: Literal["number", "law", "values"] = "number"
    default: Fraction | None = None
    optional: bool = False
    range: Range | None = None


@dataclass(frozen=True)
class Law:
    """One law.

    `gives` says what comes out: `number` one number per sample (or per entry of a state), `pair`
    two per sample, the larger first, `values` a list for `choice`, `rows` true or false per sample,
    `flag` one truth value per step. `support(*intervals)` is the closed interval of the values,
    given those of the parameters. `cdf(*numbers, x)` is the distribution function in plain floats:
    with it one can say how many rows a condition will keep.
    """

    name: str
    parameters: tuple[Parameter, ...]
    gives: Gives
    support: Callable[..., Interval]
    meaning: str
    draw: Callable[[Texts, str], str] | None = None  # texts of the parameters, shape
    quantile: Callable[[Texts, str], str] | None = None  # texts of the parameters, a uniform number
    distribution: Callable[[Texts, str], str] | None = None  # texts of the parameters, a value
    cdf: Callable[..., float] | None = field(default=None, compare=False)

    def source(self, arguments: list[str], shape: str) -> str:
        """The torch expression that draws with these arguments; `shape` is for example `batch`."""
        texts = self.texts(arguments)
        if self.draw is not None:
            return self.draw(texts, shape)
        if self.quantile is None:
            raise ValueError(f"the law {self.name} is drawn by its own rule")
        return self.quantile(texts, f"torch.rand({shape}, **kind)")

    def truncated(
        self, arguments: list[str], ends: list[str], bounds: list[str], shape: str
    ) -> str:
        """The torch expression that draws the same law between two bounds.

        `ends` are the values of the distribution function at the bounds (see `distribution_text`).
        """
        if self.quantile is None:
            raise ValueError(f"the law {self.name} has no quantile function")
        u = lerp(ends[0], ends[1], f"torch.rand({shape}, **kind)")
        drawn = self.quantile(self.texts(arguments), u)
        numbers = [literal(b) for b in bounds]
        if all(n is not None for n in numbers):
            return f"{group(drawn)}.clamp({bounds[0]}, {bounds[1]})"
        if numbers[0] is not None and ends[0] in ("0", "0.0"):
            return f"torch.minimum({drawn}, {bounds[1]})"
        return f"{group(drawn)}.clamp({tensor(bounds[0])}, {tensor(bounds[1])})"

    def distribution_text(self, arguments: list[str], x: str) -> str:
        """The distribution function at `x`, a number where all its arguments are numbers."""
        numbers = [literal(a) for a in [*arguments, x]]
        if self.cdf is not None and all(n is not None for n in numbers):
            return repr(self.cdf(*(float(n) for n in numbers if n is not None)))
        assert self.distribution is not None
        return self.distribution(self.texts(arguments), x)

    def texts(self, arguments: list[str]) -> Texts:
        return dict(zip((p.name for p in self.parameters), arguments, strict=True))


def _phi(x: float) -> float:
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


def _normal_cdf(mean: float, std: float, x: float) -> float:
    return _phi((x - mean) / std) if std > 0 else float(x >= mean)


def _logit_normal_cdf(mean: float, std: float, x: float) -> float:
    if x <= 0 or x >= 1:
        return float(x >= 1)
    return _normal_cdf(mean, std, math.log(x / (1 - x)))


def _log_normal_cdf(mean: float, std: float, x: float) -> float:
    return _normal_cdf(mean, std, math.log(x)) if x > 0 else 0.0


def _uniform_cdf(lo: float, hi: float, x: float) -> float:
    return min(1.0, max(0.0, (x - lo) / (hi - lo))) if hi > lo else float(x >= hi)


def _power_law_cdf(lo: float, hi: float, exponent: float, x: float) -> float:
    x = min(hi, max(lo, x))
    if exponent == 1:
        return math.log(x / lo) / math.log(hi / lo)
    k = 1 - exponent
    return float((x**k - lo**k) / (hi**k - lo**k))


def _power_law(p: Texts, u: str) -> str:
    """Log-uniform at exponent 1; else the (1 - exponent)-th power is uniform."""
    lo, hi, exponent = p["lo"], p["hi"], literal(p["exponent"])
    if exponent == 1:
        return times(lo, power(over(hi, lo), u))
    k = minus("1", p["exponent"])
    return power(lerp(power(lo, k), power(hi, k), u), over("1", k))


def _power_law_distribution(p: Texts, x: str) -> str:
    lo, hi, exponent = p["lo"], p["hi"], literal(p["exponent"])
    if exponent == 1:
        return over(call("torch.log", over(tensor(x), lo)), call("torch.log", tensor(over(hi, lo))))
    k = minus("1", p["exponent"])
    low, high = power(lo, k), power(hi, k)
    return over(minus(power(x, k), low), minus(high, low))


def shifted_text(x: str, shift: str) -> str:
    """Times in [0, 1] moved towards 1: shift * x / (1 + (shift - 1) * x)."""
    if literal(shift) == 1:
        return x
    return f"shifted({x}, {shift})"


def _shift(x: float, shift: float) -> float:
    return shift * x / (1 + (shift - 1) * x)


def _karras(p: Texts, count: str) -> str:
    root = over("1", p["rho"])
    steps = over(f"torch.arange({count}, {real})", minus(count, "1"))
    return power(lerp(power(p["hi"], root), power(p["lo"], root), steps), p["rho"])


def _hull(*intervals: Interval) -> Interval:
    return min(i[0] for i in intervals), max(i[1] for i in intervals)


def _ndtri(p: Texts, u: str) -> str:
    return affine(p["mean"], p["std"], f"torch.special.ndtri({u})")


def _ndtr(p: Texts, x: str) -> str:
    return f"torch.special.ndtr({over(minus(x, p['mean']), p['std'])})"


def _gauss(p: Texts, shape: str) -> str:
    return affine(p["mean"], p["std"], f"torch.randn({shape}, **kind)")


_MEAN_STD = (
    Parameter("mean", default=Fraction(0)),
    Parameter("std", default=Fraction(1), range=NOT_NEGATIVE),
)
_LO_HI = (Parameter("lo", default=Fraction(0)), Parameter("hi", default=Fraction(1)))
_INNER = Parameter("law", "law")
_SHARE = (Parameter("p", range=PROBABILITY),)
_SHIFT = Parameter("shift", range=POSITIVE)

_ROWS = [
    Law(
        "uniform", _LO_HI, "number", lambda lo, hi: (lo[0], hi[1]), "uniform between lo and hi",
        quantile=lambda p, u: lerp(p["lo"], p["hi"], u),
        distribution=lambda p, x: over(minus(x, p["lo"]), minus(p["hi"], p["lo"])) + ".clamp(0, 1)",
        cdf=_uniform_cdf,
    ),
    Law(
        "normal", _MEAN_STD, "number", lambda mean, std: (-math.inf, math.inf), "normal",
        _gauss, quantile=_ndtri, distribution=lambda p, x: _ndtr(p, tensor(x)), cdf=_normal_cdf,
    ),
    Law(
        "logit_normal", _MEAN_STD, "number", lambda mean, std: (0.0, 1.0),
        "the sigmoid of a normal",
        lambda p, shape: call("torch.sigmoid", _gauss(p, shape)),
        quantile=lambda p, u: call("torch.sigmoid", _ndtri(p, u)),
        distribution=lambda p, x: _ndtr(p, call("torch.logit", tensor(x))), cdf=_logit_normal_cdf,
    ),
    Law(
        "log_normal", _MEAN_STD, "number", lambda mean, std: (0.0, math.inf),
        "the exponential of a normal",
        lambda p, shape: call("torch.exp", _gauss(p, shape)),
        quantile=lambda p, u: call("torch.exp", _ndtri(p, u)),
        distribution=lambda p, x: _ndtr(p, call("torch.log", tensor(x))), cdf=_log_normal_cdf,
    ),
    Law(
        "beta", (Parameter("a", range=POSITIVE), Parameter("b", range=POSITIVE)), "number",
        lambda a, b: (0.0, 1.0),
        "beta, as a share of two gamma variables",
        lambda p, shape: f"beta({p['a']}, {p['b']}, ({shape},), kind)",
    ),
    Law(
        "power_law",
        (Parameter("lo", range=POSITIVE), Parameter("hi", range=POSITIVE), Parameter("exponent")),
        "number",
        lambda lo, hi, exponent: (lo[0], hi[1]),
        "density proportional to x^(-exponent) in [lo, hi]",
        quantile=_power_law, distribution=_power_law_distribution, cdf=_power_law_cdf,
    ),
    Law(
        "shifted", (_INNER, _SHIFT), "number",
        lambda law, shift: (_shift(law[0], shift[0]), _shift(law[1], shift[1])),
        "shift * x / (1 + (shift - 1) * x) of a draw x in [0, 1]",
        lambda p, shape: shifted_text(p["law"], p["shift"]),
    ),
    Law(
        "truncated", (_INNER, Parameter("lo"), Parameter("hi")), "number",
        lambda law, lo, hi: (max(law[0], lo[0]), min(law[1], hi[1])),
        "the law, given that the value lies between lo and hi",
    ),
    Law(
        "sorted", (_INNER, Parameter("second", "law", optional=True)), "pair", _hull,
        "two independent draws, the larger first",
    ),
    Law(
        "choice", (Parameter("values", "values"),), "number", _hull,
        "one of the values, each as likely as the others",
    ),
    Law(
        "grid",
        (Parameter("n", range=_count(1)), replace(_SHIFT, default=Fraction(1))),
        "values",
        lambda n, shift: (_shift(1 / n[1], shift[0]), 1.0),
        "1/n, 2/n, …, 1, each x moved to shift * x / (1 + (shift - 1) * x)",
        lambda p, count: shifted_text(over(f"torch.arange(1, {plus(count, '1')}, {real})", count),
                                      p["shift"]),
    ),
    Law(
        "karras",
        (
            Parameter("n", range=_count(2)), Parameter("lo", range=NOT_NEGATIVE),
            Parameter("hi", range=POSITIVE), Parameter("rho", default=Fraction(7), range=POSITIVE),
        ),
        "values", lambda n, lo, hi, rho: (lo[0], hi[1]),
        "n noise levels from hi down to lo, even in their rho-th root (Karras 2022, eq. 5)",
        _karras,
    ),
    Law(
        "share", _SHARE, "rows", lambda p: (0.0, 1.0),
        "exactly floor(p * rows) rows, at random places",
    ),
    Law(
        "bernoulli", _SHARE, "rows", lambda p: (0.0, 1.0), "each row by itself, with probability p",
        lambda p, shape: f"torch.rand({shape}, **kind) < {p['p']}",
    ),
    Law(
        "batch_bernoulli", _SHARE, "flag", lambda p: (0.0, 1.0),
        "the whole batch, with probability p",
        lambda p, shape: f"torch.rand((), **kind) < {p['p']}",
    ),
]  # fmt: skip

LAWS: dict[str, Law] = {row.name: row for row in _ROWS}

#: Functions that the texts of some laws call; the emitter writes the ones in use above `draw`.
LAW_HELPERS: dict[str, str] = {
    "shifted": '''def shifted(x, shift):
    """Times in [0, 1], moved towards 1."""
    return shift * x / (1 + (shift - 1) * x)
''',
    "beta": '''def beta(a, b, shape, kind):
    """Beta variables: the share of one gamma variable in the sum of two."""
    real = {"dtype": kind["dtype"], "device": kind["device"]}
    a, b = (torch.as_tensor(p, **real).expand(shape) for p in (a, b))
    x = torch._standard_gamma(a, generator=kind["generator"])
    return x / (x + torch._standard_gamma(b, generator=kind["generator"]))
''',
}
