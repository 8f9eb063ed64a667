"""The Configs of this room: a model, its training, and pictures of what it predicts.

A file of their own, because a command's flags are parsed into them: it loads neither torch nor numpy, so that
help and error messages are quick. `xtra.train.Config` and the others are these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, Literal, get_args

from shards import roles
from shards.config import Order, ReadConfig

ORDERS = ("raster", "random")
Mask = Literal["own", "causal", "none"]  # of a frozen encoder; own: causal, or none after prefix attention
Implementation = Literal[
    "auto",
    "dense",
    "dense-cudnn",
    "halves",
    "halves-cudnn",
    "quarters",
    "quarters-cudnn",
    "blocks",
    "blocks-cudnn",
    "flex128",
    "flex64",
]
IMPLEMENTATIONS: tuple[str, ...] = get_args(Implementation)[1:]


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of one model. Pixels: image, patch. Patches a side: block (1 is plain causal AIM). The rest are widths."""

    image: int = field(metadata=roles.role("law"))  # side of the square image, pixels
    patch: int = field(metadata=roles.role("law"))  # side of a patch, pixels
    block: int = field(metadata=roles.role("law"))  # side of a block, patches; 1 is plain causal AIM
    width: int = field(metadata=roles.role("law"))  # width of the encoder
    depth: int = field(metadata=roles.role("law"))  # layers of the encoder
    heads: int = field(metadata=roles.role("law"))  # attention heads of an encoder layer
    bridge: int = field(metadata=roles.role("law"))  # hidden width of the MLP between encoder and decoder
    dec_width: int = field(metadata=roles.role("law"))  # width of the decoder
    dec_depth: int = field(metadata=roles.role("law"))  # layers of the decoder
    dec_heads: int = field(metadata=roles.role("law"))  # attention heads of a decoder layer
    head: int = field(metadata=roles.role("law"))  # hidden width of the pixel head
    predict: int = roles.law(1)  # number of heads; head i predicts block k+1+i from block k
    mlp_ratio: float = roles.law(4.0)  # hidden width of an encoder layer's MLP, as a multiple of the width
    drop_path: float = roles.law(0.0)  # rate of the last encoder layer, rising linearly from 0; the decoder has none
    order: str = roles.law("raster")  # order of the blocks; "random" trains on `blocks.block_orders`
    dec_mlp_ratio: float = roles.law(0.0)  # the same for the decoder; 0: as mlp_ratio
    prefix: bool = roles.law(False)  # AIM's prefix attention (xtra/prefix.py)

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if f.type == "int" and (not isinstance(value, int) or value < 1):
                raise ValueError(f"model.{f.name} is {value!r}; it must be a whole number of at least 1")
        for whole, part in (("image", "patch"), ("grid", "block"), ("width", "heads"), ("dec_width", "dec_heads")):
            size, divisor = getattr(self, whole), getattr(self, part)
            if size % divisor:
                raise ValueError(f"model.{part} is {divisor}; it must divide the {whole}, which is {size}")
        for whole, part in (("width", "heads"), ("dec_width", "dec_heads")):
            if getattr(self, whole) // getattr(self, part) % 2:
                size, heads = getattr(self, whole), getattr(self, part)
                raise ValueError(
                    f"model.{part} is {heads}; {whole} {size} / {heads} = {size // heads} a head, which must be even"
                )
        if not 1 <= self.predict < self.blocks:
            raise ValueError(
                f"model.predict is {self.predict}; with {self.blocks} blocks it must be 1..{self.blocks - 1}"
            )
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"model.drop_path is {self.drop_path}; it must be at least 0 and below 1")
        if self.mlp_ratio <= 0:
            raise ValueError(f"model.mlp_ratio is {self.mlp_ratio}; it must be above 0")
        if self.dec_mlp_ratio < 0:
            raise ValueError(f"model.dec_mlp_ratio is {self.dec_mlp_ratio}; it must be above 0, or 0 for mlp_ratio")
        if self.order not in ORDERS:
            raise ValueError(f"model.order is {self.order!r}; it must be one of {', '.join(ORDERS)}")

    @property
    def grid(self) -> int:
        """Patches a side of the image."""
        return self.image // self.patch

    @property
    def blocks(self) -> int:
        """K, blocks of an image."""
        return (self.grid // self.block) ** 2

    @property
    def per_block(self) -> int:
        """Tokens of a block."""
        return self.block**2

    @property
    def tokens(self) -> int:
        return self.grid**2

    @property
    def side(self) -> int:
        """Pixels a side of a block."""
        return self.patch * self.block

    @property
    def block_pixels(self) -> int:
        """P, values of a block: 3 channels of side x side pixels."""
        return 3 * self.side**2


def model_config(values: Mapping[str, Any]) -> ModelConfig:
    """The config from its JSON form. Raises ValueError naming an unknown or missing field."""
    names = [field.name for field in fields(ModelConfig)]
    for name in values:
        if name not in names:
            raise ValueError(f"model.{name} is unknown; the fields are {', '.join(names)}")
    try:
        return ModelConfig(**values)
    except TypeError as error:
        raise ValueError(f"the model config is incomplete: {error}") from None


def _sizes() -> dict[str, ModelConfig]:
    tiny = ModelConfig(32, 4, 2, 64, 2, 2, bridge=128, dec_width=64, dec_depth=1, dec_heads=2, head=128)
    small = ModelConfig(32, 4, 2, 128, 4, 4, bridge=256, dec_width=128, dec_depth=2, dec_heads=2, head=256)
    base = ModelConfig(32, 4, 2, 192, 6, 6, bridge=384, dec_width=128, dec_depth=2, dec_heads=2, head=512)
    b16 = ModelConfig(256, 16, 4, 768, 12, 12, bridge=4096, dec_width=768, dec_depth=8, dec_heads=6, head=6144)
    h14 = ModelConfig(224, 14, 4, 1280, 32, 16, bridge=5120, dec_width=640, dec_depth=8, dec_heads=8, head=9408)
    b16_ablation = replace(b16, dec_width=384)
    # Encoders as in the official code (src/modules/vit.py); decoders, bridges and heads are ours.
    ti16 = replace(b16, width=192, heads=3, bridge=1024, dec_width=192, dec_heads=3, head=1536)
    s16 = replace(b16, width=384, heads=6, bridge=2048, dec_width=384, head=3072)
    l16 = replace(b16, width=1024, depth=24, heads=16)
    g14 = replace(h14, width=1408, depth=40, bridge=5632, dec_width=704, mlp_ratio=48 / 11, dec_mlp_ratio=4.0)
    return {
        "tiny32": tiny,
        "small32": small,
        "base32": base,
        "tiny64": replace(tiny, image=64, block=4),
        "small64": replace(small, image=64, block=4),
        "base64": replace(base, image=64, block=4),
        "ti16": ti16,
        "s16": s16,
        "b16": b16,
        "l16": l16,
        "h14": h14,
        "g14": g14,
        "b16_ablation": b16_ablation,
        "b16_aim": replace(b16_ablation, block=1),
    }


SIZES: Mapping[str, ModelConfig] = MappingProxyType(_sizes())
"""b16 and h14 are the paper's XTRA-B/16@256 and XTRA-H/14@224; b16_ablation and b16_aim its ablation baseline and
plain-causal variant; ti16, s16, l16 and g14 are not in the paper; *32 and *64 train on a CPU. All have drop_path 0:
recipes set it."""


@dataclass(frozen=True)
class OptimConfig:
    lr: float = roles.law(1e-3)  # peak learning rate
    min_lr: float = roles.law(1e-6)  # learning rate at the last sample of a cosine schedule
    warmup_lr: float = roles.law(1e-4)  # learning rate at the first sample (official configs, not in the paper)
    # below 1: a share of all samples; otherwise a number of samples (paper: B 15/800, H 3/100)
    warmup: float = roles.law(0.03)
    betas: tuple[float, float] = roles.law((0.9, 0.95))  # AdamW's decay rates of the two moments
    eps: float = roles.law(1e-8)  # AdamW's epsilon, added to the root of the second moment
    weight_decay: float = roles.law(0.05)  # AdamW's weight decay; biases and one-dimensional parameters have none
    clip: float = roles.law(1.0)  # limit of the global gradient norm; inf: no clipping
    # constant: warm-up, then the peak rate, then a decay to 0 over the last samples. Until the decay begins, the run
    # does not depend on its number of samples, so one run (a trunk) serves many (its branches).
    schedule: Literal["cosine", "constant"] = roles.law("cosine")
    decay: float = roles.law(0.2)  # share of all samples over which a constant rate decays; 0: never (a trunk)

    def __post_init__(self) -> None:
        if self.schedule not in ("cosine", "constant"):
            raise ValueError(f"optim.schedule is {self.schedule!r}; it must be cosine or constant")
        if not 0 <= self.decay < 1:
            raise ValueError(f"optim.decay is {self.decay}; it must be a share of the samples, at least 0 and below 1")
        if self.schedule == "constant" and 0 < self.warmup < 1:
            raise ValueError(
                f"optim.warmup is {self.warmup}, a share; with a constant schedule give a number of samples, "
                "so that runs of all lengths start alike"
            )
        for name in ("lr", "min_lr", "warmup_lr", "warmup", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"optim.{name} is {getattr(self, name)}; it must be at least 0")
        for name in ("eps", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"optim.{name} is {getattr(self, name)}; it must be above 0")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optim.betas is {self.betas}; it must be two numbers, each at least 0 and below 1")


@dataclass(frozen=True)
class LossConfig:
    l1: bool = roles.law(False)  # mean absolute instead of mean squared error (the paper's ablation)


@dataclass(frozen=True)
class Augment:
    """Training-time augmentation; the defaults are the paper's Table 1."""

    scale: tuple[float, float] = roles.law((0.3, 1.0))  # share of the image's area that a crop covers
    ratio: tuple[float, float] = roles.law((3 / 4, 4 / 3))  # aspect ratio of a crop, width / height
    flip: float = roles.law(0.5)  # probability of a horizontal flip
    randaugment: str = roles.law("")  # RandAugment in timm's notation, such as rand-m9-mstd0.5-inc1; "": none
    # probability that a rectangle becomes noise (random erasing, timm's mode "pixel"); only probes may set it
    erase: float = roles.law(0.0)

    def __post_init__(self) -> None:
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if not 0 < low <= high:
                raise ValueError(f"augment.{name} is {low} {high}; it must be two rising numbers above 0")
        if self.scale[1] > 1 or not 0 <= self.flip <= 1:
            raise ValueError(f"augment.scale {self.scale} and augment.flip {self.flip} must be at most 1")
        if not 0 <= self.erase <= 1:
            raise ValueError(f"augment.erase is {self.erase}; it must be a probability, 0 to 1")
        if self.randaugment:
            from xtra import rand_augment  # it loads Pillow

            rand_augment.parse(self.randaugment)


@dataclass(frozen=True)
class Validation:
    """Off unless `data` is given. The official code validates on ImageNet-1k, resized to 300 px for crops of 256."""

    data: str = roles.data("")  # dataset to validate on: URL, URL@VERSION or URL@DIGEST
    every: int = roles.machine(1_000_000)  # training samples between two validations
    batch: int = roles.machine(256)  # images in one forward pass of a rank
    resize: int = roles.machine(0)  # short side before the centre crop, pixels; 0: the image size

    def __post_init__(self) -> None:
        for name, least in (("every", 1), ("batch", 1), ("resize", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"val.{name} is {getattr(self, name)}; it must be at least {least}")


@dataclass(frozen=True)
class TrainConfig:
    """One pretraining run. Counts are samples; the batch is global."""

    model: ModelConfig = field(metadata=roles.role("law"))
    # samples to see in total; the last batch is cut short to match
    samples: int = field(metadata=roles.role("trial", unless={"optim.schedule": "constant", "optim.decay": 0.0}))
    batch: int = field(metadata=roles.role("law", resumed=True))  # images per step, over all ranks
    data: str = roles.data("")  # dataset: URL, URL@VERSION or URL@DIGEST
    # other datasets and their shares of the samples seen, URL=SHARE; data gets the rest
    mix: tuple[str, ...] = roles.data(())
    out: str = roles.machine("")  # run folder
    recipe: str = roles.trial("custom")  # name of the recipe that this run started from
    arm: str = roles.machine("")  # name of the variant in comparisons; the recipe's name if empty
    # trunk to branch from: a run at a constant rate, with a checkpoint where this run's decay begins
    branch: str = roles.data("")
    seed: int = roles.trial(0)  # seed of the initial weights, drop path and crops
    optim: OptimConfig = field(default_factory=OptimConfig, metadata=roles.role("law"))
    loss: LossConfig = field(default_factory=LossConfig, metadata=roles.role("law"))
    augment: Augment = field(default_factory=Augment, metadata=roles.role("law"))
    order: Order = field(default_factory=Order, metadata=roles.role("law"))
    precision: str = roles.law("fp32")  # "fp32", or "bf16" (autocast)
    # under bf16, keep the decoder in fp32, as the official code does
    decoder_fp32: bool = roles.law(False, unless={"precision": "fp32"})
    # on a GPU, round the operands of float32 matrix products to TF32: several times the speed
    tf32: bool = roles.law(False)
    # most images in one forward pass of a rank, with gradients accumulated; 0: all of them on a CPU, as many as fit
    # into free memory on a GPU (xtra/micro_batch.py)
    micro: int = roles.machine(0)
    # what to do with residual branches that drop path zeroes. compute: compute them anyway (official); skip: leave
    # them out (the same numbers, in a few shapes); subset: leave out a fixed number per micro-batch (as DINOv2)
    dropped: Literal["compute", "skip", "subset"] = roles.law("compute")
    compile: Literal["auto", "on", "off"] = roles.machine("auto")  # torch.compile layers, head and loss; auto: on a GPU
    attention: Implementation = roles.machine("auto")  # implementation (xtra/attention.py); all agree up to rounding
    shard_optimizer: bool = roles.machine(False)  # each rank keeps its share of the optimiser's state (ZeRO 1)
    device: str = roles.machine("auto")  # "cpu", "cuda" or "auto"
    threads: int = roles.machine(0)  # decoding threads per rank; 0: 2 on a CPU, its share of the cores on a GPU
    read: ReadConfig = field(default_factory=ReadConfig, metadata=roles.role("machine"))
    # JPEG decoder: "gpu" needs the extra `gpu`; "auto" uses it where available. What a GPU refuses, the CPU decodes.
    decoder: Literal["cpu", "gpu", "auto"] = roles.machine("cpu")
    checkpoint_every: int = roles.machine(1_000_000)  # samples between two checkpoints
    keep: int = roles.machine(2)  # number of newest checkpoints to keep
    keep_every: int = roles.machine(0)  # also keep the first checkpoint at or after each multiple of this; 0: none
    # also save and keep a checkpoint after exactly so many samples, so that runs can branch there
    keep_at: tuple[int, ...] = roles.machine(())
    # off unless val.data is given; the official code validates on ImageNet-1k, resized to 300 px for crops of 256
    val: Validation = field(default_factory=Validation, metadata=roles.role("machine"))
    # where metrics also go, in addition to the run folder
    sinks: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = roles.machine(())
    max_bad: float = roles.machine(0.01)  # stop when a larger share of samples had to be replaced
    other_manifest: bool = roles.machine(False)  # resume even if the checkpoint was made with another manifest

    def __post_init__(self) -> None:
        for name in ("samples", "batch", "checkpoint_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name, meaning in (("micro", "what fits"), ("keep_every", "none"), ("threads", "by the cores")):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 ({meaning}) or more")
        if not 0 <= self.max_bad <= 1:
            raise ValueError(f"max_bad is {self.max_bad}; it must be a share, 0 to 1")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"precision is {self.precision!r}; it must be fp32 or bf16")
        if self.attention not in ("auto", *IMPLEMENTATIONS):
            raise ValueError(f"attention is {self.attention!r}; it must be auto or one of {', '.join(IMPLEMENTATIONS)}")
        if self.compile not in ("auto", "on", "off"):
            raise ValueError(f"compile is {self.compile!r}; it must be auto, on or off")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"device is {self.device!r}; it must be auto, cpu or cuda")
        if self.model.prefix and (self.dropped != "compute" or self.attention.startswith("flex")):
            raise ValueError(
                f"dropped is {self.dropped} and attention {self.attention}; with model.prefix every image has a mask "
                "of its own: use --dropped compute and an attention other than flex"
            )
        if self.branch and (self.optim.schedule != "constant" or not self.optim.decay):
            raise ValueError(
                "branch needs a constant rate that decays: use --optim.schedule constant --optim.decay 0.2"
            )
        if off := [at for at in self.keep_at if at < 1 or at % self.batch]:
            raise ValueError(f"keep_at has {off[0]}; each must be a multiple of the batch, which is {self.batch}")
        if self.decoder == "gpu" and self.augment.randaugment:
            raise ValueError("augment.randaugment works on pixels that the CPU decodes, but decoder is gpu: use cpu")
        if self.augment.erase:
            raise ValueError(
                f"augment.erase is {self.augment.erase}; pretraining predicts pixels: only probes erase them"
            )


@dataclass(frozen=True)
class GenerateConfig:
    checkpoint: str  # a run folder, one of its checkpoints, or an official checkpoint
    data: str  # dataset: URL, URL@VERSION or URL@DIGEST
    out: str  # folder for grid-000.png, grid-001.png, ...
    samples: int = 16  # images, drawn from the whole set
    rows: int = 8  # images per grid, side by side
    given: int = 0  # true blocks that a free run starts from; 0: a quarter of them
    head: int = 0  # prediction head: 0 predicts the next block, 1 the one after
    resize: int = 0  # short side before the centre crop, pixels; 0: the image size
    seed: int = 0  # another seed draws other samples
    device: str = "auto"  # "cpu" or "cuda"; auto: the GPU where there is one

    def __post_init__(self) -> None:
        for name, least in (("samples", 1), ("rows", 1), ("given", 0), ("head", 0), ("resize", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
