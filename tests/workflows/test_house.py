"""The house, tried on a small repository with two toy papers: targets, reruns, mistakes."""

import pytest

from workflows.paper import asked_papers

pytestmark = pytest.mark.slow

REPORT = "papers/alpha/results/small/report.html"


def ran(output: str) -> set[str]:
    """Rules that Snakemake computed or restored."""
    return {line.split("Rule: ")[1].split(")")[0] for line in output.splitlines() if "Finished jobid" in line}


def test_a_paper_runs_and_then_there_is_nothing_to_do(toy):
    output = toy.snakemake("papers/alpha")
    assert "7 jobs computed, 0 restored" in output
    assert (toy.root / REPORT).exists() and not (toy.root / "papers/beta/results").exists()
    assert "Nothing to be done" in toy.snakemake("-n", "papers/alpha")
    assert "Nothing to be done" in toy.snakemake("-n", "papers/alpha/")


def test_every_paper_is_the_default_target(toy):
    toy.snakemake()
    assert (toy.root / REPORT).exists() and (toy.root / REPORT.replace("alpha", "beta")).exists()


def test_deleted_results_come_from_the_store(toy):
    toy.snakemake("papers/alpha")
    toy.run("rm", "-r", "papers/alpha/results")
    assert "0 jobs computed, 7 restored" in toy.snakemake("papers/alpha")


def test_only_what_depends_on_an_edit_is_made_again(toy):
    toy.snakemake("papers/alpha")
    toy.replace("papers/alpha/draw.py", '"""Draw numbers."""', '"""Draw random numbers."""\n    # evenly')
    toy.run("touch", "papers/alpha/measure.py", "shared/statistics.py")
    assert "Nothing to be done" in toy.snakemake("-n", "papers/alpha")

    toy.replace("papers/alpha/figures.py", 'TITLE = "gold"', 'TITLE = "reward"')
    assert ran(toy.snakemake("papers/alpha")) == {"alpha_figure", "alpha_report", "papers/alpha"}

    toy.replace("papers/alpha/config.yaml", "small: {seeds: [0, 1, 2]", "small: {seeds: [0, 1, 2, 3]")
    output = toy.snakemake("papers/alpha")
    assert ran(output) == {f"alpha_{rule}" for rule in ("draw", "measure", "figure", "claims", "report")} | {
        "papers/alpha"
    }
    assert output.count("Rule: alpha_draw") == 1  # the new seed alone

    toy.replace("shared/statistics.py", "def hierarchical_bootstrap(", "SEEN = 1\n\n\ndef hierarchical_bootstrap(")
    assert "Nothing to be done" in toy.snakemake("-n", "papers/alpha")


def test_a_change_that_is_undone_costs_nothing(toy):
    toy.snakemake("papers/alpha")
    toy.replace("papers/alpha/config.yaml", "size: 4", "size: 5")
    toy.snakemake("papers/alpha")
    toy.replace("papers/alpha/config.yaml", "size: 5", "size: 4")
    assert "0 jobs computed" in toy.snakemake("papers/alpha")


@pytest.mark.parametrize(
    ("arguments", "edit", "expected"),
    [
        (("papers/gamma",), None, "error: papers/gamma: no such paper; there are: alpha, beta"),
        (("papers/alpha", "--config", "scale=huge"), None,
         "error: papers/alpha/config.yaml: no scale 'huge'; there are: small, smoke"),
        (("--config", "scale=huge"), None, "error: scale=huge: no paper has this scale; there are: small, smoke"),
        (("--config", "sclae=smoke"), None, "error: --config sclae: unknown key; known keys: scale"),
        (("papers/alpha",), ("size: 4", "sise: 4"),
         "error: papers/alpha/config.yaml: scales.small.draw: unknown key 'sise'; known keys: size, scale"),
        (("papers/alpha",), ("size: 4", "size: four"),
         "error: papers/alpha/config.yaml: scales.small.draw.size: input should be a valid integer, got 'four'"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_before_anything_is_planned(toy, arguments, edit, expected):
    if edit:
        toy.replace("papers/alpha/config.yaml", *edit)
    output = toy.snakemake(*arguments, ok=False)
    lines = [line for line in output.splitlines() if "workflow specific profile" not in line]
    assert lines == [expected]


def test_a_failing_job_leaves_nothing_half_made_and_the_rest_is_kept(toy):
    toy.replace(
        "papers/alpha/draw.py",
        "numbers.write_text(",
        'numbers.write_text("half")\n    assert seed != 1\n    numbers.write_text(',
    )
    output = toy.snakemake("papers/alpha", ok=False)
    assert "AssertionError" in output  # its log is shown
    assert sorted(path.name for path in (toy.root / "papers/alpha/results/small/numbers").iterdir()) == [
        "seed0.txt",
        "seed2.txt",
    ]


def test_nothing_is_computed_from_a_damaged_artifact(toy):
    toy.snakemake("papers/alpha")
    artifact = (toy.root / "papers/alpha/results/small/numbers/seed1.txt").resolve()
    artifact.write_text("0\n0\n0\n0\n")
    toy.replace("papers/alpha/measure.py", '("new", 1.0)', '("new", 2.0)')
    output = toy.snakemake("papers/alpha", ok=False)
    assert f"{artifact}: damaged artifact" in output


def test_a_deleted_artifact_is_made_again(toy):
    toy.snakemake("papers/alpha")
    for name in ("metrics.parquet", "records/measure.json"):
        (toy.root / "papers/alpha/results/small" / name).resolve().unlink()
    assert "1 jobs computed" in toy.snakemake("papers/alpha/results/small/metrics.parquet")
    assert (toy.root / "papers/alpha/results/small/metrics.parquet").exists()


def test_one_papers_mistake_does_not_stop_another(toy):
    toy.replace("papers/beta/workflow.smk", "rule measure:", "rule measure")
    assert "alpha_measure" in toy.snakemake("--dry-run", "papers/alpha")
    assert "papers/beta/workflow.smk" in toy.snakemake("--dry-run", ok=False)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("/bin/snakemake papers/wpr --cores all", ["wpr"]),
        ("snakemake -n papers/wpr/ papers/bpo/results/small/report.html", ["bpo", "wpr"]),
        ("lib/snakemake/__main__.py papers/wpr", ["wpr"]),
        ("snakemake --cores all --config scale=smoke", []),
        ("shared/publish.py papers/wpr", []),
    ],
)
def test_papers_that_a_command_asks_for(command, expected):
    assert asked_papers(command.split()) == expected
