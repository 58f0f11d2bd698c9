"""What an ML-VQGAN keeps of an image: its reconstruction, its latent as a picture, the PSNR."""

from pathlib import Path

import numpy as np
import torch

from .. import config, images, sampling, scores, weights
from ..runtime import compiling, processes, weights_file
from ..runtime.device import autocast, pick_device, pick_precision
from ..runtime.files import UserError
from ..vqgan import MLVQGAN
from . import run
from .cases import Case, find_cases
from .record import Record
from .results import Output
from .summary import describe_run

TITLE = "ML-VQGAN"
LEAST_SPAN = 1e-9  # keeps a channel that is the same everywhere from being divided by 0


class Reconstruction:
    """An autoencoder, called as `run.evaluate` calls a method. Each call writes the latents of its images into a
    folder."""

    residual = False  # its result is the image itself, so all of it is brought to full size
    compiled = False  # `main` leaves the network uncompiled

    def __init__(self, vqgan: MLVQGAN, device: torch.device, precision: str, latents: Path):
        self.vqgan = vqgan
        self.device = device
        self.precision = precision
        self.latents = latents

    def __call__(self, cxr: torch.Tensor, names: list[str], masks: list, progress: sampling.Progress) -> torch.Tensor:
        """D(z_q), (B, 1, S, S) in [-1, 1], of images of the same shape; masks and progress are not used."""
        with autocast(self.device, self.precision):
            # an image at a time: the activations are what takes memory
            z_q = torch.cat([self.vqgan.latent(image) for image in cxr.to(self.device).split(1)])  # (B, C, S/8, S/8)
            decoded = torch.cat([self.vqgan.decode(z) for z in z_q.split(1)])
        for name, latent in zip(names, z_q.cpu().numpy()):
            images.write(self.latents / f"{name}.png", latent_picture(latent))
        return decoded.float().clamp(-1, 1).cpu()


def latent_picture(latent: np.ndarray) -> np.ndarray:
    """The channels of a latent (C, h, w) beside each other, (h, C w), each from its least (0) to its greatest value
    (1)."""
    # Channel by channel, since their ranges differ and a common scale would leave some of them flat.
    least = latent.min(axis=(1, 2), keepdims=True)
    span = np.ptp(latent, axis=(1, 2), keepdims=True)
    channels = (latent - least) / np.maximum(span, LEAST_SPAN)  # (C, h, w) in [0, 1]
    return np.hstack(channels)  # (h, C w)


def psnr(original: torch.Tensor, reconstruction: torch.Tensor) -> dict[str, float]:
    """{"psnr": dB} of a reconstruction (1, S, S) in [-1, 1]."""
    original_unit = images.to_unit(original[0].numpy())
    reconstruction_unit = images.to_unit(reconstruction[0].numpy())
    return {"psnr": scores.psnr(original_unit, reconstruction_unit)}


def with_targets(cases: list[Case]) -> list[Case]:
    """The X-rays, each followed by its soft-tissue image, <name>_soft, as an image of its own."""
    every = []
    # The ML-VQGAN is trained on CXRs and soft-tissue images alike, so it is judged on both.
    for case in cases:
        every.append(Case(case.name, case.file, mask=None, target=None, limits=case.limits))
        if case.target is not None:
            every.append(Case(f"{case.name}_soft", case.target, mask=None, target=None, limits=case.limits))
    return every


def main(settings: config.Settings) -> int:
    """Reconstruct the X-rays of eval.input and the soft-tissue images beside them. The script's exit status."""
    with processes.joined():
        # weights
        settings = weights.prefer_own(settings, "vqgan")
        path = settings.vqgan.weights
        weights_file.require(path)
        if processes.rank() == 0:
            print(weights.describe(settings, TITLE, "vqgan"), flush=True)

        # images
        limits = images.parse_limits(settings.eval.range)
        cases = with_targets(find_cases(settings.eval.input, settings.data.root, None, limits))
        device = pick_device(settings.device)
        precision = pick_precision(settings.precision, device)
        size = settings.data.image_size
        # {}: nothing is sampled, so weights, precision and size determine the result
        about = describe_run(TITLE, device, precision, False, {}, [path], size)
        record = Record(Output.at(settings.eval.output, len(cases)), about, cases)

        # network
        vqgan = MLVQGAN.load(path)
        compiling.prepare_for_inference(vqgan, device, precision, compiled=False)
        vqgan.to(device)
        # refused here by the setting's name; the network would fail with a shape at the first image
        if size % vqgan.factor:
            raise UserError(f"data.image_size={size} is not a multiple of {vqgan.factor}")

        # run
        method = Reconstruction(vqgan, device, precision, record.output.folder / "latents")
        summary = run.evaluate(method, record, batch_size=settings.eval.batch_size, measure=psnr)
        if processes.rank() == 0:
            values = list(summary["psnr"].values())
            print(f"reconstruction: mean PSNR {np.mean(values):.2f} dB, least {min(values):.2f} dB")
    return 0
