"""Semantic-aware Wasserstein policy regularization (Na et al., ICLR 2026, arXiv 2602.01685)."""
