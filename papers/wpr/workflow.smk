"""Wasserstein policy regularization: data -> supervised model -> reward models -> policies -> tables -> report."""

from papers.wpr.options import Scale
from workflows.paper import open_paper

paper = open_paper("wpr", config["scale"], Scale)
settings = paper.settings
R, L = paper.results, paper.logs

LAUNCH = paper.launcher(settings.processes)
RESOURCES = paper.resources(settings.processes)
JUDGE = "gold" if settings.data else "score"
DISTANCES = [] if settings.policy.wasserstein.neighbors is None else [f"{R}/supervised/seed{{seed}}-distances.parquet"]
FIGURES = settings.figures
JOBS = [
    f"{setting}-{family}-seed{seed}"
    for setting, families in settings.plan.items()
    for family in families
    for seed in settings.seeds
]
ANALYSED = [f"{setting}-seed{seed}" for setting in settings.analysed for seed in settings.seeds]
RECORDS = [
    *[f"{R}/records/supervised-seed{seed}.json" for seed in settings.seeds],
    *[f"{R}/records/reward-{setting}-seed{seed}.json" for setting in settings.plan for seed in settings.seeds],
    *[f"{R}/records/train-{job}.json" for job in JOBS],
]


wildcard_constraints:
    seed=r"\d+",
    setting="|".join(settings.settings),
    family="|".join(settings.families),


if settings.data:

    rule prepare:
        message: "Drawing the data of seed {wildcards.seed}"
        output:
            words=f"{R}/data/words-seed{{seed}}.txt",
            supervised=f"{R}/data/supervised-seed{{seed}}.parquet",
            pairs=f"{R}/data/pairs-seed{{seed}}.parquet",
            prompts=f"{R}/data/prompts-seed{{seed}}.parquet",
            record=f"{R}/records/prepare-seed{{seed}}.json",
        params:
            **paper.stage("papers.wpr.prepare", settings.data, seed="{seed}"),
        log:
            f"{L}/prepare-seed{{seed}}.log",
        cache: True
        shell:
            "python -m papers.wpr.prepare {params.arguments} --words {output.words} --supervised {output.supervised}"
            " --pairs {output.pairs} --prompts {output.prompts} --record {output.record} &> {log}"

    rule annotate:
        message: "Annotators of setting {wildcards.setting} compare answers, seed {wildcards.seed}"
        input:
            pairs=rules.prepare.output.pairs,
        output:
            preferences=f"{R}/data/preferences-{{setting}}-seed{{seed}}.parquet",
            record=f"{R}/records/annotate-{{setting}}-seed{{seed}}.json",
        params:
            **paper.stage("papers.wpr.annotate", settings.annotation, seed="{seed}"),
            setting="{setting}",
            bias=lambda wildcards: settings.settings[wildcards.setting],
        log:
            f"{L}/annotate-{{setting}}-seed{{seed}}.log",
        cache: True
        shell:
            "python -m papers.wpr.annotate {params.arguments} --bias {params.bias} --pairs {input.pairs}"
            " --preferences {output.preferences} --record {output.record} &> {log}"

else:

    rule prepare_hub:
        message: "Splitting the data set, seed {wildcards.seed}"
        output:
            words=f"{R}/data/words-seed{{seed}}.txt",
            supervised=f"{R}/data/supervised-seed{{seed}}.parquet",
            preferences=f"{R}/data/preferences-{next(iter(settings.settings))}-seed{{seed}}.parquet",
            prompts=f"{R}/data/prompts-seed{{seed}}.parquet",
            record=f"{R}/records/prepare-seed{{seed}}.json",
        params:
            **paper.stage("papers.wpr.prepare_hub", settings.hub, seed="{seed}"),
        log:
            f"{L}/prepare-seed{{seed}}.log",
        cache: True
        shell:
            "python -m papers.wpr.prepare_hub {params.arguments} --words {output.words}"
            " --supervised {output.supervised} --preferences {output.preferences} --prompts {output.prompts}"
            " --record {output.record} &> {log}"


