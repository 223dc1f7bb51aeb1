"""No rule of the package is about one method: no shipped objective is named in its code.

Names and titles come from `specs/`. Looked at are identifiers, and texts that could be compared
with a name; docstrings, comments and whole sentences may cite a method.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import flowdsl
from flowdsl import pipeline

PACKAGE = Path(flowdsl.__file__).parent
SPECS = PACKAGE.parent / "specs"


def words(text: str) -> list[str]:
    """`TestMeanFlow`, `mean_flow` and `Mean Flows` in lower-case words without a plural."""
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", text)
    return [part.lower().removesuffix("s") for part in parts]


def methods() -> set[str]:
    """Names of objectives, and titles as papers have them, written in one word."""
    found = set()
    for path in SPECS.glob("*.flow"):
        tree = pipeline.parse(pipeline.read_source(path.read_text(), str(path)))
        found |= {"".join(words(tree.name))}
        title = "".join(words((tree.title or "").partition(",")[0].partition(":")[0]))
        found |= {title} if title else set()
    return found


def named(text: str, known: set[str]) -> set[str]:
    parts = words(text)
    runs = {"".join(parts[i:j]) for i in range(len(parts)) for j in range(i + 1, len(parts) + 1)}
    return runs & known


def texts(source: str) -> Iterator[tuple[int, str]]:
    """Identifiers of a module, and its strings of a single word; with their lines."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Name):
            yield line, node.id
        elif isinstance(node, ast.Attribute):
            yield line, node.attr
        elif isinstance(node, (ast.arg, ast.keyword)) and node.arg:
            yield line, node.arg
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield line, node.name
        elif isinstance(node, ast.alias):
            yield line, node.asname or node.name
        elif isinstance(node, ast.Constant) and re.fullmatch(r"\S+", str(node.value).strip()):
            yield line, str(node.value)


def offences(source: str, known: set[str]) -> list[tuple[int, str]]:
    return [(line, text) for line, text in texts(source) if named(text, known)]


#: The objective that a command takes as its example, unless one is named.
EXAMPLES = {"cli/tools.py": "meanflow"}


def test_no_method_is_named_in_the_package() -> None:
    known = methods()
    assert {"meanflow", "tvm", "terminalvelocitymatching", "alphaflow"} <= known
    found = [
        f"{path.relative_to(PACKAGE)}:{line}: {text}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for line, text in offences(path.read_text(), known)
        if EXAMPLES.get(path.relative_to(PACKAGE).as_posix()) != text
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        'if name == "meanflow": pass',
        "def alpha_flow_steps(): pass",
        "class AlphaFlowTrainer: pass",
        "import tvm",
        "loss.terminal_velocity_matching = 1",
        "train(use_tvm=True)",
        'rules = {"tvm_target": 1}',
    ],
)
def test_a_name_in_code_is_found(source: str) -> None:
    assert offences(source, methods())


@pytest.mark.parametrize(
    "source",
    ['"""The target of MeanFlow."""', "# as in tvm\nx = 1", "velocity_matches = mean_of_flow"],
)
def test_citing_a_method_is_allowed(source: str) -> None:
    assert not offences(source, methods())
