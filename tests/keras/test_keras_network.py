"""A Keras model as a torch module: importances, modes, chance, state; and what is refused."""

import json
import os
import subprocess
import sys
import warnings
import zipfile

import keras
import pytest
import torch
from keras import layers
from keras.src.backend.common import global_state
from tensorflow_beside import digits

from perdure import Callback, Learner, Task, importance, methods, models
from perdure.integrations import keras as bridge

pytest_plugins = ["tensorflow_beside"]
pytestmark = pytest.mark.keras
torch.set_num_threads(1)


def drawn(seed=3):
    return torch.Generator().manual_seed(seed)


def convolutional(classes=4, noise=False, **dropout):
    keras.utils.set_random_seed(11)
    extra = [layers.GaussianNoise(0.2)] if noise else []
    return keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(6, 3, activation="relu", name="first"),
            layers.BatchNormalization(),
            layers.MaxPooling2D(),
            *extra,
            layers.Flatten(),
            layers.Dropout(0.5, **dropout),
            layers.Dense(classes, activation="softmax"),
        ]
    )


def dense():
    keras.utils.set_random_seed(12)
    hidden = [layers.Dense(8, activation="relu"), layers.Dropout(0.4), layers.Dense(3)]
    return keras.Sequential([keras.Input((5,)), *hidden, layers.Activation("softmax")])


def text():
    keras.utils.set_random_seed(13)
    x = keras.Input((None,), dtype="int32")
    hidden = layers.GlobalAveragePooling1D()(layers.Embedding(20, 4, mask_zero=True)(x))
    return keras.Model(x, layers.Dense(3)(hidden))


def tied():
    """One layer called twice."""
    keras.utils.set_random_seed(14)
    x, twice = keras.Input((5,)), layers.Dense(5, activation="tanh")
    return keras.Model(x, layers.Dense(3)(twice(twice(x))))


def recurrent():
    keras.utils.set_random_seed(15)
    x = keras.Input((6, 3))
    return keras.Model(x, layers.Dense(2)(layers.LSTM(4)(x)))


KINDS = {"convolutional": convolutional, "dense": dense, "text": text, "tied": tied, "recurrent": recurrent}


def inputs(kind, rows=12):
    shape = {"convolutional": (8, 8, 2), "dense": (5,), "tied": (5,), "recurrent": (6, 3)}.get(kind)
    if shape is None:
        tokens = torch.randint(0, 20, (rows, 7), generator=drawn())
        tokens[:, 0] = 3
        return tokens
    return torch.randn(rows, *shape, generator=drawn())


def is_softmax(model):
    return getattr(model.layers[-1], "activation", None) is keras.activations.softmax


# ---- importances ----


@pytest.mark.parametrize("kind", KINDS)
def test_exact_fisher_equals_a_loop_over_the_keras_model_itself(kind):
    """The oracle knows nothing of Perdure: a backward of Keras for each row and label, squared, weighed, averaged."""
    model, x = KINDS[kind](), inputs(kind)
    variables = model.trainable_variables
    expected = [torch.zeros_like(v.value) for v in variables]
    for row in x.split(1):
        answers = model(row, training=False)[0]
        log = answers.log() if is_softmax(model) else answers.log_softmax(0)
        for label in range(len(log)):
            gradient = torch.autograd.grad(log[label], [v.value for v in variables], retain_graph=True)
            for total, part in zip(expected, gradient, strict=True):
                total += log[label].detach().exp() * part.square() / len(x)

    network = bridge.adapt(model, list(range(model.output_shape[-1])))
    learner = Learner(network, methods.EWC(normalise=False), scenario="class")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner.consolidate(x)
    found = learner.method.importance
    body = [found[f"network.body.{name}"] for name in network.body.trained]
    head = [found["network.head.weights.0"].T, found["network.head.biases.0"]]
    for mine, oracle in zip([*body, *head], expected, strict=True):
        assert float(oracle.max()) > 0
        torch.testing.assert_close(mine, oracle, rtol=1e-3, atol=1e-5 * float(oracle.max()))


