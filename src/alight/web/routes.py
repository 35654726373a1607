"""An allow-list of requests; gradio's other endpoints are closed.

gradio serves much more than this page uses: shared states, files by their path, other servers' files, editing, run
histories. An allow-list stays right when a new version adds further endpoints.
"""

import json
import re
from typing import Any

from alight.runtime.console import log
from alight.web.calls import BODY_BYTES, Calls, RefusedCallError
from alight.web.gate import App, Receive, Scope, Send

SESSION = r"[\w-]{1,64}"
READ = (  # by GET and HEAD
    r"/|/config|/manifest\.json|/theme\.css|/favicon\.ico|/robots\.txt",
    r"/(assets|static|pictures)/.+",
    r"/gradio_api/(info|theme\.css|startup-events|queue/data|upload_progress)",
    rf"/gradio_api/heartbeat/{SESSION}",
    rf"/gradio_api/call/\w+/{SESSION}",
)
CALL = (r"/gradio_api/queue/join", r"/gradio_api/run/predict", r"/gradio_api/call/\w+")  # by POST, with JSON
SEND = (r"/gradio_api/(upload|cancel|reset)",)  # by POST
WITHOUT_QUERY = ("/", "/config")  # gradio reads shared states and page names from it


class Routes:
    """An ASGI middleware that passes on the listed requests and answers others with 404.

    Calls are validated before gradio sees them (`Calls`). An error of the application is logged in one line.
    """

    def __init__(self, app: App, calls: Calls) -> None:
        self.app, self.calls = app, calls

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path, method = scope["path"].rstrip("/") or "/", scope["method"]
        if method == "POST" and _among(CALL, path):
            try:
                body = self.calls.checked(path, await _body(receive))
            except RefusedCallError as error:
                return await answer_json(send, error.code, error.detail)
            return await self._pass_on(_with_length(scope, path, len(body)), _repeat(body, receive), send)
        if method == "POST" and _among(SEND, path):
            return await self._pass_on({**scope, "path": path, "raw_path": path.encode()}, receive, send)
        if method in ("GET", "HEAD") and _among(READ, path):
            if not self.calls.known_session(path, scope["query_string"]):
                return await answer_json(send, 404, "Nothing is running in this session.")
            query = b"" if path in WITHOUT_QUERY else scope["query_string"]
            return await self._pass_on({**scope, "query_string": query}, receive, send)
        await answer_json(send, 404, "There is nothing here.")

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        answered, outside = False, None

        async def received() -> Any:
            nonlocal outside
            try:
                return await receive()
            except Exception as error:
                outside = error  # the outer application raised it and handles it
                raise

        async def noted(message: Any) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            await self.app(scope, received, noted)
        except Exception as error:
            if outside is not None:
                raise outside from None
            if type(error).__name__ == "ClientDisconnect":
                return
            log.error(
                f"{scope['method']} {scope['path'][:100]!r} ended in {type(error).__name__}: {str(error)[:300]!r}"
            )
            log.debug("The whole error:", exc_info=error)
            if not answered:
                await answer_json(send, 500, "Something went wrong on the server. See its log.")


def _among(patterns: tuple[str, ...], path: str) -> bool:
    return any(re.fullmatch(pattern, path, re.ASCII) for pattern in patterns)


async def _body(receive: Receive) -> bytes:
    """The whole body of a call.

    Raises:
        RefusedCallError: it is too long, or the client disconnected.
    """
    parts, length = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RefusedCallError("The request broke off.", 400)
        parts.append(message.get("body", b""))
        length += len(parts[-1])
        if length > BODY_BYTES:
            raise RefusedCallError(f"A call has at most {BODY_BYTES:,} bytes. Upload files separately.", 413)
        if not message.get("more_body", False):
            return b"".join(parts)


def _repeat(body: bytes, receive: Receive) -> Receive:
    """Return the body once, then further messages."""
    given = False

    async def repeated() -> Any:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return repeated


def _with_length(scope: Scope, path: str, length: int) -> Scope:
    """The same request with the JSON body that was checked."""
    own = (b"content-length", b"content-type", b"transfer-encoding", b"content-encoding")
    others = [pair for pair in scope["headers"] if pair[0].lower() not in own]
    headers = [*others, (b"content-length", str(length).encode()), (b"content-type", b"application/json")]
    return {**scope, "path": path, "raw_path": path.encode(), "query_string": b"", "headers": headers}


async def answer_json(send: Send, code: int, detail: Any) -> None:
    """Answer with a message, or with complaints about single values, in the form that gradio's clients expect."""
    body = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": code, "headers": headers})
    await send({"type": "http.response.body", "body": body})
