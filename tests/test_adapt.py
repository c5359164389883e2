"""Networks in the manner of torchvision, timm and Hugging Face, and those of nobody else, given a head that grows."""

import re
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from perdure import Learner, Task, methods, models


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- in the manner of Hugging Face ----


class Config:
    """What matters of a configuration: names of labels, and their number worked out from the names."""

    def __init__(self, labels=2):
        self.id2label = {i: f"LABEL_{i}" for i in range(labels)}
        self.label2id = {label: i for i, label in self.id2label.items()}

    @property
    def num_labels(self):
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, count):
        self.id2label = {i: f"LABEL_{i}" for i in range(count)}


@dataclass
class Output:
    """What a model returns."""

    loss: Tensor | None
    logits: Tensor
    hidden: Tensor


class Tiny(nn.Module):
    """A transformer of one layer that classifies: its mask is minus infinity, as attention masks are."""

    def __init__(self, labels=2, answer="object"):
        super().__init__()
        self.config, self.num_labels, self.answer = Config(labels), labels, answer
        self.words, self.kinds = nn.Embedding(20, 8, padding_idx=0), nn.Embedding(2, 8)
        self.norm, self.attention = nn.LayerNorm(8), nn.Linear(8, 24)
        self.pooler = nn.Linear(8, 8)
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Linear(8, labels)

    def forward(self, input_ids=None, attention_mask=None, token_type_ids=None, labels=None, return_dict=None):
        x = self.words(input_ids) + (0 if token_type_ids is None else self.kinds(token_type_ids))
        q, k, v = self.attention(self.norm(x)).chunk(3, -1)
        weights = (q @ k.transpose(1, 2)).masked_fill(attention_mask[:, None] == 0, float("-inf")).softmax(-1)
        x = (x + weights @ v)[:, 0]
        logits = self.classifier(self.dropout(torch.tanh(self.pooler(x))))
        loss = None if labels is None else nn.functional.cross_entropy(logits.view(-1, self.num_labels), labels)
        if self.answer == "object":
            return Output(loss, logits, x)
        return {"logits": logits, "hidden": x} if self.answer == "dict" else (logits, x[:, None])


def sentences(n=40, labels=(0, 1), seed=0, kinds=False):
    """Rows whose first word says what they are, padded."""
    words = torch.randint(8, 20, (n, 6), generator=generator(seed))
    y = torch.tensor(labels)[torch.randint(len(labels), (n,), generator=generator(seed + 1))]
    words[:, 0] = 1 + y
    lengths = torch.randint(2, 7, (n, 1), generator=generator(seed + 2))
    mask = (torch.arange(6) < lengths).long()
    x = {"input_ids": words * mask, "attention_mask": mask}
    return ({**x, "token_type_ids": torch.zeros_like(words)} if kinds else x), y


@pytest.mark.parametrize("answer", ["object", "dict", "tuple"])
def test_a_network_of_keyword_inputs_gives_its_logits_bit_for_bit(answer):
    network = Tiny(answer=answer).eval()
    x, _ = sentences()
    before = network(**x)
    before = before.logits if answer == "object" else before["logits"] if answer == "dict" else before[0]
    model = models.adapt(network, classes=["no", "yes"])
    assert model.path == "classifier" and torch.equal(model(x), before)
    seen = model.features(x)
    assert seen.shape == (40, 8) and torch.allclose(model.head(seen), before)


def test_inputs_go_by_their_names_and_not_by_their_order():
    model = models.adapt(Tiny().eval(), classes=["no", "yes"])
    x, _ = sentences(kinds=True)
    assert torch.equal(model({"token_type_ids": x["token_type_ids"], **x}), model(x))
    ones = {**x, "token_type_ids": torch.ones_like(x["input_ids"])}
    assert not torch.equal(model(ones), model(x))
    with pytest.raises(TypeError, match=r"Tiny.forward takes attention_mask, input_ids, .*x also holds review"):
        model({**x, "review": x["input_ids"]})


