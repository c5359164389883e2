"""A model in production: what is promoted, refused, held and rolled back, and that nothing is lost on the way."""

import json
import os
import random

import numpy as np
import pyarrow as pa
import pytest
from damage_versions import KINDS, damage
from store_examples import KEY, LABEL, begin, clouds

from perdure import methods, recipes
from perdure.checkpoint import CheckpointError
from perdure.store import folder as store_folder
from perdure.store import version as store_version
from perdure.store.arrival import RefusedError
from perdure.store.exams import divide
from perdure.store.folder import StoreError
from perdure.store.gate import Rules
from perdure.store.store import Store


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A store of three updates; tests that change it copy it."""
    root = tmp_path_factory.mktemp("taught")
    store, _ = begin(root, clouds(["a", "b"]))
    outcomes = [store.update(clouds(labels, seed=seed)) for seed, labels in ((1, ["c", "d"]), (2, ["a", "e"]))]
    return store, outcomes


@pytest.fixture
def copied(taught, tmp_path):
    import shutil

    shutil.copytree(taught[0].folder.path, tmp_path / "clouds")
    return Store("clouds", tmp_path)


def events(store):
    return [(event["event"], event["version"]) for event in store.folder.history()]


def test_updates_are_examined_on_everything_old_and_new_and_promoted(taught):
    store, outcomes = taught
    assert [outcome.kind for outcome in outcomes] == ["promoted", "promoted"]
    assert store.folder.production() == 3 and events(store) == [("promoted", n) for n in (1, 2, 3)]
    card = outcomes[-1].card
    assert [exam["exam"] for exam in card["exams"]] == ["0001", "0002", "0003"]
    assert all(exam["candidate"] > 0.9 for exam in card["exams"])
    assert card["parent"] == 2 and card["classes"] == ["a", "b", "c", "d", "e"]


def test_an_update_that_forgets_is_refused_and_production_stays(tmp_path):
    store, _ = begin(tmp_path, clouds(["a", "b"]), method=methods.Finetune())
    outcome = store.update(clouds(["c", "d"], seed=1))
    assert outcome.kind == "refused" and any("where the best version has 100.0 %" in why for why in outcome.why)
    assert store.folder.production() == 1 and store.folder.versions() == [1, 2]
    said = store.predict(clouds(["a", "b"], seed=9))["prediction"].to_pylist()
    assert np.mean([a == b for a, b in zip(said, clouds(["a", "b"], seed=9)[LABEL].to_pylist(), strict=True)]) > 0.9
    store.promote(2, force="the old kinds are gone")
    assert store.folder.production() == 2 and store.folder.history()[-1]["why"] == ["the old kinds are gone"]


def test_no_row_of_an_exam_is_ever_learnt_or_kept(taught):
    store, _ = taught
    asked = {mark for exam in store.exams() for mark in exam.marks}
    for number, table in ((1, clouds(["a", "b"])), (2, clouds(["c", "d"], seed=1)), (3, clouds(["a", "e"], seed=2))):
        recipe = store.answerer(number).recipe
        found = divide(KEY, recipe.contents(table))
        assert asked.isdisjoint(found.places[row] for row in found.learn)
    kept = store.answerer().learner.method.store.all()["x"]["numbers"][:, 0].unique()
    exams = pa.concat_tables([exam.table for exam in store.exams()])
    examined = store.answerer().recipe.rows(exams).read(slice(0, None))["numbers"][:, 0]
    assert len(kept) > 100 and not set(kept.tolist()) & set(examined.tolist())


def test_rolling_back_and_forth_changes_the_pointer_and_the_history_alone(copied):
    before = sorted((file.name, file.read_bytes()) for file in copied.folder.version(3).iterdir())
    assert copied.rollback() == 2 and copied.folder.production() == 2
    assert copied.rollback(3) == 3 and copied.folder.production() == 3
    assert events(copied)[-2:] == [("rolled back", 2), ("rolled back", 3)]
    assert before == sorted((file.name, file.read_bytes()) for file in copied.folder.version(3).iterdir())
    with pytest.raises(StoreError, match="never in production"):
        copied.rollback(7)


def test_after_a_roll_back_the_next_update_begins_at_the_version_that_answers(copied):
    copied.rollback(1)
    outcome = copied.update(clouds(["c", "d"], seed=5), accept_shift=True)
    assert outcome.version == 4 and outcome.card["parent"] == 1 and "e" not in outcome.card["classes"]


def test_the_best_version_ever_is_the_reference_so_that_slow_decay_cannot_pass(copied):
    """Two answers that are each a little worse than the last one, and the second is too much worse than the first."""
    best = copied.folder.history()
    assert len(best) == 3
    answers = copied.answers()
    rows = answers[0].rows["0001"]
    assert [found.on("0001", rows) is not None for found in answers] == [True, True, True]
    assert answers[0].on("0003", [0]) is None, "version 1 never sat exam 3"


# ---- data that is odd ----


def flipped(table: pa.Table, share: float) -> pa.Table:
    labels = np.array(table[LABEL].to_pylist())
    wrong = np.random.default_rng(0).random(len(labels)) < share
    names = sorted(set(labels))
    other = {name: names[(place + 1) % len(names)] for place, name in enumerate(names)}
    labels[wrong] = [other[label] for label in labels[wrong]]
    return table.set_column(table.column_names.index(LABEL), LABEL, [labels])


def test_flipped_labels_are_held_until_the_shift_is_accepted(copied):
    odd = flipped(clouds(["a", "b", "c"], seed=3), 0.3)
    outcome = copied.update(odd)
    assert outcome.kind == "held" and "labels or world changed" in outcome.why[0]
    assert copied.folder.production() == 3 and copied.folder.versions() == [1, 2, 3]
    assert copied.update(odd, accept_shift=True).kind in ("promoted", "refused")


def test_another_column_in_the_place_of_the_labels_is_held(copied):
    table = clouds(["a", "b"], rows=100, seed=3)
    place = table.column_names.index(LABEL)
    odd = copied.update(table.set_column(place, LABEL, [[f"person {row}" for row in range(200)]]))
    assert odd.kind == "held" and "is it the right column" in odd.why[0] and copied.folder.production() == 3
    few_each = [f"new {row % 40}" for row in range(200)]
    assert copied.update(table.set_column(place, LABEL, [few_each])).kind != "held"


def test_right_labels_are_not_held(copied):
    assert copied.update(flipped(clouds(["a", "b", "c"], seed=3), 0.02)).kind == "promoted"


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (clouds(["a"]).rename_columns(["x0", "x1", "x2", "x9", LABEL]), "x3"),
        (clouds(["a"]).rename_columns(["x0", "x1", "x2", "x3", "sort"]), LABEL),
        (clouds(["a"]).slice(0, 0), "no rows"),
        (clouds(["a"]).set_column(4, LABEL, [[None] * 400]), "row 0"),
        (clouds(["a"]).set_column(0, "x0", [["much"] * 400]), "x0"),
    ],
)
def test_data_that_cannot_be_learnt_is_refused_before_anything_is(copied, table, words):
    with pytest.raises(RefusedError, match=words):
        copied.update(table)
    assert copied.folder.production() == 3 and not copied.folder.work.exists()


def test_one_label_and_many_repetitions_are_learnt_with_a_warning_on_the_card(copied):
    one = clouds(["a"], rows=100, seed=4)
    outcome = copied.update(pa.concat_tables([one, one, one]))
    assert outcome.version == 4
    assert any("one label" in w for w in outcome.card["warnings"])
    assert any("repeat" in w for w in outcome.card["warnings"])


def test_the_same_rows_again_are_not_learnt_twice(copied):
    outcome = copied.update(clouds(["a", "e"], seed=2))
    assert outcome.version == 3 and any("already" in warning for warning in outcome.warnings)
    assert copied.folder.versions() == [1, 2, 3]
    copied.rollback(1)
    assert copied.update(clouds(["a", "e"], seed=2)).version == 4


# ---- brought exams, and no rows kept ----


def test_an_exam_that_was_brought_is_sat_from_now_on_and_never_learnt(tmp_path):
    exam = clouds(["a", "b"], rows=60, seed=7)
    store, outcome = begin(tmp_path, pa.concat_tables([clouds(["a", "b"]), exam]), exams={"doctors": exam})
    assert [found["exam"] for found in outcome.card["exams"]] == ["0001", "0001 doctors"]
    assert outcome.card["exams"][1]["rows"] == 120 and outcome.card["data"]["learnt"] <= 800
    assert any("exam that was brought" in warning for warning in outcome.warnings)
    again = store.update(pa.concat_tables([clouds(["c"], seed=1), exam]))
    assert again.card["data"]["learnt"] <= 400 and "0001 doctors" in [e["exam"] for e in again.card["exams"]]


def test_where_no_rows_are_kept_there_are_none_on_disk(tmp_path):
    with pytest.raises(StoreError, match="derpp stores rows"):
        begin(tmp_path, clouds(["a", "b"]), keep_rows=False, method=methods.DERpp())
    store, outcome = begin(tmp_path, clouds(["a", "b"]), keep_rows=False)
    assert store.settings["method"]["name"] == "ewc" and store.exams() == []
    assert outcome.card["exams"][0]["rows"] > 50, "the newest rows are examined before they are dropped"
    assert any("no rows are kept" in promise for promise in store.status()["promises off"])
    value = clouds(["a", "b"])["x0"].to_numpy()[0]
    for file in store.folder.path.rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            assert np.float64(value).tobytes() not in data and np.float32(value).tobytes() not in data


# ---- crashes ----


def points(monkeypatch, after: int):
    """Lets the process "die" at the after-th change of the store's folder; gives how many there were."""
    seen = [0]

    class Killed(BaseException):
        pass

    def dying(function):
        def wrapped(*args, **kwargs):
            seen[0] += 1
            if seen[0] == after:
                raise Killed
            return function(*args, **kwargs)

        return wrapped

    monkeypatch.setattr(store_folder, "replace_file", dying(store_folder.replace_file))
    monkeypatch.setattr(store_folder.sealed, "write", dying(store_folder.sealed.write))
    monkeypatch.setattr(store_folder.Folder, "note", dying(store_folder.Folder.note))
    monkeypatch.setattr(store_folder.Folder, "close", dying(store_folder.Folder.close))
    monkeypatch.setattr(store_version.os, "rename", dying(os.rename))
    return Killed, seen


