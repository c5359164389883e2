"""A person's table into rows: what a recipe refuses, what it learns from the first rows, what it never moves."""

import datetime
import io
import json
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure import Learner, Task, checkpoint, recipes
from perdure.methods import EWC, Finetune, Replay

pa = pytest.importorskip("pyarrow")
image = pytest.importorskip("PIL.Image")

from perdure.recipes import Image, Plain, TableError, Tabular, Text  # noqa: E402


def everything(rows):
    return rows.read(torch.arange(len(rows)))


def encoded(pixels, kind="PNG"):
    buffer = io.BytesIO()
    image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(buffer, kind)
    return {"bytes": buffer.getvalue(), "path": "x"}


def grey(value, size=(6, 8)):
    return np.full(size, value)


WORDS = pa.table({"text": ["good film", "Bad film", "good"] * 20, "label": ["+", "-", "+"] * 20})
PEOPLE = pa.table(
    {"age": [30.0, None, 50.0, 41.0] * 20, "site": ["a", "b", None, "a"] * 20, "label": [0, 1, 0, 1] * 20}
)
PICTURES = pa.table({"image": [encoded(grey(n)) for n in (0, 250) * 20], "label": [0, 1] * 20})
NUMBERS = pa.table({"a": [1, 2, 3, 4], "b": [0.5, 0, 1, 2], "label": ["x", "y"] * 2})
EACH = {
    "text": (Text(buckets=1024, most=16), WORDS),
    "tabular": (Tabular(), PEOPLE),
    "image": (Image(), PICTURES),
    "plain": (Plain(), NUMBERS),
}
each = pytest.mark.parametrize("name", EACH)


def fresh(name):
    recipe, table = EACH[name]
    return recipes.build(recipe.settings()), table


def flat(x):
    return x if isinstance(x, dict) else {"x": x}


def same(one, other):
    one, other = flat(one), flat(other)
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# ---- the same for all


@each
def test_settings_and_state_survive_a_file_and_give_the_same_rows(name, tmp_path):
    recipe, table = fresh(name)
    recipe.check(table, labelled=True)
    recipe.fit(table)
    checkpoint.write(tmp_path / "r", {"settings": recipe.settings(), "state": recipe.state()}, "recipe")
    tree = checkpoint.read(tmp_path / "r", "recipe")
    again = recipes.build(json.loads(json.dumps(tree["settings"])))
    again.load_state(tree["state"])
    assert again.settings() == recipe.settings() and again.state() == recipe.state()
    assert same(everything(recipe.rows(table)), everything(again.rows(table, labelled=False)))
    assert recipe.rows(table).labels == recipe.labels(table) == table["label"].to_pylist()


@each
def test_a_state_is_a_copy(name):
    recipe, table = fresh(name)
    recipe.fit(table)
    before, given = json.dumps(recipe.state()), recipe.state()
    other = recipes.build(recipe.settings())
    other.load_state(given)
    wider = table if name != "tabular" else pa.table({"age": [1.0], "site": ["new"], "label": [0]})
    other.extend(wider)
    assert json.dumps(given) == before
    for value in given.values():
        if isinstance(value, dict | list):
            value.clear()
    assert json.dumps(recipe.state()) == before


@each
def test_contents_leave_the_label_out_and_do_not_depend_on_what_was_fitted(name):
    recipe, table = fresh(name)
    first = list(recipe.contents(table))
    recipe.fit(table.slice(0, 2))
    recipe.extend(table)
    assert list(recipe.contents(table)) == first and len(first) == len(table)
    others = table.set_column(table.column_names.index("label"), "label", pa.array(["z"] * len(table)))
    assert list(recipes.build(recipe.settings()).contents(others)) == first
    assert len(set(first)) > 1


