"""A version as an ONNX file, which needs neither Perdure nor PyTorch to answer; written only if it answers alike."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from perdure.answers import convert
from perdure.checkpoint import replace_file
from perdure.data import Columns, Rows
from perdure.models import evaluating
from perdure.store.folder import StoreError

if TYPE_CHECKING:
    from perdure.store.store import Store
    from perdure.store.update import Answerer

CLOSE = 1e-4  # largest difference of a probability
TRACED, ASKED = 2, 500  # rows that the network is traced with, and that both answer


class _Answering(nn.Module):
    """Inputs as separate tensors, ready for the model -> probabilities of the labels, [n, labels]."""

    def __init__(self, answerer: Answerer, names: list[str]) -> None:
        super().__init__()
        self.model, self.objective = answerer.learner.model, answerer.learner.objective
        self.home, _ = answerer.learner.labels.answers(None)
        self.names = names

    def forward(self, *columns: Tensor) -> Tensor:
        """Probabilities in the order of the labels."""
        x = dict(zip(self.names, columns, strict=True)) if self.names else columns[0]
        return self.objective.answer(self.model(x).float(), None)[:, self.home]


def export(store: Store, path: str | os.PathLike[str]) -> float:
    """Writes the version in production as ONNX, and gives the largest difference to its own answers.

    Inputs are what the recipe makes of rows, ready for the model: "x", or the names of its columns; the output is
    "probabilities", and the metadata hold the labels in its order, the store, the version and the recipe. Raises
    StoreError where the file would answer differently, or there is no exam to compare on.
    """
    answerer, number = store.answerer(), store.folder.production()
    rows = _exam_rows(store, answerer)
    learner = answerer.learner
    wanted = learner.predict_proba(rows)
    x = convert(rows.read(slice(0, len(rows))), torch.device("cpu"))
    learner.model.to("cpu")
    with evaluating(learner.model):
        content = _traced(_Answering(answerer, list(x) if isinstance(x, dict) else []), x)
    labels = {"labels": learner.classes, "store": store.settings["name"], "version": number}
    content = _described(content, {**labels, "recipe": answerer.recipe.settings()})
    found = _run(content, x)
    if found.shape != wanted.shape:
        raise StoreError(f"not exported: ONNX gives {list(found.shape)} probabilities, not {list(wanted.shape)}")
    apart = float((found - wanted).abs().max())
    if not apart <= CLOSE:
        raise StoreError(
            f"not exported: on the exams' rows the file's probabilities differ by up to {apart:.2g} from the "
            f"version's (at most {CLOSE:g} is allowed); does the method {learner.method.name} answer with more than "
            "its network?"
        )
    replace_file(path, content)
    return apart


def _exam_rows(store: Store, answerer: Answerer) -> Rows:
    exams = [exam for exam in store.exams() if len(exam)]
    if not exams:
        raise StoreError("not exported: there is no exam on whose rows the file could be compared; bring one")
    import pyarrow

    share = -(-ASKED // len(exams))
    table = pyarrow.concat_tables([exam.table.slice(0, share) for exam in exams], promote_options="permissive")
    return answerer.recipe.rows(table, labelled=False)


def _traced(model: nn.Module, x: Columns) -> bytes:
    columns = list(x.values()) if isinstance(x, dict) else [x]
    names = list(x) if isinstance(x, dict) else ["x"]
    _needed("onnxscript")
    some = tuple(column[:TRACED].clone() for column in columns)  # a slice would drag all rows along
    dynamic = tuple({0: torch.export.Dim("rows")} for _ in columns)
    with _quietly():
        try:
            program = torch.onnx.export(
                model, some, dynamo=True, input_names=names, output_names=["probabilities"], dynamic_shapes=(dynamic,),
                verbose=False,
            )  # fmt: skip
        except Exception as error:  # the exporter raises many kinds
            reason = str(error).strip().splitlines()[0][:300]
            raise StoreError(f"not exported: PyTorch cannot say this network in ONNX ({reason})") from error
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    return content


@contextlib.contextmanager
def _quietly() -> Any:
    """What the exporter says about itself is no affair of the user's."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _described(content: bytes, about: dict[str, Any]) -> bytes:
    onnx = _needed("onnx")
    model = onnx.load_model_from_string(content)
    onnx.helper.set_model_props(model, {f"perdure.{key}": json.dumps(value) for key, value in about.items()})
    described: bytes = model.SerializeToString()
    return described


def _run(content: bytes, x: Columns) -> Tensor:
    """What onnxruntime answers."""
    runtime = _needed("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    columns = x if isinstance(x, dict) else {"x": x}
    inputs = {place.name for place in session.get_inputs()}
    given = {name: column.numpy() for name, column in columns.items() if name in inputs}
    return torch.from_numpy(session.run(["probabilities"], given)[0])


def _needed(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise StoreError("an export needs onnx, onnxscript and onnxruntime: pip install 'perdure[onnx]'") from error
