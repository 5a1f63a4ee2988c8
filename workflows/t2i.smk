"""The text-to-image testbed: scenes -> scorers and detectors -> preference scorer and diffusion model.

A paper's workflow.smk defines `paper` and includes this file; its rules then ask for `T2I["pipeline"]` and the other
files below, with a wildcard or a number for the seed of the whole system. The files lie outside of the paper's folder,
and only the first paper that is read makes the rules, so that all papers share them and each is made once.
The testbed has scales of its own, in shared/t2i/config.yaml: the one that a paper's scale names as `testbed`, or else the
one of its name.
"""

import sys

from shared.errors import InputError
from shared.options import read_scale
from shared.t2i.options import Testbed

T2I_SCALE = getattr(paper.settings, "testbed", None) or paper.scale
T2I_RESULTS, T2I_LOGS = f"results/t2i/{T2I_SCALE}", f"logs/t2i/{T2I_SCALE}"
T2I_SETS = ("conditioner", "guidance", "evaluator", "preference", "diffusion")
T2I_SCENES = {name: f"{T2I_RESULTS}/scenes/{name}-seed{{seed}}.parquet" for name in T2I_SETS}
T2I = {
    "pipeline": f"{T2I_RESULTS}/pipeline/seed{{seed}}",
    **{name: f"{T2I_RESULTS}/scorers/{name}-seed{{seed}}.safetensors" for name in T2I_SETS[:4]},
    "guidance_detector": f"{T2I_RESULTS}/detectors/guidance-seed{{seed}}.safetensors",
    "evaluator_detector": f"{T2I_RESULTS}/detectors/evaluator-seed{{seed}}.safetensors",
}
T2I_RECORDS = [
    f"{T2I_RESULTS}/records/{name}-seed{{seed}}.json"
    for name in ("conditioner", "guidance", "evaluator", "preference", "detector-guidance", "diffusion")
]

try:
    testbed = read_scale(Path("shared", "t2i", "config.yaml"), T2I_SCALE, Testbed)
except InputError as error:
    sys.exit(f"error: {error}")


wildcard_constraints:
    seed=r"\d+",


if not any(rule.name.endswith("t2i_scenes") for rule in workflow.rules):

    rule t2i_scenes:
        message: "Drawing scenes for the text-to-image system of seed {wildcards.seed}"
        output:
            **T2I_SCENES,
            record=f"{T2I_RESULTS}/records/scenes-seed{{seed}}.json",
        params:
            **paper.stage("shared.t2i.stages.draw_scenes", testbed.scenes, seed="{seed}"),
        log:
            f"{T2I_LOGS}/scenes-seed{{seed}}.log",
        cache: True
        shell:
            "python -m shared.t2i.stages.draw_scenes {params.arguments} --conditioner {output.conditioner}"
            " --guidance {output.guidance} --evaluator {output.evaluator} --preference {output.preference}"
            " --diffusion {output.diffusion} --record {output.record} &> {log}"

    # The system's seed is followed by a digit of the network's own, so that no two networks start with equal weights.
    # The names are params too: which of the scenes a job reads would otherwise not be part of its provenance.
    for digit, kind in enumerate(("conditioner", "guidance", "evaluator"), start=1):

        rule:
            name: f"t2i_{kind}"
            message: "Training the {params.kind} scorer of seed {wildcards.seed}"
            input:
                scenes=T2I_SCENES[kind],
            output:
                scorer=T2I[kind],
                curve=f"{T2I_RESULTS}/curves/{kind}-seed{{seed}}.parquet",
                record=f"{T2I_RESULTS}/records/{kind}-seed{{seed}}.json",
            params:
                **paper.stage("shared.t2i.stages.train_scorer", getattr(testbed, kind), seed=f"{{seed}}{digit}"),
                kind=kind,
                system="{seed}",
                state=f"{T2I_RESULTS}/state/{kind}-seed{{seed}}",
            log:
                f"{T2I_LOGS}/{kind}-seed{{seed}}.log",
            cache: True
            shell:
                "python -m shared.t2i.stages.train_scorer {params.arguments} --scenes {input.scenes}"
                " --scorer {output.scorer} --curve {output.curve} --state {params.state}"
                " --record {output.record} &> {log}"

    for digit, kind in enumerate(("guidance", "evaluator"), start=4):

        rule:
            name: f"t2i_{kind}_detector"
            message: "Training the {params.kind} detector of seed {wildcards.seed}"
            input:
                scenes=T2I_SCENES[kind],
            output:
                detector=T2I[f"{kind}_detector"],
                curve=f"{T2I_RESULTS}/curves/detector-{kind}-seed{{seed}}.parquet",
                record=f"{T2I_RESULTS}/records/detector-{kind}-seed{{seed}}.json",
            params:
                **paper.stage("shared.t2i.stages.train_detector", testbed.detector, seed=f"{{seed}}{digit}"),
                kind=kind,
                system="{seed}",
                state=f"{T2I_RESULTS}/state/detector-{kind}-seed{{seed}}",
            log:
                f"{T2I_LOGS}/detector-{kind}-seed{{seed}}.log",
            cache: True
            shell:
                "python -m shared.t2i.stages.train_detector {params.arguments} --scenes {input.scenes}"
                " --detector {output.detector} --curve {output.curve} --state {params.state}"
                " --record {output.record} &> {log}"

    rule t2i_preference:
        message: "Training the preference scorer of seed {wildcards.seed}"
        input:
            pairs=T2I_SCENES["preference"],
            scorer=T2I["guidance"],
        output:
            preference=T2I["preference"],
            curve=f"{T2I_RESULTS}/curves/preference-seed{{seed}}.parquet",
            record=f"{T2I_RESULTS}/records/preference-seed{{seed}}.json",
        params:
            **paper.stage("shared.t2i.stages.train_preference", testbed.preference, seed="{seed}6"),
            system="{seed}",
            state=f"{T2I_RESULTS}/state/preference-seed{{seed}}",
        log:
            f"{T2I_LOGS}/preference-seed{{seed}}.log",
        cache: True
        shell:
            "python -m shared.t2i.stages.train_preference {params.arguments} --pairs {input.pairs}"
            " --scorer {input.scorer} --preference {output.preference} --curve {output.curve} --state {params.state}"
            " --record {output.record} &> {log}"

    rule t2i_diffusion:
        message: "Training the text-to-image diffusion model of seed {wildcards.seed}"
        input:
            scenes=T2I_SCENES["diffusion"],
            conditioner=T2I["conditioner"],
        output:
            pipeline=directory(T2I["pipeline"]),
            sheets=directory(f"{T2I_RESULTS}/sheets/seed{{seed}}"),
            curve=f"{T2I_RESULTS}/curves/diffusion-seed{{seed}}.parquet",
            record=f"{T2I_RESULTS}/records/diffusion-seed{{seed}}.json",
        params:
            **paper.stage("shared.t2i.stages.train_diffusion", testbed.diffusion, seed="{seed}7"),
            system="{seed}",
            state=f"{T2I_RESULTS}/state/diffusion-seed{{seed}}",
        log:
            f"{T2I_LOGS}/diffusion-seed{{seed}}.log",
        priority: 1  # the longest job, and most others wait for it
        cache: True
        shell:
            "python -m shared.t2i.stages.train_diffusion {params.arguments} --scenes {input.scenes}"
            " --conditioner {input.conditioner} --pipeline {output.pipeline} --sheets {output.sheets}"
            " --curve {output.curve} --state {params.state} --record {output.record} &> {log}"
