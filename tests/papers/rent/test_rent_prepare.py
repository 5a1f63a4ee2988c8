import io

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from papers.rent.corruption import corrupted_labels, parse_setting
from papers.rent.options import DataOptions
from papers.rent.prepare import prepare
from shared.errors import InputError
from shared.tables import read_table
from shared.vision.data import load_digits


def write_cifar(path, count, *, seed=0, labels=None, column="label", size=32):
    """Images in the published format; those of a class are alike, so that a network can learn them."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 10 if labels is None else np.asarray(labels)
    cells = []
    for index, label in enumerate(labels):
        pixels = rng.integers(0, 60, (size, size, 3)) + 18 * (label % 10)
        stream = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(stream, format="PNG")
        cells.append({"bytes": stream.getvalue(), "path": f"{index}.png"})
    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {"img": pa.array(cells, image_type), column: pa.array(labels.tolist(), pa.int64())}
    if column == "fine_label":
        columns["coarse_label"] = pa.array((labels // 5).tolist(), pa.int64())
    pq.write_table(pa.table(columns), path)
    return path


def prepared(folder, options, settings, files=(), seeds=(0, 1)):
    paths = {name: folder / name for name in ("images", "labels")}
    prepare(options, seeds=seeds, settings=settings, files=tuple(files), **paths)
    return load_file(paths["images"])["images"], read_table(paths["labels"])


def test_digits_are_split_anew_for_each_seed_and_noised_in_training_alone(tmp_path):
    settings = ("sym50", "idn40")
    images, table = prepared(tmp_path, DataOptions("digits", 1200), settings)
    digits = load_digits()
    assert torch.equal(images, digits.images)
    assert list(table.columns) == ["seed", "image", "part", "label", *settings]
    parts = {}
    for seed, rows in table.groupby("seed"):
        assert sorted(rows["image"]) == list(range(1797))
        assert (rows["label"].to_numpy() == digits.labels[rows["image"].to_numpy()].numpy()).all()
        train, test = (rows[rows["part"] == part] for part in ("train", "test"))
        assert (len(train), len(test)) == (1200, 597)
        assert (test["sym50"] == test["label"]).all() and (test["idn40"] == test["label"]).all()
        numbers = torch.tensor(train["image"].to_numpy()).long()
        for name in settings:
            expected = corrupted_labels(
                parse_setting(name), "digits", digits.images[numbers], digits.labels[numbers], seed
            )
            assert train[name].tolist() == expected.tolist()
        parts[seed] = set(train["image"])
    assert parts[0] != parts[1]


def test_seeds_do_not_depend_on_each_other(tmp_path):
    (tmp_path / "both").mkdir(), (tmp_path / "one").mkdir()
    _, both = prepared(tmp_path / "both", DataOptions("digits", 100), ("sym20", "asym40"))
    _, one = prepared(tmp_path / "one", DataOptions("digits", 100), ("asym40",), seeds=(1,))
    again = both[both["seed"] == 1][["image", "part", "label", "asym40"]].reset_index(drop=True)
    assert again.equals(one[["image", "part", "label", "asym40"]])


def test_cifar_in_the_published_format(tmp_path):
    files = [write_cifar(tmp_path / "train.parquet", 40), write_cifar(tmp_path / "test.parquet", 20, seed=1)]
    images, table = prepared(tmp_path, DataOptions("cifar10"), ("sym50", "asym40"), files)
    assert images.shape == (60, 3, 32, 32) and images.dtype == torch.uint8
    for _, rows in table.groupby("seed"):
        assert rows["image"].tolist() == list(range(60))
        assert rows["part"].tolist() == ["train"] * 40 + ["test"] * 20
        assert rows["label"].tolist() == [*(np.arange(40) % 10), *(np.arange(20) % 10)]
    assert images[5].float().mean() > images[0].float().mean()


def test_cifar100_has_fine_labels(tmp_path):
    labels = np.arange(100)
    files = [
        write_cifar(tmp_path / f"{part}.parquet", 100, labels=labels, column="fine_label") for part in ("train", "test")
    ]
    _, table = prepared(tmp_path, DataOptions("cifar100"), ("sym50", "asym40"), files, seeds=(0,))
    assert table["label"].tolist() == [*labels, *labels] and table["sym50"].max() > 50


def test_labels_that_people_gave(tmp_path):
    files = [write_cifar(tmp_path / "train.parquet", 20), write_cifar(tmp_path / "test.parquet", 10)]
    given = [(label + 1) % 10 for label in range(20)]
    table = pd.DataFrame({"worse": given, "random1": [0.5] * 20})
    table.to_csv(tmp_path / "human.csv", index=False)
    pq.write_table(pa.table({"worse": given}), tmp_path / "human.parquet")
    for name in ("human.csv", "human.parquet"):
        _, labels = prepared(tmp_path, DataOptions("cifar10"), ("human-worse", "sym20"), [*files, tmp_path / name])
        train = labels[labels["part"] == "train"]
        assert train["human-worse"].tolist() == given * 2
        assert (labels["human-worse"][labels["part"] == "test"] == labels["label"][labels["part"] == "test"]).all()

    def message(settings, human):
        with pytest.raises(InputError) as error:
            prepared(tmp_path, DataOptions("cifar10"), settings, [*files, human])
        assert "\n" not in str(error.value)
        return str(error.value)

    csv = tmp_path / "human.csv"
    assert "no column 'aggregate'; there are: worse, random1" in message(("human-aggregate",), csv)
    assert "column 'random1' needs classes in [0, 10)" in message(("human-random1",), csv)
    table.iloc[:5].to_csv(tmp_path / "short.csv", index=False)
    assert "short.csv: need 20 rows" in message(("human-worse",), tmp_path / "short.csv")
    (tmp_path / "empty.csv").write_text("")
    assert "empty.csv: not a csv table" in message(("human-worse",), tmp_path / "empty.csv")


def test_mistakes_are_one_line(tmp_path):
    def message(options, settings=("sym50",), files=()):
        with pytest.raises(InputError) as error:
            prepared(tmp_path, options, settings, files)
        assert "\n" not in str(error.value)
        return str(error.value)

    train = write_cifar(tmp_path / "train.parquet", 10)
    assert message(DataOptions("cifar10"), files=[train]) == (
        "files: cifar10 needs a file of training images and one of test images"
    )
    assert "no such file" in message(DataOptions("cifar10"), files=[train, tmp_path / "none.parquet"])
    small = write_cifar(tmp_path / "small.parquet", 10, size=8)
    assert "small.parquet: its images have another size" in message(DataOptions("cifar10"), files=[train, small])
    assert "no column 'fine_label'" in message(DataOptions("cifar100"), files=[train, train])
    assert "train_images: need a number between 0 and 1797, got 1797" in message(DataOptions("digits", 1797))
    assert message(DataOptions("digits", 100), ("sym",)).startswith("setting 'sym': need sym<percent>")
