"""One loop for all three trainings: devices, precision, average, log, save, resume.

A training hands over its networks, optimisers and an objective; everything random in it is a function of (seed, step, name)
and the data order one of (seed, epoch), so a training that was killed and goes on from its last state does, to the bit, what
it would have done.
"""
import copy
import csv
import math
import signal
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from .. import images
from ..runtime import checkpoint, processes
from ..runtime.device import autocast
from ..runtime.files import UserError, replacing
from ..runtime.processes import say

MOST_BAD_BATCHES = 10  # that are not finite, one after the other, before a training stops


class Source(Protocol):
    """Training or validation data: items by index, in batches."""
    names: list[str]

    def batches(self, index_lists: list[list[int]], epoch: int = 0) -> Iterator[dict[str, torch.Tensor]]:
        """The items of each list, stacked on the first axis, as they are in this epoch."""


@dataclass(frozen=True)
class Plan:
    """The settings of a training that belong to the loop."""
    folder: Path
    epochs: int
    batch_size: int          # over all processes
    learning_rates: dict     # phase -> rate at the start
    milestones: tuple        # epochs at which the rates fall
    gamma: float             # by this factor
    average: float           # decay of the weight average; 0: none
    seed: int
    accumulate: int          # parts of a batch
    validate_every: int      # epochs
    sample_every: int        # epochs
    save_every: float        # seconds
    precision: str           # bf16 or float32
    others: dict = field(default_factory=dict)  # settings of the objective that may change, told where they do


def make_plan(folder: Path, chosen, train, learning_rates: dict, precision: str, **others) -> Plan:
    """The plan that the settings of a network (vqgan, ldm, lcm) and of training make together."""
    return Plan(folder=folder, learning_rates=learning_rates, precision=precision, others=others, epochs=chosen.epochs,
                batch_size=chosen.batch_size, milestones=chosen.milestones, gamma=chosen.gamma, average=chosen.average, seed=train.seed,
                accumulate=train.accumulate, validate_every=train.validate_every, sample_every=train.sample_every,
                save_every=train.save_every)


@dataclass
class Progress:
    """Where a training stands; all of it is stored in its states."""
    step: int = 0            # updates done, or skipped
    epoch: int = 0
    offset: int = 0          # images of this epoch already seen
    skipped: int = 0         # batches that were not finite
    best: float = math.inf   # lowest validation loss
    sums: dict = field(default_factory=dict)   # of this epoch's losses, each times its images
    counted: int = 0         # images in those sums
    rows: list = field(default_factory=list)   # log.csv


class Noise:
    """Random numbers of some images of a batch as a function of (seed, step, name), drawn for the whole batch and then picked."""

    def __init__(self, seed: int, step: int | str, size: int, places: list[int], device: torch.device):
        self.key, self.size, self.places, self.device = f"{seed}/{step}", size, places, device

    def _generator(self, name: str) -> torch.Generator:
        return torch.Generator().manual_seed(zlib.crc32(f"{self.key}/{name}".encode()))

    def normal(self, name: str, *shape: int) -> torch.Tensor:
        """Standard normal (places, *shape)."""
        return torch.randn(self.size, *shape, generator=self._generator(name))[self.places].to(self.device)

    def integers(self, name: str, high: int) -> torch.Tensor:
        """Uniform integers 0..high-1 (places,)."""
        return torch.randint(high, (self.size,), generator=self._generator(name))[self.places].to(self.device)


# objective(networks, batch, noise) -> (phase -> loss to minimise, name -> value to log); all means over the batch
Objective = Callable[[dict, dict, Noise], tuple[dict, dict]]


def data_order(count: int, seed: int, epoch: int) -> list[int]:
    """The order of an epoch's images."""
    return np.random.default_rng((seed, epoch)).permutation(count).tolist()


def learning_rate(start: float, epoch: int, milestones: tuple, gamma: float) -> float:
    """start * gamma ** (milestones reached)."""
    return start * gamma ** sum(epoch >= milestone for milestone in milestones)


