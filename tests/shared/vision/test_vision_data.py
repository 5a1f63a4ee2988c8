import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn import datasets

from shared.errors import InputError
from shared.vision.data import LabeledImages, as_float, load_digits, read_image_parquet, split_indices

IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def _pixels(count, size=8, channels=3):
    shape = (count, size, size, channels) if channels > 1 else (count, size, size)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _encoded(pixels, image_format="PNG", **options):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format=image_format, **options)
    return stream.getvalue()


def _write(path, cells, labels, *, names=("img", "label"), label_type=None, **options):
    if label_type is None:
        label_type = pa.int64()
    columns = [pa.array(cells, IMAGE_TYPE), pa.array(labels, label_type)]
    pq.write_table(pa.table(columns, names=list(names)), path, **options)
    return path


def _published(tmp_path, count=5, **options):
    """A file in the hub's layout of CIFAR-10, and the pixels in it."""
    pixels = _pixels(count)
    cells = [{"bytes": _encoded(image), "path": f"{i}.png"} for i, image in enumerate(pixels)]
    return _write(tmp_path / "data.parquet", cells, [i % 10 for i in range(count)], **options), pixels


# Digits


def test_digits_are_scikit_learns():
    digits, original = load_digits(), datasets.load_digits()
    assert digits.images.shape == (1797, 1, 8, 8) and digits.images.dtype == torch.float32
    assert digits.labels.dtype == torch.int64 and digits.labels.bincount().tolist() == [
        178, 182, 177, 183, 181, 182, 181, 179, 174, 180,
    ]  # fmt: skip
    assert np.array_equal(digits.images[:, 0].numpy() * 16, original.images)
    assert digits.images.min() == 0 and digits.images.max() == 1


def test_larger_digits_are_interpolated():
    digits, larger = load_digits(), load_digits(16)
    expected = torch.nn.functional.interpolate(digits.images, size=(16, 16), mode="bilinear", align_corners=False)
    torch.testing.assert_close(larger.images, expected)
    assert larger.images.dtype == torch.float32 and torch.equal(larger.labels, digits.labels)


def test_digits_need_a_size():
    with pytest.raises(ValueError, match="size"):
        load_digits(0)


def test_selecting_images():
    images = LabeledImages(torch.arange(4.0).view(4, 1, 1, 1), torch.tensor([3, 2, 1, 0]))
    assert len(images) == 4
    selected = images[torch.tensor([2, 0])]
    assert selected.images.flatten().tolist() == [2, 0] and selected.labels.tolist() == [1, 3]
    assert images[:1].labels.tolist() == [3]
    assert images[images.labels < 2].images.flatten().tolist() == [2, 3]


# Parquet


def test_the_published_layout(tmp_path):
    path, pixels = _published(tmp_path, 12)
    data = read_image_parquet(path)
    assert data.images.dtype == torch.uint8 and data.labels.dtype == torch.int64
    assert data.images.is_contiguous() and data.images.shape == (12, 3, 8, 8)
    assert np.array_equal(data.images.permute(0, 2, 3, 1).numpy(), pixels)
    assert data.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]


def test_several_row_groups(tmp_path):
    path, pixels = _published(tmp_path, 7, row_group_size=2)
    assert np.array_equal(read_image_parquet(path).images.permute(0, 2, 3, 1).numpy(), pixels)


def test_other_columns_and_classes(tmp_path):
    path, _ = _published(tmp_path, 5)
    table = pq.read_table(path).rename_columns(["image", "fine_label"]).append_column("coarse_label", [[7] * 5])
    pq.write_table(table, path)
    data = read_image_parquet(path, image_column="image", label_column="coarse_label", num_classes=20)
    assert data.labels.tolist() == [7] * 5


def test_jpeg_and_grey_images(tmp_path):
    grey = _pixels(2, channels=1)
    smooth = np.full((8, 8, 3), (200, 100, 50), np.uint8)
    cells = [
        {"bytes": _encoded(grey[0]), "path": None},
        {"bytes": _encoded(smooth, "JPEG", quality=95), "path": "b.jpg"},
    ]
    images = read_image_parquet(_write(tmp_path / "data.parquet", cells, [0, 1])).images
    assert np.array_equal(images[0].numpy(), np.broadcast_to(grey[0], (3, 8, 8)))
    assert np.abs(images[1].permute(1, 2, 0).numpy().astype(int) - smooth).max() < 5


@pytest.mark.parametrize("label_type", [pa.uint8(), pa.int32()])
def test_labels_are_any_integers(tmp_path, label_type):
    path, _ = _published(tmp_path, 3, label_type=label_type)
    assert read_image_parquet(path).labels.tolist() == [0, 1, 2]


def _with_a_wrong_chunk_size():
    """A PNG that Pillow opens, and then fails to read by an exception that is no OSError."""
    encoded = bytearray(_encoded(_pixels(1)[0]))
    encoded[encoded.index(b"IDAT") - 1] = 5
    return bytes(encoded)


