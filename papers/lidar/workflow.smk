"""Lookahead sample reward guidance: the shared testbed -> strengths -> samples of every run -> tables -> report."""

from papers.lidar.options import Scale
from workflows.paper import open_paper

paper = open_paper("lidar", config["scale"], Scale)
settings = paper.settings
R, L = paper.results, paper.logs

FIGURES = settings.figures
JOBS = [f"{family}-seed{seed}" for family in settings.families for seed in settings.seeds]
SAMPLE_RECORDS = [f"{R}/records/sample-{job}.json" for job in JOBS]
GATES = [f"{R}/gates/seed{seed}.parquet" for seed in settings.seeds] if settings.scenes else []
TRIALS = [f"{R}/trials/{job}.parquet" for job in settings.tuned or {}]
RECORDS = [f"{R}/records/mixtures.json", *SAMPLE_RECORDS]


wildcard_constraints:
    seed=r"\d+",
    family="|".join(settings.families),
    job="|".join(settings.tuned or ["none"]),


if settings.scenes:

    include: "../../workflows/t2i.smk"

    SYSTEM = {name: T2I[name].format(seed=settings.system) for name in ("pipeline", "guidance", "evaluator")}
    SYSTEM_FLAGS = " ".join(f"--{name} {{input.{name}}}" for name in SYSTEM)
    T2I_USED = [record.format(seed=settings.system) for record in T2I_RECORDS]
    RECORDS = [*T2I_USED, *[f"{R}/records/tune-{job}.json" for job in settings.tuned], *RECORDS]
    RECORDS += [f"{R}/records/validate-seed{seed}.json" for seed in settings.seeds]

    rule tune:
        message: "Trying strengths of {params.runs}"
        input:
            **SYSTEM,
        output:
            trials=f"{R}/trials/{{job}}.parquet",
            record=f"{R}/records/tune-{{job}}.json",
        params:
            **paper.stage(
                "papers.lidar.tune", settings.sampler, settings.scenes, settings.tune, seed=str(settings.tuning_seed)
            ),
            runs=lambda wildcards: " ".join(settings.tuned[wildcards.job]),
            job="{job}",
            system=settings.system,
        log:
            f"{L}/tune-{{job}}.log",
        cache: True
        shell:
            "python -m papers.lidar.tune {params.arguments} --runs {params.runs} "
            + SYSTEM_FLAGS
            + " --trials {output.trials} --record {output.record} &> {log}"

    rule select:
        message: "Selecting strengths on development prompts"
        input:
            trials=TRIALS,
        output:
            strengths=f"{R}/strengths.parquet",
            record=f"{R}/records/select.json",
        params:
            **paper.stage("papers.lidar.select", criterion=settings.criterion),
        log:
            f"{L}/select.log",
        cache: True
        shell:
            "python -m papers.lidar.select {params.arguments} --trials {input.trials}"
            " --strengths {output.strengths} --record {output.record} &> {log}"

    rule validate:
        message: "Measuring what the testbed can show, seed {wildcards.seed}"
        input:
            **SYSTEM,
            strengths=f"{R}/strengths.parquet",
        output:
            gates=f"{R}/gates/seed{{seed}}.parquet",
            record=f"{R}/records/validate-seed{{seed}}.json",
        params:
            **paper.stage("papers.lidar.validate", settings.sampler, settings.scenes, seed="{seed}"),
            lookahead="best/d3-n27 best/d5-n27 best/d10-n27",
            weighed="vanilla lidar/d5-n27 universal date/1",
            system=settings.system,
        log:
            f"{L}/validate-seed{{seed}}.log",
        cache: True
        shell:
            "python -m papers.lidar.validate {params.arguments} --lookahead {params.lookahead}"
            " --weighed {params.weighed} --strengths {input.strengths} "
            + SYSTEM_FLAGS
            + " --gates {output.gates} --record {output.record} &> {log}"

    rule sample:
        message: "Sampling the runs '{wildcards.family}', seed {wildcards.seed}"
        input:
            **SYSTEM,
            strengths=f"{R}/strengths.parquet",
        output:
            scores=f"{R}/scores/{{family}}-seed{{seed}}.parquet",
            images=f"{R}/images/{{family}}-seed{{seed}}.safetensors",
            record=f"{R}/records/sample-{{family}}-seed{{seed}}.json",
        params:
            **paper.stage("papers.lidar.sample", settings.sampler, settings.scenes, seed="{seed}"),
            runs=lambda wildcards: " ".join(settings.families[wildcards.family]),
            family="{family}",
            system=settings.system,
        log:
            f"{L}/sample-{{family}}-seed{{seed}}.log",
        cache: True
        shell:
            "python -m papers.lidar.sample {params.arguments} --runs {params.runs} "
            + SYSTEM_FLAGS
            + " --strengths {input.strengths} --scores {output.scores} --images {output.images}"
            " --record {output.record} &> {log}"