def part_size(batch_size: int, accumulate: int) -> int:
    """Images that a process has of a part of a batch, at most."""
    return -(-batch_size // accumulate // processes.world_size())  # rounded up


def started(network: nn.Module, path: str | None) -> nn.Module:
    """A fresh network with the weights of a file, from which its training starts, or as it is. UserError where they do not fit."""
    if path:
        state, *_ = checkpoint.read_weights(path)
        checkpoint.fit(network, state, path)
        network.load_state_dict(state)
    return network


class Trainer:
    """Runs a plan. `networks`: name -> network, the first is what is exported; `optimizers`: phase -> optimiser;
    `identity`: settings that must not change between start and resume; `picture(networks)`: (H, W) in [0, 1].
    """

    def __init__(self, plan: Plan, networks: dict[str, nn.Module], optimizers: dict, objective: Objective, train: Source,
                 validation: Source | None, identity: dict, picture: Callable | None = None, finish: Callable | None = None):
        self.plan, self.networks, self.optimizers, self.objective = plan, networks, optimizers, objective
        self.train, self.validation, self.identity, self.picture = train, validation, identity, picture
        self.finish = finish or (lambda network: network)  # applied to a copy of the network before it is exported
        self.main = next(iter(networks))
        self.device = next(networks[self.main].parameters()).device
        self.average = copy.deepcopy(networks[self.main]).requires_grad_(False) if plan.average else None
        self.progress = Progress()
        self.parameters = {phase: [p for group in optimizer.param_groups for p in group["params"]]
                           for phase, optimizer in optimizers.items()}
        self.bad_in_a_row = 0
        self.saved_at = time.monotonic()

    def run(self) -> int:
        """Train to the end, from the last state where there is one. Returns the exit status of the script."""
        resumed = self.resume()
        progress, count = self.progress, len(self.train.names)
        if progress.epoch >= self.plan.epochs:
            say(f"{self.plan.folder}: already trained for {progress.epoch} epochs")
        with stop_signals() as stop, tqdm(total=self.plan.epochs * count, unit="image", disable=processes.rank() > 0,
                                          initial=progress.epoch * count + progress.offset) as bar:
            while progress.epoch < self.plan.epochs:
                for batch, names in self.epoch_batches():
                    values = self.update(batch, names)
                    if values is None and self.bad_in_a_row >= MOST_BAD_BATCHES:
                        say(f"{self.bad_in_a_row} batches in a row gave a loss or gradient that is not finite; the last: "
                            f"{', '.join(names)}. The last good state is kept in {self.plan.folder}")
                        return 1
                    bar.update(len(names))
                    if values and (progress.step % 10 == 0 or bar.n >= bar.total):
                        bar.set_postfix_str(f"epoch {progress.epoch + 1} loss {float(values['loss']):.4f}", refresh=False)
                    signalled, due = processes.all_reduce_max(stop[0] if stop else 0, time.monotonic() - self.saved_at >= self.plan.save_every)
                    if signalled or due and self.bad_in_a_row == 0:
                        self.save()
                    if signalled:
                        say(f"stopped after {progress.step} steps and saved; the same command goes on")
                        return 128 + int(signalled)
                self.end_epoch()
        if not resumed or self.progress.step > resumed:
            self.save()
        if not (self.plan.folder / "weights.safetensors").is_file():
            self.export("weights.safetensors")
        return 0

    def epoch_batches(self):
        """(this process's share of a batch, the names of all its images) from where the epoch stands."""
        plan, progress = self.plan, self.progress
        order = data_order(len(self.train.names), plan.seed, progress.epoch)
        lists = [order[start:start + plan.batch_size] for start in range(progress.offset, len(order), plan.batch_size)]
        mine = [[indices[place] for places, _ in self.parts(len(indices)) for place in places] for indices in lists]
        for batch, indices in zip(self.train.batches(mine, progress.epoch), lists):
            yield batch, [self.train.names[i] for i in indices]

    def parts(self, size: int) -> list[tuple[list[int], float]]:
        """This process's places in each part of a batch, and their weight (see processes.shard)."""
        bounds = [round(i * size / self.plan.accumulate) for i in range(self.plan.accumulate + 1)]
        shards = [(start, *processes.shard(stop - start)) for start, stop in zip(bounds, bounds[1:]) if start < stop]
        return [([start + place for place in places], weight) for start, places, weight in shards]

    def update(self, batch: dict, names: list[str]) -> dict | None:
        """One step of all optimisers; None, and nothing changed, where a loss or gradient is not finite."""
        plan, progress, size = self.plan, self.progress, len(names)
        buffers = {name: [b.clone() for b in network.buffers()] + [p.detach().clone() for p in frozen(network)]
                   for name, network in self.networks.items()}
        values, norm = self.gradients(batch, size)
        finite = math.isfinite(norm) and all(math.isfinite(value) for value in values.values())
        if finite:
            for phase, optimizer in self.optimizers.items():
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(plan.learning_rates[phase], progress.epoch, plan.milestones, plan.gamma)
                optimizer.step()
            self.update_average()
            for name, value in values.items():
                progress.sums[name] = progress.sums.get(name, 0.0) + value * size
            progress.counted += size
        else:
            for name, network in self.networks.items():
                for current, before in zip([*network.buffers(), *frozen(network)], buffers[name]):
                    current.data.copy_(before)
            progress.skipped += 1
            say(f"skipped a batch whose loss or gradient is not finite: {', '.join(names)}")
        self.bad_in_a_row = 0 if finite else self.bad_in_a_row + 1
        progress.step += 1
        progress.offset += size
        return values if finite else None

    def gradients(self, batch: dict, size: int) -> tuple[dict[str, float], float]:
        """Fill .grad of all phases, summed over parts and processes -> (logged values, norm of all gradients)."""
        plan, start = self.plan, 0
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        totals: dict[str, torch.Tensor] = {}
        for network in self.networks.values():
            network.train()
        for places, batch_weight in self.parts(size):
            part = {name: tensor[start:start + len(places)].to(self.device, non_blocking=True) for name, tensor in batch.items()}
            start += len(places)
            noise = Noise(plan.seed, self.progress.step, size, places, self.device)
            weight = batch_weight * len(places) / size
            processes.set_batch_weight(self.networks.values(), batch_weight)
            with autocast(self.device, plan.precision):
                losses, logged = self.objective(self.networks, part, noise)
            for phase, loss in losses.items():
                (loss * weight).backward(inputs=self.parameters[phase])
            for name, value in logged.items():
                totals[name] = totals.get(name, 0) + value.detach().double() * weight
        gradients = [p.grad for parameters in self.parameters.values() for p in parameters if p.grad is not None]
        processes.all_reduce_tensors(gradients)
        processes.all_reduce_tensors(list(totals.values()))
        norms = torch.stack(torch._foreach_norm(gradients)).double().norm()
        numbers = torch.stack([norms, *totals.values()]).tolist()  # the one synchronisation of a step
        return dict(zip(totals, numbers[1:])), numbers[0]

    @torch.no_grad()
    def update_average(self) -> None:
        """average <- d average + (1 - d) weights, with d growing to its value over the first steps."""
        if self.average is None:
            return
        decay = min(self.plan.average, (1 + self.progress.step) / (10 + self.progress.step))
        ours, theirs = list(self.average.parameters()), list(self.networks[self.main].parameters())
        torch._foreach_lerp_(ours, theirs, 1 - decay)
        for mine, other in zip(self.average.buffers(), self.networks[self.main].buffers()):
            mine.copy_(other)

    def end_epoch(self) -> None:
        """Log, and where it is time validate, draw and export."""
        plan, progress = self.plan, self.progress
        progress.epoch, progress.offset = progress.epoch + 1, 0
        last = progress.epoch >= plan.epochs
        row = {"epoch": progress.epoch, "step": progress.step,
               "learning_rate": learning_rate(next(iter(plan.learning_rates.values())), progress.epoch - 1, plan.milestones, plan.gamma),
               **{name: total / progress.counted for name, total in progress.sums.items()}}
        progress.sums, progress.counted = {}, 0
        due = last or progress.epoch % plan.validate_every == 0
        if due and self.validation is not None:
            row.update(self.validate())
            if row["validation_loss"] < progress.best:
                progress.best = row["validation_loss"]
                self.export("best.safetensors")
        row["skipped"] = progress.skipped
        progress.rows.append(row)
        self.write_log()
        if due:
            self.export("weights.safetensors")
            if processes.rank() == 0:
                draw_curves(progress.rows, plan.folder / "curves.png")
        if self.picture and processes.rank() == 0 and (last or progress.epoch % plan.sample_every == 0):
            with torch.no_grad(), autocast(self.device, plan.precision):
                picture = self.picture({**self.networks, self.main: self.exported().eval()})
            images.write(plan.folder / "samples" / f"epoch_{progress.epoch:04d}.png", picture)

    def exported(self) -> nn.Module:
        """What evaluation uses: the averaged weights where there are any."""
        return self.average if self.average is not None else self.networks[self.main]

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The means of the objective's values over the validation images, with the exported weights and noise that stays the same."""
        networks = {**self.networks, self.main: self.exported()}
        for network in networks.values():
            network.eval()
        count, size = len(self.validation.names), self.plan.batch_size
        lists = [list(range(start, min(start + size, count))) for start in range(0, count, size)][processes.rank()::processes.world_size()]
        totals: dict[str, float] = {}
        for indices, batch in zip(lists, self.validation.batches(lists)):
            batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
            noise = Noise(self.plan.seed, "validation", count, indices, self.device)
            with autocast(self.device, self.plan.precision):
                _, logged = self.objective(networks, batch, noise)
            for name, value in logged.items():
                totals[name] = totals.get(name, 0.0) + float(value) * len(indices) / count
        gathered = processes.all_gather_objects(totals)  # from each process, some of which may have had nothing
        return {f"validation_{name}": sum(part.get(name, 0.0) for part in gathered) for name in gathered[0]}

    def export(self, name: str) -> None:
        if processes.rank() == 0:
            self.plan.folder.mkdir(parents=True, exist_ok=True)
            self.finish(copy.deepcopy(self.exported())).save(self.plan.folder / name, epoch=self.progress.epoch, step=self.progress.step)

    def save(self) -> None:
        """Write all that is needed to go on."""
        if processes.rank() == 0:
            state = {"identity": self.identity, "progress": vars(self.progress),
                     "networks": {name: network.state_dict() for name, network in self.networks.items()},
                     "average": self.average.state_dict() if self.average is not None else None,
                     "optimizers": {phase: optimizer.state_dict() for phase, optimizer in self.optimizers.items()},
                     "plan": {**vars(self.plan), "folder": str(self.plan.folder)}}
            checkpoint.save_state(self.plan.folder, self.progress.step, state)
        self.saved_at = time.monotonic()

    def resume(self) -> int:
        """Put the newest whole state back; the step that it stands at, 0 where there is none."""
        processes.tidy(self.plan.folder, self.plan.folder / "samples")
        found = checkpoint.newest_state(self.plan.folder, warn=say)
        if found is None:
            kept = [*self.networks.values()] + ([self.average] if self.average is not None else [])
            processes.broadcast(tensor for network in kept for tensor in network.state_dict().values())
            return 0
        state, path = found
        for key in sorted(self.identity.keys() | state["identity"].keys()):
            before, now = state["identity"].get(key), self.identity.get(key)
            if before != now:
                raise UserError(f"{path} was trained with {key}={before}, now it is {now}; set it back, or train into another "
                                "folder (runs=...)")
        before, now = flat({**state["plan"], "folder": ""}), flat({**vars(self.plan), "folder": ""})
        for key in [key for key in now if before.get(key) != now[key]]:
            say(f"{key} changed from {before.get(key)} to {now[key]}")
        for name, network in self.networks.items():
            network.load_state_dict(state["networks"][name])
        if self.average is not None:
            self.average.load_state_dict(state["average"] or state["networks"][self.main])
        for phase, optimizer in self.optimizers.items():
            groups = optimizer.state_dict()["param_groups"]  # as the settings are now
            optimizer.load_state_dict({**state["optimizers"][phase], "param_groups": groups})
        self.progress = Progress(**state["progress"])
        if self.progress.rows:
            self.write_log()
        say(f"going on from {path} (epoch {self.progress.epoch + 1} of {self.plan.epochs}, step {self.progress.step})")
        return self.progress.step

    def write_log(self) -> None:
        """log.csv: a row an epoch."""
        if processes.rank() > 0:
            return
        columns = list(dict.fromkeys(name for row in self.progress.rows for name in row))
        with replacing(self.plan.folder / "log.csv") as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.progress.rows)


