"""Networks that make rows like those that they were trained on, for generative replay: a VAE and a Wasserstein GAN."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from perdure import optim
from perdure.models.head import own_seed
from perdure.models.modes import evaluating


class Generator(Protocol):
    """What generative replay asks of a module: `loss(x)` and `sample(n)`.

    `draws` is where chance comes from; a function that has no parameter of that name draws from torch's global
    generator. A module may bring `optimizer()`; otherwise it is trained by Adam, 1e-3.
    """

    def loss(self, x: Tensor, draws: torch.Generator) -> Tensor:
        """What to minimise on rows [n, ...], inputs as a model takes them: a scalar, a mean over the rows."""

    def sample(self, n: int, draws: torch.Generator) -> Tensor:
        """New rows [n, ...], as a model takes them."""


class VAE(nn.Module):
    """A variational autoencoder (Kingma & Welling 2014), sizes and scaling as van de Ven et al. 2020 use it.

    loss = E_q [-log p(x | z)] + KL(q(z | x) || N(0, 1)), summed over values and latents, a mean over the rows;
    KL = 1/2 sum(mean^2 + var - 1 - log var). `bounded` says that values lie in [0, 1] (images): p is then Bernoulli,
    and samples are its means. Otherwise p is a Gaussian with a variance learnt for each value, and samples are drawn
    from it. The encoder has layers of sizes `hidden`, the decoder the same backwards. Rows [n, *shape].
    """

    def __init__(
        self,
        shape: Sequence[int],
        hidden: Sequence[int] = (400, 400),
        latent: int = 100,
        bounded: bool = True,
        lr: float = 1e-3,
    ) -> None:
        super().__init__()
        self.shape, self.latent, self.bounded, self.lr = tuple(shape), latent, bounded, lr
        values = math.prod(self.shape)
        self.encoder = _layers([values, *hidden, 2 * latent], nn.ReLU)
        self.decoder = _layers([latent, *reversed(hidden), values], nn.ReLU)
        if not bounded:
            self.log_variance = nn.Parameter(torch.zeros(values))

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam, as for the model."""
        return torch.optim.Adam(self.parameters(), self.lr, fused=True)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance of q(z | x), each [n, latent]."""
        mean, log_variance = self.encoder(x.flatten(1)).chunk(2, dim=1)
        return mean, log_variance

    def surprise(self, x: Tensor, z: Tensor) -> Tensor:
        """-log p(x | z), [n]."""
        made, x = self.decoder(z), x.flatten(1)
        if self.bounded:
            return F.binary_cross_entropy_with_logits(made, x, reduction="none").sum(1)
        error = (x - made).square() * (-self.log_variance).exp()
        total: Tensor = 0.5 * (error + self.log_variance + math.log(2 * math.pi)).sum(1)
        return total

    def loss(self, x: Tensor, draws: torch.Generator) -> Tensor:
        """The negative evidence lower bound, with one draw of z a row."""
        mean, log_variance = self.encode(x)
        z = mean + (0.5 * log_variance).exp() * _normal(mean.shape, draws)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
        return (self.surprise(x, z) + divergence).mean()

    def sample(self, n: int, draws: torch.Generator) -> Tensor:
        """New rows [n, *shape]."""
        made: Tensor = self.decoder(_normal((n, self.latent), draws))
        if self.bounded:
            made = made.sigmoid()
        else:
            made = made + (0.5 * self.log_variance).exp() * _normal(made.shape, draws)
        return made.view(n, *self.shape)


class WGAN(nn.Module):
    """A Wasserstein GAN with gradient penalty (Gulrajani et al. 2017), the generator of Shin et al. 2017.

    critic     f(g(z)) - f(x) + strength * (|grad f(u x + (1 - u) g(z))| - 1)^2, u uniform in [0, 1], one a row
    generator  -f(g(z))

    `loss` is the sum of both, means over the rows, each with the other's weights held fixed: from one loss both
    networks learn at every step, by one Adam with the published betas 0 and 0.9. `bounded` says that values lie in
    [0, 1]: g then ends in a sigmoid. f has layers of sizes `hidden`, g the same backwards. Rows [n, *shape].

    Published are five steps of the critic for one of the generator, at 1e-4. In a budget of steps one for one and a
    higher rate learn more, and batch norm in g (f has none, as published) decides: generative replay on Split MNIST
    with 500 steps a task reached 0.28 without and 0.81 with it. There 1e-3 was too fast (0.65; 0.85 with 2e-4 or 4e-4),
    and a moving average of g's weights gained nothing that one could tell from chance.
    """

    def __init__(
        self,
        shape: Sequence[int],
        hidden: Sequence[int] = (256, 256),
        latent: int = 100,
        bounded: bool = True,
        lr: float = 4e-4,
        strength: float = 10.0,
    ) -> None:
        super().__init__()
        self.shape, self.latent, self.bounded, self.lr, self.strength = tuple(shape), latent, bounded, lr, strength
        values = math.prod(self.shape)
        self.decoder = _layers([latent, *reversed(hidden), values], nn.ReLU, norm=True)
        self.critic = _layers([values, *hidden, 1], lambda: nn.LeakyReLU(0.2))

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam, with the published betas."""
        return torch.optim.Adam(self.parameters(), self.lr, (0.0, 0.9), fused=True)

    def penalty(self, x: Tensor, made: Tensor, draws: torch.Generator) -> Tensor:
        """How far the critic's slope is from 1 on the line between a row and a made one, both [n, values]."""
        u = torch.rand(len(x), 1, generator=draws, device=x.device)
        between = (u * x + (1 - u) * made).requires_grad_()
        slope = torch.autograd.grad(self.critic(between).sum(), between, create_graph=True)[0]
        away: Tensor = slope.norm(dim=1) - 1
        return self.strength * away.square().mean()

    def loss(self, x: Tensor, draws: torch.Generator) -> Tensor:
        """The critic's loss and the generator's, of which each moves its own weights only."""
        x = x.flatten(1)
        made = self._made(max(2, len(x)), draws)[: len(x)]  # batch norm cannot learn from one row
        fixed = made.detach()
        real, fake = self.critic(torch.cat([x, fixed])).view(2, -1).mean(1)
        frozen = {name: p.detach() for name, p in self.critic.named_parameters()}
        fooled = functional_call(self.critic, frozen, (made,)).mean()
        total: Tensor = fake - real + self.penalty(x, fixed, draws) - fooled
        return total

    def sample(self, n: int, draws: torch.Generator) -> Tensor:
        """New rows [n, *shape]."""
        return self._made(n, draws).view(n, *self.shape)

    def _made(self, n: int, draws: torch.Generator) -> Tensor:
        made: Tensor = self.decoder(_normal((n, self.latent), draws))
        return made.sigmoid() if self.bounded else made


