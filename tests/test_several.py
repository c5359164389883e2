"""Several objectives over one body: loss, Fisher and MAS against slow, obvious ones; learning, grading, saving."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from perdure import Batch, Learner, Rows, Several, Stream, Task, methods, metrics, models
from perdure.callbacks import Callback
from perdure.importance import diagonal

NAN = math.nan
PARTS = {"kind": ("classification", ["a", "b", "c"]), "tags": ("multi-label", 2), "size": ("regression", 2)}
WEIGHTS = {"kind": 2.0, "size": 0.5}
Y = [
    [0, 1, 0, 1, 0, 0.3, -0.7],
    [NAN, NAN, NAN, 0, 1, 2.0, 1.0],  # no kind
    [0, 0, 1, NAN, NAN, NAN, NAN],  # a kind only
    [1, 0, 0, 1, 1, 0.5, NAN],  # half a size is none
]


def chance(seed=0):
    return torch.Generator().manual_seed(seed)


def several(weights=WEIGHTS):
    return Several(PARTS, weights=weights)


def batch(y=Y, heads=1, head=0, **fields):
    """Rows whose task has the given one of several heads of seven columns."""
    values = None if y is None else torch.tensor(y)
    count = 4 if y is None else len(y)
    columns = torch.arange(7).expand(count, -1) + 7 * head
    x = torch.randn(count, 5, generator=chance(3))
    return Batch(x=x, y=values, task=torch.zeros(count, dtype=torch.long), columns=columns, **fields)


def network(heads=1):
    model = models.mlp(5, (4,))
    model.grow(7 * heads, chance(1))
    return model


def log_likelihoods(scores, y):
    """Of one row: each labelled part's log-likelihood, by hand; scores and y [7]."""
    found = {}
    if not any(math.isnan(v) for v in y[:3]):
        found["kind"] = scores[:3].log_softmax(0)[y[:3].index(1)]
    if not any(math.isnan(v) for v in y[3:5]):
        found["tags"] = sum(F.logsigmoid(s if on else -s) for s, on in zip(scores[3:5], y[3:5], strict=True))
    if not any(math.isnan(v) for v in y[5:]):
        found["size"] = sum(-((s - v) ** 2) / 2 for s, v in zip(scores[5:], y[5:], strict=True))
    return found


def squared(model, x, value):
    """The squares of the gradient of a number that a function makes of one row's scores."""
    grads = torch.autograd.grad(value(model(x[None])[0]), list(model.parameters()))
    return [grad.square() for grad in grads]


def summed(parts):
    return [sum(each) for each in zip(*parts, strict=True)]


def close(found, expected, rtol=1e-4):
    assert all(torch.allclose(a, b, rtol=rtol, atol=1e-6) for a, b in zip(found, expected, strict=True))


def differs(found, expected):
    return any(not torch.allclose(a, b, rtol=0.05) for a, b in zip(found, expected, strict=True))


# ---- the oracles ----


def loss_by_hand(scores, rows, weights):
    total = 0.0
    for s, y in zip(scores, rows, strict=True):
        said = log_likelihoods(s, y)
        total -= weights.get("kind", 1) * said.get("kind", 0)
        total -= weights.get("tags", 1) * said.get("tags", 0) / 2  # a mean over the labels
        total -= weights.get("size", 1) * said.get("size", 0)  # (the sum of squares / 2) is their mean: two outputs
    return total / len(rows)


def test_the_loss_is_the_weighted_sum_over_the_labelled_parts():
    scores = torch.randn(4, 7, generator=chance())
    found = several().loss(scores, batch())
    assert found.item() == pytest.approx(float(loss_by_hand(scores, Y, WEIGHTS)), rel=1e-5)
    assert several(None).loss(scores, batch()).item() == pytest.approx(float(loss_by_hand(scores, Y, {})), rel=1e-5)
    assert found.item() != pytest.approx(float(loss_by_hand(scores, Y, {})), rel=1e-2)  # the mutant without weights
    row = torch.tensor([3.0, 0.0, 1.0, 0.0])
    by_hand = (3 * loss_by_hand(scores[:1], Y[:1], WEIGHTS) + loss_by_hand(scores[2:3], Y[2:3], WEIGHTS)) / 4
    assert several().loss(scores, batch(weight=row)).item() == pytest.approx(float(by_hand), rel=1e-5)


