"""How to train: one frozen record, checked by pydantic. The mathematics is the spec's; nothing of
it is here.

The defaults are the recipe for the embedded digits: with MeanFlow, one-step samples that a person
can read after some three minutes on two cores.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

Decay = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]


def _rate(word: str) -> str:
    """A player and a positive factor."""
    player, _, factor = word.rpartition(":")
    try:
        fits = bool(player) and 0 < float(factor) < math.inf
    except ValueError:
        fits = False
    if not fits:
        raise PydanticCustomError("rate", "a player and a positive factor, such as critic:0.5")
    return word


Rate = Annotated[str, AfterValidator(_rate)]


class OptimizerConfig(BaseModel):
    """AdamW or RAdam, with a linear warm-up."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[
        Literal["adamw", "radam"],
        Field(description="radam rectifies the step while its second moment is uncertain"),
    ] = "adamw"
    learning_rate: Annotated[
        float,
        Field(gt=0, le=10, description="at its peak; a larger network wants less (DiT-B: 1e-4)"),
    ] = 4e-3
    schedule: Annotated[
        Literal["constant", "cosine"],
        Field(description="after the warm-up: constant, or down to a tenth along a cosine"),
    ] = "cosine"
    warmup: Annotated[int, Field(ge=0, description="steps of linear warm-up")] = 100
    betas: Annotated[tuple[Decay, Decay], Field(description="decays of Adam's two moments")] = (
        0.9,
        0.95,
    )
    epsilon: Annotated[
        float, Field(gt=0, description="added to the root of Adam's second moment")
    ] = 1e-8
    rates: Annotated[
        tuple[Rate, ...],
        Field(description="factors of a player's learning rate, such as critic:0.5,student:2"),
    ] = ()
    weight_decay: Annotated[float, Field(ge=0, description="of matrices, not of vectors")] = 0.0
    clip: Annotated[float, Field(gt=0, description="largest norm of the whole gradient")] = 10.0


class NetworkParts(BaseModel):
    """Parts of the bundled networks that a recipe may choose."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    norm: Annotated[Literal["rms", "layer"], Field(description="normalisation of tokens")] = "rms"
    qk_norm: Annotated[bool, Field(description="normalise queries and keys")] = False
    own_blocks: Annotated[
        int,
        Field(ge=0, description="the last blocks that each of several outputs has for itself"),
    ] = 0
    times: Annotated[
        Literal["together", "decoupled"],
        Field(description="all times to all blocks, or the second to the decoder's blocks only"),
    ] = "together"
    conditioning: Annotated[
        Literal["adaptive", "in_context"],
        Field(description="times and label modulate the blocks, or are tokens that these attend"),
    ] = "adaptive"
    modulation: Annotated[
        Literal["plain", "normalised"],
        Field(description="normalise what modulates: smooth in times, with norm rms and qk_norm"),
    ] = "plain"
    start: Annotated[
        Literal["xavier", "spectral"],
        Field(description="law of the first weights; spectral: then each of spectral norm one"),
    ] = "xavier"


class TrainConfig(BaseModel):
    """Everything about a run that is not in the spec."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Annotated[str, Field(description="dataset, e.g. digits or folder:/path")] = "digits"
    resolution: Annotated[
        int | None, Field(ge=4, le=1024, description="pixels; none is the data's own")
    ] = None
    conditions: Annotated[
        str | None,
        Field(description="file of embeddings, one per image: .npy, .safetensors, .jsonl"),
    ] = None
    size: Annotated[str, Field(description="size of the bundled network")] = "nano"
    patch: Annotated[
        int | None, Field(ge=1, description="patch of the network in pixels; none chooses")
    ] = None
    steps: Annotated[Count, Field(description="optimiser steps")] = 3000
    batch: Annotated[Count, Field(description="rows of data per step")] = 128
    accumulate: Annotated[
        Count, Field(description="parts that a batch is computed in, one after the other")
    ] = 1
    seed: Annotated[int, Field(ge=0, description="of weights, data order and draws")] = 0
    device: Annotated[str, Field(description="auto, cpu, cuda, cuda:1, mps")] = "auto"
    precision: Annotated[
        Literal["float32", "bfloat16"],
        Field(description="of the network's arithmetic; times stay float32"),
    ] = "float32"
    compile: Annotated[
        bool,
        Field(description="run the loss under torch.compile, each graph checked against eager"),
    ] = False
    backend: Annotated[str, Field(description="the compiler of torch.compile")] = "inductor"
    recompute: Annotated[
        bool,
        Field(description="compute blocks again in the backward pass: less memory, more time"),
    ] = False
    network: NetworkParts = NetworkParts()
    optimizer: OptimizerConfig = OptimizerConfig()
    ema: Annotated[
        tuple[Decay, ...],
        Field(min_length=1, description="decays of the averaged weights; the first one samples"),
    ] = (0.995,)
    log_every: Annotated[Count, Field(description="steps per line of the log")] = 50
    sample_every: Annotated[
        int, Field(ge=0, description="steps between pictures; 0 is only at the end")
    ] = 500
    checkpoint_every: Annotated[
        int, Field(ge=0, description="steps between checkpoints; 0 is only at the end")
    ] = 500
    keep: Annotated[Count, Field(description="how many checkpoints are kept")] = 2
    sample_steps: Annotated[
        tuple[Count, ...] | None,
        Field(
            min_length=1,
            description="steps of the sampler, a block of the picture each; none suits the spec",
        ),
    ] = None
    patience: Annotated[
        Count, Field(description="steps in a row that may be skipped for numbers not finite")
    ] = 10
    tensorboard: Annotated[bool, Field(description="also write TensorBoard's files")] = True

    @field_validator("accumulate")
    @classmethod
    def _divides_the_batch(cls, value: int, info: ValidationInfo) -> int:
        batch = info.data.get("batch", value)
        if batch % value:
            raise PydanticCustomError("parts", f"a number that divides the batch of {batch}")
        return value
