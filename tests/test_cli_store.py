"""The commands of a store, as a person types them."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from store_examples import clouds

from perdure.cli import main
from perdure.store.store import Store


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a store of two versions, of which the second was refused, and files to go on with."""
    path = tmp_path_factory.mktemp("commands")
    for name, table in (
        ("jan", clouds(["a", "b"])),
        ("feb", clouds(["c", "d"], seed=1)),
        ("mar", clouds(["c"], seed=2)),
        ("other", clouds(["a"]).rename_columns(["x0", "x1", "x2", "x9", "kind"])),
    ):
        pq.write_table(table, path / f"{name}.parquet")
    (path / "empty.csv").write_text("")
    made = main(
        [
            "init", "toy", "--store", str(path / "store"), "--recipe", "tabular", "--label", "kind", "--data",
            str(path / "jan.parquet"), "--set", "training.epochs=5", "--set", "method.name=finetune",
        ]
    )  # fmt: skip
    assert made == 0
    return path


def run(folder, *words):
    command, name, *rest = words
    return main([command, name, *(str(word) for word in rest), "--store", str(folder / "store")])


def test_an_update_that_forgets_exits_with_3_and_is_told(folder, capsys):
    assert run(folder, "update", "toy", folder / "feb.parquet") == 3
    said = capsys.readouterr().out
    assert "refused" in said and "production is unchanged" in said and "perdure promote" in said
    assert run(folder, "status", "toy") == 0
    assert "version 1 is in production, of 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "words"), [("other.parquet", "x3"), ("empty.csv", "empty"), ("none.parquet", "no file")]
)
def test_data_that_cannot_be_learnt_exits_with_3(folder, capsys, file, words):
    assert run(folder, "update", "toy", folder / file) == 3
    told = capsys.readouterr().err
    assert words in told and "production is unchanged" in told


def test_history_diff_promote_and_rollback(folder, capsys):
    run(folder, "update", "toy", folder / "feb.parquet")
    assert run(folder, "diff", "toy", 1, 2) == 0
    assert "right became wrong" in capsys.readouterr().out
    assert run(folder, "promote", "toy", 2, "--force", "the old kinds are gone") == 0
    assert run(folder, "rollback", "toy") == 0
    assert run(folder, "history", "toy") == 0
    told = capsys.readouterr().out
    assert "forced version 2; the old kinds are gone" in told and "rolled back version 1" in told


@pytest.mark.parametrize("place", [0, 1, 3])
def test_a_version_may_stand_anywhere_among_the_options(folder, capsys, place):
    run(folder, "update", "toy", folder / "feb.parquet")
    if Store("toy", folder / "store").folder.production() == 1:
        run(folder, "promote", "toy", 2, "--force", "why")
    words = ["toy", "--store", str(folder / "store")]
    words.insert(max(place, 1), "1")
    assert main(["rollback", *words]) == 0
    assert Store("toy", folder / "store").folder.production() == 1
    with pytest.raises(SystemExit):
        main(["rollback", *words, "1"])
    with pytest.raises(SystemExit):
        main(["status", "toy", "--store", str(folder / "store"), "1"])


def test_predictions_into_a_file(folder, capsys):
    assert (
        run(folder, "predict", "toy", folder / "jan.parquet", "-o", folder / "said.csv", "--min-confidence", "0.6") == 0
    )
    assert "800 rows answered" in capsys.readouterr().out
    assert (folder / "said.csv").read_text().splitlines()[0].startswith('"x0","x1"')


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("status", "tooy"), "there is no store 'tooy'"),
        (("rollback", "toy", 9), "never in production"),
        (("promote", "toy", 9, "--force", "x"), "no version 9"),
        (("predict", "toy", "nothing.csv", "-o", "x.csv"), "no file"),
        (("diff", "toy", 1, 9), "no version 9"),
    ],
)
def test_a_wrong_request_exits_with_2_and_a_sentence(folder, capsys, words, said):
    assert run(folder, *words) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--recipe", "txt"], "did you mean 'text'"),
        (["--recipe", "text", "--set", "methd.name=ewc"], "did you mean 'method'"),
        (["--recipe", "tabular", "--label", "kind", "--no-rows-kept", "--set", "method.name=replay"], "stores rows"),
        (["--recipe", "tabular", "--missing", "x0"], "COLUMN=CODE"),
        (["--build", "nowhere:build"], "nowhere"),
    ],
)
def test_a_store_that_cannot_begin_says_why(folder, capsys, words, said):
    assert run(folder, "init", "new", "--data", folder / "jan.parquet", *words) == 2
    assert said in capsys.readouterr().err
    assert not (folder / "store" / "new").exists()


def test_the_history_is_drawn_into_a_page_that_fetches_nothing(folder):
    assert run(folder, "history", "toy", "--report", folder / "history.html") == 0
    page = (folder / "history.html").read_text()
    assert "<h1>toy</h1>" in page and "0001" in page and "Drift" not in page
    assert "http" not in page.replace("http://www.w3.org", "") and "<script" not in page


def test_a_trained_network_from_a_file_is_taught_by_commands_alone(tmp_path, monkeypatch, capsys):
    """Only `init` is told the file and the labels; later commands know them, or say that the network is another."""
    import torch
    from own_network import build
    from safetensors.torch import save_file

    network, table = build(), clouds(["a", "b"])
    x = torch.tensor([table[f"x{i}"].to_pylist() for i in range(4)]).T.contiguous()
    y = torch.tensor([label == "b" for label in table["kind"].to_pylist()]).long()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(200):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    pq.write_table(clouds(["a", "b"], rows=60, seed=9), tmp_path / "exam.parquet")
    pq.write_table(clouds(["a", "b", "c"], seed=1), tmp_path / "new.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    (tmp_path / "another.py").write_text(
        "import torch\ndef build():\n    return torch.nn.Sequential(torch.nn.Linear(4, 3))\n"
    )

    own = ["--build", "own_network:build"]
    new = ["--label", "kind", "--from", "model.safetensors", "--classes", "a,b", "--exam", "exam.parquet"]
    assert main(["init", "own", *own, *new]) == 0
    assert main(["update", "own", "new.parquet", *own]) == 0
    assert main(["diff", "own", "1", "2", *own]) == 0
    assert main(["predict", "own", "exam.parquet", "-o", "out.parquet", *own]) == 0
    told = pq.read_table("out.parquet")
    assert {"p_a", "p_b", "p_c"} <= set(told.column_names)
    right = [a == b for a, b in zip(told["prediction"].to_pylist(), told["kind"].to_pylist(), strict=True)]
    assert sum(right) > 0.9 * len(right)
    capsys.readouterr()
    assert main(["predict", "own", "exam.parquet", "-o", "out.parquet", "--build", "another:build"]) == 2
    assert "--build" in capsys.readouterr().err
