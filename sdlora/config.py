"""Everything a run is told, as one option tree.

Declarations only: what an option does is written where it is used.
"""

from dataclasses import dataclass
from typing import Any

from sdlora.adapters import SPECS
from sdlora.base.stored import PACKINGS
from sdlora.families import FAMILIES
from sdlora.objectives import OBJECTIVES
from sdlora.optimizers import OPTIMIZERS
from sdlora.options import choice, option, section


@dataclass(frozen=True, kw_only=True)
class BaseSpec:
    """The frozen model that is taught."""

    model: str = option(
        "builtin",
        "The base: `builtin`, a folder, a .safetensors file or a Hub id",
        label="Base model",
        level="basic",
    )
    family: str = option(
        "auto", "The base's family; `auto` detects it from the weights", choices=("auto", *FAMILIES.names())
    )
    prediction: str = option(
        "auto", "What the UNet predicts; `auto` detects it", choices=("auto", "epsilon", "v_prediction")
    )
    zero_terminal: str = option(
        "auto",
        "Whether the last timestep is pure noise, as the base was trained; `auto` detects it",
        choices=("auto", "on", "off"),
        label="Zero-terminal SNR",
    )
    clip_skip: int = option(
        1,
        "Take the text encoder's n-th layer from the end; SD 2.x and SDXL begin at the second",
        low=1,
        high=12,
        unit="layers",
    )
    storage: str = option(
        "full",
        "How the weights under the adapters are kept: `fp8` takes half the memory of bf16, `nf4` a quarter; "
        "both are a little slower and less exact",
        choices=tuple(PACKINGS),
        label="Base weights",
    )


@dataclass(frozen=True, kw_only=True)
class CaptionSpec:
    """What is made of an image's caption at a step."""

    trigger: str = option(
        "",
        "A word that calls the adapter up; put before every caption that lacks it",
        label="Trigger word",
        level="basic",
    )
    dropout: float = option(
        0.05,
        "How often a caption is replaced by the empty one",
        label="Caption dropout",
        low=0,
        high=1,
        unit="fraction of samples",
    )
    shuffle: bool = option(False, "Shuffle the comma-separated tags of a caption")
    keep_tokens: int = option(
        1, "Tags at the front that are never shuffled or dropped", low=0, high=255, unit="tags"
    )
    tag_dropout: float = option(
        0.0, "How often a single tag is left out", low=0, high=1, unit="fraction of tags"
    )


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """The images."""

    folder: str = option(
        "", "The folder of images and captions", label="Dataset", level="basic", resumable=True
    )
    resolution: int = option(
        0,
        "Side of a square of the area that images are resized to; 0 is the base's own",
        low=0,
        high=4096,
        unit="pixels",
    )
    bucket_step: int = option(
        64,
        "Sides of the buckets are multiples of this (at most an eighth of the resolution is used)",
        low=8,
        high=256,
        unit="pixels",
    )
    max_aspect: float = option(
        2.0, "Longest side over shortest side of the most oblong bucket", low=1, high=8
    )
    repeats: int = option(
        1,
        "How often an image is used in one pass; multiplied with a `10_name` folder's number",
        low=1,
        high=10000,
    )
    flip: bool = option(False, "Mirror images at random; not for subjects with a left and a right side")
    captions: CaptionSpec = section(CaptionSpec)


@dataclass(frozen=True, kw_only=True)
class ScheduleSpec:
    """The learning rate over the run, as a fraction of its peak."""

    shape: str = option(
        "cosine", "How the learning rate falls after the warm-up", choices=("constant", "cosine", "linear")
    )
    warmup: float = option(
        0.05,
        "Part of the run over which the learning rate rises from zero",
        low=0,
        high=1,
        unit="fraction of steps",
    )
    floor: float = option(
        0.0, "Where a learning rate that falls ends, as a fraction of the peak", low=0, high=1
    )


