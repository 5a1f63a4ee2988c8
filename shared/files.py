"""Files and folders that are either whole or not there, and checksums of their content."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def partial_path(path: Path) -> Path:
    """Where an output is written before it is complete: beside it, hidden, with the same suffix."""
    return path.with_name(f".partial-{path.name}")


def publish_partial(path: Path) -> None:
    """Give a completely written partial output its final name, in one step.

    Raises:
        FileNotFoundError: the partial file or folder is not there.
    """
    partial = partial_path(path)
    if path.is_symlink() or (path.is_dir() and partial.is_dir()):
        remove(path)  # a folder can replace neither a link nor a folder that is not empty
    partial.replace(path)


def remove(path: Path) -> None:
    """Delete a file, link or folder if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def atomic_output(path: Path) -> Iterator[Path]:
    """A temporary path to write to; it replaces ``path`` when the block ends without an exception."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove(partial_path(path))
    try:
        yield partial_path(path)
        publish_partial(path)
    finally:
        remove(partial_path(path))


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON with sorted keys, atomically."""
    with atomic_output(path) as partial:
        partial.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def checksum(path: Path) -> str:
    """SHA-256 of a file's content, or of a folder's files with their names (64 hexadecimal digits)."""
    if path.is_dir():
        digest = hashlib.sha256()
        for file in sorted(entry for entry in path.rglob("*") if entry.is_file()):
            if file.name != ".snakemake_timestamp":  # Snakemake's own mark in output folders
                digest.update(f"{file.relative_to(path).as_posix()}\0{checksum(file)}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
