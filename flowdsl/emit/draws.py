"""The emitted `draw`: every random number of a loss, in the order in which the spec draws them."""

from __future__ import annotations

from fractions import Fraction

from flowdsl.diagnostics import fail
from flowdsl.emit.names import Names, identifier
from flowdsl.emit.printer import Printer
from flowdsl.ir.graph import Output
from flowdsl.ir.lower import Lowering
from flowdsl.ir.shares import exact
from flowdsl.passes.fold import fold
from flowdsl.prelude.laws import LAW_HELPERS, LAWS
from flowdsl.prelude.text import group, literal, show
from flowdsl.runtime.contract import Share
from flowdsl.spec.core import Apply, Draw, Expr, Given, Kind, Level, walk
from flowdsl.spec.objective import DrawDeclaration, DrawLine, LawCall, Objective


def share_count(shares: dict[str, Share], name: str, batch: str) -> str:
    """The exact number of rows of a share, from the batch size: `batch * 3 // 4`."""
    share = shares[name]
    whole = batch
    if share.on is not None:
        whole = share_count(shares, share.on, batch)
        whole = f"{batch} - {whole}" if share.on_others else whole
    return scaled(whole, Fraction(share.numerator, share.denominator))


def scaled(whole: str, share: Fraction) -> str:
    """floor(share * whole) in exact integer arithmetic."""
    bare = whole.endswith(".sum()") or (" // " in whole and " - " not in whole)
    whole = whole if bare else group(whole)
    times = "" if share.numerator == 1 else f" * {share.numerator}"
    return f"{whole}{times} // {share.denominator}"


