"""RecBole's own settings: what RecBole would ignore, or fail on only after it has loaded the data.

Checks of mappings, which :class:`~recbole_dsl.config.RecBoleDSLConfig` makes before and after RecBole's own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final

from recbole.evaluator import metric_types
from recbole.utils import EvaluatorType

from recbole_dsl.errors import ConfigError, nearest
from recbole_dsl.settings import (
    Refused,
    Setting,
    flag_setting,
    mapping_setting,
    number_setting,
    path_setting,
    whole_setting,
    word_setting,
)

LEARNERS: Final = ("adam", "adamw", "sgd", "adagrad", "rmsprop")
"""Optimizers that RecBole builds by name and that train dense gradients."""

_METRICS_WITHOUT_K: Final = frozenset({"gauc"})
"""RecBole computes them from rankings, but over whole lists."""

_LEVELS: Final = ("debug", "info", "warning", "error", "critical")


def _as_lengths(value: object) -> list[int]:
    """Those of rankings; RecBole makes a list of a single one before."""
    if not isinstance(value, list) or not value:
        raise Refused
    return [whole_setting(1).parse(length) for length in value]


_VALUES: Final = {
    "learning_rate": number_setting(lambda x: x > 0, "a number above 0"),
    "weight_decay": number_setting(lambda x: x >= 0, "a number of at least 0"),
    "epochs": whole_setting(0),
    "train_batch_size": whole_setting(1),
    "eval_batch_size": whole_setting(1),
    "embedding_size": whole_setting(1),
    "topk": Setting(_as_lengths, "a whole number of at least 1, or a list of such"),
    "worker": whole_setting(0),
    "enable_amp": flag_setting(),
    "stopping_step": whole_setting(0),
    "seed": whole_setting(0, 2**32 - 1),
    "clip_grad_norm": mapping_setting(
        "a mapping with max_norm, above 0, and other options of torch's clip_grad_norm_ (norm_type a number "
        "above 0), such as {'max_norm': 1.0}",
        needed={"max_norm"},
        known={"max_norm", "norm_type", "error_if_nonfinite", "foreach"},
        positive={"max_norm", "norm_type"},
    ),
    "eval_step": whole_setting(0),
    "MAX_ITEM_LIST_LENGTH": whole_setting(1),
    "metric_decimal_place": whole_setting(0),
    "loss_decimal_place": whole_setting(0),
    "checkpoint_dir": path_setting("the path of a folder"),
    "dataset_save_path": path_setting(),
    "dataloaders_save_path": path_setting(),
    "state": word_setting(_LEVELS, any_case=True),
}

_MAY_BE_NONE: Final = {"clip_grad_norm", "state", "dataset_save_path", "dataloaders_save_path"}
"""Of those the ones for which None has a meaning."""

_SCALAR_TOO: Final = frozenset({"metrics"})
"""Lists for which RecBole takes one value as well."""

_LOSSES_OF_SEQUENCES: Final = ("BPR", "CE")

_PARTS: Final = {
    "eval_args": ("split", "order", "group_by", "mode"),
    "train_neg_sample_args": ("distribution", "sample_num", "alpha", "dynamic", "candidate_num"),
}
"""The keys of RecBole's settings that are mappings."""

_SPLITS: Final = ("RS", "LS", "TS")
_LEFT_OUT: Final = ("valid_and_test", "valid_only", "test_only")
_MAPPINGS: Final = {
    "load_col": "{inter: [user_id, item_id]}",
    "unload_col": "{inter: [timestamp]}",
    "val_interval": "{rating: '[3,inf)'}",
    "threshold": "{rating: 3}",
}
"""RecBole's settings that are mappings and None by default, with an example of each."""
_TEXTS: Final = {
    "field_separator": "'\\t'",
    "seq_separator": "' '",
    "NEG_PREFIX": "'neg_'",
    "LIST_SUFFIX": "'_list'",
}
"""RecBole's settings that are text, with an example of each, beside names of columns, which end with _FIELD."""
INTERVALS: Final = (
    *("user_inter_num_interval", "item_inter_num_interval"),
    *("entity_kg_num_interval", "relation_kg_num_interval"),
)
"""RecBole's settings that are intervals of counts, as text."""

_INTERVAL: Final = re.compile(r"\s*[\[(]([^,;]+),([^,;]+)[\])]\s*")
_ORDERS: Final = ("RO", "TO")
_GROUPS: Final = ("user", "none")
_MODES: Final = re.compile(r"full|labeled|(uni|pop)[1-9]\d*")
_GPU_NAMES: Final = ("GPU-", "MIG-")


