"""Advice: what the constraints leave out, what a trial on the first task shows, and when it can show nothing."""

import json

import pytest
import torch

from perdure import Stream, Task, cli, methods, models, recipes
from perdure.experiment import rehearse, trials
from perdure.experiment.advise import RULES, _chosen, advise
from perdure.experiment.asked import of_tables, size
from perdure.experiment.candidates import CAPACITY, Needs, candidates
from perdure.experiment.settings import RequestError
from perdure.experiment.trials import Tried

MSE = {"objective": "regression"}


def task(labels=2, n=120, width=8, seed=0):
    """Clouds, one a label, each of which is a line of its own: its rows differ along it."""
    draws = torch.Generator().manual_seed(seed)
    y = torch.arange(n * labels) % labels
    centres = torch.randn(labels, width, generator=draws)
    spread = torch.randn(n * labels, 1, generator=draws) * torch.randn(labels, width, generator=draws)[y]
    x = centres[y] + 2 * spread + 0.1 * torch.randn(n * labels, width, generator=draws)
    return Task((x, y), test=(x[:1] * torch.nan, y[:1]), name="first")  # a test row that raises where it is read


def network():
    return models.mlp(8, (16,))


def quick(first, needs, steps=40, **more):
    settings = {"batch_size": 16, "epochs": 4, "optimizer": {"name": "adam", "lr": 0.01}}
    return advise(first, network, needs, training=settings, steps=steps, seeds=(0,), **more)


def left_out(needs, rows=None):
    return dict(candidates(needs, rows or task().train)[1])


# ---- what the constraints leave out ----


def test_every_candidate_is_tried_or_left_out_with_a_reason():
    for scenario in ("task", "domain", "class"):
        tried, out = candidates(Needs(scenario), task().train)
        labels = [candidate.label for candidate in tried] + [label for label, _ in out]
        assert labels[0] == "finetune" and len(set(labels)) == len(labels) == 18 and all(reason for _, reason in out)
        assert all(scenario in methods.build(candidate.spec).scenarios for candidate in tried)


def test_where_rows_may_not_be_kept_no_candidate_keeps_any():
    tried, _ = candidates(Needs("class", keep=False), task().train)
    for candidate in tried:
        method = methods.build(candidate.spec)
        parts = method.parts if isinstance(method, methods.Compose) else [method]
        assert not any(part.keeps_rows for part in parts), candidate.label
    assert "may not be kept" in left_out(Needs("class", keep=False))["replay"]
    assert "may not be kept" in left_out(Needs("class", keep=False))["replay + lwf"]


def test_a_memory_in_bytes_becomes_rows_and_the_trials_is_as_much_smaller_as_its_pieces():
    rows = task().train  # 8 floats a row, and 16 bytes beside them
    replay = next(c for c in candidates(Needs("class", memory=4800), rows)[0] if c.label == "replay")
    assert replay.spec["capacity"] == 100 and replay.bytes(rows) == 4800
    assert replay.scaled(0.25)["capacity"] == 25 and replay.scaled(0.001)["capacity"] == 10
    both = next(c for c in candidates(Needs("class"), rows)[0] if c.label == "replay + lwf")
    assert both.spec["parts"][0]["capacity"] == CAPACITY and both.scaled(0.5)["parts"][0]["capacity"] == CAPACITY // 2
    assert "fewer than 100 rows" in left_out(Needs("class", memory=4799))["replay"]
    assert "no limit of memory holds" in left_out(Needs("class", memory=10**9))["cumulative"]


def test_methods_of_trained_bodies_are_tried_where_one_is_brought():
    assert "none that is trained" in left_out(Needs("class"))["slda"]
    assert {"slda", "ranpac", "ncm"}.isdisjoint(left_out(Needs("class", trained=True)))


# ---- streams of pieces ----


def test_pieces_bring_new_labels_where_labels_are_to_come_and_keep_them_where_not():
    wide = list(rehearse.streams(task(labels=6), "class", network(), 10_000))
    assert [part.classes for part in wide[0]] == [(0, 1), (2, 3), (4, 5)]
    made = next(rehearse.streams(task(), "task", network(), 10_000))
    assert [part.classes for part in made] == [(f"0, part {i}", f"1, part {i}") for i in (1, 2, 3)]
    assert sum(len(part.train) + len(part.test) for part in made) == 240
    looks, shuffled = rehearse.streams(task(), "domain", network(), 10_000)
    assert all(part.classes == (0, 1) for part in [*looks, *shuffled]) and len(shuffled) == 3
    few = next(rehearse.streams(task(), "class", network(), 60))
    assert sum(len(part.train) + len(part.test) for part in few) == 60


