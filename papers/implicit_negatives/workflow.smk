"""Implicit negatives: base model -> strengths, unlearned models -> inversion -> samples -> tables -> report.

Beside it the control: base models on loose captions -> strengths; the rest of it -> the same tables.
"""

import json
from dataclasses import replace

from papers.implicit_negatives.options import UCE, Scale
from papers.implicit_negatives.runs import BASE
from shared.options import plain
from workflows.paper import open_paper

paper = open_paper("implicit_negatives", config["scale"], Scale)
settings = paper.settings
R, L = paper.results, paper.logs

FIGURES = settings.figures
TRAINED = [model for model in settings.models if model not in (BASE, UCE)]
JOBS = [(group, seed) for group in settings.groups for seed in settings.seeds]
INVERTED = settings.seeds if settings.prompts else ()
LOOSE = settings.seeds if settings.control else ()
RECORDS = [
    f"{R}/records/tune.json",
    *[f"{R}/records/unlearn-{model}-seed{seed}.json" for model in TRAINED for seed in settings.seeds],
    *[f"{R}/records/invert-seed{seed}.json" for seed in INVERTED],
    *[f"{R}/records/gates-seed{seed}.json" for seed in INVERTED],
    *[f"{R}/records/sample-{group}-seed{seed}.json" for group, seed in JOBS],
    *[f"{R}/records/tune-loose.json" for _ in LOOSE[:1]],
    *[f"{R}/records/sample-loose-seed{seed}.json" for seed in LOOSE],
]
SAMPLED = {
    "values": f"{R}/samples/{{group}}-seed{{seed}}.parquet",
    "totals": f"{R}/samples/{{group}}-seed{{seed}}-totals.parquet",
    "pictures": f"{R}/samples/{{group}}-seed{{seed}}-pictures.safetensors",
}
SAMPLED_LOOSE = {
    "values": f"{R}/loose/seed{{seed}}.parquet",
    "totals": f"{R}/loose/seed{{seed}}-totals.parquet",
    "pictures": f"{R}/loose/seed{{seed}}-pictures.safetensors",
    "gate_values": f"{R}/loose/gates-seed{{seed}}.parquet",
    "gate_totals": f"{R}/loose/gates-seed{{seed}}-totals.parquet",
}
LAUNCH = paper.launcher(settings.processes)
RESOURCES = paper.resources(settings.processes)


def sampled(name):
    return [SAMPLED[name].format(group=group, seed=seed) for group, seed in JOBS]


def sampled_loose(name, seeds=LOOSE):
    return [SAMPLED_LOOSE[name].format(seed=seed) for seed in seeds]


def runs_of(wildcards):
    return " ".join(settings.groups[wildcards.group])


wildcard_constraints:
    seed=r"\d+",
    group="|".join(settings.groups),
    model="|".join(TRAINED) or "none",


