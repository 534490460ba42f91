"""The problems: features, a target that is labels or probabilities, a penalty, made in memory or from real data.

The objective is `mean cross-entropy + λ/2 ‖W‖²`, the intercept not penalised.  λ = 1/n, which is scikit-learn's C = 1
(`C = 1/(λ n)`), except where the maximum likelihood estimate is asked for.

Shapes: n rows, D features, K classes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import scipy.special

VOTES = "vaderSentiment==2.5"
VOTES_FILE = "vaderSentiment-2.5.tar.gz"
VOTES_SHA256 = "b960c954831f5ca58afee61780cc04ed48e551b91e783bfcbfb2c18bb8081a84"


class NoData(Exception):
    """Why a problem cannot be made here."""


@dataclass(frozen=True)
class Spec:
    """A problem by its name and sizes; `make` gives its data.

    kind : how the data are made, a key of `MAKERS`
    soft : the target is probabilities
    intercept : an intercept is fitted; without one liblinear and snapml solve the same problem
    strength : λ·n
    """

    name: str
    kind: str
    n: int = 0
    D: int = 0
    K: int = 2
    soft: bool = False
    intercept: bool = True
    strength: float = 1.0

    @property
    def label(self) -> str:
        return f"{self.name}, probabilities" if self.soft else self.name

    @property
    def binary(self) -> bool:
        return self.K == 2

    def json(self) -> dict[str, Any]:
        return {**asdict(self), "label": self.label}


@dataclass(frozen=True, eq=False)
class Problem:
    """`target` is (n,) class indices or (n, K) probabilities."""

    spec: Spec
    x: Any
    target: np.ndarray
    penalty: float
    classes: int

    @property
    def sparse(self) -> bool:
        return bool(scipy.sparse.issparse(self.x))

    @property
    def soft(self) -> bool:
        return self.target.ndim == 2

    @property
    def binary(self) -> bool:
        return self.classes == 2

    @property
    def nbytes(self) -> int:
        return int(self.x.data.nbytes + self.x.indices.nbytes + self.x.indptr.nbytes if self.sparse else self.x.nbytes)

    def loss(self, w: np.ndarray, b: np.ndarray, block: int = 8192) -> float:
        """The objective in float64 at coefficients (K, D) and intercepts (K,), or (1, D) and (1,) log odds."""
        total = 0.0
        for at in range(0, self.x.shape[0], block):
            z = np.asarray(self.x[at : at + block] @ w.T, np.float64) + b
            if z.shape[1] == 1:
                z = np.hstack([np.zeros_like(z), z])
            q = self.target[at : at + block]
            mean = z[np.arange(len(q)), q] if q.ndim == 1 else np.einsum("nk,nk->n", q, z)
            # log Σ exp(z − mean): nothing cancels where the loss of a row is small.
            total += float(scipy.special.logsumexp(z - mean[:, None], axis=1).sum())
        return total / self.x.shape[0] + self.penalty / 2 * float((w * w).sum())


# ------------------------------------------------------------------------------------------------------ made up

Data = tuple[Any, np.ndarray]


def drawn(z_nK: np.ndarray, soft: bool, rng: np.random.Generator) -> np.ndarray:
    """Labels drawn from softmax(z), or its probabilities mixed with what noisy votes would add."""
    p = scipy.special.softmax(z_nK, axis=1)
    if soft:
        noise = rng.gamma(1.0, size=p.shape)
        return 0.8 * p + 0.2 * noise / noise.sum(axis=1, keepdims=True)
    cumulated = p.cumsum(axis=1)
    below = cumulated < rng.random((len(p), 1)) * cumulated[:, -1:]
    return np.minimum(below.sum(axis=1), p.shape[1] - 1)


def badly_scaled(spec: Spec, rng: np.random.Generator) -> Data:
    """Correlated columns (0.9 with a common factor) whose scales run from 1e-4 to 1e4."""
    common = rng.standard_normal((spec.n, 1))
    x = rng.standard_normal((spec.n, spec.D))
    x *= np.sqrt(0.1)
    x += np.sqrt(0.9) * common
    w = rng.standard_normal((spec.D, spec.K)) / np.sqrt(spec.D)
    target = drawn(x @ w, spec.soft, rng)
    x *= np.logspace(-4, 4, spec.D)
    return x, target


def gaussian(spec: Spec, rng: np.random.Generator) -> Data:
    """Independent columns: the well-conditioned case."""
    x = rng.standard_normal((spec.n, spec.D))
    w = 2 * rng.standard_normal((spec.D, spec.K)) / np.sqrt(spec.D)
    return x, drawn(x @ w, spec.soft, rng)


def correlated(spec: Spec, rng: np.random.Generator) -> Data:
    """Columns whose covariance has eigenvalues that fall over two decades, in directions of no column."""
    size = np.logspace(0, -1, spec.D)
    turn = np.linalg.qr(rng.standard_normal((spec.D, spec.D)))[0]
    x = (rng.standard_normal((spec.n, spec.D)) * size) @ turn
    w = 2 * rng.standard_normal((spec.D, spec.K)) / (np.sqrt(spec.D) * size.mean())
    return x, drawn(x @ w, spec.soft, rng)


def pictures(spec: Spec, rng: np.random.Generator) -> Data:
    """Between 0 and 1, four fifths of them 0, correlated through few factors: like grey values of small pictures."""
    factors = rng.standard_normal((30, spec.D)) * np.linspace(1, 0.1, 30)[:, None]
    x = rng.standard_normal((spec.n, 30)) @ factors
    x += 0.5 * rng.standard_normal((spec.n, spec.D))
    x = np.clip((x - np.quantile(x[:1000], 0.8)) / 6, 0, 1)
    w = rng.standard_normal((spec.D, spec.K)) * (8 / np.sqrt(spec.D))
    z = x @ w
    return x, drawn(z - z.mean(axis=0), spec.soft, rng)


def sparse(spec: Spec, rng: np.random.Generator) -> Data:
    """CSR like bags of words: about 40 entries a row, columns by Zipf's law, rows of length 1."""
    counts = np.maximum(1, rng.poisson(40, spec.n))
    frequency = 1 / np.arange(1, spec.D + 1)
    columns = rng.choice(spec.D, int(counts.sum()), p=frequency / frequency.sum())
    rows = np.repeat(np.arange(spec.n), counts)
    x = scipy.sparse.coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(spec.n, spec.D)).tocsr()
    x.data = np.log1p(x.data)
    length = np.sqrt(np.asarray(x.multiply(x).sum(axis=1)).ravel())
    x = scipy.sparse.diags(1 / length).dot(x).tocsr()
    z = np.asarray(x @ (6 * rng.standard_normal((spec.D, spec.K))))
    return x, drawn(z, spec.soft, rng)