def _bad_cell(cell, *, row=1):
    good = {"bytes": _encoded(_pixels(1)[0]), "path": "good.png"}
    return [cell if i == row else good for i in range(3)]


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ({"bytes": b"no image at all", "path": "x.png"}, "image cannot be decoded: unknown format$"),
        ({"bytes": _encoded(_pixels(1)[0])[:-40], "path": "x.png"}, "image cannot be decoded"),
        ({"bytes": _encoded(_pixels(1, 32)[0], "JPEG")[:200], "path": "x.jpg"}, "image cannot be decoded"),
        ({"bytes": _with_a_wrong_chunk_size(), "path": "x.png"}, "image cannot be decoded: broken PNG"),
        ({"bytes": b"", "path": "x.png"}, "image cannot be decoded"),
        ({"bytes": None, "path": "x.png"}, "no image bytes"),
        (None, "no image bytes"),
        ({"bytes": _encoded(_pixels(1, 6)[0]), "path": "x.png"}, "image of 6x6 pixels, row 0 has 8x8"),
        ({"bytes": _encoded(_pixels(1)[0][:, :5]), "path": "x.png"}, "image of 5x8 pixels, row 0 has 8x8"),
    ],
)
def test_bad_images(tmp_path, cell, message):
    path = _write(tmp_path / "data.parquet", _bad_cell(cell), [0, 1, 2])
    with pytest.raises(InputError, match=rf"data\.parquet: row 1: {message}"):
        read_image_parquet(path)


@pytest.mark.parametrize("label", [-1, 10, None])
def test_bad_labels(tmp_path, label):
    cells = [{"bytes": _encoded(image), "path": ""} for image in _pixels(2)]
    with pytest.raises(InputError, match=rf"data\.parquet: row 1: label is {label}, expected a class in \[0, 10\)"):
        read_image_parquet(_write(tmp_path / "data.parquet", cells, [0, label]))


def test_wrong_columns(tmp_path):
    path, _ = _published(tmp_path)
    with pytest.raises(InputError, match=r"data\.parquet: no column 'image'; there are: img, label"):
        read_image_parquet(path, image_column="image")
    with pytest.raises(InputError, match="no column 'fine_label'"):
        read_image_parquet(path, label_column="fine_label")
    with pytest.raises(InputError, match="column 'label' is int64, expected struct"):
        read_image_parquet(path, image_column="label")
    with pytest.raises(InputError, match=r"column 'img' is struct.*expected integers"):
        read_image_parquet(path, label_column="img")
    plain = pa.table({"img": pa.array([{"path": "a.png"}]), "label": [0]})
    pq.write_table(plain, path)
    with pytest.raises(InputError, match=r"column 'img' is struct<path: string>, expected struct<bytes"):
        read_image_parquet(path)
    pq.write_table(pa.table({"img": pa.array([], IMAGE_TYPE), "label": pa.array([], pa.float64())}), path)
    with pytest.raises(InputError, match="column 'label' is double, expected integers"):
        read_image_parquet(path)


def test_files_that_are_no_parquet(tmp_path):
    path, _ = _published(tmp_path, 40, compression="none")
    with pytest.raises(InputError, match=r"missing\.parquet: no such file"):
        read_image_parquet(tmp_path / "missing.parquet")
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(InputError, match=r"data\.parquet: damaged, or not a parquet file"):
        read_image_parquet(path)
    path.write_bytes(whole[:4] + bytes(200) + whole[204:])  # the first page's header
    with pytest.raises(InputError, match=r"data\.parquet: damaged, or not a parquet file"):
        read_image_parquet(path)
    path.write_text("img,label\n")
    with pytest.raises(InputError, match=r"data\.parquet: damaged, or not a parquet file"):
        read_image_parquet(path)
    with pytest.raises(InputError, match=r"data\.parquet: no rows"):
        read_image_parquet(_write(path, [], []))


# Conversion and splits


def test_bytes_become_floats_from_0_to_1():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8)
    assert as_float(images).tolist() == pytest.approx([0, 0.2, 1])
    assert as_float(images).dtype == torch.float32
    floats = torch.rand(3, dtype=torch.float64)
    assert as_float(floats) is floats
    with pytest.raises(ValueError, match="images"):
        as_float(images.int())


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 20), max_size=5), st.integers(0, 20), st.integers(0, 2**32))
def test_parts_are_disjoint_and_of_the_sizes(counts, rest, seed):
    total = sum(counts) + rest
    parts = split_indices(total, counts, torch.Generator().manual_seed(seed))
    assert [len(part) for part in parts] == counts
    drawn = [index for part in parts for index in part.tolist()]
    assert len(set(drawn)) == len(drawn) and set(drawn) <= set(range(total))


def test_parts_are_random():
    first, second = (split_indices(100, [60, 30], torch.Generator().manual_seed(seed)) for seed in (0, 1))
    again = split_indices(100, [60, 30], torch.Generator().manual_seed(0))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert not torch.equal(first[0], second[0])
    assert first[0].max() > 60  # not only the first ones


@pytest.mark.parametrize("counts", [[6, 5], [-1, 3]])
def test_bad_counts(counts):
    with pytest.raises(ValueError, match="counts"):
        split_indices(10, counts, torch.Generator())
