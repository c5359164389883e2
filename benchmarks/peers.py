"""Avalanche 0.6 on the same stream, in an environment and processes of its own, in turns with ours.

Split MNIST, class-incremental, one epoch (471 steps of 128 rows), evaluated on all five tasks after each; plain
training, the same with images as torchvision gives them, and replay of 2 000 rows.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from harness import BUILD, HERE, Row, alone, dump

ROUNDS = 5
sys.path.insert(0, str(HERE.parent / "tools"))


def write_data(path: Path) -> None:
    """MNIST as floats, so that no library converts."""
    import numpy as np
    import torch

    from perdure import datasets

    mnist, found = datasets.mnist(), {}
    for name, rows in (("train", mnist.train), ("test", mnist.test)):
        found[f"{name}_x"] = rows.read(torch.arange(len(rows))).flatten(1).float().numpy() / 255
        found[f"{name}_y"] = np.array(rows.labels)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **found)


def parts(data: str) -> list[tuple]:
    """(train x, train y, test x, test y) of the five tasks."""
    import numpy as np
    import torch

    packed = {name: torch.from_numpy(value) for name, value in np.load(data).items()}
    found = []
    for first in range(0, 10, 2):
        train, test = ((packed[f"{name}_y"] // 2) * 2 == first for name in ("train", "test"))
        found.append(
            (packed["train_x"][train], packed["train_y"][train], packed["test_x"][test], packed["test_y"][test])
        )
    return found


def pixels(x):
    """Floats [n, 784] back to the images that they were, uint8 [n, 1, 28, 28]."""
    import torch

    return (x * 255).round().to(torch.uint8).view(-1, 1, 28, 28)


class Pictures:
    """Images row by row through PIL and ToTensor, as torchvision's MNIST gives them."""

    def __init__(self, x, y) -> None:
        from torchvision.transforms.functional import to_tensor

        self.images, self.targets, self.to_tensor = pixels(x)[:, 0].numpy(), y.tolist(), to_tensor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple:
        from PIL import Image

        return self.to_tensor(Image.fromarray(self.images[row])), self.targets[row]


def ours(data: str, method: str) -> None:
    import torch

    torch.set_num_threads(1)
    from perdure import Learner, Rows, Task, methods, models

    def inputs(x: torch.Tensor) -> torch.Tensor:
        return pixels(x) if method == "images" else x

    tasks = [Task(Rows(inputs(a), b), Rows(inputs(c), d), name=str(n)) for n, (a, b, c, d) in enumerate(parts(data))]
    chosen = methods.Replay(2000) if method == "replay" else methods.Finetune()
    learner = Learner(models.mlp(784, (400, 400)), chosen, scenario="class", batch_size=128)
    train = evaluate = 0.0
    for task in tasks:
        begun = time.process_time()
        learner.learn(task)
        train += time.process_time() - begun
        begun = time.process_time()
        grades = learner.evaluate(tasks)
        evaluate += time.process_time() - begun
    print(json.dumps({"train": train, "evaluate": evaluate, "accuracy": sum(g or 0 for g in grades) / len(grades)}))


def theirs(data: str, method: str) -> None:
    import torch

    real = torch.library.register_fake  # torchvision's operators, which nothing here uses

    def lenient(operator, *rest, **more):
        leave_out = isinstance(operator, str) and operator.startswith("torchvision::")
        return (lambda function: function) if leave_out else real(operator, *rest, **more)

    torch.library.register_fake = lenient
    torch.set_num_threads(1)
    from avalanche.benchmarks import benchmark_from_datasets
    from avalanche.benchmarks.utils import as_classification_dataset
    from avalanche.evaluation.metrics import accuracy_metrics
    from avalanche.training import supervised
    from avalanche.training.plugins import EvaluationPlugin

    def stream(first: int) -> list:
        made = []
        for part in parts(data):
            if method == "images":
                rows = Pictures(part[first], part[first + 1])
            else:
                rows = torch.utils.data.TensorDataset(part[first], part[first + 1].long())
                rows.targets = part[first + 1].tolist()
            made.append(as_classification_dataset(rows))
        return made

    benchmark = benchmark_from_datasets(train=stream(0), test=stream(2))
    layers = [torch.nn.Linear(784, 400), torch.nn.ReLU(), torch.nn.Linear(400, 400), torch.nn.ReLU()]
    model = torch.nn.Sequential(torch.nn.Flatten(), *layers, torch.nn.Linear(400, 10))
    kind, settings = {"replay": ("Replay", {"mem_size": 2000})}.get(method, ("Naive", {}))
    strategy = getattr(supervised, kind)(
        model=model, optimizer=torch.optim.Adam(model.parameters(), lr=1e-3), criterion=torch.nn.CrossEntropyLoss(),
        train_mb_size=128, train_epochs=1, eval_mb_size=1024,
        evaluator=EvaluationPlugin(accuracy_metrics(experience=True), loggers=[]), **settings,
    )  # fmt: skip
    train = evaluate = 0.0
    for experience in benchmark.train_stream:
        begun = time.process_time()
        strategy.train(experience)
        train += time.process_time() - begun
        begun = time.process_time()
        found = strategy.eval(benchmark.test_stream)
        evaluate += time.process_time() - begun
    grades = [float(value) for key, value in found.items() if "Top1_Acc_Exp" in key]
    print(json.dumps({"train": train, "evaluate": evaluate, "accuracy": sum(grades) / len(grades)}))


def compared() -> list[Row]:
    from avalanche_permuted import make_environment

    python, data = str(make_environment()), BUILD / "split.npz"
    write_data(data)
    rows = []
    pictures = "Naive, images by PIL and ToTensor (ours: bytes)"
    for method, what in (("plain", "Naive"), ("images", pictures), ("replay", "Replay(2000)")):
        turns = []
        for _ in range(ROUNDS):
            turns.append([
                json.loads(alone("peers.py", side, str(data), method, **more))
                for side, more in (("ours", {}), ("theirs", {"python": python}))
            ])  # fmt: skip
        note = "; ".join(
            f"{name} {sum(turn[i]['accuracy'] for turn in turns) / len(turns):.3f}"
            for i, name in enumerate(("accuracy: ours", "Avalanche's"))
        )
        for part, reach in (("train", 3.0), ("evaluate", 5.0)):
            if (method, part) == ("replay", "evaluate"):
                continue
            values = [theirs[part] / ours[part] for ours, theirs in turns]
            kind = "training" if part == "train" else "evaluation"
            title = f"Avalanche 0.6 {what}, {kind}"
            rows.append(Row(title, "ours, Split MNIST, 471 steps", values, "x", reach, "at least", note=note))
    return rows


if __name__ == "__main__":
    if len(sys.argv) > 1:
        {"ours": ours, "theirs": theirs}[sys.argv[1]](sys.argv[2], sys.argv[3])
    else:
        dump(compared())
