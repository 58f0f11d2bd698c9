"""What no test in one process can show: kill -9, a full disk, signals at any moment, too little memory."""

import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import kill_campaign
import pytest
import torch

from models import settings_file
from models.data import datasets
from models.runtime import entry, training_state
from models.runtime.files import MachineError, UserError, replacing, sweep
from models.vqgan import MLVQGAN

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}  # quicker for networks this small


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """A folder with data and a trained autoencoder."""
    folder = tmp_path_factory.mktemp("survival")
    kill_campaign.prepare(folder)
    return folder


def command(*arguments):
    return [
        sys.executable,
        str(ROOT / "ldm_train.py"),
        *kill_campaign.TINY,
        "vqgan.weights=ready/vqgan/weights.safetensors",
        *arguments,
    ]


def own(stderr: str) -> list[str]:
    """The lines that are neither notes nor progress bars."""
    lines = stderr.replace("\r", "\n").splitlines()
    return [
        line
        for line in lines
        if line.startswith(("ldm_train.py", "vq-gan_train.py")) or "Error" in line or "Traceback" in line
    ]


def test_killed_twice_it_ends_as_if_it_had_not_been(ready):
    counts = kill_campaign.torment("ldm", ready, 8, 2, random.Random(0), moments=("training", "writing"))
    assert counts["kills"] == 2 == counts["with a state to go on from"]
    assert not kill_campaign.differences(ready / "whole" / "ldm", ready / "killed" / "ldm")


