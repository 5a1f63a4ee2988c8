"""RENT: images and noisy labels -> networks of every method -> tables -> report."""

from papers.rent.options import Scale
from shared.hub import HUB
from workflows.paper import open_paper

paper = open_paper("rent", config["scale"], Scale)
settings = paper.settings
R, L = paper.results, paper.logs

LAUNCH = paper.launcher(settings.processes)
RESOURCES = paper.resources(settings.processes)
FIGURES = settings.figures
JOBS = [
    f"{family}-{setting}-seed{seed}"
    for setting, families in settings.settings.items()
    for family in families
    for seed in settings.seeds
]
RECORDS = [f"{R}/records/{name}.json" for name in ["prepare", *[f"train-{job}" for job in JOBS]]]
SOURCES = {part: getattr(settings.sources, part) for part in ("train", "test")} if settings.sources else {}
FILES = [f"{R}/data/{part}.parquet" if source.startswith(HUB) else source for part, source in SOURCES.items()]
if settings.sources and settings.sources.human_labels:
    FILES.append(settings.sources.human_labels)
TABLES = {name: f"{R}/{name}/{{family}}-{{setting}}-seed{{seed}}.parquet" for name in
          ("curves", "predictions", "weights", "transitions")}


wildcard_constraints:
    seed=r"\d+",
    setting="|".join(settings.settings),
    family="|".join(settings.families),
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


rule prepare:
    message: "Preparing the images and their noisy labels"
    input:
        files=FILES,
    output:
        images=f"{R}/data/images.safetensors",
        labels=f"{R}/data/labels.parquet",
        record=f"{R}/records/prepare.json",
    params:
        **paper.stage("papers.rent.prepare", settings.data),
        seeds=" ".join(map(str, settings.seeds)),
        settings=" ".join(settings.settings),
        files=" ".join(["--files", *FILES]) if FILES else "",
    log:
        f"{L}/prepare.log",
    cache: True
    shell:
        "python -m papers.rent.prepare {params.arguments} --seeds {params.seeds} --settings {params.settings}"
        " {params.files} --images {output.images} --labels {output.labels} --record {output.record} &> {log}"


rule train:
    message: "Training {wildcards.family} on {wildcards.setting}, seed {wildcards.seed}"
    input:
        images=f"{R}/data/images.safetensors",
        labels=f"{R}/data/labels.parquet",
    output:
        **TABLES,
        record=f"{R}/records/train-{{family}}-{{setting}}-seed{{seed}}.json",
    params:
        **paper.stage(
            "papers.rent.train",
            settings.train,
            dataset=settings.data.dataset,
            setting="{setting}",
            seed="{seed}",
        ),
        methods=lambda wildcards: " ".join(settings.families[wildcards.family]),
        family="{family}",
        launch=LAUNCH,
        state=f"{R}/state/{{family}}-{{setting}}-seed{{seed}}",
    log:
        f"{L}/train-{{family}}-{{setting}}-seed{{seed}}.log",
    resources:
        **RESOURCES,
    cache: True
    shell:
        "{params.launch} papers.rent.train {params.arguments} --methods {params.methods} --images {input.images}"
        " --labels {input.labels} --curves {output.curves} --predictions {output.predictions}"
        " --weights {output.weights} --transitions {output.transitions} --state {params.state}"
        " --record {output.record} &> {log}"


rule evaluate:
    message: "Comparing all methods"
    input:
        curves=[f"{R}/curves/{job}.parquet" for job in JOBS],
        predictions=[f"{R}/predictions/{job}.parquet" for job in JOBS],
        records=[f"{R}/records/train-{job}.json" for job in JOBS],
    output:
        metrics=f"{R}/metrics.parquet",
        units=f"{R}/units.parquet",
        record=f"{R}/records/evaluate.json",
    params:
        **paper.stage("papers.rent.evaluate", paper=paper.id, scale=paper.scale),
    log:
        f"{L}/evaluate.log",
    cache: True
    shell:
        "python -m papers.rent.evaluate {params.arguments} --curves {input.curves} --predictions {input.predictions}"
        " --records {input.records} --metrics {output.metrics} --units {output.units} --record {output.record} &> {log}"


rule figure:
    message: "Drawing {wildcards.figure}"
    input:
        metrics=f"{R}/metrics.parquet",
        curves=[f"{R}/curves/{job}.parquet" for job in JOBS],
        weights=[f"{R}/weights/{job}.parquet" for job in JOBS],
    output:
        png=f"{R}/figures/{{figure}}.png",
        pdf=f"{R}/figures/{{figure}}.pdf",
        record=f"{R}/records/figure-{{figure}}.json",
    params:
        **paper.stage("papers.rent.figures", figure="{figure}"),
    log:
        f"{L}/figure-{{figure}}.log",
    cache: True
    shell:
        "python -m papers.rent.figures {params.arguments} --metrics {input.metrics} --curves {input.curves}"
        " --weights {input.weights} --png {output.png} --pdf {output.pdf} --record {output.record} &> {log}"


include: "../../workflows/results.smk"
