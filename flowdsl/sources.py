"""Where the text of a spec is found: by its path, beside the spec that names it, or among those
that are shipped."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from flowdsl.diagnostics import Source, did_you_mean, fail
from flowdsl.syntax.layout import MAX_BYTES, read_source

SUFFIX = ".flow"


def shipped_folder() -> Path:
    """Where the shipped specs are: `specs/` in a checkout, `flowdsl/shipped` when installed."""
    package = Path(str(resources.files("flowdsl")))
    installed = package / "shipped"
    return installed if installed.is_dir() else package.parent / "specs"


def shipped_names() -> tuple[str, ...]:
    """The names of the shipped objectives."""
    return tuple(sorted(path.stem for path in shipped_folder().glob(f"*{SUFFIX}")))


def find_source(spec: str, beside: Path | None = None) -> Source:
    """The text that a name or path refers to; `beside` is the folder of the spec that names it.

    A path is taken from that folder, or from where the program runs.
    """
    if spec.endswith(SUFFIX) or "/" in spec:
        return read_file(Path(spec) if beside is None else beside / spec)
    if beside is not None and (beside / f"{spec}{SUFFIX}").is_file():
        return read_file(beside / f"{spec}{SUFFIX}")
    shipped = shipped_folder() / f"{spec}{SUFFIX}"
    if spec in shipped_names():
        return read_file(shipped)
    raise fail(
        "file",
        f"there is no objective `{spec}`",
        hint=did_you_mean(spec, shipped_names())
        or "give a path to a .flow file, or a shipped name: `flowdsl list` shows them",
    )


def read_file(path: Path) -> Source:
    """A spec's text from a file."""
    try:
        with path.open("rb") as file:
            return read_source(file.read(MAX_BYTES + 1), str(path))
    except OSError as error:
        reason = error.strerror or str(error)
        raise fail("file", f"{path} cannot be read: {reason.lower()}") from None
