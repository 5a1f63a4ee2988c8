import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import InputError
from shared.t2i.captions import WordTokenizer
from shared.t2i.degradation import blend, blur, degrade, fade, mix_colors, perturb
from shared.t2i.detector import UnsafeDetector, detector_loss, target_map
from shared.t2i.networks import load_network, save_network
from shared.t2i.scene_table import parse_scene, read_scenes, scene_text, write_scenes
from shared.t2i.scenes import SceneObject, render_scene
from shared.t2i.scorer import DualEncoderScorer, contrastive_loss, preference_loss

CAPTIONS = ["a ring", "two red tees", "a ring", "a blue disk above a wedge"]


def scorer(width=8):
    torch.manual_seed(0)
    return DualEncoderScorer(width).eval()


def images(count=4):
    return torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(1)) * 2 - 1


# Degradations


def test_fading_ends_in_the_background():
    picture = images()
    assert torch.allclose(fade(picture, torch.ones(4)), picture)
    assert (fade(picture, torch.zeros(4)) == -1).all()
    assert torch.allclose(fade(picture, torch.full((4,), 0.5)), (picture - 1) / 2)


def test_blending_and_mixing_at_their_limits():
    picture = images()
    others = picture.flip(0)
    assert torch.equal(blend(picture, others, torch.ones(4)), picture)
    assert torch.equal(blend(picture, others, torch.zeros(4)), others)
    assert torch.allclose(mix_colors(picture, torch.eye(3).expand(4, 3, 3)), picture, atol=1e-6)
    swap = torch.eye(3)[[1, 0, 2]].expand(4, 3, 3)
    assert torch.allclose(mix_colors(picture, swap), picture[:, [1, 0, 2]], atol=1e-6)


def test_blurring_averages_neighbours():
    picture = images()
    blurred = blur(picture)
    assert torch.allclose(blurred[:, :, 5, 7], picture[:, :, 4:7, 6:9].mean(dim=(2, 3)), atol=1e-6)
    assert torch.allclose(blur(torch.full((1, 3, 12, 12), 0.3)), torch.full((1, 3, 12, 12), 0.3))


def test_degraded_copies_stay_in_range_and_use_every_kind():
    torch.manual_seed(0)
    picture = torch.from_numpy(render_scene([SceneObject("ring", "red", 2, 2)])).expand(400, 3, 12, 12)
    worse = degrade(picture)
    assert worse.min() >= -1 - 1e-6 and worse.max() <= 1 + 1e-6
    # All images are alike, so blending leaves them as they are: that kind can be counted.
    unchanged = torch.isclose(worse, picture, atol=1e-6).flatten(1).all(dim=1).float().mean()
    coloured = (worse[:, 1] > -1 + 1e-3).flatten(1).any(dim=1).float().mean()
    sharp = (worse[:, 0] > -1 + 1e-3).flatten(1).sum(dim=1).eq(12).float().mean()
    assert 0.17 < unchanged < 0.33 and 0.17 < coloured < 0.33 and 0.67 < sharp < 0.83


def test_perturbations_come_at_their_rates():
    torch.manual_seed(0)
    picture = images(500).clamp(min=-0.9)
    assert torch.equal(perturb(picture, noise_probability=0, fade_probability=0), picture)
    changed = (perturb(picture, noise_probability=0.6, fade_probability=0) != picture).flatten(1).any(dim=1)
    assert 0.53 < changed.float().mean() < 0.67
    faded = perturb(picture, noise_probability=0, fade_probability=1)
    strength = ((faded + 1) / (picture + 1)).flatten(1)
    assert torch.allclose(strength, strength[:, :1], atol=1e-3)
    assert strength.min() + 1e-3 >= 0.5 and strength[:, 0].min() < 0.55 and strength[:, 0].max() > 0.95
    noise = perturb(torch.zeros(500, 3, 12, 12), noise_probability=1, fade_probability=0).flatten(1).std(dim=1)
    assert 0.18 < noise.mean() < 0.22 and noise.max() < 0.45


# Scorer