def test_missing_labels_give_no_gradient_to_their_part():
    scores = torch.randn(4, 7, generator=chance(), requires_grad=True)
    several().loss(scores, batch()).backward()
    assert scores.grad.isfinite().all()
    missing = torch.tensor([[i in range(*lost) for i in range(7)] for lost in [(0,), (0, 3), (3, 7), (5, 7)]])
    assert not scores.grad[missing].any() and scores.grad[~missing].all()


def test_a_head_a_task_counts_the_columns_of_the_rows_own_task_only():
    wide = torch.randn(4, 14, generator=chance())
    assert several().loss(wide, batch(head=1)).item() == pytest.approx(several().loss(wide[:, 7:], batch()).item())
    for v in several().probes(wide, batch(head=1), "exact", chance()):
        assert not v[:, :7].any()
    concerned = several().concerned(wide, batch(head=1))
    assert torch.equal(concerned[:, 7:], wide[:, 7:]) and not concerned[:, :7].any()


def fisher(kind, weights=WEIGHTS, rows=None, model=None):
    objective, given = several(weights), rows or batch()
    found = diagonal(
        model or network(), [(given.x, lambda s: objective.probes(s, given, kind, chance(5)))], kind="square"
    )
    return list(found.values())


def exact_by_hand(model, weights):
    """Sums over every answer of every labelled part, each with its own gradient; a size's variance is 1."""
    found = []
    for x, y in zip(batch().x, Y, strict=True):
        scores = model(x[None])[0].detach()
        known = log_likelihoods(scores, y)
        if "kind" in known:
            for k, p in enumerate(scores[:3].softmax(0)):
                share = weights.get("kind", 1) * p
                found.append([share * g for g in squared(model, x, lambda s, k=k: s[:3].log_softmax(0)[k])])
        if "tags" in known:
            for k in (3, 4):
                for sign, p in ((1, scores[k].sigmoid()), (-1, scores[k].sigmoid().neg().add(1))):
                    found.append(
                        [p * g for g in squared(model, x, lambda s, k=k, sign=sign: F.logsigmoid(sign * s[k]))]
                    )
        if "size" in known:
            found += [[weights.get("size", 1) * g for g in squared(model, x, lambda s, k=k: s[k])] for k in (5, 6)]
    return [part / len(Y) for part in summed(found)]


def test_the_exact_fisher_is_the_sum_of_the_parts_over_the_labelled_rows():
    expected = exact_by_hand(network(), WEIGHTS)
    close(fisher("exact"), expected)
    assert differs(fisher("exact", weights=None), expected)  # a mutant that leaves the weights out
    full = batch([[0, 1, 0, 1, 0, 0.3, -0.7]] * 4)
    assert differs(fisher("exact", rows=full), expected)  # a mutant that counts what is not labelled


def test_the_empirical_fisher_is_the_square_of_the_joint_gradient():
    model = network()

    def joint(y):
        def value(scores):
            said = log_likelihoods(scores, y)
            return sum(WEIGHTS.get(name, 1) ** 0.5 * part for name, part in said.items())

        return value

    by_hand = summed([squared(model, x, joint(y)) for x, y in zip(batch().x, Y, strict=True)])
    expected = [part / 4 for part in by_hand]
    close(fisher("empirical"), expected)
    assert differs(fisher("empirical", weights=None), expected)
    with pytest.raises(ValueError, match="no labels"):
        fisher("empirical", rows=batch(None))


def test_the_sampled_fisher_is_the_exact_one_in_the_mean():
    objective, model, copies = several(), network(), 4000
    rows = batch([row for row in Y for _ in range(copies)])
    rows.x = batch().x.repeat_interleave(copies, 0)
    found = diagonal(model, [(rows.x, lambda s: objective.probes(s, rows, "sampled", chance(5)))], kind="square")
    expected = exact_by_hand(model, WEIGHTS)
    whole = sum(float(part.sum()) for part in expected)
    assert sum(float(part.sum()) for part in found.values()) == pytest.approx(whole, rel=0.05)
    assert differs(list(found.values()), exact_by_hand(model, {}))


