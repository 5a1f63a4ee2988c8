"""Biased data with few unbiased references: which groups how often, and the sets themselves.

Everything is a function of the options and the seed. References are stratified: as many of each group, up to one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from papers.tiw_dsm.density_ratio import Logit
from papers.tiw_dsm.methods import Logits
from papers.tiw_dsm.options import GROUPS, DataOptions
from shared.data_order import generator_for
from shared.diffusion.gaussian_mixtures import GaussianMixture, orthonormal_mixture
from shared.diffusion.glyphs import draw_glyphs

SETS = ("biased", "reference", "unbiased", "test")
TOY_MEANS = torch.tensor([[-2.0, -2.0], [2.0, 2.0]])


@dataclass(frozen=True)
class Densities:
    """The unbiased and the biased density of a mixture, known exactly."""

    unbiased: GaussianMixture
    biased: GaussianMixture

    def log_ratio(self, x: Tensor, sigma: Tensor) -> Tensor:
        """ℓ = log p_d^σ/p_b^σ (N,), in the dtype of x."""
        return (self.unbiased.log_density(x, sigma) - self.biased.log_density(x, sigma)).to(x.dtype)

    @property
    def logits(self) -> Logits:
        """The exact ratio, in the place of discriminators."""
        exact: Logit = self.log_ratio
        return Logits(noisy=exact, clean=exact)


@dataclass(frozen=True)
class Problem:
    """Four sets of samples (N, ...), float32, and what is known about where they come from."""

    biased: Tensor
    reference: Tensor
    unbiased: Tensor
    """As many as both together: what the oracle is trained on."""
    test: Tensor
    """Fresh unbiased samples, to compare with."""
    densities: Densities | None = None
    """Of mixtures."""

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return tuple(self.biased.shape[1:])

    def to(self, device: torch.device) -> Problem:
        """With its sets on a device."""
        return Problem(**{name: getattr(self, name).to(device) for name in SETS}, densities=self.densities)


def biased_shares(groups: int, imbalance: float) -> Tensor:
    """Shares (groups,) ∝ imbalance^(−c/(groups − 1)): the first is `imbalance` times the last."""
    exponents = -torch.arange(groups, dtype=torch.float64) / max(groups - 1, 1)
    shares = imbalance**exponents
    return shares / shares.sum()


def biased_counts(size: int, groups: int, imbalance: float) -> list[int]:
    """Samples of each group in a biased set of a given size, by largest remainders; at least one each."""
    wanted = biased_shares(groups, imbalance) * size
    counts = wanted.floor().long()
    order = (counts - wanted).argsort(stable=True)
    counts[order[: size - int(counts.sum())]] += 1
    return counts.clamp(min=1).tolist()


def even_groups(size: int, groups: int) -> Tensor:
    """int64 (size,): every group equally often, up to one."""
    return torch.arange(size) % groups


def densities_of(data: DataOptions) -> Densities | None:
    """The densities of a mixture; None for images."""
    if data.has_images:
        return None
    shares = biased_shares(GROUPS[data.testbed], data.imbalance)
    if data.testbed == "toy":
        biased = GaussianMixture(TOY_MEANS, data.std, shares)
    else:
        # The centres are those of all seeds: what differs is the samples.
        biased = orthonormal_mixture(data.dimension, data.std, shares, seed=0)
    return Densities(GaussianMixture(biased.means, data.std, torch.ones(len(shares))), biased)


def draw_problem(data: DataOptions, seed: int, test_size: int) -> Problem:
    """The sets of a mixture or of glyphs.

    Args:
        data: which.
        seed: of all draws.
        test_size: fresh unbiased samples.
    """
    densities = densities_of(data)
    generator = generator_for(seed, 0)

    def draw(groups: Tensor) -> Tensor:
        if densities is not None:
            return densities.unbiased.around(groups, generator).float()
        return draw_glyphs(groups, data.std, generator)

    groups = GROUPS[data.testbed]
    shares, equal = biased_shares(groups, data.imbalance), torch.ones(groups)

    def random_groups(weights: Tensor, size: int) -> Tensor:
        return torch.multinomial(weights, size, replacement=True, generator=generator)

    return Problem(
        biased=draw(random_groups(shares, data.biased_size)),
        reference=draw(even_groups(data.reference_size, groups)),
        unbiased=draw(random_groups(equal, data.biased_size + data.reference_size)),
        test=draw(random_groups(equal, test_size)),
        densities=densities,
    )


def choose_subsets(labels: Tensor, data: DataOptions, seed: int) -> dict[str, Tensor]:
    """Disjoint rows of labelled images for the biased, the reference and the unbiased set.

    Args:
        labels: int64 (N,), the group of every image.
        data: sizes and imbalance.
        seed: of the choice.

    Raises:
        ValueError: a group has too few images.
    """
    groups = GROUPS[data.testbed]
    order = torch.randperm(len(labels), generator=generator_for(seed, 1))
    sizes = {"reference": data.reference_size, "unbiased": data.biased_size + data.reference_size}
    counts = {name: even_groups(size, groups).bincount(minlength=groups).tolist() for name, size in sizes.items()}
    counts["biased"] = biased_counts(data.biased_size, groups, data.imbalance)
    chosen: dict[str, list[Tensor]] = {name: [] for name in counts}
    for group in range(groups):
        rows = order[labels[order] == group]
        # The oracle's images may be biased ones too: no set is trained on together with it.
        needed = counts["reference"][group] + max(counts["biased"][group], counts["unbiased"][group])
        if len(rows) < needed:
            raise ValueError(f"labels: group {group} has {len(rows)} images, {needed} are needed")
        references, others = rows.split([counts["reference"][group], len(rows) - counts["reference"][group]])
        chosen["reference"].append(references)
        chosen["biased"].append(others[: counts["biased"][group]])
        chosen["unbiased"].append(others[: counts["unbiased"][group]])
    return {name: torch.cat(parts).sort().values for name, parts in chosen.items()}


def load_problem(path: Path) -> Problem:
    """The sets that `papers.tiw_dsm.prepare` wrote: uint8 images, here as floats in [-1, 1]."""
    sets = load_file(path)
    return Problem(**{name: sets[name].float() / 127.5 - 1 for name in SETS})


GroupsOf = Callable[[Tensor], Tensor]
"""Samples (N, ...) to their groups, int64 (N,)."""
