"""The property files: their schema, and the layers of defaults they make up.

Layers, lowest first: ``overall.yaml``, ``family/<family>.yaml``, ``scope`` and ``recbole`` of
``model/<Model>.yaml``, ``method/<method>.yaml``, ``methods.<method>`` of the family's and of the model's
file, ``methods.<method>`` of ``dataset/<dataset>.yaml`` and that file's ``models.<Model>.<method>``. What
the user sets lies above all of them. Needs neither RecBole nor torch.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from recbole_dsl.errors import ConfigError, nearest
from recbole_dsl.resources import properties_dir
from recbole_dsl.sparsity.names import TOPOLOGIES_OF_SHAPES, TOPOLOGIES_WITH_VALUES

PREFIX: Final = "dsl_"
METHOD_KEY: Final = "dsl_method"

DEFINING_KEYS: Final = frozenset({"dsl_method", "dsl_init", "dsl_drop", "dsl_grow", "dsl_schedule"})
"""Keys that make a method what it is; files of models and datasets may tune, but not replace it."""

WITHOUT_TABLES: Final = tuple(("dsl_init", topology) for topology in TOPOLOGIES_OF_SHAPES)
"""The one exception, for files of families and models: where factors of the interactions fit no tensor, or
serve no better, there is something else to start from, as a method should take every model."""

SCOPE_KEYS: Final = frozenset({"dsl_include", "dsl_exclude", "dsl_groups", "dsl_min_weights", "dsl_storage"})
"""Keys that say which tensors are sparse, and how they are stored."""

MODEL_PARTS: Final = frozenset({"default_method", "scope", "methods", "recbole", "packages", "refused", "note"})
"""Parts of a model's file; ``recbole``: RecBole's keys without which it does not run; ``packages``: modules
it imports, with what pip calls them; ``refused``: why it cannot be trained; ``note``: for the table."""

Settings = dict[str, Any]


class _Loader(yaml.SafeLoader):
    """YAML without object construction that, as RecBole's loader, reads ``1e-4`` as a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


class _Once:
    """Of a YAML loader: a key that is there twice, of which YAML would take the last, is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node; every key once."""
        seen: set[str] = set()
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()  # else YAML says what is wrong
        for key in (key for key, _ in pairs if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value} is allowed once and is there twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)  # type: ignore[misc]
        return mapping


def read_mapping(path: Path, loader: type[Any] = _Loader) -> Settings:
    """Read a YAML file that holds a mapping; an empty file is an empty mapping.

    Raises:
        ConfigError: there is no such file, it cannot be read or parsed, has a key twice, or is no mapping
            with words as keys.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=type("Once", (_Once, loader), {}))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(f"File '{path}' cannot be read ({reason}); allowed is a YAML file.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"File '{path}' is not text in UTF-8.") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(
            f"File '{path}' is not valid YAML: {_problem(error)}; allowed is a mapping of words to values."
        ) from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError(f"File '{path}' holds {_kind(content)}; allowed is a mapping of words to values.")
    if _holds_itself(content):
        raise ConfigError(
            f"File '{path}' is refused, because something in it holds itself; allowed is what ends."
        )
    return content


def _holds_itself(value: object, inside: frozenset[int] = frozenset()) -> bool:
    """Whether a value is endless, as YAML's aliases allow."""
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return id(value) in inside or any(_holds_itself(part, inside | {id(value)}) for part in parts)


def _problem(error: Exception) -> str:
    """A YAML error on one line."""
    mark = getattr(error, "problem_mark", None)
    where = f" in line {mark.line + 1}" if mark is not None else ""
    return " ".join(str(getattr(error, "problem", None) or error).split()) + where


def _kind(content: object) -> str:
    return "keys that are no words" if isinstance(content, dict) else f"a {type(content).__name__}"


def overall_settings() -> Settings:
    """The defaults that hold unless a method, model, dataset or user says otherwise."""
    return read_mapping(properties_dir() / "overall.yaml")


def known_keys() -> frozenset[str]:
    """Every ``dsl_`` key; ``overall.yaml`` has a default for each."""
    return frozenset(overall_settings())


