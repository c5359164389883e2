"""The importances against plain maths: a backward per row and label of log p(y|x), or of the scores' squared length."""

import itertools
import weakref
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perdure import importance, models
from perdure.importance import diagonal, diagonal_by_hand
from perdure.models import lookups
from perdure.models.head import Head

CLASSES = 4

# The fast paths must be right, not rescued by the slow one, which warns.
pytestmark = pytest.mark.filterwarnings("error")


# Probes, as objectives make them.


def exact(scores):
    p = scores.softmax(1)
    for c in range(scores.shape[1]):
        yield p[:, c : c + 1].sqrt() * (F.one_hot(torch.tensor(c), scores.shape[1]) - p)


def labelled(labels):
    def probes(scores):
        yield F.one_hot(labels, scores.shape[1]) - scores.softmax(1)

    return probes


def sampled(seed):
    generator = torch.Generator().manual_seed(seed)

    def probes(scores):
        p = scores.softmax(1)
        yield F.one_hot(torch.multinomial(p, 1, generator=generator)[:, 0], scores.shape[1]) - p

    return probes


def bernoulli(scores):
    p = scores.sigmoid()
    for c in range(scores.shape[1]):
        yield (p * (1 - p)).sqrt() * F.one_hot(torch.tensor(c), scores.shape[1])


def gaussian(scores):
    for c in range(scores.shape[1]):
        yield F.one_hot(torch.tensor(c), scores.shape[1]).expand_as(scores).to(scores.dtype)


def mas(scores):
    yield 2 * scores


# The oracle: no probes, no torch.func, no hooks.


def rows_of(x):
    if isinstance(x, dict):
        return [{name: column[i : i + 1] for name, column in x.items()} for i in range(len(next(iter(x.values()))))]
    return [x[i : i + 1] for i in range(len(x))]


def gradient(model, row, value):
    """d value(scores) / d parameter for one row, by .backward()."""
    model.zero_grad()
    value(model(row)[0]).backward()
    found = {
        n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters() if p.requires_grad
    }
    model.zero_grad()
    return found


def oracle(model, x, row_importance):
    """The mean over rows of row_importance(model, row, number)."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    parts = [row_importance(model, row, i) for i, row in enumerate(rows_of(x))]
    for module, mode in modes.items():
        module.training = mode
    return {name: torch.stack([part[name] for part in parts]).mean(0) for name in parts[0]}


def weighted_squares(gradients_and_weights):
    pairs = list(gradients_and_weights)
    return {name: sum(w * g[name] ** 2 for g, w in pairs) for name in pairs[0][0]}


def exact_row(model, row, _):
    with torch.no_grad():
        p = model(row)[0].softmax(0)
    return weighted_squares((gradient(model, row, lambda s, c=c: s.log_softmax(0)[c]), p[c]) for c in range(len(p)))


def label_row(labels):
    def row_importance(model, row, i):
        return weighted_squares([(gradient(model, row, lambda s: s.log_softmax(0)[labels[i]]), 1.0)])

    return row_importance


def bernoulli_row(model, row, _):
    with torch.no_grad():
        p = model(row)[0].sigmoid()

    def log_likelihood(s, answer):
        return -F.binary_cross_entropy_with_logits(s, answer, reduction="sum")

    answers = [torch.tensor(a, dtype=p.dtype) for a in itertools.product((0, 1), repeat=len(p))]
    chances = [torch.where(a > 0, p, 1 - p).prod() for a in answers]
    return weighted_squares(
        (gradient(model, row, lambda s, a=a: log_likelihood(s, a)), w) for a, w in zip(answers, chances, strict=True)
    )


def gaussian_row(model, row, _):
    with torch.no_grad():
        columns = model(row).shape[1]
    return weighted_squares((gradient(model, row, lambda s, c=c: s[c]), 1.0) for c in range(columns))


def mas_row(model, row, _):
    return {name: g.abs() for name, g in gradient(model, row, lambda s: (s**2).sum()).items()}


def assert_equal(found, expected, tolerance=1e-5):
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].shape == value.shape
        gap = (found[name] - value).abs().max()
        assert gap <= tolerance * value.abs().max(), f"{name}: {gap:.1e} of {value.abs().max():.1e}"


# The models.


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.again, self.last = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, CLASSES)

    def forward(self, x):
        return self.last(self.again(self.again(self.first(x)).tanh()).tanh())


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.one = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.two = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm_one, self.norm_two = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.short = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x):
        return F.relu(self.norm_two(self.two(F.relu(self.norm_one(self.one(x)), inplace=True))) + self.short(x))


class Text(nn.Module):
    """Two transformer layers over words and a mask; the embedding is also the output layer."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(CLASSES + 3, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.1, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(8, CLASSES + 3, bias=False)
        self.out.weight = self.words.weight

    def forward(self, x):
        seen = self.layers(self.words(x["words"]), src_key_padding_mask=x["padding"])
        return self.out(seen.masked_fill(x["padding"][..., None], 0.0).mean(1))


