"""Artifacts that travel: publish, restore on a bare clone, verify, explain, and two pipelines on one store."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

R = "papers/alpha/results/small"
FIGURE = f"{R}/figures/values.png"


@pytest.fixture
def published(toy):
    """Paper alpha, computed, published and committed."""
    toy.module("shared.publish", "papers/alpha")
    toy.commit("Publish alpha")
    return toy


def test_a_bare_clone_restores_everything_and_computes_nothing(published):
    clone = published.clone("clone")
    clone.run("dvc", "pull", "--quiet")
    assert "0 jobs computed, 7 restored" in clone.snakemake("papers/alpha")
    for name in ("metrics.parquet", "figures/values.png", "report.html"):
        assert (clone.root / R / name).read_bytes() == (published.root / R / name).read_bytes()


def test_without_the_store_everything_is_computed(published):
    clone = published.clone("clone")
    assert "7 jobs computed, 0 restored" in clone.snakemake("papers/alpha")


def test_a_figure_is_redrawn_from_the_least(published):
    clone = published.clone("clone")
    clone.replace("papers/alpha/figures.py", 'TITLE = "gold"', 'TITLE = "reward"')
    plan = clone.module("shared.restore", "--dry-run", FIGURE)
    assert not list((clone.root / "data/artifacts").iterdir())
    assert "to be computed   alpha_figure [figure=values]: new code in papers.alpha.figures" in plan
    assert "from the store   alpha_measure" in plan and "alpha_draw" not in plan
    clone.module("shared.restore", FIGURE)
    assert not (clone.root / R / "numbers").exists()
    output = clone.snakemake(FIGURE)
    assert "1 jobs computed, 0 restored" in output and "alpha_draw" not in output
    assert (clone.root / FIGURE).read_bytes() != (published.root / FIGURE).read_bytes()


def test_restore_says_what_is_new(published):
    clone = published.clone("clone")
    clone.replace("papers/alpha/config.yaml", "size: 4", "size: 5")
    plan = clone.module("shared.restore", "--dry-run", "papers/alpha")
    assert "alpha_draw [seed=0]: new params: --size 4 -> 5" in plan
    assert "alpha_measure: new inputs" in plan
    assert "0 jobs already here, 0 from the store, 7 to be computed" in plan
    assert "beta_draw [seed=0]: never computed" in clone.module("shared.restore", "--dry-run", "papers/beta")
    problem = clone.module("shared.restore", "papers/gamma", ok=False)
    assert problem.strip().endswith("no such paper; there are: alpha, beta")


def test_a_restored_paper_is_up_to_date(published):
    clone = published.clone("clone")
    output = clone.module("shared.restore", "papers/alpha")
    assert "0 to be computed" in output and (clone.root / R / "report.html").exists()
    assert "Nothing to be done" in clone.snakemake("-n", "papers/alpha")


def test_publishing_twice_changes_nothing(published):
    output = published.module("shared.publish", "papers/alpha")
    assert "nothing has changed since the last time" in output
    readme = (published.root / "papers/alpha/README.md").read_text()
    listed = (published.root / "README.md").read_text()
    assert "| A toy paper, Nowhere | 1 supported |" in listed and "| not published |" in listed
    assert "New is larger than old | ✓ supported" in readme and "figures/values.png" in readme


def test_a_paper_without_a_report_is_not_published(toy):
    toy.snakemake("papers/beta/results/small/metrics.parquet")
    before = set((toy.root / "data/artifacts").iterdir())
    toy.module("shared.publish", "papers/alpha")
    assert before and not before & set((toy.root / "data/artifacts").iterdir())


def test_publish_refuses_what_is_not_committed(toy):
    toy.replace("papers/alpha/draw.py", "random.random()", "random.random() + 1")
    output = toy.module("shared.publish", "papers/alpha", ok=False)
    assert "the tree is not clean" in output and "papers/alpha/draw.py" in output
    assert not (toy.root / "data.dvc").exists()


def test_publish_throws_away_what_other_code_has_made(toy):
    toy.replace("papers/alpha/draw.py", "random.random()", "random.random() + 1")
    toy.snakemake("papers/alpha")
    toy.replace("papers/alpha/draw.py", "random.random() + 1", "random.random()")
    record = json.loads((toy.root / R / "records/draw-seed0.json").read_text())
    assert "pruned data/artifacts/" in toy.module("shared.publish", "papers/alpha")
    assert json.loads((toy.root / R / "records/draw-seed0.json").read_text())["code"] != record["code"]


def test_publish_is_not_deceived_by_code_that_changed_while_it_ran(published):
    record = (published.root / R / "records/draw-seed0.json").resolve()
    content = json.loads(record.read_text()) | {"code": "0" * 20}
    record.write_text(json.dumps(content))
    assert f"pruned data/artifacts/{record.name}" in published.module("shared.publish", "papers/alpha")
    assert json.loads((published.root / R / "records/draw-seed0.json").read_text())["code"] != "0" * 20


def test_verify_names_everything_that_is_damaged(published):
    assert "0 problems" in published.module("shared.verify")
    numbers = [(published.root / R / f"numbers/seed{seed}.txt").resolve() for seed in range(3)]
    first, second = numbers[0].read_text(), numbers[1].read_text()
    numbers[0].write_text(second)
    numbers[1].write_text(first)
    numbers[2].write_text(numbers[2].read_text()[:-3])
    remote = next((published.root / "artifact-store/files/md5").glob("*/*"))
    remote.chmod(0o644)
    remote.write_bytes(b"other")
    result = published.run(sys.executable, "-m", "shared.verify", ok=False)
    assert result.returncode == 1 and "4 problems" in result.stdout
    for path in (*numbers, remote):
        assert path.name in result.stdout


def test_restore_replaces_what_is_damaged(published):
    damaged = (published.root / R / "numbers/seed0.txt").resolve()
    damaged.write_text("0\n")
    published.replace("papers/alpha/measure.py", '("new", 1.0)', '("new", 2.0)')
    published.module("shared.restore", "papers/alpha")
    assert damaged.read_text() != "0\n"
    assert "5 jobs computed" not in published.snakemake("papers/alpha")


def test_a_damaged_remote_is_refused(published):
    clone = published.clone("clone")
    for path in (clone.root / "artifact-store/files/md5").glob("*/*"):
        if not path.name.endswith(".dir"):
            path.chmod(0o644)
            path.write_bytes(path.read_bytes()[:-1] + b"!")
    output = clone.module("shared.restore", FIGURE, ok=False)
    assert "error: the remote could not deliver every artifact" in output
    assert not (clone.root / FIGURE).exists()


def test_explain_tells_how_a_file_was_made(published):
    output = published.module("shared.explain", f"{R}/metrics.parquet")
    for fact in ("alpha_measure", "papers.alpha.measure", "papers.alpha.draw", "seed      1", "size=4", "Python 3."):
        assert fact in output
    drawn = published.module("shared.explain", f"{R}/numbers/seed2.txt")
    assert "rule      alpha_draw [seed=2]" in drawn and "seed      2" in drawn
    assert "not a result of a rule" in published.module("shared.explain", "Snakefile", ok=False)


def test_two_pipelines_share_one_store_at_the_same_time(toy):
    clone = toy.clone("clone")
    store = {"SNAKEMAKE_OUTPUT_CACHE": str(toy.root.parent / "store")}
    processes = [
        subprocess.Popen(
            ["snakemake", "--cores", "2", "papers/alpha"],
            cwd=each.root,
            env=each.environment | store,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for each in (toy, clone)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    for name in ("metrics.parquet", "units.parquet", "figures/values.png"):
        assert (toy.root / R / name).read_bytes() == (clone.root / R / name).read_bytes()
    third = toy.clone("third")
    assert "0 jobs computed, 7 restored" in third.snakemake("papers/alpha", **store)
    code = "from pathlib import Path; from shared.verify import damaged_artifacts; import os; "
    code += "print(list(damaged_artifacts(Path(os.environ['SNAKEMAKE_OUTPUT_CACHE']))))"
    assert third.run(sys.executable, "-c", code, **store).stdout.strip() == "[]"