def test_the_comparison_of_the_campaign_sees_a_single_bit(ready, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for file in ("weights.safetensors", "best.safetensors", "log.csv"):
            (tmp_path / name / file).write_bytes(b"same")
        state = {part: {"tensor": torch.zeros(3)} for part in ("networks", "ema", "optimizers", "progress", "facts")}
        state["optimizers"]["tensor"][1] = float(name == "b") * 1e-30
        training_state.save_state(tmp_path / name, 1, state)
    assert kill_campaign.differences(tmp_path / "a", tmp_path / "b") == ["optimizers"]


def test_a_full_disk_ends_in_one_line_with_status_1_and_the_old_state_stays(ready):
    done = subprocess.run(
        command("runs=full", "ldm.epochs=1"), cwd=ready, env=ONE_THREAD, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    states = sorted((ready / "full" / "ldm").glob("state_*.pt"))
    before, room = states[-1].read_bytes(), states[-1].stat().st_size - 10000
    done = subprocess.run(
        command("runs=full", "ldm.epochs=2", "train.save_every=0"),
        cwd=ready,
        env=ONE_THREAD,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)),
    )
    assert done.returncode == 1 and len(own(done.stderr)) == 1, done.stderr
    assert (
        "cannot write" in own(done.stderr)[0]
        and "state_" in own(done.stderr)[0]
        and "File too large" in own(done.stderr)[0]
    )
    assert sorted((ready / "full" / "ldm").glob("state_*.pt")) == states and states[-1].read_bytes() == before
    assert not list((ready / "full" / "ldm").glob(".*.part"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_no_space_left_is_named(tmp_path):
    old = training_state.save_state(tmp_path, 1, {"tensor": torch.zeros(10)})
    with replacing(tmp_path / "state_00000002.pt") as temporary:
        pass_through = temporary.name
        temporary.write_bytes(b"")
    (tmp_path / "state_00000002.pt").unlink()
    (tmp_path / pass_through).symlink_to("/dev/full")
    with pytest.raises(MachineError, match="cannot write .*state_00000002.pt: No space left on device"):
        training_state.save_state(tmp_path, 2, {"tensor": torch.zeros(100000)})
    assert list(tmp_path.iterdir()) == [old] and training_state.newest_state(tmp_path)[1] == old


def test_weights_that_do_not_fit_are_the_machines_fault_and_a_wrong_place_is_the_persons(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(MachineError, match="cannot write .*weights.safetensors: File too large"):
            MLVQGAN(channels=(8, 16), residual_channels=8).save(tmp_path / "weights.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write") as wrong, replacing(tmp_path / "file" / "below") as temporary:
        temporary.write_text("x")
    assert (UserError.status, MachineError.status, wrong.value.status) == (2, 1, 2)


def test_stale_temporary_files_are_swept_and_those_of_living_processes_stay(ready):
    ended = subprocess.Popen(["true"])
    ended.wait()
    living = subprocess.Popen(["sleep", "60"])
    folders = [ready / "whole" / "ldm", next((ready / "whole" / "latents").iterdir())]
    try:
        for folder in folders:
            (folder / f".state_00000009.pt.{ended.pid}.part").write_text("half")
            (folder / f".state_00000009.pt.{living.pid}.part").write_text("half")
            (folder / ".somebody's.part").write_text("not ours")
        done = subprocess.run(
            command("runs=whole", "ldm.epochs=8"), cwd=ready, env=ONE_THREAD, capture_output=True, text=True
        )
        assert done.returncode == 0 and "already trained" in done.stderr
        for folder in folders:
            assert {path.name for path in folder.glob(".*.part")} == {
                f".state_00000009.pt.{living.pid}.part",
                ".somebody's.part",
            }
    finally:
        living.kill()
        living.wait()
    for folder in folders:
        sweep(folder)
        assert [path.name for path in folder.glob(".*.part")] == [".somebody's.part"]
        (folder / ".somebody's.part").unlink()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_first_step_ends_in_one_line(ready, number):
    """While latents are encoded, or anything else is made ready."""
    process = subprocess.Popen(
        command(f"runs=early{number}", "data.image_size=256"),
        cwd=ready,
        env=ONE_THREAD,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not list(ready.glob(f"early{number}/latents/*/*.npy")):
        time.sleep(0.01)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 128 + number and own(stderr) == ["ldm_train.py: stopped; the same command goes on"], (
        stderr
    )
    assert not list(ready.glob(f"early{number}/latents/*/.*.part")) and not list(
        ready.glob(f"early{number}/ldm/state_*")
    )


def test_processes_that_load_images_outlive_signals(ready):
    """A scheduler signals them too, at moments when the training waits for them."""
    pairs = {path.stem: (path, path, None) for path in sorted((ready / "data" / "CXR").iterdir())}
    batches = datasets.ImageSource(pairs, 64, False, workers=1).batches([[i] for i in range(20)])
    first = next(batches)
    for loader in multiprocessing.active_children():
        os.kill(loader.pid, signal.SIGINT)
        os.kill(loader.pid, signal.SIGTERM)
    assert first["image"].shape == (1, 1, 64, 64) and len(list(batches)) == 19


def test_a_signal_while_images_are_loaded_by_other_processes_still_saves(ready):
    """Ctrl-C in a terminal reaches the loading processes as well; they must not die of it."""
    arguments = [
        "runs=group",
        "vqgan.epochs=100000",
        "train.workers=1",
        "train.validate_every=100000",
        "train.sample_every=100000",
    ]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "vq-gan_train.py"), *kill_campaign.TINY, *arguments],
        cwd=ready,
        env=ONE_THREAD,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while process.poll() is None and not (ready / "group" / "vqgan" / "log.csv").is_file():
        time.sleep(0.01)
    time.sleep(0.3)
    subprocess.run(["kill", "-INT", "--", f"-{process.pid}"], check=True)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130 and "the same command goes on" in stderr and "Traceback" not in stderr, stderr
    assert len(list((ready / "group" / "vqgan").glob("state_*.pt"))) == 1


def trained_with_workers(ready, folder, *arguments, damaged=None):
    """vq-gan_train.py with two loading processes, in a folder with its own copy of the data; one CXR may be damaged."""
    shutil.copytree(ready / "data", folder / "data")
    shutil.copytree(ready / "lists", folder / "lists")
    if damaged:
        path = folder / "data" / "CXR" / damaged
        path.write_bytes(path.read_bytes()[:200])
    command = [sys.executable, str(ROOT / "vq-gan_train.py"), *kill_campaign.TINY, "train.workers=2", *arguments]
    return subprocess.Popen(
        command, cwd=folder, env=ONE_THREAD, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def test_an_image_that_cannot_be_read_ends_the_training_in_one_line(ready, tmp_path):
    """Nothing is left waiting for the processes that load images."""
    name = (ready / "lists" / "data_trainset.txt").read_text().split()[0]
    process = trained_with_workers(ready, tmp_path / "run", damaged=name)
    try:
        _, stderr = process.communicate(timeout=90)
    finally:
        stop_group(process)
    lines = own(stderr)
    assert process.returncode == 2 and len(lines) == 1 and name in lines[0], stderr


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the loading processes through /proc")
def test_a_loading_process_that_is_killed_ends_the_training_in_one_line(ready, tmp_path):
    process = trained_with_workers(
        ready, tmp_path / "run", "vqgan.epochs=100000", "train.validate_every=100000", "train.sample_every=100000"
    )
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while process.poll() is None and not (tmp_path / "run" / "runs" / "demo" / "vqgan" / "log.csv").is_file():
            time.sleep(0.05)
        killed = False
        while process.poll() is None and not killed:  # they are new in each epoch
            for child in children.read_text().split():
                os.kill(int(child), signal.SIGKILL)
                killed = True
        _, stderr = process.communicate(timeout=90)
    finally:
        stop_group(process)
    lines = own(stderr)
    assert process.returncode == 1 and len(lines) == 1 and "lower train.workers" in lines[0], stderr


def test_an_error_of_the_program_ends_it_too_whatever_the_loading_processes_wait_for(ready):
    """Python's own exit would wait for processes that ignore its SIGTERM; the loop closes them first."""
    pairs = {path.stem: (path, path, None) for path in sorted((ready / "data" / "CXR").iterdir())}
    others = set(multiprocessing.active_children())  # of an earlier test in this process, which may just be ending
    batches = datasets.ImageSource(pairs, 64, False, workers=2).batches([[i] for i in range(20)])
    next(batches)
    assert len(set(multiprocessing.active_children()) - others) == 2
    batches.close()
    assert not set(multiprocessing.active_children()) - others


def stop_group(process):
    """Kill a process and those that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_the_scripts_own_their_folders_and_take_finite_weights(ready):
    """Weights without a state are not overwritten; a diverged autoencoder is refused before its latents are made."""
    done = subprocess.run(
        command("runs=alone", "ldm.epochs=1"), cwd=ready, env=ONE_THREAD, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for state in (ready / "alone" / "ldm").glob("state_*.pt"):
        state.unlink()
    before = (ready / "alone" / "ldm" / "weights.safetensors").read_bytes()
    done = subprocess.run(
        command("runs=alone", "ldm.epochs=1"), cwd=ready, env=ONE_THREAD, capture_output=True, text=True
    )
    assert (
        done.returncode == 2
        and len(own(done.stderr)) == 1
        and "ldm.start=alone/ldm/weights.safetensors" in own(done.stderr)[0]
    )
    assert (ready / "alone" / "ldm" / "weights.safetensors").read_bytes() == before
    vqgan = MLVQGAN.load(ready / "ready" / "vqgan" / "weights.safetensors")
    vqgan.encoder.apply(
        lambda layer: [parameter.data.fill_(torch.nan) for parameter in layer.parameters(recurse=False)]
    )
    vqgan.save(ready / "diverged.safetensors")
    done = subprocess.run(
        command("runs=diverged", "vqgan.weights=diverged.safetensors"),
        cwd=ready,
        env=ONE_THREAD,
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode == 2
        and len(own(done.stderr)) == 1
        and "diverged.safetensors holds numbers that are not finite" in done.stderr
    )
    assert not (ready / "diverged" / "latents").exists()


def test_a_run_folder_that_cannot_be_written_is_one_line(ready):
    (ready / "file").write_text("")
    done = subprocess.run(command("runs=file"), cwd=ready, env=ONE_THREAD, capture_output=True, text=True)
    assert done.returncode == 2 and len(own(done.stderr)) == 1 and "cannot write file/ldm" in done.stderr


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("CUDA error: out of memory"),
    ],
)
def test_out_of_memory_names_the_settings_that_help(capsys, error):
    def main():
        raise error

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        entry.run(main)
    assert signal.getsignal(signal.SIGTERM) == before
    line = capsys.readouterr().err.strip()
    assert end.value.code == 1 and len(line.splitlines()) == 1
    settings = settings_file.load(ROOT / "config.yaml")
    named = {key for key in settings if key in line or key.endswith(".batch_size") and "batch_size" in line}
    assert {"train.accumulate", "train.checkpointing", "vqgan.batch_size", "eval.batch_size"} <= named


def test_an_error_that_is_not_of_memory_keeps_its_traceback():
    def main():
        raise RuntimeError("shapes do not fit")

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError, match="shapes"):
        entry.run(main)
    assert signal.getsignal(signal.SIGTERM) == before
