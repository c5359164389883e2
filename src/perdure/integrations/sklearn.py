"""Continual learning as a scikit-learn classifier: each `partial_fit` is a task, and nothing before it is forgotten."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets, unique_labels
from sklearn.utils.validation import check_is_fitted, validate_data

from perdure import methods, models
from perdure.data import Task
from perdure.learner import Learner
from perdure.method import Method

Array = npt.NDArray[Any]


class PerdureClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A multi-layer perceptron on rows of numbers that learns batch after batch of data without forgetting.

    `fit` learns everything anew. Each `partial_fit` is a task: rows of new labels or of old ones, from whatever time.
    Labels may come at any call; `classes` only says which columns `predict_proba` shall have from the beginning (0 for
    labels not yet learnt; nothing else is known of them). Rows go through the network as they are: scale them before,
    in a Pipeline.

    method        a name, "replay"; settings, {"name": "replay", "capacity": 500}; or a method, Replay(500) + LwF()
    hidden        widths of the layers
    optimizer     "adam" | "adamw" | "sgd", or settings, {"name": "sgd", "lr": 0.1}
    epochs        passes over the rows of each call
    random_state  as everywhere in scikit-learn

    After fitting: `classes_`, sorted; `learner_`, the Learner, with all that it can do (`learner_.save`).
    """

    classes_: Array
    learner_: Learner
    _learnt: Array  # labels in the order in which they were learnt: the numbers that the learner has for them

    def __init__(
        self,
        method: str | Mapping[str, Any] | Method = "replay",
        *,
        hidden: Sequence[int] = (100,),
        optimizer: str | Mapping[str, Any] = "adam",
        epochs: int = 20,
        batch_size: int = 32,
        random_state: Any = None,
        device: str = "cpu",
    ) -> None:
        self.method = method
        self.hidden = hidden
        self.optimizer = optimizer
        self.epochs = epochs
        self.batch_size = batch_size
        self.random_state = random_state
        self.device = device

    # ---- learning ----

    def fit(self, X: Any, y: Any) -> PerdureClassifier:
        """Learns rows X [n, features] with labels y [n] from nothing, as one task."""
        X, y = self._checked(X, y, first=True)
        return self._learn(X, y, unique_labels(y), first=True)

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> PerdureClassifier:
        """Learns rows X [n, features] with labels y [n] on top of what is known, as a task of their own."""
        first = not hasattr(self, "learner_")
        X, y = self._checked(X, y, first)
        named = unique_labels(y) if classes is None else unique_labels(classes)
        if not np.isin(y, named).all():
            raise ValueError(f"y holds labels that are not in classes={named.tolist()}")
        return self._learn(X, y, named if first else unique_labels(self.classes_, named), first)

    # ---- answering ----

    def predict_proba(self, X: Any) -> Array:
        """Probabilities [n, classes], columns as in `classes_`."""
        check_is_fitted(self, "learner_")
        X = validate_data(self, X, reset=False, dtype=np.float32)
        told = self.learner_.predict_proba(torch.from_numpy(X)).double().numpy()
        found = np.zeros((len(X), len(self.classes_)))
        found[:, np.searchsorted(self.classes_, self._learnt)] = told
        proba: Array = found / found.sum(axis=1, keepdims=True)
        return proba

    def predict(self, X: Any) -> Array:
        """The likeliest label of each row, [n]."""
        likeliest = self.predict_proba(X).argmax(axis=1)
        answers: Array = self.classes_[likeliest]
        return answers

    # ---- inside ----

    def _checked(self, X: Any, y: Any, first: bool) -> tuple[Array, Array]:
        X, y = validate_data(self, X, y, reset=first, dtype=np.float32)
        check_classification_targets(y)
        return X, y

    def _learn(self, X: Array, y: Array, classes: Array, first: bool) -> PerdureClassifier:
        """One task; what the estimator knows changes once it is learnt."""
        learner = self._new_learner(X.shape[1]) if first else self.learner_
        before = classes[:0] if first else self._learnt.astype(classes.dtype)
        learnt = np.concatenate([before, np.setdiff1d(y, before)])
        order = np.argsort(learnt)
        codes = order[np.searchsorted(learnt, y, sorter=order)]
        learner.learn(Task((torch.from_numpy(X), torch.from_numpy(codes)), name=f"call {len(learner.tasks)}"))
        self.learner_, self.classes_, self._learnt = learner, classes, learnt
        return self

    def _new_learner(self, features: int) -> Learner:
        method = self._own_method()
        if "class" not in method.scenarios:
            raise ValueError(
                f"{method.name} has to be told which task a row is of, and predict(X) is not: use perdure.Learner"
            )
        seed = int(check_random_state(self.random_state).tomaxint())
        optimizer = self.optimizer if isinstance(self.optimizer, str) else dict(self.optimizer)
        return Learner(
            models.mlp(features, tuple(self.hidden)), method, scenario="class", epochs=self.epochs,
            batch_size=self.batch_size, seed=seed, optimizer=optimizer, device=self.device,
        )  # fmt: skip

    def _own_method(self) -> Method:
        """A new one every time: a parameter stays as it was given."""
        if not isinstance(self.method, Method):
            return methods.build({"name": self.method} if isinstance(self.method, str) else self.method)
        if self.method.owned:
            raise ValueError(f"this {self.method.name} belongs to another learner or loop already: make a new one")
        return copy.deepcopy(self.method)
