"""The plan of a target, as Snakemake sees it: every job behind it, and where in the store its outputs belong.

Snakemake's own classes build the DAG and compute the provenance hashes, so that what is said here is what Snakemake
does. Neither is a public interface; the version is pinned in pyproject.toml, and a test guards this module.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from snakemake.api import SnakemakeApi
from snakemake.settings.types import (
    ConfigSettings,
    DAGSettings,
    OutputSettings,
    Quietness,
    ResourceSettings,
    WorkflowSettings,
)

from shared.errors import InputError


@dataclass(frozen=True)
class PlannedJob:
    """One job of a plan.

    Attributes:
        name: the rule with its wildcards, for people.
        rule: the rule's name (``wpr_train``).
        outputs: output path, relative to the repository, by output name.
        stored: path in the store, by output name; empty for a rule that is not cached.
        params: the rule's named params.
        wildcards: values of the rule's wildcards, by name.
        upstream: the jobs that make its inputs, as indices into the plan.
        is_target: whether the plan was asked for this very job (or its outputs).
    """

    name: str
    rule: str
    outputs: dict[str, Path]
    stored: dict[str, Path]
    params: dict[str, object]
    wildcards: dict[str, str]
    upstream: tuple[int, ...]
    is_target: bool


def plan(targets: Sequence[str], *, root: Path, scale: str = "small") -> list[PlannedJob]:
    """Every job behind the targets, each after the jobs that it depends on.

    Args:
        targets: what one would give to ``snakemake``: files, or ``papers/<id>``; nothing for every paper.
        root: the repository.
        scale: the scale in force.

    Raises:
        InputError: Snakemake cannot plan a target; the message is Snakemake's.
    """
    with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
        logging.getLogger("snakemake.logging").setLevel(logging.ERROR)
        workflow_api = api.workflow(
            resource_settings=ResourceSettings(cores=1),
            config_settings=ConfigSettings(config={"scale": scale}),
            workflow_settings=WorkflowSettings(cache=frozenset()),
            snakefile=root / "Snakefile",
            workdir=root,
        )
        dag_api = workflow_api.dag(dag_settings=DAGSettings(targets=frozenset(targets)))
        workflow = dag_api.workflow_api._workflow
        try:
            workflow._prepare_dag(forceall=False, ignore_incomplete=True, lock_warn_only=True, nolock=True)
            workflow._build_dag()
            return _planned(workflow)
        except SystemExit as error:
            raise InputError(str(error).removeprefix("error: ")) from None
        except Exception as error:
            if type(error).__module__.partition(".")[0] != "snakemake":
                raise
            raise InputError(" ".join(str(error).split())) from None


def _planned(workflow) -> list[PlannedJob]:
    dag = workflow.dag
    jobs = [job for level in dag.toposorted() for job in sorted(level, key=lambda job: str(job.output) + job.name)]
    position = {job: index for index, job in enumerate(jobs)}
    planned = []
    for job in jobs:
        stored: dict[str, Path] = {}
        outputs = {name: Path(str(file)) for name, file in job.output.items() if isinstance(file, str)}
        if job.rule.cache and job.rule.cache.output:
            pairs = workflow.async_run(workflow.output_file_cache.get_outputfiles_and_cachefiles(job))
            by_path = {str(output): stored_path for output, stored_path in pairs}
            stored = {name: by_path[str(path)] for name, path in outputs.items()}
        chosen = ", ".join(f"{name}={value}" for name, value in sorted(job.wildcards.items()))
        planned.append(
            PlannedJob(
                name=f"{job.rule.name}" + (f" [{chosen}]" if chosen else ""),
                rule=job.rule.name,
                outputs=outputs,
                stored=stored,
                params=dict(job.params.items()),
                wildcards={name: str(value) for name, value in sorted(job.wildcards.items())},
                upstream=tuple(sorted(position[dependency] for dependency in dag.dependencies[job])),
                is_target=job in dag.targetjobs,
            )
        )
    return planned
