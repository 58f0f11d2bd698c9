"""The training loop: what is resumed, skipped, averaged, logged, refused. On a straight line fitted to noisy points."""

import copy
import csv
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from models import config, losses, schedulers
from models.runtime import checkpoint
from models.runtime.checkpoint import Network
from models.runtime.device import pick_device, pick_precision
from models.runtime.files import UserError
from models.training import autoencoder, batches, interfaces, loop, ownership, rates, states
from models.unet import ConditionalUNet
from models.vqgan import MLVQGAN

ROOT = Path(__file__).resolve().parent.parent


class Line(Network):
    """y = a x, with dropped-out noise so that a wrong noise order would show."""

    def __init__(self, slope: float = 0.0):
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor([slope]))

    def forward(self, x):
        return self.a * x


class Points:
    """Fourteen points on y = 2 x; the one at `bad` is not a number."""

    def __init__(self, bad: int | None = None):
        self.x = torch.linspace(-1, 1, 14)
        self.y = 2 * self.x
        self.names = [f"point{i}" for i in range(14)]
        self.seen: list[list[int]] = []
        if bad is not None:
            self.y = torch.where(torch.arange(14) == bad, torch.nan, self.y)

    def batches(self, index_lists, epoch=0):
        for indices in index_lists:
            self.seen.append(indices)
            yield {"x": self.x[indices], "y": self.y[indices]}


def objective(networks, batch, noise):
    x = batch["x"] + 0.1 * noise.normal("jitter")
    loss = (networks["line"](x) - batch["y"]).square().mean()
    return {"line": loss}, {"loss": loss}


COURSE = {
    "epochs": 6,
    "batch_size": 4,
    "learning_rate": 0.1,
    "milestones": (4,),
    "gamma": 0.1,
    "average": 0.9,
    "start": None,
}
TRAIN = {
    "seed": 0,
    "workers": 0,
    "accumulate": 1,
    "checkpointing": False,
    "validate_every": 2,
    "sample_every": 3,
    "save_every": 1e9,
}


def make(
    folder,
    *,
    source=None,
    objective=objective,
    network=None,
    settings=None,
    fixed=(),
    facts=None,
    config_text=None,
    **changes,
):
    """A trainer of a line; `changes`: of COURSE and TRAIN."""
    network = network or Line()
    course = config.Course(**{key: changes.pop(key, value) for key, value in COURSE.items()})
    train = config.AnyTraining(**{key: changes.pop(key, value) for key, value in TRAIN.items()})
    assert not changes
    optimizer = torch.optim.Adam(p for p in network.parameters() if p.requires_grad)
    return loop.Trainer(
        folder,
        {"line": network},
        {"line": optimizer},
        objective,
        source or Points(),
        Points(),
        course=course,
        train=train,
        learning_rates={"line": course.learning_rate},
        settings=settings or vars(course) | vars(train),
        fixed=fixed,
        facts=facts,
        config_text=config_text,
        picture=lambda networks: np.full((4, 6), 0.5),
    )


def contents(folder):
    """Everything that must not depend on interruptions."""
    newest = sorted(Path(folder).glob("state_*.pt"))[-1]
    return {
        "state": torch.load(newest, weights_only=True),
        "log": (Path(folder) / "log.csv").read_bytes(),
        "weights": (Path(folder) / "weights.safetensors").read_bytes(),
        "best": (Path(folder) / "best.safetensors").read_bytes(),
    }


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b))


HOLDER = """
import os, sys, time
from pathlib import Path
from models.training import ownership
with ownership.owned(Path(sys.argv[1]), "ldm.start"):
    if os.fork() == 0:  # as a process that loads images
        time.sleep(30)
        os._exit(0)
    print("mine", flush=True)
    time.sleep(60)
"""


class Killed(BaseException):
    """As kill -9 would: nothing runs after it."""


@pytest.mark.slow
def test_it_learns_and_writes_what_it_promises(tmp_path):
    trainer = make(tmp_path, epochs=40, milestones=(), validate_every=4)
    assert trainer.run() == 0
    assert float(trainer.networks["line"].a) == pytest.approx(2, abs=0.1)
    assert {"log.csv", "curves.png", "samples", "weights.safetensors", "best.safetensors"} <= {
        path.name for path in tmp_path.iterdir()
    }
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert len(rows) == 40 and float(rows[-1]["loss"]) < 0.1 * float(rows[0]["loss"])
    assert rows[3]["validation_loss"] and not rows[2]["validation_loss"]
    assert Line.load(tmp_path / "weights.safetensors").a == trainer.ema.a
    assert [path.name for path in sorted((tmp_path / "samples").iterdir())][:2] == ["epoch_0003.png", "epoch_0006.png"]


