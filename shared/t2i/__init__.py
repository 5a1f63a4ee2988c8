"""A small text-to-image system: captioned scenes of sprites, an exact checker, learned rewards, latent diffusion."""
