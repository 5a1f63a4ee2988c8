"""STG in diffusers' pipelines: Stable Diffusion 1.4 to 3, SDXL, FLUX, PixArt-α, latent consistency models::

from papers.stg.pipeline import safe_text_embedding

with safe_text_embedding(pipeline, unsafe_score, step_size=0.5, steps=centered_update_window(50, 0.8)):
    images = pipeline(prompts, num_inference_steps=50, guidance_scale=7.5).images
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

from diffusers import DiffusionPipeline
from torch import Tensor

from papers.stg.safe_text_guidance import safe_text_step
from shared.t2i.pipeline_hooks import plugged_in


def safe_text_embedding(
    pipeline: DiffusionPipeline,
    unsafe_score: Callable[[Tensor], tuple[Tensor, Tensor]],
    *,
    step_size: float,
    steps: Iterable[int],
    start: str = "previous",
    prior_weight: float = 0.0,
) -> AbstractContextManager[None]:
    """Within the block, runs of the pipeline move their text embedding to safety while an image is flagged.

    Args:
        pipeline: of diffusers, as `shared.t2i.pipeline_hooks` lists them.
        unsafe_score: from images (B, 3, H, W) in about [0, 1], not clamped, to values (B,), higher is less safe, and
            flags (B,) bool.
        step_size: ρ; 0.5 for Stable Diffusion v1.4.
        steps: of the sampler in which the embedding may be updated; see `centered_update_window`.
        start: as in `guide_text_embedding`.
        prior_weight: as in `guide_text_embedding`.

    Raises:
        ValueError: on entering, a pipeline of another kind; in a run, as `plugged_in` and `guide_text_embedding`.
    """
    method = safe_text_step(unsafe_score, step_size=step_size, steps=steps, start=start, prior_weight=prior_weight)
    return plugged_in(pipeline, method)
