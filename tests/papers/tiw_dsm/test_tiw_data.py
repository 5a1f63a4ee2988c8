"""Biased and reference sets: proportions, disjointness, and the exact ratio."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tiw_cases import write_images

from papers.tiw_dsm.data import (
    biased_counts,
    biased_shares,
    choose_subsets,
    densities_of,
    draw_problem,
    even_groups,
    load_problem,
)
from papers.tiw_dsm.options import DataOptions
from papers.tiw_dsm.prepare import prepare
from shared.errors import InputError

MIXTURE = DataOptions("mixture", 0.1, biased_size=400)
LONG_TAIL = DataOptions("cifar10", 0.25, biased_size=40, imbalance=8)


def test_shares_are_a_long_tail():
    shares = biased_shares(4, 27)
    assert shares.tolist() == pytest.approx([0.675, 0.225, 0.075, 0.025])
    assert biased_shares(10, 100)[0] / biased_shares(10, 100)[-1] == pytest.approx(100)
    assert biased_shares(3, 1).tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize(("size", "groups", "imbalance"), [(10000, 10, 100), (37, 4, 27), (11, 10, 2)])
def test_counts_have_the_size(size, groups, imbalance):
    counts = biased_counts(size, groups, imbalance)
    assert sum(counts) == size and counts == sorted(counts, reverse=True) and min(counts) >= 1


def test_references_are_stratified():
    assert even_groups(10, 4).bincount().tolist() == [3, 3, 2, 2]
    problem = draw_problem(MIXTURE, seed=3, test_size=50)
    means = problem.densities.unbiased.means
    nearest = torch.cdist(problem.reference.double(), means).argmin(1).bincount(minlength=4)
    assert nearest.tolist() == [10] * 4
    biased = torch.cdist(problem.biased.double(), means).argmin(1).bincount(minlength=4)
    assert biased[0] > 230 and biased[3] < 25
    assert [len(each) for each in (problem.biased, problem.unbiased, problem.test)] == [400, 440, 50]


def test_a_problem_is_a_function_of_its_seed():
    first, again, other = (draw_problem(MIXTURE, seed, test_size=20) for seed in (1, 1, 2))
    assert torch.equal(first.biased, again.biased) and torch.equal(first.test, again.test)
    assert not torch.equal(first.biased, other.biased)
    assert torch.equal(first.densities.unbiased.means, other.densities.unbiased.means)


def test_the_exact_ratio_is_that_of_the_densities():
    densities = densities_of(DataOptions("toy", 0.1, biased_size=100, imbalance=4, std=1.0))
    logits = densities.logits
    x = torch.tensor([[-2.0, -2.0], [2.0, 2.0], [0.0, 0.0]], dtype=torch.float64)
    found = logits.clean(x, torch.zeros(3)).exp()
    assert found.tolist() == pytest.approx([0.625, 2.5, 1.0], rel=1e-3)
    # Much noise leaves nothing to tell the two apart.
    assert logits.noisy(x, torch.full((3,), 200.0)).abs().max() < 1e-3
    assert densities_of(DataOptions("glyphs", 0.1)) is None


def test_subsets_of_images_are_apart():
    labels = torch.arange(10).repeat(20)
    chosen = choose_subsets(labels, LONG_TAIL, seed=0)
    counts = {name: labels[rows].bincount(minlength=10).tolist() for name, rows in chosen.items()}
    assert counts == {"biased": biased_counts(40, 10, 8), "reference": [1] * 10, "unbiased": [5] * 10}
    reference = set(chosen["reference"].tolist())
    assert not reference & (set(chosen["biased"].tolist()) | set(chosen["unbiased"].tolist()))
    with pytest.raises(ValueError, match=r"labels: group 0 has 5 images, .* are needed"):
        choose_subsets(labels[:50], LONG_TAIL, seed=0)


def test_images_are_prepared_and_read(tmp_path):
    files = (write_images(tmp_path / "train.parquet", 12), write_images(tmp_path / "test.parquet", 2, seed=1))
    paths = {"images": tmp_path / "images", "subsets": tmp_path / "subsets"}
    assert prepare(LONG_TAIL, seed=0, files=files, **paths) == {"reference": 10, "unbiased": 50, "biased": 40}
    table = pd.read_parquet(paths["subsets"])
    assert set(table.columns) == {"subset", "index", "label"} and len(table) == 100
    problem = load_problem(paths["images"])
    assert problem.sample_shape == (3, 32, 32) and len(problem.test) == 20
    assert problem.biased.min() >= -1 and 0.9 < problem.biased.max() <= 1
    # The table, given back as a manifest, gives the same sets.
    manifest = {"images": tmp_path / "again", "subsets": tmp_path / "subsets-again"}
    prepare(LONG_TAIL, seed=7, files=files, manifest=(paths["subsets"],), **manifest)
    first, again = load_file(paths["images"]), load_file(manifest["images"])
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"subset": ["biased", "reference"], "index": [0, 1]}, "'unbiased' is missing or none of them"),
        ({"subset": ["biased", "reference", "unbiased"], "index": [0, 1, 120]}, r"index: need rows in \[0, 119\]"),
        ({"subset": ["biased"]}, "no column 'index'"),
    ],
)
def test_a_manifest_that_does_not_fit(tmp_path, change, message):
    files = (write_images(tmp_path / "train.parquet", 12), write_images(tmp_path / "test.parquet", 1))
    pd.DataFrame(change).to_parquet(tmp_path / "manifest")
    with pytest.raises(InputError, match=message):
        prepare(LONG_TAIL, seed=0, files=files, manifest=(tmp_path / "manifest",), images=tmp_path / "a",
                subsets=tmp_path / "b")  # fmt: skip


def test_too_few_images_are_one_line(tmp_path):
    files = (write_images(tmp_path / "train.parquet", 3), write_images(tmp_path / "test.parquet", 1))
    with pytest.raises(InputError, match=r"train.parquet: labels: group 0 has 3 images"):
        prepare(replace(LONG_TAIL), seed=0, files=files, images=tmp_path / "a", subsets=tmp_path / "b")
