"""DiffRS: judge and denoisers -> hyperparameters -> discriminators, samples and measurements -> tables -> report."""

from dataclasses import replace

from papers.diffrs.options import Scale
from workflows.paper import open_paper

paper = open_paper("diffrs", config["scale"], Scale)
settings = paper.settings
R, L = paper.results, paper.logs

LAUNCH = paper.launcher(settings.processes)
RESOURCES = paper.resources(settings.processes)
FIGURES = settings.figures
TABLES = ("runs", "levels", "costs", "blocks", "paths", "ratios", "curves")


def part_name(seeds):
    """A part of the seeds, as it stands in names of files."""
    return "_".join(map(str, seeds))


def parts_of(model):
    """The reported seeds of a model, so many for each job."""
    count = settings.seeds_per_job
    return [part_name(model.seeds[start : start + count]) for start in range(0, len(model.seeds), count)]


TUNING = str(settings.tuning_seed)
TUNED = [name for name, setting in settings.settings.items() if setting.candidates]
JOBS = [f"{name}-seeds{part}" for name, setting in settings.settings.items() for part in parts_of(settings.models[setting.model])]
JUDGED = [name for name, model in settings.models.items() if model.judge]
TRAINED = [
    f"{name}-seeds{part}"
    for name, model in settings.models.items()
    if not model.pretrained
    for part in parts_of(model)
]
EXACT_SEEDS = max((model.seeds for model in settings.models.values()), key=len)
RECORDS = [
    *[f"{R}/records/prepare-{name}.json" for name in JUDGED],
    *[f"{R}/records/train-{job}.json" for job in TRAINED],
    *[f"{R}/records/tune-{name}-seeds{TUNING}.json" for name in TUNED],
    *[f"{R}/records/sample-{job}.json" for job in JOBS],
]


wildcard_constraints:
    model="|".join(settings.models),
    setting="|".join(settings.settings),
    part=r"[\d_]+",


def model_of(wildcards):
    """The model that a rule is about, or that its setting is."""
    name = wildcards.get("model") or settings.settings[wildcards.setting].model
    return settings.models[name]


def prepared_of(wildcards):
    """The folder of its judge, where the model has one."""
    name = wildcards.get("model") or settings.settings[wildcards.setting].model
    return [f"{R}/prepared/{name}"] * (name in JUDGED)


def denoisers_of(wildcards):
    """The folder of its denoisers, where they are trained here."""
    name = settings.settings[wildcards.setting].model
    return [f"{R}/denoisers/{name}-seeds{wildcards.part}"] * (not settings.models[name].pretrained)


def given(name, paths):
    """A flag with its files, or nothing."""
    return f"--{name} {' '.join(paths)}" if paths else ""


def stage_arguments(wildcards, sampler):
    """Arguments of the stage sample in a setting, without the names of runs."""
    setting, model = settings.settings[wildcards.setting], model_of(wildcards)
    pretrained = {"pretrained": model.pretrained} if model.pretrained else {}
    options = (model.data, sampler, setting.discriminator)
    return paper.stage("papers.diffrs.sample", *options, setting=wildcards.setting, **pretrained)["arguments"]


def sample_arguments(wildcards):
    """Those of the reported seeds."""
    return stage_arguments(wildcards, settings.settings[wildcards.setting].sampler)


def tune_arguments(wildcards):
    """Those of the tuning seed: candidates are compared by number alone, no samples of theirs are kept."""
    sampler = settings.settings[wildcards.setting].sampler
    return stage_arguments(wildcards, replace(sampler, kept=0, followed=0, keep_discriminator=False))


def sampled(folder):
    """Outputs of a sampling job."""
    return {name: f"{R}/{folder}/{name}.parquet" for name in TABLES} | {
        "pictures": f"{R}/{folder}/pictures.safetensors",
        "discriminators": directory(f"{R}/{folder}/discriminators"),
    }


WRITTEN = " ".join(f"--{name} {{output.{name}}}" for name in (*TABLES, "pictures", "discriminators"))


