"""Train the network of models/lungs.py on simulated patients, spoiled in every way that real X-rays are.

    python -m tools.train_lungs runs/lungs                       # patients, training and weights/lungs.safetensors
    python -m tools.train_lungs runs/lungs --patients 4 --steps 20 --out runs/lungs/tiny.safetensors

The same command goes on where it was stopped. Sample number i is a function of i alone. About half an hour on two cores.
"""
import argparse
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import save_file
from scipy.interpolate import PchipInterpolator

from models import lungs
from models.lungs import LungNet
from models.runtime.files import replacing
from models.simulate import phantom

FIRST = 10_000          # seed of the first patient, far from those of the tests
SIZE = 256              # px, the patients are drawn at this size
CANVAS = lungs.NET_SIZE  # px
BATCH = 16
RATE, WARMUP = 2e-3, 100
SAVE_EVERY = 100        # steps
AVERAGE = .997          # per step, of the averaged weights, which are what is kept


def chance(g, share):
    return g.random() < share


# --- patients --------------------------------------------------------------------------------------------------------------------

def patients(folder, count):
    """(count, 3, SIZE, SIZE) uint8: CXR and soft tissue times 255, lungs; drawn where not there yet, in blocks of 50."""
    blocks = []
    for first in range(FIRST, FIRST + count, 50):
        path = folder / f'{first}.npy'
        if not path.is_file():
            drawn = [phantom.simulate(seed, SIZE) for seed in range(first, min(first + 50, FIRST + count))]
            block = np.stack([np.stack([np.round(255 * p.cxr), np.round(255 * p.soft), p.mask]).astype(np.uint8) for p in drawn])
            with replacing(path) as part, open(part, 'wb') as file:
                np.save(file, block)
        blocks.append(np.load(path))
    return np.concatenate(blocks)


# --- one spoiled sample ----------------------------------------------------------------------------------------------------------

def sample(index, pool):
    """Features (2, CANVAS, CANVAS) and lungs (1, CANVAS, CANVAS) of sample `index`, float32; a pure function."""
    g = np.random.default_rng([2, index])
    cxr, soft, mask = pool[g.integers(len(pool))].astype(np.float32)
    cxr = (soft + g.uniform(.3, 1.3) * (cxr - soft)) / 255
    cxr, mask = deform(g, cxr, mask)
    for change, share in ((heart, .25), (opacities, .35), (effusion, .2), (haze, .2), (breasts, .25), (bowel, .3), (arms, .25)):
        if chance(g, share):
            cxr, mask = change(g, cxr, mask)
    cxr = display(g, np.clip(cxr, 0, 1.3))
    if chance(g, .5):
        cxr = things(g, cxr)
    if chance(g, .4):
        cxr, mask = collimate(g, cxr, mask)
    cxr = detector(g, cxr)
    scale = CANVAS / max(cxr.shape)
    size = [max(1, round(side * scale)) for side in cxr.shape[::-1]]
    cxr, mask = (cv2.resize(layer, size, interpolation=cv2.INTER_AREA) for layer in (cxr, mask))
    target = np.zeros((1, CANVAS, CANVAS), np.float32)
    target[0, :size[1], :size[0]] = mask
    return lungs.features(cxr), target


def smooth(g, shape, grains):
    """Smooth unit noise with about `grains` grains along a side."""
    return cv2.resize(g.standard_normal((grains, grains)).astype(np.float32), shape[::-1], interpolation=cv2.INTER_CUBIC)


