"""The operations of the core language, one row each: arity, kinds, and derivative.

This table is the only list of operations. Its columns are plain data; the emitter's and the
oracle's torch functions and the calculus's rules are keyed on the same names, and a test holds that
every row has all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from flowdsl.spec.core import COMPARISONS


@dataclass(frozen=True)
class Operation:
    """`shape` says how the kind of the result follows from the arguments (see `kinds.py`)."""

    name: str
    arity: int
    shape: str  # arithmetic | elementwise | comparison | logic | select | reduction | batch
    symbol: str = ""  # infix form in a spec, where there is one
    derivative: tuple[str, ...] | None = None  # per argument, in the language itself, over x, y, z
    meaning: str = ""


_ROWS = [
    Operation("add", 2, "arithmetic", "+", ("1", "1")),
    Operation("sub", 2, "arithmetic", "-", ("1", "-1")),
    Operation("mul", 2, "arithmetic", "*", ("y", "x")),
    Operation("div", 2, "arithmetic", "/", ("1 / y", "-x / y^2")),
    Operation("neg", 1, "arithmetic", "-", ("-1",)),
    Operation("pow", 2, "arithmetic", "^", ("y * x^(y - 1)", "x^y * log(x)")),
    Operation("sin", 1, "elementwise", derivative=("cos(x)",)),
    Operation("cos", 1, "elementwise", derivative=("-sin(x)",)),
    Operation("tan", 1, "elementwise", derivative=("1 + tan(x)^2",)),
    Operation("atan", 1, "elementwise", derivative=("1 / (1 + x^2)",)),
    Operation("exp", 1, "elementwise", derivative=("exp(x)",)),
    Operation("log", 1, "elementwise", derivative=("1 / x",)),
    Operation("sqrt", 1, "elementwise", derivative=("1 / (2 * sqrt(x))",)),
    Operation("sigmoid", 1, "elementwise", derivative=("sigmoid(x) * (1 - sigmoid(x))",)),
    Operation("softplus", 1, "elementwise", derivative=("sigmoid(x)",)),
    Operation("tanh", 1, "elementwise", derivative=("1 - tanh(x)^2",)),
    Operation("abs", 1, "elementwise"),
    Operation("floor", 1, "elementwise", meaning="the largest integer that is not above x"),
    Operation("ceil", 1, "elementwise", meaning="the smallest integer that is not below x"),
    Operation("min", 2, "elementwise"),
    Operation("max", 2, "elementwise"),
    Operation("clip", 3, "elementwise", meaning="x limited to [lo, hi]"),
    Operation(
        "snap", 2, "elementwise", meaning="0 where x < tol, 1 where x > 1 - tol, else x (AlphaFlow)"
    ),
    *(Operation(name, 2, "comparison", symbol) for name, symbol in
      [("lt", "<"), ("le", "<="), ("gt", ">"), ("ge", ">="), ("eq", "=="), ("ne", "!=")]),
    Operation("and", 2, "logic", "and"),
    Operation("or", 2, "logic", "or"),
    Operation("not", 1, "logic", "not"),
    Operation("true", 0, "logic"),
    Operation("false", 0, "logic"),
    Operation("select", 3, "select", meaning="x where c holds, else y"),
    Operation("sum_squares", 1, "reduction", meaning="sum of x^2 over a sample's entries"),
    Operation("mean_squares", 1, "reduction", meaning="mean of x^2 over a sample's entries"),
    Operation("norm", 1, "reduction", meaning="Euclidean norm of a sample"),
    Operation("mean_abs", 1, "reduction", meaning="mean of |x| over a sample's entries"),
    Operation("dot", 2, "reduction", meaning="sum of x * y over a sample's entries"),
    Operation("batch_mean", 1, "batch", meaning="mean over the batch, detached"),
]  # fmt: skip

OPERATIONS: dict[str, Operation] = {row.name: row for row in _ROWS}

assert {name for name, row in OPERATIONS.items() if row.shape == "comparison"} == COMPARISONS
