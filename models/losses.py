"""The multi-level hybrid loss of ML-VQGAN and the noise-prediction loss. Every loss is a mean over the batch.

Sources: [B] BS-LDM, JBHI 2025; [G] GL-LCM, MICCAI 2025; [S] the published scripts.
"""
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import schedulers
from .features import lpips_network

WINDOW = 11                                                # pixels; SSIM's Gaussian window
SIGMA = 1.5                                                # pixels
K_1, K_2 = 0.01, 0.03                                      # SSIM's constants
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)   # beta_1 ... beta_5 of MS-SSIM
CROP_STEP = 4                                              # latent pixels between the places where a part can be cut out
CROP_FLOOR = 0.5                                           # probability of parts without lesions, of the mean part's
CROP_DRAWS = 1 << 24                                       # random integers that decide about places lie below
LOGIT_SLOPE = 0.05                                         # LeakyReLU before the least squares [S]


def ms_ssim(prediction: Tensor, target: Tensor, data_range: float = 2.0, as_published: bool = True) -> Tensor:
    """Multi-scale structural similarity, Wang, Simoncelli & Bovik (Asilomar 2003), eq. 7; 1 for equal images.

    prediction, target: (B, C, H, W), sides above 160. data_range: largest minus smallest possible value. as_published: take
    1 for 2 at a scale where averaging left nothing below -0.5, as the script does [S]; that happens in noise, not in X-rays.
    Contrast-structure terms of five scales and the luminance of the coarsest; negative terms are cut at 0 and pass no gradient.
    float32 under autocast. Raises ValueError for unequal shapes and for images too small for five scales.
    """
    least = (WINDOW - 1) * 2 ** (len(SCALE_WEIGHTS) - 1) + 1
    if prediction.shape != target.shape:
        raise ValueError(f"prediction is {tuple(prediction.shape)}, target {tuple(target.shape)}: they must be of one shape")
    if min(prediction.shape[-2:]) < least:
        raise ValueError(f"images of {prediction.shape[-2]} x {prediction.shape[-1]} are too small for MS-SSIM: "
                         f"both sides must be at least {least}, or set its weight to 0")
    with torch.autocast(prediction.device.type, enabled=False):
        precision = torch.promote_types(prediction.dtype, torch.float32)
        x, y = prediction.to(precision), target.to(precision)
        terms = []
        for scale in range(len(SCALE_WEIGHTS)):
            if scale > 0:  # ceil_mode: a last odd row is averaged alone, not with zeros
                x, y = (F.avg_pool2d(image, 2, ceil_mode=True) for image in (x, y))
            scale_range = torch.where(x.min() < -0.5, 2.0, 1.0) if as_published and data_range == 2 else data_range
            luminance, contrast_structure = _ssim_terms(x, y, scale_range)
            last = scale == len(SCALE_WEIGHTS) - 1
            terms.append((luminance * contrast_structure if last else contrast_structure).mean(dim=(2, 3)))  # (B, C)
        terms = torch.relu(torch.stack(terms, dim=-1))  # (B, C, 5); stops the infinite slope of 0 ** 0.0448
        return (terms ** terms.new_tensor(SCALE_WEIGHTS)).prod(dim=-1).mean()


def _ssim_terms(x: Tensor, y: Tensor, data_range: float) -> tuple[Tensor, Tensor]:
    """SSIM's luminance and contrast-structure maps, Wang et al. (TIP 2004), eq. 6 and 9 with C_3 = C_2 / 2; (B, C, H-10, W-10)."""
    c_1, c_2 = (K_1 * data_range) ** 2, (K_2 * data_range) ** 2
    mu_x, mu_y, xx, yy, xy = _gaussian_blur(torch.stack([x, y, x * x, y * y, x * y])).unbind()
    variance_x, variance_y, covariance = xx - mu_x * mu_x, yy - mu_y * mu_y, xy - mu_x * mu_y
    luminance = (2 * mu_x * mu_y + c_1) / (mu_x * mu_x + mu_y * mu_y + c_1)
    return luminance, (2 * covariance + c_2) / (variance_x + variance_y + c_2)


