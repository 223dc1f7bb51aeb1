"""Errors of code that is not ours, told in a line: what they say first, and where they are."""

from __future__ import annotations

import importlib
import traceback
from pathlib import Path

LONGEST = 160


def first_line(error: BaseException) -> str:
    """The type of an error and the first line of what it says, cut to a moderate length."""
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    text = f"{type(error).__name__}: {said}" if said else type(error).__name__
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def place_of(error: BaseException) -> str:
    """`file.py:12: code`, the innermost line of an error that is neither torch's, nor Python's, nor
    flowdsl's own; empty when there is none.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}: {(error.text or '').strip()}"
    library = Path(importlib.__file__ or "/").resolve().parent.parent
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        theirs = {"torch", "flowdsl"} & set(path.parts[:-1]) or path.is_relative_to(library)
        if not frame.filename.startswith("<") and not theirs:
            return f"{frame.filename}:{frame.lineno}: {frame.line}"
    return ""
