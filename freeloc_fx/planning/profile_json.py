"""JSON for profiles: immutable JSON data, checks that name a field's path, and the file format.

Version 1 is one object with the fields of `Profile` under their own names, plus "schema": 1. Layer indices and target
latent frames, integers in Python, are written as strings. Fields that are None are left out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from freeloc_fx.errors import ProfileError
from freeloc_fx.files import replacing
from freeloc_fx.method.checks import is_number, is_whole

__all__ = [
    "SCHEMA",
    "FrozenMapping",
    "freeze",
    "integer",
    "integer_keys",
    "known_keys",
    "number",
    "plain",
    "read",
    "string",
    "write",
]


SCHEMA = 1
"""Version of the file format."""


HEAD = ("name", "provenance", "model", "layer_count", "trained_frames", "quantise")
"""Fields with which a file begins."""


INDEXED = ("layers", "lengths", "vrpr", "tsa", "temperature", "sensitivities")
"""Fields that may be objects with integer keys."""


K = TypeVar("K")


V = TypeVar("V")


class FrozenMapping(Mapping[K, V]):
    """An immutable mapping that keeps its order, equals any mapping with the same items, hashes, copies and pickles.

    Args:
        items: the items.
    """

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[K, V]) -> None:
        self._items = dict(items)

    def __getitem__(self, key: K) -> V:
        return self._items[key]

    def __iter__(self) -> Iterator[K]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return repr(self._items)


def integer(path: str, value: Any, least: int, unit: str = "") -> int:
    """Refuse anything but an integer of at least `least`; NumPy's are refused, because they are not JSON.

    Args:
        path: where the value stands in the profile.
        value: the value.
        least: the smallest integer that passes.
        unit: what is counted, for messages, as in " latent frames".

    Returns:
        The value.

    Raises:
        ProfileError: it is something else; the message begins with the path.
    """
    if not is_whole(value, least):
        raise ProfileError(f"{path}: expected an integer of at least {least}{unit}, found {value!r}")
    return value


def number(path: str, value: Any) -> float:
    """Refuse anything but a finite number; NumPy's are refused, because they are not JSON.

    Args:
        path: where the value stands in the profile.
        value: the value.

    Returns:
        The value.

    Raises:
        ProfileError: it is something else; the message begins with the path.
    """
    if not is_number(value):
        raise ProfileError(f"{path}: expected a finite number, found {value!r}")
    return value


def string(path: str, value: Any) -> str:
    """Refuse anything but a string that UTF-8 can hold, without half of a surrogate pair.

    Args:
        path: where the value stands in the profile.
        value: the value.

    Returns:
        The value.

    Raises:
        ProfileError: it is something else; the message begins with the path.
    """
    if not isinstance(value, str):
        raise ProfileError(f"{path}: expected a string, found {value!r}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ProfileError(f"{path}: expected text that UTF-8 can hold, found {value!r}") from error
    return value


def known_keys(path: str, value: Mapping[Any, Any], known: tuple[str, ...], required: tuple[str, ...]) -> None:
    """Refuse a mapping with a key that is not known or without one that is required.

    Args:
        path: where the mapping stands in the profile; empty for the profile itself.
        value: the mapping.
        known: the keys that it may have.
        required: the keys that it must have.

    Raises:
        ProfileError: it has others, or not those; the message begins with the key's path.
    """
    for key in value:
        if key not in known:
            raise ProfileError(f"{path}.{key}: unknown key; expected {', '.join(known)}".lstrip("."))
    for key in required:
        if key not in value:
            raise ProfileError(f"{path}.{key}: missing".lstrip("."))


def freeze(path: str, value: Any) -> Any:
    """Make JSON data immutable.

    Args:
        path: where the data stand in the profile.
        value: the data.

    Returns:
        The same data with `FrozenMapping` for objects and tuples for arrays.

    Raises:
        ProfileError: the value is no JSON data; the message begins with the path of what is not.
    """
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ProfileError(f"{path}: expected strings as keys, found {key!r}")
            string(path, key)
        return FrozenMapping({key: freeze(f"{path}.{key}", item) for key, item in value.items()})
    if isinstance(value, (list, tuple)):
        return tuple(freeze(f"{path}.{i}", item) for i, item in enumerate(value))
    if isinstance(value, float):
        return number(path, value)
    if isinstance(value, str):
        return string(path, value)
    if value is None or isinstance(value, (bool, int)):
        return value
    raise ProfileError(f"{path}: expected JSON data, found {value!r}")


def plain(value: Any) -> Any:
    """Give data in dicts and lists, for JSON and for comparison with a model's config.

    Args:
        value: JSON data, immutable or not.

    Returns:
        The same data, with dicts for mappings and lists for lists and tuples.
    """
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


class _Repeated(dict[str, Any]):
    """An object of the file in which a key occurs twice."""

    key = ""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of the file, and mark it where a key occurs twice."""
    result = dict(pairs)
    if len(result) == len(pairs):
        return result
    keys = [key for key, _ in pairs]
    repeated = _Repeated(result)
    repeated.key = next(key for key in keys if keys.count(key) > 1)
    return repeated


