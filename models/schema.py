"""The schema of config.yaml: the type and the bounds of every setting.

A setting is one line of config.yaml (value, meaning, source) and one field here. The sampler's keywords and the like
are classes of their own, which sections of the file inherit and the methods share.
"""

import os
import typing
from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, PlainValidator
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False, defer_build=True)  # built when first used, not for --help
# The comparison methods: the files of models/comparison/, each of which has a section of this name.
COMPARISON_METHODS = tuple(
    sorted(path.stem for path in (Path(__file__).parent / "comparison").glob("[a-z]*.py") if path.stem != "base")
)
WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


# --- Types of values -------------------------------------------------------------------------------------------------


def _number(value: Any) -> Any:
    """'3e-5' -> 3e-5 and '1e3' -> 1000.0, which YAML 1.1 reads as texts; pydantic then checks the type."""
    if isinstance(value, bool):
        return str(value)  # a text that is no number; pydantic would take true for 1
    if not isinstance(value, str):
        return value
    # Whole numbers first, so that a large seed is not rounded by a float.
    for number in (int, float):
        try:
            return number(value)
        except ValueError:
            continue
    return value


def _flag(value: Any) -> Any:
    """'true' -> True; other values stay as they are."""
    # YAML 1.1 reads these words itself; the command line gives texts.
    return WORDS.get(value.lower(), value) if isinstance(value, str) else value


def _boolean(value: Any) -> bool:
    # pydantic's own bool would take 1, "t" and "y" as well.
    if not isinstance(_flag(value), bool):
        raise PydanticCustomError("boolean", "should be true or false")
    return _flag(value)


def _text(value: Any) -> str:
    """A text as it stands, but ~ is the home folder. pydantic's own str would refuse file names that are not UTF-8."""
    if value is None or isinstance(value, (bool, list, tuple, dict)):
        raise PydanticCustomError("text", "should be a text")
    # YAML has read a folder 007 as 7 and 2024_11_24 as 20241124; the command line gives texts.
    if not isinstance(value, str):
        raise PydanticCustomError("text", "is a number or a date to YAML; write the text in quotes")
    return os.path.expanduser(value)


def _list(value: Any) -> Any:
    """One value stands for a list of one."""
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


# Bounds are the method's where it has any, and otherwise far beyond what anybody wants: a slip of the keyboard should
# end in one line and not in an endless or impossible computation.
Flag = Annotated[bool, PlainValidator(_boolean)]
Text = Annotated[str, PlainValidator(_text)]
Whole = Annotated[int, BeforeValidator(_number), Field(ge=0)]
Count = Annotated[Whole, Field(ge=1)]
Seed = Annotated[Whole, Field(lt=2**63)]  # what torch's generators take
Side = Annotated[Count, Field(le=8192)]  # of an image, pixels; its square is images.MAX_PIXELS
Channels = Annotated[Count, Field(le=2**16)]  # of a layer
Layers = Annotated[Whole, Field(le=1000)]  # or blocks in a row
Amount = Annotated[float, BeforeValidator(_number), Field(ge=0)]
Share = Annotated[Amount, Field(le=1)]  # a fraction, 0 to 1
Condition = Literal["scaled", "plain"]  # how the CXR's latent is seen, see schedulers.scale_condition
List = BeforeValidator(_list)
NotEmpty = Field(min_length=1)
Pair = Field(min_length=2, max_length=2)  # from and to


# --- The sections of config.yaml -------------------------------------------------------------------------------------


@dataclass(frozen=True, config=STRICT)
class Data:
    """Images on the disk and the lists that split them."""

    root: Text
    name: Text
    lists: Text
    image_size: Side
    split: Annotated[tuple[Share, ...], List]  # shares of training, validation and test
    seed: Seed
    write_masks: Flag
    skip_faulty: Flag
    source: Text | None
    range: Text  # see images.parse_limits
    patient: Text | None  # pattern with one group, or a CSV file


@dataclass(frozen=True, config=STRICT)
class Simulate:
    """Simulated pairs of CXR and soft tissue."""

    count: Whole
    seed: Seed
    source: Literal["phantom", "ct", "both"]
    ct: Text | None  # folder of chest CTs
    lesions: Flag  # drawn into every patient, each with a twin without them
    devices: Flag  # of many kinds at their rates
    cartilage: Flag  # calcified, of drawn ribs


