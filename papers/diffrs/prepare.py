"""Prepare: read images of files, and train the classifier that judges images."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import nn

from papers.diffrs.data_sets import (
    CLASSIFIER,
    IMAGES,
    JUDGE,
    judge_set,
    labelled_glyphs,
    read_files,
    save_judge,
)
from papers.diffrs.options import DataOptions, JudgeOptions
from shared.data_order import generator_for
from shared.stage import Output, State, run
from shared.training import fit
from shared.vision.data import LabeledImages
from shared.vision.evaluation import predict_logits
from shared.vision.models import build_classifier

CHECKED = 2000
"""Images of the accuracy that goes into the record."""


def prepare(data: DataOptions, judge: JudgeOptions, *, seed: int, prepared: Output, state: State) -> dict[str, float]:
    """Write the folder ``prepared``: the classifier, and uint8 images where the data are of files."""
    accelerator = Accelerator(mixed_precision=judge.training.mixed_precision)
    train = test = None
    if data.kind == "images":
        train, test = read_files(data.train_files, "train_files"), read_files(data.test_files, "test_files")
    images = judge_set(data, judge, train)
    classes = int(images.labels.max()) + 1
    shape = tuple(images.images.shape[1:])
    model = build_classifier(judge.classifier, channels=shape[0], size=shape[-1], num_classes=classes, seed=seed)

    def make_batch(rows) -> LabeledImages:
        chosen = images[torch.tensor(rows)]
        noisy = chosen.images + judge.judge_noise * torch.randn(chosen.images.shape)
        return LabeledImages(noisy.to(accelerator.device), chosen.labels.to(accelerator.device))

    model, _ = fit(
        lambda network, batch: (nn.functional.cross_entropy(network(batch.images), batch.labels), {}),
        model,
        judge.training,
        size=len(images),
        make_batch=make_batch,
        seed=seed,
        accelerator=accelerator,
        checkpoints=state,
        log_every=100,
        description="judge",
    )
    if not accelerator.is_main_process:
        return {}
    network = accelerator.unwrap_model(model, keep_fp32_wrapper=False).eval()
    prepared.mkdir()
    save_judge(prepared / CLASSIFIER, network, judge.classifier, shape, classes)
    if train is not None and test is not None:
        save_file({"train": train.images, "test": test.images}, prepared / IMAGES)
        held_out = judge_set(data, judge, test[:CHECKED])
    else:
        held_out = labelled_glyphs(CHECKED, data.std, generator_for(1, JUDGE))
    logits = predict_logits(network, held_out.images.to(accelerator.device)).cpu()
    return {"accuracy": (logits.argmax(1) == held_out.labels).double().mean().item()}


if __name__ == "__main__":
    run(prepare)
