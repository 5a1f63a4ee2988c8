"""Judge: train the classifier whose predictions count groups in samples, and whose features compare them.

Its file holds the weights, and in its metadata what network they are of.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from papers.tiw_dsm.measurements import as_unit
from papers.tiw_dsm.options import GROUPS, JudgeOptions, Testbed
from shared.data_order import generator_for
from shared.diffusion.glyphs import draw_glyphs
from shared.options import from_mapping, plain
from shared.stage import Input, Output, State, run
from shared.training import fit
from shared.vision.data import LabeledImages, as_float, read_image_parquet
from shared.vision.evaluation import accuracy, predict_logits
from shared.vision.models import Classifier, build_classifier
from shared.vision.options import ClassifierOptions


def judge(
    options: JudgeOptions,
    *,
    testbed: Testbed,
    seed: int,
    files: tuple[Input, ...] = (),
    classifier: Output,
    state: State,
) -> dict[str, float]:
    """Train on labelled images, equally many of each class; `files` are CIFAR-10's training and test images."""
    if files:
        train_set, test_set = (read_image_parquet(path) for path in files)
    else:
        train_set = labeled_glyphs(options.judge_images, options.judge_noise, generator_for(seed, 0))
        test_set = labeled_glyphs(1000, options.judge_noise, generator_for(seed, 1))
    channels, size = train_set.images.shape[1:3]
    network = {"channels": channels, "size": size, "num_classes": GROUPS[testbed]}
    accelerator = Accelerator(mixed_precision=options.judge_training.mixed_precision)

    def loss_of(model: nn.Module, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        images, labels = (each[rows].to(accelerator.device) for each in (train_set.images, train_set.labels))
        return nn.functional.cross_entropy(model(as_float(images)), labels), {}

    model, _ = fit(
        loss_of,
        build_classifier(options.classifier, **network, seed=seed),
        options.judge_training,
        size=len(train_set),
        make_batch=torch.tensor,
        seed=seed,
        accelerator=accelerator,
        checkpoints=state,
        log_every=100,
        description="judge",
    )
    model = accelerator.unwrap_model(model).cpu().eval()
    if accelerator.is_main_process:
        # One entry: safetensors writes several in random order.
        facts = json.dumps({"classifier": plain(options.classifier), "network": network})
        weights = {name: value.contiguous() for name, value in model.state_dict().items()}
        save_file(weights, classifier, metadata={"judge": facts})
    return {"accuracy": accuracy(predict_logits(model, test_set.images), test_set.labels)}


def labeled_glyphs(count: int, noise: float, generator: torch.Generator) -> LabeledImages:
    """Glyphs of random classes, in [0, 1] up to noise that is cut off."""
    labels = torch.randint(GROUPS["glyphs"], (count,), generator=generator)
    return LabeledImages(as_unit(draw_glyphs(labels, noise, generator)), labels)


def open_judge(path: Path) -> Classifier:
    """The classifier that `judge` saved, in evaluation mode."""
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["judge"])
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    options = from_mapping(facts["classifier"], ClassifierOptions, where=f"{path}: classifier")
    model = build_classifier(options, **facts["network"], seed=0)
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)


if __name__ == "__main__":
    run(judge)
