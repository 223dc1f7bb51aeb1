"""The certificate of every shipped objective, and how far its loss is from an independent one.

    python benchmarks/judge.py                # all that docs/measured.json has no word on
    python benchmarks/judge.py meanflow tvm   # some, anew

Writes two entries beside the figures of `benchmarks/measure.py`, which `flowdsl methods` shows:
what the mean gradient of each term is on exact flows (`flowdsl check --certify`), and the largest
difference from the plain losses of `tests/reference` in float64, of the value, relative to it, and
of the gradients, relative to the largest entry of any of them. About ten minutes of one core.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import flowdsl  # noqa: E402
from flowdsl.certify import certify  # noqa: E402
from flowdsl.checks.certificate import TermCertificate  # noqa: E402
from flowdsl.cli.measured import read, write  # noqa: E402
from flowdsl.pipeline import compiled, load  # noqa: E402
from tests.compiler_support import batch, networks, outcome  # noqa: E402
from tests.reference.catalogue import REFERENCES  # noqa: E402

FILE = ROOT / "docs" / "measured.json"
ROWS, SHAPE, STEPS = 24, (2, 3, 3), 100
WORDS = {"zero": "vanishes", "decays": "order", "nonzero": "does not vanish", "unclear": "unclear"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="shipped objectives; all without an entry")
    parser.add_argument("--file", type=Path, default=FILE, help="where the figures are")
    given = parser.parse_args()
    torch.set_num_threads(1)
    missing = [n for n, one in read(given.file).items() if one.reference is None]
    for name in given.names or missing:
        words = certificate(certify(flowdsl.load(name).typed, compiled, find=load).terms)
        error = difference(name)
        known = read(given.file)
        known[name] = replace(known[name], certificate=words, reference=float(f"{error:.1g}"))
        write(given.file, known)
        print(f"{name}: {words}; {error:.1g}", flush=True)


def certificate(terms: Sequence[TermCertificate]) -> str:
    """What the mean gradients do, one word for all terms or each with its own: `vanishes`."""
    words = {term.term: _word(term) for term in terms}
    if len(set(words.values())) == 1:
        return next(iter(words.values()))
    return ", ".join(f"{name} {word}" for name, word in words.items())


def _word(term: TermCertificate) -> str:
    if term.decay is not None and term.outcome == "decays":
        return f"falls like {term.decay.small}^{term.decay.order:.1f}"
    return WORDS.get(term.outcome, term.outcome)


def difference(name: str) -> float:
    """The largest of four moments of training: of the value, and of every gradient's entries."""
    objective = flowdsl.load(name)
    reference, _ = REFERENCES[name]
    loss = objective.compile(check=False)
    nets, (data, label) = networks(objective.typed, SHAPE), batch(ROWS, SHAPE)
    accepted = inspect.signature(reference).parameters
    constants = {k: float(v) for k, v in objective.typed.constants.items() if k in accepted}
    largest = 0.0
    for progress in (0.0, 0.45, 0.7, 1.0):
        step = round(STEPS * progress)
        given = constants | ({"step": step} if "step" in accepted else {})
        training = {"progress": progress, "step": step, "steps": STEPS}
        draws = loss.draw(data, generator=torch.Generator().manual_seed(11 + step), **training)
        value, terms = reference(nets, data, draws, label, progress, **given)
        wanted, at = outcome(terms, value, nets), value.item()
        value, terms = loss(nets, data, draws=draws, label=label, **training)
        found = outcome(terms, value, nets)
        scale = max(float(g.abs().max()) for g in wanted.gradients.values())
        largest = max(largest, abs(value.item() - at) / abs(at), *(
            float((g - wanted.gradients[k]).abs().max()) / scale
            for k, g in found.gradients.items()
        ))  # fmt: skip
    return largest


if __name__ == "__main__":
    main()