@dataclass(frozen=True, config=STRICT)
class VqganNetwork:
    """Keywords of vqgan.MLVQGAN."""

    channels: Annotated[tuple[Channels, ...], List, NotEmpty]
    residual_channels: Channels  # inner width of a residual unit
    residual_layers: Layers
    codes: Annotated[Count, Field(le=2**20)]
    code_channels: Channels
    decay: Share  # of the codebook's moving averages
    commitment: Amount  # weight of the commitment loss
    restart: Flag  # of codes that no latent uses


@dataclass(frozen=True, config=STRICT)
class Discriminator:
    """Keywords of vqgan.PatchDiscriminator."""

    channels: Channels
    layers: Layers


@dataclass(frozen=True, config=STRICT)
class VqganLoss:
    """Keywords of losses.HybridLoss."""

    # The other terms' weights are relative to the pixel loss, whose own is 1.
    pixel: Literal["mse", "l1"]
    perceptual: Amount
    adversarial: Amount
    ms_ssim: Amount


@dataclass(frozen=True, config=STRICT)
class Course:
    """The settings that every training has."""

    epochs: Count
    batch_size: Count
    learning_rate: Amount
    milestones: Annotated[tuple[Whole, ...], List]  # epochs at which the learning rate falls by gamma
    gamma: Amount
    average: Share  # decay of the weight average; 0: none
    start: Text | None  # weights that a new training starts from


@dataclass(frozen=True, config=STRICT)
class Vqgan(Course):
    """The autoencoder and its training."""

    weights: Text
    network: VqganNetwork
    discriminator: Discriminator
    loss: VqganLoss
    masked: Flag  # train on the lungs-only images too
    crop: Whole  # side of the random crops, pixels; 0: whole images
    discriminator_learning_rate: Amount
    unit_latent: Flag  # export with latents of unit mean square


@dataclass(frozen=True, config=STRICT)
class Unet:
    """Keywords of unet.ConditionalUNet."""

    width: Channels
    multipliers: Annotated[tuple[Channels, ...], List, NotEmpty]
    blocks: Annotated[Layers, Field(ge=1)]
    heads: Channels
    attention: Annotated[tuple[Whole, ...], List]  # downsampling factors of the levels that have it
    prior: Amount  # sigma_data of the EDM preconditioning; 0: as published
    condition: Condition  # in training


@dataclass(frozen=True, config=STRICT)
class BsldmSampling:
    """Keywords of sampling.sample_bsldm."""

    sampler: Literal["ddpm", "ddim", "dpmpp", "lcm"]
    steps: Annotated[Count, Field(le=1000)]  # the noise schedule's
    clip: Amount
    clip_rate: Amount
    clip_lag: Whole  # steps of 1000; 1 as in the published loop
    condition: Condition


@dataclass(frozen=True, config=STRICT)
class GllcmSampling:
    """Keywords of sampling.sample_gllcm."""

    steps: Annotated[Count, Field(le=50)]  # latent consistency steps among the noise schedule's 1000
    guidance: Literal["leg", "leg_shared", "cfg", "vanilla"]
    alpha: Amount  # guidance scale
    clip_global: Amount
    clip_local: Amount
    clip_rate: Amount
    condition: Condition


@dataclass(frozen=True, config=STRICT)
class GllcmFusion:
    """How GL-LCM fuses its global and its local result."""

    fusion: Literal["poisson", "alpha", "autoencoder", "none"]
    blend: Share  # weight of the local result in alpha fusion


@dataclass(frozen=True, config=STRICT)
class Ldm(BsldmSampling, Course):
    """BS-LDM: its noise estimator's training and its sampler."""

    weights: Text
    teacher: Text | None  # of distillation
    qkv_by_head: Flag
    offset_noise: Amount
    epsilon: Amount


@dataclass(frozen=True, config=STRICT)
class Lcm(GllcmSampling, GllcmFusion, Course):
    """GL-LCM: its noise estimator's training, its sampler and its fusion."""

    weights: Text
    teacher: Text | None  # of distillation
    qkv_by_head: Flag
    offset_noise: Amount
    epsilon: Amount


