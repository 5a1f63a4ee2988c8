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
from workflows.paper import papers_with_scale

# Jobs run the interpreter that runs Snakemake, whether or not its environment is activated.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
# Two checkouts share one store when this variable names the other's.
ARTIFACTS = Path(os.environ.setdefault("SNAKEMAKE_OUTPUT_CACHE", str(ROOT / "data" / "artifacts")))
ARTIFACTS.mkdir(parents=True, exist_ok=True)

for key in config.keys() - {"scale"}:
    sys.exit(f"error: --config {key}: unknown key; known keys: scale")
config.setdefault("scale", "small")
try:
    PAPERS = papers_with_scale(ROOT, config["scale"], sys.argv[1:])
except InputError as error:
    sys.exit(f"error: {error}")


rule all:
    default_target: True
    input:
        [f"papers/{paper}/results/{config['scale']}/report.html" for paper in PAPERS],


for paper in PAPERS:
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