@pytest.mark.slow
@pytest.mark.parametrize("killed_at", [1, 3, 4, 9, 23])
def test_killed_at_any_step_it_ends_as_if_it_had_not_been(tmp_path, killed_at):
    make(tmp_path / "whole").run()
    calls = []

    def deadly(networks, batch, noise):
        calls.append(1)
        if len(calls) == killed_at:
            raise Killed
        return objective(networks, batch, noise)

    with pytest.raises(Killed):
        make(tmp_path / "killed", objective=deadly, save_every=0).run()
    assert make(tmp_path / "killed").run() == 0
    whole, killed = contents(tmp_path / "whole"), contents(tmp_path / "killed")
    assert same({**whole["state"], "settings": 0}, {**killed["state"], "settings": 0})
    assert all(whole[name] == killed[name] for name in ("log", "weights", "best"))


def test_the_order_is_a_function_of_seed_and_epoch():
    first, second = batches.data_order(14, 0, 1), batches.data_order(14, 0, 2)
    assert (
        sorted(first) == list(range(14))
        and first != second
        and first == batches.data_order(14, 0, 1) != batches.data_order(14, 1, 1)
    )


def test_noise_is_a_function_of_seed_step_and_name_and_of_the_place_in_the_batch():
    cpu = torch.device("cpu")
    whole = interfaces.Noise(0, 5, 6, list(range(6)), cpu)
    mine = interfaces.Noise(0, 5, 6, [1, 3, 5], cpu)
    assert torch.equal(whole.normal("a", 2, 3)[1::2], mine.normal("a", 2, 3))
    assert torch.equal(mine.integers("t", 1000), whole.integers("t", 1000)[[1, 3, 5]])
    assert not torch.equal(whole.normal("a"), whole.normal("b"))
    assert not torch.equal(whole.normal("a"), interfaces.Noise(0, 6, 6, list(range(6)), cpu).normal("a"))


@pytest.mark.slow
def test_a_damaged_newest_state_is_passed_over(tmp_path, capsys):
    make(tmp_path / "whole").run()
    make(tmp_path / "damaged", epochs=3, save_every=0).run()
    states = sorted((tmp_path / "damaged").glob("state_*.pt"))
    assert len(states) == 2
    states[-1].write_bytes(states[-1].read_bytes()[:500])
    assert make(tmp_path / "damaged").run() == 0
    assert "passing over" in capsys.readouterr().err
    assert contents(tmp_path / "whole")["log"] == contents(tmp_path / "damaged")["log"]


@pytest.mark.slow
def test_no_whole_state_is_never_a_quiet_fresh_start(tmp_path):
    make(tmp_path, epochs=1).run()
    for state in tmp_path.glob("state_*.pt"):
        state.write_bytes(b"")
    with pytest.raises(UserError, match="is whole"):
        make(tmp_path).run()


@pytest.mark.slow
def test_a_bad_batch_changes_nothing_and_is_counted(tmp_path, capsys):
    trainer = make(tmp_path, source=Points(bad=7), epochs=4)
    assert trainer.run() == 0
    assert (
        trainer.progress.skipped == 4 and torch.isfinite(trainer.networks["line"].a) and torch.isfinite(trainer.ema.a)
    )
    assert "point7" in capsys.readouterr().err
    assert list(csv.DictReader((tmp_path / "log.csv").open()))[-1]["skipped"] == "4"


def test_a_bad_batch_does_not_reach_the_codebook(tmp_path):
    torch.manual_seed(0)
    vqgan = MLVQGAN(channels=(8,), residual_channels=8, residual_layers=1, codes=16)

    def explode(networks, batch, noise):
        reconstruction, commitment = networks["line"](batch["x"])
        loss = reconstruction.square().mean() / 0 + commitment
        return {"line": loss}, {"loss": loss}

    trainer = make(tmp_path, network=vqgan, objective=explode, average=0.0)
    before = copy.deepcopy(vqgan.state_dict())
    assert trainer.update({"x": torch.rand(2, 1, 8, 8)}, ["a", "b"]) is None
    assert same(before, vqgan.state_dict())


