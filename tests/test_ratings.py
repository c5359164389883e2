"""Ratings: tables that grow with users and items, what is kept of them, and how much each row of them matters."""

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call

from perdure import Batch, Learner, Rows, Task, importance, methods, models
from perdure.augment import Unseen
from perdure.importance import diagonal, diagonal_by_hand
from perdure.models.ratings import Vectors
from perdure.objective import OBJECTIVES

pytestmark = pytest.mark.filterwarnings("error")  # importances must be right, not rescued by the slow path, which warns

RATING, RANKING = OBJECTIVES["rating"], OBJECTIVES["ranking"]


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pairs(users: range, items: range, rows: int = 60, seed: int = 0, other: bool = False) -> dict[str, torch.Tensor]:
    draws = chance(seed)

    def some(ids: range) -> torch.Tensor:
        return torch.tensor(ids)[torch.randint(len(ids), (rows,), generator=draws)]

    x = {"user": some(users), "item": some(items)}
    return x | {"other": some(items)} if other else x


def task(name: str, users: range, items: range, seed: int = 0, rows: int = 60) -> Task:
    x = pairs(users, items, rows, seed)
    stars = 1.0 + (x["user"] + x["item"]) % 5
    return Task((x, stars[:, None]), (x, stars[:, None]), name=name)


def learner(method=None, model=None, **settings) -> Learner:
    settings = {"epochs": 2, "batch_size": 16, "scenario": "domain", "objective": "rating", **settings}
    return Learner(model or models.ratings(4), method or methods.Finetune(), **settings)


def grown(model: nn.Module, x: dict[str, torch.Tensor], columns: int = 1) -> nn.Module:
    """Met, scaled up so that gradients are of a size, and in double precision."""
    model.meet(x, chance(1))
    model.grow(columns, chance(2))
    with torch.no_grad():
        for table in (model.body.users, model.body.items):
            for block in table.blocks:
                block.copy_(torch.randn(block.shape, generator=chance(3)) * (block != 0).any(1, keepdim=True))
    return model.double().eval()


MONTHS = [task("one", range(9), range(100, 120)), task("two", range(6, 15), range(110, 140), 1)]


# ---- the tables ----


def test_a_vector_is_opened_once_for_every_id_and_others_are_zero():
    table = Vectors(3)
    table.meet(torch.tensor([7, -2, 7, 10**15]), chance())
    first = table(torch.tensor([-2, 7, 10**15, 8]))
    assert first.shape == (4, 3) and (first[3] == 0).all()
    assert (first[:3, :2] != 0).all() and (first[:, 2] == 0).all()  # a bias begins at 0
    table.meet(torch.tensor([8, 7]), chance(1))
    assert torch.equal(table(torch.tensor([-2, 7, 10**15])), first[:3])
    assert (table(torch.tensor([8]))[0, :2] != 0).all()
    assert table.place(torch.tensor([[8, 9], [7, -2]])).tolist() == [[3, -1], [1, 0]]


def test_capacity_doubles_by_blocks_that_are_never_resized():
    table = Vectors(2)
    block = table.blocks[0]
    table.meet(torch.arange(1000), chance())
    assert [len(b) for b in table.blocks] == [256, 256, 512]
    assert table.blocks[0] is block
    whole = torch.cat(list(table.blocks))
    assert torch.equal(table(torch.arange(1000)), whole[:1000]) and (whole[1000:] == 0).all()
    again = Vectors(2)
    again.meet(torch.arange(300), chance())
    again.meet(torch.arange(1000), chance())
    assert [len(b) for b in again.blocks] == [256, 256, 512]


def test_a_row_s_gradient_touches_its_own_vectors_only():
    model = models.ratings(3)
    x = pairs(range(5), range(5, 600), rows=900)
    model.meet(x, chance())
    model.grow(1, chance())
    row = {name: column[:1] for name, column in x.items()}
    model(row).sum().backward()
    for name, table in (("user", model.body.users), ("item", model.body.items)):
        touched = torch.cat([block.grad for block in table.blocks]).abs().sum(1).nonzero()[:, 0]
        assert touched.tolist() == table.place(row[name]).tolist()


def test_the_score_is_matrix_factorisation_under_a_head_that_weighs_factors():
    model = grown(models.ratings(4), pairs(range(5), range(5)))
    x = {"user": torch.tensor([2]), "item": torch.tensor([3])}
    user, item = model.body.users(x["user"])[0], model.body.items(x["item"])[0]
    weight, bias = model.head.weights[0][0], model.head.biases[0][0]
    by_hand = (weight[:4] * user[:4] * item[:4]).sum() + weight[4] * (user[4] + item[4]) + bias
    assert model(x).item() == pytest.approx(by_hand.item())