def deform(g, cxr, mask):
    """Another build, pose and crop: affine with a smooth warp; any aspect."""
    height = int(g.integers(160, 225))
    shape = (height, int(np.clip(height * np.exp(g.normal(0, .15)), 128, 280)))
    y, x = np.mgrid[:shape[0], :shape[1]].astype(np.float32)
    x, y = (x + .5) / shape[1] - .5, (y + .5) / shape[0] - .5
    angle, zoom = g.normal(0, .08), np.exp(g.normal(-.12, .16))     # zoom > 1: the patient is smaller
    cos, sin = np.cos(angle) * zoom, np.sin(angle) * zoom
    sx, sy = np.exp(g.normal(0, .06, 2)) * (min(1.0, shape[1] / shape[0]) if chance(g, .7) else 1, 1)
    u, v = sx * (cos * x - sin * y) + g.normal(0, .05), sy * (sin * x + cos * y) + g.normal(0, .05)
    strength = g.uniform(0, .028)
    u, v = u + strength * smooth(g, shape, int(g.integers(3, 7))), v + strength * smooth(g, shape, int(g.integers(3, 7)))
    u *= 1 + g.normal(0, .12) * v                           # broad above, narrow below, or the other way round
    v = v + g.normal(0, .03) * np.clip(v, 0, 1) * 2         # high and low diaphragms
    u = -u if chance(g, .2) else u
    to = [((part + .5) * SIZE - .5).astype(np.float32) for part in (u, v)]
    border, value = (cv2.BORDER_CONSTANT, float(g.choice([0, 0, .05, 1]))) if chance(g, .4) else (cv2.BORDER_REPLICATE, 0)
    return cv2.remap(cxr, *to, cv2.INTER_LINEAR, borderMode=border, borderValue=value), cv2.remap(mask, *to, cv2.INTER_LINEAR)


def unit_grid(shape):
    y, x = np.mgrid[:shape[0], :shape[1]].astype(np.float32)
    return x / shape[1], y / shape[0]