def test_pieces_by_looks_hold_rows_that_look_alike():
    model = network()
    whole = task()
    along = rehearse.looks(whole.train, model)
    stream = next(rehearse.streams(whole, "domain", model, 10_000))
    means = [
        [float(rehearse.looks(whole.train, model)[whole.train.read(slice(None)).sum(1).unsqueeze(1)
         .eq(part.train.read(slice(None)).sum(1)).any(1)].mean())] for part in stream
    ]  # fmt: skip
    assert means[0] < means[1] < means[2] and along.shape == (240,)


def test_named_columns_are_cut_by_what_a_network_makes_of_them():
    class Sum(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(8, 2)

        def forward(self, a, b):
            return self.fc(a + b)

    x = task().train.read(slice(None))
    named = Task(({"a": x, "b": x}, task().train.labels), name="named")
    stream = next(rehearse.streams(named, "class", models.adapt(Sum()), 10_000))
    assert len(stream) == 3 and set(stream[0].train.read(slice(0, 1))) == {"a", "b"}


# ---- the advice ----


def test_new_labels_and_rows_that_may_be_kept_give_a_method_that_keeps_them():
    advice = quick(task(), Needs("class"))
    reached = {found.label: found.accuracy for found in advice.tried}
    assert advice.method().keeps_rows if not isinstance(advice.method(), methods.Compose) else True
    assert reached[advice.label] > reached["finetune"] + 0.1
    assert reached[advice.label] >= max(reached.values()) - 0.08  # a standard error of 40 held-out rows
    said = str(advice)
    assert said.startswith(f"take {advice.label}: ") and "labels taken for new ones" in said
    assert "slda: it trains no body" in said and "Pieces of one task are not the stream to come" in said
    assert methods.build(json.loads(said.splitlines()[0].partition(": ")[2])).settings()


def test_of_those_as_good_as_the_best_but_for_noise_the_cheapest_is_taken():
    def tried(label, accuracy, work, refused=""):
        return Tried(label, {"name": "ewc"}, accuracy, 0.0, 0.1, 1.0, 0, work, 1, refused)

    found = [tried("finetune", 0.5, 1), tried("dear", 0.90, 9), tried("cheap", 0.885, 2), tried("bad", 0.85, 1)]
    said = [_chosen(Needs("class"), found, [], "", rows) for rows in (10_000, 400, 30)]
    assert [advice.label for advice in said] == [
        "dear",
        "cheap",
        "bad",
    ]  # errors of 0.3 (1 at least), 1.5 and 5.5 points
    assert "On 400 held-out rows 1.5 points are noise" in str(said[1]) and "too: dear" in str(said[1])
    found[1] = tried("dear", 0.90, 9, refused="it keeps too much")
    assert _chosen(Needs("class"), found, [], "", 10_000).label == "cheap"


def test_where_nothing_can_help_the_advice_says_so():
    advice = quick(task(), Needs("class", keep=False, memory=1), steps=10)
    assert advice.label == "finetune"
    assert any("hardly more than plain training" in line for line in advice.why)
    refused = {found.label: found.refused for found in advice.tried}
    assert "0.00 are allowed" in refused["ewc"] and not refused["finetune"]


def test_what_takes_too_long_is_not_proposed():
    free = quick(task(), Needs("class", keep=False), steps=2)
    slowest = max(free.tried, key=lambda found: found.seconds)
    limit = sorted(found.seconds for found in free.tried)[-2]
    bounded = trials.Trial(task(), network, Needs("class", seconds=limit), {}, 40, 6000, 0.0, None)
    assert "are allowed" in bounded._refused(0, slowest.seconds) and not bounded._refused(0, limit)
    with pytest.raises(RequestError, match="not even plain training"):
        quick(task(), Needs("class", keep=False, seconds=1e-9), steps=2)


def test_where_plain_training_forgets_nothing_a_rule_decides_and_it_is_said():
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(240, 8, generator=draws)
    y = (x[:, 0] > 0).long()
    x[:, 1:] = 0  # one direction only: whatever is learnt of one piece holds for the next
    x[:, 0] = torch.where(y == 1, 1.0, -1.0)
    alike = Task(({"numbers": x, "categories": torch.zeros(240, 1, dtype=torch.long)}, y), name="alike")
    advice = advise(alike, lambda: models.tabular(8, 1, (8,)), Needs("domain"), training={"epochs": 4}, seeds=(0,))
    assert advice.label == RULES["keep"][0] and advice.tried == []
    assert "forgets only" in advice.why[0] and "this is a rule and no measurement" in advice.why[1]
    none = advise(alike, lambda: models.tabular(8, 1, (8,)), Needs("domain", keep=False, trained=True), seeds=(0,))
    assert none.label == RULES["trained"][0]
    numbers = Task((torch.rand(20, 8), torch.rand(20, 1)), name="numbers")
    assert "No trial: a trial needs one label a row" in advise(numbers, network, Needs("domain"), training=MSE).why[0]
    with pytest.raises(RequestError, match="not even by plain training"):
        advise(numbers, network, Needs("domain"))


@pytest.mark.parametrize(("inputs", "model", "training", "reason"), [
    (torch.ones(80, 8, dtype=torch.int32), recipes.Text(buckets=64, most=8).network, {}, "torch.int32"),  # hashed words
    (torch.ones(80, 8), network, MSE, "works with classification"),
])  # fmt: skip
def test_a_rule_proposes_only_what_can_learn_the_first_task(monkeypatch, inputs, model, training, reason):
    def of(self, candidate, stream, seeds):  # nothing is forgotten
        return Tried(candidate.label, candidate.spec, 0.7, 0.0, 0.0, 1.0, 0, 1, 1, "")

    monkeypatch.setattr(trials.Trial, "of", of)
    first = Task((inputs, torch.rand(80, 1) if training else torch.arange(80) % 2), name="first")
    advice = advise(first, model, Needs("domain", keep=False), training=training)
    assert advice.label == RULES["domain"][1] and "this is a rule" in str(advice)
    assert reason in dict(advice.left_out)["generative-replay"]


@pytest.mark.parametrize(("better", "taken"), [(None, RULES["class"][0]), ("ewc", "ewc")])
def test_where_all_are_as_good_as_plain_training_but_for_noise_a_rule_decides(monkeypatch, better, taken):
    def of(self, candidate, stream, seeds):
        accuracy = 0.99 if candidate.label == better else 0.70
        return Tried(candidate.label, candidate.spec, accuracy, 0.0, 0.2, 1.0, 0, 1, 1, "")

    monkeypatch.setattr(trials.Trial, "of", of)
    advice = quick(task(), Needs("class", keep=False))
    assert advice.label == taken and len(advice.tried) > 3
    assert ("this is a rule and no measurement" in str(advice)) == (better is None)
    monkeypatch.setattr(trials.Trial, "late", property(lambda self: True))
    hurried = quick(task(), Needs("class", keep=False))
    assert hurried.label == RULES["class"][0] and [found.label for found in hurried.tried] == ["finetune"]


def test_tasks_that_came_so_far_are_tried_on_instead_of_pieces():
    three = [task(seed=seed) for seed in range(3)]
    known = Stream([Task(t.train, t.train.select(range(24)), name=str(i)) for i, t in enumerate(three)])
    advice = quick(three[0], Needs("domain", keep=False), steps=20, known=known)
    assert advice.tried and "pieces" not in " ".join(advice.why)
    same = Stream([Task(three[0].train, three[0].train.select(range(24)), name=str(i)) for i in range(3)])
    enough = quick(three[0], Needs("domain", keep=False), known=same)
    assert enough.label == "finetune" and "Little is forgotten so far" in str(enough)


def test_a_trial_that_is_stopped_goes_on_and_another_one_is_refused(tmp_path, monkeypatch):
    needs = Needs("class", keep=False)
    whole = quick(task(), needs, 2, out=tmp_path / "whole")
    count, learn = 0, trials.Trial._learn

    def stopped(self, spec, stream, seed):
        nonlocal count
        count += 1
        if count == 5:
            raise KeyboardInterrupt
        return learn(self, spec, stream, seed)

    monkeypatch.setattr(trials.Trial, "_learn", stopped)
    with pytest.raises(KeyboardInterrupt):
        quick(task(), needs, 2, out=tmp_path / "parts")
    assert len(json.loads((tmp_path / "parts" / "trials.json").read_text())["known"]) == 4
    again = quick(task(), needs, 2, out=tmp_path / "parts")
    assert count == 5 + len(whole.tried) - 4
    assert [(t.label, t.accuracy, t.forgetting) for t in again.tried] == [
        (t.label, t.accuracy, t.forgetting) for t in whole.tried
    ]
    with pytest.raises(RequestError, match="holds another advice"):
        quick(task(seed=1), needs, 2, out=tmp_path / "parts")


def test_in_a_trial_a_memory_is_as_small_as_the_pieces_are(monkeypatch):
    seen = []

    def learn(self, spec, stream, seed):
        seen.append(spec)
        return {"accuracy": 0.5, "forgetting": 0.5, "seconds_a_step": 0.0, "memory": 0, "work": 1}

    monkeypatch.setattr(trials.Trial, "_learn", learn)
    advice = quick(task(), Needs("class"))
    assert {spec["capacity"] for spec in seen if spec.get("name") in ("replay", "er-ace")} == {
        round(CAPACITY * 64 / 240)
    }
    assert next(found for found in advice.tried if found.label == "replay").spec["capacity"] == CAPACITY


def test_time_for_the_trial_ends_it_with_what_was_tried():
    advice = quick(task(), Needs("class"), seconds=0.0)
    assert [found.label for found in advice.tried] == ["finetune"]
    assert dict(advice.left_out)["replay"] == "the time for the trial was over"


# ---- the command ----


@pytest.fixture
def table(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    draws = torch.Generator().manual_seed(0)
    y = torch.arange(120) % 2
    x = torch.randn(120, 3, generator=draws) + 2 * y[:, None]
    columns = {f"x{i}": x[:, i].tolist() for i in range(3)} | {"ill": ["yes" if label else "no" for label in y]}
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "patients.parquet")
    return tmp_path / "patients.parquet"


def test_the_command_answers_in_plain_words(table, tmp_path, capsys):
    words = ["advise", "--data", str(table), "--label", "ill", "--no-rows-kept", "--memory", "20MB", "--task-known"]
    done = cli.main([*words, "--seeds", "1", "--trial-seconds", "60", "--out", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert done == 0 and "take " in said and "replay: it keeps rows of the past, which may not be kept" in said
    assert (tmp_path / "out" / "trials.json").exists()


def test_tables_that_came_after_one_another_are_the_stream_to_try_on(table, tmp_path):
    import pyarrow.parquet

    later = pyarrow.parquet.read_table(table)
    pyarrow.parquet.write_table(later.slice(0, 60), tmp_path / "later.parquet")
    asked = of_tables([table, tmp_path / "later.parquet"], "ill")
    assert [part.name for part in asked.known] == ["patients", "later"]
    assert [len(part.train) + len(part.test) for part in asked.known] == [120, 60]
    assert len(asked.first.train) == 120 and asked.first.test is None


def test_a_request_that_cannot_be_is_refused_in_a_sentence(table, capsys):
    for words, reason in [
        (["advise"], "say what is to be learnt"),
        (["advise", "--data", str(table), "--label", "ill"], "say what is to come"),
        (["advise", "--data", str(table), "--label", "il", "--task-known"], "there is no column 'il'"),
        (["advise", "--data", str(table), "--label", "ill", "--task-known", "--memory", "much"], "write it as 20MB"),
        (["advise", "--data", str(table), "--label", "ill", "--task-known", "--pretrained"], "needs --build"),
        (["advise", "--data", str(table), "--label", "ill", "--on", "first-three"], "for an experiment's file"),
    ]:
        assert cli.main(words) == 2
        assert reason in capsys.readouterr().err


def test_sizes_are_read():
    assert (size("20MB"), size("512 kB"), size("1.5GB"), size("1000")) == (20_000_000, 512_000, 1_500_000_000, 1000)


def test_a_table_becomes_the_first_task_by_its_recipe(table):
    asked = of_tables([table], "ill")
    assert asked.first.classes == ("no", "yes") and asked.training["epochs"] == 30
    assert asked.known is None
    assert asked.model().features(asked.first.train.read(slice(0, 2))).shape[0] == 2


def test_a_trained_body_of_ones_own_is_tried_with_the_methods_for_it(table, tmp_path, monkeypatch, capsys):
    (tmp_path / "own_body.py").write_text(
        "import torch\nfrom torch import nn\n\n\n"
        "class Own(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.body, self.fc = nn.Linear(6, 8), nn.Linear(8, 5)\n\n"
        "    def forward(self, numbers):\n"
        "        return self.fc(torch.tanh(self.body(numbers)))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ["advise", "--data", str(table), "--label", "ill", "--scenario", "class", "--no-rows-kept", "--pretrained"]
    words += ["--build", "own_body:Own", "--seeds", "1", "--out", str(tmp_path / "out")]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    tried = said.partition("\ntried:\n")[2].partition("\nnot tried:\n")[0]
    assert all(f"  {label}: " in tried for label in ("slda", "ranpac", "ncm", "finetune", "ewc"))