@pytest.mark.parametrize("name", ["text", "tabular", "image"])
@pytest.mark.parametrize("method", [Finetune, lambda: EWC(10.0) + Replay(20)], ids=["plain descent", "EWC and replay"])
def test_a_network_learns_the_rows_and_is_rebuilt(name, method, tmp_path, recwarn):
    recipe, table = fresh(name)
    recipe.fit(table)
    learner = Learner(recipe.network(), method(),
                      scenario="class", **{**recipe.training, "epochs": 12, "batch_size": 8})  # fmt: skip
    learner.learn(Task(recipe.rows(table), name="1"))
    learner.learn(Task(recipe.rows(table), name="2"))
    said = learner.predict(recipe.rows(table, labelled=False))
    assert (said if isinstance(said, list) else said.tolist()) == recipe.labels(table)
    learner.save(tmp_path / "l")
    again = Learner.load(tmp_path / "l")
    assert torch.equal(
        again.predict_proba(everything(recipe.rows(table))), learner.predict_proba(everything(recipe.rows(table)))
    )
    assert not [w for w in recwarn if "importances go on" in str(w.message)]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"txt": ["a"], "label": [1]}, r"there is no column 'text'; the table has .* Did you mean 'txt'"),
        ({"text": ["a"], "lable": [1]}, "there is no column 'label'.*'lable'"),
        ({"text": ["a", "b"], "label": [1, None]}, "row 1 has no label"),
        ({"text": ["a", "b"], "label": [1.0, float("nan")]}, "row 1 has no label"),
        ({"text": ["a", "b"], "label": [1.0, float("inf")]}, "row 1 has the label inf"),
        ({"text": ["a"], "label": [[1]]}, r"row 0 has the label \[1\]; labels are whole numbers or words"),
        ({"text": ["a"], "label": ["w" * 201]}, "Is 'label' the column of labels"),
        ({"text": ["a"], "label": pa.array([2**64 - 1], pa.uint64())}, "beyond 64 bits"),
        ({"text": [None, "b"], "label": [1, 2]}, "row 0 has no text"),
        ({"text": [7, 8], "label": [1, 2]}, "holds 7 in row 0, which is no text"),
        ({"text": pa.array([], pa.string()), "label": pa.array([], pa.int64())}, "has no rows"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_before_anything_is_learnt(table, words):
    with pytest.raises(TableError, match=words):
        Text().check(pa.table(table), labelled=True)


def test_without_labels_no_label_is_asked_for():
    Text().check(pa.table({"text": ["a"]}), labelled=False)
    with pytest.raises(TableError, match="no column 'label'"):
        Text().check(pa.table({"text": ["a"]}), labelled=True)


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([3, 1], [3, 1]),
        ([3.0, -1.0], [3, -1]),
        ([1.5, 2.0], ["1.5", "2.0"]),
        ([True, False], ["true", "false"]),
        (["True", "FALSE"], ["true", "false"]),
        ([" a ", "A", ""], [" a ", "A", ""]),
        (["1", "x"], ["1", "x"]),
        (["é", "e\u0301"], ["é", "e\u0301"]),
    ],
)
def test_labels_have_one_form(values, labels):
    found = Text().labels(pa.table({"label": values}))
    assert found == labels and [type(v) for v in found] == [type(v) for v in labels]


