"""Selected hyperparameters: by setting, by method, and of one scale."""

from __future__ import annotations

import json
from pathlib import Path

from papers.diffrs.methods import DEFAULTS
from shared.errors import InputError

Selection = dict[str, dict[str, dict[str, float]]]
"""Setting to method to hyperparameters by name."""


def read_selection(path: Path) -> Selection:
    """Selected hyperparameters.

    Raises:
        InputError: not JSON, or not an object of settings, of methods, of numbers by the names of hyperparameters.
    """
    try:
        selection = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from None
    if not isinstance(selection, dict):
        raise InputError(f"{path}: expected an object of settings, got {type(selection).__name__}")
    for setting, methods in selection.items():
        if not isinstance(methods, dict):
            raise InputError(f"{path}: {setting}: expected an object of methods, got {methods!r}")
        for method, values in methods.items():
            known = DEFAULTS.get(method)
            if known is None or not isinstance(values, dict):
                raise InputError(f"{path}: {setting}.{method}: expected an object of a method, got {values!r}")
            for name, value in values.items():
                if name not in known or isinstance(value, bool) or not isinstance(value, (int, float)):
                    raise InputError(f"{path}: {setting}.{method}: expected numbers for some of {', '.join(known)}, "
                                     f"got {name!r}: {value!r}")  # fmt: skip
    return selection