class FrozenText(nn.Module):
    """A frozen transformer layer, which in eval mode would run fused, under a small layer over its words."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True).requires_grad_(False)
        self.out = nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.out(self.layer(x)).tanh().mean(1)


class TiedLayers(nn.Module):
    """Two layers, each called once on one vector per row, that share a weight."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.last = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, CLASSES)
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.last(self.two(self.one(x).tanh()).tanh())


class LowRank(nn.Module):
    """A frozen linear layer plus a trainable product of two thin matrices (LoRA)."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(5, CLASSES).requires_grad_(False)
        self.down, self.up = nn.Parameter(torch.randn(2, 5)), nn.Parameter(torch.randn(CLASSES, 2))

    def forward(self, x):
        return self.base(x) + F.linear(F.linear(x, self.down), self.up)


class Sequence(nn.Module):
    def __init__(self):
        super().__init__()
        self.word, self.last = nn.Linear(5, 6), nn.Linear(6, CLASSES)

    def forward(self, x):
        return self.last(self.word(x).tanh().mean(1))


class Folded(nn.Module):
    """Two vectors per row, folded into the rows: two-dimensional, yet not one vector per example."""

    def __init__(self):
        super().__init__()
        self.word, self.last = nn.Linear(5, 6), nn.Linear(6, CLASSES)

    def forward(self, x):
        return self.last(self.word(x.flatten(0, 1)).tanh().unflatten(0, (-1, 2)).sum(1))


class Leaky(nn.Module):
    """Uses the weight of its layer once more, behind the layer's back."""

    def __init__(self):
        super().__init__()
        self.fc, self.last = nn.Linear(5, 5), nn.Linear(5, CLASSES)

    def forward(self, x):
        return self.last(F.linear(self.fc(x).tanh(), self.fc.weight).tanh())


class Unbatchable(nn.Module):
    """Python control flow on values, which vmap refuses."""

    def __init__(self):
        super().__init__()
        self.word = nn.Conv1d(5, 6, 1)
        self.last = nn.Linear(6, CLASSES)

    def forward(self, x):
        if x.sum().item() == 12345.0:
            raise AssertionError
        return self.last(self.word(x[..., None])[..., 0].tanh())


class Growing(nn.Module):
    def __init__(self, columns):
        super().__init__()
        self.body, self.head = nn.Linear(5, 6), Head(6)
        self.head.grow(columns, torch.Generator().manual_seed(1))

    def forward(self, x):
        return self.head(self.body(x).relu())


def mlp():
    return nn.Sequential(
        nn.Linear(5, 8), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, CLASSES)
    )


def convnet():
    return nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, groups=2),
        nn.ReLU(),
        nn.Conv2d(6, 6, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(54, CLASSES),
    )


def resnet():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, 1, 1, bias=False),
        nn.BatchNorm2d(4),
        Block(4, 6, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, CLASSES),
    )
    for _ in range(3):
        model(torch.randn(8, 3, 8, 8) * 2 + 1)  # statistics worth having
    return model


