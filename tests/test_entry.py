"""How a script ends: its exit status, and one line instead of a traceback if the user or the machine is the cause."""

import errno
import io
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path

import pytest

from models.runtime import entry, progress, workers
from models.runtime.files import MachineError, UserError

ROOT = Path(__file__).resolve().parent.parent
START = "import sys; sys.path.insert(0, {root!r}); from models.runtime import entry\n"


def end(main, capsys) -> tuple[int, str]:
    """(exit status, what stderr says) of a main()."""
    with pytest.raises(SystemExit) as stop:
        entry.run(main)
    return stop.value.code, capsys.readouterr().err


def failing(error: BaseException):
    def main():
        raise error

    return main


def start(program: str, **keywords) -> subprocess.Popen:
    """A program in a Python of its own, to be signalled or to have its output taken away."""
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}  # prints reach the disk when they are flushed
    keywords = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment, **keywords}
    return subprocess.Popen([sys.executable, "-c", START.format(root=str(ROOT)) + program], **keywords)


@pytest.mark.parametrize(
    "error, status, words",
    [
        (UserError("no folder x"), 2, "no folder x"),
        (MachineError("the disk broke"), 1, "the disk broke"),
        (KeyboardInterrupt(), 130, "stopped; the same command goes on"),
        (entry.Terminated(), 143, "stopped; the same command goes on"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 1, "out of GPU memory; lower the batch_size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"), 1, "out of memory; lower"),
        (MemoryError("Unable to allocate 7.28 TiB for an array"), 1, "out of memory; lower"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "cannot write the output: No space left on device"),
    ],
)
def test_an_error_of_the_user_or_the_machine_is_one_line(capsys, error, status, words):
    ended, said = end(failing(error), capsys)
    assert ended == status
    assert words in said
    assert len(said.splitlines()) == 1


def test_memory_that_torch_cannot_have_is_one_line(capsys):
    import torch

    ended, said = end(lambda: torch.empty(2**55), capsys)
    assert ended == 1
    assert "out of memory" in said and len(said.splitlines()) == 1


def test_other_errors_keep_their_traceback():
    with pytest.raises(RuntimeError, match="a fault of ours"):
        entry.run(failing(RuntimeError("a fault of ours")))


@pytest.mark.parametrize("returned, status", [(0, 0), (None, 0), (1, 1)])
def test_what_main_returns_is_the_exit_status(capsys, returned, status):
    assert end(lambda: returned, capsys) == (status, "")


def test_help_is_no_error(capsys):
    assert end(failing(SystemExit(0)), capsys) == (0, "")


def test_sigterm_is_given_back_to_whom_it_belonged(capsys):
    before = signal.getsignal(signal.SIGTERM)
    end(lambda: 0, capsys)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full")
@pytest.mark.parametrize(
    "program",
    [
        "entry.run(lambda: print('little'))",
        "entry.run(lambda: [print('much' * 9999) for _ in range(9)])",
    ],
)
def test_a_full_disk_under_the_output_is_one_line(program):
    with open("/dev/full", "w") as full:
        process = start(program, stdout=full)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "No space left on device" in said and len(said.splitlines()) == 1


@pytest.mark.parametrize(
    "program",
    [
        "entry.run(lambda: print('little'))",
        "entry.run(lambda: [print('much' * 9999) for _ in range(99)])",
    ],
)
def test_nobody_reading_is_no_traceback(program):
    process = start("sys.stdin.read()\n" + program, stdin=subprocess.PIPE)
    process.stdout.close()
    process.stdin.close()  # now it goes on
    said = process.stderr.read()
    assert process.wait(60) == 1
    assert said == ""


