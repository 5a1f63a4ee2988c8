"""TIW-DSM, its ablations and its baselines, as what they do with the density ratio, and the names of their variants.

All but `dsm_ref` and `oracle` see the same batches, half of them references. What a method's loss is follows from its
fields. An *arm* is a method with a certain ratio and exponent, named `method[^exponent][@ratio]`: `tiw`, `iw^0.5`,
`tiw@exact`, `correction_only@2000`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from papers.tiw_dsm.density_ratio import Logit, log_density_ratio, log_ratio_and_score
from papers.tiw_dsm.objective import tiw_dsm_loss
from shared.diffusion.denoisers import Denoiser
from shared.diffusion.samplers import guided

Data = Literal["observed", "references", "unbiased"]


@dataclass(frozen=True)
class Method:
    """How a denoiser is trained, and sampled from."""

    weight: Literal["noisy", "clean"] | None = None
    """Whose density ratio weighs an example: that of the noisy sample, or of the clean one; None: none."""
    corrected: bool = False
    """Whether the target is corrected by the score of the noisy ratio."""
    guided: bool = False
    """Whether the sampler adds that score."""
    data: Data = "observed"
    """What it is trained on: half references and half biased data, references alone, or as many unbiased samples as
    there are biased data and references together."""


METHODS = {
    "tiw": Method(weight="noisy", corrected=True),
    "iw": Method(weight="clean"),
    "dsm_obs": Method(),
    "dsm_ref": Method(data="references"),
    "weight_only": Method(weight="noisy"),
    "correction_only": Method(corrected=True),
    "guidance": Method(guided=True),
    "oracle": Method(data="unbiased"),
}

FIXED = "fixed"
"""The ratio of discriminators that are trained for as many steps as the setting says."""
SELECTED = "selected"
"""That of discriminators whose number of steps is chosen by held-out references, for each of the two."""
EXACT = "exact"
"""The ratio in closed form."""


@dataclass(frozen=True)
class Arm:
    """A method with its ratio."""

    name: str
    method: Method
    ratio: str = FIXED
    """`fixed`, `selected`, `exact`, or another number of steps of its discriminators."""
    exponent: float = 1.0

    @property
    def training(self) -> Method | tuple[Method, str, float]:
        """Equal for arms that train the same denoiser: guidance changes sampling alone."""
        method = replace(self.method, guided=False)
        return (method, self.ratio, self.exponent) if method.weight or method.corrected else method

    @property
    def uses_ratio(self) -> bool:
        """Whether the ratio enters its training or its sampling."""
        return bool(self.method.weight or self.method.corrected or self.method.guided)


def parse_arm(name: str) -> Arm:
    """The arm of a name.

    Raises:
        ValueError: no such method, or a ratio or exponent that is none, or that the method does not use.
    """
    match = re.fullmatch(r"(\w+?)(?:\^([\d.]+))?(?:@(\w+))?", name)
    if not match or match[1] not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, with ^exponent or @ratio, got {name!r}")
    arm = Arm(name, METHODS[match[1]], match[3] or FIXED, float(match[2] or 1))
    if arm.ratio not in (FIXED, SELECTED, EXACT) and not (arm.ratio.isdigit() and int(arm.ratio) > 0):
        raise ValueError(f"method: @{arm.ratio} is neither {SELECTED}, {EXACT} nor a number of steps, in {name!r}")
    if (match[2] or match[3]) and not arm.uses_ratio:
        raise ValueError(f"method: {match[1]} uses no ratio, in {name!r}")
    return arm


class Logits(NamedTuple):
    """ℓ of one estimate of the ratio."""

    noisy: Logit
    """ℓ(x, σ), at all noise levels."""
    clean: Logit
    """ℓ(x_0), asked at sigma = 0."""


class BatchRatios:
    """The ratios of one batch: each is evaluated when first asked for, and shared by arms that train side by side.

    Args:
        logits: of every estimate, by its name.
        clean: x_0 (B, ...).
        x: x_0 with noise.
        sigma: (B,).
        ref_fraction: π, the share of references in the batch.
    """

    def __init__(self, logits: Mapping[str, Logits], clean: Tensor, x: Tensor, sigma: Tensor, ref_fraction: float):
        self._logits, self._clean, self._x, self._sigma = logits, clean, x, sigma
        self._ref_fraction = ref_fraction
        self._found: dict[tuple[str, str, float], tuple[Tensor, Tensor | None]] = {}

    def noisy(self, ratio: str, exponent: float) -> tuple[Tensor, Tensor]:
        """exponent · log w̃(x, σ) (B,), and its gradient in x (B, ...)."""
        key = ("noisy", ratio, exponent)
        if key not in self._found:
            logit = self._logits[ratio].noisy
            self._found[key] = log_ratio_and_score(logit, self._x, self._sigma, self._ref_fraction, exponent)
        return self._found[key]

    @torch.no_grad()
    def clean(self, ratio: str, exponent: float) -> Tensor:
        """exponent · log w̃_0(x_0) (B,)."""
        key = ("clean", ratio, exponent)
        if key not in self._found:
            logit = self._logits[ratio].clean(self._clean, torch.zeros_like(self._sigma))
            self._found[key] = log_density_ratio(logit, self._ref_fraction, exponent), None
        return self._found[key][0]


def arm_losses(
    arm: Arm, ratios: BatchRatios, denoised: Tensor, clean: Tensor, sigma: Tensor, *, sigma_data: float
) -> Tensor:
    """Losses (B,) of an arm on a batch.

    Args:
        arm: which.
        ratios: of this batch.
        denoised: D_θ(x, σ) (B, ...).
        clean: x_0 (B, ...).
        sigma: (B,).
        sigma_data: standard deviation of the data.
    """
    method, log_ratio, score = arm.method, None, None
    if method.corrected or method.weight == "noisy":
        log_ratio, score = ratios.noisy(arm.ratio, arm.exponent)
    if method.weight == "clean":
        log_ratio = ratios.clean(arm.ratio, arm.exponent)
    return tiw_dsm_loss(
        denoised,
        clean,
        sigma,
        log_ratio if method.weight else None,
        score if method.corrected else None,
        sigma_data=sigma_data,
    )


def sampling_denoiser(arm: Arm, denoiser: Denoiser, noisy_logit: Logit | None, *, ref_fraction: float) -> Denoiser:
    """What an arm samples with: its denoiser D, or guided by the ratio, D + σ² ∇ log w̃."""
    if not arm.method.guided:
        return denoiser
    return guided(denoiser, lambda x, sigma: log_ratio_and_score(noisy_logit, x, sigma, ref_fraction, arm.exponent)[1])