if settings.prompts:

    include: "../../workflows/t2i.smk"

    TUNED_ON = T2I["pipeline"].format(seed=settings.system_seed)
    PIPELINE = T2I["pipeline"] if settings.own_systems else TUNED_ON
    EVALUATOR = T2I["evaluator"].format(seed=settings.system_seed)
    ADAPTERS = [f"{R}/unlearned/{model}-seed{{seed}}.safetensors" for model in TRAINED]

    rule unlearn:
        message: "Unlearning by {wildcards.model}, seed {wildcards.seed}"
        input:
            pipeline=PIPELINE,
        output:
            adapter=f"{R}/unlearned/{{model}}-seed{{seed}}.safetensors",
            curve=f"{R}/unlearned/{{model}}-seed{{seed}}-curve.parquet",
            record=f"{R}/records/unlearn-{{model}}-seed{{seed}}.json",
        params:
            code=paper.stage("shared.t2i.stages.unlearn")["code"],
            arguments=lambda wildcards: paper.stage(
                "shared.t2i.stages.unlearn", settings.unlearn[wildcards.model], seed=wildcards.seed
            )["arguments"],
            model="{model}",
            seed="{seed}",
            state=f"{R}/state/unlearn-{{model}}-seed{{seed}}",
        log:
            f"{L}/unlearn-{{model}}-seed{{seed}}.log",
        cache: True
        shell:
            "python -m shared.t2i.stages.unlearn {params.arguments} --pipeline {input.pipeline}"
            " --adapter {output.adapter} --curve {output.curve} --state {params.state} --record {output.record} &> {log}"

    rule tune:
        message: "Trying strengths"
        input:
            pipeline=TUNED_ON,
            evaluator=EVALUATOR,
        output:
            grid=f"{R}/tuning/grid.parquet",
            selection=f"{R}/tuning/selection.json",
            record=f"{R}/records/tune.json",
        params:
            **paper.stage(
                "papers.implicit_negatives.tune",
                settings.guidance,
                seed=str(settings.tuning_seed),
                count=str(settings.prompts.dev_prompts),
            ),
            runs=" ".join(settings.candidates),
        log:
            f"{L}/tune.log",
        cache: True
        shell:
            "python -m papers.implicit_negatives.tune {params.arguments} --runs {params.runs}"
            " --pipeline {input.pipeline} --evaluator {input.evaluator} --grid {output.grid}"
            " --selection {output.selection} --record {output.record} &> {log}"

    rule invert:
        message: "Inverting the concept on every model, seed {wildcards.seed}"
        input:
            pipeline=PIPELINE,
            unlearned=ADAPTERS,
        output:
            words=f"{R}/inversion/words-seed{{seed}}.safetensors",
            curves=f"{R}/inversion/curves-seed{{seed}}.parquet",
            losses=f"{R}/inversion/losses-seed{{seed}}.parquet",
            record=f"{R}/records/invert-seed{{seed}}.json",
        params:
            **paper.stage("papers.implicit_negatives.invert", settings.inversion, settings.uce, seed="{seed}"),
            models=" ".join(settings.models),
        log:
            f"{L}/invert-seed{{seed}}.log",
        cache: True
        shell:
            "python -m papers.implicit_negatives.invert {params.arguments} --pipeline {input.pipeline}"
            " --unlearned {input.unlearned} --models {params.models} --words {output.words} --curves {output.curves}"
            " --losses {output.losses} --record {output.record} &> {log}"

    rule gates:
        message: "Looking at every model, seed {wildcards.seed}"
        input:
            pipeline=PIPELINE,
            evaluator=EVALUATOR,
            unlearned=ADAPTERS,
            inverted=f"{R}/inversion/words-seed{{seed}}.safetensors",
            selection=f"{R}/tuning/selection.json",
        output:
            values=f"{R}/gates/seed{{seed}}.parquet",
            totals=f"{R}/gates/seed{{seed}}-totals.parquet",
            record=f"{R}/records/gates-seed{{seed}}.json",
        params:
            code=paper.stage("papers.implicit_negatives.gates")["code"],
            arguments=lambda wildcards: paper.stage(
                "papers.implicit_negatives.gates",
                replace(settings.guidance, pictures_per_set=0),
                settings.uce,
                seed=wildcards.seed,
                count=str(settings.gate_prompts),
            )["arguments"],
            seed="{seed}",
            models=" ".join(settings.models),
        log:
            f"{L}/gates-seed{{seed}}.log",
        cache: True
        shell:
            "python -m papers.implicit_negatives.gates {params.arguments} --pipeline {input.pipeline}"
            " --evaluator {input.evaluator} --unlearned {input.unlearned} --models {params.models}"
            " --inverted {input.inverted} --selection {input.selection} --values {output.values}"
            " --totals {output.totals} --record {output.record} &> {log}"

    rule sample:
        message: "Sampling {wildcards.group}, seed {wildcards.seed}"
        input:
            pipeline=PIPELINE,
            evaluator=EVALUATOR,
            unlearned=ADAPTERS,
            inverted=f"{R}/inversion/words-seed{{seed}}.safetensors",
            selection=f"{R}/tuning/selection.json",
        output:
            **SAMPLED,
            record=f"{R}/records/sample-{{group}}-seed{{seed}}.json",
        params:
            code=paper.stage("papers.implicit_negatives.sample")["code"],
            arguments=lambda wildcards: paper.stage(
                "papers.implicit_negatives.sample",
                settings.guidance_of(int(wildcards.seed)),
                settings.uce,
                seed=wildcards.seed,
                count=str(settings.prompts.other_prompts),
                attacks=str(settings.prompts.attack_prompts),
            )["arguments"],
            seed="{seed}",
            runs=runs_of,
            models=" ".join(settings.models),
            group="{group}",
        log:
            f"{L}/sample-{{group}}-seed{{seed}}.log",
        cache: True
        shell:
            "python -m papers.implicit_negatives.sample {params.arguments} --runs {params.runs}"
            " --pipeline {input.pipeline} --evaluator {input.evaluator} --unlearned {input.unlearned}"
            " --models {params.models} --inverted {input.inverted} --selection {input.selection}"
            " --values {output.values} --totals {output.totals} --pictures {output.pictures}"
            " --record {output.record} &> {log}"

    if settings.control:

        control = settings.control
        TRAINING = json.dumps(plain(control.training))
        UNLEARN = json.dumps({name: plain(options) for name, options in control.unlearn.items()})

        rule tune_loose:
            message: "Training the control's base model of the tuning seed, and trying strengths"
            input:
                pipeline=TUNED_ON,
                evaluator=EVALUATOR,
            output:
                grid=f"{R}/loose/grid.parquet",
                selection=f"{R}/loose/selection.json",
                record=f"{R}/records/tune-loose.json",
            params:
                code=paper.stage("papers.implicit_negatives.tune_loose")["code"],
                # A function, since Snakemake reads the braces of JSON as wildcards elsewhere.
                arguments=lambda wildcards: paper.stage(
                    "papers.implicit_negatives.tune_loose",
                    control.captions,
                    settings.control_guidance_of(settings.tuning_seed),
                    seed=str(settings.tuning_seed),
                    count=str(control.prompts.dev_prompts),
                    training=TRAINING,
                )["arguments"],
                runs=" ".join(settings.candidates),
                state=f"{R}/state/tune-loose",
            log:
                f"{L}/tune-loose.log",
            cache: True
            shell:
                "python -m papers.implicit_negatives.tune_loose {params.arguments} --runs {params.runs}"
                " --pipeline {input.pipeline} --evaluator {input.evaluator} --grid {output.grid}"
                " --selection {output.selection} --state {params.state}"
                " --record {output.record} &> {log}"

        rule sample_loose:
            message: "Training the control's models, inverting and sampling, seed {wildcards.seed}"
            input:
                pipeline=PIPELINE,
                evaluator=EVALUATOR,
                selection=f"{R}/loose/selection.json",
            output:
                **SAMPLED_LOOSE,
                record=f"{R}/records/sample-loose-seed{{seed}}.json",
            params:
                code=paper.stage("papers.implicit_negatives.sample_loose")["code"],
                arguments=lambda wildcards: paper.stage(
                    "papers.implicit_negatives.sample_loose",
                    control.captions,
                    settings.control_guidance_of(int(wildcards.seed)),
                    settings.inversion,
                    control.uce,
                    seed=wildcards.seed,
                    count=str(control.prompts.other_prompts),
                    attacks=str(control.prompts.attack_prompts),
                    gate_count=str(control.gate_prompts),
                    training=TRAINING,
                    unlearn=UNLEARN,
                )["arguments"],
                seed="{seed}",
                runs=" ".join(control.runs),
                state=f"{R}/state/sample-loose-seed{{seed}}",
            log:
                f"{L}/sample-loose-seed{{seed}}.log",
            cache: True
            shell:
                "python -m papers.implicit_negatives.sample_loose {params.arguments} --runs {params.runs}"
                " --pipeline {input.pipeline} --evaluator {input.evaluator} --selection {input.selection}"
                " --values {output.values} --totals {output.totals} --pictures {output.pictures}"
                " --gate-values {output.gate_values} --gate-totals {output.gate_totals}"
                " --state {params.state} --record {output.record} &> {log}"

