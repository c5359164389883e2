"""What a generator makes, after each task: a picture of 64 samples, and what a classifier of everything sees."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perdure import methods, models
from perdure.callbacks import Callback
from perdure.checkpoint import replace_file
from perdure.data import Rows, Task
from perdure.learner import Learner
from perdure.method import Compose, Method, memory

DRAWN, JUDGED, SEED = 64, 10_000, 0
SIDE = 8  # samples in a row of the picture


def generator_of(method: Method) -> Any:
    """The part of a method that makes samples; None where there is none."""
    parts = method.parts if isinstance(method, Compose) else [method]
    return next((part for part in parts if hasattr(part, "samples")), None)


def judge(stream: Sequence[Task], recipe: dict[str, Any], path: Path, device: str = "auto") -> Learner:
    """A classifier trained for one epoch on all tasks' train rows together; kept at `path`.

    It only looks at samples: no method learns anything from it.
    """
    if path.exists():
        return Learner.load(path, device=device)
    read = [task.train.read(torch.arange(len(task.train))) for task in stream]
    x = torch.cat([part for part in read if isinstance(part, Tensor)])
    labels = [label for task in stream for label in task.train.labels]
    learner = Learner(models.build(recipe), methods.Finetune(), scenario="class", seed=SEED, device=device)
    learner.learn(Task(Rows(x, labels), name="everything"))
    learner.save(path)
    return learner


@dataclass(eq=False)
class Samples(Callback):
    """After each task: `samples-1.png` in `folder`, and a note.

    A note holds the task's name, the mean of the judge's greatest probability over 10 000 samples of a fixed seed, the
    share of each label among its answers, and, with `keep`, the picture of the first 64 as base64. Only images
    (1 or 3 channels) are drawn, and only where Pillow is installed.
    """

    judge: Callable[[], Learner]
    folder: Path
    keep: bool = False
    notes: list[dict[str, Any]] = memory(list)

    def after_task(self, learner: Learner, task: Task) -> None:
        """Looks at what the generator makes now."""
        made = generator_of(learner.method).samples(learner, JUDGED, SEED).cpu()
        seen = self.judge()
        p = seen.predict_proba(made)
        shares = p.argmax(1).bincount(minlength=p.shape[1]).double() / len(p)
        picture = png(made[:DRAWN])
        if picture is not None:
            replace_file(self.folder / f"samples-{len(self.notes) + 1}.png", picture)
        self.notes.append({
            "task": task.name,
            "confidence": float(p.max(1).values.mean()),
            "balance": {str(label): float(share) for label, share in zip(seen.classes, shares, strict=True)},
            "picture": base64.b64encode(picture).decode() if picture and self.keep else None,
        })  # fmt: skip


def png(images: Tensor) -> bytes | None:
    """A grid of images [n, channels, height, width] in [0, 1], eight in a row; None for what is no image."""
    try:
        from PIL import Image
    except ImportError:
        return None
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        return None
    count, channels, height, width = images.shape
    rows = -(-count // SIDE)
    grid = torch.zeros(rows * SIDE, channels, height, width)
    grid[:count] = images
    grid = (
        grid.view(rows, SIDE, channels, height, width).permute(0, 3, 1, 4, 2).reshape(rows * height, SIDE * width, -1)
    )
    pixels = (grid.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels).save(file, "PNG", optimize=True)
    return file.getvalue()
