"""The two lung fields of a frontal chest X-ray, for data sets that bring no masks: a described mean shape and shortest paths, not trained.

1. Place: the mean shape of both lungs is moved and scaled to where "inside" correlates best with "dark" (masked correlation).
2. Fit: each lung is bent by nine anatomical modes to agree with darkness and with slopes across its outline (a deformable template).
3. Trace: each outline follows the border along its normals, a closed shortest path (dark inside, bright outside, an edge between).
All three see ranks of grey values, not grey values, so that gamma and window hardly matter.
"""
import cv2
import numpy as np
from scipy import ndimage

MIN_SIZE = 64           # px, smaller images do not show a chest wall
WORK_SIZE = 256         # px, longer side of the image the outlines are traced in: a rib is about 5 px wide
PLACE_SIZE = 96         # px, longer side of the image the mean shape is placed and bent in: ribs are about 2 px wide

# Mean lung outlines, clockwise on the screen, in thorax units: x from the midline (0) to the widest inner chest wall (1),
# y from the apices (0) to the costophrenic angles (1). Drawn by hand after the usual anatomy of a full-inspiration PA film.
RIGHT_LUNG = np.array([             # on the viewer's left
    # mediastinum, right heart
    (-.27, .00), (-.17, .04), (-.13, .12), (-.15, .21), (-.19, .30), (-.22, .40), (-.24, .52), (-.25, .64), (-.23, .74), (-.22, .81),
    # diaphragm
    (-.36, .79), (-.52, .78), (-.69, .81), (-.84, .88), (-.97, .98),
    # chest wall
    (-.98, .84), (-.95, .71), (-.93, .58), (-.91, .46), (-.89, .36), (-.84, .26), (-.75, .16), (-.63, .09), (-.52, .045), (-.40, .01)])
LEFT_LUNG = np.array([
    # chest wall
    (.27, .00), (.40, .01), (.53, .045), (.64, .09), (.76, .16), (.85, .26), (.90, .36), (.92, .46), (.94, .58), (.96, .71), (.99, .85),
    (.98, 1.0),
    # diaphragm
    (.88, .92), (.77, .86), (.65, .84), (.54, .85),
    # heart, aortic knob, mediastinum
    (.51, .75), (.45, .67), (.36, .59), (.27, .51), (.23, .43), (.23, .35), (.23, .27), (.17, .21), (.14, .13), (.17, .04)])

# 1. Place
EVEN_SIGMA = 16.        # px of the working image, neighbourhood of the local contrast: about two rib spaces
FLAT = .01              # spread of ranks below which a neighbourhood is noise, not anatomy
CLIP = 2.               # local standard deviations
RANK_WEIGHT = 4.        # local standard deviations for the whole range of ranks: air beside the neck is locally as dark as lung
HALF_WIDTHS = np.arange(.22, .5, .025)  # half of the chest's inner width, in image widths
HEIGHTS = np.arange(1.3, 2.7, .15)      # height of the lungs in half widths: obese to slender
OVERHANG = 1 / 6        # of PLACE_SIZE, how far the shape may lie outside a tightly cropped image
PLACE_RING = .12        # half widths, tissue around the lungs that must be bright: the chest wall is hardly thicker

