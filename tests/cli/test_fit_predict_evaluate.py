"""fit, predict and evaluate, each on what the one before has written."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm

import likely
from likely.data import read_table, write_table
from tests.cli.conftest import Likely


def test_logistic_regression_is_statsmodels(likely_cli: Likely, spector: Path, tmp_path: Path) -> None:
    metrics = likely_cli("fit", spector, "--target", "GRADE", "--out", tmp_path / "m", "--json").json()
    data = sm.datasets.spector.load_pandas()
    truth = sm.Logit(data.endog, sm.add_constant(data.exog)).fit(disp=0, tol=1e-12)
    ours = metrics["coefficients"]["of"]["1"]
    for name, value in truth.params.items():
        assert abs(ours["intercept" if name == "const" else name] - value) < 1e-6
    assert metrics["converged"]
    assert metrics["training"]["cross_entropy"]["mean"] == pytest.approx(-truth.llf / 32, abs=1e-12)


def test_softmax_regression_is_statsmodels(likely_cli: Likely, tmp_path: Path) -> None:
    data = sm.datasets.anes96.load_pandas()
    data.data.to_csv(tmp_path / "anes.csv", index=False)
    names = ",".join(data.exog.columns)
    arguments = ("fit", tmp_path / "anes.csv", "-t", "PID", "--features", names, "-o", tmp_path / "m", "--json")
    metrics = likely_cli(*arguments).json()
    truth = sm.MNLogit(data.endog, sm.add_constant(data.exog)).fit(disp=0, method="newton", tol=1e-12).params
    for j in range(6):
        ours = metrics["coefficients"]["of"][str(j + 1)]
        for name, value in truth[j].items():
            assert abs(ours["intercept" if name == "const" else name] - value) < 1e-6


def test_a_run_leaves_model_metrics_and_report(likely_cli: Likely, spector: Path, tmp_path: Path) -> None:
    result = likely_cli("fit", spector, "--target", "GRADE", "--out", tmp_path / "m", "--seed", 7)
    assert result.status == 0
    assert result.err == ""
    for text in ("Logistic regression: maximum likelihood", "certified gap", "cross-entropy (nats)", "GPA"):
        assert text in result.out
    files = {p.name for p in (tmp_path / "m").iterdir()}
    assert files == {".likely", "model.json", "model.safetensors", "metrics.json", "report.html"}
    metrics = json.loads((tmp_path / "m" / "metrics.json").read_text())
    assert metrics["seed"] == 7
    assert likely.load(tmp_path / "m").metadata["seed"] == 7
    assert {p.name for p in tmp_path.iterdir()} == {"m", "spector.csv"}


def test_without_the_report_extra_the_rest_is_written(
    likely_cli: Likely, spector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "plotly", None)
    result = likely_cli("fit", spector, "--target", "GRADE", "--out", tmp_path / "m")
    assert result.status == 0
    assert "no report was written" in result.err
    assert "likely[report]" in result.err
    assert not (tmp_path / "m" / "report.html").exists()


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".arrow", ".feather", ".jsonl", ".npz"])
def test_predictions_are_those_of_the_loaded_model_to_the_last_bit(
    likely_cli: Likely, iris: Path, tmp_path: Path, suffix: str
) -> None:
    assert likely_cli("fit", iris, "-t", "species", "--penalty", 0.01, "-o", tmp_path / "m").status == 0
    path = tmp_path / f"predictions{suffix}"
    assert likely_cli("predict", tmp_path / "m", iris, "--out", path).status == 0
    table, model = read_table(path), likely.load(tmp_path / "m")
    names = ["p_setosa", "p_versicolor", "p_virginica"]
    assert table.column_names == [*names, "prediction", "species"]
    q = np.column_stack([table[name].to_numpy() for name in names])
    np.testing.assert_array_equal(q, model.predict_proba(iris))
    assert table["prediction"].to_pylist() == model.predict(iris).tolist()
    assert likely_cli("evaluate", path).status == 0


def test_evaluate_finds_what_predict_wrote(likely_cli: Likely, spector: Path, tmp_path: Path) -> None:
    fitted = likely_cli("fit", spector, "-t", "GRADE", "-o", tmp_path / "m", "--json").json()
    likely_cli("predict", tmp_path / "m", spector, "-o", tmp_path / "p.csv")
    found = likely_cli("evaluate", tmp_path / "p.csv", "--json").json()
    assert found["target"] == ["GRADE"]
    for name in ("cross_entropy", "entropy", "kl", "brier", "accuracy", "calibration_error"):
        assert found[name] == pytest.approx(fitted["training"][name])
        assert found[name]["standard_error"] >= 0
    shown = likely_cli("evaluate", tmp_path / "p.csv").out
    for name in ("cross-entropy", "entropy of the target", "KL divergence", "Brier", "accuracy", "calibration error"):
        assert any(name in line and "±" in line for line in shown.splitlines()), name


def test_probabilities_as_targets_all_the_way(likely_cli: Likely, iris: Path, tmp_path: Path) -> None:
    """A student of a student: the teacher's columns `p_*` are the target, and come back as `target_*`."""
    likely_cli("fit", iris, "-t", "species", "--penalty", 0.01, "-o", tmp_path / "teacher")
    likely_cli("predict", tmp_path / "teacher", iris, "-o", tmp_path / "p.parquet", "--keep", "sepal*")
    arguments = (
        "fit",
        tmp_path / "p.parquet",
        "-t",
        "p_*",
        "--features",
        "sepal*",
        "-o",
        tmp_path / "student",
        "--json",
    )
    fitted = likely_cli(*arguments).json()
    assert fitted["class_names"] == ["setosa", "versicolor", "virginica"]
    training = fitted["training"]
    assert training["entropy"]["mean"] > 0.05
    total = training["entropy"]["mean"] + training["kl"]["mean"]
    assert training["cross_entropy"]["mean"] == pytest.approx(total, abs=1e-12)
    likely_cli("predict", tmp_path / "student", tmp_path / "p.parquet", "-o", tmp_path / "q.csv")
    names = read_table(tmp_path / "q.csv").column_names
    assert names[4:] == ["target_setosa", "target_versicolor", "target_virginica"]
    found = likely_cli("evaluate", tmp_path / "q.csv", "--json").json()
    assert found["soft"]
    assert found["kl"] == pytest.approx(training["kl"])


