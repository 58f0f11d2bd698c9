"""The refinement of a method's result: what of the bone that it took away was no bone goes back into the X-ray.

A noise estimator works on latents, whose pixels are 4 or 8 image pixels wide, and takes nodules for bone where they lie
on it or look like it. As images the two can be told apart: bone is long and ends at cortices, a nodule does neither.
Two networks say what has to go back:

- the corrector sees the X-ray at 256 x 256 pixels and learnt to put the estimated bone right;
- the finder sees it at 512 x 512 and learnt what of lesions is still missing after that.

Both also see what of the estimated bone is not as lines are (`unlike_lines`): medians along lines keep what is long.
They are trained on twins, the same simulated patient with lesions and without, by tools/train_refiner.py. The papers
have nothing of the kind; profile `small` uses it.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from . import images
from .blur import gaussian_blur
from .runtime.checkpoint import Network
from .runtime.device import autocast

SIZE = 256  # side at which the corrector sees an X-ray, pixels: a nodule of 6 mm is 4 pixels wide
STEP = 2  # pixels of that image that one feature vector stands for, along a side
FINDER_SIZE = 512  # likewise for the finder
FINDER_STEP = 4
NORM_GROUPS = 4  # of every group normalisation
BONE_GAIN = 8.0  # bone reaches a tenth of the grey scale; so much larger it fills the range of the other channels
UNLIKE_GAIN = 16.0  # likewise for what is unlike lines, or no bone
ADDED = 0.125  # grey scale: the change that an answer of 1 means, where it is no share of the estimated bone

# How much of the corrector's answer goes back; the finder learnt what this leaves missing. Chosen on three real X-rays,
# where more of it costs bone; see docs/lesions_log.md.
CORRECTED = 0.7

# Lines, on an image of the bone in which a pixel is 3 mm wide.
LINE_SIZE = 128  # side of that image, pixels
LINE_REACH = 6  # pixels from a line's middle to its ends: 4 cm in all, and the largest nodules are 3 cm wide
DIRECTIONS = 12
LINE_SIGMA = 2.5  # pixels, of the neighbourhood in which a direction must fit
CHOICE = 4.0  # how much the best direction counts over the others
LEAST_ERROR = 1e-12  # squared grey values; keeps the ratio of two zeros finite


class BoneRefiner(Network):
    """Two U-Nets that say what of an estimated bone image is none; see `refine`. widths, finder_widths: channels of
    their levels, finest first."""

    def __init__(
        self,
        widths: tuple[int, ...] = (24, 32, 48, 64, 96),
        finder_widths: tuple[int, ...] = (48, 64, 96, 128, 96),
    ):
        super().__init__()
        self.settings = {"widths": tuple(widths), "finder_widths": tuple(finder_widths)}
        self.corrector = UNet(inputs=4, outputs=3, step=STEP, widths=widths)
        self.finder = UNet(inputs=5, outputs=1, step=FINDER_STEP, widths=finder_widths)

    def correct(self, cxr: torch.Tensor, bone: torch.Tensor, unlike: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(gate, share, addition): gate * bone - share * unlike + addition is the corrected bone. All (B, 1, h, w).

        cxr: X-ray in [0, 1]; bone: estimated bone; unlike: see `unlike_lines`. h and w must be multiples of
        STEP * 2 ** (levels - 1). The gate is in [0, 2], the share in [0, 1]: most of what is wrong is a wrong share of
        what was estimated.
        """
        answers = self.corrector(_seen(cxr, bone, unlike))  # (B, 3, h, w)
        gate, addition, share = answers.split(1, dim=1)  # (B, 1, h, w) each
        gate = 2 * torch.sigmoid(gate)
        share = torch.sigmoid(share - 1)
        return gate, share, ADDED * addition

    def no_bone(self, cxr: torch.Tensor, bone: torch.Tensor, unlike: torch.Tensor) -> torch.Tensor:
        """What of the estimated bone is none according to the corrector, (B, 1, H, W).

        cxr, bone: (B, 1, H, W) of any size, as in `correct`; unlike: (B, 1, s, s) of any size.
        """
        shape = bone.shape[-2:]
        coarse = enlarge(unlike, (SIZE, SIZE))
        gate, share, addition = self.correct(_shrink(cxr, SIZE), _shrink(bone, SIZE), coarse)
        # The gate is enlarged, the bone is not, so fine detail stays.
        change = addition - share * coarse
        corrected = enlarge(gate, shape) * bone + enlarge(change, shape)
        return bone - corrected

    def find(self, cxr: torch.Tensor, bone: torch.Tensor, unlike: torch.Tensor, no_bone: torch.Tensor) -> torch.Tensor:
        """(B, 1, h, w): grey values of lesions that are missing though CORRECTED * no_bone goes back.

        Parameters as in `correct`, and the answer of `no_bone`, (B, 1, h, w) each; h and w must be multiples of
        FINDER_STEP * 2 ** (levels - 1).
        """
        seen = torch.cat([_seen(cxr, bone, unlike), UNLIKE_GAIN * no_bone], dim=1)  # (B, 5, h, w)
        return ADDED * self.finder(seen)

    def refine(self, cxr: torch.Tensor, soft: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """The refined soft tissue of X-rays and a method's results for them, all (B, 1, H, W) in [-1, 1].

        masks: the lungs, boolean (B, 1, H, W). The networks see X-ray and bone at their own sizes. Their answers are
        enlarged and applied at full size, so fine detail stays. What is black in the X-ray, such as padding, stays as
        the method left it.
        """
        # in float32 whatever runs around it: it costs little, and a correction in bf16 would show steps
        with autocast(cxr.device, "float32"):
            unit = images.to_unit(cxr.float())
            bone = unit - images.to_unit(soft.float())
            shape = bone.shape[-2:]
            unlike = unlike_lines(bone)  # (B, 1, LINE_SIZE, LINE_SIZE)
            no_bone = self.no_bone(unit, bone, unlike)  # (B, 1, H, W)

            # What lesions still lack, in the lungs
            fine = enlarge(unlike, (FINDER_SIZE, FINDER_SIZE))
            found = self.find(
                _shrink(unit, FINDER_SIZE), _shrink(bone, FINDER_SIZE), fine, _shrink(no_bone, FINDER_SIZE)
            )
            lungs = _shrink(masks.float(), FINDER_SIZE)  # (B, 1, FINDER_SIZE, FINDER_SIZE), 1 in the lungs

            given_back = CORRECTED * no_bone + enlarge(lungs * found, shape)
            result = images.to_signed(unit - bone + given_back)
            refined = torch.where(unit > 0, result, soft)
            return refined.clamp(-1, 1)


def _seen(cxr: torch.Tensor, bone: torch.Tensor, unlike: torch.Tensor) -> torch.Tensor:
    """(B, 4, h, w): what both networks see, all about as large. Parameters (B, 1, h, w) each."""
    seen = [
        images.to_signed(cxr),
        BONE_GAIN * bone,
        images.to_signed(cxr - bone),
        UNLIKE_GAIN * unlike,
    ]
    return torch.cat(seen, dim=1)


class UNet(nn.Module):
    """What both networks are: (B, inputs, h, w) -> (B, outputs, h, w).

    step: pixels that one feature vector of the finest level stands for, along a side. Untrained it answers 0.
    """

    def __init__(self, inputs: int, outputs: int, step: int, widths: tuple[int, ...]):
        super().__init__()
        self.step = step
        before = (inputs * step**2, *widths[:-1])
        self.down = nn.ModuleList(Block(channels, width) for channels, width in zip(before, widths))
        coarse_to_fine = tuple(reversed(widths))
        self.up = nn.ModuleList(Block(c + width, width) for c, width in zip(coarse_to_fine, coarse_to_fine[1:]))
        self.out = nn.Conv2d(widths[0], outputs * step**2, 3, padding=1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.pixel_unshuffle(x, self.step)  # (B, inputs step^2, h/step, w/step)

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
        return F.pixel_shuffle(self.out(x), self.step)  # (B, outputs, h, w)


def unlike_lines(bone: torch.Tensor) -> torch.Tensor:
    """What of an estimated bone (B, 1, H, W) is not as lines are: (B, 1, LINE_SIZE, LINE_SIZE), near 0 on ribs, not on
    nodules.

    The median along a line keeps a rib that the line follows, and takes away a bump that is shorter than half the line,
    be it on a rib or beside it. Of the directions those count at a place whose medians fit its neighbourhood.
    """
    small = _shrink(bone, LINE_SIZE)
    medians = _medians_along(small)  # (directions, B, 1, s, s)
    misfit = (small - medians).square()
    error = gaussian_blur(misfit.flatten(0, 1), LINE_SIGMA, separable=True).view_as(misfit)

    # The directions' weights: 1 for the one that fits best here, less for one whose error is larger by some share.
    least = error.amin(0)
    excess = error / (least + LEAST_ERROR) - 1
    weight = torch.softmax(-CHOICE * excess, dim=0)

    explained = (weight * medians).sum(0)  # (B, 1, s, s)
    return small - explained


def _medians_along(x: torch.Tensor) -> torch.Tensor:
    """(DIRECTIONS, B, 1, s, s): the medians of (B, 1, s, s) along the lines through each pixel in each direction."""
    # the places of the pixels, (B, s, s, 2); made once and moved, as making them costs a hundred times as much
    still = torch.eye(2, 3, device=x.device).expand(len(x), 2, 3)
    places = F.affine_grid(still, list(x.shape), align_corners=False)
    repeated = x.repeat(DIRECTIONS, 1, 1, 1)  # (directions B, 1, s, s)
    samples = []
    for steps in range(-LINE_REACH, LINE_REACH + 1):
        moves = []
        for number in range(DIRECTIONS):
            angle = math.pi * number / DIRECTIONS
            # affine_grid counts from -1 to 1 across the image, so a pixel is 2 / s
            right = 2 * steps * math.cos(angle) / x.shape[-1]
            down = 2 * steps * math.sin(angle) / x.shape[-2]
            moves.append([right, down])
        move = torch.tensor(moves, device=x.device)[:, None, None, None, :]  # (directions, 1, 1, 1, 2)
        moved = (places + move).flatten(0, 1)  # (directions B, s, s, 2)
        samples.append(F.grid_sample(repeated, moved, padding_mode="border", align_corners=False))
    return _median(samples).unflatten(0, (DIRECTIONS, len(x)))


def _median(samples: list[torch.Tensor]) -> torch.Tensor:
    """The median of an odd number of tensors of one shape, at each place. By exchanges of neighbours, which on a CPU
    takes a fifth of the time of Tensor.median."""
    values = list(samples)
    middle = len(values) // 2
    # Each round carries the largest of the first ones to their end, until the middle is the largest of what is left.
    for end in range(len(values) - 1, middle - 1, -1):
        for place in range(end):
            smaller = torch.minimum(values[place], values[place + 1])
            larger = torch.maximum(values[place], values[place + 1])
            values[place] = smaller
            values[place + 1] = larger
    return values[middle]


def _shrink(x: torch.Tensor, side: int) -> torch.Tensor:
    """(B, 1, H, W) -> (B, 1, side, side), each pixel the mean of those that it stands for."""
    return F.interpolate(x, (side, side), mode="area")


def enlarge(x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """(B, 1, s, s) -> (B, 1, *shape)."""
    return F.interpolate(x, shape, mode="bilinear", align_corners=False)


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