def test_mas_measures_the_squared_length_of_all_parts_scores_labelled_or_not():
    model, objective = network(), several()
    for y in (Y, None):
        rows = batch(y)
        found = diagonal(
            model, [(rows.x, lambda s, rows=rows: iter([2 * objective.concerned(s, rows)]))], kind="absolute"
        )
        by_hand = summed([
            [grad.abs() for grad in torch.autograd.grad(model(x[None]).square().sum(), list(model.parameters()))]
            for x in rows.x
        ])  # fmt: skip
        close(list(found.values()), [part / 4 for part in by_hand])


def test_distillation_is_the_parts_own():
    teacher, scores = torch.randn(2, 4, 7, generator=chance())
    soft = 4 * F.cross_entropy(scores[:, :3] / 2, (teacher[:, :3] / 2).softmax(1), reduction="none")
    tags = F.binary_cross_entropy_with_logits(scores[:, 3:5] / 2, (teacher[:, 3:5] / 2).sigmoid(), reduction="none")
    gaps = (scores[:, 5:] - teacher[:, 5:]).square().mean(1)
    assert torch.allclose(several().distil(scores, teacher, 2.0), 2 * soft + 4 * tags.mean(1) + 0.5 * gaps, atol=1e-5)


def test_answers_are_probabilities_within_each_part_of_each_head():
    scores = torch.randn(3, 14, generator=chance())
    allowed = (torch.arange(14) >= 7).expand(3, -1)
    found = several().answer(scores, allowed)
    assert not found[:, :7].any()
    assert torch.allclose(found[:, 7:10], scores[:, 7:10].softmax(1))
    assert torch.allclose(found[:, 10:12], scores[:, 10:12].sigmoid()) and torch.equal(found[:, 12:], scores[:, 12:])


def test_grades_are_each_parts_own_over_its_labelled_rows_and_tallies_add_up():
    objective = several()
    scores = torch.tensor([
        [0.0, 1, 0, 1, -1, 0.3, -0.7],
        [9.0, 0, 0, 1, 1, 2.0, 0.0],
        [1.0, 0, 0, -1, -1, 5, 5],
        [1.0, 0, 0, 1, -1, 5, 5],
    ])  # fmt: skip
    tally = objective.tally(scores, batch())
    assert objective.grades(tally) == pytest.approx({
        "kind": 2 / 3,  # of rows 0, 2 and 3; row 1 has none
        "tags": (1 + 0.5 + 0.5) / 3,
        "size": (1 + (1 - 1 / (0.85**2 + 0.85**2))) / 2,  # rows 0 and 1
    })  # fmt: skip
    assert objective.grade(tally, 4) == pytest.approx(sum(objective.grades(tally).values()) / 3)
    halves = [objective.tally(scores[i : i + 2], batch(Y[i : i + 2])) for i in (0, 2)]
    assert torch.allclose(halves[0] + halves[1], tally)
    lone = objective.tally(scores[2:3], batch(Y[2:3]))
    assert objective.grades(lone) == {"kind": 0.0, "tags": None, "size": None} and objective.grade(lone, 1) == 0.0
    with pytest.raises(ValueError, match="none of these rows has a label"):
        objective.grade(objective.tally(scores[:1], batch([[NAN] * 7])), 1)


# ---- rows of labels ----


def test_rows_are_made_of_labels_as_people_have_them():
    x = torch.zeros(4, 5)
    rows = several().rows(x, {
        "kind": ["b", None, "c", "a"],
        "tags": [[0], [1], None, [0, 1]],
        "size": [[0.3, -0.7], [2.0, 1.0], [NAN, NAN], [0.5, NAN]],
    })  # fmt: skip
    torch.testing.assert_close(rows.positions(rows.classes), torch.tensor(Y), equal_nan=True)
    assert rows.classes == ("kind=a", "kind=b", "kind=c", "tags=0", "tags=1", "size=0", "size=1")
    alone = several().rows(x, {"kind": ["a"] * 4}).positions(rows.classes)
    assert alone[:, 3:].isnan().all() and not alone[:, :3].isnan().any()
    with pytest.raises(ValueError, match=r"'kind' has no label 'd'; its labels are \['a', 'b', 'c'\]"):
        several().rows(x, {"kind": ["d"] * 4})
    with pytest.raises(ValueError, match=r"part .*'kin'"):
        several().rows(x, {"kin": ["a"] * 4})