def test_a_dict_goes_as_one_where_forward_takes_one():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(5, 2)

        def forward(self, batch):
            return self.fc(torch.cat([batch["a"], batch["b"]], 1))

    class Rest(Pair):
        def forward(self, batch, **settings):
            assert not settings
            return super().forward(batch)

    class Anything(Pair):
        def forward(self, **inputs):
            return super().forward(inputs)

    x = {"a": torch.randn(3, 2), "b": torch.randn(3, 3)}
    for kind in (Pair, Rest, Anything):
        assert models.adapt(kind(), classes=[0, 1])(x).shape == (3, 2)
    body = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    assert models.adapt(body, head="1", classes=[0, 1])(torch.zeros(3, 2, 2)).shape == (3, 2)


def test_what_the_network_says_of_its_labels_is_kept_true_also_where_learning_is_undone():
    network = Tiny()
    model = models.adapt(network, classes=["no", "yes"])
    assert network.config.id2label == {0: "no", 1: "yes"} and network.config.label2id == {"no": 0, "yes": 1}
    learner = Learner(model, methods.Finetune(), scenario="class", batch_size=8)
    x, y = sentences(labels=(2, 3))
    learner.learn(Task((x, y), name="more"))
    assert network.num_labels == network.config.num_labels == 4
    assert network.config.id2label == {0: "no", 1: "yes", 2: "LABEL_2", 3: "LABEL_3"}
    network.config.id2label[2] = "fox"  # a name of their own stays
    learner.learn(Task(sentences(labels=(4, 5)), name="still more"))
    assert list(network.config.id2label.values())[2:5] == ["fox", "LABEL_3", "LABEL_4"]
    assert network(**x, labels=y).loss.isfinite()  # the model's own loss, whose width is right

    class Stop(methods.Finetune):
        def project(self, host, batch):
            raise KeyboardInterrupt

    learner = Learner(models.adapt(Tiny(3)), Stop(), scenario="class", batch_size=8)
    with pytest.raises(KeyboardInterrupt):
        learner.learn(Task((x, y), name="more"))
    assert learner.model(x).shape == (40, 0)
    assert learner.model.network.config.num_labels == learner.model.network.num_labels == 0


@pytest.mark.parametrize(
    "make", [methods.EWC, methods.MAS, methods.LwF, lambda: methods.Replay(20) + methods.LwF(), methods.SLDA]
)
def test_methods_learn_with_a_network_of_keyword_inputs(make, recwarn):
    method = make()
    learner = Learner(
        models.adapt(Tiny()), method, scenario="task", batch_size=8, epochs=20, optimizer={"name": "adam", "lr": 0.01}
    )
    for number, labels in enumerate([(0, 1), (2, 3)]):
        rows = sentences(80, labels, seed=number)
        learner.learn(Task(rows, test=sentences(40, labels, seed=number + 9), name=f"task {number}"))
    last = Task(rows, test=sentences(40, (2, 3), seed=11), name="task 1")
    assert learner.evaluate(last) > 0.8  # the first word says it; chance is 0.5
    assert not [w for w in recwarn if "importances go on" in str(w.message)]


def test_a_learner_of_such_a_network_is_saved_and_loaded(tmp_path):
    learner = Learner(models.adapt(Tiny(), classes=["no", "yes"]), methods.EWC(), scenario="class", batch_size=8)
    x, y = sentences(labels=(2, 3))
    learner.learn(Task((x, ["maybe" if label == 2 else "never" for label in y]), name="more"))
    learner.save(tmp_path / "file")
    again = Learner.load(tmp_path / "file", model=models.adapt(Tiny(), classes=["no", "yes"]))
    assert torch.equal(again.predict_proba(x), learner.predict_proba(x))
    assert again.classes[:2] == ["no", "yes"] and again.model.network.config.num_labels == 4


