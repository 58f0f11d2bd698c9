"""The training of a comparison method: CXR in, soft tissue out, with the terms of the loss that its section weighs."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from .. import comparison, config, images, losses, schedulers
from ..comparison import Translator
from ..comparison.base import ADVERSARIES, image_noise, no_latent_loss
from ..comparison.bs_diff import BSDiff, PixelUNet
from ..data import checks, datasets, lists
from ..runtime import checkpoint, processes
from ..runtime.device import autocast, pick_device, pick_precision
from ..runtime.files import UserError, replacing
from . import interfaces, loop, ownership, pictures

PICTURES = 4  # validation images in a sample picture
# keys of a method's section that are keywords of its network; None and absent ones are left to the network itself
KEYWORDS = ("channels", "blocks", "predicts", "saturate", "enhancer", "sampler", "steps")
# of a section, what weights belong to: a training that goes on must have the same
FIXED = ("image_size", "channels", "blocks", "predicts", "saturate", "enhancer", "discriminator_channels")
BETA_2 = 0.999  # Adam's, of all methods
FIRST = "first_stage"  # folder of BS-Diff's first stage, below that of the method
Suppress = Callable[[dict, Tensor, list[str]], Tensor]  # (networks, cxr (B, 1, S, S), names) -> results, as cxr


def train(settings: config.Settings, reads: tuple[str, ...]) -> int:
    """Train the method of these settings into <runs>/comparison/<method>. Returns the exit status of the script.

    reads: the keys and sections that the script reads, of which a resumed training reports the changes.
    Raises UserError for data, weights or a folder that do not fit the settings.
    """
    name = settings.comparison.method
    section: config.ComparisonMethod = getattr(settings.comparison, name)
    folder = Path(settings.runs) / "comparison" / name
    with torch.device("meta"):
        check(name, build(name, section), section)  # a size that does not fit is refused before data are looked at

    # data: validation images are never augmented
    pairs, validation_pairs = lists.training_pairs(settings.data.root, settings.data.lists, settings.data.name)
    checks.check_ranges(pairs | validation_pairs, settings.data.root)
    data = datasets.PairSource(
        pairs,
        section.image_size,
        settings.train.workers,
        own_augmentation(settings, section),
        section.shift,
        settings.train.seed,
    )
    validation_data = None
    if validation_pairs:
        validation_data = datasets.PairSource(validation_pairs, section.image_size, settings.train.workers)

    with processes.joined(), ownership.owned(folder, f"comparison.{name}.start"):
        # the seed decides the first weights, so nothing else may draw between it and the networks
        device = pick_device(settings.device)
        features = settings.features
        perceptual = losses.Perceptual("vgg", features).to(device) if section.perceptual else None
        torch.manual_seed(settings.train.seed)
        network = checkpoint.init_from(build(name, section), section.start).to(device)
        network.notes = {"method": network.title, "image_size": section.image_size}
        discriminator = type(network).discriminator(section.discriminator_channels) if section.adversarial else None

        run = Run(settings, section, reads, folder, pairs, validation_pairs, data, validation_data, device)
        update = objective(name, section, perceptual)
        if isinstance(network, BSDiff):
            return train_both_stages(run, network, discriminator, update)

        def suppress(networks: dict, cxr: Tensor, names: list[str]) -> Tensor:
            return networks[name].suppress(cxr, image_noise(settings.train.seed, names, cxr))

        return run.train({name: network}, discriminator, update, suppress)


def build(name: str, section: config.ComparisonMethod) -> Translator:
    """The network of a method's section; UserError for settings that no such network has."""
    keywords = {}
    for key in KEYWORDS:
        value = getattr(section, key, None)
        if value is not None:
            keywords[key] = value
    try:
        return comparison.build(name, **keywords)
    except (TypeError, ValueError) as error:
        raise UserError(f"no network of comparison.{name}: {error}") from None


