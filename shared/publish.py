"""Publish results: ``python -m shared.publish papers/wpr`` computes what is missing and puts the store into the remote.

What is published was computed from the committed code, by construction: the tree must be clean; an artifact's address
is a hash of the code that made it; everything that no job of the committed workflows addresses is deleted before the
store is added to DVC; and every artifact must have the checksum that its job recorded.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import tyro

from shared.artifacts import read_record
from shared.claims import read_paper, read_verdicts
from shared.errors import InputError
from shared.files import atomic_output, remove
from shared.pages import read_captions
from shared.provenance import plan
from shared.published import STORE, published_artifacts
from shared.report import replace_between_markers, verdict_table_markdown
from shared.restore import in_store
from shared.verify import damaged_artifacts

ROOT = Path(__file__).resolve().parent.parent
SCALE = "small"


def publish(targets: Annotated[tuple[str, ...], tyro.conf.Positional] = (), /) -> None:
    """Compute targets at the small scale from the committed code, and push the store to the default DVC remote.

    Args:
        targets: papers/<id>; nothing for every paper.
    """
    if changes := _output("git", "status", "--porcelain"):
        raise InputError(f"the tree is not clean; commit or remove first:\n{changes}")
    fetch_published()
    prune()
    _run("snakemake", *targets, "--cores", "all")
    if foreign_artifacts():
        raise InputError("the code was changed while it ran; publish again")
    drop_unfinished()
    if problems := list(damaged_artifacts(ROOT / STORE)):
        raise InputError("damaged artifacts are not published:\n" + "\n".join(problems))
    _run(sys.executable, "-m", "dvc", "add", "--quiet", "data")
    _run(sys.executable, "-m", "dvc", "push", "--quiet")
    # Git keeps earlier versions of the embedded remote; the folder itself holds this one.
    _run(sys.executable, "-m", "dvc", "gc", "--workspace", "--cloud", "--force", "--quiet")
    for readme in sorted(ROOT.glob("papers/*/README.md")):
        refresh_readme(readme)
    refresh_list(ROOT / "README.md")
    size = sum(path.stat().st_size for path in (ROOT / STORE).rglob("*") if path.is_file())
    print(f"published: {size / 2**20:.1f} MiB in the store")
    print(_output("git", "status", "--short") or "nothing has changed since the last time")


def fetch_published() -> None:
    """Bring everything published that is still addressed: what was made from what can only be told of whole chains."""
    with published_artifacts(ROOT) as published:
        addressed = {in_store(path) for job in plan([], root=ROOT, scale=SCALE) for path in job.stored.values()}
        published.pull(path for path in sorted(addressed) if published.holds(path) and not (ROOT / path).exists())


def foreign_artifacts() -> list[Path]:
    """Artifacts that are not results of the code as it is, at the small scale.

    Those are artifacts that no job of any paper addresses, those that other code than their job's has made (it changed
    while it ran), and all that was made from such.
    """
    jobs = plan([], root=ROOT, scale=SCALE)
    genuine: list[bool] = []
    for job in jobs:  # upstream first
        record = job.stored.get("record")
        own = record is None or (record.exists() and read_record(record)["code"] == job.params["code"])
        genuine.append(own and all(genuine[index] for index in job.upstream))
    kept = {path.name for job, good in zip(jobs, genuine, strict=True) if good for path in job.stored.values()}
    return [path for path in sorted((ROOT / STORE).glob("*")) if path.name not in kept]


def prune() -> None:
    """Delete the artifacts that are not results of the code as it is."""
    for path in foreign_artifacts():
        print(f"pruned {path.relative_to(ROOT)}")
        remove(path)


def drop_unfinished() -> None:
    """Delete the artifacts of papers that have no report in the store: what is published is whole."""
    jobs = plan([], root=ROOT, scale=SCALE)
    unfinished = {
        job.rule.removesuffix("report")
        for job in jobs
        if job.rule.endswith("_report") and not all(path.exists() for path in job.stored.values())
    }
    for job in jobs:
        if job.rule.startswith(tuple(unfinished)):
            for path in job.stored.values():
                remove(path)


def refresh_readme(readme: Path) -> None:
    """Put a paper's verdicts and its first figure between the markers of its README, if they have been computed."""
    paper = readme.parent
    verdicts = paper / "results" / SCALE / "claims.json"
    if not verdicts.exists():
        return
    name, caption = next(iter(read_captions(paper / "figures.yaml").items()))
    (paper / "figures").mkdir(exist_ok=True)
    with atomic_output(paper / "figures" / f"{name}.png") as partial:
        shutil.copyfile(paper / "results" / SCALE / "figures" / f"{name}.png", partial)
    text = readme.read_text(encoding="utf-8")
    text = replace_between_markers(text, "verdicts", verdict_table_markdown(read_verdicts(verdicts).claims))
    text = replace_between_markers(text, "figure", f"![{caption.alt}](figures/{name}.png)\n\n*{caption.caption}*")
    with atomic_output(readme) as partial:
        partial.write_text(text, encoding="utf-8")


def refresh_list(readme: Path) -> None:
    """Put all papers, with how many of their claims got which verdict, between the markers of the main README."""
    rows = ["| folder | paper | verdicts on its claims |", "| --- | --- | --- |"]
    for path in sorted(ROOT.glob("papers/*/workflow.smk")):
        paper = read_paper(path.with_name("paper.yaml"))
        verdicts = path.with_name("results") / SCALE / "claims.json"
        counts = read_verdicts(verdicts).counts if verdicts.exists() else {}
        found = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count) or "not published"
        rows.append(f"| [`papers/{paper.id}`](papers/{paper.id}/README.md) | {paper.title}, {paper.venue} | {found} |")
    text = replace_between_markers(readme.read_text(encoding="utf-8"), "papers", "\n".join(rows))
    with atomic_output(readme) as partial:
        partial.write_text(text, encoding="utf-8")


def _run(*command: str) -> None:
    if subprocess.run(command, cwd=ROOT, check=False).returncode:
        raise InputError(f"{command[0]} failed; nothing was published")


def _output(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.rstrip()


def main() -> None:
    try:
        tyro.cli(publish, prog="python -m shared.publish")
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
