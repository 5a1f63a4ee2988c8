"""Safe text embedding guidance: base models -> unlearned models -> strengths -> samples -> tables -> report."""

from papers.stg.options import Scale
from workflows.paper import open_paper

paper = open_paper("stg", config["scale"], Scale)
settings = paper.settings
R, L = paper.results, paper.logs

FIGURES = settings.figures
MODELS = list(settings.unlearn or {})
TUNED = [group for group in settings.groups if settings.grid_of(group)]
JOBS = [(group, seed) for group in settings.groups for seed in settings.seeds]
RECORDS = [
    *[f"{R}/records/unlearn-{model}.json" for model in MODELS],
    *[f"{R}/records/tune-{group}.json" for group in TUNED],
    *[f"{R}/records/sample-{group}-seed{seed}.json" for group, seed in JOBS],
    f"{R}/records/study_toy.json",
]
SAMPLED = {
    "values": f"{R}/samples/{{group}}-seed{{seed}}.parquet",
    "totals": f"{R}/samples/{{group}}-seed{{seed}}-totals.parquet",
    "traces": f"{R}/samples/{{group}}-seed{{seed}}-traces.parquet",
    "pictures": f"{R}/samples/{{group}}-seed{{seed}}-pictures.safetensors",
}
LAUNCH = paper.launcher(settings.processes)
RESOURCES = paper.resources(settings.processes)


def sampled(name):
    return [SAMPLED[name].format(group=group, seed=seed) for group, seed in JOBS]


def runs_of(wildcards):
    return " ".join(settings.runs_of(wildcards.group))


def grid_of(wildcards):
    return " ".join(settings.grid_of(wildcards.group))


wildcard_constraints:
    seed=r"\d+",
    group="|".join(settings.groups),
    model="|".join(MODELS) or "none",


if settings.prompts:

    include: "../../workflows/t2i.smk"

    BASE = {
        name: T2I[key].format(seed=settings.system_seed)
        for name, key in (
            ("pipeline", "pipeline"),
            ("detector", "guidance_detector"),
            ("evaluator", "evaluator"),
            ("judge_detector", "evaluator_detector"),
        )
    }
    BASE_ARGUMENTS = (
        " --pipeline {input.pipeline} --detector {input.detector} --evaluator {input.evaluator}"
        " --judge-detector {input.judge_detector}"
    )

    rule unlearn:
        message: "Unlearning by {wildcards.model}"
        input:
            pipeline=BASE["pipeline"],
        output:
            adapter=f"{R}/unlearned/{{model}}.safetensors",
            curve=f"{R}/unlearned/{{model}}-curve.parquet",
            record=f"{R}/records/unlearn-{{model}}.json",
        params:
            code=paper.stage("shared.t2i.stages.unlearn")["code"],
            arguments=lambda wildcards: paper.stage(
                "shared.t2i.stages.unlearn", settings.unlearn[wildcards.model], seed=str(settings.system_seed)
            )["arguments"],
            model="{model}",
            state=f"{R}/state/unlearn-{{model}}",
        log:
            f"{L}/unlearn-{{model}}.log",
        cache: True
        shell:
            "python -m shared.t2i.stages.unlearn {params.arguments} --pipeline {input.pipeline} --adapter {output.adapter}"
            " --curve {output.curve} --state {params.state} --record {output.record} &> {log}"

    rule tune:
        message: "Trying strengths of {wildcards.group}"
        input:
            **BASE,
        output:
            development=f"{R}/tuning/{{group}}.parquet",
            record=f"{R}/records/tune-{{group}}.json",
        params:
            **paper.stage(
                "papers.stg.tune",
                settings.defence,
                seed=str(settings.tuning_seed),
                count=str(settings.prompts.dev_prompts),
            ),
            runs=grid_of,
            group="{group}",
        log:
            f"{L}/tune-{{group}}.log",
        cache: True
        shell:
            "python -m papers.stg.tune {params.arguments} --runs {params.runs}" + BASE_ARGUMENTS +
            " --development {output.development} --record {output.record} &> {log}"

    rule sample:
        message: "Sampling {wildcards.group}, seed {wildcards.seed}"
        input:
            **BASE,
            unlearned=[f"{R}/unlearned/{model}.safetensors" for model in MODELS],
        output:
            **SAMPLED,
            record=f"{R}/records/sample-{{group}}-seed{{seed}}.json",
        params:
            code=paper.stage("papers.stg.sample")["code"],
            arguments=lambda wildcards: paper.stage(
                "papers.stg.sample",
                settings.defence_of(int(wildcards.seed)),
                seed=wildcards.seed,
                count=str(settings.prompts.test_prompts),
            )["arguments"],
            seed="{seed}",
            runs=runs_of,
            models=" ".join(MODELS),
            group="{group}",
        log:
            f"{L}/sample-{{group}}-seed{{seed}}.log",
        cache: True
        shell:
            "python -m papers.stg.sample {params.arguments} --runs {params.runs}" + BASE_ARGUMENTS +
            " --unlearned {input.unlearned} --models {params.models} --values {output.values} --totals {output.totals}"
            " --traces {output.traces} --pictures {output.pictures} --record {output.record} &> {log}"

