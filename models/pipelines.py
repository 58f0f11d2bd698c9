"""CXR in, soft tissue out: encode, sample, decode, fuse, in batches. What the eval scripts and a notebook call."""
import hashlib
import json
import platform
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from . import UserError, checkpoint, data, fusion, images, lungs, processes, replacing, sampling, training
from .unet import ConditionalUNet
from .vqgan import MLVQGAN

RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes that getrusage counts memory in


class Pipeline:
    """The two networks of a method with the options of its sampler; call it with X-rays.

    vqgan, unet: in eval mode. seed: of the sampling noise, which is drawn from (seed, image name, draw name), so that an image's
    result depends on nothing else. precision: "float32" or "bf16". options: keywords of the method's sampler.
    """
    qkv_by_head: bool  # attention order of the method's released checkpoints
    sampler: str       # where the options name none

    def __init__(self, vqgan: MLVQGAN, unet: ConditionalUNet, *, seed: int = 0, precision: str = "float32", **options):
        self.vqgan, self.unet, self.seed, self.precision, self.options = vqgan, unet, seed, precision, options
        self.device = next(vqgan.parameters()).device

    @classmethod
    def load(cls, vqgan_path: str | Path, unet_path: str | Path, device: str | torch.device = "cpu", **keywords) -> "Pipeline":
        """From two weights files, of this project or released. Raises UserError for missing, damaged or unfitting ones."""
        checkpoint.require(vqgan_path, unet_path)
        vqgan, unet = MLVQGAN.load(vqgan_path), ConditionalUNet.load(unet_path, default_qkv_by_head=cls.qkv_by_head)
        latent, noisy = vqgan.settings["code_channels"], unet.settings["in_channels"]
        if noisy != 2 * latent:
            raise UserError(f"{unet_path} takes {noisy} channels, but twice the latent of {vqgan_path} is {2 * latent}")
        return cls(vqgan.to(device), unet.to(device), **keywords)

    @property
    def multiple(self) -> int:
        """Sides of images must be multiples of this."""
        return self.vqgan.factor * 2 ** (self.unet.levels - 1)

    def describe(self) -> dict:
        """What summary.json says of the networks and the sampler, for the table of cost."""
        parameters = sum(p.numel() for network in (self.vqgan, self.unet) for p in network.parameters())
        return {"sampler": self.options.get("sampler", self.sampler).upper(), "steps": self.options.get("steps"), "parameters": parameters}

    def check_size(self, *sides: int) -> None:
        """Raise UserError where the networks cannot take images of these sides."""
        if any(side % self.multiple for side in sides):
            raise UserError(f"images of {' x '.join(map(str, sides))} do not fit these networks; data.image_size must be a multiple of "
                            f"{self.multiple}")

    @torch.inference_mode()
    def __call__(self, cxr: torch.Tensor, names: list[str], masks=None, progress: sampling.Progress = iter) -> torch.Tensor:
        """Soft tissue (B, 1, H, W) in [-1, 1] of X-rays (B, 1, H, W) in [-1, 1].

        names: one a image, unique; the noise depends on it. masks: boolean (B, H, W), true in the lungs; where None, they are found
        in the X-rays (GL-LCM; BS-LDM needs none). Raises UserError for a size that the networks cannot take.
        """
        self.check_size(*cxr.shape[-2:])
        if len(names) != len(cxr):
            raise ValueError(f"{len(cxr)} images, but {len(names)} names")
        with training.autocast(self.device, self.precision):
            return self.suppress(cxr.to(self.device), names, masks, progress).cpu()

    def suppress(self, cxr, names, masks, progress):
        raise TypeError("a pipeline is BSLDM or GLLCM")

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Latents, an image at a time: the autoencoder's activations are what takes memory."""
        return torch.cat([self.vqgan.latent(image) for image in x.split(1)]).float()

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.vqgan.decode(latent) for latent in z.split(1)]).float()

    def draw(self, names: list[str], shape: torch.Size) -> sampling.Draw:
        """Noise by (seed, image name, draw name), the same on every device."""

        def noise(image: str, draw: str) -> torch.Tensor:
            seed = hashlib.sha256(f"{self.seed}/{image}/{draw}".encode()).digest()[:8]
            return torch.randn(shape[1:], generator=torch.Generator().manual_seed(int.from_bytes(seed) >> 1))

        return lambda draw: torch.stack([noise(name, draw) for name in names]).to(self.device, non_blocking=True)


