"""Settings: profiles, key=value, what is refused and in which words, --help, and what the modules ask of settings.

Of their file: test_settings_file.py.
"""

import dataclasses
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from models import config
from models.runtime.files import UserError

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))
ALL = ("runs", "device", "precision", "compile", "features", *config.SECTIONS)


def parse(*argv, reads=ALL):
    return config.parse("what the script does", reads, list(argv))


def parse_variants(*argv):
    return config.parse_variants("what the script does", ALL, list(argv))


def refusal(*argv, reads=ALL) -> str:
    """What the user reads when these arguments are refused: one line, not too long."""
    with pytest.raises(UserError) as refused:
        parse(*argv, reads=reads)
    message = str(refused.value)
    assert "\n" not in message
    assert len(message) < 1000
    return message


def test_an_ablation_over_the_same_value_twice_is_refused():
    with pytest.raises(UserError, match=r"lcm.steps=\[4,4\] names a value twice"):
        parse_variants("lcm.steps=[4,4]")


# --- Base, profiles, command line ------------------------------------------------------------------------------------


def test_the_base_is_the_paper():
    settings = parse()
    assert settings.vqgan.network.channels == (128, 256, 512)
    assert settings.unet.blocks == 8
    assert settings.ldm.steps == 1000
    assert settings.lcm.guidance == "leg"
    assert settings.vqgan.learning_rate == 1e-4
    assert settings.data.image_size == 1024


def test_profile_then_key_value_wins():
    jsrt = parse("--profile", "jsrt")
    assert (jsrt.lcm.clip_global, jsrt.lcm.clip_local, jsrt.lcm.clip_rate) == (1.7, 3.0, 0.025)
    assert parse("--profile", "jsrt", "lcm.clip_global=1.5").lcm.clip_global == 1.5
    assert parse("lcm.clip_global=1.5", "--profile", "jsrt").lcm.clip_global == 1.5
    assert parse("--profile", "szch") == parse()


def test_settings_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        parse().lcm.steps = 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "argument, value",
    [
        ("vqgan.learning_rate=3e-5", 3e-5),
        ("vqgan.learning_rate=1e-4", 1e-4),
        ("data.image_size=1e3", 1000),
        ("lcm.alpha=2", 2.0),
        ("vqgan.milestones=[1,2]", (1, 2)),
        ("vqgan.milestones=[ 1, 2 ]", (1, 2)),
        ("vqgan.milestones=[]", ()),
        ("vqgan.milestones=7", (7,)),
        ("metrics.prediction=[a,b]", ("a", "b")),
        ("metrics.prediction=a", ("a",)),
        ('metrics.prediction=["a,b",c]', ("a,b", "c")),
        ("eval.masks=null", None),
        ("eval.dicom=true", True),
        ("eval.dicom=False", False),
        ("compile=auto", "auto"),
        ("compile=true", True),
        ("compile=false", False),
        ("lcm.steps=010", 10),
    ],
)
def test_numbers_lists_flags_and_null_are_read_as_meant(argument, value):
    key = argument.partition("=")[0]
    found = config.values(parse(argument), [key])[key]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "007",
        "2024_11_24",
        "1_000",
        "scan #1.png",
        "a: b.png",
        "- x.png",
        "{1}.png",
        "yes",
        "1e3",
        "[1].png",
        "[",
        "0x1f",
        "a=b.png",
        "*x",
        "!!python/object:os.system x",
        "'x'",
        "Null",
        "2024-11-24",
        "\udcff.png",
    ],
)
def test_a_path_on_the_command_line_is_the_text_itself(text):
    assert parse(f"eval.input={text}").eval.input == text
    assert parse(f"eval.masks={text}").eval.masks == text
    assert parse(f"metrics.prediction={text}").metrics.prediction == (text,)


def test_paths_in_a_list_are_texts_too():
    assert parse("metrics.prediction=[007,scan #1,a: b]").metrics.prediction == ("007", "scan #1", "a: b")
    several = parse_variants("eval.input=[007,2024_11_24]")
    assert [settings.eval.input for settings in several.values()] == ["007", "2024_11_24"]


def test_a_tilde_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    settings = parse("eval.input=~/x.png", "runs=~/runs", "data.root=a~b")
    assert settings.eval.input == "/home/somebody/x.png"
    assert settings.data.lists == "/home/somebody/runs/lists"
    assert settings.data.root == "a~b"


