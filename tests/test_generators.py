"""Generative replay: the generators' losses written out, what is made and what it says, the mix that is learnt."""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from conftest import blobs, small_stream
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal, kl_divergence
from trees import differences, snapshot

from perdure import Callback, Learner, Rows, Task, methods, models
from perdure.data import Batch
from perdure.method import Host, Method
from perdure.models import VAE, WGAN


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def of_seed(seed: int, make: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def rows_of(n: int, width: int, seed: int, bounded: bool) -> Tensor:
    x = torch.randn(n, width, generator=draws(seed))
    return x.sigmoid() if bounded else 3 * x


# ---- the VAE ----


@pytest.mark.parametrize("bounded", [True, False])
def test_the_loss_of_a_vae_is_the_negative_evidence_lower_bound_written_out(bounded: bool) -> None:
    vae = of_seed(1, lambda: VAE((2, 3), hidden=(5, 4), latent=3, bounded=bounded))
    if not bounded:
        vae.log_variance.data = torch.linspace(-1, 2, 6)
    x = rows_of(7, 6, 2, bounded)
    mean, log_variance = vae.encode(x)
    sd = (log_variance / 2).exp()
    z = mean + sd * torch.randn(7, 3, generator=draws(3))
    made = vae.decoder(z)
    likelihood = Bernoulli(logits=made, validate_args=False) if bounded else Normal(made, (vae.log_variance / 2).exp())
    total = -likelihood.log_prob(x).sum(1) + kl_divergence(Normal(mean, sd), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(vae.loss(x.view(7, 2, 3), draws(3)), total.mean())


def test_the_divergence_in_the_loss_is_what_monte_carlo_finds() -> None:
    vae = of_seed(1, lambda: VAE((4,), hidden=(5,), latent=2))
    with torch.no_grad():
        for p in vae.encoder.parameters():
            p.mul_(3)
    x = rows_of(1, 4, 2, True)
    mean, log_variance = vae.encode(x)
    q, z = (
        Normal(mean, (log_variance / 2).exp()),
        mean + (log_variance / 2).exp() * torch.randn(1, 2, generator=draws(3)),
    )
    divergence = float((vae.loss(x, draws(3)) - vae.surprise(x, z).mean()).detach())
    many = mean + (log_variance / 2).exp() * torch.randn(200_000, 2, generator=draws(4))
    found = (q.log_prob(many) - Normal(0.0, 1.0).log_prob(many)).sum(1)
    assert divergence > 0.3
    assert divergence == pytest.approx(
        float(found.mean().detach()), abs=5 * float(found.std().detach()) / math.sqrt(200_000)
    )


def test_a_vae_makes_images_in_0_1_and_real_rows_with_the_spread_that_it_learnt() -> None:
    images = of_seed(1, lambda: VAE((1, 2, 2), hidden=(8,), latent=2))
    made, z = images.sample(50, draws()), torch.randn(50, 2, generator=draws())
    torch.testing.assert_close(made, 1 / (1 + (-images.decoder(z)).exp()).view(50, 1, 2, 2))
    vae = of_seed(1, lambda: VAE((2,), hidden=(8,), latent=2, bounded=False))
    vae.log_variance.data = torch.tensor([0.25, 9.0]).log()
    made, chance = vae.sample(50, draws()), draws()
    z = torch.randn(50, 2, generator=chance)
    noise = torch.tensor([0.5, 3.0]) * torch.randn(50, 2, generator=chance)
    torch.testing.assert_close(made, vae.decoder(z) + noise)


def test_a_vae_learns_the_mean_and_the_spread_of_real_rows() -> None:
    vae = of_seed(1, lambda: VAE((2,), hidden=(8,), latent=2, bounded=False, lr=0.03))
    x = torch.tensor([5.0, -3.0]) + torch.tensor([0.5, 2.0]) * torch.randn(256, 2, generator=draws(5))
    optimizer = vae.optimizer()
    for _ in range(200):
        optimizer.zero_grad()
        vae.loss(x, draws(6)).backward()
        optimizer.step()
    made = models.generators.sample(vae, 2000, draws(7))
    torch.testing.assert_close(made.mean(0), x.mean(0), rtol=0.1, atol=0.1)
    assert made[:, 1].std() > 1.5 > 1.0 > made[:, 0].std()


# ---- the GAN ----


def small_gan() -> WGAN:
    return of_seed(1, lambda: WGAN((2, 3), hidden=(5, 4), latent=3))


@pytest.mark.parametrize("strength", [10.0, 0.5])
def test_the_penalty_of_a_linear_critic_is_its_weights_distance_from_length_1(strength: float) -> None:
    gan = WGAN((3,), hidden=(), latent=2, strength=strength)
    gan.critic[0].weight.data = torch.tensor([[2.0, 3.0, 6.0]])  # of length 7
    found = gan.penalty(rows_of(4, 3, 0, True), rows_of(4, 3, 1, True), draws())
    assert float(found.detach()) == pytest.approx(strength * 36)


def test_the_gradient_of_the_penalty_is_that_of_finite_differences() -> None:
    gan = small_gan().double()
    x, made = rows_of(6, 6, 2, True).double(), rows_of(6, 6, 3, True).double()
    weight = gan.critic[0].weight
    gradient = torch.autograd.grad(gan.penalty(x, made, draws(4)), weight)[0]
    for place in ((0, 0), (2, 3), (4, 5)):
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                weight[place] += step
            values.append(float(gan.penalty(x, made, draws(4)).detach()))
            with torch.no_grad():
                weight[place] -= step
        assert float(gradient[place]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5, abs=1e-9)


def test_the_penalty_is_taken_on_the_lines_between_rows_and_made_rows() -> None:
    gan, seen = small_gan().double(), []
    gan.critic.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    x, made = torch.zeros(5, 6).double(), torch.ones(5, 6).double()
    gan.penalty(x, made, draws(4))
    assert len(seen) == 1
    places = seen[0][:, 0]
    assert (
        (seen[0] == places[:, None]).all() and places.min() > 0 and places.max() < 1 and len(set(places.tolist())) == 5
    )


def test_each_of_the_two_networks_learns_from_its_own_part_of_the_loss_alone() -> None:
    gan, x = small_gan(), rows_of(8, 6, 2, True)
    critic, decoder = list(gan.critic.parameters()), list(gan.decoder.parameters())
    found = torch.autograd.grad(gan.loss(x.view(8, 2, 3), draws(5)), critic + decoder)
    chance = draws(5)
    made = gan.decoder(torch.randn(8, 3, generator=chance)).sigmoid()
    judged = gan.critic(made.detach()).mean() - gan.critic(x).mean() + gan.penalty(x, made.detach(), chance)
    expected = torch.autograd.grad(judged, critic) + torch.autograd.grad(-gan.critic(made).mean(), decoder)
    for own, by_hand in zip(found, expected, strict=True):
        torch.testing.assert_close(own, by_hand)


def test_a_gan_learns_with_the_published_betas() -> None:
    (group,) = WGAN((3,), hidden=(4,), latent=2, lr=0.02).optimizer().param_groups
    assert (group["lr"], group["betas"], len(group["params"])) == (0.02, (0.0, 0.9), 4 + 6)
    assert WGAN((3,), hidden=(4,)).loss(torch.rand(1, 3), draws()).isfinite()  # of one row, too


# ---- what is made, and what it says ----


@dataclass(eq=False)
class Spy(Method):
    """Keeps the batches as the model saw them, and the model and the generator as they were before each task."""

    name: ClassVar[str] = "spy"
    batches: list[Batch] = field(default_factory=list)

    def project(self, host: Host, batch: Batch) -> None:
        self.batches.append(batch)


def generative(generator: Any = "vae", **settings: Any) -> methods.GenerativeReplay:
    small = {"hidden": (16,), "latent": 4, "lr": 0.03} if isinstance(generator, str) else {}
    return methods.GenerativeReplay(generator, **{**small, **settings})


def made_learner(method: Method, scenario: str = "class", **settings: Any) -> Learner:
    return Learner(
        models.mlp(12, (8,), norm=True), method, scenario=scenario, **{"batch_size": 8, "seed": 1, **settings}
    )


def with_spy(
    scenario: str, tasks: int, method: methods.GenerativeReplay, **settings: Any
) -> tuple[Learner, list[Batch]]:
    """A learner, and the batches of the last of its tasks."""
    spy = Spy()
    learner = made_learner(method + spy, scenario, **settings)
    for task in small_stream(tasks=tasks, rows=32):
        spy.batches.clear()
        learner.learn(task)
    return learner, spy.batches


def old_scores(method: methods.GenerativeReplay, learner: Learner, x: Tensor) -> Tensor:
    """What the model said before the last task: the network rebuilt from what the method kept."""
    kept = method.solver
    h = F.batch_norm(
        F.linear(x, kept["body.1.weight"], kept["body.1.bias"]), kept["body.2.running_mean"],
        kept["body.2.running_var"], kept["body.2.weight"], kept["body.2.bias"], training=False,
    ).relu()  # fmt: skip
    return F.linear(h, kept["head.weights.0"], kept["head.biases.0"])


@pytest.mark.parametrize("rows", [None, 3, 20])
@pytest.mark.parametrize("tasks", [2, 3, 4])
def test_the_loss_is_r_times_that_of_new_rows_and_1_minus_r_that_of_made_ones(tasks: int, rows: int | None) -> None:
    learner, batches = with_spy("class", tasks, generative(rows=rows))
    r, model = 1 / tasks, learner.model
    for batch in batches:
        assert batch.fresh.sum() == 8 and (~batch.fresh).sum() == (rows or 8)
        scores, columns = model(batch.x), batch.columns
        each = F.cross_entropy(scores, columns, reduction="none")
        by_hand = r * each[batch.fresh].mean() + (1 - r) * each[~batch.fresh].mean()
        torch.testing.assert_close(learner.objective.loss(scores, batch), by_hand)
        torch.testing.assert_close(batch.weight.mean(), torch.tensor(1.0))


def test_in_the_first_task_nothing_is_made() -> None:
    _, batches = with_spy("class", 1, generative())
    assert all(len(batch) == 8 and batch.weight is None and batch.target is None for batch in batches)


@pytest.mark.parametrize("targets", ["hard", "soft"])
@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_made_rows_say_what_the_model_said_before_the_task(scenario: str, targets: str) -> None:
    method = generative(targets=targets)
    learner, batches = with_spy(scenario, 3, method, epochs=4)
    known = 2 if scenario == "domain" else 4
    asked = torch.zeros(3)
    for batch in batches:
        made = batch.select(~batch.fresh)
        scores = old_scores(method, learner, made.x)[:, :known]
        if scenario == "task":
            own = torch.arange(4) // 2 == made.task[:, None]
            scores = scores.masked_fill(~own, -torch.inf)
            asked += made.task.bincount(minlength=3)
        assert torch.equal(made.columns, scores.argmax(1))
        assert torch.equal(made.y, scores.argmax(1) % 2)
        if targets == "hard":
            assert batch.target is None
        else:
            torch.testing.assert_close(made.target, scores.softmax(1))
            assert batch.select(batch.fresh).target.isnan().all()
    if scenario == "task":
        assert asked[2] == 0 and asked[0] + asked[1] == 128
        assert abs(float(asked[0]) - 64) < 5 * math.sqrt(32)


@pytest.mark.parametrize("generator", ["vae", "gan"])
@pytest.mark.parametrize("kind", [torch.uint8, torch.float32, torch.float64])
def test_made_rows_are_of_the_kind_of_the_streams(generator: str, kind: torch.dtype) -> None:
    x = torch.rand(32, 1, 3, 4, generator=draws())
    x = (255 * x).to(kind) if kind == torch.uint8 else x.to(kind)
    method = generative(generator)
    learner = made_learner(method)
    learner.learn(Task(Rows(x, torch.arange(32) % 2), name="first"))
    assert isinstance(method.apprentice.network, {"vae": VAE, "gan": WGAN}[generator])
    method.begin(learner, None)
    number = torch.zeros(8, dtype=torch.long)
    found = method.replay(learner, Batch(x=x[:8], y=number, task=number))
    made = found.select(~found.fresh)
    assert found.x.dtype == kind and made.x.shape == (8, 1, 3, 4)
    assert torch.equal(found.select(found.fresh).x, x[:8])
    assert (made.x.float().std(0) > 0).any()
    if kind == torch.uint8:
        assert made.x.max() > 1  # and not [0, 1], cut down
        inside = models.generators.sample(method.apprentice.scholar, 500, draws(3))
        assert inside.min() >= 0 and inside.max() <= 1


def test_a_batch_of_stored_rows_alone_stays_as_it_is() -> None:
    learner, _ = with_spy("class", 2, method := generative())
    number = torch.zeros(4, dtype=torch.long)
    stored = Batch(x=torch.randn(4, 12, generator=draws()), y=number, task=number, origin=number + 1)
    before = snapshot(learner)
    assert method.replay(learner, stored) is stored
    method.after_step(learner, stored, torch.zeros(4, 4))
    assert differences(before, snapshot(learner)) == []


# ---- the mix that the generator learns ----


class Watched(nn.Module):
    """Makes rows about one that it learns, and notes what it learns from; plain, with no source of chance."""

    def __init__(self) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.zeros(12))
        self.seen: list[Tensor] = []

    def loss(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return (x - self.row).square().mean()

    def sample(self, n: int) -> Tensor:
        return self.row + torch.randn(n, 12)


@dataclass(eq=False)
class Steps(Callback):
    """After each step the gradient that the generator had."""

    gradients: list[Tensor] = field(default_factory=list)

    def after_step(self, learner: Learner) -> None:
        self.gradients.append(learner.method.parts[0].apprentice.network.row.grad.clone())


@pytest.mark.parametrize("rows", [None, 5])
def test_the_generator_learns_from_the_same_rows_at_the_same_shares(rows: int | None) -> None:
    """With learning rate 0 its row stays 0, and the gradient of mean((x - row)^2) is -2 / 12 of the mean row."""
    own, spy, steps = Watched(), Spy(), Steps()
    own.optimizer = lambda: torch.optim.SGD(own.parameters(), 0.0)
    augmented = {"augment": lambda x, chance: x + 100.0}  # for the model alone
    learner = made_learner(generative(own, rows=rows) + spy, callbacks=[steps], **augmented)
    for number, task in enumerate(small_stream(tasks=3, rows=64), start=1):
        for noted in (own.seen, spy.batches, steps.gradients):
            noted.clear()
        learner.learn(task)
        assert len(own.seen) == (8 if number == 1 else 16) and len(spy.batches) == 8
        for batch, gradient in zip(spy.batches, steps.gradients, strict=True):
            new, made = batch.x[batch.fresh] - 100, batch.x[~batch.fresh] - 100
            assert len(made) == (0 if number == 1 else rows or 8)
            mean = new.mean(0) if number == 1 else (new.mean(0) + (number - 1) * made.mean(0)) / number
            torch.testing.assert_close(gradient, -mean / 6, atol=1e-4, rtol=0.0)


def shares(method: methods.GenerativeReplay) -> Tensor:
    """How many of 600 samples of the generator lie nearest to the rows of each of three tasks."""
    learner = made_learner(method, epochs=30, batch_size=32, optimizer={"name": "adam", "lr": 0.01})
    for task in small_stream(tasks=3, rows=64):
        learner.learn(task)
    centres = torch.stack([blobs((label,), 50, 1).read(torch.arange(50)).mean(0) for label in range(6)])
    return (
        torch.cdist(method.samples(learner, 600), centres).argmin(1).div(2, rounding_mode="floor").bincount(minlength=3)
        / 600
    )


def test_the_generator_knows_all_tasks_and_without_its_own_rows_the_last_one_only() -> None:
    assert shares(generative()).min() > 0.15
    forgetful = generative()
    teach = forgetful._teach
    forgetful._teach = lambda host, new, made: teach(host, new, None)  # type: ignore[method-assign]
    found = shares(forgetful)
    assert found[2] > 0.9 and found[:2].max() < 0.05


# ---- modules of the user's, samples, what is refused ----


def test_any_module_with_loss_and_sample_serves_and_resumes(tmp_path: Any) -> None:
    tasks = small_stream(tasks=3, rows=32)
    unbroken, cut = (made_learner(generative(Watched())) for _ in range(2))
    for task in tasks:
        unbroken.learn(task)
    for task in tasks[:2]:
        cut.learn(task)
    cut.save(tmp_path / "state")
    with pytest.raises(ValueError, match="method="):
        Learner.load(tmp_path / "state")
    loaded = Learner.load(tmp_path / "state", method=generative(Watched()))
    loaded.learn(tasks[2])
    assert differences(snapshot(unbroken), snapshot(loaded)) == []
    assert (loaded.method.apprentice.network.row != 0).all()


def test_samples_depend_on_the_seed_alone_and_change_nothing() -> None:
    for generator in ("vae", "gan"):
        method = generative(generator)
        learner = made_learner(method)
        with pytest.raises(ValueError, match="nothing yet"):
            method.samples(learner, 4)
        learner.learn(small_stream(rows=32)[0])
        before, chance = snapshot(learner), torch.get_rng_state()
        one, same, other = (method.samples(learner, 5, seed) for seed in (1, 1, 2))
        assert one.shape == (5, 12) and torch.equal(one, same) and not torch.equal(one, other)
        assert differences(before, snapshot(learner)) == [] and torch.equal(chance, torch.get_rng_state())
        learner.learn(small_stream(rows=32)[1])
        assert not torch.equal(one, method.samples(learner, 5, 1))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"generator": "gam"}, "did you mean 'gan'"),
        ({"targets": "firm"}, "targets is 'firm'"),
        ({"rows": 0}, "rows is 0"),
        ({"hidden": (0,)}, "hidden"),
        ({"latent": 0}, "latent"),
        ({"lr": 0.0}, "lr 0.0"),
        ({"generator": nn.Linear(2, 2)}, "Linear has no loss"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        methods.GenerativeReplay(**settings)


def test_rows_that_no_generator_makes_are_refused() -> None:
    words = Task(Rows(torch.randint(9, (8, 12), generator=draws()), torch.arange(8) % 2), name="words")
    with pytest.raises(ValueError, match=r"floats and uint8 images, and these inputs are torch\.int64"):
        Learner(Embedded(), generative(), scenario="class").learn(words)


class Embedded(nn.Module):
    """Takes whole numbers."""

    recipe = None

    def __init__(self) -> None:
        super().__init__()
        self.head = models.Head(12)

    def grow(self, columns: int, generator: torch.Generator) -> None:
        self.head.grow(columns, generator)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.float())


