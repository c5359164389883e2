"""iCaRL, GDumb and cumulative replay: which rows are kept, what is learnt of them, how they answer."""

import copy
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from conftest import blobs, small_stream
from test_rehearsal import Mean, Spy, telling
from torch import Tensor
from trees import differences, snapshot

from perdure import Callback, Learner, Rows, Task, methods, models
from perdure.data import Batch
from perdure.method import Host, Method
from perdure.methods.herding import herd


def small(method: Method, scenario: str = "class", **settings: Any) -> Learner:
    return Learner(models.mlp(12, (8,), norm=True), method, scenario=scenario, **{"batch_size": 8, **settings})


def unit(features: Tensor) -> Tensor:
    """Every row divided by its length, one at a time."""
    return torch.stack([row / row.dot(row).sqrt() for row in features])


# ---- herding ----


def herded_slowly(features: Tensor, count: int) -> list[int]:
    """Algorithm 4 of the paper as it stands there."""
    mean, chosen = sum(features) / len(features), []
    for k in range(1, count + 1):
        best, nearest = -1, float("inf")
        for row in range(len(features)):
            if row in chosen:
                continue
            distance = mean - (features[row] + sum(features[j] for j in chosen)) / k
            if distance.dot(distance).sqrt() < nearest:
                best, nearest = row, float(distance.dot(distance).sqrt())
        chosen.append(best)
    return chosen


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("of_length_1", [True, False])
def test_herding_equals_the_exhaustive_loop(seed: int, of_length_1: bool) -> None:
    features = torch.randn(23, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    features = unit(features) if of_length_1 else features
    assert herd(features, 9).tolist() == herded_slowly(features, 9)


def test_a_shorter_list_is_the_front_of_a_longer_one_and_no_row_comes_twice() -> None:
    features = unit(torch.randn(12, 4, generator=torch.Generator().manual_seed(0)))
    whole = herd(features, 40).tolist()
    assert sorted(whole) == list(range(12))
    assert all(herd(features, count).tolist() == whole[:count] for count in range(1, 12))
    assert herd(torch.ones(5, 3), 5).sort().values.tolist() == [0, 1, 2, 3, 4]  # alike, and yet once each


# ---- iCaRL: the loss ----


def loss_by_hand(scores: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> Tensor:
    """- sum_c q_c log g_c + (1 - q_c) log (1 - g_c), a mean over the rows, one number at a time."""
    rows = []
    for i in range(len(scores)):
        terms = []
        for c in range(scores.shape[1]):
            label = float(batch.columns[i] == c)
            q = 1 / (1 + (-teacher[i, c] / temperature).exp()) if c < teacher.shape[1] else label
            q = 1.0 if label and batch.fresh[i] else q
            g = 1 / (1 + (-scores[i, c]).exp())
            terms.append(-(q * g.log() + (1 - q) * (1 - g).log()))
        rows.append(sum(terms) * (1.0 if batch.weight is None else batch.weight[i]))
    return sum(rows) / len(rows)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_loss_is_the_papers_with_the_network_before_the_task_in_eval_mode(
    temperature: float, weighted: bool
) -> None:
    method = methods.ICaRL(30, temperature=temperature)
    learner = small(method)
    first, second = small_stream(tasks=2, rows=24)
    learner.learn(first)
    learner.learn(second)
    before = copy.deepcopy(learner.model).eval()
    third = Task(blobs((3, 4, 5), 24, seed=9), name="a class comes back")
    checked = []

    class Check(Callback):
        def after_step(self, learner: Learner) -> None:
            x = torch.randn(12, 12, generator=torch.Generator().manual_seed(learner.clock.step))
            batch = Batch(x=x, y=None, task=torch.zeros(12).long(), origin=torch.arange(12) // 6)
            batch.columns = torch.arange(12) % 6  # among the new rows one of every class, among the old ones too
            batch.weight = torch.linspace(0.5, 3, 12) if weighted else None
            scores = learner.model(x)
            teacher = before(x)[:, :4].detach()
            statistics = {name: t.clone() for name, t in learner.model.named_buffers()}
            found = method.task_loss(learner, batch, scores)
            torch.testing.assert_close(found, loss_by_hand(scores, teacher, batch, temperature), rtol=1e-5, atol=1e-6)
            assert all(torch.equal(statistics[name], t) for name, t in learner.model.named_buffers())
            assert all(module.training for module in learner.model.modules())
            checked.append(found)

    learner.callbacks.append(Check())
    learner.learn(third)
    assert len(checked) > 2


def test_on_the_first_task_the_loss_is_binary_cross_entropy_to_the_labels() -> None:
    method = methods.ICaRL(30)
    learner = small(method)
    learner.learn(small_stream()[0])
    scores = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    batch = Batch(x=torch.zeros(4, 12), y=None, task=torch.zeros(4).long(), columns=torch.tensor([0, 1, 1, 0]))
    expected = F.binary_cross_entropy_with_logits(scores, torch.eye(2)[batch.columns]) * 2
    torch.testing.assert_close(method.task_loss(learner, batch, scores), expected)
    assert method.teacher == {}


def test_the_new_rows_and_the_exemplars_are_one_training_set() -> None:
    spy, method = Spy(), methods.ICaRL(10)
    learner = Learner(models.mlp(3, (4,)), method + spy, scenario="class", epochs=2, batch_size=5)
    for number, labels in enumerate((["a", "b"], ["c", "d"], ["e"])):
        exemplars = Counter(int(row) for row in method.exemplars["x"][:, 2]) if number else Counter()
        before = len(spy.batches)
        learner.learn(Task(telling(labels, number, 12), name=f"task {number}"))
        own = spy.batches[before:]
        for epoch in (own[: len(own) // 2], own[len(own) // 2 :]):
            seen = Counter(int(row) for batch in epoch for row in batch.x[:, 2])
            assert seen == exemplars + Counter(number * 1000 + i for i in range(12))
        for batch in own:
            assert [learner.classes[c] for c in batch.columns.tolist()] == [chr(int(x[0])) for x in batch.x]


# ---- iCaRL: exemplars and means ----


def image_task(classes: tuple[int, ...], rows: int, name: str) -> Task:
    """Images of bytes, rows + classes of the first class, fewer of the others."""
    draws = torch.Generator().manual_seed(sum(classes))
    y = torch.tensor([classes[min(i % (len(classes) + 1), len(classes) - 1)] for i in range(rows)])
    shades = torch.randint(256, (16, 1, 4, 4), generator=torch.Generator().manual_seed(5))
    images = (shades[y] + torch.randint(-60, 60, (rows, 1, 4, 4), generator=draws)).clamp(0, 255).to(torch.uint8)
    return Task(Rows(images, y), Rows(images, y), name=name)


def features_of(learner: Learner, images: Tensor) -> Tensor:
    """As the head sees them: converted, in eval mode; of length 1."""
    network = copy.deepcopy(learner.model).eval()
    with torch.no_grad():
        return unit(network.features(images.float() / 255))


def lists_of(method: methods.ICaRL) -> dict[int, Tensor]:
    """The exemplars of each class, in the order in which they were chosen."""
    kept = method.exemplars
    return {
        key: kept["x"][kept["key"] == key][kept["rank"][kept["key"] == key].argsort()]
        for key in kept["key"].unique().tolist()
    }


def test_exemplars_are_herded_with_the_network_after_the_task_and_old_lists_are_cut_at_their_end() -> None:
    method = methods.ICaRL(20)
    learner = Learner(models.mlp(16, (10,), norm=True), method, scenario="class", epochs=2, batch_size=8)
    earlier: dict[int, Tensor] = {}
    for number, (classes, share) in enumerate([((3, 1), 10), ((0,), 6), ((7, 5), 4)]):
        task = image_task(classes, 40, f"task {number}")
        learner.learn(task)
        lists = lists_of(method)
        assert {learner.classes[key] for key in lists} == set(learner.classes)
        assert sum(map(len, lists.values())) <= 20 and all(len(images) == share for images in lists.values())
        for key, images in earlier.items():
            assert torch.equal(lists[key], images[:share])
        for label in classes:
            own = torch.tensor([found == label for found in task.train.labels]).nonzero()[:, 0]
            images = task.train.read(own)
            order = herded_slowly(features_of(learner, images), share)
            assert torch.equal(lists[learner.classes.index(label)], images[order])
        earlier = lists


def test_it_answers_with_the_nearest_mean_of_exemplars_of_the_network_as_it_is_now() -> None:
    method = methods.ICaRL(20)
    learner = Learner(models.mlp(16, (10,), norm=True), method, scenario="class", epochs=2, batch_size=8)
    tasks = [image_task((2, 0), 40, "one"), image_task((1, 4), 40, "two")]
    for task in tasks:
        learner.learn(task)
        means = {}
        for key, images in lists_of(method).items():
            means[key] = unit((sum(features_of(learner, images)) / len(images))[None])[0]
        assert task.test is not None
        images = task.test.read(torch.arange(40))
        features = features_of(learner, images)
        distances = torch.stack([(features - means[key]).square().sum(1) for key in range(len(means))], 1)
        learner.model.eval()
        scores = method.predict(learner, images.float() / 255, None)
        learner.model.train()
        torch.testing.assert_close(scores, -distances, rtol=1e-4, atol=1e-5)
        expected = [learner.classes[place] for place in distances.argmin(1).tolist()]
        assert learner.predict(images).tolist() == expected
    p = learner.predict_proba(images)
    torch.testing.assert_close(p, (-distances).softmax(1), rtol=1e-4, atol=1e-5)


def test_a_class_with_few_rows_keeps_them_all() -> None:
    method = methods.ICaRL(20)
    learner = small(method)
    learner.learn(Task((blobs((0, 1), 20, 0).read(torch.arange(20)), [0] * 17 + [1] * 3)))
    assert {key: len(rows) for key, rows in lists_of(method).items()} == {0: 10, 1: 3}


def test_a_class_that_comes_back_is_herded_from_its_exemplars_and_its_new_rows() -> None:
    method = methods.ICaRL(8)
    learner = Learner(models.mlp(3, (4,)), method, scenario="class", epochs=1, batch_size=6)
    for number, labels in enumerate((["a", "b"], ["b", "c"])):
        learner.learn(Task(telling(labels, number, 12), name=f"task {number}"))
        if number == 0:
            old = lists_of(method)[1]
    pool = torch.cat([telling(["b", "c"], 1, 12).read(torch.arange(0, 12, 2)), old])
    with torch.no_grad():
        features = unit(learner.model.eval().features(pool))
    assert torch.equal(lists_of(method)[1], pool[herded_slowly(features, 2)])
    kept = method.exemplars
    names = list(learner.tasks)
    for x, y, task in zip(kept["x"], kept["y"].tolist(), kept["task"].tolist(), strict=True):
        assert (learner.tasks[names[task]][y], task) == (chr(int(x[0])), int(x[1]))


def test_while_a_task_is_open_the_networks_own_scores_answer() -> None:
    method = methods.ICaRL(30)
    learner = small(method, epochs=3, validation=0.2, patience=1)
    x = torch.randn(9, 12, generator=torch.Generator().manual_seed(0))
    answers = []

    class Ask(Callback):
        def after_epoch(self, learner: Learner) -> None:
            network = copy.deepcopy(learner.model).eval()
            torch.testing.assert_close(learner.predict_proba(x), network(x).softmax(1))
            answers.append(learner.stopper.best)

    learner.callbacks.append(Ask())
    first, second, _ = small_stream()
    learner.learn(first)
    assert max(answers) > 0.6  # early stopping sees a network that learns
    learner.learn(second)
    assert method.means.shape == (4, 8) and method.teacher == {}

    class Stop(Callback):
        def after_epoch(self, learner: Learner) -> None:
            learner.abandon()
            raise StopIteration

    before = snapshot(learner)["memory"]
    learner.callbacks.append(Stop())
    with pytest.raises(StopIteration):
        learner.learn(small_stream()[2])
    assert differences(before, snapshot(learner)["memory"]) == []  # back at the save point, means and all


def test_a_class_without_exemplars_is_never_answered() -> None:
    method = methods.ICaRL(12)
    learner = small(method)
    stream = small_stream(tasks=3)
    learner.open_ahead(stream)
    learner.learn(stream[0])
    learner.learn(Task(blobs((3,), 40, seed=0), name="task 1", classes=(2, 3)))  # no rows of 2, nothing yet of 4 and 5
    x = torch.randn(50, 12, generator=torch.Generator().manual_seed(0)) * 5
    scores = learner.predict_proba(x)
    assert scores.shape == (50, 6) and scores.isfinite().all()
    assert (scores[:, [2, 4, 5]] == 0).all() and (scores[:, [0, 1, 3]] > 0).all()
    assert {len(rows) for rows in lists_of(method).values()} == {3}  # by the classes so far, not by those to come


def test_a_pretrained_network_gets_its_exemplars_by_consolidation() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    method = methods.ICaRL(15)
    learner = Learner(models.adapt(network, head="2", classes=[0, 1, 2]), method, scenario="class", batch_size=8)
    learner.consolidate(blobs((2, 0, 1), 60, seed=1))
    assert {key: len(rows) for key, rows in lists_of(method).items()} == {0: 5, 1: 5, 2: 5}
    learner.learn(Task(blobs((3, 4), 40, seed=2)))
    assert {key: len(rows) for key, rows in lists_of(method).items()} == dict.fromkeys(range(5), 3)


def test_more_classes_than_rows_are_refused_before_anything_is_learnt() -> None:
    spy = Spy()
    learner = small(methods.ICaRL(3) + spy)
    first, second, _ = small_stream()
    learner.learn(first)
    before, steps = snapshot(learner), len(spy.batches)
    with pytest.raises(ValueError, match="capacity is 3, and there are 4 classes"):
        learner.learn(second)
    assert differences(before, snapshot(learner)) == [] and len(spy.batches) == steps


@pytest.mark.parametrize("setting", [{"capacity": 0}, {"capacity": "10 MB"}, {"temperature": 0.0}])
def test_icarl_refuses_settings_that_mean_nothing(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(setting))} is"):
        methods.ICaRL(**setting)


def test_icarl_refuses_a_network_without_features() -> None:
    class Bare(torch.nn.Linear):
        def grow(self, columns: int, generator: torch.Generator) -> None: ...

    with pytest.raises(ValueError, match=r"Bare has no features\(x\)"):
        Learner(Bare(12, 2), methods.ICaRL(10), scenario="class")


# ---- GDumb ----


def greedily_balanced(labels: list[Any], capacity: int) -> Counter[Any]:
    """The paper's sampler, by counts: a row is taken while its class is below its share, from the largest class."""
    counts: Counter[Any] = Counter()
    for label in labels:
        share = capacity / len({*counts, label})
        if counts[label] < share:
            if counts.total() >= capacity:
                counts[max(counts, key=lambda name: counts[name])] -= 1
            counts[label] += 1
    return counts


@pytest.mark.parametrize("capacity", [12, 24, 60])
def test_the_memory_is_balanced_as_the_papers_greedy_sampler_balances_it(capacity: int) -> None:
    method, labels = methods.GDumb(capacity), []
    learner = small(method)
    for task in small_stream(tasks=3, classes=2, rows=72):
        learner.learn(task)
        labels += task.train.labels
        kept = method.store.all()
        numbers = learner.labels.key(Batch(x=kept["x"], y=kept["y"], task=kept["task"]))
        found = Counter(learner.classes[number] for number in numbers.tolist())
        assert found == greedily_balanced(labels, capacity)
        assert len(method.store) == capacity


def test_the_seed_says_which_rows_gdumb_keeps() -> None:
    kept = []
    for seed in (0, 0, 1):
        method = methods.GDumb(10)
        small(method, seed=seed).learn(small_stream()[0])
        kept.append(method.store.all()["x"])
    assert torch.equal(kept[0], kept[1]) and not torch.equal(kept[0], kept[2])


def test_a_second_domain_gets_its_part_of_the_memory() -> None:
    method = methods.GDumb(40)
    learner = small(method, "domain")
    for seed in (0, 1):
        learner.learn(Task(blobs((0, 1), 200, seed), name=f"domain {seed}"))
    counts = Counter(zip(method.store.all()["task"].tolist(), method.store.all()["y"].tolist(), strict=True))
    assert len(counts) == 4 and min(counts.values()) >= 4


@dataclass(eq=False)
class Start(Spy):
    """Notes what each task begins from."""

    name: ClassVar[str] = "start"
    weights: list[dict[str, Tensor]] = field(default_factory=list)
    moments: list[int] = field(default_factory=list)

    def replay(self, host: Host, batch: Batch) -> Batch:
        if host.clock.step == host.clock.begun_at:
            self.weights.append({name: t.clone() for name, t in host.model.state_dict().items()})
            self.moments.append(len(host.optimizer.state))
        return batch


def test_every_task_is_learnt_from_scratch_on_the_memory_alone() -> None:
    method, spy = methods.GDumb(18), Start()
    learner = Learner(models.mlp(3, (6,), norm=True), method + spy, scenario="class", epochs=3, batch_size=7, seed=4)
    plain = Learner(models.mlp(3, (6,), norm=True), methods.Finetune(), scenario="class", seed=4)
    fresh = {name: t.clone() for name, t in plain.model.state_dict().items()}
    for number, labels in enumerate((["a", "b"], ["c", "d"], ["e"])):
        before = len(spy.batches)
        learner.learn(Task(telling(labels, number, 12), name=f"task {number}"))
        epochs = spy.batches[before:]
        kept = Counter(int(row) for row in method.store.all()["x"][:, 2])
        size = len(epochs) // 3
        for epoch in (epochs[:size], epochs[size : 2 * size], epochs[2 * size :]):
            assert Counter(int(row) for batch in epoch for row in batch.x[:, 2]) == kept
        for batch in epochs:
            assert [learner.classes[c] for c in batch.columns.tolist()] == [chr(int(x[0])) for x in batch.x]
    assert method.store.seen == 36 and method.before == {}
    assert spy.moments == [0, 0, 0]
    body = [name for name in fresh if not name.startswith("head")]
    assert all(torch.equal(start[name], fresh[name]) for start in spy.weights for name in body)
    heads = [start["head.weights.0"] for start in spy.weights]
    assert [int(head.any(1).sum()) for head in heads] == [2, 4, 5]
    assert torch.equal(heads[0][:2], heads[2][:2]) and torch.equal(heads[1][:4], heads[2][:4])
    assert not torch.equal(spy.weights[-1]["head.weights.0"], learner.model.state_dict()["head.weights.0"])


def test_a_network_of_the_users_own_goes_back_to_its_own_weights() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    model, spy = models.adapt(network, head="2", classes=[0, 1, 2]), Start()
    given = {name: t.clone() for name, t in model.state_dict().items()}
    learner = Learner(model, methods.GDumb(30) + spy, scenario="class", batch_size=8)
    learner.consolidate(blobs((0, 1, 2), 60, seed=1))
    assert len(learner.method.parts[0].store) == 30
    for classes in ((3, 4), (5, 1)):
        learner.learn(Task(blobs(classes, 40, seed=2)))
    for start in spy.weights:
        assert all(torch.equal(start[name], tensor) for name, tensor in given.items())
    grown = [name for name in spy.weights[0] if name not in given]
    assert grown and torch.equal(spy.weights[0][grown[0]][:2], spy.weights[1][grown[0]][:2])


def test_after_a_task_that_was_given_up_the_next_one_starts_from_scratch_too(tmp_path: Any) -> None:
    class GiveUp(Callback):
        def after_step(self, learner: Learner) -> None:
            if learner.clock.step == 2:
                learner.save(tmp_path / "state")
                raise KeyboardInterrupt

    first, second, _ = small_stream(rows=24)
    learner = small(methods.GDumb(24), callbacks=[GiveUp()])
    fresh = {name: t.clone() for name, t in learner.model.state_dict().items()}
    with pytest.raises(KeyboardInterrupt):
        learner.learn(first)
    opened = Learner.load(tmp_path / "state")
    opened.abandon()
    opened.learn(second)
    assert opened.method.store.seen == 48
    assert all(torch.equal(opened.method.start[name], t) for name, t in fresh.items() if "head" not in name)


def test_a_file_saved_between_growth_and_the_start_goes_on_alike(tmp_path: Any) -> None:
    class Save(Callback):
        def before_task(self, learner: Learner, task: Task) -> None:
            learner.save(tmp_path / task.name)

    stream = small_stream(rows=24)
    learner = small(methods.GDumb(24), callbacks=[Save()])
    for task in stream:
        learner.learn(task)
    loaded = Learner.load(tmp_path / stream[-1].name)
    loaded.learn(stream[-1])
    for part in ("weights", "memory", "optimizer"):
        assert differences(snapshot(learner)[part], snapshot(loaded)[part]) == []


# ---- cumulative ----

QUANTILE = {63: 113.50}  # of chi-square at 1 - 1e-4, by degrees of freedom


def test_every_row_so_far_is_equally_likely_in_every_pass() -> None:
    spy, epochs = Spy(), 80
    learner = Learner(models.mlp(3, (2,)), methods.Cumulative() + spy, scenario="class", epochs=epochs, batch_size=8)
    for number, rows in enumerate((16, 16, 32)):
        before = len(spy.batches)
        learner.learn(Task(telling(["a", "b", "c"], number, rows), name=f"task {number}"))
    own = spy.batches[before:]
    assert len(own) == epochs * 4
    counts: Counter[int] = Counter()
    for start in range(0, len(own), 4):
        numbers = [int(row) for batch in own[start : start + 4] for row in batch.x[:, 2]]
        assert len(numbers) == len(set(numbers)) == 32
        counts.update(numbers)
    everyone = [number * 1000 + i for number, rows in enumerate((16, 16, 32)) for i in range(rows)]
    assert set(counts) <= set(everyone)
    share = 32 / 64
    # One pass's indicators have covariance p (1 - p) N / (N - 1) (I - J / N), because exactly 32 rows are drawn.
    spread = epochs * share * (1 - share) * 64 / 63
    statistic = sum((counts[row] - epochs * share) ** 2 for row in everyone) / spread
    assert 25 < statistic < QUANTILE[63]
    # Within a pass the first batch is as mixed as the last.
    first = [sum(int(batch.fresh.sum()) for batch in own[place::4]) / (8 * epochs) for place in range(4)]
    assert all(abs(part - 0.5) < 0.06 for part in first)


@pytest.mark.parametrize("settings", [{"epochs": 3}, {"steps": 10}])
def test_it_takes_the_steps_and_the_multiply_adds_of_fine_tuning(settings: dict[str, int]) -> None:
    found = []
    for method in (methods.Finetune(), methods.Cumulative()):
        learner, steps = small(method, **settings), []
        for task, rows in zip(small_stream(), (40, 12, 60), strict=True):
            learner.learn(Task(task.train.select(range(rows)), name=task.name))
            steps.append(learner.clock.step)
        if "steps" in settings:
            assert steps == [10, 20, 30]
        found.append((steps, learner.cost.multiply_adds))
    assert found[0] == found[1]


def test_rows_of_all_tasks_keep_their_labels_and_the_store_has_each_once() -> None:
    spy, method = Spy(), methods.Cumulative()
    learner = Learner(models.mlp(3, (4,)), method + spy, scenario="class", epochs=4, batch_size=6)
    for number, labels in enumerate((["d", "b"], ["a"], ["b", "c"])):
        learner.learn(Task(telling(labels, number, 12), name=f"task {number}"))
    for batch in spy.batches:
        assert [learner.classes[column] for column in batch.columns.tolist()] == [chr(int(x[0])) for x in batch.x]
        assert [int(x[1]) < learner.clock.task for x in batch.x[~batch.fresh]] == [True] * int((~batch.fresh).sum())
    assert {int(task) for batch in spy.batches[-8:] for task in batch.task} == {0, 1, 2}
    assert sorted(method.store.all()["x"][:, 2].int().tolist()) == [t * 1000 + i for t in range(3) for i in range(12)]


@pytest.mark.parametrize("seeds", [(0, 0), (0, 1)])
def test_the_draw_is_the_seeds(seeds: tuple[int, int]) -> None:
    drawn = []
    for seed in seeds:
        spy = Spy()
        learner = Learner(models.mlp(3, (2,)), methods.Cumulative() + spy, scenario="class", epochs=2, seed=seed)
        for number in range(2):
            learner.learn(Task(telling(["a", "b"], number, 40), name=f"task {number}"))
        drawn.append([sorted(int(row) for row in batch.x[:, 2]) for batch in spy.batches[2:]])
    assert (drawn[0] == drawn[1]) == (seeds[0] == seeds[1])
    assert drawn[0][0] != drawn[0][1]  # each pass has a draw of its own


def test_a_task_of_few_rows_may_be_passed_over_by_a_pass() -> None:
    spy = Spy()
    learner = Learner(models.mlp(12, (4,)), methods.Cumulative() + spy, scenario="class", epochs=6)
    learner.learn(Task(blobs((0, 1), 60, 0)))
    learner.learn(Task(blobs((2,), 1, 1)))
    assert [len(batch) for batch in spy.batches[6:]] == [1] * 6
    assert any(int(batch.task) == 0 for batch in spy.batches[6:])


def test_cumulative_is_no_upper_bound_and_needs_our_loop() -> None:
    assert not methods.Cumulative.upper_bound
    model = models.adapt(torch.nn.Sequential(torch.nn.Linear(12, 2)), head="0", classes=[0, 1])
    with pytest.raises(ValueError, match="cumulative owns `fit`, so it needs our loop"):
        methods.attach(methods.Cumulative(), model, torch.optim.Adam(model.parameters()))


# ---- all three ----


@pytest.mark.parametrize("method", [methods.ICaRL(20), methods.GDumb(20), methods.Cumulative()], ids=lambda m: m.name)
def test_inputs_with_names_and_other_lengths_are_padded_with_zeros(method: Method) -> None:
    spy = Spy()
    learner = Learner(models.adapt(Mean()), method + spy, scenario="class", batch_size=8, epochs=2)
    lengths = (4, 6, 2)
    for number, length in enumerate(lengths):
        learner.learn(Task(({"frames": torch.ones(16, length, 3)}, [number] * 16), name=str(number)))
    for batch in spy.batches:
        assert isinstance(batch.x, dict)
        assert batch.x["frames"].sum((1, 2)).tolist() == [3 * lengths[number] for number in batch.task.tolist()]
    assert {int(task) for batch in spy.batches[-4:] for task in batch.task} >= {0, 1}


@pytest.mark.parametrize("method", [methods.ICaRL(30), methods.GDumb(30), methods.Cumulative()], ids=lambda m: m.name)
def test_rows_are_kept_as_they_came(method: Method) -> None:
    images = torch.randint(256, (40, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    learner = Learner(models.mlp(16, (8,)), method, scenario="class", epochs=2, batch_size=8)
    learner.learn(Task(Rows(images, torch.arange(40) % 2), name="images"))
    kept = method.exemplars if isinstance(method, methods.ICaRL) else method.store.all()
    assert kept["x"].dtype == torch.uint8
    order = [int((images == image).all(dim=(1, 2, 3)).nonzero()) for image in kept["x"]]
    assert kept["y"].tolist() == [i % 2 for i in order]
    assert len(order) == len(set(order)) == (40 if method.name == "cumulative" else 30)


@pytest.mark.parametrize(
    "other", [methods.Replay, methods.DER, methods.AGEM, lambda: methods.GenerativeReplay(hidden=(8,))]
)
def test_beside_gdumb_what_needs_the_streams_rows_is_refused(other: Any) -> None:
    for compose in (lambda: methods.GDumb(20) + other(), lambda: other() + methods.GDumb(20)):
        with pytest.raises(ValueError, match="gdumb trains on its own rows alone"):
            compose()


def test_with_a_head_a_task_gdumb_keeps_a_small_tasks_share() -> None:
    method = methods.GDumb(60)
    learner = small(method, "task")
    for name, rows in (("small", 24), ("large", 400), ("larger", 800)):
        learner.learn(Task(blobs((0, 1), rows, rows), name=name))
    assert Counter(method.store.all()["task"].tolist()) == {0: 20, 1: 20, 2: 20}
