"""DBAE: images -> methods of every data set, trained and measured -> tables -> figures -> report."""

from papers.dbae.options import Scale
from workflows.paper import open_paper

paper = open_paper("dbae", config["scale"], Scale)
settings = paper.settings
R, L = paper.results, paper.logs

LAUNCH = paper.launcher(settings.processes)
RESOURCES = paper.resources(settings.processes)
FIGURES = settings.figures
JOBS = [
    f"{setting}-{family}-seed{seed}"
    for setting, suite in settings.suites.items()
    for family in suite.families
    for seed in settings.seeds
]
FIRST_SETTING, FIRST_SUITE = next(iter(settings.suites.items()))
PICTURED = [f"{FIRST_SETTING}-{family}-seed{settings.seeds[0]}" for family in FIRST_SUITE.families]
RECORDS = [f"{R}/records/train-{job}.json" for job in JOBS]


def suite_of(wildcards):
    return settings.suites[wildcards.setting]


def of_jobs(name):
    return [f"{R}/runs/{job}/{name}.parquet" for job in JOBS]


wildcard_constraints:
    seed=r"\d+",
    setting="|".join(settings.suites),
    family="|".join({name for suite in settings.suites.values() for name in suite.families}),


rule prepare:
    message: "Reading the images of {wildcards.setting}"
    output:
        images=f"{R}/images/{{setting}}.safetensors",
        record=f"{R}/records/prepare-{{setting}}.json",
    params:
        code=paper.stage("papers.dbae.prepare")["code"],
        arguments=lambda wildcards: paper.stage("papers.dbae.prepare", suite_of(wildcards).data)["arguments"],
        setting="{setting}",
    log:
        f"{L}/prepare-{{setting}}.log",
    cache: True
    shell:
        "python -m papers.dbae.prepare {params.arguments} --images {output.images} --record {output.record} &> {log}"


rule train:
    message: "Training {wildcards.family} on {wildcards.setting}, seed {wildcards.seed}"
    input:
        pixels=lambda wildcards: (
            [] if suite_of(wildcards).data.kind == "sprites" else [f"{R}/images/{wildcards.setting}.safetensors"]
        ),
    output:
        images=f"{R}/runs/{{setting}}-{{family}}-seed{{seed}}/images.parquet",
        scores=f"{R}/runs/{{setting}}-{{family}}-seed{{seed}}/scores.parquet",
        curves=f"{R}/runs/{{setting}}-{{family}}-seed{{seed}}/curves.parquet",
        steps=f"{R}/runs/{{setting}}-{{family}}-seed{{seed}}/steps.parquet",
        losses=f"{R}/runs/{{setting}}-{{family}}-seed{{seed}}/losses.parquet",
        pictures=f"{R}/runs/{{setting}}-{{family}}-seed{{seed}}/pictures.safetensors",
        models=directory(f"{R}/runs/{{setting}}-{{family}}-seed{{seed}}/models"),
        record=f"{R}/records/train-{{setting}}-{{family}}-seed{{seed}}.json",
    params:
        code=paper.stage("papers.dbae.train")["code"],
        arguments=lambda wildcards: paper.stage(
            "papers.dbae.train",
            suite_of(wildcards).data,
            suite_of(wildcards).network,
            suite_of(wildcards).method,
            suite_of(wildcards).fit,
            suite_of(wildcards).measure,
            seed=wildcards.seed,
            setting=wildcards.setting,
        )["arguments"],
        names=lambda wildcards: " ".join(suite_of(wildcards).families[wildcards.family]),
        saved=lambda wildcards: " ".join(suite_of(wildcards).saved),
        family="{family}",
        launch=LAUNCH,
        state=f"{R}/state/train-{{setting}}-{{family}}-seed{{seed}}",
    log:
        f"{L}/train-{{setting}}-{{family}}-seed{{seed}}.log",
    resources:
        **RESOURCES,
    cache: True
    shell:
        "{params.launch} papers.dbae.train {params.arguments} --names {params.names} --saved {params.saved}"
        " --pixels {input.pixels} --images {output.images} --scores {output.scores} --curves {output.curves}"
        " --steps {output.steps} --losses {output.losses} --pictures {output.pictures} --models {output.models}"
        " --state {params.state} --record {output.record} &> {log}"


rule evaluate:
    message: "Collecting all measurements"
    input:
        **{name: of_jobs(name) for name in ("images", "scores", "curves", "steps")},
        records=RECORDS,
    output:
        metrics=f"{R}/metrics.parquet",
        units=f"{R}/units.parquet",
        learning=f"{R}/learning.parquet",
        evaluations=f"{R}/evaluations.parquet",
        record=f"{R}/records/evaluate.json",
    params:
        **paper.stage("papers.dbae.evaluate", paper=paper.id, scale=paper.scale),
    log:
        f"{L}/evaluate.log",
    cache: True
    shell:
        "python -m papers.dbae.evaluate {params.arguments} --images {input.images} --scores {input.scores}"
        " --curves {input.curves} --steps {input.steps} --records {input.records} --metrics {output.metrics}"
        " --units {output.units} --learning {output.learning} --evaluations {output.evaluations}"
        " --record {output.record} &> {log}"


rule figure:
    message: "Drawing {wildcards.figure}"
    input:
        metrics=f"{R}/metrics.parquet",
        learning=f"{R}/learning.parquet",
        evaluations=f"{R}/evaluations.parquet",
        pictures=[f"{R}/runs/{job}/pictures.safetensors" for job in PICTURED],
    output:
        png=f"{R}/figures/{{figure}}.png",
        pdf=f"{R}/figures/{{figure}}.pdf",
        record=f"{R}/records/figure-{{figure}}.json",
    params:
        **paper.stage("papers.dbae.figures", figure="{figure}"),
    log:
        f"{L}/figure-{{figure}}.log",
    cache: True
    shell:
        "python -m papers.dbae.figures {params.arguments} --metrics {input.metrics} --learning {input.learning}"
        " --evaluations {input.evaluations} --pictures {input.pictures}"
        " --png {output.png} --pdf {output.pdf} --record {output.record} &> {log}"


include: "../../workflows/results.smk"