else:

    rule tune_hub:
        message: "Trying strengths"
        output:
            grid=f"{R}/tuning/grid.parquet",
            selection=f"{R}/tuning/selection.json",
            record=f"{R}/records/tune.json",
        params:
            **paper.stage(
                "papers.implicit_negatives.tune_hub",
                settings.guidance,
                settings.hub,
                seed=str(settings.tuning_seed),
            ),
            runs=" ".join(settings.candidates),
            launch=LAUNCH,
        log:
            f"{L}/tune.log",
        resources:
            **RESOURCES,
        cache: True
        shell:
            "{params.launch} papers.implicit_negatives.tune_hub {params.arguments} --runs {params.runs} --grid {output.grid}"
            " --selection {output.selection} --record {output.record} &> {log}"

    # Inversion and sampling are one job: a learned embedding is itself an attack, and stays in the job's memory.
    rule sample_hub:
        message: "Inverting and sampling {wildcards.group}, seed {wildcards.seed}"
        input:
            selection=f"{R}/tuning/selection.json",
        output:
            **SAMPLED,
            record=f"{R}/records/sample-{{group}}-seed{{seed}}.json",
        params:
            **paper.stage(
                "papers.implicit_negatives.sample_hub",
                settings.guidance,
                settings.inversion,
                settings.hub,
                seed="{seed}",
            ),
            runs=runs_of,
            group="{group}",
            launch=LAUNCH,
        log:
            f"{L}/sample-{{group}}-seed{{seed}}.log",
        resources:
            **RESOURCES,
        cache: True
        shell:
            "{params.launch} papers.implicit_negatives.sample_hub {params.arguments} --runs {params.runs}"
            " --selection {input.selection} --values {output.values} --totals {output.totals}"
            " --pictures {output.pictures} --record {output.record} &> {log}"


