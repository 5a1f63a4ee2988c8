"""A whole small repository for tests of the house: the real Snakefile and shared code, and two toy papers."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# The first call of a torch function can take seconds; how long an example takes is no property under test.
settings.register_profile("repository", deadline=None)
settings.load_profile("repository")

REPOSITORY = Path(__file__).resolve().parents[1]

OPTIONS = """
from dataclasses import dataclass

@dataclass(frozen=True)
class DrawOptions:
    size: int
    scale: float = 1.0

@dataclass(frozen=True)
class Scale:
    seeds: tuple[int, ...]
    draw: DrawOptions
"""

DRAW = '''
import random
from papers.PAPER.options import DrawOptions
from shared.stage import Input, Output, run

def draw(options: DrawOptions, *, seed: int, numbers: Output) -> None:
    """Draw numbers."""
    numbers.write_text("\\n".join(str(options.scale * random.random()) for _ in range(options.size)) + "\\n")

if __name__ == "__main__":
    run(draw)
'''

MEASURE = '''
from pathlib import Path
from shared.results import aggregate, write_metrics, write_units
from shared.stage import Input, Output, run

def measure(*, scale: str, numbers: tuple[Input, ...], metrics: Output, units: Output) -> None:
    """Measure the numbers of every seed."""
    rows = []
    for path in numbers:
        seed = int(Path(path).stem.removeprefix("seed"))
        for unit, value in enumerate(path.read_text().split()):
            for method, shift in (("new", 1.0), ("old", 0.0)):
                rows.append(dict(paper="PAPER", scale=scale, method=method, setting="s", seed=seed, unit=str(unit),
                                 metric="gold", value=float(value) + shift))
    write_metrics(metrics, aggregate(write_units(units, rows)))

if __name__ == "__main__":
    run(measure)
'''

FIGURES = '''
from shared.plotting import house_style, new_figure, save_figure
from shared.results import read_metrics
from shared.stage import Input, Output, run

TITLE = "gold"

def draw(*, figure: str, metrics: Input, png: Output, pdf: Output) -> None:
    """Draw a figure."""
    with house_style():
        page, axes = new_figure()
        axes[0, 0].plot(read_metrics(metrics)["value"])
        axes[0, 0].set_title(TITLE)
        save_figure(page, png, pdf)

if __name__ == "__main__":
    run(draw)
'''

WORKFLOW = """
from papers.PAPER.options import Scale
from workflows.paper import open_paper

paper = open_paper("PAPER", config["scale"], Scale)
R, L = paper.results, paper.logs
FIGURES = ["values"]
RECORDS = [f"{R}/records/draw-seed{seed}.json" for seed in paper.settings.seeds]

rule draw:
    output: numbers=f"{R}/numbers/seed{{seed}}.txt", record=f"{R}/records/draw-seed{{seed}}.json"
    params: **paper.stage("papers.PAPER.draw", paper.settings.draw, seed="{seed}")
    log: f"{L}/draw-seed{{seed}}.log"
    cache: True
    shell: "python -m papers.PAPER.draw {params.arguments} --numbers {output.numbers} --record {output.record} &> {log}"

rule measure:
    input: [f"{R}/numbers/seed{seed}.txt" for seed in paper.settings.seeds]
    output: metrics=f"{R}/metrics.parquet", units=f"{R}/units.parquet", record=f"{R}/records/measure.json"
    params: **paper.stage("papers.PAPER.measure", scale=paper.scale)
    log: f"{L}/measure.log"
    cache: True
    shell:
        "python -m papers.PAPER.measure {params.arguments} --numbers {input} --metrics {output.metrics}"
        " --units {output.units} --record {output.record} &> {log}"

rule figure:
    input: metrics=f"{R}/metrics.parquet"
    output:
        png=f"{R}/figures/{{figure}}.png",
        pdf=f"{R}/figures/{{figure}}.pdf",
        record=f"{R}/records/figure-{{figure}}.json",
    params: **paper.stage("papers.PAPER.figures", figure="{figure}")
    log: f"{L}/figure-{{figure}}.log"
    cache: True
    shell:
        "python -m papers.PAPER.figures {params.arguments} --metrics {input.metrics} --png {output.png}"
        " --pdf {output.pdf} --record {output.record} &> {log}"

