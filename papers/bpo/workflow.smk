"""Bregman preference optimization: data -> supervised model -> policies of every loss -> tables -> report."""

from papers.bpo.options import Scale
from workflows.paper import open_paper

paper = open_paper("bpo", config["scale"], Scale)
settings = paper.settings
R, L = paper.results, paper.logs

LAUNCH = paper.launcher(settings.processes)
RESOURCES = paper.resources(settings.processes)
FIGURES = settings.figures
RUNS = [f"{setting}-seed{seed}" for setting in settings.settings for seed in settings.seeds]
JOBS = [f"{family}-{run}" for family in settings.families for run in RUNS]
RECORDS = [
    *[f"{R}/records/supervised-{run}.json" for run in RUNS],
    *[f"{R}/records/optimize-{job}.json" for job in JOBS],
]
DATA = {
    "words": f"{R}/data/words-{{setting}}-seed{{seed}}.txt",
    **{
        name: f"{R}/data/{name.replace('_', '-')}-{{setting}}-seed{{seed}}.parquet"
        for name in ("supervised", "pairs", "held_out", "prompts", "references")
    },
}
DATA_FLAGS = " ".join(f"--{name.replace('_', '-')} {{output.{name}}}" for name in DATA)


wildcard_constraints:
    seed=r"\d+",
    setting="|".join(settings.settings),
    family="|".join(settings.families),


if settings.data:

    rule prepare:
        message: "Drawing the data of setting {wildcards.setting}, seed {wildcards.seed}"
        output:
            **DATA,
            record=f"{R}/records/prepare-{{setting}}-seed{{seed}}.json",
        params:
            **paper.stage("papers.bpo.prepare", settings.data, seed="{seed}"),
            setting="{setting}",
            kappa=lambda wildcards: settings.settings[wildcards.setting],
        log:
            f"{L}/prepare-{{setting}}-seed{{seed}}.log",
        cache: True
        shell:
            "python -m papers.bpo.prepare {params.arguments} --kappa {params.kappa} "
            + DATA_FLAGS
            + " --record {output.record} &> {log}"

else:

    rule prepare_hub:
        message: "Splitting the data set, seed {wildcards.seed}"
        output:
            **DATA,
            record=f"{R}/records/prepare-{{setting}}-seed{{seed}}.json",
        params:
            **paper.stage("papers.bpo.prepare_hub", settings.hub, seed="{seed}"),
            setting="{setting}",
        log:
            f"{L}/prepare-{{setting}}-seed{{seed}}.log",
        cache: True
        shell:
            "python -m papers.bpo.prepare_hub {params.arguments} "
            + DATA_FLAGS
            + " --record {output.record} &> {log}"


rule supervised:
    message: "Fine-tuning the supervised model of setting {wildcards.setting}, seed {wildcards.seed}"
    input:
        examples=DATA["supervised"],
        words=DATA["words"],
    output:
        model=directory(f"{R}/supervised/{{setting}}-seed{{seed}}"),
        curve=f"{R}/supervised/{{setting}}-seed{{seed}}-curve.parquet",
        record=f"{R}/records/supervised-{{setting}}-seed{{seed}}.json",
    params:
        **paper.stage("shared.lm.stages.finetune", settings.supervised, seed="{seed}"),
        setting="{setting}",
        launch=LAUNCH,
        state=f"{R}/state/supervised-{{setting}}-seed{{seed}}",
    log:
        f"{L}/supervised-{{setting}}-seed{{seed}}.log",
    resources:
        **RESOURCES,
    cache: True
    shell:
        "{params.launch} shared.lm.stages.finetune {params.arguments} --examples {input.examples}"
        " --words {input.words} --model {output.model} --curve {output.curve} --state {params.state}"
        " --record {output.record} &> {log}"