def test_features_are_unit_vectors_and_scores_their_cosines():
    network, ids = scorer(), WordTokenizer().encode(CAPTIONS)
    texts, pictures = network.text_features(ids), network.image_features(images())
    assert texts.shape == pictures.shape == (4, 64)
    assert torch.allclose(texts.norm(dim=1), torch.ones(4)) and torch.allclose(pictures.norm(dim=1), torch.ones(4))
    assert torch.allclose(network(images(), texts), torch.cosine_similarity(texts, pictures), atol=1e-6)
    assert network.perceptual_features(images()).shape == (4, 128)


def test_the_scorer_reads_the_text_at_its_end():
    network = scorer()
    ids = WordTokenizer().encode(["a ring", "a tee"])
    states = network.text_model(input_ids=ids)
    assert torch.equal(states.pooler_output, states.last_hidden_state[:, 3])


def test_contrastive_loss_against_its_definition():
    network, ids, pictures = scorer().double(), WordTokenizer().encode(CAPTIONS), images().double()
    degraded = images(3).double().flip(0)
    with torch.no_grad():
        texts, shown, worse = (
            network.text_features(ids),
            network.image_features(pictures),
            network.image_features(degraded),
        )
        scale = network.log_scale.exp()
        both = []
        for own in range(4):
            kept = [j for j in range(4) if j == own or CAPTIONS[j] != CAPTIONS[own]]
            right = scale * texts[own] @ shown[own]
            by_text = torch.stack([scale * texts[own] @ image for image in [*shown[kept], *worse]])
            by_image = torch.stack([scale * texts[j] @ shown[own] for j in kept])
            both.append((by_text.logsumexp(0) + by_image.logsumexp(0)) / 2 - right)
        assert torch.allclose(contrastive_loss(network, pictures, ids, degraded), torch.stack(both).mean())


def test_a_scorer_that_guesses_loses_what_guessing_costs():
    network = scorer()
    torch.nn.init.zeros_(network.text_projection.weight)
    ids = WordTokenizer().encode(["a ring", "a tee", "a disk", "a wedge"])
    assert contrastive_loss(network, images(), ids).item() == pytest.approx(math.log(4))
    with_degraded = contrastive_loss(network, images(), ids, images())
    assert with_degraded.item() == pytest.approx(math.log(4) + math.log(2) / 2)
    assert preference_loss(network, images(), images().flip(0), ids).item() == pytest.approx(math.log(2))


def test_preference_loss_against_its_definition():
    network, ids = scorer().double(), WordTokenizer().encode(CAPTIONS)
    better, worse = images().double(), images().double().flip(0)
    texts = network.text_features(ids)
    margin = 10 * (network(better, texts) - network(worse, texts))
    assert torch.allclose(preference_loss(network, better, worse, ids), torch.log1p((-margin).exp()).mean())


def test_scores_are_differentiable_in_the_image():
    network, ids = scorer(), WordTokenizer().encode(CAPTIONS)
    pictures = images().requires_grad_()
    network(pictures, network.text_features(ids)).sum().backward()
    assert (pictures.grad.flatten(1).norm(dim=1) > 0).all()


def test_networks_survive_their_files(tmp_path):
    network = scorer(12).half().float()
    save_network(tmp_path / "s.safetensors", network, width=12)
    loaded = load_network(tmp_path / "s.safetensors", DualEncoderScorer)
    texts = network.text_features(WordTokenizer().encode(CAPTIONS))
    assert torch.equal(loaded(images(), texts), network(images(), texts))
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())


def test_other_files_are_refused(tmp_path):
    save_network(tmp_path / "s.safetensors", scorer(12), width=12)
    with pytest.raises(InputError, match=r"s\.safetensors: no weights of a UnsafeDetector"):
        load_network(tmp_path / "s.safetensors", UnsafeDetector)
    (tmp_path / "t.safetensors").write_text("text")
    with pytest.raises(InputError, match=r"t\.safetensors: no weights"):
        load_network(tmp_path / "t.safetensors", DualEncoderScorer)


# Detector


class Fixed(UnsafeDetector):
    """A detector of given confidences."""

    def __init__(self, confidence):
        super().__init__()
        self.confidence = torch.tensor(confidence)

    def confidence_map(self, images):
        return self.confidence