@dataclass(frozen=True, config=STRICT)
class Distill(Course):
    """The training of a student of either method's noise estimator, see training/distillation.py."""

    steps: Annotated[Count, Field(le=47)]  # that the student's weights ask for; BS-LDM's schedule has no more
    skip: Annotated[Count, Field(le=500)]  # timesteps of the teacher's one step
    path: Literal["teacher", "data"]  # what leads from one point of a path to the next
    huber: Annotated[Amount, Field(ge=1e-6)]
    checkpointing: Flag  # beside train.checkpointing


@dataclass(frozen=True, config=STRICT, kw_only=True)
class ComparisonMethod(Course):
    """One of the methods of models/comparison/. What a method does without is 0, and stays out of its section."""

    image_size: Side  # that it is trained at; results are enlarged to the image's own size
    # the network
    channels: Annotated[tuple[Channels, ...], List, NotEmpty]
    blocks: Annotated[Count, Field(le=1000)] | None = None
    predicts: Literal["soft", "bone"] | None = None
    saturate: Annotated[Share, Field(le=0.25)] | None = None
    # weights of the loss's terms
    l1: Amount = 0.0
    mse: Amount = 0.0
    ssim: Amount = 0.0  # of 1 - SSIM
    ms_ssim: Amount = 0.0  # of 1 - MS-SSIM
    perceptual: Amount = 0.0
    adversarial: Amount = 0.0
    latent: Amount = 0.0  # of the latent's own loss: KL divergence, commitment
    # its training beside Course
    discriminator_channels: Channels = 64
    discriminator_learning_rate: Amount = 0.0
    beta_1: Share = 0.9  # Adam's
    plateau: Whole = 0  # epochs without gain after which the rates fall by gamma
    least_learning_rate: Amount = 0.0  # on plateaus
    flip: Flag = False
    rotate: Annotated[Amount, Field(le=180)] = 0.0
    scale: Annotated[Amount, Field(le=0.5)] = 0.0
    shift: Share = 0.0


@dataclass(frozen=True, config=STRICT, kw_only=True)
class ComparisonBsDiff(ComparisonMethod):
    """BS-Diff, which has two stages and a sampler."""

    enhancer: Annotated[tuple[Channels, ...], List, NotEmpty]
    first_epochs: Count
    sampler: Literal["ddpm", "ddim", "dpmpp", "predicted"]
    steps: Annotated[Count, Field(le=1000)]


def _comparison_settings() -> dict[str, Any]:
    """{name: type} of the settings of section `comparison`, among them one section for each method."""
    own = {"bs_diff": ComparisonBsDiff}  # sections with settings that no other method has
    settings: dict[str, Any] = {"method": Literal[COMPARISON_METHODS], "weights": Text}
    for name in COMPARISON_METHODS:
        # a class for each section, by which the tests tell whose settings are read
        section = type(f"Comparison_{name}", (own.get(name, ComparisonMethod),), {"__module__": __name__})
        settings[name] = dataclass(frozen=True, config=STRICT, kw_only=True)(section)
    return settings


# Made of the folder's files and not written out, so that another method takes one file and one section of config.yaml.
_members = {"__module__": __name__, "__annotations__": _comparison_settings(), "__doc__": "The comparison methods."}
Comparison = dataclass(frozen=True, config=STRICT)(type("Comparison", (), _members))


@dataclass(frozen=True, config=STRICT)
class ImageAugmentation:
    """How far training images are changed; each amount is drawn from 0 to its value or about it (see config.yaml)."""

    flip: Flag
    rotate: Annotated[Amount, Field(le=180)]  # degrees
    scale: Annotated[Amount, Field(le=0.5)]  # 1 - scale divides
    contrast: Annotated[Amount, Field(le=0.9)]  # above, images may turn black
    gamma: Amount
    display: Amount
    display_apart: Share  # of the pairs
    sharpen: Amount
    noise: Amount  # standard deviation, on grey values 0 to 1
    bone: Share
    bone_flat: Annotated[tuple[Share, ...], List, Pair]
    bone_wide: Annotated[tuple[Annotated[Amount, Field(ge=0.001, le=0.5)], ...], List, Pair]
    bone_edge: Amount


@dataclass(frozen=True, config=STRICT)
class Augment(ImageAugmentation):
    """Augmentation, and how often it is drawn where latents are kept (not in the autoencoder's training)."""

    versions: Count


