"""Every paper at scale smoke, as a user runs it, and the notebooks on what that makes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from shared.options import read_yaml
from shared.pages import read_captions

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).resolve().parents[2]
PAPERS = sorted(path.parent.name for path in ROOT.glob("papers/*/workflow.smk"))
NOTEBOOKS = sorted(path.name for path in ROOT.glob("notebooks/*.ipynb"))


@pytest.fixture(scope="module")
def smoked():
    """All papers, run at scale smoke in the repository itself."""
    shutil.rmtree(ROOT / "results" / "smoke", ignore_errors=True)
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--config", "scale=smoke"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]


@pytest.mark.parametrize("paper", PAPERS)
def test_every_rule_of_a_paper_runs(smoked, paper):
    results = ROOT / "papers" / paper / "results" / "smoke"
    assert (results / "report.html").stat().st_size > 10_000 and (results / "claims.json").exists()
    drawn = {path.stem for path in (results / "figures").glob("*.png")}
    assert drawn and drawn <= set(read_captions(ROOT / "papers" / paper / "figures.yaml"))
    assert not list(results.rglob(".partial-*"))


def test_the_page_of_all_papers(smoked):
    page = (ROOT / "results" / "smoke" / "index.html").read_text(encoding="utf-8")
    for paper in PAPERS:
        assert read_yaml(ROOT / "papers" / paper / "paper.yaml")["title"].split(":")[0][:30] in page
    assert 'src="http' not in page and "<script src" not in page


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_executes(smoked, name, monkeypatch):
    monkeypatch.setenv("SCALE", "smoke")
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    book = nbformat.read(ROOT / "notebooks" / name, as_version=4)
    NotebookClient(book, timeout=300, resources={"metadata": {"path": str(ROOT / "notebooks")}}).execute()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_committed_with_its_outputs(name):
    book = nbformat.read(ROOT / "notebooks" / name, as_version=4)
    assert any(cell.get("outputs") for cell in book.cells)
    assert not [o for cell in book.cells for o in cell.get("outputs", []) if o.output_type == "error"]
    assert (ROOT / "notebooks" / name).stat().st_size < 400_000
    assert os.fspath(Path.home()) not in (ROOT / "notebooks" / name).read_text(encoding="utf-8")