def flat(settings: dict) -> dict:
    """{"rates": {"unet": 1}} -> {"rates unet": 1}."""
    inner = {f"{key} {name}": item for key, value in settings.items() if isinstance(value, dict) for name, item in value.items()}
    return {**{key: value for key, value in settings.items() if not isinstance(value, dict)}, **inner}


def frozen(network: nn.Module) -> list[nn.Parameter]:
    """Parameters that no gradient moves: a codebook learnt by moving average."""
    return [parameter for parameter in network.parameters() if not parameter.requires_grad]


@contextmanager
def stop_signals():
    """A list that is empty until SIGINT or SIGTERM arrives and then holds its number; a second Ctrl-C stops at once.

    Not so under torchrun: there each Ctrl-C arrives twice, from the terminal and from torchrun, which kills after 30 seconds.
    """
    received: list[int] = []

    def note(number, frame):
        received.append(number)
        if processes.world_size() == 1:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def grid(*columns: torch.Tensor) -> np.ndarray:
    """Images (B, 1, H, W) in [-1, 1] side by side, a row for each of the batch -> (B H, columns W) in [0, 1]."""
    wide = torch.cat([column.float().cpu() for column in columns], 3)
    return images.to_unit(wide.flatten(0, 2)).clamp(0, 1).numpy()


def draw_curves(rows: list[dict], path: Path) -> None:
    """Each logged value against the epoch, training and validation together."""
    from matplotlib.figure import Figure

    names = [name for name in dict.fromkeys(n for row in rows for n in row)
             if name not in ("epoch", "step", "learning_rate", "skipped") and not name.startswith("validation_")]
    if not names:  # every batch so far was skipped
        return
    figure = Figure(figsize=(4 * len(names), 3.2), layout="constrained")
    for axes, name in zip(np.atleast_1d(figure.subplots(1, len(names))), names):
        for key, label in ((name, "training"), (f"validation_{name}", "validation")):
            points = [(row["epoch"], row[key]) for row in rows if key in row]
            if points:
                axes.plot(*zip(*points), label=label, marker="." if len(points) < 30 else None)
        axes.set(title=name.replace("_", " "), xlabel="epoch", yscale="log" if all(row.get(name, 1) > 0 for row in rows) else "linear")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
