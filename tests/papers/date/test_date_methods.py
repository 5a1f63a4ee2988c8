import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from papers.date.methods import (
    embedding_update,
    next_noisy_latents,
    next_signal_level,
    scoring_noisy,
    weighted_sum,
)
from papers.date.text_embedding_guidance import adapt_text_embedding
from papers.date.variants import parse_variant
from shared.t2i.model import build_scheduler
from shared.t2i.step_method import NetworkStep


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def step(index=0, batch=3):
    matrix = drawn(8, 4, seed=5)  # latents as a linear function of the embedding's mean

    def denoise(latents, embedding):
        return (embedding.mean(dim=1) @ matrix.T).view(-1, 2, 2, 2)

    latents = drawn(batch, 2, 2, 2, seed=1)
    return NetworkStep(
        index=index,
        timestep=500.0,
        latents=latents,
        denoise=denoise,
        predict=lambda noisy: noisy,
        uncond_output=torch.zeros_like(latents),
        guidance_scale=2.0,
        alpha_cumprod=0.5,
        prediction_type="sample",
        decode=lambda clean: clean,
    )


def reward(images):
    return -(images - 1).square().flatten(1).sum(dim=1)


def updates(name, strength, **options):
    given = {"scheduler": build_scheduler(), "seed": 0, "rows": [0, 1, 2], **options}
    return embedding_update(parse_variant(name), strength, reward, **given)


def test_following_is_an_ascent_of_the_given_length():
    embedding = drawn(3, 5, 4, seed=2)
    for name, length in (("date/all", 0.1), ("random/all", 0.1)):
        update = updates(name, length)
        moved = update(step(), embedding, embedding) - embedding
        torch.testing.assert_close(moved.flatten(1).norm(dim=1), torch.full((3,), length, dtype=torch.float64))
    followed, raw = updates("date/all", 0.1), updates("date-raw/all", 1e-3)
    directions = [update(step(), embedding, embedding) - embedding for update in (followed, raw)]
    cosine = torch.nn.functional.cosine_similarity(*(each.flatten(1) for each in directions))
    torch.testing.assert_close(cosine, torch.ones(3, dtype=torch.float64))
    lengths = directions[1].flatten(1).norm(dim=1)
    assert lengths.max() > 1.01 * lengths.min()


def test_anchor_starts_from_the_own_embedding():
    anchor, embedding = drawn(3, 5, 4, seed=2), drawn(3, 5, 4, seed=3)
    update = updates("date-anchor/all", 0.1)
    distance = (update(step(), embedding, anchor) - anchor).flatten(1).norm(dim=1)
    torch.testing.assert_close(distance, torch.full((3,), 0.1, dtype=torch.float64))


def test_random_directions_depend_on_prompt_step_and_seed_alone():
    embedding = torch.zeros(1, 5, 4)

    def direction(row, index=0, seed=0, rows=None):
        rows = rows or [row]
        update = updates("random/all", 1.0, seed=seed, rows=rows)
        return update(step(index, len(rows)), embedding.expand(len(rows), -1, -1), embedding)[rows.index(row)]

    torch.testing.assert_close(direction(3), direction(3, rows=[1, 3, 2]))
    for other in (direction(4), direction(3, index=1), direction(3, seed=1)):
        assert abs(float((direction(3) * other).sum())) < 0.95


def test_the_next_noisy_latents_are_ddims():
    clean, noise = drawn(2, 3, 2, 2), drawn(2, 3, 2, 2, seed=1)
    latents = 0.3**0.5 * clean + 0.7**0.5 * noise
    torch.testing.assert_close(next_noisy_latents(clean, latents, 0.3, 0.6), 0.6**0.5 * clean + 0.4**0.5 * noise)
    torch.testing.assert_close(next_noisy_latents(clean, latents, 0.3, 1.0), clean)


def test_a_kind_without_an_update_is_an_error():
    with pytest.raises(KeyError):
        updates("fixed", 0.1)


def test_inner_updates_and_the_prior_are_the_algorithms():
    anchor, embedding = drawn(3, 5, 4, seed=2), drawn(3, 5, 4, seed=3)
    options = {"num_updates": 3, "prior_weight": 5.0}
    found = updates("date/all", 0.1, **options)(step(), embedding, anchor)
    here = step()
    given = {"step_size": 0.1, "anchor_embedding": anchor, **here.guidance, **options}
    expected, _ = adapt_text_embedding(here.denoise, reward, here.latents, embedding, **given)
    torch.testing.assert_close(found, expected)
    lengths = (found - embedding).flatten(1).norm(dim=1)
    assert (lengths > 0.1).all() and (lengths <= 0.3 + 1e-9).all()
    for change in ({"num_updates": 1}, {"prior_weight": 0.0}):
        assert not torch.allclose(updates("date/all", 0.1, **options | change)(step(), embedding, anchor), found)


def test_a_sum_of_rewards_has_the_sum_of_gradients():
    rewards = {"guidance": reward, "preference": lambda images: images.flatten(1).sin().sum(dim=1), "evaluator": None}
    images = drawn(3, 2, 2, 2, seed=4).requires_grad_()
    weights = {"guidance": 2.0, "preference": 0.5}
    values = weighted_sum(rewards, weights)(images)
    torch.testing.assert_close(values, 2 * reward(images) + 0.5 * images.flatten(1).sin().sum(dim=1))
    (gradient,) = torch.autograd.grad(values.sum(), images)
    torch.testing.assert_close(gradient, -4 * (images - 1) + 0.5 * images.cos())


def test_the_next_signal_level_is_the_schedulers():
    ddim = build_scheduler()
    ddim.set_timesteps(4)
    levels = [next_signal_level(ddim, index) for index in range(4)]
    expected = [float(ddim.alphas_cumprod[timestep]) for timestep in ddim.timesteps[1:]]
    assert levels == pytest.approx([*expected, float(ddim.final_alpha_cumprod)], rel=1e-9)
    ending = DDIMScheduler(set_alpha_to_one=False)
    ending.set_timesteps(2)
    assert next_signal_level(ending, 1) == float(ending.alphas_cumprod[0])
    flow = FlowMatchEulerDiscreteScheduler(shift=3.0)
    flow.set_timesteps(3)
    for index, sigma in enumerate(flow.sigmas[1:].tolist()):
        assert next_signal_level(flow, index) == pytest.approx((1 - sigma) ** 2 / ((1 - sigma) ** 2 + sigma**2))
    assert next_signal_level(flow, 2) == 1.0


def test_the_reward_on_noisy_data_sees_what_the_scheduler_does_next():
    ddim = build_scheduler()
    ddim.set_timesteps(4)
    clean, latents = drawn(3, 2, 2, 2), drawn(3, 2, 2, 2, seed=1)
    here = step(index=1)._replace(latents=latents, alpha_cumprod=float(ddim.alphas_cumprod[ddim.timesteps[1]]))
    expected = ddim.step(clean, ddim.timesteps[1], latents).prev_sample
    torch.testing.assert_close(scoring_noisy(here, ddim).decode(clean), expected, rtol=1e-5, atol=1e-6)