class BSLDM(Pipeline):
    """BS-LDM. options: keywords of sampling.sample_bsldm (steps, sampler, clip, clip_rate, clip_lag)."""
    qkv_by_head = True
    sampler = "ddpm"

    def suppress(self, cxr, names, masks, progress):
        latent = self.encode(cxr)
        soft = sampling.sample_bsldm(self.unet, latent, self.draw(names, latent.shape), progress=progress, **self.options)
        return self.decode(soft).clamp(-1, 1)


class GLLCM(Pipeline):
    """GL-LCM. options: keywords of sampling.sample_gllcm (steps, guidance, alpha, clip_global, clip_local, clip_rate);
    method: how the two paths are fused (poisson, alpha, autoencoder, none); weight: of the local image in alpha fusion.
    """
    qkv_by_head = False
    sampler = "lcm"

    def __init__(self, vqgan, unet, *, fusion: str = "poisson", blend: float = 0.5, **keywords):
        super().__init__(vqgan, unet, **keywords)
        self.method, self.blend = fusion, blend

    def suppress(self, cxr, names, masks, progress):
        unit = images.to_unit(cxr)  # (B, 1, H, W) in [0, 1]
        if masks is None:
            masks = np.stack([lungs.lung_mask(image[0].cpu().numpy()) for image in unit])
        masks = torch.as_tensor(masks, dtype=torch.bool).to(self.device)[:, None]  # (B, 1, H, W)
        latent, masked_latent = self.encode(cxr), self.encode(images.to_signed(unit * masks))
        paths = sampling.sample_gllcm(self.unet, latent, masked_latent, self.draw(names, latent.shape), progress=progress, **self.options)
        if self.method == "autoencoder":
            weight = torch.nn.functional.adaptive_avg_pool2d(masks.float(), latent.shape[-2:])
            fused = images.to_unit(self.decode(torch.lerp(*paths, weight))).clamp(0, 1)
            return images.to_signed(fused * (unit > 0))
        global_soft, local_soft = (images.to_unit(self.decode(path)).clamp(0, 1) for path in paths)
        local_soft = match_brightness(global_soft, local_soft, masks)
        global_soft, local_soft = (soft * (unit > 0) for soft in (global_soft, local_soft))
        fused = [fusion.fuse(*(part[0].cpu().numpy() for part in parts), method=self.method, weight=self.blend)
                 for parts in zip(global_soft, local_soft, masks)]
        return images.to_signed(torch.from_numpy(np.stack(fused))[:, None])


