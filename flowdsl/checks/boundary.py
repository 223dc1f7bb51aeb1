"""Does the map satisfy φ(x, t, t) = x for every network, and does its path end in the data?"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from flowdsl.calculus.errors import Undecided, Undefined
from flowdsl.calculus.numbers import far_end, linear, path_weights
from flowdsl.checks.check import Check, Example
from flowdsl.checks.report import Verdict
from flowdsl.diagnostics import Diagnostic
from flowdsl.proof.analysis import Analysis
from flowdsl.proof.show import times
from flowdsl.proof.wellformed import flaw
from flowdsl.spec.core import Draw, Expr, Formal, Kind, PathState, transform, walk
from flowdsl.spec.objective import FlowMap, Objective, Path
from flowdsl.truth.cases import Case
from flowdsl.truth.maps import MapNetwork, shape_of

NAME = "boundary"
INSIDE = (0.25, 0.5, 0.75)  #: times at which a path is looked at on its way
NEARLY = 0.02  #: weights of data and noise up to which an end counts as the other one alone
FADED = (
    0.2  #: data's weight beside the noise's, up to which a path without an end has noise at last
)


def _run(objective: Objective, analysis: Analysis) -> list[Verdict]:
    verdicts = [_path(objective, analysis, path) for path in objective.paths.values()]
    if not objective.maps:
        verdicts.append(Verdict(NAME, "not applicable", "no map: the network learns a velocity"))
    for flow_map in objective.maps.values():
        verdicts.append(_map(objective, analysis, flow_map))
    return verdicts


def _path(objective: Objective, analysis: Analysis, path: Path) -> Verdict:
    """The path must join the data and the noise, and must not stand still on the way."""
    begin = time.perf_counter()
    verdict = (
        _foreign(path)
        or _undefined(objective, path)
        or _standing(objective, path)
        or _ends(objective, analysis, path)
    )
    return replace(verdict, term=path.state, seconds=time.perf_counter() - begin)


def _foreign(path: Path) -> Verdict | None:
    """A path whose schedule reads a draw of the row, which no network is told."""
    for node in walk(path.body):
        if isinstance(node, Draw) and node.kind in (Kind.TIME, Kind.SCALAR):
            message = f"the path {path.state}({path.time}) reads `{node.name}`, a draw of the row"
            return _refuted(path, message, f"write its weights in {path.time} alone")
    return None


def _undefined(objective: Objective, path: Path) -> Verdict | None:
    """A path with a root of a negative number, or a division by zero, on the way between its
    ends."""
    for moment in INSIDE:
        for velocity in (False, True):
            try:
                path_weights(objective, path, moment, velocity)
            except Undefined as error:
                what = "the velocity of " if velocity else ""
                text = error.span.text if error.span is not None else ""
                cause = f"`{text}` has no value there" if text else error.reason
                message = f"{what}{path.state}({moment:g}) is no state: {cause}"
                return _refuted(path, message, "look at what stands under roots and fractions")
            except Undecided:
                return None
    return None


def _standing(objective: Objective, path: Path) -> Verdict | None:
    still = [moment for moment in INSIDE if close(_turn(objective, path, moment), 0)]
    if not still:
        return None
    message = f"{path.state}({still[0]:g}) and its velocity do not determine data and noise"
    return _refuted(path, message, "let the path move from data to noise")


def _ends(objective: Objective, analysis: Analysis, path: Path) -> Verdict:
    """At one end the data alone, with weight 1; at the other the noise alone, or nearly so."""
    ends: dict[float, tuple[float, float]] = {}
    with suppress(Undecided):
        end = far_end(objective, path)
        for moment in (0.0, 1.0 if end is None else end):
            ends[moment] = path_weights(objective, path, moment)
    if not ends:  # other draws than data and noise
        return Verdict(NAME, "note", _inner(objective, path))
    data = [m for m, (a, s) in ends.items() if abs(a - 1) < NEARLY and abs(s) < NEARLY]
    if not data:
        hint = "let the weight of the data be 1, and that of the noise 0, at one end"
        scaled = [(m, a) for m, (a, s) in ends.items() if close(s, 0) and not close(a, 0)]
        if scaled:
            moment, a = scaled[0]
            message = f"{path.state}({moment:g}) is {a:g} * data: what is generated is not the data"
            return _refuted(path, message, hint)
        return _refuted(path, f"the path {path.state} is nowhere equal to the data", hint)
    if not any(abs(a) < NEARLY * abs(s) for a, s in ends.values()):
        last = _last(analysis, path)
        if last is not None:
            with suppress(Undecided):
                a, s = path_weights(objective, path, last)
                if abs(a) > FADED * abs(s):
                    message = (f"at the last time, {last:g}, {path.state} is still {a:.3g} * data "
                               f"+ {s:.3g} * noise: samples start from noise alone")  # fmt: skip
                    return _refuted(path, message, "draw times up to where the noise prevails")
    return Verdict(NAME, "proved", f"{path.state}({data[0]:g}) is the data")


def _inner(objective: Objective, path: Path) -> str:
    """What a path with a noise of its own leads from and to: an inner path need not end in data."""
    fresh = {n.name for n in walk(path.body) if isinstance(n, Draw) and n.kind is Kind.STATE}
    names = ("noise", "data", *sorted(fresh))
    body = transform(path.body, lambda n: Formal(n.name, n.kind)
                     if isinstance(n, Draw) and n.kind is Kind.STATE else n)  # fmt: skip
    constants = {name: float(value) for name, value in objective.constants.items()}
    ends = {}
    with suppress(Undecided):
        for moment in (0.0, 1.0):
            weights = linear(body, {**constants, path.time: moment}, names)
            ends[moment] = {n: w for n, w in zip(names, weights, strict=True) if not close(w, 0)}
    start = next((m for m, made in ends.items() if made.keys() <= fresh and made), None)
    if start is None or len(ends) < 2:
        return f"the path {path.state} is nowhere equal to the data"
    return f"{path.state} leads from {_sum(ends[start])} to {_sum(ends[1.0 - start])}"


def _sum(made: dict[str, float]) -> str:
    """`noise - data` of its weights."""
    text = ""
    for name, weight in made.items():
        size = "" if close(abs(weight), 1) else f"{abs(weight):.3g} * "
        sign = ("-" if weight < 0 else "") if not text else (" - " if weight < 0 else " + ")
        text += f"{sign}{size}{name}"
    return text or "0"


def _refuted(path: Path, message: str, hint: str) -> Verdict:
    return Verdict(NAME, "refuted", message,
                   diagnostic=Diagnostic(NAME, message, path.span, hint=hint))  # fmt: skip


def _last(analysis: Analysis, path: Path) -> float | None:
    """The largest time at which the path is drawn; None where there is no largest or none is
    known."""
    latest: list[float] = []
    for term in analysis.objective.terms:
        for node in walk(term.loss):
            if isinstance(node, PathState) and node.path == path.state:
                form = analysis.domain.affine(node.time, {})
                latest.append(math.inf if form is None else analysis.domain.hull(form)[1])
    highest = max(latest, default=math.inf)
    return highest if math.isfinite(highest) else None


def _turn(objective: Objective, path: Path, moment: float) -> float:
    """α σ' - σ α': zero where state and velocity are not independent."""
    try:
        a, s = path_weights(objective, path, moment)
        da, ds = path_weights(objective, path, moment, velocity=True)
    except Undecided:
        return 1.0
    return a * ds - s * da


def close(x: float, y: float) -> bool:
    return abs(x - y) < 1e-9


def _map(objective: Objective, analysis: Analysis, flow_map: FlowMap) -> Verdict:
    begin = time.perf_counter()
    message, hint = flaw(objective, flow_map)
    if not message and unused(analysis, flow_map):
        message = "the network has no part in the map"
        hint = "multiply it by a factor that is not zero where the times differ"
    if message:
        seconds = time.perf_counter() - begin
        diagnostic = Diagnostic(NAME, message, flow_map.span, hint=hint)
        return Verdict(NAME, "refuted", message, flow_map.name, seconds=seconds,
                       diagnostic=diagnostic)  # fmt: skip
    try:
        wrong = deviation(analysis, flow_map)
    except Undecided as undecided:
        return Verdict(NAME, "undecided", undecided.reason, flow_map.name,
                       seconds=time.perf_counter() - begin)  # fmt: skip
    seconds = time.perf_counter() - begin
    start = flow_map.start if isinstance(flow_map.start, Formal) else flow_map.end
    moment = start.name if isinstance(start, Formal) else "0"
    state = flow_map.state.name
    law = f"{flow_map.name}({state}, {moment}, {moment}) = {state}"
    if not wrong:
        return Verdict(NAME, "proved", f"{law} for every network", flow_map.name, seconds=seconds)
    message = f"the map does not satisfy {law}"
    diagnostic = Diagnostic(
        NAME, message, flow_map.span, facts=(("left over", wrong),),
        hint="multiply the network by a factor that vanishes where the times are equal",
    )  # fmt: skip
    return Verdict(NAME, "refuted", message, flow_map.name, left_over=wrong, seconds=seconds,
                   diagnostic=diagnostic)  # fmt: skip


def deviation(analysis: Analysis, flow_map: FlowMap) -> str:
    """φ(z, t, t) - z as text; empty when it is zero for every network. Raises `Undecided`."""
    texts = []
    for on_rows in kinds(analysis):
        context = analysis.context()
        own = MapNetwork(context, shape_of(flow_map, on_rows))
        scalars = analysis.scalars
        moment = scalars.symbol("_0")
        fixed = next((e for e in (flow_map.start, flow_map.end) if not isinstance(e, Formal)), None)
        if fixed is not None:
            moment = own._reader(moment, moment, ()).scalar(fixed)
        named = tuple(
            (name, scalars.symbol("_1"))
            for name, value in own.shape.call.conditions
            if isinstance(value, Formal)
        )
        a, b = own.coefficients(moment, moment, named)
        state, call = flow_map.state.name, own.shape.call
        name = flow_map.start.name if isinstance(flow_map.start, Formal) else ""
        show = {"_0": name, "_1": named[0][0] if named else ""}
        parts = []
        if a != 1:
            parts.append(times(_text(analysis, a - scalars.one, show), state))
        if b:
            parts.append(times(_text(analysis, b, show), f"{call.head}({state}, {name}, {name})"))
        if parts:
            texts.append(" + ".join(parts))
    return texts[0] if texts else ""


def _text(analysis: Analysis, x: object, show: dict[str, str]) -> str:
    text = analysis.scalars.text(x)
    for old, new in show.items():
        text = text.replace(old, new)
    return text


def unused(analysis: Analysis, flow_map: FlowMap) -> bool:
    """Is the factor of the network zero, whatever the times?"""
    scalars = analysis.scalars
    for on_rows in kinds(analysis):
        try:
            own = MapNetwork(analysis.context(), shape_of(flow_map, on_rows))
            named = tuple(
                (name, scalars.symbol("_1"))
                for name, value in own.shape.call.conditions
                if isinstance(value, Formal)
            )
            # a fixed end is a number: two free times are enough
            if own.coefficients(scalars.symbol("_0"), scalars.symbol("_1"), named)[1]:
                return False
        except Undecided:
            return False
    return True


def kinds(analysis: Analysis) -> list[Callable[[Expr], Expr]]:
    """How to reduce an expression to each kind of row; as it stands when there are no terms."""
    found: list[Case] = []
    with suppress(Undecided):
        found = list(analysis.all_cases())
    if not found:

        def same(expr: Expr) -> Expr:
            return expr

        return [same]
    return [case.reduce for case in found]


CHECK = Check(
    NAME,
    1,
    "Does the map move nothing where its times are equal, and does the path end in the data?",
    """The map A z + B N is read off its line: A(t, t) must be 1 and B(t, t) must be 0, so that
every network, trained or not, satisfies φ(x, t, t) = x.

    map  z(t) -> z(r) = z - t * u(z, t, r)

is refuted: φ(z, t, t) - z = -t * u(z, t, t) is left over.""",
    _run,
    Example(
        good="map           z(t) -> z(r) = z - (t - r) * u(z, t, r)",
        bad="map           z(t) -> z(r) = z - t * u(z, t, r)",
        status="refuted",
    ),
)
