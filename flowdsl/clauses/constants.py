"""`constants`: numbers that a command line may set."""

from flowdsl.clauses._binding import binding_clause

CLAUSES = (
    binding_clause(
        "constants",
        place=0,
        summary="Numbers that a command line may set.",
        example="omega = 1.0; kappa = 0.5",
    ),
)