rule optimize:
    message: "Training {wildcards.family} policies in setting {wildcards.setting}, seed {wildcards.seed}"
    input:
        pairs=DATA["pairs"],
        held_out=DATA["held_out"],
        prompts=DATA["prompts"],
        references=DATA["references"],
        supervised=f"{R}/supervised/{{setting}}-seed{{seed}}",
    output:
        policies=directory(f"{R}/policies/{{family}}-{{setting}}-seed{{seed}}"),
        samples=f"{R}/samples/{{family}}-{{setting}}-seed{{seed}}.parquet",
        curves=f"{R}/curves/{{family}}-{{setting}}-seed{{seed}}.parquet",
        margins=f"{R}/margins/{{family}}-{{setting}}-seed{{seed}}.parquet",
        record=f"{R}/records/optimize-{{family}}-{{setting}}-seed{{seed}}.json",
    params:
        **paper.stage("papers.bpo.optimize", settings.optimize, seed="{seed}", setting="{setting}"),
        methods=lambda wildcards: " ".join(settings.families[wildcards.family]),
        family="{family}",
        launch=LAUNCH,
        state=f"{R}/state/optimize-{{family}}-{{setting}}-seed{{seed}}",
    log:
        f"{L}/optimize-{{family}}-{{setting}}-seed{{seed}}.log",
    resources:
        **RESOURCES,
    cache: True
    shell:
        "{params.launch} papers.bpo.optimize {params.arguments} --methods {params.methods} --pairs {input.pairs}"
        " --held-out {input.held_out} --prompts {input.prompts} --references {input.references}"
        " --supervised {input.supervised} --policies {output.policies} --samples {output.samples}"
        " --curves {output.curves} --margins {output.margins} --state {params.state} --record {output.record} &> {log}"


rule study_optima:
    message: "Minimising every loss on tabular problems"
    output:
        gaps=f"{R}/optima.parquet",
        generators=f"{R}/generators.parquet",
        record=f"{R}/records/study-optima.json",
    params:
        **paper.stage("papers.bpo.study_optima", settings.tabular),
        seeds=" ".join(map(str, settings.seeds)),
    log:
        f"{L}/study-optima.log",
    cache: True
    shell:
        "python -m papers.bpo.study_optima {params.arguments} --seeds {params.seeds} --gaps {output.gaps}"
        " --generators {output.generators} --record {output.record} &> {log}"


rule evaluate:
    message: "Comparing all responses"
    input:
        samples=[f"{R}/samples/{job}.parquet" for job in JOBS],
        curves=[f"{R}/curves/{job}.parquet" for job in JOBS],
        margins=[f"{R}/margins/{job}.parquet" for job in JOBS],
        records=[f"{R}/records/optimize-{job}.json" for job in JOBS],
        gaps=f"{R}/optima.parquet",
    output:
        metrics=f"{R}/metrics.parquet",
        units=f"{R}/units.parquet",
        temperatures=f"{R}/temperatures.parquet",
        training=f"{R}/training.parquet",
        held_out=f"{R}/held-out-margins.parquet",
        record=f"{R}/records/evaluate.json",
    params:
        **paper.stage("papers.bpo.evaluate", settings.evaluation, paper=paper.id, scale=paper.scale),
    log:
        f"{L}/evaluate.log",
    cache: True
    shell:
        "python -m papers.bpo.evaluate {params.arguments} --samples {input.samples} --curves {input.curves}"
        " --margins {input.margins} --records {input.records} --gaps {input.gaps} --metrics {output.metrics}"
        " --units {output.units} --temperatures {output.temperatures} --training {output.training}"
        " --held-out {output.held_out} --record {output.record} &> {log}"


rule figure:
    message: "Drawing {wildcards.figure}"
    input:
        metrics=f"{R}/metrics.parquet",
        temperatures=f"{R}/temperatures.parquet",
        training=f"{R}/training.parquet",
        held_out=f"{R}/held-out-margins.parquet",
        gaps=f"{R}/optima.parquet",
        generators=f"{R}/generators.parquet",
    output:
        png=f"{R}/figures/{{figure}}.png",
        pdf=f"{R}/figures/{{figure}}.pdf",
        record=f"{R}/records/figure-{{figure}}.json",
    params:
        **paper.stage("papers.bpo.figures", figure="{figure}"),
    log:
        f"{L}/figure-{{figure}}.log",
    cache: True
    shell:
        "python -m papers.bpo.figures {params.arguments} --metrics {input.metrics} --temperatures {input.temperatures}"
        " --training {input.training} --held-out {input.held_out} --gaps {input.gaps}"
        " --generators {input.generators} --png {output.png} --pdf {output.pdf} --record {output.record} &> {log}"


include: "../../workflows/results.smk"
