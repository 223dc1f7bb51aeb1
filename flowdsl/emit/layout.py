"""Line breaking: long statements laid out the way `ruff format` lays them out."""

from __future__ import annotations

from itertools import pairwise

WIDTH = 100
_OPEN, _CLOSE = "([{", ")]}"
#: Binary operators that may begin a continued line, loosest first.
_LOOSE = (
    (" if ", " else "),
    (" < ", " <= ", " > ", " >= ", " == ", " != "),
    (" | ",),
    (" & ",),
    (" + ", " - "),
    (" * ", " / ", " // "),
    (" ** ",),
)


def lay_out(text: str, indent: int = 0, width: int = WIDTH) -> list[str]:
    """The lines of one statement, `text` being all of it on one line."""
    pad = " " * indent
    if indent + len(text) <= width:
        return [pad + text]
    head, body = _statement(text)
    groups = _top_groups(body)
    filled = [(a, b) for a, b in groups if b > a + 1]
    if filled and groups[-1][1] == len(body) - 1 and not _operators(body):
        # not the empty brackets of a `.mean()` at the end; earlier ones where the head is too long
        tries = [
            _split_group(head + body[: a + 1], body[a + 1 : b], body[b:], indent, width)
            for a, b in reversed(filled)
        ]
        return next((t for t in tries if max(map(len, t)) <= width), tries[0])
    if head:
        broken = _broken_inside(head, body, indent, width)
        return broken or _split_group(f"{head}(", body, ")", indent, width)
    pieces = _pieces(body, _operators(body))
    if len(pieces) == 1:
        return [pad + text]
    return [line for piece in pieces for line in lay_out(piece, indent, width)]


def _broken_inside(head: str, body: str, indent: int, width: int) -> list[str]:
    """Two operands, the first beginning or the last ending with brackets: these hold the break.

    No lines if they would be too long all the same.
    """
    groups = _top_groups(body)
    outer = groups and (groups[0][0] == 0 or groups[-1][1] == len(body) - 1)
    if len(_operators(body)) != 1 or not outer:
        return []
    nexts = [*(a + 1 for a, _ in groups[1:]), len(body)]
    for (a, b), after in zip(groups, nexts, strict=True):
        if b > a + 1 and indent + len(head) + after > width:
            lines = _split_group(head + body[: a + 1], body[a + 1 : b], body[b:], indent, width)
            return lines if max(map(len, lines)) <= width else []
    return []


def _statement(text: str) -> tuple[str, str]:
    """`x = ` or `return ` and the expression after it."""
    if text.startswith("return "):
        return "return ", text[7:]
    depth = 0
    for at, character in enumerate(text):
        depth += (character in _OPEN) - (character in _CLOSE)
        if depth == 0 and text.startswith(" = ", at):
            return text[: at + 3], text[at + 3 :]
    return "", text


def _split_group(head: str, body: str, tail: str, indent: int, width: int) -> list[str]:
    pad, inner = " " * indent, " " * (indent + 4)
    literal = head.endswith("{")  # the entries of a dictionary stand one to a line
    if indent + 4 + len(body) <= width and not literal:
        return [pad + head, inner + body, pad + tail]
    items = split(body, ",")
    lines = [pad + head]
    if len(items) > 1:
        for item in items:
            parts = lay_out(item.strip(), indent + 4, width - 1)
            lines += [*parts[:-1], parts[-1] + ","]
    else:
        operators = _operators(body)
        lines += [
            line for part in _pieces(body, operators) for line in lay_out(part, indent + 4, width)
        ]
    return [*lines, pad + tail]


def _pieces(body: str, operators: list[int]) -> list[str]:
    """The operands, each but the first with its operator before it."""
    cuts = [0, *(at + 1 for at in operators), len(body)]
    return [body[a:b].strip() for a, b in pairwise(cuts)]


def _operators(body: str) -> list[int]:
    """Where the loosest binary operators stand outside all brackets."""
    for symbols in _LOOSE:
        found = [at for at in _outside(body) if any(body.startswith(s, at) for s in symbols)]
        if found:
            return found
    return []


def _outside(body: str) -> list[int]:
    depth, found, quoted = 0, [], False
    for at, character in enumerate(body):
        if character == '"':
            quoted = not quoted
        if not quoted:
            depth += (character in _OPEN) - (character in _CLOSE)
            if depth == 0:
                found.append(at)
    return found


def _top_groups(body: str) -> list[tuple[int, int]]:
    """The bracketed parts outside all others, first and last character."""
    depth, start, found, quoted = 0, 0, [], False
    for at, character in enumerate(body):
        if character == '"':
            quoted = not quoted
        if quoted:
            continue
        if character in _OPEN:
            start = at if depth == 0 else start
            depth += 1
        elif character in _CLOSE:
            depth -= 1
            if depth == 0:
                found.append((start, at))
    return found


def split(body: str, separator: str) -> list[str]:
    """The parts between separators that stand outside all brackets."""
    cuts = [at for at in _outside(body) if body[at] == separator]
    edges = [-1, *cuts, len(body)]
    parts: list[str] = []
    for part in (body[a + 1 : b] for a, b in pairwise(edges)):
        if parts and parts[-1].strip().startswith("lambda") and ":" not in parts[-1]:
            parts[-1] += separator + part  # a comma between the parameters of a lambda
        elif part.strip():
            parts.append(part)
    return parts
