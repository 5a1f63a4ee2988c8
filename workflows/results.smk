"""From a paper's tables to its verdicts and report; included by every paper's workflow.smk.

That file defines `paper` (workflows.paper.Paper), `FIGURES` (names of figures), and `RECORDS` (records of the jobs
whose time and machine the report tells), and makes metrics.parquet, units.parquet and figures/<name>.png.
"""

TEMPLATES = sorted(str(path) for path in Path("shared", "templates").glob("*.j2"))


rule claims:
    message: "Deciding the claims of {params.paper}"
    input:
        paper=f"papers/{paper.id}/paper.yaml",
        metrics=f"{paper.results}/metrics.parquet",
        units=f"{paper.results}/units.parquet",
    output:
        verdicts=f"{paper.results}/claims.json",
        record=f"{paper.results}/records/claims.json",
    params:
        **paper.stage("shared.stages.decide_claims", scale=paper.scale),
        paper=paper.id,
    log:
        f"{paper.logs}/claims.log",
    cache: True
    shell:
        "python -m shared.stages.decide_claims {params.arguments} --paper {input.paper} --metrics {input.metrics}"
        " --units {input.units} --verdicts {output.verdicts} --record {output.record} &> {log}"


rule report:
    message: "Writing the report of {params.paper}"
    input:
        paper=f"papers/{paper.id}/paper.yaml",
        captions=f"papers/{paper.id}/figures.yaml",
        verdicts=f"{paper.results}/claims.json",
        metrics=f"{paper.results}/metrics.parquet",
        figures=[f"{paper.results}/figures/{name}.png" for name in FIGURES],
        records=RECORDS,
        templates=TEMPLATES,
    output:
        markdown=f"{paper.results}/REPORT.md",
        html=f"{paper.results}/report.html",
        record=f"{paper.results}/records/report.json",
    params:
        **paper.stage("shared.stages.report"),
        paper=paper.id,
    log:
        f"{paper.logs}/report.log",
    cache: True
    shell:
        "python -m shared.stages.report {params.arguments} --paper {input.paper} --captions {input.captions}"
        " --verdicts {input.verdicts} --metrics {input.metrics} --figures {input.figures} --records {input.records}"
        " --templates {input.templates} --markdown {output.markdown} --html {output.html} --record {output.record}"
        " &> {log}"
