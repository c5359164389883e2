import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from perdure import data
from perdure.data import Batch, Rows, Task, column_bytes, column_length, column_map

X = torch.arange(12.0).view(6, 2)
NAN = float("nan")


def batch(n=2, **fields):
    return Batch(
        x=torch.ones(n, 3), y=torch.zeros(n, dtype=torch.long), task=torch.zeros(n, dtype=torch.long), **fields
    )


class Pairs(Dataset):
    """(x, y) one by one; counts the reads."""

    def __init__(self, x, y, **attributes):
        self.x, self.y, self.reads = x, y, 0
        self.__dict__.update(attributes)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, row):
        self.reads += 1
        return self.x[row], self.y[row]


class Copies(TorchDispatchMode):
    """Records which operations ran and the largest result among them."""

    def __init__(self):
        super().__init__()
        self.names, self.largest = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.names.append(func._schema.name)
        self.largest = max(self.largest, result.numel())
        return result


# ---- batches


def test_joining_fills_in_what_a_batch_lacks():
    new = batch(2)
    old = batch(
        1,
        weight=torch.tensor([0.5]),
        target=torch.tensor([[1.0, 2.0]]),
        origin=torch.tensor([3]),
        extra={"scores": torch.tensor([[4.0]]), "row": torch.tensor([7])},
    )
    joined = Batch.cat([new, old])
    assert joined.weight.tolist() == [1.0, 1.0, 0.5]
    torch.testing.assert_close(joined.target, torch.tensor([[NAN, NAN], [NAN, NAN], [1.0, 2.0]]), equal_nan=True)
    assert joined.origin.tolist() == [0, 0, 3]
    assert joined.fresh.tolist() == [True, True, False]
    torch.testing.assert_close(joined.extra["scores"], torch.tensor([[NAN], [NAN], [4.0]]), equal_nan=True)
    assert joined.extra["row"].tolist() == [0, 0, 7]
    assert len(joined) == 3


def test_nothing_is_filled_in_when_no_batch_has_it():
    joined = Batch.cat([batch(2), batch(1)])
    assert joined.weight is None and joined.target is None and joined.origin is None
    assert joined.extra == {}
    assert joined.fresh.tolist() == [True] * 3


def test_targets_and_scores_of_a_smaller_head_are_padded_with_nan():
    old = batch(1, target=torch.tensor([[1.0, 2.0]]), extra={"scores": torch.tensor([[5.0]])})
    new = batch(1, target=torch.tensor([[3.0, 4.0, 5.0]]), extra={"scores": torch.tensor([[6.0, 7.0]])})
    joined = Batch.cat([old, new])
    torch.testing.assert_close(joined.target, torch.tensor([[1.0, 2.0, NAN], [3.0, 4.0, 5.0]]), equal_nan=True)
    torch.testing.assert_close(joined.extra["scores"], torch.tensor([[5.0, NAN], [6.0, 7.0]]), equal_nan=True)


def test_dict_columns_of_different_width_are_padded_with_zero_at_the_end():
    short = replace(batch(1), x={"tokens": torch.tensor([[5, 6]]), "age": torch.tensor([30.0])})
    long = replace(batch(1), x={"tokens": torch.tensor([[7, 8, 9]]), "age": torch.tensor([40.0])})
    joined = Batch.cat([short, long]).x
    assert joined["tokens"].tolist() == [[5, 6, 0], [7, 8, 9]]
    assert joined["age"].tolist() == [30.0, 40.0]


def test_rows_of_the_past_say_which_part_added_them():
    past = Batch.past({"x": torch.ones(2, 3), "y": torch.tensor([1, 0]), "task": torch.tensor([0, 4])}, origin=2)
    joined = Batch.cat([batch(1), past])
    assert joined.origin.tolist() == [0, 2, 2] and joined.fresh.tolist() == [True, False, False]
    assert joined.task.tolist()[1:] == [0, 4]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (replace(batch(1), y=None), "with labels and batches without"),
        (replace(batch(1), x=torch.ones(1, 3, dtype=torch.uint8)), "torch.float32 in one and torch.uint8 in another"),
        (replace(batch(1), x=torch.ones(1, 4)), r"different shapes: \[\(3,\), \(4,\)\]"),
        (replace(batch(1), x={"a": torch.ones(1, 3)}), "differ in their columns"),
    ],
)
def test_batches_that_do_not_fit_together_are_refused(other, words):
    with pytest.raises(ValueError, match=words):
        Batch.cat([batch(1), other])


