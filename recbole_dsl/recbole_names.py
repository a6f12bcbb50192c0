"""Which models and datasets RecBole can load, and where those of one's own are."""

from __future__ import annotations

import importlib
import os
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import recbole

from recbole_dsl import property_files
from recbole_dsl.errors import ConfigError, nearest, on_one_line

OF_A_PROCESS = ("nproc", "world_size", "ip", "port", "offset", "local_rank", "single_spec", "gpu_id")
"""Settings of a machine and of a process, of no meaning elsewhere; by ``local_rank`` it connects to others."""

EXTERNAL_LIBRARY_FOLDER = "exlib_recommender"


def _package() -> Path:
    return Path(str(recbole.__file__)).parent


def model_files() -> dict[str, Path]:
    """The module file of each RecBole model by its name in lower case, which is the file's name."""
    files = sorted(_package().glob("model/*_recommender/*.py"))
    return {path.stem: path for path in files if path.stem != "__init__"}


def family(path: Path) -> str:
    """The family of the model in ``path``, which is its folder: general, sequential, …"""
    return path.parent.name.removesuffix("_recommender")


def model_class_name(path: Path) -> str:
    """The name of the model class in ``path``: the one that, in lower case, is the file's name."""
    names: list[str] = re.findall(r"^class (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return next((name for name in names if name.lower() == path.stem), path.stem)


def check_model_name(model: object) -> None:
    """Refuse a name that is no RecBole model, and models of external libraries.

    Raises:
        ConfigError: names the model and the nearest known one.
    """
    files = model_files()
    path = files.get(model.lower()) if isinstance(model, str) else None
    if path is None:
        near = nearest(str(model).lower(), files)
        for stem in re.findall(r"'(\w+)'", near):
            near = near.replace(stem, model_class_name(files[stem]))
        raise ConfigError(
            f"model={model!r} is no model of RecBole{near}; allowed are the class names of its "
            "models, such as BPR or LightGCN, and package.module:Class."
        )
    name = model_class_name(path)
    if model != name:
        raise ConfigError(f"model={model!r} is no model of RecBole; allowed is {name!r}.")
    if path.parent.name == EXTERNAL_LIBRARY_FOLDER:
        raise ConfigError(
            f"model={model!r} is refused, because an external library trains it without gradients; "
            "allowed are models that are trained by gradient descent."
        )


def import_model(path: str) -> type:
    """The class that ``package.module:Class`` names; the working directory is searched first.

    Raises:
        ConfigError: there is no such module, it cannot be imported, or it has no such class.
    """
    module_name, _, class_name = path.partition(":")
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(folder)]
        where = f" in {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
        raise ConfigError(
            f"model={path!r} cannot be imported ({on_one_line(error)}{where}); allowed is "
            "package.module:Class with a module that Python finds, for instance in the working directory."
        ) from error
    finally:
        sys.path.remove(folder)
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        own = {name: thing for name, thing in vars(module).items() if isinstance(thing, type)}
        classes = [name for name, thing in own.items() if thing.__module__ == module.__name__]
        raise ConfigError(
            f"model={path!r}: module {module_name!r} has no class {class_name!r}"
            f"{nearest(class_name, classes)}; "
            f"allowed are {', '.join(classes) or 'none, as it has no classes'}."
        )
    return found


def has_defaults(model: str) -> bool:
    """Whether RecBole has a file of settings for a model of that name."""
    return (_package() / "properties" / "model" / f"{model}.yaml").is_file()


def lineage(model: str, model_class: type) -> list[str]:
    """``model``, then the names of the RecBole models that ``model_class`` derives from, nearest first."""
    return [model, *(name for name in recbole_lineage(model_class) if name != model)]


def recbole_lineage(model_class: type) -> list[str]:
    """Names of the RecBole models that a class is or derives from, nearest first."""
    return [
        cls.__name__
        for cls in model_class.__mro__
        if cls.__module__.startswith("recbole.model.")
        and cls.__module__.rpartition(".")[2] == cls.__name__.lower()
    ]