else:
    LAUNCH = paper.launcher(settings.processes)
    RESOURCES = paper.resources(settings.processes)
    SETS = f"{R}/lookahead/{{solver}}-seed{{seed}}"

    for solver, solver_options in settings.solvers.items():

        rule:
            name: f"draw_sets_{solver.replace('@', '_')}"
            message: "Drawing lookahead samples with the solver {params.solver}, seed {wildcards.seed}"
            output:
                sets=directory(SETS.format(solver=solver, seed="{seed}")),
                record=f"{R}/records/draw-{solver}-seed{{seed}}.json",
            params:
                **paper.stage(
                    "papers.lidar.draw_sets_hub",
                    settings.sampler,
                    settings.hub,
                    solver_options,
                    seed="{seed}",
                    name=solver,
                    # A file that users fetch: scales can be planned without it, and the stage names it if it is missing.
                    prompts=settings.prompts,
                    state=f"{R}/state/draw-{solver}-seed{{seed}}",
                ),
                solver=solver,
                launch=LAUNCH,
            log:
                f"{L}/draw-{solver}-seed{{seed}}.log",
            resources:
                **RESOURCES,
            cache: True
            shell:
                "{params.launch} papers.lidar.draw_sets_hub {params.arguments} --sets {output.sets}"
                " --record {output.record} &> {log}"

    for family in settings.families:
        solver = settings.solver_of(family)

        rule:
            name: f"sample_hub_{family}"
            message: "Sampling the runs '{params.family}', seed {wildcards.seed}"
            input:
                sets=[SETS.format(solver=solver, seed="{seed}")] if solver else [],
            output:
                scores=f"{R}/scores/{family}-seed{{seed}}.parquet",
                images=f"{R}/images/{family}-seed{{seed}}.safetensors",
                record=f"{R}/records/sample-{family}-seed{{seed}}.json",
            params:
                **paper.stage(
                    "papers.lidar.sample_hub",
                    settings.sampler,
                    settings.hub,
                    settings.solvers[solver or next(iter(settings.solvers))],
                    seed="{seed}",
                    name=solver or "none",
                    prompts=settings.prompts,
                ),
                runs=" ".join(settings.families[family]),
                family=family,
                launch=LAUNCH,
            log:
                f"{L}/sample-{family}-seed{{seed}}.log",
            resources:
                **RESOURCES,
            cache: True
            shell:
                "{params.launch} papers.lidar.sample_hub {params.arguments} --runs {params.runs} --sets {input.sets}"
                " --scores {output.scores} --images {output.images} --record {output.record} &> {log}"


rule mixtures:
    message: "Measuring the estimates' error on Gaussian mixtures"
    output:
        errors=f"{R}/mixtures.parquet",
        record=f"{R}/records/mixtures.json",
    params:
        **paper.stage("papers.lidar.study_mixtures", settings.mixture),
        seeds=" ".join(map(str, settings.seeds)),
    log:
        f"{L}/mixtures.log",
    cache: True
    shell:
        "python -m papers.lidar.study_mixtures {params.arguments} --seeds {params.seeds} --errors {output.errors}"
        " --record {output.record} &> {log}"


rule evaluate:
    message: "Comparing all runs"
    input:
        scores=[f"{R}/scores/{job}.parquet" for job in JOBS],
        records=SAMPLE_RECORDS,
        gates=GATES,
        errors=f"{R}/mixtures.parquet",
    output:
        metrics=f"{R}/metrics.parquet",
        units=f"{R}/units.parquet",
        equal_score=f"{R}/equal_score.parquet",
        record=f"{R}/records/evaluate.json",
    params:
        **paper.stage("papers.lidar.evaluate", paper=paper.id, scale=paper.scale, matched=settings.matched),
    log:
        f"{L}/evaluate.log",
    cache: True
    shell:
        "python -m papers.lidar.evaluate {params.arguments} --scores {input.scores} --records {input.records}"
        " --gates {input.gates} --errors {input.errors} --metrics {output.metrics} --units {output.units}"
        " --equal-score {output.equal_score} --record {output.record} &> {log}"


rule figure:
    message: "Drawing {wildcards.figure}"
    input:
        metrics=f"{R}/metrics.parquet",
        equal_score=f"{R}/equal_score.parquet",
        errors=f"{R}/mixtures.parquet",
        trials=TRIALS,
        scores=[f"{R}/scores/{job}.parquet" for job in JOBS],
        images=[f"{R}/images/{job}.safetensors" for job in JOBS],
    output:
        png=f"{R}/figures/{{figure}}.png",
        pdf=f"{R}/figures/{{figure}}.pdf",
        record=f"{R}/records/figure-{{figure}}.json",
    params:
        **paper.stage("papers.lidar.figures", figure="{figure}"),
    log:
        f"{L}/figure-{{figure}}.log",
    cache: True
    shell:
        "python -m papers.lidar.figures {params.arguments} --metrics {input.metrics} --equal-score {input.equal_score}"
        " --errors {input.errors} --trials {input.trials} --scores {input.scores} --images {input.images}"
        " --png {output.png} --pdf {output.pdf} --record {output.record} &> {log}"


include: "../../workflows/results.smk"