@pytest.mark.parametrize("kind", KINDS)
def test_mas_equals_a_loop_over_the_keras_model_without_its_softmax(kind):
    model, x = KINDS[kind](), inputs(kind)
    if is_softmax(model):
        last = model.layers[-1]
        raw = (
            keras.Model(model.inputs, last.input) if isinstance(last, layers.Activation) else _without_activation(model)
        )
    else:
        raw = model
    variables = raw.trainable_variables
    expected = [torch.zeros_like(v.value) for v in variables]
    for row in x.split(1):
        length = raw(row, training=False).square().sum()
        gradient = torch.autograd.grad(length, [v.value for v in variables])
        for total, part in zip(expected, gradient, strict=True):
            total += part.abs() / len(x)
    network = bridge.adapt(model, list(range(model.output_shape[-1])))
    found = importance.diagonal(network, [(x, lambda scores: iter([2 * scores]))], kind="absolute")
    by_hand = importance.diagonal_by_hand(network, [(x, lambda scores: iter([2 * scores]))], kind="absolute")
    for name, value in found.items():
        torch.testing.assert_close(value, by_hand[name], rtol=1e-3, atol=1e-5 * float(by_hand[name].max()))
    body = [found[f"network.body.{name}"] for name in network.body.trained]
    head = [found["network.head.weights.0"].T, found["network.head.biases.0"]]
    for mine, oracle in zip([*body, *head], expected, strict=True):
        torch.testing.assert_close(mine, oracle, rtol=1e-3, atol=1e-5 * float(oracle.max()))


def _without_activation(model):
    def linear(layer):
        config = layer.get_config()
        if layer is model.layers[-1]:
            config["activation"] = "linear"
        return type(layer).from_config(config)

    clone = keras.models.clone_model(model, clone_function=linear)
    clone.set_weights(model.get_weights())
    return clone


def test_a_bare_keras_model_ignores_the_parameters_that_it_is_called_with_and_ours_does_not():
    """Why there is a Body: the day the first half fails, Keras has changed."""
    model, x = dense(), inputs("dense")
    zeros = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    assert torch.equal(torch.func.functional_call(model, zeros, (x,)), model(x, training=False))
    network = bridge.adapt(model, [0, 1, 2]).eval()
    zeros = {name: torch.zeros_like(p) for name, p in network.named_parameters()}
    assert torch.equal(torch.func.functional_call(network, zeros, (x,)), torch.zeros(len(x), 3))


# ---- modes ----


def test_batch_norm_and_dropout_follow_the_modes_of_torch():
    x = inputs("convolutional", 64)
    model = convolutional(seed=5)
    network = bridge.adapt(model, range(4))
    names = [name for name in network.body.kept if "moving" in name]
    before = [getattr(network.body, name).clone() for name in names]
    network.eval()
    calm = network(x)
    assert torch.equal(calm, network(x))
    assert all(torch.equal(a, getattr(network.body, name)) for a, name in zip(before, names, strict=True))
    network.train()
    noisy = network(x)
    assert not torch.allclose(noisy, calm) and not torch.equal(noisy, network(x))
    twice = [getattr(network.body, name).clone() for name in names]
    for _ in range(2):
        model(x, training=True)
    for variable, mine in zip((v for v in model.variables if "moving" in v.name), twice, strict=True):
        torch.testing.assert_close(mine, variable.value.detach(), rtol=1e-5, atol=1e-6)
    assert not torch.equal(twice[0], before[0])


def test_a_look_aside_moves_no_statistics():
    network = bridge.adapt(convolutional(), range(4)).train()
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    models.aside(network, inputs("convolutional"))
    assert before and all(torch.equal(buffer, before[name]) for name, buffer in network.named_buffers())


def test_consolidation_moves_neither_statistics_nor_seeds():
    learner = Learner(
        bridge.adapt(convolutional(noise=True), range(4)), methods.EWC() + methods.LwF(), scenario="class"
    )
    before = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    learner.consolidate((inputs("convolutional"), [0, 1, 2, 3] * 3))
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.model.state_dict().items())


def test_frozen_layers_stay_as_they_are():
    model = convolutional()
    for layer in model.layers[:2]:
        layer.trainable = False
    network = bridge.adapt(model, range(4))
    frozen = {name: buffer.clone() for name, buffer in network.named_buffers() if "seed" not in name}
    assert len(frozen) == 6
    learner = Learner(network, methods.Finetune(), scenario="class")
    learner.learn(new_task())
    buffers = dict(network.named_buffers())
    assert all(torch.equal(buffers[name], value) for name, value in frozen.items())