def check_kinds(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Refuse text where RecBole's default is a number or a truth value; so for lists, mappings and text.

    Args:
        given: what the user sets.
        defaults: what RecBole's property files say; keys that they lack are not checked.

    Raises:
        ConfigError: a value is of another kind.
    """
    for key, value in given.items():
        default = defaults.get(key)
        if key == "n_layers" and isinstance(default, int):
            _read(key, value, whole_setting(0))
        if key in _VALUES or value is None:
            continue
        if isinstance(default, bool) and isinstance(value, str):
            raise ConfigError(f"{key}={value!r} is refused: allowed is True or False.")
        if isinstance(default, int | float) and isinstance(value, str):
            raise ConfigError(f"{key}={value!r} is refused: allowed is a number such as {default}.")
        if key in _MAPPINGS and not isinstance(value, Mapping):
            raise ConfigError(
                f"{key}={value!r} is refused: allowed is a mapping such as {_MAPPINGS[key]}, and None."
            )
        names_column = key.endswith("_FIELD") and isinstance(default, str)
        if (key in _TEXTS or names_column) and not isinstance(value, str):
            example = _TEXTS.get(key, repr(default))
            raise ConfigError(f"{key}={value!r} is refused: allowed is text such as {example}.")
        if isinstance(default, list) and key not in _SCALAR_TOO and not isinstance(value, list | tuple):
            raise ConfigError(f"{key}={value!r} is refused: allowed is a list such as {default}.")
        if key == "loss_type" and default in _LOSSES_OF_SEQUENCES and value not in _LOSSES_OF_SEQUENCES:
            raise ConfigError(
                f"loss_type={value!r} is refused{nearest(value, _LOSSES_OF_SEQUENCES)}: allowed are "
                f"{' and '.join(_LOSSES_OF_SEQUENCES)}."
            )


def whole_numbers(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, int]:
    """What the user gives as 2.0 where RecBole's default is 2: as models count with it, an int."""
    return {
        key: int(value)
        for key, value in given.items()
        if isinstance(value, float) and value.is_integer() and type(defaults.get(key)) is int
    }


def lists(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, list[Any]]:
    """What the user gives as a tuple where RecBole's default is a list: ``--topk=5,10`` is evaluated to one."""
    return {
        key: list(value)
        for key, value in given.items()
        if isinstance(value, tuple) and isinstance(defaults.get(key), list)
    }


def check_devices(gpu_id: object) -> None:
    """Refuse what names no device; ``gpu_id``: a number, a tuple of numbers, or text with commas.

    Raises:
        ConfigError: one of the parts is neither a number nor the name of a GPU.
    """
    parts = gpu_id if isinstance(gpu_id, list | tuple) else str(gpu_id).split(",")
    for part in (str(part).strip() for part in parts):
        if part and not part.removeprefix("-").isdecimal() and not part.startswith(_GPU_NAMES):
            raise ConfigError(
                f"gpu_id={gpu_id!r} is refused: allowed are numbers of devices, separated by commas, and '' "
                "for the CPU."
            )


def check_evaluation(settings: Mapping[str, Any]) -> None:
    """Refuse metrics that RecBole does not know, and parts of how data are split and sampled that it ignores.

    Raises:
        ConfigError: names the setting and what is allowed.
    """
    _check_metrics(settings["metrics"])
    for key, parts in _PARTS.items():
        value = settings.get(key)
        for part in value if isinstance(value, Mapping) else ():
            if part not in parts:
                raise ConfigError(
                    f"{part!r} in {key} is no known part{nearest(part, parts)}: allowed are {', '.join(parts)}."
                )
    if isinstance(settings["eval_args"], Mapping):
        _check_split(settings["eval_args"])
    if isinstance(settings.get("train_neg_sample_args"), Mapping):
        _check_sampling(settings["train_neg_sample_args"])
    _check_transform(settings)


def check_labels(settings: Mapping[str, Any], has_label: bool = True) -> None:
    """Refuse evaluation of labelled rows by metrics of rankings, without labels, or in validation alone.

    Args:
        settings: with RecBole's ``eval_type``.
        has_label: whether the data have the field ``LABEL_FIELD``.

    Raises:
        ConfigError: names the settings and what is allowed.
    """
    mode = settings["eval_args"]["mode"]
    if "labeled" not in mode.values():
        return
    if settings["eval_type"] == EvaluatorType.RANKING:
        raise ConfigError(
            f"mode 'labeled' in eval_args is refused with metrics={settings['metrics']!r}, which need "
            "rankings: allowed with them are full, uni100 and pop100 (with any number)."
        )
    if mode["test"] != "labeled":  # RecBole's loader of validation, without a sampler, takes test's mode
        raise ConfigError(
            f"mode={mode!r} in eval_args is refused, because RecBole cannot validate with labels and test "
            "otherwise: allowed is labeled for both, or for test alone."
        )
    if not has_label:
        raise ConfigError(
            f"metrics={settings['metrics']!r} need labels, but dataset {settings['dataset']!r} has no field "
            f"LABEL_FIELD={settings['LABEL_FIELD']!r}: allowed is one that load_col names, or a threshold such "
            "as {rating: 3}, from which RecBole makes it."
        )


def check_intervals(settings: Mapping[str, Any]) -> None:
    """Refuse intervals of which RecBole would warn, and then filter nothing, or that it cannot read.

    Raises:
        ConfigError: names the setting and what is allowed.
    """
    given = {key: settings.get(key) for key in INTERVALS}
    for field, value in (settings.get("val_interval") or {}).items():
        if isinstance(value, str):  # others are of values, not of bounds
            given[f"val_interval of {field}"] = value
    for key, value in given.items():
        if str(value) != "None" and not all(map(_is_interval, str(value).split(";"))):
            raise ConfigError(
                f"{key}={value!r} is refused: allowed are intervals such as '[5,inf)' and '(0,3];[10,20]', the "
                "smaller bound first."
            )


def _is_interval(text: str) -> bool:
    found = _INTERVAL.fullmatch(text)
    try:
        return found is not None and float(found[1]) <= float(found[2])
    except ValueError:
        return False


def _check_sampling(given: Mapping[str, Any]) -> None:
    """Negatives in training; RecBole reads the numbers only where it draws some, and has defaults for them."""
    if str(given.get("distribution", "uniform")).lower() == "none":  # which is RecBole's default
        return
    if given.get("dynamic"):
        given = {"candidate_num": 0, **given}  # RecBole's default, with which it ends in a traceback
    kinds = {
        "sample_num": whole_setting(1),
        "alpha": number_setting(lambda _: True, "a number"),
        "candidate_num": whole_setting(1 if given.get("dynamic") else 0),
    }
    for part in given.keys() & kinds.keys():
        if isinstance(given[part], str):  # which RecBole does not convert
            raise ConfigError(
                f"{part} in train_neg_sample_args={given[part]!r} is refused: allowed is "
                f"{kinds[part].allowed}, not as text."
            )
        _read(f"{part} in train_neg_sample_args", given[part], kinds[part])


def _check_transform(settings: Mapping[str, Any]) -> None:
    """What RecBole's transforms of sequences need, which it says only in the first batch."""
    transform = settings.get("transform")
    if transform is None:
        return
    if str(transform) not in _TRANSFORMS:  # RecBole's "user_defined" gives no batch back
        raise ConfigError(
            f"transform={transform!r} is refused{nearest(str(transform), _TRANSFORMS)}: allowed are "
            f"{', '.join(_TRANSFORMS)} and None."
        )
    share = _TRANSFORMS[str(transform)]
    if share is not None and not _is_share(settings.get(share)):
        raise ConfigError(
            f"transform={transform!r} needs {share}, the share of a sequence that it changes, and that is "
            f"{settings.get(share)!r}: allowed is a number from 0 to 1."
        )


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


_TRANSFORMS: Final = {
    "mask_itemseq": "mask_ratio",
    "inverse_itemseq": None,
    "crop_itemseq": "eta",
    "reorder_itemseq": "beta",
}
"""RecBole's, and the setting that says how much of a sequence they change."""


def _check_metrics(metrics: object) -> None:
    known = sorted(metric_types)
    names = [metrics] if isinstance(metrics, str) else metrics
    if not isinstance(names, list | tuple) or not names:
        raise ConfigError(f"metrics={metrics!r} is refused: allowed is a list of {', '.join(known)}.")
    for name in names:
        if str(name).lower() not in known:
            raise ConfigError(
                f"metrics={metrics!r} is refused, because there is no metric {name!r}"
                f"{nearest(str(name).lower(), known)}: allowed are {', '.join(known)}."
            )


def _check_split(given: Mapping[str, Any]) -> None:
    split = given.get("split", {"RS": None})
    if not isinstance(split, Mapping) or len(split) != 1 or not split.keys() <= set(_SPLITS):
        raise ConfigError(
            f"split={split!r} in eval_args is refused: allowed is a mapping with one of {', '.join(_SPLITS)}, "
            "such as {'RS': [0.8, 0.1, 0.1]}."
        )
    ((kind, value),) = split.items()
    if kind == "LS":
        if value not in _LEFT_OUT:
            raise ConfigError(
                f"LS={value!r} in eval_args is refused{nearest(str(value), _LEFT_OUT)}: allowed are "
                f"{', '.join(_LEFT_OUT)}."
            )
    elif value is not None and not _are_ratios(value):
        raise ConfigError(
            f"{kind}={value!r} in eval_args is refused: allowed is a list of three numbers for training, "
            "validation and test, none below 0 and the first above, such as [0.8, 0.1, 0.1]."
        )
    for part, words in (("order", _ORDERS), ("group_by", _GROUPS)):
        value = given.get(part, words[0])
        is_none = part == "group_by" and str(value) == "None"  # which RecBole takes as "none"
        if value not in words and not is_none:
            raise ConfigError(f"{part}={value!r} in eval_args is refused: allowed are {' and '.join(words)}.")
    mode = given.get("mode", {})
    phases = mode if isinstance(mode, Mapping) else {"valid": mode}
    if not phases.keys() <= {"valid", "test"} or not all(_MODES.fullmatch(str(m)) for m in phases.values()):
        raise ConfigError(
            f"mode={mode!r} in eval_args is refused: allowed are full, labeled, uni100 and pop100 (with any "
            "number), and a mapping of valid and test to them."
        )


def _are_ratios(value: object) -> bool:
    """A negative one would put interactions into two parts."""
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(type(part) in (int, float) and 0 <= part < math.inf for part in value)
        and value[0] > 0
    )


