"""UDIM: images -> hyperparameters -> networks of every suite, measured -> slices, tables -> report."""

from papers.udim.options import Scale
from workflows.paper import open_paper

paper = open_paper("udim", config["scale"], Scale)
settings = paper.settings
R, L = paper.results, paper.logs

LAUNCH = paper.launcher(settings.processes)
RESOURCES = paper.resources(settings.processes)
FIGURES = settings.figures
TUNING = [f"{family}-seed{settings.tuning_seed}" for family in settings.tuning.candidates]
JOBS = [
    f"{setting}-{family}-seed{seed}"
    for setting, suite in settings.suites.items()
    for family in suite.families
    for seed in settings.seeds
]
RECORDS = [
    *[f"{R}/records/tune-{job}.json" for job in TUNING],
    *[f"{R}/records/train-{job}.json" for job in JOBS],
]
TABLES = ("runs", "accuracies", "per_image", "landscape", "curves")
WRITTEN = " ".join(f"--{name.replace('_', '-')} {{output.{name}}}" for name in (*TABLES, "models"))


def measured(folder):
    """Outputs of a training job."""
    return {name: f"{R}/{folder}/{name.replace('_', '-')}.parquet" for name in TABLES} | {
        "models": directory(f"{R}/{folder}/models")
    }


def suite_of(wildcards):
    return settings.suites[wildcards.setting]


def of_jobs(table):
    return [f"{R}/runs/{job}/{table.replace('_', '-')}.parquet" for job in JOBS]


wildcard_constraints:
    seed=r"\d+",
    setting="|".join(settings.suites),
    family="|".join({*settings.tuning.candidates, *(name for suite in settings.suites.values() for name in suite.families)}),
    data="|".join(settings.data),


rule prepare:
    message: "Reading the images {wildcards.data}"
    output:
        images=f"{R}/images/{{data}}.safetensors",
        record=f"{R}/records/prepare-{{data}}.json",
    params:
        arguments=lambda wildcards: paper.stage("papers.udim.prepare", settings.data[wildcards.data])["arguments"],
        code=paper.stage("papers.udim.prepare")["code"],
        data="{data}",
    log:
        f"{L}/prepare-{{data}}.log",
    cache: True
    shell:
        "python -m papers.udim.prepare {params.arguments} --images {output.images} --record {output.record} &> {log}"


rule tune:
    message: "Trying hyperparameters of {wildcards.family}"
    input:
        images=f"{R}/images/{settings.suites[settings.tuning.suite].data}.safetensors",
    output:
        **measured("tuning/{family}-seed{seed}"),
        record=f"{R}/records/tune-{{family}}-seed{{seed}}.json",
    params:
        **paper.stage(
            "papers.udim.train",
            settings.suites[settings.tuning.suite].domains,
            settings.suites[settings.tuning.suite].train,
            seed="{seed}",
            setting=settings.tuning.suite,
        ),
        names=lambda wildcards: " ".join(settings.tuning.candidates[wildcards.family]),
        family="{family}",
        launch=LAUNCH,
        state=f"{R}/state/tune-{{family}}-seed{{seed}}",
    log:
        f"{L}/tune-{{family}}-seed{{seed}}.log",
    resources:
        **RESOURCES,
    cache: True
    shell:
        "{params.launch} papers.udim.train {params.arguments} --names {params.names} --images {input.images} "
        + WRITTEN
        + " --state {params.state} --record {output.record} &> {log}"


rule select:
    message: "Selecting hyperparameters"
    input:
        runs=[f"{R}/tuning/{job}/runs.parquet" for job in TUNING],
        accuracies=[f"{R}/tuning/{job}/accuracies.parquet" for job in TUNING],
    output:
        hyperparameters=f"{R}/hyperparameters.json",
        grid=f"{R}/grid.parquet",
        record=f"{R}/records/select.json",
    params:
        **paper.stage("papers.udim.select"),
    log:
        f"{L}/select.log",
    cache: True
    shell:
        "python -m papers.udim.select {params.arguments} --runs {input.runs} --accuracies {input.accuracies}"
        " --hyperparameters {output.hyperparameters} --grid {output.grid} --record {output.record} &> {log}"