def text_rows():
    padding = torch.zeros(5, 6, dtype=torch.bool)
    padding[1, 4:] = padding[3, 2:] = True
    return {"words": torch.randint(0, CLASSES + 3, (5, 6)), "padding": padding}


CASES = {
    "mlp": (mlp, lambda: torch.randn(7, 5)),
    "growing head": (lambda: Growing(20), lambda: torch.randn(5, 5)),
    "convnet": (convnet, lambda: torch.randn(5, 4, 9, 9)),
    "convnet, rows channels-last": (convnet, lambda: torch.randn(5, 4, 9, 9).to(memory_format=torch.channels_last)),
    "convnet, all channels-last": (
        lambda: convnet().to(memory_format=torch.channels_last),
        lambda: torch.randn(5, 4, 9, 9).to(memory_format=torch.channels_last),
    ),
    "resnet": (resnet, lambda: torch.randn(5, 3, 8, 8)),
    "transformer, tied": (Text, text_rows),
    "module called twice": (Twice, lambda: torch.randn(5, 5)),
    "frozen transformer": (FrozenText, lambda: torch.randn(5, 3, 8)),
    "tied layers": (TiedLayers, lambda: torch.randn(5, 5)),
    "low rank": (LowRank, lambda: torch.randn(5, 5)),
    "sequence": (Sequence, lambda: torch.randn(5, 3, 5)),
    "folded sequence": (Folded, lambda: torch.randn(5, 2, 5)),
}


def make(case, seed=0):
    torch.manual_seed(seed)
    build, rows = CASES[case]
    return build(), rows()


def cut(x, size):
    rows = rows_of(x)
    groups = [rows[i : i + size] for i in range(0, len(rows), size)]
    if isinstance(x, dict):
        return [{name: torch.cat([row[name] for row in group]) for name in x} for group in groups]
    return [torch.cat(group) for group in groups]


def calls_of(model, count):
    model.register_forward_pre_hook(lambda *_: count.append(1))


@pytest.mark.parametrize("case", CASES)
def test_exact_fisher_equals_the_brute_force_loop(case):
    model, x = make(case)
    expected = oracle(model, x, exact_row)
    assert_equal(diagonal(model, [(x, exact)], kind="square"), expected)
    assert_equal(diagonal_by_hand(model, [(x, exact)], kind="square"), expected)


@pytest.mark.parametrize("case", CASES)
def test_mas_equals_the_brute_force_loop(case):
    model, x = make(case)
    expected = oracle(model, x, mas_row)
    assert_equal(diagonal(model, [(x, mas)], kind="absolute"), expected)
    assert_equal(diagonal_by_hand(model, [(x, mas)], kind="absolute"), expected)


@pytest.mark.parametrize("case", ["mlp", "sequence"])
def test_squaring_the_gradient_of_a_batch_is_something_else(case):
    model, x = make(case)
    model.eval()
    labels = torch.arange(len(x)) % CLASSES
    F.cross_entropy(model(x), labels).backward()
    wrong = {name: p.grad**2 for name, p in model.named_parameters()}
    right = diagonal(model, [(x, labelled(labels))], kind="square")
    assert all(wrong[name].sum() < 0.5 * right[name].sum() for name in right)


@pytest.mark.parametrize("case", ["mlp", "convnet"])
@pytest.mark.parametrize("max_bytes", [1, 64 << 20])
def test_empirical_and_sampled_fisher_equal_the_brute_force_loop(case, max_bytes):
    model, x = make(case)
    labels = torch.arange(len(x)) % CLASSES
    found = diagonal(model, [(x, labelled(labels))], kind="square", max_bytes=max_bytes)
    assert_equal(found, oracle(model, x, label_row(labels)))
    with torch.no_grad():
        p = model.eval()(x).softmax(1)
    drawn = torch.multinomial(p, 1, generator=torch.Generator().manual_seed(3))[:, 0]
    found = diagonal(model, [(x, sampled(3))], kind="square", max_bytes=max_bytes)
    assert_equal(found, oracle(model, x, label_row(drawn)))