rule supervised:
    message: "Fine-tuning the supervised model of seed {wildcards.seed}"
    input:
        examples=f"{R}/data/supervised-seed{{seed}}.parquet",
        words=f"{R}/data/words-seed{{seed}}.txt",
    output:
        model=directory(f"{R}/supervised/seed{{seed}}"),
        curve=f"{R}/supervised/seed{{seed}}-curve.parquet",
        record=f"{R}/records/supervised-seed{{seed}}.json",
    params:
        **paper.stage("shared.lm.stages.finetune", settings.supervised, seed="{seed}"),
        launch=LAUNCH,
        state=f"{R}/state/supervised-seed{{seed}}",
    log:
        f"{L}/supervised-seed{{seed}}.log",
    resources:
        **RESOURCES,
    cache: True
    shell:
        "{params.launch} shared.lm.stages.finetune {params.arguments} --examples {input.examples}"
        " --words {input.words} --model {output.model} --curve {output.curve} --state {params.state}"
        " --record {output.record} &> {log}"


rule reward:
    message: "Training the reward model of setting {wildcards.setting}, seed {wildcards.seed}"
    input:
        preferences=f"{R}/data/preferences-{{setting}}-seed{{seed}}.parquet",
        supervised=f"{R}/supervised/seed{{seed}}",
    output:
        model=directory(f"{R}/reward/{{setting}}-seed{{seed}}"),
        curve=f"{R}/reward/{{setting}}-seed{{seed}}-curve.parquet",
        record=f"{R}/records/reward-{{setting}}-seed{{seed}}.json",
    params:
        **paper.stage("papers.wpr.reward", settings.reward, seed="{seed}"),
        setting="{setting}",
        launch=LAUNCH,
        state=f"{R}/state/reward-{{setting}}-seed{{seed}}",
    log:
        f"{L}/reward-{{setting}}-seed{{seed}}.log",
    resources:
        **RESOURCES,
    cache: True
    shell:
        "{params.launch} papers.wpr.reward {params.arguments} --preferences {input.preferences}"
        " --supervised {input.supervised} --model {output.model} --curve {output.curve} --state {params.state}"
        " --record {output.record} &> {log}"


if settings.policy.wasserstein.neighbors is not None:

    rule neighbors:
        message: "Finding the neighbours of every token, seed {wildcards.seed}"
        input:
            supervised=rules.supervised.output.model,
        output:
            distances=f"{R}/supervised/seed{{seed}}-distances.parquet",
            record=f"{R}/records/neighbors-seed{{seed}}.json",
        params:
            **paper.stage("papers.wpr.neighbors", settings.policy.wasserstein),
            seed="{seed}",
        log:
            f"{L}/neighbors-seed{{seed}}.log",
        resources:
            **paper.resources(min(settings.processes, 1)),
        cache: True
        shell:
            "python -m papers.wpr.neighbors {params.arguments} --supervised {input.supervised}"
            " --distances {output.distances} --record {output.record} &> {log}"


rule train:
    message: "Training {wildcards.family} policies in setting {wildcards.setting}, seed {wildcards.seed}"
    input:
        prompts=f"{R}/data/prompts-seed{{seed}}.parquet",
        supervised=f"{R}/supervised/seed{{seed}}",
        reward=f"{R}/reward/{{setting}}-seed{{seed}}",
        distances=DISTANCES,
    output:
        policies=directory(f"{R}/policies/{{setting}}-{{family}}-seed{{seed}}"),
        samples=f"{R}/samples/{{setting}}-{{family}}-seed{{seed}}.parquet",
        curves=f"{R}/curves/{{setting}}-{{family}}-seed{{seed}}.parquet",
        record=f"{R}/records/train-{{setting}}-{{family}}-seed{{seed}}.json",
    params:
        **paper.stage("papers.wpr.train", settings.policy, seed="{seed}", setting="{setting}", judge=JUDGE),
        runs=lambda wildcards: " ".join(
            f"{method}:{weight:g}"
            for method in settings.families[wildcards.family]
            for weight in settings.grids[method]
        ),
        family="{family}",
        distances=lambda wildcards, input: f"--distances {input.distances}" if input.distances else "",
        launch=LAUNCH,
        state=f"{R}/state/train-{{setting}}-{{family}}-seed{{seed}}",
    log:
        f"{L}/train-{{setting}}-{{family}}-seed{{seed}}.log",
    resources:
        **RESOURCES,
    cache: True
    shell:
        "{params.launch} papers.wpr.train {params.arguments} --runs {params.runs} --prompts {input.prompts}"
        " --supervised {input.supervised} --reward {input.reward} {params.distances} --policies {output.policies}"
        " --samples {output.samples} --curves {output.curves} --state {params.state} --record {output.record} &> {log}"


