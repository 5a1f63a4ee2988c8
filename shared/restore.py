"""Fetch what is needed of a target from the published store, and say what would have to be computed, and why.

``python -m shared.restore papers/wpr`` asks Snakemake for the provenance of every job behind the target. Going from the
target upstream, an artifact that is in the store, here or published, is linked to its place, and nothing that it was
made from is asked for. ``snakemake papers/wpr`` then computes what is left.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from shared.artifacts import StoredArtifact, check_artifact
from shared.errors import InputError
from shared.files import remove
from shared.provenance import PlannedJob, plan
from shared.published import STORE, Published, published_artifacts

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Restoration:
    """What is to be done for a target.

    Attributes:
        local: jobs whose outputs are in the store here.
        fetch: jobs whose outputs are published.
        compute: jobs whose outputs are nowhere, with the reason.
    """

    local: list[PlannedJob] = field(default_factory=list)
    fetch: list[PlannedJob] = field(default_factory=list)
    compute: list[tuple[PlannedJob, str]] = field(default_factory=list)


def restore(
    targets: Annotated[tuple[str, ...], tyro.conf.Positional],
    /,
    *,
    scale: str = "small",
    dry_run: bool = False,
) -> None:
    """Link the artifacts behind targets from the store, fetching those that are published.

    Args:
        targets: files, or papers/<id>; nothing for every paper.
        scale: the scale in force.
        dry_run: only say what would be done.
    """
    jobs = plan(targets, root=ROOT, scale=scale)
    with published_artifacts(ROOT) as published:
        restoration = decide(jobs, published)
        _print_plan(restoration)
        if not dry_run:
            for job in restoration.fetch:
                for path in _damaged(job):
                    remove(path)
            published.pull(
                path.relative_to(ROOT) for job in restoration.fetch for path in job.stored.values() if not path.exists()
            )
    if dry_run:
        return
    for job in jobs:  # upstream first, so that no link is older than what it was made from
        if job in restoration.local or job in restoration.fetch:
            link_outputs(job)
    fetched = [file for job in restoration.fetch for path in job.stored.values() for file in _files(path)]
    print(f"{sum(file.stat().st_size for file in fetched) / 1024:.1f} KiB fetched")
    if restoration.compute:
        command = shlex.join(["snakemake", *targets, "--cores", "all"])
        print(f"the rest is computed by: {command}" + (f" --config scale={scale}" if scale != "small" else ""))


def in_store(artifact: Path) -> Path:
    """Where an artifact is in this repository's own store, relative to it, whichever store Snakemake uses."""
    return STORE / artifact.name


def decide(jobs: Sequence[PlannedJob], published: Published) -> Restoration:
    """Find for every job behind the targets where its outputs come from, going upstream only from what is missing."""
    restoration = Restoration()
    earlier = None
    pending = [index for index, job in enumerate(jobs) if job.is_target]
    seen: set[int] = set()
    while pending:
        index = pending.pop()
        if index in seen:
            continue
        seen.add(index)
        job = jobs[index]
        damaged = _damaged(job)
        if job.stored and not damaged and all(path.exists() for path in job.stored.values()):
            restoration.local.append(job)
            continue
        if job.stored and all(published.holds(in_store(path)) for path in job.stored.values()):
            restoration.fetch.append(job)
            continue
        if job.outputs:
            if earlier is None:
                earlier = _latest_records(published)
            reason = f"{damaged[0]} is damaged" if damaged else why_computed(job, earlier)
            restoration.compute.append((job, reason))
        pending.extend(job.upstream)
    restoration.compute.sort(key=lambda item: jobs.index(item[0]))
    return restoration


def _damaged(job: PlannedJob) -> list[Path]:
    """Artifacts of a job that are in the store here but are not what its record says."""
    damaged = []
    record = job.stored.get("record")
    for name, path in job.stored.items():
        if record is not None and record.exists() and path.exists():
            try:
                check_artifact(StoredArtifact(path, name, record))
            except InputError:
                damaged.append(path)
    return damaged


def _latest_records(published: Published) -> dict[str, dict[str, Any]]:
    """The newest record of each output path, of those here and those published."""
    here = [json.loads(path.read_text(encoding="utf-8")) for path in (ROOT / STORE).glob("*_record.json")]
    latest: dict[str, dict[str, Any]] = {}
    for record in sorted([*published.records(), *here], key=lambda record: record["started"]):
        for path in record["paths"].values():
            latest[path] = record
    return latest


def why_computed(job: PlannedJob, latest: dict[str, dict[str, Any]]) -> str:
    """Which of code, params or inputs differs from when this job's output was last made."""
    records = [latest[str(path)] for path in job.outputs.values() if str(path) in latest]
    if not records:
        return "never computed"
    record, reasons = records[0], []
    if record["code"] != job.params.get("code"):
        reasons.append(f"new code in {record['stage']} or what it imports")
    before, now = _flags(record["arguments"]), _flags(shlex.split(str(job.params.get("arguments", ""))))
    for flag, value in now.items():
        if before.get(flag) != value:
            reasons.append(f"new params: {flag} {before.get(flag, '(not given)')} -> {value}")
    return "; ".join(reasons) or "new inputs"


def _flags(arguments: Iterable[str]) -> dict[str, str]:
    """Command-line arguments as flag -> values."""
    flags: dict[str, list[str]] = {}
    values: list[str] = []
    for argument in arguments:
        if argument.startswith("--"):
            values = flags.setdefault(argument, [])
        else:
            values.append(argument)
    return {flag: " ".join(values) for flag, values in flags.items()}


def link_outputs(job: PlannedJob) -> None:
    """Link a job's outputs to their artifacts, as Snakemake does; a damaged artifact is refused.

    Raises:
        InputError: an artifact does not have the checksum in its record.
    """
    for name, artifact in job.stored.items():
        stored = artifact if artifact.exists() else ROOT / in_store(artifact)
        check_artifact(StoredArtifact(stored, name, stored.with_name(job.stored["record"].name)))
        output = ROOT / job.outputs[name]
        if output.is_symlink() and output.resolve() == stored.resolve():
            continue
        remove(output)
        output.parent.mkdir(parents=True, exist_ok=True)
        if stored.is_dir():
            output.mkdir()
            for entry in sorted(stored.iterdir()):
                (output / entry.name).symlink_to(entry)
            (output / ".snakemake_timestamp").touch()
        else:
            output.symlink_to(stored)
            if os.utime in os.supports_follow_symlinks:
                os.utime(output, follow_symlinks=False)


def _files(artifact: Path) -> list[Path]:
    """The files of an artifact, in the store that Snakemake uses or in this repository's own."""
    path = artifact if artifact.exists() else ROOT / in_store(artifact)
    return [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]


def _print_plan(restoration: Restoration) -> None:
    for job in restoration.fetch:
        print(f"from the store   {job.name}: {', '.join(map(str, job.outputs.values()))}")
    for job, reason in restoration.compute:
        print(f"to be computed   {job.name}: {reason}")
    print(
        f"{len(restoration.local)} jobs already here, {len(restoration.fetch)} from the store, "
        f"{len(restoration.compute)} to be computed"
    )


def main() -> None:
    try:
        tyro.cli(restore, prog="python -m shared.restore")
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
