"""Reconstruct images with a trained ML-VQGAN and show its latents.

    python vq-gan_eval.py                                     the test list's X-rays and soft-tissue images
    python vq-gan_eval.py eval.input=scan.png                 one image, or a folder of them
    python vq-gan_eval.py vqgan.weights=VQGAN.pth             a released checkpoint
    python vq-gan_eval.py --profile demo                      small, seconds on a CPU

Writes <eval.output>/<name>.png (reconstruction), panels/ (image | reconstruction | difference), latents/ (the channels of z_q,
each from its least to its greatest value), summary.json with the PSNR of each.
"""
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from models import config, images, scores
from models.evaluation import run as evaluation
from models.runtime import compiling, entry, processes
from models.runtime.device import autocast, pick_device, pick_precision
from models.runtime.files import UserError
from models.vqgan import MLVQGAN

READS = ("runs", "device", "precision", "data.root", "data.name", "data.lists", "data.image_size", "vqgan.weights", "eval.input",
         "eval.output", "eval.batch_size")


def main() -> int:
    # settings and images
    settings = config.parse(__doc__, READS)
    output = Path(settings.eval.output)
    with processes.joined():
        cases = [replace(case, mask=None, truth=None) for case in evaluation.find_cases(settings.eval.input, settings.data.root, None)
                 for case in (case, replace(case, name=f"{case.name}_soft", path=case.truth)) if case.path]

        # network
        device = pick_device(settings.device)
        precision = pick_precision(settings.precision, device)
        vqgan = compiling.prepare_for_inference(MLVQGAN.load(settings.vqgan.weights), device, precision, compiled=False).to(device)
        if settings.data.image_size % vqgan.factor:
            raise UserError(f"data.image_size={settings.data.image_size} is not a multiple of {vqgan.factor}")

        # run
        psnr: dict[str, float] = {}

        def reconstruct(x, names, masks, progress):
            with autocast(device, precision):
                z_q = torch.cat([vqgan.latent(image) for image in x.to(device).split(1)])  # (B, C, h, w)
                result = torch.cat([vqgan.decode(z) for z in z_q.split(1)]).float().clamp(-1, 1).cpu()
            for name, z, original, reconstruction in zip(names, z_q.cpu().numpy(), x, result):
                span = np.ptp(z, axis=(1, 2), keepdims=True)
                images.write(output / "latents" / f"{name}.png", np.hstack((z - z.min((1, 2), keepdims=True)) / np.maximum(span, 1e-9)))
                psnr[name] = scores.psnr(*(images.to_unit(image[0].numpy()) for image in (original, reconstruction)))
            return result

        about = evaluation.describe_run("ML-VQGAN", device, precision, False, {}, settings.vqgan.weights)
        status = evaluation.evaluate(reconstruct, cases, output, size=settings.data.image_size, batch_size=settings.eval.batch_size,
                                    about=about, notes={"psnr": psnr})
        if processes.rank() == 0:
            print(f"reconstruction: mean PSNR {np.mean(list(psnr.values())):.2f} dB, least {min(psnr.values()):.2f} dB")
        return status


if __name__ == "__main__":
    entry.run(main)
