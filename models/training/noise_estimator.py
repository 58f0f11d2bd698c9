"""The training of a noise estimator, which ldm_train.py and lcm_train.py share: latents encoded once, then the loop."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from .. import config, layers, losses, schedulers, weights
from ..data import augment, checks, datasets, lists
from ..pipelines import Pipeline
from ..runtime import checkpoint, compiling, processes, weights_file
from ..runtime.device import pick_device, pick_precision
from ..runtime.files import UserError
from ..unet import ConditionalUNet
from ..vqgan import MLVQGAN
from . import batches, interfaces, loop, ownership, pictures

PICTURES = 4  # validation images in a sample picture
SCHEDULE_STRIDE = 333  # timesteps between the values by which a state remembers its noise schedule


def train(
    settings: config.Settings,
    section: config.Ldm | config.Lcm,
    method: type[Pipeline],
    *,
    masked: bool,
    sampling: dict,
    reads: tuple[str, ...],
) -> int:
    """Train the noise estimator of a method into <runs>/<method.section>. Returns the exit status of the script.

    section: settings.ldm or settings.lcm. method: BSLDM or GLLCM, which names the section and the noise schedule.
    masked: train on the lungs-only pairs too. sampling: keywords of the method for the sample pictures.
    reads: the keys and sections that the script reads, of which a resumed training reports the changes.
    Raises UserError for data, weights or a folder that do not fit the settings.
    """
    check_condition(settings, section, method.section)
    # autoencoder: that of the run folder's own training before a shipped one, as in the evaluations
    settings = weights.prefer_own(settings, "vqgan")
    if processes.rank() == 0:
        print(weights.describe_autoencoder(settings, method.title), flush=True)

    # data, checked before anything is built
    pairs = Pairs.of(settings)
    check_twins(settings, pairs)

    folder = Path(settings.runs) / method.section
    with processes.joined(), ownership.owned(folder, f"{method.section}.start"):
        device = pick_device(settings.device)
        precision = pick_precision(settings.precision, device)
        vqgan = load_autoencoder(settings, device)
        vqgan_digest = checkpoint.digest(settings.vqgan.weights)  # names the cached latents and ties states to them
        encoder = Encoder(vqgan, vqgan_digest, settings, section.batch_size, masked, device)
        data, validation_data = sources(encoder, pairs, settings, datasets.LatentSource)

        # network
        unet = build_network(settings, section, method, vqgan, device)
        # what one image puts into a batch: with twins, itself and the patient without lesions
        side = settings.data.image_size // vqgan.factor
        latents_per_image = 2 if lists.with_twins(pairs.training) else 1
        example_shape = (latents_per_image, unet.settings["in_channels"], side, side)
        compiled = compile_network(unet, settings, section.batch_size, example_shape, device, precision)

        # the methods' epsilons differ: 1e-8 for BS-LDM, 1e-6 for GL-LCM [S]
        optimizer = torch.optim.AdamW(
            unet.parameters(), section.learning_rate, eps=section.epsilon, fused=device.type == "cuda"
        )

        # objective: of a network with a prior, its layers' own error counts
        alpha_bar = schedulers.SCHEDULES[method.schedule]()  # (1000,)
        objective = losses.denoising_objective(
            alpha_bar,
            section.offset_noise,
            unet.loss_weight if settings.unet.prior else None,
            condition=settings.unet.condition,
            lesion_weight=settings.train.lesion_weight,
            least_timestep=settings.train.least_timestep,
        )

        # run
        # Both orders of qkv have the same names and shapes of weights, so no other check would notice a change. The
        # offset is part of the noise that is learnt.
        learnt = ("unet", f"{method.section}.qkv_by_head", f"{method.section}.offset_noise")
        trainer = latent_trainer(
            folder,
            unet,
            optimizer,
            objective,
            (data, validation_data),
            pairs,
            settings,
            course=section,
            precision=precision,
            picture=picture_of(method, vqgan, sampling, pairs, settings),
            read={**config.values(settings, reads), "precision": precision, "compile": compiled},
            fixed=learnt,
            facts={"digest of vqgan.weights": vqgan_digest, "noise schedule": digits(alpha_bar)},
        )
        return trainer.run()


# --- What the trainings of noise estimators and of students share -----------------------------------------------------


@dataclass(frozen=True)
class Pairs:
    """The images of a training. Without a validation list, `validation` is empty."""

    training: dict[str, lists.Pair]
    validation: dict[str, lists.Pair]

    @classmethod
    def of(cls, settings: config.Settings) -> "Pairs":
        """Those of the settings' lists. Raises UserError for lists or images that are missing or do not fit."""
        pairs = cls(*lists.training_pairs(settings.data.root, settings.data.lists, settings.data.name))
        checks.check_ranges(pairs.training | pairs.validation, settings.data.root)
        return pairs