def test_classes_that_begin_alike_keep_their_names(likely_cli: Likely, tmp_path: Path) -> None:
    x = np.linspace(-1, 1, 9)
    p = 1 / (1 + np.exp(-x))
    write_table(tmp_path / "t.csv", {"x": x, "vote_new_a": p, "vote_new_b": 1 - p})
    likely_cli("fit", tmp_path / "t.csv", "-t", "vote_*", "-o", tmp_path / "m")
    likely_cli("predict", tmp_path / "m", tmp_path / "t.csv", "-o", tmp_path / "p.csv")
    names = ["p_new_a", "p_new_b", "prediction", "target_new_a", "target_new_b"]
    assert read_table(tmp_path / "p.csv").column_names == names
    assert likely_cli("evaluate", tmp_path / "p.csv", "--json").json()["kl"]["mean"] < 1e-12


def test_rows_without_a_target_are_predicted(likely_cli: Likely, spector: Path, tmp_path: Path) -> None:
    likely_cli("fit", spector, "-t", "GRADE", "-o", tmp_path / "m")
    pd.read_csv(spector).drop(columns="GRADE").to_csv(tmp_path / "new.csv", index=False)
    done = likely_cli("predict", tmp_path / "m", tmp_path / "new.csv", "-o", tmp_path / "p.csv", "--json").json()
    assert done["columns"] == ["p_0", "p_1", "prediction"]
    assert "there is no column for it; give --target" in likely_cli("evaluate", tmp_path / "p.csv").error()