else:

    rule tune_hub:
        message: "Trying strengths of {wildcards.group}"
        output:
            development=f"{R}/tuning/{{group}}.parquet",
            record=f"{R}/records/tune-{{group}}.json",
        params:
            **paper.stage("papers.stg.tune_hub", settings.defence, settings.hub, seed=str(settings.tuning_seed)),
            runs=grid_of,
            group="{group}",
            launch=LAUNCH,
        log:
            f"{L}/tune-{{group}}.log",
        resources:
            **RESOURCES,
        cache: True
        shell:
            "{params.launch} papers.stg.tune_hub {params.arguments} --runs {params.runs}"
            " --development {output.development} --record {output.record} &> {log}"

    rule sample_hub:
        message: "Sampling {wildcards.group}, seed {wildcards.seed}"
        output:
            **SAMPLED,
            record=f"{R}/records/sample-{{group}}-seed{{seed}}.json",
        params:
            **paper.stage("papers.stg.sample_hub", settings.defence, settings.hub, seed="{seed}"),
            runs=runs_of,
            group="{group}",
            launch=LAUNCH,
        log:
            f"{L}/sample-{{group}}-seed{{seed}}.log",
        resources:
            **RESOURCES,
        cache: True
        shell:
            "{params.launch} papers.stg.sample_hub {params.arguments} --runs {params.runs} --values {output.values}"
            " --totals {output.totals} --traces {output.traces} --pictures {output.pictures}"
            " --record {output.record} &> {log}"


rule select:
    message: "Selecting strengths"
    input:
        development=[f"{R}/tuning/{group}.parquet" for group in TUNED],
    output:
        selection=f"{R}/tuning/selection.json",
        grid=f"{R}/tuning/grid.parquet",
        record=f"{R}/records/select.json",
    params:
        **paper.stage("papers.stg.select"),
        runs=" ".join(settings.grid_runs),
    log:
        f"{L}/select.log",
    cache: True
    shell:
        "python -m papers.stg.select {params.arguments} --runs {params.runs} --development {input.development}"
        " --selection {output.selection} --grid {output.grid} --record {output.record} &> {log}"


rule study_toy:
    message: "Sampling the mixture in the plane"
    output:
        quality=f"{R}/toy/quality.parquet",
        points=f"{R}/toy/points.parquet",
        record=f"{R}/records/study_toy.json",
    params:
        **paper.stage("papers.stg.study_toy", settings.toy),
        seeds=" ".join(map(str, settings.seeds)),
    log:
        f"{L}/study_toy.log",
    cache: True
    shell:
        "python -m papers.stg.study_toy {params.arguments} --seeds {params.seeds} --quality {output.quality}"
        " --points {output.points} --record {output.record} &> {log}"


rule evaluate:
    message: "Collecting all measurements"
    input:
        values=sampled("values"),
        totals=sampled("totals"),
        traces=sampled("traces"),
        selection=f"{R}/tuning/selection.json",
        toy=f"{R}/toy/quality.parquet",
    output:
        metrics=f"{R}/metrics.parquet",
        units=f"{R}/units.parquet",
        trace=f"{R}/trace.parquet",
        record=f"{R}/records/evaluate.json",
    params:
        **paper.stage("papers.stg.evaluate", paper=paper.id, scale=paper.scale),
        seeds=" ".join(str(seed) for _, seed in JOBS),
    log:
        f"{L}/evaluate.log",
    cache: True
    shell:
        "python -m papers.stg.evaluate {params.arguments} --values {input.values} --totals {input.totals}"
        " --traces {input.traces} --seeds {params.seeds} --selection {input.selection} --toy {input.toy}"
        " --metrics {output.metrics} --units {output.units} --trace {output.trace} --record {output.record} &> {log}"


rule figure:
    message: "Drawing {wildcards.figure}"
    input:
        metrics=f"{R}/metrics.parquet",
        grid=f"{R}/tuning/grid.parquet",
        selection=f"{R}/tuning/selection.json",
        trace=f"{R}/trace.parquet",
        points=f"{R}/toy/points.parquet",
        pictures=[
            SAMPLED["pictures"].format(group=group, seed=settings.seeds[0]) for group in settings.groups
        ],
    output:
        png=f"{R}/figures/{{figure}}.png",
        pdf=f"{R}/figures/{{figure}}.pdf",
        record=f"{R}/records/figure-{{figure}}.json",
    params:
        **paper.stage(
            "papers.stg.figures",
            figure="{figure}",
            fraction=f"{settings.defence.fraction:g}",
            threshold=f"{settings.defence.threshold:g}",
        ),
    log:
        f"{L}/figure-{{figure}}.log",
    cache: True
    shell:
        "python -m papers.stg.figures {params.arguments} --metrics {input.metrics} --grid {input.grid}"
        " --selection {input.selection} --trace {input.trace} --points {input.points} --pictures {input.pictures}"
        " --png {output.png} --pdf {output.pdf} --record {output.record} &> {log}"


include: "../../workflows/results.smk"
