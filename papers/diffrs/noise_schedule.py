"""Noise levels of the sampler and of the discriminator's network; see `shared.diffusion.noise_levels`."""

from shared.diffusion.noise_levels import edm_sigmas, sigma_to_vp

__all__ = ["edm_sigmas", "sigma_to_vp"]
