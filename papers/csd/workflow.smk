"""Concrete score distillation: data -> teacher and student -> learning rates -> distilled students -> tables -> report."""

from papers.csd.options import Scale
from papers.csd.runs import tuned_runs
from workflows.paper import open_paper

paper = open_paper("csd", config["scale"], Scale)
settings = paper.settings
R, L = paper.results, paper.logs

LAUNCH = paper.launcher(settings.processes)
RESOURCES = paper.resources(settings.processes)
JUDGE = "gold" if settings.data else "none"
FIGURES = settings.figures
JOBS = [f"{family}-seed{seed}" for family in settings.families for seed in settings.seeds]
ALL_RUNS = [run for runs in settings.families.values() for run in runs]
TUNED = {family: tuned_runs(runs) for family, runs in settings.families.items() if tuned_runs(runs)}
SAMPLED = {seed: [f"{R}/samples/{family}-seed{seed}.parquet" for family in settings.families] for seed in settings.seeds}
RECORDS = [
    *[f"{R}/records/{role}-seed{seed}.json" for role in ("teacher", "student") for seed in settings.seeds],
    *[f"{R}/records/tune-{family}.json" for family in TUNED],
    *[f"{R}/records/distill-{job}.json" for job in JOBS],
]
DATA = {
    "words": f"{R}/data/words-seed{{seed}}.txt",
    "teaching": f"{R}/data/teaching-seed{{seed}}.parquet",
    "distillation": f"{R}/data/distillation-seed{{seed}}.parquet",
    "plain": f"{R}/data/plain-seed{{seed}}.parquet",
    "prompts": f"{R}/data/prompts-seed{{seed}}.parquet",
}
PREPARE = " ".join(f"--{name} {{output.{name}}}" for name in DATA)


def of_seed(path, seed):
    return path.replace("{seed}", str(seed))


wildcard_constraints:
    seed=r"\d+",
    family="|".join(settings.families),


if settings.data:

    rule prepare:
        message: "Drawing the data of seed {wildcards.seed}"
        output:
            **DATA,
            record=f"{R}/records/prepare-seed{{seed}}.json",
        params:
            **paper.stage("papers.csd.prepare", settings.data, seed="{seed}"),
        log:
            f"{L}/prepare-seed{{seed}}.log",
        cache: True
        shell:
            "python -m papers.csd.prepare {params.arguments} " + PREPARE + " --record {output.record} &> {log}"

else:

    rule prepare_hub:
        message: "Reading the instruction data, seed {wildcards.seed}"
        output:
            **DATA,
            record=f"{R}/records/prepare-seed{{seed}}.json",
        params:
            **paper.stage("papers.csd.prepare_hub", settings.hub),
            seed="{seed}",
        log:
            f"{L}/prepare-seed{{seed}}.log",
        cache: True
        shell:
            "python -m papers.csd.prepare_hub {params.arguments} " + PREPARE + " --record {output.record} &> {log}"


rule teacher:
    message: "Training the teacher of seed {wildcards.seed}"
    input:
        examples=DATA["teaching"],
        words=DATA["words"],
    output:
        model=directory(f"{R}/teacher/seed{{seed}}"),
        curve=f"{R}/teacher/seed{{seed}}-curve.parquet",
        record=f"{R}/records/teacher-seed{{seed}}.json",
    params:
        **paper.stage("shared.lm.stages.finetune", settings.teacher, seed="{seed}"),
        launch=LAUNCH,
        state=f"{R}/state/teacher-seed{{seed}}",
    log:
        f"{L}/teacher-seed{{seed}}.log",
    resources:
        **RESOURCES,
    cache: True
    shell:
        "{params.launch} shared.lm.stages.finetune {params.arguments} --examples {input.examples}"
        " --words {input.words} --model {output.model} --curve {output.curve} --state {params.state}"
        " --record {output.record} &> {log}"


rule student:
    message: "Initialising the student of seed {wildcards.seed}"
    input:
        examples=DATA["distillation"],
        words=DATA["words"],
    output:
        model=directory(f"{R}/student/seed{{seed}}"),
        curve=f"{R}/student/seed{{seed}}-curve.parquet",
        record=f"{R}/records/student-seed{{seed}}.json",
    params:
        **paper.stage("shared.lm.stages.finetune", settings.student, seed="{seed}"),
        launch=LAUNCH,
        state=f"{R}/state/student-seed{{seed}}",
    log:
        f"{L}/student-seed{{seed}}.log",
    resources:
        **RESOURCES,
    cache: True
    shell:
        "{params.launch} shared.lm.stages.finetune {params.arguments} --examples {input.examples}"
        " --words {input.words} --model {output.model} --curve {output.curve} --state {params.state}"
        " --record {output.record} &> {log}"


