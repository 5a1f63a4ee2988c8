"""One denoiser with its sampler and log ratio, and every method of sampling on it, by the name of a run."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from papers.diffrs.baselines import Samples, best_of, discriminator_guidance, final_rejection, restart
from papers.diffrs.methods import Run
from papers.diffrs.noise_schedule import edm_sigmas
from papers.diffrs.rejection import RejectionConstants, rejection_log_constants
from papers.diffrs.sampler import DiffRSOutput, LogRatio, diffrs_sample, warm_up_log_ratios
from shared.data_order import generator_for
from shared.diffusion.denoisers import Denoiser
from shared.diffusion.samplers import EULER, HEUN, Churn, Solver, integrate

NOISE, WARM_UP, TESTS, FAKES, RATIOS = 10, 11, 12, 13, 14
"""Streams of random numbers: first noise of the samples, of the warm-up, all later draws, samples for training, noise
on samples whose log ratios are told."""
SOLVERS = {"heun": HEUN, "euler": EULER}


@dataclass(frozen=True)
class Drawn:
    """Samples of one run in this process, and what they cost.

    Attributes:
        samples: (N, ...).
        total_nfe: the denoiser's evaluations of all of them, of one sample each.
        seconds: time.
        details: counts of DiffRS, None for others.
    """

    samples: Tensor
    total_nfe: int
    seconds: float
    details: DiffRSOutput | None


@dataclass(frozen=True)
class Bench:
    """What all methods share.

    Attributes:
        denoiser: D(x, σ).
        log_ratio: ℓ(x, σ).
        sigmas: noise levels of the base sampler, (K + 1,).
        solver: of the base sampler.
        shape: of one sample.
        seed: of all draws.
        share: (number, count): this is one of so many processes, which draw each their own part.
        slots: samples in flight.
        warm_up: runs of the base sampler for the constants.
        budget: passes that DiffRS allows a sample; None: any number.
    """

    denoiser: Denoiser
    log_ratio: LogRatio
    sigmas: Tensor
    solver: Solver
    shape: tuple[int, ...]
    seed: int
    share: tuple[int, int] = (0, 1)
    slots: int = 10_000
    warm_up: int = 1000
    budget: float | None = 3.0

    @property
    def steps(self) -> int:
        """K."""
        return len(self.sigmas) - 1

    @property
    def evaluations(self) -> int:
        """Evaluations of one pass."""
        return self.solver.remaining(self.steps)

    def noise(self, stream: int, count: int, process: int | None = None) -> Tensor:
        """Noise of unit variance (count, ...), the same for all methods of a seed."""
        number = self.share[0] if process is None else process
        generator = generator_for(self.seed, stream, number, device=self.sigmas.device)
        return torch.randn(count, *self.shape, generator=generator, dtype=self.sigmas.dtype, device=self.sigmas.device)

    @cached_property
    def warm_up_log_ratios(self) -> Tensor:
        """ℓ_k(x_k) of runs without rejection, the same in every process."""
        noise = self.noise(WARM_UP, self.warm_up, process=0)
        parts = [
            warm_up_log_ratios(self.denoiser, self.log_ratio, self.sigmas, part, solver=self.solver)
            for part in noise.split(self.slots)
        ]
        return torch.cat(parts, 1)

    @property
    def max_nfe(self) -> int | None:
        """Evaluations that DiffRS allows a sample."""
        return None if self.budget is None else math.floor(self.budget * self.evaluations)

    def constants(self, percentile: float) -> RejectionConstants:
        """Of the base sampler, by the warm-up."""
        return rejection_log_constants(self.warm_up_log_ratios, percentile)

    @torch.no_grad()
    def base_samples(self, stream: int, count: int) -> Tensor:
        """Samples of the base sampler, of this process."""
        parts = self.noise(stream, count).split(self.slots)
        return torch.cat([integrate(self.denoiser, part, self.sigmas, step=self.solver.step) for part in parts])

    def levels(self, steps: float) -> Tensor:
        """Noise levels of another number of steps between the same ends; 0: the base sampler's."""
        if not steps:
            return self.sigmas
        return edm_sigmas(int(steps), float(self.sigmas[-2]), float(self.sigmas[0])).to(self.sigmas)

    def draw(self, run: Run, count: int, selected: Mapping[str, Mapping[str, float]] | None = None) -> Drawn:
        """Samples of a run, this process's part of `count`.

        Raises:
            ValueError: a method that is made for Heun's solver on a bench of another.
        """
        settings = run.settings(selected or {})
        if self.solver is not HEUN and run.method not in ("base", "longer", "diffrs"):
            raise ValueError(f"{run.method}: is made for Heun's solver")
        _ = self.warm_up_log_ratios if run.method in ("diffrs", "final") else None  # not part of the time
        generator = generator_for(self.seed, TESTS, self.share[0], device=self.sigmas.device)
        mine = len(range(self.share[0], count, self.share[1]))
        started = time.perf_counter()
        with torch.no_grad():
            if run.method == "diffrs":
                details = self._diffrs(settings["percentile"], mine, generator)
                return Drawn(details.samples, details.total_nfe, time.perf_counter() - started, details)
            parts = [self._others(run.method, settings, part, generator) for part in self._starts(settings, mine)]
        samples = torch.cat([part.samples for part in parts])
        return Drawn(samples, sum(part.total_nfe for part in parts), time.perf_counter() - started, None)

    def _starts(self, settings: Mapping[str, float], count: int) -> tuple[Tensor, ...]:
        """First noise of all samples, in parts; of several candidates (candidates, N, ...)."""
        several = int(settings.get("candidates", 1))
        noise = self.noise(NOISE, count * several)
        if several == 1:
            return noise.split(self.slots)
        return noise.view(several, count, *self.shape).split(self.slots, dim=1)

    def _diffrs(self, percentile: float, count: int, generator: torch.Generator) -> DiffRSOutput:
        return diffrs_sample(
            self.denoiser,
            self.log_ratio,
            self.sigmas,
            self.constants(percentile),
            count,
            self.shape,
            batch_size=self.slots,
            initial_noise=self.noise(NOISE, count),
            max_nfe=self.max_nfe,
            generator=generator,
            solver=self.solver,
        )

    def _others(self, method: str, settings: Mapping[str, float], noise: Tensor, generator: torch.Generator) -> Samples:
        sigmas = self.levels(settings.get("steps", 0))
        if method in ("base", "longer"):
            samples = integrate(self.denoiser, noise, sigmas, step=self.solver.step)
            return Samples(samples, len(noise) * self.solver.remaining(len(sigmas) - 1))
        if method == "churn":
            churn = Churn(settings["amount"], generator, noise_scale=settings["noise_scale"])
            samples = integrate(self.denoiser, noise, sigmas, churn=churn)
            return Samples(samples, len(noise) * HEUN.remaining(len(sigmas) - 1))
        if method == "dg":
            return discriminator_guidance(
                self.denoiser,
                self.log_ratio,
                sigmas,
                noise,
                weight=settings["weight"],
                corrector_weight=settings["corrector"],
            )
        if method == "restart":
            return restart(
                self.denoiser,
                sigmas,
                noise,
                repeats=int(settings["repeats"]),
                nodes=int(settings["nodes"]),
                sigma_min=settings["low"],
                sigma_max=settings["high"],
                generator=generator,
            )
        if method == "final":
            log_constant = self.constants(settings["percentile"]).marginal[-1]
            return final_rejection(
                self.denoiser, self.log_ratio, sigmas, log_constant, len(noise), self.shape, generator=generator
            )
        return best_of(self.denoiser, self.log_ratio, sigmas, noise)
