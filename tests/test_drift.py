"""Drift: fresh rows of the same kind raise no alarm, in whatever mix; shifted ones do, and the sentence says what."""

import numpy as np
import pyarrow as pa
import pytest
from store_examples import begin, clouds

from perdure import methods
from perdure.store import drift
from perdure.store.folder import StoreError


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """Two updates of five labels; the network is trained far into its rows."""
    store, _ = begin(tmp_path_factory.mktemp("drift"), clouds(["a", "b"], noise=2.0), training={"epochs": 30})
    store.update(clouds(["c", "d"], seed=1, noise=2.0), accept_shift=True)
    store.promote(2, force="for a test") if store.folder.production() == 1 else None
    return store, store.answerer()


def alarms(taught, tables):
    store, answerer = taught
    return [bool(drift.compared(store, answerer, table).moved) for table in tables]


def shifted(table, column, by):
    return table.set_column(table.column_names.index(column), column, [table[column].to_numpy() + by])


def test_fresh_rows_of_the_same_kind_raise_no_alarm(taught):
    fresh = [clouds(["a", "b", "c", "d"], rows=125, seed=100 + seed, noise=2.0) for seed in range(40)]
    assert sum(alarms(taught, fresh)) <= 2


def test_another_mix_of_what_is_known_is_no_drift(taught):
    fresh = [clouds(["abcd"[seed % 4]], rows=300, seed=200 + seed, noise=2.0) for seed in range(20)]
    assert sum(alarms(taught, fresh)) <= 1


def test_a_shifted_column_is_found_and_named_in_the_users_units(taught):
    tables = [shifted(clouds(["a", "b", "c", "d"], 125, 300 + s, 2.0), "x3", 2.0) for s in range(20)]
    found = [drift.compared(*taught, table) for table in tables]
    assert all(result.moved[0].name == "x3" for result in found)
    moved = found[0].moved[0]
    assert 1 < np.mean(moved.new) - np.mean(moved.learnt) < 3
    assert found[0].sentences[1].startswith("x3 moved: its middle half was ")


def test_rows_of_a_kind_that_nobody_learnt_are_found(taught):
    assert all(alarms(taught, [clouds(["g"], 300, 400 + seed, 2.0) for seed in range(5)]))


def test_values_that_go_missing_are_found(taught):
    table = clouds(["a", "b"], noise=2.0, seed=7)
    holes = pa.array([None if row % 3 == 0 else value for row, value in enumerate(table["x1"].to_pylist())])
    found = drift.compared(*taught, table.set_column(1, "x1", holes))
    assert "missing x1" in [moved.name for moved in found.moved]


def test_what_was_learnt_since_is_no_drift_any_more(tmp_path):
    store, _ = begin(tmp_path, clouds(["a", "b"]))
    new = shifted(clouds(["a", "b"], seed=1), "x3", 3.0)
    assert drift.check(store, new).moved
    store.update(new)
    assert store.folder.production() == 2
    assert not drift.check(store, shifted(clouds(["a", "b"], seed=2), "x3", 3.0)).moved


def test_the_reference_never_holds_a_row_of_an_exam(taught, monkeypatch):
    store, answerer = taught
    seen = []
    statistics = drift._statistics
    monkeypatch.setattr(drift, "_statistics", lambda *args: seen.append(args[2]) or statistics(*args))
    drift.compared(store, answerer, clouds(["a"]))
    exams = pa.concat_tables([exam.table for exam in store.exams()])
    asked = answerer.recipe.rows(exams).read(slice(0, None))["numbers"][:, 0]
    assert len(asked) > 50 and not set(asked.tolist()) & set(seen[0]["numbers"][:, 0].tolist())


def test_where_no_rows_are_kept_it_says_that_nothing_can_be_judged(tmp_path):
    store, _ = begin(tmp_path, clouds(["a", "b"], rows=100), method=methods.EWC())
    with pytest.raises(StoreError, match="cannot be judged: the method ewc"):
        drift.check(store, clouds(["a"]))


def test_rows_that_cannot_be_read_are_refused(taught):
    with pytest.raises(StoreError, match="x0"):
        drift.compared(*taught, clouds(["a"]).drop_columns(["x0"]))
