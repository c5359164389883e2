"""Built-in models and networks of the user's own: built, drawn, grown and differentiated."""

import copy
import json

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from perdure import models


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def equal(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Own(nn.Module):
    """What a user might bring: convolution, batch norm, an output layer called fc."""

    def __init__(self, bias=True):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
        self.fc = nn.Linear(16, 10, bias=bias)

    def forward(self, x):
        return self.fc(self.stem(x).flatten(1))


TINY = {
    "mlp": lambda: models.mlp(64, (12, 9), norm=True, dropout=0.2),
    "convnet": lambda: models.convnet((1, 8, 8), (4, 6)),
    "convnet without norm": lambda: models.convnet((1, 8, 8), (4,), norm=False),
    "resnet18": lambda: models.resnet18((1, 8, 8), width=2),
}
GROWING = {
    **TINY,
    "adapted": lambda: models.adapt(Own(), classes=range(10)),
    "adapted afresh": lambda: models.adapt(Own()),
}
tiny = pytest.mark.parametrize("make", TINY.values(), ids=TINY)
growing = pytest.mark.parametrize("make", GROWING.values(), ids=GROWING)


# -- built-in models ---------------------------------------------------------------------------------------------------


def test_the_reduced_resnet_has_the_size_known_from_the_literature():
    model = models.resnet18((3, 32, 32), width=20)
    body = parameters(model.body)
    assert body == 1_093_140  # "1.09 M"
    assert body + 100 * 160 + 100 == 1_109_240  # with 100 classes
    assert model.features(torch.zeros(2, 3, 32, 32)).shape == (2, 160)
    # ResNet-18 at its full width of 64, as everybody counts it for CIFAR-10.
    assert parameters(models.resnet18((3, 32, 32), width=64).body) + 10 * 512 + 10 == 11_173_962


def test_the_perceptron_has_the_size_that_its_widths_say():
    model = models.mlp(784, (400, 400))
    assert parameters(model.body) == 784 * 400 + 400 + 400 * 400 + 400
    assert model.features(torch.zeros(2, 1, 28, 28)).shape == (2, 400)
    assert models.mlp(7, ()).features(torch.zeros(2, 7)).shape == (2, 7)


def test_dropout_and_norm_follow_the_settings():
    def kinds(model):
        return [type(layer).__name__ for layer in model.body]

    assert kinds(models.mlp(3, (4,), norm=True, dropout=0.5)) == ["Flatten", "Linear", "BatchNorm1d", "ReLU", "Dropout"]
    assert kinds(models.convnet((3, 8, 8), (4,))) == ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d", "Flatten"]
    assert kinds(models.convnet((3, 8, 8), (4,), norm=False)) == ["Conv2d", "ReLU", "MaxPool2d", "Flatten"]


def test_the_convnet_keeps_odd_edges_out_as_pooling_does():
    model = models.convnet((3, 13, 9), (4, 5))
    assert model.features(torch.zeros(2, 3, 13, 9)).shape == (2, model.head.features) == (2, 5 * 3 * 2)


@growing
def test_a_model_scores_what_it_has_grown_and_keeps_its_older_scores(make):
    model = make().eval()
    x = torch.randn(3, 1, 8, 8)
    start = model.head.columns
    model.grow(start + 2, generator())
    before = model(x)
    model.grow(start + 20, generator(1))
    assert before.shape == (3, start + 2) and model(x).shape == (3, start + 20)
    assert torch.allclose(model(x)[:, : start + 2], before, atol=1e-6)
    assert torch.equal(model.head(model.features(x)), model(x))


@tiny
def test_building_is_repeatable_and_leaves_the_global_generator_alone(make):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = make()
    with torch.device("meta"):  # whatever the default device, the weights are drawn on the CPU
        second = make()
    assert torch.equal(state, torch.get_rng_state())
    assert equal(first, second)
    assert first.body.state_dict()[next(iter(first.body.state_dict()))].std() > 0


@tiny
def test_a_recipe_survives_json_and_builds_the_same_model(make):
    model = make()
    again = models.build(json.loads(json.dumps(model.recipe)))
    assert equal(model, again) and again.recipe == model.recipe == json.loads(json.dumps(model.recipe))
    assert str(again) == str(model)


def test_every_model_in_the_table_is_named_as_its_recipe_says():
    base = {"name": "mlp", "settings": {"inputs": 4}}
    needed = {"mlp": {"inputs": 4}, "columns": {"base": base}, "modular": {"base": base}, "tabular": {"numbers": 4}}
    assert set(models.MODELS) == {"columns", "convnet", "mlp", "modular", "ratings", "resnet18", "tabular", "text"}
    for name, factory in models.MODELS.items():
        assert factory(**needed.get(name, {})).recipe["name"] == name


def test_a_misspelt_recipe_is_refused_with_the_nearest_spelling():
    with pytest.raises(ValueError, match=r"'resnet'.*did you mean 'resnet18'.*columns, .*modular, ratings, resnet18"):
        models.build({"name": "resnet", "settings": {}})
    with pytest.raises(ValueError, match=r"mlp has no setting 'hiden'.*did you mean 'hidden'"):
        models.build({"name": "mlp", "settings": {"inputs": 4, "hiden": [3]}})
    with pytest.raises(ValueError, match="needs the setting 'inputs', found none"):
        models.build({"name": "mlp"})


def test_impossible_settings_are_refused_before_anything_is_built():
    with pytest.raises(ValueError, match="inputs=0"):
        models.mlp(0)
    with pytest.raises(ValueError, match=r"shape=\[28, 28\]"):
        models.convnet((28, 28))
    with pytest.raises(ValueError, match="3 blocks halve an image of 7x9 to nothing"):
        models.convnet((1, 7, 9), (4, 4, 4))
    with pytest.raises(ValueError, match="width=0"):
        models.resnet18(width=0)


# -- initialise and untouched ------------------------------------------------------------------------------------------


@tiny
def test_initialise_draws_as_the_factory_does(make, monkeypatch):
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(3)
    monkeypatch.setattr(torch, "randint", lambda *_, **__: torch.tensor(0))  # the factories' own seed
    models.initialise(model, generator())
    assert equal(model, make())


@tiny
def test_initialise_depends_on_its_generator_alone_and_works_in_place(make):
    model, other, third = make(), make(), make()
    objects = list(model.parameters())
    state = torch.get_rng_state()
    models.initialise(model, generator(1))
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(9)
    models.initialise(other, generator(1))
    models.initialise(third, generator(2))
    assert all(a is b for a, b in zip(objects, model.parameters(), strict=True))
    assert equal(model, other) and not equal(model, third) and not equal(model, make())


def test_initialise_also_resets_running_statistics():
    model = TINY["mlp"]()
    model.grow(0, generator())
    model(torch.randn(8, 64))
    assert model.body[2].num_batches_tracked == 1
    models.initialise(model, generator())
    assert model.body[2].num_batches_tracked == 0 and not model.body[2].running_mean.any()


def test_initialise_refuses_what_it_cannot_draw():
    with pytest.raises(ValueError, match="Adapted has no recipe"):
        models.initialise(models.adapt(Own()), generator())
    grown = models.mlp(4, (3,))
    grown.grow(2, generator())
    with pytest.raises(ValueError, match="knows classes already"):
        models.initialise(grown, generator())


@tiny
def test_a_model_is_untouched_until_anything_at_all_is_changed(make):
    assert models.untouched(make())
    for name in make().state_dict():
        model = make()
        model.state_dict()[name].view(-1)[-1] += 1
        assert not models.untouched(model), name
    grown, drawn, changed = make(), make(), make()
    grown.grow(1, generator())
    models.initialise(drawn, generator())
    changed.body.append(nn.Linear(3, 3))
    assert not models.untouched(grown) and not models.untouched(drawn) and not models.untouched(changed)
    assert models.untouched(make().double())
    assert not models.untouched(models.adapt(Own()))


# -- how the rest of the house uses a model ----------------------------------------------------------------------------


@growing
def test_per_example_gradients_by_vmap_equal_the_plain_loop(make):
    model = make()
    model.grow(18, generator())
    model(torch.randn(16, 1, 8, 8))  # running statistics other than 0 and 1
    model.eval()
    x, y = torch.randn(4, 1, 8, 8, generator=generator()), torch.tensor([0, 5, 17, 16])
    weights, buffers = dict(model.named_parameters()), dict(model.named_buffers())

    def loss(weights, row, label):
        return nn.functional.cross_entropy(functional_call(model, (weights, buffers), (row[None],)), label[None])

    fast = vmap(grad(loss), in_dims=(None, 0, 0))({k: v.detach() for k, v in weights.items()}, x, y)
    for i in range(4):
        model.zero_grad()
        nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1]).backward()
        for name, parameter in weights.items():
            assert torch.allclose(fast[name][i], parameter.grad, atol=1e-5), name
    assert any(fast[name].any() for name in fast)


