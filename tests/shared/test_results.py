import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from shared import results
from shared.errors import InputError


def metric_row(**changes):
    row = {
        "paper": "demo",
        "scale": "small",
        "method": "ours",
        "setting": "A",
        "seed": 0,
        "metric": "gold",
        "value": 0.5,
        "wall_seconds": 1.5,
        "cost": None,
    }
    return row | changes


def unit_row(**changes):
    return {key: cell for key, cell in metric_row(unit="p0").items() if key in results.UNIT_COLUMNS} | changes


def rows_of_a_paper():
    return [
        metric_row(method=method, seed=seed, metric=metric, value=seed + 0.25)
        for method in ("ours", "theirs")
        for seed in (2, 0, 1)
        for metric in ("kl", "gold")
    ]


def test_a_table_has_the_documented_columns_and_types():
    frame = results.metrics_table([metric_row(seed=np.int32(3), value=1)])
    assert list(frame.columns) == list(results.METRIC_COLUMNS)
    types = frame.dtypes
    assert types["seed"] == "int64"
    assert all(types[column] == "float64" for column in ("value", "wall_seconds", "cost"))
    assert all(types[column] == "str" for column in ("paper", "scale", "method", "setting", "metric"))
    assert np.isnan(frame.loc[0, "cost"])


def test_time_and_cost_may_be_left_out():
    row = metric_row()
    del row["wall_seconds"], row["cost"]
    frame = results.metrics_table([row])
    assert frame[["wall_seconds", "cost"]].isna().all(axis=None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": float("nan")}, r"value nan at .*method ours, setting A, seed 0, metric gold is not finite"),
        ({"value": float("inf")}, r"value inf at .* is not finite"),
        ({"value": None}, r"column 'value' must hold numbers"),
        ({"value": True}, r"column 'value' must hold numbers, got bool"),
        ({"value": "0.5"}, r"column 'value' must hold numbers"),
        ({"seed": 0.0}, r"column 'seed' must hold integers, got float64"),
        ({"seed": False}, r"column 'seed' must hold integers, got bool"),
        ({"setting": 3}, r"column 'setting' must hold non-empty strings, got 3"),
        ({"method": ""}, r"column 'method' must hold non-empty strings, got ''"),
        ({"metric": None}, r"column 'metric' must hold non-empty strings"),
        ({"wall_seconds": -1.0}, r"wall_seconds -1.0 at .* is not non-negative"),
        ({"cost": float("inf")}, r"cost inf at .* is not non-negative"),
        ({"extra": 1}, r"unknown column 'extra'"),
    ],
)
def test_bad_rows_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        results.metrics_table([metric_row(**change)])


def test_a_missing_column_is_named():
    row = metric_row()
    del row["setting"]
    with pytest.raises(ValueError, match="metrics table: no column 'setting'"):
        results.metrics_table([row])
    with pytest.raises(ValueError, match="units table: no column 'unit'"):
        results.units_table([{key: cell for key, cell in unit_row().items() if key != "unit"}])
    with pytest.raises(ValueError, match=r"no column 'paper' \(got none\)"):
        results.metrics_table([])


def test_a_duplicate_key_is_named():
    with pytest.raises(ValueError, match=r"more than one row for paper demo, .* seed 0, metric gold"):
        results.metrics_table([metric_row(), metric_row(value=0.7)])
    results.metrics_table([metric_row(), metric_row(seed=1)])
    with pytest.raises(ValueError, match=r"more than one row for .* unit p0"):
        results.units_table([unit_row(), unit_row(value=0.1)])


def test_the_input_frame_is_left_alone():
    frame = pd.DataFrame([{key: cell for key, cell in metric_row().items() if key != "cost"}])
    before = frame.copy()
    results.metrics_table(frame)
    pd.testing.assert_frame_equal(frame, before)


def test_write_and_read_give_the_same_table(tmp_path):
    path = tmp_path / "new" / "metrics.parquet"
    written = results.write_metrics(path, rows_of_a_paper())
    pd.testing.assert_frame_equal(results.read_metrics(path), written)
    units = results.write_units(tmp_path / "units.parquet", [unit_row(), unit_row(unit="p1")])
    pd.testing.assert_frame_equal(results.read_units(tmp_path / "units.parquet"), units)


