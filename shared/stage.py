"""A stage: one plain command that reads named input files and writes named output files.

A stage module defines a function and runs it::

    def train(options: TrainOptions, *, seed: int, corpus: Input, model: Output, state: State) -> None: ...

    if __name__ == "__main__":
        run(train)

``run`` makes the command line from the signature (``python -m papers.wpr.train --seed 0 --corpus ... --model ...``),
refuses missing and damaged inputs, seeds every random generator, gives the function temporary output paths, which it
renames only after the function has returned, and writes a record of what was done. Under ``accelerate launch`` every
process runs the function; the first one renames and records.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import platform
import random
import resource
import shutil
import sys
import time
import typing
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import tyro
import yaml

from shared.artifacts import check_input
from shared.errors import InputError
from shared.files import checksum, partial_path, publish_partial, remove, write_json
from shared.fingerprint import fingerprint
from shared.options import plain


class _Role:
    def __init__(self, name: str) -> None:
        self.name = name


Input = Annotated[Path, _Role("input"), tyro.conf.arg(metavar="PATH")]
"""A file or folder that the stage reads. ``tuple[Input, ...]`` for several."""

Output = Annotated[Path, _Role("output"), tyro.conf.arg(metavar="PATH")]
"""A file or folder that the stage writes, whole or not at all."""

State = Annotated[Path, _Role("state"), tyro.conf.arg(metavar="PATH")]
"""A folder in which a long training saves its state. It survives a kill, is deleted when the stage has succeeded, and
is emptied first when it comes from other code, options or inputs."""

StageFunction = Callable[..., Mapping[str, Any] | None]
"""What ``run`` runs. It may return measurements (plain JSON values), which go into the record."""

_RECORDED_PACKAGES = ("torch", "transformers", "diffusers", "accelerate", "numpy", "pandas")


def run(function: StageFunction, arguments: Sequence[str] | None = None) -> None:
    """Run a stage from the command line; exits with status 1 and one line on a user's mistake."""
    module = _module_name(function)
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parsed = _parse(function, module, arguments)
    values = {field.name: getattr(parsed, field.name) for field in dataclasses.fields(parsed)}
    record_path, show = values.pop("record"), values.pop("show_options")
    settings = {name: _json_value(value) for name, value in values.items() if not _roles(function).get(name)}
    if show:
        print(yaml.safe_dump(settings, sort_keys=False), end="")
        return
    try:
        _run(function, module, values, settings, record_path, arguments)
    except InputError as error:
        sys.exit(f"error: {error}")


def _run(
    function: StageFunction,
    module: str,
    values: dict[str, Any],
    settings: dict[str, Any],
    record_path: Path | None,
    arguments: list[str],
) -> None:
    roles = _roles(function)
    inputs = {name: _as_paths(values[name]) for name, role in roles.items() if role == "input"}
    outputs = {name: values[name] for name, role in roles.items() if role == "output"}
    for path in (path for paths in inputs.values() for path in paths):
        check_input(path)
    first = int(os.environ.get("RANK", "0")) == 0
    record = {
        "stage": module,
        "code": fingerprint(module),
        "options": settings,
        "inputs": {name: {str(path): checksum(path) for path in paths} for name, paths in inputs.items()},
    }
    if first:
        print(f"{module} {json.dumps(settings)}", file=sys.stderr, flush=True)
        for path in outputs.values():
            path.parent.mkdir(parents=True, exist_ok=True)
            remove(partial_path(path))
        for state in (values[name] for name, role in roles.items() if role == "state"):
            _claim_state(state, record)
    make_deterministic(values.get("seed", 0))
    started, clock = datetime.now(UTC), time.perf_counter()
    try:
        measurements = function(**values | {name: partial_path(path) for name, path in outputs.items()})
        if not first:
            return
        record |= {
            "arguments": arguments,
            "measurements": dict(measurements or {}),
            "paths": {name: str(path) for name, path in outputs.items()},
            "outputs": {name: checksum(partial_path(path)) for name, path in outputs.items()},
            "started": started.isoformat(timespec="seconds"),
            "wall_seconds": round(time.perf_counter() - clock, 3),
            **_machine(),
        }
        for path in outputs.values():
            publish_partial(path)
        if record_path is not None:
            write_json(record_path, record)
    finally:
        if first:
            for path in outputs.values():
                remove(partial_path(path))
    for state in (values[name] for name, role in roles.items() if role == "state"):
        shutil.rmtree(state, ignore_errors=True)


