"""Sprites, splits, folders of images with CelebA's attributes, and what is said of a mistake."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from dbae_cases import DATA, plain_data, random_images, write_celeba
from PIL import Image
from sklearn.linear_model import LinearRegression

from papers.dbae.image_data import (
    attribute_names,
    binary_attributes,
    load_split,
    read_image_data,
    read_images,
    write_image_data,
)
from papers.dbae.measurements import Codes, code_scores
from papers.dbae.options import DataOptions
from papers.dbae.sprites import AMPLITUDE, FACTORS, draw_sprites
from papers.dbae.training import check_images
from shared.errors import InputError


@pytest.fixture(scope="module")
def sprites():
    return draw_sprites(400, 12, np.random.default_rng(0))


def test_sprites_show_their_factors(sprites):
    images, factors = (sprites.images + 1) / 2, dict(zip(FACTORS, sprites.factors.T, strict=True))
    assert images.shape == (400, 3, 12, 12) and images.dtype == np.float32
    assert images.min() >= 0 and images.max() <= 1
    corners = images[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].mean(1)
    assert np.median(np.abs(np.median(corners, 1) - factors["background"])) < AMPLITUDE
    # The colour differs from grey where the shape is: its centre of mass and its area.
    colour = images.max(1) - images.min(1)
    axis = (np.arange(12) + 0.5) / 6 - 1
    weight = colour.sum((1, 2))
    x, y = (colour.sum(1) @ axis) / weight, (colour.sum(2) @ axis) / weight
    discs = sprites.shapes == 0
    assert np.abs(x - factors["x"])[discs].max() < 0.05 and np.abs(y - factors["y"])[discs].max() < 0.05
    area = LinearRegression().fit(factors["size"][discs, None] ** 2, weight[discs])
    assert area.score(factors["size"][discs, None] ** 2, weight[discs]) > 0.8
    assert np.allclose(factors["hue_cos"] ** 2 + factors["hue_sin"] ** 2, 1, atol=1e-5)


def test_the_texture_is_what_the_shape_does_not_explain(sprites):
    grey = (sprites.images[:, :, 0, 0] + 1) / 2 - sprites.factors[:, 5:]
    clear = np.ptp(grey, axis=1) < 1e-5  # corners that no shape covers
    assert clear.mean() > 0.6
    np.testing.assert_allclose(grey[clear, 0], sprites.texture[clear, 0, 0], atol=1e-5)
    assert np.abs(sprites.texture).max() <= 2 * AMPLITUDE + 1e-6


def test_seeds_draw_other_images_and_the_same_ones_twice():
    (train, test), (again, _) = load_split(DATA, 0, None), load_split(DATA, 0, None)
    other, _ = load_split(DATA, 1, None)
    assert torch.equal(train.images, again.images) and not torch.equal(train.images, other.images)
    assert len(train) == 48 and len(test) == 24 and not torch.equal(train.images[:24], test.images)
    attributes = binary_attributes(train)
    assert attribute_names(train) == (*FACTORS, "disc") and attributes.shape == (48, 7)
    assert (attributes[:, :6].mean(0) == 0.5).all()
    assert (attributes[:, 6] == (train.classes[:, 0] == 0)).all()


def test_digits_are_split_by_the_seed(tmp_path):
    options = DataOptions("digits", image_size=8, train_images=100, test_images=50)
    write_image_data(tmp_path / "digits.safetensors", read_images(options))
    train, test = load_split(options, 0, tmp_path / "digits.safetensors")
    other, _ = load_split(options, 1, tmp_path / "digits.safetensors")
    assert len(train) == 100 and len(test) == 50 and not torch.equal(train.images, other.images)
    assert set(train.classes[:, 0]) == set(range(10)) and train.class_names == ("digit",)
    scaled = train.scaled()
    assert scaled.min() == -1 and scaled.max() == 1
    same = (train.images[:, None] == test.images[None]).flatten(2).all(2)
    assert not same.any(), "no image in both parts"


def test_a_folder_of_images_in_celebas_layout(tmp_path):
    folder, attributes = write_celeba(tmp_path)
    options = DataOptions("folder", image_size=64, train_images=4, test_images=2, folder=str(folder),
                          attributes=str(attributes), crop=(25, 57, 128))  # fmt: skip
    data = read_images(options)
    assert data.images.shape == (6, 3, 64, 64) and data.class_names == ("Bald", "Smiling")
    levels = torch.arange(6) * 10 + 20
    assert (data.images == levels[:, None, None, None]).all(), "the crop is the grey part alone"
    assert data.classes[:, 0].tolist() == [0, 1, 0, 1, 0, 1] and data.classes[:, 1].tolist() == [0, 0, 0, 1, 1, 1]
    assert (binary_attributes(data) == data.classes).all()
    write_image_data(tmp_path / "images.safetensors", data)
    read = read_image_data(tmp_path / "images.safetensors")
    assert torch.equal(read.images, data.images) and read.class_names == data.class_names
    train, test = load_split(options, 0, tmp_path / "images.safetensors")
    assert len(train) == 4 and len(test) == 2
    whole = read_images(replace(options, crop=(), attributes=""))
    assert whole.images[0, 0, 0, 0] == 0 and whole.images[0, 0, 32, 32] == 20
    assert whole.class_names == ("bright",) and whole.classes[:, 0].tolist() == [0, 0, 0, 1, 1, 1]
    brighter = code_scores(Codes(*2 * [levels.double()[:, None].numpy()]), whole, whole)
    assert brighter["probe_ap"] == 1 and brighter["captured"] == 1


def test_what_is_wrong_with_files_is_said(tmp_path):
    folder, attributes = write_celeba(tmp_path / "good")
    options = DataOptions("folder", image_size=64, folder=str(folder), attributes=str(attributes), crop=(25, 57, 128))

    def fails(message, **changes):
        with pytest.raises(InputError, match=message):
            read_images(replace(options, **changes))

    fails("folder: 'nowhere' is not a folder", folder="nowhere")
    (tmp_path / "empty").mkdir()
    fails("holds no images", folder=str(tmp_path / "empty"))
    fails("178x218 pixels, too few for the crop", crop=(100, 57, 128))
    fails("absent.txt: no such file", attributes=str(tmp_path / "absent.txt"))
    (tmp_path / "short.txt").write_text("6\nBald Smiling\n000000.png 1\n")
    fails("short.txt:3: expected an image and 2 times -1 or 1", attributes=str(tmp_path / "short.txt"))
    (tmp_path / "names.txt").write_text("Bald Smiling\n000000.png 1 1\n")
    fails("names.txt:1: expected the number of images", attributes=str(tmp_path / "names.txt"))
    (tmp_path / "few.txt").write_text("1\nBald Smiling\n000000.png 1 1\n")
    fails("few.txt: no line for 000001.png", attributes=str(tmp_path / "few.txt"))
    (folder / "zz.png").write_bytes(b"not an image")
    fails("zz.png: cannot be decoded")
    with pytest.raises(InputError, match="no such file"):
        read_image_data(tmp_path / "absent.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(b"1234567890")
    with pytest.raises(InputError, match="not a whole set of images"):
        read_image_data(tmp_path / "damaged.safetensors")
    few = DataOptions("digits", image_size=8, test_images=2000)
    write_image_data(tmp_path / "digits.safetensors", read_images(few))
    with pytest.raises(InputError, match="holds 1797 images, not more than the 2000 to be tested on"):
        load_split(few, 0, tmp_path / "digits.safetensors")
    with pytest.raises(InputError, match="images of 8 pixels, the options say 16"):
        load_split(replace(few, image_size=16), 0, tmp_path / "digits.safetensors")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (random_images() * 2, r"images: need finite numbers in \[-1, 1\]"),
        (random_images() / 0, r"images: need finite numbers in \[-1, 1\]"),
        (random_images(shape=(3, 8, 6)), r"images: need \(N, C, size, size\)"),
    ],
)
def test_images_out_of_range_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        check_images(plain_data(images))


def test_an_unusual_image_is_read_as_colour(tmp_path):
    Image.fromarray(np.full((40, 30), 77, np.uint8)).save(tmp_path / "grey.png")
    data = read_images(DataOptions("folder", image_size=16, folder=str(tmp_path)))
    assert data.images.shape == (1, 3, 16, 16) and (data.images == 77).all()
