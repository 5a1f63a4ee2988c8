"""What the DVC remote holds of the artifact store, and fetching single artifacts from it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dvc.exceptions import DvcException
from dvc.repo import Repo

from shared.errors import InputError

STORE = Path("data/artifacts")
"""The artifact store, relative to the repository; ``data.dvc`` versions the folder above it."""


class Published:
    """The artifacts of the version of the store that ``data.dvc`` names."""

    def __init__(self, repo: Repo) -> None:
        self._repo = repo
        self._filesystem = repo.dvcfs
        self._files = set(self._listed()) if Path(repo.root_dir, "data.dvc").exists() else set()
        self._folders = {str(Path(path).parent) for path in self._files}

    def _listed(self) -> Iterator[str]:
        try:
            for path in self._filesystem.find(STORE.as_posix()):
                if "dvc_info" in self._filesystem.info(path):  # files of the folder that are only here have none
                    yield path
        except (DvcException, FileNotFoundError) as error:
            raise InputError(f"data.dvc: the remote does not hold this version of the store: {error}") from None

    def holds(self, artifact: Path) -> bool:
        """Whether a file or folder of the store, relative to the repository, is published."""
        return artifact.as_posix() in self._files | self._folders

    def records(self) -> Iterator[dict[str, Any]]:
        """The records of all published jobs."""
        for path in sorted(self._files):
            if path.endswith("_record.json"):
                yield json.loads(self._filesystem.read_text(path))

    def pull(self, artifacts: Iterable[Path]) -> None:
        """Fetch files and folders of the store, and nothing else.

        Raises:
            InputError: the remote lacks one of them, or what it has is damaged.
        """
        targets = [artifact.as_posix() for artifact in artifacts]
        if not targets:
            return
        try:
            self._repo.pull(targets=targets)
        except DvcException as error:
            raise InputError(f"the remote could not deliver every artifact: {error}") from None


@contextmanager
def published_artifacts(root: Path) -> Iterator[Published]:
    """The published store of the repository at ``root``."""
    with Repo(str(root)) as repo:
        yield Published(repo)
