"""The service: answers over HTTP, takes feedback, and goes on answering while the model learns."""

from perdure.service.app import create_app

__all__ = ["create_app"]
