"""Models that are trained in stages, or start from a file: checked before any data is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from recbole_dsl.errors import ConfigError, nearest

STAGES: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "S3Rec": ("train_stage", ("pretrain", "finetune")),
    "RaCT": ("train_stage", ("actor_pretrain", "critic_pretrain", "finetune")),
    "KD_DAGFM": ("phase", ("teacher_training", "distillation", "finetuning")),
    "ConvNCF": ("train_method", ("no_pretrain", "after_pretrain")),
}
"""The key that names a model's stage, and its values; the first one starts from nothing."""


EVALUATED: Final[dict[str, tuple[str, tuple[str, ...]]]] = {"KD_DAGFM": ("teacher", ("CrossNet", "CIN"))}
"""A key whose text RecBole's model evaluates as Python, and the values that make sense."""


def _later(name: str) -> Callable[[Mapping[str, Any]], bool]:
    key, stages = STAGES[name]
    return lambda settings: settings[key] != stages[0]


FILES: Final[dict[str, tuple[Callable[[Mapping[str, Any]], bool], tuple[str, ...]]]] = {
    "S3Rec": (_later("S3Rec"), ("pre_model_path",)),
    "RaCT": (_later("RaCT"), ("pre_model_path",)),
    "KD_DAGFM": (_later("KD_DAGFM"), ("warm_up",)),
    "ConvNCF": (_later("ConvNCF"), ("pre_model_path",)),
    "NeuMF": (lambda settings: bool(settings["use_pretrain"]), ("mf_pretrain_path", "mlp_pretrain_path")),
    "NAIS": (lambda settings: bool(settings["pretrain_path"]), ("pretrain_path",)),
}
"""When a model reads checkpoints, and the keys that name them."""


def starts_from_files(lineage: Sequence[str], settings: Mapping[str, Any]) -> bool:
    """Whether the model reads its first values from checkpoints of an earlier training."""
    return any(name in FILES and FILES[name][0](settings) for name in lineage)


def check_stage(lineage: Sequence[str], settings: Mapping[str, Any]) -> None:
    """Refuse a stage that does not exist, and one whose checkpoint is not there.

    Args:
        lineage: names of the model and of those it derives from. settings: all settings of the run.

    Raises:
        ConfigError: names the key, its value and what is allowed.
    """
    for name in lineage:
        for key, allowed in filter(None, (STAGES.get(name), EVALUATED.get(name))):
            value = settings.get(key)
            if value not in allowed:
                raise ConfigError(
                    f"{key}={value!r} is refused for model {name!r}{nearest(str(value), allowed)}: allowed are "
                    f"{', '.join(allowed)}."
                )
        if starts_from_files([name], settings):
            for key in FILES[name][1]:
                path = settings.get(key)
                if not path or not Path(str(path)).is_file():
                    raise ConfigError(
                        f"{key}={path!r} is no file, but model {lineage[0]!r} starts from it with these "
                        "settings; allowed is the path of a checkpoint that an earlier training has written."
                    )
