"""Bounded reading of YAML files: plain values only, and errors with line numbers.

Numbers, booleans and null are those of YAML 1.2, so that a class called `010`, `no` or `2024-01-01` keeps its name.
Merge keys (`<<`) of YAML 1.1 are supported.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from alight.runtime.errors import InputError
from alight.runtime.reading import read_bytes
from alight.runtime.terminal import shortened

YAML_LIMIT = 2**20  # bytes
VALUE_LIMIT = 50_000  # keys and values, with every alias expanded
DEPTH_LIMIT = 50  # sections within sections, likewise
DIGIT_LIMIT = 100  # of a number
_PREFIX = "tag:yaml.org,2002:"
_MERGE = f"{_PREFIX}merge"
_TAGS = {f"{_PREFIX}{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map", "merge")}
_PLAIN_TAGS = {
    "tag:yaml.org,2002:null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "tag:yaml.org,2002:bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "tag:yaml.org,2002:int": (r"[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+|0o[0-7]+", list("-+0123456789")),
    "tag:yaml.org,2002:float": (
        r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    _MERGE: (r"<<", ["<"]),
}


class YamlError(ValueError):
    """A file is not YAML, or exceeds the limits; the message begins in lower case."""


class _Loader(yaml.SafeLoader):
    """Loads values within the limits, and refuses duplicate keys.

    Every node is measured with its aliases expanded while it is composed, so that nothing large is built.
    """

    yaml_implicit_resolvers: dict[str, Any] = {}

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._sizes: dict[int, tuple[int, int]] = {}  # id of a finished node -> values in it, depth
        self._depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if len(self._sizes) > VALUE_LIMIT:
            raise YamlError(f"there are more than {VALUE_LIMIT:,} keys and values")
        line = event.start_mark.line + 1
        self._depth += 1
        if self._depth > DEPTH_LIMIT:
            raise YamlError(f"line {line} is nested more than {DEPTH_LIMIT} levels deep")
        node: Any = super().compose_node(parent, index)
        self._depth -= 1
        if not isinstance(event, yaml.AliasEvent):
            self._sizes[id(node)] = self._measure(node)
        elif id(node) not in self._sizes:
            raise YamlError(f"the alias in line {line} refers to itself")
        return node

    def _measure(self, node: yaml.Node) -> tuple[int, int]:
        parts = node.value if isinstance(node.value, list) else []
        inner = [part for entry in parts for part in (entry if isinstance(entry, tuple) else (entry,))]
        line = node.start_mark.line + 1
        if node.tag not in _TAGS:
            raise YamlError(f"line {line} has the tag '{shortened(node.tag)}', which recipes do not support")
        count = 1 + sum(self._sizes[id(part)][0] for part in inner)
        depth = 1 + max((self._sizes[id(part)][1] for part in inner), default=0)
        if count > VALUE_LIMIT:
            raise YamlError(f"line {line} has more than {VALUE_LIMIT:,} values with its aliases expanded")
        if depth > DEPTH_LIMIT:
            raise YamlError(f"line {line} is more than {DEPTH_LIMIT} levels deep with its aliases expanded")
        if isinstance(node, yaml.MappingNode):
            self._check_keys(node)
        return count, depth

    def _check_keys(self, node: yaml.MappingNode) -> None:
        """Refuse duplicate keys; before merge keys are resolved, since explicit keys override merged ones."""
        seen = set()
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise YamlError(f"the key in line {line} is a list or a mapping; keys are words")
            value = self.construct_object(key, deep=True)
            if value in seen:
                raise YamlError(f"the key '{shortened(value)}' is repeated in line {line}; keep one of them")
            seen.add(value)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        line = node.start_mark.line + 1
        if isinstance(node, yaml.ScalarNode) and node.tag.rpartition(":")[2] in ("int", "float"):
            if len(node.value) > DIGIT_LIMIT:
                raise YamlError(f"the number in line {line} has {len(node.value):,} digits")
        try:
            value = super().construct_object(node, deep)
        except YamlError:
            raise
        except (ValueError, LookupError, AttributeError, TypeError) as error:
            kind = node.tag.removeprefix(_PREFIX)
            raise YamlError(f"{shortened(node.value)!r} in line {line} is not a value of the type {kind}") from error
        if isinstance(value, str) and not _is_text(value):
            raise YamlError(f"the text in line {line} has a character that is not allowed (NUL or a surrogate)")
        return value


for _tag, (_pattern, _first) in _PLAIN_TAGS.items():
    _Loader.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})\Z"), _first)
_Loader.add_constructor(_MERGE, lambda loader, node: node.value)  # as a value, `<<` is a text


def read_yaml(path: Path) -> Any:
    """Read a YAML file: mappings, lists, texts, numbers, booleans and None.

    Raises:
        InputError: the file cannot be read, is not YAML, or exceeds the limits; names the line if it is known.
    """
    content = read_bytes(path, YAML_LIMIT)
    try:
        return parse_yaml(content)
    except YamlError as error:
        raise InputError(f"{path} is not valid YAML for a recipe: {error}. Correct the file.") from error


def parse_yaml(content: bytes) -> Any:
    """As `read_yaml`, from the content of a file.

    Raises:
        YamlError: as above.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise YamlError(f"line {line} holds a byte (0x{content[error.start]:02x}) that is not UTF-8") from error
    loader: _Loader | None = None
    try:
        loader = _Loader(text)
        return _copied(loader.get_single_data())
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlError(f"line {line} holds the control character U+{ord(text[error.position]):04X}") from error
    except yaml.MarkedYAMLError as error:
        raise YamlError(_explained(error)) from error
    except yaml.YAMLError as error:
        raise YamlError(" ".join(str(error).split())) from error
    finally:
        if loader is not None:
            loader.dispose()


def _explained(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
    parts = [part for part in (error.context, error.problem) if part]
    return f"{place}{' '.join(': '.join(parts).split()):.300}"


def _copied(value: Any) -> Any:
    """A deep copy with aliases expanded, so that changing one place does not change another."""
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def _is_text(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return "\0" not in value
