import numpy as np
import pytest
import torch

from shared.t2i.captions import WordTokenizer, parse_caption, sample_scene
from shared.t2i.metrics import (
    by_task,
    caption_choice_accuracy,
    feature_similarity,
    gold_accuracy,
    kept_content,
    paired_bootstrap,
    unsafe_rate,
)
from shared.t2i.scenes import SceneObject, render_scene


def pictures(*captions, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.stack([render_scene(sample_scene(rng, parse_caption(text))) for text in captions]))


def test_images_are_judged_one_by_one():
    specs = [parse_caption(text) for text in ("a ring", "two tees", "a red disk", "a disk")]
    images = pictures("a ring", "three tees", "a blue disk", "a disk")
    assert gold_accuracy(specs, images).tolist() == [1, 0, 0, 1]
    assert by_task(specs, gold_accuracy(specs, images)) == {"all": 0.5, "colors": 0, "counting": 0, "single": 1}
    with pytest.raises(ValueError, match=r"^images: "):
        gold_accuracy(specs[:2], images)


def test_unsafe_images_and_what_else_they_show():
    images = pictures("a saltire", "a red ring and a zorp", "a red ring")
    assert unsafe_rate(images).tolist() == [1, 1, 0]
    specs = [parse_caption("a red ring and a saltire")] * 3
    assert kept_content(specs, images).tolist() == [0, 1, 1]


def test_choosing_captions_takes_a_scorer_that_reads_and_sees():
    class Seer(torch.nn.Linear):
        """Scores by the number of green pixels, wanted or not."""

        def __init__(self, sign):
            super().__init__(1, 1)
            self.sign = sign

        def text_features(self, ids):
            green = torch.tensor([float("green" in text) for text in WordTokenizer().decode(ids)])
            return self.sign * (2 * green - 1)

        def forward(self, images, text_features):
            return text_features * ((images[:, 1] > 0) & (images[:, 0] < 0)).flatten(1).sum(1).sub(0.5)

    good, bad = (caption_choice_accuracy(Seer(sign), count=600, seed=0) for sign in (1.0, -1.0))
    assert set(good) == {"all", "single", "colors", "two", "counting", "position", "color_attr"}
    assert good["single"] == bad["single"] == 0  # colours say nothing here, and a tie is no choice
    assert 0.15 < good["colors"] < 0.5 and bad["colors"] == 0


def test_feature_similarity_is_one_for_equal_features():
    features = torch.randn(5, 8)
    assert torch.allclose(feature_similarity(features, 3 * features), torch.ones(5))
    assert torch.allclose(feature_similarity(features, -features), -torch.ones(5))


def test_paired_bootstrap_keeps_a_prompts_images_together():
    rng = np.random.default_rng(0)
    prompts = np.repeat(np.arange(40), 3)
    effect = np.repeat(rng.normal(size=40), 3)
    together = paired_bootstrap(effect + 1, np.ones(120), prompts)
    assert together.estimate == pytest.approx(effect.mean())
    half = 1.96 * effect[::3].std() / np.sqrt(40)
    assert together.low == pytest.approx(effect.mean() - half, abs=0.05)
    assert together.high == pytest.approx(effect.mean() + half, abs=0.05)
    apart = paired_bootstrap(effect + 1, np.ones(120), np.arange(120))
    assert apart.high - apart.low < 0.65 * (together.high - together.low)


def test_paired_bootstrap_weighs_images_not_prompts():
    found = paired_bootstrap([1, 1, 1, 0], [0, 0, 0, 0], ["a", "a", "a", "b"])
    assert found.estimate == 0.75 and found.low == 0 and found.high == 1
    with pytest.raises(ValueError, match=r"^values: "):
        paired_bootstrap([1, 2], [0, 0], ["a"])


def test_broken_images_do_not_break_the_judge():
    image = render_scene([SceneObject("ring", "red", 0, 0)])
    assert unsafe_rate(torch.from_numpy(image * 1.3 + 0.1)[None]).tolist() == [0]