def check_keys(keys: Mapping[str, object], known: Collection[str], source: str) -> None:
    """Refuse keys that are meant for us but unknown, such as ``dsl_densty`` or ``dsl-density``.

    Raises:
        ConfigError: names the key, its value, ``source`` and the nearest known key; or one is below another.
    """
    for key, value in keys.items():
        plain = str(key).lower().replace("-", "_")
        if isinstance(value, Mapping) and (plain == PREFIX.rstrip("_") or _holds_ours(value)):
            raise ConfigError(
                f"{key}={value!r} in {source} is refused, because settings are not nested: allowed is each "
                "by its full name, such as 'dsl_density: 0.1'."
            )
        if plain.startswith(PREFIX) and key not in known:
            raise ConfigError(
                f"{key}={value!r} in {source} is no known setting{nearest(plain, sorted(known))}; "
                f"allowed are {', '.join(sorted(known))}."
            )


def _holds_ours(content: Mapping[Any, Any]) -> bool:
    """Whether one of our keys is anywhere in a mapping."""
    return any(
        str(key).startswith(PREFIX) or (isinstance(value, Mapping) and _holds_ours(value))
        for key, value in content.items()
    )


# --- methods --------------------------------------------------------------------------------------


def method_names() -> list[str]:
    """The methods that have a property file, in alphabetical order."""
    return sorted(path.stem for path in (properties_dir() / "method").glob("*.yaml"))


def _own_file(method: str) -> bool:
    return method.endswith((".yaml", ".yml"))


def method_name(method: object) -> str:
    """The name of a method given by name, or by the path of one's own method file.

    Raises:
        ConfigError: no such method, or one's own file has the name of a method that exists.
    """
    names = method_names()
    if not isinstance(method, str) or not _own_file(method):
        if method not in names:
            raise ConfigError(
                f"dsl_method={method!r} is no known method{nearest(str(method), names)}: allowed "
                f"are {', '.join(names)}, and the path of a method file ending in .yaml."
            )
        return method
    name = Path(method).stem
    if name in names:
        raise ConfigError(
            f"dsl_method={method!r} is refused, because its name {name!r} is taken: allowed is a "
            f"file name other than {', '.join(names)}."
        )
    return name


def _method_layer(method: str) -> Settings:
    name = method_name(method)
    path = Path(method).expanduser() if _own_file(method) else properties_dir() / "method" / f"{name}.yaml"
    layer = read_mapping(path)
    check_keys(layer, known_keys(), f"'{path}'")
    if METHOD_KEY in layer:
        raise ConfigError(
            f"{METHOD_KEY}={layer[METHOD_KEY]!r} in '{path}' is refused: a method file is named by "
            "its file name; allowed is every other key."
        )
    return layer


def method_settings(method: str | None = None) -> Settings:
    """All defaults of a method (None: the overall default method), without model and dataset.

    Raises:
        ConfigError: no such method, or a property file is not as it should be.
    """
    return layers("", "", method)


# --- model and dataset files ----------------------------------------------------------------------


def _section(content: Settings, key: str, path: Path) -> Settings:
    """The mapping below ``key``, or ``{}``."""
    section = content.get(key)
    if section is None:
        return {}
    if not isinstance(section, dict) or not all(isinstance(name, str) for name in section):
        raise ConfigError(f"{key}={section!r} in '{path}' is refused: allowed is a mapping.")
    return section


def _check_words(words: Collection[str], allowed: Collection[str], what: str, path: Path) -> None:
    for word in words:
        if word not in allowed:
            raise ConfigError(
                f"{what} {word!r} in '{path}' is refused{nearest(word, allowed)}: allowed are "
                f"{', '.join(sorted(allowed))}."
            )


def _check_methods(methods: Settings, current: str, path: Path, of_dataset: bool = False) -> None:
    """Every section belongs to a known method and tunes it without redefining it."""
    _check_words(methods, {*method_names(), current}, "method", path)
    for name in methods:
        section = _section(methods, name, path)
        check_keys(section, known_keys(), f"'{path}'")
        for key in DEFINING_KEYS & section.keys():
            if not of_dataset and (key, section[key]) in WITHOUT_TABLES and _starts_from_tables(name):
                continue
            raise ConfigError(
                f"{key}={section[key]!r} for method {name!r} in '{path}' is refused, because it "
                "would make another method of it: allowed is every key but "
                f"{', '.join(sorted(DEFINING_KEYS))}."
            )


def _check_default(content: Settings, path: Path) -> None:
    if "default_method" in content:
        _check_words([str(content["default_method"])], method_names(), "default_method", path)


def _starts_from_tables(name: str) -> bool:
    return name in method_names() and _method_layer(name).get("dsl_init") in TOPOLOGIES_WITH_VALUES


def _file(kind: str, name: str) -> Path | None:
    """``properties/<kind>/<name>.yaml`` if there is one; a name with folders in it has none."""
    path = properties_dir() / kind / f"{name}.yaml"
    return path if name and Path(name).name == name and path.is_file() else None


