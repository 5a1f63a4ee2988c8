"""Tables that travel between stages, as parquet files: the same rows give the same bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
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
    write_parquet(path, pa.Table.from_pandas(frame, schema=schema, preserve_index=False))


def write_parquet(path: Path, table: pa.Table, *, metadata: dict[str, str] | None = None) -> None:
    """Write a table of pyarrow's atomically and small: results travel with the repository.

    Args:
        path: where to.
        table: the rows.
        metadata: of the file, in place of the table's own: pandas' holds its version, and an upgrade alone must not
            change the bytes of a result.
    """
    dense = [name for name in table.column_names if _is_dense(table.column(name))]
    others = [name for name in table.column_names if name not in dense]
    with atomic_output(path) as partial:
        pq.write_table(
            table.replace_schema_metadata(metadata),
            partial,
            compression="zstd",
            compression_level=12,
            use_dictionary=others or False,
            use_byte_stream_split=dense,
        )


def _is_dense(column: pa.ChunkedArray) -> bool:
    """Whether most numbers of a column differ: then bytes of equal place compress better than a dictionary."""
    return pa.types.is_floating(column.type) and 2 * pc.count_distinct(column).as_py() > len(column)


def with_short_numbers(frame: pd.DataFrame, bits: int = 11) -> pd.DataFrame:
    """A table with its floating-point numbers rounded to so many significant binary digits.

    Half precision has 11, a relative error of at most 1 / 2^11; here the range stays that of double precision. Finer
    digits of a measurement per sample are lost in any mean over samples, and are most of what such a table takes.
    """
    short = {}
    for name in frame.select_dtypes("floating"):
        mantissa, exponent = np.frexp(frame[name])
        short[name] = np.ldexp(np.round(np.ldexp(mantissa, bits)), exponent - bits)
    return frame.assign(**short)


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
