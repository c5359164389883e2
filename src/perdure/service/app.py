"""The endpoints. `create_app` gives an ASGI application that any server runs; `perdure serve` runs it with uvicorn."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware

import perdure
from perdure.checkpoint import CheckpointError
from perdure.recipes.tables import TableError
from perdure.service import page
from perdure.service.feedback import Feedback
from perdure.service.guard import Guard
from perdure.service.live import Live, Updates
from perdure.service.requests import Asked, Taught, Told, table_of
from perdure.service.work import named
from perdure.store.folder import StoreError
from perdure.store.store import Store

LOOPBACK = ("localhost", "127.0.0.1")


def create_app(
    store_root: str | os.PathLike[str],
    name: str,
    *,
    build: str | None = None,
    token: str | None = None,
    most_bytes: int = 10_000_000,
    hosts: Sequence[str] = LOOPBACK,
) -> FastAPI:
    """The service of one store.

    build       "module:function" that makes the user's own network, for a store that was begun with one: updates run
                in a process of their own, which finds it by that name
    token       what every request but /health must bear; None: none
    most_bytes  the largest body of a request
    hosts       names under which the service may be asked, so that no web page reaches it under another; ["*"]: any

    Raises StoreError for a store that is not there or has no version yet, CheckpointError for a damaged one.
    """
    store = Store(name, store_root, build=None if build is None else named(build))
    live, feedback = Live(store), Feedback(store.folder, store.settings["keep_rows"])
    updates = Updates(store, feedback, build, live.look)

    @contextlib.asynccontextmanager
    async def following(_app: FastAPI) -> AsyncIterator[None]:
        thread = threading.Thread(target=live.follow, daemon=True)
        thread.start()
        yield
        live.stop()

    app = FastAPI(
        title=f"Perdure: {name}", version=perdure.__version__, docs_url=None, redoc_url=None, lifespan=following
    )  # the usual pages load scripts from elsewhere
    app.add_middleware(Guard, token=token, most_bytes=most_bytes)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    _add_answers(app, live)
    _add_learning(app, live, feedback, updates)
    _add_views(app, live, feedback, updates)
    return app


def _add_answers(app: FastAPI, live: Live) -> None:
    @app.post("/predict")
    def predict(asked: Asked) -> dict[str, Any]:
        """A label, its confidence and the probability of every label for each row; no label below min_confidence."""
        version, found = _refusing(lambda: live.predict(table_of(asked.rows), asked.min_confidence))
        labels = [name.removeprefix("p_") for name in found.column_names[found.column_names.index("confidence") + 1 :]]
        columns = [found[f"p_{label}"].to_pylist() for label in labels]
        rows = zip(*columns, strict=True)
        return {
            "version": version,
            "labels": found["prediction"].to_pylist(),
            "confidence": found["confidence"].to_pylist(),
            "probabilities": [dict(zip(labels, row, strict=True)) for row in rows],
        }

    @app.get("/drift")
    def drift() -> dict[str, Any]:
        """Whether the rows asked last differ from those that were learnt."""
        return {"version": live.version.number, "findings": live.drift()}


def _add_learning(app: FastAPI, live: Live, feedback: Feedback, updates: Updates) -> None:
    def checked(rows: list[dict[str, Any]]) -> None:
        _refusing(lambda: live.version.answerer.recipe.check(table_of(rows), labelled=True))

    @app.post("/feedback")
    def collect(told: Told) -> dict[str, int]:
        """Keeps labelled rows for the next update. They are on disk when this is answered."""
        checked(told.rows)
        return {"stored": len(told.rows), "waiting": feedback.collect(told.rows)}

    @app.post("/update", status_code=202)
    def update(taught: Taught) -> dict[str, str]:
        """Begins an update with the feedback that waits, or with the rows of the request. One at a time."""
        if taught.rows is not None:
            checked(taught.rows)
        try:
            batch = updates.start(taught.rows, taught.accept_shift)
        except BlockingIOError:
            raise HTTPException(409, "an update is under way; /health says when it is over") from None
        if batch is None:
            raise HTTPException(422, "there is nothing to learn: no feedback waits, and the request has no rows")
        return {"began": batch}


def _add_views(app: FastAPI, live: Live, feedback: Feedback, updates: Updates) -> None:
    def health_now() -> dict[str, Any]:
        outcomes = feedback.outcomes()
        return {
            "status": "degraded" if live.trouble else "ok",
            "version": live.version.number,
            "trouble": live.trouble,
            "feedback waiting": feedback.waiting,
            "update": {
                "running": updates.running,
                "failure": updates.failure,
                "last": outcomes[-1] if outcomes else None,
            },
        }

    @app.get("/health")
    def health(request: Request) -> dict[str, Any]:
        """Which version answers, and what is wrong; without the token, "ok" or "degraded" alone."""
        known = request.scope.get("known", False)
        return health_now() if known else {"status": "degraded" if live.trouble else "ok"}

    @app.get("/versions")
    def versions() -> dict[str, Any]:
        """The history: what was promoted, refused, held and rolled back, and what became of every exam."""
        try:
            return {"production": live.version.number, "history": live.store.history()}
        except CheckpointError as error:
            raise HTTPException(503, str(error)) from error

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def home() -> HTMLResponse:
        content = page.render(live.store, live.version.number, health_now(), live.drift())
        return HTMLResponse(content, headers={"Content-Security-Policy": page.POLICY})

    @app.get("/docs", include_in_schema=False)
    def docs() -> RedirectResponse:
        return RedirectResponse("/openapi.json")


def _refusing(call: Callable[[], Any]) -> Any:
    """What cannot be read or answered is the request's fault: 422, with the sentence that says why."""
    try:
        return call()
    except (TableError, StoreError) as error:
        raise HTTPException(422, str(error)) from error
