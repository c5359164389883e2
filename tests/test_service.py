"""The service: what it answers and refuses, that feedback is never lost, that versions change between answers."""

import base64
import io
import json
import os
import shutil
import subprocess
import sys
import time

import own_network
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_examples import LABEL, begin, clouds

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient

from perdure import recipes
from perdure.recipes.tables import TableError
from perdure.service import create_app, live
from perdure.service.feedback import Feedback
from perdure.service.requests import table_of
from perdure.service.work import named
from perdure.store import lines
from perdure.store.folder import StoreError
from perdure.store.store import Store


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    root = tmp_path_factory.mktemp("begun")
    begin(root, clouds(["a", "b"], rows=200))
    return root


@pytest.fixture
def root(begun, tmp_path):
    shutil.copytree(begun / "clouds", tmp_path / "clouds")
    return tmp_path


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(live, "EVERY", 0.05)


@pytest.fixture(scope="module")
def shared(begun):
    """For tests that change nothing."""
    with client_of(create_app(begun, "clouds")) as client:
        yield client


def client_of(app, **settings):
    return TestClient(app, base_url="http://localhost", **settings)


def rows_of(table, label=True):
    return (table if label else table.drop_columns([LABEL])).to_pylist()


def until(true, seconds=30.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


# ---- answers ----


def test_rows_are_answered_as_the_store_answers_them(shared, begun):
    table = clouds(["a", "b"], rows=20, seed=9)
    found = shared.post("/predict", json={"rows": rows_of(table, label=False), "min_confidence": 0.9}).json()
    expected = Store("clouds", begun).predict(table, min_confidence=0.9)
    assert found["version"] == 1 and found["labels"] == expected["prediction"].to_pylist()
    assert found["confidence"] == pytest.approx(expected["confidence"].to_pylist())
    assert [row["a"] for row in found["probabilities"]] == pytest.approx(expected["p_a"].to_pylist())


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"rows": []}, "at least 1"),
        ({"rows": [{"x0": 1}]}, "x1"),
        ({"rows": [{"x0": "much", "x1": 0, "x2": 0, "x3": 0}]}, "x0"),
        ({"rows": [{"x0": [1], "x1": 0, "x2": 0, "x3": 0}]}, "neither a number"),
        ({"rows": [{"x0": {"base64": "?"}, "x1": 0, "x2": 0, "x3": 0}]}, "base64"),
        ({"rows": [{}]}, "no columns"),
        ({"rows": [{"x0": 10**400, "x1": 0, "x2": 0, "x3": 0}]}, "x0"),
        ({"rows": [{"x0": 1}], "path": "/etc/passwd"}, "Extra inputs"),
        ({"rows": [{"x0": 1}], "min_confidence": 2}, "less than or equal to 1"),
    ],
)
def test_what_cannot_be_answered_is_the_requests_fault_and_the_sentence_says_why(shared, body, said):
    answer = shared.post("/predict", json=body)
    assert answer.status_code == 422 and said in answer.text


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.integers(), max_size=2),
    st.dictionaries(st.sampled_from(["base64", "x"]), st.text(max_size=5), max_size=2),
)  # fmt: skip
COLUMNS = st.sampled_from(["x0", "x1", "x2", "x3", LABEL, "prediction", "p_a", "confidence", "\ud800", "é", ""])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.dictionaries(COLUMNS, VALUES, max_size=8), min_size=1, max_size=3))
def test_no_row_breaks_the_service(shared, rows):
    whole = [{"x0": 1.0, "x1": 2, "x2": None, "x3": 0, **row} for row in rows]
    for given_rows in (rows, whole):
        content = json.dumps({"rows": given_rows})
        answer = shared.post("/predict", content=content, headers={"content-type": "application/json"})
        assert answer.status_code in (200, 422)


