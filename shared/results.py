"""The two tables in which every paper writes down what it measured.

**Metrics table** (``papers/<paper>/results/<scale>/metrics.parquet``), one row per measured number:

===============  ========  ==========================================================================
column           type      meaning
===============  ========  ==========================================================================
``paper``        str       id of the paper, the name of its folder under ``papers/``
``scale``        str       section of the paper's ``config.yaml``: ``smoke``, ``small``, ``paper``, ...
``method``       str       what was run: the paper's method, a baseline or a control
``setting``      str       the condition it was run in (data regime, noise rate, model, ...)
``seed``         int64     the training seed; equal seeds are paired across methods
``metric``       str       what was measured
``value``        float64   the measurement, finite
``wall_seconds`` float64   time the run took, NaN where not recorded
``cost``         float64   what it cost in the paper's own currency (documented there), NaN where not recorded
===============  ========  ==========================================================================

**Units table** (``units.parquet``), one row per evaluation unit: ``paper``, ``scale``, ``method``, ``setting``,
``seed``, ``unit`` (str: a prompt, an image, ...; equal units are paired across methods), ``metric``, ``value``.

No row key (all columns but the measurements) may occur twice. Files hold the rows in the order of their keys, so the
same rows in any order give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from shared.errors import InputError
from shared.tables import write_parquet

METRIC_KEY = ("paper", "scale", "method", "setting", "seed", "metric")
UNIT_KEY = ("paper", "scale", "method", "setting", "seed", "unit", "metric")
METRIC_COLUMNS = (*METRIC_KEY, "value", "wall_seconds", "cost")
UNIT_COLUMNS = (*UNIT_KEY, "value")

_REPOSITORY = Path(__file__).resolve().parents[1]
_NULLABLE = ("wall_seconds", "cost")

Rows = pd.DataFrame | Iterable[Mapping[str, object]]


def metrics_table(rows: Rows) -> pd.DataFrame:
    """Build a metrics table from a data frame or from dictionaries; ``wall_seconds`` and ``cost`` may be left out.

    Raises:
        ValueError: a column is missing, unknown or of the wrong type, a name is empty, a value is not finite, a time or
            cost is negative, or a key occurs twice. The message names the column, and the key of the row.
    """
    return _checked(_as_frame(rows), "metrics table", METRIC_KEY, METRIC_COLUMNS)


def units_table(rows: Rows) -> pd.DataFrame:
    """Build a units table from a data frame or from dictionaries; errors as for :func:`metrics_table`."""
    return _checked(_as_frame(rows), "units table", UNIT_KEY, UNIT_COLUMNS)


def aggregate(units: pd.DataFrame) -> pd.DataFrame:
    """Average a units table over its units: a metrics table, with unknown time and cost."""
    means = units.groupby(list(METRIC_KEY), sort=True, observed=True)["value"].mean()
    return metrics_table(means.reset_index())


def check_agreement(metrics: pd.DataFrame, units: pd.DataFrame, *, rtol: float = 1e-6) -> None:
    """Check that a metric found in both tables has the same seeds and means in both, within ``rtol``.

    Two rows that should say the same thing and do not are an error of the evaluation, which no verdict may hide.

    Raises:
        ValueError: naming the first such row.
    """
    key = list(METRIC_KEY)
    means = aggregate(units)[[*key, "value"]].rename(columns={"value": "of_units"})
    series = key.copy()
    series.remove("seed")
    shared_series = metrics.merge(means[series].drop_duplicates(), on=series)
    if shared_series.empty:
        return
    both = shared_series[[*key, "value"]].merge(means, on=key, how="left")
    differs = ~np.isclose(both["value"], both["of_units"], rtol=rtol, atol=1e-12)
    if differs.any():
        row = both[differs].iloc[0]
        found = "no such seed" if np.isnan(row["of_units"]) else f"mean {row['of_units']:.8g}"
        raise ValueError(
            f"metrics and units tables disagree at {_describe(row, METRIC_KEY)}: "
            f"value {row['value']:.8g} in metrics, {found} in units"
        )


def write_metrics(path: Path, rows: Rows) -> pd.DataFrame:
    """Check and write a metrics table (atomically; equal rows give equal bytes) and return it as written."""
    return _write(path, metrics_table(rows), METRIC_COLUMNS, "metrics")


def write_units(path: Path, rows: Rows) -> pd.DataFrame:
    """Check and write a units table (atomically; equal rows give equal bytes) and return it as written."""
    return _write(path, units_table(rows), UNIT_COLUMNS, "units")


def read_metrics(path: Path) -> pd.DataFrame:
    """Read a metrics table.

    Raises:
        InputError: the file is not there or not a metrics table.
    """
    return _read(path, metrics_table)


def read_units(path: Path) -> pd.DataFrame:
    """Read a units table.

    Raises:
        InputError: the file is not there or not a units table.
    """
    return _read(path, units_table)


def load(paper: str, scale: str = "small", *, root: str | Path | None = None) -> pd.DataFrame:
    """Return a paper's metrics as one tidy table, for notebooks.

    Args:
        paper: id of the paper.
        scale: a section of the paper's ``config.yaml``.
        root: folder of the repository; by default the one this module lives in.

    Raises:
        InputError: not computed yet; the message gives the command that computes it.
    """
    return read_metrics(_computed(paper, scale, "metrics.parquet", root))


def load_units(paper: str, scale: str = "small", *, root: str | Path | None = None) -> pd.DataFrame:
    """Return a paper's measurements per evaluation unit; like :func:`load`."""
    return read_units(_computed(paper, scale, "units.parquet", root))


