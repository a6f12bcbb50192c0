"""RecBole's configuration with the layers, checks and settings of sparse training.

:class:`RecBoleDSLConfig` behaves like RecBole's ``Config`` and refuses, before any data is loaded,
what RecBole would ignore or fail on later.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from recbole.config import Config
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.utils import ModelType

from recbole_dsl import compat, property_files, recbole_names, recbole_settings
from recbole_dsl.command_line import RECBOLE_OPTIONS, warn_unknown_flags
from recbole_dsl.errors import ConfigError, RanksError, on_one_line
from recbole_dsl.plain import plain
from recbole_dsl.property_files import METHOD_KEY, PREFIX, Settings
from recbole_dsl.settings import (
    AUTO,
    KEYS,
    SETTINGS,
    DSLConfig,
    check_replaceable,
    check_writable,
    default_ratio_min,
    literal,
    values_for,
)
from recbole_dsl.sparsity.names import SPLIT_NAMES
from recbole_dsl.stages import check_stage, starts_from_files

_HOW_MANY = {"dsl_density", "dsl_budget"}
"""Two ways to say how many weights live."""

_TEXT_KEYS = frozenset(PREFIX + name for name, setting in SETTINGS.items() if setting.text)
_NO_GRADIENTS = {
    ModelType.TRADITIONAL: "it has no weights that gradients train",
    ModelType.DECISIONTREE: "it grows decision trees without gradients of weights",
}
_FAMILIES = {
    ModelType.GENERAL: "general",
    ModelType.SEQUENTIAL: "sequential",
    ModelType.CONTEXT: "context_aware",
    ModelType.KNOWLEDGE: "knowledge_aware",
}


@contextmanager
def _recbole_errors() -> Iterator[None]:
    """Turn what RecBole says about a user's settings into a :class:`ConfigError`."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise ConfigError(f"RecBole refuses the settings: {on_one_line(error, with_type=False)}.") from error