def test_names_in_braces_follow_their_setting():
    settings = parse("runs=elsewhere", "data.root=some/where")
    assert settings.vqgan.weights == "elsewhere/vqgan/weights.safetensors"
    assert settings.data.name == "where"
    assert settings.eval.input == "elsewhere/lists/where_testset.txt"
    assert parse("features={project}/weights").features == str(ROOT / "weights")
    assert parse("metrics.size={data.image_size}", "data.image_size=64").metrics.size == 64
    assert parse("metrics.prediction=[{runs}/a,{runs}/b]").metrics.prediction == ("runs/a", "runs/b")


# --- What is refused -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "argument, words",
    [
        ("lcm.stepz=4", "did you mean lcm.steps"),
        ("data.rot=x", "did you mean data.root"),
        ("qqqqqqqq.zzzz=1", "the top level has: runs, device"),
        ("lcm.qqqqqqqq=1", "lcm has: "),
        ("ldm=4", "section, not a value"),
        ("ldm.steps.x=4", "did you mean ldm.steps"),
        ("lcm.steps=four", "lcm.steps=four should be a whole number"),
        ("lcm.steps=4.5", "a whole number"),
        ("lcm.steps=true", "a whole number"),
        ("lcm.steps=0", "lcm.steps=0 should be at least 1"),
        ("lcm.steps=51", "at most 50"),
        ("lcm.steps=null", "a whole number"),
        ("lcm.guidance=lag", "should be leg, leg_shared, cfg or vanilla"),
        ("vqgan.masked=3", "true or false"),
        ("lcm.alpha=nan", "a finite number"),
        ("lcm.alpha=inf", "a finite number"),
        ("lcm.alpha=-1", "at least 0"),
        ("lcm.alpha=x", "a number"),
        ("data.root={nothing}", "names no setting"),
        ("data.root={data.root}", "refers to itself"),
        ("data.lists={eval.input}", "refers to itself"),
        ("compile=1", "auto, true or false"),
        ("compile=perhaps", "auto, true or false"),
        ("augment.bone_flat=0.5", "a list of at least 2"),
        ("augment.bone_wide=[0.01,0.03,0.1]", "a list of at most 2"),
        ("augment.bone_wide=[0,0.1]", "at least 0.001"),
        ("augment.bone_flat=[0,2]", "at most 1"),
        ("eval.strength=1.2", "at most 1"),
        ("data.image_size=1e9", "at most 8192"),
        ("metrics.size=1e6", "at most 8192"),
        ("eval.samples=100000", "at most 1000"),
        ("train.seed=9223372036854775808", "less than 9.22337e\\+18"),
        ("train.seed=1e30", "a smaller number"),
        ("vqgan.network.residual_layers=1e9", "at most 1000"),
        ("unet.multipliers=[]", "at least 1"),
        ("train.workers=1e6", "at most"),
        ("lcm.steps=" + "9" * 5000, "finite number"),
        ("data.image_size=1e400", "finite number"),
        ("eval.output=", "has no value"),
        ("runs=null", "should be a text"),
        ("runs=[a,b]", "should be a text"),
        ("lcm.steps=[4,5]", "a whole number"),
        ("metrics.prediction=[a\nb]", "is not a list"),
        ("--nothing", "--nothing"),
    ],
)
def test_mistakes_are_named(argument, words):
    with pytest.raises(UserError, match=words):
        parse(argument)


def test_an_argument_without_a_key_gets_a_hint():
    assert "eval.input=scan.png" in refusal("scan.png")
    of_a_script_without_images = refusal("scan.png", reads=("data",))
    assert "eval.input" not in of_a_script_without_images
    assert "key=value" in of_a_script_without_images


def test_a_very_long_value_is_cut_in_the_message_alone():
    assert refusal("lcm.steps=" + "x" * 100000).startswith("lcm.steps=xxx")
    long = "x" * 1000
    assert parse(f"runs={long}").data.lists == f"{long}/lists"
    assert list(parse_variants(f"ldm.weights=[{long}1,{long}2]")) == [f"weights={long}1", f"weights={long}2"]


