"""A trained model whose data is gone: rows of that time make importances or fill memory, and nothing is trained."""

import pytest
import torch
import torch.nn.functional as F
from conftest import blobs
from torch import nn
from trees import differences, snapshot

from perdure import Learner, Method, Rows, Task, methods, models

FEATURES, OLD, NEW = 12, (0, 1), (2, 3)


def x_of(rows: Rows) -> torch.Tensor:
    return rows.read(torch.arange(len(rows)))


def trained_elsewhere() -> nn.Module:
    """A network that a plain loop has taught to tell blob 0 ("no") from blob 1 ("yes")."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(FEATURES, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    rows = blobs(OLD, 200, 1)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(network(x_of(rows)), rows.positions(OLD)).backward()
        optimizer.step()
    return network


def made(method: Method, scenario: str, **settings) -> Learner:
    model = models.adapt(trained_elsewhere(), head="2", classes=["no", "yes"])
    return Learner(model, method, scenario=scenario, batch_size=16, **({"epochs": 8} | settings))


def labelled(classes: tuple[int, ...], seed: int, names: list[str], rows: int = 200) -> Rows:
    found = blobs(classes, rows, seed)
    return Rows(x_of(found), [names[label - classes[0]] for label in found.labels])


OLD_ROWS = labelled(OLD, 2, ["no", "yes"])
EXAM = Task(OLD_ROWS, labelled(OLD, 3, ["no", "yes"]), name="pretrained")
CASES = {
    "ewc": (lambda: methods.EWC(100.0), "domain", OLD_ROWS),
    "ewc without labels": (lambda: methods.EWC(100.0), "domain", x_of(OLD_ROWS)),
    "mas without labels": (lambda: methods.MAS(10.0), "domain", x_of(OLD_ROWS)),
    "replay": (lambda: methods.Replay(100), "class", OLD_ROWS),
    "replay, domain": (lambda: methods.Replay(100, policy="balanced"), "domain", OLD_ROWS),
    "joint": (methods.Joint, "class", OLD_ROWS),
    "lwf without labels": (lambda: methods.LwF(0.5), "domain", x_of(OLD_ROWS)),
    "composed": (lambda: methods.Replay(50) + methods.EWC(100.0), "class", OLD_ROWS),
}


@pytest.mark.parametrize("case", CASES)
def test_consolidation_fills_the_method_and_moves_no_weight(case):
    make, scenario, rows = CASES[case]
    learner = made(make(), scenario)
    before, chance = snapshot(learner), torch.get_rng_state()
    grade = learner.evaluate(EXAM)
    assert grade > 0.95
    learner.consolidate(rows)
    after = snapshot(learner)
    for part in ("weights", "optimizer", "labels", "clock", "randomness", "stopper"):
        assert differences(before[part], after[part], part) == []
    assert torch.equal(chance, torch.get_rng_state())
    assert learner.evaluate(EXAM) == grade
    for part in learner.method.parts if isinstance(learner.method, methods.Compose) else [learner.method]:
        if isinstance(part, (methods.EWC, methods.MAS)):
            assert part.importance.keys() == dict(learner.model.named_parameters()).keys()
            assert all(value.shape == part.centre[name].shape for name, value in part.importance.items())
            assert sum(float(value.sum()) for value in part.importance.values()) > 0
        if isinstance(part, methods.Replay):
            assert len(part.store) == part.capacity
            kept = part.store.all()
            originals = {tuple(row) for row in x_of(OLD_ROWS).tolist()}
            assert all(tuple(row) in originals for row in kept["x"].tolist())
            assert kept["y"].unique().tolist() == [0, 1]
        if isinstance(part, methods.Joint):
            assert len(part.store) == 200
        if isinstance(part, methods.LwF):
            assert part.columns == 2


def after_learning(learner: Learner, names: list[str]) -> tuple[float, float]:
    """Grades on the old task and on the new one after learning the new one."""
    task = Task(labelled(NEW, 4, names), labelled(NEW, 5, names), name="new")
    learner.learn(task)
    old, new = learner.evaluate([EXAM, task])
    return old, new


@pytest.mark.parametrize("case", CASES)
def test_what_was_consolidated_is_forgotten_less_than_by_fine_tuning(case):
    make, scenario, rows = CASES[case]
    # In scenario "domain" the new blobs stand for the same two answers, and in "class" for new ones.
    names = ["no", "yes"] if scenario == "domain" else ["red", "blue"]
    settings = {"optimizer": {"name": "adam", "lr": 0.03}, "epochs": 12}
    forgets, _ = after_learning(made(methods.Finetune(), scenario, **settings), names)
    learner = made(make(), scenario, **settings)
    learner.consolidate(rows)
    old, new = after_learning(learner, names)
    assert old > forgets + 0.1
    assert new > 0.8


def test_without_labels_replay_refuses_and_nothing_has_changed():
    learner = made(methods.EWC(1.0) + methods.Replay(10), "class")
    before = snapshot(learner)
    with pytest.raises(ValueError, match="replay stores labelled rows"):
        learner.consolidate(x_of(OLD_ROWS))
    assert differences(before, snapshot(learner)) == []
    assert learner.method.parts[0].importance == {}


def test_consolidation_refuses_what_it_cannot_use():
    learner = made(methods.MAS(), "class")
    before = snapshot(learner)
    bad = x_of(OLD_ROWS).clone()
    bad[7, 3] = float("nan")
    for rows, name, error, words in [
        (bad, "pretrained", ValueError, "1 of 200 rows hold NaN or infinity .first: row 7."),
        (OLD_ROWS, "unknown", ValueError, "'unknown' is not known .known: 'pretrained'."),
        (blobs((0, 1), 10, 0), "pretrained", ValueError, "bring label 0"),
        (torch.zeros(0, FEATURES), "pretrained", ValueError, "no rows"),
        (torch.zeros(5, 7), "pretrained", ValueError, "cannot take the rows"),
        ("rows.csv", "pretrained", TypeError, "cannot read rows from a str"),
    ]:
        with pytest.raises(error, match=words):
            learner.consolidate(rows, name)
        assert differences(before, snapshot(learner)) == []
    plain = Learner(models.mlp(FEATURES, (4,)), methods.MAS(), scenario="class")
    with pytest.raises(ValueError, match="known: none"):
        plain.consolidate(OLD_ROWS)


def test_consolidation_can_be_repeated_for_a_task_learnt_later():
    learner = made(methods.MAS(decay=0.5), "class", epochs=1)
    after_learning(learner, ["red", "blue"])
    clock = snapshot(learner)["clock"]
    first = {name: value.clone() for name, value in learner.method.importance.items()}
    learner.consolidate(labelled(NEW, 4, ["red", "blue"]), name="new")
    assert snapshot(learner)["clock"] == clock | {"begun_at": clock["step"]}
    assert any(not torch.equal(first[name], value) for name, value in learner.method.importance.items())
    assert learner.tasks == {"pretrained": ["no", "yes"], "new": ["blue", "red"]}


def test_in_a_loop_of_ones_own_rows_need_no_labels_either():
    network = trained_elsewhere()
    weights = [p.detach().clone() for p in network.parameters()]
    hook = methods.attach(methods.MAS(), network, torch.optim.SGD(network.parameters(), lr=0.1), trained=True)
    hook.begin()
    hook.consolidate(x_of(OLD_ROWS))
    assert set(hook.method.importance) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert sum(float(value.sum()) for value in hook.method.importance.values()) > 0
    assert all(torch.equal(a, b) for a, b in zip(weights, network.parameters(), strict=True))
