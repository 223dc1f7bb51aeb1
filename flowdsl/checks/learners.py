"""Who learns through what: every network, and with players every player, by the terms it reads.

A player's step moves its own networks alone: what its terms send into another player's is computed
and thrown away. Without players all networks share one optimiser and learn from every term that
reaches them, which a network with an aim of its own must not.
"""

from __future__ import annotations

from collections.abc import Iterable

from flowdsl.checks.report import Verdict
from flowdsl.diagnostics import Diagnostic
from flowdsl.spec.core import Evaluate, Kind, PathState, walk
from flowdsl.spec.objective import Network, Objective, Player, Term
from flowdsl.truth.live import live_calls, taught

NAME = "gradient"


def learners(objective: Objective) -> list[Verdict]:
    """Who learns from which terms, and what is lost or reached by mistake."""
    learning = [n for n in objective.networks.values() if not n.frozen and n.average_of is None]
    reached = {n.name: _terms(objective, n.name) for n in learning}
    verdicts = [_lost(n) for n in learning if not reached[n.name]]
    if verdicts:
        return verdicts
    if not objective.players:
        return [_shared(reached), *_misled(objective, learning)]
    for player in objective.players:
        verdicts += _player(objective, player, reached)
    verdicts += _unplayed(objective)
    wrong = [v for v in verdicts if not v.ok]
    if not wrong:
        told = "; ".join(_told(player, reached) for player in objective.players)
        verdicts.insert(0, Verdict(NAME, "proved", told))
    return verdicts


def _terms(objective: Objective, network: str) -> list[Term]:
    """The terms whose gradient reaches a network."""
    return [
        term for term in objective.terms
        if any(call.network == network for call in live_calls(objective, term.loss))
    ]  # fmt: skip


def _lost(network: Network) -> Verdict:
    message = f"{network.name} receives no gradient"
    hint = "predict with it outside stop( ), or declare it frozen"
    return _refuted(message, Diagnostic(NAME, message, network.span, hint=hint))


def _refuted(message: str, diagnostic: Diagnostic, term: str = "") -> Verdict:
    return Verdict(NAME, "refuted", message, term, diagnostic=diagnostic)


def _shared(reached: dict[str, list[Term]]) -> Verdict:
    """All networks of one optimiser; by which terms where they differ."""
    everything = {tuple(t.name for t in terms) for terms in reached.values()}
    if len(everything) == 1:
        word = "receives" if len(reached) == 1 else "receive"
        return Verdict(NAME, "proved", f"{', '.join(reached)} {word} gradient")
    told = "; ".join(f"{name} by {_names(terms)}" for name, terms in reached.items())
    return Verdict(NAME, "proved", f"gradient reaches {told}")


def _names(terms: Iterable[Term]) -> str:
    return ", ".join(term.name for term in terms)


def _told(player: Player, reached: dict[str, list[Term]]) -> str:
    """`student: F by target, correction`."""
    own = {name for name, _ in player.terms}
    parts = [
        f"{network} by {_names(t for t in reached[network] if t.name in own)}"
        for network in player.networks
    ]
    return f"{player.name}: {', '.join(parts)}"


def _player(objective: Objective, player: Player, reached: dict[str, list[Term]]) -> list[Verdict]:
    """Networks of a player that none of its terms reaches, and terms that reach none of them."""
    own = [name for name, _ in player.terms]
    verdicts = []
    for network in player.networks:
        if any(term.name in own for term in reached[network]):
            continue
        elsewhere = _names(reached[network])
        message = f"{player.name}: {network} receives no gradient from {', '.join(own)}"
        hint = (
            f"gradient reaches it in {elsewhere}: let {player.name} learn from that, or take "
            f"{network} out of its stop( )"
        )
        verdicts.append(_refuted(message, Diagnostic(NAME, message, player.span, hint=hint)))
    for term in (t for t in objective.terms if t.name in own):
        live = {call.network for call in live_calls(objective, term.loss)}
        if live and not live & set(player.networks):
            message = f"{player.name} learns nothing from {term.name}: none of its networks is live"
            hint = f"leave {term.name} to the player of {', '.join(sorted(live))}"
            verdicts.append(
                _refuted(message, Diagnostic(NAME, message, player.span, hint=hint), term.name)
            )
        verdicts += _thrown_away(objective, player, term)
    return verdicts


