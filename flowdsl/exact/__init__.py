"""Exact probability flows in float64: Gaussian mixtures, flow maps, certificates of losses."""

from flowdsl.exact.certificate import Certificate, certify
from flowdsl.exact.estimation import LossLike, Moment, Posterior, Sampling
from flowdsl.exact.field import Guidance, MixtureField
from flowdsl.exact.flow import FlowMap, VelocityField
from flowdsl.exact.gaussian import GaussianField
from flowdsl.exact.mixture import GaussianMixture
from flowdsl.exact.networks import (
    ExactNetwork,
    RandomDirections,
    Truth,
    average_velocity,
    marginal_velocity,
    scaled_average_velocity,
    solved_map,
)
from flowdsl.exact.paths import (
    AffinePath,
    Clock,
    asinh_clock,
    cosine_path,
    linear_path,
    trigonometric_path,
    variance_exploding_path,
    variance_preserving_path,
)

__all__ = [
    "AffinePath",
    "Certificate",
    "Clock",
    "ExactNetwork",
    "FlowMap",
    "GaussianField",
    "GaussianMixture",
    "Guidance",
    "LossLike",
    "MixtureField",
    "Moment",
    "Posterior",
    "RandomDirections",
    "Sampling",
    "Truth",
    "VelocityField",
    "asinh_clock",
    "average_velocity",
    "certify",
    "cosine_path",
    "linear_path",
    "marginal_velocity",
    "scaled_average_velocity",
    "solved_map",
    "trigonometric_path",
    "variance_exploding_path",
    "variance_preserving_path",
]
