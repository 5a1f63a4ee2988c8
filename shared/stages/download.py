"""Download: fetch a file of a public data set from the Hugging Face hub."""

from __future__ import annotations

import shutil

from shared.hub import hub_file
from shared.stage import Output, run


def download(*, source: str, file: Output) -> None:
    """Fetch ``hf://datasets/<owner>/<name>/<file>``."""
    shutil.copyfile(hub_file(source), file)


if __name__ == "__main__":
    run(download)
