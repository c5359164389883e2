"""A configuration is refused before anything runs, every mistake at once, or taken with every default spelt out."""

import pickle
import tomllib
from pathlib import Path
from typing import Any

import pytest
from toy_experiment import TOML, toys  # noqa: F401

from perdure.experiment.config import load, plan
from perdure.experiment.document import put
from perdure.experiment.settings import ConfigError, Problem


def document(**changes: Any) -> dict[str, Any]:
    """The toy experiment with changes."""
    return tomllib.loads(TOML) | changes


def refused(**changes: Any) -> dict[str, str]:
    """What is wrong with the toy experiment with these changes, by place."""
    with pytest.raises(ConfigError) as caught:
        plan(document(**changes), "bad.toml")
    return {problem.place: problem.message for problem in caught.value.problems}


def test_defaults_are_spelt_out_and_planning_a_plan_again_gives_it_again():
    made = plan(document())
    assert made.document["methods"][1]["fisher"] == "exact"
    assert made.document["training"]["accumulate"] == 1
    assert plan(document(training={})).document["training"]["optimizer"] == {"name": "adam", "lr": 0.001}
    assert made.document["benchmark"] == {"name": "toy", "rows": 40, "tasks": 2}
    assert plan(made.document).document == made.document


def test_the_model_is_fitted_to_the_data():
    made = plan(document())
    assert made.recipe["settings"]["inputs"] == 6
    assert "inputs" not in made.document["model"]


def test_methods_go_by_label_name_or_parts():
    assert [entry.label for entry in plan(document()).entries] == ["finetune", "EWC strong", "replay + lwf"]
    assert [entry.slug for entry in plan(document()).entries] == ["finetune", "ewc-strong", "replay-lwf"]


def test_every_mistake_is_told_at_once_with_its_place_and_the_nearest_spelling():
    found = refused(
        scenarios=["clas"],
        methods=["finetun", {"name": "ewc", "strengh": 1.0}, {"parts": ["lwf", {"name": "mas", "strength": "a"}]}],
        benchmark={"name": "toy", "rows": "x", "taks": 3},
        training={"epoch": 3, "batch_size": 1.5},
        seed=3,
    )
    assert found.keys() == {
        "scenarios[0]",
        "methods[0]",
        "methods[1].strengh",
        "methods[2].parts[1].strength",
        "benchmark.rows",
        "benchmark.taks",
        "training.epoch",
        "training.batch_size",
        "seed",
    }
    assert found["scenarios[0]"].endswith("found 'clas'. Did you mean 'class'?")
    assert found["methods[1].strengh"].startswith("unknown ewc setting 'strengh'; choose from strength, ")
    assert found["methods[1].strengh"].endswith("Did you mean 'strength'?")
    assert found["methods[2].parts[1].strength"] == "expected a number, found 'a'"
    assert found["training.batch_size"] == "expected a whole number, found 1.5"
    assert found["seed"].endswith("Did you mean 'seeds'?")


@pytest.mark.parametrize(
    ("changes", "place", "words"),
    [
        ({"benchmark": "toyy"}, "benchmark", "Did you mean 'toy'?"),
        ({"benchmark": {"name": "toy", "tasks": 9}}, "benchmark.tasks", "9 tasks, but toy has 4 classes"),
        ({"benchmark": {"name": "toy", "rows": 0}}, "benchmark", ""),
        ({"benchmark": {"name": "parquet"}}, "benchmark.train", "parquet needs it"),
        (
            {"benchmark": {"name": "parquet", "train": "nowhere.parquet"}},
            "benchmark.train",
            "expected the path of a file",
        ),
        ({"benchmark": {"name": "parquet", "train": __file__}}, "benchmark", "needs rows to be examined on; add test"),
        ({"benchmark": {"name": "permuted-mnist"}, "scenarios": ["class"]}, "scenarios", "it offers task, domain"),
        ({"scenarios": ["domain"]}, "scenarios", "'domain' makes no sense on this benchmark; it offers task, class"),
        ({"scenarios": []}, "scenarios", "expected at least one entry"),
        ({"seeds": [0, 0]}, "seeds", "stands there twice: 0, 0"),
        ({"methods": ["ewc", {"name": "ewc", "strength": 9.0}]}, "methods[1]", "another method is called 'ewc'"),
        ({"methods": [{"parts": ["joint", "joint"]}]}, "methods[0]", "joint and joint both own `fit`"),
        ({"methods": [{"name": "replay", "policy": "rign"}]}, "methods[0].policy", "Did you mean 'ring'?"),
        ({"methods": [{"name": "replay", "capacity": [1]}]}, "methods[0].capacity", "a whole number or a string"),
        ({"methods": [{"strength": 1.0}]}, "methods[0]", "it has no name"),
        ({"model": "convnet"}, "model", "reads images (channels, height, width), but a row has shape [6]; take mlp"),
        ({"model": {"name": "mlp", "inputs": 6}}, "model.inputs", "follows from the data"),
        ({"model": {"name": "mlp", "hidden": [0]}}, "model", "every width must be at least 1"),
        ({"training": {"patience": 2}}, "training.patience", "add training.validation"),
        ({"training": {"optimizer": {"name": "adma"}}}, "training.optimizer", "'adam'"),
        ({"training": {"optimizer": {"lr": -1.0}}}, "training.optimizer", "-1.0"),
        ({"training": {"schedule": "cosin"}}, "training.schedule", "'cosine'"),
        ({"training": {"device": "gpu"}}, "training.device", "there is no 'gpu' here"),
        ({"training": {"heads": "shared"}, "scenarios": ["class"]}, "training.heads", 'needs the scenario "task"'),
        ({"training": {"clip": float("nan")}}, "training.clip", "expected a finite number"),
        ({"name": "a/b"}, "name", "found 'a/b'"),
    ],
)
def test_each_mistake_has_a_place_and_a_sentence(changes, place, words):
    found = refused(**changes)
    assert list(found) == [place]
    assert words in found[place]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training": {"heads": "shared"}}, 'heads="separate"'),
        ({"training": {"protocol": "all outputs"}}, "open no outputs ahead"),
        ({"model": "resnet18", "benchmark": "split-mnist"}, "made like a models.mlp or a models.convnet"),
    ],
)
def test_a_cell_that_could_not_be_learnt_is_a_problem_of_the_plan(changes, words):
    found = refused(methods=["finetune", "progressive"], scenarios=["task"], **changes)
    assert list(found) == ["methods"]
    assert found["methods"].startswith("progressive in scenario 'task': ") and words in found["methods"]


