"""Methods side by side on a stream of one's own."""

import multiprocessing
import xml.dom.minidom

import pytest
import torch

from perdure import Learner, Task, methods, models
from perdure.experiment.compare import compare
from perdure.experiment.folder import FolderError
from perdure.experiment.results import Results
from perdure.experiment.study import course, picture, study, table
from perdure.metrics import average_accuracy
from perdure.streams import Stream


def small_stream(rows: int = 60) -> Stream:
    draws = torch.Generator().manual_seed(3)
    tasks = []
    for name, labels in (("one", (0, 1)), ("two", (2, 3))):
        x = torch.randn(rows, 4, generator=draws)
        y = torch.where(x[:, 0] > 0, *labels)
        tasks.append(Task((x, y), (x, y), name=name))
    return Stream(tasks, name="small", description="Two labels at a time.")


def made(method: type = methods.Finetune, **settings: object):
    return lambda seed: Learner(models.mlp(4, (8,)), method(**settings), scenario="class", batch_size=16, seed=seed)


MAKERS = {"fine-tuning": made(), "replay": made(methods.Replay, capacity=40), "joint": made(methods.Joint)}


def looked(learner: Learner, stream: Stream) -> dict[str, float | None]:
    return {"labels": float(len(learner.classes)), "nothing": None}


def test_the_results_are_those_of_the_loop_written_out(tmp_path):
    stream = small_stream()
    results = study(stream, MAKERS, out=tmp_path, seeds=(0, 1), look=looked)
    assert [(cell.method, cell.seed) for cell in results.cells] == [(name, seed) for seed in (0, 1) for name in MAKERS]
    for cell in results.cells:
        learner = MAKERS[cell.method](cell.seed)
        matrix = []
        for task in stream:
            learner.learn(task)
            matrix.append(learner.evaluate(stream))
        assert cell.accuracy == matrix
        assert cell.metrics.average_accuracy == average_accuracy(matrix)
        assert cell.looked == {"labels": [2.0, 4.0], "nothing": [None, None]}
        assert cell.upper_bound == (cell.method == "joint")
    assert Results.read(tmp_path) == results
    assert "small" in (tmp_path / "report.html").read_text()
    assert "| class |" in compare([tmp_path])


def test_stopped_it_goes_on_with_the_next(tmp_path):
    stream, calls = small_stream(), []

    def counted(name, stop=False):
        def make(seed):
            calls.append((name, seed))
            if stop and len(calls) > 5:
                raise KeyboardInterrupt
            return MAKERS[name](seed)

        return make

    with pytest.raises(KeyboardInterrupt):
        study(stream, {name: counted(name, stop=True) for name in MAKERS}, out=tmp_path, seeds=(0, 1))
    assert len(Results.read(tmp_path).cells) == 2
    calls.clear()
    whole = study(stream, {name: counted(name) for name in MAKERS}, out=tmp_path, seeds=(0, 1))
    assert calls[3:] == [("joint", 0), *((name, 1) for name in MAKERS)]
    assert whole.cells == study(stream, MAKERS, out=tmp_path / "unstopped", seeds=(0, 1)).cells


def test_another_study_in_the_folder_is_refused(tmp_path):
    study(small_stream(), {"fine-tuning": made()}, out=tmp_path, seeds=(0,))
    with pytest.raises(FolderError, match="capacity"):
        study(small_stream(), {"fine-tuning": made(methods.Replay, capacity=40)}, out=tmp_path, seeds=(0,))
    with pytest.raises(FolderError, match="one is"):
        study(small_stream(50), {"fine-tuning": made()}, out=tmp_path, seeds=(0,))
    assert len(study(small_stream(50), {"other": made()}, out=tmp_path, seeds=(0,), fresh=True).cells) == 1


def test_what_diverges_is_a_cell_without_metrics_and_the_others_go_on(tmp_path):
    def wild(seed):
        optimizer = {"name": "sgd", "lr": 1e30}
        return Learner(
            models.mlp(4, (8,)), methods.Finetune(), scenario="class", optimizer=optimizer, epochs=9, seed=seed
        )

    said = []
    results = study(small_stream(), {"wild": wild, "tame": made()}, out=tmp_path, seeds=(0,), say=said.append)
    assert [cell.complete for cell in results.cells] == [False, True]
    assert "broke off" in said[0] and "average accuracy" in said[1]
    assert "wild" not in table(results)


