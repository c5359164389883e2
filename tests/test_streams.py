import pickle

import numpy as np
import pytest
import torch

from perdure import streams
from perdure.data import Rows, Task
from perdure.datasets import arrays, mnist


def digits(rows=60, classes=6, tests=12):
    """Images that hold their own row number, labels in turn, with a test half."""
    x = torch.arange(rows, dtype=torch.uint8).view(rows, 1, 1, 1).expand(rows, 1, 4, 4).contiguous()
    y = [row % classes for row in range(rows)]
    return arrays(x, y, x[:tests], y[:tests], name="digits")


def row_numbers(rows):
    return rows.read(torch.arange(len(rows)))[:, 0, 0, 0].tolist()


def everything(rows):
    return rows.read(torch.arange(len(rows)))


def picture():
    """One uint8 image with a bright bar in its upper half, and its dataset."""
    image = torch.zeros(1, 1, 9, 9, dtype=torch.uint8)
    image[0, 0, 1, 2:7] = 200
    return image, arrays(image, [0], image, [0])


# ---- the sequence


def test_a_stream_is_a_sequence_of_tasks():
    stream = streams.split(digits(), 3)
    assert len(stream) == 3 and stream[-1] is stream[2] and list(stream) == list(stream)
    assert [task.name for task in stream] == ["0, 1", "2, 3", "4, 5"]
    assert stream.name == "split-digits"
    assert stream.description == "digits cut into 3 tasks of 2 classes, in the order of the labels."
    assert repr(stream) == "Stream('split-digits', 3 tasks: 0, 1; 2, 3; 4, 5)"


def test_a_slice_is_a_stream_that_says_so():
    stream = streams.split(digits(), 3)
    part = stream[:2]
    assert isinstance(part, streams.Stream) and list(part) == [stream[0], stream[1]] and part.name == stream.name
    assert part.description == stream.description + " Of these 3 tasks, 2 are taken: 0, 1; 2, 3."
    assert stream[:].description == stream.description


def test_a_stream_holds_only_tasks():
    with pytest.raises(TypeError, match="a stream holds tasks, not tuple"):
        streams.Stream([(torch.ones(1, 1), [0])])


@pytest.mark.parametrize("cut", [streams.split, streams.permuted, streams.rotated])
def test_what_is_no_dataset_is_refused(cut):
    with pytest.raises(TypeError, match=r"cannot cut a tuple into tasks; make a dataset: datasets.arrays"):
        cut((torch.ones(2, 1), [0, 1]))
    with pytest.raises(ValueError, match="tasks must be at least 1; got 0"):
        cut(digits(), 0)


# ---- split


def test_split_mnist_has_the_counts_of_the_literature():
    stream = streams.split(mnist())
    assert [(task.name, len(task.train), len(task.test)) for task in stream] == [
        ("0, 1", 12665, 2115),
        ("2, 3", 12089, 2042),
        ("4, 5", 11263, 1874),
        ("6, 7", 12183, 1986),
        ("8, 9", 11800, 1983),
    ]


def test_split_gives_each_row_to_the_task_of_its_class_and_keeps_their_order():
    stream = streams.split(digits(12, 6, 12), 3)
    assert row_numbers(stream[1].train) == [2, 3, 8, 9] and stream[1].train.labels == [2, 3, 2, 3]
    assert stream[1].classes == (2, 3) and stream[1].test.labels == [2, 3, 2, 3]


def test_classes_that_do_not_divide_evenly_give_the_first_tasks_more():
    stream = streams.split(digits(), 4)
    assert [task.classes for task in stream] == [(0, 1), (2, 3), (4,), (5,)]
    assert "4 tasks of 2 or 1 classes" in stream.description


