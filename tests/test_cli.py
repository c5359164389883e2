"""The command line says what is wrong, ends with the right code, and does not import torch to say how it is used."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from toy_experiment import TOML, toys  # noqa: F401

import perdure
from perdure.cli import main
from perdure.experiment.run import Watch


@pytest.fixture
def toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The toy experiment with one cell, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "toy.toml"
    text = TOML.replace('scenarios = ["class", "task"]', 'scenarios = ["class"]')
    path.write_text(text.replace('  { parts = ["replay", { name = "lwf" }] },\n', ""))
    return path


def test_help_and_version_do_without_torch_and_pydantic():
    script = (
        "import sys, perdure.cli\n"
        "try: perdure.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "perdure.cli.main(['--version'])\n"
        "print(sorted({'torch', 'numpy', 'pydantic', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == [f"perdure {perdure.__version__}", "[]"]
    assert "go on with it" in done.stdout


def test_version_is_said_however_often_it_is_asked_for(capsys):
    assert main(["--version", "--version"]) == 0
    assert capsys.readouterr().out == f"perdure {perdure.__version__}\n"


def test_an_unknown_command_is_answered_with_the_nearest(capsys):
    assert main(["comapre", "x"]) == 2
    assert capsys.readouterr().err.strip().endswith("Did you mean 'compare'?")


def test_run_writes_the_folder_and_says_where_the_report_lies(toml, capsys):
    assert main(["run", str(toml)]) == 0
    said = capsys.readouterr().out
    assert "scenario class: per cent" in said
    assert "EWC strong" in said
    assert "runs/toy-run/report.html" in said
    results = json.loads(Path("runs/toy-run/results.json").read_text())
    assert [cell["method"] for cell in results["cells"]] == ["finetune", "EWC strong"]


def test_run_refuses_a_wrong_setting_before_anything_is_written(toml, capsys):
    assert main(["run", str(toml), "--set", "methods[1].strengh=2", "--out", "there"]) == 2
    said = capsys.readouterr().err
    assert "1 problem in" in said
    assert "methods[1].strengh: unknown ewc setting" in said
    assert not Path("there").exists()


def test_a_folder_that_cannot_be_made_is_a_sentence_and_no_traceback(toml, capsys):
    Path("taken").write_text("a file")
    assert main(["run", str(toml), "--out", "taken"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("perdure: ") and "taken" in said


def test_run_refuses_the_folder_of_another_experiment(toml, capsys):
    assert main(["run", str(toml), "--out", "there"]) == 0
    assert main(["run", str(toml), "--out", "there", "--set", "training.epochs=1"]) == 2
    assert "training.epochs is 2 there and 1 here" in capsys.readouterr().err
    assert main(["run", str(toml), "--out", "there", "--set", "training.epochs=1", "--fresh"]) == 0


def test_an_interrupted_run_says_how_to_go_on_and_ends_with_130(toml, capsys, monkeypatch):
    def interrupted(watch, learner):
        raise KeyboardInterrupt

    words = ["run", str(toml), "--set", "methods[1].strength=2.5"]
    with monkeypatch.context() as patch:
        patch.setattr(Watch, "after_step", interrupted)
        assert main([*words, "--fresh"]) == 130
    said = capsys.readouterr().out
    assert "stopped in cell 1 of 2 (class, finetune, seed 0)" in said
    assert f"go on with: perdure run {toml} --set 'methods[1].strength=2.5'\n" in said
    assert main(words) == 0


def test_compare_prints_and_writes_one_table(toml, capsys):
    main(["run", str(toml), "--out", "a"])
    main(["run", str(toml), "--out", "b", "--set", "seeds=[1]"])
    capsys.readouterr()
    assert main(["compare", "a", "b/results.json", "--out", "tables/both.md"]) == 0
    said = capsys.readouterr().out
    assert said == Path("tables/both.md").read_text()
    found = sorted(line.split(" | ")[1:3] for line in said.splitlines()[2:])
    assert found == [["a", "EWC strong"], ["a", "finetune"], ["b", "EWC strong"], ["b", "finetune"]]
    assert main(["compare", "nowhere"]) == 2


def test_report_draws_the_page_anew(toml):
    main(["run", str(toml), "--out", "a"])
    page = Path("a/report.html").read_bytes()
    Path("a/report.html").unlink()
    assert main(["report", "a"]) == 0
    assert Path("a/report.html").read_bytes() == page


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("methods", ["ewc\n    Elastic weight consolidation", "paper: Kirkpatrick", "strength=1.0", "fisher='exact'"]),
        ("methods", ["joint\n", "upper bound, sees all"]),
        ("benchmarks", ["permuted-mnist\n", "scenarios: task, domain", "tasks=10, seed=0"]),
        ("models", ["mlp\n", "hidden=[400, 400]", "resnet18\n"]),
    ],
)
def test_list_tells_settings_with_their_defaults(what, words, capsys):
    assert main(["list", what]) == 0
    said = capsys.readouterr().out
    for word in words:
        assert word in said


def test_schema_prints_what_the_documentation_has(capsys):
    assert main(["schema", "results"]) == 0
    assert capsys.readouterr().out == (Path(__file__).parents[1] / "docs" / "results.schema.json").read_text()


def test_the_demo_is_a_plan_for_split_mnist():
    from perdure.experiment.config import load

    made = load(Path(perdure.experiment.__file__).with_name("demo.toml"))
    assert [entry.label for entry in made.entries] == ["finetune", "ewc", "mas", "replay", "joint"]
    assert made.recipe == {
        "name": "mlp",
        "settings": {"hidden": [400, 400], "dropout": 0.0, "norm": False, "inputs": 784},
    }
    assert [task.name for task in made.stream] == ["0, 1", "2, 3", "4, 5", "6, 7", "8, 9"]


def test_perdure_gives_its_parts_when_they_are_asked_for():
    from perdure.learner import Learner

    assert perdure.Learner is Learner
    assert {"Learner", "Task", "methods", "streams", "__version__"} <= set(dir(perdure))
    with pytest.raises(AttributeError, match="'perdure' has no attribute 'Lerner'"):
        perdure.Lerner  # noqa: B018