rule tune:
    message: "Trying learning rates for {wildcards.family}"
    input:
        examples=of_seed(DATA["distillation"], settings.tuning_seed),
        prompts=of_seed(DATA["prompts"], settings.tuning_seed),
        plain=of_seed(DATA["plain"], settings.tuning_seed),
        teacher=f"{R}/teacher/seed{settings.tuning_seed}",
        student=f"{R}/student/seed{settings.tuning_seed}",
    output:
        validation=f"{R}/tuning/{{family}}.parquet",
        record=f"{R}/records/tune-{{family}}.json",
    params:
        **paper.stage(
            "papers.csd.tune", settings.distill, settings.tune, settings.score, seed=str(settings.tuning_seed)
        ),
        runs=lambda wildcards: " ".join(TUNED[wildcards.family]),
        family="{family}",
        launch=LAUNCH,
        state=f"{R}/state/tune-{{family}}",
    log:
        f"{L}/tune-{{family}}.log",
    resources:
        **RESOURCES,
    cache: True
    shell:
        "{params.launch} papers.csd.tune {params.arguments} --runs {params.runs} --examples {input.examples}"
        " --prompts {input.prompts} --plain {input.plain} --teacher {input.teacher} --student {input.student}"
        " --validation {output.validation} --state {params.state} --record {output.record} &> {log}"


rule select:
    message: "Selecting learning rates"
    input:
        validation=[f"{R}/tuning/{family}.parquet" for family in TUNED],
    output:
        rates=f"{R}/tuning/rates.json",
        grid=f"{R}/tuning/grid.parquet",
        record=f"{R}/records/select.json",
    params:
        **paper.stage("papers.csd.select"),
        runs=" ".join(ALL_RUNS),
    log:
        f"{L}/select.log",
    cache: True
    shell:
        "python -m papers.csd.select {params.arguments} --runs {params.runs} --validation {input.validation}"
        " --rates {output.rates} --grid {output.grid} --record {output.record} &> {log}"


rule distill:
    message: "Distilling {wildcards.family}, seed {wildcards.seed}"
    input:
        examples=DATA["distillation"],
        prompts=DATA["prompts"],
        plain=DATA["plain"],
        teacher=f"{R}/teacher/seed{{seed}}",
        student=f"{R}/student/seed{{seed}}",
        rates=f"{R}/tuning/rates.json",
    output:
        samples=f"{R}/samples/{{family}}-seed{{seed}}.parquet",
        fidelity=f"{R}/fidelity/{{family}}-seed{{seed}}.parquet",
        curves=f"{R}/curves/{{family}}-seed{{seed}}.parquet",
        costs=f"{R}/costs/{{family}}-seed{{seed}}.parquet",
        students=directory(f"{R}/students/{{family}}-seed{{seed}}"),
        record=f"{R}/records/distill-{{family}}-seed{{seed}}.json",
    params:
        **paper.stage("papers.csd.distill", settings.distill, seed="{seed}"),
        runs=lambda wildcards: " ".join(settings.families[wildcards.family]),
        family="{family}",
        launch=LAUNCH,
        state=f"{R}/state/distill-{{family}}-seed{{seed}}",
    log:
        f"{L}/distill-{{family}}-seed{{seed}}.log",
    resources:
        **RESOURCES,
    cache: True
    shell:
        "{params.launch} papers.csd.distill {params.arguments} --runs {params.runs} --examples {input.examples}"
        " --prompts {input.prompts} --plain {input.plain} --teacher {input.teacher} --student {input.student}"
        " --rates {input.rates} --samples {output.samples} --fidelity {output.fidelity} --curves {output.curves}"
        " --costs {output.costs} --students {output.students} --state {params.state} --record {output.record} &> {log}"


rule score:
    message: "Scoring the samples of seed {wildcards.seed}"
    input:
        samples=lambda wildcards: SAMPLED[int(wildcards.seed)],
        prompts=DATA["prompts"],
    output:
        scores=f"{R}/scores/seed{{seed}}.parquet",
        record=f"{R}/records/score-seed{{seed}}.json",
    params:
        **paper.stage("papers.csd.score", settings.score, judge=JUDGE),
        seed="{seed}",
    log:
        f"{L}/score-seed{{seed}}.log",
    cache: True
    shell:
        "python -m papers.csd.score {params.arguments} --samples {input.samples} --prompts {input.prompts}"
        " --scores {output.scores} --record {output.record} &> {log}"