@pytest.mark.parametrize(("probes", "row_importance"), [(bernoulli, bernoulli_row), (gaussian, gaussian_row)])
@pytest.mark.parametrize("case", ["mlp", "sequence"])
def test_fisher_of_independent_labels_and_of_numbers_equals_the_brute_force_loop(case, probes, row_importance):
    model, x = make(case)
    assert_equal(diagonal(model, [(x, probes)], kind="square"), oracle(model, x, row_importance))


@pytest.mark.parametrize("case", ["mlp", "resnet", "transformer, tied"])
@pytest.mark.parametrize("function", [diagonal, diagonal_by_hand])
def test_every_row_counts_the_same_however_the_rows_are_cut(case, function):
    model, x = make(case)
    whole = oracle(model, x, exact_row)
    for size in (1, 3):
        assert_equal(function(model, ((part, exact) for part in cut(x, size)), kind="square"), whole)


def test_linear_layers_cost_one_forward_a_chunk():
    for case in ("mlp", "growing head"):
        model, x = make(case)
        count = []
        calls_of(model, count)
        diagonal(model, [(part, exact) for part in cut(x, 3)], kind="square", check=False)
        assert len(count) == len(cut(x, 3))


def test_as_many_rows_at_a_time_as_max_bytes_allows():
    model, _ = make("sequence")
    row_bytes = 4 * sum(p.numel() for p in model.parameters())
    for rows, pieces in ((1, 5), (2, 3), (5, 1)):
        count = []
        model, x = make("sequence")
        calls_of(model, count)
        diagonal(model, [(x, mas)], kind="absolute", max_bytes=rows * row_bytes, check=False)
        assert len(count) == 1 + pieces  # the scores first


def test_a_thousand_classes_are_held_one_at_a_time():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1000))
    alive, most = weakref.WeakSet(), 0

    def probes(scores):
        nonlocal most
        for c in range(1000):
            probe = torch.zeros_like(scores)
            probe[:, c] = 1.0
            alive.add(probe)
            most = max(most, len(alive))
            yield probe

    found = diagonal(model, [(torch.ones(2, 3), probes)], kind="square")
    assert most <= 2
    assert torch.equal(found["1.bias"], torch.ones(1000))


@pytest.mark.parametrize("columns", [1, 16, 17, 33])
def test_rows_of_the_head_that_are_not_open_have_importance_exactly_zero(columns):
    torch.manual_seed(0)
    model, x = Growing(columns), torch.randn(4, 5)
    found = diagonal(model, [(x, gaussian)], kind="square")
    assert_equal(found, oracle(model, x, gaussian_row))
    biases = torch.cat([found[f"head.biases.{i}"] for i in range(len(model.head.biases))])
    assert torch.equal(biases, (torch.arange(len(biases)) < columns).float())


def test_a_weight_used_outside_its_layer_is_noticed():
    torch.manual_seed(0)
    model, x = Leaky(), torch.randn(5, 5)
    with pytest.warns(RuntimeWarning, match=r"fc\.weight is .* away from the plain backward"):
        found = diagonal(model, [(part, exact) for part in cut(x, 2)], kind="square")
    assert_equal(found, oracle(model, x, exact_row))
    unchecked = diagonal(model, [(x, exact)], kind="square", check=False)
    assert not torch.allclose(unchecked["fc.weight"], found["fc.weight"], rtol=0.1)


def test_a_model_that_vmap_refuses_goes_by_hand_and_says_why():
    torch.manual_seed(0)
    model, x = Unbatchable(), torch.randn(5, 5)
    for check in (True, False):
        with pytest.warns(RuntimeWarning, match=r"slow: .*item\(\)"):
            found = diagonal(model, [(part, exact) for part in cut(x, 2)], kind="square", check=check)
        assert_equal(found, oracle(model, x, exact_row))


