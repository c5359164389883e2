"""A plugin: TensorFlow in processes of its own, what it saved, and what was measured, printed at the end.

No conftest: another one of that name would hide the tests' own.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from perdure import datasets

HERE = Path(__file__).parent
MEASURED: list[str] = []


def tensorflow(*words: object, **streams: Any) -> subprocess.Popen[str]:
    """A command of `with_tensorflow.py`, begun in a process whose Keras runs on TensorFlow."""
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(HERE / "with_tensorflow.py"), *map(str, words)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, **streams)


def digits(which: tuple[int, ...], rows: int, part: str = "train") -> tuple[torch.Tensor, list[int]]:
    """The first so many MNIST digits of some kinds: images as Keras has them, uint8 [n, 28, 28, 1]."""
    mnist = getattr(datasets.mnist(), part)
    index = [row for row, label in enumerate(mnist.labels) if label in which][:rows]
    return mnist.read(torch.tensor(index)).movedim(1, -1), [mnist.labels[row] for row in index]


@pytest.fixture(scope="session")
def answers_of_tensorflow() -> Iterator[Callable[[Path, Any], torch.Tensor]]:
    """What TensorFlow predicts from a `.keras` file, for a tensor or a dict of them: a process of its own."""
    process = tensorflow("serve", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin and process.stdout and process.stderr

    def ask(model: Path, x: Any) -> torch.Tensor:
        asked, answered = model.with_suffix(".npz"), model.with_suffix(".npy")
        np.savez(asked, **{name: np.asarray(part) for name, part in (x if isinstance(x, dict) else {"x": x}).items()})
        process.stdin.write(json.dumps([str(model), str(asked), str(answered)]) + "\n")
        process.stdin.flush()
        if process.stdout.readline() != "answered\n":
            pytest.fail(process.stderr.read()[-3000:])
        return torch.from_numpy(np.load(answered))

    yield ask
    process.stdin.close()
    process.wait(60)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models that TensorFlow trained and saved, one `.keras` file each, and their probe rows."""
    folder = tmp_path_factory.mktemp("tensorflow")
    x, y = digits((0, 1, 2, 3, 4), 4000)
    np.savez(folder / "digits.npz", x=x.numpy(), y=np.array(y))
    process = tensorflow("train", folder)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said[-3000:]
    assert (folder / "backend.txt").read_text() == "tensorflow"
    return folder


@pytest.fixture
def measured() -> Callable[[str], None]:
    """Notes a line for the end of the run."""
    return MEASURED.append


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Prints what was measured."""
    if MEASURED:
        terminalreporter.section("measured")
        for line in MEASURED:
            terminalreporter.write_line(line)
