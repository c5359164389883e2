"""Methods in the Trainer of Transformers, on a tiny BERT made from its configuration and padded rows."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")

from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments  # noqa: E402

from perdure import methods  # noqa: E402
from perdure.checkpoint import CheckpointError  # noqa: E402
from perdure.integrations.features import Codec  # noqa: E402
from perdure.integrations.transformers import PerdureTrainer  # noqa: E402
from perdure.method import Method  # noqa: E402

Rows = list[dict[str, Any]]
pytestmark = pytest.mark.filterwarnings("ignore:importances go on by one backward")


def network(columns: int = 4, dropout: float = 0.0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return BertForSequenceClassification(BertConfig(
            vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            max_position_embeddings=16, num_labels=columns, hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        ))  # fmt: skip


def sentences(labels: tuple[int, ...], rows: int = 32, seed: int = 0) -> Rows:
    """Words that begin with two of the label's own; three to eight of them."""
    draws = torch.Generator().manual_seed(seed)
    found = []
    for row in range(rows):
        label = labels[row % len(labels)]
        words = torch.randint(8, 30, (int(torch.randint(3, 9, (1,), generator=draws)),), generator=draws).tolist()
        found.append({"input_ids": [label + 1, label + 1, *words[2:]], "labels": label})
    return found


def collate(rows: Rows) -> dict[str, Tensor]:
    """Pads to the longest row of the batch."""
    longest = max(len(row["input_ids"]) for row in rows)
    ids = [row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in rows]
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": (torch.tensor(ids) > 0).long(),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }


def settings(folder: Path, **changed: Any) -> TrainingArguments:
    given = {
        "num_train_epochs": 2, "per_device_train_batch_size": 8, "learning_rate": 5e-3, "report_to": "none",
        "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True, "use_cpu": True, "seed": 3,
    }  # fmt: skip
    return TrainingArguments(str(folder), **{**given, **changed})


def trainer_of(folder: Path, method: Method, rows: Rows | None = None, model: Any = None, **changed: Any) -> Any:
    model = network() if model is None else model
    return PerdureTrainer(model, settings(folder, **changed), collate, rows, method=method, rows=16)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def learn(trainer: Any, *data: Rows) -> nn.Module:
    for rows in data:
        trainer.train_dataset = rows
        trainer.train()
    return trainer.model


OLD, NEW = sentences((0, 1), seed=1), sentences((2, 3), rows=28, seed=2)


# ---- it is the same training ----


def test_without_a_method_the_trainer_trains_as_it_always_did(tmp_path: Path) -> None:
    plain = network()
    Trainer(plain, settings(tmp_path), data_collator=collate, train_dataset=OLD).train()
    ours = learn(trainer_of(tmp_path, methods.Finetune()), OLD)
    for name, p in ours.named_parameters():
        torch.testing.assert_close(p, plain.get_parameter(name), atol=1e-6, rtol=0)


METHODS: dict[str, Callable[[], Method]] = {
    "none": methods.Finetune,
    "lwf": lambda: methods.LwF(strength=3.0),
    "ewc": lambda: methods.EWC(strength=1.0, fisher="empirical", rows=8),
    "replay+lwf": lambda: methods.Replay(20) + methods.LwF(),
    "der": lambda: methods.DER(20),
}


@pytest.mark.parametrize("name", METHODS)
def test_so_many_micro_batches_are_one_batch_of_so_many_times_the_rows(tmp_path: Path, name: str) -> None:
    """The last step has fewer rows than the others: 28 are not a multiple of 8."""
    found = []
    for size, accumulate in ((8, 1), (2, 4)):
        trainer = trainer_of(
            tmp_path, METHODS[name](), per_device_train_batch_size=size, gradient_accumulation_steps=accumulate,
            optim="sgd", learning_rate=0.1,
        )  # fmt: skip
        found.append(weights(learn(trainer, OLD, NEW)))
    for key, p in found[0].items():
        torch.testing.assert_close(found[1][key], p, atol=1e-6, rtol=0)


def test_a_penalty_that_counts_once_a_micro_batch_would_be_seen(tmp_path: Path) -> None:
    """The mutant: the Trainer believes the loss to be divided already, as it does of BERT's own."""
    assert Trainer(network(), settings(tmp_path), data_collator=collate).model_accepts_loss_kwargs
    found = []
    for believed in (None, True):
        trainer = trainer_of(
            tmp_path, methods.LwF(3.0), per_device_train_batch_size=2, gradient_accumulation_steps=4, optim="sgd",
            learning_rate=0.1,
        )  # fmt: skip
        trainer.loss_is_scaled_for_ga = believed
        found.append(weights(learn(trainer, OLD, NEW)))
    assert apart(*found) > 1e-3


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max(float((one[key] - other[key]).abs().max()) for key in one)


