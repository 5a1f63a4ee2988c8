"""Store: CodRED's documents in one key-value file."""

from __future__ import annotations

from papers.reic.document_store import build_store
from shared.stage import Input, Output, run


def write_store(*, documents: tuple[Input, ...], store: Output) -> dict[str, int]:
    """Write the store; of a title that several files have, the first file's document counts."""
    return {"documents": build_store(store, documents)}


if __name__ == "__main__":
    run(write_store)
