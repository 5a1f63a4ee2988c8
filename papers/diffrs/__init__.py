"""Diffusion rejection sampling (Na et al., ICML 2024, arXiv 2405.17880)."""