rule prepare:
    message: "Preparing the images of {wildcards.model} and their judge"
    output:
        prepared=directory(f"{R}/prepared/{{model}}"),
        record=f"{R}/records/prepare-{{model}}.json",
    params:
        code=paper.stage("papers.diffrs.prepare")["code"],
        arguments=lambda wildcards: paper.stage(
            "papers.diffrs.prepare", model_of(wildcards).data, model_of(wildcards).judge, seed="0"
        )["arguments"],
        model="{model}",
        launch=LAUNCH,
        state=f"{R}/state/prepare-{{model}}",
    log:
        f"{L}/prepare-{{model}}.log",
    resources:
        **RESOURCES,
    cache: True
    shell:
        "{params.launch} papers.diffrs.prepare {params.arguments} --prepared {output.prepared} --state {params.state}"
        " --record {output.record} &> {log}"


rule train:
    message: "Training denoisers of {wildcards.model}, seeds {wildcards.part}"
    input:
        prepared=prepared_of,
    output:
        denoisers=directory(f"{R}/denoisers/{{model}}-seeds{{part}}"),
        curves=f"{R}/denoisers/{{model}}-seeds{{part}}.parquet",
        record=f"{R}/records/train-{{model}}-seeds{{part}}.json",
    params:
        code=paper.stage("papers.diffrs.train")["code"],
        arguments=lambda wildcards: paper.stage(
            "papers.diffrs.train", model_of(wildcards).data, model_of(wildcards).denoiser, model=wildcards.model
        )["arguments"],
        seeds=lambda wildcards: wildcards.part.replace("_", " "),
        part="{part}",
        prepared=lambda wildcards, input: given("prepared", input.prepared),
        launch=LAUNCH,
        state=f"{R}/state/train-{{model}}-seeds{{part}}",
    log:
        f"{L}/train-{{model}}-seeds{{part}}.log",
    resources:
        **RESOURCES,
    priority: 1
    cache: True
    shell:
        "{params.launch} papers.diffrs.train {params.arguments} --seeds {params.seeds} {params.prepared}"
        " --denoisers {output.denoisers} --curves {output.curves} --state {params.state} --record {output.record}"
        " &> {log}"


rule tune:
    message: "Trying hyperparameters for {wildcards.setting}"
    input:
        prepared=prepared_of,
        denoisers=denoisers_of,
    output:
        **sampled("tuning/{setting}-seeds{part}"),
        record=f"{R}/records/tune-{{setting}}-seeds{{part}}.json",
    params:
        code=paper.stage("papers.diffrs.sample")["code"],
        arguments=tune_arguments,
        names=lambda wildcards: " ".join(settings.settings[wildcards.setting].candidates),
        seeds=lambda wildcards: wildcards.part.replace("_", " "),
        part="{part}",
        given=lambda wildcards, input: " ".join([given("prepared", input.prepared), given("denoisers", input.denoisers)]),
        launch=LAUNCH,
        state=f"{R}/state/tune-{{setting}}-seeds{{part}}",
    log:
        f"{L}/tune-{{setting}}-seeds{{part}}.log",
    resources:
        **RESOURCES,
    priority: 1
    cache: True
    shell:
        "{params.launch} papers.diffrs.sample {params.arguments} --seeds {params.seeds} --names {params.names}"
        " {params.given} " + WRITTEN + " --state {params.state} --record {output.record} &> {log}"


rule select:
    message: "Selecting hyperparameters"
    input:
        runs=[f"{R}/tuning/{name}-seeds{TUNING}/runs.parquet" for name in TUNED],
    output:
        selection=f"{R}/selection.json",
        grid=f"{R}/grid.parquet",
        record=f"{R}/records/select.json",
    params:
        **paper.stage("papers.diffrs.select"),
    log:
        f"{L}/select.log",
    cache: True
    shell:
        "python -m papers.diffrs.select {params.arguments} --runs {input.runs} --selection {output.selection}"
        " --grid {output.grid} --record {output.record} &> {log}"