def test_table_and_picture(tmp_path):
    results = study(small_stream(), MAKERS, out=tmp_path, seeds=(0, 1), look=looked)
    said = table(results, ["average accuracy", "forgetting", "labels", "nothing", "memory MB"])
    assert said.splitlines()[0] == "| method | seeds | average accuracy | forgetting | labels | nothing | memory MB |"
    assert [line.split(" | ")[0] for line in said.splitlines()[2:]] == [f"| {name}" for name in MAKERS]
    assert "| 4.00 ± 0.00 | - |" in said
    picture(results, tmp_path / "picture.svg")
    drawn = xml.dom.minidom.parse(str(tmp_path / "picture.svg"))
    names = {text.firstChild.data for text in drawn.getElementsByTagName("text")}
    assert set(MAKERS) <= names
    assert drawn.getElementsByTagName("style")
    picture(results, tmp_path / "first.svg", first_task=True)
    (words,) = xml.dom.minidom.parse(str(tmp_path / "first.svg")).getElementsByTagName("desc")
    kept = {
        cell.method: 50 * sum(c.accuracy[1][0] for c in results.cells if c.method == cell.method)
        for cell in results.cells
    }
    for name, share in kept.items():
        assert f"{name} {share:.1f} % at the end" in words.firstChild.data


def test_the_course_of_a_task_is_what_is_left_of_it_after_each(tmp_path):
    results = study(small_stream(), MAKERS, out=tmp_path, seeds=(0,))
    lines = course(results, "one").splitlines()
    assert lines[0] == "| accuracy on one, % | after one | after two |"
    for line, cell in zip(lines[2:], results.cells, strict=True):
        first, second = (row[0] for row in cell.accuracy)
        assert line == f"| {cell.method} | {_share(first)} | {_share(second)} |"
    assert {line.split(" | ")[1] for line in course(results, "two").splitlines()[2:]} == {"-"}  # not known yet
    with pytest.raises(ValueError, match="no task 'tow'; did you mean 'two'"):
        course(results, "tow")


def _share(value: float) -> str:
    value *= 100
    return f"{value:.{1 if value >= 10 else 2 if value >= 1 else 3}f}"


def test_each_seed_may_have_rows_of_its_own(tmp_path):
    streams = {0: small_stream(60), 1: small_stream(40)}
    results = study(streams.__getitem__, {"fine-tuning": made()}, out=tmp_path, seeds=(0, 1))
    for cell in results.cells:
        learner, matrix = made()(cell.seed), []
        for task in streams[cell.seed]:
            learner.learn(task)
            matrix.append(learner.evaluate(streams[cell.seed]))
        assert cell.accuracy == matrix
    streams[1] = small_stream(50)
    with pytest.raises(FolderError, match="one is"):
        study(streams.__getitem__, {"fine-tuning": made()}, out=tmp_path, seeds=(0, 1))
    with pytest.raises(ValueError, match="same tasks"):
        study(lambda seed: small_stream()[: 2 - seed], {"fine-tuning": made()}, out=tmp_path / "odd", seeds=(0, 1))


def test_two_workers_find_what_one_finds_and_a_study_stopped_in_one_goes_on(tmp_path):
    torch.set_num_threads(1)
    one = study(small_stream(), MAKERS, out=tmp_path / "one", seeds=(0, 1), look=looked)
    two = study(small_stream(), MAKERS, out=tmp_path / "two", seeds=(0, 1), look=looked, workers=2)
    assert two.cells == one.cells

    def broken(seed):
        if (tmp_path / "broken").exists() and seed == 1:
            raise RuntimeError("no more")
        return MAKERS["replay"](seed)

    makers = {"fine-tuning": MAKERS["fine-tuning"], "replay": broken}
    (tmp_path / "broken").touch()
    with pytest.raises(RuntimeError, match="no more"):
        study(small_stream(), makers, out=tmp_path / "three", seeds=(0, 1), workers=2)
    (tmp_path / "broken").unlink()
    gone_on = study(small_stream(), makers, out=tmp_path / "three", seeds=(0, 1), workers=2)
    assert gone_on.cells == [cell.model_copy(update={"looked": None}) for cell in one.cells if cell.method != "joint"]
    assert not any(child.is_alive() for child in multiprocessing.active_children())
