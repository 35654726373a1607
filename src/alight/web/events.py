"""How the page's buttons start work: one piece at a time, and whatever goes wrong ends as a sentence in the page."""

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

ERROR_SECONDS = 12  # that a message stays; the status line keeps it


@dataclass(frozen=True)
class AppContext:
    """What all tabs work with."""

    served: Served
    jobs: Jobs
    pictures: PictureStore


Outputs = tuple[Any, ...]
"""New values of a tab's outputs, the status line first."""

Work = Callable[..., Iterator[Outputs]]
"""work(stop, *values): goes on until it is done or `stop` is set, and yields the outputs again and again."""


def connect(
    app: AppContext, name: str, work: Work, buttons: tuple[Any, Any], inputs: dict[str, Any], outputs: list[Any]
) -> None:
    """Let one button start some work and another one stop it.

    Args:
        app: what the tabs share.
        name: of the endpoint, for programs.
        work: what is done with the values of the inputs.
        buttons: the one that starts it, and the one that stops it.
        inputs: components whose values the work gets, by the names that programs use.
        outputs: components that it fills, the status line first.
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
    """The same function, which says that its values after the request have these names."""
    first = next(iter(inspect.signature(begin).parameters.values()))
    values = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    begin.__signature__ = inspect.Signature([first, *values])  # type: ignore[attr-defined]
    return begin


def explanation(error: Exception) -> str:
    """A sentence for the visitor; what they cannot mend goes to the server's log, traceback and all."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return "The server's accelerator has too little memory for this. Ask for fewer images."
    log.error("A request failed.", exc_info=error)
    return "Something went wrong on the server. Its log tells what."