def test_selecting_takes_the_same_rows_of_every_column():
    n = torch.arange(4)
    whole = Batch(
        x={"a": n, "b": n.float()},
        y=n,
        task=n,
        weight=n.float(),
        target=n[:, None].float(),
        origin=n,
        extra={"key": n},
        columns=n,
        allowed=n[:, None] > 1,
    )
    for index in (torch.tensor([3, 1]), torch.tensor([False, True, False, True]).nonzero()[:, 0].flip(0)):
        part = whole.select(index).to("cpu")
        for column in (
            part.x["a"],
            part.x["b"],
            part.y,
            part.task,
            part.weight,
            part.origin,
            part.extra["key"],
        ):
            assert column.tolist() == [3, 1]
        assert part.target.tolist() == [[3], [1]] and part.columns.tolist() == [3, 1]
        assert part.allowed.tolist() == [[True], [False]]
    assert whole.select(whole.y > 1).y.tolist() == [2, 3]


def test_column_helpers_treat_one_tensor_and_many_alike():
    table = {"a": torch.zeros(3, 2), "b": torch.zeros(3, dtype=torch.uint8)}
    assert column_length(table) == column_length(table["a"]) == 3
    assert column_bytes(table) == 3 * 2 * 4 + 3
    assert {name: column.shape for name, column in column_map(lambda c: c[:1], table).items()} == {
        "a": (1, 2),
        "b": (1,),
    }


# ---- rows: labels


@pytest.mark.parametrize(
    "y",
    [
        [7, 3, 7],
        [np.int16(7), np.int16(3), np.int16(7)],
        np.array([7, 3, 7], dtype=np.uint8),
        np.array([7, 3, 7], dtype=object),
        torch.tensor([7, 3, 7]).int(),
    ],
)
def test_integer_labels_of_any_type_become_plain_integers(y):
    rows = Rows(X[:3], y)
    assert rows.classes == (3, 7) and rows.labels == [7, 3, 7] and all(type(label) is int for label in rows.labels)
    assert not rows.dense
    assert rows.positions((3, 7)).tolist() == [1, 0, 1] and rows.positions((3, 7)).dtype == torch.int64


@pytest.mark.parametrize("y", [["b", "a", "b"], np.array(["b", "a", "b"]), np.array(["b", "a", "b"], dtype=object)])
def test_strings_are_labels_too(y):
    rows = Rows(X[:3], y)
    assert rows.classes == ("a", "b") and rows.labels == ["b", "a", "b"]
    assert rows.positions(["z", "b", "a"]).tolist() == [1, 2, 1]


def test_a_label_outside_the_classes_is_named():
    rows = Rows(X[:3], [4, 5, 12])
    with pytest.raises(ValueError, match=r"label 12, but the classes are \(4, 5\)"):
        rows.positions((4, 5))
    assert rows.select([0, 1]).positions((4, 5)).tolist() == [0, 1]


def test_float_labels_are_dense_and_keep_their_values():
    rows = Rows(X[:2], np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]]), classes=["red", "round", "big"])
    assert rows.dense and rows.classes == ("red", "round", "big")
    assert rows.positions(rows.classes).dtype == torch.float32
    assert rows.select([1]).positions(rows.classes).tolist() == [[1, 0, 0]]
    assert Rows(X[:2], [0.5, 1.0]).positions((0,)).tolist() == [[0.5], [1.0]]
    with pytest.raises(ValueError, match="y has 3 columns, but there are 2 classes"):
        rows.positions(("red", "round"))


