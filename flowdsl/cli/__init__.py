"""The command line: thin. Each command calls one function of the pipeline or the runtime."""

from __future__ import annotations

import os
import sys

import typer

from flowdsl.cli import runs, specs, tools
from flowdsl.diagnostics import DiagnosticError, render

app = typer.Typer(
    name="flowdsl",
    help="Write a generative model's training objective as a paper would, have it proved, "
    "compiled and trained.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
specs.add_to(app)
runs.add_to(app)
tools.add_to(app)


def main() -> None:
    """Run a command. A user's mistake ends with its message and status 2, never a traceback."""
    # Read when torch loads: threads that spin while they wait made training twenty times slower on
    # cores that others used too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except DiagnosticError as error:
        for diagnostic in error.diagnostics:
            print(render(diagnostic), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
