"""`rows`: which rows of the batch are treated apart."""

from flowdsl.clauses._binding import binding_clause
from flowdsl.spec.core import Kind

CLAUSES = (
    binding_clause(
        "rows",
        place=2,
        summary="Which rows of the batch are treated apart.",
        example="diagonal ~ share(0.75)",
        draws=Kind.TRUTH,
    ),
)
