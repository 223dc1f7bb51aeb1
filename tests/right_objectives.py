"""Right objectives at random: path, map, the time that moves, tangent, anchor, rows, loss.

The target is left to the derivation (`target derived`), so each of them is right by construction,
and a checker that objects raises a false alarm.
"""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from flowdsl.pipeline import load_text
from flowdsl.proof.derive import derive


@dataclass(frozen=True)
class MapForm:
    """A parameterisation: the map, its network line, and the velocity by its own diagonal.

    In `diagonal` X is a state and Q its time; `plain` says that this is the network itself.
    """

    name: str
    network: str
    body: str
    diagonal: str
    constants: str = ""
    plain: bool = False


MAPS = (
    MapForm("average velocity", "u(z, t, r{bar})", "z - (t - r) * u(z, t, r)", "u(X, Q, Q)",
            plain=True),
    MapForm("displacement", "u(z, t, r{bar})", "z + (r - t) * u(z, t, r)", "u(X, Q, Q)",
            plain=True),
    MapForm("end first", "u(z, r, t{bar})", "z - (t - r) * u(z, r, t)", "u(X, Q, Q)", plain=True),
    MapForm("scaled", "F(z, t, r{bar})", "z + (r - t) * w * F(z, t, r)", "w * F(X, Q, Q)",
            "w = 2.5"),
    MapForm("squares", "F(z, t, r{bar})", "z + (r^2 - t^2) * F(z, t, r)", "2 * Q * F(X, Q, Q)"),
    MapForm("trigonometric", "F(z, t, r{bar})",
            "cos(t - r) * z - sin(t - r) * sd * F(z / sd, t, r)", "sd * F(X / sd, Q, Q)",
            "sd = 0.5"),
    MapForm("exponential", "D(z, t, r{bar})", "exp(r - t) * z + (1 - exp(r - t)) * D(z, t, r)",
            "X - D(X, Q, Q)"),
    MapForm("fraction", "D(z, t, r{bar})", "z + (t - r) * (D(z, t, r) - z) / (1 + t)",
            "(X - D(X, Q, Q)) / (1 + Q)"),
)  # fmt: skip

UNIT = ("uniform(0.02, 0.98)", "truncated(logit_normal(-0.4, 1.0), 0.01, 0.99)",
        "truncated(normal(0.5, 0.3), 0.05, 0.95)")  # fmt: skip
QUARTER = ("uniform(0.02, 1.55)", "truncated(normal(0.8, 0.5), 0.05, 1.5)")
LONG = ("uniform(0.02, 20)", "truncated(log_normal(0.0, 1.2), 0.01, 30)")

#: Paths, whether the data are at their later end, and laws of times from one end to the other.
PATHS = (
    ("(1 - t) * data + t * noise", False, UNIT),
    ("t * data + (1 - t) * noise", True, UNIT),
    ("cos(t) * data + sin(t) * noise", False, QUARTER),
    ("cos(t) * data + 0.5 * sin(t) * noise", False, QUARTER),
    ("sin(t) * data + cos(t) * noise", True, QUARTER),
    ("sqrt(1 - t^2) * data + t * noise", False, UNIT),
    ("data + t * noise", False, LONG),
    ("(1 - t)^2 * data + t * noise", False, UNIT),
)
LOSSES = ("mse", "error", "mse / (1 + t)", "2 * error", "adaptive(mse, power = 1, offset = 1e-2)")


@st.composite
def right_specs(draw: st.DrawFn) -> str:
    """The text of an objective that is right."""
    form: MapForm = draw(st.sampled_from(MAPS))
    # a map of cosines has a pole a quarter of a turn away
    paths = [p for p in PATHS if form.name != "trigonometric" or p[2] is not LONG]
    path, data_last, laws = draw(st.sampled_from(paths))
    start_moves = draw(st.booleans())
    labelled = draw(st.booleans())
    diagonal = draw(st.booleans())
    own = start_moves and form.plain and draw(st.booleans())
    # only the start of the map sees the data's velocity: where the end moves, an anchor must, and
    # where the tangent is the network's own, too
    anchored = own or not start_moves or draw(st.booleans())
    first, second = ("r, t" if data_last else "t, r").split(", ")
    law = draw(st.sampled_from(laws))
    bar = " | label" if labelled else ""
    lines = ['objective random "a right objective" arXiv:1']
    if form.constants:
        lines.append(f"constants {form.constants}")
    lines.append(f"path z(t) = {path}")
    rows = []
    if labelled:
        rows.append("dropped ~ bernoulli(0.2)")
    if diagonal:
        rows.append("diagonal ~ share(0.5)")
    if rows:
        lines.append(f"rows {'; '.join(rows)}")
    times = [f"{first}, {second} ~ sorted({law})"]
    if diagonal:
        times.append("r = t on diagonal")
    if anchored:
        times.append(f"q ~ {law}")
    lines.append(f"times {'; '.join(times)}")
    if labelled:
        lines.append("conditions label = null on dropped")
    lines.append(f"network {form.network.format(bar=bar)}")
    lines.append(f"map z(t) -> z(r) = {form.body}")
    if own:
        lines.append(f"let own = {form.diagonal.replace('X', 'z').replace('Q', 't')}")
        lines.append("differentiate t along own")
    elif start_moves:
        lines.append(draw(st.sampled_from(["differentiate t", "differentiate t along velocity"])))
    else:
        lines.append("differentiate r")
    lines.append("target derived")
    if anchored:
        shown = form.diagonal.replace("X", "z(q)").replace("Q", "q")
        stop = draw(st.sampled_from(["velocity(z(q))", "stop(velocity(z(q)))"]))
        lines.append(f"anchor match {shown} to {stop}")
    lines.append(f"loss target: {draw(st.sampled_from(LOSSES))}")
    if anchored:
        lines.append("loss anchor: mse")
    return "\n".join(lines) + "\n"


def written_out(text: str) -> str:
    """The spec with its derived target in full, as `flowdsl derive` prints it."""
    found = derive(load_text(text))
    line = f"target match {found.prediction_text} to {found.target_text}"
    return text.replace("target derived", line)
