"""Say what made a file, as a tree: ``python -m shared.explain papers/wpr/results/small/metrics.parquet``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.markup import escape
from rich.tree import Tree

from shared.artifacts import read_record, stored_artifact
from shared.errors import InputError
from shared.provenance import plan

ROOT = Path(__file__).resolve().parent.parent


def explain(path: Annotated[Path, tyro.conf.Positional], /, *, depth: int = 2) -> None:
    """Print which stage made a file, with what code, options, seeds and inputs, where, and how long it took.

    Args:
        path: a result, or an artifact in the store.
        depth: how many steps of inputs to follow.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file")
    artifact = stored_artifact(path)
    if artifact is None or not artifact.record_path.exists():
        raise InputError(f"{path}: not a result of a rule: it has no record")
    records = {
        record["outputs"][name]: record
        for record in _records(artifact.record_path.parent)
        for name in record["outputs"]
    }
    tree = _node(str(path), read_record(artifact.record_path), records, depth)
    if rule := _rule_of(path):
        tree.children.insert(0, Tree(escape(f"rule      {rule}")))
    Console(soft_wrap=True).print(tree)


def _rule_of(path: Path) -> str | None:
    """The rule that makes a result today; None for an artifact that no rule makes any more."""
    parts = path.absolute().relative_to(ROOT).parts if path.absolute().is_relative_to(ROOT) else ()
    if len(parts) < 4 or parts[2] != "results":
        return None
    try:
        jobs = plan([Path(*parts).as_posix()], root=ROOT, scale=parts[3])
    except InputError:
        return None
    return next(job.name for job in jobs if job.is_target)


def _records(store: Path) -> list[dict[str, Any]]:
    return [read_record(path) for path in sorted(store.glob("*_record.json"))]


def _node(label: str, record: dict[str, Any], by_checksum: dict[str, dict[str, Any]], depth: int) -> Tree:
    """One file: what made it, and below it what that was made from."""
    tree = Tree(f"[bold]{escape(label)}[/bold]")
    for line in _facts(record):
        tree.add(escape(line))
    inputs = tree.add("inputs") if record["inputs"] else None
    for paths in record["inputs"].values():
        for path, checksum in paths.items():
            maker = by_checksum.get(checksum)
            if maker is None:
                inputs.add(f"{path}  (source, SHA-256 {checksum[:12]})")
            elif depth > 1:
                inputs.children.append(_node(path, maker, by_checksum, depth - 1))
            else:
                inputs.add(f"{path}  (by {maker['stage']})")
    return tree


def _facts(record: dict[str, Any]) -> list[str]:
    machine = record["machine"]
    where = [machine["system"], f"{machine['cpus']} CPUs", f"Python {machine['python']}", machine.get("gpu")]
    packages = ", ".join(f"{name} {version}" for name, version in record["packages"].items())
    paper = next(iter(record["paths"].values())).split("/")[1:2] if record["paths"] else []
    facts = [
        f"paper     {paper[0]}" if paper else None,
        f"stage     python -m {record['stage']}",
        f"code      {record['code']}",
        f"seed      {record['options']['seed']}" if "seed" in record["options"] else None,
        f"options   {_flat(record['options'])}",
        f"measured  {_flat(record['measurements'])}" if record["measurements"] else None,
        f"run       {record['started']}, {record['wall_seconds']:.1f} s, {record['peak_memory_mib']:.0f} MiB",
        f"machine   {', '.join(part for part in where if part)}" + (f"; {packages}" if packages else ""),
    ]
    return [fact for fact in facts if fact]


def _flat(values: dict[str, Any], prefix: str = "") -> str:
    parts = []
    for name, value in values.items():
        if isinstance(value, dict):
            parts.append(_flat(value, f"{prefix}{name}." if name != "options" else prefix))
        else:
            parts.append(f"{prefix}{name}={value}")
    return " ".join(part for part in parts if part)


def main() -> None:
    try:
        tyro.cli(explain, prog="python -m shared.explain")
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
