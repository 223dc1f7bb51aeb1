"""The printer: a syntax tree as canonical text, such that `parse(format(tree)) == tree`."""

from __future__ import annotations

from flowdsl.syntax.tree import (
    Binary,
    Call,
    Choice,
    Comparison,
    Derivative,
    Expression,
    Line,
    Name,
    NumberLiteral,
    Replacement,
    Tangents,
    Tree,
    Unary,
)

_COLUMN = 14
_WIDTH = 100

# How tightly an expression binds, as in the grammar.
_OR, _AND, _NOT, _COMPARE, _SUM, _PRODUCT, _SIGN, _POWER, _ATOM = range(9)
_BINDING = {"or": _OR, "and": _AND, "+": _SUM, "-": _SUM, "*": _PRODUCT, "/": _PRODUCT, "^": _POWER}


def format_tree(tree: Tree) -> str:
    """The spec as text: headings at column 0, one line per line, aligned."""
    head = f"objective {tree.name}"
    if tree.extends:
        head += f" extends {tree.extends}"
    if tree.title:
        head += f'  "{tree.title}"'
    if tree.arxiv:
        head += f"  arXiv:{tree.arxiv}"
    out = [head]
    for section in tree.sections:
        lead = section.keyword.ljust(_COLUMN)
        if len(lead) > _COLUMN or not lead.endswith(" "):
            lead += " "
        for line in section.lines:
            out.extend(_lay(lead, line))
            lead = " " * _COLUMN
        if not section.lines:
            out.append(section.keyword)
    return "\n".join(out) + "\n"


def _lay(lead: str, line: Line) -> list[str]:
    parts = line.parts()
    whole = lead + " ".join(parts)
    if len(whole) <= _WIDTH or len(parts) == 1:
        return [whole]
    return [lead + parts[0], *(" " * (_COLUMN + 2) + part for part in parts[1:])]


def format_expression(expression: Expression) -> str:
    """One expression, with no more parentheses than its structure needs."""
    return _show(expression, _OR)


def binding_strength(expression: Expression) -> int:
    """How tightly an expression binds: what binds less needs brackets in its place."""
    return _render(expression)[1]


def with_rows(text: str, rows: Expression | None) -> tuple[str, ...]:
    """A line's text, followed by its `on` condition if it has one."""
    return (text,) if rows is None else (text, f"on {format_expression(rows)}")


def _show(expression: Expression, least: int) -> str:
    text, binds = _render(expression)
    return f"({text})" if binds < least else text


def _render(expression: Expression) -> tuple[str, int]:
    match expression:
        case NumberLiteral(_, text):
            return text, _ATOM
        case Name(_, name):
            return name, _ATOM
        case Unary(_, "not", operand):
            return f"not {_show(operand, _NOT)}", _NOT
        case Unary(_, _, operand):
            return f"-{_show(operand, _SIGN)}", _SIGN
        case Binary(_, "^", left, right):
            return f"{_show(left, _ATOM)}^{_show(right, _SIGN)}", _POWER
        case Binary(_, op, left, right):
            level = _BINDING[op]
            return f"{_show(left, level)} {op} {_show(right, level + 1)}", level
        case Comparison(_, operands, operators):
            shown = [_show(operand, _SUM) for operand in operands]
            rest = "".join(f" {op} {x}" for op, x in zip(operators, shown[1:], strict=True))
            return shown[0] + rest, _COMPARE
        case Call(_, function, arguments, keywords, replaced):
            inner = ", ".join([*map(format_expression, arguments), *map(_replacement, keywords)])
            if replaced:
                inner = f"{inner} | {', '.join(map(_replacement, replaced))}".lstrip()
            return f"{function}({inner})", _ATOM
        case Derivative(_, variable, body, along):
            tail = f" along {format_expression(along)}" if along else ""
            return f"d/d{variable}[{format_expression(body)}{tail}]", _ATOM
        case Choice():
            return _choice(expression), _ATOM
        case Tangents(_, body, directions):
            head = "J" if len(directions) == 1 else f"D{len(directions)}"
            shown = [", ".join(map(format_expression, d)) for d in directions]
            inside = shown[0] if len(shown) == 1 else ", ".join(f"({d})" for d in shown)
            return f"{head} {format_expression(body)}[{inside}]", _ATOM
    raise TypeError(f"flowdsl/syntax/format.py has no rule for {type(expression).__name__}")


def _choice(choice: Choice) -> str:
    """`(a on p, b on q, else c)`: a choice in the place of the rest goes on with it."""
    rows = []
    rest: Expression = choice
    while isinstance(rest, Choice):
        rows.append(f"{format_expression(rest.yes)} on {format_expression(rest.condition)}")
        rest = rest.no
    return f"({', '.join(rows)}, else {format_expression(rest)})"


def _replacement(replacement: Replacement) -> str:
    return f"{replacement.name} = {format_expression(replacement.value)}"