# -------------------------------------------------------------------------------------------------------- real


def softened(labels: np.ndarray, K: int, rng: np.random.Generator) -> np.ndarray:
    """Labels as what a few raters would have said: 0.7 for the label, the rest drawn."""
    noise = rng.gamma(0.5, size=(len(labels), K))
    return 0.7 * np.eye(K)[labels] + 0.3 * noise / noise.sum(axis=1, keepdims=True)


def digits(spec: Spec, rng: np.random.Generator) -> Data:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return x, softened(y, 10, rng) if spec.soft else y


def anes96(spec: Spec, rng: np.random.Generator) -> Data:
    try:
        import statsmodels.api
    except ImportError as error:
        raise NoData(f"anes96 comes with statsmodels: {error}") from error
    data = statsmodels.api.datasets.anes96.load_pandas()
    y = np.asarray(data.endog, np.int64)
    x = np.asarray(data.exog, np.float64)
    return x, softened(y, 7, rng) if spec.soft else y


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "likely-benchmarks"


@cache
def votes_of(which: str) -> tuple[list[str], np.ndarray]:
    """Texts, and the shares of negative, neutral and positive votes."""
    kept = cache_folder() / VOTES_FILE
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", VOTES]
        try:
            subprocess.run([*command, "-d", str(kept.parent)], check=True, timeout=180, capture_output=True)
        except (subprocess.SubprocessError, OSError) as error:
            raise NoData(f"{VOTES} cannot be downloaded: {error}") from error
    if hashlib.sha256(kept.read_bytes()).hexdigest() != VOTES_SHA256:
        raise NoData(f"{kept} is not the file that is known: remove it")
    with tarfile.open(kept) as outer:
        inner_name = next(n for n in outer.getnames() if n.endswith("hutto_ICWSM_2014.tar.gz"))
        member = outer.extractfile(inner_name)
        assert member is not None
        inner_bytes = member.read()

    def lines(inner: tarfile.TarFile, end: str) -> list[list[str]]:
        names = [n for n in inner.getnames() if n.endswith(end) and not Path(n).name.startswith(".")]
        file = inner.extractfile(names[0])
        assert file is not None
        return [line.split("\t") for line in file.read().decode("utf-8-sig", "replace").splitlines() if line.strip()]

    with tarfile.open(fileobj=io.BytesIO(inner_bytes)) as inner:
        texts = {row[0].strip(): row[2] for row in lines(inner, f"{which}_GroundTruth.txt") if len(row) > 2}
        shares = {}
        for row in lines(inner, f"{which}_anonDataRatings.txt"):
            votes = np.array([int(v) for v in re.findall(r"-?\d+", row[3])]) if len(row) > 3 else np.array([])
            if len(votes):
                shares[row[0].strip()] = np.bincount(np.sign(votes).astype(int) + 1, minlength=3) / len(votes)
    both = [key for key in texts if key in shares]
    if not both:
        raise NoData(f"{VOTES} holds no votes on {which}")
    return [texts[key] for key in both], np.array([shares[key] for key in both])


