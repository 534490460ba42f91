"""Try a wheel as its user gets it: `python tests/smoke_wheel.py dist/likely-0.1.0-py3-none-any.whl`.

The wheel is installed at the versions of constraints.txt into a virtual environment of its own and tried from another
folder, first without extras, then with the extra `report`. The source tree is out of reach there, and so are the
packages of the tests. The standard library is enough to start it.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import venv
import zipfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from shutil import which

SOURCE = Path(__file__).resolve().parent.parent


def likely(*arguments: str, fails: bool = False) -> str:
    """What the installed command printed; its exit status must be as expected."""
    command = [str(Path(sys.executable).with_name("likely")), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    assert (run.returncode != 0) == fails, f"likely {' '.join(arguments)} exited {run.returncode}:\n{run.stderr}"
    return run.stderr if fails else run.stdout


def check_version() -> None:
    assert version("likely") in likely("--version")


def check_row_pass() -> None:
    """The wheel carries the compiled row pass where there was a compiler; here there is one."""
    from likely.kernels import native

    built = native.available() != ("plain",)
    assert built == (which("c++") is not None or which("g++") is not None), native.available()
    assert f"row pass: {native.active()}" in likely("--version")


def check_core() -> None:
    import torch

    import likely

    score = likely.nll(likely.Logits(torch.zeros(2, 3)), likely.labels(torch.tensor([0, 2]), 3))
    assert torch.allclose(score.cross_entropy, torch.full((2,), math.log(3)))
    assert torch.equal(score.entropy, torch.zeros(2))


def check_fit_predict_evaluate() -> None:
    from sklearn.datasets import load_iris

    data = load_iris()
    names = [name.removesuffix(" (cm)").replace(" ", "_") for name in data.feature_names]
    # No hyperplane separates versicolor from virginica, so the likelihood has a maximum.
    rows = [",".join([*map(str, x), data.target_names[y]]) for x, y in zip(data.data, data.target) if y > 0]
    Path("iris.csv").write_text("\n".join([",".join([*names, "species"]), *rows]) + "\n", encoding="utf-8")
    likely("fit", "iris.csv", "--target", "species", "--out", "model")
    likely("predict", "model", "iris.csv", "--out", "predictions.csv")
    said = json.loads(likely("evaluate", "predictions.csv", "--json"))
    assert abs(said["cross_entropy"]["mean"] - 0.0594927) < 1e-6, said  # −5.94927 is the maximal log-likelihood
    assert said["accuracy"]["mean"] == 0.98, said


def check_model_in_python() -> None:
    import likely

    p_NC = likely.load("model").predict_proba([[5.9, 2.8, 4.3, 1.3]])
    assert p_NC.shape == (1, 2)
    assert abs(float(p_NC.sum()) - 1) < 1e-12


def check_bad_input() -> None:
    message = likely("fit", "iris.csv", "--target", "spices", "--out", "other", fails=True)
    assert "species" in message, message
    assert "Traceback" not in message, message
    assert not Path("other").exists()


def check_origin() -> None:
    import likely

    assert Path(likely.__file__).is_relative_to(sys.prefix), likely.__file__
    files = {getattr(module, "__file__", None) or "" for module in sys.modules.values()} - {"", __file__}
    own = [file for file in files if Path(file).resolve().is_relative_to(SOURCE)]
    assert not own, f"imported from the source tree: {own}"
    extras = [name for name in ("plotly", "pytest", "pandas") if find_spec(name)]
    assert not extras, f"came with the wheel: {extras}"


def check_report() -> None:
    assert not Path("model", "report.html").exists(), "written without the extra that it needs"
    likely("evaluate", "predictions.csv", "--out", "evaluated")
    assert "plotly" in Path("evaluated", "report.html").read_text(encoding="utf-8").lower()


def check_demo() -> None:
    likely("distill", "--out", "distilled")
    assert "plotly" in Path("distilled", "report.html").read_text(encoding="utf-8").lower()


# In this order: a later check uses what an earlier one wrote.
CHECKS = {
    "": [
        check_version,
        check_row_pass,
        check_core,
        check_fit_predict_evaluate,
        check_model_in_python,
        check_bad_input,
        check_origin,
    ],
    "[report]": [check_report, check_demo],
}


def misfits(wheel: Path) -> list[str]:
    """The package's files that the wheel lacks, and what it holds beyond them."""
    folder = SOURCE / "src" / "likely"
    files = {path.relative_to(folder.parent).as_posix() for path in folder.rglob("*") if path.is_file()}
    # The sources of the row pass are for the sdist; the wheel holds what was made of them.
    expected = {name for name in files if "__pycache__" not in name and not name.endswith((".cpp", ".h"))}
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    return [f"lacks {name}" for name in sorted(expected - held)] + [f"holds {name}" for name in sorted(held - expected)]


def main(wheel: Path) -> int:
    """Install the wheel, run every check in a process of its own, and return the number that failed."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    wrong = misfits(wheel)
    results = [not wrong]
    print(f"{wheel.name} {', '.join(wrong) or 'holds every file of the package'}", flush=True)
    with tempfile.TemporaryDirectory(prefix="likely-wheel-") as folder:
        venv.create(Path(folder, "venv"), with_pip=True)
        python = str(Path(folder, "venv", "bin", "python"))
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        for extra, checks in CHECKS.items():
            print(f"installing likely{extra} into a fresh environment", flush=True)
            requirement = [f"{wheel}{extra}", "--constraint", str(SOURCE / "constraints.txt")]
            subprocess.run([*pip, *requirement], check=True, env=clean)
            for check in checks:
                run = subprocess.run([python, "-I", __file__, check.__name__], cwd=folder, env=clean, check=False)
                results.append(run.returncode == 0)
                print("ok    " if results[-1] else "FAILED", check.__name__.removeprefix("check_"), flush=True)
    print(f"smoke: {sum(results)} passed, {len(results) - sum(results)} failed")
    return len(results) - sum(results)


if __name__ == "__main__":
    by_name = {check.__name__: check for checks in CHECKS.values() for check in checks}
    if sys.argv[1] in by_name:
        by_name[sys.argv[1]]()
    else:
        sys.exit(main(Path(sys.argv[1]).resolve()))
