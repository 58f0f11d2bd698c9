"""Settings: profiles, key=value, what is refused, and that no setting is without a field, a meaning and a reader."""
import re
from pathlib import Path

import pytest
import yaml

from models import config
from models.runtime.files import UserError

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(ROOT.glob("*.py"))


def parse(*argv, reads=("data", "vqgan", "unet", "ldm", "lcm", "train", "eval", "metrics", "runs", "device", "precision", "features")):
    return config.parse("what the script does", reads, list(argv))


def test_the_base_is_the_paper():
    settings = parse()
    assert settings.vqgan.network.channels == (128, 256, 512) and settings.unet.blocks == 8 and settings.ldm.steps == 1000
    assert settings.lcm.guidance == "leg" and settings.vqgan.learning_rate == 1e-4 and settings.data.image_size == 1024


def test_profile_then_key_value_wins():
    jsrt = parse("--profile", "jsrt")
    assert (jsrt.lcm.clip_global, jsrt.lcm.clip_local, jsrt.lcm.clip_rate) == (1.7, 3.0, 0.025)
    assert parse("--profile", "jsrt", "lcm.clip_global=1.5").lcm.clip_global == 1.5
    assert parse("--profile", "szch") == parse()


def test_scientific_notation_lists_and_none_are_read_as_meant():
    settings = parse("vqgan.learning_rate=3e-5", "vqgan.milestones=[1,2]", "metrics.prediction=[a,b]", "eval.masks=null", "features=x")
    assert settings.vqgan.learning_rate == 3e-5 and settings.vqgan.milestones == (1, 2)
    assert settings.metrics.prediction == ("a", "b") and settings.eval.masks is None and settings.features == "x"
    assert parse("metrics.prediction=a").metrics.prediction == ("a",)
    assert [parse(f"compile={word}").compile for word in ("auto", "true", "false")] == ["auto", True, False]


def test_names_in_braces_follow_their_setting():
    settings = parse("runs=elsewhere", "data.root=some/where")
    assert settings.vqgan.weights == "elsewhere/vqgan/weights.safetensors" and settings.data.name == "where"
    assert settings.eval.input == "elsewhere/lists/where_testset.txt"
    assert parse("features={project}/weights").features == str(ROOT / "weights")


@pytest.mark.parametrize("argument, words", [
    ("lcm.stepz=4", "did you mean lcm.steps"), ("ldm=4", "section"), ("lcm.steps=four", "whole number"), ("lcm.steps=0", "at least 1"),
    ("lcm.guidance=lag", "leg, leg_shared"), ("vqgan.masked=3", "true or false"), ("lcm.alpha=nan", "number"), ("nonsense", "key=value"),
    ("data.root={nothing}", "names no setting"), ("data.root={data.root}", "refers to itself"),
    ("compile=1", "auto, true, false"), ("compile=perhaps", "auto, true, false"),
    ("augment.bone_flat=0.5", "a list of 2 numbers"), ("augment.bone_wide=[0.01,0.03,0.1]", "a list of 2 numbers"),
    ("augment.bone_wide=[0,0.1]", "at least 0.001"), ("augment.bone_flat=[0,2]", "at most 1"), ("eval.strength=1.2", "at most 1")])
def test_mistakes_are_named(argument, words):
    with pytest.raises(UserError, match=words):
        parse(argument)


def variants(*argv):
    return config.parse_variants("what the script does", ("ldm", "lcm", "metrics", "vqgan"), list(argv))


def test_a_list_where_one_value_is_expected_means_each_of_them():
    assert variants("lcm.steps=7") == {"": parse("lcm.steps=7")}
    several = variants("ldm.sampler=[ddpm,ddim]", "ldm.steps=[2,5]", "ldm.clip=2", "--profile", "demo", "metrics.prediction=[a,b]")
    assert list(several) == ["sampler=ddpm steps=2", "sampler=ddpm steps=5", "sampler=ddim steps=2", "sampler=ddim steps=5"]
    for name, settings in several.items():
        assert f"sampler={settings.ldm.sampler} steps={settings.ldm.steps}" == name and settings.ldm.clip == 2
        assert settings.metrics.prediction == ("a", "b") and settings.runs == "runs/demo"
    for argument in ("lcm.steps=[4,four]", "lcm.steps=[]", "lcm.guidance=[leg,lag]", "lcm=[1,2]", "lcm.stepz=[1]"):
        with pytest.raises(UserError):
            variants(argument)
    with pytest.raises(UserError):
        parse("lcm.steps=[4,5]")  # where one run is meant


def test_unknown_profile_missing_file_and_broken_file(tmp_path):
    with pytest.raises(UserError, match="no profile 'dmo'.*demo"):
        parse("--profile", "dmo")
    with pytest.raises(UserError, match="cannot read"):
        parse("--config", str(tmp_path / "none.yaml"))
    (tmp_path / "broken.yaml").write_text("data: [")
    with pytest.raises(UserError, match="not YAML"):
        parse("--config", str(tmp_path / "broken.yaml"))
    (tmp_path / "other.yaml").write_text(yaml.safe_dump({"data": {"rot": 1}}))
    with pytest.raises(UserError, match="unknown setting data.rot"):
        parse("--config", str(tmp_path / "other.yaml"))


def test_resolved_settings_can_be_read_again(tmp_path):
    settings = parse("--profile", "demo", "lcm.steps=7")
    config.keep(settings, tmp_path)
    assert parse("--config", str(tmp_path / "config.yaml")) == settings


def test_image_sizes_that_do_not_fit_are_named():
    with pytest.raises(UserError, match="multiple of 256"):
        config.check_image_size(parse("data.image_size=1000"))
    config.check_image_size(parse())


def test_help_lists_what_the_script_reads(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--help", reads=("ldm.steps", "data"))
    shown = capsys.readouterr().out
    assert stop.value.code == 0 and "ldm.steps=1000" in shown and "sampling steps" in shown and "data.root" in shown and "lcm.steps" not in shown


def test_a_key_that_the_script_does_not_read_is_noted(capsys):
    parse("lcm.steps=4", reads=("data",))
    assert "does not read lcm.steps" in capsys.readouterr().err


def test_every_setting_has_a_meaning_and_a_reader():
    tree = config.load(ROOT / "config.yaml")
    meanings = config._meanings((ROOT / "config.yaml").read_text())
    code = "\n".join(path.read_text() for path in [*SCRIPTS, *(ROOT / "models").rglob("*.py")] if path.name != "config.py")
    for key in config.flatten(tree):
        assert meanings[key], f"{key} has no comment in config.yaml"
        leaf = key.rsplit(".", 1)[-1]
        section = key.rsplit(".", 1)[0].rsplit(".", 1)[-1]
        read = re.search(rf"\.{leaf}\b|\"{leaf}\"", code) or re.search(rf"asdict\([\w.]*\b({section})\b", code)
        assert read, f"nothing reads {key}"


@pytest.mark.parametrize("crop, fits", [(0, True), (256, True), (1024, True), (1032, False), (100, False)])
def test_a_crop_fits_the_images_and_the_autoencoder(crop, fits):
    settings = parse(f"vqgan.crop={crop}")
    if fits:
        config.check_image_size(settings)
    else:
        with pytest.raises(UserError, match=f"vqgan.crop={crop} should be a multiple of 8 and at most data.image_size=1024"):
            config.check_image_size(settings)
