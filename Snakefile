"""Finds the papers and makes one target for each: `snakemake papers/<id> --cores all`.

Every rule of a paper lives in papers/<id>/workflow.smk and appears here as <id>_<rule>. Outputs are kept in
data/artifacts under the hash of everything that made them, and come from there when nothing of that has changed.
"""

import os
import sys
from pathlib import Path

ROOT = Path(workflow.basedir)
sys.path.insert(0, str(ROOT))

from shared.errors import InputError
from workflows.paper import papers_with_scale

# Jobs run the interpreter that runs Snakemake, whether or not its environment is activated.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
ARTIFACTS = ROOT / "data" / "artifacts"
ARTIFACTS.mkdir(parents=True, exist_ok=True)
os.environ["SNAKEMAKE_OUTPUT_CACHE"] = str(ARTIFACTS)

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
