"""Generative replay: a generator learns to make rows like those of the past, and the model as it was labels them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from perdure.answers import convert
from perdure.data import Batch, Columns, Task
from perdure.method import Host, Method, memory
from perdure.methods.rehearsal import whole_number
from perdure.models import evaluating
from perdure.models.generators import GENERATORS, Apprentice, sample
from perdure.seeds import seeded
from perdure.spelling import one_of

CHANCE = "generative replay"
ALONE = 2000, 128  # steps and rows a step of a generator that learns without the model


@dataclass(eq=False)
class GenerativeReplay(Method):
    """Generative replay (Shin et al. 2017): no row is kept, a generator makes them.

    loss = r * (mean over new rows) + (1 - r) * (mean over made rows),  r = 1 / number of tasks so far

    Before a task the generator and the model are copied: the scholar. At each step its generator makes `rows` rows
    (default: as many as are new), its model labels them: targets="hard" with its answer, "soft" with its probabilities.
    After the step the generator learns from the new rows and the made ones, at the same r, so that it knows all tasks.
    In scenario "task" each made row is asked of an earlier task at random.

    generator="vae" is van de Ven's, "gan" Shin's Wasserstein GAN; both have perceptrons with layers `hidden`. uint8
    rows are images in [0, 1], float rows are Gaussian, or with bounded=True in [0, 1], too. In a loop of your own, give
    `replay` rows as the model takes them, and multiply by `memory.weight`. Any module with `loss(x)` and `sample(n)`
    serves, see `models.Generator`.

    Memory: four copies of the generator (two are moments) and one of the model, however many tasks.

    Use it where old rows may not be kept and inputs are simple (digits, tables). On natural images it falls behind
    replay of a few hundred stored rows.
    """

    name: ClassVar[str] = "generative-replay"
    title: ClassVar[str] = "Generative replay"
    paper: ClassVar[str] = "Shin et al. 2017, arXiv:1705.08690; VAE: van de Ven et al. 2020"
    cost: ClassVar[str] = "a step on twice the rows, and one of the generator; copies of both networks"
    objectives: ClassVar[tuple[str, ...]] = ("classification",)
    needs_stream: ClassVar[bool] = True
    weighs: ClassVar[bool] = True

    generator: Literal["vae", "gan"] | Any = "vae"
    targets: Literal["hard", "soft"] = "hard"
    rows: int | None = None
    hidden: Sequence[int] | None = None
    latent: int = 100
    lr: float | None = None
    bounded: bool | None = None
    learnt: Tensor = memory(lambda: torch.zeros(0, dtype=torch.long))  # numbers of the tasks learnt, in order
    solver: dict[str, Tensor] = memory(dict)
    columns: int | None = memory(int)
    apprentice: Apprentice = memory(Apprentice)

    def __post_init__(self) -> None:
        one_of("targets", self.targets, ("hard", "soft"))
        whole_number("rows", self.rows)
        if min(self.latent, *(self.hidden or (1,))) < 1 or not (self.lr is None or self.lr > 0):
            raise ValueError(f"hidden is {self.hidden}, latent {self.latent}, lr {self.lr}; numbers must be above 0")
        own = self.generator if isinstance(self.generator, nn.Module) else None
        if own is None:
            one_of("generator", self.generator, GENERATORS)
        elif (self.hidden, self.latent, self.lr, self.bounded) != (None, 100, None, None):
            raise ValueError("hidden, latent, lr and bounded are of the built-in generators; yours brings its own")
        self.apprentice = Apprentice(own)
        self.lesson: tuple[Tensor, Tensor | None] | None = None

    @property
    def share(self) -> float:
        """r, the weight of new rows: 1 / number of tasks so far, the open one among them."""
        return 1 / (len(self.learnt) + 1)

    def begin(self, host: Host, task: Task | None) -> None:
        """Copies generator and model as they are, if they have learnt a task."""
        if task is None and self.targets == "soft":
            raise ValueError('soft targets cannot reach the loss of a loop of your own: use targets="hard" there')
        if len(self.learnt):
            self.apprentice.graduate()
            tensors = {**dict(host.model.named_parameters()), **dict(host.model.named_buffers())}
            self.solver = {name: tensor.detach().clone() for name, tensor in tensors.items()}
            self.columns = host.columns

    def replay(self, host: Host, batch: Batch) -> Batch:
        """Appends made rows, and weighs new and made ones."""
        fresh = batch.fresh
        new = _rows(batch.x if batch.origin is None else batch.select(fresh).x)
        self.lesson = (new, None) if len(new) else None
        if host.clock.taken == 0 and new.dtype == torch.uint8 and _rows(host.ready(batch).x).dtype == torch.uint8:
            raise ValueError("generative replay cannot tell how your loop converts uint8: give `replay` converted rows")
        if self.apprentice.scholar is None or not len(new):
            return batch
        made = self._made(host, self.rows or len(new), new)
        made.parts = batch.parts + 1
        made.origin = torch.full_like(made.task, made.parts)
        assert isinstance(made.x, Tensor)
        self.lesson = new, made.x
        both = len(new) + len(made)
        made.weight = torch.full((len(made),), (1 - self.share) * both / len(made), device=host.device)
        weight = torch.ones(len(batch), device=host.device) if batch.weight is None else batch.weight
        weight = torch.where(fresh, weight * (self.share * both / len(new)), weight)
        return Batch.cat([replace(batch, weight=weight), made])

    def after_step(self, host: Host, batch: Batch, outputs: Tensor) -> None:
        """The generator's own step."""
        if self.lesson is not None:
            self._teach(host, *self.lesson)
        self.lesson = None

    def end(self, host: Host, task: Task) -> None:
        """One more task is known. Consolidation without training teaches the generator here."""
        if host.clock.taken == 0:
            chance = host.generator(CHANCE, "cpu")
            for _ in range(ALONE[0]):
                index = torch.randint(len(task.train), (ALONE[1],), generator=chance)
                new = _rows(host.read(task.train, index).x)
                self._teach(host, new, None if self.apprentice.scholar is None else self._sampled(host, len(new), new))
        self.apprentice.check()
        self.learnt = torch.cat([self.learnt.to(host.device), torch.tensor([host.number], device=host.device)])

    def samples(self, host: Host, count: int, seed: int = 0) -> Tensor:
        """What the generator makes now, inputs as a model takes them [count, ...]: a function of `seed` alone."""
        if self.apprentice.network is None:
            raise ValueError("the generator has learnt nothing yet")
        return sample(self.apprentice.network, count, torch.Generator(host.device).manual_seed(seed))

    def _teach(self, host: Host, new: Tensor, made: Tensor | None) -> None:
        if self.apprentice.network is None:
            settings = {name: getattr(self, name) for name in ("latent", "lr", "bounded")}
            settings["hidden"] = self.hidden and list(self.hidden)
            self.apprentice.make(self.generator, new, settings, seeded(host.seed, CHANCE))
        lesson = [(1.0, _rows(convert(new, host.device)))]
        if made is not None:
            lesson = [(self.share, lesson[0][1]), (1 - self.share, _rows(convert(made, host.device)))]
        self.apprentice.step(lesson, host.generator(CHANCE))
        host.spend(0, other=sum(len(x) for _, x in lesson) * self.apprentice.work[0])

    def _sampled(self, host: Host, count: int, like: Tensor) -> Tensor:
        """Rows of the scholar's, raw."""
        assert self.apprentice.scholar is not None
        x = sample(self.apprentice.scholar, count, host.generator(CHANCE)).view(count, *like.shape[1:])
        return (x * 255).round().clamp(0, 255).to(like.dtype) if like.dtype == torch.uint8 else x.to(like.dtype)

    @torch.no_grad()
    def _made(self, host: Host, count: int, like: Tensor) -> Batch:
        """Rows of the scholar's, raw, with what its model says of them."""
        draws, x = host.generator(CHANCE), self._sampled(host, count, like)
        task = self.learnt[torch.randint(len(self.learnt), (count,), generator=draws, device=host.device)]
        made = Batch(x=x, y=None, task=task)
        asked = host.ready(made)
        with evaluating(host.model):
            scores = functional_call(host.model, self.solver, (asked.x,))[:, : self.columns].float()
        host.spend(forward=count, other=count * self.apprentice.work[1])
        allowed = None if asked.allowed is None else asked.allowed[:, : scores.shape[1]]
        answer = host.objective.answer(scores, allowed)
        made.target = answer if self.targets == "soft" else None
        return host.labelled(made, answer.argmax(1))


def _rows(x: Columns) -> Tensor:
    """Inputs that a generator can make, as they are."""
    if isinstance(x, Tensor) and (x.is_floating_point() or x.dtype == torch.uint8):
        return x
    kind = str(x.dtype) if isinstance(x, Tensor) else "named columns"
    raise ValueError(f"generative replay makes rows of floats and uint8 images, and these inputs are {kind}")