def _refuse_repeated(path: str, value: Any) -> None:
    """Refuse data with an object in which a key occurs twice."""
    if isinstance(value, _Repeated):
        raise ProfileError(f"{path}{value.key}: the key occurs twice in one object")
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        _refuse_repeated(f"{path}{key}.", item)


def integer_keys(path: str, value: Any) -> Any:
    """Give an object whose keys are all written integers with those integers as keys.

    Args:
        path: where the object stands in the profile.
        value: the object, or anything else.

    Returns:
        A dict with integer keys; anything else as it is.

    Raises:
        ProfileError: a key has leading zeros; the message begins with the key's path.
    """
    if not isinstance(value, dict) or not all(
        isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 10 for key in value
    ):
        return value
    for key in value:
        if len(key) > 1 and key[0] == "0":
            raise ProfileError(f"{path}.{key}: expected an integer without leading zeros as key")
    return {int(key): item for key, item in value.items()}


def read(data: bytes, fields: tuple[str, ...]) -> dict[str, Any]:
    """Read the arguments of `Profile` from the content of a file; `Profile` checks their values.

    Args:
        data: the file's content.
        fields: the names of `Profile`'s fields.

    Returns:
        The arguments by name.

    Raises:
        ProfileError: not JSON (names line and column), not an object, another schema version, an unknown or a missing
            field, a key twice.
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_object)
        _refuse_repeated("", value)
    except json.JSONDecodeError as error:
        raise ProfileError(f"line {error.lineno}, column {error.colno}: not valid JSON: {error.msg}") from error
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise ProfileError(f"line {line}, column {column}: not valid JSON: not UTF-8") from error
    except ProfileError:
        raise
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits, thousands of brackets
        raise ProfileError(f"not readable as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ProfileError(f"expected a JSON object, found {type(value).__name__}")
    schema = value.pop("schema", None)
    if isinstance(schema, bool) or schema != SCHEMA:
        raise ProfileError(f"schema: expected version {SCHEMA}, found {'none' if schema is None else repr(schema)}")
    known_keys("", value, fields, ("trained_frames",))
    return {name: integer_keys(name, item) if name in INDEXED else item for name, item in value.items()}


def write(path: Path, fields: Mapping[str, Any]) -> None:
    """Write a profile to a file by way of a temporary file beside it.

    Args:
        path: the file, which may exist; a link is followed.
        fields: the profile's fields as plain JSON data.

    Raises:
        OSError: the folder is missing or cannot be written.
    """
    ordered = {name: fields[name] for name in (*HEAD, *fields) if name in fields}
    text = json.dumps({"schema": SCHEMA, **ordered}, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    target = Path(os.path.realpath(path))
    with replacing(target) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