GENERATORS: dict[str, Callable[..., nn.Module]] = {"vae": VAE, "gan": WGAN}


class Apprentice:
    """A generator that learns, its optimizer, and the scholar's: its frozen copy from before the open task.

    A built-in one is made when the first rows show their shape, and again from its recipe, which is in the state. A
    module of the user's is `network` from the start.
    """

    def __init__(self, network: nn.Module | None = None) -> None:
        for function in () if network is None else ("loss", "sample"):
            if not callable(getattr(network, function, None)):
                raise ValueError(f"{type(network).__name__} has no {function}(...), which generative replay asks for")
        self.network, self.scholar = network, cast("nn.Module | None", None)
        self.recipe: dict[str, Any] | None = None
        self.optimizer: torch.optim.Optimizer | None = None
        self.work = [0, 0]  # multiply-adds a row, of learning and of making

    def make(self, name: str, rows: Tensor, settings: dict[str, Any], seed: int) -> None:
        """A built-in generator of rows like these, raw ones; None stands for its own settings."""
        given = {name: value for name, value in settings.items() if value is not None}
        shape = {"shape": list(rows.shape[1:]), "bounded": rows.dtype == torch.uint8}
        self.recipe = {"name": name, "settings": {**shape, **given}}
        self._build(self.recipe, seed)

    def settle(self, device: torch.device) -> torch.optim.Optimizer:
        """On the device, and with an optimizer."""
        network = self._known()
        network.to(device)
        if self.optimizer is None:
            bring = getattr(network, "optimizer", None)
            self.optimizer = optim.make("adam" if bring is None else bring(), network)
        return self.optimizer

    def step(self, lesson: Sequence[tuple[float, Tensor]], draws: torch.Generator) -> None:
        """One step of the optimizer on the losses of some rows, each times its share; inputs as a model takes them."""
        first, network = lesson[0][1], self._known()
        optimizer = self.settle(first.device)
        if not any(self.work):
            self.work = _multiply_adds(network, first[:2])
        loss = torch.stack([share * _drawing(network.loss, x, draws) for share, x in lesson]).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    def check(self) -> None:
        """Raises FloatingPointError for weights that are not finite; waits for the device."""
        if not all(bool(p.isfinite().all()) for p in self._known().parameters()):
            raise FloatingPointError("the generator's weights became NaN or infinite: lower its learning rate")

    def graduate(self) -> nn.Module:
        """The scholar's is the one that learns, as it is now."""
        self.scholar = copy.deepcopy(self._known())
        return self.scholar

    def state(self) -> dict[str, Any]:
        """Weights, moments and the scholar's weights."""
        if self.network is None:
            return {}
        return {
            "recipe": self.recipe,
            "work": list(self.work),
            "weights": dict(self.network.state_dict()),
            "optimizer": None if self.optimizer is None else optim.state(self.optimizer, self.network),
            "scholar": None if self.scholar is None else dict(self.scholar.state_dict()),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Puts back what `state` gave."""
        self.optimizer = self.scholar = None
        self.work = list(state.get("work", (0, 0)))
        if not state:
            self.network = self.recipe = None
            return
        if state["recipe"] is not None:
            self.recipe = state["recipe"]
            self._build(state["recipe"], seed=0)
        network = self._known()
        network.load_state_dict(state["weights"])
        device = next((t.device for t in state["weights"].values()), torch.device("cpu"))
        if state["optimizer"] is not None:
            optim.load_state(self.settle(device), network, state["optimizer"])
        if state["scholar"] is not None:
            self.graduate().load_state_dict(state["scholar"])

    def _build(self, recipe: dict[str, Any], seed: int) -> None:
        with own_seed(seed):
            self.network = GENERATORS[recipe["name"]](**recipe["settings"])

    def _known(self) -> nn.Module:
        assert self.network is not None, "no generator was made yet"
        return self.network


@torch.no_grad()
def sample(network: nn.Module, n: int, draws: torch.Generator) -> Tensor:
    """New rows [n, ...] of a generator in eval mode."""
    with evaluating(network):
        return _drawing(network.sample, n, draws)


class _Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Multiply-adds. (torch's FlopCounterMode hangs hooks on modules, and a gradient penalty cannot run with them.)"""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        count = flop_registry.get(func.overloadpacket)
        self.total += count(*args, **(kwargs or {}), out_val=found) // 2 if count else 0
        return found


def _multiply_adds(network: nn.Module, x: Tensor) -> list[int]:
    """A row's, of a step on rows like these and of making one."""
    network, draws = copy.deepcopy(network), torch.Generator(x.device).manual_seed(0)
    with _Count() as learning:  # type: ignore[no-untyped-call]
        _drawing(network.loss, x, draws).backward()  # type: ignore[no-untyped-call]
    with _Count() as making:  # type: ignore[no-untyped-call]
        sample(network, len(x), draws)
    return [count.total // len(x) for count in (learning, making)]


def _drawing(function: Any, argument: Tensor | int, draws: torch.Generator) -> Tensor:
    """Calls a generator's function, with the source of chance where it takes one."""
    takes = "draws" in inspect.signature(function).parameters
    found: Tensor = function(argument, draws=draws) if takes else function(argument)
    return found


def _layers(sizes: Sequence[int], activation: Callable[[], nn.Module], norm: bool = False) -> nn.Sequential:
    """Linear layers of these sizes, each but the last with its activation, and batch norm before that."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), *([nn.BatchNorm1d(outputs)] if norm else []), activation()]
    return nn.Sequential(*layers[: -2 if norm else -1])


def _normal(shape: Sequence[int], draws: torch.Generator) -> Tensor:
    return torch.randn(tuple(shape), generator=draws, device=draws.device)