def test_images_come_as_base64(tmp_path):
    import numpy as np
    import pyarrow as pa
    from PIL import Image

    def image(value):
        buffer = io.BytesIO()
        Image.fromarray(np.full((4, 4), value, dtype=np.uint8)).save(buffer, "PNG")
        return buffer.getvalue()

    values = [*range(40), *range(200, 240)]
    data = pa.table({"image": [image(v) for v in values], "label": ["dark" if v < 100 else "light" for v in values]})
    Store.init("shades", data, recipe=recipes.build({"name": "image"}), root=tmp_path, training={"epochs": 20})
    with client_of(create_app(tmp_path, "shades")) as client:
        rows = [{"image": {"base64": base64.b64encode(image(v)).decode()}} for v in (5, 230)]
        assert client.post("/predict", json={"rows": rows}).json()["labels"] == ["dark", "light"]


# ---- who may ask, and how much ----


def test_a_body_too_large_is_refused_whether_it_says_so_or_not(root):
    with client_of(create_app(root, "clouds", most_bytes=2000)) as client:
        assert client.post("/predict", json={"rows": [{"x0": "1" * 3000}]}).status_code == 413
        parts = (b"1" * 500 for _ in range(10))
        assert client.post("/predict", content=parts, headers={"content-type": "application/json"}).status_code == 413
        assert client.post("/predict", json={"rows": rows_of(clouds(["a"], rows=5), False)}).status_code == 200


def test_with_a_token_nothing_but_health_in_a_word_is_answered_without_it(root):
    with client_of(create_app(root, "clouds", token="sesame")) as client:
        for method, path in (("GET", "/"), ("GET", "/versions"), ("GET", "/openapi.json"), ("POST", "/feedback")):
            assert client.request(method, path).status_code == 401
        for wrong in ("Bearer sesam", "Bearer ", "Basic !!", "Digest sesame", "sesame", "Bearer sésame".encode()):
            assert client.get("/versions", headers={"Authorization": wrong}).status_code == 401
        assert client.get("/health").json() == {"status": "ok"}
        assert client.get("/versions", headers={"Authorization": "Bearer sesame"}).status_code == 200
        assert client.get("/health", headers={"Authorization": "Bearer sesame"}).json()["version"] == 1
        assert client.get("/", auth=("anyone", "sesame")).status_code == 200


def test_no_web_page_reaches_it_under_another_name_or_with_another_kind_of_body(shared):
    assert shared.get("/versions", headers={"Host": "evil.example"}).status_code == 400
    body = json.dumps({"rows": rows_of(clouds(["a"], rows=1))})
    assert shared.post("/feedback", content=body, headers={"content-type": "text/plain"}).status_code == 422


# ---- feedback ----


