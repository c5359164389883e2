import importlib.util
import io
import os
import runpy
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from perdure import datasets, streams
from perdure.data import Rows

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("PERDURE_DATA", ROOT.parent / "shared" / "data"))


def image_table(kind="PNG", count=3, size=(4, 5)):
    """A Parquet-ready table of grey images that hold their row number."""
    pa, image = pytest.importorskip("pyarrow"), pytest.importorskip("PIL.Image")
    items = []
    for row in range(count):
        buffer = io.BytesIO()
        image.fromarray(np.full(size, row * 40, dtype=np.uint8)).save(buffer, kind)
        items.append({"bytes": buffer.getvalue(), "path": f"{row}.png"})
    return pa.table({"image": items, "label": list(range(count)), "year": [2000 + row for row in range(count)]})


def written(path, table):
    pytest.importorskip("pyarrow.parquet").write_table(table, path)
    return path


def everything(rows):
    return rows.read(torch.arange(len(rows)))


# ---- MNIST


def test_mnist_is_whole():
    data = datasets.mnist()
    assert (len(data.train), len(data.test), data.train.shape) == (60_000, 10_000, (1, 28, 28))
    assert np.bincount(data.train.labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(data.test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert data.train.labels[:5] == [5, 0, 4, 1, 9] and data.test.labels[:5] == [7, 2, 1, 0, 4]
    pixels = everything(data.train)
    assert pixels.dtype == torch.uint8
    # the mean and standard deviation that everybody normalises MNIST with
    assert abs(pixels.float().mean().item() / 255 - 0.1307) < 1e-4
    assert abs(pixels.float().std().item() / 255 - 0.3081) < 1e-4


def test_mnist_is_read_once_and_fast():
    datasets.mnist.cache_clear()
    start = time.process_time()
    data = datasets.mnist()
    assert time.process_time() - start < 1.0
    assert datasets.mnist() is data


def test_the_packed_mnist_is_the_original_pixel_for_pixel():
    pytest.importorskip("pyarrow")
    if not (DATA / "mnist" / "test.parquet").exists():
        pytest.skip("needs the MNIST Parquet files in PERDURE_DATA")
    original = datasets.parquet(DATA / "mnist" / "test.parquet").train
    assert original.fingerprint() == datasets.mnist().test.fingerprint()
    assert torch.equal(everything(original), everything(datasets.mnist().test))


def test_loading_mnist_needs_neither_pyarrow_nor_pillow(monkeypatch):
    for name in ("pyarrow", "pyarrow.parquet", "PIL", "PIL.Image"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it fails
    spec = importlib.util.spec_from_file_location("datasets_again", datasets.__file__)
    again = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "datasets_again", again)
    spec.loader.exec_module(again)
    assert len(again.mnist().train) == 60_000


def test_packing_gives_the_same_file_every_time_and_loses_nothing(tmp_path, monkeypatch):
    written(tmp_path / "train.parquet", image_table(count=4))
    written(tmp_path / "test.parquet", image_table(count=2))
    outputs = [tmp_path / "one.npz", tmp_path / "two.npz"]
    for output in outputs:
        monkeypatch.setattr(sys, "argv", ["pack_mnist.py", str(tmp_path), str(output)])
        runpy.run_path(str(ROOT / "tools" / "pack_mnist.py"), run_name="__main__")
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    with np.load(outputs[0], allow_pickle=False) as packed:
        pixels = np.zeros(6 * 20, dtype=np.uint8)
        pixels[np.unpackbits(packed["ink"]).view(bool)] = packed["values"]
        assert pixels.reshape(6, 20)[:, 0].tolist() == [0, 40, 80, 120, 0, 40]
        assert packed["labels"].tolist() == [0, 1, 2, 3, 0, 1]


# ---- Parquet


def test_images_in_parquet_become_bytes_in_channels_first_order(tmp_path):
    path = written(tmp_path / "zoo.parquet", image_table())
    data = datasets.parquet(path, columns=["year"])
    assert data.name == "zoo" and data.test is None and "lossy" not in data.description
    assert data.train.shape == (1, 4, 5) and data.train.labels == [0, 1, 2]
    assert everything(data.train)[:, 0, 0, 0].tolist() == [0, 40, 80]
    assert [task.name for task in streams.by_column(data, "year")] == ["2000", "2001", "2002"]


def test_jpeg_images_are_called_lossy(tmp_path):
    path = written(tmp_path / "zoo.parquet", image_table("JPEG"))
    assert "lossy" in datasets.parquet(path, path, name="zoo").description


def test_numbers_in_parquet_become_floats_and_other_columns_are_kept_by_name(tmp_path):
    pa = pytest.importorskip("pyarrow")
    table = pa.table(
        {"age": [30, None, 50], "bmi": [20.5, 21.5, 22.5], "site": ["a", "b", "a"], "ill": ["no", "yes", "no"]}
    )
    data = datasets.parquet(written(tmp_path / "p.parquet", table), label="ill", columns=("site",))
    assert data.train.shape == (2,) and everything(data.train).dtype == torch.float32
    torch.testing.assert_close(
        everything(data.train), torch.tensor([[30, 20.5], [float("nan"), 21.5], [50, 22.5]]), equal_nan=True
    )
    assert data.train.column("site").tolist() == ["a", "b", "a"] and data.train.classes == ("no", "yes")
    with pytest.raises(ValueError, match="1 of 3 rows hold NaN"):
        data.train.check()
    assert datasets.parquet(tmp_path / "p.parquet", label="ill", x="bmi").train.shape == (1,)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"label": "class"}, r"no column 'class' in .*it has \['a', 'text', 'label'\]"),
        ({"columns": ["day"]}, "no column 'day'"),
        ({}, r"cannot tell which columns are the input among \['a', 'text'\]; name them with x="),
        ({"x": ["a", "text"]}, r"\['text'\] of \['a', 'text'\] are not numbers"),
    ],
)
def test_parquet_columns_that_do_not_fit_are_named(tmp_path, arguments, words):
    pa = pytest.importorskip("pyarrow")
    path = written(tmp_path / "p.parquet", pa.table({"a": [1, 2], "text": ["x", "y"], "label": [0, 1]}))
    with pytest.raises(ValueError, match=words):
        datasets.parquet(path, **arguments)


