"""Datasets that RecBole downloads: there whole or not at all, for one process and for several."""

from __future__ import annotations

import io
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from recbole.utils import url as recbole_url

from recbole_dsl.config import RecBoleDSLConfig, no_flags
from recbole_dsl.errors import DataError
from recbole_dsl.experiment import load_data, run_recbole_dsl
from recbole_dsl.files import temporary_folder, usual_mode
from tests.model_runs import settings_of
from tests.tiny_data import NAME

KNOWN = "ml-1m"
"""A dataset of RecBole's list, which has a knowledge graph there as well."""

pytestmark = pytest.mark.usefixtures("in_folder")


class Answer(io.BytesIO):
    """What a server says."""

    def __init__(self, content: bytes, length: int | None = None) -> None:
        super().__init__(content)
        self.length = len(content) if length is None else length

    def info(self) -> dict[str, str]:
        return {"Content-Length": str(self.length)}


@pytest.fixture
def archive(data: Path) -> bytes:
    """The generated dataset as it is downloaded."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for path in (data / NAME).iterdir():
            file.write(path, path.name.replace(NAME, KNOWN))
    return content.getvalue()


def serve(monkeypatch: pytest.MonkeyPatch, answer: Callable[[str], Any]) -> list[str]:
    """Let a function answer instead of the network; returns the addresses that are asked for."""
    asked: list[str] = []

    def urlopen(url: str) -> Any:
        asked.append(url)
        return answer(url)

    monkeypatch.setattr(recbole_url.ur, "urlopen", urlopen)
    return asked


def settings_for(model: str, data: Path, home: Path) -> dict[str, Any]:
    return {**settings_of(model, data), "data_path": str(home), "checkpoint_dir": str(home / "saved")}


def load(model: str, data: Path, home: Path) -> Any:
    with no_flags():
        return load_data(RecBoleDSLConfig(model, KNOWN, config_dict=settings_for(model, data, home)))


def test_a_run_downloads_its_dataset(
    data: Path, archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run trains, which RecBole's cannot without a process group; the second takes what is there."""
    asked = serve(monkeypatch, lambda _: Answer(archive))
    given = settings_for("BPR", data, tmp_path / "data")
    for _ in range(2):
        with no_flags():
            result = run_recbole_dsl("BPR", KNOWN, config_dict=given)
        assert result.test_result and asked == [asked[0]] * 2 and asked[0].endswith("/ml-1m.zip")
    names = {path.name.replace(NAME, KNOWN) for path in (data / NAME).iterdir()}
    assert {path.name for path in (tmp_path / "data" / KNOWN).iterdir()} == names
    assert {path.name for path in (tmp_path / "data").iterdir()} == {KNOWN, f".{KNOWN}.lock", "saved"}


