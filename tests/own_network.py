"""A network of a user's own, for stores that begin with a trained one."""

import torch
from torch import nn


def build() -> nn.Module:
    """Four numbers to two scores, drawn from a seed."""
    torch.manual_seed(0)
    network = nn.Sequential()
    network.body, network.fc = nn.Sequential(nn.Linear(4, 32), nn.ReLU()), nn.Linear(32, 2)
    return network
