"""The layout of the repository: who may import whom, and what must not stand in it."""

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(path for folder in ("papers", "shared", "workflows") for path in (ROOT / folder).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Dotted names that a file imports, anywhere in it."""
    names = set()
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package[: len(package) - node.level + 1], *([base] if base else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_papers_stand_on_shared_and_never_on_each_other(path):
    parts = path.relative_to(ROOT).parts
    for name in imported(path):
        top, *rest = name.split(".")
        if parts[0] == "shared":
            assert top not in ("papers", "workflows"), f"shared imports {name}"
        elif parts[0] == "papers" and len(parts) > 2:
            assert top != "papers" or (rest and rest[0] == parts[1]), f"a paper imports another: {name}"


def test_every_paper_is_whole():
    for workflow in ROOT.glob("papers/*/workflow.smk"):
        for name in ("README.md", "paper.yaml", "config.yaml", "figures.yaml", "__init__.py"):
            assert (workflow.parent / name).exists(), f"{workflow.parent.name} lacks {name}"


def test_nothing_unsafe_is_loaded():
    patterns = ("torch.load(", "pickle.load", "trust_remote_code=True", "yaml.load(", "shell=True")
    for path in [*SOURCES, *ROOT.glob("papers/*/workflow.smk"), ROOT / "Snakefile"]:
        text = path.read_text(encoding="utf-8")
        assert not [pattern for pattern in patterns if pattern in text], path


def test_no_large_file_outside_the_store():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    files = [ROOT / name for name in tracked if name and not name.startswith("artifact-store/")]
    assert not [path for path in files if path.exists() and path.stat().st_size > 1_500_000]
