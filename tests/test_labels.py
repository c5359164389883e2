"""Which column stands for which label: tables written by hand, for each scenario."""

import pytest
import torch

from perdure import Batch
from perdure.labels import Labels

STREAM = [("a", ["cat", "dog"]), ("b", ["eel"]), ("c", ["dog", "fox"]), ("a", ["cat", "gnu"])]


def opened(scenario: str, heads: str = "separate", dense: bool = False, steps: int = 4) -> Labels:
    labels = Labels(scenario, heads, dense)
    for name, classes in STREAM[:steps]:
        labels.open(name, classes)
    return labels


def rows(*pairs: tuple[int, int]) -> Batch:
    """Rows as (number of the task, position of the label within it)."""
    task, y = torch.tensor(pairs).T
    return Batch(x=torch.zeros(len(pairs), 1), y=y, task=task)


# Task 0 "a": cat dog gnu; task 1 "b": eel; task 2 "c": dog fox. Columns of each (task, position):
TABLES = {
    ("class", "separate"): {(0, 0): 0, (0, 1): 1, (1, 0): 2, (2, 0): 1, (2, 1): 3, (0, 2): 4},
    ("domain", "separate"): {(0, 0): 0, (0, 1): 1, (1, 0): 0, (2, 0): 0, (2, 1): 1, (0, 2): 2},
    ("task", "separate"): {(0, 0): 0, (0, 1): 1, (1, 0): 2, (2, 0): 3, (2, 1): 4, (0, 2): 5},
    ("task", "shared"): {(0, 0): 0, (0, 1): 1, (1, 0): 2, (2, 0): 1, (2, 1): 3, (0, 2): 4},
}
ALLOWED = {
    ("class", "separate"): None,
    ("domain", "separate"): None,
    ("task", "separate"): ["xx...x", "..x...", "...xx."],
    ("task", "shared"): ["xx..x", "..x..", ".x.x."],
}


@pytest.mark.parametrize(("scenario", "heads"), TABLES, ids="-".join)
def test_columns_and_allowed_answers(scenario, heads):
    labels, table = opened(scenario, heads), TABLES[scenario, heads]
    assert labels.classes == ["cat", "dog", "eel", "fox", "gnu"]
    assert labels.tasks == {"a": ["cat", "dog", "gnu"], "b": ["eel"], "c": ["dog", "fox"]}
    assert labels.columns == max(table.values()) + 1
    batch = rows(*table)
    assert labels.column(batch).tolist() == list(table.values())
    by_label = [0, 1, 2, 1, 3, 4]
    own = (scenario, heads) == ("task", "separate")  # with a head a task, a label of a task counts by itself
    assert labels.key(batch).tolist() == (list(table.values()) if own else by_label)
    allowed, expected = labels.allowed(torch.arange(3)), ALLOWED[scenario, heads]
    if expected is None:
        assert allowed is None
    else:
        assert ["".join(".x"[open_] for open_ in row) for row in allowed.int().tolist()] == expected


@pytest.mark.parametrize(("scenario", "heads"), TABLES, ids="-".join)
def test_a_column_once_given_never_moves(scenario, heads):
    table, known = TABLES[scenario, heads], {}
    for steps in range(1, 5):
        labels = opened(scenario, heads, steps=steps)
        for pair, column in known.items():
            assert labels.column(rows(pair)).item() == column
        sizes = [len(classes) for classes in labels.tasks.values()]
        known = {pair: column for pair, column in table.items() if pair[0] < len(sizes) and pair[1] < sizes[pair[0]]}
        assert labels.column(rows(*known)).tolist() == list(known.values())


@pytest.mark.parametrize(("scenario", "heads"), TABLES, ids="-".join)
def test_opening_again_what_the_state_lists_gives_the_same_table(scenario, heads):
    labels, again = opened(scenario, heads), Labels(scenario, heads)
    for name, classes, _ in labels.state():
        again.open(name, classes)
    batch = rows(*TABLES[scenario, heads])
    assert torch.equal(labels.column(batch), again.column(batch))
    assert (labels.columns, labels.tasks, labels.classes) == (again.columns, again.tasks, again.classes)


def test_dense_labels_have_a_row_of_columns_and_minus_one_where_a_task_has_fewer():
    every = Batch(x=torch.zeros(3, 1), y=torch.zeros(3, 3), task=torch.tensor([1, 0, 2]))
    assert opened("class", dense=True).column(every).tolist() == [[2, -1, -1], [0, 1, 4], [1, 3, -1]]
    assert opened("domain", dense=True).column(every).tolist() == [[0, -1, -1], [0, 1, 2], [0, 1, -1]]
    assert opened("task", dense=True).column(every).tolist() == [[2, -1, -1], [0, 1, 5], [3, 4, -1]]


def test_where_a_tasks_labels_answer_known_task_or_not():
    home = {key: opened(*key).home for key in TABLES}
    for key in TABLES:
        assert home[key]("b", ["eel"]) == [TABLES[key][1, 0]]
        assert home[key]("c", ["fox", "dog"]) == [TABLES[key][2, 1], TABLES[key][2, 0]]
        assert home[key]("c", ["dog", "fox", "yak", "zho"]) is None  # labels that nobody has heard of
    # An unknown task whose labels are known answers where the task is hidden, not where it would need its own head.
    assert home["class", "separate"]("new", ["fox", "cat"]) == [3, 0]
    assert home["task", "shared"]("new", ["fox", "cat"]) == [3, 0]
    assert home["task", "separate"]("new", ["fox", "cat"]) is None
    assert home["domain", "separate"]("new", ["ant", "bee"]) == [0, 1]
    assert home["domain", "separate"]("new", ["ant", "bee", "cow", "doe"]) is None
    assert Labels("domain").home("new", ["ant"]) is None


def test_what_can_be_answered():
    assert opened("class").answers(None) == ([0, 1, 2, 3, 4], ["cat", "dog", "eel", "fox", "gnu"])
    assert opened("class").answers("c") == ([1, 3], ["dog", "fox"])
    assert opened("task").answers("a") == ([0, 1, 5], ["cat", "dog", "gnu"])
    assert opened("domain").answers("b") == ([0], ["eel"])
    assert opened("domain").answers(None) == ([0, 1, 2], [0, 1, 2])  # the tasks mean different things by a column
    assert opened("domain", steps=1).answers(None) == ([0, 1], ["cat", "dog"])


def test_columns_that_answer_together():
    assert [g.tolist() for g in opened("task").groups(6)] == [[0, 1, 5], [2], [3, 4]]
    assert [g.tolist() for g in opened("task").groups(3)] == [[0, 1], [2]]  # as many as a teacher knew
    for scenario, heads in (("class", "separate"), ("domain", "separate"), ("task", "shared")):
        assert [g.tolist() for g in opened(scenario, heads).groups(3)] == [[0, 1, 2]]


def test_a_task_is_revealed_in_scenario_task_only():
    assert opened("task").revealed("c") == 2
    assert opened("task").revealed("new") is None
    assert opened("class").revealed("c") is None
    assert opened("domain").revealed("c") is None