@pytest.mark.parametrize(
    ("y", "error", "words"),
    [
        ([1.0, 2.0], TypeError, r"pass integers for classification, or shape \[n, 1\] for regression"),
        (torch.tensor([1.0, 2.0]), TypeError, "whole numbers"),
        ([True, False], TypeError, "row 0 is True"),
        ([3, True], TypeError, "row 1 is True"),
        (np.array([True, False]), TypeError, "booleans"),
        (["a", None], ValueError, r"row 1 has no value \(None\)"),
        (["a", NAN], ValueError, r"row 1 has no value \(nan\)"),
        (np.array([1.0, NAN]), ValueError, "NaN in 1 rows .first: row 1."),
        (["a", 1], TypeError, "some values are strings"),
        ([[1], [2]], TypeError, r"shape \[2, 1\] and type int64"),
        ([1, 2, 3], ValueError, "x has 2 rows and y has 3"),
        ([b"a", b"b"], TypeError, "pass integers or strings"),
    ],
)
def test_labels_that_are_no_labels_are_refused(y, error, words):
    with pytest.raises(error, match=words):
        Rows(X[:2], y)


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (X[:0], ValueError, "x is empty"),
        ({}, ValueError, "empty dict"),
        ({"a": X, "b": X[:4]}, ValueError, "different lengths: {'a': 6, 'b': 4}"),
        (torch.tensor(1.0), ValueError, "single number"),
        ([[1, 2], [3, 4]], TypeError, "x is a list; pass a tensor"),
        (np.array(["a"] * 6), TypeError, "inputs must be numbers"),
    ],
)
def test_inputs_that_are_no_rows_are_refused(x, error, words):
    with pytest.raises(error, match=words):
        Rows(x, [1] * 6)


def test_class_names_belong_to_float_labels_and_match_them():
    with pytest.raises(ValueError, match="use Task"):
        Rows(X, [1] * 6, classes=[1, 2])
    with pytest.raises(ValueError, match=r"y has 2 columns, but 1 names"):
        Rows(X, X, classes=["a"])


# ---- rows: inputs and views


def test_a_view_shares_the_rows_and_composes():
    rows = Rows({"x": X, "n": torch.arange(6)}, list("abcabc"), columns={"day": np.arange(6), "site": list("uvwxyz")})
    view = rows.select([5, 3, 1]).select(torch.tensor([True, False, True]))
    assert len(view) == 2 and view.labels == ["c", "b"] and view.classes == ("b", "c")
    assert view.read(torch.tensor([1, 0]))["n"].tolist() == [1, 5]
    assert view.column("day").tolist() == [5, 1] and view.column("site").tolist() == ["z", "v"]
    assert view._storage is rows._storage
    with pytest.raises(ValueError, match=r"no column 'hour'; they have \['day', 'site'\]"):
        view.column("hour")


def test_reading_is_one_index_select_per_column_and_touches_nothing_else():
    rows = Rows({"a": torch.zeros(5000, 3), "b": torch.zeros(5000)}, [0] * 5000)
    view = rows.select(torch.arange(4999, 0, -1)).select(torch.arange(4000))
    for subject, operations in ((rows, 2), (view, 3)):  # a view, however deep, composes its index once
        with Copies() as copies:
            subject.read(torch.tensor([0, 7]))
        assert copies.names.count("aten::index_select") == operations
        assert copies.largest == 2 * 3


