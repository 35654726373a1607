"""Bounded reading of untrusted files: only regular files of limited size, and JSON checked by a schema."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import ConfigDict, JsonValue, TypeAdapter, ValidationError

from alight.runtime.errors import InputError

JSON_LIMIT = 256 * 2**20  # bytes; the index of ten million latents in shards of 1,000 takes a tenth of it
Schema = TypeVar("Schema")


def require_regular(path: Path, limit: int | None = None) -> int:
    """Refuse files whose reading may block or never end (FIFOs, devices, sockets), folders, and too large files.

    Args:
        path: of the file; symbolic links are followed.
        limit: bytes that are acceptable; None = any size.

    Returns:
        The size in bytes.

    Raises:
        InputError: there is no such file, it is not a regular file, or it is too large.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError as error:
        raise InputError(f"There is no file {path}. Check the path.") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise InputError(f"{path!s:.300} cannot be read ({error}). Check the path.") from error
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path} is not a regular file. Give a regular file.")
    if limit is not None and status.st_size > limit:
        raise InputError(f"{path} has {status.st_size:,} bytes, more than the {limit:,} that such a file may have.")
    return status.st_size


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a regular file of limited size.

    Raises:
        InputError: as `require_regular`, or it cannot be read.
    """
    require_regular(path, limit)
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}). Check the file and its permissions.") from error
    if len(content) > limit:  # it grew meanwhile
        raise InputError(f"{path} has more than the {limit:,} bytes that such a file may have.")
    return content


def read_json(path: Path, schema: type[Schema], remedy: str, limit: int = JSON_LIMIT) -> Schema:
    """Read a JSON file and check every field by a schema before it is used.

    Args:
        path: of the file.
        schema: of its content: a pydantic model, a `TypedDict` of typing_extensions, or a plain type.
        remedy: a sentence for the message of an error.
        limit: bytes that are acceptable.

    Raises:
        InputError: the file cannot be read, is not JSON (NaN, infinities and unpaired surrogates are not), or does
            not have the schema.
    """
    return parse_json(read_bytes(path, limit), schema, str(path), remedy)


def parse_json(content: bytes | str, schema: type[Schema], name: str, remedy: str) -> Schema:
    """As `read_json`, from the content of the file called `name`."""
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        values = json.loads(text, parse_constant=_refuse_constant)
        if "\\u" in text:  # an escape may stand for half of a surrogate pair, which no file or page can hold
            json.dumps(values, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InputError(f"{name} cannot be read: it is not valid JSON ({reason:.200}). {remedy}") from error
    return check_values(values, schema, name, remedy)


def check_values(values: Any, schema: type[Schema], name: str, remedy: str) -> Schema:
    """Check parsed values, as `read_json` does; `name` is their name in messages.

    Raises:
        InputError: they do not have the schema.
    """
    try:
        return TypeAdapter(schema, config=_config(schema)).validate_python(values)
    except ValidationError as error:
        raise InputError(f"{name} does not have the expected content ({_complaints(error)}). {remedy}") from error
    except RecursionError as error:
        raise InputError(f"{name} cannot be read: it is nested too deeply. {remedy}") from error


def read_json_object(path: Path, remedy: str) -> dict[str, Any]:
    """Read a JSON file that holds an object with unchecked fields."""
    return read_json(path, dict[str, JsonValue], remedy)


def _config(schema: type[Schema]) -> ConfigDict | None:
    """Strict types; models and typed dictionaries have their own configuration."""
    closed = hasattr(schema, "model_config") or hasattr(schema, "__total__") or hasattr(schema, "__dataclass_fields__")
    return None if closed else ConfigDict(strict=True)


def _complaints(error: ValidationError) -> str:
    found = [f"{'.'.join(map(str, item['loc'])) or 'its content'}: {item['msg']}" for item in error.errors()[:3]]
    return f"{'; '.join(found):.300}"


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