rule evaluate:
    message: "Collecting all measurements"
    input:
        values=sampled("values"),
        totals=sampled("totals"),
        losses=[f"{R}/inversion/losses-seed{seed}.parquet" for seed in INVERTED],
        loose_values=sampled_loose("values"),
        loose_totals=sampled_loose("totals"),
        loose_gate_values=sampled_loose("gate_values"),
        loose_gate_totals=sampled_loose("gate_totals"),
        gate_values=[f"{R}/gates/seed{seed}.parquet" for seed in INVERTED],
        gate_totals=[f"{R}/gates/seed{seed}-totals.parquet" for seed in INVERTED],
    output:
        metrics=f"{R}/metrics.parquet",
        units=f"{R}/units.parquet",
        record=f"{R}/records/evaluate.json",
    params:
        **paper.stage("papers.implicit_negatives.evaluate", paper=paper.id, scale=paper.scale),
        seeds=" ".join(str(seed) for _, seed in JOBS),
        loss_seeds=" ".join(map(str, INVERTED)),
        loose_seeds=" ".join(map(str, LOOSE)),
    log:
        f"{L}/evaluate.log",
    cache: True
    shell:
        "python -m papers.implicit_negatives.evaluate {params.arguments} --values {input.values}"
        " --totals {input.totals} --seeds {params.seeds} --losses {input.losses} --loss-seeds {params.loss_seeds}"
        " --loose-values {input.loose_values} --loose-totals {input.loose_totals} --loose-seeds {params.loose_seeds}"
        " --loose-gate-values {input.loose_gate_values} --loose-gate-totals {input.loose_gate_totals}"
        " --gate-values {input.gate_values} --gate-totals {input.gate_totals}"
        " --metrics {output.metrics} --units {output.units} --record {output.record} &> {log}"


rule figure:
    message: "Drawing {wildcards.figure}"
    input:
        metrics=f"{R}/metrics.parquet",
        grid=f"{R}/tuning/grid.parquet",
        curves=[f"{R}/inversion/curves-seed{seed}.parquet" for seed in INVERTED],
        pictures=[SAMPLED["pictures"].format(group=group, seed=settings.seeds[0]) for group in settings.groups],
        loose_pictures=sampled_loose("pictures", LOOSE[:1]),
    output:
        png=f"{R}/figures/{{figure}}.png",
        pdf=f"{R}/figures/{{figure}}.pdf",
        record=f"{R}/records/figure-{{figure}}.json",
    params:
        **paper.stage("papers.implicit_negatives.figures", figure="{figure}"),
    log:
        f"{L}/figure-{{figure}}.log",
    cache: True
    shell:
        "python -m papers.implicit_negatives.figures {params.arguments} --metrics {input.metrics} --grid {input.grid}"
        " --curves {input.curves} --pictures {input.pictures} --loose-pictures {input.loose_pictures}"
        " --png {output.png} --pdf {output.pdf} --record {output.record} &> {log}"


include: "../../workflows/results.smk"