class DrawWriter:
    """Writes the lines of `draw`."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.names = Names()
        self.local: dict[str, str] = {}
        self.lines: list[str] = []
        self.helpers: set[str] = set()

    def write(self, noise: bool) -> list[str]:
        """The statements, one a line; all keys are drawn."""
        if noise:
            self.local["noise"] = self.names.take("noise")
            self.lines.append("noise = torch.randn(*data.shape, **kind)")
        pending = self._ordered()
        while pending:
            line = next((p for p in pending if self._ready(p, pending)), None)
            if line is None:
                raise fail(
                    "emit", "these draws need each other", pending[0].span,
                    hint="a law may only use what is drawn before it",
                )  # fmt: skip
            pending.remove(line)
            self._line(line)
        return self.lines

    def _ordered(self) -> list[DrawLine]:
        found: list[DrawLine] = []
        for draw in self.objective.draws.values():
            found += [line for line in draw.lines if not any(line is f for f in found)]
        unique: list[DrawLine] = []
        for line in found:
            if not any(line == other and line.span == other.span for other in unique):
                unique.append(line)
        return unique

    def _ready(self, line: DrawLine, pending: list[DrawLine]) -> bool:
        waiting = {n for p in pending for n in p.names}
        for name in line.names:
            earlier = self.objective.draws[name].lines
            before = earlier[: next(i for i, x in enumerate(earlier) if x == line)]
            if any(p in before for p in pending):
                return False
        used = _draws_in(line.law) | ({d.name for d in _draws(line.rows)} if line.rows else set())
        return not (used & waiting - set(line.names))

    def _line(self, line: DrawLine) -> None:
        declared = [self.objective.draws[name] for name in line.names]
        again = all(name in self.local for name in line.names)
        text = self._drawn(line, declared[0])
        if not again or line.rows is None:  # a later line for all rows draws the name anew
            for name in line.names if not again else ():
                self.local[name] = self.names.take(identifier(name))
            self.lines.append(f"{', '.join(self.local[n] for n in line.names)} = {text}")
            return
        rows = self.text(line.rows)
        names = [self.local[n] for n in line.names]
        if len(names) == 1:
            lifted = self._lifted(rows, declared[0])
            self.lines.append(f"{names[0]} = torch.where({lifted}, {text}, {names[0]})")
            return
        fresh = [self.names.take(f"{n}_new") for n in names]
        self.lines.append(f"{', '.join(fresh)} = {text}")
        for old, new in zip(names, fresh, strict=True):
            self.lines.append(f"{old} = torch.where({rows}, {new}, {old})")

    def _lifted(self, rows: str, draw: DrawDeclaration) -> str:
        if draw.kind is not Kind.STATE:
            return rows
        return f"{group(rows)}.view(-1, *[1] * (data.ndim - 1))"

    def _drawn(self, line: DrawLine, draw: DrawDeclaration) -> str:
        shape = "*data.shape" if draw.kind is Kind.STATE else "batch"
        law = line.law
        first = line is draw.lines[0] or line == draw.lines[0]
        match law.law:
            case "share":
                return self._share(line)
            case "bernoulli":
                text = f"torch.rand(batch, **kind) < {self.argument(law.args[0])}"
                if first and line.rows is not None:
                    return f"({text}) & {group(self.text(line.rows))}"
                return text
            case "sorted":
                return self._sorted(law, shape)
        return self.law(law, shape)

    def _sorted(self, law: LawCall, shape: str) -> str:
        laws = [a for a in law.args if isinstance(a, LawCall)]
        if len(laws) == 1:
            both = self.law(laws[0], f"2, {shape}")
            return f"{group(both)}.sort(0, descending=True).values"
        pair = [self.names.take("one"), self.names.take("two")]
        self.lines += [f"{n} = {self.law(a, shape)}" for n, a in zip(pair, laws, strict=True)]
        both = ", ".join(pair)
        return f"torch.maximum({both}), torch.minimum({both})"

    def _share(self, line: DrawLine) -> str:
        share = exact(self.objective, line.law.args[0])
        if line.rows is None:
            count = (
                scaled("batch", share)
                if share is not None
                else f"int({group(self.argument(line.law.args[0]))} * batch)"
            )
            return f"torch.randperm(batch, generator=generator, device=data.device) < {count}"
        rows = self.text(line.rows)
        total = f"{rows if rows.isidentifier() else f'({rows})'}.sum()"
        count = (
            scaled(total, share)
            if share is not None
            else f"({group(self.argument(line.law.args[0]))} * {total}).floor()"
        )
        others = rows[1:] if rows.startswith("~") and rows[1:].isidentifier() else f"~{group(rows)}"
        return f"torch.rand(batch, **kind).masked_fill({others}, 2).argsort().argsort() < {count}"

    def law(self, law: LawCall, shape: str) -> str:
        """The text that draws from a law, or from a function of one."""
        if law.law not in LAWS:
            return self._function(law, shape)
        row = LAWS[law.law]
        if law.law == "truncated":
            inner, lo, hi = law.args
            assert isinstance(inner, LawCall)
            if LAWS.get(inner.law) is None or LAWS[inner.law].quantile is None:
                raise fail(
                    "emit", f"{inner.law} cannot be truncated: its quantile function is unknown",
                    inner.span or law.span,
                    hint="truncate uniform, normal, logit_normal, log_normal or power_law",
                )  # fmt: skip
            texts = [self.argument(a) for a in inner.args]
            bounds = [self.argument(lo), self.argument(hi)]
            ends = [LAWS[inner.law].distribution_text(texts, b) for b in bounds]
            for i, name in enumerate(("bottom", "top")):
                if literal(ends[i]) is None:
                    local = self.names.take(name)
                    self.lines.append(f"{local} = {ends[i]}")
                    ends[i] = local
            return LAWS[inner.law].truncated(texts, ends, bounds, shape)
        if law.law == "choice":
            values = law.args[0]
            assert isinstance(values, LawCall)
            return self._choice(values, shape)
        if row.gives == "values":
            return self._choice(law, shape)
        texts = [
            self.law(a, shape) if isinstance(a, LawCall) else self.argument(a) for a in law.args
        ]
        text = row.source(texts, shape)
        self._note(text)
        return text

    def _choice(self, values: LawCall, shape: str) -> str:
        row = LAWS[values.law]
        texts = [self.argument(a) for a in values.args]
        count = texts[0]
        if not count.isdigit():
            count = self.names.take("count")
            self.lines.append(f"{count} = int({texts[0]})")
        assert row.draw is not None
        listed = row.draw(row.texts([count, *texts[1:]]), count)
        self._note(listed)
        index = f"torch.randint({count}, ({shape},), generator=generator, device=data.device)"
        return f"{group(listed)}[{index}]"

    def _note(self, text: str) -> None:
        self.helpers |= {name for name in LAW_HELPERS if f"{name}(" in text}

    def _function(self, law: LawCall, shape: str) -> str:
        """An elementwise function of laws and values: `atan(log_normal(-1, 1.4) / sd)`."""
        lowering = Lowering(self.objective)
        parts: dict[str, str] = {}
        symbols: list[Expr] = []
        for i, argument in enumerate(law.args):
            if isinstance(argument, LawCall):
                name = f"drawn_{i}"
                parts[name] = self.law(argument, shape)
                symbols.append(Draw(name, Kind.SCALAR, Level.ROW))
            else:
                symbols.append(argument)
        return self._print(lowering, Apply(law.law, tuple(symbols)), parts)

    def argument(self, expr: Expr | LawCall) -> str:
        """A law's argument: a number, or an expression of what has been drawn."""
        if isinstance(expr, LawCall):
            raise fail("emit", "a law stands where a number is wanted", expr.span)
        value = exact(self.objective, expr)
        return show(value) if value is not None else self.text(expr)

    def text(self, expr: Expr) -> str:
        return self._print(Lowering(self.objective), expr, {})

    def _print(self, lowering: Lowering, expr: Expr, parts: dict[str, str]) -> str:
        at = lowering.expr(expr)
        graph = fold(lowering.builder.finish([Output("value", at)]))
        printer = Printer(graph, {})
        for i, node in enumerate(graph.nodes):
            if node.op == "draw":
                name = str(node.detail)
                known = {**self.local, **{k: group(v) for k, v in parts.items()}}
                if name not in known:
                    raise fail("emit", f"a law needs {name}, which is not drawn before it")
                printer.names[i] = known[name]
        text = printer.text(graph.outputs[0].loss)
        self.helpers |= printer.helpers - {"lift"}
        return text


def _draws(expr: Expr) -> list[Draw]:
    return [node for node in walk(expr) if isinstance(node, Draw)]


def _draws_in(law: LawCall) -> set[str]:
    found: set[str] = set()
    for argument in law.args:
        if isinstance(argument, LawCall):
            found |= _draws_in(argument)
        else:
            found |= {d.name for d in _draws(argument)}
    return found


def uses_noise(objective: Objective) -> bool:
    """Whether any term needs the path's own noise."""
    for term in objective.terms:
        for root in (term.loss, *(() if term.rows is None else (term.rows,))):
            for node in walk(root):
                if node == Given("noise"):
                    return True
    return False
