"""The training of a noise estimator, which ldm_train.py and lcm_train.py share: latents encoded once, then the common loop."""
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from .. import layers, losses, lungs, schedulers
from ..data import augment, datasets, lists
from ..runtime import checkpoint, compiling, processes
from ..runtime.device import pick_device, pick_precision
from ..unet import ConditionalUNet
from ..vqgan import MLVQGAN
from . import loop as training

PICTURES = 4  # validation images in a sample picture


def train(settings, chosen, method: str, schedule: str, masked: bool, pipeline: Callable) -> int:
    """Train a ConditionalUNet on cached latents; the exit status of the script.

    settings: all of them; chosen: settings.ldm or settings.lcm; method: name of the folder under settings.runs.
    schedule: name of the noise schedule. masked: train on the lungs-only pairs too. pipeline(vqgan, unet): what draws the
    sample pictures, called with (cxr (B, 1, H, W), names).
    """
    folder, size = Path(settings.runs) / method, settings.data.image_size
    pairs, validation = lists.training_pairs(settings.data.root, settings.data.lists, settings.data.name)
    with processes.joined():
        device = pick_device(settings.device)
        precision = pick_precision(settings.precision, device)
        vqgan = compiling.settle(MLVQGAN.load(settings.vqgan.weights), device, "float32", compiled=False).to(device)
        key = checkpoint.digest(settings.vqgan.weights)

        def latents(part, **augmentation):
            return encode_all(vqgan, key, part, size, masked, Path(settings.runs) / "latents", chosen.batch_size, device, **augmentation)

        how, versions = augment.Augmentation.chosen(settings.augment), [{}]
        if how != augment.NONE:
            versions = [{"how": how, "version": f"{settings.train.seed}/{number}"} for number in range(settings.augment.versions)]
            processes.say(f"note: augmented; latents of {len(versions)} versions of each image are kept; the epochs take them in turn")
        sources = [datasets.LatentSource(*(latents(pairs, **version) for version in versions)),
                   datasets.LatentSource(latents(validation)) if validation else None]
        torch.manual_seed(settings.train.seed)
        channels = 2 * vqgan.quantizer.quantizer.embedding.embedding_dim  # the noisy latent beside the CXR's
        unet = ConditionalUNet(channels, channels, **asdict(settings.unet), qkv_by_head=chosen.qkv_by_head, schedule=schedule)
        unet = training.started(unet, chosen.start).to(device)
        layers.checkpoint_activations(unet, settings.train.checkpointing)

        shape = training.part_size(chosen.batch_size, settings.train.accumulate), channels, *[size // vqgan.factor] * 2
        example = torch.zeros(shape, device=device), torch.zeros(shape[0], dtype=torch.long, device=device)
        compiled = compiling.pick(settings.compile, device) and compiling.compile_for_training([unet], unet, example, precision, processes.say)
        rates = {"unet": chosen.learning_rate}
        optimizers = {"unet": torch.optim.AdamW(unet.parameters(), chosen.learning_rate, eps=chosen.epsilon,
                                                fused=device.type == "cuda")}

        def picture(networks):
            shown = dict(list((validation or pairs).items())[:PICTURES])
            cxr, soft = (torch.stack([datasets.load(pair, kind, size, lungs.lung_mask) for pair in shown.values()]) for kind in datasets.WHOLE)
            return training.grid(cxr, pipeline(vqgan, networks["unet"])(cxr, list(shown)), soft)

        alpha_bar = schedulers.SCHEDULES[schedule]()
        identity = {"unet": asdict(settings.unet), "data.image_size": size, "training images": lists.describe(pairs),
                    "validation images": lists.describe(validation), "vqgan.weights": key, "train.seed": settings.train.seed,
                    "noise schedule": [round(float(a), 6) for a in alpha_bar[::333]], "offset_noise": chosen.offset_noise}
        on_lesions = {name: getattr(settings.train, name) for name in ("lesion_weight", "least_timestep", "crop")}
        plan = training.make_plan(folder, chosen, settings.train, rates, precision, epsilon=chosen.epsilon, compiled=compiled,
                                  **on_lesions, **{f"augment.{name}": value for name, value in asdict(settings.augment).items()})
        objective = losses.denoising_objective(alpha_bar, chosen.offset_noise, unet.loss_weight if settings.unet.prior else None,
                                                **on_lesions)
        return training.Trainer(plan, {"unet": unet}, optimizers, objective, *sources, identity, picture).run()


def encode_all(vqgan: MLVQGAN, key: str, pairs: dict, size: int, masked: bool, folder: Path, batch_size: int, device: torch.device,
               **augmentation) -> dict:
    """The latents of all pairs, encoded by all processes together where they are not on the disk yet.

    augmentation: how and version of datasets.cached_latents.
    """

    @torch.no_grad()
    def encode(batch):
        return torch.cat([vqgan.latent(image.to(device)) for image in batch.split(1)])

    processes.tidy(*folder.glob("*"))
    arguments = (encode, key, pairs, size, masked, lungs.lung_mask, folder, batch_size)
    if processes.world_size() > 1:
        datasets.cached_latents(*arguments, mine=slice(processes.rank(), None, processes.world_size()), **augmentation)
        processes.all_reduce_max(0)
    return datasets.cached_latents(*arguments, **augmentation)