def test_ten_bad_batches_in_a_row_stop_the_training_with_their_names(tmp_path, capsys):
    class Bad(Points):
        def __init__(self):
            super().__init__()
            self.y = self.y * torch.nan

    trainer = make(tmp_path, source=Bad())
    assert trainer.run() == 1
    assert trainer.progress.step == 10 and "point" in capsys.readouterr().err


@pytest.mark.slow
def test_what_may_not_change_stops_the_run_with_both_values(tmp_path):
    make(
        tmp_path, epochs=1, settings={"unet.width": 32, "unet_x": 1}, fixed=("unet",), facts={"images": "14 points"}
    ).run()
    with pytest.raises(UserError, match="images=14 points, now it is 15 points"):
        make(tmp_path, settings={"unet.width": 32, "unet_x": 1}, fixed=("unet",), facts={"images": "15 points"}).run()
    with pytest.raises(UserError, match="unet.width=32, now it is 64"):
        make(tmp_path, settings={"unet.width": 64, "unet_x": 1}, fixed=("unet",), facts={"images": "14 points"}).run()
    make(tmp_path, settings={"unet.width": 32, "unet_x": 2}, fixed=("unet",), facts={"images": "14 points"}).run()


@pytest.mark.slow
def test_what_may_change_changes_and_is_reported_as_it_is_typed(tmp_path, capsys):
    make(tmp_path, epochs=2).run()
    trainer = make(tmp_path, epochs=5, batch_size=7, learning_rate=0.01, milestones=(1, 2), checkpointing=True)
    assert trainer.run() == 0
    reported = capsys.readouterr().err
    assert "epochs changed from 2 to 5\n" in reported and "batch_size changed from 4 to 7\n" in reported
    assert (
        "milestones changed from [4] to [1, 2]\n" in reported
        and "checkpointing changed from false to true\n" in reported
    )
    assert trainer.progress.epoch == 5 and trainer.progress.step == 2 * 4 + 3 * 2


@pytest.mark.slow
def test_settings_of_objective_and_optimiser_change_too(tmp_path, capsys):
    make(tmp_path, epochs=1, settings={"vqgan.loss.pixel": "mse"}).run()
    trainer = make(tmp_path, epochs=2, settings={"vqgan.loss.pixel": "l1"})
    trainer.optimizers["line"].param_groups[0]["eps"] = 1e-3
    assert trainer.run() == 0 and "vqgan.loss.pixel changed from mse to l1\n" in capsys.readouterr().err
    assert (
        trainer.optimizers["line"].param_groups[0]["eps"] == 1e-3
        and trainer.optimizers["line"].state[trainer.networks["line"].a]["step"] == 8
    )


@pytest.mark.slow
def test_the_record_of_the_settings_is_of_what_was_trained(tmp_path):
    """A start that is refused, or finds nothing to do, leaves the config.yaml of what was trained."""
    record = tmp_path / "config.yaml"
    make(tmp_path, epochs=1, facts={"images": 14}, config_text="first").run()
    assert record.read_text() == "first"
    with pytest.raises(UserError, match="images=14"):
        make(tmp_path, epochs=2, facts={"images": 15}, config_text="refused").run()
    make(tmp_path, epochs=1, learning_rate=5.0, facts={"images": 14}, config_text="nothing to do").run()
    assert record.read_text() == "first"
    make(tmp_path, epochs=2, facts={"images": 14}, config_text="went on").run()
    assert record.read_text() == "went on"
    record.unlink()
    make(tmp_path, epochs=2, facts={"images": 14}, config_text="made again").run()
    assert record.read_text() == "made again"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork, and no POSIX locks")
def test_a_folder_is_one_trainings_and_a_killed_one_gives_it_back_at_once(tmp_path):
    held = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    try:
        assert held.stdout.readline() == "mine\n"
        with (
            pytest.raises(UserError, match="another training is at work in .*run"),
            ownership.owned(tmp_path / "run", "ldm.start"),
        ):
            raise AssertionError("two own it")
        held.kill()
        held.wait()  # the process that it forked lives on
        with ownership.owned(tmp_path / "run", "ldm.start"):
            pass
    finally:
        os.killpg(held.pid, signal.SIGKILL)


