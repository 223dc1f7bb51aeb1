"""`python -m flowdsl` and the installed command are one program."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import flowdsl

ROOT = Path(flowdsl.__file__).parent.parent


def script() -> list[str]:
    """What the installed command runs, as pyproject.toml declares it."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, function = declared["flowdsl"].split(":")
    code = f"import sys; from {module} import {function}; sys.argv[0] = 'flowdsl'; {function}()"
    return [sys.executable, "-c", code]


@pytest.mark.parametrize(
    ("words", "status"),
    [(["--help"], 0), (["derive", "meanflow"], 0), (["check", "no_such_spec"], 2), (["chek"], 2)],
    ids=lambda x: "_".join(x) if isinstance(x, list) else "",
)
def test_the_module_runs_as_the_command_does(words: list[str], status: int) -> None:
    module, command = (
        subprocess.run([*start, *words], capture_output=True, text=True, cwd=ROOT, timeout=120)
        for start in ([sys.executable, "-m", "flowdsl"], script())
    )
    assert module.returncode == command.returncode == status
    for mine, its in ((module.stdout, command.stdout), (module.stderr, command.stderr)):
        # only the usage line says under which name the program was started
        assert mine.replace("python -m flowdsl", "flowdsl").split() == its.split()
    assert module.stdout or module.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("derive", "flow_matching"), "no target can be derived for flow_matching"),
        (("compare", "meanflow", "alphaflow", "--near", "alpha=0"), "name alphaflow first"),
    ],
)
def test_a_question_that_has_no_answer_ends_with_a_sentence(words, told):
    done = subprocess.run([sys.executable, "-m", "flowdsl", *words], capture_output=True, text=True)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
