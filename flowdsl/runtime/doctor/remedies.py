"""What errors of differentiation say, and what to do about each."""

from __future__ import annotations

FALLBACK = 'or take finite differences: compile(derivative="finite_difference")'

_REMEDIES = (
    (
        "scaled_dot_product",
        "the fused kernels of attention have none; call it under "
        "torch.nn.attention.sdpa_kernel(SDPBackend.MATH), or use flowdsl.runtime.nets.attention; "
        + FALLBACK,
    ),
    ("setup_context", f"an autograd.Function needs a setup_context and a jvp; {FALLBACK}"),
    ("custom Function", f"an autograd.Function needs a jvp of its own; {FALLBACK}"),
    (
        "mutate a captured",
        "it changes a buffer while it is differentiated, as BatchNorm does: use GroupNorm or "
        "LayerNorm, or keep that layer in evaluation mode",
    ),
    (
        "CheckpointError",
        "activation checkpointing does not work inside a forward derivative that gradients flow "
        "through: switch it off for this objective",
    ),
    ("data pointer", "it is wrapped for distribution: hand in the bare network"),
)


def known_remedy(said: str, otherwise: str) -> str:
    """The remedy for an error that says this; `otherwise` where it is not a known one."""
    return next((text for word, text in _REMEDIES if word in said), otherwise)
