"""What an examination finds, and the report of all of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

#: ok; worth knowing; cannot be used as it is; not examined, because something before it fails.
Verdict = Literal["ok", "note", "fail", "skipped"]

#: Raised when a field of the JSON changes its meaning or goes away.
SCHEMA = 1

_STYLES: dict[str, str] = {"ok": "green", "note": "yellow", "fail": "bold red", "skipped": "dim"}


@dataclass(frozen=True)
class Finding:
    """One examination's verdict: a sentence, what was measured, what to do, and where (the line of
    the spec, or of the network's source). Errors among the figures are relative.
    """

    verdict: Verdict
    sentence: str
    figures: Mapping[str, float] = field(default_factory=dict)
    remedy: str = ""
    place: str = ""


def ok(sentence: str, **figures: float) -> Finding:
    """Nothing to do."""
    return Finding("ok", sentence, figures)


@dataclass(frozen=True)
class Report:
    """The findings by examination, in the order in which they were made."""

    network: str
    objective: str
    role: str
    line: str
    shape: tuple[int, ...]
    findings: Mapping[str, Finding]

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return all(f.verdict != "fail" for f in self.findings.values())

    def as_dict(self) -> dict[str, Any]:
        """Plain data: strings, numbers, lists and dictionaries."""
        plain = asdict(self)
        findings = [{"name": name, **asdict(f)} for name, f in self.findings.items()]
        return {"schema": SCHEMA, "ok": self.ok, **plain, "findings": findings}

    def json(self) -> str:
        """The same as text; numbers that are not finite become null."""
        return json.dumps(_finite(self.as_dict()), indent=2, allow_nan=False) + "\n"

    def table(self) -> RenderableType:
        """A row per examination; what to do stands under what was found."""
        shape = " x ".join(map(str, self.shape))
        title = f"{self.network} as {self.role} of {self.objective}, on rows of {shape}"
        shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        shown.add_column("examination", no_wrap=True)
        shown.add_column("verdict", no_wrap=True)
        shown.add_column("finding", overflow="fold")
        for name, finding in self.findings.items():
            shown.add_row(
                name.replace("_", " "),
                Text(finding.verdict, style=_STYLES[finding.verdict]),
                Text(finding.sentence, style="dim" if finding.verdict == "skipped" else ""),
            )
            for label, text in (("spec", finding.place), ("remedy", finding.remedy)):
                if text and finding.verdict in ("note", "fail"):
                    shown.add_row("", Text(label, style="dim"), Text(text, style="dim"))
        parts: list[RenderableType] = [Text(title, style="bold")]
        parts += [Text(self.line, style="dim")] if self.line else []
        return Group(*parts, shown)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value
