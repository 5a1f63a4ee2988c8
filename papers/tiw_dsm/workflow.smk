"""TIW-DSM: data -> discriminators and denoisers of every arm, measured -> tables -> report."""

from papers.tiw_dsm.options import Scale
from shared.hub import HUB
from workflows.paper import open_paper

paper = open_paper("tiw_dsm", config["scale"], Scale)
settings = paper.settings
R, L = paper.results, paper.logs

LAUNCH = paper.launcher(settings.processes)
RESOURCES = paper.resources(settings.processes)
FIGURES = settings.figures
JOBS = [
    f"{setting}-{family}-seed{seed}"
    for setting, one in settings.settings.items()
    for family, seed in one.jobs
]
JUDGED = sorted({one.train.data.testbed for one in settings.settings.values() if one.train.data.has_images})
RECORDS = [
    *[f"{R}/records/judge-{testbed}.json" for testbed in JUDGED],
    *[f"{R}/records/train-{job}.json" for job in JOBS],
]
SOURCES = {part: getattr(settings.sources, part) for part in ("train", "test")} if settings.sources else {}
FILES = [f"{R}/data/{part}.parquet" if source.startswith(HUB) else source for part, source in SOURCES.items()]
MANIFEST = [settings.sources.manifest] if settings.sources and settings.sources.manifest else []
JOB = "{setting}-{family}-seed{seed}"
TABLES = ("measured", "shares", "lengths", "errors", "weights")
WRITTEN = {name: f"{R}/{name}/{JOB}.parquet" for name in TABLES} | {"drawn": f"{R}/drawn/{JOB}.safetensors"}


def of_jobs(table, suffix="parquet"):
    return [f"{R}/{table}/{job}.{suffix}" for job in JOBS]


def data_of(wildcards):
    return settings.settings[wildcards.setting].train.data


def train_inputs(wildcards):
    """The judge of images, and CIFAR-10's images."""
    data = data_of(wildcards)
    judge = [f"{R}/judges/{data.testbed}.safetensors"] if data.has_images else []
    images = [f"{R}/images/{wildcards.setting}-seed{wildcards.seed}.safetensors"] if settings.sources else []
    return {"judge": judge, "images": images}


def given(wildcards, input):
    """Flags of the inputs that a job has."""
    return " ".join(f"--{name} {path}" for name in ("judge", "images") for path in getattr(input, name))


wildcard_constraints:
    seed=r"\d+",
    setting="|".join(settings.settings),
    family="|".join(settings.families),
    testbed="|".join(JUDGED),
    part="train|test",


if any(source.startswith(HUB) for source in SOURCES.values()):

    rule download:
        message: "Downloading the {wildcards.part} images"
        output:
            file=f"{R}/data/{{part}}.parquet",
            record=f"{R}/records/download-{{part}}.json",
        params:
            **paper.stage("shared.stages.download"),
            source=lambda wildcards: SOURCES[wildcards.part],
            part="{part}",
        log:
            f"{L}/download-{{part}}.log",
        cache: True
        shell:
            "python -m shared.stages.download {params.arguments} --source {params.source} --file {output.file}"
            " --record {output.record} &> {log}"


if settings.sources:

    rule prepare:
        message: "Choosing the subsets of {wildcards.setting}, seed {wildcards.seed}"
        input:
            files=FILES,
            manifest=MANIFEST,
        output:
            images=f"{R}/images/{{setting}}-seed{{seed}}.safetensors",
            subsets=f"{R}/subsets/{{setting}}-seed{{seed}}.parquet",
            record=f"{R}/records/prepare-{{setting}}-seed{{seed}}.json",
        params:
            code=paper.stage("papers.tiw_dsm.prepare")["code"],
            arguments=lambda wildcards: paper.stage("papers.tiw_dsm.prepare", data_of(wildcards))["arguments"],
            setting="{setting}",
            seed="{seed}",
            manifest=" ".join(["--manifest", *MANIFEST]) if MANIFEST else "",
        log:
            f"{L}/prepare-{{setting}}-seed{{seed}}.log",
        cache: True
        shell:
            "python -m papers.tiw_dsm.prepare {params.arguments} --seed {params.seed} --files {input.files}"
            " {params.manifest} --images {output.images} --subsets {output.subsets} --record {output.record} &> {log}"