@pytest.mark.slow
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_modules_are_imported_is_one_line(tmp_path, number, status):
    (tmp_path / "slow_module.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    program = f"sys.path.insert(0, {str(tmp_path)!r})\ndef main():\n    import slow_module\nentry.run(main)"
    process = start(program)
    assert process.stdout.readline() == "importing\n"
    time.sleep(0.1)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == status
    assert "stopped" in said and len(said.splitlines()) == 1


@pytest.mark.slow
def test_ctrl_c_while_a_script_imports_its_settings_is_one_line(tmp_path):
    """Before the script's main() has begun; other exceptions keep their traceback."""
    (tmp_path / "pydantic.py").write_text(
        "import os, signal, sys\nif os.environ['FAULT'] == 'stop':\n    os.kill(os.getpid(), signal.SIGINT)\n1 / 0\n"
    )
    for fault, status, words in (("stop", -signal.SIGINT, "stopped"), ("other", 1, "ZeroDivisionError")):
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "FAULT": fault}
        script = [sys.executable, str(ROOT / "metrics.py")]
        done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == status and words in done.stderr
        assert (len(done.stderr.splitlines()) == 1) == (fault == "stop"), done.stderr


def do_nothing() -> None:
    pass


def ignores_ctrl_c(item: int) -> bool:
    return signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.slow
def test_processes_beside_each_other_ignore_ctrl_c_from_their_birth(monkeypatch):
    """And not only when they have imported what takes seconds. The first process does not ignore it."""
    from models.runtime import workers

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(workers, "_prepare_process", do_nothing)  # which is what comes after the imports
    workers._pool.cache_clear()
    try:
        assert all(workers.parallel(ignores_ctrl_c, list(range(workers.FEW + 1)), "asking"))
    finally:
        workers._pool.cache_clear()
    assert signal.getsignal(signal.SIGINT) is before


def test_progress_bars_do_not_fill_a_log():
    program = "entry.run(lambda: print(__import__('tqdm').tqdm(range(3), file=open('/dev/null', 'w')).mininterval))"
    environment = {name: value for name, value in os.environ.items() if name != "TQDM_MININTERVAL"}
    process = start(program, env=environment)
    said, _ = process.communicate(timeout=60)
    assert float(said) == float(entry.BAR_INTERVAL)


@pytest.mark.parametrize(("own", "expected"), [({}, entry.SPIN_COUNT), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)])
def test_idle_threads_do_not_wait_busily_unless_the_user_says_how(monkeypatch, own, expected):
    for name in entry.WAIT_VARIABLES:
        monkeypatch.setenv(name, "")  # so that it is put back afterwards
        monkeypatch.delenv(name)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    seen = []
    with pytest.raises(SystemExit):
        entry.run(lambda: seen.append(os.environ.get("GOMP_SPINCOUNT")))
    assert seen == [expected]


def test_work_is_handed_out_as_its_results_are_taken(monkeypatch):
    """So memory does not grow with the number of items."""
    handed_out = []

    class Pool:
        def submit(self, function, item):
            handed_out.append(item)
            future = Future()
            future.set_result(function(item))
            return future

    monkeypatch.setattr(workers, "_pool", Pool)
    results = workers.stream(str, list(range(100)), "counting", at_once=10)
    assert next(results) == "0" and len(handed_out) == 10
    assert list(results) == [str(number) for number in range(1, 100)] and handed_out == list(range(100))


def test_a_bar_counts_within_seconds_and_then_keeps_its_interval(monkeypatch):
    """In a log file, whose lines are 20 seconds apart, the first count came after as long."""
    monkeypatch.setattr(progress, "FIRST", 0.0)
    log = io.StringIO()
    assert list(progress.Bar(range(500), file=log, mininterval=20)) == list(range(500))
    lines = log.getvalue().replace("\r", "\n").split("\n")
    counts = [line.split("/500")[0].split()[-1] for line in lines if "/500" in line]
    assert counts[0] == "0" and counts[-1] == "500" and len(counts) == 3 and 0 < int(counts[1]) < 500
    assert list(progress.Bar(range(3), disable=True)) == [0, 1, 2]