class ChannelsLast(nn.Module):
    """Lays its tensors out anew on the way, in each of the ways that there are."""

    def __init__(self):
        super().__init__()
        self.convolution, self.out = nn.Conv2d(3, 4, 3), nn.Linear(4 * 9, 2)

    def forward(self, x):
        x = x.to(memory_format=torch.channels_last).permute(0, 1, 3, 2).contiguous(memory_format=torch.channels_last)
        return self.out(self.convolution(x.clone(memory_format=torch.channels_last)).flatten(1))


def test_channels_last_goes_by_a_gradient_per_row_too():
    torch.manual_seed(0)
    model, x = ChannelsLast(), torch.randn(5, 3, 5, 5)
    found = diagonal(model, [(x, mas)], kind="absolute")
    assert_equal(found, diagonal_by_hand(model, [(x, mas)], kind="absolute"))


def test_an_error_of_the_probes_is_not_swallowed():
    model, x = make("mlp")

    def broken(scores):
        raise KeyError("no such label")
        yield scores

    with pytest.warns(RuntimeWarning), pytest.raises(KeyError, match="no such label"):
        diagonal(model, [(x, broken)], kind="square")
    assert all(module.training for module in model.modules())


def test_the_check_draws_nothing_from_the_probes():
    model, x = make("mlp")
    found = [diagonal(model, [(x, sampled(5))], kind="square", check=check) for check in (True, False)]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_only_trainable_parameters_are_measured_and_names_restrict_them():
    model, x = make("low rank")
    assert list(diagonal(model, [(x, exact)], kind="square")) == ["down", "up"]
    model, x = make("resnet")
    expected = oracle(model, x, exact_row)
    for names in (["5.weight", "5.bias"], ["5.bias", "1.weight"], []):
        found = diagonal(model, [(x, exact)], kind="square", names=names)
        assert_equal(found, {name: value for name, value in expected.items() if name in names})
    with pytest.raises(ValueError, match=r"\['6\.weight'\]"):
        diagonal(model, [(x, exact)], kind="square", names=["6.weight"])


def test_tied_parameters_stand_once_and_unused_ones_are_zero():
    model, x = make("transformer, tied")
    model.spare = nn.Linear(2, 2)
    found = diagonal(model, [(x, exact)], kind="square")
    assert "words.weight" in found
    assert "out.weight" not in found
    assert not found["spare.weight"].any()
    assert_equal(found, oracle(model, x, exact_row))


def test_what_a_hook_does_to_a_layer_is_part_of_the_model():
    model, x = make("mlp")
    model[0].register_forward_hook(lambda module, inputs, outputs: 3 * outputs)
    model[3].register_forward_pre_hook(lambda module, inputs: inputs[0].sin())
    assert_equal(diagonal(model, [(x, exact)], kind="square"), oracle(model, x, exact_row))


