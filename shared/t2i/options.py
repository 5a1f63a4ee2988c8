"""Options of the text-to-image testbed and of pipelines; apart from code, so that reading them needs no PyTorch."""

from dataclasses import dataclass
from typing import Literal

from shared.training_options import TrainingOptions


@dataclass(frozen=True)
class DrawOptions:
    """How many captioned scenes each network is trained on, and how they are drawn."""

    conditioner_scenes: int
    """For the text encoder that conditions the diffusion model."""
    guidance_scenes: int
    """For the scorer that guides sampling, and the detector that does."""
    evaluator_scenes: int
    """For the held-out scorer and detector that judge."""
    preference_pairs: int
    """Pairs of a better and a worse scene for the preference scorer."""
    diffusion_scenes: int
    """For the diffusion model."""
    context_rate: float = 0.12
    """Share of pirate scenes among those that leave room for one more object."""
    caption_noise: float = 0.0
    """Share of the diffusion model's captions that are wrong in one thing."""

    def __post_init__(self) -> None:
        for name in ("context_rate", "caption_noise"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: must lie in [0, 1], got {getattr(self, name)}")


@dataclass(frozen=True)
class ScorerOptions:
    """A dual encoder of images and captions, trained contrastively."""

    training: TrainingOptions
    width: int = 32
    """Channels of the image encoder's first layer, a multiple of 4."""
    degraded_negatives: bool = False
    """Whether degraded copies of the images are further negatives for every caption."""
    noise_probability: float = 0.6
    """Share of the images that get Gaussian noise."""
    fade_probability: float = 0.3
    """Share of the images that are faded towards the background."""
    loss_bound: float | None = None
    """Training fails if its last loss exceeds this share of a guess's; None: whatever the loss."""


@dataclass(frozen=True)
class PreferenceOptions:
    """A scorer that is trained on to prefer the better one of two images (Bradley-Terry)."""

    training: TrainingOptions
    degraded_share: float = 0.5
    """Share of pairs whose worse image is a degraded copy of the better one, rather than another scene."""


@dataclass(frozen=True)
class DetectorOptions:
    """A detector of the unsafe shape."""

    training: TrainingOptions
    positive_weight: float = 5.0
    """Weight of cells that hold the shape in the loss; most cells do not."""


@dataclass(frozen=True)
class UNetOptions:
    """Size of the denoiser."""

    channels: tuple[int, ...] = (48, 96)
    """Channels at each resolution, multiples of 16; there is cross-attention at all but the first."""
    layers_per_block: int = 1
    """Residual blocks per resolution."""


@dataclass(frozen=True)
class DiffusionOptions:
    """A latent diffusion model of scenes given captions, and how it is looked at."""

    training: TrainingOptions
    unet: UNetOptions = UNetOptions()
    """The denoiser."""
    caption_dropout: float = 0.1
    """Share of captions replaced by the empty one, for classifier-free guidance."""
    ema_decay: float = 0.995
    """Largest decay of the running mean of the weights, which is what samples."""
    num_steps: int = 20
    """Sampler steps of sample sheets and of the closing check."""
    guidance_scale: float = 5.0
    """Scale of classifier-free guidance there."""
    sheet_every: int = 500
    """Training steps between sample sheets."""
    prompts_per_task: int = 20
    """Development prompts of each task in the closing check."""
    gold_range: tuple[float, float] | None = None
    """Where the share of right images has to lie for methods to have something to improve; None: anywhere."""


@dataclass(frozen=True)
class UnlearnOptions:
    """Training the unsafe shape out of the denoiser's attention weights."""

    objective: Literal["duo", "esd"]
    """Preference of safe over unsafe images (DUO), or matching a negatively guided prediction (ESD)."""
    training: TrainingOptions
    pairs: int
    """Pairs of an unsafe and a safe image of one layout."""
    attention: Literal["self", "cross", "all"]
    """Which attention layers are trained: those within the image, those to the text (ESD's variant -x), or both."""
    prompted: bool = True
    """DUO: whether images come with the unsafe caption, rather than with the empty one."""
    beta: float = 50.0
    """DUO: strength of the preference."""
    prior_weight: float = 1.0
    """DUO: weight of keeping the output at pure noise."""
    negative_scale: float = 1.0
    """ESD: eta, how far the target lies on the other side of the unconditional prediction."""
    rank: int = 8
    """Rank to which the change of every matrix is reduced in the end."""
    replaced: float = 0.5
    """Share of pairs whose safe image has a safe shape in the unsafe one's place, rather than nothing."""


@dataclass(frozen=True, kw_only=True)
class PipelineOptions:
    """A text-to-image pipeline of diffusers; all of its networks are frozen."""

    model: str
    """Hub name or folder of the pipeline, of any class that `shared.t2i.pipeline_hooks` lists."""
    scheduler: Literal["ddim", "own"] = "ddim"
    """Deterministic DDIM, or the model's own: flow matching and consistency models have no other."""
    size: int = 0
    """Height and width of images; 0: the model's own."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the pipeline; rewards are always computed in float32."""
    half_parts: tuple[str, ...] = ()
    """Parts kept in bfloat16 all the same, where the pipeline allows it: text_encoder_3 of Stable Diffusion 3."""
    gradient_checkpointing: bool = False
    """Whether activations of network and VAE are computed anew in the backward pass, to save memory."""
    vae_slicing: bool = False
    """Whether the VAE decodes one image at a time, to save memory."""
    vae_tiling: bool = False
    """Whether it decodes large images in overlapping tiles, to save memory; near seams they differ slightly."""


@dataclass(frozen=True, kw_only=True)
class HubOptions(PipelineOptions):
    """A pipeline of diffusers from the hub, prompts from files, and what judges images.

    Most defences run on Stable Diffusion alone, that is with one text encoder and a U-Net.
    """

    judge: str
    """What judges: ``clip=<hub name>`` with the concept's phrases, ``classifier=<hub name>=<label>``, or
    ``detector=<hub name>=<class>,<class>`` with the classes whose boxes are unsafe."""
    judge_threshold: float
    """Least score of the judge that counts as unsafe."""
    features: str
    """Hub name of the CLIP model whose image features measure similarity, and its texts alignment."""
    prompts: tuple[str, ...]
    """``<set>=csv:<column>:<encoding>:<file>`` or ``<set>=geneval:<file>``; the set ``safe`` must be among them."""
    concepts: tuple[str, ...]
    """Phrases by which the defences know the unsafe concept."""
    target: str = ""
    """What UCE puts in the concept's place."""
    preserved: tuple[str, ...] = ()
    """Phrases that UCE keeps as they are."""
    test_prompts: int = 1000
    """Prompts of each set, at most; the first in the file, after those for selection."""
    dev_prompts: int = 20
    """Prompts of each set on which strengths are selected, the first in the file."""


@dataclass(frozen=True)
class Testbed:
    """One scale of the testbed."""

    __test__ = False  # no class of tests

    scenes: DrawOptions
    conditioner: ScorerOptions
    guidance: ScorerOptions
    evaluator: ScorerOptions
    preference: PreferenceOptions
    detector: DetectorOptions
    diffusion: DiffusionOptions
