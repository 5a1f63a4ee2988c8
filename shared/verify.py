"""Recompute the checksums of the artifact store, here and in the embedded remote, and name everything damaged.

``python -m shared.verify`` ends with status 1 if an artifact is not what its job wrote (truncated, changed, swapped
with another), or an object of the remote's folder is not what its name says.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import tyro

from shared.artifacts import StoredArtifact, check_artifact, read_record
from shared.errors import InputError
from shared.published import STORE

ROOT = Path(__file__).resolve().parent.parent
REMOTE = Path("artifact-store")
"""The default DVC remote: a folder of the repository."""


def damaged_artifacts(store: Path) -> Iterator[str]:
    """One line for everything in a store that is not what its record says, or that no record speaks of."""
    recorded: set[Path] = set()
    for record_path in sorted(store.glob("*_record.json")):
        try:
            names = read_record(record_path)["outputs"]
        except InputError as error:
            yield str(error)
            continue
        prefix = record_path.name.removesuffix("record.json")
        for name in names:
            found = [path for path in store.glob(f"{prefix}{name}*") if path.name.split(".")[0] == f"{prefix}{name}"]
            if not found:
                yield f"{store / prefix}{name}: missing, though its record lists it"
            for path in found:
                recorded.add(path)
                try:
                    check_artifact(StoredArtifact(path, name, record_path))
                except InputError as error:
                    yield str(error)
        recorded.add(record_path)
    for path in sorted(store.iterdir() if store.exists() else ()):
        if path not in recorded and not path.name.startswith("."):
            yield f"{path}: no record says what made it"


def damaged_objects(remote: Path) -> Iterator[str]:
    """One line for every object of a DVC remote in a folder whose content does not have the MD5 of its name."""
    for path in sorted(remote.glob("files/md5/*/*")):
        expected = (path.parent.name + path.name).removesuffix(".dir")
        with path.open("rb") as stream:
            if hashlib.file_digest(stream, "md5").hexdigest() != expected:
                yield f"{path}: damaged object, its MD5 is not its name; restore it with: git checkout -- {path}"


def verify(root: Path) -> list[str]:
    """Everything that is damaged in the store and the embedded remote of the repository at ``root``."""
    return [*damaged_artifacts(root / STORE), *damaged_objects(root / REMOTE)]


def main() -> None:
    """Check every artifact and every published object against its checksum."""
    tyro.cli(lambda: None, prog="python -m shared.verify", description=main.__doc__)
    problems = verify(ROOT)
    for problem in problems:
        print(problem.replace(f"{ROOT}/", ""))
    records = len(list((ROOT / STORE).glob("*_record.json")))
    objects = len(list((ROOT / REMOTE).glob("files/md5/*/*")))
    print(f"{records} jobs in the store and {objects} objects in the remote checked, {len(problems)} problems")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
