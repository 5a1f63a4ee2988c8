"""DATE: diffusion adaptive text embedding for text-to-image diffusion models (Na et al., NeurIPS 2025, 2510.23974)."""
