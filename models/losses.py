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

WINDOW = 11  # pixels; SSIM's Gaussian window
SIGMA = 1.5  # pixels, its standard deviation
K_1 = 0.01  # SSIM's constant of the luminance term
K_2 = 0.03  # SSIM's constant of the contrast-structure term
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # beta_1 ... beta_5 of MS-SSIM, finest scale first
MS_SSIM_MIN_SIDE = (WINDOW - 1) * 2 ** (len(SCALE_WEIGHTS) - 1) + 1  # pixels, so that the coarsest scale holds a window
LOGIT_SLOPE = 0.05  # LeakyReLU before the least squares [S]


def ms_ssim(prediction: Tensor, target: Tensor, data_range: float = 2.0, as_published: bool = True) -> Tensor:
    """Multi-scale structural similarity, Wang, Simoncelli & Bovik (Asilomar 2003), eq. 7; 1 for equal images.

    prediction, target: (B, C, H, W), sides of at least MS_SSIM_MIN_SIDE. data_range: largest minus smallest possible
    value. as_published: use 1 instead of 2 as the range at a scale where averaging left no value below -0.5, as the
    script does [S]; that happens in noise, not in X-rays.
    The product runs over the contrast-structure terms of five scales and the luminance of the coarsest; a negative term
    counts as 0 and passes no gradient. Computed in float32 under autocast.
    Raises ValueError for unequal shapes and for images too small for five scales.
    """
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction is {tuple(prediction.shape)}, target {tuple(target.shape)}: they must be of one shape"
        )
    if min(prediction.shape[-2:]) < MS_SSIM_MIN_SIDE:
        raise ValueError(
            f"images of {prediction.shape[-2]} x {prediction.shape[-1]} are too small for MS-SSIM: "
            f"both sides must be at least {MS_SSIM_MIN_SIDE}, or set its weight to 0"
        )

    # Products of small means lose too much in bf16, so autocast is off here.
    scales = len(SCALE_WEIGHTS)
    coarsest = scales - 1
    with torch.autocast(prediction.device.type, enabled=False):
        precision = torch.promote_types(prediction.dtype, torch.float32)  # bf16 -> float32, float64 stays
        x = prediction.to(precision)
        y = target.to(precision)
        terms = []
        for scale in range(scales):
            # Each scale is half as large as the one before.
            if scale > 0:  # ceil_mode: a last odd row is averaged alone, not with zeros
                x = F.avg_pool2d(x, 2, ceil_mode=True)  # (B, C, H/2, W/2)
                y = F.avg_pool2d(y, 2, ceil_mode=True)
            scale_range = data_range
            if as_published and data_range == 2:
                scale_range = torch.where(x.min() < -0.5, 2.0, 1.0)

            # Eq. 7: contrast and structure at every scale, luminance only at the coarsest.
            luminance, contrast_structure = _ssim_terms(x, y, scale_range)
            if scale == coarsest:
                similarity = luminance * contrast_structure
            else:
                similarity = contrast_structure
            terms.append(similarity.mean(dim=(2, 3)))  # (B, C)

        # Eq. 7: l_5^beta_5 (c s)_1^beta_1 ... (c s)_5^beta_5. relu stops the infinite slope of 0 ** 0.0448.
        positive = torch.relu(torch.stack(terms, dim=-1))  # (B, C, 5)
        beta = positive.new_tensor(SCALE_WEIGHTS)  # (5,)
        factors = positive**beta  # (B, C, 5)
        return factors.prod(dim=-1).mean()


def ssim(prediction: Tensor, target: Tensor, data_range: float = 2.0) -> Tensor:
    """Structural similarity, Wang et al. (TIP 2004), eq. 13, at one scale; 1 for equal images. (B, C, H, W) each, sides
    of at least the window's.

    As the mean over all windows that lie inside the image, in float32 under autocast.
    """
    with torch.autocast(prediction.device.type, enabled=False):
        precision = torch.promote_types(prediction.dtype, torch.float32)
        x = prediction.to(precision)
        y = target.to(precision)
        luminance, contrast_structure = _ssim_terms(x, y, data_range)
        return (luminance * contrast_structure).mean()