@growing
def test_bfloat16_autocast_gives_nearly_the_same_finite_scores(make):
    model = make().eval()
    model.grow(18, generator())
    x = torch.randn(4, 1, 8, 8, generator=generator())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = model(x)
    assert scores.dtype == torch.bfloat16
    assert torch.allclose(scores.float(), model(x), atol=0.05)


@growing
def test_a_grown_model_comes_back_from_its_state(make):
    torch.manual_seed(1)
    model = make().eval()
    model.grow(20, generator())
    torch.manual_seed(2)
    other = make().eval()
    other.grow(12, generator(7))
    other.grow(20, generator(8))
    other.load_state_dict(model.state_dict())
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(model(x), other(x))
    assert copy.deepcopy(model).head.columns == 20


def test_the_names_of_a_models_tensors_are_stable():
    model = models.mlp(4, (3,))
    model.grow(17, generator())
    assert list(model.state_dict()) == [
        "body.1.weight",
        "body.1.bias",
        "head.weights.0",
        "head.weights.1",
        "head.biases.0",
        "head.biases.1",
    ]
    assert list(models.adapt(Own(), classes=range(10)).state_dict())[-2:] == [
        "network.fc.weights.0",
        "network.fc.biases.0",
    ]


# -- networks of the user's own ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_adapting_with_classes_changes_no_output_by_a_single_bit(bias):
    network = Own(bias).eval()
    x = torch.randn(5, 1, 8, 8)
    before, weights, state = network(x), dict(network.named_parameters()), torch.get_rng_state()
    model = models.adapt(network, classes="abcdefghij")
    assert torch.equal(model(x), before) and torch.equal(state, torch.get_rng_state())
    assert {id(p) for p in model.parameters()} == {id(p) for p in weights.values()}
    assert model.classes == tuple("abcdefghij") and model.recipe is None and model.head.columns == 10
    assert not model.training
    model.grow(12, generator())
    assert torch.allclose(model(x)[:, :10], before, atol=1e-6)
    assert model(x).shape == (5, 12)


