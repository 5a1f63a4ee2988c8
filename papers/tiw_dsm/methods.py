"""TIW-DSM, its ablations and its baselines, as what they do with the density ratio.

All but `dsm_ref` see the same batches, half of them references. What a method's loss is follows from its fields.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from papers.tiw_dsm.density_ratio import Logit, log_density_ratio, log_ratio_and_score
from papers.tiw_dsm.objective import tiw_dsm_loss
from shared.diffusion.denoisers import Denoiser
from shared.diffusion.samplers import guided
from shared.diffusion.training import Objective


@dataclass(frozen=True)
class Method:
    """How a denoiser is trained, and sampled from."""

    weight: Literal["noisy", "clean"] | None = None
    """Whose density ratio weighs an example: that of the noisy sample, or of the clean one; None: none."""
    corrected: bool = False
    """Whether the target is corrected by the score of the noisy ratio."""
    guided: bool = False
    """Whether the sampler adds that score."""
    references_only: bool = False
    """Whether it is trained on references alone."""


METHODS = {
    "tiw": Method(weight="noisy", corrected=True),
    "iw": Method(weight="clean"),
    "dsm_obs": Method(),
    "dsm_ref": Method(references_only=True),
    "weight_only": Method(weight="noisy"),
    "correction_only": Method(corrected=True),
    "guidance": Method(guided=True),
}


def training_objective(
    method: Method,
    noisy_logit: Logit,
    clean_logit: Logit,
    *,
    sigma_data: float,
    ref_fraction: float = 0.5,
    exponent: float = 1.0,
) -> Objective:
    """The losses of a method's batches, for `shared.diffusion.training.train_denoiser`.

    Args:
        method: which.
        noisy_logit: ℓ(x, σ) at all noise levels.
        clean_logit: ℓ of clean samples, asked at sigma = 0.
        sigma_data: standard deviation of the data.
        ref_fraction: π, the share of references in a batch.
        exponent: of the ratio.
    """

    def losses(denoised: Tensor, clean: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        log_ratio = score = None
        if method.corrected or method.weight == "noisy":
            log_ratio, score = log_ratio_and_score(noisy_logit, x, sigma, ref_fraction, exponent)
        if method.weight == "clean":
            with torch.no_grad():
                log_ratio = log_density_ratio(clean_logit(clean, torch.zeros_like(sigma)), ref_fraction, exponent)
        return tiw_dsm_loss(
            denoised,
            clean,
            sigma,
            log_ratio if method.weight else None,
            score if method.corrected else None,
            sigma_data=sigma_data,
        )

    return losses


def sampling_denoiser(method: Method, denoiser: Denoiser, noisy_logit: Logit, *, ref_fraction: float = 0.5) -> Denoiser:
    """What a method samples with: its denoiser D, or guided by the ratio, D + σ² ∇ log w̃."""
    if not method.guided:
        return denoiser
    return guided(denoiser, lambda x, sigma: log_ratio_and_score(noisy_logit, x, sigma, ref_fraction)[1])
