"""The grammar: one expression language, shared forms of line, and one rule per section keyword.

A keyword's own rule comes with its clause; `assemble` joins them into one conflict-free LALR(1)
grammar.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from flowdsl.diagnostics import Span
from flowdsl.syntax.layout import NAME
from flowdsl.syntax.tree import Line

#: Builds a line from the children of its rule: names as strings, expressions as nodes.
LineBuilder = Callable[[Span, list[object]], Line]


@dataclass(frozen=True)
class Wanted:
    """What belongs at a place of a line, in words, and how the line goes on after it.

    `then` is empty where something else around the place says how it goes on.
    """

    what: str
    then: str = ""


#: How most lines end.
END = "the end of the line"
END_ON = "`on` and a condition, or the end of the line"


@dataclass(frozen=True)
class SectionSyntax:
    """How the lines under one heading are written.

    `rule` is the right-hand side of the lark rule for one line; `extra` holds further rules it
    needs; `builders` maps aliases and extra rules to functions that build nodes; `form` says in
    words what a line looks like, for messages. `wanted` says what belongs at each place of the
    rule, by the symbols read last (`"_LPAR NAME"`), in rules of `extra` after the rule's name
    (`"head: NAME"`).
    """

    keyword: str
    rule: str
    form: str
    builders: Mapping[str, LineBuilder] = field(default_factory=dict)
    extra: str = ""
    wanted: Mapping[str, Wanted] = field(default_factory=dict)


_COMMON = r"""
?expression: disjunction
?disjunction: conjunction
    | disjunction OR conjunction            -> binary
?conjunction: negation
    | conjunction AND negation              -> binary
?negation: comparison
    | NOT negation                          -> unary
?comparison: sum
    | sum (COMPARE sum)+                    -> comparison
?sum: product
    | sum (PLUS | MINUS) product            -> binary
?product: signed
    | product (STAR | SLASH) signed         -> binary
?signed: power
    | MINUS signed                          -> unary
?power: atom
    | atom CARET signed                     -> binary
?atom: NUMBER                               -> number
    | NAME                                  -> name
    | NAME _LPAR [arguments] [_BAR replacements] _RPAR      -> call
    | DERIVATIVE expression [_ALONG expression] _RSQB        -> derivative
    | _LPAR expression _RPAR                -> group
arguments: argument (_COMMA argument)*
?argument: expression
    | NAME _EQUAL expression                -> replacement
replacements: replacement (_COMMA replacement)*
replacement: NAME _EQUAL expression

binding: NAME [_LPAR parameters _RPAR] _EQUAL expression [_ON expression]
parameters: NAME (_COMMA NAME)*
draw: names _TILDE expression [_ON expression]
names: NAME (_COMMA NAME)*
labelled: [NAME _COLON] expression [_ON expression]

header: NAME [_EXTENDS (NAME | PATH)] [STRING] [ARXIV] _SEPARATOR*

OR: "or"
AND: "and"
NOT: "not"
_ON: "on"
_TO: "to"
_ALONG: "along"
_EXTENDS: "extends"
COMPARE: "<=" | ">=" | "==" | "!=" | "<" | ">"
PLUS: "+"
MINUS: "-"
STAR: "*"
SLASH: "/"
CARET: "^"
_LPAR: "("
_RPAR: ")"
_RSQB: "]"
_COMMA: ","
_BAR: "|"
_EQUAL: "="
_TILDE: "~"
_COLON: ":"
_ARROW: "->"
NUMBER: /[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?/
STRING: /"[^"\n]*"/
PATH.2: /[^\s;"#]*[^\s;"#\/]\.flow(?![^\s;#])/
ARXIV.2: /arXiv:[^\s;]+/
_SEPARATOR: /[ \t]*[;\n][;\s]*/
_BLANK: /[ \t\n]+/
%ignore _BLANK
"""


def assemble(sections: Sequence[SectionSyntax]) -> str:
    """The whole grammar as lark text, with one start rule `section_KEYWORD` per heading."""
    rules = [
        _COMMON,
        f"NAME: /{NAME}/",
        f"DERIVATIVE.3: /d\\/d(?:{NAME})[ \\t]*\\[/",
    ]
    for section in sections:
        line = f"line_{section.keyword}"
        rules.append(
            f"section_{section.keyword}: _SEPARATOR? [{line} (_SEPARATOR {line})* _SEPARATOR?]\n"
            f"?{line}: {section.rule}\n{section.extra}"
        )
    return "\n".join(rules)
