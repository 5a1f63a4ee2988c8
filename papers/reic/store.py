"""Store: CodRED's documents in one key-value file."""

from __future__ import annotations

from pathlib import Path

from papers.reic.codred import DOCUMENT_FILES
from papers.reic.document_store import build_store
from papers.reic.options import HubOptions
from shared.stage import Output, run


def write_store(options: HubOptions, *, store: Output) -> dict[str, int]:
    """Write the store; of a title that both files have, the first file's document counts."""
    return {"documents": build_store(store, [Path(options.dataset) / name for name in DOCUMENT_FILES])}


if __name__ == "__main__":
    run(write_store)
