"""Models that grow: built-in networks, and the way to make one of your own."""

from perdure.models.adapt import Adapted, adapt
from perdure.models.convnet import convnet
from perdure.models.head import Head, Network
from perdure.models.mlp import mlp
from perdure.models.modes import evaluating
from perdure.models.resnet import resnet18
from perdure.models.table import MODELS, build, initialise, untouched

__all__ = [
    "MODELS",
    "Adapted",
    "Head",
    "Network",
    "adapt",
    "build",
    "convnet",
    "evaluating",
    "initialise",
    "mlp",
    "resnet18",
    "untouched",
]
