"""The upload route: stores the files of a form and returns the paths to use them by."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from alight.web.upload_store import SWEEP_SECONDS, QuotaError, UploadStore

MOST_FILES, MOST_FIELDS = 200, 10  # in one form


def add_upload_routes(app: Any, store: UploadStore) -> None:
    """Add the route to an application, before gradio's; like gradio's it returns a list of paths.

    It answers 411 to a request without a length, 400 to one that is not a form with files, 429 if the quota is used
    up, and 507 if the disk is full.
    """
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse, Response, StreamingResponse

    async def upload(request: Request) -> Response:
        length = request.headers.get("content-length", "")
        if not (length.isascii() and length.isdigit() and len(length) < 20):
            return PlainTextResponse("Give the length of the request in the header Content-Length.", status_code=411)
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            return PlainTextResponse("Send files as multipart/form-data.", status_code=400)
        try:
            return await _stored(store, request, int(length))
        except QuotaError as error:
            return PlainTextResponse(str(error), status_code=429)
        except OSError as error:
            return PlainTextResponse(f"The server cannot keep the file: {error.strerror}.", status_code=507)

    async def progress(_: Request) -> Response:
        # the page requests this during an upload, but shows no progress
        return StreamingResponse(iter(['data: {"msg": "done"}\n\n']), media_type="text/event-stream")

    app.router.add_route("/gradio_api/upload", upload, methods=["POST"])
    app.router.add_route("/gradio_api/upload_progress", progress, methods=["GET"])


async def _stored(store: UploadStore, request: Any, length: int) -> Any:
    from starlette.datastructures import UploadFile
    from starlette.responses import JSONResponse

    visitor = request.client.host if request.client else ""
    with store.room(visitor, length):
        async with request.form(max_files=MOST_FILES, max_fields=MOST_FIELDS) as form:
            files = [file for file in form.getlist("files") if isinstance(file, UploadFile)]
            paths = [await asyncio.to_thread(store.add, visitor, file.filename or "", file.file) for file in files]
            return JSONResponse([str(path) for path in paths])


def swept(store: UploadStore) -> Callable[[Any], AbstractAsyncContextManager[None]]:
    """The lifespan of an application, during which old files are removed even without requests."""

    async def sweep() -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            await asyncio.to_thread(store.sweep)

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        task = asyncio.create_task(sweep())
        try:
            yield
        finally:
            task.cancel()

    return lifespan