rule examine:
    message: "Examining what losses see of the teacher of seed {wildcards.seed}"
    input:
        examples=DATA["distillation"],
        teacher=f"{R}/teacher/seed{{seed}}",
        student=f"{R}/student/seed{{seed}}",
    output:
        gradients=f"{R}/examination/gradients-seed{{seed}}.parquet",
        shifts=f"{R}/examination/shifts-seed{{seed}}.parquet",
        probabilities=f"{R}/examination/probabilities-seed{{seed}}.parquet",
        sampling=f"{R}/examination/sampling-seed{{seed}}.parquet",
        quantities=f"{R}/examination/quantities-seed{{seed}}.parquet",
        record=f"{R}/records/examine-seed{{seed}}.json",
    params:
        **paper.stage("papers.csd.examine", settings.distill, seed="{seed}"),
    log:
        f"{L}/examine-seed{{seed}}.log",
    cache: True
    shell:
        "python -m papers.csd.examine {params.arguments} --examples {input.examples} --teacher {input.teacher}"
        " --student {input.student} --gradients {output.gradients} --shifts {output.shifts}"
        " --probabilities {output.probabilities} --sampling {output.sampling} --quantities {output.quantities}"
        " --record {output.record} &> {log}"


rule measure_cost:
    message: "Measuring what losses cost"
    output:
        costs=f"{R}/examination/cost.parquet",
        record=f"{R}/records/measure_cost.json",
    params:
        **paper.stage("papers.csd.measure_cost", settings.cost),
    log:
        f"{L}/measure_cost.log",
    cache: True
    shell:
        "python -m papers.csd.measure_cost {params.arguments} --costs {output.costs} --record {output.record} &> {log}"


rule evaluate:
    message: "Collecting all scores"
    input:
        scores=[f"{R}/scores/seed{seed}.parquet" for seed in settings.seeds],
        fidelity=[f"{R}/fidelity/{job}.parquet" for job in JOBS],
        curves=[f"{R}/curves/{job}.parquet" for job in JOBS],
        costs=[f"{R}/costs/{job}.parquet" for job in JOBS],
        quantities=[f"{R}/examination/quantities-seed{seed}.parquet" for seed in settings.seeds],
        prompts=of_seed(DATA["prompts"], settings.seeds[0]),
    output:
        metrics=f"{R}/metrics.parquet",
        units=f"{R}/units.parquet",
        training=f"{R}/training.parquet",
        record=f"{R}/records/evaluate.json",
    params:
        **paper.stage("papers.csd.evaluate", paper=paper.id, scale=paper.scale, judge=JUDGE),
    log:
        f"{L}/evaluate.log",
    cache: True
    shell:
        "python -m papers.csd.evaluate {params.arguments} --scores {input.scores} --fidelity {input.fidelity}"
        " --curves {input.curves} --costs {input.costs} --quantities {input.quantities} --prompts {input.prompts} --metrics {output.metrics}"
        " --units {output.units} --training {output.training} --record {output.record} &> {log}"


rule figure:
    message: "Drawing {wildcards.figure}"
    input:
        metrics=f"{R}/metrics.parquet",
        training=f"{R}/training.parquet",
        grid=f"{R}/tuning/grid.parquet",
        cost=f"{R}/examination/cost.parquet",
        **{
            name: [f"{R}/examination/{name}-seed{seed}.parquet" for seed in settings.seeds]
            for name in ("gradients", "shifts", "probabilities", "sampling")
        },
    output:
        png=f"{R}/figures/{{figure}}.png",
        pdf=f"{R}/figures/{{figure}}.pdf",
        record=f"{R}/records/figure-{{figure}}.json",
    params:
        **paper.stage("papers.csd.figures", figure="{figure}"),
    log:
        f"{L}/figure-{{figure}}.log",
    cache: True
    shell:
        "python -m papers.csd.figures {params.arguments} --metrics {input.metrics} --training {input.training}"
        " --grid {input.grid} --cost {input.cost} --gradients {input.gradients} --shifts {input.shifts}"
        " --probabilities {input.probabilities} --sampling {input.sampling} --png {output.png} --pdf {output.pdf}"
        " --record {output.record} &> {log}"


include: "../../workflows/results.smk"
