"""Imports run strictly downwards through the layers of docs/architecture.md, and `import likely` stays light."""

import ast
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "likely"
FILES = sorted(PACKAGE.rglob("*.py"))
LISTED = [path for path in FILES if path.relative_to(PACKAGE).as_posix() not in {"__init__.py", "__main__.py"}]
"""The package's own names and its entry point stand above the list of layers."""
MODULES = {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in LISTED}
OPTIONAL = {"tensorboard", "plotly", "jinja2", "transformers", "onnx", "onnxruntime", "lightning", "triton"}
"""What an installation may lack: imported inside the functions that need it."""
HEAVY = {"yaml", "sklearn", "scipy", "pandas", "pyarrow", "safetensors", "typer", "rich", "plotly", "jinja2"}
"""What `import likely` must not load: only some of its users need it."""


def layers() -> dict[str, tuple[int, str]]:
    """The list in docs/architecture.md as {module: (height, group)}.

    `>` separates layers, `|` the groups of a layer, which do not import each other, `,` the modules of one group.
    """
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    lists = re.findall(r"(?m)^(?: {4}.* > .*\n?)+", text)
    assert len(lists) == 1, f"docs/architecture.md must hold one indented list 'a > b > c', it has {len(lists)}"
    names = re.sub(r"\s+", " ", lists[0]).strip().split(" > ")
    return {
        module.strip(): (len(names) - height, group.strip())
        for height, layer in enumerate(names)
        for group in layer.split("|")
        for module in group.split(",")
    }


def qualified(path: Path) -> list[str]:
    """`src/likely/kernels/eager.py` as ["likely", "kernels", "eager"], and a package by its folder."""
    parts = list(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    return parts[:-1] if parts[-1] == "__init__" else parts


def imported(path: Path, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import in the tree, inside functions too, relative ones made absolute."""
    here = qualified(path)
    package = here if path.name == "__init__.py" else here[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            if origin == "likely":  # each name may be a module of its own
                yield from ((node.lineno, f"likely.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, origin


def name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def upward(path: Path, tree: ast.AST, heights: dict[str, tuple[int, str]]) -> list[str]:
    """The imports of one file that do not run downwards, each as a line to print."""
    here = qualified(path)[1]
    if here not in heights:
        return [f"{here} is not in the list of docs/architecture.md"]
    height, group = heights[here]
    wrong = []
    for line, origin in imported(path, tree):
        top, _, rest = origin.partition(".")
        there = rest.split(".")[0]
        if top != "likely":
            continue
        if there in MODULES - heights.keys():
            wrong.append(f"{path.name}:{line} imports {there}, which is not in the list of docs/architecture.md")
        elif there not in heights:
            wrong.append(f"{path.name}:{line} imports `{origin}` from the package's top; import its module instead")
        elif heights[there][0] > height or (heights[there][0] == height and heights[there][1] != group):
            wrong.append(f"{path.name}:{line} {here} imports {there}, which is not below it")
    return wrong


def on_import(tree: ast.AST) -> Iterator[ast.stmt]:
    """The import statements that run when the module is imported: not in a function, not for the type checker."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from on_import(node)


def test_the_picture_names_every_module_and_no_other() -> None:
    absent, unlisted = sorted(layers().keys() - MODULES), sorted(MODULES - layers().keys())
    assert not absent, f"docs/architecture.md lists what is not in src/likely: {', '.join(absent)}"
    assert not unlisted, f"docs/architecture.md has no place for {', '.join(unlisted)}"


@pytest.mark.parametrize("path", LISTED, ids=name)
def test_imports_run_downwards(path: Path) -> None:
    wrong = upward(path, ast.parse(path.read_text(encoding="utf-8")), layers())
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_optional_packages_are_imported_inside_functions(path: Path) -> None:
    statements = list(on_import(ast.parse(path.read_text(encoding="utf-8"))))
    found = {name.split(".")[0] for one in statements for _, name in imported(path, ast.Module([one], []))}
    assert found & OPTIONAL == set()


@pytest.mark.parametrize(
    ("module", "code", "wrong"),
    [
        ("heads", "from likely.measures import entropy", 0),
        ("heads", "from likely import measures", 0),
        ("heads", "from . import _checks", 0),
        ("heads", "from likely.score import Score", 1),
        ("heads", "def f():\n    from .objective import nll", 1),
        ("heads", "from likely import nll", 1),
        ("heads", "import likely", 1),
        ("nn", "from likely import functional", 0),
        ("evaluation/report", "from ..training import loop", 1),
        ("evaluation/report", "from . import calibration", 0),
        ("evaluation/report", "from ..data import read", 0),
    ],
)
def test_the_rule_itself(module: str, code: str, wrong: int) -> None:
    assert len(upward(PACKAGE / f"{module}.py", ast.parse(code), layers())) == wrong


def test_importing_likely_loads_nothing_heavy_and_changes_nothing() -> None:
    code = f"""
import json, sys, numpy, torch
def state():
    return [torch.get_num_threads(), str(torch.get_default_dtype()), torch.is_grad_enabled(),
            hash(torch.get_rng_state().numpy().tobytes()), hash(str(numpy.random.get_state()))]
before, loaded = state(), set(sys.modules)
import likely
new = {{name.split(".")[0] for name in set(sys.modules) - loaded}}
print(json.dumps([sorted(new & {HEAVY!r}), before == state()]))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    heavy, unchanged = json.loads(run.stdout)
    assert heavy == []
    assert unchanged, "import likely changed torch's or NumPy's global state"


def test_the_heavy_packages_are_installed() -> None:
    """Otherwise the test above would pass for want of them."""
    assert [name for name in sorted(HEAVY) if importlib.util.find_spec(name) is None] == []
