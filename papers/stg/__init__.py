"""STG: training-free safe text embedding guidance for text-to-image diffusion models (Na et al., NeurIPS 2025)."""