@pytest.mark.parametrize("hidden", [(), (6,)])
def test_with_another_item_the_score_is_the_difference(hidden):
    x = pairs(range(5), range(9), other=True)
    model = grown(models.ratings(4, hidden), x)
    seen, other = ({"user": x["user"], "item": x[name]} for name in ("item", "other"))
    assert torch.allclose(model(x), model(seen) - model(other))
    assert torch.allclose(model({**seen, "other": x["item"]}), torch.zeros(60, 1).double())


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="width=0"):
        models.ratings(0)


# ---- in the loop ----


def test_users_and_items_may_come_in_any_task_and_keep_their_vectors_and_moments():
    found = learner()
    found.learn(MONTHS[0])
    users = found.model.body.users
    block = users.blocks[0]
    assert users.ids.tolist() == sorted(set(MONTHS[0].train.read(slice(None))["user"].tolist()))
    moments = found.optimizer.state[block]["exp_avg"]
    found.learn(MONTHS[1])
    assert users.blocks[0] is block and found.optimizer.state[block]["exp_avg"] is moments
    assert set(range(15)) >= set(users.ids.tolist()) > set(range(9, 15)) & set(users.ids.tolist())
    assert found.evaluate(MONTHS)[0] > 0


def test_a_table_that_grows_by_a_block_is_trained_too():
    found = learner(epochs=1)
    found.learn(task("few", range(5), range(10)))
    found.learn(task("many", range(600), range(10), rows=2000))
    blocks = list(found.model.body.users.blocks)
    assert len(blocks) == 3
    trained = {id(p) for group in found.optimizer.param_groups for p in group["params"]}
    assert all(id(block) in trained for block in blocks)
    assert all((found.optimizer.state[block]["exp_avg"] != 0).any() for block in blocks)


def test_what_was_never_met_is_answered_by_the_head_alone():
    found = learner()
    found.learn(MONTHS[0])
    strange = found.predict({"user": torch.tensor([77, 78]), "item": torch.tensor([5, 6])})
    assert torch.equal(strange[0], strange[1])
    bias = found.model.head.biases[0][0].item()
    assert strange[0].item() == pytest.approx(1 + 4 / (1 + math.exp(-bias)), rel=1e-5)


@pytest.mark.parametrize(
    "make", [methods.Finetune, methods.EWC, methods.MAS, methods.LwF, methods.Replay, methods.Joint]
)
def test_saved_and_loaded_it_goes_on_bit_for_bit(make, tmp_path):
    months = [*MONTHS, task("three", range(500), range(100, 150), 2, rows=900)]
    straight = learner(make())
    for month in months:
        straight.learn(month)
    stopped = learner(make())
    for month in months:
        stopped.learn(month)
        stopped.save(tmp_path / "learner")
        stopped = Learner.load(tmp_path / "learner")
    one, other = straight.model.state_dict(), stopped.model.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


class Broken(methods.Finetune):
    """Breaks off in its second task."""

    def end(self, host, task):
        if task.name == "wide":
            raise KeyboardInterrupt


def test_a_task_that_breaks_off_leaves_no_user_behind():
    found = learner(Broken())
    found.learn(MONTHS[0])
    before = {name: tensor.clone() for name, tensor in found.model.state_dict().items()}
    with pytest.raises(KeyboardInterrupt):
        found.learn(task("wide", range(400), range(30), rows=900))
    after = found.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    found.learn(MONTHS[1])


def test_nothing_of_a_later_task_is_known_before_it_comes():
    one, two = learner(), learner()
    one.learn(MONTHS[0])
    two.learn(MONTHS[0])
    two.evaluate(task("later", range(50, 90), range(9)))
    after = two.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in one.model.state_dict().items())


def test_ratings_beyond_the_bounds_are_refused():
    x = pairs(range(3), range(3), 4)
    with pytest.raises(ValueError, match=r'ratings from 0 to 9.*"rating:0:9"'):
        learner().learn(Task((x, torch.tensor([[0.0], [9.0], [3.0], [2.0]]))))
    found = learner(objective="rating:0:9")
    found.learn(Task((x, torch.tensor([[0.0], [9.0], [3.0], [2.0]]))))
    assert (found.predict(x) >= 0).all() and (found.predict(x) <= 9).all()
    with pytest.raises(ValueError, match='rating has no classes to add: use scenario "domain"'):
        learner(scenario="class")


