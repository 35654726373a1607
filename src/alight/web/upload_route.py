"""The one way in for files: a form with files goes to the store, and the answer is the paths to use them by."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from alight.web.upload_store import SWEEP_SECONDS, QuotaError, UploadStore

MOST_FILES, MOST_FIELDS = 200, 10  # in one form


def upload_route(store: UploadStore) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint that stores the files of a form, with the same answer as gradio's: a list of paths.

    It answers 411 to a request that does not announce its length, 400 to one that is no form with files, and 429
    where there is no more room.
    """

    async def upload(request: Request) -> Response:
        length = request.headers.get("content-length", "")
        if not (length.isascii() and length.isdigit() and len(length) < 20):
            return PlainTextResponse("Say how long the request is, in the header Content-Length.", status_code=411)
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            return PlainTextResponse("Send files as multipart/form-data.", status_code=400)
        visitor = request.client.host if request.client else ""
        try:
            with store.room(visitor, int(length)):
                async with request.form(max_files=MOST_FILES, max_fields=MOST_FIELDS) as form:
                    files = [file for file in form.getlist("files") if isinstance(file, UploadFile)]
                    return JSONResponse([await _store(store, visitor, file) for file in files])
        except QuotaError as error:
            return PlainTextResponse(str(error), status_code=429)
        except OSError as error:
            return PlainTextResponse(f"The server cannot keep the file: {error.strerror}.", status_code=507)

    return upload


async def _store(store: UploadStore, visitor: str, file: UploadFile) -> str:
    return str(await run_in_threadpool(store.add, visitor, file.filename or "", file.file))


async def upload_progress() -> Response:
    """What the page asks beside an upload: it shows no progress, so the answer is that there is no more to tell."""
    return StreamingResponse(iter(['data: {"msg": "done"}\n\n']), media_type="text/event-stream")


def swept(store: UploadStore) -> Callable[[Any], AbstractAsyncContextManager[None]]:
    """The lifespan of an application during which old files are removed, whether or not requests come."""

    async def sweep() -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            await run_in_threadpool(store.sweep)

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        task = asyncio.create_task(sweep())
        try:
            yield
        finally:
            task.cancel()

    return lifespan
