"""What every request passes first: who asks, and how much. Plain ASGI, so that a body too large is never held whole."""

from __future__ import annotations

import base64
import binascii
import hmac
from typing import Any

from starlette.responses import JSONResponse

FREE = ("/health",)  # answered without a token, in one word


class Guard:
    """Refuses what has no token (401) or too large a body (413)."""

    def __init__(self, app: Any, token: str | None, most_bytes: int) -> None:
        self.app, self.token, self.most_bytes = app, token, most_bytes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        scope["known"] = self._known(headers.get(b"authorization", b""))
        if not scope["known"] and scope["path"] not in FREE:
            answer = JSONResponse({"detail": "pass the token: Authorization: Bearer TOKEN"}, 401)
            answer.headers.append("WWW-Authenticate", "Bearer")
            answer.headers.append("WWW-Authenticate", 'Basic realm="perdure"')
            await answer(scope, receive, send)
            return
        body = await self._body(headers, receive)
        if body is None:
            too_large = JSONResponse({"detail": f"a request has at most {self.most_bytes} bytes; send fewer rows"}, 413)
            await too_large(scope, receive, send)
            return
        await self.app(scope, _Again(body, receive), send)

    def _known(self, said: bytes) -> bool:
        """A bearer's token, or, for people in browsers, the password of any name."""
        if self.token is None:
            return True
        kind, _, value = said.partition(b" ")
        if kind.lower() == b"basic":
            try:
                value = base64.b64decode(value, validate=True).partition(b":")[2]
            except (binascii.Error, ValueError):
                return False
        elif kind.lower() != b"bearer":
            return False
        return hmac.compare_digest(value, self.token.encode())

    async def _body(self, headers: dict[bytes, bytes], receive: Any) -> bytes | None:
        """The body, or None as soon as it is too large."""
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > self.most_bytes:
            return None
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                break
            part, more = message.get("body", b""), message.get("more_body", False)
            size += len(part)
            if size > self.most_bytes:
                return None
            parts.append(part)
        return b"".join(parts)


class _Again:
    """Gives a body that was read already, then whatever comes."""

    def __init__(self, body: bytes, receive: Any) -> None:
        self.body: bytes | None = body
        self.receive = receive

    async def __call__(self) -> Any:
        if self.body is None:
            return await self.receive()
        body, self.body = self.body, None
        return {"type": "http.request", "body": body, "more_body": False}
