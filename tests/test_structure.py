"""The rules of the house: floors, who imports whom, and that the README's tree is the one on the disk."""
import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {"config": 0, "images": 0, "layers": 0, "schedulers": 0, "fusion": 0, "augment": 0, "features": 0, "checkpoint": 0, "processes": 0,
          "statistics": 0, "tables": 0, "pictures": 0, "lungnet": 0, "volumes": 0, "xray": 0, "workers": 0, "compiling": 0,
          "vqgan": 1, "unet": 1, "losses": 1, "scores": 1, "data": 1, "lungs": 1, "phantom": 1, "separate": 1, "sampling": 1, "training": 1,
          "pipelines": 2, "estimator": 2, "evaluation": 2, "report": 2, "ct": 2, "variants": 3, "simulation": 3}
SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))
MODULES = sorted(path for path in (ROOT / "models").glob("*.py") if path.stem != "__init__")


def imported(path: Path) -> set[str]:
    """Names of the project that a file imports: modules of models/, or scripts."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == "models"):
            inner = (node.module or "").removeprefix("models").strip(".")
            names |= {inner.split(".")[0]} if inner else {alias.name for alias in node.names}
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
            names |= {module.removeprefix("models.").split(".")[0] for module in modules if module.split(".")[0] in ("models", *SCRIPTS)}
    return names


def test_every_module_has_a_floor():
    assert {path.stem for path in MODULES} == FLOORS.keys()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_module_imports_only_from_lower_floors(path):
    for name in imported(path) & FLOORS.keys():
        assert FLOORS[name] < FLOORS[path.stem], f"models/{path.name} imports models/{name}.py"
    assert "config" not in imported(path) and not imported(path) & set(SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_script_imports_a_script(script):
    assert not imported(ROOT / f"{script}.py") & set(SCRIPTS)


def test_readme_tree_is_the_one_on_the_disk():
    listed = set(re.findall(r"^ {0,4}(?:models/ *\n)?([\w./-]+(?:\.\w+)?)  ", (ROOT / "README.md").read_text().split("## The tree")[1]
                            .split("```")[1], re.M))
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout")
    on_disk = {name for name in tracked if "/" not in name and not name.startswith(".")}
    on_disk |= {f"models/{path.name}" for path in MODULES}
    missing = {name for name in on_disk if name not in listed and name.removeprefix("models/") not in listed}
    assert not missing, f"README's tree lacks {sorted(missing)}"
    gone = {name for name in listed if not (ROOT / name).exists() and not (ROOT / "models" / name).exists()}
    assert not gone, f"README's tree names {sorted(gone)}"


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_say_what_they_do_and_list_their_keys(run_here, script):
    status, shown, _ = run_here(f"{script}.py", "--help")
    assert status == 0 and f"python {script}.py" in shown and "settings that this script reads" in shown
    status, _, told = run_here(f"{script}.py", "data.rot=x")
    assert status == 2 and "did you mean data.root" in told and len(told.strip().splitlines()) == 1


def test_nothing_in_the_project_loads_pickles_freely():
    for path in [*ROOT.glob("*.py"), *(ROOT / "models").glob("*.py")]:
        text = path.read_text()
        assert "weights_only" + "=False" not in text and not re.search(r"pickle\.loads?\(", text), path
        assert len(re.findall(r"torch\.load\(", text)) == len(re.findall(r"torch\.load\([^\n]*weights_only=True", text)), path