@pytest.mark.parametrize("make", [convolutional, dense])
def test_packnet_keeps_what_the_first_task_answers_and_later_ones_learn_by_its_statistics(make):
    network = bridge.adapt(make())
    learner = Learner(network, methods.PackNet(), scenario="task", batch_size=16)
    x = inputs(make.__name__, 64)
    tasks = [Task((part, [0, 1] * 32), name=str(number)) for number, part in enumerate((x, 2 * x + 1))]
    learner.learn(tasks[0])
    before = learner.predict_proba(x, tasks[0])
    modes = []
    network.body.register_forward_pre_hook(
        lambda body, _: modes.append(body.training) if torch.is_grad_enabled() else None
    )
    learner.learn(tasks[1])
    assert set(modes[-4:]) == {make is dense}  # its four steps; before them rows were looked at
    assert torch.equal(learner.predict_proba(x, tasks[0]), before)


# ---- chance and state ----


def new_task(name="new", rows=64):
    x = inputs("convolutional", rows)
    return Task((x, (x[:, 0, 0, 0] > 0).long() + 7), name=name)


def another_task():
    x = inputs("convolutional", 48) - 1
    return Task((x, (x[:, 1, 0, 0] > 0).long() + 9), name="another")


def fresh(path, seed=0, method=None):
    network = bridge.load(path, range(4))
    return Learner(network, method or methods.Replay(30), scenario="class", batch_size=16, epochs=2, seed=seed)


@pytest.fixture
def noisy(tmp_path):
    """A file with every use of chance: noise without a seed, dropout with one."""
    convolutional(noise=True, seed=5).save(tmp_path / "noisy.keras")
    return tmp_path / "noisy.keras"


def same(a, b):
    return all(torch.equal(tensor, b.model.state_dict()[name]) for name, tensor in a.model.state_dict().items())


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(noisy):
    learners = [fresh(noisy, seed) for seed in (0, 0, 1)]
    before = torch.get_rng_state()
    for learner in learners:
        learner.learn(new_task())
    assert torch.equal(torch.get_rng_state(), before)
    assert same(learners[0], learners[1]) and not same(learners[0], learners[2])
    states = [[b for name, b in learner.model.named_buffers() if "seed" in name] for learner in learners]
    assert len(states[0]) == 2 and not torch.equal(states[0][0], states[2][0])


class Stop(Callback):
    def __init__(self, path):
        self.path = path

    def after_step(self, learner):
        if learner.clock.step == 12:
            learner.save(self.path)
            raise KeyboardInterrupt


@pytest.mark.parametrize("make", [lambda: methods.Replay(30) + methods.EWC(), methods.LwF])
def test_broken_off_and_loaded_equals_never_broken_off(noisy, tmp_path, make):
    whole, broken = (fresh(noisy, method=make()) for _ in range(2))
    for learner in (whole, broken):
        learner.learn(new_task())
    whole.learn(another_task())
    broken.callbacks.append(Stop(tmp_path / "stopped.perdure"))
    with pytest.raises(KeyboardInterrupt):
        broken.learn(another_task())
    resumed = Learner.load(tmp_path / "stopped.perdure", model=bridge.load(noisy, range(4)))
    assert resumed.clock.begun and not same(resumed, whole)
    resumed.learn(another_task())
    assert same(resumed, whole) and resumed.classes == whole.classes
    assert torch.equal(resumed.predict_proba(inputs("convolutional")), whole.predict_proba(inputs("convolutional")))


def test_a_learner_without_its_network_says_what_to_pass(noisy, tmp_path):
    fresh(noisy).save(tmp_path / "learner.perdure")
    with pytest.raises(ValueError, match=r"pass model= \(your network, as it was before its first task\)"):
        Learner.load(tmp_path / "learner.perdure")
    with pytest.raises(ValueError, match="this network is not the one that was learnt"):
        Learner.load(tmp_path / "learner.perdure", model=bridge.adapt(dense_of_four(), range(4)))


def dense_of_four():
    return keras.Sequential([keras.Input((5,)), layers.Dense(8), layers.Dense(4)])


