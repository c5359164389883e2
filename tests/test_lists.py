"""Lists of recommendations: pairs to learn from, the best of a catalogue, their grades; months and MovieLens."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from perdure import Learner, Rows, Task, datasets, lists, methods, models, streams
from perdure.augment import Unseen
from perdure.recipes import TableError
from perdure.recipes.ratings import Ratings, identity

DATA = Path(os.environ.get("PERDURE_DATA", Path(__file__).parents[2] / "shared" / "data")) / "movielens100k"
EXAMPLE = Path(__file__).parents[1] / "examples" / "recommendation.py"


def seconds(*days: str) -> np.ndarray:
    return np.array(days, dtype="datetime64[s]").astype(np.int64)


def rated(rows: list[tuple[int, int, float]]) -> Rows:
    x = {"user": torch.tensor([u for u, _, _ in rows]), "item": torch.tensor([i for _, i, _ in rows])}
    return Rows(x, torch.tensor([[stars] for _, _, stars in rows]))


def taught(seen: Unseen) -> Learner:
    """Item n has score n for everybody, by its bias; items from 1 to 12."""
    learner = Learner(models.ratings(2), methods.Finetune(), scenario="domain", objective="ranking", augment=seen)
    items = torch.arange(1, 13)
    x = {"user": torch.ones_like(items), "item": items}
    learner.learn(Task((seen_pairs(seen, x), torch.ones(12, 1)), name="one"))
    body, head = learner.model.body, learner.model.head
    with torch.no_grad():
        body.items.blocks[0].zero_()
        body.items.blocks[0][body.items.place(items), -1] = items.float()
        head.weights[0][0] = torch.tensor([0.0, 0.0, 1.0])
    return learner


def seen_pairs(seen: Unseen, x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    seen.add({"user": torch.tensor([2, 2]), "item": torch.tensor([12, 10])})
    seen.add({"user": torch.tensor([9] * 12), "item": x["item"]})
    return {**x, "other": x["item"].flip(0)}


# ---- recommending, and its grades ----


def test_the_best_items_that_a_user_has_not_seen_come_first():
    learner = taught(Unseen())
    assert lists.recommend(learner, [7], range(1, 13), 3) == [[12, 11, 10]]
    assert lists.recommend(learner, [7, 2], range(1, 13), 3, {2: [12, 10, 99]}) == [[12, 11, 10], [11, 9, 8]]
    assert lists.recommend(learner, [2], [3, 2], 10, {2: [3]}) == [[2]]
    assert lists.recommend(learner, [7], [50, 60, 1], 2) == [[1, 50]]  # of equal scores, the first


def test_lists_are_graded_person_by_person_without_what_they_had_seen():
    seen = Unseen()
    learner = taught(seen)
    # Person 2 has seen 12 and 10: the list begins 11, 9, 8. Person 5 has seen nothing: 12, 11, 10. 99 is in no list.
    rows = rated([(2, 9, 5.0), (2, 8, 5.0), (5, 10, 5.0), (5, 99, 5.0)])
    found = lists.graded(learner, rows, seen, k=3)
    two = (1 / math.log2(3) + 1 / 2) / (1 + 1 / math.log2(3))
    five = (1 / 2) / (1 + 1 / math.log2(3))
    assert found == pytest.approx({"recall@3": (1 + 1 / 2) / 2, "NDCG@3": (two + five) / 2})


def test_the_learner_shows_the_rows_of_a_task_to_what_draws_the_other_item():
    seen = Unseen()
    taught(seen)
    assert {(1, item) for item in range(1, 13)} <= {tuple(pair) for pair in seen.seen.tolist()}


# ---- pairs ----


def test_pairs_are_of_what_was_rated_high_beside_items_of_that_time():
    one = rated([(1, 10, 5.0), (1, 11, 2.0), (2, 12, 4.0), (2, 13, 4.5)])
    two = rated([(3, 20, 5.0), (1, 21, 1.0), (1, 12, 4.0)])
    stream = lists.pairs([Task(one, one, name="one"), Task(two, name="two")], least=4)
    first, second = (task.train.read(slice(None)) for task in stream)
    assert [task.name for task in stream] == ["one", "two"]
    assert first["item"].tolist() == [10, 12, 13] and second["item"].tolist() == [20, 12]
    assert set(first["other"].tolist()) <= {10, 12, 13}
    assert first["other"].tolist()[0] in (12, 13) and first["other"].tolist()[1:] == [10, 10]
    assert stream[0].train.labels == [[1.0]] * 3
    assert stream[0].test is not None and stream[1].test is None
    with pytest.raises(ValueError, match="'low' has no row of at least 4"):
        lists.pairs([Task(rated([(1, 1, 2.0)]), name="low")], least=4)


# ---- months ----


def test_months_are_cut_by_the_calendar_and_small_ones_join_the_next():
    days = seconds("1997-11-30T23:59:59", *["1997-12-01"] * 9, *["1998-01-15"] * 10, *["1998-02-01"] * 6)
    order = np.random.default_rng(0).permutation(len(days))
    rows = Rows({"n": torch.tensor(order)}, torch.ones(len(days), 1), columns={"time": days[order]})
    stream = streams.by_month(Task(rows), "time", least=10)
    assert [task.name for task in stream] == ["1997-11 to 1997-12", "1998-01", "1998-02"]
    assert [(len(task.train), len(task.test)) for task in stream] == [(8, 2), (8, 2), (5, 1)]
    everything = torch.cat([part.read(slice(None))["n"] for task in stream for part in (task.train, task.test)])
    assert sorted(everything.tolist()) == list(range(len(days)))
    assert 0 in stream[0].train.read(slice(None))["n"]
    with pytest.raises(ValueError, match="1997-11 has 1 rows, too few"):
        streams.by_month(Task(rows), "time")
    with pytest.raises(ValueError, match="at least 1 row"):
        streams.by_month(Task(rows), "time", least=0)
    with pytest.raises(ValueError, match="has test rows"):
        streams.by_month(Task(rows, rows), "time")


# ---- MovieLens ----


def test_movielens_says_what_its_folder_lacks(tmp_path):
    with pytest.raises(ValueError, match=r"holds no ratings\.parquet"):
        datasets.movielens100k(tmp_path)
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.pyarrow if hasattr(parquet, "pyarrow") else pytest.importorskip("pyarrow")
    parquet.write_table(table.table({"user_id": [1]}), tmp_path / "ratings.parquet")
    with pytest.raises(ValueError, match="no column 'item_id'"):
        datasets.movielens100k(tmp_path)


@pytest.mark.skipif(not DATA.exists(), reason="MovieLens lies beside the project")
def test_movielens_has_its_hundred_thousand_ratings():
    rows = datasets.movielens100k(DATA).train
    x = rows.read(slice(None))
    assert len(rows) == 100_000 and rows.classes == ("stars",)
    assert (len(x["user"].unique()), len(x["item"].unique())) == (943, 1682)
    stream = streams.by_month(Task(rows), "time", least=8000)
    assert [task.name for task in stream][:2] == ["1997-09 to 1997-10", "1997-11"] and len(stream) == 7


@pytest.mark.skipif(not DATA.exists(), reason="MovieLens lies beside the project")
def test_the_example_runs_in_small_form(tmp_path):
    words = [str(EXAMPLE), str(DATA), "--small", "--seeds", "1", "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLE.parents[1] / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, check=True)
    assert "next recall@10" in done.stdout and "next, known people: RMSE x 1000" in done.stdout
    assert (tmp_path / "ranking.svg").exists() and (tmp_path / "rating" / "report.html").exists()


# ---- a person's own table ----


def arrow():
    return pytest.importorskip("pyarrow")


def test_a_table_of_ratings_becomes_rows_whatever_its_ids_are():
    table = arrow().table(
        {"who": ["ann", "7", "ann"], "film": [3, 4, 3], "stars": ["4.5", "1", "2"], "when": [5, 6, 7]}
    )
    rows = Ratings("who", "film", "stars", "when").rows(table)
    x = rows.read(slice(None))
    assert x["item"].tolist() == [3, 4, 3] and rows.labels == [[4.5], [1.0], [2.0]] and rows.classes == ("stars",)
    assert x["user"][1] == 7 and x["user"][0] == x["user"][2] == identity("ann") > 2**62
    assert rows.column("time").tolist() == [5, 6, 7]
    assert Ratings("who", "film").rows(table, rated=False).classes == ()
    again = Ratings("who", "film").rows(arrow().table({"who": [7.0], "film": ["3"]}), rated=False).read(slice(None))
    assert again["user"].tolist() == [7] and again["item"].tolist() == [3]


def test_ids_are_the_same_in_every_process_and_no_name_meets_a_number():
    assert identity("ann") == 7155859007818235113
    assert identity(10**30) > 2**62 and identity("-12") == -12 and identity("") is None
    names = {identity(f"name {n}") for n in range(5000)}
    assert len(names) == 5000 and min(names) >= 2**62


def test_times_may_be_dates():
    days = np.array(["1997-11-30T23:59:59", "1970-01-01"], dtype="datetime64[us]")
    table = arrow().table({"user": [1, 2], "item": [1, 2], "rating": [1.0, 2.0], "time": days})
    assert (
        Ratings(time="time").rows(table).column("time").tolist()
        == seconds("1997-11-30T23:59:59", "1970-01-01").tolist()
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"user": [1, None]}, "row 1 has nothing in column 'user'"),
        ({"rating": ["4", "good"]}, "holds 'good' in row 1, which is no number"),
        ({"rating": [1.0, float("nan")]}, "row 1 has no rating"),
        ({"time": ["monday", "tuesday"]}, "no time and no Unix seconds"),
        ({"time": [1, None]}, "holds no time in 1 rows"),
        ({"item": None}, "no column 'item'"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_with_its_row(change, said):
    columns = {"user": [1, 2], "item": [1, 2], "rating": [1.0, 2.0], "time": [1, 2]} | change
    table = arrow().table({name: values for name, values in columns.items() if values is not None})
    with pytest.raises(TableError, match=said):
        Ratings(time="time").rows(table)


def test_a_person_s_table_is_learnt():
    draws = torch.Generator().manual_seed(0)
    user, item = torch.randint(8, (2, 200), generator=draws)
    names = [f"user {n}" for n in user.tolist()]
    table = arrow().table({"user": names, "item": item.tolist(), "rating": (1.0 + (user + item) % 5).tolist()})
    recipe = Ratings()
    rows = recipe.rows(table)
    learner = Learner(
        recipe.network(), methods.Finetune(), scenario="domain", objective="rating", epochs=60, batch_size=20,
        optimizer={"name": "adam", "lr": 0.02},
    )  # fmt: skip
    learner.learn(Task(rows, rows, name="one"))
    assert learner.evaluate(Task(rows, rows, name="one")) > 0.85  # RMSE below 0.6; the mean alone has 1.4