def make_deterministic(seed: int) -> None:
    """Seed Python, and NumPy and PyTorch where they are loaded, and ask PyTorch for deterministic algorithms."""
    random.seed(seed)
    if "numpy" in sys.modules:
        import numpy

        numpy.random.seed(seed % 2**32)  # noqa: NPY002 - libraries draw from the global generator
    if "torch" in sys.modules:
        import torch

        torch.manual_seed(seed)
        # cuBLAS gives the same bits twice only with a fixed workspace.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # On GPUs some operations (the cumulative sum of top-p sampling) have no deterministic form: a warning there.
        torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
        torch.utils.deterministic.fill_uninitialized_memory = False  # costs 6 % of a small model's training step


def _module_name(function: StageFunction) -> str:
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    return spec.name if function.__module__ == "__main__" and spec else function.__module__


def _roles(function: StageFunction) -> dict[str, str]:
    """Role (input, output, state) of those parameters that are files."""
    roles = {}
    for name, hint in typing.get_type_hints(function, include_extras=True).items():
        element = typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else hint
        for mark in getattr(element, "__metadata__", ()):
            if isinstance(mark, _Role):
                roles[name] = mark.name
    return roles


def _parse(function: StageFunction, module: str, arguments: Sequence[str] | None) -> Any:
    hints = typing.get_type_hints(function, include_extras=True)
    fields: list[Any] = []
    for parameter in inspect.signature(function).parameters.values():
        default = {} if parameter.default is inspect.Parameter.empty else {"default": parameter.default}
        fields.append((parameter.name, hints[parameter.name], dataclasses.field(**default)))
    record_help = tyro.conf.arg(metavar="PATH", help="Where to write the record of this run, as JSON.")
    show_help = tyro.conf.arg(help="Print the options in force, as YAML, and stop.")
    fields.append(("record", Annotated[Path | None, record_help], dataclasses.field(default=None)))
    fields.append(
        ("show_options", Annotated[bool, show_help, tyro.conf.FlagCreatePairsOff], dataclasses.field(default=False))
    )
    return tyro.cli(
        dataclasses.make_dataclass("Arguments", fields, kw_only=True),
        args=arguments,
        prog=f"python -m {module}",
        description=inspect.cleandoc(function.__doc__ or ""),
        config=(tyro.conf.OmitArgPrefixes,),
    )


def _claim_state(state: Path, record: dict[str, Any]) -> None:
    """Keep the folder if this very stage left it behind, otherwise start with an empty one."""
    key = json.dumps(record, sort_keys=True)
    key_file = state / "made-by.json"
    if not key_file.exists() or key_file.read_text(encoding="utf-8") != key:
        remove(state)
        state.mkdir(parents=True)
        key_file.write_text(key, encoding="utf-8")


def _as_paths(value: Path | tuple[Path, ...]) -> tuple[Path, ...]:
    return value if isinstance(value, tuple) else (value,)


def _json_value(value: Any) -> Any:
    return plain(value) if dataclasses.is_dataclass(value) else value


def _machine() -> dict[str, Any]:
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    per_mebibyte = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss is in bytes on macOS, else in KiB
    machine: dict[str, Any] = {
        "peak_memory_mib": round(peak / per_mebibyte, 1),
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
        },
        "packages": {name: metadata.version(name) for name in _RECORDED_PACKAGES if name in sys.modules},
    }
    if (torch := sys.modules.get("torch")) is not None:
        machine["machine"]["threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            machine["machine"]["gpu"] = torch.cuda.get_device_name()
            machine["peak_gpu_memory_mib"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return machine
