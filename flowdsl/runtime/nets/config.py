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

_OWN = "bring your own network: any module that takes the arguments of the spec will do"


@dataclass(frozen=True)
class NetworkConfig:
    """A bundled network: how it is called, on what data, how large it is, and of which parts.

    `shape` is (channels, height, width) of a state; `classes` is None for data without labels;
    `own_blocks` is how many of the last blocks every head has to itself; `qk_norm` normalises
    queries and keys. Raises a diagnostic when no bundled network is like this.
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
    def label(self) -> str | None:
        return next((a.name for a in self.inputs if a.kind == "label"), None)

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
) -> NetworkConfig:
    """The configuration for a network role of a spec, with the usual parts.

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
    )


def _check_call(config: NetworkConfig) -> None:
    """What goes in and what comes out."""
    problem = ""
    features = [a.name for a in config.inputs + config.heads if a.kind == "features"]
    others = [a for a in config.heads if a.kind not in ("state", "scalar", "features")]
    if features:
        problem = f'has features ("{features[0]}") in its call, which no bundled network knows'
    elif others:
        problem = f'returns a {others[0].kind} ("{others[0].name}")'
    elif sum(a.kind == "label" for a in config.inputs) > 1:
        problem = "takes several labels"
    elif not config.inputs:
        problem = "takes no argument"
    elif not config.states and any(a.kind == "state" for a in config.heads):
        problem = "returns a state but sees none"
    if problem:
        can = "from states, times, scalars and one label to states and scalars"
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
    elif config.norm not in get_args(Norm):
        problem, hint = f'unknown norm "{config.norm}"', " or ".join(get_args(Norm))
    elif config.positions not in get_args(Positions):
        problem, hint = f'unknown positions "{config.positions}"', " or ".join(get_args(Positions))
    if problem:
        raise fail("network", f"the bundled network cannot be built: {problem}", hint=hint)
    check_patch(config.patch, *config.shape[1:])