def test_what_several_cells_share_is_told_once():
    found = refused(methods=["packnet", {"name": "packnet", "label": "P"}], model={"name": "mlp", "hidden": []},
                   scenarios=["task"])  # fmt: skip
    assert found["methods"].startswith("packnet in scenario 'task', P in scenario 'task': packnet shares out")


def test_an_error_survives_the_way_to_another_process():
    before = ConfigError([Problem("a.b", "wrong"), Problem("", "so is that")], "x.toml")
    after = pickle.loads(pickle.dumps(before))
    assert (str(after), after.problems, after.source) == (str(before), before.problems, "x.toml")


def test_the_error_names_the_file():
    with pytest.raises(ConfigError, match=r"^2 problems in bad\.toml:\n  \w"):
        plan(document(seeds="0", model="mpl"), "bad.toml")


def test_a_mistake_in_toml_is_told_with_line_and_column(tmp_path: Path):
    path = tmp_path / "broken.toml"
    path.write_text('name = "x"\nseeds = [0,, 1]\n')
    with pytest.raises(ConfigError, match=r"broken\.toml:\n  not TOML: .*line 2, column 12"):
        load(path)
    with pytest.raises(ConfigError, match="cannot read the file"):
        load(tmp_path / "nowhere.toml")


@pytest.mark.parametrize(
    ("override", "place", "value"),
    [
        ("training.epochs=2", ("training", "epochs"), 2),
        ("methods[1].strength = 3.5", ("methods", 1, "strength"), 3.5),
        ("methods[2].parts[0].capacity=9", ("methods", 2, "parts", 0, "capacity"), 9),
        ("seeds=[0, 1]", ("seeds",), [0, 1]),
        ("training.device=cpu", ("training", "device"), "cpu"),
        ("training.optimizer.lr=0.1", ("training", "optimizer", "lr"), 0.1),
        ("model.name=mlp", ("model", "name"), "mlp"),
    ],
)
def test_set_puts_a_toml_value_at_a_path(override, place, value):
    changed = document()
    assert put(changed, override) is None
    found: Any = changed
    for part in place:
        found = found[part]
    assert found == value


def test_set_reaches_the_plan(tmp_path: Path):
    path = tmp_path / "toy.toml"
    path.write_text(TOML)
    made = load(
        path, ["training.epochs=2", "methods[1].strength=3.0", "benchmark.tasks=4", "training.optimizer.lr=0.5"]
    )
    assert made.experiment.training.epochs == 2
    assert made.entries[1].spec["strength"] == 3.0
    assert len(made.stream) == 4
    assert made.document["training"]["optimizer"] == {"name": "adam", "lr": 0.5}


def test_set_takes_a_method_that_is_only_a_name(tmp_path: Path):
    path = tmp_path / "toy.toml"
    path.write_text(TOML.replace('"finetune"', '"ewc"'))
    assert load(path, ["methods[0].strength=7.0"]).entries[0].spec["strength"] == 7.0


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.epoch=2", "training.epoch: unknown training setting .* Did you mean 'epochs'"),
        ("trainnig.epochs=2", "trainnig: unknown experiment setting .* Did you mean 'training'"),
        ("methods[7].strength=2", r"7 is no entry of a list of 3; count from \[0\]"),
        ("seeds.first=2", "'first' is no entry of a list of 1"),
        ("training[0]=2", "0 has no place inside {'batch_size': 8, "),
        ("epochs", "expected key=value"),
        ("training.epochs=two", "training.epochs: expected a whole number, found 'two'"),
    ],
)
def test_set_refuses_a_path_that_is_not_there(tmp_path: Path, override, words):
    path = tmp_path / "toy.toml"
    path.write_text(TOML)
    with pytest.raises(ConfigError, match=words):
        load(path, [override])