def test_where_there_are_no_locks_it_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ownership, "fcntl", None)
    with ownership.owned(tmp_path, "ldm.start"):
        assert "no file locks" in capsys.readouterr().err


@pytest.mark.slow
def test_weights_without_a_state_are_not_overwritten(tmp_path):
    make(tmp_path, epochs=2).run()
    with ownership.owned(tmp_path, "ldm.start"):
        pass
    for state in tmp_path.glob("state_*.pt"):
        state.unlink()
    with pytest.raises(UserError, match="no state_.* go on from; remove .*runs=.*ldm.start=.*weights.safetensors"):
        with ownership.owned(tmp_path, "ldm.start"):
            raise AssertionError("started afresh")


def test_files_of_others_in_a_trainings_folder_are_not_overwritten(tmp_path):
    make(tmp_path, epochs=1, config_text=config.to_yaml(config.parse("", (), []))).run()
    for state in tmp_path.glob("state_*.pt"):
        state.unlink()
    ownership.refuse_foreign(tmp_path)  # what a training leaves that was killed before its first state
    for name in ("config.yaml", "log.csv"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_text("mine: 1")
        with pytest.raises(UserError, match=f"{name} is there already and no training wrote it"):
            ownership.refuse_foreign(tmp_path)
        (tmp_path / name).write_bytes(content)


@pytest.mark.slow
def test_weights_of_a_training_killed_before_its_first_state_is_due_have_one(tmp_path):
    """Killed in the validation of epoch 4, whose weights and those of epoch 2 no state of `save_every` belongs to."""
    make(tmp_path / "whole").run()
    validated = []

    def deadly(networks, batch, noise):
        if not torch.is_grad_enabled():
            validated.append(1)
            if len(validated) == 6:  # four batches each time
                raise Killed
        return objective(networks, batch, noise)

    with pytest.raises(Killed):
        make(tmp_path / "killed", objective=deadly).run()
    assert (tmp_path / "killed" / "weights.safetensors").is_file()
    with ownership.owned(tmp_path / "killed", "ldm.start"):
        assert make(tmp_path / "killed").run() == 0
    assert same(contents(tmp_path / "whole"), contents(tmp_path / "killed"))


@pytest.mark.slow
def test_a_batch_size_changed_in_the_middle_of_an_epoch_sees_every_image_once(tmp_path):
    source = Points()

    def deadly(networks, batch, noise):
        if len(source.seen) == 3:
            raise Killed
        return objective(networks, batch, noise)

    with pytest.raises(Killed):
        make(tmp_path, epochs=1, source=source, objective=deadly, save_every=0).run()
    later = Points()
    make(tmp_path, epochs=1, source=later, batch_size=3).run()
    assert sorted(sum(source.seen[:2], []) + sum(later.seen, [])) == list(range(14))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_saves_and_says_so(tmp_path, capsys, number):
    make(tmp_path / "whole").run()
    calls, before = [], signal.getsignal(number)

    def interrupted(networks, batch, noise):
        calls.append(1)
        if len(calls) == 6:
            assert threading.current_thread() is threading.main_thread()
            os.kill(os.getpid(), number)
        return objective(networks, batch, noise)

    assert make(tmp_path / "stopped", objective=interrupted).run() == 128 + number
    assert len(calls) == 6 and "the same command goes on" in capsys.readouterr().err
    assert signal.getsignal(number) == before
    assert make(tmp_path / "stopped").run() == 0
    assert same(contents(tmp_path / "whole"), contents(tmp_path / "stopped"))


@pytest.mark.slow
def test_a_signal_while_batches_fail_leaves_the_last_good_states(tmp_path, capsys):
    """Each stop would otherwise push one of the two states that are kept out of the folder."""
    make(tmp_path, epochs=1).run()
    good = {path.name: path.read_bytes() for path in tmp_path.glob("state_*.pt")}

    def failing(networks, batch, noise):
        os.kill(os.getpid(), signal.SIGTERM)
        loss = networks["line"](batch["x"]).mean() * math.nan
        return {"line": loss}, {"loss": loss}

    for _ in range(3):
        assert make(tmp_path, objective=failing).run() == 143
        assert "not saved since the last 1 batches failed" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.glob("state_*.pt")} == good


