import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.data_order import BatchOrder, chunks, generator_for


@given(st.integers(1, 40), st.data())
def test_an_epoch_sees_examples_once_and_drops_the_incomplete_batch(size, data):
    batch_size = data.draw(st.integers(1, size))
    order = BatchOrder(size, batch_size, seed=3)
    for epoch in range(2):
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        seen = np.concatenate([order.indices(step) for step in steps])
        assert len(seen) == len(set(seen)) == batch_size * (size // batch_size)
        assert seen.min() >= 0 and seen.max() < size


def test_order_depends_on_seed_and_epoch_alone():
    order = BatchOrder(100, 10, seed=0)
    later = order.indices(57)
    assert np.array_equal(BatchOrder(100, 10, seed=0).indices(57), later)
    assert not np.array_equal(BatchOrder(100, 10, seed=1).indices(57), later)
    assert not np.array_equal(order.indices(0), order.indices(10)), "epochs repeat"


@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 9))
def test_processes_and_micro_batches_share_the_step_evenly(num_processes, accumulation, step):
    order = BatchOrder(50, 24, seed=0)
    parts = [
        order.micro_batches(step, accumulation=accumulation, process_index=process, num_processes=num_processes)
        for process in range(num_processes)
    ]
    assert all(len(part) == accumulation for part in parts)
    assert sorted(np.concatenate([rows for part in parts for rows in part])) == sorted(order.indices(step))
    sizes = [len(rows) for part in parts for rows in part]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("batch_size", [0, 11])
def test_a_batch_must_fit_the_data(batch_size):
    with pytest.raises(ValueError, match="batch_size"):
        BatchOrder(10, batch_size, seed=0)


def test_generators_are_functions_of_their_key():
    def draw(*key):
        return tuple(torch.rand(4, generator=generator_for(*key)).tolist())

    keys = [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 1, 2)]
    assert draw(0, 1) == draw(0, 1)
    assert len({draw(*key) for key in keys}) == len(keys)


def test_chunks_hold_every_index_once_in_order():
    parts = list(chunks(np.arange(7) * 2, 3))
    assert [part.tolist() for part in parts] == [[0, 2, 4], [6, 8, 10], [12]]
    assert list(chunks(np.arange(0), 3)) == []
