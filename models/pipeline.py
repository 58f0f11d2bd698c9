"""What BS-LDM and GL-LCM share: two networks from their files, the headers that say what these belong to, encode,
decode, noise, and the result's last steps.

pipelines.py holds the two methods.
"""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
from pydantic import TypeAdapter

from . import config, images, lungs, sampling
from .refinement import BoneRefiner
from .residual import at_full_size, bone_share
from .runtime import checkpoint, compiling, processes, seeding, weights_file
from .runtime.device import autocast
from .runtime.files import UserError
from .schema import ResultForm, Side
from .unet import ConditionalUNet
from .vqgan import MLVQGAN

EARLIER = {"condition": "plain"}  # what weights of versions that had no such keyword work with
AS_HEADER = "as the header says"  # of the refiner, see Pipeline.load


@dataclass
class Trace:
    """What a call keeps of its course beside the result, on the CPU, images (B, 1, H, W) in [-1, 1].

    paths: keep GL-LCM's global and local result. snapshots: of so many steps, evenly spread and the last one among
    them, keep the image of the clean latent that the step predicts.
    """

    paths: bool = False
    snapshots: int = 0
    global_soft: torch.Tensor | None = None
    local_soft: torch.Tensor | None = None
    steps: dict[int, torch.Tensor] = field(default_factory=dict)  # number of the step, from 1 -> image

    def shows(self, step: int, steps: int) -> bool:
        """Whether step `step`, from 0, of a walk of `steps` is one of those that are kept."""
        count = min(self.snapshots, steps)
        return any(step == round((place + 1) * steps / count) - 1 for place in range(count))


