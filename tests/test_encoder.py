"""Texts by a frozen Hugging Face encoder: a tiny one, made here from its configuration."""

import itertools
import shutil

import pyarrow as pa
import pytest
import safetensors.torch
import torch

from perdure import Learner, Task, methods, recipes, sealed
from perdure.recipes import TableError
from perdure.recipes.encoder import open_encoder
from perdure.store.store import Store

GOOD, BAD = "a good film", "a bad film"
TEXTS = pa.table({"text": [GOOD, BAD, "the film was good", "the film was bad and long"] * 30, "label": [1, 0] * 60})

WORDS = ("good", "bad", "film", "was")
MANY = pa.table({  # many texts, each once
    "text": [" ".join(words) for words in itertools.product(WORDS, WORDS, WORDS, WORDS)][:160],
    "label": [0, 1] * 80,
})  # fmt: skip


@pytest.fixture
def transformers():
    return pytest.importorskip("transformers", reason="needs the extra text")


@pytest.fixture
def folder(tmp_path, transformers):
    """A BERT of one layer and its tokenizer, as `save_pretrained` writes them."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[PAD]", "[UNK]", "a", "good", "bad", "film", "the", "was", "and", "long"]
    cut = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    cut.pre_tokenizer = pre_tokenizers.Whitespace()
    place = tmp_path / "encoder"
    transformers.PreTrainedTokenizerFast(tokenizer_object=cut, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        place
    )
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=8,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.BertModel(config).save_pretrained(place)
    open_encoder.cache_clear()
    yield place
    open_encoder.cache_clear()


def text(folder, **settings):
    return recipes.build({"name": "text", "encoder": str(folder), **settings})


def test_vectors_are_the_mean_over_a_texts_own_tokens_divided_by_its_length(folder, transformers):
    recipe = text(folder)
    recipe.fit(TEXTS)
    found = recipe.inputs(TEXTS[:4])  # of unlike lengths, read together
    cut, model = transformers.AutoTokenizer.from_pretrained(folder), transformers.AutoModel.from_pretrained(folder)
    for row in range(4):
        with torch.no_grad():
            hidden = model.eval()(**cut(TEXTS["text"][row].as_py(), return_tensors="pt")).last_hidden_state[0]
        assert torch.allclose(found[row], hidden.mean(0) / hidden.mean(0).norm(), atol=1e-6)
    assert found.shape == (4, 16) and found.dtype == torch.float32
    assert torch.allclose(found.norm(dim=1), torch.ones(4))
    assert torch.allclose(recipe.inputs(TEXTS)[:4], found, atol=1e-6)


def test_only_the_first_tokens_count(folder):
    recipe = text(folder, most=2)
    recipe.fit(TEXTS)
    found = recipe.inputs(pa.table({"text": ["a good film", "a good long long", "a bad film", ""]}))
    assert torch.allclose(found[0], found[1], atol=1e-6) and not torch.allclose(found[0], found[2], atol=1e-3)
    assert torch.equal(found[3], torch.zeros(16))
    long = text(folder)  # longer than the encoder can read
    long.fit(TEXTS)
    assert long.inputs(pa.table({"text": ["film " * 50]})).isfinite().all()


def test_chance_is_left_alone_and_the_encoder_does_not_learn(folder):
    before = torch.get_rng_state()
    recipe = text(folder)
    recipe.fit(TEXTS)
    assert torch.equal(before, torch.get_rng_state())
    model = open_encoder(str(folder)).model
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    weights = {name: p.clone() for name, p in model.named_parameters()}
    learner = Learner(recipe.network(), methods.SLDA(), scenario="class")
    learner.learn(Task(recipe.rows(TEXTS)))
    assert learner.predict(recipe.rows(TEXTS, labelled=False))[:2].tolist() == [1, 0]
    assert all(torch.equal(weights[name], p) for name, p in model.named_parameters())


def test_another_encoder_under_the_same_name_is_refused(folder, transformers):
    recipe = text(folder)
    recipe.fit(TEXTS)
    again = recipes.build(recipe.settings())
    again.load_state(recipe.state())
    assert torch.equal(again.inputs(TEXTS), recipe.inputs(TEXTS))
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"hidden_act": "gelu"', '"hidden_act": "relu"'))
    open_encoder.cache_clear()
    with pytest.raises(TableError, match="another one than was learnt with"):
        again.inputs(TEXTS)


def test_a_pickle_is_refused_and_never_opened(folder, transformers):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nabort\n.")
    with pytest.raises(TableError, match=r"pytorch_model.bin, a pickle.*safetensors"):
        text(folder).fit(TEXTS)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(TableError, match="no weights"):
        text(folder).fit(TEXTS)


def test_an_encoder_that_lacks_weights_is_refused(folder):
    whole = safetensors.torch.load_file(folder / "model.safetensors")
    lacking = {name: tensor for name, tensor in whole.items() if "attention.self.query" not in name}
    safetensors.torch.save_file(lacking, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TableError, match="no weights for"):
        text(folder).fit(TEXTS)


def test_a_store_has_it_on_the_card_of_a_version(folder, tmp_path):
    _, outcome = Store.init("films", MANY, recipe=text(folder), root=tmp_path, training={"epochs": 2})
    pin = sealed.read(tmp_path / "films/versions/0001/card.json")["pins"][str(folder)]
    assert outcome.card["pins"] == {str(folder): pin} and len(pin) == 64
    assert Store("films", tmp_path).predict(MANY).num_rows == 160
    shutil.rmtree(folder)
    open_encoder.cache_clear()
    with pytest.raises(TableError, match="no such encoder"):
        Store("films", tmp_path).predict(TEXTS)


def test_where_no_rows_are_kept_a_frozen_body_gets_slda_and_old_labels_are_judged_on_drawn_features(folder, tmp_path):
    store, _ = Store.init("films", MANY, recipe=text(folder), root=tmp_path, keep_rows=False)
    assert store.settings["method"]["name"] == "slda"
    labels = [2] * MANY.num_rows
    more = MANY.set_column(
        0, "text", [[f"{words} was was was {row}" for row, words in enumerate(MANY["text"].to_pylist())]]
    )
    outcome = store.update(more.set_column(more.column_names.index("label"), "label", [labels]))
    assert "0001-drawn" in [exam["exam"] for exam in outcome.card["exams"]]
    assert (
        Store.init(
            "words", MANY, recipe=recipes.build({"name": "text", "buckets": 1024}), root=tmp_path, keep_rows=False
        )[0].settings["method"]["name"]
        == "ewc"
    )


def test_without_an_encoder_nothing_is_pinned_and_what_was_saved_before_still_loads():
    recipe = recipes.build({"name": "text"})
    recipe.fit(TEXTS)
    assert recipe.pins() == {}
    old = {name: value for name, value in recipe.state().items() if name not in ("pin", "width")}
    again = recipes.build({"name": "text"})
    again.load_state(old)
    assert torch.equal(again.inputs(TEXTS), recipe.inputs(TEXTS)) and again.kind == "int"


def test_an_encoder_must_be_fitted_first():
    with pytest.raises(RuntimeError, match="knows nothing yet"):
        recipes.build({"name": "text", "encoder": "anything"}).network()
