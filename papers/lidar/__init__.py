"""LiDAR: lookahead sample reward guidance for diffusion models (Kim et al., ICML 2026, 2602.03211)."""
