"""`curriculum`: numbers that change while training: functions of progress, step and steps."""

from flowdsl.clauses._binding import binding_clause

CLAUSES = (
    binding_clause(
        "curriculum",
        place=9,
        summary="Numbers that change while training: functions of progress, step and steps.",
        example="alpha = 1 - progress",
    ),
)
