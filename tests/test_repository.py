"""Rules about the files of the repository: their length, what they may mention and load, the versions they agree on."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "src").rglob("*.py"))
LONG: dict[str, str] = {}
"""Source files over 400 lines, each with the reason why it is one file."""
MACHINE_PATHS = re.compile(r"(?<![\w.:/])/(?:work|root|opt/pypi|opt/wheels)/|/\.pyenv/")
UNPICKLERS = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def committed() -> list[Path]:
    """Every file that git has or would add; without git, those of the folders that hold text."""
    listing = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(listing, capture_output=True, check=True, text=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        folders = ("src", "tests", "docs", "examples", "benchmarks", ".ci")
        names = [str(path) for folder in folders for path in (ROOT / folder).rglob("*")] + [
            str(p) for p in ROOT.glob("*")
        ]
    return [path for name in sorted(filter(None, names)) if (path := ROOT / name).is_file()]


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def distribution(requirement: str) -> str:
    """`pandas-stubs>=2 ; extra` as pandas_stubs: the normal form of a distribution's name."""
    return re.sub(r"[-_.]+", "_", re.split(r"[\s\[<>=!~;]", requirement, maxsplit=1)[0]).lower()


def third_parties(folder: str) -> dict[str, str]:
    """The foreign packages that a folder's modules import by name, each with one file that does."""
    found: dict[str, str] = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Import(names=names):
                    modules = [alias.name for alias in names]
                case ast.ImportFrom(module=str(module), level=0):
                    modules = [module]
                case _:
                    continue
            found |= {module.split(".")[0]: str(path.relative_to(ROOT)) for module in modules}
    ours = {"likely", "tests", "docs", "examples", "benchmarks", *sys.stdlib_module_names}
    called = {"sklearn": "scikit_learn", "yaml": "pyyaml", "PIL": "pillow"}
    return {called.get(name, name.lower()): path for name, path in found.items() if name not in ours}


def loads_a_pickle(tree: ast.AST) -> list[str]:
    """Imports and calls that could unpickle: their lines, to print."""
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                found += [f"line {node.lineno}: import {n.name}" for n in names if n.name.split(".")[0] in UNPICKLERS]
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in UNPICKLERS:
                found.append(f"line {node.lineno}: from {module} import")
            case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="load")):
                found.append(f"line {node.lineno}: torch.load")
            case ast.Call(func=ast.Attribute(value=ast.Name(id="np" | "numpy"), attr="load"), keywords=keywords):
                if "allow_pickle=False" not in [ast.unparse(keyword) for keyword in keywords]:
                    found.append(f"line {node.lineno}: np.load without allow_pickle=False")
            case ast.Call(func=ast.Attribute(attr="read_pickle")):
                found.append(f"line {node.lineno}: read_pickle")
    return found


def test_no_text_names_a_path_of_one_machine() -> None:
    wrong = []
    for path in committed():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue  # not text
        wrong += [
            f"{path.relative_to(ROOT)}:{at}: {line}" for at, line in enumerate(lines, 1) if MACHINE_PATHS.search(line)
        ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("cd {}work/main", True),
        ("open('{}root/x')", True),
        ("https://example.org/work/root/x", False),
        ("docs/work/x", False),
        ("/path/to/python3.11", False),
    ],
)
def test_what_counts_as_a_path_of_one_machine(line: str, named: bool) -> None:
    assert bool(MACHINE_PATHS.search(line.format("/"))) == named


def test_source_files_stay_short() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    long = {name: lines for name, lines in lengths.items() if lines > 400 and name not in LONG}
    assert not long, f"split the file, or give the reason in LONG: {long}"
    assert [name for name in LONG if lengths.get(name, 0) <= 400] == [], "short again: drop it from LONG"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT / "src").as_posix())
def test_nothing_loads_a_pickle(path: Path) -> None:
    assert loads_a_pickle(ast.parse(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("import pickle", 1),
        ("from joblib import load", 1),
        ("torch.load(path)", 1),
        ("np.load(path)", 1),
        ("np.load(path, allow_pickle=True)", 1),
        ("np.load(path, allow_pickle=False)", 0),
        ("safetensors.torch.load_file(path)", 0),
        ("json.load(file)", 0),
    ],
)
def test_what_counts_as_loading_a_pickle(code: str, count: int) -> None:
    assert len(loads_a_pickle(ast.parse(code))) == count


def test_versions_agree() -> None:
    version = project()["version"]
    assert re.search(rf"(?m)^version: {re.escape(version)}$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert f'__version__ = "{version}"' in (ROOT / "src" / "likely" / "__init__.py").read_text(encoding="utf-8")
    assert re.search(rf"(?m)^## .*\b{re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))


def test_every_requirement_has_its_version_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [line for line in pins if not re.fullmatch(r"[\w.-]+==[\w.+]+", line)] == []
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    extras = project()["optional-dependencies"].values()
    wanted = [*build, *project()["dependencies"], *(one for extra in extras for one in extra)]
    missing = {distribution(one) for one in wanted} - {distribution(line) for line in pins} - {"likely"}
    assert missing == set()


@pytest.mark.parametrize("folder", ["src", "tests", "docs", "examples", "benchmarks"])
def test_what_is_imported_is_required(folder: str) -> None:
    """Nothing hides behind what happens to be installed: a clean environment has the requirements only."""
    extras = project()["optional-dependencies"]
    developers = {"test", "bench"}
    users = {one for extra, wanted in extras.items() if extra not in developers for one in wanted}
    triton = {"triton"}  # comes with the builds of torch that have a GPU to run it on
    required = {*project()["dependencies"], *users, *triton}
    if folder == "benchmarks":  # a contestant that is absent is listed as not run
        required |= {"glum", "snapml", "skglm", "adelie"}
    if folder != "src":
        required |= {one for extra in developers & extras.keys() for one in extras[extra]}
    names = {distribution(one) for one in required}
    missing = {name: path for name, path in third_parties(folder).items() if name not in names}
    assert not missing, f"not among the requirements in pyproject.toml: {missing}"
