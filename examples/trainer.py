"""A vision transformer in the Trainer of Transformers learns two new digits at a time: a script as its users write it.

python examples/trainer.py
"""

from dataclasses import dataclass
from tempfile import TemporaryDirectory

import torch
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification, set_seed

from perdure import datasets

CONFIG = ViTConfig(
    image_size=28, patch_size=7, num_channels=1, hidden_size=48, num_hidden_layers=2, num_attention_heads=4,
    intermediate_size=96, num_labels=10, initializer_range=0.1,
)  # fmt: skip


@dataclass
class Digits:
    """`rows` images of each of some digits, as features for the Trainer."""

    wanted: tuple[int, ...]
    rows: int
    test: bool = False

    def __post_init__(self):
        source = datasets.mnist().test if self.test else datasets.mnist().train
        labels = torch.tensor(source.labels)
        self.index = torch.cat([(labels == digit).nonzero()[: self.rows, 0] for digit in self.wanted])
        self.pixels, self.labels = source.read(self.index).float() / 255, labels[self.index]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, row):
        return {"pixel_values": self.pixels[row], "labels": int(self.labels[row])}


def main(seed=0, rows=1000, epochs=4, months=((0, 1), (2, 3), (4, 5), (6, 7), (8, 9))):
    """The share of test digits of all months that is answered rightly in the end."""
    set_seed(seed)
    model = ViTForImageClassification(CONFIG)
    with TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, num_train_epochs=epochs, per_device_train_batch_size=32, per_device_eval_batch_size=200, seed=seed,
            learning_rate=2e-3, save_strategy="no", report_to="none", logging_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(model, args)
        for month in months:
            trainer.train_dataset = Digits(month, rows)
            trainer.train()
        test = Digits(sum(months, ()), 200, test=True)
        return float((trainer.predict(test).predictions.argmax(1) == test.labels.numpy()).mean())


if __name__ == "__main__":
    print(f"right in the end: {main():.3f}")
