"""The training of ML-VQGAN, the autoencoder in whose latents both methods work."""
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from .. import config, layers, losses
from ..data import augment, datasets, lists
from ..runtime import compiling, processes
from ..runtime.device import pick_device, pick_precision
from ..vqgan import MLVQGAN, PatchDiscriminator
from . import loop, ownership, pictures

PICTURES = 4  # validation images in a sample picture
# settings that weights and images belong to: a training that goes on must have the same
FIXED = ("vqgan.network", "vqgan.discriminator", "vqgan.masked", "data.image_size", "train.seed")


def train(settings: config.Settings, reads: tuple[str, ...]) -> int:
    """Train the autoencoder of these settings into <runs>/vqgan. Returns the exit status of the script.

    reads: the keys and sections that the script reads, of which a resumed training reports the changes.
    Raises UserError for data, weights or a folder that do not fit the settings.
    """
    vqgan_settings = settings.vqgan
    size = settings.data.image_size
    folder = Path(settings.runs) / "vqgan"

    # data
    pairs, validation_pairs = lists.training_pairs(settings.data.root, settings.data.lists, settings.data.name)
    if not augment.changes_nothing(settings.augment):
        processes.say("note: images are augmented anew in each epoch")
    data = datasets.ImageSource(pairs, size, vqgan_settings.masked, settings.train.workers, settings.augment, vqgan_settings.crop,
                                settings.train.seed)
    validation_data = None
    if validation_pairs:
        validation_data = datasets.ImageSource(validation_pairs, size, vqgan_settings.masked, settings.train.workers)

    with processes.joined(), ownership.owned(folder, "vqgan.start"):
        # networks
        device = pick_device(settings.device)
        precision = pick_precision(settings.precision, device)
        hybrid = losses.HybridLoss(**asdict(vqgan_settings.loss), features=settings.features).to(device)
        torch.manual_seed(settings.train.seed)
        vqgan = loop.init_from(MLVQGAN(**asdict(vqgan_settings.network)), vqgan_settings.start).to(device)
        discriminator = PatchDiscriminator(**asdict(vqgan_settings.discriminator)).to(device)
        layers.checkpoint_activations(vqgan, settings.train.checkpointing)
        compiled = compile_networks(vqgan, settings, device, precision)

        # optimisers: the codebook is a moving average, which no gradient moves
        learning_rates = {"vqgan": vqgan_settings.learning_rate, "discriminator": vqgan_settings.discriminator_learning_rate}
        fused = device.type == "cuda"
        learnt = [parameter for parameter in vqgan.parameters() if parameter.requires_grad]
        optimizers = {"vqgan": torch.optim.Adam(learnt, learning_rates["vqgan"], fused=fused)}
        if vqgan_settings.loss.adversarial:
            optimizers["discriminator"] = torch.optim.Adam(discriminator.parameters(), learning_rates["discriminator"], fused=fused)

        # sample pictures: images above, their reconstructions beside them
        def picture(networks: dict) -> np.ndarray:
            shown = list((validation_pairs or pairs).values())[:PICTURES]
            originals = torch.stack([datasets.load(pair, variant, size) for pair in shown for variant in datasets.WHOLE]).to(device)
            reconstructions, _ = networks["vqgan"](originals)
            return pictures.grid(originals, reconstructions)

        # run
        trainer = loop.Trainer(
            folder, {"vqgan": vqgan, "discriminator": discriminator}, optimizers, losses.autoencoder_objective(hybrid),
            data, validation_data, course=vqgan_settings, train=settings.train, learning_rates=learning_rates, precision=precision,
            settings={**config.values(settings, reads), "precision": precision, "compile": compiled}, fixed=FIXED,
            facts={"training images": lists.describe(pairs), "validation images": lists.describe(validation_pairs)},
            config_text=config.to_yaml(settings), picture=picture,
            finish=MLVQGAN.unit_latent if vqgan_settings.unit_latent else None)
        return trainer.run()


def compile_networks(vqgan: MLVQGAN, settings: config.Settings, device: torch.device, precision: str) -> bool:
    """Compile encoder and decoder in place if the settings want it. Returns whether they are compiled."""
    if not compiling.should_compile(settings.compile, device):
        return False
    count = loop.micro_batch_size(settings.vqgan.batch_size, settings.train.accumulate)
    side = settings.vqgan.crop or settings.data.image_size
    example = torch.zeros(count, 1, side, side, device=device)
    compiled_parts = [vqgan.encoder, vqgan.decoder]
    return compiling.compile_for_training(compiled_parts, torch.nn.Sequential(*compiled_parts), (example,), precision, processes.say)
