"""Measuring training steps: losses by name on one network, side by side in one process."""

from flowdsl.runtime.bench.options import BenchOptions, Setting, resized
from flowdsl.runtime.bench.result import BenchResult, Group, Row
from flowdsl.runtime.bench.run import bench
from flowdsl.runtime.bench.table import table

__all__ = ["BenchOptions", "BenchResult", "Group", "Row", "Setting", "bench", "resized", "table"]