def test_a_layer_that_the_scores_ignore_gets_zero():
    class Ignoring(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.ignored = nn.Linear(5, CLASSES), nn.Linear(5, 2)

        def forward(self, x):
            self.ignored(x)
            return self.used(x)

    model, x = Ignoring(), torch.randn(5, 5)
    assert_equal(diagonal(model, [(x, exact)], kind="square"), oracle(model, x, exact_row))


@pytest.mark.parametrize("case", ["mlp", "resnet", "transformer, tied"])
@pytest.mark.parametrize("function", [diagonal, diagonal_by_hand])
def test_nothing_about_the_model_is_touched(case, function):
    model, x = make(case)
    next(model.children()).eval()  # a module that its owner keeps in eval mode
    for p in model.parameters():
        p.grad = torch.full_like(p, 7.0)
    next(model.parameters()).requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = {name: (p.grad, p.requires_grad) for name, p in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    hooks = [len(module._forward_hooks) for module in model.modules()]
    function(model, [(x, exact)], kind="square")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    for name, p in model.named_parameters():
        assert p.grad is gradients[name][0]
        assert bool((p.grad == 7.0).all())
        assert p.requires_grad == gradients[name][1]
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert torch.backends.mha.get_fastpath_enabled()


def test_importances_keep_the_precision_of_the_parameters_and_at_least_32_bits():
    model, x = make("mlp")
    assert diagonal(model.double(), [(x.double(), exact)], kind="square")["0.weight"].dtype == torch.float64
    found = diagonal(model.bfloat16(), [(x.bfloat16(), exact)], kind="square")
    assert found["0.weight"].dtype == torch.float32


def test_no_rows_and_an_unknown_kind_are_refused():
    model, x = make("mlp")
    with pytest.raises(ValueError, match="at least one row"):
        diagonal(model, [], kind="square")
    with pytest.raises(ValueError, match="'cube'"):
        diagonal(model, [(x, exact)], kind="cube")


def test_a_gradient_that_is_nothing_but_rounding_does_not_make_it_slow(recwarn: pytest.WarningsRecorder) -> None:
    """The keys' biases of attention: softmax takes what is added to all of a row's scores alike out again."""
    torch.manual_seed(0)

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            shares = (self.query(x) @ self.key(x).mT).softmax(-1)
            return self.out((shares @ x).mean(1))

    model, x = Attention(), torch.randn(6, 5, 8)
    chunks = [(x, lambda scores: iter([torch.ones_like(scores)]))]
    found = diagonal(model, chunks, kind="square")
    assert [str(warning.message) for warning in recwarn] == []
    by_hand = diagonal_by_hand(model, chunks, kind="square")
    for name, value in by_hand.items():
        torch.testing.assert_close(found[name], value, atol=1e-9, rtol=1e-3)
    assert float(by_hand["key.bias"].max()) < 1e-9 < float(by_hand["key.weight"].max())


# ---- bags of words ----


def texts() -> tuple[nn.Module, Tensor]:
    """A text network with a head of three, and texts: words that repeat, one word, none, as many as there is room."""
    model = models.text(buckets=8, width=3, ngrams=3, hidden=(4,))
    model.grow(3, torch.Generator().manual_seed(0))
    for number, p in enumerate(model.parameters()):
        p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
    return model, torch.tensor([[5, 7, 5, 5, 0], [9, 0, 0, 0, 0], [0, 0, 0, 0, 0], [3, 3, 3, 3, 3], [1, 2, 3, 4, 5]])


def text_probes(scores):
    yield torch.ones_like(scores)
    yield scores.square()


@pytest.mark.parametrize("kind", ["square", "absolute"])
def test_a_bag_of_words_takes_the_closed_form_and_equals_the_loop(kind, monkeypatch):
    model, x = texts()
    truth = diagonal_by_hand(model, [(x, text_probes)], kind=kind)
    monkeypatch.setattr(importance._Survey, "per_row", None)
    found = diagonal(model, [(x, text_probes)], kind=kind)
    for name in truth:
        torch.testing.assert_close(found[name], truth[name], rtol=1e-9, atol=1e-12)
    assert (found["body.0.weight"][0] == 0).all() and (found["body.0.weight"] > 0).any()


@pytest.mark.filterwarnings("default")
def test_counting_each_word_of_a_text_once_is_noticed(monkeypatch):
    """The mutant: a word that comes three times has three times the gradient, and nine times its square."""
    model, x = texts()
    right = lookups.Lookups.of

    def once(table, calls):
        found = right(table, calls)
        return found if table.share is None else replace(found, times=table.share(calls[0])[found.row])

    monkeypatch.setattr(lookups.Lookups, "of", staticmethod(once))
    with pytest.warns(RuntimeWarning, match="away from the plain backward"):
        found = diagonal(model, [(x[[0, 3]], text_probes)], kind="square")
    truth = diagonal_by_hand(model, [(x[[0, 3]], text_probes)], kind="square")
    assert all(torch.allclose(found[name], truth[name]) for name in truth), "the slow path took over"
