import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import InputError
from shared.tables import read_table, with_short_numbers, write_table

COLUMNS = {
    "count": st.integers(-(2**60), 2**60),
    "number": st.floats(allow_nan=False),
    "text": st.text(max_size=5),
}


@given(st.lists(st.fixed_dictionaries(COLUMNS), min_size=1, max_size=20))
def test_a_table_comes_back_as_it_was(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("tables") / "table.parquet"
    frame = pd.DataFrame(rows)
    write_table(path, frame)
    pd.testing.assert_frame_equal(read_table(path), frame, check_exact=True)


def test_the_same_rows_give_the_same_bytes_and_nothing_of_pandas(tmp_path):
    frame = pd.DataFrame({"seed": [0, 1], "value": [0.5, 0.25]})
    write_table(tmp_path / "a.parquet", frame)
    write_table(tmp_path / "b.parquet", frame.set_axis([7, 8]))
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert "pandas" not in str(pq.read_metadata(tmp_path / "a.parquet").metadata)


def test_measurements_take_less_room_than_a_dictionary_of_them(tmp_path):
    values = np.random.default_rng(0).normal(size=5000).astype("float32").astype("float64")
    write_table(tmp_path / "table.parquet", pd.DataFrame({"value": values}))
    assert (tmp_path / "table.parquet").stat().st_size < 5 * len(values)


@given(st.lists(st.floats(min_value=2.0**-14, max_value=65504), min_size=1))
def test_short_numbers_are_those_of_half_precision(values):
    frame = pd.DataFrame({"value": [*values, *(-value for value in values)]})
    expected = frame["value"].to_numpy().astype("float16").astype(float)
    assert np.array_equal(with_short_numbers(frame)["value"], expected)


def test_short_numbers_keep_their_range_and_leave_other_columns_alone():
    frame = pd.DataFrame({"value": [1e-30, 3e300, 0.0, np.nan, -np.inf], "count": 12345678, "text": "a"})
    short = with_short_numbers(frame)
    np.testing.assert_allclose(short["value"], frame["value"], rtol=2.0**-11)
    pd.testing.assert_frame_equal(short[["count", "text"]], frame[["count", "text"]])


def test_short_numbers_take_little_room(tmp_path):
    values = pd.DataFrame({"value": np.random.default_rng(0).normal(size=5000)})
    write_table(tmp_path / "table.parquet", with_short_numbers(values))
    assert (tmp_path / "table.parquet").stat().st_size < 2.2 * len(values)


@pytest.mark.parametrize("rows", [0, 1])
def test_tables_of_hardly_any_rows_are_written(tmp_path, rows):
    frame = pd.DataFrame({"value": np.zeros(rows), "empty": np.full(rows, np.nan)})
    write_table(tmp_path / "table.parquet", frame)
    pd.testing.assert_frame_equal(read_table(tmp_path / "table.parquet"), frame)


def test_bad_tables_are_named(tmp_path):
    write_table(tmp_path / "table.parquet", pd.DataFrame({"value": [1.0]}))
    (tmp_path / "half.parquet").write_bytes((tmp_path / "table.parquet").read_bytes()[:50])
    with pytest.raises(InputError, match=r"table\.parquet: no column 'seed'; there are: value"):
        read_table(tmp_path / "table.parquet", ("value", "seed"))
    with pytest.raises(InputError, match=r"half\.parquet: not a whole parquet file"):
        read_table(tmp_path / "half.parquet")
    with pytest.raises(InputError, match=r"none\.parquet: no such file"):
        read_table(tmp_path / "none.parquet")