def scaled(trainer: Any) -> None:
    """A scaler for the CPU, which the Trainer itself does not offer."""
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)
    trainer.accelerator.native_amp = True
    trainer.accelerator.state._mixed_precision = "fp16"


@pytest.fixture
def precision() -> Iterator[None]:
    """What accelerate keeps for the whole process is put back."""
    state = transformers.trainer.Accelerator(cpu=True).state
    before = state._mixed_precision
    yield
    state._mixed_precision = before


@pytest.mark.parametrize("clip", [0.05, 0.0])
@pytest.mark.usefixtures("precision")
def test_a_gradient_scaler_changes_nothing(tmp_path: Path, clip: float, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for scale in (False, True):
        trainer = trainer_of(tmp_path, methods.EWC(5.0, fisher="empirical", rows=8), max_grad_norm=clip, optim="sgd")
        if scale:
            scaled(trainer)
            monkeypatch.setattr(type(trainer.accelerator), "autocast", lambda self, **_: contextlib.nullcontext())
            monkeypatch.setattr(torch, "autocast", lambda *given, **named: lambda function: function)
        found.append(weights(learn(trainer, OLD, NEW)))
        assert not scale or trainer.accelerator.scaler._scale is not None  # it was used
    free = learn(trainer_of(tmp_path, methods.Finetune(), max_grad_norm=clip, optim="sgd"), OLD, NEW)
    assert apart(found[0], weights(free)) > 1e-4
    for key, p in found[0].items():
        torch.testing.assert_close(found[1][key], p, atol=1e-6, rtol=0)


def test_project_runs_once_a_step_before_clipping(tmp_path: Path) -> None:
    class Loud(methods.Method):
        calls = 0

        def project(self, host: Any, batch: Any) -> None:
            self.calls += 1
            for p in host.params().values():
                if p.grad is not None:
                    p.grad.fill_(1e4)

    method, norms = Loud(), []
    trainer = trainer_of(
        tmp_path,
        method,
        OLD,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_grad_norm=0.5,
        optim="sgd",
    )
    step = torch.optim.SGD.step

    def looking(self: Any, closure: Any = None) -> Any:
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.stack([grad.norm() for grad in grads]).norm()))
        return step(self, closure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", looking)
        trainer.train()
    assert method.calls == len(norms) == 8
    assert all(abs(norm - 0.5) < 1e-3 for norm in norms)  # what `project` made was clipped


# ---- rows of the past ----


def test_replayed_rows_go_through_the_collator_with_the_new_ones_and_are_padded_anew(tmp_path: Path) -> None:
    seen: list[Rows] = []

    def looking(rows: Rows) -> dict[str, Tensor]:
        seen.append(copy.deepcopy(rows))
        return collate(rows)

    trainer = PerdureTrainer(network(), settings(tmp_path), looking, method=methods.Replay(100))
    learn(trainer, OLD)
    assert len(trainer.memory.method.store) == len(OLD)
    seen.clear()
    learn(trainer, NEW)
    batches = [rows for rows in seen if len(rows) in (16, 8)]
    assert len(batches) == 2 * 4
    for rows in batches:
        half = len(rows) // 2
        assert all(row in NEW for row in rows[:half]) and all(row in OLD for row in rows[half:])  # lengths as they were


def test_lwf_and_replay_keep_what_a_padded_transformer_knew(tmp_path: Path) -> None:
    kept = {}
    for name, method in (("plain", methods.Finetune()), ("ours", methods.LwF() + methods.Replay(100))):
        model = learn(trainer_of(tmp_path, method, num_train_epochs=6), OLD, NEW).eval()
        batch = collate(sentences((0, 1), 100, seed=9))
        labels = batch.pop("labels")
        kept[name] = float((model(**batch).logits.argmax(1) == labels).float().mean())
    assert kept["plain"] < 0.2 and kept["ours"] > 0.9


@pytest.mark.parametrize("make", [list, torch.tensor, lambda v: torch.tensor(v).numpy()])
def test_features_come_back_as_they_went_in(make: Callable[[Any], Any]) -> None:
    rows = [{"ids": make([1, 2, 3]), "score": 0.5, "label": 1}, {"ids": make([4]), "score": 1.5, "label": 0}]
    codec = Codec(dense=False)
    x, y = codec.encode(rows)
    assert x["ids"].shape == (2, 3) and y.tolist() == [1, 0]
    for back, row in zip(codec.decode(x, y), rows, strict=True):
        assert type(back["ids"]) is type(row["ids"]) and list(back["ids"]) == list(row["ids"])
        assert back["score"] == row["score"] and back["label"] == row["label"]


@pytest.mark.parametrize(
    ("row", "error", "words"),
    [
        ({"text": "good", "labels": 1}, TypeError, "'text' holds a str"),
        ({"input_ids": [1, 2]}, ValueError, "needs a label"),
        ({"input_ids": [1, 2], "labels": [1, 2]}, ValueError, "one whole number a row"),
        ([1, 2], TypeError, "a dict of named values"),
    ],
)
def test_rows_that_a_memory_cannot_keep_are_refused(row: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Codec(dense=False).encode([row])


# ---- what trains ----


def test_importances_are_of_what_lora_trains_only(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"], modules_to_save=["classifier"])
    method = methods.EWC(5.0, fisher="empirical", rows=8) + methods.Replay(20)
    trainer = trainer_of(tmp_path, method, model=peft.get_peft_model(network(), config))
    before = weights(trainer.model)
    model = learn(trainer, OLD, NEW)
    trained = {f"network.{name}" for name, p in model.named_parameters() if p.requires_grad}
    importance = method.parts[0].importance
    assert set(importance) == trained and any("lora" in name for name in trained)
    assert all(float(value.abs().sum()) > 0 for name, value in importance.items() if "lora_B" in name)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == (not p.requires_grad)


# ---- checkpoints ----


def test_a_resumed_run_ends_as_one_that_never_stopped(tmp_path: Path) -> None:
    make = lambda: methods.Replay(10) + methods.LwF() + methods.SI()  # noqa: E731
    whole = trainer_of(tmp_path / "a", make(), save_strategy="steps", save_steps=5)
    learn(whole, OLD, NEW)
    again = trainer_of(tmp_path / "b", make(), NEW)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-5"))
    for name, p in again.model.named_parameters():
        torch.testing.assert_close(p, whole.model.get_parameter(name), atol=1e-6, rtol=0)
    first, second = (trainer.memory.method.parts[0].store.all() for trainer in (whole, again))
    assert torch.equal(first["y"], second["y"]) and torch.equal(first["x"]["input_ids"], second["x"]["input_ids"])
    assert again.memory.clock == whole.memory.clock


def test_next_month_in_another_process(tmp_path: Path) -> None:
    first = trainer_of(tmp_path, methods.Replay(100))
    learn(first, OLD)
    first.save_model(str(tmp_path / "model"))
    model = BertForSequenceClassification.from_pretrained(tmp_path / "model")
    second = trainer_of(tmp_path, methods.Replay(100), model=model)
    second.load_memory(tmp_path / "model")
    learn(second, NEW)
    assert len(second.memory.method.store) == len(OLD) + len(NEW) and second.memory.clock.task == 2
    with pytest.raises(CheckpointError, match="this is Replay"):
        trainer_of(tmp_path, methods.Replay(7)).load_memory(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"has no memory\.perdure"):
        second.load_memory(tmp_path)


# ---- what is refused ----


@pytest.mark.parametrize("method", [methods.Joint(), methods.ErACE(), methods.SLDA()], ids=lambda m: m.name)
def test_a_method_that_needs_our_loop_is_refused_by_name(tmp_path: Path, method: Method) -> None:
    with pytest.raises(ValueError, match=rf"^{method.name} owns `.*use perdure\.Learner"):
        trainer_of(tmp_path, method)


def test_an_optimizer_with_closures_is_refused_with_a_reason(tmp_path: Path) -> None:
    model = network()
    optimizer = torch.optim.LBFGS(model.parameters())
    with pytest.raises(ValueError, match="LBFGS runs its closure several times a step"):
        PerdureTrainer(model, settings(tmp_path), collate, OLD, optimizers=(optimizer, None), method=methods.LwF())


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [("world_size", 2, "2 processes"), ("n_gpu", 2, "2 devices")],
)
def test_several_processes_are_refused(tmp_path: Path, name: str, value: int, words: str) -> None:
    trainer = trainer_of(tmp_path, methods.LwF(), OLD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingArguments, name, property(lambda self: value))
        with pytest.raises(RuntimeError, match=f"one process on one device for now: .*{words}"):
            trainer.train()


def test_what_else_cannot_work_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="label smoothing"):
        trainer_of(tmp_path, methods.DER(20), label_smoothing_factor=0.1)
    with pytest.raises(ValueError, match="auto_find_batch_size"):
        trainer_of(tmp_path, methods.LwF(), auto_find_batch_size=True)
    with pytest.raises(ValueError, match="__len__ and __getitem__"):
        learn(trainer_of(tmp_path, methods.LwF()), iter(OLD))  # type: ignore[arg-type]