def test_a_teacher_does_not_know_the_users_that_came_after_it():
    found = learner(methods.LwF())
    found.learn(MONTHS[0])
    teacher = {}

    def note(self, host, task):
        teacher.update(found.method.teacher)

    found.method.end = note.__get__(found.method)
    found.learn(task("two", range(6, 400), range(110, 140), 1, rows=900))
    x = {"user": torch.tensor([3, 399]), "item": torch.tensor([112, 113])}
    said = functional_call(found.model, teacher, (x,))
    blind = functional_call(found.model, teacher, ({**x, "user": torch.tensor([3, -1])},))
    assert torch.equal(said, blind)


# ---- importances: against the slow obvious loop ----

KINDS = {"rating": (RATING, False), "ranking": (RANKING, True)}
each_kind = pytest.mark.parametrize("name", KINDS)
each_tower = pytest.mark.parametrize("hidden", [(), (6,)], ids=["factors", "towers"])


def log_likelihood(name: str, score: torch.Tensor, y: float) -> torch.Tensor:
    if name == "rating":
        return -0.5 * (y - (1 + 4 / (1 + torch.exp(-score)))) ** 2
    return torch.log(1 / (1 + torch.exp(-score))) if y else torch.log(1 / (1 + torch.exp(score)))


def answers(name: str, score: float) -> list[tuple[float, float]]:
    """All answers with their chances; of a Gaussian two that have its mean and variance."""
    if name == "rating":
        stars = 1 + 4 / (1 + math.exp(-score))
        return [(stars - 1, 0.5), (stars + 1, 0.5)]
    p = 1 / (1 + math.exp(-score))
    return [(1.0, p), (0.0, 1 - p)]


def obvious(model: nn.Module, x, value_of_row) -> dict[str, torch.Tensor]:
    """The mean over rows of sum over (f, weight, size) of weight x size(df / dtheta), one backward each."""
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    rows = len(x["user"])
    for i in range(rows):
        row = {name: column[i : i + 1] for name, column in x.items()}
        for value, weight, size in value_of_row(model, row, i):
            model.zero_grad()
            value.backward()
            for name, p in model.named_parameters():
                if p.grad is not None:
                    total[name] += weight * size(p.grad) / rows
    model.zero_grad()
    return total


def fisher_rows(name: str, y=None):
    def rows(model, row, i):
        for answer, weight in answers(name, model(row).item()) if y is None else [(float(y[i]), 1.0)]:
            yield log_likelihood(name, model(row)[0, 0], answer), weight, torch.square

    return rows


def mas_rows(name: str):
    def rows(model, row, i):
        score = model(row)[0, 0]
        answer = 1 + 4 / (1 + torch.exp(-score)) if name == "rating" else score
        yield answer**2, 1.0, torch.abs

    return rows


def setting(name: str, hidden) -> tuple:
    objective, other = KINDS[name]
    x = pairs(range(6), range(300), rows=40, other=other)
    model = grown(models.ratings(3, hidden), x | {"user": torch.arange(40)})
    y = torch.full((40, 1), 4.0 if name == "rating" else 1.0, dtype=torch.float64)
    batch = dense_batch(x, y)
    return objective, model, x, batch


def dense_batch(x, y):
    zeros = torch.zeros(len(y), dtype=torch.long)
    return Batch(x=x, y=y, task=zeros, columns=zeros[:, None])


def close(found, truth, factor: float = 1e-9) -> bool:
    assert found.keys() == truth.keys()
    return all((found[n] - truth[n]).abs().max() <= factor * max(1.0, truth[n].abs().max()) for n in truth)


@each_kind
@each_tower
def test_exact_and_empirical_fisher_equal_the_loop_over_rows_and_answers(name, hidden):
    objective, model, x, batch = setting(name, hidden)

    def probes(kind):
        return lambda scores: objective.probes(scores, batch, kind, chance())

    exact = diagonal(model, [(x, probes("exact"))], kind="square")
    assert close(exact, obvious(model, x, fisher_rows(name)))
    empirical = diagonal(model, [(x, probes("empirical"))], kind="square")
    truth = obvious(model, x, fisher_rows(name, batch.y))
    assert close(empirical, truth)
    assert not close(exact, truth, 1e-3)
    assert close(diagonal_by_hand(model, [(x, probes("exact"))], kind="square"), exact)


