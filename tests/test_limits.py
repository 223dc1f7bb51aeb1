"""Hostile specs end: in a verdict, or in *undecided* with its reason; never in a hang or a
traceback."""

from __future__ import annotations

import resource
import time
from typing import Any

import pytest

from flowdsl.checks import CHECKS, check
from flowdsl.diagnostics import DiagnosticError
from flowdsl.pipeline import load_text
from flowdsl.truth import setting
from flowdsl.truth.cases import cases

LIMIT = 0.5  # seconds for each check

HEAD = """objective hostile "hostile" arXiv:0000.00000
constants     a = 1; b = 2; c = 3; k = 0.3
path          z(t) = {path}
times         t, r ~ sorted(uniform(0.1, 0.9))
network       {network}
map           z(t) -> z(r) = {map}
differentiate t along velocity
target        match {match}
loss          {loss}
"""
LINEAR = "(1 - t) * data + t * noise"
AVERAGE = "z - (t - r) * u(z, t, r)"
MEANFLOW = "u(z, t, r) to stop(velocity - (t - r) * d/dt[u(z, t, r)])"


def spec(**changes: str) -> str:
    usual = {"path": LINEAR, "network": "u(z, t, r)", "map": AVERAGE, "match": MEANFLOW,
             "loss": "error"}  # fmt: skip
    return HEAD.format(**{**usual, **changes})


def nested(function: str, depth: int, inner: str) -> str:
    return f"{function}(1 + " * depth + inner + ")" * depth


def powers(names: str, count: int) -> str:
    return " + ".join(f"({names} + {n})^12 / (t + {n})^11" for n in range(1, count))


NETWORKS = "; ".join(f"u{n}(z, t, r)" for n in range(30)) + "; u(z, t, r)"
HOSTILE = {
    "sums of powers": spec(
        match=f"u(z, t, r) to stop(velocity * ({powers('a + b * t + c * r', 9)}))"
    ),
    "powers of powers": spec(match="u(z, t, r) to velocity * (((a + t)^12 + b)^12 + r)^12"),
    "a path of powers": spec(path="(1 - t^12) * data + (t^11 + t^7 / (1 + t^12)) * noise"),
    "nested functions": spec(
        match=f"u(z, t, r) to stop({nested('sin', 6, 't * r')} * velocity)",
    ),
    "nested roots in the map": spec(
        map=f"z - (t - r) * {nested('sqrt', 8, 't^2 + r')} * u(z, t, r)",
        match="u(z, t, r) to stop(velocity - (t - r) * d/dt[u(z, t, r)])",
    ),
    "exponentials of exponentials": spec(map="z - (exp(exp(t)) - exp(exp(r))) * u(z, t, r)"),
    "thirty networks": spec(
        network=NETWORKS,
        match="u(z, t, r) to stop(velocity - (t - r) * d/dt[u(z, t, r)]"
        + "".join(f" + u{n}(z, t, r)" for n in range(30)) + ")",
    ),
    "networks within networks": spec(
        match="u(z, t, r) to " + "u(z + " * 14 + "z" + ", t, r)" * 14,
    ),
    "a derivative of a derivative": spec(
        match="u(z, t, r) to stop(velocity - (t - r) * d/dt[d/dt[d/dt[u(z, t, r)]]])"
    ),
    "many kinds of rows": spec(
        match="u(z, t, r) to velocity",
    ).replace("times  ", "rows          " + "; ".join(f"p{n} ~ bernoulli(0.5)" for n in range(9))
              + "\nlet           q = 1\n"
              + "\n".join(f"              q = {n + 2}  on p{n}" for n in range(9))
              + "\ntimes  ", 1).replace("to velocity", "to q * velocity"),
    "a loss of powers": spec(loss="(error + a)^12 / (error + b)^12 + (error + t)^12 * error^11"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_spec_ends(name: str) -> None:
    try:
        objective = load_text(HOSTILE[name])
    except DiagnosticError:
        return
    begin = time.thread_time()
    found = check(objective, time_limit=LIMIT)
    spent = time.thread_time() - begin
    assert spent < LIMIT * len(CHECKS) + 2
    for verdict in found.verdicts:
        assert verdict.message
        if verdict.status == "undecided":
            assert "Error" not in verdict.message
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2_000_000  # kilobytes


def test_the_limit_is_named() -> None:
    found = check(load_text(HOSTILE["nested roots in the map"]), time_limit=0.0)
    reasons = {v.message for v in found.verdicts if v.status == "undecided"}
    assert "no answer within 0 s" in reasons


def test_too_many_kinds_of_rows_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []

    def count(*args: Any) -> Any:
        counted.append(args)
        return cases(*args)

    monkeypatch.setattr(setting, "cases", count)
    found = check(load_text(HOSTILE["many kinds of rows"]))
    assert len(counted) == 1
    reasons = [v.message for v in found.verdicts if v.status == "undecided"]
    assert len(reasons) > 1
    assert set(reasons) == {"more than 128 kinds of rows"}
