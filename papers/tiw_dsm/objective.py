"""Time-dependent importance reweighted denoising score matching, TIW-DSM (Kim et al., ICLR 2024, arXiv 2403.01189).

    L = E λ(σ) w̃(x, σ) ‖s_θ(x, σ) − ∇ log p(x | x_0) − ∇_x log w̃(x, σ)‖²,        x_0 ~ p_o,  x = x_0 + σ ε,

with the ratio w̃ = p_d^σ/p_o^σ of the unbiased density and that of the batches (`papers.tiw_dsm.density_ratio`). For
the denoiser D_θ = x + σ² s_θ the target is x_0 + σ² ∇ log w̃ in place of x_0. Given x, the mean of x_0 is
x + σ² ∇ log p_o^σ, so that of the target is x + σ² ∇ log p_d^σ: the denoiser of the unbiased density, whatever the
positive weight. The weight alone would change no optimum; it only moves effort to where p_d^σ is.

The published code differs (weights of other samples, −σ² ∇d for the correction); this is the paper's objective.
"""

from torch import Tensor

from papers.tiw_dsm.density_ratio import check_sigma
from shared.diffusion.denoisers import edm_loss_weight, per_sample


def tiw_dsm_loss(
    denoised: Tensor,
    clean: Tensor,
    sigma: Tensor,
    log_ratio: Tensor | None = None,
    log_ratio_score: Tensor | None = None,
    *,
    sigma_data: float = 0.5,
) -> Tensor:
    """λ(σ) · w̃ · mean over dimensions of (D_θ − (x_0 + σ² ∇ log w̃))², with EDM's λ = (σ² + σ_data²)/(σ σ_data)².

    Ratio and score are constants to the gradient. With neither this is plain denoising score matching (DSM); with the
    ratio at clean samples and no score, importance weighting (IW-DSM); with one of the two, the paper's ablations.

    Args:
        denoised: D_θ(x, σ), (B, ...).
        clean: x_0, (B, ...).
        sigma: (B,), > 0.
        log_ratio: log w̃(x, σ), (B,); None: zeros.
        log_ratio_score: ∇_x log w̃(x, σ), (B, ...); None: zeros.
        sigma_data: standard deviation of the data.

    Returns:
        (B,), one loss for each sample.

    Raises:
        ValueError: shapes that differ, sigma or log_ratio that are not (B,), or sigma that is not positive.
    """
    check_sigma(sigma, len(clean))
    for name, value in (("denoised", denoised), ("log_ratio_score", log_ratio_score)):
        if value is not None and value.shape != clean.shape:
            raise ValueError(f"{name}: need shape {tuple(clean.shape)}, got {tuple(value.shape)}")
    if log_ratio is not None and log_ratio.shape != sigma.shape:
        raise ValueError(f"log_ratio: need shape {tuple(sigma.shape)}, got {tuple(log_ratio.shape)}")
    target = clean
    if log_ratio_score is not None:
        target = clean + per_sample(sigma, clean) ** 2 * log_ratio_score.detach()
    loss = edm_loss_weight(sigma, sigma_data) * (denoised - target).square().flatten(1).mean(1)
    return loss if log_ratio is None else log_ratio.detach().exp() * loss