Kind = TypeVar("Kind", bound=datasets.LatentSource)


def sources(
    encoder: "Encoder", pairs: Pairs, settings: config.Settings, source: type[Kind]
) -> tuple[Kind, Kind | None]:
    """Training and validation latents, as sources of the class `source`; validation images are never augmented."""
    data = source(*encode_versions(encoder, pairs.training, settings))
    validation_data = None
    if pairs.validation:
        validation_data = source(encoder.latents(pairs.validation))
    return data, validation_data


def picture_of(
    method: type[Pipeline], vqgan: MLVQGAN, sampling: dict, pairs: Pairs, settings: config.Settings
) -> Callable[[dict], np.ndarray]:
    """The loop's sample pictures, of some validation images: CXR, result, target. sampling: keywords of the method."""
    size = settings.data.image_size

    def picture(networks: dict) -> np.ndarray:
        shown = dict(list((pairs.validation or pairs.training).items())[:PICTURES])
        cxr = torch.stack([datasets.load(pair, "cxr", size) for pair in shown.values()])  # (B, 1, H, W)
        soft = torch.stack([datasets.load(pair, "soft", size) for pair in shown.values()])  # (B, 1, H, W)
        result = method(vqgan, networks["unet"], **sampling)(cxr, list(shown))  # (B, 1, H, W)
        return pictures.grid(cxr, result, soft)

    return picture


def latent_trainer(
    folder: Path,
    unet: ConditionalUNet,
    optimizer: torch.optim.Optimizer,
    objective: interfaces.Objective,
    data: tuple[interfaces.Source, interfaces.Source | None],
    pairs: Pairs,
    settings: config.Settings,
    *,
    course: config.Course,
    precision: str,
    picture: Callable[[dict], np.ndarray],
    read: dict[str, object],
    fixed: tuple[str, ...],
    facts: dict[str, object],
) -> loop.Trainer:
    """The loop of one network on latents, those of training and validation being `data`.

    course: the section of the settings that says epochs, batch and rate. read: all settings that the training reads.
    fixed, facts: what a training that goes on must have as it was, beside the images, their size and the seed.
    """
    images = {
        "training images": lists.describe(pairs.training),
        "validation images": lists.describe(pairs.validation),
    }
    return loop.Trainer(
        folder,
        {"unet": unet},
        {"unet": optimizer},
        objective,
        *data,
        course=course,
        train=settings.train,
        learning_rates={"unet": course.learning_rate},
        precision=precision,
        settings=read,
        fixed=(*fixed, "data.image_size", "train.seed"),
        facts={**images, **facts},
        config_text=config.to_yaml(settings),
        picture=picture,
    )


# --- What is built, and what is refused -------------------------------------------------------------------------------


def load_autoencoder(settings: config.Settings, device: torch.device) -> MLVQGAN:
    """The autoencoder, in float32 whatever the training's precision, since its latents are kept and serve others.

    Raises UserError for images that it cannot take.
    """
    vqgan = MLVQGAN.load(settings.vqgan.weights)
    # pixels must divide by the autoencoder's factor times the U-Net's, 8 * 32 at full size
    config.check_image_size(settings, vqgan.factor)
    compiling.prepare_for_inference(vqgan, device, "float32", compiled=False)
    return vqgan.to(device)


def build_network(
    settings: config.Settings,
    section: config.Ldm | config.Lcm,
    method: type[Pipeline],
    vqgan: MLVQGAN,
    device: torch.device,
) -> ConditionalUNet:
    """The noise estimator as its training starts.

    It sees the noisy latent beside the CXR's, and gives as many channels [S].
    """
    torch.manual_seed(settings.train.seed)
    channels = 2 * vqgan.settings["code_channels"]  # noisy soft tissue and CXR, 4 + 4
    unet = ConditionalUNet(
        channels, channels, **asdict(settings.unet), qkv_by_head=section.qkv_by_head, schedule=method.schedule
    )
    checkpoint.init_from(unet, section.start).to(device)
    note_other_latents(section.start, vqgan)
    unet.notes = method.notes(settings, vqgan)  # its weights say what they were trained for
    layers.checkpoint_activations(unet, settings.train.checkpointing)
    return unet


def digits(alpha_bar: torch.Tensor) -> list[float]:
    """A few values of a schedule (1000,), which tell one from another."""
    # rounded, because CPUs differ in float32's last digits
    return [round(float(value), 6) for value in alpha_bar[::SCHEDULE_STRIDE]]


def check_twins(settings: config.Settings, pairs: Pairs) -> None:
    """Raise UserError if the lesion loss has nothing to compare with: each patient's twin without lesions."""
    if settings.train.lesion_weight and not lists.with_twins(pairs.training):
        raise UserError(
            f"train.lesion_weight={settings.train.lesion_weight:g} needs a twin without lesions, "
            f"<name>{lists.TWIN}, for every training image (simulate.lesions=true makes such pairs)"
        )