def test_a_tiny_bert_made_of_its_configuration_is_taught_new_labels():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=2
    )
    network = transformers.BertForSequenceClassification(config).eval()
    x, _ = sentences(kinds=True)
    before = network(**x).logits
    model = models.adapt(network, classes=["no", "yes"])
    assert model.path == "classifier" and torch.equal(model(x), before)
    learner = Learner(model, methods.EWC(rows=20), scenario="class", batch_size=8)
    for labels in [(2, 3), (4, 5)]:
        rows, y = sentences(labels=labels, kinds=True)
        learner.learn(Task((rows, y), name=f"labels {labels}", classes=labels))
    assert network.config.num_labels == network.num_labels == 6 and network.config.id2label[0] == "no"
    assert network(**x, labels=torch.full((40,), 5)).loss.isfinite()


# ---- in the manner of torchvision and timm ----


def features(width):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, width))


class Resnet(nn.Module):
    """Its output is fc."""

    def __init__(self):
        super().__init__()
        self.body, self.fc = features(6), nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(self.body(x))


class Efficient(nn.Module):
    """Its output is classifier.1."""

    def __init__(self):
        super().__init__()
        self.features = features(6)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(6, 3))

    def forward(self, x):
        return self.classifier(self.features(x))


class Vit(nn.Module):
    """Its output is heads.head; a LayerNorm stands before it."""

    def __init__(self):
        super().__init__()
        self.num_classes = 3
        self.encoder, self.ln = features(6), nn.LayerNorm(6)
        self.heads = nn.Sequential()
        self.heads.add_module("head", nn.Linear(6, 3, bias=False))

    def forward(self, x):
        return self.heads(self.ln(self.encoder(x)))


class Timm(Resnet):
    """It says itself which layer is its output; that is not the last one, nor called like one."""

    def __init__(self):
        super().__init__()
        self.num_classes, self.fc, self.last = 3, nn.Identity(), nn.Linear(6, 3)
        self.helper = nn.Linear(2, 2)

    def get_classifier(self):
        return self.last

    def forward(self, x):
        return self.last(self.fc(self.body(x)))


@pytest.mark.parametrize(
    ("make", "path"), [(Resnet, "fc"), (Efficient, "classifier.1"), (Vit, "heads.head"), (Timm, "last")]
)
def test_the_output_of_a_usual_network_is_found_and_grows(make, path):
    network = make().eval()
    x = torch.randn(4, 3, 8, 8)
    before = network(x)
    model = models.adapt(network, classes="abc")
    assert model.path == path and torch.equal(model(x), before)
    model.grow(5, generator())
    assert model(x).shape == (4, 5) and torch.allclose(model(x)[:, :3], before, atol=1e-6)
    assert torch.allclose(model.head(model.features(x)), model(x))
    assert getattr(network, "num_classes", 5) == 5
    if make is Timm:
        assert network.get_classifier() is model.head


def test_a_head_without_bias_stays_without_whether_it_is_kept_or_drawn_anew():
    for classes in (None, "abc"):
        model = models.adapt(Vit(), classes=classes)
        model.grow(20, generator())
        assert len(model.head.biases) == 0
        assert torch.equal(model.head(torch.zeros(1, 6)), torch.zeros(1, 20))
    drawn = models.adapt(Resnet())
    drawn.grow(3, generator())
    assert len(drawn.head.biases) == 1


def test_auxiliary_scores_of_another_width_are_left_aside():
    class Aux(Resnet):
        def __init__(self):
            super().__init__()
            self.aux = nn.Linear(6, 3)
            self.fc = nn.Linear(6, 3)

        def forward(self, x):
            x = self.body(x)
            return self.fc(x), self.aux(x)

    model = models.adapt(Aux(), head="fc", classes="abc")
    x = torch.randn(2, 3, 8, 8)
    with pytest.raises(TypeError, match="returned tuple, expected the scores of its head 'fc'"):
        model(x)  # both might be meant
    model.grow(4, generator())
    assert torch.equal(model(x), model.head(model.features(x)))


# ---- what is refused, and why ----