@pytest.mark.slow
def test_a_signal_during_validation_loses_nothing(tmp_path):
    make(tmp_path / "whole").run()
    sent = []

    def interrupted(networks, batch, noise):
        if not torch.is_grad_enabled() and not sent:
            sent.append(os.kill(os.getpid(), signal.SIGTERM))
        return objective(networks, batch, noise)

    assert make(tmp_path / "stopped", objective=interrupted).run() == 143 and sent
    assert contents(tmp_path / "stopped")["state"]["progress"]["best"] < math.inf
    assert make(tmp_path / "stopped").run() == 0
    assert same(contents(tmp_path / "whole"), contents(tmp_path / "stopped"))


@pytest.mark.slow
def test_a_finished_training_says_so_and_changes_nothing(tmp_path, capsys):
    make(tmp_path).run()
    before = contents(tmp_path)
    assert make(tmp_path).run() == 0
    said = capsys.readouterr().err
    assert "already trained for 6 epochs" in said and "going on" not in said  # not with "epoch 7 of 6"
    assert same(before, contents(tmp_path))


@pytest.mark.slow
def test_micro_batches_add_up_to_the_whole(tmp_path):
    runs = {count: make(tmp_path / str(count), accumulate=count, epochs=2) for count in (1, 3, 4)}
    for trainer in runs.values():
        trainer.run()
    slopes = [float(trainer.networks["line"].a) for trainer in runs.values()]
    assert slopes == pytest.approx([slopes[0]] * 3, abs=1e-5)


@pytest.mark.slow
def test_learning_rate_falls_at_its_milestones(tmp_path):
    assert [rates.learning_rate(1.0, epoch, (2, 4), 0.1) for epoch in (0, 1, 2, 4)] == pytest.approx([1, 1, 0.1, 0.01])
    make(tmp_path).run()
    logged = [float(row["learning_rate"]) for row in csv.DictReader((tmp_path / "log.csv").open())]
    assert logged == pytest.approx([0.1] * 4 + [0.01] * 2)


@pytest.mark.slow
def test_average_is_the_exponential_moving_average(tmp_path):
    history = []

    def watch(networks, batch, noise):
        history.append(float(networks["line"].a))
        return objective(networks, batch, noise)

    trainer = make(tmp_path, epochs=3, objective=watch, average=0.7, validate_every=99)
    trainer.run()
    steps = history[1:12] + [float(trainer.networks["line"].a)]
    expected = 0.0
    for step, value in enumerate(steps[:12]):
        decay = min(0.7, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert float(trainer.ema.a) == pytest.approx(expected, rel=1e-4)


def test_the_denoising_objective_is_the_mean_squared_error_of_the_offset_noise():
    alpha_bar, device = schedulers.squared_cosine(), torch.device("cpu")
    batch = {
        name: torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(i))
        for i, name in enumerate(("soft", "cxr"))
    }
    noise = interfaces.Noise(0, 0, 3, [0, 1, 2], device)
    seen = {}

    def unet(x, t):
        seen.update(x=x, t=t)
        return torch.zeros_like(x)

    phases, logged = losses.denoising_objective(alpha_bar, 0.1)({"unet": unet}, batch, noise)
    eps = noise.normal("noise", 4, 8, 8) + 0.1 * noise.normal("offset", 4, 1, 1)
    a = alpha_bar[seen["t"]][:, None, None, None]
    assert torch.allclose(seen["x"][:, :4], a.sqrt() * batch["soft"] + (1 - a).sqrt() * eps) and torch.equal(
        seen["x"][:, 4:], a.sqrt() * batch["cxr"]
    )
    assert float(phases["unet"]) == pytest.approx(float(eps.square().mean())) and logged["loss"] is phases["unet"]


class Foreign:
    """Pickled by name, which a state never needs."""


