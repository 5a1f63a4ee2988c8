"""Finds the papers and makes one target for each: `snakemake papers/<id> --cores all`.

Every rule of a paper lives in papers/<id>/workflow.smk and appears here as <id>_<rule>. Outputs are kept in
data/artifacts under the hash of everything that made them, and come from there when nothing of that has changed.
"""

import os
import sys
import time
from pathlib import Path

ROOT = Path(workflow.basedir)
sys.path.insert(0, str(ROOT))

from shared.errors import InputError
from shared.fingerprint import fingerprint
from workflows.paper import asked_papers, make_empty_folders, papers_with_scale, remove_dangling_links

# Jobs run the interpreter that runs Snakemake, whether or not its environment is activated.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
# Two checkouts share one store when this variable names the other's.
ARTIFACTS = Path(os.environ.setdefault("SNAKEMAKE_OUTPUT_CACHE", str(ROOT / "data" / "artifacts")))
ARTIFACTS.mkdir(parents=True, exist_ok=True)

for key in config.keys() - {"scale"}:
    sys.exit(f"error: --config {key}: unknown key; known keys: scale")
config.setdefault("scale", "small")
make_empty_folders(ARTIFACTS)
remove_dangling_links(ROOT)
try:
    PAPERS = papers_with_scale(ROOT, config["scale"], sys.argv[1:])
except InputError as error:
    sys.exit(f"error: {error}")


# Where single papers are asked for, only they are read: the others would double the time of every start.
ASKED = asked_papers(sys.argv)
# The page of all papers; other scales than the default have one of their own.
INDEX = "results/index.html" if config["scale"] == "small" else f"results/{config['scale']}/index.html"

for paper in ASKED or PAPERS:
    prefix = f"{paper}_"

    module:
        name: paper
        snakefile: f"papers/{paper}/workflow.smk"
        config: config

    use rule * from paper as prefix*

    for target in (f"papers/{paper}", f"papers/{paper}/"):

        rule:
            name: target
            input:
                f"papers/{paper}/results/{config['scale']}/report.html",


if not ASKED:

    rule all:
        default_target: True
        input:
            INDEX,

    def of_reports(name):
        """One kind of input of every paper's report, in the order of the papers."""
        found = []
        for paper in PAPERS:
            value = getattr(getattr(rules, f"{paper}_report").input, name)
            found += [str(path) for path in ([value] if isinstance(value, str) else value)]
        return found

    rule index:
        message: "Writing the page of all papers"
        input:
            papers=of_reports("paper"),
            captions=of_reports("captions"),
            verdicts=of_reports("verdicts"),
            reports=[f"papers/{paper}/results/{config['scale']}/report.html" for paper in PAPERS],
            figures=of_reports("figures"),
            records=of_reports("records"),
            templates=sorted(str(path.relative_to(ROOT)) for path in (ROOT / "shared" / "templates").glob("*.j2")),
        output:
            page=INDEX,
            record=f"{Path(INDEX).parent}/index-record.json",
        params:
            code=fingerprint("shared.stages.index"),
        log:
            f"logs/index-{config['scale']}.log",
        cache: True
        shell:
            "python -m shared.stages.index --papers {input.papers} --captions {input.captions} --verdicts {input.verdicts}"
            " --reports {input.reports} --figures {input.figures} --records {input.records} --templates {input.templates}"
            " --page {output.page} --record {output.record} &> {log}"


def count_computed():
    """Jobs of this run that were computed, and those that came from the store, told by their records."""
    records = [Path(job.output.record) for job in workflow.dag.jobs if "record" in job.output.keys()]
    finished = [path for path in records if path.exists() and path.lstat().st_mtime >= STARTED]
    computed = sum(path.stat().st_mtime >= STARTED for path in finished)
    return computed, len(finished) - computed


STARTED = time.time()


onsuccess:
    computed, restored = count_computed()
    print(f"{computed} jobs computed, {restored} restored from the store {ARTIFACTS}")