def one_lung(g, mask):
    """Mask and box (x0, x1, y0, y1 in units of the image) of one of the two largest parts."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats((mask > .5).astype(np.uint8))
    if count < 2:
        return mask * 0, (.3, .4, .3, .7)
    largest = 1 + np.argsort(stats[1:, cv2.CC_STAT_AREA])[::-1][:2]
    chosen = g.choice(largest)
    left, top, width, height = stats[chosen, :4]
    inside = mask * (labels == chosen)
    return inside, (left / mask.shape[1], (left + width) / mask.shape[1], top / mask.shape[0], (top + height) / mask.shape[0])


def tissue(cxr, mask):
    """Grey level of soft tissue beside the lungs."""
    return float(np.quantile(cxr[mask > .5], .9)) if (mask > .5).any() else .7


def blob(g, shape, centre, radii, edge=.3):
    """1 inside a wobbly ellipse, 0 outside, all in units of the image."""
    x, y = unit_grid(shape)
    tilt = g.uniform(0, np.pi)
    dx, dy = x - centre[0], y - centre[1]
    r = np.hypot((np.cos(tilt) * dx + np.sin(tilt) * dy) / radii[0], (np.cos(tilt) * dy - np.sin(tilt) * dx) / radii[1])
    return 1 / (1 + np.exp(np.clip((r + .15 * smooth(g, shape, 5) - 1) / (.02 + edge * g.random()), -30, 30)))


def heart(g, cxr, mask):
    """A larger heart or mediastinum: it takes part of a lung, mask and all."""
    lung, (x0, x1, y0, y1) = one_lung(g, mask)
    medial = x0 if x0 + x1 > 1 else x1
    if chance(g, .75):
        radii, centre = (g.uniform(.2, .65) * (x1 - x0), g.uniform(.15, .35) * (y1 - y0)), (medial, y1 - g.uniform(.05, .3) * (y1 - y0))
    else:
        radii, centre = (g.uniform(.1, .3) * (x1 - x0), g.uniform(.1, .4) * (y1 - y0)), (medial, y0 + g.uniform(0, .4) * (y1 - y0))
    x, y = unit_grid(cxr.shape)
    part = (((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2 < 1).astype(np.float32)
    weight = cv2.GaussianBlur(part * (lung > .5), (0, 0), g.uniform(.5, 1.5)) * g.uniform(.6, 1)
    return cxr * (1 - weight) + weight * tissue(cxr, mask) * g.uniform(.9, 1.2), mask * (1 - part * (lung > .5))


def opacities(g, cxr, mask):
    """Nodules, masses, consolidations: the mask stays."""
    for _ in range(int(g.integers(1, 6))):
        lung, (x0, x1, y0, y1) = one_lung(g, mask)
        size = np.exp(g.uniform(np.log(.02), np.log(.16)))
        shade = blob(g, cxr.shape, (g.uniform(x0, x1), g.uniform(y0, y1)), size * np.exp(g.normal(0, .25, 2)), 1.)
        weight = shade * np.clip(lung, 0, 1) * g.uniform(.2, .9)
        cxr = cxr * (1 - weight) + weight * tissue(cxr, mask) * g.uniform(.8, 1.05)
    return cxr, mask


def effusion(g, cxr, mask):
    """The lower part of one lung goes to the brightness of tissue; the mask stays."""
    lung, (x0, x1, y0, y1) = one_lung(g, mask)
    x, y = unit_grid(cxr.shape)
    lateral = np.abs((x - (x0 if x0 + x1 > 1 else x1)) / max(x1 - x0, .01))
    level = y1 - (y1 - y0) * g.uniform(.05, .35) * (1 + g.uniform(-.2, .8) * (lateral - .5))
    weight = g.uniform(.4, .95) / (1 + np.exp(np.clip((level - y) / g.uniform(.004, .05), -30, 30))) * np.clip(lung, 0, 1)
    return cxr * (1 - weight) + weight * tissue(cxr, mask) * g.uniform(.9, 1.1), mask


def haze(g, cxr, mask):
    """One lung, or both, darker or brighter as a whole, or streaky."""
    lung = one_lung(g, mask)[0] if chance(g, .5) else mask
    pattern = g.uniform(-.3, .6) + .3 * g.random() * smooth(g, cxr.shape, int(g.choice([4, 12, 40])))
    weight = np.clip(pattern, -.4, .9) * np.clip(lung, 0, 1)
    return cxr + weight * (tissue(cxr, mask) - cxr) * (weight > 0) + weight * .3 * cxr * (weight < 0), mask


def breasts(g, cxr, mask):
    """Two round shadows, sharp below."""
    x, y = unit_grid(cxr.shape)
    cy, rx, ry, gain = g.uniform(.5, .8), g.uniform(.12, .22), g.uniform(.12, .25), g.uniform(.04, .22)
    for cx in (g.uniform(.2, .33), g.uniform(.67, .8)):
        r = np.hypot((x - cx) / rx, (y - cy - g.normal(0, .02)) / ry)
        cxr = cxr + gain * np.clip((1 - r) / .12, 0, 1) * np.clip((y - cy + ry) / (1.2 * ry), 0, 1)
    return cxr, mask


def bowel(g, cxr, mask):
    """Gas below the diaphragm, often right below it and with a level, never in the lungs."""
    outside = 1 - np.clip(cv2.dilate(mask, np.ones((3, 3))), 0, 1)
    for _ in range(int(g.integers(1, 4))):
        _, (x0, x1, _, y1) = one_lung(g, mask)
        radii = np.exp(g.normal(-2.7, .4, 2))
        centre = (g.uniform(x0, x1), y1 + g.uniform(-.08, .15)) if chance(g, .6) else (g.uniform(.2, .8), g.uniform(.75, 1))
        gas = blob(g, cxr.shape, centre, radii, .2)
        if chance(g, .4):
            gas = gas * (unit_grid(cxr.shape)[1] < centre[1] + g.uniform(-.3, .8) * radii[1])
        lower = np.cumsum(mask > .5, axis=0) > 0            # never above the lungs' first row of the column
        cxr = cxr - g.uniform(.1, .6) * gas * outside * lower * cxr
    return cxr, mask


def arms(g, cxr, mask):
    """Arms, shoulder blades, a bra's or a gown's folds: bright and dark bands at the sides."""
    x, y = unit_grid(cxr.shape)
    for side in (x, 1 - x):
        depth = g.uniform(-.05, .12) + g.uniform(-.3, .3) * (y - .5) - side
        if chance(g, .7):
            cxr = cxr + g.uniform(-.4, .3) * np.clip(depth / .01, 0, 1) * (1 - np.clip(cv2.dilate(mask, np.ones((5, 5))), 0, 1))
    return cxr, mask


def display(g, cxr):
    """Another detector and viewer: heel effect, local contrast, equalisation, any rising tone curve, any window."""
    shape = cxr.shape
    if chance(g, .5):
        x, y = unit_grid(shape)
        cxr = cxr * (1 + g.normal(0, .2) * (x - .5) + g.normal(0, .2) * (y - .5)) + g.uniform(0, .06) * smooth(g, shape, 4)
    if chance(g, .6):
        cxr = cxr + g.uniform(-.5, 1.2) * (cxr - cv2.GaussianBlur(cxr, (0, 0), np.exp(g.uniform(np.log(1.5), np.log(40)))))
    cxr = (cxr - cxr.min()) / max(np.ptp(cxr), 1e-3)
    if chance(g, .25):
        grey = np.uint8(255 * cxr)
        clip = cv2.createCLAHE(g.uniform(1, 5), (int(g.integers(2, 9)),) * 2)
        cxr = (clip.apply(grey) if chance(g, .7) else cv2.equalizeHist(grey)) / np.float32(255)
    knots = np.cumsum(np.r_[0, g.dirichlet(np.full(5, 3.))])
    cxr = PchipInterpolator(np.linspace(0, 1, 6), knots)(cxr) ** np.exp(g.normal(0, .35))
    low, high = (g.uniform(0, .25), g.uniform(.75, 1)) if chance(g, .3) else (0, 1)
    return np.clip((cxr - low) / (high - low), 0, 1).astype(np.float32)


def things(g, cxr):
    """Letters, plates, wires, a pacemaker, electrodes: brighter or darker than anything."""
    picture, (height, width) = np.uint8(255 * cxr), cxr.shape

    def place():
        return int(g.uniform(0, width)), int(g.uniform(0, height))

    def shade():
        return int(255 * g.choice([0, 1, 1, g.random()]))

    for _ in range(int(g.integers(1, 5))):
        kind = g.integers(5)
        if kind == 0:
            text = ''.join(g.choice(list('LRPA0123456789SITZ'), int(g.integers(1, 8))))
            cv2.putText(picture, text, place(), cv2.FONT_HERSHEY_SIMPLEX, g.uniform(.3, 1.3), shade(), int(g.integers(1, 4)), cv2.LINE_AA)
        elif kind == 1:
            x, y = place()
            cv2.rectangle(picture, (x, y), (x + int(g.uniform(4, 50)), y + int(g.uniform(4, 30))), shade(), -1)
        elif kind == 2:
            points = np.cumsum([place(), *g.normal(0, .1 * width, (6, 2))], axis=0)
            cv2.polylines(picture, [points.astype(np.int32)], False, shade(), int(g.integers(1, 3)), cv2.LINE_AA)
        elif kind == 3:
            cv2.ellipse(picture, place(), (int(g.uniform(3, 18)), int(g.uniform(3, 14))), g.uniform(0, 180), 0, 360, shade(), -1)
        else:
            cv2.circle(picture, place(), int(g.uniform(2, 6)), shade(), int(g.choice([-1, 1])))
    return picture / np.float32(255)


def collimate(g, cxr, mask):
    """Borders of one grey: laid over the image, tilted or not, or added around it."""
    grey = float(g.choice([0, 0, 0, 1, 1, g.random()]))
    if chance(g, .5):
        sides = [int(side) for side in g.uniform(0, .2, 4) * np.repeat(cxr.shape, 2) * (g.random(4) < .6)]
        pads = (sides[:2], sides[2:])
        return np.pad(cxr, pads, constant_values=grey), np.pad(mask, pads)
    height, width = cxr.shape
    inset = g.uniform(0, .09, 4) * (g.random(4) < .6)
    corners = np.float32([(inset[0], inset[1]), (1 - inset[2], inset[1]), (1 - inset[2], 1 - inset[3]), (inset[0], 1 - inset[3])])
    corners = (corners + g.normal(0, .01, (4, 2))) * (width, height)
    field = cv2.fillConvexPoly(np.zeros(cxr.shape, np.float32), np.round(corners).astype(np.int32), 1)
    field = cv2.GaussianBlur(field, (0, 0), g.uniform(.3, 1.5))
    return cxr * field + grey * (1 - field), mask           # what lies under a thin frame is still lung


def detector(g, cxr):
    """Blur, noise, coarse grey levels, JPEG."""
    if chance(g, .4):
        cxr = cv2.GaussianBlur(cxr, (0, 0), g.uniform(.3, 2))
    if chance(g, .5):
        noise = g.standard_normal(cxr.shape).astype(np.float32)
        cxr = cxr + g.uniform(0, .08) * (noise if chance(g, .7) else cv2.GaussianBlur(noise, (0, 0), 1) * 2) * (1.3 - cxr)
    if chance(g, .1):
        cxr = np.round(cxr * (levels := int(g.integers(8, 40)))) / levels
    if chance(g, .2):
        cxr = cv2.imdecode(cv2.imencode('.jpg', np.uint8(255 * np.clip(cxr, 0, 1)), [1, int(g.integers(20, 90))])[1], 0) / 255
    return np.clip(cxr, 0, 1).astype(np.float32)


# --- training --------------------------------------------------------------------------------------------------------------------

class Samples(torch.utils.data.Dataset):
    """Samples number first to last - 1."""

    def __init__(self, pool, first, last):
        self.pool, self.first, self.last = pool, first, last

    def __len__(self):
        return self.last - self.first

    def __getitem__(self, index):
        cv2.setNumThreads(0)
        return sample(self.first + index, self.pool)


def loss_of(logits, target):
    """Cross entropy plus 1 - Dice of each image."""
    share = torch.sigmoid(logits)
    overlap, total = (share * target).sum((1, 2, 3)), (share + target).sum((1, 2, 3))
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, target)
    return entropy + (1 - (2 * overlap + 1) / (total + 1)).mean()


def rate_at(step, steps):
    """Learning rate: a short rise, then half a cosine down."""
    return float(RATE * min(1, (step + 1) / WARMUP) * (.5 + .5 * np.cos(np.pi * min(step, steps) / steps)) + 1e-5)


def train(pool, steps, state_path, workers):
    """The averaged weights (name -> tensor) after `steps`; goes on from state_path."""
    torch.manual_seed(0)
    network = LungNet().to(memory_format=torch.channels_last)
    average = {name: value.clone() for name, value in network.state_dict().items()}
    optimiser, step, shown, clock = torch.optim.AdamW(network.parameters(), RATE, weight_decay=1e-4), 0, [], time.time()
    if state_path.is_file():
        state = torch.load(state_path, weights_only=True)
        network.load_state_dict(state['network'])
        optimiser.load_state_dict(state['optimiser'])
        average, step = state['average'], state['step']
    loader = torch.utils.data.DataLoader(Samples(pool, step * BATCH, steps * BATCH), BATCH, num_workers=workers)
    for features, target in loader:
        for group in optimiser.param_groups:
            group['lr'] = rate_at(step, steps)
        loss = loss_of(network(features.contiguous(memory_format=torch.channels_last)), target)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.)
        optimiser.step()
        step += 1
        keep = min(AVERAGE, step / (step + 10))
        for name, value in network.state_dict().items():
            average[name].lerp_(value, 1 - keep)
        shown.append(loss.item())
        if step % 50 == 0:
            print(f'step {step} loss {np.mean(shown[-50:]):.4f} {(time.time() - clock) / 50:.2f} s a step', flush=True)
            clock = time.time()
        if step % SAVE_EVERY == 0 or step == steps:
            state = {'network': network.state_dict(), 'optimiser': optimiser.state_dict(), 'average': average, 'step': step}
            with replacing(state_path) as part:
                torch.save(state, part)
    return average


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path, help='patients and state')
    parser.add_argument('--patients', type=int, default=1500)
    parser.add_argument('--steps', type=int, default=700)
    parser.add_argument('--workers', type=int, default=1)
    parser.add_argument('--out', type=Path, default=Path(__file__).resolve().parents[1] / 'weights' / 'lungs.safetensors')
    asked = parser.parse_args()
    torch.set_num_threads(1)
    weights = train(patients(asked.folder, asked.patients), asked.steps, asked.folder / 'state.pt', asked.workers)
    with replacing(asked.out) as part:
        save_file({name: value.half().contiguous() for name, value in weights.items()}, part)


if __name__ == '__main__':
    main()