def votes(spec: Spec, rng: np.random.Generator) -> Data:
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts, shares = votes_of("movieReviewSnippets")
    x = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True).fit_transform(texts).tocsr()
    return x, shares if spec.soft else shares.argmax(axis=1)


MAKERS: dict[str, Callable[[Spec, np.random.Generator], Data]] = {
    "badly scaled": badly_scaled,
    "gaussian": gaussian,
    "correlated": correlated,
    "pictures": pictures,
    "sparse": sparse,
    "digits": digits,
    "anes96": anes96,
    "votes": votes,
}


def make(spec: Spec, seed: int = 0) -> Problem:
    x, target = MAKERS[spec.kind](spec, np.random.default_rng(seed))
    return Problem(spec, x, target, spec.strength / x.shape[0], spec.K)


def save(problem: Problem, folder: Path) -> None:
    if problem.sparse:
        scipy.sparse.save_npz(folder / "x.npz", problem.x, compressed=False)
    else:
        np.save(folder / "x.npy", problem.x)
    np.save(folder / "target.npy", problem.target)
    (folder / "spec.json").write_text(json.dumps(asdict(problem.spec)))


def load(folder: Path) -> Problem:
    spec = Spec(**json.loads((folder / "spec.json").read_text()))
    dense = folder / "x.npy"
    x = np.load(dense) if dense.exists() else scipy.sparse.load_npz(folder / "x.npz").tocsr()
    return Problem(spec, x, np.load(folder / "target.npy"), spec.strength / x.shape[0], spec.K)


def with_targets(specs: list[Spec]) -> list[Spec]:
    return [Spec(**{**asdict(spec), "soft": soft}) for spec in specs for soft in (False, True)]


FULL = with_targets(
    [
        Spec("badly scaled 1,000,000 x 30", "badly scaled", 1_000_000, 30),
        Spec("binary 20,000 x 1,000, correlated", "correlated", 20_000, 1_000),
        Spec("binary 20,000 x 1,000, unrelated columns", "gaussian", 20_000, 1_000),
        Spec("binary CSR 100,000 x 50,000", "sparse", 100_000, 50_000, intercept=False),
        Spec("multinomial 60,000 x 784, K=10", "pictures", 60_000, 784, 10),
        Spec("many classes 50,000 x 128, K=1,000", "gaussian", 50_000, 128, 1_000),
        Spec("CSR 20,000 x 30,000, K=20", "sparse", 20_000, 30_000, 20),
        Spec("digits", "digits", 1797, 64, 10),
        Spec("anes96", "anes96", 944, 11, 7, strength=0.0),
        Spec("human votes", "votes", 10_605, 0, 3),
    ]
)
QUICK = with_targets(
    [
        Spec("badly scaled 2,000 x 5", "badly scaled", 2_000, 5),
        Spec("binary CSR 500 x 300", "sparse", 500, 300, intercept=False),
        Spec("multinomial 600 x 20, K=4", "pictures", 600, 20, 4),
        Spec("anes96", "anes96", 944, 11, 7, strength=0.0),
    ]
)


def growth(quick: bool) -> dict[str, list[Spec]]:
    """Problems along one size, the others held: n at D=100 and K=10, D at n=10,000 and K=2, K at n=10,000 and D=64."""
    n_all, d_all, k_all = [4_000, 16_000, 64_000], [100, 400, 1_600], [10, 40, 160]
    if quick:
        n_all, d_all, k_all = [200, 400], [10, 20], [2, 4]
    held = 300 if quick else 10_000
    return {
        "n": [Spec(f"growth n={n:,}", "gaussian", n, 10 if quick else 100, 10) for n in n_all],
        "D": [Spec(f"growth D={D:,}", "gaussian", held, D, 2) for D in d_all],
        "K": [Spec(f"growth K={K:,}", "gaussian", held, 8 if quick else 64, K) for K in k_all],
    }