def test_memory_mapped_rows_stay_on_disk(tmp_path):
    array = np.memmap(tmp_path / "x.bin", dtype=np.uint8, mode="w+", shape=(1000, 3, 4, 4))
    array[:] = np.arange(1000, dtype=np.uint8)[:, None, None, None]
    array.flush()
    disk = np.memmap(tmp_path / "x.bin", dtype=np.uint8, mode="r", shape=(1000, 3, 4, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = Rows(disk, np.arange(1000) % 5)
    assert rows._storage.source.data_ptr() == disk.ctypes.data
    assert rows.select([999]).read(torch.tensor([0])).unique().tolist() == [999 % 256]
    assert rows.fingerprint() == Rows(np.array(array), np.arange(1000) % 5).fingerprint()


def test_inputs_are_kept_as_they_are():
    x = torch.rand(4, 3, dtype=torch.float64)
    rows = Rows(x, [0, 1, 0, 1])
    assert torch.equal(rows.read(torch.arange(4)), x) and rows.read(torch.arange(1)).dtype == torch.float64
    assert rows.shape == (3,) and rows.bytes == 4 * 3 * 8 and rows.select([0]).bytes == 24
    assert Rows({"a": x, "b": x[:, 0]}).shape == {"a": (3,), "b": ()}


def test_a_map_changes_what_is_read_and_nothing_else():
    rows = Rows(X, [0, 1] * 3)
    mapped = rows.select([1, 2]).map(lambda x: x * 10).map(lambda x: x[:, :1] + 1)
    assert mapped.read(torch.arange(2)).tolist() == [[21.0], [41.0]]
    assert mapped.select([1]).read(torch.tensor([0])).tolist() == [[41.0]]
    assert mapped.shape == (1,) and mapped.labels == [1, 0] and rows.shape == (2,)


@pytest.mark.parametrize(
    ("index", "error", "words"),
    [
        ([6], IndexError, "rows go from 0 to 5"),
        ([-1], IndexError, "asked for -1"),
        ([True, False], IndexError, "2 entries for 6 rows"),
        ([0.0, 1.0], TypeError, "whole numbers or a mask"),
    ],
)
def test_rows_that_are_not_there_cannot_be_selected(index, error, words):
    with pytest.raises(error, match=words):
        Rows(X).select(index)


def test_rows_without_labels_say_so():
    rows = Rows.of(X)
    assert rows.classes == ()
    with pytest.raises(ValueError, match="no labels"):
        rows.positions((0,))
    with pytest.raises(TypeError, match="cannot read rows from a list"):
        Rows.of([X, [0] * 6])


def test_rows_come_from_pairs_rows_and_tensor_datasets():
    rows = Rows.of((X, [0, 1] * 3))
    assert Rows.of(rows) is rows
    assert Rows.of(TensorDataset(X, torch.tensor([0, 1] * 3)))._storage.source.data_ptr() == X.data_ptr()


# ---- rows: behind a Dataset


def test_a_dataset_that_carries_its_labels_is_not_read_for_them():
    pairs = Pairs(torch.rand(50, 3), [i % 4 for i in range(50)], targets=[i % 4 for i in range(50)])
    rows = Rows.of(Subset(pairs, list(range(49, 9, -1))))
    assert pairs.reads <= 3
    assert rows.labels[:3] == [1, 0, 3] and len(rows) == 40
    assert torch.equal(rows.read(torch.tensor([0, 2])), pairs.x[[49, 47]])


@pytest.mark.parametrize("attributes", [{}, {"targets": [9, 9, 9]}, {"labels": [0, 1]}])
def test_a_dataset_whose_attribute_is_no_help_is_read_once(attributes):
    pairs = Pairs(torch.rand(3, 2), torch.tensor([5, 6, 5]), **attributes)
    assert Rows.of(pairs).labels == [5, 6, 5]
    assert pairs.reads <= 6


def test_items_of_any_kind_are_stacked():
    image = pytest.importorskip("PIL.Image")
    grey, colour = np.full((2, 3), 7, np.uint8), np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    read = torch.tensor([1, 0])
    assert Rows.of(Pairs([image.fromarray(grey)] * 2, [0, 1])).read(read).shape == (2, 1, 2, 3)
    pixels = Rows.of(Pairs([image.fromarray(colour)] * 2, [0, 1])).read(read)
    assert pixels.dtype == torch.uint8 and torch.equal(pixels[0], torch.from_numpy(colour).permute(2, 0, 1))
    assert Rows.of(Pairs([image.fromarray(grey > 3)] * 2, [0, 1])).read(read).unique().tolist() == [255]
    assert Rows.of(Pairs([grey, grey], [0, 1])).read(read).shape == (2, 2, 3)
    assert Rows.of(Pairs([1.5, 2.5], ["a", "b"])).read(read).tolist() == [2.5, 1.5]
    table = Rows.of(Pairs([{"a": torch.ones(2), "b": 3}] * 2, [0, 1])).read(read)
    assert table["a"].shape == (2, 2) and table["b"].tolist() == [3, 3]


def test_multi_label_items_are_dense():
    rows = Rows.of(Pairs(X[:2], torch.tensor([[0.0, 1.0], [1.0, 0.0]])))
    assert rows.dense and rows.positions((0, 1)).tolist() == [[0, 1], [1, 0]]


def test_datasets_that_cannot_be_read_in_any_order_are_refused():
    class Endless(IterableDataset):
        def __iter__(self):
            return iter([])

    class Unsized(Dataset):
        def __getitem__(self, row):
            return X[row], 0

    with pytest.raises(TypeError, match="Endless is an IterableDataset"):
        Rows.of(Endless())
    with pytest.raises(TypeError, match="Unsized has no __len__"):
        Rows.of(Unsized())
    with pytest.raises(TypeError, match=r"item 0 of TensorDataset is a tuple, not a pair"):
        Rows.of(TensorDataset(X, X, X))
    with pytest.raises(ValueError, match="differ in shape"):
        Rows.of(Pairs([torch.ones(2), torch.ones(3)], [0, 1])).read(torch.arange(2))


# ---- rows: health and fingerprint


def test_rows_that_are_not_finite_are_counted_and_the_first_is_named(monkeypatch):
    monkeypatch.setattr(data, "SCAN_BYTES", 64)  # eight rows at a time
    x = torch.zeros(100, 2)
    x[41, 1], x[42, 0], x[99] = NAN, float("inf"), NAN
    rows = Rows({"x": x, "n": torch.arange(100)}, [0] * 100)
    with pytest.raises(ValueError, match=r"3 of 100 rows hold NaN or infinity \(first: row 41\)"):
        rows.check()
    with pytest.raises(ValueError, match=r"1 of 9 rows .* \(first: row 8\)"):
        rows.select(torch.arange(91, 100)).check()
    rows.select(torch.arange(40)).check()


def test_float_labels_that_are_not_finite_are_found():
    with pytest.raises(ValueError, match=r"1 of 6 rows .*row 2"):
        Rows(X, [[0.0], [1.0], [NAN], [1.0], [0.0], [0.0]]).check()


def test_health_is_scanned_once_and_remembered_by_views():
    pairs = Pairs(X, [0, 1] * 3)
    rows = Rows.of(pairs)
    rows.check()
    before = pairs.reads
    rows.check()
    rows.select([1, 2]).check()
    assert pairs.reads == before


def test_a_map_is_scanned_again():
    rows = Rows(X, [0, 1] * 3)
    rows.check()
    with pytest.raises(ValueError, match="6 of 6 rows"):
        rows.map(lambda x: x / 0.0 * 0.0).check()


def test_images_are_not_scanned():
    pairs = Pairs(torch.zeros(50, 1, 2, 2, dtype=torch.uint8), [0] * 50)
    rows = Rows.of(pairs)
    before = pairs.reads
    rows.check()
    assert pairs.reads <= before + 1


def test_a_fingerprint_tells_data_apart_and_is_the_same_for_the_same_data():
    x, y = torch.arange(2000.0).view(1000, 2), [i % 3 for i in range(1000)]
    one = Rows(x, y).fingerprint()
    assert one == Rows(x.numpy().copy(), np.array(y)).fingerprint() == Rows.of(Pairs(x, y)).fingerprint()
    others = [
        Rows(x + 1, y),
        Rows(x.double(), y),
        Rows(x, y[1:] + y[:1]),
        Rows(x, [str(label) for label in y]),
        Rows(x[:999], y[:999]),
        Rows({"x": x}, y),
        Rows(x, y).map(lambda rows: rows.flip(1)),
        Rows(x, y).select(torch.arange(999, -1, -1)),
    ]
    assert len({one, *(rows.fingerprint() for rows in others)}) == 1 + len(others)
    assert len(one) == 64


# ---- tasks


def test_a_task_is_named_after_its_fingerprint_and_keeps_its_classes():
    task = Task((X, list("abcabc")), (X[:1], ["c"]))
    assert task.classes == ("a", "b", "c") and task.name == "task-" + task.fingerprint[:8]
    assert task.validation is None and task.test.labels == ["c"]
    wide = Task((X, list("abcabc")), classes=["z", "c", "b", "a"], name="mine")
    assert wide.classes == ("z", "c", "b", "a") and wide.name == "mine" and wide.fingerprint != task.fingerprint
    assert task.train.positions(wide.classes).tolist() == [3, 2, 1, 3, 2, 1]
    assert all(type(label) is int for label in Task((X, [0, 1] * 3), classes=np.array([1, 0])).classes)


def test_a_dense_task_has_one_class_per_column():
    assert Task((X, torch.rand(6, 3))).classes == (0, 1, 2)
    assert Task((X, torch.rand(6, 2)), classes=["up", "down"]).classes == ("up", "down")


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"train": Rows(X).select([])}, ValueError, "train rows of a task are empty"),
        ({"train": X}, ValueError, "train rows of a task need labels"),
        ({"test": X}, ValueError, "test rows of a task need labels"),
        ({"test": Rows(X, [0] * 6).select([])}, ValueError, "test rows of a task are empty; leave test=None"),
        ({"test": (X, [0, 1, 2] * 2)}, ValueError, r"test: the rows bring label 2, but the classes are \(0, 1\)"),
        ({"validation": (X, [5] * 6)}, ValueError, "validation: the rows bring label 5"),
        ({"classes": [0, 2]}, ValueError, r"train: the rows bring label 1"),
        ({"classes": [0, 1, 1]}, ValueError, "hold a label twice"),
        ({"classes": [0, "1"]}, TypeError, "all integers or all strings"),
        ({"classes": []}, TypeError, "at least one"),
        ({"test": (X[:, :1], [0] * 6)}, ValueError, r"test rows have shape \(1,\), train rows have \(2,\)"),
        ({"test": (X.byte(), [0] * 6)}, ValueError, "uint8 and the others are not"),
        ({"test": (X, torch.rand(6, 2))}, ValueError, "must both have a float y"),
        ({"train": (X, torch.rand(6, 2)), "classes": ["a"]}, ValueError, "y has 2 columns, but there are 1 classes"),
    ],
)
def test_a_task_that_cannot_be_learnt_is_refused_at_once(arguments, error, words):
    arguments = {"train": (X, [0, 1] * 3), **arguments}
    with pytest.raises(error, match=words):
        Task(**arguments)


