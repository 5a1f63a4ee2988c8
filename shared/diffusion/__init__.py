"""Small diffusion models with exact references: noise levels, denoisers, samplers, mixtures, glyphs, metrics."""
