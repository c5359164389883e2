"""The service: answers over HTTP, takes feedback, and goes on answering while the model learns."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perdure.service.app import create_app as create_app

__all__ = ["create_app"]


def __getattr__(name: str) -> Any:
    if name == "create_app":  # fastapi is an extra, which the page alone does not need
        return import_module("perdure.service.app").create_app
    raise AttributeError(f"module 'perdure.service' has no attribute {name!r}")