# ---- on an accelerator ----


def test_rows_go_to_a_device_as_a_whole_if_they_fit():
    rows = Rows(torch.arange(24).view(8, 3), ["a", "b"] * 4, columns={"age": range(8)}).select([5, 2, 7])
    there = rows.on(torch.device("meta"), rows.bytes)
    assert there.read(torch.tensor([0, 1])).device.type == "meta"
    assert len(there) == 3 and there.shape == rows.shape and there.positions(("a", "b")).device.type == "meta"
    assert rows.on(torch.device("meta"), rows.bytes - 1) is rows
    assert rows.on(torch.device("cpu"), 10**9) is rows


def test_a_slice_is_read_like_its_numbers_and_copies_nothing_where_it_need_not():
    x = torch.arange(24).view(8, 3)
    for rows in (
        Rows(x),
        Rows(x).select([5, 2, 7, 1]),
        Rows(x).map(lambda a: a + 1),
        Rows(torch.utils.data.TensorDataset(x, x[:, 0] % 2)),
    ):
        for part in (slice(0, 3), slice(2, 99), slice(3, 3)):
            index = torch.arange(len(rows))[part]
            assert torch.equal(rows.read(part), rows.read(index))
    assert Rows(x).read(slice(2, 5)).data_ptr() == x[2:5].data_ptr()


def test_large_finite_numbers_whose_sum_is_not_finite_are_healthy():
    x = torch.full((4, 3), 3e38)
    Rows(x, [0, 1, 0, 1]).check()
    x[2, 1] = float("-inf")
    with pytest.raises(ValueError, match=r"1 of 4 rows .*first: row 2"):
        Rows(x, [0, 1, 0, 1]).check()