def family_file(family: str, current: str = "") -> Settings:
    """The checked file of a family of models: which tensors are sparse, where patterns that a model lacks are
    no mistake, ``default_method`` and ``methods``; ``{}`` for a family without one. ``current``: method in use.

    Raises:
        ConfigError: the file sets a key it may not set.
    """
    path = _file("family", family)
    if path is None:
        return {}
    content = read_mapping(path)
    _check_words(content, {*SCOPE_KEYS, "default_method", "methods"}, "key", path)
    _check_methods(_section(content, "methods", path), current, path)
    _check_default(content, path)
    return content


def file_of_model(names: Sequence[str]) -> str:
    """The first of ``names`` that has a property file, else the first."""
    return next((name for name in names if _file("model", name) is not None), names[0])


def model_file(model: str, current: str = "") -> Settings:
    """The checked file of a model; ``{}`` for a model without one. ``current``: method in use.

    Raises:
        ConfigError: an unknown part, or a section that sets a key it may not set.
    """
    path = _file("model", model)
    if path is None:
        return {}
    content = read_mapping(path)
    _check_words(content, MODEL_PARTS, "part", path)
    for key in _section(content, "recbole", path):
        if key.startswith(PREFIX):
            raise ConfigError(f"{key} below recbole in '{path}' is refused: allowed are RecBole's keys.")
    _section(content, "packages", path)
    _check_words(_section(content, "scope", path), SCOPE_KEYS, "scope key", path)
    _check_methods(_section(content, "methods", path), current, path)
    _check_default(content, path)
    return content


def dataset_file(dataset: str, current: str = "") -> Settings:
    """The checked file of a dataset; ``{}`` for a dataset without one. ``current``: method in use.

    Raises:
        ConfigError: an unknown part, or a section that sets a key it may not set.
    """
    path = _file("dataset", dataset)
    if path is None:
        return {}
    content = read_mapping(path)
    _check_words(content, {"methods", "models"}, "part", path)
    _check_methods(_section(content, "methods", path), current, path, of_dataset=True)
    models = _section(content, "models", path)
    for model in models:
        _check_methods(_section(models, model, path), current, path, of_dataset=True)
    return content


def _dig(content: Mapping[str, Any], *keys: str) -> Settings:
    """The section below ``keys``, or ``{}``; the files were checked before."""
    for key in keys:
        content = content.get(key) or {}
    return dict(content)


def default_method(names: Sequence[str], family: str) -> str:
    """The method of a model, by the first of its ``names`` with a file, that nobody has chosen one for."""
    files = (model_file(file_of_model(names)), family_file(family))
    chosen = next((file["default_method"] for file in files if "default_method" in file), None)
    return str(chosen or overall_settings()[METHOD_KEY])


def of_recbole(settings: Mapping[str, Any]) -> Settings:
    """Those of settings that are not ours."""
    return {key: value for key, value in settings.items() if not key.startswith(PREFIX)}


def layers(
    model: str | Sequence[str], dataset: str, method: str | None, family: str = "", dense: bool = False
) -> Settings:
    """All defaults that property files give for a model of a family and a dataset, merged.

    ``model``: its name, or also the names of those it derives from, of which the first with a file counts.

    ``method``: what the user asked for; None takes the model's default method, its family's or the overall.
    ``dsl_method`` of the result is the method that was taken. ``dense``: every weight lives, so that training
    is RecBole's, and settings of RecBole that suit a method's sparse models are left out.

    Raises:
        ConfigError: no such method, or a property file is not as it should be.
    """
    overall = overall_settings()
    names = [model] if isinstance(model, str) else list(model)
    model = file_of_model(names)
    if method is None:
        method = default_method(names, family)
    name = method_name(method)
    of_family = family_file(family, name)
    of_model, of_dataset = model_file(model, name), dataset_file(dataset, name)
    in_dataset = next((n for n in names if n in (of_dataset.get("models") or {})), model)
    of_method = (
        _dig(of_family, "methods", name)
        | _dig(of_model, "methods", name)
        | _dig(of_dataset, "methods", name)
        | _dig(of_dataset, "models", in_dataset, name)
    )
    if dense:
        of_method = {key: value for key, value in of_method.items() if key.startswith(PREFIX)}
    return (
        overall
        | {key: value for key, value in of_family.items() if key in SCOPE_KEYS}
        | _dig(of_model, "scope")
        | _dig(of_model, "recbole")
        | _method_layer(method)
        | of_method
        | {METHOD_KEY: method}
    )