def _ssim_terms(x: Tensor, y: Tensor, data_range: float | Tensor) -> tuple[Tensor, Tensor]:
    """SSIM's luminance and contrast-structure maps, both (B, C, H-10, W-10).

    Wang et al. (TIP 2004), eq. 6, 9 and 10 with C_3 = C_2 / 2.
    """
    # The five means of every window, in one convolution.
    moments = torch.stack([x, y, x * x, y * y, x * y])  # (5, B, C, H, W)
    mu_x, mu_y, mean_xx, mean_yy, mean_xy = _gaussian_blur(moments).unbind()  # (B, C, H-10, W-10) each

    # var(x) = E[x^2] - E[x]^2, and likewise for the covariance, within each window.
    variance_x = mean_xx - mu_x * mu_x
    variance_y = mean_yy - mu_y * mu_y
    covariance = mean_xy - mu_x * mu_y

    # Eq. 6, and the product of eq. 9 and 10 for C_3 = C_2 / 2.
    c_1 = (K_1 * data_range) ** 2
    c_2 = (K_2 * data_range) ** 2
    luminance = (2 * mu_x * mu_y + c_1) / (mu_x * mu_x + mu_y * mu_y + c_1)
    contrast_structure = (2 * covariance + c_2) / (variance_x + variance_y + c_2)
    return luminance, contrast_structure


def _gaussian_blur(images: Tensor) -> Tensor:
    """Gaussian mean of every window that lies inside the image: (..., H, W) -> (..., H-10, W-10)."""
    # Normalised to sum 1, so that the blur of a constant is that constant.
    offsets = torch.arange(WINDOW, device=images.device, dtype=images.dtype) - WINDOW // 2  # (11,), -5 ... 5
    kernel = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    kernel = kernel / kernel.sum()

    # A Gaussian is separable: first down the columns, then along the rows, every image by itself.
    height, width = images.shape[-2:]
    flat = images.reshape(-1, 1, height, width)  # (N, 1, H, W)
    columns = F.conv2d(flat, kernel.view(1, 1, -1, 1))  # (N, 1, H-10, W)
    blurred = F.conv2d(columns, kernel.view(1, 1, 1, -1))  # (N, 1, H-10, W-10)
    return blurred.reshape(*images.shape[:-2], *blurred.shape[-2:])


class Perceptual(nn.Module):
    """LPIPS of (B, 1 or 3, H, W) images in [-1, 1], Zhang et al. (CVPR 2018); frozen.

    A grey channel is broadcast to three.
    """

    def __init__(self, net: str = "vgg", features: str | None = None):
        """net: "vgg" or "alex". features: folder with the network's weights, see models/features.py."""
        super().__init__()
        self.network = lpips_network(net, features)

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The mean distance over the batch, a scalar."""
        colours = (-1, 3, -1, -1)  # (B, 1 or 3, H, W) -> (B, 3, H, W)
        return self.network(prediction.expand(colours), target.expand(colours)).mean()

    def train(self, mode: bool = True) -> nn.Module:
        """Stay in evaluation mode whatever is asked: in training mode LPIPS drops features at random."""
        return super().train(False)


def least_squares(logits: Tensor, label: float) -> Tensor:
    """Squared distance of a discriminator's logits from a label, Mao et al. (ICCV 2017), eq. 2.

    The logits pass a LeakyReLU of slope 0.05 first [S].
    """
    bent = F.leaky_relu(logits.float(), LOGIT_SLOPE)
    return (bent - label).square().mean()


def generator_adversarial(fake_logits: Tensor) -> Tensor:
    """The generator's loss: its images should be taken for real (1)."""
    return least_squares(fake_logits, 1)


def discriminator_adversarial(fake_logits: Tensor, real_logits: Tensor) -> Tensor:
    """The discriminator's loss: half the sum over generated (label 0) and real (label 1) images."""
    fake = least_squares(fake_logits, 0)
    real = least_squares(real_logits, 1)
    return 0.5 * (fake + real)