def test_the_model_that_was_given_stays_as_it_is():
    model = convolutional()
    before = [v.numpy().copy() for v in model.variables]
    learner = Learner(bridge.adapt(model, range(4)), methods.Finetune(), scenario="class")
    learner.learn(new_task())
    assert all((v.numpy() == old).all() for v, old in zip(model.variables, before, strict=True))


def test_a_loop_of_ones_own():
    network = bridge.adapt(dense(), range(3))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    memory = methods.attach(methods.EWC(), network, optimizer, trained=True)
    x, y = inputs("dense"), torch.arange(12) % 3
    network.train()
    for _ in range(2):
        memory.begin()
        x_, y_ = memory.replay(x, y)
        out = network(x_)
        loss = torch.nn.functional.cross_entropy(out, y_) + memory.penalty(out)
        optimizer.zero_grad()
        loss.backward()
        memory.project()
        optimizer.step()
        memory.after_step(out)
        memory.consolidate([(x, y)])
    assert all(float(value.max()) > 0 for value in memory.method.importance.values())


# ---- the head ----


def test_without_classes_the_head_is_empty():
    network = bridge.adapt(dense())
    assert network.head.columns == 0 and network.head.features == 8


def test_a_sigmoid_on_one_column_becomes_two_columns_with_equal_answers():
    x = inputs("dense")
    model = keras.Sequential(
        [keras.Input((5,)), layers.Dense(4, activation="relu"), layers.Dense(1), layers.Activation("sigmoid")]
    )
    found = bridge.adapt(model, ["no", "yes"]).eval()(x).softmax(1)
    torch.testing.assert_close(found[:, 1:], model(x, training=False))


def test_layers_that_were_called_elsewhere_too_are_told_by_the_model_given():
    model = keras.Sequential([keras.Input((5,))])
    for layer in (layers.Dense(4, activation="relu"), layers.Dense(4), layers.Dense(2)):
        model.add(layer)
    other = keras.Sequential([keras.Input((5,)), layers.Dense(5), *model.layers])
    x = inputs("dense")
    for given in (model, other):
        torch.testing.assert_close(bridge.adapt(given, ["a", "b"]).eval()(x), given(x, training=False))


def test_a_head_without_bias_and_without_layers_below():
    model = keras.Sequential([keras.Input((5,)), layers.Dense(3, use_bias=False)])
    network = bridge.adapt(model, range(3))
    torch.testing.assert_close(network(inputs("dense")), model(inputs("dense")))
    assert len(network.head.biases) == 0


# ---- refused ----


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.out = layers.Dense(2)

    def call(self, x):
        return self.out(x)


def model_of(*rest, shape=(5,)):
    return keras.Sequential([keras.Input(shape), *rest])


def two_outputs():
    x = keras.Input((5,))
    return keras.Model(x, [layers.Dense(2)(x), layers.Dense(3)(x)])


def twice_called():
    x, head = keras.Input((5,)), layers.Dense(5)
    return keras.Model(x, head(head(x)))


def low_rank():
    model = model_of(layers.Dense(2))
    model.layers[0].enable_lora(2)
    return model


class Forgetful(layers.Dense):
    """Its configuration does not tell what it was made with."""

    def get_config(self):
        return {**super().get_config(), "units": 7}