@each_kind
@each_tower
def test_sampled_fisher_equals_the_loop_with_the_same_draws_and_tends_to_the_exact_one(name, hidden):
    objective, model, x, batch = setting(name, hidden)
    with torch.no_grad():
        scores = model(x)
    if name == "rating":
        stars = 1 + 4 / (1 + torch.exp(-scores))
        drawn = stars + torch.randn(scores.shape, generator=chance(), dtype=scores.dtype)
    else:
        drawn = torch.bernoulli(1 / (1 + torch.exp(-scores)), generator=chance())
    found = diagonal(model, [(x, lambda s: objective.probes(s, batch, "sampled", chance()))], kind="square")
    assert close(found, obvious(model, x, fisher_rows(name, drawn[:, 0])))
    draws = chance(5)
    many = [(x, lambda s: objective.probes(s, batch, "sampled", draws))] * 400
    exact = diagonal(model, [(x, lambda s: objective.probes(s, batch, "exact", draws))], kind="square")
    assert close(diagonal(model, many, kind="square"), exact, 0.3)
    assert not close(found, exact, 1e-3)


@each_kind
@each_tower
def test_mas_equals_the_loop_over_rows(name, hidden):
    objective, model, x, batch = setting(name, hidden)
    truth = obvious(model, x, mas_rows(name))
    found = diagonal(model, [(x, lambda s: iter([objective.sensitivity(s, batch)]))], kind="absolute")
    assert close(found, truth)
    raw = diagonal(model, [(x, lambda s: iter([2 * s]))], kind="absolute")
    assert close(raw, truth, 1e-3) == (name == "ranking")  # of ratings, raw scores are a mutant


@each_kind
def test_the_square_of_the_mean_gradient_is_something_else(name):
    """The mutant that many libraries ship."""
    objective, model, x, batch = setting(name, ())
    model.zero_grad()
    objective.loss(model(x), batch).backward()
    mutant = {n: torch.zeros_like(p) if p.grad is None else p.grad**2 for n, p in model.named_parameters()}
    model.zero_grad()
    assert not close(mutant, obvious(model, x, fisher_rows(name, batch.y)), 1e-3)


class Bag(nn.Module):
    """Looks several vectors up, some twice, and in two calls."""

    def __init__(self, table: nn.Module, tied: bool = False) -> None:
        super().__init__()
        self.table, self.out, self.tied = table, nn.Linear(3, 2), tied

    def forward(self, x):
        found = self.table(x["many"]).mean(1).tanh() * self.table(x["one"])
        return self.out(found) + found @ self.table.weight[:2].T if self.tied else self.out(found)


MANY = {"many": torch.tensor([[1, 1, 4], [0, 2, 2], [5, 5, 5], [3, 0, 1]]), "one": torch.tensor([1, 3, 5, 4])}


