"""What a paper's ``workflow.smk`` needs: its settings at the chosen scale, its paths, and the params of its rules."""

from __future__ import annotations

import hashlib
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from shared.artifacts import read_record
from shared.errors import InputError
from shared.files import remove
from shared.fingerprint import fingerprint
from shared.options import flags, read_scale, read_yaml

EMPTY = hashlib.sha256().hexdigest()
"""Checksum of an empty folder."""

Settings = TypeVar("Settings")


class Paper(Generic[Settings]):
    """One paper at one scale.

    Attributes:
        id: name of the paper's folder under ``papers``.
        scale: name of the section of its ``config.yaml`` that is in force.
        settings: that section, checked against the paper's schema.
        results: folder of everything that is made at this scale, relative to the repository.
        logs: folder of the jobs' logs, relative to the repository.
    """

    def __init__(self, id: str, scale: str, schema: type[Settings]) -> None:
        self.id = id
        self.scale = scale
        self.settings = read_scale(Path("papers", id, "config.yaml"), scale, schema)
        self.results = f"papers/{id}/results/{scale}"
        self.logs = f"logs/{id}/{scale}"

    def stage(self, module: str, *options: Any, **values: str) -> dict[str, str]:
        """Params of a rule that runs ``python -m module``: the fingerprint of its code and its command-line arguments.

        Everything here is part of the provenance hash of the rule's outputs, so every wildcard and every setting that
        the command uses must come through here.

        Args:
            module: the stage.
            options: dataclasses of options; each field becomes a flag.
            values: further flags; a value may hold wildcards (``seed="{seed}"``).
        """
        arguments = [flag for group in options for flag in flags(group)]
        arguments += [part for name, value in values.items() for part in (f"--{name.replace('_', '-')}", value)]
        return {"code": fingerprint(module), "arguments": shlex.join(arguments)}

    def launcher(self, processes: int) -> str:
        """What starts a training module: Python itself, or accelerate for several processes with a GPU each."""
        return f"accelerate launch --num_processes {processes} -m" if processes else "python -m"

    def resources(self, processes: int) -> dict[str, int]:
        """What a training job asks of a scheduler: a GPU, 32 GB for every process of accelerate, and two days."""
        return {"gpu": processes, "mem_mb": 32_000 * processes, "runtime": 2880} if processes else {}


def open_paper(id: str, scale: str, schema: type[Settings]) -> Paper[Settings]:
    """The paper for its ``workflow.smk``; a mistake in its configuration ends Snakemake with one line."""
    try:
        return Paper(id, scale, schema)
    except InputError as error:
        sys.exit(f"error: {error}")


def asked_papers(command: Sequence[str]) -> list[str]:
    """Papers that a command of Snakemake's names as targets, ``papers/<id>`` or a file below, sorted.

    Empty where it names none, and for every other program than Snakemake, which may want to see all papers' rules.

    Args:
        command: ``sys.argv``.
    """
    program = Path(command[0])
    if program.name not in ("snakemake", "snakemake.exe") and program.parts[-2:] != ("snakemake", "__main__.py"):
        return []
    return sorted({match[1] for target in command[1:] if (match := re.match(r"papers/([^/]+)", target))})


def papers_with_scale(root: Path, scale: str, targets: Sequence[str]) -> list[str]:
    """Papers that have a workflow and the given scale, sorted.

    Args:
        root: the repository.
        scale: the scale asked for.
        targets: what the user asked for on the command line; only ``papers/<id>...`` is looked at.

    Raises:
        InputError: a target names a paper that is not there or lacks the scale, or no paper has the scale.
    """
    scales = {
        path.parent.name: list((read_yaml(path.parent / "config.yaml") or {}).get("scales") or {})
        for path in sorted(root.glob("papers/*/workflow.smk"))
    }
    asked = {match[1] for target in targets if (match := re.match(r"papers/([^/]+)", target))}
    for paper in sorted(asked):
        if paper not in scales:
            raise InputError(f"papers/{paper}: no such paper; there are: {', '.join(scales)}")
        if scale not in scales[paper]:
            raise InputError(f"papers/{paper}/config.yaml: no scale {scale!r}; there are: {', '.join(scales[paper])}")
    chosen = [paper for paper, names in scales.items() if scale in names]
    if not chosen:
        known = sorted({name for names in scales.values() for name in names})
        raise InputError(f"scale={scale}: no paper has this scale; there are: {', '.join(known)}")
    return chosen


def remove_dangling_links(root: Path) -> None:
    """Remove results whose artifact is no longer in the store; Snakemake stumbles over such links.

    A folder restored from the store (it holds links, and Snakemake's time stamp) goes as a whole.
    """
    for results in [root / "results", *root.glob("papers/*/results")]:
        for link in [path for path in results.rglob("*") if path.is_symlink() and not path.exists()]:
            restored_folder = (link.parent / ".snakemake_timestamp").exists()
            remove(link.parent if restored_folder else link)


def make_empty_folders(store: Path) -> None:
    """Make the empty output folders that records in the store speak of; DVC, like git, does not keep such folders."""
    for path in store.glob("*_record.json"):
        try:
            outputs = read_record(path)["outputs"]
        except InputError:
            continue  # a damaged record is named where it matters: by `verify`, and by the stages that read it
        for name, digest in outputs.items():
            if digest == EMPTY:
                path.with_name(path.name.removesuffix("record.json") + name).mkdir(exist_ok=True)
