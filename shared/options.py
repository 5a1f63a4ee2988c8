"""Options of stages: frozen dataclasses, filled from ``config.yaml``, turned into command-line flags and back.

A stage's dataclass is the single source of its options. The paper's ``config.yaml`` is checked against it before a
workflow is planned; the rule then writes every value into the command, so that the command can be copied, run and
debugged without Snakemake, and so that the values are part of the artifact's provenance.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from shared.errors import InputError

T = TypeVar("T")


class _StrictLoader(yaml.SafeLoader):
    """The safe loader, to which a repeated key is an error: YAML lets the last one win silently."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._checked: set[int] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        if id(node) not in self._checked:  # later, merged keys may rightly stand beside those that override them
            self._checked.add(id(node))
            seen: set[str] = set()
            for key, _ in node.value:
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"repeated key {key.value!r}", key.start_mark)
                seen.add(key.value)
        super().flatten_mapping(node)


def read_yaml(path: Path) -> Any:
    """Content of a YAML file, read with the safe loader; a repeated key is an error.

    Raises:
        InputError: the file is missing or is not YAML.
    """
    try:
        return _StrictLoader(path.read_text(encoding="utf-8")).get_single_data()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise InputError(f"{where}: not valid YAML: {getattr(error, 'problem', error)}") from None


def read_scale(path: Path, scale: str, schema: type[T]) -> T:
    """One scale of a paper's configuration: ``scales: <scale>:`` of the file, checked against ``schema``.

    Args:
        path: a ``config.yaml`` with the single top-level key ``scales``.
        scale: name of one of its sections.
        schema: dataclass, its fields scalars, lists, mappings or further dataclasses.

    Raises:
        InputError: unknown scale, or a key that is unknown, missing or of the wrong type. The message names both the
            file and the key.
    """
    document = read_yaml(path)
    scales = document.get("scales") if isinstance(document, dict) else None
    if not isinstance(scales, dict):
        raise InputError(f"{path}: expected a mapping under the key 'scales'")
    if scale not in scales:
        raise InputError(f"{path}: no scale {scale!r}; there are: {', '.join(map(str, scales))}")
    return from_mapping(scales[scale], schema, where=f"{path}: scales.{scale}")


def from_mapping(values: Any, schema: type[T], *, where: str) -> T:
    """A dataclass from plain values, strictly: no unknown keys, no coercion of types.

    Raises:
        InputError: see :func:`read_scale`; ``where`` begins the message.
    """
    _reject_unknown_keys(values, schema, where)
    try:
        # JSON mode: strict about scalars, yet a list may fill a tuple.
        return TypeAdapter(schema).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        given = f", got {first['input']!r}" if first["type"] != "missing" else ""
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{where}.{key}: {message[:1].lower()}{message[1:]}{given}".replace("..", ".")) from None


def _reject_unknown_keys(values: Any, schema: Any, where: str) -> None:
    """Name an unknown key with its full path. Pydantic ignores such keys in standard dataclasses."""
    if not (dataclasses.is_dataclass(schema) and isinstance(values, dict)):
        return
    hints = typing.get_type_hints(schema)
    for key, value in values.items():
        if key not in hints:
            raise InputError(f"{where}: unknown key {key!r}; known keys: {', '.join(hints)}")
        inner, arguments = hints[key], typing.get_args(hints[key])
        if typing.get_origin(inner) is dict and isinstance(value, dict):
            for name, entry in value.items():
                _reject_unknown_keys(entry, arguments[1], f"{where}.{key}.{name}")
        elif isinstance(inner, types.UnionType):
            for member in arguments:
                _reject_unknown_keys(value, member, f"{where}.{key}")
        else:
            _reject_unknown_keys(value, inner, f"{where}.{key}")


def flags(options: Any) -> list[str]:
    """Command-line arguments that give a stage these options, one flag for every field.

    Args:
        options: dataclass of scalars and tuples of scalars; nested dataclasses are flattened.

    Raises:
        ValueError: two options of one name, which the flattening would confuse.
    """
    arguments: list[str] = []
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        name = field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            arguments += flags(value)
        elif isinstance(value, bool):
            arguments.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, tuple):
            arguments += [f"--{name}", *map(str, value)]
        else:
            arguments += [f"--{name}", str(value)]
    names = [argument for argument in arguments if argument.startswith("--")]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"options: more than one is named {', '.join(sorted(repeated))}")
    return arguments


def plain(options: Any) -> dict[str, Any]:
    """The options as a mapping that JSON and YAML can hold."""
    return TypeAdapter(type(options)).dump_python(options, mode="json")
