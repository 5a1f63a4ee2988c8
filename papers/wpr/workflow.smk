"""Wasserstein policy regularization: data -> supervised model -> reward models -> policies -> tables -> report."""

from papers.wpr.options import Scale
from workflows.paper import open_paper

paper = open_paper("wpr", config["scale"], Scale)
settings = paper.settings
R = paper.results
L = paper.logs


rule prepare:
    message: "Drawing data, seed {wildcards.seed}"
    output:
        words=f"{R}/data/seed{{seed}}/words.txt",
        supervised=f"{R}/data/seed{{seed}}/supervised.parquet",
        pairs=f"{R}/data/seed{{seed}}/pairs.parquet",
        prompts=f"{R}/data/seed{{seed}}/prompts.parquet",
        record=f"{R}/records/prepare-seed{{seed}}.json",
    params: **paper.stage("papers.wpr.prepare", settings.data, seed="{seed}")
    log: f"{L}/prepare-seed{{seed}}.log"
    cache: True
    shell:
        "python -m papers.wpr.prepare {params.arguments} --words {output.words} --supervised {output.supervised}"
        " --pairs {output.pairs} --prompts {output.prompts} --record {output.record} &> {log}"