def state_of(store):
    """What must not depend on where a process was killed."""
    answerer = store.answerer()
    weights = {name: value.clone() for name, value in answerer.learner.model.state_dict().items()}
    return store.folder.production(), store.folder.versions(), events(store), weights


def test_killed_between_any_two_changes_the_same_call_ends_as_if_it_never_was(taught, tmp_path, monkeypatch):
    import shutil

    import torch

    def fresh(name):
        shutil.copytree(taught[0].folder.path, tmp_path / name / "clouds")
        return Store("clouds", tmp_path / name)

    data = clouds(["f", "a"], seed=6)
    whole = fresh("whole")
    whole.update(data)
    expected = state_of(whole)
    for after in range(1, 20):
        store = fresh(str(after))
        with monkeypatch.context() as patched:
            killed, _seen = points(patched, after)
            try:
                store.update(data)
            except killed:
                pass
            else:
                break
        again = Store("clouds", tmp_path / str(after))
        assert again.folder.production() in (3, 4), "production is as before or as after"
        again.answerer()
        again.update(data)
        found = state_of(again)
        assert found[:3] == expected[:3], f"killed at change {after}"
        assert all(torch.equal(found[3][name], value) for name, value in expected[3].items())
    assert after > 4, "the update was never killed"


def test_an_unfinished_update_with_other_data_is_given_up_and_said(copied, monkeypatch):
    with monkeypatch.context() as patched:
        killed, _ = points(patched, 3)
        with pytest.raises(killed):
            copied.update(clouds(["f"], seed=6))
    assert copied.status()["under way"]
    outcome = copied.update(clouds(["g"], seed=6))
    assert any("given up" in warning for warning in outcome.warnings) and "f" not in outcome.card["classes"]