def test_a_generator_that_diverges_stops_the_task() -> None:
    class Poisoned(Callback):
        def after_step(self, learner: Learner) -> None:
            with torch.no_grad():
                next(learner.method.apprentice.network.parameters()).fill_(torch.nan)

    method = generative()
    learner = made_learner(method, callbacks=[Poisoned()])
    with pytest.raises(FloatingPointError, match="generator"):
        learner.learn(small_stream(rows=8)[0])
    assert len(method.learnt) == 0 and method.apprentice.network is None  # back at its last save point


def test_the_count_of_multiply_adds_has_the_generators() -> None:
    vae = models.mlp(12, (8,)), generative()
    learner = Learner(vae[0], vae[1], scenario="class", batch_size=8)
    learner.learn(small_stream(rows=32)[0])
    model, weights = 12 * 8 + 8 * 2, 12 * 16 + 16 * 8 + 4 * 16 + 16 * 12
    step = 3 * weights - 12 * 16  # forward and two backward, but none to the input
    assert vae[1].apprentice.work == [step, 4 * 16 + 16 * 12]
    assert learner.cost.multiply_adds == 32 * (3 * model + step)


def test_a_model_that_was_trained_elsewhere_can_teach_its_generator_by_consolidation(monkeypatch: Any) -> None:
    monkeypatch.setattr("perdure.methods.generative_replay.ALONE", (150, 32))
    method, old = generative(), blobs((0, 1), 200, 1)
    learner = Learner(
        models.adapt(nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2)), head="2", classes=[0, 1]),
        method, scenario="class", batch_size=16,
    )  # fmt: skip
    learner.consolidate(old)
    assert method.learnt.tolist() == [0]
    centres = torch.stack([blobs((label,), 50, 1).read(torch.arange(50)).mean(0) for label in range(6)])
    assert (torch.cdist(method.samples(learner, 300), centres).argmin(1) < 2).float().mean() > 0.9
    learner.learn(Task(blobs((2, 3), 64, 2), name="new"))
    assert method.columns == 2 and method.apprentice.scholar is not None and method.learnt.tolist() == [0, 1]