TEXTS = st.text(st.characters(), max_size=20)
ARGUMENTS = st.one_of(
    TEXTS,
    st.builds("{}={}".format, st.sampled_from([*config.KEYS, *config.SECTIONS]), TEXTS),
    st.builds("{}={}".format, st.sampled_from(list(config.KEYS)), st.one_of(st.integers(), st.floats())),
    st.builds("{}=[{},{}]".format, st.sampled_from(list(config.KEYS)), TEXTS, TEXTS),
    st.builds("--{}".format, TEXTS),
)


@pytest.mark.slow
@hypothesis_settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arguments=st.lists(ARGUMENTS, max_size=3))
def test_any_command_line_is_taken_or_refused_in_one_line(arguments):
    assume(not any(argument in ("-h", "--help") or argument.startswith("--config") for argument in arguments))
    try:
        parse_variants(*arguments)
    except UserError as error:
        assert str(error).isprintable()


# --- Variants --------------------------------------------------------------------------------------------------------


def test_a_list_where_one_value_is_expected_means_each_of_them():
    assert parse_variants("lcm.steps=7") == {"": parse("lcm.steps=7")}
    several = parse_variants(
        "--profile", "demo", "ldm.sampler=[ddpm,ddim]", "ldm.steps=[2,5]", "ldm.clip=2", "metrics.prediction=[a,b]"
    )
    assert list(several) == [
        "sampler=ddpm steps=2",
        "sampler=ddpm steps=5",
        "sampler=ddim steps=2",
        "sampler=ddim steps=5",
    ]
    for name, settings in several.items():
        assert name == f"sampler={settings.ldm.sampler} steps={settings.ldm.steps}"
        assert settings.ldm.clip == 2
        assert settings.metrics.prediction == ("a", "b")
        assert settings.runs == "runs/demo"


@pytest.mark.parametrize(
    "argument",
    [
        "lcm.steps=[4,four]",
        "lcm.steps=[]",
        "lcm.guidance=[leg,lag]",
        "lcm=[1,2]",
        "lcm.stepz=[1]",
        "threads=[1,2]",
    ],
)
def test_variants_are_checked_as_single_values_are(argument):
    with pytest.raises(UserError):
        parse_variants(argument)


# --- Files, parts, sizes ---------------------------------------------------------------------------------------------


def test_resolved_settings_can_be_read_again(tmp_path):
    settings = parse(
        "--profile",
        "demo",
        "lcm.steps=7",
        "eval.masks=007",
        "data.patient=^(\\d+)_",
        "compile=false",
        "data.name=null: #x",
    )
    (tmp_path / "config.yaml").write_text(config.to_yaml(settings))
    assert parse("--config", str(tmp_path / "config.yaml")) == settings


def test_the_part_of_a_section_and_its_keys():
    settings = parse("lcm.steps=7", "lcm.fusion=none")
    assert config.part(settings.lcm, config.GllcmSampling).steps == 7
    fusion = config.part(settings.lcm, config.GllcmFusion)
    assert dataclasses.asdict(fusion) == {"fusion": "none", "blend": 0.5}
    fusion_keys = config.keys("lcm", config.GllcmFusion)
    assert fusion_keys == ("lcm.fusion", "lcm.blend")
    assert config.values(settings, fusion_keys) == {"lcm.fusion": "none", "lcm.blend": 0.5}
    assert config.values(settings, ["unet", "runs"]).keys() == {"runs", *config.keys("unet", config.Unet)}


def test_image_sizes_that_do_not_fit_are_named():
    with pytest.raises(UserError, match="multiple of 256"):
        config.check_image_size(parse("data.image_size=1000"), factor=8)
    config.check_image_size(parse(), factor=8)
    config.check_image_size(parse("data.image_size=192"), factor=2)
    with pytest.raises(UserError, match="multiple of 64"):
        config.check_image_size(parse("data.image_size=160"), factor=2)


def test_the_autoencoder_asks_for_its_own_halvings_alone():
    config.check_autoencoder_size(parse("data.image_size=264"))
    with pytest.raises(UserError, match="data.image_size=260 is not a multiple of 8"):
        config.check_autoencoder_size(parse("data.image_size=260"))