# 2. Fit. One lung's departures from the mean, thorax units: a mode moves the point (u, y), u = 0 at the lung's medial, 1 at its lateral border.
MODES = (
    lambda u, y: (1 - u, 0 * y),                                            # mediastinum narrower
    lambda u, y: (u, 0 * y),                                                # chest wider
    lambda u, y: (0 * u, 1 - y),                                            # apex lower
    lambda u, y: (0 * u, y),                                                # base lower
    lambda u, y: (y - .5, 0 * y),                                           # leaning
    lambda u, y: ((1 - u) * np.exp(-((y - .72) / .2) ** 2), 0 * y),         # heart wider
    lambda u, y: ((1 - u) * np.exp(-((y - .27) / .12) ** 2), 0 * y),        # upper mediastinum wider
    lambda u, y: (0 * u, (u - .5) * y ** 4),                                # diaphragm steeper
    lambda u, y: (u * np.exp(-((y - .15) / .15) ** 2), 0 * y),              # upper chest broader
)
SPREADS = np.array([.06, .06, .08, .08, .06, .08, .04, .08, .1])            # usual size of each mode, thorax units, estimated by eye
FIT_STEPS = (2., 1., .5, .25)           # spreads, coarse to fine
FIT_ROUNDS = 4          # through all modes, at most, for one step
FIT_POINTS = 96         # of one outline: about 2 px of the placing image apart
FIT_RING = .25          # half widths, tissue around the placed lung that the fit looks at
SLOPE_WEIGHT = .75      # squared correlation that a mean slope of one standard deviation over two px is worth
SLOPE_CAP = 1.2         # standard deviations over two px: the heart's strong edge must not outvote the faint chest wall
SHAPE_WEIGHT = .004     # squared correlation that one mode of one spread costs

# 3. Trace
RAYS = 128              # points of one outline: 3 to 4 px of the working image apart
PASSES = ((.16, 2.), (.10, 1.), (.06, .5))      # (reach along the normals in half widths, cost of a step of 1 px between neighbours)
ALONG = 4               # points, smoothing along the outline: ribs cross it and vanish, the chest wall follows it and stays
TRACE_RING = .16        # half widths, how far outside the outline tissue is sampled
LOCAL = .2              # half widths, neighbourhood of the local means of lung and tissue
LEAST_CONTRAST = .15    # ranks, below it lung and tissue are not told apart by brightness
EDGE_WEIGHT = 40.       # px of wrong brightness that one full edge outweighs


def lung_mask(cxr):
    """Both aerated lung fields of a frontal chest X-ray.

    cxr: float (H, W) in [0, 1], bones bright, H and W >= 64. Returns bool (H, W). Raises ValueError for anything else.
    """
    _check(cxr)
    scale = WORK_SIZE / max(cxr.shape)
    work = _resize(cxr.astype(np.float32), scale)           # (h, w)
    even = _even_out(work)
    place = _place(even)
    outlines = _trace(work, _fit(even, place), half=place[2])
    mask = np.zeros(cxr.shape, bool)
    for outline in outlines:
        mask |= _fill((outline + .5) / scale - .5, cxr.shape)       # pixel centres, as cv2.resize has them
    return mask


def lung_faults(mask):
    """What looks wrong with a lung mask by its shape: short phrases with the numbers, an empty list when plausible. mask: bool (H, W)."""
    faults = []
    if not .10 <= mask.mean() <= .55:
        faults.append(f'lungs cover {mask.mean():.1%} of the image, expected 10-55%')
    labels, _ = ndimage.label(mask)
    areas = np.sort(np.bincount(labels.ravel())[1:])[::-1]
    large = areas[areas > .1 * areas.sum()]                 # specks are not counted
    if len(large) != 2:
        faults.append(f'{len(large)} large part{"s" * (len(large) != 1)}, expected 2')
    elif large[1] < .4 * large[0]:
        faults.append(f'unequal lungs: the smaller has {large[1] / large[0]:.0%} of the larger, expected at least 40%')
    rim = int(np.concatenate([mask[0], mask[-1], mask[1:-1, 0], mask[1:-1, -1]]).sum())
    if rim:
        faults.append(f'lungs touch the image border in {rim} pixels')
    return faults


def _check(cxr):
    if not isinstance(cxr, np.ndarray) or not np.issubdtype(cxr.dtype, np.floating):
        raise ValueError(f'lung_mask got {getattr(cxr, "dtype", type(cxr).__name__)}, expected a float array in [0, 1]: '
                         "divide by the largest grey value")
    if cxr.ndim != 2 or min(cxr.shape) < MIN_SIZE:
        raise ValueError(f'lung_mask got shape {cxr.shape}, expected (H, W) with both sides >= {MIN_SIZE}')
    if not (cxr.min() >= 0 and cxr.max() <= 1):
        raise ValueError(f'lung_mask got values from {cxr.min()} to {cxr.max()}, expected [0, 1]')


