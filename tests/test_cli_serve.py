"""check, watch, export and serve from the command line: what they say, and their exit codes."""

import shutil
import sys

import pytest
from store_examples import LABEL, begin, clouds

from perdure.cli import main
from perdure.recipes import tables
from perdure.store.store import Store


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    root = tmp_path_factory.mktemp("begun")
    begin(root / "store", clouds(["a", "b"], rows=200))
    return root


@pytest.fixture
def here(begun, tmp_path, monkeypatch):
    shutil.copytree(begun / "store", tmp_path / "store")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_check_ends_with_3_where_rows_have_drifted_and_says_what_moved(here, capsys):
    same = clouds(["a", "b"], rows=200, seed=5)
    tables.write(same.drop_columns([LABEL]), here / "same.parquet")
    assert main(["check", "clouds", "same.parquet"]) == 0
    assert capsys.readouterr().out.startswith("no drift in ")
    tables.write(same.set_column(3, "x3", [same["x3"].to_numpy() + 3]), here / "other.csv")
    assert main(["check", "clouds", "other.csv"]) == 3
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("drift in ") and said[1].startswith("x3 moved")
    assert main(["check", "clouds", "none.csv"]) == 2 and "no file none.csv" in capsys.readouterr().err


def test_watch_once_learns_what_lies_there_and_says_so(here, capsys):
    (here / "inbox").mkdir()
    tables.write(clouds(["c"], rows=100, seed=1), here / "inbox" / "1.csv")
    assert main(["watch", "clouds", "inbox", "--once", "--every", "0"]) == 0
    assert capsys.readouterr().out == "1.csv: promoted version 2\n"
    assert main(["watch", "clouds", "inbox", "--once", "--every", "0"]) == 0
    assert capsys.readouterr().out == ""
    assert main(["watch", "clouds", "inbux", "--once"]) == 2


def test_a_store_that_is_busy_is_waited_for_and_its_file_is_learnt_later(here, capsys, monkeypatch):
    (here / "inbox").mkdir()
    tables.write(clouds(["c"], rows=100, seed=1), here / "inbox" / "1.csv")
    held, looks = Store("clouds").folder.held(), []

    def sleep(_seconds):
        looks.append(1)
        if len(looks) == 1:
            held.__enter__()
        if len(looks) == 3:
            held.__exit__(None, None, None)
        if len(looks) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", sleep)
    assert main(["watch", "clouds", "inbox"]) == 130
    said = capsys.readouterr()
    assert said.err.count("another process") == 1 and said.out == "1.csv: promoted version 2\n"


def test_export_says_how_close_it_is(here, capsys):
    pytest.importorskip("onnxruntime")
    assert main(["export", "clouds", "model.onnx"]) == 0
    assert capsys.readouterr().out.startswith("model.onnx: probabilities differ by at most ")


def test_serve_is_for_this_machine_alone_unless_it_has_a_token(here, capsys, monkeypatch):
    uvicorn, asked = pytest.importorskip("uvicorn"), []
    monkeypatch.setattr(uvicorn, "run", lambda app, **given: asked.append(given))
    monkeypatch.delenv("PERDURE_TOKEN", raising=False)
    assert main(["serve", "clouds", "--host", "0.0.0.0"]) == 2
    assert "PERDURE_TOKEN" in capsys.readouterr().err and asked == []
    assert main(["serve", "clouds"]) == 0 and asked[-1]["host"] == "127.0.0.1"
    monkeypatch.setenv("PERDURE_TOKEN", "sesame")
    assert main(["serve", "clouds", "--host", "0.0.0.0", "--port", "9"]) == 0 and asked[-1]["port"] == 9


def test_a_missing_extra_is_a_sentence(here, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", "clouds"]) == 2
    assert "perdure[serve]" in capsys.readouterr().err