@pytest.mark.parametrize(
    ("parts", "weights", "said"),
    [
        ({}, None, "at least one part"),
        ({"a": ("classification", 1)}, None, "part 'a' has 1 columns"),
        ({"a": "clasification"}, None, "clasification"),
        ({"a": "regression"}, {"b": 1.0}, "b"),
        ({"a": "regression"}, {"a": -1.0}, "weight of part 'a' is -1"),
    ],
)
def test_parts_that_cannot_be_are_refused(parts, weights, said):
    with pytest.raises(ValueError, match=said):
        Several(parts, weights=weights)


# ---- learning ----

SMALL = Several({"side": ("classification", ["left", "right"]), "sum": "regression"}, weights={"sum": 0.5})


def task(number=0, n=256, missing=True):
    """Which side of a plane a row is on, and the sum of some inputs; other inputs count in every task."""
    x = torch.randn(2 * n, 12, generator=chance(number))
    x[:, : 4 * number] = 0
    side = ["left" if value < 0 else "right" for value in (x[:, 4 * number] - x[:, 4 * number + 1]).tolist()]
    total = (x[:, 4 * number + 2] + x[:, 4 * number + 3]).tolist()
    if missing:
        side[::4], total[1::4] = [None] * len(side[::4]), [NAN] * len(total[1::4])
    halves = [SMALL.rows(x[part], {"side": side[part], "sum": total[part]}) for part in (slice(n), slice(n, None))]
    return Task(*halves, name=f"task {number}")


def made(method, scenario="domain", objective=SMALL, epochs=8, **settings):
    return Learner(
        models.mlp(12, (64,)), method, scenario=scenario, objective=objective, batch_size=16, epochs=epochs,
        optimizer={"name": "adam", "lr": 0.01}, **settings,
    )  # fmt: skip


DENSE = [m for m in methods.METHODS.values() if "several" in m().objectives]


def test_the_methods_that_serve_several_objectives_are_those_of_the_dense_ones():
    named = {method.name for method in DENSE}
    assert {"ewc", "mas", "si", "lwf", "replay", "der", "derpp", "agem", "joint", "finetune"} <= named
    assert {"icarl", "gdumb", "er-ace", "slda", "ncm", "ranpac", "generative-replay"}.isdisjoint(named)
    with pytest.raises(ValueError, match="gdumb works with classification, not 'several'"):
        made(methods.GDumb(capacity=10), scenario="domain")


@pytest.mark.parametrize("scenario", ["task", "domain"])
@pytest.mark.parametrize("method", DENSE, ids=lambda m: m.name)
def test_every_dense_method_learns_parts_with_missing_labels_and_is_saved(method, scenario, tmp_path):
    if scenario not in method().scenarios:
        pytest.skip("not its scenario")
    record = metrics.RecordParts([task(0), task(1)])
    epochs = 32 if method is methods.METHODS["pathnet"] else 8  # it spends most steps on its tournament
    learner = made(method(), scenario, epochs=epochs, callbacks=[record])
    learner.learn(task(0))
    first = learner.evaluate_parts([task(0)])
    assert first["side"][0] > 0.75 and first["sum"][0] > 0.5  # half, and 0, if nothing were learnt
    learner.learn(task(1))
    learnt = learner.evaluate_parts([task(1)])
    assert record.matrices["side"][1][1] == learnt["side"][0] and len(record.matrices["sum"]) == 2
    learner.save(tmp_path / "file")
    again = Learner.load(tmp_path / "file", callbacks=[metrics.RecordParts([task(0), task(1)])])
    assert again.objective.recipe == SMALL.recipe and again.evaluate_parts([task(1)]) == learnt
    assert again.callbacks[0].matrices == record.matrices
    said = again.predict(task(1).test, task="task 1" if scenario == "task" else None)
    assert set(said["side"]) == {"left", "right"} and said["sum"].shape == (256, 1)
    more = task(2)
    again.learn(more)
    learner.learn(more)
    assert torch.equal(again.predict_proba(task(0).test, "task 0"), learner.predict_proba(task(0).test, "task 0"))


def test_forgetting_is_told_for_each_objective():
    stream = Stream([task(0, missing=False), task(1, missing=False)], name="two", description="Two tasks.")
    lost = {}
    for name, method in {"finetune": methods.Finetune(), "replay": methods.Replay(200)}.items():
        record = metrics.RecordParts(stream)
        learner = made(method, callbacks=[record])
        for each in stream:
            learner.learn(each)
        lost[name] = {part: metrics.forgetting(matrix) for part, matrix in record.matrices.items()}
    assert lost["replay"]["sum"] < lost["finetune"]["sum"] and lost["replay"]["side"] < lost["finetune"]["side"]


