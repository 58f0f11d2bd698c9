"""What a training goes on from and what it refuses: states, signals, other settings, folders of others. On a straight
line fitted to noisy points."""

import math
import os
import signal
import subprocess
import sys
import threading

import pytest
import torch
from conftest import ROOT
from line_training import Killed, Line, Points, contents, make, objective, same

from models import config
from models.runtime.files import UserError
from models.training import ownership, states


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
    whole = contents(tmp_path / "whole")
    killed = contents(tmp_path / "killed")
    # the settings apart, of which the second start has changed save_every
    whole["state"].pop("settings")
    killed["state"].pop("settings")
    assert same(whole, killed)


@pytest.mark.slow
def test_a_damaged_newest_state_is_passed_over(tmp_path, capsys):
    make(tmp_path / "whole").run()
    make(tmp_path / "damaged", epochs=3, save_every=0).run()
    older, newest = sorted((tmp_path / "damaged").glob("state_*.pt"))
    newest.write_bytes(newest.read_bytes()[:500])
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
    message = str(refused.value)
    assert str(state) in message
    assert len(message.splitlines()) == 1
    assert list(tmp_path.iterdir()) == [state]
    assert state.read_bytes() == before


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
def test_a_best_that_was_removed_is_explained_and_takes_a_new_one(tmp_path, capsys):
    make(tmp_path, epochs=4).run()
    (tmp_path / "best.safetensors").unlink()
    make(tmp_path, epochs=4).run()
    assert "best.safetensors is gone" in capsys.readouterr().err
    make(tmp_path, epochs=6, learning_rate=100.0).run()  # worse than all before
    best = Line.load(tmp_path / "best.safetensors")
    last = Line.load(tmp_path / "weights.safetensors")
    assert best.a == last.a
    make(tmp_path, epochs=6).run()
    assert capsys.readouterr().err.count("is gone") == 1