def test_images_of_several_sizes_and_missing_images_are_refused(tmp_path):
    pa = pytest.importorskip("pyarrow")
    mixed = pa.concat_tables([image_table(count=1), image_table(count=1, size=(6, 5))])
    with pytest.raises(ValueError, match=r"row 1 has shape \[1, 6, 5\], the first one \[1, 4, 5\]; bring all images"):
        datasets.parquet(written(tmp_path / "mixed.parquet", mixed))
    empty = pa.table({"image": [{"bytes": b"", "path": ""}, {"bytes": None, "path": "1.png"}], "label": [0, 1]})
    with pytest.raises(ValueError, match="row 0 has no image bytes"):
        datasets.parquet(written(tmp_path / "empty.parquet", empty.slice(1)))


def test_without_pyarrow_parquet_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r"pip install 'perdure\[data\]'"):
        datasets.parquet("anything.parquet")


def test_cifar10_reads_a_folder(tmp_path):
    with pytest.raises(ValueError, match=r"holds no train\*.parquet"):
        datasets.cifar10(tmp_path)
    written(tmp_path / "train-0.parquet", image_table("JPEG", 2))
    written(tmp_path / "train-1.parquet", image_table("JPEG", 2))
    written(tmp_path / "test.parquet", image_table("JPEG", 1))
    data = datasets.cifar10(tmp_path)
    assert (data.name, len(data.train), len(data.test)) == ("CIFAR-10", 4, 1)
    assert "CIFAR-10" in data.description and "lossy" in data.description


