"""The demonstrations in small settings; those that fetch a package skip aloud where it cannot be had."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from examples import character_model, fetch, file_types, language_model, languages, truncation
from likely.training.comparison import Comparison


@pytest.fixture
def fetched(request: pytest.FixtureRequest) -> None:
    """The packages that a test names, in the cache."""
    for name in request.param:
        try:
            fetch.fetch(name)
        except RuntimeError as error:
            pytest.skip(str(error))


def needs(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("fetched", [names], indirect=True, ids=["-".join(names)])


# --------------------------------------------------------------------------------------------------------- fetching


def wheel(path: Path, *members: tuple[zipfile.ZipInfo | str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def source(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_an_archive_is_unpacked(tmp_path: Path) -> None:
    fetch.unpack(wheel(tmp_path / "a.whl", ("p/x.txt", b"x"), ("p/q/", b"")), tmp_path / "a")
    fetch.unpack(source(tmp_path / "b.tar.gz", (tarfile.TarInfo("p/x.txt"), b"x")), tmp_path / "b")
    assert (tmp_path / "a" / "p" / "x.txt").read_bytes() == (tmp_path / "b" / "p" / "x.txt").read_bytes() == b"x"


@pytest.mark.parametrize("name", ["../x", "/x", "p/../../x", "..\\x", "C:/x", "."])
def test_nothing_is_written_outside_the_folder(name: str, tmp_path: Path) -> None:
    for archive in (
        wheel(tmp_path / "a.whl", (name, b"x")),
        source(tmp_path / "b.tar.gz", (tarfile.TarInfo(name), b"x")),
    ):
        with pytest.raises(ValueError, match="outside"):
            fetch.unpack(archive, tmp_path / "in" / "folder")
    assert not [path for path in tmp_path.rglob("x") if path.is_file()]


def test_links_are_not_unpacked(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("p/link")
    link.external_attr = 0o120777 << 16
    other = tarfile.TarInfo("p/link")
    other.type, other.linkname = tarfile.SYMTYPE, "/etc/passwd"
    for archive in (wheel(tmp_path / "a.whl", (link, b"/etc/passwd")), source(tmp_path / "b.tar.gz", (other, b""))):
        with pytest.raises(ValueError, match="no plain file"):
            fetch.unpack(archive, tmp_path / "out")


def test_another_file_than_the_pinned_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIKELY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "_download", lambda package, folder: wheel(folder / "a.whl", ("p/x.txt", b"x")))
    with pytest.raises(ValueError, match="SHA-256"):
        fetch.fetch("py3langid")
    assert not (tmp_path / "cache" / "packages").exists()


# ------------------------------------------------------------------------------------------- what needs nothing fetched


def test_truncation_costs_more_than_draws() -> None:
    found = truncation.excess(3, seeds=(0,), rows=6000)
    kept = {name: value.mean for name, value in found.items()}
    assert kept["samples"] < min(kept["top, renormalised"], kept["top, with a bucket"]) < kept["labels"]
    assert all(value > 0 for value in kept.values())


def test_translations_are_read_from_a_catalogue() -> None:
    catalogue = (
        'msgid ""\nmsgstr ""\n"Language: de\\n"\n\n'
        '#, fuzzy\nmsgctxt "c"\nmsgid "One"\nmsgstr ""\n"Ei"\n"ns \\"1\\""\n\n'
        'msgid "%d file"\nmsgid_plural "%d files"\nmsgstr[0] "%d Datei"\nmsgstr[1] "%d Dateien"\n\n'
        'msgid "No"\nmsgstr ""\n'
    )
    assert list(languages._messages(catalogue)) == [("One", 'Eins "1"'), ("%d file", "%d Datei")]


def test_what_is_read_of_a_file() -> None:
    short = file_types.ends(b"  ab \n")
    assert short[:4].tolist() == [97, 98, 32, 10]
    assert short[-4:].tolist() == [32, 32, 97, 98]
    assert (short[4:-4] == file_types.PADDING).all()
    long = file_types.ends(bytes(range(256)) * 40)
    assert long[:2].tolist() == [0, 1]
    assert long[-1] == 255
    assert not (long == file_types.PADDING).any()


def test_the_gates_of_the_character_model_are_cudnns() -> None:
    """An LSTM's weights, laid out as cuDNN has them and as Keras stores them, come back as torch has them."""
    weight_4HX = torch.randn(4 * 3, 5)
    stored = torch.cat([gate_HX.reshape(5, 3) for gate_HX in weight_4HX.chunk(4)], dim=1)
    assert torch.equal(character_model.gates(stored), weight_4HX)


# ----------------------------------------------------------------------------------------------------- demonstrations


@pytest.mark.download
@needs("textgenrnn")
def test_the_character_model_reads_english(fetched: None) -> None:
    data = character_model.characters([("a", "This is the first time that I have seen a picture of the moon.")])
    batch = data.batch([0])
    teacher = character_model.teacher()
    losses = -teacher.head(batch).logits().log_softmax(dim=-1).gather(1, batch.labels[:, None])
    assert float(losses.mean()) < 1.5  # a guess among 465 costs 6.1
    again = character_model.characters([("a", "This is")]).batch([0])
    shorter = teacher.head(again).logits()
    assert torch.allclose(shorter, teacher.head(batch).logits()[: len(shorter)], atol=1e-4)  # it sees the past alone


@pytest.mark.download
@needs("django", "py3langid")
def test_languages(fetched: None, tmp_path: Path) -> None:
    found = languages.run(tmp_path / "out", small=True)
    nll = {name: of["nll"].mean for name, of in found.values.items()}
    assert nll[languages.ONLY] < nll[languages.FEW] - 0.3  # where the teacher wins
    assert found.differences[languages.ONLY]["nll"].low > 0  # and where it hurts
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.download
@needs("magika", "django", "textgenrnn", "mutagen")
def test_file_types(fetched: None, tmp_path: Path) -> None:
    found = file_types.run(tmp_path / "out", small=True)
    assert found.values[file_types.SOFT]["agreement"].mean > 0.5
    assert np.isfinite(found.values[file_types.SOFT]["kl"].mean)
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.download
@needs("textgenrnn")
def test_language_model(fetched: None, tmp_path: Path) -> None:
    found: Comparison = language_model.run(tmp_path / "out", small=True)
    excess = {name: of["kl"] for name, of in found.differences.items()}
    top, tail, samples, hybrid = (excess[name] for name in language_model.SMALL.keep)
    assert min(top.low, tail.low) > max(samples.high, hybrid.high) > 0  # truncation is biased, draws are not
    error = {name: of["calibration_error"].mean for name, of in found.values.items()}
    assert error["top:4"] > max(error[name] for name in language_model.SMALL.keep[2:])
    assert (tmp_path / "out" / "report.html").is_file()
