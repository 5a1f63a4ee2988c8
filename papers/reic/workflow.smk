"""REIC: frozen encoder, candidates, trained selectors and relation modules -> tables -> report."""

from papers.reic.options import Scale
from papers.reic.runs import TABLES
from workflows.paper import open_paper

paper = open_paper("reic", config["scale"], Scale)
settings = paper.settings
R, L = paper.results, paper.logs

LAUNCH = paper.launcher(settings.processes)
RESOURCES = paper.resources(settings.processes)
FIGURES = settings.figures
JOBS = [(group, seed) for group in settings.groups for seed in settings.seeds]
TUNED = list(settings.tuned or {})
RECORDS = [f"{R}/records/train-{group}-seed{seed}.json" for group, seed in JOBS]
TRAINED = {name: f"{R}/{name}/{{group}}-seed{{seed}}.parquet" for name in TABLES}


def trained(name):
    return [TRAINED[name].format(group=group, seed=seed) for group, seed in JOBS]


wildcard_constraints:
    seed=r"\d+",
    group="|".join(settings.groups),
    kind="|".join(TUNED) or "none",


if settings.corpora:
    RECORDS = [f"{R}/records/pretrain.json", *[f"{R}/records/tune-{kind}.json" for kind in TUNED], *RECORDS]
    ENCODER = f"{R}/encoder"

    rule pretrain:
        message: "Pretraining the frozen encoder"
        output:
            model=directory(ENCODER),
            record=f"{R}/records/pretrain.json",
        params:
            **paper.stage(
                "papers.reic.pretrain",
                settings.pretrain,
                next(iter(settings.corpora.values())),
                block_length=str(settings.train.inputs.block_length),
                seed=str(settings.tuning_seed),
            ),
        log:
            f"{L}/pretrain.log",
        cache: True
        shell:
            "python -m papers.reic.pretrain {params.arguments} --model {output.model} --record {output.record} &> {log}"

    rule tune:
        message: "Trying candidates of {wildcards.kind}"
        input:
            encoder=ENCODER,
            tuned=lambda wildcards: [f"{R}/tuning/{kind}.parquet" for kind in TUNED[: TUNED.index(wildcards.kind)]],
        output:
            tried=f"{R}/tuning/{{kind}}.parquet",
            record=f"{R}/records/tune-{{kind}}.json",
        params:
            code=paper.stage("papers.reic.tune")["code"],
            arguments=lambda wildcards: paper.stage(
                "papers.reic.tune",
                settings.train,
                settings.corpus_of(settings.tuned[wildcards.kind]),
                seed=str(settings.tuning_seed),
            )["arguments"],
            runs=lambda wildcards: " ".join(settings.tuned[wildcards.kind]),
            kind="{kind}",
            state=f"{R}/state/tune-{{kind}}",
        log:
            f"{L}/tune-{{kind}}.log",
        cache: True
        shell:
            "python -m papers.reic.tune {params.arguments} --runs {params.runs} --encoder {input.encoder}"
            " --tuned {input.tuned} --tried {output.tried} --state {params.state} --record {output.record} &> {log}"

    rule train:
        message: "Training {wildcards.group}, seed {wildcards.seed}"
        input:
            encoder=ENCODER,
            tuned=[f"{R}/tuning/{kind}.parquet" for kind in TUNED],
        output:
            **TRAINED,
            record=f"{R}/records/train-{{group}}-seed{{seed}}.json",
        params:
            code=paper.stage("papers.reic.train")["code"],
            arguments=lambda wildcards: paper.stage(
                "papers.reic.train",
                settings.train,
                settings.corpus_of(settings.groups[wildcards.group]),
                seed=wildcards.seed,
            )["arguments"],
            runs=lambda wildcards: " ".join(settings.groups[wildcards.group]),
            ranks=" ".join(map(str, settings.ranks)),
            group="{group}",
            seed="{seed}",
            state=f"{R}/state/{{group}}-seed{{seed}}",
        log:
            f"{L}/train-{{group}}-seed{{seed}}.log",
        cache: True
        shell:
            "python -m papers.reic.train {params.arguments} --runs {params.runs} --ranks {params.ranks}"
            " --encoder {input.encoder} --tuned {input.tuned} --summary {output.summary} --units {output.units}"
            " --history {output.history} --curve {output.curve} --by-picks {output.by_picks}"
            " --distances {output.distances} --examples {output.examples} --state {params.state}"
            " --record {output.record} &> {log}"

