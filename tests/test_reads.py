"""READS, the settings that a script says it reads (for --help and for notes), are those that it reads while it runs."""

import runpy
from pathlib import Path

import pytest
from conftest import TINY, recording, run_script

from models import config, settings_file

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))
SHORT = [
    "data.root=runs/demo/data",
    "data.lists=runs/demo/lists",
    "vqgan.weights=runs/demo/vqgan/weights.safetensors",
    "vqgan.epochs=1",
    "ldm.epochs=1",
    "lcm.epochs=1",
]
COMPARISON_TINY = [
    "comparison.gusarev.ms_ssim=0",
    "comparison.gusarev.channels=[4]",
    "comparison.resnet_bs.ms_ssim=0",
    "comparison.bs_diff.image_size=32",  # its attention would take most of the time at 64
    "comparison.bs_diff.first_epochs=1",
    "comparison.bs_diff.steps=1",
]
CHANGED = ["augment.bone_flat=[0.5,1]", "augment.display=0.5"]  # what further settings only then decide
COMPARED = []  # every comparison method's section is read by its own training alone
for _name in config.COMPARISON_METHODS:
    _own = [f"comparison.method={_name}", f"comparison.{_name}.image_size=64", f"comparison.{_name}.epochs=2"]
    COMPARED.append([*_own, *COMPARISON_TINY, *CHANGED])
# What the chain leaves unread since its settings do not ask for it; that a run is refused afterwards does not matter.
FURTHER_RUNS = {
    "vq-gan_train.py": [["runs=short_vqgan", *SHORT, *CHANGED]],
    "ldm_train.py": [
        ["runs=short_ldm", *SHORT, *CHANGED],
        ["runs=student_ldm", *SHORT, "ldm.teacher=runs/demo/ldm/weights.safetensors", "distill.epochs=1"],
    ],
    "lcm_train.py": [
        ["runs=short_lcm", *SHORT, *CHANGED],
        ["runs=student_lcm", *SHORT, "lcm.teacher=runs/demo/lcm/weights.safetensors", "distill.epochs=1"],
    ],
    "ldm_eval.py": [["ldm.steps=[1,2]", "eval.output=several"]],
    "batch_lcm_eval.py": [["lcm.steps=[1,2]", "eval.output=several"]],
    "comparison_train.py": COMPARED,
    "comparison_eval.py": [["comparison.method=bs_diff", "comparison.bs_diff.steps=1"]],
    "dataSegmentation.py": [
        ["simulate.count=1", "simulate.source=ct", "simulate.ct=nowhere"],
        ["data.source=nowhere", "data.root=elsewhere"],
    ],
    "reading_study.py": [
        ["make", "study.results=runs/demo/data/BS"],
        ["score", "study.truth=findings.csv"],
    ],
}


# what a script needs from another one
BEFORE = {"comparison_eval.py": ("comparison_train.py", COMPARED[config.COMPARISON_METHODS.index("bs_diff")])}


def list_keys(paths) -> set[str]:
    """The settings at or below dotted paths, and those whose names stand in braces in the values of such settings."""
    values = settings_file.load(ROOT / "config.yaml")
    return set(config.list_read(paths, values))


def test_the_recorder_sees_reading_and_not_writing_down():
    settings = config.parse("", ("lcm",), [])
    found = set()
    with recording(found):
        config.to_yaml(settings)
        config.values(settings, ["lcm"])
        assert found == set()
        assert settings.lcm.steps == 50
        config.part(settings.lcm, config.GllcmFusion)
    settings.lcm.alpha  # noqa: B018, after the recording
    assert found == {"lcm.steps", "lcm.fusion", "lcm.blend"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_reads_what_it_says_it_reads(chain, keys_read, script):
    found = keys_read[script]
    if script in BEFORE:
        other, arguments = BEFORE[script]
        run_script(other, *TINY, *arguments, folder=chain)
    for arguments in FURTHER_RUNS.get(script, []):
        with recording(found):
            run_script(script, *TINY, *arguments, folder=chain)
    reads = runpy.run_path(str(ROOT / script))["READS"]
    assert all(path in config.KEYS or path in config.SECTIONS for path in reads)
    said = list_keys(reads)
    read = list_keys(found)
    assert read - said == set(), f"{script} reads these, but READS does not say so"
    assert said - read == set(), f"READS names these, but {script} does not read them"