def check(name: str, network: Translator, section: config.ComparisonMethod) -> None:
    """Raise UserError for images that the network or the loss cannot take."""
    size = section.image_size
    key = f"comparison.{name}.image_size={size}"
    if size % network.multiple:
        raise UserError(f"{key} is not a multiple of {network.multiple}, which this network needs")
    if size < network.least:
        raise UserError(f"{key} is too small for this network, which needs {network.least} pixels")
    if section.ms_ssim and size < losses.MS_SSIM_MIN_SIDE:
        raise UserError(
            f"{key} is too small for MS-SSIM, which needs {losses.MS_SSIM_MIN_SIDE} pixels; set "
            f"comparison.{name}.ms_ssim=0, or take larger images"
        )
    if section.ssim and size < losses.WINDOW:
        raise UserError(f"{key} is too small for SSIM, which needs {losses.WINDOW} pixels")
    if not any((section.l1, section.mse, section.ssim, section.ms_ssim, section.perceptual)):
        raise UserError(f"comparison.{name} weighs no term that compares the result with the truth, such as mse")


def own_augmentation(settings: config.Settings, section: config.ComparisonMethod) -> config.Augment:
    """The settings' augmentation, with the method's own where that is more."""
    amounts = asdict(config.part(settings.augment, config.ImageAugmentation))
    amounts["flip"] = amounts["flip"] or section.flip
    amounts["rotate"] = max(amounts["rotate"], section.rotate)
    amounts["scale"] = max(amounts["scale"], section.scale)
    return config.Augment(**amounts, versions=1)  # drawn anew in each epoch


# --- The update -------------------------------------------------------------------------------------------------------


def objective(
    name: str, section: config.ComparisonMethod, perceptual: losses.Perceptual | None
) -> interfaces.Objective:
    """The update of a translator: lower the weighted terms of its section; teach the discriminator, if there is one.

    The result is an objective of interfaces.py, called with networks {name} and, where the adversarial weight is not 0,
    {"discriminator"}, and batches {"cxr", "soft": (B, 1, S, S) in [-1, 1]}.
    """
    method = comparison.find(name)
    adversary = ADVERSARIES[method.adversary]

    def update(networks: dict, batch: dict[str, Tensor], noise: interfaces.Noise) -> tuple[dict, dict]:
        cxr = batch["cxr"]
        target = batch["soft"]
        result, latent = networks[name](cxr, noise.normal)
        terms = compare(result, target, section, method.data_range, perceptual)
        if section.latent:
            terms["latent"] = latent
        if section.adversarial:
            terms["adversarial"] = adversary(networks["discriminator"](method.judged(result, cxr)), 1)
        weighted = [getattr(section, term) * value for term, value in terms.items()]
        loss = torch.stack(weighted).sum()
        logged: dict[str, Tensor] = {"loss": loss, **terms}
        minimised: dict[str, Tensor] = {name: loss}

        # the discriminator, on the same result, before either network is updated
        if section.adversarial:
            judge = networks["discriminator"]
            fake = adversary(judge(method.judged(result.detach(), cxr)), 0)
            real = adversary(judge(method.judged(target, cxr)), 1)
            logged["discriminator"] = (fake + real) / 2
            minimised["discriminator"] = logged["discriminator"]
        return minimised, logged

    return update


def compare(
    result: Tensor,
    target: Tensor,
    section: config.ComparisonMethod,
    data_range: int,
    perceptual: losses.Perceptual | None,
) -> dict[str, Tensor]:
    """{term: unweighted value} of the terms that compare two images (B, 1, S, S) in [-1, 1] and whose weight is not 0.

    data_range: 1 for errors on grey values 0 to 1, 2 for errors on [-1, 1].
    """
    difference = (result.float() - target.float()) * data_range / 2
    terms = {}
    if section.l1:
        terms["l1"] = difference.abs().mean()
    if section.mse:
        terms["mse"] = difference.square().mean()
    if section.ssim:
        terms["ssim"] = 1 - losses.ssim(images.to_unit(result), images.to_unit(target), 1.0)
    if section.ms_ssim:
        terms["ms_ssim"] = 1 - losses.ms_ssim(images.to_unit(result), images.to_unit(target), 1.0)
    if perceptual is not None:
        terms["perceptual"] = perceptual(result, target)
    return terms