else:
    RECORDS = [f"{R}/records/{name}.json" for name in ("store", "embed")] + RECORDS

    rule store:
        message: "Writing the document store"
        output:
            store=f"{R}/data/documents.sqlite",
            record=f"{R}/records/store.json",
        params:
            **paper.stage("papers.reic.store", settings.hub),
        log:
            f"{L}/store.log",
        cache: True
        shell:
            "python -m papers.reic.store {params.arguments} --store {output.store} --record {output.record} &> {log}"

    rule embed:
        message: "Computing the frozen embeddings"
        input:
            store=f"{R}/data/documents.sqlite",
        output:
            embeddings=directory(f"{R}/data/embeddings"),
            record=f"{R}/records/embed.json",
        params:
            **paper.stage(
                "papers.reic.embed",
                settings.train.encoder,
                settings.hub,
                block_length=str(settings.train.inputs.block_length),
            ),
        log:
            f"{L}/embed.log",
        resources:
            **paper.resources(1),
        cache: True
        shell:
            "python -m papers.reic.embed {params.arguments} --store {input.store} --embeddings {output.embeddings}"
            " --record {output.record} &> {log}"

    rule train:
        message: "Training {wildcards.group}, seed {wildcards.seed}"
        input:
            store=f"{R}/data/documents.sqlite",
            embeddings=f"{R}/data/embeddings",
        output:
            **TRAINED,
            record=f"{R}/records/train-{{group}}-seed{{seed}}.json",
        params:
            **paper.stage("papers.reic.train_hub", settings.train, settings.hub, seed="{seed}"),
            runs=lambda wildcards: " ".join(settings.groups[wildcards.group]),
            ranks=" ".join(map(str, settings.ranks)),
            group="{group}",
            launch=LAUNCH,
            state=f"{R}/state/{{group}}-seed{{seed}}",
        log:
            f"{L}/train-{{group}}-seed{{seed}}.log",
        resources:
            **RESOURCES,
        cache: True
        shell:
            "{params.launch} papers.reic.train_hub {params.arguments} --runs {params.runs} --ranks {params.ranks}"
            " --store {input.store} --embeddings {input.embeddings}"
            " --summary {output.summary} --units {output.units} --history {output.history} --curve {output.curve}"
            " --by-picks {output.by_picks} --distances {output.distances} --examples {output.examples}"
            " --state {params.state} --record {output.record} &> {log}"


rule evaluate:
    message: "Collecting all measurements"
    input:
        summary=trained("summary"),
        measured=trained("units"),
        history=trained("history"),
        records=[f"{R}/records/train-{group}-seed{seed}.json" for group, seed in JOBS],
    output:
        metrics=f"{R}/metrics.parquet",
        units=f"{R}/units.parquet",
        record=f"{R}/records/evaluate.json",
    params:
        **paper.stage("papers.reic.evaluate", paper=paper.id, scale=paper.scale),
    log:
        f"{L}/evaluate.log",
    cache: True
    shell:
        "python -m papers.reic.evaluate {params.arguments} --summary {input.summary} --measured {input.measured}"
        " --history {input.history} --records {input.records} --metrics {output.metrics} --units {output.units}"
        " --record {output.record} &> {log}"


rule figure:
    message: "Drawing {wildcards.figure}"
    input:
        metrics=f"{R}/metrics.parquet",
        **{name: trained(name) for name in ("history", "curve", "by_picks", "distances", "examples")},
    output:
        png=f"{R}/figures/{{figure}}.png",
        pdf=f"{R}/figures/{{figure}}.pdf",
        record=f"{R}/records/figure-{{figure}}.json",
    params:
        **paper.stage(
            "papers.reic.figures",
            figure="{figure}",
            picks=str(settings.train.inputs.picks),
            uniform_steps=str(round(settings.train.uniform_fraction * settings.train.steps)),
        ),
    log:
        f"{L}/figure-{{figure}}.log",
    cache: True
    shell:
        "python -m papers.reic.figures {params.arguments} --metrics {input.metrics} --history {input.history}"
        " --curve {input.curve} --by-picks {input.by_picks} --distances {input.distances}"
        " --examples {input.examples} --png {output.png} --pdf {output.pdf} --record {output.record} &> {log}"


rule example:
    message: "Writing the example page"
    input:
        examples=trained("examples"),
    output:
        page=f"{R}/example.html",
        record=f"{R}/records/example.json",
    params:
        **paper.stage("papers.reic.example", title="What was selected"),
    log:
        f"{L}/example.log",
    cache: True
    shell:
        "python -m papers.reic.example {params.arguments} --examples {input.examples} --page {output.page}"
        " --record {output.record} &> {log}"


# The report links the page; its record makes sure that it is there.
RECORDS.append(f"{R}/records/example.json")


include: "../../workflows/results.smk"