def match_brightness(global_soft: torch.Tensor, local_soft: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """The local image (B, 1, H, W), shifted inside the lungs so that its mean there is the global one's (GL-LCM's script)."""
    area = masks.sum((2, 3), keepdim=True).clamp(min=1)
    shift = ((global_soft - local_soft) * masks).sum((2, 3), keepdim=True) / area
    return local_soft + shift * masks


def gllcm_options(lcm) -> dict:
    """The keywords of GLLCM in the settings of section lcm."""
    names = ("steps", "guidance", "alpha", "clip_global", "clip_local", "clip_rate", "fusion", "blend")
    return {name: getattr(lcm, name) for name in names}


@dataclass(frozen=True)
class Case:
    """One X-ray to evaluate, with what lies beside it."""
    name: str
    path: Path
    mask: Path | None
    truth: Path | None


def find_cases(what, root, masks) -> list[Case]:
    """The X-rays of eval.input, all read once, so that a bad one is named before a network is built.

    masks: folder of lung masks; None: <...>/Mask beside a folder CXR/, as the truth is looked for in <...>/BS.
    """
    found = data.inputs(what, root)
    given = images.find(masks) if masks else None
    cases = [Case(name, path, given.get(name) if given is not None else data.beside(path, "Mask"), data.beside(path, "BS"))
             for name, path in found.items()]
    for case in tqdm(cases, desc="checking", unit="image", leave=False, disable=len(cases) < 20 or processes.rank() > 0):
        picture = images.check(images.read(case.path))
        if images.inverted(picture.pixels):
            training.say(f"note: bones look dark in {case.path}; the methods expect bright ones")
        if case.mask is not None:
            mask = images.read_mask(case.mask)
            if mask.shape != picture.pixels.shape:
                raise UserError(f"the mask {case.mask} is {mask.shape[1]} x {mask.shape[0]}, "
                                f"but {case.path} {picture.pixels.shape[1]} x {picture.pixels.shape[0]}")
    missing = [case.name for case in cases if given is not None and case.mask is None]
    if missing:
        raise UserError(f"{masks} has no mask for {data.some(missing)}")
    return cases


def evaluate(run: Callable, cases: list[Case], output, *, size: int, batch_size: int, about: dict, notes: dict | None = None) -> int:
    """Write <output>/<name>.png in the input's size and depth, panels/<name>.png beside it, and summary.json.

    run(cxr (B, 1, S, S), names, masks (B, S, S) or None, progress) -> (B, 1, S, S); about: what summary.json says of the run.
    notes: {what: {name: value}} that run fills, for summary.json; at the end it holds all images. Several processes share the
    batches, each of which is what it would be in one process.
    """
    output, notes, seconds, warm = Path(output), {} if notes is None else notes, {}, {}
    processes.tidy(output, output / "panels", output / "latents")
    batches = [cases[start:start + batch_size] for start in range(0, len(cases), batch_size)]
    mine, quiet = batches[processes.rank()::processes.count()], processes.rank() > 0
    with tqdm(total=sum(map(len, mine)), unit="image", disable=quiet) as bar:
        for batch in mine:
            pictures = [images.read(case.path) for case in batch]
            cxr = torch.stack([images.to_network(picture.pixels, size) for picture in pictures])
            masks = None
            if all(case.mask for case in batch):
                masks = np.stack([images.mask_to_network(images.read_mask(case.mask), size) for case in batch])
            began = time.perf_counter()
            soft = run(cxr, [case.name for case in batch], masks,
                       lambda steps, name=batch[0].name: tqdm(steps, desc=name, unit="step", leave=False, mininterval=1, disable=quiet))
            elapsed = (time.perf_counter() - began) / len(batch)
            for case, picture, result in zip(batch, pictures, soft):
                write_result(output, case, picture, images.from_network(result, picture.pixels.shape))
                seconds[case.name] = round(elapsed, 3)
                warm |= {case.name: elapsed} if batch is not mine[0] else {}
                bar.update()
    for values in [*notes.values(), seconds, warm]:
        everyone = {name: value for part in processes.gathered(values) for name, value in part.items()}
        values.clear()
        values.update((case.name, everyone[case.name]) for case in cases if case.name in everyone)
    cost = measured(seconds, warm)
    if processes.rank() == 0:
        with replacing(output / "summary.json") as temporary:
            temporary.write_text(json.dumps({**about, **cost, **notes, "image_size": size, "batch_size": batch_size, "images": len(cases),
                                             "processes": processes.count(), "seconds_per_image": seconds}, indent=1) + "\n")
        print(f"{len(cases)} images in {output} (panels beside them in {output / 'panels'})")
    return 0


def measured(seconds: dict[str, float], warm: dict[str, float]) -> dict:
    """What summary.json says of the cost: the median time of an image and the most memory that any process took.

    seconds: of every image; warm: of those after their process's first batch, which warms up.
    """
    on_gpu = torch.cuda.is_initialized()
    peak = (max(map(torch.cuda.max_memory_allocated, range(torch.cuda.device_count()))) if on_gpu
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT)
    return {"seconds": float(np.median(list((warm or seconds).values()))), "seconds_after_warm_up": bool(warm),
            "peak_memory": int(processes.largest(peak)[0]), "peak_memory_of": "allocated on the GPU" if on_gpu else "of the whole process"}


def write_result(output: Path, case: Case, picture: images.Picture, soft: np.ndarray) -> None:
    """The result, and the panel CXR | result | truth where known | what was taken away (grey: nothing)."""
    images.write(output / f"{case.name}.png", soft, picture.bits)
    columns = [picture.pixels, soft]
    if case.truth is not None:
        columns.append(images.resize(images.read(case.truth).pixels, soft.shape))
    columns.append(np.clip(0.5 + picture.pixels - soft, 0, 1))
    images.write(output / "panels" / f"{case.name}.png", np.concatenate(columns, 1))


def describe_run(method: str, device: torch.device, precision: str, settings: dict, *weights) -> dict:
    """What summary.json says of a run."""
    return {"method": method, "settings": settings, "device": torch.cuda.get_device_name(device) if device.type == "cuda" else
            f"CPU, {torch.get_num_threads()} threads ({platform.machine()})", "precision": precision, "torch": torch.__version__,
            "weights": {str(path): checkpoint.digest(path) for path in weights}, "date": time.strftime("%Y-%m-%d %H:%M:%S")}
