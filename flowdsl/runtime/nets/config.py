"""All that is needed to build a bundled network again, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from flowdsl.diagnostics import did_you_mean, fail
from flowdsl.runtime.contract import Argument, NetworkSignature
from flowdsl.runtime.nets.sizes import Size, check_patch, choose_patch, find_size

Norm = Literal["rms", "layer"]
Positions = Literal["sincos", "learned"]
Times = Literal["together", "decoupled"]
Conditioning = Literal["adaptive", "in_context"]
Modulation = Literal["plain", "normalised"]
Start = Literal["xavier", "spectral"]

#: Tokens of a class, and of a time or a guidance scale, in context: arXiv:2512.02012, appendix A.
LABEL_TOKENS, NUMBER_TOKENS = 8, 4

_OWN = "bring your own network: any module that takes the arguments of the spec will do"


@dataclass(frozen=True)
class NetworkConfig:
    """A bundled network: how it is called, on what data, how large it is, and of which parts.

    `shape` is (channels, height, width) of a state; `classes` is None for data without labels;
    `own_blocks` is how many of the last blocks every head has to itself; `qk_norm` normalises
    queries and keys. `times` "together" shows all times to all blocks, the first as it is and
    further ones as their gap to it; "decoupled" shows the first to the encoder and the second, in
    the same embedding, to the decoder, the last blocks (arXiv:2510.24474). `conditioning`
    "adaptive" shifts, scales and gates the tokens by their row's condition; "in_context" shows
    times, scalars and label as tokens before those of the picture (arXiv:2512.02012).
    `modulation` "normalised" normalises every vector that modulates a block or a head, so that how
    far a condition moves a network doesn't depend on its size (arXiv:2511.19797, which also has
    `norm` "rms", `qk_norm` and the `start` "spectral": weights of the spectral norm one).
    `condition_width` is the width of the vectors that stand for classes where these are given, as
    embeddings of captions are. Raises a diagnostic when no bundled network is like this.
    """

    name: str
    arguments: tuple[Argument, ...]
    conditions: tuple[Argument, ...]
    heads: tuple[Argument, ...]
    shape: tuple[int, int, int]
    classes: int | None
    size: Size
    patch: int
    own_blocks: int = 0
    norm: Norm = "rms"
    qk_norm: bool = False
    positions: Positions = "sincos"
    times: Times = "together"
    conditioning: Conditioning = "adaptive"
    modulation: Modulation = "plain"
    start: Start = "xavier"
    condition_width: int | None = None

    def __post_init__(self) -> None:
        _check_call(self)
        _check_numbers(self)

    @property
    def inputs(self) -> tuple[Argument, ...]:
        """Arguments and conditions together."""
        return self.arguments + self.conditions

    @property
    def states(self) -> tuple[str, ...]:
        return tuple(a.name for a in self.inputs if a.kind == "state")

    @property
    def numbers(self) -> tuple[str, ...]:
        """Inputs that are one number per row: times and scalars."""
        return tuple(a.name for a in self.inputs if a.kind in ("time", "scalar"))

    @property
    def first_time(self) -> str | None:
        return next((a.name for a in self.arguments if a.kind == "time"), None)

    @property
    def gaps(self) -> tuple[str, ...]:
        """The times after the first among the arguments, which are seen as gaps to it."""
        return tuple(a.name for a in self.arguments if a.kind == "time")[1:]

    @property
    def features(self) -> tuple[str, ...]:
        """Inputs that another network has made: tokens (batch, tokens, width)."""
        return tuple(a.name for a in self.inputs if a.kind == "features")

    @property
    def tail(self) -> int:
        """How many of the last blocks belong to a network that goes on with another's features."""
        return max(1, round(self.size.depth / 6))

    @property
    def depth(self) -> int:
        """Blocks: a network that hands on features stops before the last ones, and a network that
        takes them has those; together they are as deep as the size says.
        """
        if self.features:
            return self.tail
        if all(a.kind == "features" for a in self.heads):
            return self.size.depth - self.tail
        return self.size.depth

    @property
    def decoder(self) -> int:
        """How many of the last blocks the second time conditions, where times are decoupled."""
        return max(1, round(self.depth * 2 / 7)) if self.times == "decoupled" else 0

    @property
    def second_time(self) -> str | None:
        """The time that conditions the decoder, where times are decoupled."""
        decoder = self.times == "decoupled" and (self.states or self.features)
        return self.gaps[0] if decoder and self.gaps else None

    @property
    def embedded(self) -> tuple[str, ...]:
        """The numbers that have an embedding of their own."""
        return tuple(name for name in self.numbers if name != self.second_time)

    @property
    def label(self) -> str | None:
        return next((a.name for a in self.inputs if a.kind == "label"), None)

    @property
    def prefixes(self) -> tuple[int, ...]:
        """Tokens in context: of every embedded number, and last of the label."""
        if self.conditioning != "in_context":
            return ()
        label = (LABEL_TOKENS,) if self.label is not None and self.classes is not None else ()
        return (NUMBER_TOKENS,) * len(self.embedded) + label

    @property
    def prefix(self) -> int:
        """How many tokens stand before those of the picture."""
        return sum(self.prefixes)

    @property
    def tokens(self) -> int:
        _, height, width = self.shape
        return (height // self.patch) * (width // self.patch)

    def as_dict(self) -> dict[str, Any]:
        """Plain data: strings, numbers, lists and dictionaries, as JSON has them."""
        plain = asdict(self)
        lists = ("arguments", "conditions", "heads", "shape")
        return {name: list(v) if name in lists else v for name, v in plain.items()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> NetworkConfig:
        """The inverse of `as_dict`; raises a diagnostic for what is unknown or missing."""
        known = {f.name for f in fields(cls)}
        for name in plain:
            if name not in known:
                hint = did_you_mean(name, known) or "was it saved by a newer version?"
                raise fail("network", f'a network has no setting "{name}"', hint=hint)
        settings = dict(plain)
        try:
            for name in ("arguments", "conditions", "heads"):
                settings[name] = tuple(Argument(**a) for a in plain[name])
            settings |= {"shape": tuple(plain["shape"]), "size": Size(**plain["size"])}
            return cls(**settings)
        except (KeyError, TypeError) as error:
            message = f"the description of a network is broken: {error}"
            raise fail("network", message, hint="is the checkpoint complete?") from error


def configure(
    signature: NetworkSignature,
    *,
    shape: tuple[int, int, int],
    classes: int | None = None,
    size: str = "nano",
    patch: int | None = None,
    parts: Mapping[str, Any] | None = None,
) -> NetworkConfig:
    """The configuration for a network role of a spec, with the usual parts but for `parts`.

    Raises a diagnostic when the size is unknown, the patch doesn't divide the picture, or the role
    needs something that no bundled network has.
    """
    found = find_size(size)
    return NetworkConfig(
        name=signature.name,
        arguments=signature.arguments,
        conditions=signature.conditions,
        heads=signature.heads or (Argument(signature.name, "state"),),
        shape=shape,
        classes=classes,
        size=found,
        patch=choose_patch(found, *shape[1:]) if patch is None else patch,
        **(parts or {}),
    )


def _check_call(config: NetworkConfig) -> None:
    """What goes in and what comes out."""
    problem = ""
    others = [a for a in config.heads if a.kind not in ("state", "scalar", "features")]
    if others:
        problem = f'returns a {others[0].kind} ("{others[0].name}")'
    elif sum(a.kind == "label" for a in config.inputs) > 1:
        problem = "takes several labels"
    elif not config.inputs:
        problem = "takes no argument"
    elif len(config.features) > 1:
        problem = "takes the features of several networks"
    elif not config.states and not config.features:
        wanted = [a.kind for a in config.heads if a.kind != "scalar"]
        problem = f"returns a {wanted[0]} but sees none" if wanted else ""
    if problem:
        can = "from states, features, times, scalars and one label to states, features and scalars"
        facts = [("can build", can)]
        raise fail("network", f"{config.name} {problem}", facts=facts, hint=_OWN)


def _check_numbers(config: NetworkConfig) -> None:
    size, problem, hint = config.size, "", ""
    if len(config.shape) != 3 or min(config.shape) < 1:
        problem = f"it works on (channels, height, width), not on {tuple(config.shape)}"
        hint = _OWN
    elif config.classes is not None and config.classes < 1:
        problem = f"the number of classes must be positive, or None, not {config.classes}"
    elif min(size.depth, size.width, size.heads) < 1 or size.width % (4 * size.heads):
        problem = f"a width of {size.width} is not a multiple of 4 times {size.heads} heads"
    elif not 0 <= config.own_blocks <= size.depth:
        problem = f"{config.own_blocks} own blocks per head, of {size.depth} blocks in all"
    else:
        problem, hint = _wrong_part(config)
    if problem:
        raise fail("network", f"the bundled network cannot be built: {problem}", hint=hint)
    check_patch(config.patch, *config.shape[1:])


def _wrong_part(config: NetworkConfig) -> tuple[str, str]:
    """What is unknown among the parts, or doesn't go together; and what to choose."""
    choices = {
        "norm": Norm,
        "times": Times,
        "positions": Positions,
        "conditioning": Conditioning,
        "modulation": Modulation,
        "start": Start,
    }
    for name, choice in choices.items():
        if (value := getattr(config, name)) not in get_args(choice):
            return f'unknown {name} "{value}"', " or ".join(get_args(choice))
    if config.conditioning == "in_context" and config.times == "decoupled":
        return (
            "tokens in context are seen by all blocks, decoupled times are not",
            "conditioning=adaptive, or times=together",
        )
    if config.conditioning == "in_context" and config.modulation == "normalised":
        return (
            "with tokens in context, no condition modulates a block",
            "conditioning=adaptive, or modulation=plain",
        )
    return "", ""