include: "../../workflows/results.smk"
"""

CONFIG = """
scales:
  small: {seeds: [0, 1, 2], draw: {size: 4}}
  smoke: {seeds: [0], draw: {size: 2}}
"""

PAPER = """
id: PAPER
title: A toy paper
authors: [A. Author]
venue: Nowhere
arxiv: null
code: null
summary: Adding one makes a number larger.
claims:
  - id: larger
    statement: New is larger than old
    tests: [{name: by one, setting: s, metric: gold, method: new, baseline: old, direction: greater}]
"""

README = """# Toy

<!-- generated:verdicts -->
<!-- /generated:verdicts -->

<!-- generated:figure -->
<!-- /generated:figure -->
"""

LONGEST = "test_smoke.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the file that takes longest, so that processes which share the files end together."""
    items.sort(key=lambda item: item.path.name != LONGEST)


class ToyRepository:
    """A git repository with papers ``alpha`` and ``beta``; ``root`` is its folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != "SNAKEMAKE_OUTPUT_CACHE"},
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": str(root),
            "GIT_CONFIG_GLOBAL": os.devnull,
            "XDG_CACHE_HOME": str(root.parent / "cache"),
        }

    def run(self, *command: str, ok: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the repository; its output is captured, standard error joined to it."""
        result = subprocess.run(
            command,
            cwd=self.root,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert not ok or result.returncode == 0, result.stdout
        return result

    def snakemake(self, *arguments: str, ok: bool = True, **environment: str) -> str:
        return self.run("snakemake", "--cores", "2", *arguments, ok=ok, **environment).stdout

    def module(self, name: str, *arguments: str, ok: bool = True, **environment: str) -> str:
        return self.run(sys.executable, "-m", name, *arguments, ok=ok, **environment).stdout

    def commit(self, message: str) -> None:
        self.run("git", "add", "--all")
        identity = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
        self.run("git", *identity, "commit", "--quiet", "--allow-empty", "--message", message)

    def clone(self, name: str) -> "ToyRepository":
        """A bare clone: what git holds, and nothing else."""
        target = self.root.parent / name
        self.run("git", "clone", "--quiet", str(self.root), str(target))
        return ToyRepository(target)

    def replace(self, path: str, old: str, new: str) -> None:
        file = self.root / path
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))

    def write_paper(self, name: str) -> None:
        sources = {
            "__init__.py": "",
            "options.py": OPTIONS,
            "draw.py": DRAW,
            "measure.py": MEASURE,
            "figures.py": FIGURES,
            "figures.yaml": "values: {title: Values, caption: All values., alt: A line.}\n",
            "workflow.smk": WORKFLOW,
            "config.yaml": CONFIG,
            "paper.yaml": PAPER,
            "README.md": README,
        }
        folder = self.root / "papers" / name
        folder.mkdir(parents=True)
        for file, text in sources.items():
            (folder / file).write_text(text.replace("PAPER", name))


@pytest.fixture
def toy(tmp_path) -> ToyRepository:
    """A fresh toy repository, committed."""
    root = tmp_path / "repository"
    root.mkdir()
    unneeded = shutil.ignore_patterns("lm", "vision", "t2i", "diffusion", "__pycache__")
    for folder in ("shared", "workflows", "profiles"):
        shutil.copytree(REPOSITORY / folder, root / folder, ignore=unneeded)
    for file in ("Snakefile", ".gitignore", ".dvcignore"):
        shutil.copy(REPOSITORY / file, root / file)
    (root / ".dvc").mkdir()
    shutil.copy(REPOSITORY / ".dvc" / "config", root / ".dvc" / "config")
    shutil.copy(REPOSITORY / ".dvc" / ".gitignore", root / ".dvc" / ".gitignore")
    (root / "papers").mkdir()
    (root / "papers" / "__init__.py").touch()
    (root / "README.md").write_text("# Toys\n\n<!-- generated:papers -->\n<!-- /generated:papers -->\n")
    repository = ToyRepository(root)
    for name in ("alpha", "beta"):
        repository.write_paper(name)
    repository.run("git", "init", "--quiet")
    repository.commit("Toy papers")
    return repository