REFUSED = {
    "subclassed": (Subclassed, TypeError, "Subclassed is not a Functional or Sequential model, so its head cannot be"),
    "unbuilt": (lambda: keras.Sequential([layers.Dense(2)]), ValueError, "has no weights yet: give it a keras.Input"),
    "two outputs": (two_outputs, ValueError, "the model has 2 known outputs"),
    "tanh": (lambda: model_of(layers.Dense(2, activation="tanh")), ValueError, "has the activation tanh: scores must"),
    "softmax twice": (
        lambda: model_of(layers.Dense(2, activation="sigmoid"), layers.Softmax()),
        ValueError,
        "has the activation sigmoid and softmax",
    ),
    "no dense": (
        lambda: model_of(layers.Dense(2), layers.LayerNormalization()),
        ValueError,
        r"ends in .*\(LayerNormalization\)",
    ),
    "nested": (lambda: model_of(model_of(layers.Dense(2))), ValueError, "take the layers of the nested model out"),
    "called twice": (twice_called, ValueError, "must end in a Dense of its own that is called once"),
    "a row of vectors": (lambda: model_of(layers.Dense(2), shape=(4, 5)), ValueError, "a head takes one vector a row"),
    "mixed": (lambda: model_of(layers.Dense(2, dtype="mixed_bfloat16")), ValueError, "computes in mixed_bfloat16"),
    "lora": (low_rank, ValueError, "has LoRA, so that it has no weights of its own to grow"),
    "forgetful": (
        lambda: model_of(Forgetful(5), layers.Dense(2)),
        ValueError,
        "cannot be made again from its configuration",
    ),
    "lambda": (
        lambda: model_of(layers.Lambda(lambda x: x), layers.Dense(2)),
        ValueError,
        "holds a Lambda layer, which",
    ),
    "torch": (
        lambda: model_of(layers.TorchModuleWrapper(torch.nn.Linear(5, 5)), layers.Dense(2)),
        ValueError,
        "holds a TorchModuleWrapper layer",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_cannot_be_taught_and_written_back_is_refused(name):
    make, error, sentence = REFUSED[name]
    with pytest.raises(error, match=sentence):
        bridge.adapt(make(), [0, 1])


@pytest.mark.parametrize("allowed", [False, True])
def test_a_file_that_holds_code_is_refused_whatever_keras_is_set_to(tmp_path, allowed):
    model_of(layers.Lambda(lambda x: x * 2), layers.Dense(2)).save(tmp_path / "code.keras")
    if allowed:
        keras.config.enable_unsafe_deserialization()
    try:
        with pytest.raises(ValueError, match=r"code\.keras holds a Lambda layer, which is code"):
            bridge.load(tmp_path / "code.keras", [0, 1])
    finally:
        global_state.set_global_attribute("safe_mode_saving", None)


def test_files_of_other_formats_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.keras"):
        bridge.load(tmp_path / "none.keras", [0])
    model = model_of(layers.Dense(2))
    model.save(tmp_path / "old.h5")
    (tmp_path / "torn.keras").write_bytes(b"PK\x03\x04 and then nothing")
    with zipfile.ZipFile(tmp_path / "other.keras", "w") as archive:
        archive.writestr("readme.txt", "no model")
    for name in ("old.h5", "torn.keras", "other.keras"):
        with pytest.raises(ValueError, match=r"is not a whole \.keras file of Keras 3"):
            bridge.load(tmp_path / name, [0, 1])


def test_classes_are_asked_for_where_no_file_tells_them(tmp_path):
    path = tmp_path / "model.keras"
    model_of(layers.Dense(2)).save(path)
    with pytest.raises(ValueError, match=r"Pass classes=\[\.\.\.\] \(there is no .*model\.classes\.json\)"):
        bridge.load(path)
    (tmp_path / "model.classes.json").write_text(json.dumps({"columns": [["one", "a"], ["two", "a"]]}))
    with pytest.raises(ValueError, match="have other labels in each task"):
        bridge.load(path)
    with pytest.raises(ValueError, match="3 classes were given, but the layer 'head' has 2 rows"):
        bridge.load(path, [1, 2, 3])


def test_what_a_file_could_not_hold_is_not_saved(tmp_path):
    with pytest.raises(TypeError, match="the learner's model is a Network: save takes one of"):
        bridge.save(Learner(models.mlp(5), methods.EWC(), scenario="class"), tmp_path / "a.keras")
    learner = Learner(bridge.adapt(dense(), range(3)), methods.NCM(), scenario="class")
    with pytest.raises(ValueError, match="ncm answers with more than its network"):
        bridge.save(learner, tmp_path / "a.keras")
    learner = Learner(bridge.adapt(dense(), range(3)), methods.EWC(), scenario="class")
    with pytest.raises(ValueError, match=r"must end in \.keras"):
        bridge.save(learner, tmp_path / "a.h5")
    assert list(tmp_path.iterdir()) == []


def test_rows_that_the_model_cannot_take_are_refused():
    learner = Learner(bridge.adapt(convolutional(), range(4)), methods.EWC(), scenario="class")
    images, labels = digits((0, 1), 20)
    with pytest.raises(ValueError, match="the model cannot take the rows of task"):
        learner.learn(Task((images, labels), name="digits"))


def test_another_backend_is_refused_with_what_to_do():
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow"}
    done = subprocess.run(
        [sys.executable, "-c", "import perdure.integrations.keras"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "Keras runs on tensorflow here, and Perdure needs torch: set KERAS_BACKEND=torch before" in done.stderr


# ---- every method ----

BRING_THEIR_OWN = {"progressive", "pathnet"}


@pytest.mark.parametrize("name", sorted(methods.METHODS))
def test_every_method_learns_on_a_network_of_keras_or_says_why_not(name):
    method = methods.METHODS[name]()
    scenario = "class" if "class" in method.scenarios else method.scenarios[0]
    if name in BRING_THEIR_OWN:
        with pytest.raises(ValueError, match=r"an? (models\.)?mlp or an? "):
            Learner(bridge.adapt(convolutional()), method, scenario=scenario)
        return
    learner = Learner(bridge.adapt(convolutional()), method, scenario=scenario, batch_size=16)
    for task in (new_task(), another_task()):
        learner.learn(task)
    answers = learner.predict_proba(inputs("convolutional"), "another" if scenario == "task" else None)
    assert answers.shape == (12, 2 if scenario == "task" else 4) and bool(answers.isfinite().all())


def test_bf16_learns_and_is_written_back(tmp_path):
    learner = Learner(
        bridge.adapt(convolutional()), methods.Replay(20), scenario="class", batch_size=16, precision="bf16"
    )
    learner.learn(new_task())
    bridge.save(learner, tmp_path / "half.keras")
    x = inputs("convolutional")
    again = keras.saving.load_model(tmp_path / "half.keras")
    torch.testing.assert_close(again(x, training=False).detach(), learner.predict_proba(x), rtol=0, atol=0.02)


# ---- layers of one's own, and models within ----


class Scaled(layers.Layer):
    """x times a weight; it counts its calls in training."""

    def __init__(self, start=2.0, **rest):
        super().__init__(**rest)
        self.start = start

    def build(self, shape):
        self.scale = self.add_weight(
            shape=shape[-1:], initializer=keras.initializers.Constant(self.start), name="scale"
        )
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False, name="count")

    def call(self, x, training=False):
        if training:
            self.count.assign(self.count + 1)
        return x * self.scale

    def get_config(self):
        return {**super().get_config(), "start": self.start}


def test_a_layer_of_ones_own_is_loaded_taught_and_written_back(tmp_path):
    model_of(Scaled(3.0), layers.Dense(6, activation="relu"), layers.Dense(2, activation="softmax")).save(
        tmp_path / "a.keras"
    )
    own = {"Scaled": Scaled}
    learner = Learner(
        bridge.load(tmp_path / "a.keras", [0, 1], custom_objects=own), methods.EWC(), scenario="class", batch_size=4
    )
    x = inputs("dense")
    learner.learn(Task((x, [5, 6] * 6), name="new"))
    bridge.save(learner, tmp_path / "b.keras")
    again = keras.saving.load_model(tmp_path / "b.keras", custom_objects=own)
    torch.testing.assert_close(again(x, training=False).detach(), learner.predict_proba(x), rtol=0, atol=1e-6)
    assert float(again.layers[0].count.value) == 3 and float((again.layers[0].scale.value - 3).abs().max()) > 0


def test_a_frozen_model_within_is_kept_and_what_is_above_it_learns(tmp_path):
    base = model_of(layers.Dense(7, activation="relu"), layers.BatchNormalization(), layers.Dropout(0.5))
    base.trainable = False
    x = keras.Input((5,))
    model = keras.Model(x, layers.Dense(2, activation="softmax")(layers.Dense(6, activation="relu")(base(x))))
    network = bridge.adapt(model, [0, 1])
    assert [tuple(p.shape) for p in network.body.parameters()] == [(7, 6), (6,)]
    learner = Learner(network, methods.Replay(10), scenario="class", batch_size=4)
    rows = inputs("dense")
    learner.learn(Task((rows, [5, 6] * 6), name="new"))
    bridge.save(learner, tmp_path / "b.keras")
    again = keras.saving.load_model(tmp_path / "b.keras")
    torch.testing.assert_close(again(rows, training=False).detach(), learner.predict_proba(rows), rtol=0, atol=1e-6)
    for old, new in zip(base.variables, again.layers[1].variables, strict=True):
        assert "seed" in old.name or torch.equal(old.value, new.value)
