"""RecBole's download of datasets that it knows, so that a folder is there whole or not at all.

RecBole's own (data/dataset/dataset.py:232) ends a training in one process, as it waits for others at a barrier
of a process group that is not there. It makes the folder first, so that the next run takes for the dataset what
was interrupted, and unpacks into it while other processes may read it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from logging import getLogger
from pathlib import Path
from typing import Any

from filelock import Timeout

from .errors import DataError
from .files import temporary_folder, usual_mode
from .locks import lock_beside


def apply() -> None:
    """Let RecBole's datasets be downloaded by :func:`download`."""
    from recbole.data.dataset import Dataset, KnowledgeBasedDataset

    def _download(self: Any) -> None:
        download(self.dataset_name, Path(self.dataset_path), self._get_download_url("url"))

    plain = KnowledgeBasedDataset._download

    def _download_with_graph(self: Any) -> None:
        try:
            with _interrupts():
                plain(self)
        except (SystemExit, EOFError):  # with status 0 if the graph is there, though nothing was trained
            raise DataError(
                f"dataset={self.dataset_name!r} is in '{self.dataset_path}' now, but its knowledge graph is "
                "not, or not in RecBole's atomic files; allowed is to go on when its .kg and .link files are "
                "there (see the conversion tools of RecSysDatasets)."
            ) from None

    Dataset._download = _download
    KnowledgeBasedDataset._download = _download_with_graph


def download(name: str, folder: Path, url: str) -> None:
    """Make ``folder`` with the atomic files of a dataset, unless another process has made it meanwhile.

    RecBole asks at the terminal before more than 1 GB is loaded.

    Raises:
        DataError: the user does not want it, or cannot be asked.
    """
    from recbole.utils.url import decide_download, download_url, extract_zip, rename_atomic_files

    folder.parent.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        if folder.exists():
            return
        getLogger().info(f"Dataset {name} is downloaded from {url}")
        wanted = False
        with contextlib.suppress(EOFError, RuntimeError):  # nobody is there to answer, or no standard input
            wanted = decide_download(url)
        if not wanted:
            raise DataError(
                f"dataset={name!r} is not in '{folder.parent}', and its download of more than 1 GB was not "
                "agreed to; allowed is to answer 'y' at a terminal, or to put its atomic files there."
            )
        part = temporary_folder(folder)
        try:
            with _interrupts():
                archive = download_url(url, str(part))
            extract_zip(archive, str(part))
            os.unlink(archive)
            part.chmod(usual_mode(0o777))
            rename_atomic_files(str(part), Path(archive).stem, name)
            try:
                part.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was faster, where files cannot be locked
                    raise
        finally:
            shutil.rmtree(part, ignore_errors=True)


@contextlib.contextmanager
def _interrupts() -> Iterator[None]:
    """Ctrl-C as ever, of which RecBole makes an error of its own."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process of those that want ``folder`` at a time, where files can be locked."""
    otherwise = "it must not be downloaded twice at once"
    try:
        lock = lock_beside(folder, otherwise)
    except Timeout:
        getLogger().info(f"Another process makes '{folder}'; this one waits for it.")
        lock = lock_beside(folder, otherwise, wait=True)
    try:
        yield
    finally:
        lock.release()
