"""Diffusion bridge autoencoders for unsupervised representation learning (Kim et al., ICLR 2025, arXiv 2405.17111)."""
