import sys

import pytest

from shared.errors import InputError
from shared.stages import download


def test_download_takes_the_file_that_the_source_names(tmp_path, monkeypatch):
    (tmp_path / "cached").write_text("rows")
    asked = []

    class Hub:
        @staticmethod
        def hf_hub_download(repository, file, repo_type):
            asked.append((repository, file, repo_type))
            if file == "none":
                raise OSError("404\nfile not found")
            return tmp_path / "cached"

    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub)
    download.download(source="hf://datasets/uoft-cs/cifar10/plain_text/train.parquet", file=tmp_path / "out")
    assert asked == [("uoft-cs/cifar10", "plain_text/train.parquet", "dataset")]
    assert (tmp_path / "out").read_text() == "rows"
    with pytest.raises(InputError, match=r"^hf://datasets/a/b/none: could not be fetched: 404$"):
        download.download(source="hf://datasets/a/b/none", file=tmp_path / "out")
    for source in ("train.parquet", "hf://datasets/a/b", "hf://datasets/a"):
        with pytest.raises(InputError, match=r"^source: need hf://datasets/<owner>/<name>/<file>, got "):
            download.download(source=source, file=tmp_path / "out")
