"""What becomes of every mutant of every spec: `python -m tests.mutation_table [SPEC …]`.

Prints every mutant that is accepted or left undecided, and a summary. With `--certify` the compiled
loss of each is measured too, and a proof that the measurement contradicts is shown. `--keep FOLDER`
writes each fate as it is known (a file of JSON lines per spec) and judges no mutant twice; `--page
FILE` writes the summary as a page of the documentation. Measuring all of them takes hours of one
core; `--jobs` runs several at once, `--limit` bounds the time for each spec.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from tests.mutation_fates import ACCEPTED, Fate, run
from tests.mutation_page import by_operator, commit, page, summary
from tests.mutations import Mutant, mutants, specs


def kept(path: Path) -> dict[str, Fate]:
    """The fates in a file, by the mutant's text."""
    if not path.exists():
        return {}
    fates = {}
    for line in path.read_text().splitlines():
        plain = json.loads(line)
        fate = Fate(**{**plain, "mutant": Mutant(**plain["mutant"])})
        fates[fate.mutant.text] = fate
    return fates


def judge_all(
    work: list[Mutant], *, certify: bool, jobs: int, limit: float, keep: Path | None
) -> Iterator[Fate]:
    """The fates of one spec's mutants, as far as the limit in seconds reaches.

    What was kept of a judgement by proof alone is judged again where a measurement is asked for.
    """
    known = {} if keep is None else kept(keep)
    if certify:
        known = {text: fate for text, fate in known.items() if not fate.proof_alone}
    began = time.monotonic()
    yield from (known[m.text] for m in work if m.text in known)
    rest = [m for m in work if m.text not in known]
    one, here = partial(run, certify=certify), commit()
    if keep is not None:
        keep.parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(jobs) as pool:
        batches = (rest[k : k + 2 * jobs] for k in range(0, len(rest), 2 * jobs))
        for batch in batches:
            if time.monotonic() - began > limit:
                return
            for found in pool.map(one, batch) if jobs > 1 else map(one, batch):
                fate = replace(found, commit=here)
                if keep is not None:
                    with keep.open("a") as file:
                        file.write(json.dumps(asdict(fate)) + "\n")
                yield fate


def told(fates: Iterable[Fate]) -> Iterator[str]:
    """The mutants that a reader should look at, in words."""
    everything = list(fates)
    for kind in ("crashed", "undecided", *ACCEPTED):
        for fate in (f for f in everything if f.kind == kind):
            yield f"{kind:9}  {fate.measured:12}  {fate.mutant.name}\n{'':11}{fate.reason}"
    for fate in (f for f in everything if f.measured == "disagrees"):
        yield f"DISAGREES  {fate.mutant.name}\n{'':11}{fate.reason}\n{'':11}{fate.detail}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("specs", nargs="*", default=specs())
    parser.add_argument("--certify", action="store_true", help="measure the compiled losses too")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", default="", help="only mutants whose name contains this")
    parser.add_argument("--keep", type=Path, help="the folder in which fates are kept")
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds for each spec")
    parser.add_argument("--page", type=Path, help="write the summary to this file")
    chosen = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    work = {spec: [m for m in mutants(spec) if chosen.only in m.name] for spec in chosen.specs}
    fates: list[Fate] = []
    for spec, own in sorted(work.items(), key=lambda item: len(item[1])):
        file = None if chosen.keep is None else chosen.keep / f"{spec}.jsonl"
        found = list(
            judge_all(own, certify=chosen.certify, jobs=chosen.jobs, limit=chosen.limit, keep=file)
        )
        for line in told(found):
            print(line, flush=True)
        if len(found) < len(own):
            print(f"{spec}: {len(own) - len(found)} mutants were left when its time was over")
        fates += found
    print("\n" + by_operator(fates))
    print("\n" + summary(fates))
    if chosen.page is not None:
        left = sum(map(len, work.values())) - len(fates)
        chosen.page.write_text(page(fates, left))
    slowest = max(fates, key=lambda f: f.seconds, default=None)
    if slowest is not None:
        print(f"\n{sum(f.seconds for f in fates):.0f} s in all, at most {slowest.seconds:.1f} s "
              f"({slowest.mutant.name})")  # fmt: skip


if __name__ == "__main__":
    main()