def _resize(cxr, scale):
    height, width = (max(1, round(side * scale)) for side in cxr.shape)
    return cv2.resize(cxr, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def _ranks(cxr, region):
    """The share of the region's pixels that are darker, in [0, 1]: blind to every monotone change of grey values."""
    known = np.sort(cxr[region])
    return (np.searchsorted(known, cxr.ravel()) / len(known)).reshape(cxr.shape).astype(np.float32)


def _even_out(work):
    """Local z-scores of the ranks plus the ranks: lungs evenly dark, also in hazy bases, in apices and beside the chest wall. Float32 (h, w)."""
    ranks = _ranks(cv2.GaussianBlur(work, (0, 0), 1), np.ones(work.shape, bool))
    mean = cv2.GaussianBlur(ranks, (0, 0), EVEN_SIGMA)
    spread = np.sqrt(cv2.GaussianBlur((ranks - mean) ** 2, (0, 0), EVEN_SIGMA)) + FLAT
    return np.clip((ranks - mean) / spread, -CLIP, CLIP) + RANK_WEIGHT * ranks


def _to_pixels(lung, place):
    """Thorax units to px; place: (x of the midline, y of the apices, half width, height) in px."""
    return lung * place[2:] + place[:2]


def _fill(outline, shape):
    """Inside of a closed outline (N, 2) x, y in px, to 1/16 px. Bool, of the given shape."""
    bits = 4
    return cv2.fillPoly(np.zeros(shape, np.uint8), [np.round(outline * 2 ** bits).astype(np.int32)], 1, shift=bits) > 0


def _grow(mask, radius):
    size = 2 * int(radius) + 1
    return cv2.dilate(mask.astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))) > 0


def _place(even):
    """Where the mean shape fits best: (x of the midline, y of the apices, half width, height) in px of `even`."""
    scale = PLACE_SIZE / max(even.shape)
    small = cv2.GaussianBlur(_resize(even, scale), (0, 0), 1)
    pad = int(PLACE_SIZE * OVERHANG)
    padded = cv2.copyMakeBorder(small, pad, pad, pad, pad, cv2.BORDER_REPLICATE)
    best = (-np.inf, None)
    for half in HALF_WIDTHS * small.shape[1]:
        for height in half * HEIGHTS:
            best = max(best, _best_shift(padded, half, height), key=lambda found: found[0])
    return (best[1] - (pad, pad, 0, 0)) / scale


def _best_shift(padded, half, height):
    """Highest correlation of the mean shape of one size, over all shifts, and its place."""
    ring = PLACE_RING * half
    place = np.array([half + ring, ring, half, height])
    shape = (int(height + 2 * ring) + 1, int(2 * (half + ring)) + 1)
    if shape[0] > padded.shape[0] or shape[1] > padded.shape[1]:
        return -np.inf, None
    lungs = _fill(_to_pixels(RIGHT_LUNG, place), shape) | _fill(_to_pixels(LEFT_LUNG, place), shape)
    hull = cv2.convexHull(np.argwhere(lungs)[:, ::-1].astype(np.int32))
    support = _grow(cv2.fillConvexPoly(np.zeros(shape, np.uint8), hull, 1), ring)       # lungs, mediastinum, chest wall
    score = cv2.matchTemplate(padded, (~lungs).astype(np.float32), cv2.TM_CCOEFF_NORMED, mask=support.astype(np.float32))
    score = np.where(np.isfinite(score), score, -1)         # flat neighbourhoods
    y, x = np.unravel_index(score.argmax(), score.shape)
    return score[y, x], place + (x, y, 0, 0)