def test_adapting_without_classes_starts_from_an_empty_head_of_the_same_kind():
    network = Own().double()
    conv = network.stem[0].weight
    model = models.adapt(network)
    assert model.classes == () and model.head.columns == 0 and model.head.features == 16
    assert model(torch.zeros(2, 1, 8, 8).double()).shape == (2, 0)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert network.stem[0].weight is conv


def test_features_are_what_the_head_sees_and_leave_no_hook_behind():
    model = models.adapt(Own().eval(), classes=range(10))
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(model.features(x), model.network.stem(x).flatten(1))
    assert not model.head._forward_pre_hooks
    with pytest.raises(RuntimeError):
        model.features(torch.zeros(2, 7, 8, 8))
    assert not model.head._forward_pre_hooks


@pytest.mark.parametrize("name", ["fc", "head", "classifier"])
def test_the_usual_output_layers_are_found(name):
    network = nn.Sequential()
    network.add_module("stem", nn.Linear(3, 4))
    network.add_module(name, nn.Linear(4, 2))
    assert models.adapt(network, head=None).path == name


def test_the_last_layer_of_a_classifier_is_found():
    network = nn.Sequential()
    network.add_module("classifier", nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    model = models.adapt(network, head=None, classes=["x", "y"])
    assert model.path == "classifier.2"
    assert [type(layer).__name__ for layer in network.classifier] == ["Linear", "ReLU", "Head"]


def test_an_output_layer_that_cannot_be_told_is_asked_for():
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"nn.Linear layers are 0, 1; pass head="):
        models.adapt(network, head=None)
    with pytest.raises(ValueError, match=r"nn.Linear layers are none"):
        models.adapt(nn.Linear(3, 2), head=None)
    assert models.adapt(network, head="1").head.features == 4


def test_a_wrong_path_is_refused_with_the_nearest_spelling():
    with pytest.raises(ValueError, match=r"no layer 'fcc'.*did you mean 'fc'.*are fc"):
        models.adapt(Own(), head="fcc")
    with pytest.raises(TypeError, match=r"'stem' is a Sequential, expected a plain nn.Linear"):
        models.adapt(Own(), head="stem")
    normed = Own()
    normed.fc = nn.utils.parametrizations.weight_norm(normed.fc)
    with pytest.raises(TypeError, match="ParametrizedLinear"):
        models.adapt(normed, head="fc")
    twice = models.adapt(Own())
    with pytest.raises(TypeError, match="'fc' is a Head"):
        models.adapt(twice.network, head="fc")


def test_classes_that_do_not_name_each_old_row_once_are_refused():
    network = Own()
    with pytest.raises(ValueError, match="3 classes were given, but the layer 'fc' has 10 rows"):
        models.adapt(network, classes=[1, 2, 3])
    with pytest.raises(ValueError, match="classes 4, 7 were given more than once"):
        models.adapt(network, classes=[0, 1, 2, 3, 4, 4, 7, 7, 8, 9])
    with pytest.raises(TypeError, match="plain ints or strings"):
        models.adapt(network, classes=[0.5] * 10)
    assert isinstance(network.fc, nn.Linear)  # a refusal changes nothing


def test_a_head_that_is_called_on_sequences_is_refused_at_the_first_pass():
    model = models.adapt(nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 3)), head="1", classes=[0, 1, 2])
    with pytest.raises(ValueError, match=r"given \[2, 5, 4\]; pool or flatten"):
        model(torch.zeros(2, 5, dtype=torch.long))


def test_a_network_that_does_not_return_its_heads_scores_is_refused():
    class Pair(Own):
        def forward(self, x):
            scores = super().forward(x)
            return scores, -scores

    class Twice(Own):
        def forward(self, x):
            features = self.stem(x).flatten(1)
            return self.fc(features) + self.fc(features)

    x = torch.zeros(2, 1, 8, 8)
    with pytest.raises(TypeError, match=r"returned tuple, expected the scores of its head 'fc', \[n, 0\]"):
        models.adapt(Pair())(x)
    with pytest.raises(TypeError, match=r"returned \[2, 16\]"):
        models.adapt(nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.ConstantPad1d((0, 16), 0.0)), head="1")(x)
    with pytest.raises(RuntimeError, match="called its head 'fc' 2 times"):
        models.adapt(Twice()).features(x)
