"""Files into tables, and what is refused on the way."""

import io
import sys

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")
image = pytest.importorskip("PIL.Image")
parquet = pytest.importorskip("pyarrow.parquet")

from perdure.recipes import tables  # noqa: E402
from perdure.recipes.tables import TableError, read, write  # noqa: E402


def saved(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def picture(value=0):
    buffer = io.BytesIO()
    image.fromarray(np.full((4, 5), value, dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


TABLE = {"age": [30, None, 50], "name": ["a", "é,\n", "c"], "ok": [True, False, True]}


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_what_is_written_is_read_again(tmp_path, ending):
    path = tmp_path / f"t.{ending}"
    write(pa.table(TABLE), path)
    assert read(path).to_pydict() == TABLE and [file.name for file in tmp_path.iterdir()] == [path.name]


def test_all_kinds_of_files_give_the_same_table(tmp_path):
    lines = ['{"age": 30, "name": "a", "ok": true}', '{"age": null, "name": "b", "ok": false}']
    files = [
        saved(tmp_path / "t.csv", "age,name,ok\n30,a,True\n,b,false\n"),
        saved(tmp_path / "t.tsv", "age\tname\tok\n30\ta\ttrue\n\tb\tfalse\n"),
        saved(tmp_path / "t.jsonl", "\n".join(lines)),
    ]
    for file in files:
        assert read(file).to_pydict() == {"age": [30, None], "name": ["a", "b"], "ok": [True, False]}, file


def test_a_type_is_guessed_from_all_rows_and_an_empty_word_is_missing(tmp_path):
    rows = "".join(f"{n},{'w' * 50}\n" for n in range(40_000))
    table = read(saved(tmp_path / "long.csv", f"a,b\n{rows}late,\nNA,NA\n"))
    assert table["a"].to_pylist()[-2:] == ["late", "NA"] and table["b"].to_pylist()[-2:] == [None, "NA"]


def test_a_folder_of_images_is_a_table(tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        saved(tmp_path / label / "1.png", picture(len(label)))
    saved(tmp_path / "dog" / "notes.txt", "no image")
    saved(tmp_path / "dog" / ".hidden.png", "no image")
    (tmp_path / ".git").mkdir()
    table = read(tmp_path)
    assert table["label"].to_pylist() == ["cat", "dog"]
    assert table["image"].to_pylist()[1] == {"bytes": picture(3), "path": "dog/1.png"}
    assert read(tmp_path / "cat").column_names == ["image"]
    (tmp_path / "eel").mkdir()
    with pytest.raises(TableError, match="eel holds no images"):
        read(tmp_path)


def test_a_folder_named_like_a_column_adds_none(tmp_path):
    (tmp_path / "year=2020").mkdir()
    write(pa.table({"a": [1]}), tmp_path / "year=2020" / "t.parquet")
    assert read(tmp_path / "year=2020" / "t.parquet").column_names == ["a"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "", "is empty"),
        ("a.csv", "x,y\n", r"has no rows; it has the columns \['x', 'y'\]"),
        ("a.csv", "x,y\n1,2\n3\n", "cannot be read; it is damaged, cut, or no .csv file"),
        ("a.csv", "x,x\n1,2\n", "more than one column called 'x'"),
        ("a.csv", b"x,y\n\xff\xfe,2\n\xff,\x00\n", None),
        ("a.jsonl", '{"x": 1}\n{"x": ', "cannot be read"),
        ("a.jsonl", '{"x": 1}\n{"x": "a"}', "cannot be read"),
        ("a.jsonl", "[1, 2]", "cannot be read"),
        ("a.parquet", "PAR1 and no more", "cannot be read"),
        ("a.xlsx", "anything", r"is of no kind that can be read; pass .parquet, .csv"),
        ("a", "anything", "is of no kind"),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_sentence(tmp_path, name, content, words):
    path = saved(tmp_path / name, content)
    if words is None:  # bytes that are no text stay bytes, and a recipe says so
        assert read(path).num_rows == 2
        return
    with pytest.raises(TableError, match=words):
        read(path)


def test_a_cut_parquet_file_is_refused_wherever_it_is_cut(tmp_path):
    write(pa.table({"a": list(range(100))}), tmp_path / "whole.parquet")
    whole = (tmp_path / "whole.parquet").read_bytes()
    for size in range(0, len(whole), 7):
        with pytest.raises(TableError, match=r"cut\.parquet"):
            read(saved(tmp_path / "cut.parquet", whole[:size]))


def test_a_missing_file_is_refused_with_the_nearest_name(tmp_path):
    saved(tmp_path / "march.csv", "x\n1\n")
    with pytest.raises(TableError, match=r"there is no file .*marhc\.csv\. Did you mean 'march\.csv'\?"):
        read(tmp_path / "marhc.csv")
    with pytest.raises(TableError, match="there is no file"):
        read(tmp_path / "nowhere" / "a.csv")


def test_parquet_with_two_columns_of_one_name_is_refused(tmp_path):
    parquet.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["a", "a"]), tmp_path / "t.parquet")
    with pytest.raises(TableError, match="more than one column called 'a'"):
        read(tmp_path / "t.parquet")


def test_a_table_that_csv_cannot_hold_leaves_the_old_file(tmp_path):
    path = saved(tmp_path / "t.csv", "x\n1\n")
    with pytest.raises(TableError, match=r"use \.parquet"):
        write(pa.table({"image": [{"bytes": b"1"}]}), path)
    assert path.read_text() == "x\n1\n"
    with pytest.raises(TableError, match=r"call it \.parquet or \.csv"):
        write(pa.table({"x": [1]}), tmp_path / "t.xlsx")


def test_without_pyarrow_it_says_what_to_install(tmp_path, monkeypatch):
    path = saved(tmp_path / "t.csv", "x\n1\n")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install 'perdure\[data\]'"):
        tables.read(path)
