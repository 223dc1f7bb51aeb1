"""Names in emitted code: the spec's own, made into Python identifiers, each used once."""

from __future__ import annotations

import keyword
import unicodedata
from collections.abc import Iterable

from flowdsl.diagnostics import fail

#: Names that the emitted functions use themselves.
RESERVED = frozenset(
    """
    torch networks data draws label progress step steps terms batch kind real generator lift
    value losses jvp shared_jvp difference on_rows only snap snap_rows batch_mean beta shifted
    STEP
    """.split()  # noqa: SIM905
)


def identifier(name: str) -> str:
    """A spec's name as a Python identifier: `τ` is `tau`, `s'` is `s_prime`."""
    parts: list[str] = []
    primes = 0
    for character in unicodedata.normalize("NFKC", name):
        if character in "'′":
            primes += 1
        elif character.isascii():
            parts.append(character)
        else:
            parts.append(_spelled(character))
    text = "".join(parts) + "".join(["", "_prime", "_second", "_third"][min(primes, 3)])
    text = text + f"_{primes}" if primes > 3 else text
    return text + "_" if keyword.iskeyword(text) or keyword.issoftkeyword(text) else text


def _spelled(character: str) -> str:
    """`τ` is tau, `Ω` is Omega, other letters lose their accents or are spelled by their code."""
    title = unicodedata.name(character, "")
    if title.startswith("GREEK "):
        word = title.split(" LETTER ")[-1].split(" WITH ")[0].replace("FINAL ", "")
        plain = word.lower().replace(" ", "_")
        return plain.capitalize() if "CAPITAL" in title else plain
    bare = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return bare or f"u{ord(character):04x}"


def spec_names(names: Iterable[str]) -> dict[str, str]:
    """The identifiers of a spec's names; two names that become one are refused."""
    found: dict[str, str] = {}
    taken: dict[str, str] = {}
    for name in names:
        new = identifier(name)
        if new in taken and taken[new] != name:
            raise fail(
                "emit",
                f"the names `{taken[new]}` and `{name}` are both `{new}` in Python",
                hint="rename one of them",
            )
        taken[new] = name
        found[name] = new
    return found


class Names:
    """Hands out names within one function, each once."""

    def __init__(self, reserved: Iterable[str] = RESERVED) -> None:
        self._taken = set(reserved)

    def release(self, name: str) -> None:
        """Let a name be given away once more: what it stood for is read no longer."""
        self._taken.discard(name)

    def take(self, wanted: str, *others: str) -> str:
        """The first of these that is free; else the last, numbered."""
        for name in (wanted, *others):
            if name not in self._taken:
                self._taken.add(name)
                return name
        number = 2
        while f"{(wanted, *others)[-1]}_{number}" in self._taken:
            number += 1
        name = f"{(wanted, *others)[-1]}_{number}"
        self._taken.add(name)
        return name