# --- Runs of the loop -------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """What the loops of one training share. section: the method's; data: batches {"cxr", "soft"}."""

    settings: config.Settings
    section: config.ComparisonMethod
    reads: tuple[str, ...]
    folder: Path
    pairs: dict[str, lists.Pair]
    validation_pairs: dict[str, lists.Pair]
    data: interfaces.Source
    validation_data: interfaces.Source | None
    device: torch.device
    facts: dict[str, object] = field(default_factory=dict)  # beside the images, what must not change

    @property
    def precision(self) -> str:
        return pick_precision(self.settings.precision, self.device)

    def train(
        self,
        networks: dict[str, nn.Module],
        discriminator: nn.Module | None,
        update: interfaces.Objective,
        suppress: Suppress,
        finish: Callable[[Any], nn.Module] | None = None,
    ) -> int:
        """One loop that trains the one of `networks`, and the discriminator if there is one. Returns the exit status.

        suppress: results for the sample pictures. finish: makes of the trained network what is exported.
        """
        section = self.section
        name = self.settings.comparison.method
        main = next(iter(networks))

        # optimisers
        optimizer_class = comparison.find(name).optimizer
        rates = {main: section.learning_rate}
        if discriminator is not None:
            networks = {**networks, "discriminator": discriminator.to(self.device)}
            rates["discriminator"] = section.discriminator_learning_rate
        optimizers = {}
        for phase, rate in rates.items():
            learnt = [parameter for parameter in networks[phase].parameters() if parameter.requires_grad]
            optimizers[phase] = optimizer_class(learnt, rate, betas=(section.beta_1, BETA_2))

        # sample pictures: CXR, result, target
        def picture(current: dict) -> np.ndarray:
            shown = dict(list((self.validation_pairs or self.pairs).items())[:PICTURES])
            size = section.image_size
            cxr = torch.stack([datasets.load(pair, "cxr", size) for pair in shown.values()])  # (B, 1, S, S)
            soft = torch.stack([datasets.load(pair, "soft", size) for pair in shown.values()])  # (B, 1, S, S)
            result = suppress(current, cxr.to(self.device), list(shown))  # (B, 1, S, S)
            return pictures.grid(cxr, result, soft)

        # what a training that goes on must have as it was, beside the settings in `fixed`
        fixed = (*(f"comparison.{name}.{key}" for key in FIXED), "train.seed")
        facts: dict[str, object] = {
            "training images": lists.describe(self.pairs),
            "validation images": lists.describe(self.validation_pairs),
            **self.facts,
        }
        trainer = loop.Trainer(
            self.folder,
            networks,
            optimizers,
            update,
            self.data,
            self.validation_data,
            course=section,
            train=self.settings.train,
            learning_rates=rates,
            precision=self.precision,
            settings={**config.values(self.settings, recorded(self.reads, name)), "precision": self.precision},
            fixed=fixed,
            facts=facts,
            config_text=config.to_yaml(self.settings),
            picture=picture,
            finish=finish,
            patience=section.plateau,
            least_rate=section.least_learning_rate,
        )
        return trainer.run()


def recorded(reads: tuple[str, ...], name: str) -> list[str]:
    """Of what the script reads, what a training of this method depends on: no other method's section."""
    return [*(path for path in reads if path.split(".")[0] != "comparison"), f"comparison.{name}"]


# --- BS-Diff's two stages ---------------------------------------------------------------------------------------------