# ---- arrays and the table


def test_arrays_are_a_dataset():
    data = datasets.arrays(np.ones((4, 2)), ["a", "b"] * 2, np.ones((1, 2)), ["b"], name="mine")
    assert data.name == "mine" and isinstance(data.test, Rows) and data.test.labels == ["b"]
    assert repr(data) == "Dataset('mine', 4 train and 1 test rows)"
    with pytest.raises(ValueError, match="go together"):
        datasets.arrays(np.ones((4, 2)), [0] * 4, np.ones((1, 2)))


# ---- fewer rows


def test_fewer_rows_are_the_first_of_each_label():
    labels = ["b", "a", "c", "a", "b", "a", "b"]
    data = datasets.arrays(torch.arange(7.0)[:, None], labels, torch.arange(7.0)[:, None], labels)
    part = datasets.fewer(data, train=2, test=1)
    assert everything(part.train)[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert everything(part.test)[:, 0].tolist() == [0, 1, 2]
    assert "5 train and 3 test rows are taken, the first of each of the labels a, b, c" in part.description
    some = datasets.fewer(data, train=2, classes=("c", "b"))
    assert some.train.labels == ["b", "c", "b"] and some.test.labels == ["b", "c", "b", "b"]
    assert datasets.fewer(datasets.arrays(torch.ones(2, 1), [0, 1]), train=1).test is None
    with pytest.raises(ValueError, match="no row has the label 'd'"):
        datasets.fewer(data, classes=("a", "d"))
    with pytest.raises(ValueError, match="at least 1"):
        datasets.fewer(data, train=0)
    with pytest.raises(ValueError, match="labels"):
        datasets.fewer(datasets.arrays(torch.ones(2, 1), torch.rand(2, 2)))


def test_the_same_file_may_be_train_and_test(tmp_path):
    file = written(tmp_path / "all.parquet", image_table(count=5))
    data = datasets.parquet(file, file)
    assert data.test is not None and len(data.test) == 5


# ---- the hub


def hub_folder(path):
    """A folder as the hub keeps small data: a Parquet file for each split."""
    path.mkdir()
    written(path / "train-00000-of-00001.parquet", image_table(count=5))
    written(path / "test-00000-of-00001.parquet", image_table(count=2))
    return path


def test_data_of_the_hub_is_what_its_parquet_files_are(tmp_path, monkeypatch):
    folder = hub_folder(tmp_path / "pictures")
    if importlib.util.find_spec("datasets") is None:  # its place is taken by what we use of it
        monkeypatch.setitem(sys.modules, "datasets", Library())
    else:
        monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = datasets.hub(str(folder), columns=["year"])
    same = datasets.parquet(*sorted(folder.glob("*.parquet"), reverse=True), columns=["year"])
    assert data.name == "pictures" and repr(data) == "Dataset('pictures', 5 train and 2 test rows)"
    for ours, theirs in ((data.train, same.train), (data.test, same.test)):
        assert ours.fingerprint() == theirs.fingerprint() and ours.labels == theirs.labels
        assert ours.column("year").tolist() == theirs.column("year").tolist()
    assert datasets.hub(str(folder), test=None).test is None
    with pytest.raises(ValueError, match=r"there is no column 'kind' in .*pictures, train"):
        datasets.hub(str(folder), label="kind")


class Library:
    """Of the library `datasets`: load_dataset(folder, subset, split=...).with_format("arrow")[:] is a table."""

    def load_dataset(self, name, subset, *, split):
        assert subset is None
        (self.file,) = Path(name).glob(f"{split}*.parquet")
        return self

    def with_format(self, kind):
        assert kind == "arrow"
        return self

    def __getitem__(self, rows):
        assert rows == slice(None)
        return pytest.importorskip("pyarrow.parquet").read_table(self.file)


def test_without_the_library_the_hub_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'perdure\[hf\]'"):
        datasets.hub("uoft-cs/cifar10")
