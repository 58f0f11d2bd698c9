"""The training of ML-VQGAN, the autoencoder in whose latents both methods work."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from .. import config, layers, losses
from ..data import augment, checks, datasets, lists
from ..runtime import checkpoint, compiling, processes
from ..runtime.device import pick_device, pick_precision
from ..runtime.files import UserError
from ..vqgan import MLVQGAN, PatchDiscriminator
from . import batches, loop, ownership, pictures

PICTURES = 4  # validation images in a sample picture
# settings that weights and images belong to: a training that goes on must have the same
FIXED = ("vqgan.network", "vqgan.discriminator", "vqgan.masked", "data.image_size", "train.seed")


def train(settings: config.Settings, reads: tuple[str, ...]) -> int:
    """Train the autoencoder of these settings into <runs>/vqgan. Returns the exit status of the script.

    reads: the keys and sections that the script reads, of which a resumed training reports the changes.
    Raises UserError for data, weights or a folder that do not fit the settings.
    """
    section = settings.vqgan
    size = settings.data.image_size
    folder = Path(settings.runs) / "vqgan"
    check_ms_ssim(settings)

    # data: name -> files of one patient's CXR, soft tissue and mask
    pairs, validation_pairs = lists.training_pairs(settings.data.root, settings.data.lists, settings.data.name)
    checks.check_ranges(pairs | validation_pairs, settings.data.root)
    data, validation_data = image_sources(settings, pairs, validation_pairs)

    with processes.joined(), ownership.owned(folder, "vqgan.start"):
        # networks: the seed decides their first weights, so nothing else may draw between it and them
        device = pick_device(settings.device)
        precision = pick_precision(settings.precision, device)
        hybrid = losses.HybridLoss(**asdict(section.loss), features=settings.features).to(device)
        torch.manual_seed(settings.train.seed)
        vqgan = checkpoint.init_from(MLVQGAN(**asdict(section.network)), section.start).to(device)
        discriminator = PatchDiscriminator(**asdict(section.discriminator)).to(device)
        # neither changes the names of the weights, so that files and states are the same with and without
        layers.checkpoint_activations(vqgan, settings.train.checkpointing)
        compiled = compile_networks(vqgan, settings, device, precision)

        # optimisers: the codebook is a moving average, which no gradient moves
        rates = {"vqgan": section.learning_rate, "discriminator": section.discriminator_learning_rate}
        fused = device.type == "cuda"  # one kernel for many parameters
        learnt = [parameter for parameter in vqgan.parameters() if parameter.requires_grad]
        optimizers: dict[str, torch.optim.Optimizer] = {"vqgan": torch.optim.Adam(learnt, rates["vqgan"], fused=fused)}
        # without the adversarial term there is no optimiser, and the discriminator stays as it is
        if section.loss.adversarial:
            learnt = list(discriminator.parameters())
            optimizers["discriminator"] = torch.optim.Adam(learnt, rates["discriminator"], fused=fused)

        # sample pictures: CXRs and soft-tissue images, their reconstructions beside them
        def picture(networks: dict) -> np.ndarray:
            pictured_pairs = list((validation_pairs or pairs).values())[:PICTURES]
            loaded = []
            for pair in pictured_pairs:
                for variant in datasets.WHOLE:
                    loaded.append(datasets.load(pair, variant, size))  # (1, H, W)
            originals = torch.stack(loaded).to(device)  # (2 PICTURES, 1, H, W)
            reconstructions, _ = networks["vqgan"](originals)  # (2 PICTURES, 1, H, W)
            return pictures.grid(originals, reconstructions)

        # what a training that goes on must have as it was, beside the settings in FIXED
        facts: dict[str, object] = {
            "training images": lists.describe(pairs),
            "validation images": lists.describe(validation_pairs),
        }
        known_settings = {**config.values(settings, reads), "precision": precision, "compile": compiled}

        # run
        trainer = loop.Trainer(
            folder,
            {"vqgan": vqgan, "discriminator": discriminator},
            optimizers,
            losses.autoencoder_objective(hybrid),
            data,
            validation_data,
            course=section,
            train=settings.train,
            learning_rates=rates,
            precision=precision,
            settings=known_settings,
            fixed=FIXED,
            facts=facts,
            config_text=config.to_yaml(settings),
            picture=picture,
            # Only the exported copy is rescaled; the training itself goes on with its latents as they are.
            finish=MLVQGAN.unit_latent if section.unit_latent else None,
        )
        return trainer.run()


def image_sources(
    settings: config.Settings, pairs: dict[str, lists.Pair], validation_pairs: dict[str, lists.Pair]
) -> tuple[datasets.ImageSource, datasets.ImageSource | None]:
    """(training images, validation images or None). Validation images are whole and never augmented."""
    size = settings.data.image_size
    masked = settings.vqgan.masked
    workers = settings.train.workers
    if not augment.changes_nothing(settings.augment):
        processes.say("note: images are augmented anew in each epoch")
    data = datasets.ImageSource(
        pairs, size, masked, workers, settings.augment, settings.vqgan.crop, settings.train.seed
    )
    validation_data = None
    if validation_pairs:
        validation_data = datasets.ImageSource(validation_pairs, size, masked, workers)
    return data, validation_data


def check_ms_ssim(settings: config.Settings) -> None:
    """Raise UserError if the training images are too small for the MS-SSIM of the loss."""
    # a crop is what the loss sees; the message names the setting to change
    key = "vqgan.crop" if settings.vqgan.crop else "data.image_size"
    side = settings.vqgan.crop or settings.data.image_size
    if settings.vqgan.loss.ms_ssim and side < losses.MS_SSIM_MIN_SIDE:
        raise UserError(
            f"{key}={side} is too small for MS-SSIM, which needs {losses.MS_SSIM_MIN_SIDE} pixels; set "
            "vqgan.loss.ms_ssim=0, or take larger images"
        )


def compile_networks(vqgan: MLVQGAN, settings: config.Settings, device: torch.device, precision: str) -> bool:
    """Compile encoder and decoder in place if the settings want it. Returns whether they are compiled."""
    if not compiling.should_compile(settings.compile, device):
        return False
    # One shape is compiled: that of a full micro-batch.
    count = batches.micro_batch_size(settings.vqgan.batch_size, settings.train.accumulate)
    side = settings.vqgan.crop or settings.data.image_size
    example = torch.zeros(count, 1, side, side, device=device)  # (B, 1, H, W)
    # the codebook between them stays plain: its moving average and restarts depend on the data
    networks: list[torch.nn.Module] = [vqgan.encoder, vqgan.decoder]
    autoencoder = torch.nn.Sequential(*networks)
    return compiling.compile_for_training(networks, autoencoder, (example,), precision, processes.say)