rule analyse:
    message: "Analysing penalties in setting {wildcards.setting}, seed {wildcards.seed}"
    input:
        prompts=f"{R}/data/prompts-seed{{seed}}.parquet",
        supervised=f"{R}/supervised/seed{{seed}}",
        policies=f"{R}/policies/{{setting}}-main-seed{{seed}}",
    output:
        analysis=f"{R}/analysis/{{setting}}-seed{{seed}}.parquet",
        tokens=f"{R}/analysis/{{setting}}-seed{{seed}}-tokens.parquet",
        convergence=f"{R}/analysis/{{setting}}-seed{{seed}}-convergence.parquet",
        record=f"{R}/records/analyse-{{setting}}-seed{{seed}}.json",
    params:
        **paper.stage("papers.wpr.analyse", settings.analysis, settings.policy, seed="{seed}", setting="{setting}"),
    log:
        f"{L}/analyse-{{setting}}-seed{{seed}}.log",
    cache: True
    shell:
        "python -m papers.wpr.analyse {params.arguments} --prompts {input.prompts} --supervised {input.supervised}"
        " --policies {input.policies} --analysis {output.analysis} --tokens {output.tokens}"
        " --convergence {output.convergence} --record {output.record} &> {log}"


rule evaluate:
    message: "Judging all responses"
    input:
        samples=[f"{R}/samples/{job}.parquet" for job in JOBS],
        records=[f"{R}/records/train-{job}.json" for job in JOBS],
        analyses=[f"{R}/analysis/{each}.parquet" for each in ANALYSED],
    output:
        metrics=f"{R}/metrics.parquet",
        units=f"{R}/units.parquet",
        sweep=f"{R}/sweep.parquet",
        record=f"{R}/records/evaluate.json",
    params:
        **paper.stage("papers.wpr.evaluate", paper=paper.id, scale=paper.scale, judge=JUDGE),
    log:
        f"{L}/evaluate.log",
    cache: True
    shell:
        "python -m papers.wpr.evaluate {params.arguments} --samples {input.samples}"
        " --analyses {input.analyses} --records {input.records} --metrics {output.metrics} --units {output.units}"
        " --sweep {output.sweep} --record {output.record} &> {log}"


rule figure:
    message: "Drawing {wildcards.figure}"
    input:
        metrics=f"{R}/metrics.parquet",
        sweep=f"{R}/sweep.parquet",
        curves=[f"{R}/curves/{job}.parquet" for job in JOBS],
        tokens=[f"{R}/analysis/{each}-tokens.parquet" for each in ANALYSED],
        convergence=[f"{R}/analysis/{each}-convergence.parquet" for each in ANALYSED],
    output:
        png=f"{R}/figures/{{figure}}.png",
        pdf=f"{R}/figures/{{figure}}.pdf",
        record=f"{R}/records/figure-{{figure}}.json",
    params:
        **paper.stage("papers.wpr.figures", figure="{figure}"),
    log:
        f"{L}/figure-{{figure}}.log",
    cache: True
    shell:
        "python -m papers.wpr.figures {params.arguments} --metrics {input.metrics}"
        " --sweep {input.sweep} --curves {input.curves} --tokens {input.tokens} --convergence {input.convergence}"
        " --png {output.png} --pdf {output.pdf} --record {output.record} &> {log}"


include: "../../workflows/results.smk"
