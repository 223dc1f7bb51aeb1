"""Conditions as sets of cases, and the shortest way to write such a set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

#: A conjunction: for some atoms, by index, the truth value they must have.
Cube = dict[int, bool]


def bits(mask: int) -> Iterable[int]:
    """The positions of the ones."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def minimise(atoms: int, wanted: Iterable[int], others: Iterable[int]) -> list[Cube]:
    """A short disjunction of conjunctions that holds in all `wanted` cases and in none of the
    `others`.

    A case is an integer whose bit i is the truth value of atom i. Cases that are in neither list
    may fall either way. Later atoms are dropped first.
    """
    others = list(others)
    left = dict.fromkeys(wanted)
    cubes: list[Cube] = []
    while left:
        best: Cube | None = None
        covered: list[int] = []
        for case in left:
            cube = _grow({i: bool(case >> i & 1) for i in range(atoms)}, others)
            inside = [c for c in left if holds(cube, c)]
            if best is None or (len(inside), -len(cube)) > (len(covered), -len(best)):
                best, covered = cube, inside
        assert best is not None
        cubes.append(best)
        for case in covered:
            del left[case]
    return cubes


def _grow(cube: Cube, others: Sequence[int]) -> Cube:
    """Drop literals while the conjunction stays false in all other cases."""
    for atom in sorted(cube, reverse=True):
        smaller = {i: v for i, v in cube.items() if i != atom}
        if not any(holds(smaller, case) for case in others):
            cube = smaller
    return cube


def holds(cube: Cube, case: int) -> bool:
    """Whether a conjunction is true in a case."""
    return all(bool(case >> i & 1) == value for i, value in cube.items())