rule train:
    message: "Training {wildcards.family} for {wildcards.setting}, seed {wildcards.seed}"
    input:
        images=lambda wildcards: f"{R}/images/{suite_of(wildcards).data}.safetensors",
        hyperparameters=lambda wildcards: [f"{R}/hyperparameters.json"] * suite_of(wildcards).use_selected,
    output:
        **measured("runs/{setting}-{family}-seed{seed}"),
        record=f"{R}/records/train-{{setting}}-{{family}}-seed{{seed}}.json",
    params:
        code=paper.stage("papers.udim.train")["code"],
        arguments=lambda wildcards: paper.stage(
            "papers.udim.train",
            suite_of(wildcards).domains,
            suite_of(wildcards).train,
            seed=wildcards.seed,
            setting=wildcards.setting,
        )["arguments"],
        names=lambda wildcards: " ".join(suite_of(wildcards).families[wildcards.family]),
        family="{family}",
        launch=LAUNCH,
        state=f"{R}/state/train-{{setting}}-{{family}}-seed{{seed}}",
    log:
        f"{L}/train-{{setting}}-{{family}}-seed{{seed}}.log",
    resources:
        **RESOURCES,
    cache: True
    shell:
        "{params.launch} papers.udim.train {params.arguments} --names {params.names} --images {input.images}"
        " --hyperparameters {input.hyperparameters} "
        + WRITTEN
        + " --state {params.state} --record {output.record} &> {log}"


SLICED = settings.suites[settings.slices.suite]
SLICED_JOBS = [(family, seed) for family in SLICED.families for seed in settings.seeds]


rule slices:
    message: "Slicing the loss"
    input:
        images=f"{R}/images/{SLICED.data}.safetensors",
        models=[f"{R}/runs/{settings.slices.suite}-{family}-seed{seed}/models" for family, seed in SLICED_JOBS],
    output:
        lines=f"{R}/slices/lines.parquet",
        plane=f"{R}/slices/plane.parquet",
        record=f"{R}/records/slices.json",
    params:
        **paper.stage("papers.udim.slices", SLICED.domains, SLICED.train, settings.slices),
        seeds=" ".join(str(seed) for _, seed in SLICED_JOBS),
    log:
        f"{L}/slices.log",
    cache: True
    shell:
        "python -m papers.udim.slices {params.arguments} --seeds {params.seeds} --images {input.images}"
        " --models {input.models} --lines {output.lines} --plane {output.plane} --record {output.record} &> {log}"


rule evaluate:
    message: "Collecting all measurements"
    input:
        **{table: of_jobs(table) for table in TABLES},
        records=[f"{R}/records/train-{job}.json" for job in JOBS],
    output:
        metrics=f"{R}/metrics.parquet",
        units=f"{R}/units.parquet",
        radii=f"{R}/radii.parquet",
        training=f"{R}/training.parquet",
        record=f"{R}/records/evaluate.json",
    params:
        **paper.stage("papers.udim.evaluate", paper=paper.id, scale=paper.scale),
    log:
        f"{L}/evaluate.log",
    cache: True
    shell:
        "python -m papers.udim.evaluate {params.arguments} --runs {input.runs} --accuracies {input.accuracies}"
        " --per-image {input.per_image} --landscape {input.landscape} --curves {input.curves}"
        " --records {input.records} --metrics {output.metrics} --units {output.units} --radii {output.radii}"
        " --training {output.training} --record {output.record} &> {log}"


rule figure:
    message: "Drawing {wildcards.figure}"
    input:
        metrics=f"{R}/metrics.parquet",
        radii=f"{R}/radii.parquet",
        training=f"{R}/training.parquet",
        grid=f"{R}/grid.parquet",
        lines=f"{R}/slices/lines.parquet",
        plane=f"{R}/slices/plane.parquet",
    output:
        png=f"{R}/figures/{{figure}}.png",
        pdf=f"{R}/figures/{{figure}}.pdf",
        record=f"{R}/records/figure-{{figure}}.json",
    params:
        **paper.stage("papers.udim.figures", figure="{figure}"),
    log:
        f"{L}/figure-{{figure}}.log",
    cache: True
    shell:
        "python -m papers.udim.figures {params.arguments} --metrics {input.metrics} --radii {input.radii}"
        " --training {input.training} --grid {input.grid} --lines {input.lines} --plane {input.plane}"
        " --png {output.png} --pdf {output.pdf} --record {output.record} &> {log}"


include: "../../workflows/results.smk"
