"""The architecture page: which package may import which, and which library stands where."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import flowdsl

PACKAGE = Path(__file__).parent.parent / "flowdsl"

#: What each package may import of flowdsl, beside itself. Nothing points upward.
READS = ("diagnostics", "syntax", "prelude", "spec")
MAY = {
    "diagnostics": (),
    "syntax": ("diagnostics",),
    "sources": ("diagnostics", "syntax"),
    "prelude": (),
    "spec": ("diagnostics", "syntax", "prelude"),
    "clauses": READS,
    "calculus": READS,
    "identities": (*READS, "calculus"),
    "truth": (*READS, "calculus"),
    "proof": (*READS, "calculus", "truth"),
    "checks": (*READS, "calculus", "truth", "proof", "identities"),
    "repair": (*READS, "clauses", "calculus", "truth", "proof", "identities", "checks"),
    "ir": READS,
    "passes": (*READS, "ir"),
    "emit": (*READS, "ir", "passes", "runtime"),
    "exact": ("diagnostics", "runtime"),
    "certify": (*READS, "checks", "exact"),  # independent of the proof: no calculus
    "runtime": ("diagnostics", "exact"),
    "pipeline": ("sources", *READS, "clauses", "proof", "identities", "checks", "repair", "ir",
                 "passes", "emit", "certify", "exact", "runtime"),
    "plan": ("pipeline", "sources", *READS),
    "api": ("pipeline", "plan", "sources", *READS, "checks", "passes", "runtime"),
    "cli": ("pipeline", "plan", "sources", "api", *READS, "clauses", "checks", "passes", "emit",
            "runtime"),
    "__main__": ("cli",),
}  # fmt: skip

#: Where a library may be imported at all.
LIBRARIES = {
    "lark": ("syntax",),
    "sympy": ("calculus",),
    "torch": ("ir", "emit", "exact", "certify", "runtime", "cli"),
    "typer": ("cli",),
    "triton": ("runtime",),
}

#: Where torch may stand, inside packages that work without it.
TORCH_FILES = (
    "ir/interpret.py",
    "emit/load.py",
    "emit/glue.py",
    "cli/doctoring.py",
    "cli/tools.py",
)


def modules() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_points_upward(path: Path) -> None:
    here = room(path)
    allowed = {here, *MAY[here]}
    for name in imports(path):
        parts = name.split(".")
        if name.startswith("flowdsl.runtime.contract"):  # plain data, for either side of the border
            continue
        if parts[0] == "flowdsl" and len(parts) > 1 and parts[1] in MAY:
            assert parts[1] in allowed, f"{here} may not import {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_libraries_stand_where_they_belong(path: Path) -> None:
    for name in imports(path):
        library = name.split(".")[0]
        if library in LIBRARIES:
            assert room(path) in LIBRARIES[library], f"{library} has no place in {room(path)}"
        if library == "torch" and room(path) in ("ir", "emit", "cli"):
            assert str(path.relative_to(PACKAGE)) in TORCH_FILES


def test_triton_is_imported_when_a_kernel_runs() -> None:
    """It is there for graphics processors alone: no module imports it, or them, at its top."""
    for path in modules():
        if path.name != "kernels.py":
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.Import | ast.ImportFrom):
                    names = [f"{getattr(node, 'module', '')}.{alias.name}" for alias in node.names]
                    assert not any("triton" in n or n.endswith("nets.kernels") for n in names), path


def test_there_is_no_cycle_between_modules() -> None:
    """Imports at the top of a module, those for types alone too, never lead back to it."""
    graph: dict[str, set[str]] = {}
    names = {
        ".".join(("flowdsl", *p.relative_to(PACKAGE).with_suffix("").parts)) for p in modules()
    }
    names = {n.removesuffix(".__init__") for n in names}
    for path in modules():
        name = ".".join(("flowdsl", *path.relative_to(PACKAGE).with_suffix("").parts))
        tree = ast.parse(path.read_text())
        typed = [n for b in tree.body if isinstance(b, ast.If) for n in b.body]
        top = [n for n in (*tree.body, *typed) if isinstance(n, ast.ImportFrom) and n.module]
        targets = set()
        for node in top:  # `from package import module` reads the module, not the package
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                targets.add(full if full in names else str(node.module))
        graph[name.removesuffix(".__init__")] = {t for t in targets if t in names}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for target in sorted(graph.get(name, ())):
                if target != name:
                    visit(target, (*path, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


def fresh(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout.strip()


def test_reading_and_checking_a_spec_imports_no_torch() -> None:
    code = (
        "import sys, flowdsl, flowdsl.cli\n"
        "flowdsl.load('meanflow').check(); flowdsl.load('tvm').emit()\n"
        "print(sorted({'torch', 'sklearn', 'numpy'} & set(sys.modules)))"
    )
    assert fresh(code) == "[]"


def test_the_runtime_imports_nothing_of_the_compiler() -> None:
    code = (
        "import sys, flowdsl.runtime.runs, flowdsl.runtime.loss\n"
        "print(sorted({'lark', 'sympy', 'flowdsl.spec', 'flowdsl.pipeline'} & set(sys.modules)))"
    )
    assert fresh(code) == "[]"


def test_no_part_of_the_package_knows_a_method_by_name() -> None:
    """The trainer, the network and the passes serve every objective alike.

    Texts that explain something to a person may mention methods; names that code could compare
    with may not.
    """
    methods = {*flowdsl.shipped(), "imf", "uaimf", "scm", "consistency"}
    for path in modules():
        if room(path) not in ("cli", "clauses"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    assert node.value.lower() not in methods, f"{path}: {node.value!r}"
