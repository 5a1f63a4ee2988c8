"""Adaptive text embeddings: the shared testbed -> strengths -> samples of every variant -> tables -> report."""

from papers.date.options import Scale
from workflows.paper import open_paper

paper = open_paper("date", config["scale"], Scale)
settings = paper.settings
R, L = paper.results, paper.logs

FIGURES = settings.figures
JOBS = [f"{family}-seed{seed}" for family in settings.families for seed in settings.seeds]
DRAWN = {
    "scores": f"{R}/scores/{{family}}-seed{{seed}}.parquet",
    "steps": f"{R}/steps/{{family}}-seed{{seed}}.parquet",
    "directions": f"{R}/directions/{{family}}-seed{{seed}}.parquet",
    "paths": f"{R}/paths/{{family}}-seed{{seed}}.parquet",
    "images": f"{R}/images/{{family}}-seed{{seed}}.safetensors",
}
DRAWN_FLAGS = " ".join(f"--{name} {{output.{name}}}" for name in DRAWN)
LAUNCH = paper.launcher(settings.processes)
RESOURCES = paper.resources(settings.processes)
SAMPLE_RECORDS = [f"{R}/records/sample-{job}.json" for job in JOBS]
RECORDS = [*[f"{R}/records/tune-{job}.json" for job in settings.tuned], *SAMPLE_RECORDS]


def drawn(name):
    """One kind of file of all sampling jobs."""
    return [DRAWN[name].format(family=family, seed=seed) for family in settings.families for seed in settings.seeds]


wildcard_constraints:
    seed=r"\d+",
    family="|".join(settings.families),
    job="|".join(settings.tuned),


if settings.scenes:

    include: "../../workflows/t2i.smk"

    # The conditioner's scorer is the plain one: it never saw degraded images.
    SYSTEM = {
        name: T2I[file].format(seed=settings.system)
        for name, file in {
            "pipeline": "pipeline",
            "guidance": "guidance",
            "preference": "preference",
            "plain": "conditioner",
            "evaluator": "evaluator",
        }.items()
    }
    SYSTEM_FLAGS = " ".join(f"--{name} {{input.{name}}}" for name in SYSTEM)
    RECORDS = [record.format(seed=settings.system) for record in T2I_RECORDS] + RECORDS

    rule tune:
        message: "Trying strengths of {params.variants}"
        input:
            **SYSTEM,
        output:
            trials=f"{R}/trials/{{job}}.parquet",
            record=f"{R}/records/tune-{{job}}.json",
        params:
            **paper.stage(
                "papers.date.tune",
                settings.sampler,
                settings.scenes,
                settings.tune,
                seed=str(settings.tuning_seed),
            ),
            variants=lambda wildcards: " ".join(settings.tuned[wildcards.job]),
            job="{job}",
            system=settings.system,
        log:
            f"{L}/tune-{{job}}.log",
        cache: True
        shell:
            "python -m papers.date.tune {params.arguments} --variants {params.variants} "
            + SYSTEM_FLAGS
            + " --trials {output.trials} --record {output.record} &> {log}"

    rule sample:
        message: "Sampling the variants '{wildcards.family}', seed {wildcards.seed}"
        input:
            **SYSTEM,
            strengths=f"{R}/strengths.parquet",
        output:
            **DRAWN,
            record=f"{R}/records/sample-{{family}}-seed{{seed}}.json",
        params:
            **paper.stage("papers.date.sample", settings.sampler, settings.scenes, seed="{seed}"),
            variants=lambda wildcards: " ".join(settings.families[wildcards.family]),
            family="{family}",
            system=settings.system,
        log:
            f"{L}/sample-{{family}}-seed{{seed}}.log",
        cache: True
        shell:
            "python -m papers.date.sample {params.arguments} --variants {params.variants} "
            + SYSTEM_FLAGS
            + " --strengths {input.strengths} "
            + DRAWN_FLAGS
            + " --record {output.record} &> {log}"