def map_with(**cells):
    confidence = [[0.01] * 6 for _ in range(6)]
    for name, value in cells.items():
        confidence[int(name[1])][int(name[2])] = value
    return [confidence]


def test_detections_are_local_maxima_above_the_threshold():
    detector = Fixed(map_with(c00=0.9, c01=0.8, c33=0.5, c45=0.2))
    value, found = detector.unsafe_confidence(torch.zeros(1, 3, 12, 12), 0.3)
    assert value.item() == pytest.approx(1.4) and found.tolist() == [True]
    _, keep = detector.detections(torch.zeros(1, 3, 12, 12), 0.1)
    assert keep.nonzero()[:, 1:].tolist() == [[0, 0], [3, 3], [4, 5]]
    value, found = detector.unsafe_confidence(torch.zeros(1, 3, 12, 12), 0.95)
    assert value.tolist() == [0] and found.tolist() == [False]


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_higher_threshold_never_finds_more(a, b):
    detector = UnsafeDetector()
    low, high = (detector.unsafe_confidence(images(), threshold)[0] for threshold in sorted((a, b)))
    assert (high <= low).all()


def test_confidence_is_differentiable_only_where_something_is_detected():
    pictures = images(2).requires_grad_()
    detector = UnsafeDetector()
    value, _ = detector.unsafe_confidence(pictures, 0.0)
    assert torch.autograd.grad(value.sum(), pictures)[0].abs().sum() > 0
    value, _ = detector.unsafe_confidence(pictures, 1.0)
    assert torch.autograd.grad(value.sum(), pictures)[0].abs().sum() == 0


def test_an_untrained_detector_sees_nothing_sure():
    confidence = UnsafeDetector().confidence_map(images())
    assert confidence.shape == (4, 6, 6) and confidence.mean() < 0.2


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_thresholds_are_probabilities(threshold):
    with pytest.raises(ValueError, match=r"^threshold: "):
        UnsafeDetector().detections(images(), threshold)


def test_targets_are_the_cells_of_corners():
    target = target_map([[(0, 8), (6, 2)], []])
    assert target.shape == (2, 6, 6) and target[0].nonzero().tolist() == [[0, 4], [3, 1]] and target[1].sum() == 0


def test_the_detectors_loss_weighs_shapes():
    detector = UnsafeDetector()
    for parameter in detector.parameters():
        torch.nn.init.zeros_(parameter)
    loss = detector_loss(detector, images(1), target_map([[(0, 0)]]), 5.0)
    assert loss.item() == pytest.approx((35 + 5) * math.log(2) / 36)


# Tables of scenes


def test_scenes_survive_their_table(tmp_path):
    scenes = [
        [SceneObject("ring", "red", 0, 8), SceneObject("tee", "blue", 6, 2)],
        [SceneObject("disk", "green", 2, 2)],
    ]
    assert [parse_scene(scene_text(scene)) for scene in [*scenes, []]] == [*scenes, []]
    write_scenes(tmp_path / "s.parquet", [{"caption": "a ring", "scene": scene_text(scene)} for scene in scenes])
    captions, pictures = read_scenes(tmp_path / "s.parquet")
    assert captions == ["a ring"] * 2 and pictures.shape == (2, 3, 12, 12)
    assert all((pictures[i].numpy() == render_scene(scene)).all() for i, scene in enumerate(scenes))


@pytest.mark.parametrize("text", ["red ring 0", "red ring a 0", "pink ring 0 0", "red ring 1 0"])
def test_broken_tables_are_named(tmp_path, text):
    write_scenes(tmp_path / "s.parquet", [{"caption": "a ring", "scene": text}])
    with pytest.raises(InputError, match=r"s\.parquet: "):
        read_scenes(tmp_path / "s.parquet")


def test_empty_tables_are_named(tmp_path):
    write_scenes(tmp_path / "s.parquet", [])
    with pytest.raises(InputError, match=r"s\.parquet: the table holds no scenes"):
        read_scenes(tmp_path / "s.parquet")