def _fit(even, place):
    """The mean lungs bent to the image. Returns two outlines (N, 2) in px of `even`."""
    scale = PLACE_SIZE / max(even.shape)
    small = cv2.GaussianBlur(_resize(even, scale), (0, 0), 1)
    place = place * scale
    placed = [_fill(_to_pixels(lung, place), small.shape) for lung in (RIGHT_LUNG, LEFT_LUNG)]
    regions = [_grow(own, FIT_RING * place[2]) & ~other for own, other in (placed, placed[::-1])]
    fits = []
    for pair in ((RIGHT_LUNG, LEFT_LUNG), (_mirror(LEFT_LUNG), _mirror(RIGHT_LUNG))):       # the second for a film stored the other way round
        scores, outlines = zip(*(_climb(small, region, lung, place) for lung, region in zip(pair, regions)))
        fits.append((sum(scores), outlines))
    return [outline / scale for outline in max(fits, key=lambda fit: fit[0])[1]]


def _mirror(lung):
    return (lung * (-1, 1))[::-1]           # reversed to stay clockwise


def _mode_moves(lung):
    """What one spread of each mode adds to the lung's points, thorax units: (modes, N, 2)."""
    side = np.sign(lung[:, 0].mean())
    width = side * lung[:, 0]
    u = (width - width.min()) / np.ptp(width)
    return np.stack([np.stack(mode(u, lung[:, 1]), axis=1) * (side * spread, spread) for mode, spread in zip(MODES, SPREADS)])


def _climb(small, region, lung, place):
    """Coordinate ascent over the modes. Returns the score and the outline in px of `small`."""
    lung = _resample(lung, FIT_POINTS)
    moves = _mode_moves(lung)
    values = np.where(region, small - small[region].mean() if region.any() else 0, 0)
    slope = np.stack([ndimage.sobel(small, axis) / 4 for axis in (1, 0)])

    def bent(modes):
        return _to_pixels(lung + np.tensordot(modes, moves, 1), place)

    def judge(modes):
        return _agreement(bent(modes), values, region, slope) - SHAPE_WEIGHT * (modes ** 2).sum()

    modes = np.zeros(len(MODES))
    best = judge(modes)
    for step in FIT_STEPS:
        for _ in range(FIT_ROUNDS):
            before = best
            for move in np.repeat(np.eye(len(MODES)), 2, axis=0) * np.tile([step, -step], len(MODES))[:, None]:
                score = judge(modes + move)
                if score > best:
                    best, modes = score, modes + move
            if best == before:
                break
    return best, bent(modes)


def _agreement(outline, values, region, slope):
    """Squared correlation of "inside" with "dark" over the region, plus the mean slope across the outline.

    values: the image less its mean, zero outside the region; slope: (2, h, w), its change over two px along x and y.
    """
    inside = _fill(outline, values.shape) & region
    share = inside.sum() / max(region.sum(), 1)
    total = np.vdot(values, values) / max(region.sum(), 1)
    correlation = values[inside].mean() ** 2 * share / (1 - share) / total if 0 < share < 1 and total > 0 else 0
    x, y = np.clip(np.round(outline).astype(int), 0, np.array(values.shape)[::-1] - 1).T
    normal = _normals(outline)
    across = slope[0, y, x] * normal[:, 0] + slope[1, y, x] * normal[:, 1]
    return correlation + SLOPE_WEIGHT * np.clip(across, -SLOPE_CAP, SLOPE_CAP).mean()


def _resample(outline, count):
    """The closed outline at `count` points of equal arc length."""
    closed = np.vstack([outline, outline[:1]])
    arc = np.r_[0, np.cumsum(np.hypot(*np.diff(closed, axis=0).T))]
    at = np.linspace(0, arc[-1], count, endpoint=False)
    return np.stack([np.interp(at, arc, closed[:, axis]) for axis in (0, 1)], axis=1)


