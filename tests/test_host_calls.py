"""The calls of a method in somebody else's loop: their order, what is refused, and what a file keeps."""

import copy
from typing import Any

import pytest
import torch
from conftest import small_stream
from test_host import adam, batches_of, criterion, network, rows_of
from trees import differences

from perdure import checkpoint, methods
from perdure.method import Method

# ---- calls out of order, and what is refused ----

CALLS = {
    "begin": lambda memory, model: memory.begin(),
    "replay": lambda memory, model: memory.replay(torch.randn(4, 12), torch.arange(4)),
    "penalty": lambda memory, model: memory.penalty(model(torch.zeros(4, 12))),
    "project": lambda memory, model: memory.project(),
    "after_step": lambda memory, model: memory.after_step(torch.zeros(4, 6)),
    "next_epoch": lambda memory, model: memory.next_epoch(),
    "consolidate": lambda memory, model: memory.consolidate((torch.randn(4, 12), torch.arange(4))),
}
LEGAL = {
    (): ["begin"],
    ("begin",): ["replay", "consolidate"],
    ("begin", "replay"): ["penalty"],
    ("begin", "replay", "penalty"): ["project"],
    ("begin", "replay", "penalty", "project"): ["after_step"],
    ("begin", "replay", "penalty", "project", "after_step"): ["replay", "next_epoch", "consolidate"],
    ("begin", "replay", "penalty", "project", "after_step", "next_epoch"): ["replay", "consolidate"],
    ("begin", "consolidate"): ["begin"],
}


@pytest.mark.parametrize("so_far", LEGAL, ids=lambda calls: calls[-1] if calls else "new")
def test_a_call_out_of_order_is_refused_by_name_and_changes_nothing(so_far: tuple[str, ...]) -> None:
    for call in CALLS:
        model = network()
        memory = methods.attach(methods.LwF(), model, adam(model))
        for earlier in so_far:
            CALLS[earlier](memory, model)
        if call not in LEGAL[so_far]:
            with pytest.raises(
                RuntimeError, match=rf"memory\.{call}\(\) is out of order: the next call is .*\w+"
            ) as raised:
                CALLS[call](memory, model)
            assert all(name in str(raised.value) for name in LEGAL[so_far])
            call = LEGAL[so_far][0]
        CALLS[call](memory, model)


@pytest.mark.parametrize("hook", ["fit", "task_loss", "predict"])
def test_a_method_that_must_own_the_loop_is_refused_by_name(hook: str) -> None:
    kind = type("Owner", (Method,), {hook: lambda self, *rest: getattr(Method, hook)(self, *rest), "name": "owner"})
    model = network()
    for method in (kind(), methods.Replay(5) + kind()):
        with pytest.raises(ValueError, match=f"owner owns `{hook}`, so it needs our loop"):
            methods.attach(method, model, adam(model))
    with pytest.raises(ValueError, match="joint owns `fit`"):
        methods.attach(methods.Joint(), model, adam(model))


def test_what_cannot_work_is_refused_at_once() -> None:
    model = network()
    with pytest.raises(ValueError, match=r"4 of the optimizer's parameters are not the model's"):
        methods.attach(methods.LwF(), model, adam(network()))
    with pytest.raises(ValueError, match="replay works with classification, not 'regression'"):
        methods.attach(methods.Replay(9, policy="ring"), model, adam(model), objective="regression")
    with pytest.raises(ValueError, match="objective"):
        methods.attach(methods.LwF(), model, adam(model), objective="clasification")
    memory = methods.attach(methods.LwF(), model, adam(model))
    memory.begin()
    with pytest.raises(ValueError, match="x and y have different numbers of rows"):
        memory.replay(torch.zeros(3, 12), torch.zeros(4, dtype=torch.long))
    x, _ = memory.replay(torch.zeros(4, 12), torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match="outputs has 3 rows, the batch from replay 4"):
        memory.penalty(model(x[:3]))


# ---- saved and loaded ----


@pytest.mark.parametrize("data_set", [0, 1, 2])
@pytest.mark.parametrize("batch", [0, 2])
def test_saved_in_the_middle_and_loaded_equals_never_stopped(data_set: int, batch: int, tmp_path: Any) -> None:
    def make() -> Method:
        return (
            methods.Replay(15, policy="balanced") + methods.LwF() + methods.EWC(strength=1.0, fisher="sampled", rows=20)
        )

    def run(stops: bool) -> dict[str, Any]:
        model = network(norm=True)
        optimizer = adam(model)
        memory = methods.attach(make(), model, optimizer, seed=7)
        for number, task in enumerate(small_stream(rows=40)):
            memory.begin()
            for step, (x, y) in enumerate(batches_of(task)):
                if stops and (number, step) == (data_set, batch):
                    memory.save(tmp_path / "memory")
                    model, old = copy.deepcopy(model), optimizer
                    optimizer = adam(model)
                    optimizer.load_state_dict(old.state_dict())
                    memory = methods.attach(make(), model, optimizer)  # another seed: the file knows better
                    memory.load(tmp_path / "memory")
                x, y = memory.replay(x, y)
                out = model(x)
                loss = criterion(out, y) + memory.penalty(out)
                optimizer.zero_grad()
                loss.backward()
                memory.project()
                optimizer.step()
                memory.after_step(out)
            memory.consolidate(batches_of(task))
        return {
            "weights": dict(model.state_dict()), "moments": optimizer.state_dict(), "memory": memory.method.state(),
            "chance": memory.chance(), "clock": vars(memory.clock), "columns": memory.columns,
        }  # fmt: skip

    whole, broken = run(False), run(True)
    assert differences(whole, broken) == []
    assert len(whole["moments"]["state"]) == 6


def test_a_memory_of_another_method_or_other_settings_is_refused(tmp_path: Any) -> None:
    def attached(method: Method) -> Any:
        model = network()
        return methods.attach(method, model, adam(model))

    memory = attached(methods.EWC(strength=2.0))
    memory.begin()
    memory.consolidate(rows_of(small_stream(rows=20)[0]))
    memory.save(tmp_path / "memory")
    for other in (methods.EWC(strength=3.0), methods.MAS(), methods.EWC(strength=2.0) + methods.LwF()):
        with pytest.raises(checkpoint.CheckpointError, match="is of EWC"):
            attached(other).load(tmp_path / "memory")
    again = attached(methods.EWC(strength=2.0))
    again.load(tmp_path / "memory")
    assert differences(memory.method.state(), again.method.state()) == []