def test_a_store_that_another_process_began_meanwhile_is_not_removed(tmp_path, monkeypatch):
    update = Store.update

    def overtaken(self, *args, **kwargs):
        update(self, *args, **kwargs)
        raise StoreError("the store is being updated by another process")

    with monkeypatch.context() as patched:
        patched.setattr(Store, "update", overtaken)
        with pytest.raises(StoreError, match="another process"):
            begin(tmp_path, clouds(["a", "b"]))
    assert Store("clouds", tmp_path).folder.production() == 1
    with pytest.raises(RefusedError):
        Store.init("none", clouds(["a"]).slice(0, 0), recipe=recipes.build({"name": "tabular"}), root=tmp_path)
    assert not (tmp_path / "none").exists(), "what never had a version leaves nothing"


def test_two_processes_do_not_update_one_store(copied):
    with copied.folder.held(), pytest.raises(StoreError, match="another process"):
        Store("clouds", copied.folder.path.parent).update(clouds(["f"]))


def test_a_store_that_cannot_be_written_stays_whole(copied, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(store_version.checkpoint, "write", full)
        with pytest.raises(OSError, match="No space"):
            copied.update(clouds(["f"], seed=6))
    assert copied.folder.production() == 3 and copied.folder.versions() == [1, 2, 3]
    assert copied.update(clouds(["f"], seed=6)).version == 4


# ---- damage ----


def test_every_damage_to_a_version_is_refused(copied):
    """1 000 of them: tests/damage_versions.py."""
    found = damage(copied, 120)
    assert sum(found.values()) > 110 and set(found) == set(KINDS)


def test_a_changed_line_of_the_history_is_noticed_and_a_torn_one_is_put_right(copied):
    file = copied.folder.path / "history.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[:-30])
    assert len(copied.folder.history()) == 2
    with copied.folder.held():
        found = copied.folder.recover()
    assert any("cut short" in text for text in found) and events(copied)[-1] == ("promoted", 3)
    event = json.loads(whole.splitlines()[0])
    file.write_bytes(whole.replace(event["at"].encode(), b"1999-01-01T00:00:00+00:00", 1))
    with pytest.raises(CheckpointError, match="line 1"):
        copied.folder.history()


@pytest.mark.parametrize("name", ["../clouds", "a/b", "", ".hidden", "a\0b"])
def test_a_name_is_never_a_path(tmp_path, name):
    with pytest.raises(StoreError, match="no name"):
        Store(name, tmp_path)


def test_predictions_stand_beside_the_rows_and_are_left_out_below_the_confidence(taught):
    store, _ = taught
    table = clouds(["a", "e"], rows=50, seed=8)
    found = store.predict(table, min_confidence=0.9)
    assert found.column_names == [*table.column_names, "prediction", "confidence", *(f"p_{c}" for c in "abcde")]
    said, sure = found["prediction"].to_pylist(), found["confidence"].to_numpy()
    assert all((label is None) == (p < 0.9) for label, p in zip(said, sure, strict=True))
    with pytest.raises(StoreError, match="x0"):
        store.predict(table.drop_columns(["x0"]))


def test_a_limit_of_the_rules_refuses(tmp_path):
    store, _ = begin(tmp_path, clouds(["a", "b"]), rules=Rules(bytes=10))
    assert store.folder.production() == 1, "a first version has nothing to be held against"
    assert "bytes" in store.update(clouds(["c"], seed=1)).why[0]


def test_a_recipe_of_words_holds_another_language(tmp_path):
    draws = random.Random(0)
    english = {"good": ["fine", "great", "lovely", "sound", "dear"], "bad": ["poor", "dull", "weak", "sad", "awful"]}
    german = {"good": ["gut", "fein", "schön", "toll", "prima"], "bad": ["schlecht", "öde", "matt", "traurig", "übel"]}

    def texts(words, rows=300):
        labels = [draws.choice(["good", "bad"]) for _ in range(rows)]
        said = [" ".join([*draws.choices(words[label], k=6), str(draws.random())]) for label in labels]
        return pa.table({"text": said, "label": labels})

    recipe = recipes.build({"name": "text", "buckets": 1024, "most": 16})
    store, _ = Store.init("words", texts(english), recipe=recipe, root=tmp_path, key=KEY)
    assert store.update(texts(german)).kind == "held"
    assert store.update(texts(english)).kind == "promoted"


def test_a_trained_network_is_the_first_version_and_learns_on(tmp_path):
    import torch
    from own_network import build

    from perdure import models

    network = build()
    x = torch.tensor(np.stack([clouds(["a", "b"])[f"x{i}"].to_numpy() for i in range(4)], 1), dtype=torch.float32)
    y = torch.tensor([label == "b" for label in clouds(["a", "b"])[LABEL].to_pylist()]).long()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(200):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    trained = network.state_dict()

    def known():
        made = build()
        made.load_state_dict(trained)
        return models.adapt(made, head="fc", classes=["a", "b"])

    recipe = recipes.build({"name": "plain", "label": LABEL, "x": ["x0", "x1", "x2", "x3"]})
    store, outcome = Store.init(
        "own", recipe=recipe, root=tmp_path, key=KEY, build=known, exams={"mine": clouds(["a", "b"], 60, 9)}
    )
    assert outcome.version == 1 and store.status()["classes"] == ["a", "b"]
    assert outcome.card["exams"][0]["candidate"] > 0.95
    with pytest.raises(StoreError, match="--build"):
        Store("own", tmp_path)
    second = store.update(pa.concat_tables([clouds(["a", "b", "c"], seed=1)]))
    assert second.kind == "promoted" and second.card["classes"] == ["a", "b", "c"]
    assert [exam["exam"] for exam in second.card["exams"]] == ["0001 mine", "0002"]
