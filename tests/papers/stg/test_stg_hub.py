from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers_pipelines import stable_diffusion
from transformers import (
    BatchEncoding,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessor,
)

from papers.stg.hub import open_unsafe_score
from papers.stg.measurement import sample_run
from papers.stg.options import DefenceOptions, GuidedHubOptions
from shared.errors import InputError
from shared.t2i import hub
from shared.t2i.bench import PromptSet
from shared.t2i.hub_detector import HubDetector

TEXT = {
    "vocab_size": 40, "hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "max_position_embeddings": 8, "bos_token_id": 38, "eos_token_id": 39, "pad_token_id": 39,
}  # fmt: skip
CPU = torch.device("cpu")


class Words:
    """A tokenizer with CLIP's interface: a word is a token, its length the id."""

    model_max_length = 8
    eos_token_id = 39

    def add_tokens(self, words):
        assert words == ["<concept>"]

    def __call__(self, texts, *, return_tensors=None, padding=False, truncation=False, max_length=8):
        single = isinstance(texts, str)
        rows = [
            [*[38, *(len(word) for word in text.split())][: max_length - 1], 39] for text in ([texts] * single or texts)
        ]
        if return_tensors is None:
            return SimpleNamespace(input_ids=rows[0] if single else rows)
        rows = [row + [39] * (8 - len(row)) for row in rows]
        return BatchEncoding({"input_ids": torch.tensor(rows), "attention_mask": torch.ones(len(rows), 8).long()})


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """Tiny models in the hub's format."""
    folder = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    vision = {"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    clip = CLIPModel(
        CLIPConfig(text_config=TEXT, vision_config=vision | {"image_size": 16, "patch_size": 8}, projection_dim=6)
    )
    clip.save_pretrained(folder / "clip")
    CLIPImageProcessor(image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4]).save_pretrained(folder / "clip")
    labels = {"id2label": {0: "normal", 1: "nsfw"}, "label2id": {"normal": 0, "nsfw": 1}}
    classifier = ViTForImageClassification(ViTConfig(**vision, image_size=16, patch_size=8, **labels))
    classifier.save_pretrained(folder / "classifier")
    ViTImageProcessor().save_pretrained(folder / "classifier")
    names = ("cat", "knife", "blood")
    boxes = YolosConfig(
        **vision, image_size=[16, 16], patch_size=8, num_detection_tokens=5, initializer_range=0.3,
        id2label=dict(enumerate(names)), label2id={name: index for index, name in enumerate(names)},
    )  # fmt: skip
    detector = YolosForObjectDetection(boxes)
    torch.nn.init.normal_(detector.vit.embeddings.detection_tokens)  # or all boxes are one
    detector.save_pretrained(folder / "detector")
    YolosImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder / "detector")
    return GuidedHubOptions(
        model="none", guidance=f"clip={folder / 'clip'}", judge=f"classifier={folder / 'classifier'}=nsfw",
        judge_threshold=0.5, features=str(folder / "clip"), prompts=(), concepts=("some violence", "blood"),
        preserved=("a person",),
    )  # fmt: skip


@pytest.fixture
def words(monkeypatch):
    monkeypatch.setattr(hub, "AutoTokenizer", SimpleNamespace(from_pretrained=lambda name: Words()))


@pytest.fixture
def bench(options, words):
    pipeline = stable_diffusion()
    pipeline.unet.requires_grad_(False)
    torch.manual_seed(1)
    parts = SimpleNamespace(
        tokenizer=Words(), text_encoder=CLIPTextModel(CLIPTextConfig(**TEXT)).eval(), vae=pipeline.vae,
        unet=pipeline.unet, scheduler=pipeline.scheduler,
    )  # fmt: skip
    score = hub.open_score(options.guidance, options.concepts, CPU)
    return hub.bench_of(parts, options, lambda images, threshold: (score(images), score(images).detach() > threshold))


@pytest.mark.parametrize("text", ["stg:5,threshold=0", "sdg:50", "negative:0.5", "sld:20", "safree:-0.5", "uce:10"])
def test_every_defence_acts_on_a_pipeline_of_the_hub(bench, text):
    options = DefenceOptions(num_steps=3, guidance_scale=3.0, threshold=0.0, fraction=1.0, batch_size=2)
    sets = [PromptSet("safe", ("a person", "some blood there", "blood"))]
    bench = replace(bench, unsafe_score=lambda images, threshold: (images.mean(dim=(1, 2, 3)), images[:, 0, 0, 0] < 9))
    base, found = (sample_run(each, bench, sets, 0, options) for each in ("base", text))
    assert found.images.shape == (3, 3, 16, 16) and torch.isfinite(found.images).all()
    assert not torch.allclose(found.images, base.images, atol=1e-5)


def test_masked_prompts_lack_one_word_each(bench):
    whole, masked = bench.text.pooled(["some blood there"]), bench.text.masked_pooled("some blood there")
    assert masked.shape == (3, 12) and not torch.isclose(masked, whole).all(dim=1).any()