class HybridLoss(nn.Module):
    """ML-VQGAN's multi-level hybrid loss [B, G].

    pixel + commitment + w_p LPIPS + w_a adversarial + w_m (1 - MS-SSIM)
    """

    def __init__(
        self,
        *,
        pixel: Literal["mse", "l1"],
        perceptual: float,
        adversarial: float,
        ms_ssim: float,
        features: str | None = None,
    ):
        """pixel: which pixel loss. perceptual, adversarial, ms_ssim: weights; a term of weight 0 is not computed.

        features: folder with VGG16's weights, see models/features.py.
        """
        super().__init__()
        self.pixel = {"mse": F.mse_loss, "l1": F.l1_loss}[pixel]
        self.weights = {
            "pixel": 1.0,
            "commitment": 1.0,
            "perceptual": perceptual,
            "adversarial": adversarial,
            "ms_ssim": ms_ssim,
        }
        self.perceptual = Perceptual("vgg", features) if perceptual else None

    def forward(
        self,
        reconstruction: Tensor,
        image: Tensor,
        commitment: Tensor,
        discriminator: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """-> (the weighted sum, its terms by name: unweighted, detached, for the log).

        reconstruction, image: (B, 1, H, W) in [-1, 1]. commitment: the VQGAN's commitment loss, already times its own
        factor. discriminator: images -> logits; needed where the adversarial weight is not 0.
        """
        # The terms; one whose weight is 0 is not computed.
        terms = {}
        terms["pixel"] = self.pixel(reconstruction.float(), image.float())
        terms["commitment"] = commitment
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual(reconstruction, image)
        if self.weights["adversarial"]:
            if discriminator is None:
                raise ValueError("an adversarial weight above 0 needs a discriminator")
            terms["adversarial"] = generator_adversarial(discriminator(reconstruction))
        if self.weights["ms_ssim"]:
            terms["ms_ssim"] = 1 - ms_ssim(reconstruction, image)

        # Every term is logged without its weight, so that runs with different weights can be compared.
        weighted = [self.weights[name] * term for name, term in terms.items()]
        loss = sum(weighted[1:], weighted[0])
        for_the_log = {name: term.detach() for name, term in terms.items()}
        return loss, for_the_log

    def discriminator_loss(self, fake_logits: Tensor, real_logits: Tensor) -> Tensor:
        """The discriminator's loss, at the weight of the adversarial term [S].

        fake_logits: those of the detached reconstruction.
        """
        adversarial = discriminator_adversarial(fake_logits, real_logits)
        return self.weights["adversarial"] * adversarial


def noise_loss(predicted: Tensor, noise: Tensor, weight: Tensor | None = None) -> Tensor:
    """|| eps - eps_theta(z_t, t, c) ||^2 as a mean: DDPM, Ho et al. (NeurIPS 2020), eq. 14.

    noise: (B, 4, h, w), with the offset noise. predicted: (B, 8, h, w), of which the first 4 channels count [S].
    weight: (B,), of each image's error.
    """
    channels = noise.shape[1]
    same_batch = len(predicted) == len(noise)
    same_size = predicted.shape[2:] == noise.shape[2:]
    enough_channels = predicted.shape[1] >= channels
    if not (same_batch and same_size and enough_channels):
        raise ValueError(
            f"predicted is {tuple(predicted.shape)}, noise {tuple(noise.shape)}: "
            "it needs at least the noise's channels and the same batch and size"
        )
    estimate = predicted[:, :channels].float()  # (B, 4, h, w)
    if weight is None:
        return F.mse_loss(estimate, noise.float())
    error = (estimate - noise.float()).square().mean((1, 2, 3))  # (B,)
    return (error * weight).mean()


def pseudo_huber(prediction: Tensor, target: Tensor, c: float) -> Tensor:
    """sqrt(d^2 + c^2) - c with d = prediction - target, as a mean over all entries (Song & Dhariwal 2024, eq. 7; in Luo
    2023 entry by entry): d^2 / 2 c near 0, |d| far from it."""
    d = prediction.float() - target.float()
    distance = (d.square() + c**2).sqrt() - c
    return distance.mean()


def autoencoder_objective(hybrid: HybridLoss) -> Callable:
    """The update of ML-VQGAN: lower a reconstruction's hybrid loss; teach the discriminator to tell it from the image.

    The result is an objective (models/training/interfaces.py), called with networks {"vqgan", "discriminator"}, batch
    {"image": (B, 1, H, W) in [-1, 1]} and a source of noise, which it does not use. With an adversarial weight of 0
    there is no update of the discriminator.
    """

    def objective(networks: dict, batch: dict[str, Tensor], noise) -> tuple[dict, dict]:
        # The generator: pixel, perceptual and adversarial terms of the reconstruction, and the codebook's commitment.
        image = batch["image"]
        discriminator = networks["discriminator"]
        reconstruction, commitment = networks["vqgan"](image)
        loss, terms = hybrid(reconstruction, image, commitment, discriminator)
        minimised = {"vqgan": loss}

        # The discriminator, on the same reconstruction, before either network is updated.
        if hybrid.weights["adversarial"]:
            fake_logits = discriminator(reconstruction.detach())  # no gradient reaches the generator here
            real_logits = discriminator(image)
            terms["discriminator"] = hybrid.discriminator_loss(fake_logits, real_logits)
            minimised["discriminator"] = terms["discriminator"]
        return minimised, {"loss": loss, **terms}

    return objective


def denoising_objective(
    alpha_bar: Tensor,
    offset: float,
    weight: Callable[[Tensor], Tensor] | None = None,
    *,
    condition: str = "scaled",
    lesion_weight: float = 0.0,
    least_timestep: int = 0,
) -> Callable:
    """The update of both noise estimators: estimate the noise in a soft-tissue latent, beside the CXR's latent.

    The latent is noised to a timestep drawn for each image. alpha_bar (1000,): the schedule. offset: coefficient of the
    offset noise. weight: timesteps (B,) -> weights (B,) of the images' errors; None, as published: all 1.
    condition: how the CXR's latent is seen, "scaled" as published or "plain", see schedulers.scale_condition.
    least_timestep: the first of the timesteps that are drawn; 0 as published.

    A batch can bring each patient's twin, the same patient without lesions. Both are noised with the same eps to the
    same t, and with z_0', c' of the twin the loss is

        L = E w(t) || eps - eps_theta(z_t, t, c) ||^2,  over patients and twins, as without twins
            + lesion_weight E w(t) || eps_theta(z_t, t, c) - eps_theta(z_t', t, c') ||^2,  over patients

    where z_t - z_t' = sqrt(alpha_bar_t) (z_0 - z_0') holds the lesions alone, and c - c' them and nothing else either:
    the second term is 0 for an estimator that leaves every lesion in z_0 as it is, see `lesion_loss`.

    The result is an objective (models/training/interfaces.py), called with networks {"unet"}, batch {"soft", "cxr":
    latents (B, C, h, w)}, with twins also {"twin_soft", "twin_cxr"}, and a source of noise.
    """

    def objective(networks: dict, batch: dict[str, Tensor], noise) -> tuple[dict, dict]:
        z_0 = batch["soft"]  # (B, C, h, w)
        cxr = batch["cxr"]
        channels, height, width = z_0.shape[1:]

        # The noise and the timesteps of a patient are drawn by name, so they depend on (seed, step) alone.
        timesteps = len(alpha_bar) - least_timestep
        t = least_timestep + noise.integers("timestep", timesteps)  # (B,)
        white = noise.normal("noise", channels, height, width)  # (B, C, h, w)
        per_channel = noise.normal("offset", channels, 1, 1)  # (B, C, 1, 1)
        eps = schedulers.offset_noise(white, per_channel, offset)

        # A patient and the twin get the same timestep and noise, so that the estimates differ by the lesions alone
        has_twins = "twin_soft" in batch
        if has_twins:
            z_0 = torch.cat([z_0, batch["twin_soft"]])  # (2 B, C, h, w)
            cxr = torch.cat([cxr, batch["twin_cxr"]])
            t = t.repeat(2)
            eps = eps.repeat(2, 1, 1, 1)

        # Only the soft tissue is noised; the CXR's latent, the condition, gets no noise.
        alpha_bar_t = alpha_bar.to(z_0.device)[t]  # (B or 2 B,)
        z_t = schedulers.add_noise(z_0, eps, alpha_bar_t)
        cxr_condition = schedulers.scale_condition(cxr, alpha_bar_t, condition)
        predicted = networks["unet"](torch.cat([z_t, cxr_condition], 1), t)  # (B or 2 B, 2 C, h, w)

        # The loss of patients and twins; with twins, also that of what the lesions add.
        weights = None if weight is None else weight(t)  # (B or 2 B,)
        loss = noise_loss(predicted, eps, weights)
        if not has_twins:
            return {"unet": loss}, {"loss": loss}
        lesions = lesion_loss(predicted[:, :channels], weights)
        minimised = loss + lesion_weight * lesions
        return {"unet": minimised}, {"loss": loss, "lesions": lesions}

    return objective


def lesion_loss(predicted: Tensor, weight: Tensor | None = None) -> Tensor:
    """The error in what lesions add: || eps_theta(with lesions) - eps_theta(without) ||^2 at the same noise and
    timestep.

    predicted (2 B, C, h, w): estimated noise of B latents with lesions, then of their twins without. weight: (2 B,), as
    in `noise_loss`. Returns a mean. The true noise of both is the same, so the true difference is 0. Times (1 -
    alpha_bar) / alpha_bar the square is that of the difference between the errors in z_0: what of the lesion was taken
    for bone. Errors that patient and twin share drop out.
    """
    # The first half are the patients and the second their twins, in the same order.
    of_patients, of_twins = predicted.float().chunk(2)
    error = (of_patients - of_twins).square().mean((1, 2, 3))  # (B,)
    if weight is None:
        return error.mean()
    patients_weight = weight[: len(error)]  # (B,); a twin has its patient's timestep, so its weight is the same
    return (error * patients_weight).mean()
