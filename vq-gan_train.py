"""Train the ML-VQGAN, the autoencoder that the diffusion works in.

    python vq-gan_train.py                          the paper's setting on data/
    python vq-gan_train.py --profile demo           small, minutes on a CPU (after: python dataSegmentation.py --profile demo)
    torchrun --nproc_per_node=8 vq-gan_train.py     eight GPUs

Reads <data.root>/CXR, BS and Mask and the split lists; writes <runs>/vqgan/. The same command goes on where it was stopped.
"""
from dataclasses import asdict, fields
from pathlib import Path

import torch

from models import config, layers, losses
from models.data import augment, datasets, lists
from models.runtime import compiling, entry, processes
from models.runtime.device import pick_device, pick_precision
from models.training import loop as training
from models.vqgan import MLVQGAN, PatchDiscriminator

READS = ("runs", "device", "precision", "compile", "features", "data.root", "data.name", "data.lists", "data.image_size", "vqgan", "train",
         *(f"augment.{field.name}" for field in fields(config.Augment) if field.name != "versions"))
PICTURES = 4  # validation images in a sample picture


def main() -> int:
    # settings
    settings = config.parse(__doc__, READS)
    chosen, network = settings.vqgan, settings.vqgan.network
    config.check_image_size(settings)
    folder = Path(settings.runs) / "vqgan"

    # data
    train, validation = lists.training_pairs(settings.data.root, settings.data.lists, settings.data.name)
    if not augment.changes_nothing(settings.augment):
        processes.say("note: images are augmented anew in each epoch")
    kind = settings.data.image_size, chosen.masked, settings.train.workers
    sources = [datasets.ImageSource(train, *kind, settings.augment, chosen.crop, settings.train.seed),
               datasets.ImageSource(validation, *kind) if validation else None]

    # networks
    with processes.joined():
        device = pick_device(settings.device)
        hybrid = losses.HybridLoss(**asdict(chosen.loss), features=settings.features).to(device)
        torch.manual_seed(settings.train.seed)
        vqgan = training.started(MLVQGAN(**asdict(network)), chosen.start).to(device)
        critic = PatchDiscriminator(**asdict(chosen.discriminator)).to(device)
        layers.checkpoint_activations(vqgan, settings.train.checkpointing)
        precision = pick_precision(settings.precision, device)

        side, parts = chosen.crop or settings.data.image_size, [vqgan.encoder, vqgan.decoder]
        example = torch.zeros(training.part_size(chosen.batch_size, settings.train.accumulate), 1, side, side, device=device)
        compiled = compiling.pick(settings.compile, device) and compiling.compile_for_training(
            parts, torch.nn.Sequential(*parts), (example,), precision, processes.say)
        rates = {"vqgan": chosen.learning_rate, "discriminator": chosen.discriminator_learning_rate}
        fused = device.type == "cuda"
        optimizers = {"vqgan": torch.optim.Adam([p for p in vqgan.parameters() if p.requires_grad], rates["vqgan"], fused=fused)}
        if chosen.loss.adversarial:
            optimizers["discriminator"] = torch.optim.Adam(critic.parameters(), rates["discriminator"], fused=fused)

        # run
        def objective(networks, batch, noise):
            reconstruction, commitment = networks["vqgan"](batch["image"])
            loss, terms = hybrid(reconstruction, batch["image"], commitment, networks["discriminator"])
            minimised = {"vqgan": loss}
            if chosen.loss.adversarial:
                fake, real = networks["discriminator"](reconstruction.detach()), networks["discriminator"](batch["image"])
                minimised["discriminator"] = terms["discriminator"] = hybrid.discriminator_loss(fake, real)
            return minimised, {"loss": loss, **terms}

        def picture(networks):
            shown = [datasets.load(pair, kind, settings.data.image_size)
                     for pair in list((validation or train).values())[:PICTURES] for kind in datasets.WHOLE]
            originals = torch.stack(shown).to(device)
            return training.grid(originals, networks["vqgan"](originals)[0])

        config.keep(settings, folder)
        plan = training.make_plan(folder, chosen, settings.train, rates, precision,
                                  **asdict(chosen.loss), compiled=compiled, unit_latent=chosen.unit_latent,
                                  **{f"augment.{name}": value for name, value in asdict(settings.augment).items() if name != "versions"})
        identity = {"vqgan.network": asdict(network), "vqgan.discriminator": asdict(chosen.discriminator),
                    "data.image_size": settings.data.image_size, "training images": lists.describe(train),
                    "validation images": lists.describe(validation), "vqgan.masked": chosen.masked, "train.seed": settings.train.seed}
        finish = MLVQGAN.unit_latent if chosen.unit_latent else None
        return training.Trainer(plan, {"vqgan": vqgan, "discriminator": critic}, optimizers, objective, *sources, identity,
                                picture, finish).run()


if __name__ == "__main__":
    entry.run(main)
