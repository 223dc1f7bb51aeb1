"""`conditions`: what networks see beside state and time."""

from flowdsl.clauses._binding import binding_clause
from flowdsl.spec.core import Kind

CLAUSES = (
    binding_clause(
        "conditions",
        place=4,
        summary="What networks see beside state and time.",
        example="label = null on dropped",
        draws=Kind.SCALAR,
    ),
)
