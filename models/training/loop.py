"""The one loop of all trainings: steps, weight average (EMA), validation, log, save, load and resume.

A training hands over its networks, its optimisers and an objective. Everything random in it is a function of (seed,
step, name), and the order of the images one of (seed, epoch). A training that was killed and goes on from its last
state therefore does, to the bit, what it would have done.
"""

import copy
import csv
import math
import time
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from .. import config, images
from ..data import datasets
from ..runtime import processes, training_state
from ..runtime.device import autocast
from ..runtime.files import UserError, replacing
from ..runtime.processes import say
from ..runtime.signals import stop_signals
from . import states
from .batches import data_order, in_order, micro_batches, own_indices
from .interfaces import Noise, Objective, Source
from .pictures import draw_curves
from .rates import learning_rate, plateaus
from .states import Progress
from .validation import validate

MOST_BAD_BATCHES = 10  # batches in a row with a loss or gradient that is not finite, before a training stops
STEPS_A_NOTE = 10  # steps between two updates of the loss that the progress bar shows


class Trainer:
    """Trains networks on a data source until the last epoch, and writes all that `run` promises into one folder."""

    def __init__(
        self,
        folder: str | Path,
        networks: dict[str, nn.Module],
        optimizers: dict[str, torch.optim.Optimizer],
        objective: Objective,
        data: Source,
        validation_data: Source | None,
        *,
        course: config.Course,
        train: config.AnyTraining,
        learning_rates: dict[str, float],
        precision: str = "float32",
        settings: dict[str, object] | None = None,
        fixed: tuple[str, ...] = (),
        facts: dict[str, object] | None = None,
        config_text: str | None = None,
        picture: Callable[[dict], np.ndarray] | None = None,
        finish: Callable[[Any], nn.Module] | None = None,
        patience: int = 0,
        least_rate: float = 0.0,
    ):
        """networks: name -> network; the first one is averaged and exported. optimizers: phase -> optimiser.

        course, train: the sections of the settings that the loop reads.
        learning_rates: phase -> rate in the first epoch.
        settings: dotted key -> value of all that this training reads. A key in `fixed`, or below one, must not change
        between start and resume; a change of the others is reported.
        facts: what else must not change, such as the training images.
        config_text: the settings as config.yaml, written when the folder is this training's.
        picture(networks): (H, W) in [0, 1], drawn now and then.
        finish: applied to a copy of the exported network before it is written.
        patience: epochs without gain after which the rates fall by the course's gamma, but never below least_rate; 0:
        they fall at its milestones alone.
        """
        self.folder = Path(folder)
        self.networks = networks
        self.optimizers = optimizers
        self.objective = objective
        self.data = data
        self.validation_data = validation_data
        self.course = course
        self.train = train
        self.learning_rates = learning_rates
        self.precision = precision
        self.settings = settings or {}
        self.fixed = fixed
        self.facts = facts or {}
        self.config_text = config_text
        self.picture = picture
        self.finish = finish
        self.patience = patience
        self.least_rate = least_rate

        # what the loop itself keeps
        self.main = next(iter(networks))  # name of the network that is averaged and exported
        self.device = next(networks[self.main].parameters()).device
        self.ema: nn.Module | None = None
        # the average starts from the first weights; only update_ema moves it
        if course.average:
            self.ema = copy.deepcopy(networks[self.main]).requires_grad_(False)
        self.parameters: dict[str, list[nn.Parameter]] = {}  # phase -> what its optimiser moves
        for phase, optimizer in optimizers.items():
            self.parameters[phase] = [p for group in optimizer.param_groups for p in group["params"]]
        self.progress = Progress()
        self.bad_in_a_row = 0  # not in Progress: a resumed training counts afresh
        self.saved_at = time.monotonic()  # seconds, by a clock that is never set back

    # --- the loop -----------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Train to the last epoch, from the newest state if there is one. Returns the exit status of the script.

        Writes config.yaml, log.csv, curves.png, samples/, state_<step>.pt, weights.safetensors and best.safetensors.
        """
        first_step = self.resume()
        progress = self.progress
        finished = progress.epoch >= self.course.epochs
        if finished:
            say(f"{self.folder}: already trained for {progress.epoch} epochs")

        # the record of the settings, now that they are those of what follows; a finished training keeps its own
        if not finished or not (self.folder / "config.yaml").is_file():
            self.write_config()

        with stop_signals() as received, self.progress_bar() as bar, datasets.lost_workers():
            while progress.epoch < self.course.epochs:
                status = self.run_epoch(received, bar)
                if status is not None:
                    return status
                self.end_epoch()

        # A finished training that is started once more has nothing new to save. Its last epoch exported the weights, so
        # they are missing only if somebody removed them.
        if first_step == 0 or progress.step > first_step:
            self.save()
        if not (self.folder / "weights.safetensors").is_file():
            self.export("weights.safetensors")
        return 0

    def run_epoch(self, received: list[int], bar: tqdm) -> int | None:
        """Update until the epoch's last batch; the exit status of the script if the training is to stop before."""
        progress = self.progress
        with closing(self.epoch_batches()) as batches:  # closed, the processes that load end, whatever happens here
            for batch, names in batches:
                values = self.update(batch, names)
                if self.bad_in_a_row >= MOST_BAD_BATCHES:
                    say(
                        f"{self.bad_in_a_row} batches in a row gave a loss or gradient that is not finite; the last: "
                        f"{', '.join(names)}. The last good state is kept in {self.folder}"
                    )
                    return 1
                self.show(bar, len(names), values)

                # All processes stop or save after the same step, whichever of them was signalled.
                # Any one's clock may say that a state is due. While batches fail none is written: the last good one is
                # to stay among the two that are kept.
                save_due = time.monotonic() - self.saved_at >= self.train.save_every
                signalled, save_due = processes.all_reduce_max(received[0] if received else 0, save_due)
                if (signalled or save_due) and self.bad_in_a_row == 0:
                    self.save()
                if signalled:
                    say(f"stopped after {progress.step} steps{self.saved_or_not()}; the same command goes on")
                    return 128 + int(signalled)  # a shell's status for a command that a signal ended
        return None

    def saved_or_not(self) -> str:
        """What a stopped training says of its state."""
        if self.bad_in_a_row == 0:
            return " and saved"
        return f", not saved since the last {self.bad_in_a_row} batches failed (it goes on from the state before)"

    def progress_bar(self) -> tqdm:
        """A bar over the images of all epochs, shown by the first process."""
        count = len(self.data.names)
        done = self.progress.epoch * count + self.progress.offset
        return tqdm(total=self.course.epochs * count, initial=done, unit="image", disable=processes.rank() > 0)

    def show(self, bar: tqdm, count: int, values: dict | None) -> None:
        """Move the bar on by a batch of `count` images; every few steps, show its loss."""
        bar.update(count)
        at_end = bar.total is not None and bar.n >= bar.total
        if values and (self.progress.step % STEPS_A_NOTE == 0 or at_end):
            bar.set_postfix_str(f"epoch {self.progress.epoch + 1} loss {float(values['loss']):.4f}", refresh=False)

    def epoch_batches(self) -> Generator[tuple[dict[str, torch.Tensor], list[str]]]:
        """(this process's share of a batch, the names of all its images), from where the epoch stands."""
        # the batches still to come: a resumed epoch begins with the first image that it has not seen
        order = data_order(len(self.data.names), self.train.seed, self.progress.epoch)
        index_lists = in_order(order[self.progress.offset :], self.course.batch_size)
        # every process computes the same lists and loads its own images of them
        own_lists = [own_indices(indices, self.train.accumulate) for indices in index_lists]
        for batch, indices in zip(self.data.batches(own_lists, self.progress.epoch), index_lists):
            yield batch, [self.data.names[index] for index in indices]

    # --- one step -----------------------------------------------------------------------------------------------------

    def update(self, batch: dict, names: list[str]) -> dict[str, float] | None:
        """One step of all optimisers -> the logged values.

        None, and nothing is changed, if a loss or gradient is not finite.
        """
        progress = self.progress
        size = len(names)

        # The forward pass itself moves batch statistics and the codebook, where a bad batch must leave no trace.
        before = [tensor.clone() for tensor in self.moved_by_forward()]
        values, norm = self.gradients(batch, size)
        finite = math.isfinite(norm) and all(math.isfinite(value) for value in values.values())

        if finite:
            # the rate is a function of the epoch, set anew each time, so a changed setting holds at once on resume
            for phase, optimizer in self.optimizers.items():
                for group in optimizer.param_groups:
                    group["lr"] = self.rate(phase)
                optimizer.step()
            self.update_ema()
            # an epoch's mean weighs each image alike, so that a last small batch does not count as a whole one
            for name, value in values.items():
                progress.sums[name] = progress.sums.get(name, 0.0) + value * size
            progress.counted += size
            self.bad_in_a_row = 0
        else:
            # the weights are untouched, since no optimiser has stepped
            for tensor, old in zip(self.moved_by_forward(), before):
                tensor.copy_(old)
            progress.skipped += 1
            self.bad_in_a_row += 1
            say(f"skipped a batch whose loss or gradient is not finite: {', '.join(names)}")

        # a skipped batch counts as well: the next one would otherwise draw the same noise
        progress.step += 1
        progress.offset += size
        return values if finite else None

    def moved_by_forward(self) -> list[torch.Tensor]:
        """The tensors that a forward pass may change: buffers, and parameters that no gradient moves (the codebook)."""
        tensors: list[torch.Tensor] = []
        for network in self.networks.values():
            tensors += network.buffers()
            tensors += [parameter.detach() for parameter in network.parameters() if not parameter.requires_grad]
        return tensors

    def gradients(self, batch: dict, size: int) -> tuple[dict[str, float], float]:
        """Fill .grad for all phases, over micro-batches and processes -> (logged values, norm of all gradients)."""
        # nothing of the last step's gradients; training mode, which validation and sample pictures leave
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        for network in self.networks.values():
            network.train()

        # micro-batches: each adds its share of the batch's mean to the gradients
        totals: dict[str, torch.Tensor] = {}
        start = 0
        for places, shard_weight in micro_batches(size, self.train.accumulate):
            micro_batch = {}
            for name, tensor in batch.items():
                micro_batch[name] = tensor[start : start + len(places)].to(self.device, non_blocking=True)
            start += len(places)
            noise = Noise(self.train.seed, self.progress.step, size, places, self.device)
            # losses are means over the micro-batch; so weighed, their sum is the mean over the whole batch
            weight = shard_weight * len(places) / size
            processes.set_batch_weight(self.networks.values(), shard_weight)
            with autocast(self.device, self.precision):
                losses, logged = self.objective(self.networks, micro_batch, noise)
            # each loss moves its own phase's parameters alone: the adversarial term must not train the discriminator
            for phase, loss in losses.items():
                (loss * weight).backward(inputs=self.parameters[phase])
            for name, value in logged.items():
                totals[name] = totals.get(name, 0) + value.detach().double() * weight  # on the device, so none waits

        # processes: all get the sums
        gradients = []
        for parameters in self.parameters.values():
            gradients += [parameter.grad for parameter in parameters if parameter.grad is not None]
        processes.all_reduce_tensors(gradients)
        processes.all_reduce_tensors(list(totals.values()))

        # One transfer from the device, the only moment of a step at which Python waits for it.
        # The norm only shows whether all gradients are finite, nothing is clipped; its squares cannot overflow float64.
        norms = torch._foreach_norm(gradients)  # pyright: ignore[reportPrivateImportUsage]
        norm = torch.stack(norms).double().norm()
        norm_and_totals = torch.stack([norm, *totals.values()]).tolist()
        return dict(zip(totals, norm_and_totals[1:])), norm_and_totals[0]

    def rate(self, phase: str) -> float:
        """The learning rate of a phase at this moment."""
        rate = learning_rate(self.learning_rates[phase], self.progress.epoch, self.course.milestones, self.course.gamma)
        if self.patience:
            rate = max(rate * self.course.gamma ** plateaus(self.progress.rows, self.patience), self.least_rate)
        return rate

    @torch.no_grad()
    def update_ema(self) -> None:
        """ema <- decay * ema + (1 - decay) * weights, with a decay that grows to the setting's over the first steps."""
        if self.ema is None:
            return
        step = self.progress.step
        # at step n at most (1 + n) / (10 + n), as in TensorFlow's ExponentialMovingAverage: first weights fade fast
        decay = min(self.course.average, (1 + step) / (10 + step))
        network = self.networks[self.main]
        averages: list[torch.Tensor] = list(self.ema.parameters())
        weights: list[torch.Tensor] = list(network.parameters())
        # lerp: ema + (1 - decay) * (weight - ema), all tensors in one call
        torch._foreach_lerp_(averages, weights, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        # buffers are tables or running statistics, which need no second average
        for averaged, current in zip(self.ema.buffers(), network.buffers()):
            averaged.copy_(current)

    # --- after an epoch -----------------------------------------------------------------------------------------------

    def end_epoch(self) -> None:
        """Log the epoch; validate, export and draw if they are due."""
        progress = self.progress
        number = progress.epoch + 1
        last = number >= self.course.epochs
        due = last or number % self.train.validate_every == 0

        # Weights never lie in a folder without a state: a start that finds such weights is refused (see ownership).
        # This state goes on from here, with an epoch of which no image is left.
        if due and not any(self.folder.glob("state_*.pt")):
            self.save()

        # from here on the progress stands at the start of the next epoch
        rate = self.rate(next(iter(self.learning_rates)))  # that of the epoch that ends
        progress.epoch = number
        progress.offset = 0

        # the epoch's row of log.csv; where every batch was skipped, there are no sums and no losses in it
        row = {"epoch": progress.epoch, "step": progress.step, "learning_rate": rate}
        for name, total in progress.sums.items():
            row[name] = total / progress.counted
        progress.sums = {}
        progress.counted = 0

        # validation, and the best epoch so far by its loss
        if due and self.validation_data is not None:
            means = validate(
                {**self.networks, self.main: self.exported()},  # the weights that are exported are the ones judged
                self.objective,
                self.validation_data,
                batch_size=self.course.batch_size,
                seed=self.train.seed,
                device=self.device,
                precision=self.precision,
            )
            row.update(means)
            if row["validation_loss"] < progress.best:
                progress.best = row["validation_loss"]
                self.export("best.safetensors")

        # files for people and for evaluation; a resumed training reads its state alone
        row["skipped"] = progress.skipped
        progress.rows.append(row)
        self.write_log()
        if due:
            self.export("weights.safetensors")
            if processes.rank() == 0:
                draw_curves(progress.rows, self.folder / "curves.png")
        if last or progress.epoch % self.train.sample_every == 0:
            self.draw_sample()

    def exported(self) -> nn.Module:
        """What evaluation uses: the averaged weights if there are any."""
        if self.ema is not None:
            return self.ema
        return self.networks[self.main]

    @torch.no_grad()
    def draw_sample(self) -> None:
        """samples/epoch_<epoch>.png: what the exported weights do by now."""
        if self.picture is None or processes.rank() > 0:
            return
        # a sampler in eval mode; the next step sets training mode again
        networks = {**self.networks, self.main: self.exported().eval()}
        with autocast(self.device, self.precision):
            picture = self.picture(networks)
        images.write(self.folder / "samples" / f"epoch_{self.progress.epoch:04d}.png", picture)

    # --- files --------------------------------------------------------------------------------------------------------

    def export(self, name: str) -> None:
        """Write the exported weights to a file of the folder."""
        if processes.rank() > 0:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        network: Any = copy.deepcopy(self.exported())  # `finish` may change it in place
        if self.finish is not None:
            network = self.finish(network)
        network.save(self.folder / name, epoch=self.progress.epoch, step=self.progress.step)

    def write_config(self) -> None:
        """config.yaml: the settings of this training."""
        if self.config_text is None or processes.rank() > 0:
            return
        with replacing(self.folder / "config.yaml") as temporary:
            temporary.write_text(self.config_text, encoding="utf-8")

    def write_log(self) -> None:
        """log.csv: one row per epoch."""
        if processes.rank() > 0:
            return
        columns: dict[str, None] = {}  # an ordered set: a row may lack what was not validated
        for row in self.progress.rows:
            columns.update(dict.fromkeys(row))
        with replacing(self.folder / "log.csv") as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, list(columns))
            writer.writeheader()
            writer.writerows(self.progress.rows)

    def save(self) -> None:
        """Write state_<step>.pt: everything that is needed to go on. `load` is its mirror image."""
        if processes.rank() == 0:
            state = {
                "settings": self.settings,
                "facts": self.facts,
                "progress": vars(self.progress),
                "networks": {name: network.state_dict() for name, network in self.networks.items()},
                "ema": None if self.ema is None else self.ema.state_dict(),  # resuming may switch the average on or off
                "optimizers": {phase: optimizer.state_dict() for phase, optimizer in self.optimizers.items()},
            }
            training_state.save_state(self.folder, self.progress.step, state)
        # in every process, as each asks its own clock whether a state is due
        self.saved_at = time.monotonic()

    def load(self, state: dict) -> None:
        """Put a state of `save` back."""
        for name, network in self.networks.items():
            network.load_state_dict(state["networks"][name])
        if self.ema is not None:
            without_ema = state["networks"][self.main]  # of a training that had no EMA: it begins here
            self.ema.load_state_dict(state["ema"] or without_ema)
        for phase, optimizer in self.optimizers.items():
            if phase in state["optimizers"]:  # not there: a term whose weight was 0 begins now
                groups = optimizer.state_dict()["param_groups"]  # rates and epsilon as the settings are now
                optimizer.load_state_dict({**state["optimizers"][phase], "param_groups": groups})
        self.progress = Progress(**state["progress"])

    def resume(self) -> int:
        """Go on from the newest whole state. Returns the step that it stands at; 0 if there is none."""
        # half-written files of a killed run go first; without any state this is a new training
        processes.tidy(self.folder, self.folder / "samples")
        found = training_state.newest_state(self.folder, warn=say)
        if found is None:
            self.share_first_weights()
            return 0

        # whatever does not fit, settings or tensors, ends in one line that names the file
        state, path = found
        try:
            states.check(state, path, self.settings, self.facts, self.fixed)
            self.load(state)
        except torch.OutOfMemoryError:  # a RuntimeError as well, but no fault of the file
            raise
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"{path} does not fit this training's networks and optimisers ({reason}); move it away, or "
                "train into another folder (runs=...)"
            ) from None

        # the folder as it was at that state
        if self.progress.rows:
            self.write_log()  # a killed training may have logged epochs after its last state
        if self.progress.epoch < self.course.epochs:
            place = f"epoch {self.progress.epoch + 1} of {self.course.epochs}, step {self.progress.step}"
            say(f"going on from {path} ({place})")
        self.look_for_best()
        return self.progress.step

    def look_for_best(self) -> None:
        """If best.safetensors was removed, let the best epoch from here on take its place.

        The weights that it held are nowhere else.
        """
        path = self.folder / "best.safetensors"
        if math.isinf(self.progress.best) or path.is_file():
            return
        say(
            f"note: {path} is gone, and with it the weights of the best epoch so far; "
            "the best of the epochs that follow will take its place"
        )
        self.progress.best = math.inf

    def share_first_weights(self) -> None:
        """Start all processes from the first one's weights."""
        networks = list(self.networks.values())
        if self.ema is not None:
            networks.append(self.ema)
        for network in networks:
            processes.broadcast(network.state_dict().values())
