"""VP coordinates and times of the density-ratio network; see `shared.diffusion.noise_levels`."""

from shared.diffusion.noise_levels import importance_sampled_vp_time, sigma_to_vp

__all__ = ["importance_sampled_vp_time", "sigma_to_vp"]
