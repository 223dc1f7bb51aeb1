r"""An expression as LaTeX for math mode, of the same tree that `format.py` prints as text."""

from __future__ import annotations

from flowdsl.syntax.tree import (
    Binary,
    Call,
    Choice,
    Comparison,
    Derivative,
    Expression,
    Name,
    NumberLiteral,
    Replacement,
    Tangents,
    Unary,
)

# How tightly an expression binds; a fraction binds as a power, since its bar groups both parts.
_OR, _AND, _NOT, _COMPARE, _SUM, _PRODUCT, _SIGN, _POWER, _ATOM = range(9)
_LOGIC = {"or": (r"\lor", _OR), "and": (r"\land", _AND)}
_COMPARED = {"<": "<", ">": ">", "<=": r"\le", ">=": r"\ge", "==": "=", "!=": r"\ne"}
_FUNCTIONS = ("sin", "cos", "tan", "tanh", "exp", "log", "min", "max")
_GREEK = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "eta": "η",
    "theta": "θ", "kappa": "κ", "lambda": "λ", "mu": "μ", "nu": "ν", "xi": "ξ", "rho": "ρ",
    "sigma": "σ", "tau": "τ", "varphi": "φ", "chi": "χ", "psi": "ψ", "omega": "ω",
}  # fmt: skip
_LETTERS = {letter: name for name, letter in _GREEK.items()}


def latex_expression(expression: Expression) -> str:
    """The LaTeX of one expression, with no more brackets than its structure needs."""
    return _render(expression)[0]


def latex_name(name: str) -> str:
    """One letter in italics, Greek by its command, words upright; primes stay primes."""
    bare = name.rstrip("'")
    primes = name[len(bare) :]
    if bare in _LETTERS:
        return rf"\{_LETTERS[bare]}{primes}"
    if len(bare) == 1:
        return bare + primes
    if bare in _GREEK:
        return rf"\{bare}{primes}"
    if bare == "null":
        return r"\varnothing"
    word = bare.replace("_", r"\_")
    return rf"\mathrm{{{word}}}{primes}"


def _show(expression: Expression, least: int) -> str:
    text, binds = _render(expression)
    return rf"\left({text}\right)" if binds < least else text


def _render(expression: Expression) -> tuple[str, int]:
    match expression:
        case NumberLiteral(_, text):
            return _number(text)
        case Name(_, name):
            return latex_name(name), _ATOM
        case Unary(_, "not", operand):
            return rf"\lnot {_show(operand, _NOT)}", _NOT
        case Unary(_, _, operand):
            return f"-{_show(operand, _POWER)}", _SIGN
        case Binary():
            return _binary(expression)
        case Comparison(_, operands, operators):
            shown = [_show(operand, _SUM) for operand in operands]
            pairs = zip(operators, shown[1:], strict=True)
            return shown[0] + "".join(f" {_COMPARED[op]} {x}" for op, x in pairs), _COMPARE
        case Call():
            return _call(expression), _ATOM
        case Derivative(_, variable, body, along):
            operator = rf"\frac{{d}}{{d{latex_name(variable)}}}"
            if isinstance(body, Name):
                shown_body = latex_expression(body)
            else:
                shown_body = rf"\left[{latex_expression(body)}\right]"
            tail = "" if along is None else rf"_{{\mathrm{{along}}\ {latex_expression(along)}}}"
            return f"{operator}{shown_body}{tail}", _POWER
        case Choice():
            return _choice(expression), _ATOM
        case Tangents(_, body, directions):
            head = "J" if len(directions) == 1 else f"D^{{{len(directions)}}}"
            shown = [", ".join(map(latex_expression, d)) for d in directions]
            inside = shown[0] if len(shown) == 1 else ", ".join(f"({d})" for d in shown)
            return rf"{head} \, {latex_expression(body)}\left[{inside}\right]", _POWER
    raise TypeError(f"flowdsl/syntax/latex.py has no rule for {type(expression).__name__}")


def _number(text: str) -> tuple[str, int]:
    mantissa, _, exponent = text.lower().partition("e")
    if not exponent:
        return mantissa, _ATOM
    return rf"{mantissa} \cdot 10^{{{int(exponent)}}}", _PRODUCT


def _binary(expression: Binary) -> tuple[str, int]:
    op, left, right = expression.op, expression.left, expression.right
    if op in _LOGIC:
        symbol, level = _LOGIC[op]
        return f"{_show(left, level)} {symbol} {_show(right, level + 1)}", level
    if op == "/":
        return rf"\frac{{{latex_expression(left)}}}{{{latex_expression(right)}}}", _POWER
    if op == "^":
        return f"{_show(left, _ATOM)}^{{{latex_expression(right)}}}", _POWER
    if op == "*":
        factor = _show(right, _POWER)
        between = r"\cdot" if factor[0].isdigit() else r"\,"
        return f"{_show(left, _PRODUCT)} {between} {factor}", _PRODUCT
    term = _show(right, _PRODUCT)
    if term.startswith("-"):
        term = rf"\left({term}\right)"
    return f"{_show(left, _SUM)} {op} {term}", _SUM


def _call(call: Call) -> str:
    known = call.function in _FUNCTIONS
    head = rf"\{call.function}" if known else latex_name(call.function)
    inner = ", ".join([*map(latex_expression, call.arguments), *map(_replacement, call.keywords)])
    if call.replaced:
        inner = rf"{inner} \mid {', '.join(map(_replacement, call.replaced))}".lstrip()
    return f"{head}({inner})"


def _choice(choice: Choice) -> str:
    rows = []
    rest: Expression = choice
    while isinstance(rest, Choice):
        condition = latex_expression(rest.condition)
        rows.append(rf"{latex_expression(rest.yes)} & \text{{if }} {condition}")
        rest = rest.no
    rows.append(rf"{latex_expression(rest)} & \text{{otherwise}}")
    return r"\begin{cases} " + r" \\ ".join(rows) + r" \end{cases}"


def _replacement(replacement: Replacement) -> str:
    return f"{latex_name(replacement.name)} = {latex_expression(replacement.value)}"
