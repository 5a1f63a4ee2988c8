"""DATE in diffusers' pipelines: Stable Diffusion 1.5 to 3, SDXL, FLUX, PixArt-α, latent consistency models::

from papers.date.pipeline import adaptive_text_embedding

with adaptive_text_embedding(pipeline, clip_score, step_size=0.5, steps=update_step_indices(50, every=10)):
    images = pipeline(prompts, num_inference_steps=50, guidance_scale=7.5).images
"""

from collections.abc import Callable
from contextlib import AbstractContextManager

from diffusers import DiffusionPipeline
from torch import Tensor

from papers.date.text_embedding_guidance import adapt_text_embedding
from shared.t2i.pipeline_hooks import plugged_in
from shared.t2i.step_method import NetworkStep, StepMethod


def adaptive_text_embedding(
    pipeline: DiffusionPipeline,
    evaluate: Callable[[Tensor], Tensor],
    *,
    step_size: float,
    steps: tuple[int, ...],
    start: str = "previous",
    num_updates: int = 1,
    prior_weight: float = 0.0,
) -> AbstractContextManager[None]:
    """Within the block, runs of the pipeline update their text embedding towards a reward.

    Args:
        pipeline: of diffusers, as `shared.t2i.pipeline_hooks` lists them.
        evaluate: from images (B, 3, H, W) in about [0, 1], B = prompts x images per prompt, to rewards (B,).
        step_size: ρ; 0.5 for Stable Diffusion v1.5.
        steps: of the sampler in which the embedding is updated; see `update_step_indices`.
        start: as in `adapt_text_embedding`.
        num_updates: as in `adapt_text_embedding`.
        prior_weight: as in `adapt_text_embedding`.

    Raises:
        ValueError: on entering, a pipeline of another kind; in a run, as `plugged_in` and `adapt_text_embedding`.
    """

    def update(step: NetworkStep, embedding: Tensor, anchor: Tensor) -> Tensor:
        adapted, _ = adapt_text_embedding(
            step.denoise,
            evaluate,
            step.latents,
            embedding,
            **step.guidance,
            step_size=step_size,
            anchor_embedding=anchor,
            start=start,
            num_updates=num_updates,
            prior_weight=prior_weight,
        )
        return adapted

    return plugged_in(pipeline, StepMethod(change_embedding=update, steps=steps))