def _thrown_away(objective: Objective, player: Player, term: Term) -> list[Verdict]:
    """Gradient into a network of another player, where a stop( ) would spare it.

    Where a player's own network stands inside of the other's, as a sample that is judged, gradient
    has to pass through the other's evaluation.
    """
    others = {
        network: other.name
        for other in objective.players
        if other is not player and term.name not in {name for name, _ in other.terms}
        for network in other.networks
    }
    found: dict[str, None] = {}
    for call in live_calls(objective, term.loss):
        passes = any(
            inner.network in player.networks
            for argument in call.args
            for inner in live_calls(objective, argument)
        )
        if call.network in others and not passes:
            found[call.network] = None
    verdicts = []
    for network in found:
        message = (
            f"gradient of {term.name} also reaches {network}, which learns with {others[network]}: "
            "it is thrown away, since a player's step moves its own networks alone"
        )
        hint = f"write stop( ) around {network}(…): the same steps for less time and memory"
        diagnostic = Diagnostic(NAME, message, term.span, hint=hint, severity="warning")
        verdicts.append(Verdict(NAME, "note", message, term.name, diagnostic=diagnostic))
    return verdicts


def _unplayed(objective: Objective) -> list[Verdict]:
    """Terms from which nobody learns."""
    played = {name for player in objective.players for name, _ in player.terms}
    verdicts = []
    for term in objective.terms:
        if term.name not in played:
            message = f"no player learns from {term.name}"
            hint = "name it under `players`, or leave it out"
            verdicts.append(
                _refuted(message, Diagnostic(NAME, message, term.span, hint=hint), term.name)
            )
    return verdicts


def _misled(objective: Objective, learning: list[Network]) -> list[Verdict]:
    """A network that learns from samples, moved by a term that teaches what makes them.

    Both share an optimiser where there are no players: a judge of samples would learn to please
    the network that makes them, and that one to be easy to judge.
    """
    makers = _makers(objective)
    verdicts = []
    for network in (n.name for n in learning if n.name not in makers):
        own = [t for t in objective.terms if _teaches(objective, t, network, makers)]
        if not any(_sees_samples(objective, term, network) for term in own or objective.terms):
            continue
        for term in objective.terms:
            live = {call.network for call in live_calls(objective, term.loss)}
            if network not in live or not live & makers:
                continue
            names = ", ".join(sorted(live & makers))
            if term in own or not own:
                message = f"{term.name} moves {names} too, through the samples that {network} sees"
                hint = f"write stop( ) around what {names} makes, unless both are meant to learn"
                shown = Diagnostic(NAME, message, term.span, hint=hint, severity="warning")
                verdicts.append(Verdict(NAME, "note", message, term.name, diagnostic=shown))
                continue
            message = f"{term.name} moves {network} too, which learns by {_names(own)}"
            hint = f"say under `players` who learns from what, or write stop( ) around {network}(…)"
            shown = Diagnostic(NAME, message, term.span, hint=hint)
            verdicts.append(_refuted(message, shown, term.name))
    return verdicts


def _makers(objective: Objective) -> set[str]:
    """The networks of the maps, and those whose answers are states that others are shown."""
    bodies = [flow_map.body for flow_map in objective.maps.values()]
    found = {node.network for body in bodies for node in walk(body) if isinstance(node, Evaluate)}
    for term in objective.terms:
        for node in walk(term.loss):
            if isinstance(node, Evaluate):
                found |= {inner.network for inner in _shown(objective, node)}
    return found


def _teaches(objective: Objective, term: Term, network: str, makers: set[str]) -> bool:
    """Is a term there for this network: as what is predicted, or as all that is live?"""
    if term.target is not None:
        call = taught(objective, term.prediction, term.target)
        return call is not None and call.network == network
    live = {call.network for call in live_calls(objective, term.loss)}
    return network in live and not live & makers


def _sees_samples(objective: Objective, term: Term, network: str) -> bool:
    calls = (n for n in walk(term.loss) if isinstance(n, Evaluate) and n.network == network)
    return any(_shown(objective, call) for call in calls)


def _shown(objective: Objective, call: Evaluate) -> list[Evaluate]:
    """The networks that made the states that a network is shown, or the data in them."""
    seen = [a.data if isinstance(a, PathState) else a for a in call.args]
    return [
        inner for expr in seen for inner in walk(expr)
        if isinstance(inner, Evaluate) and objective.kind(inner) is Kind.STATE
    ]  # fmt: skip
