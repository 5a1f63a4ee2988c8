"""Documents by title in one SQLite file: what a data loader needs of a corpus that does not fit into memory."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path

from papers.reic.codred import LinkedDocument, document_lines, parse_document
from shared.errors import InputError


def build_store(path: Path, files: Iterable[Path]) -> int:
    """Write the documents of jsonl files to a new store; of equal titles the first counts. Returns their number.

    Raises:
        InputError: a file is missing or holds something else.
    """
    connection = sqlite3.connect(path)
    try:
        connection.execute("CREATE TABLE documents (title TEXT PRIMARY KEY, line TEXT NOT NULL) WITHOUT ROWID")
        for file in files:
            connection.executemany("INSERT OR IGNORE INTO documents VALUES (?, ?)", document_lines(file))
        connection.commit()
        return connection.execute("SELECT COUNT(*) FROM documents").fetchone()[0]
    finally:
        connection.close()


class DocumentStore:
    """A store for reading, from any process: each opens a connection of its own when it first reads."""

    def __init__(self, path: Path):
        """Raises InputError if there is no such file."""
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        self.path = path
        self._connection: sqlite3.Connection | None = None

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "_connection": None}

    def __getitem__(self, title: str) -> LinkedDocument:
        """The document of a title, which may hold any character.

        Raises:
            InputError: there is none, or it is damaged.
        """
        if self._connection is None:
            address = f"{self.path.absolute().as_uri()}?mode=ro"
            self._connection = sqlite3.connect(address, uri=True, check_same_thread=False)
        row = self._connection.execute("SELECT line FROM documents WHERE title = ?", (title,)).fetchone()
        if row is None:
            raise InputError(f"{self.path}: no document {title!r}")
        return parse_document(row[0], f"{self.path}: document {title!r}")

    def close(self) -> None:
        """Close this process's connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
