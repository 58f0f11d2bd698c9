"""The rules of the house: rooms, who imports whom, and that the README's tree is the one on the disk."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))
MODULES = sorted(path for path in (ROOT / "models").rglob("*.py") if path.stem != "__init__")
ROOMS = ("runtime", "viewing", "data", "comparison", "training", "evaluation", "reading", "simulate")
FIRST = (
    "config",
    "schema",
    "settings_file",
    "images",
    "raster",
    "grey_values",
    "dicom",
    "dicom_results",
    "png",
    "plausibility",
)  # of the hall: settings and image files, which the method builds on
# what each part of the house may import, beside itself
ALLOWED = {
    "runtime": set(),
    "first": {"runtime"},
    "method": {"runtime", "first"},
    "data": {"runtime", "first", "method"},
    "comparison": {"runtime", "first", "method"},
    "training": {"runtime", "first", "method", "data", "comparison"},
    "viewing": set(),
    "evaluation": {"runtime", "first", "method", "data", "comparison", "viewing"},
    "reading": {"runtime", "first", "data", "evaluation", "viewing"},
    "simulate": {"runtime", "first", "data"},
}


def house_part(module: str) -> str:
    """'runtime.files' -> 'runtime', 'images' -> 'first', 'vqgan' -> 'method'."""
    top = module.split(".")[0]
    if top in ROOMS:
        return top
    return "first" if top in FIRST else "method"


def name_of(path: Path) -> str:
    """models/runtime/files.py -> 'runtime.files'."""
    return ".".join(path.relative_to(ROOT / "models").with_suffix("").parts)


def imported(path: Path) -> set[str]:
    """Modules of models/ that a file imports, such as 'runtime.files', and scripts."""
    known = {name_of(module) for module in MODULES}
    package = list(path.relative_to(ROOT).parts[:-1])
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    modules = {name.removeprefix("models.") for name in names}
    return modules & (known | set(SCRIPTS))


@pytest.mark.slow
@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_only_what_its_room_may(path):
    own = house_part(name_of(path))
    for name in imported(path):
        assert name not in SCRIPTS, f"{path} imports the script {name}"
        other = house_part(name)
        assert other == own or other in ALLOWED[own], f"models/{name_of(path)} ({own}) imports {name} ({other})"


@pytest.mark.slow
def test_no_module_imports_itself_in_a_circle():
    imports = {name_of(path): imported(path) for path in MODULES}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"a circle: {' -> '.join([*above, name])}"
        if name not in done:
            for other in sorted(imports[name]):
                visit(other, (*above, name))
            done.add(name)

    for name in imports:
        visit(name, ())


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_script_imports_a_script(script):
    assert not imported(ROOT / f"{script}.py") & set(SCRIPTS)


def test_readme_tree_is_the_one_on_the_disk():
    """Every file at the root, in models/ and every room is in the tree, and nothing else."""
    tree = (ROOT / "README.md").read_text().split("## The tree")[1].split("```")[1]
    listed = set()
    folders: list[str] = []
    for line in tree.splitlines():
        match = re.match(r"( *)([\w./-]+)(?:  .*)?$", line)
        if match:
            depth = len(match[1]) // 2
            folders = [*folders[:depth], match[2].rstrip("/")]
            listed.add("/".join(folders))
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout")
    tops = {name.split("/")[0] for name in tracked if not name.startswith(".")}
    in_models = {name for name in tracked if name.startswith("models/") and not name.endswith("__init__.py")}
    rooms = {f"models/{room}" for room in ROOMS}
    assert listed - tops - in_models - rooms == set(), "the README's tree names what is not there"
    assert (tops | in_models | rooms) - listed == set(), "the README's tree lacks these"


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_say_what_they_do_and_list_their_keys(run_here, script):
    status, shown, _ = run_here(f"{script}.py", "--help")
    assert status == 0 and f"python {script}.py" in shown and "settings that this script reads" in shown
    status, _, told = run_here(f"{script}.py", "data.rot=x")
    assert status == 2 and "did you mean data.root" in told and len(told.strip().splitlines()) == 1


def test_nothing_in_the_project_loads_pickles_freely():
    for path in [*ROOT.glob("*.py"), *(ROOT / "models").rglob("*.py"), *(ROOT / "tools").rglob("*.py")]:
        text = path.read_text()
        assert "weights_only" + "=False" not in text and not re.search(r"pickle\.loads?\(", text), path
        assert len(re.findall(r"torch\.load\(", text)) == len(
            re.findall(r"torch\.load\([^\n]*weights_only=True", text)
        ), path