def test_rows_come_in_the_order_of_their_keys():
    frame = results.metrics_table(rows_of_a_paper())
    keys = list(frame[list(results.METRIC_KEY)].itertuples(index=False, name=None))
    assert keys == sorted(keys)
    assert frame.index.tolist() == list(range(len(frame)))


def test_bytes_do_not_depend_on_the_order_of_rows_or_on_the_process(tmp_path):
    rows = rows_of_a_paper()
    results.write_metrics(tmp_path / "a.parquet", rows)
    results.write_metrics(tmp_path / "b.parquet", rows[::-1])
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "metrics.parquet"
    results.write_metrics(path, rows_of_a_paper())
    before = path.read_bytes()

    def fail_half_way(table, where, **options):
        where.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(results.pq, "write_table", fail_half_way)
    with pytest.raises(OSError, match="disk full"):
        results.write_metrics(path, [metric_row()])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_reading_something_else_names_the_file(tmp_path):
    with pytest.raises(InputError, match=r"none.parquet: no such file"):
        results.read_metrics(tmp_path / "none.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"not parquet")
    with pytest.raises(InputError, match=r"broken.parquet: "):
        results.read_metrics(tmp_path / "broken.parquet")
    results.write_units(tmp_path / "units.parquet", [unit_row()])
    with pytest.raises(InputError, match=r"units.parquet: metrics table: unknown column 'unit'"):
        results.read_metrics(tmp_path / "units.parquet")


def test_load_finds_the_tables_of_a_paper(tmp_path):
    folder = tmp_path / "papers" / "demo" / "results" / "small"
    results.write_metrics(folder / "metrics.parquet", [metric_row()])
    results.write_units(folder / "units.parquet", [unit_row()])
    assert results.load("demo", root=tmp_path)["value"].tolist() == [0.5]
    assert results.load_units("demo", root=tmp_path)["unit"].tolist() == ["p0"]


def test_load_says_how_to_compute_what_is_not_there(tmp_path):
    with pytest.raises(InputError) as caught:
        results.load("demo", root=tmp_path)
    assert str(caught.value) == (
        "papers/demo/results/small/metrics.parquet has not been computed yet; compute it with: snakemake papers/demo"
    )
    with pytest.raises(InputError, match="snakemake papers/demo --config scale=smoke"):
        results.load_units("demo", "smoke", root=tmp_path)


def test_aggregate_averages_units_and_nothing_else():
    units = results.units_table(
        [
            unit_row(seed=seed, metric=metric, unit=f"p{unit}", value=10.0 * seed + unit + (metric == "kl"))
            for seed in (0, 1)
            for metric in ("gold", "kl")
            for unit in range(4)
        ]
    )
    means = results.aggregate(units)
    found = {(row.seed, row.metric): row.value for row in means.itertuples()}
    assert found == {(0, "gold"): 1.5, (0, "kl"): 2.5, (1, "gold"): 11.5, (1, "kl"): 12.5}
    pd.testing.assert_frame_equal(means, results.metrics_table(means))


def test_tables_that_contradict_each_other_are_an_error():
    units = results.units_table(
        [unit_row(seed=seed, unit=f"p{unit}", value=unit) for seed in (0, 1) for unit in (0, 1)]
    )
    agreeing = [metric_row(seed=0), metric_row(seed=1), metric_row(seed=7, metric="kl", value=3.0)]
    results.check_agreement(results.metrics_table(agreeing), units)
    results.check_agreement(results.metrics_table([metric_row(metric="kl")]), units)
    with pytest.raises(ValueError, match=r"seed 1, metric gold: value 0.51 in metrics, mean 0.5 in units"):
        results.check_agreement(results.metrics_table([metric_row(), metric_row(seed=1, value=0.51)]), units)
    with pytest.raises(ValueError, match=r"seed 2, metric gold: value 0.5 in metrics, no such seed in units"):
        results.check_agreement(results.metrics_table([metric_row(), metric_row(seed=2)]), units)


def test_neither_torch_nor_pyplot_is_loaded():
    code = (
        "import sys; from shared import results, statistics, claims, plotting, report, index_page; "
        "sys.exit('torch' in sys.modules or 'matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
