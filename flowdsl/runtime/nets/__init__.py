"""The bundled networks. Any other module that takes the arguments of a spec serves as well."""

from flowdsl.runtime.nets.build import build_network, network_from_config
from flowdsl.runtime.nets.config import NetworkConfig, configure
from flowdsl.runtime.nets.dit import DiT, Network, ScalarNetwork
from flowdsl.runtime.nets.sizes import SIZES, Size

__all__ = [
    "SIZES",
    "DiT",
    "Network",
    "NetworkConfig",
    "ScalarNetwork",
    "Size",
    "build_network",
    "configure",
    "network_from_config",
]
