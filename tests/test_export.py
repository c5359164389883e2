"""A version as ONNX: it answers alike, says its labels, and what would answer otherwise is not written."""

import json

import numpy as np
import pyarrow as pa
import pytest
from store_examples import LABEL, begin, clouds

from perdure import methods, recipes
from perdure.store.export import export
from perdure.store.folder import StoreError
from perdure.store.store import Store

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")


def test_a_table_with_categories_is_answered_alike_and_the_labels_are_in_the_file(tmp_path):
    table = clouds(["a", "b"], rows=150)
    table = table.append_column("shop", [["north" if row % 3 else "south" for row in range(300)]])
    store, _ = begin(tmp_path, table)
    assert export(store, tmp_path / "model.onnx") < 1e-5
    about = {entry.key: json.loads(entry.value) for entry in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert about["perdure.labels"] == store.answerer().learner.classes
    assert about["perdure.version"] == 1 and about["perdure.recipe"]["name"] == "tabular"
    answerer, session = store.answerer(), runtime.InferenceSession(str(tmp_path / "model.onnx"))
    for rows in (1, 7):
        x = answerer.recipe.inputs(table.slice(0, rows))
        found = session.run(None, {name: column.numpy() for name, column in x.items()})[0]
        said = [about["perdure.labels"][i] for i in found.argmax(1)]
        assert said == answerer.learner.predict(answerer.recipe.rows(table.slice(0, rows), labelled=False))


def test_texts_are_answered_alike(tmp_path):
    draws = np.random.default_rng(0)
    words = {"good": ["fine", "lovely", "great", "warm"], "bad": ["poor", "dull", "cold", "awful"]}
    rows = [(label, " ".join(draws.choice([*words[label], "the", "film"], 12))) for label in words for _ in range(150)]
    table = pa.table({"text": [text for _, text in rows], LABEL: [label for label, _ in rows]})
    recipe = recipes.build({"name": "text", "label": LABEL, "buckets": 256, "most": 16})
    store, _ = Store.init("texts", table, recipe=recipe, root=tmp_path)
    assert export(store, tmp_path / "model.onnx") < 1e-4


def test_a_method_that_answers_with_more_than_its_network_is_refused(tmp_path):
    store, _ = begin(tmp_path, clouds(["a", "b"], rows=150), method=methods.ICaRL())
    with pytest.raises(StoreError, match=r"not exported: .* does the method icarl answer with more"):
        export(store, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_without_an_exam_nothing_proves_that_it_answers_alike(tmp_path):
    store, _ = begin(tmp_path, clouds(["a", "b"], rows=100), keep_rows=False)
    with pytest.raises(StoreError, match="no exam"):
        export(store, tmp_path / "model.onnx")