def test_in_a_loop_of_ones_own_made_rows_come_with_their_labels() -> None:
    model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    method = generative()
    loop = methods.attach(method, model, optimizer)
    for number, classes in enumerate(((0, 1), (2, 3))):
        rows = blobs(classes, 64, number)
        x, y = rows.read(torch.arange(64)), torch.tensor(rows.labels)
        loop.begin()
        for index in torch.arange(64).split(16):
            xs, ys = loop.replay(x[index], y[index])
            assert len(xs) == len(ys) == 16 * (1 + number)
            assert number == 0 or ys[16:].max() < 2
            out = model(xs)
            optimizer.zero_grad()
            ((F.cross_entropy(out, ys, reduction="none") * loop.weight).mean() + loop.penalty(out)).backward()
            loop.project()
            optimizer.step()
            loop.after_step(out)
        loop.consolidate(rows)


def test_a_loop_that_forgets_the_weights_is_stopped() -> None:
    model = nn.Linear(12, 4)
    loop = methods.attach(generative(), model, torch.optim.Adam(model.parameters()))
    loop.begin()
    xs, ys = loop.replay(torch.randn(8, 12), torch.zeros(8).long())
    out = model(xs)
    (F.cross_entropy(out, ys) + loop.penalty(out)).backward()
    with pytest.raises(RuntimeError, match="weighs rows"):
        loop.project()