def test_a_target_whose_name_looks_like_an_output(likely_cli: Likely, spector: Path, tmp_path: Path) -> None:
    pd.read_csv(spector).rename(columns={"GRADE": "p_grade"}).to_csv(tmp_path / "t.csv", index=False)
    likely_cli("fit", tmp_path / "t.csv", "-t", "p_grade", "-o", tmp_path / "m")
    likely_cli("predict", tmp_path / "m", tmp_path / "t.csv", "-o", tmp_path / "p.csv")
    assert likely_cli("evaluate", tmp_path / "p.csv", "--json").json()["target"] == ["target_p_grade"]


def test_columns_are_kept_and_groups_widen_the_error(likely_cli: Likely, spector: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(spector)
    frame.assign(school=[i // 8 for i in range(32)]).to_csv(tmp_path / "t.csv", index=False)
    likely_cli("fit", tmp_path / "t.csv", "-t", "GRADE", "--exclude", "school", "-o", tmp_path / "m")
    likely_cli("predict", tmp_path / "m", tmp_path / "t.csv", "-o", tmp_path / "p.csv", "--keep", "school")
    assert "it could be 'GRADE', 'school'; give --target" in likely_cli("evaluate", tmp_path / "p.csv").error()
    found = likely_cli("evaluate", tmp_path / "p.csv", "--groups", "school", "--json").json()
    assert found["cross_entropy"]["groups"] == 4
    direct = likely.evaluation.evaluate(  # type: ignore[attr-defined]
        likely.load(tmp_path / "m").predict_proba(tmp_path / "t.csv"),
        frame.GRADE.astype(int).to_numpy(),
        groups=[i // 8 for i in range(32)],
    )
    assert found["cross_entropy"]["standard_error"] == pytest.approx(direct.cross_entropy.standard_error)


def test_evaluate_writes_metrics_and_a_report(likely_cli: Likely, spector: Path, tmp_path: Path) -> None:
    likely_cli("fit", spector, "-t", "GRADE", "-o", tmp_path / "m")
    likely_cli("predict", tmp_path / "m", spector, "-o", tmp_path / "p.csv")
    assert likely_cli("evaluate", tmp_path / "p.csv", "-o", tmp_path / "e").status == 0
    assert {p.name for p in (tmp_path / "e").iterdir()} == {".likely", "metrics.json", "report.html"}
    assert "exists already" in likely_cli("evaluate", tmp_path / "p.csv", "-o", tmp_path / "e").error()
    assert likely_cli("evaluate", tmp_path / "p.csv", "-o", tmp_path / "e", "--overwrite").status == 0


def test_an_infinite_cross_entropy_is_json_all_the_same(likely_cli: Likely, tmp_path: Path) -> None:
    write_table(tmp_path / "p.csv", {"p_a": [1.0, 0.5], "p_b": [0.0, 0.5], "y": ["b", "a"]})
    found = likely_cli("evaluate", tmp_path / "p.csv", "--json").json()
    assert found["cross_entropy"]["mean"] == "inf"
    assert found["cross_entropy"]["standard_error"] is None


def test_categories_missing_values_and_unseen_levels(likely_cli: Likely, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, town = rng.normal(size=200), rng.choice(["Ulm", "Jena", "Bonn"], 200)
    y = rng.random(200) < 1 / (1 + np.exp(-x - (town == "Ulm")))
    frame = pd.DataFrame({"x": x, "town": town, "code": rng.integers(1, 4, 200), "y": np.where(y, "yes", "no")})
    frame.loc[[3, 5], "x"] = np.nan
    frame.loc[7, "town"] = None
    frame.to_csv(tmp_path / "t.csv", index=False)
    arguments: list[Any] = [
        "fit",
        tmp_path / "t.csv",
        "-t",
        "y",
        "--categorical",
        "code",
        "-o",
        tmp_path / "m",
        "--json",
    ]
    assert "column 'x': row 3 is missing" in likely_cli(*arguments).error()
    metrics = likely_cli(*arguments, "--impute", "median").json()
    assert list(metrics["coefficients"]["of"]["yes"]) == ["intercept", "x", "town=Jena", "town=Ulm", "code=2", "code=3"]
    (tmp_path / "new.csv").write_text("x,town,code\n,Rom,2\n")
    message = likely_cli("predict", tmp_path / "m", tmp_path / "new.csv", "-o", tmp_path / "p.csv").error()
    assert "column 'town': row 0 has the level 'Rom'" in message
    asked = likely_cli("predict", tmp_path / "m", tmp_path / "new.csv", "-o", tmp_path / "p.csv", "--unseen", "zero")
    assert asked.status == 0
    (tmp_path / "bonn.csv").write_text(
        f"x,town,code\n{np.nanmedian(frame.x)!r},Bonn,2\n".replace("np.float64(", "").replace(")", "")
    )
    q = likely.load(tmp_path / "m").predict_proba(tmp_path / "bonn.csv")
    np.testing.assert_allclose(q[0, 1], read_table(tmp_path / "p.csv")["p_yes"][0].as_py(), atol=1e-12)


def test_separable_classes_need_a_penalty(likely_cli: Likely, iris: Path, tmp_path: Path) -> None:
    message = likely_cli("fit", iris, "-t", "species", "-o", tmp_path / "m").error()
    assert message.startswith("quasi-complete separation: 'petal ")
    assert "no maximum likelihood estimate exists; use --penalty-strength 0.001, say, or --label-smoothing" in message
    assert not (tmp_path / "m").exists()
    shown = likely_cli("fit", iris, "-t", "species", "-o", tmp_path / "m", "--penalty-strength", "0.001")
    assert shown.status == 0
    assert "Note: Conditional on the penalty λ = 0.001" in shown.out


def test_the_screen_is_what_statsmodels_prints(likely_cli: Likely, spector: Path, tmp_path: Path) -> None:
    """The summary's numbers as they are read: coefficients, errors, z, p, intervals, likelihoods."""
    shown = likely_cli("fit", spector, "-t", "GRADE", "-o", tmp_path / "m").out
    data = sm.datasets.spector.load_pandas()
    truth = sm.Logit(data.endog, sm.add_constant(data.exog)).fit(disp=0, tol=1e-12)
    lines = {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line.strip()}
    low, high = truth.conf_int().to_numpy().T
    for j, name in enumerate(truth.params.index):
        row = [truth.params.iloc[j], truth.bse.iloc[j], truth.tvalues.iloc[j], truth.pvalues.iloc[j], low[j], high[j]]
        told = next(
            line.split()[1:]
            for line in shown.splitlines()
            if line.startswith(("(intercept)" if name == "const" else name) + " ")
        )
        np.testing.assert_allclose([float(cell) for cell in told], row, atol=6e-4)
    for number in (f"{truth.llf:.4f}", f"{truth.llnull:.4f}", f"{truth.aic:.4f}", f"{truth.bic:.4f}"):
        assert number in shown
    assert f"{truth.llr:.4f} on 3 df, p = 0.002" in shown
    assert float(lines["certified"][1]) < 1e-8
    frequency = data.endog.mean()
    alone = -(frequency * np.log(frequency) + (1 - frequency) * np.log1p(-frequency))
    assert f"{alone:.3f} ±" in next(line for line in shown.splitlines() if line.startswith("cross-entropy (nats)"))
    effects = shown.partition("largest effects")[2].splitlines()[2:5]
    assert [line.split()[0] for line in effects] == ["GPA", "PSI", "TUCE"]
    assert float(effects[0].split()[1]) == pytest.approx(2.8261 * data.exog["GPA"].std(ddof=0), abs=1e-3)


def test_a_narrow_terminal_is_not_overrun(likely_cli: Likely, iris: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(sys.modules["likely.cli.fit"], "_width", lambda: 80)  # the package has the command there
    monkeypatch.setenv("COLUMNS", "80")
    shown = likely_cli("fit", iris, "-t", "species", "-o", tmp_path / "m", "--penalty-strength", "0.01").out
    assert max(map(len, shown.replace(str(tmp_path), "").splitlines())) <= 80


def test_machines_are_told_what_people_are(likely_cli: Likely, spector: Path, tmp_path: Path) -> None:
    metrics = likely_cli("fit", spector, "-t", "GRADE", "-o", tmp_path / "m", "--json").json()
    told = metrics["summary"]
    assert told["coefficients"][2]["name"] == "PSI"
    assert told["coefficients"][2]["standard_error"] == pytest.approx(1.06456430165, abs=1e-5)
    assert told["log_likelihood"] == pytest.approx(-12.8896334653335, abs=1e-5)
    assert told["likelihood_ratio_p"] == pytest.approx(0.001502, abs=1e-5)
    assert 0 <= metrics["gap"] <= metrics["tol"] == 1e-8
    assert "dual point" in metrics["certificate"]
    assert json.loads((tmp_path / "m" / "metrics.json").read_text())["summary"] == told
    assert metrics["report"] == str(tmp_path / "m" / "report.html")


def test_groups_cluster_everything(likely_cli: Likely, spector: Path, tmp_path: Path) -> None:
    pd.read_csv(spector).assign(school=[i // 4 for i in range(32)]).to_csv(tmp_path / "t.csv", index=False)
    metrics = likely_cli("fit", tmp_path / "t.csv", "-t", "GRADE", "--groups", "school", "-o", tmp_path / "m", "--json")
    assert metrics.json()["columns"] == ["GPA", "TUCE", "PSI"]
    assert metrics.json()["summary"]["covariance"] == "sandwich, 8 clusters"
    assert metrics.json()["training"]["cross_entropy"]["groups"] == 8


def test_options_reach_the_estimator(likely_cli: Likely, spector: Path, tmp_path: Path) -> None:
    def run(name: str, *options: object) -> Any:
        return likely_cli("fit", spector, "-t", "GRADE", "-o", tmp_path / name, "--json", *options).json()

    for solver in ("newton-cholesky", "newton-cg", "lbfgs"):
        assert run(solver, "--solver", solver)["summary"]["solver"] == solver
    assert run("a", "--covariance", "sandwich")["summary"]["covariance"] == "sandwich (robust)"
    assert run("b", "--covariance", "none")["summary"]["coefficients"][0]["standard_error"] is None
    heavy = run("c", "--class-weight", "1=3")["coefficients"]["of"]["1"]
    assert heavy["intercept"] > run("d")["coefficients"]["of"]["1"]["intercept"]
    assert run("e", "--penalty", "0.1")["summary"]["penalty"] == 0.1
    loose = run("f", "--tol", "1e-3", "--penalty-strength", "1e-3")
    assert loose["converged"]
    assert loose["iterations"] < run("g", "--penalty-strength", "1e-3")["iterations"]


def test_another_class_is_the_reference(likely_cli: Likely, iris: Path, tmp_path: Path) -> None:
    def run(*options: object) -> tuple[dict[tuple[str, str], Any], str]:
        out = tmp_path / str(len(options))
        shown = likely_cli("fit", iris, "-t", "species", "--penalty", "0.01", "-o", out, *options).out
        told = json.loads((out / "metrics.json").read_text())["summary"]
        return {(one["label"], one["name"]): one for one in told["coefficients"]}, shown

    (first, _), (other, shown) = run(), run("--reference", "virginica", "--confidence", "0.5")
    name = "petal width (cm)"
    assert other["setosa", name]["estimate"] == pytest.approx(-first["virginica", name]["estimate"])
    assert other["setosa", name]["high"] - other["setosa", name]["low"] == pytest.approx(
        2 * 0.6745 * first["virginica", name]["standard_error"], rel=1e-3
    )
    effects = shown.partition("largest effects: log odds against virginica")[2].splitlines()
    assert effects[1].split() == ["setosa", "versicolor"]
    assert "log odds of each class against virginica" in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--solver", "sgd"), "solver: is 'sgd'; it is one of auto, newton-cholesky"),
        (("--covariance", "robust"), "covariance: is 'robust'; it is one of fisher, sandwich, none"),
        (("--groups", "GPA", "--covariance", "fisher"), "covariance: 'fisher' takes rows as independent"),
        (("--groups", "town"), "groups: there is no column 'town'"),
        (("--reference", "2"), "reference: '2' is no class; the classes are ['0', '1']"),
        (("--confidence", "95"), "confidence: is 95.0; it is a level between 0 and 1"),
        (("--max-iter", "2"), "the fit has not converged: after 2 iterations"),
        (("--class-weight", "often"), "class_weight: 'often' is no CLASS=WEIGHT"),
        (("--class-weight", "2=3"), "class_weight: '2' is no class; the classes are '0', '1'"),
        (("--weights", "odd"), "weights: is 'odd'; it is one of frequency, sampling"),
        (("--report", "spector.csv"), "spector.csv is the table that is read"),
        (("--report", "m/r.html"), "m/r.html lies in m, which has a report.html of its own"),
        (("--report", "old.html"), "old.html exists already"),
    ],
)
def test_options_that_are_refused(
    likely_cli: Likely, spector: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(spector.parent)
    Path("old.html").write_text("precious")
    assert message in likely_cli("fit", "spector.csv", "-t", "GRADE", "-o", "m", *options).error()
    assert {p.name for p in spector.parent.iterdir()} == {"spector.csv", "old.html"}


def test_the_report_tells_the_fit(likely_cli: Likely, spector: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "m", tmp_path / "fit.html"
    assert likely_cli("fit", spector, "-t", "GRADE", "-o", out, "--report", page).status == 0
    assert not (out / "report.html").exists()
    text = page.read_text()
    headings = ("The fit", "Coefficients", "The way of the solver", "Measures", "Reliability", "Confusion", "Most surp")
    places = [text.index(f">{heading}") for heading in headings]
    assert sorted(places) == places
    for words in ("95% intervals", "certified gap", "class frequencies alone", "row 1: GPA 2.89, PSI 0"):
        assert words in text, words


def test_columns_without_a_say_are_warned_of(likely_cli: Likely, spector: Path, tmp_path: Path) -> None:
    pd.read_csv(spector).assign(still=1).to_csv(tmp_path / "t.csv", index=False)
    shown = likely_cli("fit", tmp_path / "t.csv", "-t", "GRADE", "-o", tmp_path / "m")
    assert shown.status == 0
    assert shown.err == "likely: warning: column 'still': without variation the coefficient is 0\n"


def test_weights_and_smoothing_reach_the_fit(likely_cli: Likely, spector: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(spector)
    frame.assign(w=frame.index % 2 + 1).to_csv(tmp_path / "w.csv", index=False)
    pd.concat([frame, frame[frame.index % 2 == 1]]).to_csv(tmp_path / "twice.csv", index=False)
    common = ("-t", "GRADE", "--label-smoothing", "0.1", "--json")
    one = likely_cli("fit", tmp_path / "w.csv", "--weight", "w", "-o", tmp_path / "a", *common).json()
    two = likely_cli("fit", tmp_path / "twice.csv", "-o", tmp_path / "b", *common).json()
    plain = likely_cli("fit", tmp_path / "twice.csv", "-o", tmp_path / "c", "-t", "GRADE", "--json").json()
    for name, value in one["coefficients"]["of"]["1"].items():
        assert value == pytest.approx(two["coefficients"]["of"]["1"][name], abs=1e-5)
    assert abs(plain["coefficients"]["of"]["1"]["GPA"]) > abs(two["coefficients"]["of"]["1"]["GPA"])
