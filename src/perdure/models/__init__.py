"""Models that grow: built-in networks, and the way to make one of your own."""

from perdure.models.adapt import Adapted, adapt
from perdure.models.columns import Columns, columns
from perdure.models.convnet import convnet
from perdure.models.generators import VAE, WGAN, Generator
from perdure.models.head import Head, Network
from perdure.models.mlp import mlp
from perdure.models.modes import aside, evaluating
from perdure.models.modular import Modular
from perdure.models.ratings import Ratings, ratings
from perdure.models.resnet import resnet18
from perdure.models.table import CHOSEN, MODELS, build, initialise, untouched
from perdure.models.tabular import tabular
from perdure.models.text import text

__all__ = [
    "CHOSEN",
    "MODELS",
    "VAE",
    "WGAN",
    "Adapted",
    "Columns",
    "Generator",
    "Head",
    "Modular",
    "Network",
    "Ratings",
    "adapt",
    "aside",
    "build",
    "columns",
    "convnet",
    "evaluating",
    "initialise",
    "mlp",
    "ratings",
    "resnet18",
    "tabular",
    "text",
    "untouched",
]