else:

    rule tune_hub:
        message: "Trying strengths of {params.variants}"
        output:
            trials=f"{R}/trials/{{job}}.parquet",
            record=f"{R}/records/tune-{{job}}.json",
        params:
            **paper.stage(
                "papers.date.tune_hub", settings.sampler, settings.hub, settings.tune, seed=str(settings.tuning_seed)
            ),
            variants=lambda wildcards: " ".join(settings.tuned[wildcards.job]),
            # A file that users fetch: scales can be planned without it, and the stage names it where it is missing.
            prompts=settings.prompts,
            job="{job}",
            launch=LAUNCH,
        log:
            f"{L}/tune-{{job}}.log",
        resources:
            **RESOURCES,
        cache: True
        shell:
            "{params.launch} papers.date.tune_hub {params.arguments} --variants {params.variants}"
            " --prompts {params.prompts} --trials {output.trials} --record {output.record} &> {log}"

    rule sample_hub:
        message: "Sampling the variants '{wildcards.family}', seed {wildcards.seed}"
        input:
            strengths=f"{R}/strengths.parquet",
        output:
            **DRAWN,
            record=f"{R}/records/sample-{{family}}-seed{{seed}}.json",
        params:
            **paper.stage("papers.date.sample_hub", settings.sampler, settings.hub, seed="{seed}"),
            variants=lambda wildcards: " ".join(settings.families[wildcards.family]),
            prompts=settings.prompts,
            family="{family}",
            launch=LAUNCH,
        log:
            f"{L}/sample-{{family}}-seed{{seed}}.log",
        resources:
            **RESOURCES,
        cache: True
        shell:
            "{params.launch} papers.date.sample_hub {params.arguments} --variants {params.variants}"
            " --prompts {params.prompts} --strengths {input.strengths} "
            + DRAWN_FLAGS
            + " --record {output.record} &> {log}"


rule select:
    message: "Selecting strengths on development prompts"
    input:
        trials=[f"{R}/trials/{job}.parquet" for job in settings.tuned],
    output:
        strengths=f"{R}/strengths.parquet",
        record=f"{R}/records/select.json",
    params:
        **paper.stage("papers.date.select", settings.select),
        variants=" ".join(settings.variants),
    log:
        f"{L}/select.log",
    cache: True
    shell:
        "python -m papers.date.select {params.arguments} --variants {params.variants} --trials {input.trials}"
        " --strengths {output.strengths} --record {output.record} &> {log}"


rule evaluate:
    message: "Comparing all variants"
    input:
        scores=drawn("scores"),
        steps=drawn("steps"),
        records=SAMPLE_RECORDS,
    output:
        metrics=f"{R}/metrics.parquet",
        units=f"{R}/units.parquet",
        traces=f"{R}/traces.parquet",
        record=f"{R}/records/evaluate.json",
    params:
        **paper.stage("papers.date.evaluate", paper=paper.id, scale=paper.scale),
    log:
        f"{L}/evaluate.log",
    cache: True
    shell:
        "python -m papers.date.evaluate {params.arguments} --scores {input.scores} --steps {input.steps}"
        " --records {input.records} --metrics {output.metrics} --units {output.units} --traces {output.traces}"
        " --record {output.record} &> {log}"


rule figure:
    message: "Drawing {wildcards.figure}"
    input:
        metrics=f"{R}/metrics.parquet",
        traces=f"{R}/traces.parquet",
        trials=[f"{R}/trials/{job}.parquet" for job in settings.tuned],
        strengths=f"{R}/strengths.parquet",
        scores=drawn("scores"),
        directions=drawn("directions"),
        paths=drawn("paths"),
        images=drawn("images"),
    output:
        png=f"{R}/figures/{{figure}}.png",
        pdf=f"{R}/figures/{{figure}}.pdf",
        record=f"{R}/records/figure-{{figure}}.json",
    params:
        **paper.stage("papers.date.figures", settings.sampler, figure="{figure}"),
    log:
        f"{L}/figure-{{figure}}.log",
    cache: True
    shell:
        "python -m papers.date.figures {params.arguments} --metrics {input.metrics} --traces {input.traces}"
        " --trials {input.trials} --strengths {input.strengths} --scores {input.scores}"
        " --directions {input.directions} --paths {input.paths} --images {input.images} --png {output.png}"
        " --pdf {output.pdf} --record {output.record} &> {log}"


include: "../../workflows/results.smk"