def _normals(outline):
    """Unit normals (N, 2) that point out of a closed outline that runs clockwise on the screen."""
    tangent = np.roll(outline, -1, axis=0) - np.roll(outline, 1, axis=0)
    length = np.maximum(np.hypot(*tangent.T), 1e-6)         # coincident neighbours have no direction
    return np.stack([tangent[:, 1], -tangent[:, 0]], axis=1) / length[:, None]


def _trace(work, outlines, half):
    """Both outlines (N, 2) moved to the lung borders in `work`, in ever shorter searches; half: half width of the chest in px."""
    for reach, stiffness in PASSES:
        outlines = [_resample(outline, RAYS) for outline in outlines]
        likeness = _likeness(work, _fill(outlines[0], work.shape) | _fill(outlines[1], work.shape), half)
        outlines = [_follow(outline, likeness, int(reach * half), stiffness) for outline in outlines]
    return outlines


def _likeness(work, lungs, half):
    """0 where a pixel is like the lung nearby, 1 where like the tissue nearby; float32 (h, w).

    Local means as in Lankton & Tannenbaum, IEEE TIP 17 (2008) 2029.
    """
    near = _grow(lungs, TRACE_RING * half)
    ranks = _ranks(work, near if near.any() else np.ones_like(near))
    inside, outside = (_local_mean(ranks, part, LOCAL * half) for part in (lungs, near & ~lungs))
    return (ranks - inside) / np.maximum(outside - inside, LEAST_CONTRAST)


def _local_mean(values, part, sigma):
    weight = cv2.GaussianBlur(part.astype(np.float32), (0, 0), sigma)
    return cv2.GaussianBlur(values * part, (0, 0), sigma) / (weight + 1e-6)


def _follow(outline, likeness, reach, stiffness):
    """The outline (N, 2) moved by up to `reach` px along its normals: the cheapest closed path over (point, offset)."""
    smooth = ndimage.gaussian_filter1d(outline, 3, axis=0, mode='wrap')     # normals must not cross at the angles
    normal = _normals(smooth)
    margin = 2                                              # px to both sides for the edge
    offsets = np.arange(-reach - margin, reach + margin + 1)
    x, y = np.moveaxis(outline[:, None] + offsets[:, None] * normal[:, None], -1, 0)    # (N, D)
    profile = ndimage.map_coordinates(likeness, (y, x), order=1, mode='nearest')
    profile = ndimage.gaussian_filter1d(profile, ALONG, axis=0, mode='wrap')
    edge = np.clip(profile[:, 2 * margin:] - profile[:, :-2 * margin], 0, 1)
    wrong = np.cumsum(np.clip(2 * profile - 1, -1, 1), axis=1)[:, margin:-margin]       # tissue taken in, less lung taken in
    path = _closed_path(wrong - EDGE_WEIGHT * edge, stiffness)
    return outline + offsets[margin:-margin][path][:, None] * normal


def _closed_path(cost, stiffness, jump=2):
    """Column of each row of cost (N, D) on a cheap closed path whose neighbours are at most `jump` apart.

    The ring is walked twice and the middle of the walk kept."""
    rows, columns = len(cost), cost.shape[1]
    moves = np.arange(-jump, jump + 1)
    total, came = cost[0], np.zeros((2 * rows, columns), int)
    for row in range(1, 2 * rows):
        padded = np.pad(total, jump, constant_values=np.inf)
        options = np.stack([padded[jump + move:jump + move + columns] + stiffness * move ** 2 for move in moves])
        choice = options.argmin(axis=0)
        came[row] = moves[choice]
        total = options[choice, np.arange(columns)] + cost[row % rows]
    path = np.empty(2 * rows, int)
    path[-1] = total.argmin()
    for row in range(2 * rows - 1, 0, -1):
        path[row - 1] = path[row] + came[row, path[row]]
    middle = rows // 2
    return np.roll(path[middle:middle + rows], middle)
