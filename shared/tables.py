"""Tables that travel between stages, as parquet files: the same rows give the same bytes."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from shared.errors import InputError
from shared.files import atomic_output


def write_table(path: Path, frame: pd.DataFrame, *, schema: pa.Schema | None = None) -> None:
    """Write a table atomically, without its index.

    Args:
        path: where to.
        frame: the rows.
        schema: column types; by default those of the frame.
    """
    table = pa.Table.from_pandas(frame, schema=schema, preserve_index=False)
    # pandas' own metadata holds its version: an upgrade alone must not change the bytes of a result.
    table = table.replace_schema_metadata(None)
    with atomic_output(path) as partial:
        pq.write_table(table, partial, compression="zstd")


def read_table(path: Path, columns: tuple[str, ...] | None = None) -> pd.DataFrame:
    """Read a table, and check that it has the columns.

    Raises:
        InputError: the file is missing, is not parquet, or lacks a column.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        frame = pq.ParquetFile(path).read().to_pandas()
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a whole parquet file: {str(error).splitlines()[0]}") from None
    for column in columns or ():
        if column not in frame.columns:
            raise InputError(f"{path}: no column {column!r}; there are: {', '.join(map(str, frame.columns))}")
    return frame
