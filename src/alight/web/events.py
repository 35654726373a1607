"""Connect the page's buttons to work: one request at a time; every error becomes a message in the page."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from alight.runtime.console import log
from alight.runtime.errors import InputError
from alight.web.jobs import Jobs, Stopped
from alight.web.markup import message_text, status
from alight.web.pictures import PictureStore
from alight.web.served import Served

ERROR_SECONDS = 12  # for which a notice stays; the status line keeps its text


@dataclass(frozen=True)
class AppContext:
    """The state that all tabs share."""

    served: Served
    jobs: Jobs
    pictures: PictureStore


Outputs = tuple[Any, ...]
"""New values of a tab's outputs, the status line first."""

Work = Callable[..., Iterator[Outputs]]
"""work(stop, *values): runs until it is done or `stop` is set, and yields updated outputs on the way."""


def connect(
    app: AppContext, name: str, work: Work, buttons: tuple[Any, Any], inputs: dict[str, Any], outputs: list[Any]
) -> None:
    """Connect one button that starts some work and another one that stops it.

    Args:
        app: the state that the tabs share.
        name: of the API endpoint.
        work: called with the values of the inputs.
        buttons: start and stop.
        inputs: components, by the parameter names of the API.
        outputs: components that the work fills, the status line first.
    """
    import gradio as gr

    unchanged = (gr.skip(),) * (len(outputs) - 1)

    def begin(request: gr.Request, *values: Any) -> Iterator[Outputs]:
        session = str(request.session_hash)
        stop = app.jobs.start(session)
        try:
            yield from work(stop, *values)
        except Stopped:
            yield (status("Stopped."), *unchanged)
        except Exception as error:
            message = explanation(error)
            yield (status(message), *unchanged)
            raise gr.Error(message_text(message), duration=ERROR_SECONDS, print_exception=False) from error
        finally:
            app.jobs.finish(session, stop)

    def end(request: gr.Request) -> Any:
        return status("Stopped.") if app.jobs.stop(str(request.session_hash)) else gr.skip()

    start, stop = buttons
    started = start.click(
        _with_parameters(begin, inputs),
        list(inputs.values()),
        outputs,
        api_name=name,
        concurrency_limit=1,
        concurrency_id="models",
        show_progress="minimal",
        show_progress_on=outputs[0],
    )
    stop.click(end, None, outputs[0], queue=False, show_progress="hidden", cancels=[started], api_visibility="private")


def _with_parameters(begin: Callable[..., Any], names: Iterable[str]) -> Callable[..., Any]:
    """The same function with these names in its signature, for the values after the request."""
    first = next(iter(inspect.signature(begin).parameters.values()))
    values = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    begin.__signature__ = inspect.Signature([first, *values])  # type: ignore[attr-defined]
    return begin


def explanation(error: Exception) -> str:
    """Explain an error to the visitor; an error that they cannot fix goes to the server's log with its traceback."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return "The server's accelerator has too little memory for this. Ask for fewer images."
    log.error("A request failed.", exc_info=error)
    return "Something went wrong on the server. See its log."