@pytest.mark.parametrize("kind", ["square", "absolute"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("table", ["embedding", "vectors"])
def test_a_vector_looked_up_twice_by_a_row_counts_once_with_both_gradients(kind, padded, table):
    if table == "embedding":
        model = Bag(nn.Embedding(7, 3, padding_idx=5 if padded else None))
    else:
        model = Bag(Vectors(3))
        model.table.meet(torch.arange(5 if padded else 6), chance())  # what is padding there is unknown here
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=chance(len(p)), dtype=torch.float64)

    def probes(scores):
        yield torch.ones_like(scores)
        yield scores

    found = diagonal(model, [(MANY, probes)], kind=kind)
    truth = diagonal_by_hand(model, [(MANY, probes)], kind=kind)
    assert close(found, truth)
    weight = found["table.weight" if table == "embedding" else "table.blocks.0"]
    assert (weight[6] == 0).all() and (weight[5] == 0).all() == padded


def test_the_closed_form_is_the_one_that_was_used(monkeypatch):
    monkeypatch.setattr(importance._Survey, "per_row", None)
    _, model, x, batch = setting("rating", (6,))
    found = diagonal(model, [(x, lambda s: RATING.probes(s, batch, "exact", chance()))], kind="square")
    assert any(bool((value > 0).any()) for value in found.values())


@pytest.mark.filterwarnings("default")
def test_an_embedding_that_is_used_elsewhere_too_falls_back_to_what_is_right():
    model = Bag(nn.Embedding(7, 3), tied=True).double()

    def probes(scores):
        yield torch.ones_like(scores)

    with pytest.warns(RuntimeWarning, match="away from the plain backward"):
        found = diagonal(model, [(MANY, probes)], kind="square")
    assert close(found, diagonal_by_hand(model, [(MANY, probes)], kind="square"))


# ---- in the methods ----


@pytest.mark.parametrize("make", [methods.EWC, methods.MAS])
@each_kind
def test_rows_that_were_never_seen_have_no_importance(make, name):
    _, other = KINDS[name]

    def month(users: range, items: range) -> Task:
        x = pairs(users, items, 80, other=other)
        return Task((x, torch.full((80, 1), 1.0)), name=str(users))

    found = learner(make(), objective=name)
    found.learn(month(range(10), range(20)))
    found.learn(month(range(10, 15), range(10, 30)))
    before = {n: value.clone() for n, value in found.method.importance.items()}
    found.learn(month(range(15, 400), range(25, 60)))
    users, now = found.model.body.users, found.method.importance
    assert (before["body.users.blocks.0"][len(users.ids) :] == 0).all()
    old = users.place(torch.arange(15))
    seen = old[old >= 0]
    factors = slice(None, -1)  # of a pair, a user's bias says nothing
    assert (now["body.users.blocks.0"][seen][:, factors] > 0).all()
    # The last month saw none of the first users: what it adds to their importance is nothing.
    assert torch.equal(now["body.users.blocks.0"][seen], before["body.users.blocks.0"][seen])


def test_ewc_holds_users_that_were_seen_and_lets_new_ones_learn():
    months = [task("one", range(9), range(20)), task("two", range(18), range(20), 1, rows=400)]

    def moved(strength: float) -> tuple[float, float]:
        found = learner(
            methods.EWC(strength=strength, pull="proximal"), epochs=4, optimizer={"name": "adam", "lr": 0.03}
        )
        found.learn(months[0])
        users, old, new = found.model.body.users, torch.arange(9), torch.arange(9, 18)
        before = users(old).detach()
        found.learn(months[1])
        return (users(old) - before).norm().item(), users(new).norm().item()

    (free, learnt), (held, learnt_too) = moved(0.0), moved(1e6)
    assert held < 0.05 * free
    assert learnt_too > 0.5 * learnt


# ---- the other item of a pair ----


def test_the_other_item_is_one_that_the_user_was_not_seen_with():
    x = pairs(range(8), range(30), rows=90)
    unseen = Unseen()
    with pytest.raises(ValueError, match="no items are known"):
        unseen(x, chance())
    unseen.add(x)
    seen = set(zip(x["user"].tolist(), x["item"].tolist(), strict=True))
    found = unseen(x, chance())
    others = list(zip(found["user"].tolist(), found["other"].tolist(), strict=True))
    assert not seen & set(others)
    assert set(found["other"].tolist()) <= set(x["item"].tolist())
    assert "other" not in x
    assert torch.equal(unseen(x, chance())["other"], found["other"])
    assert not torch.equal(unseen(x, chance(1))["other"], found["other"])


def test_the_other_item_is_drawn_uniformly_among_those_left_and_what_comes_later_joins():
    unseen = Unseen()
    unseen.add({"user": torch.tensor([1, 1, 2, 2, 2]), "item": torch.tensor([10, 11, 12, 13, 14])})
    x = {"user": torch.full((6000,), 1), "item": torch.full((6000,), 10)}
    counts = unseen(x, chance())["other"].bincount(minlength=16)
    assert counts[:12].sum() == 0 and counts[15] == 0
    assert (counts[12:15] - 2000).abs().max() < 200
    unseen.add({"user": torch.tensor([3]), "item": torch.tensor([15])})
    assert unseen(x, chance())["other"].bincount(minlength=16)[15] > 1000
    stranger = {"user": torch.tensor([99]), "item": torch.tensor([10])}
    assert unseen(stranger, chance())["other"].item() in range(10, 16)


def test_who_was_seen_with_everything_gets_an_item_all_the_same():
    unseen = Unseen(tries=2)
    unseen.add({"user": torch.tensor([1, 1]), "item": torch.tensor([10, 11])})
    assert unseen({"user": torch.tensor([1]), "item": torch.tensor([10])}, chance())["other"].item() in (10, 11)
    with pytest.raises(ValueError, match="at least 1"):
        Unseen(tries=0)


def test_ranking_learns_to_put_what_was_seen_first():
    x = pairs(range(10), range(40), rows=400)
    x["item"] = x["item"] // 2 + 20 * (x["user"] % 2)  # even users see the first items only, odd ones the others
    unseen = Unseen()
    unseen.add(x)
    rows = Rows(unseen(x, chance()), torch.ones(400, 1))
    found = learner(objective="ranking", augment=unseen, epochs=30, optimizer={"name": "adam", "lr": 0.03})
    found.learn(Task(rows, rows, name="one"))
    assert found.evaluate(Task(rows, rows, name="one")) > 0.9
    scores = found.predict({"user": torch.zeros(40, dtype=torch.long), "item": torch.arange(40)})[:, 0]
    assert set(scores.topk(10).indices.tolist()) <= set(range(20))