def test_a_seed_shuffles_the_classes_the_same_way_every_time():
    once, again = streams.split(digits(), 3, seed=1), streams.split(digits(), 3, seed=1)
    assert [task.classes for task in once] == [task.classes for task in again]
    assert sorted(label for task in once for label in task.classes) == list(range(6))
    orders = {tuple(task.classes for task in streams.split(digits(), 3, seed=seed)) for seed in range(5)}
    assert len(orders) > 1
    assert "drawn with seed 1" in once.description


def test_classes_give_the_order_or_the_tasks_themselves():
    order = streams.split(digits(), 2, classes=[5, 0, 3, 1])
    assert [task.classes for task in order] == [(5, 0), (3, 1)] and order[0].name == "5, 0"
    lists = streams.split(digits(), classes=[[0], [1, 2, 3], [0, 5]])
    assert [task.classes for task in lists] == [(0,), (1, 2, 3), (0, 5)]
    assert len(lists[0].train) == 10 and lists[2].train.classes == (0, 5)


def test_strings_are_split_too():
    data = arrays(torch.arange(4.0)[:, None], ["cat", "dog", "ant", "cat"])
    assert [(task.name, len(task.train), task.test) for task in streams.split(data, 2)] == [
        ("ant, cat", 3, None),
        ("dog", 1, None),
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"tasks": 7}, "7 tasks cannot share 6 classes"),
        ({"classes": [0, 1, 9], "tasks": 1}, r"classes name 9, which no train row has; the labels are \(0, 1, 2"),
        ({"classes": [[0], [9]]}, "classes name 9"),
        ({"classes": [0, 0], "tasks": 1}, "a label twice"),
        ({"classes": [0, 1], "seed": 3}, "pass one of them"),
    ],
)
def test_a_split_that_cannot_be_made_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        streams.split(digits(), **arguments)


def test_a_split_needs_labels_and_tests_that_match_them():
    x = torch.ones(4, 1)
    with pytest.raises(ValueError, match="cut by class; y is a float"):
        streams.split(arrays(x, torch.rand(4, 2)), 2)
    with pytest.raises(ValueError, match="test rows bring label 7, which no train row has"):
        streams.split(arrays(x, [0, 1, 2, 3], x[:1], [7]), 2)
    with pytest.raises(ValueError, match=r"no test row carries any of the labels \(2, 3\)"):
        streams.split(arrays(x, [0, 1, 2, 3], x[:2], [0, 1]), 2)


# ---- blurry