@pytest.mark.parametrize(
    "content, words",
    [
        (Foreign(), "which no training state needs"),
        ({"model": torch.zeros(3)}, "is not a state of these trainings"),
        ([1, 2], "is not a training state"),
        (
            {"identity": {}, "plan": {}, "networks": {}, "average": None, "optimizers": {}, "progress": {}},
            "an earlier version",
        ),
        ({name: {} for name in states.STATE_ENTRIES}, "does not fit this training's networks"),
        ({name: 5 for name in states.STATE_ENTRIES}, "does not fit this training's networks"),
    ],
)
def test_a_foreign_state_is_refused_in_one_line_and_stays(tmp_path, content, words):
    state = tmp_path / "state_00000005.pt"
    torch.save(content, state)
    before = state.read_bytes()
    with pytest.raises(UserError, match=words) as refused:
        make(tmp_path).run()
    assert str(state) in str(refused.value) and len(str(refused.value).splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == [state.name] and state.read_bytes() == before


def test_the_first_weights_must_be_finite(tmp_path):
    line = Line(3.0)
    line.save(tmp_path / "good.safetensors")
    assert checkpoint.init_from(Line(), str(tmp_path / "good.safetensors")).a == 3
    Line(math.nan).save(tmp_path / "bad.safetensors")
    with pytest.raises(UserError, match="bad.safetensors holds numbers that are not finite, in a"):
        checkpoint.init_from(Line(), str(tmp_path / "bad.safetensors"))


@pytest.mark.slow
def test_a_best_that_was_removed_is_explained_and_takes_a_new_one(tmp_path, capsys):
    make(tmp_path, epochs=4).run()
    (tmp_path / "best.safetensors").unlink()
    make(tmp_path, epochs=4).run()
    assert "best.safetensors is gone" in capsys.readouterr().err
    make(tmp_path, epochs=6, learning_rate=100.0).run()  # worse than all before
    assert float(Line.load(tmp_path / "best.safetensors").a) == float(Line.load(tmp_path / "weights.safetensors").a)
    make(tmp_path, epochs=6).run()
    assert capsys.readouterr().err.count("is gone") == 1


@pytest.mark.slow
def test_a_term_of_the_loss_may_begin_when_the_training_goes_on(tmp_path):
    """vqgan.loss.adversarial from 0 to 0.01: the discriminator's optimiser is not in the state."""
    make(tmp_path, epochs=1).run()
    trainer = make(tmp_path, epochs=2)
    other = Line(1.0)
    trainer.networks["other"] = trainer.networks["line"]
    trainer.optimizers["other"] = torch.optim.Adam(other.parameters())
    trainer.load(
        {
            **contents(tmp_path)["state"],
            "networks": dict.fromkeys(("line", "other"), trainer.networks["line"].state_dict()),
        }
    )
    assert trainer.progress.epoch == 1 and not trainer.optimizers["other"].state and trainer.optimizers["line"].state


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            ["data.image_size=96"],
            "data.image_size=96 is too small for MS-SSIM, which needs 161 pixels; set vqgan.loss.ms_ssim=0",
        ),
        (["data.image_size=256", "vqgan.crop=96"], "vqgan.crop=96 is too small for MS-SSIM"),
        (["data.image_size=96", "vqgan.loss.ms_ssim=0"], "no folder"),
        (["data.image_size=168"], "no folder"),
    ],
)
def test_images_too_small_for_ms_ssim_are_refused_before_anything_is_built(tmp_path, changes, words):
    settings = config.parse(
        "", ("runs", "data", "vqgan"), [f"data.root={tmp_path / 'nowhere'}", f"runs={tmp_path}", *changes]
    )
    with pytest.raises(UserError, match=words):
        autoencoder.train(settings, ("vqgan",))
    assert not list(tmp_path.iterdir())


def test_devices_that_are_not_there_are_named():
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(UserError, match="device=nonsense"):
        pick_device("nonsense")
    assert (
        pick_precision("auto", torch.device("cpu")) == "float32"
        and pick_precision("bf16", torch.device("cpu")) == "bf16"
    )


def test_a_training_can_start_from_weights(tmp_path):
    network, other = (ConditionalUNet(width=32, multipliers=(1,), blocks=1, heads=4, attention=()) for _ in range(2))
    torch.nn.init.ones_(network.out[2].weight)
    network.save(tmp_path / "unet.safetensors")
    assert checkpoint.init_from(other, None) is other and not other.out[2].weight.any()
    started = checkpoint.init_from(other, str(tmp_path / "unet.safetensors"))
    assert (
        all(torch.equal(a, b) for a, b in zip(network.parameters(), started.parameters()))
        and next(started.parameters()).requires_grad
    )
    wider = ConditionalUNet(width=64, multipliers=(1,), blocks=1, heads=4, attention=())
    with pytest.raises(UserError, match="unet.safetensors holds weights of another architecture"):
        checkpoint.init_from(wider, str(tmp_path / "unet.safetensors"))
    with pytest.raises(UserError, match="no weights at"):
        checkpoint.init_from(wider, str(tmp_path / "none.safetensors"))