def test_ctrl_c_is_one(data: Path, archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which RecBole makes an error of the data; what a killed process has left is removed by the next."""
    home = tmp_path / "data"

    def pressed(url: str) -> Any:
        answer = Answer(archive)
        answer.read = interrupt  # type: ignore[method-assign]
        return answer

    def interrupt(*_: Any) -> bytes:
        raise KeyboardInterrupt

    serve(monkeypatch, pressed)
    with pytest.raises(KeyboardInterrupt):
        load("BPR", data, home)
    assert [path.name for path in home.iterdir()] == [f".{KNOWN}.lock"]
    if hasattr(os, "fork"):
        process = os.fork()
        if not process:
            temporary_folder(home / KNOWN)
            os._exit(0)
        os.waitpid(process, 0)
        assert len(list(home.iterdir())) == 2
    serve(monkeypatch, lambda _: Answer(archive))
    load("BPR", data, home)
    assert {path.name for path in home.iterdir()} == {KNOWN, f".{KNOWN}.lock"}
    assert (home / KNOWN).stat().st_mode & 0o777 == usual_mode(0o777)


def test_an_interrupted_download_leaves_nothing(
    data: Path, archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of an archive, or a connection that breaks; then the next call downloads it."""

    def broken(url: str) -> Any:
        answer = Answer(archive)
        answer.read = lambda *_: 1 / 0  # type: ignore[assignment,method-assign]
        return answer

    for answer in (lambda _: Answer(archive[: len(archive) // 2]), broken):
        serve(monkeypatch, answer)
        with pytest.raises(DataError, match=f"dataset='{KNOWN}' in .* cannot be prepared"):
            load("BPR", data, tmp_path / "data")
        assert [path.name for path in (tmp_path / "data").iterdir()] == [f".{KNOWN}.lock"]
    serve(monkeypatch, lambda _: Answer(archive))
    load("BPR", data, tmp_path / "data")


@pytest.mark.parametrize("reply", ["n", "", "lost"])
def test_a_large_download_is_asked_for(
    reply: str, data: Path, archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a yes, or without anybody to say it, there is one sentence, and nothing is loaded."""

    def answer(_: str) -> str:
        if not reply:
            raise EOFError
        if reply == "lost":
            raise RuntimeError("input(): lost sys.stdin")
        return reply

    monkeypatch.setattr("builtins.input", answer)
    asked = serve(monkeypatch, lambda _: Answer(archive, length=2**31))
    with pytest.raises(DataError, match=r"more than 1 GB was not agreed to; allowed is to answer 'y'"):
        load("BPR", data, tmp_path / "data")
    assert len(asked) == 1 and not (tmp_path / "data" / KNOWN).exists()


def test_a_graph_that_must_be_converted_is_told(
    data: Path, archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RecBole ends there with status 0, as if the training had been done, or with an EOFError."""

    def nobody(_: str) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", nobody)
    for home, size in ((tmp_path / "one", None), (tmp_path / "two", 2**31)):
        serve(monkeypatch, lambda url, size=size: Answer(archive, size if "KG" in url else None))
        with pytest.raises(DataError, match=r"'ml-1m' is in '.*' now, but its knowledge graph is not, or not"):
            load("KGAT", data, home)
        load("KGAT", data, home)  # the archive of the test has the files


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes that share the faked network")
def test_two_processes_download_once(
    data: Path, archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that waits takes what the other has made."""
    count = tmp_path / "count"

    def answer(url: str) -> Answer:
        with count.open("a") as file:
            file.write(f"{url}\n")
        return Answer(archive)

    serve(monkeypatch, answer)
    home = tmp_path / "data"
    home.mkdir()
    with FileLock(home / f".{KNOWN}.lock"):  # so that both come while nothing is there
        processes = []
        for _ in range(2):
            process = os.fork()
            if not process:
                torch.set_num_threads(1)
                try:
                    load("BPR", data, home)
                    os._exit(0)
                finally:
                    os._exit(1)
            processes.append(process)
    assert [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes] == [0, 0]
    assert len(count.read_text().splitlines()) == 2  # its size and its content, each once


def test_where_files_cannot_be_locked_it_is_downloaded_all_the_same(
    data: Path,
    archive: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With a warning, as nothing keeps others from doing the same: what is there first stays."""

    def refuse(*_: Any, **__: Any) -> None:
        raise NotImplementedError("no locks here")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    folder = tmp_path / "data" / KNOWN

    def answer(_: str) -> Answer:
        if meanwhile and not folder.exists():
            zipfile.ZipFile(io.BytesIO(archive)).extractall(folder)
            (folder / "theirs").touch()
        return Answer(archive)

    for meanwhile in (False, True):
        serve(monkeypatch, answer)
        load("BPR", data, tmp_path / "data")
        assert (folder / f"{KNOWN}.inter").is_file() and (folder / "theirs").exists() is meanwhile
        assert [path.name for path in folder.parent.iterdir()] == [KNOWN]
        shutil.rmtree(folder)