class Pipeline:
    """A method: the two networks, and how its sampler and its results are set. Call it with X-rays.

    vqgan, unet: in eval mode. seed: of the sampling noise, which is drawn from (seed, image name, draw name), so that
    an image's result depends on nothing else. precision: "float32" or "bf16". compiled: see runtime/compiling.py.
    residual: see `image`. refiner: corrects the estimated bone (see refinement.py); None leaves it as it is.
    strength: fraction in [0, 1] of the estimated bone that is removed.
    image_size: side of the square at which `suppress_image` shows X-rays to the networks, pixels.
    options: keywords of the method's sampler.
    """

    title: str  # the method's name in reports and in the headers of weights
    section: str  # its section of the settings
    schedule: str  # its noise schedule, a name in schedulers.SCHEDULES
    qkv_by_head: bool  # the attention order of its released checkpoints
    sampler: str  # its sampler, unless the options name another
    full_steps: int  # its steps, unless the options say so
    sees_lungs: bool  # whether it needs the lungs, which are found where no mask is given
    keywords: tuple[type, ...]  # the classes of schema.py whose fields are keywords of its constructor

    def __init__(
        self,
        vqgan: MLVQGAN,
        unet: ConditionalUNet,
        *,
        seed: int = 0,
        precision: str = "float32",
        compiled: bool = False,
        residual: bool = False,
        refiner: BoneRefiner | None = None,
        strength: float = 1.0,
        image_size: int = 1024,
        **options,
    ):
        # Here and not in the sampler, which would notice a misspelt keyword only with the first image.
        for name in options:
            if name not in self.keyword_names():
                known = ", ".join(self.keyword_names())
                raise TypeError(f"{type(self).__name__} has no keyword {name}; its sampler has: {known}")
        # A codebook that is trained takes part in every call, and waits for the other processes' (see vqgan.py).
        self.vqgan = vqgan.eval()
        self.unet = unet.eval()
        self.seed = seed
        self.precision = precision
        self.residual = residual
        self.refiner = refiner
        self.strength = strength
        self.image_size = image_size
        self.options = options
        # The networks decide the device; images are brought to it.
        self.device = next(vqgan.parameters()).device

        # what is called: the networks themselves, or each of them compiled
        self.parts = [unet, vqgan.encode, vqgan.decode]
        if compiled:
            self.parts = [compiling.Compiled(network, processes.say) for network in self.parts]
        self.estimator, self.encoder, self.decoder = self.parts

    @classmethod
    def load(
        cls,
        vqgan_path: str | Path,
        unet_path: str | Path,
        device: str | torch.device = "cpu",
        *,
        refiner_path: str | Path | None = AS_HEADER,
        precision: str = "float32",
        compiled: bool = False,
        **keywords,
    ) -> "Pipeline":
        """The method with the networks of two weights files, of this project or released ones.

        refiner_path: weights of a network that refines the result (see refinement.py); None for none; AS_HEADER for the
        file beside the noise estimator's that its header names, if it names one.
        keywords: of the constructor. Those not given are the ones that the noise estimator's header says it works with,
        or, without a header, the paper's. Raises UserError for files that are missing, damaged or do not belong
        together.
        """
        # qkv_by_head: released weights do not always say their attention's order; the method's own is the default.
        weights_file.require(vqgan_path, unet_path)
        vqgan = MLVQGAN.load(vqgan_path)
        unet = ConditionalUNet.load(unet_path, defaults={"qkv_by_head": cls.qkv_by_head})

        # the noise estimator sees a noisy latent and the CXR's latent
        latent_channels = vqgan.settings["code_channels"]
        in_channels = unet.settings["in_channels"]
        if in_channels != 2 * latent_channels:
            raise UserError(
                f"{unet_path} takes {in_channels} channels, but twice the latent of {vqgan_path} is "
                f"{2 * latent_channels}"
            )
        cls.check_belonging(unet, unet_path, vqgan, vqgan_path)

        # what the weights were made to work with, unless the caller says otherwise
        keywords = {**cls.read_keywords(unet.notes, unet_path), **keywords}
        if keywords.get("condition") == "scaled" and unet.settings["condition"] == "plain":
            raise UserError(
                f"{unet_path} was trained on plain latents of the CXR, so {cls.section}.condition=scaled would show it "
                f"others; say {cls.section}.condition=plain"
            )

        # After the check of belonging, whose digest is of the float32 tensors.
        for network in (vqgan, unet):
            # the encoder computes in float32 on a CPU, see `encode`; the decoder's weights are cast in each call
            keeps_float32 = network is vqgan and torch.device(device).type == "cpu"
            weights_precision = "float32" if keeps_float32 else precision
            compiling.prepare_for_inference(network, torch.device(device), weights_precision, compiled)
            network.to(device)
        refiner = None
        if refiner_path == AS_HEADER:
            refiner_path = cls.find_refiner(unet.notes, unet_path)
        if refiner_path is not None:
            weights_file.require(refiner_path)
            refiner = BoneRefiner.load(refiner_path).to(device)
        return cls(vqgan, unet, refiner=refiner, precision=precision, compiled=compiled, **keywords)

    @classmethod
    def from_settings(
        cls,
        settings: config.Settings,
        device: str | torch.device = "cpu",
        precision: str = "float32",
        compiled: bool = False,
        **changes,
    ) -> "Pipeline":
        """The method as the settings have it: its weights, its sampler, and what section eval says of results.

        changes: keywords of the constructor that replace those of the settings. Raises UserError as `load`.
        """
        # The settings' keywords outrank the header's, and a caller's changes outrank both.
        unet_path = getattr(settings, cls.section).weights
        keywords = {"seed": settings.eval.seed, **cls.working_keywords(settings)}
        keywords["refiner_path"] = settings.eval.refiner
        keywords.update(changes)
        return cls.load(settings.vqgan.weights, unet_path, device, precision=precision, compiled=compiled, **keywords)

    @classmethod
    def keyword_names(cls) -> list[str]:
        """The names of the constructor's keywords that belong to the sampler and to the fusion."""
        names = []
        for group in cls.keywords:
            names += [field.name for field in fields(group)]
        return names

    @classmethod
    def sampling_keywords(cls, settings: config.Settings) -> dict:
        """The constructor's keywords in the method's section of the settings: those of sampler and fusion."""
        section = getattr(settings, cls.section)
        return {name: getattr(section, name) for name in cls.keyword_names()}

    @classmethod
    def working_keywords(cls, settings: config.Settings) -> dict:
        """The constructor's keywords that weights are made to work with: sampler, fusion, form of the result, size."""
        form = asdict(config.part(settings.eval, ResultForm))
        return {**cls.sampling_keywords(settings), **form, "image_size": settings.data.image_size}

    # What a file of weights says of the method it was trained for. Released checkpoints say nothing, and what a header
    # does not say is not checked.

    @classmethod
    def notes(cls, settings: config.Settings, vqgan: MLVQGAN) -> dict:
        """The header's entries for a noise estimator that is trained with these settings on the latents of `vqgan`.

        They belong into its `Network.notes`. vqgan: in float32, as it was loaded.
        """
        return {
            "method": cls.title,
            "schedule": cls.schedule,
            "vqgan": checkpoint.tensor_digest(vqgan),
            "works_with": cls.working_keywords(settings),
        }

    @classmethod
    def check_belonging(cls, unet: ConditionalUNet, unet_path, vqgan: MLVQGAN, vqgan_path) -> None:
        """Raise UserError if the header of a noise estimator names another method, schedule or autoencoder."""
        # Weights of the other method have the same shapes and would load without a word.
        method = unet.notes.get("method", cls.title)
        if method != cls.title:
            raise UserError(
                f"{unet_path} holds weights of {method}, not of {cls.title}; name those of {cls.title} in "
                f"{cls.section}.weights="
            )

        # a network with a prior has its noise schedule among its settings, also in files of earlier versions
        schedule = unet.notes.get("schedule", cls.schedule)
        if unet.prior:
            schedule = unet.settings["schedule"]
        if schedule != cls.schedule:
            raise UserError(
                f"{unet_path} was trained on the noise schedule {schedule}, but {cls.title} has "
                f"{cls.schedule}; name weights of {cls.title} in {cls.section}.weights="
            )

        # The latents of two autoencoders have nothing in common but their shape, so its tensors are compared by digest.
        if "vqgan" in unet.notes:
            expected = unet.notes["vqgan"]
            found = checkpoint.tensor_digest(vqgan)
            if found != expected:
                raise UserError(
                    f"{unet_path} was trained on the latents of another autoencoder than {vqgan_path} "
                    f"(digest of its tensors {expected}, here {found}); name that autoencoder in "
                    "vqgan.weights=, or train the noise estimator again"
                )

    @classmethod
    def read_keywords(cls, notes: dict, path: str | Path) -> dict:
        """The constructor's keywords in a header, checked; none if the header does not say. Raises UserError."""
        if "works_with" not in notes:
            return {}
        # The classes of the schema check the types and bounds here as they do for config.yaml.
        found = notes["works_with"]
        try:
            found = {**EARLIER, **found}
            checked = {"image_size": TypeAdapter(Side).validate_python(found["image_size"])}
            for group in (*cls.keywords, ResultForm):
                checked.update(asdict(group(**{field.name: found[field.name] for field in fields(group)})))
        except (KeyError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"the header of {path} does not say what {cls.title} works with ({reason}); it is damaged "
                "or of another version of this project"
            ) from None
        # A setting that is ignored would change the results in silence.
        unknown = sorted(set(found) - set(checked))
        if unknown:
            raise UserError(
                f"the header of {path} sets {', '.join(unknown)}, which this version of the project does "
                "not know; use a newer one"
            )
        return checked

    @staticmethod
    def find_refiner(notes: dict, path: str | Path) -> Path | None:
        """The refiner's weights that a header names, which lie beside its file; None if it names none."""
        name = notes.get("refiner")
        if name is None:
            return None
        # a file beside it and nothing else: a header must not lead anywhere
        if not isinstance(name, str) or not name or Path(name).name != name:
            raise UserError(f"the header of {path} names no file as its refiner ({str(name)[:50]}); it is damaged")
        return Path(path).parent / name

    @property
    def compiled(self) -> bool:
        """Whether all networks are compiled, or will be in the first call."""
        return all(isinstance(part, compiling.Compiled) and part.works for part in self.parts)

    @property
    def multiple(self) -> int:
        """The sides of images must be multiples of this."""
        # The autoencoder halves the image first, then the U-Net halves the latent once per level but the top one.
        return self.vqgan.factor * 2 ** (self.unet.levels - 1)

    def describe(self, finds_lungs: bool = False) -> dict:
        """What summary.json says of the sampler and the networks, for the table of costs.

        finds_lungs: whether the network that finds the lungs runs as well, for an image that has no mask.
        """
        parameters = lungs.parameter_count() if finds_lungs and self.needs_masks else 0
        for network in (self.vqgan, self.unet, self.refiner):
            if network is None:
                continue
            parameters += sum(parameter.numel() for parameter in network.parameters())
        sampler = self.options.get("sampler", self.sampler)
        return {"sampler": sampler.upper(), "steps": self.options.get("steps"), "parameters": parameters}

    def check_size(self, *sides: int) -> None:
        """Raise UserError if the networks cannot take images with these sides."""
        if any(side % self.multiple for side in sides):
            raise UserError(
                f"images of {' x '.join(map(str, sides))} do not fit these networks; data.image_size must "
                f"be a multiple of {self.multiple}"
            )

    @torch.inference_mode()
    def __call__(
        self,
        cxr: torch.Tensor,
        names: list[str],
        masks=None,
        progress: sampling.Progress = iter,
        trace: Trace | None = None,
    ) -> torch.Tensor:
        """The soft tissue (B, 1, H, W) in [-1, 1] of X-rays (B, 1, H, W) in [-1, 1].

        names: one unique name per image, on which its noise depends. masks: one boolean (H, W) per image, true in the
        lungs. If masks is None, or one of them is, the lungs are found in the X-ray where they are needed: by GL-LCM
        and by a refiner. progress: wraps the sampling steps. trace: is given what it says that it keeps. Raises
        UserError for a size that the networks cannot take.
        """
        # Refused before minutes of sampling are spent.
        self.check_size(*cxr.shape[-2:])
        if len(names) != len(cxr):
            raise ValueError(f"{len(cxr)} images, but {len(names)} names")
        cxr = cxr.to(self.device)
        lung_masks = None
        if self.needs_masks:
            lung_masks = self.lung_masks(images.to_unit(cxr), masks)  # (B, 1, H, W)
        with autocast(self.device, self.precision):
            soft = self.suppress(cxr, names, lung_masks, progress, trace or Trace())
        if self.refiner is not None and lung_masks is not None:
            soft = self.refiner.refine(cxr, soft, lung_masks)
        soft = soft.cpu()
        # Reported here, where the settings that may be to blame are known.
        if not torch.isfinite(soft).all():
            raise UserError(
                f"the result of {', '.join(names)[:100]} has pixels that are not finite numbers: the "
                f"sampler's settings are too extreme ({self.options}), or the weights' training diverged"
            )
        # CXR + strength (result - CXR), which removes that share of the estimated bone.
        if self.strength < 1:
            soft = torch.lerp(cxr.cpu(), soft, self.strength)
        return soft

    @property
    def steps(self) -> int:
        """The number of sampling steps."""
        return self.options.get("steps", self.full_steps)

    def suppress_image(self, pixels: np.ndarray, name: str = "image", mask: np.ndarray | None = None) -> np.ndarray:
        """The soft tissue of one X-ray at its own size: float (H, W) in [0, 1], bones bright -> the same.

        It is seen at `image_size`, as the evaluation scripts do it. name: on which the noise depends, there the file's
        name without its suffix. mask: boolean (H, W), true in the lungs; without it GL-LCM finds the lungs.
        """
        # The network sees a square; its result comes back to the image's own size.
        cxr = images.to_network(pixels, self.image_size)  # (1, S, S)
        masks = None if mask is None else [images.mask_to_network(mask, self.image_size)]
        soft = self(cxr[None], [name], masks)[0]
        return at_full_size(pixels, cxr, soft, self.residual)

    @property
    def needs_masks(self) -> bool:
        """Whether the lungs take part in the result."""
        return self.sees_lungs or self.refiner is not None

    def suppress(
        self, cxr: torch.Tensor, names: list[str], masks, progress: sampling.Progress, trace: Trace
    ) -> torch.Tensor:
        """As `__call__`, on the method's device and at full strength. masks: bool (B, 1, H, W), if needed."""
        raise TypeError("a pipeline is BSLDM or GLLCM")

    def lung_masks(self, unit: torch.Tensor, masks) -> torch.Tensor:
        """Boolean (B, 1, H, W) on the method's device: the given masks, or, for each that is None, the lungs found in
        the X-ray.

        unit: X-rays (B, 1, H, W) in [0, 1]. masks: a boolean (H, W) or None per image, or None.
        """
        if masks is None:
            masks = [None] * len(unit)
        complete = []
        # On the CPU, image by image: the segmentation is NumPy and a small network.
        for image, mask in zip(unit, masks):
            complete.append(lungs.lung_mask(image[0].cpu().numpy()) if mask is None else mask)
        return torch.as_tensor(np.stack(complete), dtype=torch.bool).to(self.device)[:, None]

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, 1, H, W) -> quantised latents (B, C, h, w), one at a time: activations take much memory."""
        # On a CPU in float32 whatever the precision: rounding before the quantiser moves latents to neighbouring codes,
        # which leaves 44 dB of agreement at full size and 31 dB at 256, where the U-Net keeps 58 dB.
        precision = "float32" if self.device.type == "cpu" else self.precision
        with autocast(self.device, precision):
            latents = [self.vqgan.quantize(self.encoder(image))[0] for image in x.split(1)]
        return torch.cat(latents).float()

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Latents (B, C, h, w) -> images (B, 1, H, W), one image at a time."""
        decoded = [self.decoder(latent) for latent in z.split(1)]
        return torch.cat(decoded).float()

    def image(self, soft: torch.Tensor, cxr: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        """The image (B, 1, H, W) of a sampled soft-tissue latent `soft` (B, C, h, w).

        As published it is D(soft), with the decoder D. In the residual form it is D(soft) + (1 - w) (CXR - D(latent)):
        what the autoencoder cannot reproduce of the CXR is kept, but for the fraction w that belongs to bone (see
        `bone_share`). If no bone is removed, soft = latent, and the residual form gives the CXR itself.
        cxr (B, 1, H, W), latent (B, C, h, w): the X-ray, and its latent for which `soft` was sampled.
        """
        if not self.residual:
            return self.decode(soft)
        # The difference of two decoded images is the estimated bone, free of what the decoder loses in both.
        reproduced = self.decode(latent)
        suppressed = self.decode(soft)
        lost = cxr - reproduced
        return suppressed + (1 - bone_share(reproduced - suppressed, suppressed)) * lost

    def draw(self, names: list[str], shape: torch.Size) -> sampling.Draw:
        """The noise of a batch of latents of this shape (B, C, h, w), as a function of the draw's name.

        Each image's noise depends on (seed, image name, draw name) alone and is the same on every device.
        """

        def noise(image: str, draw: str) -> torch.Tensor:
            # Drawn on the CPU, since a GPU's generator gives other numbers for the same seed.
            generator = seeding.latent_generator(f"{self.seed}/{image}/{draw}")
            return torch.randn(shape[1:], generator=generator)

        def noise_of_all(draw: str) -> torch.Tensor:
            drawn = torch.stack([noise(name, draw) for name in names])  # (B, C, h, w)
            if self.device.type != "cuda":
                return drawn
            # copying from pageable memory would wait for the GPU
            return drawn.pin_memory().to(self.device, non_blocking=True)

        return noise_of_all