def _gaussian_blur(images: Tensor) -> Tensor:
    """Gaussian mean of every window that lies inside the image: (..., H, W) -> (..., H-10, W-10)."""
    offsets = torch.arange(WINDOW, device=images.device, dtype=images.dtype) - WINDOW // 2
    kernel = torch.exp(-offsets ** 2 / (2 * SIGMA ** 2))
    kernel = kernel / kernel.sum()
    flat = images.reshape(-1, 1, *images.shape[-2:])
    blurred = F.conv2d(F.conv2d(flat, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    return blurred.reshape(*images.shape[:-2], *blurred.shape[-2:])


class Perceptual(nn.Module):
    """LPIPS of (B, 1 or 3, H, W) images in [-1, 1], the grey channel broadcast to three: Zhang et al. (CVPR 2018). Frozen."""

    def __init__(self, net: str = "vgg", features: str | None = None):
        """net: "vgg" or "alex". features: folder with the network's weights, see models/features.py."""
        super().__init__()
        self.network = lpips_network(net, features)

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        colours = (-1, 3, -1, -1)
        return self.network(prediction.expand(colours), target.expand(colours)).mean()

    def train(self, mode: bool = True) -> nn.Module:
        return super().train(False)  # in training mode LPIPS drops features at random


def least_squares(logits: Tensor, label: float) -> Tensor:
    """Distance of a discriminator's logits from a label, Mao et al. (ICCV 2017), eq. 2, after a LeakyReLU of slope 0.05 [S]."""
    return (F.leaky_relu(logits.float(), LOGIT_SLOPE) - label).square().mean()


def generator_adversarial(fake_logits: Tensor) -> Tensor:
    """What the generator lowers: its images should be taken for real (1)."""
    return least_squares(fake_logits, 1)


def discriminator_adversarial(fake_logits: Tensor, real_logits: Tensor) -> Tensor:
    """What the discriminator lowers: half the sum for generated (0) and real (1) images."""
    return 0.5 * (least_squares(fake_logits, 0) + least_squares(real_logits, 1))


class HybridLoss(nn.Module):
    """ML-VQGAN's multi-level hybrid loss [B, G]: pixel + commitment + w_p LPIPS + w_a adversarial + w_m (1 - MS-SSIM)."""

    def __init__(self, *, pixel: Literal["mse", "l1"], perceptual: float, adversarial: float, ms_ssim: float,
                 features: str | None = None):
        """pixel: which pixel loss. The others: weights; a term of weight 0 is not computed. features: see models/features.py."""
        super().__init__()
        self.pixel = {"mse": F.mse_loss, "l1": F.l1_loss}[pixel]
        self.weights = {"pixel": 1.0, "commitment": 1.0, "perceptual": perceptual, "adversarial": adversarial, "ms_ssim": ms_ssim}
        self.perceptual = Perceptual("vgg", features) if perceptual else None

    def forward(self, reconstruction: Tensor, image: Tensor, commitment: Tensor,
                discriminator: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """-> (the loss to lower, its terms by name: unweighted, detached, for the log).

        reconstruction, image: (B, 1, H, W) in [-1, 1]. commitment: the VQGAN's commitment loss, already times its own factor.
        discriminator: images -> logits; needed where the adversarial weight is not 0.
        """
        terms = {"pixel": self.pixel(reconstruction.float(), image.float()), "commitment": commitment}
        if self.weights["perceptual"]:
            terms["perceptual"] = self.perceptual(reconstruction, image)
        if self.weights["adversarial"]:
            terms["adversarial"] = generator_adversarial(discriminator(reconstruction))
        if self.weights["ms_ssim"]:
            terms["ms_ssim"] = 1 - ms_ssim(reconstruction, image)
        loss = sum(self.weights[name] * term for name, term in terms.items())
        return loss, {name: term.detach() for name, term in terms.items()}

    def discriminator_loss(self, fake_logits: Tensor, real_logits: Tensor) -> Tensor:
        """The discriminator's loss, at the weight of the adversarial term [S]; fake_logits: of the detached reconstruction."""
        return self.weights["adversarial"] * discriminator_adversarial(fake_logits, real_logits)


def noise_loss(predicted: Tensor, noise: Tensor, weight: Tensor | None = None) -> Tensor:
    """|| eps - eps_theta(z_t, t, c) ||^2 as a mean: DDPM, Ho et al. (NeurIPS 2020), eq. 14, on the (offset) noise that was added.

    noise: (B, 4, h, w). predicted: (B, 8, h, w), of which the first 4 channels count [S]. weight: (B,), of each image's error.
    """
    channels = noise.shape[1]
    if predicted.shape[1] < channels or predicted.shape[2:] != noise.shape[2:] or len(predicted) != len(noise):
        raise ValueError(f"predicted is {tuple(predicted.shape)}, noise {tuple(noise.shape)}: it needs at least the noise's "
                         "channels and the same batch and size")
    if weight is None:
        return F.mse_loss(predicted[:, :channels].float(), noise.float())
    return ((predicted[:, :channels].float() - noise.float()).square().mean((1, 2, 3)) * weight).mean()


def denoising_objective(alpha_bar: Tensor, offset: float, weight: Callable[[Tensor], Tensor] | None = None, *,
                        lesion_weight: float = 0.0, least_timestep: int = 0, crop: int = 0) -> Callable:
    """The update of both noise estimators: noise a soft-tissue latent to a random timestep, predict the noise beside the CXR's latent.

    alpha_bar (1000,): the schedule. offset: coefficient of the offset noise. weight: timesteps (B,) -> weights (B,) of the images'
    errors; None, as published: all 1. lesion_weight: of `lesion_loss`, for batches that bring twins without lesions.
    least_timestep: timesteps are drawn from here to 999. crop: side of the part cut out of each latent, see `crop_latents`; 0: all of
    it. The result is what models/training.py calls with
    networks {"unet": ...}, batch {"soft", "cxr": latents (B, C, h, w)} and its source of noise; also "twin_soft", "twin_cxr".
    """

    def objective(networks: dict, batch: dict[str, Tensor], noise) -> tuple[dict, dict]:
        if crop:
            batch = crop_latents(batch, crop, noise.integers("crop", CROP_DRAWS))
        soft, cxr = batch["soft"], batch["cxr"]
        shape = soft.shape[1:]
        t = least_timestep + noise.integers("timestep", len(alpha_bar) - least_timestep)  # (B,)
        eps = schedulers.offset_noise(noise.normal("noise", *shape), noise.normal("offset", shape[0], 1, 1), offset)

        # A patient and his twin without lesions get the same timestep and noise, so that the estimates differ by the lesions alone.
        twins = "twin_soft" in batch
        if twins:
            soft, cxr = torch.cat([soft, batch["twin_soft"]]), torch.cat([cxr, batch["twin_cxr"]])  # (2 B, C, h, w)
            t, eps = t.repeat(2), eps.repeat(2, 1, 1, 1)

        z_t = schedulers.add_noise(soft, eps, alpha_bar.to(soft.device)[t])
        predicted = networks["unet"](torch.cat([z_t, cxr], 1), t)  # (B or 2 B, 2 C, h, w)
        weights = weight(t) if weight else None
        loss = noise_loss(predicted, eps, weights)
        if not twins:
            return {"unet": loss}, {"loss": loss}
        lesions = lesion_loss(predicted[:, :shape[0]], weights)
        return {"unet": loss + lesion_weight * lesions}, {"loss": loss, "lesions": lesions}

    return objective


def crop_latents(batch: dict[str, Tensor], side: int, draws: Tensor) -> dict[str, Tensor]:
    """The same part (B, C, side, side) of all latents of a pair and its twin; draws: (B,), uniform integers below CROP_DRAWS.

    If there are twins, a part's probability grows with what lesions change in it, above a floor: most of an X-ray shows no lesion.
    """
    cxr = batch["cxr"]
    twin = batch.get("twin_cxr", cxr)
    change = F.avg_pool2d((cxr - twin).square().mean(1, keepdim=True), side, CROP_STEP)  # (B, 1, n, m): of each part
    flat = change.flatten(1)  # (B, n m)
    probability = flat + CROP_FLOOR * flat.mean(1, keepdim=True) + 1e-12
    cumulative = (probability / probability.sum(1, keepdim=True)).cumsum(1)
    share = (draws.double() / CROP_DRAWS).to(cumulative.dtype)[:, None]
    places = (cumulative < share).sum(1).clamp(max=flat.shape[1] - 1).tolist()
    columns = change.shape[-1]
    corners = [(place // columns * CROP_STEP, place % columns * CROP_STEP) for place in places]
    return {name: torch.stack([latent[:, top:top + side, left:left + side] for latent, (top, left) in zip(latents, corners)])
            for name, latents in batch.items()}


def lesion_loss(predicted: Tensor, weight: Tensor | None = None) -> Tensor:
    """The error in what lesions add, a mean: || eps_theta(with lesions) - eps_theta(without) ||^2 at the same noise and timestep.

    predicted (2 B, C, h, w): estimated noise of B latents with lesions, then of their twins without. weight: (2 B,), as in `noise_loss`.
    Both were noised alike, so the true noise is the same and the true difference 0. Divided by the signal-to-noise ratio the
    difference is that of the errors in z_0: what of the lesion was taken for bone, the patient's own errors taken out.
    """
    ill, twin = predicted.float().chunk(2)
    error = (ill - twin).square().mean((1, 2, 3))
    return error.mean() if weight is None else (error * weight[:len(error)]).mean()