@pytest.mark.parametrize("crop, fits", [(0, True), (256, True), (1024, True), (1032, False), (100, False)])
def test_a_crop_fits_the_images_and_the_autoencoder(crop, fits):
    settings = parse(f"vqgan.crop={crop}")
    if fits:
        config.check_autoencoder_size(settings)
    else:
        words = f"vqgan.crop={crop} should be a multiple of 8 and at most data.image_size=1024"
        with pytest.raises(UserError, match=words):
            config.check_autoencoder_size(settings)


@pytest.mark.slow
def test_threads_are_limited_before_torch_is_imported():
    program = (
        "from models import config; config.parse('', ('runs',), ['threads=1']); "
        "import cv2, torch; print(torch.get_num_threads(), cv2.getNumThreads())"
    )
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.split() == ["1", "1"]


# --- Help and notes --------------------------------------------------------------------------------------------------


def shown_help(capsys, *argv, reads) -> str:
    with pytest.raises(SystemExit) as stop:
        parse("--help", *argv, reads=reads)
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_help_lists_what_the_script_reads(capsys):
    shown = shown_help(capsys, reads=("ldm.steps", "data", "unet.width"))
    assert "what the script does" in shown
    assert "  ldm.steps=1000  sampling steps of 1000 [B]" in shown
    assert "  data.root=data  folder that holds" in shown
    assert "  threads=0  " in shown
    assert "lcm.steps" not in shown
    assert "  ldm.steps=7  " in shown_help(capsys, "ldm.steps=7", reads=("ldm.steps",))
    assert "  ldm.steps=1  " in shown_help(capsys, "--profile", "small", reads=("ldm.steps",))


def test_help_lists_the_profiles_with_a_phrase_each(capsys):
    _, listed = shown_help(capsys, reads=("runs",)).split("profiles (--profile NAME):")
    lines = listed.strip().splitlines()
    names = yaml.safe_load((ROOT / "config.yaml").read_text())["profiles"]
    assert [line.split()[0] for line in lines] == list(names)
    for line in lines:
        assert len(line.split()) > 2, f"the profile {line} has no phrase"


def test_a_key_that_the_script_does_not_read_is_noted(capsys):
    parse("lcm.steps=4", reads=("data",))
    assert "does not read lcm.steps" in capsys.readouterr().err
    parse("lcm.steps=4", "threads=0", reads=("lcm",))
    assert capsys.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.parametrize("arguments, status", [(["--help"], 0), (["lcm.stepz=4"], 2)])
@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_mistakes_are_answered_before_torch_is_imported(script, arguments, status):
    command = [sys.executable, "-X", "importtime", script, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == status
    times = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    imported = {line.rsplit("|", 1)[1].strip() for line in times}
    assert "models.config" in imported
    assert not imported & {"torch", "numpy", "cv2", "tqdm"}


# --- Numbers of the method that stand a second time, as defaults of functions ----------------------------------------


@pytest.mark.slow
def test_defaults_of_the_methods_are_the_base_settings():
    import torch

    from models import fusion, pipelines, sampling
    from models.unet import ConditionalUNet
    from models.vqgan import MLVQGAN, PatchDiscriminator

    settings = parse()
    compared = [
        (sampling.sample_bsldm, config.part(settings.ldm, config.BsldmSampling), {}),
        (sampling.sample_gllcm, config.part(settings.lcm, config.GllcmSampling), {}),
        (fusion.fuse, config.part(settings.lcm, config.GllcmFusion), {"fusion": "method"}),
        (pipelines.GLLCM.__init__, config.part(settings.lcm, config.GllcmFusion), {}),
    ]
    for function, section, renamed in compared:
        parameters = inspect.signature(function).parameters
        for name, value in dataclasses.asdict(section).items():
            default = parameters[renamed.get(name, name)].default
            assert default == value, f"{function.__qualname__}({name}={default}), but config.yaml has {value}"

    defaults = inspect.signature(pipelines.Pipeline.__init__).parameters
    for name in ("seed", "residual", "strength"):
        assert defaults[name].default == getattr(settings.eval, name)
    assert defaults["image_size"].default == settings.data.image_size

    networks = [
        (ConditionalUNet, settings.unet),
        (MLVQGAN, settings.vqgan.network),
        (PatchDiscriminator, settings.vqgan.discriminator),
    ]
    for network, section in networks:
        with torch.device("meta"):
            default = network()
        assert {**default.settings, **dataclasses.asdict(section)} == default.settings, network
