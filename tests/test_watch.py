"""A watched folder: each file once, in order, whole, also after a crash; a broken file does not stop it."""

import pyarrow as pa
import pyarrow.csv
import pytest
from store_examples import begin, clouds

from perdure.recipes import tables
from perdure.store import lines
from perdure.store.folder import StoreError
from perdure.store.store import Store
from perdure.store.watch import Watch


@pytest.fixture
def place(tmp_path):
    store, _ = begin(tmp_path / "stores", clouds(["a", "b"], rows=150))
    (tmp_path / "inbox").mkdir()
    return store, tmp_path / "inbox"


def seen(watch):
    return [(found.files, found.event) for found in watch.once(settle=0)]


def test_each_file_becomes_one_update_in_order_of_name_and_once(place):
    store, inbox = place
    tables.write(clouds(["d"], rows=150, seed=2), inbox / "2.parquet")
    tables.write(clouds(["c"], rows=150, seed=1), inbox / "1.csv")
    (inbox / "notes.txt").write_text("not data")
    (inbox / ".3.csv").write_text("half")
    assert seen(Watch(store, inbox)) == [(["1.csv"], "promoted"), (["2.parquet"], "promoted")]
    assert store.status()["classes"][2:] == ["c", "d"]
    again = Watch(Store("clouds", store.folder.path.parent), inbox)
    assert seen(again) == [] and store.folder.versions() == [1, 2, 3]
    tables.write(clouds(["e"], rows=150, seed=3), inbox / "1.csv")
    assert seen(again) == [(["1.csv"], "promoted")], "other bytes under a known name are new"


def test_a_file_that_is_still_being_written_waits(place):
    store, inbox = place
    whole = inbox.parent / "whole.csv"
    tables.write(clouds(["c"], rows=150, seed=1), whole)
    data, watch = whole.read_bytes(), Watch(store, inbox)
    (inbox / "1.csv").write_bytes(data[:5000])
    assert list(watch.look()) == []
    (inbox / "1.csv").write_bytes(data)
    assert list(watch.look()) == []
    assert [found.event for found in watch.look()] == ["promoted"]


def test_a_broken_file_is_noted_and_does_not_stop_the_watch(place):
    store, inbox = place
    (inbox / "1.parquet").write_bytes(b"PAR1 no more")
    tables.write(clouds(["c"], rows=50).rename_columns(["x0", "x1", "x2", "x9", "kind"]), inbox / "2.csv")
    tables.write(clouds(["c"], rows=150, seed=1), inbox / "3.csv")
    assert [event for _, event in seen(Watch(store, inbox))] == ["broken", "broken", "promoted"]
    noted = lines.read(store.folder.path / "watched.jsonl")
    assert [line["file"] for line in noted] == ["1.parquet", "2.csv", "3.csv"] and "x3" in noted[1]["why"][0]
    assert seen(Watch(store, inbox)) == []


def test_killed_between_the_update_and_its_note_nothing_is_learnt_twice(place, monkeypatch):
    store, inbox = place
    tables.write(clouds(["c"], rows=150, seed=1), inbox / "1.csv")

    class Killed(BaseException):
        pass

    def dies(*_args):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(lines, "append", dies)
        with pytest.raises(Killed):
            seen(Watch(store, inbox))
    assert store.folder.versions() == [1, 2]
    assert seen(Watch(store, inbox)) == [(["1.csv"], "promoted")] and store.folder.versions() == [1, 2]


def test_files_wait_until_they_have_enough_rows_together(place):
    store, inbox = place
    for number in (1, 2, 3):
        tables.write(clouds(["c"], rows=60, seed=number), inbox / f"{number}.csv")
    watch = Watch(store, inbox, least=100)
    assert [files for files, _ in seen(watch)] == [["1.csv", "2.csv"]]
    tables.write(clouds(["c"], rows=60, seed=9), inbox / "4.csv")
    assert [files for files, _ in seen(watch)] == [["3.csv", "4.csv"]]


def test_files_wait_for_drift(place):
    store, inbox = place
    watch = Watch(store, inbox, when="drift")
    tables.write(clouds(["a", "b"], rows=100, seed=1), inbox / "1.csv")
    assert seen(watch) == [] and store.folder.versions() == [1]
    tables.write(clouds(["c"], rows=100, seed=2), inbox / "2.csv")
    assert seen(watch) == [(["1.csv", "2.csv"], "promoted")]


def test_a_file_that_does_not_go_with_those_before_it_is_noted(place):
    store, inbox = place
    tables.write(clouds(["c"], rows=60), inbox / "1.csv")
    odd = clouds(["c"], rows=60).append_column("more", [["words"] * 60])
    tables.write(odd, inbox / "2.csv")
    pa.csv.write_csv(odd.set_column(5, "more", [[1] * 60]), inbox / "3.csv")
    assert seen(Watch(store, inbox, least=121)) == [(["3.csv"], "broken")]


def test_a_folder_that_is_not_there_is_said(place):
    with pytest.raises(StoreError, match="no folder"):
        Watch(place[0], place[1] / "none")


def test_a_line_that_was_cut_short_is_as_if_it_had_not_been_written(tmp_path):
    path = tmp_path / "a.jsonl"
    lines.append(path, [{"n": 1}, {"n": 2}])
    path.write_bytes(path.read_bytes()[:-3])
    assert lines.read(path) == [{"n": 1}]
    lines.append(path, [{"n": "é\u2028"}])
    assert lines.read(path) == [{"n": 1}, {"n": "é\u2028"}]
