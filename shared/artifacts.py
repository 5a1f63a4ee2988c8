"""The artifact store: where a file's record is, and whether the file is what was once written.

Snakemake keeps every output of a cached rule as ``data/artifacts/<provenance hash>_<output name><suffix>`` and links it
to its place in a paper's ``results``. Every rule has an output named ``record`` (see :mod:`shared.stage`), so that the
record beside an artifact says what made it and holds the checksums of all outputs of that job.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import InputError
from shared.files import checksum

_STORED = re.compile(r"(?P<hash>[0-9a-f]{64})_(?P<name>[A-Za-z_]\w*)(\.\w+)?")


@dataclass(frozen=True)
class StoredArtifact:
    """One output in the store.

    Attributes:
        path: the file or folder in the store.
        name: the output's name in its rule.
        record_path: the record of the job that wrote it (not necessarily there).
    """

    path: Path
    name: str
    record_path: Path


def stored_artifact(path: Path) -> StoredArtifact | None:
    """The artifact in the store that ``path`` links to or is; None for a file that is not from a store.

    A folder's own entries are links (this is how Snakemake restores folders), so the first of them is followed.
    """
    target = path.resolve()
    if target.is_dir() and not _STORED.fullmatch(target.name):
        entries = sorted(entry for entry in path.iterdir() if entry.is_symlink())
        if entries:
            target = entries[0].resolve().parent
    match = _STORED.fullmatch(target.name)
    if match is None:
        return None
    return StoredArtifact(target, match["name"], target.with_name(f"{match['hash']}_record.json"))


def read_record(path: Path) -> dict[str, Any]:
    """A job's record.

    Raises:
        InputError: the file is not a whole JSON record.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise InputError(f"{path}: damaged record, not valid JSON; delete it to have its job run again") from None
    if not isinstance(record, dict) or "outputs" not in record:
        raise InputError(f"{path}: damaged record, it has no key 'outputs'; delete it to have its job run again")
    return record


def check_artifact(artifact: StoredArtifact) -> None:
    """Compare an artifact with the checksum in its job's record, where there is a record.

    Raises:
        InputError: the artifact is damaged, truncated or not the one that the job wrote.
    """
    if artifact.name == "record" or not artifact.record_path.exists():
        return
    expected = read_record(artifact.record_path)["outputs"].get(artifact.name)
    if expected is None:
        raise InputError(f"{artifact.path}: damaged artifact, its record lists no output named {artifact.name!r}")
    if not artifact.path.exists() or checksum(artifact.path) != expected:
        raise InputError(
            f"{artifact.path}: damaged artifact, its SHA-256 is not the one in its record; "
            "delete it to have it restored or computed again"
        )


def check_input(path: Path) -> None:
    """Refuse an input that is missing, or that comes from the store and is damaged.

    Raises:
        InputError: with the file's name.
    """
    if not path.exists():
        broken = f" (a link to {path.readlink()}, which is not there)" if path.is_symlink() else ""
        raise InputError(f"{path}: no such input file{broken}")
    artifact = stored_artifact(path)
    if artifact is not None:
        check_artifact(artifact)
