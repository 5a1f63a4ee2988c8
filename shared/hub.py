"""Files of public data sets on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from shared.errors import InputError

HUB = "hf://datasets/"
"""How a file's name begins: ``hf://datasets/<owner>/<name>/<file>``."""


def hub_file(source: str) -> Path:
    """Where the hub's cache has the file ``hf://datasets/<owner>/<name>/<file>``, downloaded if it is not there yet.

    Raises:
        InputError: the name has another form, there is no such file, or no network.
    """
    owner, name, inner = [*source.removeprefix(HUB).split("/", 2), "", ""][:3]
    if not source.startswith(HUB) or not inner:
        raise InputError(f"source: need {HUB}<owner>/<name>/<file>, got {source!r}")
    from huggingface_hub import hf_hub_download  # only where something is downloaded

    try:
        return Path(hf_hub_download(f"{owner}/{name}", inner, repo_type="dataset"))
    except (OSError, ValueError) as error:  # what the hub's client raises where there is no such file, or no network
        raise InputError(f"{source}: could not be fetched: {str(error).splitlines()[0]}") from None
