"""What belongs at each place of the rules that sections share, in words.

The rules of one section alone have their words beside them, in its clause.
"""

from __future__ import annotations

from flowdsl.syntax.grammar import END, END_ON, Wanted

_ARGUMENTS = "`,` and another argument, `|` and what is replaced, or `)`"
_REPLACED = "`,` and another `name = value`, or `)`"
_CONDITION = Wanted("a condition, such as `t > r` or a name drawn under `rows`", END)

#: By rule and the symbols read last in it.
SHARED: dict[tuple[str, str], Wanted] = {
    ("binding", "NAME"): Wanted("`=` and a value, or `(` and parameters"),
    ("binding", "_LPAR"): Wanted("a parameter, such as `t`", "`,` and another parameter, or `)`"),
    ("binding", "parameters"): Wanted("`,` and another parameter, or `)`"),
    ("binding", "_RPAR"): Wanted("`=` and a value"),
    ("binding", "_EQUAL"): Wanted("a value: an expression", END_ON),
    ("binding", "_ON"): _CONDITION,
    ("parameters", "NAME"): Wanted("`,` and another name, or `)`"),
    ("parameters", "_COMMA"): Wanted("another name"),
    ("parameters", "parameters"): Wanted("`,` and another name, or `)`"),
    ("names", "NAME"): Wanted("`,` and another name, or `~` and a law"),
    ("names", "parameters"): Wanted("`,` and another name, or `~` and a law"),
    ("draw", "names"): Wanted("`~` and a law"),
    ("draw", "_TILDE"): Wanted("a law, such as `uniform(0, 1)`", END_ON),
    ("draw", "_ON"): _CONDITION,
    ("labelled", "NAME"): Wanted("`:` after the name of a term"),
    ("labelled", "_COLON"): Wanted("the loss of this term: `error`, `mse`, or a function of them",
                                   END_ON),
    ("labelled", "_ON"): _CONDITION,
    ("call", "NAME"): Wanted("`(` and arguments"),
    ("call", "_LPAR"): Wanted("an argument, `|` and what is replaced, or `)`", _ARGUMENTS),
    ("call", "arguments"): Wanted("`|` and what is replaced, or `)`"),
    ("call", "_BAR"): Wanted("what is replaced, as in `label = null`"),
    ("call", "replacements"): Wanted("`)`"),
    ("arguments", "argument"): Wanted(_ARGUMENTS),
    ("arguments", "arguments"): Wanted(_ARGUMENTS),
    ("arguments", "_COMMA"): Wanted("another argument", _ARGUMENTS),
    ("argument", "NAME"): Wanted("`=` and the value of this argument"),
    ("argument", "_EQUAL"): Wanted("the value of this argument", _ARGUMENTS),
    ("replacements", "replacement"): Wanted(_REPLACED),
    ("replacements", "replacements"): Wanted(_REPLACED),
    ("replacements", "_COMMA"): Wanted("what else is replaced, as in `omega = 1`"),
    ("replacement", "NAME"): Wanted("`=` and what stands for it"),
    ("replacement", "_EQUAL"): Wanted("what stands for it", _REPLACED),
    ("derivative", "DERIVATIVE"): Wanted("what is differentiated, such as `u(z, t, r)`",
                                         "`along` and a direction, or `]`"),
    ("derivative", "_ALONG"): Wanted(
        "the direction in which the state moves, such as `velocity`; `none` for none", "`]`"),
    ("group", "_LPAR"): Wanted("an expression", "`)`"),
    ("disjunction", "OR"): Wanted("another condition"),
    ("conjunction", "AND"): Wanted("another condition"),
    ("negation", "NOT"): Wanted("a condition"),
    ("comparison", "COMPARE"): Wanted("what it is compared with"),
    ("sum", "PLUS"): Wanted("what is added"),
    ("sum", "MINUS"): Wanted("what is subtracted"),
    ("product", "STAR"): Wanted("a factor"),
    ("product", "SLASH"): Wanted("a divisor"),
    ("signed", "MINUS"): Wanted("what the minus stands before"),
    ("power", "CARET"): Wanted("a power: a constant number"),
    ("header", "NAME"): Wanted('`extends`, a "title", `arXiv:NUMBER`, or ' + END),
    ("header", "_EXTENDS"): Wanted("what is extended: a name, or a path such as `../mine.flow`"),
    ("header", "_EXTENDS NAME"): Wanted('a "title", `arXiv:NUMBER`, or ' + END),
    ("header", "_EXTENDS PATH"): Wanted('a "title", `arXiv:NUMBER`, or ' + END),
    ("header", "STRING"): Wanted("`arXiv:NUMBER`, or " + END),
    ("header", "ARXIV"): Wanted(END),
    ("header", "_SEPARATOR"): Wanted("the next heading"),
    ("header", "header"): Wanted("the next heading"),
    ("$root_header", ""): Wanted("the name of the objective"),
}  # fmt: skip

#: Rules whose places lie after a whole operand, when the symbol read last is one of these.
OPERANDS = frozenset((
    "expression", "disjunction", "conjunction", "negation", "comparison", "sum", "product",
    "signed", "power", "atom", "NUMBER", "_RSQB",
))  # fmt: skip
