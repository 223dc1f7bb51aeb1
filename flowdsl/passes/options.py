"""How to compile: what the passes may do."""

from __future__ import annotations

from dataclasses import dataclass

from flowdsl.diagnostics import did_you_mean, fail

DERIVATIVES = ("exact", "finite_difference")
#: The passes that can be left out, to see what each of them earns.
OPTIONAL = ("fold", "decide", "phases", "common", "stops", "reuse", "rows", "beside", "duals")


@dataclass(frozen=True)
class Options:
    """`optimize` false leaves the loss as its formula stands; with `transcribed` it is then what a
    careful hand makes of the formula: each phase of training evaluates what it needs and no more,
    and a derivative through which gradient flows yields its value too. `derivative` is "exact"
    (forward mode) or "finite_difference". With `fixed_shapes` no shape depends on what is drawn, as
    torch.compile needs it. `without` names passes to leave out. With `errors` the metrics also hold
    each term's squared error as it was before a weight that depends on it. With `chunk_rows`,
    derivatives that carry no gradient are taken of so many rows at a time, which caps their memory.
    With `merge`, calls of one network are made in one, of so many batches' rows at most.

    Raises DiagnosticError for a derivative or a pass that there is not, for chunks of no rows, and
    for merged calls of less than a batch.
    """

    optimize: bool = True
    derivative: str = "exact"
    fixed_shapes: bool = False
    without: tuple[str, ...] = ()
    transcribed: bool = False
    errors: bool = False
    chunk_rows: int | None = None
    merge: float | None = None

    def __post_init__(self) -> None:
        _known("derivative", self.derivative, DERIVATIVES)
        for name in self.without:
            _known("pass", name, OPTIONAL)
        if self.chunk_rows is not None and self.chunk_rows < 1:
            raise fail("compile", f"chunk_rows must be at least 1, not {self.chunk_rows}")
        if self.merge is not None and not self.merge >= 1:
            raise fail(
                "compile",
                f"merge must be at least 1, not {self.merge:g}",
                hint="it is the most rows that one call may have, in batches",
            )

    @property
    def exact(self) -> bool:
        return self.derivative == "exact"


def _known(what: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise fail(
            "compile",
            f'there is no {what} "{name}"',
            hint=did_you_mean(name, known) or f"one of {', '.join(known)}",
        )
