"""The refinement of a method's result: what of the bone that it took away was no bone goes back into the X-ray.

A noise estimator works on latents, whose pixels are 4 or 8 image pixels wide, and takes nodules for bone where they lie
on it or look like it. As images the two can be told apart: bone is long and ends at cortices, a nodule does neither. So
the estimated bone is compared with its medians along lines (`unlike_lines`), which keep what is long, and a small
network decides from X-ray, bone and that comparison what goes back. It is trained on twins, the same simulated patient
with lesions and without, by tools/train_refiner.py. The papers have nothing of the kind; profile `small` uses it.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from . import images
from .blur import gaussian_blur
from .runtime.checkpoint import Network
from .runtime.device import autocast

SIZE = 256  # side at which the network sees an X-ray, pixels: a nodule of 6 mm is 4 pixels wide
STEP = 2  # pixels of that image that one feature vector stands for, along a side
NORM_GROUPS = 4  # of every group normalisation
BONE_GAIN = 8.0  # bone reaches a tenth of the grey scale; so much larger it fills the range of the other channels
UNLIKE_GAIN = 16.0  # likewise for what is unlike lines
ADDED = 0.125  # grey scale: the change that an answer of 1 means, where it is no share of the estimated bone

# In the lungs this share of what is unlike lines goes back beside the network's own, which keeps less of real nodules
# than of the drawn ones that it learnt from. Chosen on three real X-rays, where a model observer then finds nodules
# better than in the untouched ones, for a little more bone; see docs/lesions_log.md.
LUNG_SHARE = 0.7

# Lines, on an image of the bone in which a pixel is 3 mm wide.
LINE_SIZE = 128  # side of that image, pixels
LINE_REACH = 6  # pixels from a line's middle to its ends: 4 cm in all, and the largest nodules are 3 cm wide
DIRECTIONS = 12
LINE_SIGMA = 2.5  # pixels, of the neighbourhood in which a direction must fit
CHOICE = 4.0  # how much the best direction counts over the others
LEAST_ERROR = 1e-12  # squared grey values; keeps the ratio of two zeros finite


class BoneRefiner(Network):
    """A U-Net that corrects an estimated bone image; see `refine`. widths: channels of its levels, finest first."""

    def __init__(self, widths: tuple[int, ...] = (24, 32, 48, 64, 96)):
        super().__init__()
        self.settings = {"widths": tuple(widths)}
        inputs = 4 * STEP**2  # X-ray, bone, their difference, what of the bone is unlike lines
        before = (inputs, *widths[:-1])
        self.down = nn.ModuleList(Block(channels, width) for channels, width in zip(before, widths))
        coarse_to_fine = tuple(reversed(widths))
        self.up = nn.ModuleList(Block(c + width, width) for c, width in zip(coarse_to_fine, coarse_to_fine[1:]))
        self.out = nn.Conv2d(widths[0], 3 * STEP**2, 3, padding=1)
        # untrained: a gate of 1, a share of a quarter, nothing added
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, cxr: torch.Tensor, bone: torch.Tensor, unlike: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(gate, share, addition): gate * bone - share * unlike + addition is the corrected bone. All (B, 1, h, w).

        cxr: X-ray in [0, 1]; bone: estimated bone; unlike: see `unlike_lines`. h and w must be multiples of
        STEP * 2 ** (levels - 1). The gate is in [0, 2], the share in [0, 1]: most of what is wrong is a wrong share of
        what was estimated.
        """
        # what the network sees, all about as large
        seen = [
            images.to_signed(cxr),
            BONE_GAIN * bone,
            images.to_signed(cxr - bone),
            UNLIKE_GAIN * unlike,
        ]
        x = torch.cat(seen, dim=1)  # (B, 4, h, w)
        x = F.pixel_unshuffle(x, STEP)  # (B, 16, h/2, w/2)

        # down: each level at half the size of the one before
        skips = []
        for level, block in enumerate(self.down):
            if level > 0:
                x = F.avg_pool2d(x, 2)
            x = block(x)
            skips.append(x)

        # up again, with what each level saw on the way down
        for block, skip in zip(self.up, reversed(skips[:-1])):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = torch.cat([x, skip], dim=1)
            x = block(x)

        # three answers at each pixel
        answers = F.pixel_shuffle(self.out(x), STEP)  # (B, 3, h, w)
        gate, addition, share = answers.split(1, dim=1)  # (B, 1, h, w) each
        gate = 2 * torch.sigmoid(gate)
        share = torch.sigmoid(share - 1)
        return gate, share, ADDED * addition

    def refine(self, cxr: torch.Tensor, soft: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """The refined soft tissue of X-rays and a method's results for them, all (B, 1, H, W) in [-1, 1].

        masks: the lungs, boolean (B, 1, H, W). The network sees X-ray and bone at SIZE x SIZE. Its answer is enlarged
        and applied at full size, so fine detail stays. What is black in the X-ray, such as padding, stays as the method
        left it.
        """
        # in float32 whatever runs around it: it costs little, and a correction in bf16 would show steps
        with autocast(cxr.device, "float32"):
            unit = images.to_unit(cxr.float())
            bone = unit - images.to_unit(soft.float())
            unlike = unlike_lines(bone)  # (B, 1, SIZE, SIZE)
            gate, share, addition = self(_shrink(unit, SIZE), _shrink(bone, SIZE), unlike)

            # more of what is unlike lines goes back in the lungs
            inside = _shrink(masks.float(), SIZE)  # (B, 1, SIZE, SIZE), 1 in the lungs
            share = (share + LUNG_SHARE * inside).clamp(max=1)

            # the answer is enlarged, the bone is not, so its fine detail stays
            change = addition - share * unlike
            corrected = _enlarge(gate, bone.shape) * bone + _enlarge(change, bone.shape)  # (B, 1, H, W)
            result = images.to_signed(unit - corrected)
            refined = torch.where(unit > 0, result, soft)
            return refined.clamp(-1, 1)


def unlike_lines(bone: torch.Tensor) -> torch.Tensor:
    """What of an estimated bone (B, 1, H, W) is not as lines are: (B, 1, SIZE, SIZE), near 0 on ribs, not on nodules.

    The median along a line keeps a rib that the line follows, and takes away a bump that is shorter than half the line,
    be it on a rib or beside it. Of the directions those count at a place whose medians fit its neighbourhood.
    """
    small = _shrink(bone, LINE_SIZE)
    medians = []
    errors = []
    for number in range(DIRECTIONS):
        angle = math.pi * number / DIRECTIONS
        median = _median_along(small, angle)
        misfit = (small - median).square()
        medians.append(median)
        errors.append(gaussian_blur(misfit, LINE_SIGMA, separable=True))

    # The directions' weights: 1 for the one that fits best here, less for one whose error is larger by some share.
    error = torch.stack(errors)  # (directions, B, 1, s, s)
    least = error.amin(0)
    excess = error / (least + LEAST_ERROR) - 1
    weight = torch.softmax(-CHOICE * excess, dim=0)

    explained = (weight * torch.stack(medians)).sum(0)  # (B, 1, s, s)
    unlike = small - explained
    return F.interpolate(unlike, (SIZE, SIZE), mode="bilinear", align_corners=False)


def _median_along(x: torch.Tensor, angle: float) -> torch.Tensor:
    """The median of (B, 1, s, s) along the line through each pixel at this angle."""
    # the places of the pixels, (B, s, s, 2); made once and moved, as making them costs a hundred times as much
    still = torch.eye(2, 3, device=x.device).expand(len(x), 2, 3)
    places = F.affine_grid(still, list(x.shape), align_corners=False)
    shifted = []
    for steps in range(-LINE_REACH, LINE_REACH + 1):
        # affine_grid counts from -1 to 1 across the image, so a pixel is 2 / s
        right = 2 * steps * math.cos(angle) / x.shape[-1]
        down = 2 * steps * math.sin(angle) / x.shape[-2]
        moved = places + torch.tensor([right, down], device=x.device)
        shifted.append(F.grid_sample(x, moved, padding_mode="border", align_corners=False))
    return torch.cat(shifted, dim=1).median(dim=1, keepdim=True).values


def _shrink(x: torch.Tensor, side: int) -> torch.Tensor:
    """(B, 1, H, W) -> (B, 1, side, side), each pixel the mean of those that it stands for."""
    return F.interpolate(x, (side, side), mode="area")


def _enlarge(x: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """(B, 1, SIZE, SIZE) -> the height and width of `shape`."""
    return F.interpolate(x, shape[-2:], mode="bilinear", align_corners=False)


class Block(nn.Module):
    """Two 3 x 3 convolutions with group normalisation and SiLU, and a way past them: (B, channels, h, w) -> (B, width,
    h, w)."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.first_norm = nn.GroupNorm(NORM_GROUPS, width)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.second_norm = nn.GroupNorm(NORM_GROUPS, width)
        self.skip = nn.Conv2d(channels, width, 1) if channels != width else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.silu(self.first_norm(self.first(x)))
        h = self.second_norm(self.second(h))
        return F.silu(h + self.skip(x))
