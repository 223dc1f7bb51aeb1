"""Compiles the kernels of attention for an NVIDIA generation, without one of its processors.

    python tests/compile_kernels.py 90 bfloat16 64

prints as JSON, per kernel, its bytes of shared memory, its registers per thread, and the bytes per
thread that didn't fit into these (`stack`).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from flowdsl.runtime.nets import kernels
from flowdsl.runtime.nets.kernel_attention import settings

ALIGNED = [["tt.divisibility", 16]]
TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def source(kernel: Any, fixed: dict[str, Any], element: str) -> ASTSource:
    """A kernel for contiguous heads: features lie one by one, all else is known at launch only."""
    types: dict[str, Any] = {}
    values: dict[tuple[int, ...], Any] = {}
    hints: dict[tuple[int, ...], Any] = {}
    for i, name in enumerate(kernel.arg_names):
        if name in fixed:
            types[name], values[(i,)] = "constexpr", fixed[name]
        elif name.endswith("_strides"):
            types[name], values[(i, 3)] = ("i64", "i64", "i32", "constexpr"), 1
            hints.update({(i, j): ALIGNED for j in range(3)})
        elif name in ("heads", "queries", "keys", "width"):
            types[name] = "i32"
        else:
            one_per_query = name in ("lse", "mean", "inner", "outer")
            types[name], hints[(i,)] = "*fp32" if one_per_query else f"*{element}", ALIGNED
    return ASTSource(kernel, types, values, hints)


def resources(name: str, generation: int, dtype: torch.dtype, width: int) -> dict[str, int]:
    fixed = {**settings(width, dtype, width**-0.5), "DUAL": True}
    options = {key: fixed.pop(key) for key in ("num_warps", "num_stages")}
    kernel = getattr(kernels, name)
    made = triton.compile(
        source(kernel, fixed, NAMES[dtype]),
        target=GPUTarget("cuda", generation, 32),
        options=options,
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        told = subprocess.run(
            [TOOL, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", told)
    assert found is not None, told
    return {"shared": made.metadata.shared, "registers": int(found[1]), "stack": int(found[2])}


def main(generation: str, dtype: str, width: str) -> None:
    print(json.dumps({
        name: resources(name, int(generation), getattr(torch, dtype), int(width))
        for name in ("dual_forward", "backward_queries", "backward_keys")
    }))  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