class RecBoleDSLConfig(Config):
    """RecBole's ``Config``, with ``dsl_`` keys, their defaults from property files, and checks.

    Args:
        model: name of a RecBole model, ``my_package.my_module:MyModel``, or a class; None takes it from
            the user's settings.
        dataset: a dataset's name; None takes it from the user's settings.
        config_file_list: YAML files, of which later ones win.
        config_dict: settings that win over files; command-line flags win over both.
        evaluates: read text values of RecBole's keys as RecBole does, by ``eval``; False takes literals only,
            for settings from a file that somebody else may have made.
        from_files: keys of ``config_dict`` whose values came from property files once, so that they may ask
            for tensors that a model does not have.

    Raises:
        ConfigError: something is unknown, missing, not allowed or contradictory.
    """

    entry_options: ClassVar[Collection[str]] = frozenset(option.lstrip("-") for option in RECBOLE_OPTIONS)
    """Flags that the entry point reads itself, about which no warning is due."""

    def __init__(
        self,
        model: str | type | None = None,
        dataset: str | None = None,
        config_file_list: Sequence[str | os.PathLike[str]] | None = None,
        config_dict: dict[str, Any] | None = None,
        evaluates: bool = True,
        from_files: Collection[str] = (),
    ) -> None:
        compat.apply()
        self._evaluates = evaluates
        self._from_files = frozenset(from_files)
        self.dense_sizes: dict[str, int] | None = None  # weights per tensor without dsl_width, where it is set
        super().__init__(model, dataset, config_file_list, config_dict)
        # With RecBole's keys of our property files, which it does not read, and of a method file that may go.
        self.given: Settings = plain(self._recbole_layers | self.external_config_dict)
        self.at_start: Settings = plain(self.final_config_dict)  # before RecBole adds what it finds in the data

    @property
    def dsl(self) -> DSLConfig:
        """The typed settings, as the keys of this configuration are now.

        Raises:
            ConfigError: a key was changed to a value that is not allowed.
        """
        return DSLConfig.from_config(self)

    # --- several processes ---

    def _init_device(self) -> None:
        """RecBole's choice of the device; with several processes on CPUs, too, which RecBole leaves out."""
        settings = self.final_config_dict
        settings["gpu_id"] = device_names(settings["gpu_id"])
        if "local_rank" not in settings:
            super()._init_device()
            return
        if "offset" not in settings:
            raise ConfigError(
                f"local_rank={settings['local_rank']!r} is refused, because whoever starts a process sets it; "
                "allowed are --nproc and torchrun."
            )
        import torch
        import torch.distributed as dist

        gpus = [gpu for gpu in str(settings["gpu_id"]).split(",") if gpu.strip()]
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        local, on_gpu = int(settings["local_rank"]), bool(gpus) and torch.cuda.is_available()
        if on_gpu and len(gpus) < int(settings["nproc"]):
            raise ConfigError(
                f"nproc={settings['nproc']} needs as many devices, but gpu_id={settings['gpu_id']!r}: allowed "
                "is a device for each process of this machine, or gpu_id='' for CPUs."
            )
        settings["device"] = torch.device("cuda", local) if on_gpu else torch.device("cpu")
        if on_gpu:
            torch.cuda.set_device(local)
        settings["single_spec"] = False
        if not dist.is_initialized():
            place = f"{settings['ip']}:{settings['port']}"
            try:
                dist.init_process_group(
                    "nccl" if on_gpu else "gloo",
                    rank=local + int(settings["offset"]),
                    world_size=int(settings["world_size"]),
                    init_method=f"tcp://{place}",
                )
            except (RuntimeError, ValueError) as error:
                raise RanksError(
                    f"The processes cannot meet at {place} ({on_one_line(error)}); allowed are an --ip of the "
                    "machine of rank 0 and a --port that is free there."
                ) from None
        if dist.get_rank() != 0:
            settings.update(state="error", show_progress=False, verbose=False, log_wandb=False)

    # --- what the user sets ---

    def _init_parameters_category(self) -> None:
        super()._init_parameters_category()
        # RecBole appends a dataset's keys to its own global lists; keep that to this instance.
        for category, keys in self.parameters.items():
            self.parameters[category] = list(keys)

    def _load_config_files(
        self, file_list: Sequence[str | os.PathLike[str]] | str | os.PathLike[str] | None
    ) -> Settings:
        self._files: list[Settings] = []
        for file in [file_list] if isinstance(file_list, str | os.PathLike) else file_list or []:
            content = property_files.read_mapping(Path(file), loader=self.yaml_loader)
            property_files.check_keys(content, KEYS, f"'{file}'")
            ours = {key: _read_value(key, value) for key, value in content.items() if key.startswith(PREFIX)}
            self._files.append({**content, **ours})
        return {key: value for content in self._files for key, value in content.items()}

    def _load_variable_config_dict(self, config_dict: dict[str, Any] | None) -> Settings:
        # A copy, since RecBole converts the values in place.
        settings = self._convert_config_dict(copy.deepcopy(dict(config_dict or {})))
        property_files.check_keys(settings, KEYS, "config_dict")
        return settings

    def _load_cmd_line(self) -> Settings:
        try:
            flags: Settings = super()._load_cmd_line()
        except SyntaxError as error:  # RecBole's answer to one flag with two values
            raise ConfigError(f"Command line: {error.msg} Allowed is one value for each argument.") from None
        property_files.check_keys(flags, KEYS, "the command line")
        return flags

    def _merge_external_config_dict(self) -> None:
        """What the user sets; of density and budget only the one from the higher layer.

        None switches the same key of lower layers off.
        """
        super()._merge_external_config_dict()
        off: set[str] = set()
        for layer in (self.cmd_config_dict, self.variable_config_dict, *reversed(self._files)):
            given = [key for key in _HOW_MANY - off if layer.get(key) is not None]
            if len(given) == 2:
                raise ConfigError(
                    f"dsl_density={layer['dsl_density']!r} contradicts dsl_budget={layer['dsl_budget']!r}: "
                    "allowed is one of them."
                )
            if given:
                for other in _HOW_MANY - set(given):
                    self.external_config_dict.pop(other, None)
                return
            off |= _HOW_MANY & layer.keys()

    def _convert_config_dict(self, config_dict: Settings) -> Settings:
        """Read text values: our keys as literals only, others as RecBole does, by ``eval``."""
        for key, value in config_dict.items():
            if key in recbole_settings.INTERVALS:  # as text: evaluated, an open one would be a tuple
                config_dict[key] = None if literal(value) is None else str(value)
                continue
            if str(key).startswith(PREFIX) or not self._evaluates:
                config_dict[key] = _read_value(key, value)
                continue
            try:
                config_dict[key] = super()._convert_config_dict({key: value})[key]
            except Exception as error:
                raise ConfigError(
                    f"{key}={value!r} is refused, because RecBole evaluates it as Python and that "
                    f"fails ({type(error).__name__}: {error}); allowed is a literal or plain text."
                ) from None
        return config_dict

    # --- model, dataset and layers ---

    def _get_model_and_dataset(self, model: str | type | None, dataset: str | None) -> tuple[str, type, str]:
        model = self._required("model", model)
        dataset = self._required("dataset", dataset)
        recbole_names.check_dataset_name(dataset)
        if isinstance(model, str) and ":" in model:
            model = recbole_names.import_model(model)
        elif not isinstance(model, type):
            recbole_names.check_model_name(model)
        try:
            name, model_class, dataset = super()._get_model_and_dataset(model, dataset)
        except ImportError as error:
            raise ConfigError(
                f"model={model!r} needs a package that cannot be imported ({error}); allowed are "
                "models whose packages are installed."
            ) from None
        kind = getattr(model_class, "type", None)
        if not isinstance(kind, ModelType):
            raise ConfigError(
                f"model={name!r} is no recommender class, since it has no 'type'; allowed are "
                "subclasses of RecBole's recommenders."
            )
        for method in ("calculate_loss", "predict"):
            # MKR has two losses and a trainer that knows them.
            inherited = getattr(model_class, method, None) is getattr(AbstractRecommender, method)
            if inherited and not hasattr(model_class, "calculate_rs_loss"):
                raise ConfigError(
                    f"model={name!r} has no method {method}; allowed are classes that have calculate_loss and "
                    "predict, and full_sort_predict for a ranking of all items."
                )
        self._check_model_file(name, model_class)
        if kind in _NO_GRADIENTS:
            raise ConfigError(
                f"model={name!r} is refused, because {_NO_GRADIENTS[kind]}; "
                "allowed are models that are trained by gradient descent."
            )
        return name, model_class, dataset

    @property
    def lineage(self) -> list[str]:
        """Names of the model's class and of the RecBole models it derives from, nearest first.

        A class of one's own takes the settings, data loaders and trainer of the nearest one that has any.
        """
        return recbole_names.lineage(self.model, self.model_class)

    @contextmanager
    def under_recbole_name(self) -> Iterator[None]:
        """Call the model by its nearest name that RecBole knows, by which it looks up loaders."""
        own = self.final_config_dict["model"]
        known = recbole_names.model_files()
        self.final_config_dict["model"] = next((name for name in self.lineage if name.lower() in known), own)
        try:
            yield
        finally:
            self.final_config_dict["model"] = own

    @property
    def left_to_files(self) -> frozenset[str]:
        """Those of ``include``, ``exclude``, ``groups`` and ``init`` that the user left to property files.

        ``init`` with the model's default method only, as another one is meant as it is.
        """
        names = ("include", "exclude", "groups", *(("init",) if self._by_default else ()))
        return frozenset(name for name in names if not self.is_given(PREFIX + name))

    def is_given(self, key: str) -> bool:
        """Whether the user has set it, who has not left it to property files."""
        return self.external_config_dict.get(key) is not None and key not in self._from_files

    def _check_model_file(self, name: str, model_class: type) -> None:
        """Refuse what the model's property file says cannot be trained, or not without a package."""
        names = recbole_names.recbole_lineage(model_class)
        content = property_files.model_file(property_files.file_of_model(names)) if names else {}
        if "refused" in content:
            raise ConfigError(
                f"model={name!r} is refused, because {content['refused']}; "
                "allowed are models that are trained by gradient descent."
            )
        for module, package in content.get("packages", {}).items():
            if importlib.util.find_spec(module) is None:
                raise ConfigError(
                    f"model={name!r} needs the package {module}, which is not installed; allowed after "
                    f"'pip install {package}'."
                )

    def _required(self, key: str, value: Any) -> Any:
        value = self.external_config_dict.get(key) if value is None else value
        if value is None:
            raise ConfigError(
                f"{key} is not set: allowed is a name as argument, in a config file, in "
                f"config_dict or as --{key}=name."
            )
        return value

    def _load_internal_config_dict(self, model: str, model_class: type, dataset: str) -> None:
        """RecBole's internal settings, and ours above them."""
        lineage = recbole_names.lineage(model, model_class)
        known = next((name for name in lineage if recbole_names.has_defaults(name)), model)
        super()._load_internal_config_dict(known, model_class, dataset)
        self._recbole_defaults: Settings = dict(self.internal_config_dict)
        family = _FAMILIES[model_class.type]  # type: ignore[attr-defined]
        files = (lineage, dataset, self.external_config_dict.get(METHOD_KEY), family)
        layers = property_files.layers(*files)
        self._by_default = layers[METHOD_KEY] == property_files.default_method(lineage, family)
        user = {key: value for key, value in self.external_config_dict.items() if value is not None}
        if {**layers, **user}["dsl_density"] == 1 and "dsl_budget" not in user:
            layers = property_files.layers(*files, dense=True)
        if "dsl_density" in user:
            layers["dsl_budget"] = None  # a property file's budget must not beat the user's density
        if "dsl_update_ratio_min" not in user:
            least = layers["dsl_update_ratio_min"]
            lower = default_ratio_min(least, {**layers, **user}["dsl_update_ratio"])
            if lower < least and (
                "dsl_update_ratio" in user
                or least == property_files.overall_settings()["dsl_update_ratio_min"]  # no file of its own
            ):
                layers["dsl_update_ratio_min"] = lower
        # Nor values that the user's topology does not have.
        init = str(user.get("dsl_init", layers["dsl_init"]))
        layers["dsl_init_values"] = values_for(init, layers["dsl_init_values"])
        if user.get("dsl_init") in SPLIT_NAMES:
            layers["dsl_split"] = None  # nor a file's split what the user's topology says of it
        if "dsl_start_from" in user:
            layers["dsl_init_values"] = "model"  # nor any but those of the file
        if "dsl_include" in user:
            layers["dsl_exclude"] = []  # a file's exceptions are from its own scope
        self._recbole_layers = property_files.of_recbole(layers)
        self.internal_config_dict.update(layers)
        warn_unknown_flags(self.cmd_config_dict, self.known_keys)

    @property
    def known_keys(self) -> frozenset[str]:
        """Every setting that RecBole, the model's files or we know."""
        known = {key for keys in self.parameters.values() for key in keys}
        return frozenset(known | self.internal_config_dict.keys() | self.entry_options | KEYS)

    def _get_final_config_dict(self) -> Settings:
        settings: Settings = super()._get_final_config_dict()
        if settings[METHOD_KEY] is None:
            settings[METHOD_KEY] = self.internal_config_dict[METHOD_KEY]
        lineage = recbole_names.recbole_lineage(self.model_class)
        if starts_from_files(lineage, settings) and "dsl_init_values" not in self.external_config_dict:
            settings["dsl_init_values"] = "model"  # which are those of the files
        if self.ranks_all_items(settings) and "train_neg_sample_args" not in self.external_config_dict:
            settings["train_neg_sample_args"] = None  # RecBole's own default is one that it refuses
        return settings

    def ranks_all_items(self, settings: Settings) -> bool:
        """Whether a sequential model's loss is a softmax over all items, which knows no negatives."""
        sequential = self.model_class.type == ModelType.SEQUENTIAL
        return sequential and not hasattr(self.model_class, "input_type") and settings.get("loss_type") == "CE"

    # --- checks of the merged settings ---

    def _set_default_parameters(self) -> None:
        given, defaults = self.external_config_dict, self._recbole_defaults
        recbole_settings.check_kinds(given, defaults)
        recbole_settings.check_evaluation(self.final_config_dict)
        self.final_config_dict |= recbole_settings.whole_numbers(given, defaults)
        self.final_config_dict |= recbole_settings.lists(given, defaults)
        recbole_settings.check_intervals(self.final_config_dict)
        recbole_settings.check_devices(self.final_config_dict["gpu_id"])
        with _recbole_errors():
            super()._set_default_parameters()
        recbole_settings.check_labels(self.final_config_dict)
        self._check_recbole()
        check_stage(recbole_names.recbole_lineage(self.model_class), self.final_config_dict)
        self._check_dataset()
        self._check_dsl(self.dsl)

    def _set_train_neg_sample_args(self) -> None:
        with _recbole_errors():
            super()._set_train_neg_sample_args()

    def _set_eval_neg_sample_args(self, phase: str) -> None:
        with _recbole_errors():
            super()._set_eval_neg_sample_args(phase)

    def _check_recbole(self) -> None:
        """RecBole's own settings; numbers given as text are numbers from here on."""
        settings = self.final_config_dict
        settings.update(recbole_settings.read_values(settings))
        if settings["log_wandb"] and importlib.util.find_spec("wandb") is None:
            raise ConfigError("log_wandb=True needs wandb, which is not installed; allowed is False.")
        recbole_settings.check_valid_metric(settings)
        recbole_settings.check_learner(settings["learner"])

    def metric_names(self) -> list[str]:
        """The metrics of this run by the names under which RecBole reports them."""
        return recbole_settings.metric_names(self.final_config_dict)

    def _check_dataset(self) -> None:
        settings = self.final_config_dict
        for key in ("dataset_save_path", "dataloaders_save_path"):
            if settings[key] and not os.path.isfile(settings[key]):  # RecBole would split the data anew
                raise ConfigError(
                    f"{key}={settings[key]!r} is no file: allowed are one that RecBole's save_dataset or "
                    "save_dataloaders wrote, and None."
                )
        if settings["dataset_save_path"]:
            return  # RecBole reads that file instead of the dataset's folder
        folder = Path(settings["data_path"])
        recbole_names.check_dataset(self.dataset, folder, settings["benchmark_filename"])

    def _check_dsl(self, dsl: DSLConfig) -> None:
        if dsl.width not in (None, AUTO) and self.final_config_dict.get("embedding_size") is None:
            raise ConfigError(
                f"dsl_width={dsl.width} is refused for model {self.model!r}, which has no "
                "'embedding_size': allowed are None and 'auto', which leaves it as it is."
            )
        if dsl.result is not None:
            check_writable(dsl.result)
            check_replaceable(dsl.result)
        folder = Path(str(self.final_config_dict["checkpoint_dir"]))
        check_writable(folder / "checkpoint.dsl", "checkpoint_dir")


def _read_value(key: str, value: Any) -> Any:
    """A value of a key of ours: text as a literal but where a text is meant, for which None is none, too."""
    return value if key in _TEXT_KEYS and value != "None" else literal(value)


def device_names(gpu_id: object) -> object:
    """RecBole's ``gpu_id`` as text, which it needs; 0,1 on the command line is evaluated to a tuple."""
    return ",".join(map(str, gpu_id)) if isinstance(gpu_id, list | tuple) else gpu_id


@contextmanager
def no_flags() -> Iterator[None]:
    """Hide this process's arguments from RecBole, which reads the command line."""
    argv, sys.argv = sys.argv, sys.argv[:1]
    try:
        yield
    finally:
        sys.argv = argv