@dataclass(frozen=True, config=STRICT)
class AnyTraining:
    """What the three trainings share."""

    seed: Seed
    workers: Annotated[Whole, Field(le=1024)]
    accumulate: Count  # micro-batches per batch
    checkpointing: Flag
    validate_every: Count
    sample_every: Count
    save_every: Amount  # seconds; the two above are in epochs


@dataclass(frozen=True, config=STRICT)
class Train(AnyTraining):
    """What the three trainings share, and what only those of the noise estimators have (see losses)."""

    lesion_weight: Amount
    least_timestep: Annotated[Whole, Field(le=999)]  # the noise schedule's last


@dataclass(frozen=True, config=STRICT)
class ResultForm:
    """How a method makes its result from what was sampled, see pipelines.Pipeline."""

    residual: Flag  # keep the CXR's detail that the autoencoder loses, less the bone's share
    strength: Share  # of the estimated bone that is removed


@dataclass(frozen=True, config=STRICT)
class Eval(ResultForm):
    """One evaluation: what goes in and how the results come out."""

    input: Text
    output: Text
    batch_size: Count
    seed: Seed
    samples: Annotated[Count, Field(le=1000)]  # of an image; each is a sampling of its own
    dicom: Flag
    range: Text  # see images.parse_limits
    masks: Text | None
    refiner: Text | None  # weights of refinement.BoneRefiner
    paths: Flag  # GL-LCM's two results too
    snapshots: Annotated[Whole, Field(le=1000)]  # steps of which pictures are written
    nodules: Text | None  # .npz file or folder of them
    inserted: Annotated[Count, Field(le=1000)]  # nodules per X-ray
    skip_faulty: Flag
    shard: Text | None  # see evaluation.run.parse_shard
    size: Side | None  # longest side of the results, pixels
    bits: Literal[8] | None  # of the results
    panels: Flag


@dataclass(frozen=True, config=STRICT)
class Metrics:
    """The comparison of predictions with the truth."""

    cxr: Text
    target: Text
    prediction: Annotated[tuple[Text, ...], List, NotEmpty]
    images: Text | None
    findings: Text | None
    masks: Text | None
    output: Text
    seed: Seed
    size: Side
    page: Flag  # report.html


@dataclass(frozen=True, config=STRICT)
class Study:
    """The reading study: what readers are given, and what is made of their answers."""

    cxr: Text
    results: Annotated[tuple[Text, ...], List, NotEmpty]
    images: Text | None
    readers: Annotated[Count, Field(le=100)]
    output: Text
    seed: Seed
    truth: Text | None  # CSV of findings
    answers: Text
    reach: Amount  # radii
    least_reach: Amount  # pixels


@dataclass(frozen=True, config=STRICT)
class Settings:
    """All of config.yaml, resolved."""

    runs: Text
    device: Text
    precision: Literal["auto", "bf16", "float32"]
    compile: Annotated[Literal["auto", True, False], BeforeValidator(_flag)]  # not 1 or 0, which equal True and False
    threads: Annotated[Whole, Field(le=1024)]
    features: Text | None
    data: Data
    simulate: Simulate
    vqgan: Vqgan
    unet: Unet
    ldm: Ldm
    lcm: Lcm
    distill: Distill
    comparison: Comparison  # pyright: ignore[reportInvalidTypeForm]
    augment: Augment
    train: Train
    eval: Eval
    metrics: Metrics
    study: Study


def _list_fields(section: type, prefix: str = "") -> tuple[dict[str, type], dict[str, Any]]:
    """({dotted path: class} of the sections, {dotted key: type} of the settings) of a class and of its sections."""
    sections: dict[str, type] = {}
    settings: dict[str, Any] = {}
    # include_extras keeps the Annotated bounds. A dataclass is a section, anything else a setting.
    for name, hint in typing.get_type_hints(section, include_extras=True).items():
        if isinstance(hint, type) and is_dataclass(hint):
            inner_sections, inner_settings = _list_fields(hint, f"{prefix}{name}.")
            sections |= {prefix + name: hint, **inner_sections}
            settings |= inner_settings
        else:
            settings[prefix + name] = hint
    return sections, settings


# what the settings file and the command line may name
SECTIONS, KEYS = _list_fields(Settings)