def read_values(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that training needs, read and checked, of those that there are.

    Raises:
        ConfigError: a value is not allowed.
    """
    read: dict[str, Any] = {}
    for key, setting in _VALUES.items():
        if key not in settings:  # a model need not have an embedding_size
            continue
        value = settings[key]
        read[key] = None if value is None and key in _MAY_BE_NONE else _read(key, value, setting)
    return read


def _read(key: str, value: Any, setting: Setting) -> Any:
    try:
        return setting.parse(value)
    except Refused as refused:
        raise ConfigError(f"{key}={value!r} is refused: allowed is {setting.allowed}{refused.hint}.") from None


def metric_names(settings: Mapping[str, Any]) -> list[str]:
    """The metrics of a run by the names under which RecBole reports them."""
    names: list[str] = []
    for metric in map(str.lower, settings["metrics"]):
        by_k = metric_types.get(metric) == EvaluatorType.RANKING and metric not in _METRICS_WITHOUT_K
        names += [f"{metric}@{k}" for k in settings["topk"]] if by_k else [metric]
    return names


def check_valid_metric(settings: Mapping[str, Any]) -> None:
    """Refuse a metric for early stopping that is not computed.

    Raises:
        ConfigError: names it and those that are.
    """
    known, valid_metric = metric_names(settings), str(settings["valid_metric"])
    if settings["eval_step"] and valid_metric.lower() not in known:
        raise ConfigError(
            f"valid_metric={valid_metric!r} is none of the metrics that are computed"
            f"{nearest(valid_metric.lower(), known)}; allowed are {', '.join(known)} "
            "(set metrics and topk)."
        )


def check_learner(learner: object) -> None:
    """Refuse an optimizer that RecBole does not know, and takes Adam for, or that needs other gradients.

    Raises:
        ConfigError: names it and those that are allowed.
    """
    if isinstance(learner, str) and learner.lower() == "sparse_adam":
        raise ConfigError(
            f"learner={learner!r} is refused, because no RecBole model has the sparse "
            f"gradients it needs: allowed are {', '.join(LEARNERS)}."
        )
    if not isinstance(learner, str) or learner.lower() not in LEARNERS:
        raise ConfigError(
            f"learner={learner!r} is unknown, and RecBole would use adam instead"
            f"{nearest(str(learner), LEARNERS)}: allowed are {', '.join(LEARNERS)}."
        )