def test_what_a_loop_of_ones_own_cannot_do_is_refused() -> None:
    model = nn.Linear(12, 4)
    soft = methods.attach(generative(targets="soft"), model, torch.optim.Adam(model.parameters()))
    with pytest.raises(ValueError, match="soft targets"):
        soft.begin()
    loop = methods.attach(generative(), model, torch.optim.Adam(model.parameters()))
    loop.begin()
    with pytest.raises(ValueError, match="uint8"):
        loop.replay(torch.zeros(8, 12, dtype=torch.uint8), torch.zeros(8).long())


def test_consolidating_again_teaches_the_generator_the_old_rows_too(monkeypatch: Any) -> None:
    monkeypatch.setattr("perdure.methods.generative_replay.ALONE", (300, 32))
    method = generative(hidden=(32,), lr=0.01)
    learner = Learner(
        models.adapt(nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2)), head="2", classes=[0, 1]),
        method, scenario="class", batch_size=16,
    )  # fmt: skip
    for number, place in enumerate((4.0, -4.0)):
        learner.consolidate((torch.randn(200, 12, generator=draws(number)) + place, torch.arange(200) % 2))
    positive = (method.samples(learner, 400).mean(1) > 0).float().mean()
    assert 0.25 < positive < 0.75


def test_settings_of_the_built_in_generators_are_refused_beside_ones_own() -> None:
    for setting in ({"hidden": (8,)}, {"latent": 3}, {"lr": 0.1}, {"bounded": True}):
        with pytest.raises(ValueError, match="brings its own"):
            methods.GenerativeReplay(nn.Identity(), **setting)