def test_a_convolution_as_output_is_refused_with_the_layers_to_write_instead():
    class Squeeze(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Conv2d(3, 6, 3)
            self.classifier = nn.Sequential(nn.Dropout(), nn.Conv2d(6, 3, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))

        def forward(self, x):
            return self.classifier(self.features(x)).flatten(1)

    with pytest.raises(ValueError, match=r"layers are none; .* 1x1 convolution 'classifier.1' is no head: pool first"):
        models.adapt(Squeeze())
    with pytest.raises(TypeError, match=r"'classifier.1' is a Conv2d: .*AdaptiveAvgPool2d.*nn.Linear\(6, 3\)") as said:
        models.adapt(Squeeze(), head="classifier.1")
    network = Squeeze()
    written = re.search(r"nn\.Sequential\(.*\)\)", str(said.value)).group()
    network.classifier = eval(written, {"nn": nn})  # what the sentence says works
    assert models.adapt(network, head="classifier.2", classes="abc")(torch.zeros(2, 3, 8, 8)).shape == (2, 3)


def test_a_tied_or_shared_layer_is_refused_and_the_way_out_works():
    class Language(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(9, 4)
            self.score = nn.Linear(4, 9, bias=False)
            self.score.weight = self.words.weight

        def forward(self, x):
            return self.score(self.words(x).mean(1))

    with pytest.raises(ValueError, match=r"'score' is tied to words.weight.*Untie it first"):
        models.adapt(Language())
    network = Language()
    network.score.weight = nn.Parameter(network.score.weight.detach().clone())
    assert models.adapt(network, classes=range(9))(torch.zeros(2, 3, dtype=torch.long)).shape == (2, 9)
    twice = Resnet()
    twice.head = twice.fc
    with pytest.raises(ValueError, match=r"'fc' is registered in several places \(fc, head\)"):
        models.adapt(twice)


def test_a_parametrized_layer_is_refused_and_says_what_is_computed():
    network = Resnet()
    nn.utils.parametrizations.spectral_norm(network.fc)
    with pytest.raises(TypeError, match=r"ParametrizedLinear, whose weight is computed anew on every pass"):
        models.adapt(network, head="fc")


def test_where_several_layers_might_be_the_output_the_error_lists_them():
    class Two(Resnet):
        def __init__(self):
            super().__init__()
            self.extra, self.head = nn.Linear(6, 2), nn.Linear(6, 2)
            self.regressor = nn.Linear(6, 1)

    with pytest.raises(ValueError, match=r"can't tell .* of Two .* body.4, fc, extra, head, regressor; pass head="):
        models.adapt(Two())
    assert models.adapt(Two(), head="fc").path == "fc"


def test_a_head_that_is_called_twice_still_scores_but_has_no_features():
    class Twice(Resnet):
        def forward(self, x):
            x = self.body(x)
            return self.fc(x) + self.fc(-x)

    model = models.adapt(Twice(), classes="abc")
    x = torch.randn(2, 3, 8, 8)
    assert model(x).shape == (2, 3)
    with pytest.raises(RuntimeError, match="called its head 'fc' 2 times"):
        model.features(x)
    unseen = Resnet()
    unseen.shortcut = [unseen.fc]  # a list is no module: the layer in it is not replaced
    unseen.forward = lambda x: unseen.shortcut[0](unseen.body(x))
    model = models.adapt(unseen, classes="abc")
    with pytest.raises(RuntimeError, match="called its head 'fc' 0 times"):
        model.features(x)
    model.grow(4, generator())
    with pytest.raises(TypeError, match=r"returned \[2, 3\], expected .* \[n, 4\]"):
        model(x)


@pytest.mark.parametrize("low", [float("-inf"), -1e9, torch.finfo(torch.float32).min])
def test_a_network_that_masks_its_scores_is_refused_before_it_learns(low):
    class Masks(Resnet):
        def forward(self, x):
            scores = super().forward(x)
            return scores.masked_fill(torch.arange(scores.shape[1]) == 1, low)

    learner = Learner(models.adapt(Masks(), classes="abc"), methods.Finetune(), scenario="class", batch_size=4)
    with pytest.raises(ValueError, match="columns 1 are masked, or are not finite"):
        learner.learn(Task((torch.rand(8, 3, 8, 8), ["d", "e"] * 4), name="more"))
    assert learner.classes == ["a", "b", "c"] and learner.clock.step == 0
