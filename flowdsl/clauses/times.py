"""`times`: the times of a row and their laws; fresh noise is drawn here too."""

from flowdsl.clauses._binding import binding_clause
from flowdsl.spec.core import Kind

CLAUSES = (
    binding_clause(
        "times",
        place=3,
        summary="The times of a row and their laws; fresh noise is drawn here too.",
        example="t, r ~ sorted(logit_normal(-0.4, 1.0)); r = t on diagonal",
        draws=Kind.TIME,
    ),
)
