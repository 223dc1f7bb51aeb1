"""The passes, in order; see `passes/run.py` for the reason of each place."""

from flowdsl.passes.run import PASSES, run_passes

__all__ = ["PASSES", "run_passes"]
