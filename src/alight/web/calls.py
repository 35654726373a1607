"""Validation of calls before gradio reads them: the function, the session, and the type of every value.

gradio validates values inside each component, where a wrong type ends in a traceback and a path is opened first.
"""

import json
import math
from typing import Any
from urllib.parse import parse_qs

from pydantic import JsonValue

from alight.runtime.errors import InputError
from alight.runtime.reading import parse_json
from alight.web.upload_store import UploadStore

BODY_BYTES = 256 * 1024  # the paths of several hundred files and a list of classes
MOST_VALUES = 1_000  # in one list
LARGEST_NUMBER = 1e300  # larger integers do not fit a floating-point number
SESSION_LENGTH = 64


class RefusedCallError(InputError):
    """A call is not valid.

    Attributes:
        code: of the response.
        detail: the message, or for invalid values the list from which gradio's clients find the inputs.
    """

    def __init__(self, message: str, code: int = 400, detail: Any = None) -> None:
        super().__init__(message)
        self.code, self.detail = code, message if detail is None else detail


class Calls:
    """The calls that a page accepts, and their values."""

    def __init__(self, page: Any, uploads: UploadStore) -> None:
        self.page, self.uploads = page, uploads

    def checked(self, path: str, content: bytes) -> bytes:
        """The body of a call reduced to its validated fields.

        Raises:
            RefusedCallError: the body is not valid, names no function of this path, or has a value of a wrong type.
        """
        try:
            call: dict[str, Any] = parse_json(content, dict[str, JsonValue], "The call", "Send a JSON object.")
        except InputError as error:
            raise RefusedCallError(str(error)) from error
        function, data = self._function(path, call), call.get("data")
        if not isinstance(data, list) or len(data) != len(function.inputs):
            raise RefusedCallError(f"Send 'data' as a list of {len(function.inputs)} values.")
        complaints = [self.complaint(*pair) for pair in zip(function.inputs, data, strict=True)]
        if any(complaints):
            raise _refused(function.inputs, complaints)
        body: dict[str, Any] = {"data": data}
        if call.get("session_hash") is not None:
            body["session_hash"] = _session(call["session_hash"])
        if "/call/" not in path:
            body["fn_index"] = call["fn_index"]
            if _is_index(call.get("trigger_id")):
                body["trigger_id"] = call["trigger_id"]
        return json.dumps(body).encode()

    def _function(self, path: str, call: dict[str, Any]) -> Any:
        functions = self.page.fns
        queued = not path.endswith("/run/predict")
        if "/call/" in path:
            name = path.rpartition("/")[2]
            found = next((each for each in functions.values() if each.api_name == name), None)
        else:
            index = call.get("fn_index")
            found = functions.get(index) if _is_index(index) else None
        if found is None or bool(found.queue) != queued or (queued and found.api_visibility == "private"):
            raise RefusedCallError("There is no such function here.", 404)
        return found

    def complaint(self, component: Any, value: Any) -> str:
        """The reason why a component does not accept a value; empty if it does."""
        import gradio as gr

        if isinstance(component, gr.Slider):
            return _number_complaint(component, value)
        if value is None:
            return ""
        if isinstance(component, gr.Number):
            return _number_complaint(component, value)
        if isinstance(component, gr.Checkbox):
            return "" if isinstance(value, bool) else f"Give true or false, not {_short(value)}."
        if isinstance(component, gr.File):
            return self._files_complaint(component, value)
        if isinstance(component, gr.Dropdown) and component.multiselect:
            if not isinstance(value, list) or len(value) > MOST_VALUES:
                return f"Give a list of at most {MOST_VALUES:,} choices, not {_short(value)}."
            return next(filter(None, (_choice_complaint(component, each) for each in value)), "")
        if isinstance(component, (gr.Dropdown, gr.Radio)):
            return _choice_complaint(component, value)
        return f"Values of {type(component).__name__} are not accepted here."

    def _files_complaint(self, component: Any, value: Any) -> str:
        if not isinstance(value, list) or len(value) > MOST_VALUES:
            return f"Give a list of at most {MOST_VALUES:,} files."
        return next(filter(None, (self._file_complaint(component, file) for file in value)), "")

    def _file_complaint(self, component: Any, file: Any) -> str:
        path = file.get("path") if isinstance(file, dict) else None
        if not isinstance(path, str):
            return "Give each file as an object with the 'path' that the upload returned."
        name = _short(path.rpartition("/")[2])
        if path.lower().startswith(("http:", "https:")):
            return "This server does not fetch files from URLs. Upload the file itself."
        if not self.uploads.use(path):
            return f"{name} is not on the server, or no longer. Choose it again."
        if not path.lower().endswith(tuple(component.file_types)):
            return f"Invalid file type: {name}. Send one of {', '.join(component.file_types)}."
        shown = file.get("orig_name")
        file.clear()  # gradio would trust further fields, such as a URL
        file.update(path=path, meta={"_type": "gradio.FileData"}, orig_name=shown if isinstance(shown, str) else None)
        return ""

    def known_session(self, path: str, query: bytes) -> bool:
        """Tell if the session or event that a request polls exists; True for other requests."""
        queue = self.page._queue
        if path.endswith("/queue/data"):
            named = parse_qs(query.decode("latin-1")).get("session_hash", [])
            return len(named) == 1 and named[0] in queue.pending_messages_per_session
        if "/call/" in path:
            event = path.rpartition("/")[2]
            under_way = any(event in events for events in queue.pending_event_ids_session.values())
            return under_way or event in queue.event_ids_to_events or event in queue.pending_messages_per_session
        return True


def _refused(inputs: list[Any], complaints: list[str]) -> RefusedCallError:
    detail = [
        {
            "__type__": "validate",
            "is_valid": not complaint,
            "message": complaint,
            "parameter_name": str(component.label or type(component).__name__),
        }
        for component, complaint in zip(inputs, complaints, strict=True)
    ]
    return RefusedCallError(" ".join(filter(None, complaints)), 422, detail)


def _session(value: Any) -> str:
    plain = isinstance(value, str) and value.isascii() and value.replace("-", "").replace("_", "").isalnum()
    if not plain or len(value) > SESSION_LENGTH:
        raise RefusedCallError("The name of a session has at most 64 letters, digits, - and _.")
    return str(value)


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**6


def _number_complaint(component: Any, value: Any) -> str:
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not known or abs(value) > LARGEST_NUMBER or not math.isfinite(value):
        return f"Give a number, not {_short(value)}."
    if component.minimum is not None and value < component.minimum:
        return f"{_short(value)} is less than minimum value {component.minimum}."
    if component.maximum is not None and value > component.maximum:
        return f"{_short(value)} is greater than maximum value {component.maximum}."
    return ""


def _choice_complaint(component: Any, value: Any) -> str:
    """Choices are compared with their type: to Python, True and 1.0 are class 1."""
    if any(type(value) is type(choice) and value == choice for _, choice in component.choices):
        return ""
    return f"{_short(value)} is not in the list of choices."


def _short(value: Any) -> str:
    if isinstance(value, int) and abs(value) > LARGEST_NUMBER:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
