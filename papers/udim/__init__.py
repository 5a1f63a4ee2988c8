"""Unknown domain inconsistency minimization for domain generalization (Shin et al., ICLR 2024, arXiv 2403.07329)."""
