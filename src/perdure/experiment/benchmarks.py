"""Benchmarks: named streams of tasks, each an explicit builder with typed settings; a table, no scanning."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import DirectoryPath, FilePath

from perdure import datasets, streams
from perdure.corruptions import CONDITIONS
from perdure.streams import Stream

Order = list[int] | list[list[int]] | None
Kind = Literal["split", "blurry", "by_column", "by_time"]


def split_mnist(tasks: int = 5, seed: int | None = None, classes: Order = None) -> Stream:
    """MNIST cut into tasks of consecutive digits (van de Ven et al. 2022); `seed` shuffles the digits."""
    return streams.split(datasets.mnist(), tasks, seed=seed, classes=classes)


def permuted_mnist(tasks: int = 10, seed: int = 0, identity: bool = True) -> Stream:
    """MNIST with the pixels of each task in an order of its own (Kirkpatrick et al. 2017)."""
    return streams.permuted(datasets.mnist(), tasks, seed=seed, identity=identity)


def rotated_mnist(tasks: int = 5, degrees: float = 180.0) -> Stream:
    """MNIST, each task turned a little further: the i-th, counted from 0, by degrees * i / tasks."""
    return streams.rotated(datasets.mnist(), tasks, degrees=degrees)


def blurry_mnist(tasks: int = 5, blur: float = 0.1, seed: int = 0) -> Stream:
    """Split MNIST whose tasks overlap: a share `blur` of each task's rows shows other tasks' digits."""
    return streams.blurry(datasets.mnist(), tasks, blur=blur, seed=seed)


def split_cifar10(path: DirectoryPath, tasks: int = 5, seed: int | None = None, classes: Order = None) -> Stream:
    """CIFAR-10 cut into tasks of two classes; `path` is the folder with its train and test Parquet files."""
    return streams.split(datasets.cifar10(path), tasks, seed=seed, classes=classes)


def corrupted_cifar10(
    path: DirectoryPath, conditions: list[str] | None = None, severity: int = 3, seed: int = 0, apart: bool = True
) -> Stream:
    """CIFAR-10 in the clear, in fog, at night, in rain, blurred; `apart`: each condition has train rows of its own."""
    data = datasets.cifar10(path)
    return streams.corrupted(data, conditions or tuple(CONDITIONS), severity=severity, seed=seed, apart=apart)


def parquet(
    train: FilePath,
    test: FilePath | None = None,
    kind: Kind = "split",
    x: str | list[str] | None = None,
    label: str = "label",
    column: str | None = None,
    tasks: int = 5,
    seed: int | None = None,
    blur: float = 0.1,
) -> Stream:
    """Your own Parquet files as a stream: split or blurry by label, by_column (one task a value) or by_time."""
    columns = () if column is None else (column,)
    if kind in ("by_column", "by_time") and column is None:
        raise ValueError(f'kind = "{kind}" needs the column to cut by; add column = "..."')
    if test is None and kind != "by_time":
        raise ValueError(f'kind = "{kind}" needs rows to be examined on; add test = "..."')
    dataset = datasets.parquet(train, test, x=x, label=label, columns=columns)
    if kind == "by_column":
        return streams.by_column(dataset, column or "")
    if kind == "by_time":
        return streams.by_time(dataset, column or "", tasks)
    if kind == "blurry":
        return streams.blurry(dataset, tasks, blur=blur, seed=seed or 0)
    return streams.split(dataset, tasks, seed=seed)


@dataclass(frozen=True)
class Benchmark:
    """A row of the table; `shape` and `classes` are what is known of the data before it is read."""

    build: Callable[..., Stream]
    scenarios: tuple[str, ...]
    model: dict[str, Any]
    shape: tuple[int, ...] | None = None
    classes: int | None = None

    @property
    def description(self) -> str:
        """One line on what it is."""
        return (self.build.__doc__ or "").strip().partition("\n")[0]


_MLP = {"name": "mlp", "hidden": [400, 400]}
_DIGITS = (1, 28, 28)

# In the class scenario a stream that repeats its classes is the domain scenario under another name: not offered.
BENCHMARKS: dict[str, Benchmark] = {
    "split-mnist": Benchmark(split_mnist, ("task", "domain", "class"), _MLP, _DIGITS, 10),
    "permuted-mnist": Benchmark(permuted_mnist, ("task", "domain"), _MLP, _DIGITS),
    "rotated-mnist": Benchmark(rotated_mnist, ("task", "domain"), _MLP, _DIGITS),
    "blurry-mnist": Benchmark(blurry_mnist, ("class",), _MLP, _DIGITS, 10),
    "split-cifar10": Benchmark(split_cifar10, ("task", "domain", "class"), {"name": "resnet18"}, (3, 32, 32), 10),
    "corrupted-cifar10": Benchmark(corrupted_cifar10, ("task", "domain"), {"name": "resnet18"}, (3, 32, 32), 10),
    "parquet": Benchmark(parquet, ("task", "domain", "class"), _MLP),
}
