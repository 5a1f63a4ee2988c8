import pytest
import torch

from papers.date.methods import embedding_update, next_noisy_latents
from papers.date.variants import parse_variant
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


def test_following_is_an_ascent_of_the_given_length():
    embedding = drawn(3, 5, 4, seed=2)
    for name, length in (("date/all", 0.1), ("random/all", 0.1)):
        update = embedding_update(parse_variant(name), length, reward, seed=0, rows=[0, 1, 2])
        moved = update(step(), embedding, embedding) - embedding
        torch.testing.assert_close(moved.flatten(1).norm(dim=1), torch.full((3,), length, dtype=torch.float64))
    followed = embedding_update(parse_variant("date/all"), 0.1, reward, seed=0, rows=[0, 1, 2])
    raw = embedding_update(parse_variant("date-raw/all"), 1e-3, reward, seed=0, rows=[0, 1, 2])
    directions = [update(step(), embedding, embedding) - embedding for update in (followed, raw)]
    cosine = torch.nn.functional.cosine_similarity(*(each.flatten(1) for each in directions))
    torch.testing.assert_close(cosine, torch.ones(3, dtype=torch.float64))
    lengths = directions[1].flatten(1).norm(dim=1)
    assert lengths.max() > 1.01 * lengths.min()


def test_anchor_starts_from_the_own_embedding():
    anchor, embedding = drawn(3, 5, 4, seed=2), drawn(3, 5, 4, seed=3)
    update = embedding_update(parse_variant("date-anchor/all"), 0.1, reward, seed=0, rows=[0, 1, 2])
    distance = (update(step(), embedding, anchor) - anchor).flatten(1).norm(dim=1)
    torch.testing.assert_close(distance, torch.full((3,), 0.1, dtype=torch.float64))


def test_random_directions_depend_on_prompt_step_and_seed_alone():
    embedding = torch.zeros(1, 5, 4)

    def direction(row, index=0, seed=0, rows=None):
        rows = rows or [row]
        update = embedding_update(parse_variant("random/all"), 1.0, reward, seed=seed, rows=rows)
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
        embedding_update(parse_variant("fixed"), 0.1, reward, seed=0, rows=[0])