@dataclass(frozen=True, kw_only=True)
class LoopSpec:
    """The loop over optimizer steps."""

    steps: int = option(
        1000, "Optimizer steps", low=1, high=10_000_000, unit="steps", level="basic", resumable=True
    )
    batch_size: int = option(2, "Images a micro-batch", low=1, high=1024, unit="images", level="basic")
    accumulate: int = option(
        1, "Micro-batches that make one optimizer step", label="Gradient accumulation", low=1, high=1024
    )
    clip: float = option(1.0, "Largest norm of the gradient; 0 is no limit", label="Gradient clipping", low=0)
    ema: float = option(
        0.0,
        "Decay of the moving average of the adapter that is saved; 0 saves the adapter itself",
        label="EMA decay",
        low=0,
        high=0.99999,
    )
    seed: int = option(0, "All randomness follows from it", low=0, high=2**32 - 1)
    precision: str = option(
        "auto",
        "Number format of the base; `auto` is bf16 where the GPU has it, else fp16, and fp32 on the CPU",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    device: str = option("auto", "Where to train: auto, cpu, cuda, cuda:1, mps", resumable=True)
    deterministic: bool = option(
        False,
        "The same bits every time and after every resume on a GPU too, a fifth slower; a CPU repeats its"
        " bits anyway",
        label="Repeat to the bit",
    )
    compile: str = option(
        "auto",
        "Fused kernels for the base's blocks by torch.compile, which takes a minute or two once; `auto` does"
        " it when a run on an NVIDIA GPU is long enough to repay it",
        choices=("auto", "always", "never"),
    )
    capture: bool = option(
        True,
        "On an NVIDIA GPU, replay the whole step as a CUDA graph: several times as fast with small batches",
        label="Captured steps",
        resumable=True,
    )
    checkpointing: bool = option(
        False,
        "Recompute activations in the backward pass: less memory, slower; without, only when memory runs out",
        label="Gradient checkpointing",
    )
    offload: bool = option(
        False,
        "Keep the UNet's weights in the machine's memory and fetch them layer by layer: least memory, "
        "slowest (NVIDIA GPUs only)",
        label="Weights in main memory",
        resumable=True,
    )
    save_every: int = option(
        0,
        "Steps between checkpoints; 0 is a tenth of the run",
        label="Checkpoint every",
        low=0,
        unit="steps",
        resumable=True,
    )
    keep: int = option(
        3,
        "Checkpoints kept, besides the last; 0 keeps all",
        label="Checkpoints to keep",
        low=0,
        resumable=True,
    )


@dataclass(frozen=True, kw_only=True)
class PreviewSpec:
    """Pictures made during the run, always with the same seeds."""

    prompts: tuple[str, ...] = option(
        (),
        "What to draw, one prompt a line; empty takes three captions of the dataset",
        label="Preview prompts",
        level="basic",
        resumable=True,
    )
    negative: str = option("", "What not to draw", label="Negative prompt", resumable=True)
    every: int = option(
        0,
        "Steps between previews; 0 is a tenth of the run, -1 is never",
        label="Preview every",
        low=-1,
        unit="steps",
        resumable=True,
    )
    steps: int = option(
        20, "Sampling steps of a preview", label="Sampling steps", low=1, high=200, resumable=True
    )
    guidance: float = option(4.5, "How closely a preview follows its prompt", low=1, high=30, resumable=True)
    seed: int = option(
        1, "Seed of the first preview; the next ones count up", low=0, high=2**32 - 1, resumable=True
    )


@dataclass(frozen=True, kw_only=True)
class OutputSpec:
    """The file that comes out and what it says of itself."""

    name: str = option(
        "my-adapter", "The adapter's name; its file is NAME.safetensors", level="basic", resumable=True
    )
    subject: str = option(
        "style",
        "What is taught; a preset decides by it about caption dropout and learning rates",
        choices=("style", "character", "object"),
        level="basic",
    )
    dtype: str = option(
        "fp16",
        "Number format of the file",
        choices=("fp16", "bf16", "fp32"),
        label="Number format",
        resumable=True,
    )
    format: str = option(
        "kohya",
        "Names of the tensors: `kohya` is read by every tool",
        label="Tensor names",
        choices=("kohya", "peft"),
        resumable=True,
    )
    author: str = option("", "Written into the file", resumable=True)
    description: str = option("", "Written into the file", resumable=True)
    license: str = option("", "Written into the file", resumable=True)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole run. `options.build(TrainConfig, values)` makes one, `options.to_toml` writes one."""

    base: BaseSpec = section(BaseSpec)
    data: DataSpec = section(DataSpec)
    adapter: Any = choice(
        SPECS, "lora", "The kind of adapter", label="Method"
    )  # Any: the option tree of the chosen plug-in
    objective: Any = choice(OBJECTIVES, "denoising", "What is minimised")  # Any: as above
    optimizer: Any = choice(OPTIMIZERS, "adamw", "How the weights are moved")  # Any: as above
    schedule: ScheduleSpec = section(ScheduleSpec)
    loop: LoopSpec = section(LoopSpec)
    preview: PreviewSpec = section(PreviewSpec)
    output: OutputSpec = section(OutputSpec)
