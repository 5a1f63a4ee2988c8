"""Images from every source, and what is said of a damaged one."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from udim_cases import image_set, write_cifar, write_folders

from papers.udim.image_sets import read_image_set, read_images, write_image_set
from papers.udim.options import DataOptions
from shared.errors import InputError


def test_a_set_comes_back_as_it_was_written(tmp_path):
    before = image_set(("art", "photo"), count=5)
    write_image_set(tmp_path / "images.safetensors", before)
    after = read_image_set(tmp_path / "images.safetensors")
    assert after.names == before.names and after.classes == before.classes
    for name in ("images", "labels", "domains"):
        assert torch.equal(getattr(after, name), getattr(before, name))
    assert torch.equal(after.domain("photo").images, before.images[5:])


def test_digits():
    digits = read_images(DataOptions("digits"))
    assert digits.images.shape == (1797, 1, 8, 8) and digits.images.max() == 255 and digits.classes == 10
    assert digits.names == ("digits",)


def test_parquet_files_are_parts(tmp_path):
    train = [str(write_cifar(tmp_path / f"train{i}.parquet", 5, seed=i)) for i in range(2)]
    test = str(write_cifar(tmp_path / "test.parquet", 3, seed=9))
    data = read_images(DataOptions("parquet", train=tuple(train), test=(test,)))
    assert data.names == ("train", "test") and data.domains.tolist() == [0] * 10 + [1] * 3
    assert data.images.shape == (13, 3, 32, 32)


def test_folders_are_domains_and_classes(tmp_path):
    data = read_images(DataOptions("folders", train=(str(write_folders(tmp_path / "PACS")),), size=16))
    assert data.names == ("art", "photo", "sketch") and data.classes == 2
    assert data.images.shape == (36, 3, 16, 16)
    assert data.labels.tolist() == ([0] * 6 + [1] * 6) * 3
    brightness = data.images.float().mean((1, 3))
    assert (brightness[data.labels == 0][:, :6] > brightness[data.labels == 0][:, 10:]).all()
    assert (brightness[data.labels == 1][:, :6] < brightness[data.labels == 1][:, 10:]).all()


def broken(tmp_path, how):
    root = write_folders(tmp_path / "PACS")
    if how == "class":
        (root / "photo" / "cat").mkdir()
    if how == "image":
        (root / "photo" / "dog" / "0.jpg").write_bytes(b"no image")
    if how == "empty":
        for path in (root / "photo").rglob("*.jpg"):
            path.unlink()
    return str(root)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("class", "photo: has the classes cat, dog, house; art has dog, house"),
        ("image", "0.jpg: cannot be decoded"),
        ("empty", "photo: holds no images"),
    ],
)
def test_broken_folders_are_named(tmp_path, how, message):
    with pytest.raises(InputError, match=message):
        read_images(DataOptions("folders", train=(broken(tmp_path, how),), size=8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (DataOptions("folders", train=("nowhere",)), "nowhere: no such folder"),
        (DataOptions("folders"), "train: need one folder of domains, got 0"),
        (DataOptions("parquet", train=("nowhere.parquet",)), "nowhere.parquet: no such file"),
        (DataOptions("parquet"), "train: need at least one parquet file"),
    ],
)
def test_missing_data_is_named(options, message):
    with pytest.raises(InputError, match=message):
        read_images(options)


def test_parquet_files_of_other_sizes_are_refused(tmp_path):
    paths = [str(write_cifar(tmp_path / f"{size}.parquet", 2, size=size)) for size in (32, 16)]
    with pytest.raises(InputError, match=r"16.parquet: images of \(3, 16, 16\), other files have \(3, 32, 32\)"):
        read_images(DataOptions("parquet", train=(paths[0],), test=(paths[1],)))


def test_a_parquet_file_with_a_wrong_class_is_refused(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32)).save(buffer, format="png")
    pq.write_table(
        pa.table({"img": [{"bytes": buffer.getvalue(), "path": None}], "label": [12]}), tmp_path / "x.parquet"
    )
    with pytest.raises(InputError, match=r"x.parquet: row 0: label is 12"):
        read_images(DataOptions("parquet", train=(str(tmp_path / "x.parquet"),)))


@pytest.mark.parametrize("content", [b"", b"damaged", None])
def test_a_damaged_set_is_named(tmp_path, content):
    path = tmp_path / "images.safetensors"
    if content is None:
        write_image_set(path, image_set())
        content = path.read_bytes()[:-10]
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"images.safetensors: not a whole set of images"):
        read_image_set(path)


def test_a_missing_set_is_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_image_set(tmp_path / "images.safetensors")