def test_a_blurry_stream_mixes_that_share_of_the_other_classes_in():
    stream = streams.blurry(digits(240, 6, 12), 3, blur=0.25, seed=4)
    for task, own in zip(stream, [(0, 1), (2, 3), (4, 5)], strict=True):
        foreign = [label for label in task.train.labels if label not in own]
        assert len(task.train) == 80 and len(foreign) == 20
        assert len({label // 2 for label in foreign}) == 2  # from both other tasks
        assert task.test.classes == own and task.classes == tuple(range(6))
    assert sorted(number for task in stream for number in row_numbers(task.train)) == list(range(240))
    assert "each gives 25% of its train rows to the others (seed 4)" in stream.description


def test_blur_depends_on_the_seed_alone():
    data = digits(240)
    first, again, other = (streams.blurry(data, 3, seed=seed)[0].fingerprint for seed in (0, 0, 1))
    assert first == again != other


def test_without_blur_a_blurry_stream_is_a_split():
    data = digits()
    for blurred, plain in zip(streams.blurry(data, 3, blur=0.0), streams.split(data, 3), strict=True):
        assert blurred.fingerprint == plain.fingerprint
    assert len(streams.blurry(data, 1, blur=0.5)[0].train) == 60
    with pytest.raises(ValueError, match=r"from 0 up to but not 1; got 1\.0"):
        streams.blurry(data, 3, blur=1.0)


# ---- permuted and rotated


def test_each_permutation_moves_every_row_alike_and_loses_nothing():
    x = torch.arange(3 * 16, dtype=torch.uint8).view(3, 1, 4, 4)
    stream = streams.permuted(arrays(x, [0, 1, 2], x, [0, 1, 2]), 3)
    assert [task.name for task in stream] == ["permutation 0", "permutation 1", "permutation 2"]
    assert torch.equal(everything(stream[0].train), x)
    moved = everything(stream[1].train)
    assert moved.shape == x.shape and moved.dtype == torch.uint8 and not torch.equal(moved, x)
    assert torch.equal(moved.flatten(1).sort(1).values, x.flatten(1))
    assert torch.equal(moved[1].int() - moved[0].int(), torch.full((1, 4, 4), 16, dtype=torch.int32))
    assert torch.equal(everything(stream[1].test), moved)
    assert stream[1].classes == (0, 1, 2)


def test_permutations_have_fingerprints_of_their_own_and_do_not_depend_on_how_many_there_are():
    x = torch.arange(3 * 16, dtype=torch.uint8).view(3, 1, 4, 4)
    data = arrays(x, [0, 1, 2])
    three, four = streams.permuted(data, 3, seed=1), streams.permuted(data, 4, seed=1)
    assert [task.fingerprint for task in three] == [task.fingerprint for task in four[:3]]
    assert len({task.fingerprint for task in four}) == 4
    assert streams.permuted(data, 2, seed=2)[1].fingerprint != three[1].fingerprint


def test_all_permutations_may_be_strange():
    x = torch.arange(60.0).view(3, 20)
    known, strange = (streams.permuted(arrays(x, [0, 1, 2], x, [0, 1, 2]), 3, identity=i) for i in (True, False))
    assert torch.equal(known[0].train.read(torch.arange(3)), x)
    orders = [task.train.read(torch.arange(3)) for task in strange]
    assert all(not torch.equal(order, x) and torch.equal(order.sort(1).values, x) for order in orders)
    assert len({tuple(order[0].tolist()) for order in orders}) == 3


def test_permuting_needs_one_tensor():
    with pytest.raises(ValueError, match=r"permuted needs x to be one tensor; these rows have the columns \['a'\]"):
        streams.permuted(arrays({"a": torch.ones(2, 3)}, [0, 1]))


def test_a_quarter_turn_is_exact():
    image, data = picture()
    stream = streams.rotated(data, 4, degrees=360.0)
    assert [task.name for task in stream] == ["0 degrees", "90 degrees", "180 degrees", "270 degrees"]
    for quarter, task in enumerate(stream):
        assert torch.equal(everything(task.train), torch.rot90(image, quarter, dims=(2, 3)))
        assert torch.equal(everything(task.test), everything(task.train))


def test_a_turn_of_45_degrees_keeps_the_type_and_most_of_the_light():
    image, data = picture()
    turned = everything(streams.rotated(data, 4, degrees=180.0)[1].train)
    assert turned.dtype == torch.uint8 and turned.shape == image.shape
    assert abs(int(turned.sum()) - int(image.sum())) < 0.15 * int(image.sum())
    # counter-clockwise: the bar from the top comes to lie in the upper left
    assert turned[0, 0, :5, :5].sum() > 0.6 * turned.sum()


def test_an_oblong_image_is_turned_and_not_sheared():
    image = torch.zeros(1, 1, 5, 11)
    image[0, 0, 2, 5 - 2 : 5 + 3] = 1.0  # a bar of length 5 through the centre
    turned = everything(streams.rotated(arrays(image, [0]), 2, degrees=180.0)[1].train)
    torch.testing.assert_close(turned[0, 0, :, 5], torch.ones(5), atol=1e-4, rtol=0)
    assert turned.dtype == torch.float32 and abs(float(turned.sum()) - 5.0) < 1e-3


def test_turning_needs_images():
    with pytest.raises(ValueError, match=r"rotated needs images of shape \[c, h, w\]; these rows have shape \(3,\)"):
        streams.rotated(arrays(torch.ones(2, 3), [0, 1]))


def test_mapped_rows_can_be_sent_to_a_worker():
    task = streams.permuted(digits(), 2)[1]
    assert torch.equal(everything(pickle.loads(pickle.dumps(task.train))), everything(task.train))


# ---- by column and by time


def patients(test=False, **columns):
    x = torch.arange(6.0)[:, None]
    train = Rows(x, [0, 1, 0, 1, 0, 0], columns=columns)
    return Task(train, train if test else None, name="patients")


def test_one_task_per_value_of_a_column_in_sorted_order():
    stream = streams.by_column(patients(test=True, site=["va", "basel", "va", "basel", "ulm", "ulm"]), "site")
    assert [task.name for task in stream] == ["basel", "ulm", "va"]
    assert [task.train.labels for task in stream] == [[1, 1], [0, 0], [0, 0]]
    assert [task.test.labels for task in stream] == [[1, 1], [0, 0], [0, 0]]
    # a label has the same position in every task, whether or not it was seen there
    assert {task.classes for task in stream} == {(0, 1)}
    assert stream.description == "patients cut into 3 tasks, one per value of site, in sorted order."
    assert [task.name for task in streams.by_column(patients(ward=[9, 10, 9, 10, 9, 9]), "ward")] == ["9", "10"]


def test_columns_and_values_that_are_not_there_are_named():
    with pytest.raises(ValueError, match=r"no column 'site'; they have \['ward'\]"):
        streams.by_column(patients(ward=range(6)), "site")
    with pytest.raises(ValueError, match=r"'ward' has no value in 1 rows \(first: row 3\)"):
        streams.by_column(patients(ward=np.array([1.0, 1, 1, np.nan, 1, 1])), "ward")
    data = patients(test=True, ward=[1, 1, 1, 2, 2, 2])
    with pytest.raises(ValueError, match="no test row has ward = 2"):
        streams.by_column(Task(data.train, data.test.select([0]), name="p"), "ward")
    with pytest.raises(ValueError, match="some test rows have ward = 2, which no train row has"):
        streams.by_column(Task(data.train.select([0, 1]), data.test, name="p", classes=[0, 1]), "ward")


def test_periods_are_equal_counts_in_the_order_of_time_and_ties_keep_their_order():
    stream = streams.by_time(patients(test=True, day=[30, 10, 20, 10, 30, 10]), "day", 2)
    assert [task.name for task in stream] == ["period 1", "period 2"]
    assert [everything(task.train)[:, 0].tolist() for task in stream] == [[1, 3, 5], [2, 0, 4]]
    assert [everything(task.test)[:, 0].tolist() for task in stream] == [[1, 3, 5], [2, 0, 4]]
    assert "test rows are cut likewise" in stream.description


def test_without_test_rows_the_last_part_of_each_period_is_its_test():
    stream = streams.by_time(patients(day=["2026-01-0" + day for day in "654321"]), "day", 2)
    assert [everything(task.train)[:, 0].tolist() for task in stream] == [[5, 4], [2, 1]]
    assert [everything(task.test)[:, 0].tolist() for task in stream] == [[3], [0]]
    assert "the last 20% of each period is its test" in stream.description


def test_dates_are_times_too():
    days = np.array(["2026-03-01", "2025-01-01"] * 3, dtype="datetime64[D]")
    assert [len(task.train) for task in streams.by_time(patients(day=days), "day", 2)] == [2, 2]
    days[2] = np.datetime64("NaT")
    with pytest.raises(ValueError, match="no value in 1 rows"):
        streams.by_time(patients(day=days), "day", 2)


def test_too_few_rows_for_the_periods_are_refused():
    with pytest.raises(ValueError, match="6 rows cannot be cut into 7 periods"):
        streams.by_time(patients(day=range(6)), "day", 7)
    with pytest.raises(ValueError, match="6 rows are too few for 4 periods with a test part each"):
        streams.by_time(patients(day=range(6)), "day", 4)
