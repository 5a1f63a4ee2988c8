"""RENT: resampling by a noise transition matrix for learning with noisy labels (Bae et al., ICLR 2024, 2403.02690)."""
