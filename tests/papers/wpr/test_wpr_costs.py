"""Token costs: distances, truncation, on-demand costs, controls."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from papers.wpr.costs import (
    EmbeddingCost,
    identity_cost,
    kernel_exponent,
    nearest_neighbor_costs,
    neighbor_radii,
    permuted_cost,
    token_cost_matrix,
)
from papers.wpr.wasserstein import token_cost_matrix as documented_token_cost_matrix


def embeddings(size: int, width: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(size, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def by_the_definition(points: torch.Tensor, metric: str, k: int | None) -> torch.Tensor:
    """Loops over pairs and neighbour lists."""
    size = len(points)
    cost = torch.zeros(size, size, dtype=points.dtype)
    for i in range(size):
        for j in range(size):
            if metric == "euclidean":
                cost[i, j] = (points[i] - points[j]).square().sum().sqrt()
            else:
                norms = points[i].norm().clamp(min=1e-8) * points[j].norm().clamp(min=1e-8)
                cost[i, j] = (1 - points[i] @ points[j] / norms).clamp(min=0)
    cost.fill_diagonal_(0)
    if k is None:
        return cost
    nearest = [sorted((j for j in range(size) if j != i), key=lambda j: cost[i, j].item())[:k] for i in range(size)]
    for i in range(size):
        for j in range(size):
            if i != j and j not in nearest[i] and i not in nearest[j]:
                cost[i, j] = math.inf
    return cost


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 9), st.integers(1, 5), st.integers(0, 10**6), st.sampled_from(["euclidean", "cosine"]), st.data())
def test_cost_follows_the_definition(size, width, seed, metric, data):
    k = data.draw(st.none() | st.integers(1, size - 1))
    points = embeddings(size, width, seed)
    if metric == "cosine" and width == 1:  # cosines of scalars are ±1: ties, of which the lists keep only some
        k = None
    cost = token_cost_matrix(points, metric=metric, num_neighbors=k)
    torch.testing.assert_close(cost, by_the_definition(points, metric, k), rtol=1e-9, atol=1e-12)
    assert torch.equal(cost, cost.T)
    assert (cost.diagonal() == 0).all()
    assert (cost >= 0).all()
    assert k is None or (cost.isfinite().sum(-1) >= k + 1).all()


def test_fixed_function_is_where_it_is_documented():
    assert documented_token_cost_matrix is token_cost_matrix


def test_euclidean_cost_is_not_squared():
    assert token_cost_matrix(torch.tensor([[0.0, 0.0], [3.0, 4.0]])).tolist() == [[0.0, 5.0], [5.0, 0.0]]


def test_cosine_cost_of_short_vectors_clamps_their_norm():
    points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [5e-9, 0.0], [0.0, 0.0]], dtype=torch.float64)
    cost = token_cost_matrix(points, metric="cosine")
    expected = torch.tensor([[0, 1, 1, 1], [1, 0, 0.5, 1], [1, 0.5, 0, 1], [1, 1, 1, 0]], dtype=torch.float64)
    torch.testing.assert_close(cost, expected, rtol=0, atol=1e-15)


def test_duplicates_are_neighbours_at_distance_zero():
    points = torch.tensor([[1.0, 2.0], [1.0, 2.0], [4.0, 6.0], [40.0, 60.0]])
    cost = token_cost_matrix(points, num_neighbors=1)
    assert cost[0, 1] == 0  # the duplicate, not the token itself, is its nearest other token
    assert cost[0, 3].isinf()
    assert cost[0, 2] == cost[1, 2] == 5  # the nearest ones of token 2 are tied, and both kept


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_all_neighbours_is_no_truncation(metric):
    points = embeddings(7, 3, 0)
    assert torch.equal(
        token_cost_matrix(points, metric=metric), token_cost_matrix(points, metric=metric, num_neighbors=6)
    )


def test_small_distances_far_from_the_origin_keep_their_digits():
    points = (1000 + 1e-2 * embeddings(60, 16, 3)).float()
    exact = token_cost_matrix(points.double())
    torch.testing.assert_close(token_cost_matrix(points).double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_cost_keeps_the_dtype_and_has_no_gradient(dtype, metric):
    points = embeddings(12, 4, 1, dtype).requires_grad_()
    cost = token_cost_matrix(points, metric=metric, num_neighbors=5)
    assert cost.dtype == dtype
    assert not cost.requires_grad
    exact = token_cost_matrix(points.double(), metric=metric, num_neighbors=5)
    torch.testing.assert_close(cost.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize(
    ("points", "arguments", "message"),
    [
        (torch.zeros(3), {}, r"embeddings .* got \(3,\)"),
        (torch.zeros(2, 3, 4), {}, r"embeddings .* got \(2, 3, 4\)"),
        (torch.zeros(2, 3, dtype=torch.long), {}, "embeddings .* got torch.int64"),
        (torch.tensor([[0.0], [math.nan]]), {}, "embeddings must be finite"),
        (torch.tensor([[0.0], [math.inf]]), {}, "embeddings must be finite"),
        (torch.zeros(3, 2), {"metric": "manhattan"}, "metric .* got 'manhattan'"),
        (torch.zeros(3, 2), {"num_neighbors": 0}, r"num_neighbors .*\[1, 2\], got 0"),
        (torch.zeros(3, 2), {"num_neighbors": 3}, r"num_neighbors .*\[1, 2\], got 3"),
    ],
)
def test_bad_embeddings_are_refused(points, arguments, message):
    with pytest.raises(ValueError, match=message):
        token_cost_matrix(points, **arguments)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_radii_do_not_depend_on_the_blocks(metric, dtype):
    points = embeddings(37, 24, 5, dtype)
    dense = token_cost_matrix(points, metric=metric).fill_diagonal_(math.inf)
    for k in (1, 4, 36):
        expected = dense.sort(-1).values[:, k - 1]
        for block_elements in (1, 37, 100, 10**6):
            assert torch.equal(neighbor_radii(points, k, metric=metric, block_elements=block_elements), expected)


def test_radii_stay_within_their_memory(monkeypatch):
    sizes = []
    cdist = torch.cdist

    def recorded(*args, **kwargs):
        result = cdist(*args, **kwargs)
        sizes.append(result.numel())
        return result

    monkeypatch.setattr(torch, "cdist", recorded)
    neighbor_radii(embeddings(300, 2, 0), 3, block_elements=1000)
    assert max(sizes) <= 1000
    assert sum(sizes) == 300 * 300


def test_block_of_no_elements_is_refused():
    with pytest.raises(ValueError, match=r"block_elements .* got 0"):
        neighbor_radii(torch.zeros(3, 2), 1, block_elements=0)


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 10**6),
    st.sampled_from(["euclidean", "cosine"]),
    st.sampled_from([torch.float32, torch.float64]),
    st.none() | st.integers(1, 19),
)
def test_on_demand_cost_is_the_matrix_restricted(seed, metric, dtype, k):
    points = embeddings(20, 6, seed, dtype)
    points[3] = points[11]
    radii = None if k is None else neighbor_radii(points, k, metric=metric, block_elements=50)
    generator = torch.Generator().manual_seed(seed)
    token_ids = torch.randperm(20, generator=generator)[: int(torch.randint(1, 21, (), generator=generator))]
    on_demand = EmbeddingCost(points, radii, metric)(token_ids)
    dense = token_cost_matrix(points, metric=metric, num_neighbors=k)
    assert torch.equal(on_demand, dense[token_ids[:, None], token_ids])


def test_on_demand_cost_of_half_precision_embeddings_is_not_rounded_to_them():
    points = embeddings(8, 3, 2, torch.bfloat16)
    on_demand = EmbeddingCost(points, neighbor_radii(points, 2))(torch.arange(8))
    assert on_demand.dtype == torch.float32
    assert torch.equal(on_demand, token_cost_matrix(points.float(), num_neighbors=2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3),), r"embeddings .* got \(3,\)"),
        ((torch.zeros(3, 2), torch.zeros(2)), r"radii .*\(3,\).* got \(2,\)"),
        ((torch.zeros(3, 2), None, "l1"), "metric .* got 'l1'"),
    ],
)
def test_bad_on_demand_cost_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        EmbeddingCost(*arguments)


def test_identity_cost():
    assert identity_cost(torch.tensor([7, 2])).tolist() == [[0.0, math.inf], [math.inf, 0.0]]


def test_permuted_cost_moves_rows_and_columns_together():
    points = embeddings(9, 3, 4)
    dense = token_cost_matrix(points, num_neighbors=2)
    permutation = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    permuted = permuted_cost(dense, permutation)
    for i in range(9):
        for j in range(9):
            assert permuted[i, j] == dense[permutation[i], permutation[j]]
    support = torch.tensor([1, 4, 5, 8])
    on_demand = permuted_cost(EmbeddingCost(points, neighbor_radii(points, 2)), permutation)
    assert torch.equal(on_demand(support), permuted[support[:, None], support])


@pytest.mark.parametrize(
    ("permutation", "message"),
    [([0, 1, 1], "once each"), ([1, 2, 3], "once each"), ([[0, 1, 2]], "once each"), ([0, 1], "length of cost")],
)
def test_bad_permutations_are_refused(permutation, message):
    with pytest.raises(ValueError, match=f"permutation must .*{message}"):
        permuted_cost(torch.zeros(3, 3), torch.tensor(permutation))


def test_nearest_neighbor_costs():
    points = embeddings(15, 4, 6)
    cost = token_cost_matrix(points)
    assert torch.equal(nearest_neighbor_costs(cost), neighbor_radii(points, 1))
    assert (cost.diagonal() == 0).all()  # left as it was
    assert nearest_neighbor_costs(torch.zeros(1, 1)).tolist() == [math.inf]
    with pytest.raises(ValueError, match=r"cost .* got \(2, 3\)"):
        nearest_neighbor_costs(torch.zeros(2, 3))


def test_identity_kernel_is_warned_about(recwarn):
    nearest = torch.tensor([0.1, 0.4, 9.0])
    assert kernel_exponent(nearest, reg=0.0101) == pytest.approx(0.4 / 0.0101)
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r"40\.4 times reg=0\.0099"):
        kernel_exponent(nearest, reg=0.0099)
    with pytest.raises(ValueError, match=r"reg .* got 0"):
        kernel_exponent(nearest, reg=0)
    with pytest.raises(ValueError, match=r"nearest .* got none"):
        kernel_exponent(torch.zeros(0), reg=1.0)
