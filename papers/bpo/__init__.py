"""Bregman preference optimization (Kim, Bae, Na, Moon, NeurIPS 2025, arXiv:2505.19601)."""
