"""A network in PyTorch Lightning learns two new digits at a time: a script as its users write it.

python examples/lightning_digits.py
"""

import warnings

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from perdure import datasets


def digits(wanted, rows, test=False):
    """`rows` images of each of some digits, [n, 784], and their labels."""
    source = datasets.mnist().test if test else datasets.mnist().train
    labels = torch.tensor(source.labels)
    index = torch.cat([(labels == digit).nonzero()[:rows, 0] for digit in wanted])
    return source.read(index).flatten(1).float() / 255, labels[index]


class Network(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10))

    def forward(self, x):
        return self.layers(x)

    def training_step(self, batch, index):
        x, y = batch
        scores = self(x)
        return F.cross_entropy(scores, y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def main(seed=0, rows=1000, epochs=4, months=((0, 1), (2, 3), (4, 5), (6, 7), (8, 9))):
    """The share of test digits of all months that is answered rightly in the end."""
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    pl.seed_everything(seed, verbose=False)
    model = Network()
    for month in months:
        loader = DataLoader(TensorDataset(*digits(month, rows)), batch_size=32, shuffle=True)
        pl.Trainer(max_epochs=epochs, enable_model_summary=False, **quiet).fit(model, loader)
    x, y = digits(sum(months, ()), 200, test=True)
    return float((model(x).argmax(1) == y).float().mean())


if __name__ == "__main__":
    print(f"right in the end: {main():.3f}")
