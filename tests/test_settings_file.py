"""Settings files: what stands in config.yaml, and which other files are refused in which words."""

import re

import pytest
import yaml
from conftest import ROOT
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from models import config, settings_file
from models.runtime.files import UserError

WRITTEN = (ROOT / "config.yaml").read_text()


def parse(path):
    """The settings of a file, without profile and command line."""
    return config.parse("", (), ["--config", str(path)])


def refusal(path, *argv) -> str:
    """What the user reads when this settings file, or a profile of it, is refused: one line."""
    with pytest.raises(UserError) as refused:
        config.parse("", (), ["--config", str(path), *argv])
    message = str(refused.value)
    assert "\n" not in message
    return message


def test_every_setting_stands_in_the_file_with_a_meaning():
    written = settings_file.load(ROOT / "config.yaml").keys()
    meanings = settings_file.read_meanings(WRITTEN)
    assert written <= config.KEYS.keys()
    # what a comparison method does without stays out of its section, and is 0
    left_out = config.KEYS.keys() - written
    assert all(key.startswith("comparison.") for key in left_out)
    for key in written:
        assert meanings[key], f"{key} has no comment in config.yaml"


def test_a_number_must_not_be_a_truth_value_in_a_file(tmp_path):
    assert "  accumulate: 1 " in WRITTEN
    path = tmp_path / "settings.yaml"
    path.write_text(WRITTEN.replace("  accumulate: 1 ", "  accumulate: true "))
    assert "train.accumulate" in refusal(path)


@pytest.mark.parametrize("text", ["007", "2024_11_24", "2024-11-24", "1e3"])
def test_a_text_that_yaml_reads_as_a_number_needs_quotes_in_a_file(tmp_path, text):
    path = tmp_path / "settings.yaml"
    path.write_text(WRITTEN.replace("  root: data ", f"  root: {text} ", 1))
    if text != "1e3":  # no number to YAML 1.1, so the text that it should be
        message = refusal(path)
        assert "data.root" in message
        assert "quotes" in message
    path.write_text(WRITTEN.replace("  root: data ", f"  root: '{text}' ", 1))
    assert parse(path).data.root == text


@pytest.mark.parametrize(
    "text, words",
    [
        ("data: [", "not YAML"),
        ("", "holds no settings"),
        ("- 1", "holds no settings"),
        ("data: {rot: 1}", "did you mean data.root"),
        ("data: 5", "section"),
        ("data:", "section"),
        ("runs: runs", "is missing from the settings file"),
        ("? [a, b]\n: c", "not YAML"),
        ("data: &x {b: *x}", "nested too deep|not YAML|unknown"),
        ("runs: a\nruns: b", "'runs' is given a second time in line 2"),
        ("data:\n  root: a\n  seed: 0\n  root: b", "'root' is given a second time in line 4"),
        ("profiles: {szch: hello}", "profile szch"),
        ("profiles: hello", "profiles"),
        ("profiles: {szch: {lcm: {stepz: 4}}}", "lcm.steps in profile szch|stepz"),
        ("[" * 3000, "not YAML"),
        ("\n".join(" " * i + "a:" for i in range(3000)), "not YAML|unknown setting"),
        ("a: &a {b: 1}\n<<: *a", "unknown setting"),
        ("data: !!python/object/apply:os.getcwd []", "not YAML"),
    ],
)
def test_settings_files_that_cannot_be_used(tmp_path, text, words):
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    assert re.search(words, refusal(path))


def test_unknown_profile_and_missing_or_binary_file(tmp_path):
    message = refusal(ROOT / "config.yaml", "--profile", "dmo")
    assert "no profile 'dmo'" in message
    assert "demo" in message  # one of those that there are
    missing = tmp_path / "none.yaml"
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(bytes(range(256)))
    for path in (missing, binary, tmp_path):
        assert "cannot read" in refusal(path)


TEXTS = st.text(st.characters(), max_size=20)
NAMES = st.one_of(st.sampled_from(["runs", "data", "root", "lcm", "steps", "profiles", "szch"]), TEXTS, st.integers())
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS, st.dates())


def branches(values):
    return st.one_of(st.lists(values, max_size=3), st.dictionaries(NAMES, values, max_size=3))


TREES = st.recursive(LEAVES, branches, max_leaves=8)


@pytest.mark.slow
@hypothesis_settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=TREES, broken=st.booleans())
def test_any_settings_file_is_taken_or_refused_in_one_line(tmp_path, tree, broken):
    text = yaml.safe_dump(tree)
    path = tmp_path / "settings.yaml"
    path.write_text(text[: len(text) // 2] if broken else text)
    refusal(path)  # since none of them is complete
