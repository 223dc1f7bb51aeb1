"""`guidance`: the velocity that is followed, where it is not the path's own."""

from flowdsl.clauses._binding import binding_clause

CLAUSES = (
    binding_clause(
        "guidance",
        place=7,
        summary="The velocity that is followed, where it is not the path's own.",
        example="guided = omega * velocity + (1 - omega) * u(z, t, t)",
        transparent=True,
    ),
)