def _computed(paper: str, scale: str, name: str, root: str | Path | None) -> Path:
    relative = Path("papers", paper, "results", scale, name)
    path = Path(root or _REPOSITORY) / relative
    if not path.is_file():
        command = f"snakemake papers/{paper}" + ("" if scale == "small" else f" --config scale={scale}")
        raise InputError(f"{relative.as_posix()} has not been computed yet; compute it with: {command}")
    return path


def _as_frame(rows: Rows) -> pd.DataFrame:
    return rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))


def _checked(frame: pd.DataFrame, table: str, key: tuple[str, ...], columns: tuple[str, ...]) -> pd.DataFrame:
    """Return the columns in their order and types, rows sorted by key, or raise."""
    for column in columns:
        if column not in frame.columns and column not in _NULLABLE:
            raise ValueError(f"{table}: no column {column!r} (got {', '.join(map(str, frame.columns)) or 'none'})")
    unknown = [column for column in frame.columns if column not in columns]
    if unknown:
        raise ValueError(f"{table}: unknown column {unknown[0]!r}")
    absent = pd.Series(np.nan, index=frame.index)
    checked = pd.DataFrame({column: _typed(frame.get(column, absent), column, table) for column in columns})
    for column in set(columns) - set(key):
        _check_numbers(checked, column, table, key)
    repeated = checked.duplicated(list(key))
    if repeated.any():
        raise ValueError(f"{table}: more than one row for {_describe(checked[repeated].iloc[0], key)}")
    return checked.sort_values(list(key), kind="stable", ignore_index=True)


def _typed(column: pd.Series, name: str, table: str) -> pd.Series:
    """Cast where nothing is lost (int32 to int64, int to float64, all-None to NaN); refuse everything else."""
    kind = column.dtype.kind
    if name == "seed":
        if kind not in "iu":
            raise ValueError(f"{table}: column 'seed' must hold integers, got {column.dtype}")
        return column.astype("int64")
    if name in ("value", *_NULLABLE):
        if name in _NULLABLE and column.isna().all():
            return pd.Series(np.nan, index=column.index, dtype="float64")
        if kind not in "iuf":
            raise ValueError(f"{table}: column {name!r} must hold numbers, got {column.dtype}")
        return column.astype("float64")
    bad = [cell for cell in column.unique().tolist() if not isinstance(cell, str) or not cell]
    if bad:
        raise ValueError(f"{table}: column {name!r} must hold non-empty strings, got {bad[0]!r}")
    return column.astype("str")


def _check_numbers(frame: pd.DataFrame, column: str, table: str, key: tuple[str, ...]) -> None:
    values = frame[column]
    if column in _NULLABLE:
        bad, wanted = np.isinf(values) | (values < 0), "non-negative or missing"
    else:
        bad, wanted = ~np.isfinite(values), "finite"
    if bad.any():
        row = frame[bad].iloc[0]
        raise ValueError(f"{table}: {column} {row[column]} at {_describe(row, key)} is not {wanted}")


def _describe(row: pd.Series, key: tuple[str, ...]) -> str:
    return ", ".join(f"{name} {row[name]}" for name in key)


def _write(path: Path, frame: pd.DataFrame, columns: tuple[str, ...], kind: str) -> pd.DataFrame:
    types = {"seed": pa.int64(), "value": pa.float64(), "wall_seconds": pa.float64(), "cost": pa.float64()}
    schema = pa.schema([(column, types.get(column, pa.string())) for column in columns])
    write_parquet(path, pa.Table.from_pandas(frame, schema=schema, preserve_index=False), metadata={"table": kind})
    return frame


def _read(path: Path, check: Callable[[pd.DataFrame], pd.DataFrame]) -> pd.DataFrame:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        return check(pq.ParquetFile(path).read().to_pandas())
    except ValueError as error:  # includes pyarrow's ArrowInvalid
        raise InputError(f"{path}: {str(error).splitlines()[0]}") from None