def downloadable_datasets() -> property_files.Settings:
    """The datasets that RecBole downloads when their folder is missing, with their addresses."""
    return property_files.read_mapping(_package() / "properties" / "dataset" / "url.yaml")


MODELS: Final = "recbole.model."
"""How the full names of RecBole's models begin."""


def full_name(model_class: type) -> str:
    """A class's module and name, such as ``'recbole.model.general_recommender.bpr.BPR'``."""
    return f"{model_class.__module__}.{model_class.__qualname__}"


def check_dataset_name(dataset: object) -> None:
    """Refuse what cannot be the name of a dataset.

    Raises:
        ConfigError: ``dataset`` is no text, blank, or a path.
    """
    if not isinstance(dataset, str) or not dataset.strip() or {"/", "\\"} & set(dataset):
        raise ConfigError(
            f"dataset={dataset!r} is refused: allowed is the name of a dataset, whose folder is in data_path."
        )


def header_misfit(file: Path, fields: Mapping[str, str], separator: str, encoding: str) -> str:
    """How the header of an atomic file and the settings do not fit, as a sentence; ``""`` if they do.

    Args:
        file: the interactions, whose first line is ``name:type`` fields.
        fields: setting (``USER_ID_FIELD``) to the field that it names.
        separator: RecBole's ``field_separator``.
        encoding: RecBole's ``encoding``.
    """
    try:
        with file.open(encoding=encoding) as lines:
            header = lines.readline().rstrip("\r\n")
        if header.startswith("\ufeff"):
            return f"{file.name} begins with a byte order mark; save it as UTF-8 without one"
    except (OSError, UnicodeError, LookupError):
        return ""
    columns = header.split(separator) if separator else [header]
    if any(column.count(":") != 1 for column in columns):
        return (
            f"the header {header!r} of {file.name}, cut at field_separator={separator!r}, "
            "is not of fields 'name:type'"
        )
    names = [column.split(":")[0] for column in columns]
    for setting, field in fields.items():
        if field not in names:
            return f"{setting}={field!r} is no field of {file.name}, which has {', '.join(names)}"
    return ""


def check_dataset(dataset: str, folder: Path, benchmark_files: Sequence[str] | None) -> None:
    """Refuse a dataset that RecBole could neither read from ``folder`` nor download.

    Args:
        dataset: its name.
        folder: where its files are, ``<data_path>/<dataset>``.
        benchmark_files: RecBole's ``benchmark_filename``, the parts of a dataset that is split.

    Raises:
        ConfigError: names the dataset, or the file it lacks, and the nearest known dataset.
    """
    _check_benchmark_files(benchmark_files)
    if not folder.exists():
        known = downloadable_datasets()
        if dataset not in known:
            local = [path.name for path in folder.parent.glob("*") if path.is_dir()]
            raise ConfigError(
                f"dataset={dataset!r} is unknown{nearest(dataset, ['ml-100k', *local, *known])}; "
                f"allowed are ml-100k, a folder with its files at '{folder}', and the datasets "
                "that RecBole downloads."
            )
        return
    parts = [""] if benchmark_files is None else [f".{part}" for part in benchmark_files]
    for file in (folder / f"{dataset}{part}.inter" for part in parts):
        if not file.is_file():
            split = f" for benchmark_filename={benchmark_files!r}" if benchmark_files else ""
            raise ConfigError(
                f"dataset={dataset!r} lacks its interactions{split}: allowed is a folder with the "
                f"file '{file}'."
            )


def _check_benchmark_files(parts: object) -> None:
    """RecBole unpacks three datasets of them, after it has read all."""
    if parts is None or (isinstance(parts, list | tuple) and len(parts) == 3):
        return
    raise ConfigError(
        f"benchmark_filename={parts!r} is refused: allowed is a list of three, for training, validation and "
        "test, such as ['train', 'valid', 'test'], or None."
    )
