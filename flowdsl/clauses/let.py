"""`let`: names for parts of expressions."""

from flowdsl.clauses._binding import binding_clause

CLAUSES = (
    binding_clause(
        "let",
        place=8,
        summary="Names for parts of expressions.",
        example="x = z(r | noise = noise')",
        transparent=True,
    ),
)
