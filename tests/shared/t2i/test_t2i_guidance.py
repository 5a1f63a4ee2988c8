"""DATE and STG are one mathematics, told apart by the sign and by who is updated."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from papers.date.text_embedding_guidance import adapt_text_embedding, data_space_guidance
from papers.stg.safe_text_guidance import guide_text_embedding, safe_data_guidance
from shared.t2i.guidance import predict_noise


def test_raising_a_reward_is_lowering_its_negative():
    generator = torch.Generator().manual_seed(0)
    latents, embedding, uncond = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((2, 3, 4, 4), (2, 5, 6), (2, 3, 4, 4))
    )
    mix = torch.randn(48, 30, generator=generator, dtype=torch.float64)

    def denoise(noisy, condition):
        return torch.tanh(noisy + (condition.flatten(1) @ mix.T).view_as(noisy) / 5)

    def reward(decoded):
        return decoded.square().flatten(1).sum(1).sqrt()

    options = {"uncond_output": uncond, "guidance_scale": 2.0, "alpha_cumprod": 0.4, "step_size": 0.3}
    raised, scores = adapt_text_embedding(denoise, reward, latents, embedding, **options)
    lowered, _, values = guide_text_embedding(
        denoise, lambda decoded: (-reward(decoded), torch.tensor([True, True])), latents, embedding, **options
    )
    assert torch.allclose(raised, lowered, rtol=0, atol=1e-12) and torch.equal(scores, -values)

    up, _ = data_space_guidance(torch.tanh, reward, latents, alpha_cumprod=0.4, scale=2.0)
    down, _, _ = safe_data_guidance(
        torch.tanh,
        lambda decoded: (-reward(decoded), torch.tensor([True, True])),
        latents,
        alpha_cumprod=0.4,
        scale=2.0,
    )
    assert torch.allclose(up, down, rtol=0, atol=1e-12)


@given(st.floats(1e-3, 0.999))
def test_the_noise_is_recovered_from_every_kind_of_prediction(alpha):
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 2, 3, 4, 4, generator=generator, dtype=torch.float64)
    noisy = alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise
    velocity = alpha**0.5 * noise - (1 - alpha) ** 0.5 * clean
    for kind, output in (("epsilon", noise), ("v_prediction", velocity), ("sample", clean)):
        found = predict_noise(noisy, output, alpha, kind)
        assert torch.allclose(found, noise, rtol=0, atol=1e-12 / (1 - alpha) ** 0.5)


def test_where_there_is_no_noise_none_is_found():
    clean = torch.ones(2, 3)
    assert not predict_noise(clean, clean, torch.tensor([1.0, 1.0]), "sample").any()
    with pytest.raises(ValueError, match=r"^model_output: "):
        predict_noise(clean, clean[:1], 0.5)