@pytest.mark.parametrize(
    ("first", "later", "labels"),
    [
        (["1", "x"], [1, 2], ["1", "2"]),
        (["1", "x"], [1.0, 2.5], ["1", "2.5"]),
        ([1, 2], ["1", "3"], [1, 3]),
        ([1, 2], [3.0], [3]),
        ([1.5], [2], ["2.0"]),
        ([True], ["TRUE", "false"], ["true", "false"]),
        ([True], [1, 0], ["true", "false"]),
        ([1, 2], ["x"], None),
        ([1, 2], [2.5], None),
        ([1, 2], [True], None),
        ([True], ["maybe"], None),
    ],
)
def test_what_labels_were_first_they_stay(first, later, labels):
    recipe = Text()
    recipe.fit(pa.table({"text": ["a"] * len(first), "label": first}))
    table = pa.table({"label": later})
    if labels is None:
        with pytest.raises(TableError, match="row 0 has the label"):
            recipe.labels(table)
    else:
        assert recipe.labels(table) == labels


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "txt"}, "there is no recipe 'txt'; did you mean 'text'"),
        ({"name": "text", "ngram": 3}, "recipe 'text' has no setting 'ngram'; did you mean 'ngrams'"),
        ({"name": "text", "kind": "int"}, "no setting 'kind'"),
        ({"name": "text", "buckets": 1000}, "buckets is a power of two"),
        ({"name": "text", "most": 0}, "most is 0"),
        ({"name": "text", "text": "label"}, "both the column"),
        ({"name": "image", "net": "convnt"}, "did you mean 'convnet'"),
        ({"name": "image", "size": [3]}, r"size is \[3\]"),
        ({"name": "tabular", "numbers": ["label"]}, "named twice"),
        ({"name": "plain", "x": "label"}, "among the inputs too"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        recipes.build(settings)


@pytest.mark.parametrize("name", ["tabular", "image", "plain"])
def test_rows_before_the_first_fit_are_refused(name):
    recipe, table = fresh(name)
    with pytest.raises(RuntimeError, match="call fit"):
        recipe.rows(table)


# ---- texts


def test_words_are_hashed_the_same_everywhere():
    x = everything(
        Text(most=4).rows(pa.table({"text": ["The film, THE Film!", "", "... <-->", "电影 好"], "label": [0] * 4}))
    )
    the, film = (zlib.crc32(word) & (2**31 - 1) for word in (b"the", b"film"))
    assert x.dtype == torch.int32 and x[0].tolist() == [the, film, the, film]
    assert x[1:3].tolist() == [[0] * 4] * 2 and (x[3] != 0).tolist() == [True, True, True, False]


def test_the_network_is_the_mean_of_word_and_pair_vectors():
    recipe = Text(buckets=64, most=5)
    bag = recipe.network().body[0]
    x = everything(recipe.rows(pa.table({"text": ["a b", "b a", "a b c d e", ""], "label": [0] * 4})))
    ids = bag.ids(x)
    assert ids.shape == (4, 10) and (ids != 0).sum(1).tolist() == [3, 3, 9, 0]
    assert int(ids.max()) <= 64 and ids[0, :2].tolist() == ids[1, [1, 0]].tolist()
    assert ids[0, 5] != ids[1, 5], "a b is not b a"
    assert ids[2, 5] == ids[0, 5], "a pair is the same wherever it stands"
    by_hand = torch.stack([16 * bag.weight[row[row != 0]].sum(0) / max(1, int((row != 0).sum())) for row in ids])
    torch.testing.assert_close(bag(x), by_hand)
    assert not bag(x)[3].any()


def test_buckets_are_used_evenly():
    bag = Text(buckets=256, most=20).network().body[0]
    words = " ".join(f"word{n}" for n in range(20 * 500)).split()
    table = pa.table({"text": [" ".join(words[n : n + 20]) for n in range(0, len(words), 20)], "label": [0] * 500})
    ids = bag.ids(everything(Text(most=20).rows(table)))
    for part in (ids[:, :20], ids[:, 20:39]):
        counts = torch.bincount(part.flatten(), minlength=257)[1:].float()
        expected = counts.sum() / 256
        assert float(((counts - expected) ** 2 / expected).sum()) < 350  # chi-square, 255 degrees of freedom, 0.9999


# ---- tables


def test_numbers_are_standardised_imputed_and_marked_always():
    recipe = Tabular()
    recipe.fit(PEOPLE)
    x = everything(recipe.rows(PEOPLE))
    age = torch.tensor([30.0, 41.0, 50.0, 41.0])  # 41 is the median of 30, 50, 41
    known = torch.tensor([30.0, 50.0, 41.0])
    expected = (age - known.mean()) / known.std(correction=0)
    torch.testing.assert_close(x["numbers"][:4], torch.stack([expected, torch.tensor([0.0, 1, 0, 0])], 1))
    assert x["numbers"].dtype == torch.float32 and x["categories"].dtype == torch.int64
    assert x["categories"][:4, 0].tolist() == [1, 2, 0, 1]
    full = pa.table({"a": [1, 2], "label": [0, 1]})
    recipe = Tabular()
    recipe.fit(full)
    assert everything(recipe.rows(full))["numbers"].tolist() == [[-1, 0], [1, 0]]
    later = pa.table({"a": [None, 3], "label": [0, 1]})
    assert everything(recipe.rows(later))["numbers"].tolist() == [[0, 1], [3, 0]]
    far = pa.table({"a": [1e308, -1e308, 40.0], "label": [0, 1, 0]})
    assert everything(recipe.rows(far))["numbers"][:, 0].tolist() == [20, -20, 20]


def test_scalers_never_move_and_new_categories_are_appended():
    recipe = Tabular()
    recipe.fit(PEOPLE)
    before = everything(recipe.rows(PEOPLE))
    later = pa.table({"age": [90.0, 1.0], "site": ["z", "a"], "label": [0, 1]})
    assert everything(recipe.rows(later))["categories"].tolist() == [[255], [1]]
    recipe.extend(later)
    assert everything(recipe.rows(later))["categories"].tolist() == [[3], [1]]
    assert same(everything(recipe.rows(PEOPLE)), before)
    many = pa.table({"age": [1.0] * 400, "site": [f"s{n}" for n in range(400)], "label": [0] * 400})
    recipe.extend(many)
    codes = everything(recipe.rows(many))["categories"][:, 0]
    assert codes[:251].tolist() == list(range(4, 255)) and set(codes[251:].tolist()) == {255}


def test_a_new_category_is_neutral():
    recipe = Tabular()
    recipe.fit(PEOPLE)
    network = recipe.network()
    network.grow(2, torch.Generator().manual_seed(0))
    x = everything(recipe.rows(PEOPLE.slice(0, 1)))
    scores = [network({**x, "categories": torch.tensor([[code]])}) for code in (0, 1, 9, 255)]
    assert all(torch.equal(scores[0], other) for other in scores)


def test_a_category_is_one_however_it_is_written():
    tables = [[1, 2, None], ["1", "2", None], [1.0, 2.0, None], ["1.0", "2e0", ""], [1, 2, float("nan")]]
    recipe = Tabular(categories=["c"])
    tables = [pa.table({"c": column, "label": [0, 1, 0]}) for column in tables]
    recipe.fit(tables[0])
    contents = [list(recipe.contents(table)) for table in tables]
    for table, content in zip(tables, contents, strict=True):
        assert everything(recipe.rows(table))["categories"].tolist() == [[1], [2], [0]]
        assert content == contents[0]


def test_a_column_without_values_is_neutral_until_some_come():
    empty = pa.table({"a": pa.array([None, None], pa.float64()), "b": [1, 1], "label": [0, 1]})
    recipe = Tabular()
    recipe.fit(empty)
    assert everything(recipe.rows(empty))["numbers"].tolist() == [[0, 0, 1, 0]] * 2
    later = pa.table({"a": [100.0, 300.0], "b": [1, 4], "label": [0, 1]})
    assert everything(recipe.rows(later))["numbers"].tolist() == [[0, 0, 0, 0], [0, 3, 0, 0]]
    recipe.extend(later)
    assert everything(recipe.rows(later))["numbers"].tolist() == [[-1, 0, 0, 0], [1, 3, 0, 0]]
    assert everything(recipe.rows(empty))["numbers"][:, 0].tolist() == [0, 0]


def test_columns_are_guessed_by_type_and_can_be_named():
    table = pa.table(
        {"n": [1, 2], "w": ["a", "b"], "f": [True, False], "when": [datetime.date(2020, 1, 1)] * 2, "label": [0, 1]}
    )
    with pytest.raises(TableError, match=r"column 'when' holds date32.*ignore="):
        Tabular().check(table)
    recipe = Tabular(ignore=["when"])
    recipe.fit(table)
    assert (list(recipe.scales), list(recipe.known)) == (["n"], ["w", "f"])
    recipe = Tabular(numbers=["f"], categories=["n", "when"])
    recipe.fit(table)
    assert (list(recipe.scales), list(recipe.known)) == (["f"], ["n", "when"])
    recipe = Tabular(numbers=["n"], categories=[])
    recipe.fit(table)
    assert list(everything(recipe.rows(table))) == ["numbers"]
    only = Tabular(numbers=[], ignore=["when"])
    only.fit(table)
    network = only.network()
    network.grow(2, torch.Generator())
    assert network(everything(only.rows(table))).shape == (2, 2)


@pytest.mark.parametrize(
    ("recipe", "column", "words"),
    [
        (Tabular(numbers=["a"]), ["1", "x"], "row 1 holds 'x' in column 'a', which is a column of numbers"),
        (Tabular(), [1.0, float("inf")], "row 1 holds inf in column 'a'"),
        (Tabular(ignore=["b"]), [1, 2], "there is no column 'b'"),
        (Tabular(missing={"b": [0]}), [1, 2], "there is no column 'b'"),
        (Tabular(missing={"label": [0]}), [1, 2], "codes for the column 'label', which is no input"),
        (Tabular(ignore=["a"]), [1, 2], "is left to learn from"),
        (Tabular(categories=["a"]), [[1], [2]], "holds a list in column 'a'"),
    ],
)
def test_columns_that_cannot_be_used_are_refused(recipe, column, words):
    with pytest.raises(TableError, match=words):
        recipe.check(pa.table({"a": column, "label": [0, 1]}))


def test_a_later_table_must_have_the_columns():
    recipe = Tabular()
    recipe.fit(PEOPLE)
    with pytest.raises(TableError, match=r"no column 'age'.*Did you mean 'Age'"):
        recipe.check(pa.table({"Age": [1], "site": ["a"], "label": [0]}))
    with pytest.raises(TableError, match="row 0 holds 'old' in column 'age'"):
        recipe.check(pa.table({"age": ["old"], "site": ["a"], "label": [0]}))


WRITTEN = ["1", "1.0", " 1", "nan", "inf", "1e999", "9" * 400, "٣", "", "True"]
ODD = st.one_of(
    *(
        st.lists(st.one_of(st.none(), values), min_size=1, max_size=6)
        for values in (
            st.floats(),
            st.floats(allow_infinity=False),
            st.integers(-(2**63), 2**63 - 1),
            st.booleans(),
            st.text(st.characters(exclude_categories=["Cs"]), max_size=9),
            st.sampled_from(WRITTEN),
            st.decimals(-99, 99, places=2),
            st.binary(max_size=9),
            st.dates(),
            st.lists(st.integers(0, 9), max_size=2),
        )
    ),
    st.lists(st.integers(2**63, 2**64 - 1), min_size=1, max_size=6).map(lambda found: pa.array(found, pa.uint64())),
)
ANY = st.sampled_from(
    [
        Tabular(), Tabular(numbers=["a"], categories=["b"]), Tabular(categories=["a"], numbers=["b"]),
        Tabular(missing={"a": [0, "x"]}), Text(text="a", most=4), Plain(x=["a", "b"]), Plain(), Image(image="a"),
    ]
)  # fmt: skip


def mostly(values):
    """Lists of such values, or, one time in three, of anything."""
    usual = st.lists(values, min_size=1, max_size=6)
    return st.integers(0, 2).flatmap(lambda chance: usual if chance else ODD)


LABEL = st.sampled_from([st.integers(0, 3), st.text("abé", max_size=2)]).flatmap(mostly)
COLUMN = st.sampled_from(
    [
        st.one_of(st.none(), st.integers(0, 3)),
        st.one_of(st.none(), st.floats(allow_infinity=False)),
        st.text(st.characters(exclude_categories=["Cs"])),
        st.sampled_from([encoded(grey(1))["bytes"], encoded(grey(2, (9, 9, 3)))["bytes"]]),
    ]
).flatmap(mostly)


@settings(max_examples=400, deadline=None)
@given(ANY, COLUMN, COLUMN, LABEL, COLUMN)
def test_any_table_is_refused_with_a_sentence_or_gives_finite_rows(made, a, b, label, later):
    count = min(len(a), len(b), len(label), len(later))
    try:
        tables = [pa.table({"a": c[:count], "b": b[:count], "label": label[:count]}) for c in (a, later)]
    except pa.ArrowInvalid:
        return  # not a table at all
    recipe = recipes.build(made.settings())
    accepted = 0
    for table in tables:
        try:
            recipe.check(table, labelled=True)
        except TableError as refusal:
            assert str(refusal)
            continue
        contents = list(recipe.contents(table))
        if accepted:
            recipe.extend(table)
        else:
            recipe.fit(table)
        rows = recipe.rows(table)  # what was checked can be used
        accepted += 1
        rows.check()
        assert len(rows) == len(contents) == count and list(recipe.contents(table)) == contents
        assert rows.labels == recipe.labels(table) and len({type(value) for value in rows.labels}) == 1
        recipe.state()


# ---- images


def test_images_take_the_size_and_channels_of_the_first_update():
    recipe = Image()
    first = pa.table({"image": [encoded(grey(9)), encoded(grey(9)), encoded(grey(1, (9, 9)))], "label": [0, 1, 1]})
    recipe.fit(first)
    x = everything(recipe.rows(first))
    assert recipe.shape == [1, 6, 8] and x.dtype == torch.uint8 and x[:, 0, 0, 0].tolist() == [9, 9, 1]
    colour = np.zeros((20, 30, 3))
    colour[..., 1] = 200
    later = pa.table({"image": [encoded(colour)], "label": [0]})
    recipe.check(later)
    assert everything(recipe.rows(later)).shape == (1, 1, 6, 8)
    mixed = Image()
    mixed.fit(pa.concat_tables([later, first]))
    assert mixed.shape == [3, 6, 8]
    assert everything(mixed.rows(later))[0, :, 0, 0].tolist() == [0, 200, 0]
    assert everything(mixed.rows(first))[0, :, 0, 0].tolist() == [9, 9, 9]


def test_large_images_are_made_smaller_and_a_size_overrides():
    table = pa.table({"image": [encoded(grey(9, (300, 600)))], "label": [0]})
    for recipe, shape in ((Image(), [1, 64, 128]), (Image(size=[10, 12]), [1, 10, 12])):
        recipe.fit(table)
        assert recipe.shape == shape
        network = recipe.network()
        network.grow(2, torch.Generator())
        assert network(everything(recipe.rows(table)).float()).shape == (1, 2)


@pytest.mark.parametrize("net", ["auto", "mlp", "convnet", "resnet18"])
@pytest.mark.parametrize("size", [(6, 8), (4, 100), (28, 28)])
def test_every_network_takes_every_size(net, size):
    recipe, table = Image(net=net), pa.table({"image": [encoded(grey(9, size))], "label": [0]})
    recipe.fit(table)
    network = recipe.network().eval()
    assert network.recipe["name"] == {"auto": "mlp" if max(size) <= 32 else "convnet"}.get(net, net)
    network.grow(2, torch.Generator())
    assert network(everything(recipe.rows(table)).float()).shape == (1, 2)


def test_the_same_picture_has_one_content_however_it_is_stored():
    pixels = np.arange(48).reshape(6, 8)
    three = [encoded(pixels), encoded(pixels, "BMP"), encoded(np.stack([pixels] * 3, 2)), encoded(pixels + 1)]
    contents = list(Image().contents(pa.table({"image": three})))
    assert contents[0] == contents[1] == contents[2] != contents[3]
    assert list(Image().contents(pa.table({"image": [three[0]["bytes"]]}))) == contents[:1]
    turned = pa.table({"image": [encoded(grey(5, (4, 6))), encoded(grey(5, (6, 4)))]})
    assert len(set(Image().contents(turned))) == 2


def bomb(width, height):
    """A PNG of a few bytes that says it is huge."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    data = zlib.compress(b"\0" * 100)
    body = struct.pack(">I", len(data)) + b"IDAT" + data + struct.pack(">I", zlib.crc32(b"IDAT" + data))
    return {"bytes": b"\x89PNG\r\n\x1a\n" + chunk + body, "path": "b"}


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (bomb(10_000, 10_000), "the image of row 1 .*more than 50000000 pixels"),
        (bomb(60_000, 60_000), "the image of row 1"),
        ({"bytes": encoded(grey(1))["bytes"][:-30], "path": ""}, "the image of row 1 .*cannot be read"),
        ({"bytes": b"", "path": ""}, "the image of row 1 .*cannot be read"),
        ({"bytes": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "path": ""}, "cannot be read"),
        ({"bytes": None, "path": "/etc/passwd"}, "row 1 has no image"),
        (None, "row 1 has no image"),
    ],
)
def test_images_that_cannot_be_read_are_refused_by_row(content, words):
    table = pa.table({"image": [encoded(grey(1)), content], "label": [0, 1]})
    with pytest.raises(TableError, match=words):
        Image().check(table)


def test_only_the_formats_that_are_named_are_decoded():
    buffer = io.BytesIO()
    image.fromarray(grey(9).astype(np.uint8)).save(buffer, "TGA")
    assert image.open(io.BytesIO(buffer.getvalue())).size == (8, 6), "pillow itself would read it"
    with pytest.raises(TableError, match=r"cannot be read .* known are BMP, GIF"):
        Image().check(pa.table({"image": [buffer.getvalue()], "label": [0]}))


# ---- plain


def test_plain_columns_come_as_they_are():
    recipe = Plain()
    recipe.fit(NUMBERS)
    assert everything(recipe.rows(NUMBERS)).tolist() == [[1, 0.5], [2, 0], [3, 1], [4, 2]]
    with pytest.raises(TableError, match="row 1: column 'a' is missing"):
        recipe.check(pa.table({"b": [1, 2], "a": [1, None], "label": ["x", "y"]}))
    with pytest.raises(ValueError, match="pass your own"):
        recipe.network()
    pictures = Plain(label="label")
    pictures.fit(PICTURES)
    assert everything(pictures.rows(PICTURES)).shape == (40, 1, 6, 8)
    with pytest.raises(TableError, match=r"the shape \[1, 9, 9\] a row, the first had \[1, 6, 8\]"):
        pictures.rows(pa.table({"image": [encoded(grey(1, (9, 9)))], "label": [0]}))


# ---- real data


def test_hearts_have_their_traps(data_folder):
    compute = pytest.importorskip("pyarrow.compute")
    table = recipes.read(data_folder / "heart_disease" / "patients.parquet")
    ill = pa.array([int(value > 0) for value in table["num"].to_pylist()])
    table = table.drop_columns(["num"]).append_column("label", ill)
    sites = {site: table.filter(compute.equal(table["hospital"], site)) for site in set(table["hospital"].to_pylist())}
    recipe = Tabular(ignore=["hospital"], categories=["cp", "restecg", "slope", "thal"], missing={"chol": [0]})
    recipe.check(table)
    recipe.fit(sites["cleveland"])
    names, count = list(recipe.scales), len(recipe.scales)
    missing = {}
    for site, rows in sites.items():
        recipe.extend(rows)
        x = everything(recipe.rows(rows))
        assert x["numbers"].shape == (len(rows), 2 * count) and bool(x["numbers"].isfinite().all())
        missing[site] = dict(zip(names, x["numbers"][:, count:].mean(0).tolist(), strict=True))
    assert missing["switzerland"]["chol"] == 1 and missing["cleveland"]["chol"] == 0
    va = [value for value in sites["va"]["chol"].to_pylist() if value is not None]
    assert va.count(0) == 49 and missing["va"]["chol"] * len(sites["va"]) >= 49
    assert all(0.955 < missing[site]["ca"] < 0.995 for site in sites if site != "cleveland")
    assert missing["cleveland"]["ca"] < 0.02


def test_reviews_that_repeat_are_found_by_their_content(data_folder):
    parts = [recipes.read(data_folder / "imdb" / f"{part}.parquet") for part in ("train", "test")]
    train, test = (list(Text().contents(part)) for part in parts)
    assert len(train) - len(set(train)) == 96
    assert len(set(test) & set(train)) == 123


def test_digits_are_the_digits_of_the_package(data_folder):
    from perdure import datasets

    table = recipes.read(data_folder / "mnist" / "test.parquet").slice(0, 500)
    recipe = Image()
    recipe.check(table)
    recipe.fit(table)
    rows = recipe.rows(table)
    assert torch.equal(everything(rows), datasets.mnist().test.read(slice(0, 500)))
    assert rows.labels == datasets.mnist().test.labels[:500]
    assert recipe.network().recipe == {
        "name": "mlp",
        "settings": {"inputs": 784, "hidden": [400, 400], "dropout": 0.0, "norm": False},
    }
