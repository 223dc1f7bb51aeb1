"""Which reference belongs to which shipped objective."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from tests.reference import (
    alphaflow,
    consistency,
    decoupled,
    diffusion,
    distillation,
    flow_matching,
    imf,
    meanflow,
    self_distillation,
    shortcut,
    trajectory_flow_matching,
    transition,
    trigonometric,
    tvm,
    uaimf,
)

Reference = Callable[..., tuple[Tensor, dict[str, Tensor]]]

#: The loss of each objective, and constants to try beside the spec's own.
REFERENCES: dict[str, tuple[Reference, dict[str, float]]] = {
    "flow_matching": (flow_matching.loss, {}),
    "flow_matching_skewed": (flow_matching.loss, {}),
    "rectified_flow": (flow_matching.without_labels, {}),
    "reflow": (flow_matching.straightened, {}),
    "ddpm": (diffusion.ddpm, {"last": 0.03}),
    "vp_diffusion": (diffusion.variance_preserving, {"lo": 0.2, "hi": 10.0}),
    "meanflow": (meanflow.loss, {"omega": 0.2, "kappa": 0.92, "hi": 0.8}),
    "meanflow_random_diagonal": (meanflow.loss, {"omega": 0.6, "kappa": 0.1, "lo": 0.3}),
    "meanflow_cifar": (meanflow.without_labels, {}),
    "meanflow_cifar_wide": (meanflow.without_labels, {}),
    "uaimf": (uaimf.loss, {"kappa": 0.3, "balance": 1.5, "gamma": 2.0}),
    "uaimf_sampling": (uaimf.sampling, {"omega": 0.7, "balance": 1.1}),
    "alphaflow": (alphaflow.loss, {"omega": 0.2, "kappa": 0.92, "lo": 0.1, "hi": 0.75}),
    "alphaflow_plain": (alphaflow.plain, {}),
    "alphaflow_squared": (alphaflow.in_theory, {}),
    "alphaflow_xl": (alphaflow.largest, {"omega": 0.5, "lo": 0.2}),
    "trajectory_flow_matching": (trajectory_flow_matching.loss, {"kappa": 0.3}),
    "shortcut": (shortcut.loss, {}),
    "tvm": (tvm.loss, {"w": 1.5}),
    "lagrangian_self_distillation": (self_distillation.lagrangian, {}),
    "eulerian_self_distillation": (self_distillation.eulerian, {}),
    "progressive_self_distillation": (self_distillation.progressive, {}),
    "progressive_self_distillation_midpoint": (self_distillation.progressive, {}),
    "imf": (imf.loss, {}),
    "imf_boundary": (partial(imf.loss, second=False), {}),
    "decoupled_meanflow": (decoupled.loss, {"k": 0.4, "lo": 0.2}),
    "decoupled_meanflow_released": (decoupled.released, {"k": 0.9, "hi": 0.5}),
    "split_meanflow": (distillation.split, {"scale": 1.5}),
    "flow_map_lagrangian_distillation": (distillation.matching_lagrangian, {}),
    "flow_map_eulerian_distillation": (distillation.matching_eulerian, {}),
    "align_your_flow": (distillation.align, {"cap": 0.6, "warmup": 80.0}),
    "align_your_flow_lagrangian": (partial(distillation.align, lagrangian=True), {}),
    "free_flow": (distillation.without_data, {"gamma": 1.5, "strength": 0.4}),
    "trigonometric_flow": (trigonometric.flow, {"sd": 0.8}),
    "scm": (trigonometric.consistency, {"sd": 0.8, "warmup": 60.0}),
    "scm_distillation": (trigonometric.consistency, {"sd": 0.7, "warmup": 50.0}),
    "trigonometric_flow_unit": (partial(trigonometric.flow, sd=1.0), {}),
    "rcm": (trigonometric.regularised, {"warmup": 60.0, "scale": 1.5}),
    "tmd_meanflow": (transition.head_on_features, {"scale": 1.7}),
    "tmd_distribution": (transition.sharpened, {"scale": 2.0}),
    "tmd_distribution_drawn": (partial(transition.sharpened, drawn=True), {"scale": 1.5}),
    "meta_flow_maps": (transition.posterior, {}),
    "continuous_consistency_training": (consistency.continuous, {"sd": 0.7}),
    "denoiser": (consistency.denoiser, {"sd": 0.7}),
    "consistency_training": (consistency.training, {"sd": 0.7, "least": 0.01, "s1": 40.0}),
    "improved_consistency_training": (consistency.improved, {"sd": 0.7, "most": 40.0, "c": 0.3}),
    "consistency_distillation": (consistency.distillation, {"sd": 0.7, "levels": 40.0}),
    "consistency_trajectory": (consistency.trajectory, {"sd": 0.7, "balance": 3.0}),
    "easy_consistency_tuning": (consistency.tuning, {"sd": 0.7, "q": 4.0, "levels": 5.0}),
}


def reference(name: str, constants: dict[str, float]) -> Reference:
    """The reference of an objective with these constants."""
    return partial(REFERENCES[name][0], **constants)
