"""Exams drawn from what was counted, where no rows are kept."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from store_examples import KEY, LABEL, begin, clouds

from perdure import checkpoint, methods
from perdure.data import Rows
from perdure.store.drawn import LEAST, ROWS, Drawn


def some(seed: int = 0, rows: int = 900):
    """Three columns of every kind: correlated numbers with a flag, a category, an image."""
    draws = np.random.default_rng(seed)
    labels = draws.integers(0, 3, rows)
    mixing = np.array([[1.0, 0.8], [0.0, 0.6]])
    numbers = draws.normal(size=(rows, 2)) @ mixing + labels[:, None]
    flag = (draws.random(rows) < 0.2 * (labels + 1)).astype(float)
    x = {
        "numbers": torch.tensor(np.column_stack([numbers, flag]), dtype=torch.float32),
        "category": torch.tensor((labels + draws.integers(0, 2, rows))[:, None]),
        "image": torch.tensor(draws.integers(0, 256, (rows, 1, 4, 5)), dtype=torch.uint8),
    }
    return x, [f"l{label}" for label in labels]


def test_what_is_drawn_has_the_statistics_that_were_counted():
    x, labels = some()
    drawn = Drawn.of("0001", Rows(x), labels)
    rows, right = drawn.draw(KEY)
    got = rows.read(torch.arange(len(rows)))
    assert len(rows) == len(right) == len(drawn) == 3 * ROWS
    for name, column in x.items():
        assert got[name].dtype == column.dtype and got[name].shape[1:] == column.shape[1:]
    given = np.array(labels)
    for label in set(labels):
        old, new = torch.tensor(given == label), torch.tensor(np.array(right) == label)
        real, made = x["numbers"][old], got["numbers"][new]
        torch.testing.assert_close(made.mean(0), real.mean(0), atol=0.25, rtol=0)
        torch.testing.assert_close(made[:, :2].T.cov(), real[:, :2].T.cov(), atol=0.4, rtol=0)
        assert set(made[:, 2].tolist()) <= {0.0, 1.0}, "a place of few values takes these alone"
        assert set(got["category"][new].unique().tolist()) == set(x["category"][old].unique().tolist())
    mixed = got["numbers"][torch.tensor(np.array(right) == "l0")][:, :2].T.corrcoef()[0, 1]
    assert mixed > 0.6, "numbers go together as they did"


def test_the_same_rows_are_drawn_again_and_after_a_file_and_others_with_another_key(tmp_path):
    x, labels = some()
    drawn = Drawn.of("0001", Rows(x), labels)
    checkpoint.write(tmp_path / "drawn", drawn.tree(), "drawn")
    again = Drawn.read(checkpoint.read(tmp_path / "drawn", "drawn"))
    first, second, other = (
        d.draw(key)[0].read(slice(0, None)) for d, key in ((drawn, KEY), (again, KEY), (drawn, "5b" * 32))
    )
    for name in x:
        assert torch.equal(first[name], second[name])
    assert not torch.equal(first["numbers"], other["numbers"])


def test_texts_are_bags_of_the_words_that_are_in_ten_texts():
    draws = np.random.default_rng(0)
    texts = np.zeros((400, 30), dtype=np.int32)
    for row in range(400):
        length = draws.integers(5, 20)
        texts[row, :length] = draws.integers(1, 60, length) + (1000 if row % 2 else 0)
        texts[row, 0] = 10_000 + row * 3  # a word that nobody else has: a name
    texts[:, 29] = draws.integers(2000, 9000, 400)
    drawn = Drawn.of("0001", Rows(torch.tensor(texts)), ["odd" if row % 2 else "even" for row in range(400)])
    rows, right = drawn.draw(KEY)
    made = rows.read(slice(0, None))
    assert made.shape == (2 * ROWS, 30) and made.dtype == torch.int32
    assert {word for words in drawn.columns[""]["words"] for word in words.tolist()}.isdisjoint(texts[:, 0].tolist())
    odd = made[torch.tensor([label == "odd" for label in right])]
    assert ((odd[odd > 0] > 1000) & (odd[odd > 0] <= 1060)).all()
    lengths = (odd > 0).sum(1)
    assert lengths.min() >= 5 and lengths.max() <= 21 and lengths.float().mean() == pytest.approx(13, abs=1.5)


def test_of_few_rows_nothing_is_stored():
    numbers = torch.randn(LEAST - 1 + LEAST, 3)
    drawn = Drawn.of("0001", Rows(numbers), ["rare"] * (LEAST - 1) + ["seen"] * LEAST)
    assert drawn.labels == ["seen"] and drawn.counts == [LEAST]
    kept = [tensor for tensor in drawn.columns[""].values() if isinstance(tensor, torch.Tensor)]
    values = {round(value, 5) for tensor in kept for value in tensor.flatten().tolist()}
    assert values.isdisjoint({round(value, 5) for value in numbers.flatten().tolist()})
    none = Drawn.of("0001", Rows(numbers[:5]), ["rare"] * 5)
    assert len(none) == 0


def test_a_version_that_forgets_is_refused_though_no_row_of_the_past_is_there(tmp_path):
    """The mutant is the same store without what was counted: it promotes what forgot."""
    store, _ = begin(tmp_path / "judged", clouds(["a", "b"]), keep_rows=False, method=methods.Finetune())
    outcome = store.update(clouds(["c", "d"], seed=1))
    assert outcome.kind == "refused" and any("0001-drawn" in why for why in outcome.why)
    assert [exam["exam"] for exam in outcome.card["exams"]] == ["0002", "0001-drawn"]

    class Blind(type(store)):
        def drawn(self):
            return []

    blind, _ = begin(tmp_path / "blind", clouds(["a", "b"]), keep_rows=False, method=methods.Finetune())
    blind.__class__ = Blind
    assert blind.update(clouds(["c", "d"], seed=1)).kind == "promoted"


def test_a_version_that_does_not_forget_is_promoted(tmp_path):
    store, _ = begin(tmp_path, clouds(["a", "b"]), keep_rows=False, method=methods.SLDA())
    outcome = store.update(clouds(["c"], seed=1))
    assert outcome.kind == "promoted", outcome.why
    later = store.update(clouds(["a", "b"], seed=2))
    assert later.kind == "promoted" and [exam["exam"] for exam in later.card["exams"]] == [
        "0003",
        "0001-drawn",
        "0002-drawn",
    ]
    assert [found["exam"] for found in store.diff(1, 3)["exams"]] == ["0001-drawn", "0002-drawn", "0003-drawn"]


def test_flipped_labels_are_held_where_no_rows_are_kept(tmp_path):
    store, _ = begin(tmp_path, clouds(["a", "b"]), keep_rows=False)
    table = clouds(["a", "b"], seed=1)
    flipped = ["b" if (label == "a") ^ (row % 10 < 7) else "a" for row, label in enumerate(table[LABEL].to_pylist())]
    odd = table.set_column(table.column_names.index(LABEL), LABEL, pa.array(flipped))
    assert store.update(odd).kind == "held"