def note_other_latents(start: str | None, vqgan: MLVQGAN) -> None:
    """Say that the weights a training starts from, if their header tells, know another autoencoder's latents."""
    if start is None:
        return
    _, header, _ = weights_file.read_weights(start)
    known = (header or {}).get("vqgan")
    if known is not None and known != checkpoint.tensor_digest(vqgan):
        processes.say(f"note: {start} was trained on the latents of another autoencoder; little of it will help here")


def check_condition(settings: config.Settings, section: config.Ldm | config.Lcm, name: str) -> None:
    """Raise UserError for settings of the CXR's latent that no network can be trained or sampled with."""
    # EDM's preconditioning is about the CXR's latent itself: of a scaled one it would take the wrong difference.
    if settings.unet.prior and settings.unet.condition == "scaled":
        raise UserError(
            f"unet.prior={settings.unet.prior:g} needs the CXR's latent as it is; say unet.condition=plain, or "
            "unet.prior=0"
        )
    if settings.unet.condition == "plain" and section.condition == "scaled":
        raise UserError(
            f"unet.condition=plain trains on plain latents of the CXR, but {name}.condition=scaled would sample with "
            f"others; say {name}.condition=plain"
        )


def encode_versions(encoder: "Encoder", pairs: dict[str, lists.Pair], settings: config.Settings) -> list[dict]:
    """The latents of the training images, for each augmented version of them; of the images as they are if none is."""
    # one version, under names that later trainings without augmentation find again
    if augment.changes_nothing(settings.augment):
        return [encoder.latents(pairs)]
    count = settings.augment.versions
    processes.say(f"note: augmented; latents of {count} versions of each image are kept; the epochs take them in turn")
    # named by seed and number and not by the method, so that both methods' trainings share these latents, too
    versions = []
    for number in range(count):
        versions.append(encoder.latents(pairs, settings.augment, f"{settings.train.seed}/{number}"))
    return versions


def compile_network(
    unet: ConditionalUNet,
    settings: config.Settings,
    batch_size: int,
    shape: tuple[int, int, int, int],
    device: torch.device,
    precision: str,
) -> bool:
    """Compile the network in place if the settings want it. Returns whether it is compiled.

    shape: (n, C, h, w), what it sees of one image; with a twin n is 2.
    """
    if not compiling.should_compile(settings.compile, device):
        return False
    # One shape is compiled, that of a full micro-batch. Any numbers do, so zeros.
    count = shape[0] * batches.micro_batch_size(batch_size, settings.train.accumulate)
    latents = torch.zeros(count, *shape[1:], device=device)  # (n B, C, h, w)
    timesteps = torch.zeros(count, dtype=torch.long, device=device)  # (n B,)
    return compiling.compile_for_training([unet], unet, (latents, timesteps), precision, processes.say)


class Encoder:
    """Latents of the autoencoder, kept in <runs>/latents and shared by the trainings of both methods."""

    def __init__(
        self,
        vqgan: MLVQGAN,
        digest: str,
        settings: config.Settings,
        batch_size: int,
        masked: bool,
        device: torch.device,
    ):
        """digest: of the autoencoder's weights, by which its latents are found again. batch_size: images loaded
        together.
        """
        self.vqgan = vqgan
        self.digest = digest
        self.size = settings.data.image_size
        self.masked = masked
        self.folder = Path(settings.runs) / "latents"
        self.batch_size = batch_size
        self.device = device

    @torch.no_grad()
    def encode(self, batch: torch.Tensor) -> torch.Tensor:
        """Images (B, 1, H, W) -> latents (B, C, H/8, W/8), an image at a time: activations are what takes memory."""
        return torch.cat([self.vqgan.latent(image.to(self.device)) for image in batch.split(1)])

    def latents(
        self, pairs: dict[str, lists.Pair], augmentation: config.Augment | None = None, version: str = ""
    ) -> dict:
        """{name: {variant: latent}} of all pairs; what is not on the disk yet, all processes encode together.

        augmentation, version: those of datasets.cached_latents.
        """
        # one folder for each autoencoder and image size; a killed run may have left half a latent in any of them
        processes.tidy(*self.folder.glob("*"))
        arguments = (self.encode, self.digest, pairs, self.size, self.masked, self.folder, self.batch_size)
        keywords = {"augmentation": augmentation, "version": version}
        if processes.world_size() > 1:
            # first every process writes its own, then each reads all
            own = slice(processes.rank(), None, processes.world_size())
            datasets.cached_latents(*arguments, shard=own, **keywords)
            processes.barrier()  # none reads before all have written

        # one process encodes here what is missing; with several, all of it is there by now
        return datasets.cached_latents(*arguments, **keywords)