def test_what_several_objectives_cannot_be_is_refused_before_anything_is_learnt():
    with pytest.raises(ValueError, match='several has no classes to add: use scenario "domain" or "task"'):
        made(methods.Finetune(), scenario="class")
    with pytest.raises(ValueError, match="a head a task"):
        made(methods.Finetune(), scenario="task", heads="shared")
    learner = made(methods.Finetune())
    with pytest.raises(
        ValueError, match=r"y of 2 columns, but Several\(side: classification 2, sum: regression 1\) has 3"
    ):
        learner.learn(Task((torch.zeros(4, 12), torch.rand(4, 2)), name="narrow"))
    with pytest.raises(ValueError, match="part 'side' takes a single 1 among zeros, and 4 rows hold something else"):
        learner.learn(Task((torch.zeros(4, 12), torch.rand(4, 3)), name="no one-hot"))
    with pytest.raises(ValueError, match="1 of 4 rows hold NaN or infinity"):
        y = torch.tensor([[0, 1, 0.5]] * 3 + [[0, 1, math.inf]])
        learner.learn(Task((torch.zeros(4, 12), y), name="infinite"))
    plain = made(methods.Finetune(), objective="regression")
    with pytest.raises(ValueError, match="rows hold NaN"):
        plain.learn(task(0))
    with pytest.raises(ValueError, match="the objective is 'regression', which has no parts"):
        plain.learn(Task((torch.zeros(4, 12), torch.rand(4, 1)), test=(torch.zeros(4, 12), torch.rand(4, 1)), name="t"))
        plain.evaluate_parts(
            [Task((torch.zeros(4, 12), torch.rand(4, 1)), test=(torch.zeros(2, 12), torch.rand(2, 1)))]
        )


def test_a_loop_of_ones_own_learns_several_objectives_too():
    model = torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    memory = methods.attach(methods.EWC(rows=32) + methods.Replay(50), model, optimizer, objective=SMALL)
    for number in range(2):
        rows = task(number).train
        x, y = rows.read(torch.arange(256)), rows.positions(rows.classes)
        memory.begin()
        for start in range(0, 256, 16):
            a, b = memory.replay(x[start : start + 16], y[start : start + 16])
            out = model(a)
            given = Batch(
                x=a, y=b, task=torch.zeros(len(a), dtype=torch.long), columns=torch.arange(3).expand(len(a), -1)
            )
            loss = SMALL.loss(out, given) + memory.penalty(out)
            optimizer.zero_grad()
            loss.backward()
            memory.project()
            optimizer.step()
            memory.after_step(out)
        memory.consolidate([(x, y)])
    assert memory.method.parts[0].importance["0.weight"].sum() > 0


def test_a_watching_callback_still_sees_one_grade():
    class Watch(Callback):
        def after_epoch(self, learner):
            grades.append(learner.evaluate(task(0)))

    grades: list[float] = []
    learner = made(methods.Finetune(), callbacks=[Watch()], validation=0.25, patience=3)
    learner.learn(task(0))
    parts = learner.evaluate_parts([task(0)])
    assert grades[-1] > grades[0]
    assert learner.evaluate([task(0)])[0] == pytest.approx(sum(part[0] for part in parts.values()) / 2)
    assert isinstance(Rows.of(task(0).train), Rows)


def test_the_example_runs_and_tells_what_each_objective_lost(tmp_path):
    root = Path(__file__).parents[1]
    script = root / "examples" / "multitask.py"
    assert len(script.read_text().splitlines()) <= 60
    words = [sys.executable, str(script), str(tmp_path), "200", "1"]
    environment = {**os.environ, "PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1"}
    said = subprocess.run(words, env=environment, capture_output=True, text=True, check=True, timeout=300).stdout
    lines = [line.split(" | ") for line in said.splitlines() if line.startswith("|")]
    assert lines[0][2:] == ["digit", "digit lost", "parity", "parity lost", "ink", "ink lost", "train s |"]
    assert len(lines) == 8 and all(-200 < float(value) <= 100 for value in lines[2][2:8])
    assert (tmp_path / "accuracy.svg").exists()
