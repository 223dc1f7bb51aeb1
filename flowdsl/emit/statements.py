"""The statements of a function, and which of them stand under `no_grad`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Statement:
    """One line of the function: the nodes it names, the text, a comment, and what it needs."""

    nodes: tuple[int, ...]
    text: str
    comment: str = ""
    frozen: bool = False  # must run without recording a graph
    neutral: bool = False  # runs the same either way


def arrange(statements: list[Statement]) -> list[Statement | list[Statement]]:
    """Runs of statements; those that record no graph stand together, with the neutral ones between
    them.
    """
    arranged: list[Statement | list[Statement]] = []
    at = 0
    while at < len(statements):
        if not statements[at].frozen:
            arranged.append(statements[at])
            at += 1
            continue
        end = at
        for after in range(at, len(statements)):
            if statements[after].frozen:
                end = after
            elif not statements[after].neutral:
                break
        arranged.append(statements[at : end + 1])
        at = end + 1
    return arranged
