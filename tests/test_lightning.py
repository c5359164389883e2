"""Methods in PyTorch Lightning."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import small_stream
from test_host import network, rows_of
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

pl = pytest.importorskip("pytorch_lightning")

from pytorch_lightning.callbacks import ModelCheckpoint  # noqa: E402
from pytorch_lightning.plugins.precision import MixedPrecision  # noqa: E402

from perdure import methods  # noqa: E402
from perdure.integrations.lightning import PerdureCallback  # noqa: E402
from perdure.method import Method  # noqa: E402

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore::FutureWarning")]
STREAM = small_stream(rows=48)


class Module(pl.LightningModule):
    def __init__(self, memory: PerdureCallback | None, make: Callable[[Any], Any] | None = None) -> None:
        super().__init__()
        self.net, self.memory, self.make = network(), memory, make or (lambda p: torch.optim.SGD(p, lr=0.1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, index: int) -> Tensor:
        if self.memory is None:
            return F.cross_entropy(self(batch[0]), batch[1])
        x, y = self.memory.replay(*batch)
        scores = self(x)
        if self.memory.host.method.weighs:
            losses = F.cross_entropy(scores, y, reduction="none")
            return (losses * self.memory.weight).mean() + self.memory.penalty(scores)
        return F.cross_entropy(scores, y) + self.memory.penalty(scores)

    def configure_optimizers(self) -> Any:
        return self.make(self.parameters())


def trainer(memory: Any = None, **changed: Any) -> Any:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    given = {"max_epochs": 2, "enable_checkpointing": False, **quiet, **changed}
    return pl.Trainer(callbacks=[memory] if memory else [], **given)


def loader(task: Any, size: int = 12) -> Any:
    return DataLoader(TensorDataset(*rows_of(task)), batch_size=size)


def learnt(method: Method | None, size: int = 12, make: Any = None, tasks: int = 2, **changed: Any) -> Any:
    memory = PerdureCallback(method) if method is not None else None
    module = Module(memory, make)
    for task in STREAM[:tasks]:
        trainer(memory, **changed).fit(module, loader(task, size))
    return module


def same(one: nn.Module, other: nn.Module, atol: float = 1e-6) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.allclose(p, q, atol=atol, rtol=0) for p, q in pairs)


METHODS: dict[str, Callable[[], Method]] = {
    "none": methods.Finetune,
    "lwf": lambda: methods.LwF(3.0),
    "ewc": lambda: methods.EWC(1.0, rows=16),
    "si": lambda: methods.SI(1.0),
}


@pytest.mark.parametrize("name", METHODS)
def test_so_many_micro_batches_are_one_batch_of_so_many_times_the_rows(name: str) -> None:
    whole = learnt(METHODS[name]())
    assert same(whole, learnt(METHODS[name](), size=3, accumulate_grad_batches=4))
    assert same(whole, learnt(None)) == (name == "none")


def test_the_callback_does_what_the_plain_loop_does() -> None:
    model, method = network(), methods.Replay(20) + methods.LwF() + methods.EWC(1.0, rows=16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    memory = methods.attach(method, model, optimizer)
    for task in STREAM[:2]:
        memory.begin()
        for _ in range(2):
            for x, y in loader(task):
                x, y = memory.replay(x, y)
                out = model(x)
                loss = F.cross_entropy(out, y) + memory.penalty(out)
                optimizer.zero_grad()
                loss.backward()
                memory.project()
                optimizer.step()
                memory.after_step(out)
            memory.next_epoch()
        memory.consolidate(loader(task))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        memory.optimizer = optimizer
    assert same(learnt(methods.Replay(20) + methods.LwF() + methods.EWC(1.0, rows=16)), model)


def test_every_row_of_every_micro_batch_is_offered_once() -> None:
    method = methods.DER(1000)
    learnt(method, size=3, accumulate_grad_batches=4)
    kept = method.store.all()
    x = torch.cat([rows_of(task)[0] for task in STREAM[:2]])
    assert method.store.seen == len(kept["x"]) == len(x)
    assert all((kept["x"] == row).all(1).any() for row in x)
    assert not kept["scores"].isnan().any()


@pytest.mark.parametrize("clip", [0.05, None])
def test_a_gradient_scaler_changes_nothing(clip: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MixedPrecision, "autocast_context_manager", lambda self: torch.autocast("cpu", enabled=False))
    scalers: list[Any] = []

    def plugin(scale: bool) -> dict[str, Any]:
        if not scale:
            return {}
        scalers.append(torch.amp.GradScaler("cpu", init_scale=65536.0))
        return {"plugins": [MixedPrecision("16-mixed", "cpu", scalers[-1])]}

    found = []
    for scale in (False, True):
        memory = PerdureCallback(methods.EWC(5.0, rows=16))
        module = Module(memory)
        for task in STREAM[:2]:
            trainer(memory, gradient_clip_val=clip, **plugin(scale)).fit(module, loader(task))
        found.append(module)
    assert all(scaler._scale is not None for scaler in scalers) and len(scalers) == 2
    assert same(*found)
    assert not same(found[0], learnt(methods.EWC(0.0, rows=16), gradient_clip_val=clip), atol=1e-4)


def test_a_step_that_the_scaler_skips_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MixedPrecision, "autocast_context_manager", lambda self: torch.autocast("cpu", enabled=False))

    class Overflowing(torch.amp.GradScaler):
        left = 2

        def scale(self, outputs: Any) -> Any:
            self.left -= 1
            return super().scale(outputs) * (float("inf") if self.left >= 0 else 1.0)

    scaler = Overflowing("cpu", init_scale=65536.0)
    method = methods.SI(1.0) + methods.Replay(1000)
    memory = PerdureCallback(method)
    module = Module(memory)
    trainer(memory, plugins=[MixedPrecision("16-mixed", "cpu", scaler)]).fit(module, loader(STREAM[0]))
    assert scaler.get_scale() == 65536.0 / 4 and memory.host.clock.step == 8 - 2
    assert all(torch.isfinite(value).all() for value in method.parts[0].importance.values())


def test_project_comes_before_clipping_and_once_a_step() -> None:
    class Loud(methods.Method):
        calls = 0

        def project(self, host: Any, batch: Any) -> None:
            self.calls += 1
            for p in host.params().values():
                p.grad.fill_(1e4)

    norms = []

    class Watched(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            result = super().step(closure)
            grads = [p.grad.norm() for group in self.param_groups for p in group["params"]]
            norms.append(float(torch.stack(grads).norm()))
            return result

    method = Loud()
    learnt(method, 4, lambda p: Watched(p, lr=0.1), 1, gradient_clip_val=0.5, accumulate_grad_batches=3, max_epochs=1)
    assert method.calls == len(norms) == 4 and all(abs(norm - 0.5) < 1e-3 for norm in norms)


def test_a_resumed_run_ends_as_one_that_never_stopped(tmp_path: Path) -> None:
    make = lambda: methods.Replay(20) + methods.SI(1.0) + methods.LwF()  # noqa: E731
    memory = PerdureCallback(make())
    whole = Module(memory)
    trainer(memory).fit(whole, loader(STREAM[0]))
    fit = trainer(memory, enable_checkpointing=True)
    fit.callbacks.append(ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1))
    fit.fit(whole, loader(STREAM[1]))
    again = PerdureCallback(make())
    other = Module(again)
    trainer(again).fit(other, loader(STREAM[1]), ckpt_path=str(tmp_path / "epoch=0.ckpt"))
    assert same(whole, other, atol=0)
    assert again.host.clock == memory.host.clock and again.host.clock.task == 2
    for first, second in zip(memory.host.method.parts, again.host.method.parts, strict=True):
        assert str(first.state()) == str(second.state())


@pytest.mark.parametrize("method", [methods.Joint(), methods.ErACE(), methods.SLDA()], ids=lambda m: m.name)
def test_a_method_that_needs_our_loop_is_refused_by_name(method: Method) -> None:
    with pytest.raises(ValueError, match=rf"^{method.name} owns `.*use perdure\.Learner"):
        PerdureCallback(method)


def test_an_optimizer_with_closures_is_refused_with_a_reason() -> None:
    with pytest.raises(ValueError, match="LBFGS runs its closure several times a step"):
        learnt(methods.LwF(), make=torch.optim.LBFGS)


def test_optimizing_by_hand_is_refused() -> None:
    memory = PerdureCallback(methods.LwF())
    module = Module(memory)
    module.automatic_optimization = False
    with pytest.raises(ValueError, match=r"use perdure\.methods\.attach"):
        trainer(memory).fit(module, loader(STREAM[0]))


def test_a_fused_optimizer_under_a_scaler_is_refused() -> None:
    memory = PerdureCallback(methods.LwF())
    plugins = [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))]
    with pytest.raises(ValueError, match="pass fused=False"):
        trainer(memory, plugins=plugins).fit(
            Module(memory, lambda p: torch.optim.Adam(p, fused=True)), loader(STREAM[0])
        )


def test_a_step_without_the_calls_is_refused() -> None:
    memory = PerdureCallback(methods.LwF())
    with pytest.raises(RuntimeError, match="has to call memory"):
        trainer(memory).fit(Module(None), loader(STREAM[0]))


def test_several_processes_are_refused() -> None:
    memory = PerdureCallback(methods.LwF())
    fit, module = trainer(memory), Module(memory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(fit), "world_size", property(lambda self: 2))
        with pytest.raises(RuntimeError, match="one process on one device for now"):
            memory.on_train_start(fit, module)
