import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from shared.vision.augmentation import random_crop_and_flip
from shared.vision.evaluation import accuracy, predict_logits

PROPERTY = settings(deadline=None, max_examples=30)


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


# Evaluation


class _Probe(nn.Module):
    """Mean pixel as the logits, shifted in training mode."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.batches = []

    def forward(self, images):
        self.batches.append(len(images))
        assert images.dtype == torch.float32 and not torch.is_grad_enabled()
        return self.scale * images.mean((2, 3)) + self.training


@PROPERTY
@given(st.integers(1, 20), st.integers(1, 25))
def test_batches_do_not_matter(count, batch_size):
    images = torch.randint(256, (count, 3, 2, 2), generator=_generator(), dtype=torch.uint8)
    model = _Probe()
    logits = predict_logits(model, images, batch_size=batch_size)
    torch.testing.assert_close(logits, images.float().mean((2, 3)) / 255)
    assert max(model.batches) <= batch_size and sum(model.batches) == count


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_restored(training):
    model = _Probe().train(training)
    assert torch.equal(predict_logits(model, torch.zeros(2, 3, 1, 1)), torch.zeros(2, 3))
    assert model.training == training
    with pytest.raises(RuntimeError):
        predict_logits(nn.Sequential(model, nn.Linear(7, 1)), torch.zeros(2, 3, 1, 1))
    assert model.training


def test_accuracy_counts():
    logits = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.5, 0.5], [-1.0, -torch.inf]])
    assert accuracy(logits, torch.tensor([1, 1, 0, 0])) == 0.75
    assert accuracy(logits, torch.tensor([0, 1, 1, 1])) == 0.0


def test_bad_evaluation_arguments():
    with pytest.raises(ValueError, match=r"^images: "):
        predict_logits(_Probe(), torch.zeros(0, 3, 1, 1))
    with pytest.raises(ValueError, match=r"^batch_size: "):
        predict_logits(_Probe(), torch.zeros(2, 3, 1, 1), batch_size=0)
    for logits, labels in (
        (torch.zeros(3, 2), torch.zeros(2)),
        (torch.zeros(3), torch.zeros(3)),
        (torch.zeros(0, 2), torch.zeros(0)),
    ):
        with pytest.raises(ValueError, match=r"^labels: "):
            accuracy(logits, labels)
    with pytest.raises(ValueError, match=r"^logits: "):
        accuracy(torch.tensor([[0.0, torch.nan]]), torch.tensor([0]))


# Augmentation


@PROPERTY
@given(st.integers(0, 2**32), st.integers(0, 3), st.sampled_from([torch.uint8, torch.float32]))
def test_every_image_is_a_crop_of_the_padded_one(seed, padding, dtype):
    images = torch.randint(1, 256, (6, 2, 4, 5), generator=_generator(seed)).to(dtype)
    changed = random_crop_and_flip(images, _generator(seed), padding=padding)
    assert changed.shape == images.shape and changed.dtype == dtype and changed.is_contiguous()
    for image, result in zip(nn.functional.pad(images, [padding] * 4), changed, strict=True):
        crops = [
            crop
            for top in range(2 * padding + 1)
            for left in range(2 * padding + 1)
            for window in [image[:, top : top + 4, left : left + 5]]
            for crop in (window, window.flip(2))
        ]
        assert any(torch.equal(result, crop) for crop in crops)


def test_all_offsets_and_both_orientations_are_equally_likely():
    # One bright pixel off the centre tells offset and orientation: 9 x 2 places, at padding 1 all inside.
    images = torch.zeros(18_000, 1, 5, 5)
    images[:, 0, 2, 1] = 1
    places = random_crop_and_flip(images, _generator(), padding=1).flatten(1).argmax(1)
    rows, columns = places // 5, places % 5
    row_counts, column_counts = rows.bincount(minlength=5), columns.bincount(minlength=5)
    assert row_counts[[0, 4]].tolist() == [0, 0]
    assert (row_counts[1:4] - 6000).abs().max() < 5 * 64  # sqrt(18000 · 1/3 · 2/3) = 63
    # Columns 0, 1, 2 as they are, 2, 3, 4 mirrored: 1/6, 1/6, 1/3, 1/6, 1/6.
    assert (column_counts - torch.tensor([3000, 3000, 6000, 3000, 3000])).abs().max() < 5 * 64
    assert len(torch.unique(rows * 5 + columns)) == 15


def test_augmentation_leaves_its_input_alone_and_follows_the_generator():
    images = torch.rand(8, 3, 6, 6, generator=_generator())
    before = images.clone()
    changed = random_crop_and_flip(images, _generator(1))
    assert torch.equal(images, before)
    assert torch.equal(changed, random_crop_and_flip(images, _generator(1)))
    assert not torch.equal(changed, random_crop_and_flip(images, _generator(2)))


def test_bad_augmentation_arguments():
    with pytest.raises(ValueError, match=r"^images: "):
        random_crop_and_flip(torch.zeros(3, 4, 4), _generator())
    with pytest.raises(ValueError, match=r"^padding: "):
        random_crop_and_flip(torch.zeros(1, 3, 4, 4), _generator(), padding=-1)