rule sample:
    message: "Sampling in setting {wildcards.setting}, seeds {wildcards.part}"
    input:
        prepared=prepared_of,
        denoisers=denoisers_of,
        selection=f"{R}/selection.json",
    output:
        **sampled("samples/{setting}-seeds{part}"),
        record=f"{R}/records/sample-{{setting}}-seeds{{part}}.json",
    params:
        code=paper.stage("papers.diffrs.sample")["code"],
        arguments=sample_arguments,
        names=lambda wildcards: " ".join(settings.settings[wildcards.setting].runs),
        seeds=lambda wildcards: wildcards.part.replace("_", " "),
        part="{part}",
        given=lambda wildcards, input: " ".join([given("prepared", input.prepared), given("denoisers", input.denoisers)]),
        launch=LAUNCH,
        state=f"{R}/state/sample-{{setting}}-seeds{{part}}",
    log:
        f"{L}/sample-{{setting}}-seeds{{part}}.log",
    resources:
        **RESOURCES,
    cache: True
    shell:
        "{params.launch} papers.diffrs.sample {params.arguments} --seeds {params.seeds} --names {params.names}"
        " {params.given} --selection {input.selection} "
        + WRITTEN
        + " --state {params.state} --record {output.record} &> {log}"


rule exact:
    message: "Sampling Gaussians with exact ratios"
    output:
        runs=f"{R}/exact.parquet",
        record=f"{R}/records/exact.json",
    params:
        **paper.stage("papers.diffrs.exact", settings.exact),
        seeds=" ".join(map(str, EXACT_SEEDS)),
    log:
        f"{L}/exact.log",
    cache: True
    shell:
        "python -m papers.diffrs.exact {params.arguments} --seeds {params.seeds} --runs {output.runs}"
        " --record {output.record} &> {log}"


rule evaluate:
    message: "Collecting all measurements"
    input:
        **{name: [f"{R}/samples/{job}/{name}.parquet" for job in JOBS] for name in TABLES},
        exact=f"{R}/exact.parquet",
        denoisers=[f"{R}/denoisers/{job}.parquet" for job in TRAINED],
    output:
        metrics=f"{R}/metrics.parquet",
        units=f"{R}/units.parquet",
        **{name: f"{R}/{name}.parquet" for name in ("levels", "costs", "paths", "ratios", "training")},
        record=f"{R}/records/evaluate.json",
    params:
        **paper.stage("papers.diffrs.evaluate", paper=paper.id, scale=paper.scale),
        denoisers=lambda wildcards, input: given("denoisers", input.denoisers),
    log:
        f"{L}/evaluate.log",
    cache: True
    shell:
        "python -m papers.diffrs.evaluate {params.arguments} --runs {input.runs} --level-counts {input.levels}"
        " --cost-counts {input.costs} --blocks {input.blocks} --followed {input.paths} --log-ratios {input.ratios}"
        " --curves {input.curves} --exact {input.exact} {params.denoisers}"
        " --metrics {output.metrics} --units {output.units}"
        " --levels {output.levels} --costs {output.costs} --paths {output.paths} --ratios {output.ratios}"
        " --training {output.training}"
        " --record {output.record} &> {log}"


rule figure:
    message: "Drawing {wildcards.figure}"
    input:
        metrics=f"{R}/metrics.parquet",
        levels=f"{R}/levels.parquet",
        costs=f"{R}/costs.parquet",
        paths=f"{R}/paths.parquet",
        ratios=f"{R}/ratios.parquet",
        training=f"{R}/training.parquet",
        grid=f"{R}/grid.parquet",
        pictures=[
            f"{R}/samples/{name}-seeds{parts_of(settings.models[setting.model])[0]}/pictures.safetensors"
            for name, setting in settings.settings.items()
        ],
    output:
        png=f"{R}/figures/{{figure}}.png",
        pdf=f"{R}/figures/{{figure}}.pdf",
        record=f"{R}/records/figure-{{figure}}.json",
    params:
        **paper.stage("papers.diffrs.figures", figure="{figure}"),
        settings=" ".join(settings.settings),
    log:
        f"{L}/figure-{{figure}}.log",
    cache: True
    shell:
        "python -m papers.diffrs.figures {params.arguments} --metrics {input.metrics} --levels {input.levels}"
        " --costs {input.costs} --paths {input.paths} --ratios {input.ratios} --training {input.training}"
        " --grid {input.grid}"
        " --settings {params.settings} --pictures {input.pictures} --png {output.png} --pdf {output.pdf}"
        " --record {output.record} &> {log}"


include: "../../workflows/results.smk"