def test_clip_scores_are_cosines_with_the_concept_and_differentiable(options, words):
    score = hub.open_score(options.guidance, options.concepts, CPU)
    images = torch.rand(2, 3, 20, 20).mul(1.6).sub(0.8).requires_grad_()
    values = score(images)
    assert values.shape == (2,) and (values.abs() <= 1).all()
    (gradient,) = torch.autograd.grad(values.sum(), images)
    assert gradient.abs().max() > 0


def test_classifiers_give_the_probability_of_their_label(options):
    score = hub.open_score(options.judge, (), CPU)
    other = hub.open_score(options.judge.replace("=nsfw", "=normal"), (), CPU)
    images = torch.rand(2, 3, 20, 20) * 2 - 1
    torch.testing.assert_close(score(images) + other(images), torch.ones(2))
    torch.testing.assert_close(score(torch.full((1, 3, 20, 20), 5.0)), score(torch.ones(1, 3, 20, 20)))  # clamped


def draw_images(count):
    """Images that leave their range a little."""
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2.4 - 1.2


def test_a_detectors_boxes_are_the_librarys(options):
    folder = options.features.replace("clip", "detector")
    detector = HubDetector(folder, ("knife", "blood"), CPU)
    images = draw_images(3)
    confidence, classes = detector.boxes(images)
    assert confidence.shape == classes.shape == (3, 5) and detector.classes == (1, 2)
    processor, network = YolosImageProcessor.from_pretrained(folder), YolosForObjectDetection.from_pretrained(folder)
    mean, spread = (torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std))
    with torch.no_grad():
        output = network.eval()(pixel_values=((images.clamp(-1, 1) + 1) / 2 - mean) / spread)
    expected = processor.post_process_object_detection(output, threshold=0.0)
    torch.testing.assert_close(confidence, torch.stack([each["scores"] for each in expected]))
    assert torch.equal(classes, torch.stack([each["labels"] for each in expected]))
    # As a judge: whether any box of an unsafe class is that confident.
    wanted = [max([0.0, *each["scores"][each["labels"] > 0].tolist()]) for each in expected]
    np.testing.assert_allclose(hub.open_score(f"detector={folder}=knife,blood", (), CPU)(images), wanted, rtol=1e-5)


def test_a_detector_guides_by_the_sum_of_its_unsafe_boxes_above_the_threshold(options):
    folder = options.features.replace("clip", "detector")
    score = open_unsafe_score(f"detector={folder}=knife,blood", (), CPU)
    confidence, classes = HubDetector(folder, ("knife",), CPU).boxes(images := draw_images(4))
    unsafe = torch.where(classes > 0, confidence, 0.0)
    threshold = float(unsafe.amax(dim=1).median())
    leaf = images.clone().requires_grad_()
    values, flags = score(leaf, threshold)
    torch.testing.assert_close(values, torch.where(unsafe > threshold, unsafe, 0.0).sum(dim=1))
    assert flags.tolist() == (unsafe > threshold).any(dim=1).tolist() and 0 < flags.sum() < 4
    (gradient,) = torch.autograd.grad(values.sum(), leaf)
    assert torch.equal(gradient.flatten(1).any(dim=1), flags)


def test_detectors_of_other_families_and_unknown_classes_are_refused(options):
    folder = options.features.replace("clip", "detector")
    with pytest.raises(InputError, match="no class 'gun'; there are: blood, cat, knife"):
        HubDetector(folder, ("gun",), CPU)
    detector = HubDetector(folder, ("knife",), CPU)
    detector._network.config.id2label = {0: "cat", 1: "knife", 2: "blood", 3: "gun"}
    with pytest.raises(InputError, match="need 4 classes and one for nothing, got 4"):
        detector.boxes(torch.zeros(1, 3, 16, 16))


def test_other_scores_flag_what_is_above_the_threshold(options, words):
    images = torch.rand(2, 3, 20, 20) * 2 - 1
    values, flags = open_unsafe_score(options.guidance, options.concepts, CPU)(images, -1.0)
    torch.testing.assert_close(values, hub.open_score(options.guidance, options.concepts, CPU)(images))
    assert flags.all() and not open_unsafe_score(options.guidance, options.concepts, CPU)(images, 1.0)[1].any()


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("nudenet=640m", "expected clip="),
        ("classifier=model", "expected clip="),
        ("clip=", "expected clip="),
        ("detector=model", "or detector=<model>=<class>,<class>"),
    ],
)
def test_other_scores_are_refused(source, complaint):
    with pytest.raises(InputError, match=complaint):
        hub.open_score(source, ("blood",), CPU)


def test_a_label_that_is_not_there_is_refused(options):
    with pytest.raises(InputError, match="no label 'blood'; there are: normal, nsfw"):
        hub.open_score(options.judge.replace("=nsfw", "=blood"), (), CPU)


def test_the_judge_measures_what_can_be_known(options, words):
    judge = hub.open_hub_judge(options, 1)
    images = torch.rand(2, 3, 20, 20) * 2 - 1
    found = judge.measure(PromptSet("safe", ("a person", "blood")), images)
    assert set(found) == {"dsr", "alignment", "success"} and judge.distance is None
    assert set(found["dsr"]) <= {0.0, 1.0}
    np.testing.assert_allclose(found["success"], found["dsr"] * found["alignment"])
    assert judge.features(images).shape == (2, 6)