def train_both_stages(run: Run, network: BSDiff, discriminator: nn.Module | None, update: interfaces.Objective) -> int:
    """First the diffusion, into <folder>/first_stage; then the autoencoder on its results. The exit status."""
    seed = run.settings.train.seed
    section: Any = run.section
    folder = run.folder / FIRST

    # the first stage: the noise estimators' own update, on pixels
    def sample(networks: dict, cxr: Tensor, names: list[str]) -> Tensor:
        return together(network, networks["unet"], network.enhancer).first_stage(cxr, image_noise(seed, names, cxr))

    first = replace(run, folder=folder, section=replace(section, epochs=section.first_epochs))
    with ownership.owned(folder, "comparison.bs_diff.start"):
        alpha_bar = schedulers.squared_cosine()
        status = first.train({"unet": network.unet}, None, losses.denoising_objective(alpha_bar, 0.0), sample)
    if status != 0:
        return status

    # its results on all images, by the weights that evaluation will use
    processes.barrier()  # the first process has written them
    path = folder / "weights.safetensors"
    network.unet = PixelUNet.load(path).to(run.device)
    digest = checkpoint.digest(path)
    arguments = (run, network, digest)
    data = datasets.LatentSource(first_results(run.pairs, *arguments))
    validation_data = None
    if run.validation_pairs:
        validation_data = datasets.LatentSource(first_results(run.validation_pairs, *arguments))

    # the second stage; what is exported holds both
    def both(enhancer: nn.Module) -> BSDiff:
        return together(network, network.unet, enhancer)

    def enhance(networks: dict, cxr: Tensor, names: list[str]) -> Tensor:
        return both(networks["enhancer"]).suppress(cxr, image_noise(seed, names, cxr))

    def update_enhancer(networks: dict, batch: dict, noise: interfaces.Noise) -> tuple[dict, dict]:
        def second_stage(first: Tensor, draw) -> tuple[Tensor, Tensor]:
            soft = networks["enhancer"](first)
            return soft, no_latent_loss(soft)

        minimised, logged = update({**networks, "bs_diff": second_stage}, batch, noise)
        minimised["enhancer"] = minimised.pop("bs_diff")
        return minimised, logged

    second = replace(run, data=data, validation_data=validation_data, facts={"digest of the first stage": digest})
    return second.train({"enhancer": network.enhancer}, discriminator, update_enhancer, enhance, both)


def together(network: BSDiff, unet: nn.Module, enhancer: nn.Module) -> BSDiff:
    """Two stages as one network, with the settings and notes of `network`."""
    with torch.device("meta"):  # its own parts take no memory until they are replaced
        whole: Any = BSDiff(**network.settings)
    whole.unet = unet
    whole.enhancer = enhancer
    whole.notes = network.notes
    return whole


@torch.no_grad()
def first_results(pairs: dict[str, lists.Pair], run: Run, network: BSDiff, digest: str) -> datasets.Latents:
    """{name: {"cxr": the first stage's result (1, S, S), "soft": the truth}} of all pairs.

    Each result is drawn once and kept in <folder>/first_stage/results/, so a stopped training does not draw it again;
    several processes share the work. digest: of the first stage's weights.
    """
    size = run.section.image_size
    keep = run.folder / FIRST / "results" / f"{digest}_{network.sampler}_{network.steps}_{size}"
    processes.tidy(keep)
    files = {name: keep / f"{checkpoint.digest(pair[0])}.npy" for name, pair in pairs.items()}
    # shared by place and not by what is missing, which a slower process sees when others have written already
    share = list(pairs)[processes.rank() :: processes.world_size()]
    own = [name for name in share if not files[name].is_file()]
    batch_size = run.section.batch_size
    hidden = processes.rank() > 0 or not own
    for start in tqdm(range(0, len(own), batch_size), desc="first stage", unit="batch", disable=hidden):
        names = own[start : start + batch_size]
        cxr = torch.stack([datasets.load(pairs[name], "cxr", size) for name in names]).to(run.device)
        with autocast(run.device, run.precision):
            drawn = network.first_stage(cxr, image_noise(run.settings.train.seed, names, cxr))
        for name, result in zip(names, drawn.float().cpu().numpy()):
            with replacing(files[name]) as temporary, open(temporary, "wb") as file:
                np.save(file, result)
    processes.barrier()  # none reads before all have written

    results: datasets.Latents = {}
    for name, pair in pairs.items():
        result = torch.from_numpy(np.load(files[name], allow_pickle=False))
        results[name] = {"cxr": result, "soft": datasets.load(pair, "soft", size)}
    return results
