"""Implicit negatives: safety guidance of unlearned text-to-image models by learned embeddings (Shin et al., 2025)."""