@pytest.mark.slow
def test_a_finished_training_says_so_and_changes_nothing(tmp_path, capsys):
    make(tmp_path).run()
    before = contents(tmp_path)
    assert make(tmp_path).run() == 0
    reported = capsys.readouterr().err
    assert "already trained for 6 epochs" in reported
    assert "going on" not in reported  # not with "epoch 7 of 6"
    assert same(before, contents(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_saves_and_says_so(tmp_path, capsys, number):
    make(tmp_path / "whole").run()
    calls = []
    handler = signal.getsignal(number)

    def interrupted(networks, batch, noise):
        calls.append(1)
        if len(calls) == 6:
            assert threading.current_thread() is threading.main_thread()
            os.kill(os.getpid(), number)
        return objective(networks, batch, noise)

    assert make(tmp_path / "stopped", objective=interrupted).run() == 128 + number
    assert len(calls) == 6
    assert "the same command goes on" in capsys.readouterr().err
    assert signal.getsignal(number) == handler
    assert make(tmp_path / "stopped").run() == 0
    assert same(contents(tmp_path / "whole"), contents(tmp_path / "stopped"))


@pytest.mark.slow
def test_a_signal_while_batches_fail_leaves_the_last_good_states(tmp_path, capsys):
    """Each stop would otherwise push one of the two states that are kept out of the folder."""

    def states_here():
        return {path.name: path.read_bytes() for path in tmp_path.glob("state_*.pt")}

    make(tmp_path, epochs=1).run()
    good = states_here()

    def failing(networks, batch, noise):
        os.kill(os.getpid(), signal.SIGTERM)
        loss = networks["line"](batch["x"]).mean() * math.nan
        return {"line": loss}, {"loss": loss}

    for _ in range(3):
        assert make(tmp_path, objective=failing).run() == 128 + signal.SIGTERM
        assert "not saved since the last 1 batches failed" in capsys.readouterr().err
    assert states_here() == good


@pytest.mark.slow
def test_a_signal_during_validation_loses_nothing(tmp_path):
    make(tmp_path / "whole").run()
    sent = []

    def interrupted(networks, batch, noise):
        is_validation = not torch.is_grad_enabled()
        if is_validation and not sent:
            sent.append(signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        return objective(networks, batch, noise)

    assert make(tmp_path / "stopped", objective=interrupted).run() == 128 + signal.SIGTERM
    assert sent
    assert contents(tmp_path / "stopped")["state"]["progress"]["best"] < math.inf
    assert make(tmp_path / "stopped").run() == 0
    assert same(contents(tmp_path / "whole"), contents(tmp_path / "stopped"))


@pytest.mark.slow
def test_what_may_not_change_stops_the_run_with_both_values(tmp_path):
    def start(*, width=32, other=1, points=14, **changes):
        """unet_x is no setting of the fixed section unet, though its name begins like one."""
        settings = {"unet.width": width, "unet_x": other}
        facts = {"images": f"{points} points"}
        make(tmp_path, settings=settings, fixed=("unet",), facts=facts, **changes).run()

    start(epochs=1)
    with pytest.raises(UserError, match="images=14 points, now it is 15 points"):
        start(points=15)
    with pytest.raises(UserError, match="unet.width=32, now it is 64"):
        start(width=64)
    start(other=2)


@pytest.mark.slow
def test_what_may_change_changes_and_is_reported_as_it_is_typed(tmp_path, capsys):
    make(tmp_path, epochs=2).run()
    trainer = make(tmp_path, epochs=5, batch_size=7, learning_rate=0.01, milestones=(1, 2), checkpointing=True)
    assert trainer.run() == 0
    reported = capsys.readouterr().err
    for change in (
        "epochs changed from 2 to 5\n",
        "batch_size changed from 4 to 7\n",
        "milestones changed from [4] to [1, 2]\n",
        "checkpointing changed from false to true\n",
    ):
        assert change in reported
    assert trainer.progress.epoch == 5
    assert trainer.progress.step == 2 * 4 + 3 * 2  # of 14 points: four batches an epoch, later two


@pytest.mark.slow
def test_settings_of_objective_and_optimiser_change_too(tmp_path, capsys):
    make(tmp_path, epochs=1, settings={"vqgan.loss.pixel": "mse"}).run()
    trainer = make(tmp_path, epochs=2, settings={"vqgan.loss.pixel": "l1"})
    optimizer = trainer.optimizers["line"]
    optimizer.param_groups[0]["eps"] = 1e-3
    assert trainer.run() == 0
    assert "vqgan.loss.pixel changed from mse to l1\n" in capsys.readouterr().err
    assert optimizer.param_groups[0]["eps"] == 1e-3
    slope = trainer.networks["line"].a
    assert optimizer.state[slope]["step"] == 8  # both epochs


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
def test_a_batch_size_changed_in_the_middle_of_an_epoch_sees_every_image_once(tmp_path):
    earlier = Points()

    def deadly(networks, batch, noise):
        if len(earlier.seen) == 3:
            raise Killed
        return objective(networks, batch, noise)

    with pytest.raises(Killed):
        make(tmp_path, epochs=1, source=earlier, objective=deadly, save_every=0).run()
    later = Points()
    make(tmp_path, epochs=1, source=later, batch_size=3).run()
    finished_batches = earlier.seen[:2] + later.seen
    seen = [index for batch in finished_batches for index in batch]
    assert sorted(seen) == list(range(14))


@pytest.mark.slow
def test_a_term_of_the_loss_may_begin_when_the_training_goes_on(tmp_path):
    """vqgan.loss.adversarial from 0 to 0.01: the discriminator's optimiser is not in the state."""
    make(tmp_path, epochs=1).run()
    trainer = make(tmp_path, epochs=2)
    line = trainer.networks["line"]
    trainer.networks["other"] = line
    trainer.optimizers["other"] = torch.optim.Adam(Line(1.0).parameters())
    state = contents(tmp_path)["state"]
    state["networks"] = {"line": line.state_dict(), "other": line.state_dict()}
    trainer.load(state)
    assert trainer.progress.epoch == 1
    assert trainer.optimizers["line"].state
    assert not trainer.optimizers["other"].state


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


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork, and no POSIX locks")
def test_a_folder_is_one_trainings_and_a_killed_one_gives_it_back_at_once(tmp_path):
    folder = tmp_path / "run"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    try:
        assert holder.stdout.readline() == "mine\n"
        with pytest.raises(UserError, match="another training is at work in .*run"):
            with ownership.owned(folder, "ldm.start"):
                raise AssertionError("two own it")
        holder.kill()
        holder.wait()  # the process that it forked lives on
        with ownership.owned(folder, "ldm.start"):
            pass
    finally:
        os.killpg(holder.pid, signal.SIGKILL)


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
    settings = config.parse("", (), [])
    make(tmp_path, epochs=1, config_text=config.to_yaml(settings)).run()
    for state in tmp_path.glob("state_*.pt"):
        state.unlink()
    ownership.refuse_foreign(tmp_path)  # what a training leaves that was killed before its first state
    for path in (tmp_path / "config.yaml", tmp_path / "log.csv"):
        content = path.read_bytes()
        path.write_text("mine: 1")
        with pytest.raises(UserError, match=f"{path.name} is there already and no training wrote it"):
            ownership.refuse_foreign(tmp_path)
        path.write_bytes(content)
