"""The scikit-learn classifier."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from conftest import small_stream
from test_host import rows_of

pytest.importorskip("sklearn")

from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from perdure import Learner, Task, methods, models
from perdure.integrations.sklearn import PerdureClassifier

IRIS = load_iris(return_X_y=True)


def small(method: Any = "replay", **changed: Any) -> PerdureClassifier:
    return PerdureClassifier(method, **{"hidden": (16,), "random_state": 0, "epochs": 5, "batch_size": 16, **changed})


def test_it_passes_every_check_that_scikit_learn_has_for_it() -> None:
    results = check_estimator(small(epochs=20, batch_size=32), on_fail=None, on_skip=None)
    assert len(results) > 40
    assert [result["check_name"] for result in results if result["status"] not in ("passed", "skipped")] == []


def test_it_works_in_a_pipeline_cross_validation_and_a_search() -> None:
    pipeline = make_pipeline(StandardScaler(), small(epochs=20, optimizer={"name": "adam", "lr": 0.01}))
    assert cross_val_score(pipeline, *IRIS, cv=3).mean() > 0.9
    grid = {
        "perdureclassifier__method": ["finetune", methods.Replay(50)],
        "perdureclassifier__hidden": [(8,), (16, 16)],
    }
    search = GridSearchCV(pipeline, grid, cv=2).fit(*IRIS)
    assert search.best_score_ > 0.8
    assert search.predict(IRIS[0]).shape == (150,)


def test_parameters_stay_as_they_were_given() -> None:
    method = methods.Replay(50) + methods.LwF()
    model = small(method).fit(*IRIS)
    assert model.get_params()["method"] is method and not method.owned
    assert len(method.parts[0].store) == 0 < len(model.learner_.method.parts[0].store)
    twin = clone(model)
    assert not hasattr(twin, "learner_") and twin.set_params(epochs=3).epochs == 3 and model.epochs == 5
    assert np.array_equal(twin.set_params(epochs=5).fit(*IRIS).predict_proba(IRIS[0]), model.predict_proba(IRIS[0]))


def test_each_partial_fit_is_a_task_of_a_learner() -> None:
    model, seed = small(), int(np.random.RandomState(0).tomaxint())
    learner = Learner(models.mlp(12, (16,)), methods.Replay(), scenario="class", epochs=5, batch_size=16, seed=seed)
    for number, task in enumerate(small_stream(rows=40)):
        x, y = rows_of(task)
        model.partial_fit(x.numpy(), y.numpy())
        learner.learn(Task((x, y), name=f"call {number}"))
    x = rows_of(small_stream(rows=40, seed=7)[0])[0]
    assert torch.equal(torch.tensor(model.predict(x.numpy())), learner.predict(x))
    np.testing.assert_allclose(model.predict_proba(x.numpy()), learner.predict_proba(x), atol=1e-6)


@pytest.mark.parametrize("names", [np.array(["wasp", "ant", "bee"]), np.array([30, 10, 20]), np.array([2.0, 0.0, 1.0])])
def test_labels_of_any_kind_come_in_any_order_and_come_back(names: Any) -> None:
    model = small(epochs=20)
    x, y = (part.numpy() for part in rows_of(small_stream(1, 3, rows=90)[0]))
    for call in ((2, 0), (1, 2), (0,)):
        some = np.isin(y, call)
        model.partial_fit(x[some], names[y[some]])
    assert model.classes_.tolist() == sorted(names.tolist())
    assert model.score(x, names[y]) > 0.9
    proba = model.predict_proba(x)
    assert proba.shape == (90, 3)
    np.testing.assert_allclose(proba.sum(1), 1, atol=1e-9)
    assert (model.classes_[proba.argmax(1)] == model.predict(x)).all()


def test_classes_only_name_the_columns() -> None:
    x, y = (part.numpy() for part in rows_of(small_stream(1, 2, rows=40)[0]))
    plain, told = small().partial_fit(x, y), small().partial_fit(x, y, classes=[0, 1, 7])
    assert told.classes_.tolist() == [0, 1, 7] and (told.predict_proba(x)[:, 2] == 0).all()
    assert np.array_equal(told.predict_proba(x)[:, :2], plain.predict_proba(x))
    with pytest.raises(ValueError, match=r"not in classes=\[0, 5\]"):
        small().partial_fit(x, y, classes=[0, 5])


def test_fit_begins_anew_and_a_pickle_goes_on() -> None:
    x, y = (part.numpy() for part in rows_of(small_stream(1, 2, rows=40)[0]))
    model = small().partial_fit(x, y + 5).fit(x, y)
    assert model.classes_.tolist() == [0, 1]
    twin = pickle.loads(pickle.dumps(model))
    assert np.array_equal(twin.partial_fit(x, y + 2).predict_proba(x), model.partial_fit(x, y + 2).predict_proba(x))


def test_what_cannot_work_is_refused_and_changes_nothing() -> None:
    x, y = (part.numpy() for part in rows_of(small_stream(1, 2, rows=40)[0]))
    with pytest.raises(ValueError, match="progressive has to be told which task"):
        small("progressive").fit(x, y)
    with pytest.raises(ValueError, match="there is no method 'relpay'"):
        small("relpay").fit(x, y)
    with pytest.raises(NotFittedError):
        small().predict(x)
    model = small().fit(x, y)
    before = model.predict_proba(x)
    with pytest.raises(ValueError, match="NaN"):
        model.partial_fit(np.where(x > 1, np.nan, x), y + 2)
    assert np.array_equal(model.predict_proba(x), before) and model.classes_.tolist() == [0, 1]