def test_floats_between_0_and_1_may_be_bounded() -> None:
    method = generative(bounded=True)
    learner = made_learner(method)
    learner.learn(Task(Rows(torch.rand(32, 12, generator=draws()), [0, 1] * 16)))
    made = method.samples(learner, 200)
    assert method.apprentice.network.bounded and made.min() >= 0 and made.max() <= 1


# ---- columns back to labels ----


@pytest.mark.parametrize(
    ("scenario", "heads"), [("class", "separate"), ("domain", "separate"), ("task", "separate"), ("task", "shared")]
)
def test_the_label_of_a_column_is_the_inverse_of_the_column_of_a_label(scenario: str, heads: str) -> None:
    stream = [
        Task(Rows(torch.randn(8, 12, generator=draws()), [labels[i % len(labels)] for i in range(8)]), name=name)
        for name, labels in (("a", "xyz"), ("b", "yw"), ("a", "xv"))
    ]
    learner = Learner(models.mlp(12, ()), methods.Finetune(), scenario=scenario, heads=heads, batch_size=8)
    for task in stream:
        learner.learn(task)
    task, y = torch.tensor([0, 0, 0, 0, 1, 1]), torch.tensor([0, 1, 2, 3, 0, 1])
    rows = Batch(x=torch.zeros(6, 12), y=y, task=task)
    column = learner.ready(rows).columns
    back = learner.labelled(Batch(x=rows.x, y=None, task=task), column)
    assert torch.equal(learner.ready(back).columns, column)
    if scenario == "task":
        assert torch.equal(back.task, task) and torch.equal(back.y, y)
