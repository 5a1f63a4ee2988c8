"""Download: fetch a file of a public data set from the Hugging Face hub."""

from __future__ import annotations

import shutil

from shared.errors import InputError
from shared.hub import HUB
from shared.stage import Output, run


def download(*, source: str, file: Output) -> None:
    """Fetch ``hf://datasets/<owner>/<name>/<file>``."""
    owner, name, inner = [*source.removeprefix(HUB).split("/", 2), "", ""][:3]
    if not source.startswith(HUB) or not inner:
        raise InputError(f"source: need {HUB}<owner>/<name>/<file>, got {source!r}")
    from huggingface_hub import hf_hub_download  # only where something is downloaded

    try:
        cached = hf_hub_download(f"{owner}/{name}", inner, repo_type="dataset")
    except (OSError, ValueError) as error:  # what the hub's client raises where there is no such file, or no network
        raise InputError(f"{source}: could not be fetched: {str(error).splitlines()[0]}") from None
    shutil.copyfile(cached, file)


if __name__ == "__main__":
    run(download)