def test_feedback_is_on_disk_before_it_is_acknowledged(root, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(lines.os, "fsync", lambda handle: synced.append(handle) or fsync(handle))
    with client_of(create_app(root, "clouds")) as client:
        rows = rows_of(clouds(["c"], rows=3))
        assert client.post("/feedback", json={"rows": rows}).json() == {"stored": 3, "waiting": 3}
        assert synced and lines.read(root / "clouds" / "feedback" / "collected.jsonl") == rows
        assert client.post("/feedback", json={"rows": rows}).json()["waiting"] == 6
    with client_of(create_app(root, "clouds")) as again:
        assert again.get("/health").json()["feedback waiting"] == 6


@pytest.mark.parametrize("row", [{"x0": 1}, {"x0": 1, "x1": 1, "x2": 1, "x3": 1, LABEL: None}])
def test_feedback_that_could_not_be_learnt_is_refused_at_once(shared, begun, row):
    assert shared.post("/feedback", json={"rows": [row]}).status_code == 422
    assert not (begun / "clouds" / "feedback").exists()


def test_feedback_that_cannot_be_written_is_not_acknowledged(root, monkeypatch):
    def full(*_args):
        raise OSError(28, "No space left on device")

    with client_of(create_app(root, "clouds"), raise_server_exceptions=False) as client:
        monkeypatch.setattr(lines, "append", full)
        assert client.post("/feedback", json={"rows": rows_of(clouds(["c"], rows=3))}).status_code == 500
        assert client.get("/health").json()["feedback waiting"] == 0


def test_killed_while_it_collects_every_acknowledged_row_is_there(root):
    script = (
        "import sys; from pathlib import Path; from perdure.store.folder import Folder\n"
        "from perdure.service.feedback import Feedback\n"
        "feedback = Feedback(Folder(Path(sys.argv[1])))\n"
        "for n in range(100000): print(feedback.collect([{'n': n}]), flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(root / "clouds")], stdout=subprocess.PIPE)
    acknowledged = [int(process.stdout.readline()) for _ in range(20)]
    process.kill()
    acknowledged += [int(line) for line in process.stdout.read().splitlines()[:-1]]
    assert len(lines.read(root / "clouds" / "feedback" / "collected.jsonl")) >= acknowledged[-1]
    process.wait()


def test_a_batch_is_given_to_one_update_and_again_if_that_did_not_end(root):
    folder = Store("clouds", root).folder
    feedback = Feedback(folder)
    feedback.collect([{"n": 1}])
    assert feedback.batch() == "0001.jsonl"
    feedback.collect([{"n": 2}])
    assert Feedback(folder).batch() == "0001.jsonl", "its update did not end"
    feedback.note("0001.jsonl", "promoted", 2, [])
    assert feedback.batch() == "0002.jsonl"
    feedback.note("0002.jsonl", "refused", 3, ["why"])
    assert feedback.batch() is None and feedback.batch([{"n": 3}]) == "0003.jsonl"


def test_where_no_rows_are_kept_a_batch_goes_when_its_update_is_over(root):
    feedback = Feedback(Store("clouds", root).folder, keep_rows=False)
    feedback.collect([{"n": 1}])
    name = feedback.batch()
    feedback.note(name, "promoted", 2, [])
    assert not (feedback.path / name).exists() and feedback.batch([{"n": 2}]) == "0002.jsonl"


def test_columns_of_several_kinds_are_one_table():
    found = table_of([{"a": 1, "b": True}, {"a": 2.5}, {"b": "x", "c": None}]).to_pylist()
    assert found[0] == {"a": 1.0, "b": "true", "c": None} and found[2] == {"a": None, "b": "x", "c": None}
    with pytest.raises(TableError, match="images and other"):
        table_of([{"a": {"base64": "AAAA"}}, {"a": 1}])


# ---- updates ----


def test_an_update_learns_the_feedback_in_the_background_and_its_version_answers(root):
    with client_of(create_app(root, "clouds")) as client:
        assert client.post("/update", json={}).status_code == 422, "nothing to learn"
        client.post("/feedback", json={"rows": rows_of(clouds(["c"], rows=200, seed=1))})
        assert client.post("/update", json={}).status_code == 202
        assert client.post("/update", json={}).status_code == 409
        asked = {"rows": rows_of(clouds(["c"], rows=5, seed=2), label=False)}
        assert client.post("/predict", json=asked).json()["version"] == 1, "the old version answers meanwhile"
        until(lambda: client.get("/health").json()["version"] == 2)
        found = client.post("/predict", json=asked).json()
        assert found["version"] == 2 and found["labels"] == ["c"] * 5
        until(lambda: not client.get("/health").json()["update"]["running"])
        health = client.get("/health").json()
        assert health["feedback waiting"] == 0 and health["update"]["last"]["event"] == "promoted"
        history = client.get("/versions").json()["history"]
        assert [event["version"] for event in history] == [1, 2] and len(history[1]["card"]["exams"]) == 2


def test_an_update_that_fails_is_said_and_its_rows_wait(root):
    with client_of(create_app(root, "clouds")) as client:
        with Store("clouds", root).folder.held():
            assert client.post("/update", json={"rows": rows_of(clouds(["c"], rows=50))}).status_code == 202
            until(lambda: client.get("/health").json()["update"]["failure"])
        assert "another process" in client.get("/health").json()["update"]["failure"]
        assert Feedback(Store("clouds", root).folder).batch() == "0001.jsonl"


def test_a_network_of_ones_own_is_found_by_its_name(tmp_path, monkeypatch):
    shutil.copy(own_network.__file__, tmp_path / "mine.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    recipe = recipes.build({"name": "plain", "label": LABEL})
    build = named("mine:build")
    Store.init("own", clouds(["a", "b"], rows=200), recipe=recipe, root=tmp_path, build=build, training={"epochs": 5})
    with client_of(create_app(tmp_path, "own", build="mine:build")) as client:
        client.post("/update", json={"rows": rows_of(clouds(["c"], rows=200, seed=1))})
        until(lambda: client.get("/health").json()["update"]["last"])
        health = client.get("/health").json()
        assert health["update"]["last"]["version"] == 2 and health["update"]["failure"] == ""
        asked = rows_of(clouds(["a", "b"], rows=100, seed=5), label=False)
        assert client.post("/predict", json={"rows": asked}).status_code == 200
        assert client.get("/drift").json()["findings"][0].startswith("no drift in 36 inputs")


def test_a_damaged_new_version_does_not_answer_and_health_says_so(root):
    store = Store("clouds", root)
    store.update(clouds(["c"], rows=100, seed=1))
    store.rollback(1)
    with client_of(create_app(root, "clouds")) as client:
        file = store.folder.version(2) / "learner.perdure"
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        store.folder.point(2)
        until(lambda: client.get("/health").json()["status"] == "degraded")
        assert "damaged" in client.get("/health").json()["trouble"]
        asked = {"rows": rows_of(clouds(["a"], rows=5), label=False)}
        assert client.post("/predict", json=asked).json()["version"] == 1
        assert client.get("/").status_code == 200 and "damaged" in client.get("/").text
        file.write_bytes(whole)
        (root / "clouds" / "production").write_text("nonsense")
        until(lambda: "no version" in client.get("/health").json()["trouble"])
        store.folder.point(1)
        until(lambda: client.get("/health").json()["status"] == "ok")


def test_a_store_that_is_not_there_is_said_and_its_name_is_no_path(root):
    for name in ("none", "../clouds"):
        with pytest.raises(StoreError):
            create_app(root, name)


# ---- the page ----


def test_the_page_shows_versions_exams_and_drift_and_runs_nothing(root):
    hostile = "<script>alert(1)</script>"
    Store("clouds", root).update(clouds(["c"], rows=100, seed=1))
    Store("clouds", root).rollback(1)
    Store("clouds", root).promote(2, force=hostile)
    with client_of(create_app(root, "clouds")) as client:
        client.post("/predict", json={"rows": rows_of(clouds(["g"], rows=200, seed=3), label=False)})
        page = client.get("/")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert "Version 2 answers" in page.text and '<td class="h' in page.text and "0002" in page.text
        assert "drift in" in page.text and "rolled back" in page.text
        assert hostile not in page.text and "&lt;script&gt;" in page.text and "<script" not in page.text
        assert client.get("/docs", follow_redirects=False).headers["location"] == "/openapi.json"
        assert set(client.get("/openapi.json").json()["paths"]) == {
            "/predict", "/feedback", "/update", "/versions", "/health", "/drift",
        }  # fmt: skip


def test_rows_asked_are_kept_in_bounds(shared, begun):
    found = live.Live(Store("clouds", begun))
    for seed in range(30):
        found._remember(clouds(["a"], rows=90, seed=seed))
    assert live.ROWS <= sum(part.num_rows for part in found._recent) < live.ROWS + 90
    found._remember(clouds(["a"], rows=5000))
    assert [part.num_rows for part in found._recent] == [live.ROWS]