rule judge:
    message: "Training the judge of {wildcards.testbed}"
    input:
        files=lambda wildcards: FILES if wildcards.testbed == "cifar10" else [],
    output:
        classifier=f"{R}/judges/{{testbed}}.safetensors",
        record=f"{R}/records/judge-{{testbed}}.json",
    params:
        code=paper.stage("papers.tiw_dsm.judge")["code"],
        arguments=lambda wildcards: paper.stage("papers.tiw_dsm.judge", settings.judges[wildcards.testbed])["arguments"],
        testbed="{testbed}",
        files=lambda wildcards: " ".join(["--files", *FILES]) if wildcards.testbed == "cifar10" else "",
        state=f"{R}/state/judge-{{testbed}}",
    log:
        f"{L}/judge-{{testbed}}.log",
    cache: True
    shell:
        "python -m papers.tiw_dsm.judge {params.arguments} --testbed {params.testbed} --seed 0 {params.files}"
        " --classifier {output.classifier} --state {params.state} --record {output.record} &> {log}"


rule train:
    message: "Training {wildcards.family} on {wildcards.setting}, seed {wildcards.seed}"
    input:
        unpack(train_inputs),
    output:
        **WRITTEN,
        record=f"{R}/records/train-{JOB}.json",
    params:
        code=paper.stage("papers.tiw_dsm.train")["code"],
        arguments=lambda wildcards: paper.stage(
            "papers.tiw_dsm.train", settings.settings[wildcards.setting].train
        )["arguments"],
        setting="{setting}",
        seed="{seed}",
        family="{family}",
        methods=lambda wildcards: " ".join(settings.families[wildcards.family]),
        given=given,
        launch=LAUNCH,
        state=f"{R}/state/{JOB}",
    log:
        f"{L}/train-{JOB}.log",
    resources:
        **RESOURCES,
    cache: True
    shell:
        "{params.launch} papers.tiw_dsm.train {params.arguments} --setting {params.setting} --seed {params.seed}"
        " --methods {params.methods} {params.given} --measured {output.measured} --shares {output.shares}"
        " --lengths {output.lengths} --errors {output.errors} --weights {output.weights} --drawn {output.drawn}"
        " --state {params.state} --record {output.record} &> {log}"


rule evaluate:
    message: "Comparing all arms"
    input:
        measured=of_jobs("measured"),
        shares=of_jobs("shares"),
        records=[f"{R}/records/train-{job}.json" for job in JOBS],
    output:
        metrics=f"{R}/metrics.parquet",
        units=f"{R}/units.parquet",
        record=f"{R}/records/evaluate.json",
    params:
        **paper.stage("papers.tiw_dsm.evaluate", paper=paper.id, scale=paper.scale),
    log:
        f"{L}/evaluate.log",
    cache: True
    shell:
        "python -m papers.tiw_dsm.evaluate {params.arguments} --measured {input.measured} --shares {input.shares}"
        " --records {input.records} --metrics {output.metrics} --units {output.units} --record {output.record} &> {log}"


rule figure:
    message: "Drawing {wildcards.figure}"
    input:
        metrics=f"{R}/metrics.parquet",
        shares=of_jobs("shares"),
        lengths=of_jobs("lengths"),
        errors=of_jobs("errors"),
        weights=of_jobs("weights"),
        drawn=of_jobs("drawn", "safetensors"),
    output:
        png=f"{R}/figures/{{figure}}.png",
        pdf=f"{R}/figures/{{figure}}.pdf",
        record=f"{R}/records/figure-{{figure}}.json",
    params:
        **paper.stage("papers.tiw_dsm.figures", figure="{figure}"),
    log:
        f"{L}/figure-{{figure}}.log",
    cache: True
    shell:
        "python -m papers.tiw_dsm.figures {params.arguments} --metrics {input.metrics} --shares {input.shares}"
        " --lengths {input.lengths} --errors {input.errors} --weights {input.weights} --drawn {input.drawn}"
        " --png {output.png} --pdf {output.pdf} --record {output.record} &> {log}"


include: "../../workflows/results.smk"
