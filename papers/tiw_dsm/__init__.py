"""Training unbiased diffusion models from biased data (Kim et al., ICLR 2024, arXiv 2403.01189)."""
