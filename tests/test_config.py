"""Settings: how they are read, layered and refused."""

from __future__ import annotations

import contextlib
import copy
import errno
import functools
import importlib.util
import json
import logging
import math
import os
import pickle
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recbole_dsl import compat

compat.apply()

from recbole.model.general_recommender import BPR  # noqa: E402

from recbole_dsl import property_files, recbole_names  # noqa: E402
from recbole_dsl.command_line import check_command_line  # noqa: E402
from recbole_dsl.config import RecBoleDSLConfig  # noqa: E402
from recbole_dsl.errors import ConfigError, DataError  # noqa: E402
from recbole_dsl.experiment import load_data  # noqa: E402
from recbole_dsl.files import write_text_whole  # noqa: E402
from recbole_dsl.quantities import (  # noqa: E402
    Budget,
    Span,
    format_bytes,
    parse_bytes,
    parse_pace,
    parse_span,
)
from recbole_dsl.settings import (  # noqa: E402
    KEYS,
    SETTINGS,
    DSLConfig,
    check_writable,
    literal,
)
from recbole_dsl.sparsity.names import TOPOLOGIES_WITH_VALUES  # noqa: E402

METHODS = {"dense", "dsl", "dsl_plus", "sparserec", "static", "set", "rigl"}


@pytest.fixture(autouse=True)
def no_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    """RecBole reads ``sys.argv``: hide the arguments of pytest."""
    monkeypatch.setattr(sys, "argv", ["run"])


@pytest.fixture
def flags(monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda *arguments: monkeypatch.setattr(sys, "argv", ["run", *arguments])


@pytest.fixture
def properties(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the property files that a test may change."""
    folder = tmp_path / "properties"
    shutil.copytree(property_files.properties_dir(), folder)
    monkeypatch.setattr(property_files, "properties_dir", lambda: folder)
    return folder


def config(model: Any = "BPR", dataset: Any = "ml-100k", **settings: Any) -> RecBoleDSLConfig:
    return RecBoleDSLConfig(model, dataset, config_dict=settings)


def assert_refused(error: pytest.ExceptionInfo[ConfigError], *parts: str) -> None:
    message = str(error.value)
    assert "\n" not in message and message.endswith(".")
    for part in parts:
        assert part in message


# --- single values --------------------------------------------------------------------------------

REFUSED = [
    # key, value, part of what is allowed
    ("dsl_method", "rigel", "did you mean 'rigl'"),
    ("dsl_method", 3, "dsl_plus"),
    ("dsl_density", 0, "above 0 and at most 1"),
    ("dsl_density", 1.01, "above 0 and at most 1"),
    ("dsl_density", -0.1, "above 0 and at most 1"),
    ("dsl_density", "nan", "above 0 and at most 1"),
    ("dsl_density", math.nan, "above 0 and at most 1"),
    ("dsl_density", "inf", "above 0 and at most 1"),
    ("dsl_density", math.inf, "above 0 and at most 1"),
    ("dsl_density", "1e999", "above 0 and at most 1"),
    ("dsl_density", True, "above 0 and at most 1"),
    ("dsl_density", None, "above 0 and at most 1"),
    ("dsl_density", "10%", "above 0 and at most 1"),
    ("dsl_density", "1+0j", "above 0 and at most 1"),
    ("dsl_density", [0.1], "above 0 and at most 1"),
    ("dsl_density", 10**400, "above 0 and at most 1"),
    ("dsl_budget", 0, "live weights"),
    ("dsl_budget", 1.5, "live weights"),
    ("dsl_budget", "2 parsecs", "'512KiB'"),
    ("dsl_budget", "0.1B", "'512KiB'"),
    ("dsl_budget", "-2MB", "'512KiB'"),
    ("dsl_width", 0, "at least 1"),
    ("dsl_width", "wide", "at least 1"),
    ("dsl_width", "0x", "2x"),
    ("dsl_width", "1.5x", "2x"),
    ("dsl_width", "x", "2x"),
    ("dsl_width_max", 0, "at least 1"),
    ("dsl_update_interval", 0, "at least 1"),
    ("dsl_update_interval", -5, "at least 1"),
    ("dsl_update_interval", 2.5, "at least 1"),
    ("dsl_update_interval", "0 epochs", "2 epochs"),
    ("dsl_update_interval", "1.5 steps", "2 epochs"),
    ("dsl_update_interval", "10%", "2 epochs"),
    ("dsl_update_interval", True, "2 epochs"),
    ("dsl_end", "101%", "100%"),
    ("dsl_end", "60 days", "'60 epochs'"),
    ("dsl_end", -1, "'60 epochs'"),
    ("dsl_end", None, "'60 epochs'"),
    ("dsl_update_ratio", 1.5, "from 0 to 1"),
    ("dsl_update_ratio_min", -0.5, "from 0 to 1"),
    ("dsl_schedule", "cosin", "did you mean 'cosine'"),
    ("dsl_schedule", None, "linear"),
    ("dsl_drop", "taylr", "did you mean 'taylor'"),
    ("dsl_drop_threshold", 0, "above 0"),
    ("dsl_grow", "last_gradiant", "did you mean 'last_gradient'"),
    ("dsl_grow_window", 0, "at least 1"),
    ("dsl_grow_momentum", 1, "below 1"),
    ("dsl_grow_momentum", -0.1, "below 1"),
    ("dsl_init_norm", 0, "above 0"),
    ("dsl_init_linear_norm", 0, "above 0"),
    ("dsl_init_linear_norm", "auto", "positions only"),
    ("dsl_split", "erdos", "size"),
    ("dsl_split", "sizes", "did you mean 'size'"),
    ("dsl_init_power", 1.1, "from 0 to 1"),
    ("dsl_init_power", -0.1, "from 0 to 1"),
    ("dsl_init_popularity", 1.1, "from -1 to 1"),
    ("dsl_init_popularity", -1.1, "from -1 to 1"),
    ("dsl_init_tables", "user", "both"),
    ("dsl_learning_rate_power", 1.5, "from 0 to 1"),
    ("dsl_learning_rate_power", "half", "from 0 to 1"),
    ("dsl_grow_row_power", 1.5, "from 0 to 1"),
    ("dsl_grow_row_power", -0.1, "from 0 to 1"),
    ("dsl_grow_column_power", 1.5, "from 0 to 1"),
    ("dsl_grow_moment", 1.5, "from 0 to 1"),
    ("dsl_growth_memory", 0, "bytes"),
    ("dsl_growth_memory", "256", None),  # a number as text is a number of bytes
    ("dsl_growth_memory", "256 MX", "bytes"),
    ("dsl_init", "nfm", "did you mean 'nmf'"),
    ("dsl_init_values", "models", "did you mean 'model'"),
    ("dsl_seed", -1, "at least 0"),
    ("dsl_seed", 2**63, "at least 0"),
    ("dsl_seed", 1.5, "at least 0"),
    ("dsl_groups", "jiont", "did you mean 'joint'"),
    ("dsl_groups", {}, "mapping"),
    ("dsl_groups", {"a": []}, "mapping"),
    ("dsl_groups", {"a": 3}, "mapping"),
    ("dsl_groups", {3: ["x"]}, "mapping"),
    ("dsl_include", [], "non-empty list"),
    ("dsl_include", [3], "non-empty list"),
    ("dsl_include", "", "non-empty list"),
    ("dsl_exclude", 7, "a list"),
    ("dsl_min_weights", -1, "at least 0"),
    ("dsl_storage", "packd", "did you mean 'packed'"),
    ("dsl_result", 3, "path of a file"),
    ("dsl_result", " ", "path of a file"),
    ("dsl_exploration_record", 1, "True or False"),
    ("dsl_exploration_record", "yes", "True or False"),
]


@pytest.mark.parametrize(("key", "value", "allowed"), REFUSED)
def test_a_value_out_of_range_is_refused(key: str, value: Any, allowed: str | None) -> None:
    if allowed is None:
        assert DSLConfig.from_config({key: value})
        return
    with pytest.raises(ConfigError) as error:
        DSLConfig.from_config({key: value})
    if key != "dsl_method" and value is not None:
        assert_refused(error, "allowed")
    assert_refused(error, key, repr(value), allowed)


READ = [
    ("density", "1e-3", 0.001),
    ("density", 1, 1.0),
    ("budget", None, None),
    ("budget", "None", None),
    ("budget", 5000, Budget(5000, "weights")),
    ("budget", "5000", Budget(5000, "weights")),
    ("budget", 1e6, Budget(1000000, "weights")),
    ("budget", "2MB", Budget(2_000_000, "bytes")),
    ("budget", "512 kib", Budget(512 * 1024, "bytes")),
    ("width", "256", 256),
    ("width", "2x", "2x"),
    ("update_interval", 100, Span(100, "steps", 1)),
    ("update_interval", "100", Span(100, "steps", 1)),
    ("update_interval", "1 epochs", Span(1, "epochs", 1)),
    ("update_interval", "0.5 epoch", Span(0.5, "epochs", 1)),
    ("end", "30%", Span(30, "percent")),
    ("end", "60 epochs", Span(60, "epochs")),
    ("end", "4000 steps", Span(4000, "steps")),
    ("end", 0, Span(0, "steps")),
    ("drop_threshold", "0.01", 0.01),
    ("grow_window", None, None),
    ("growth_memory", None, None),
    ("growth_memory", "1GiB", 2**30),
    ("growth_memory", 1024, 1024),
    ("seed", "7", 7),
    ("groups", "joint", "joint"),
    ("groups", "{'u': 'user_*', 'i': ['item_*']}", {"u": ("user_*",), "i": ("item_*",)}),
    ("include", "*.weight", ("*.weight",)),
    ("include", "a.weight,b.weight", ("a.weight", "b.weight")),
    ("include", "['a.weight']", ("a.weight",)),
    ("include", "None", None),
    ("exclude", [], ()),
    ("exploration_record", "false", False),
    ("result", "None.json", "None.json"),
    ("result", "2024", "2024"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "expected"), READ)
def test_a_value_is_read(name: str, value: Any, expected: Any) -> None:
    read = getattr(DSLConfig.from_config({f"dsl_{name}": value}), name)
    assert read == expected
    assert type(read) is type(expected)


def test_tables_and_fields_agree() -> None:
    fields = set(DSLConfig.__dataclass_fields__)
    assert set(SETTINGS) == fields
    assert property_files.overall_settings().keys() == KEYS
    page = Path(__file__).parents[1].joinpath("docs", "configuration.md").read_text("utf-8")
    assert set(re.findall(r"^\| `(dsl_\w+)` \| .+ \| .+ \| .+ \|$", page, re.M)) == KEYS


def test_words_are_those_of_the_sparsity_core() -> None:
    from recbole_dsl.sparsity import criteria, names, schedule, topology

    assert set(names.DROP_NAMES) == set(criteria.DROP_CRITERIA)
    assert set(names.GROWTH_NAMES) == set(criteria.GROWTH_CRITERIA)
    assert set(names.TOPOLOGY_NAMES) == set(topology.TOPOLOGIES)
    assert set(names.SCHEDULE_NAMES) == set(schedule.SCHEDULES)
    assert set(names.TOPOLOGIES_WITH_VALUES) <= set(names.TOPOLOGY_NAMES)


CONTRADICTIONS = [
    ({"dsl_update_ratio": 0.1, "dsl_update_ratio_min": 0.2}, "dsl_update_ratio_min=0.2"),
    ({"dsl_drop": "threshold"}, "dsl_drop_threshold"),
    ({"dsl_init": "random", "dsl_init_values": "topology"}, "dsl_init=nmf"),
    ({"dsl_method": "dense", "dsl_density": 0.5}, "dsl_density=0.5"),
    ({"dsl_method": "dense", "dsl_budget": 5}, "dsl_budget"),
    ({"dsl_grow": "random_never_live", "dsl_exploration_record": False}, "only True"),
    ({"dsl_densty": 0.1}, "did you mean 'dsl_density'"),
]


@pytest.mark.parametrize(("settings", "part"), CONTRADICTIONS)
def test_contradictions_are_refused(settings: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError) as error:
        DSLConfig.from_config(settings)
    assert_refused(error, part, "allowed")
    with pytest.raises(ConfigError) as error:
        config(**settings)
    assert_refused(error, part, "allowed")


def test_an_update_ratio_of_zero_needs_no_lower_minimum() -> None:
    settings = DSLConfig.from_config({"dsl_update_ratio": 0})
    assert (settings.update_ratio, settings.update_ratio_min) == (0, 0.005)


def test_a_small_update_ratio_needs_no_lower_minimum() -> None:
    """A default does not contradict what the user asks for."""
    assert config(dsl_update_ratio=0.001).dsl.update_ratio_min == 0.001
    assert config(dsl_update_ratio=0.1).dsl.update_ratio_min == 0.005
    alone = DSLConfig.from_config({"dsl_update_ratio": 0.001})
    assert (alone.update_ratio, alone.update_ratio_min) == (0.001, 0.001)
    with pytest.raises(ConfigError, match="dsl_update_ratio_min"):
        config(dsl_update_ratio=0.001, dsl_update_ratio_min=0.005)


def test_settings_are_frozen_pickle_and_round_trip_through_json() -> None:
    given_settings = {
        "dsl_budget": "2MB",
        "dsl_groups": {"users": ["user_*"]},
        "dsl_end": "12.5%",
        "dsl_include": ["*"],
    }
    settings = DSLConfig.from_config(given_settings)
    with pytest.raises(AttributeError):
        setattr(settings, "density", 0.5)  # noqa: B010
    stored = json.loads(json.dumps(settings.to_dict()))
    assert stored["budget"] == "2MB" and stored["end"] == "12.5%"
    prefixed = {f"dsl_{name}": value for name, value in stored.items()}
    assert DSLConfig.from_config(prefixed) == settings
    assert pickle.loads(pickle.dumps(settings)) == settings


# --- quantities -----------------------------------------------------------------------------------


@given(st.integers(1, 2**63 - 1))
def test_bytes_round_trip(amount: int) -> None:
    assert parse_bytes(format_bytes(amount)) == amount


@given(st.integers(1, 10**6), st.sampled_from([" ", ""]), st.sampled_from(["kB", "KIB", "Mb", "GiB"]))
def test_bytes_are_read_in_any_case(amount: int, space: str, unit: str) -> None:
    size = {"kb": 10**3, "kib": 2**10, "mb": 10**6, "gib": 2**30}[unit.lower()]
    assert parse_bytes(f"{amount}{space}{unit}") == amount * size


@given(
    st.one_of(
        st.builds(Span, st.integers(0, 2**53).map(float), st.just("steps")),
        st.builds(Span, st.floats(0, 1e6).map(abs), st.just("epochs")),
        st.builds(Span, st.floats(0, 100).map(abs), st.just("percent")),
    )
)
def test_spans_round_trip(span: Span) -> None:
    assert parse_span(str(span)) == span


@given(st.integers(0, 100), st.integers(0, 10**6), st.integers(0, 10**4))
def test_percent_are_exact(percent: int, steps_per_epoch: int, epochs: int) -> None:
    expected = percent * steps_per_epoch * epochs // 100
    assert Span(percent, "percent").steps(steps_per_epoch, epochs) == expected


def test_minutes_are_minutes() -> None:
    """Of 60 seconds each, and not a number of steps."""
    pace = parse_pace("10 minutes")
    assert not pace.is_due("steps", 1, 599.0) and pace.is_due("epochs", 1, 600.0)


@given(st.text())
def test_text_is_read_or_refused_never_worse(text: str) -> None:
    for name in SETTINGS:
        try:
            SETTINGS[name].parse(text)
        except Exception as error:
            assert type(error).__name__ in {"Refused", "ConfigError"}


def test_spans_in_steps() -> None:
    assert Span(29, "percent").steps(100, 1) == 29  # 0.29 · 100 is 28.999… in binary
    assert Span(30, "percent").steps(7, 3) == 6
    assert Span(0.1, "epochs").steps(30, 9) == 3
    assert Span(60, "epochs").steps(40, 10) == 2400
    assert Span(4000, "steps").steps(1, 1) == 4000
    assert Span(0, "percent").steps(40, 10) == 0
    assert Span(0.001, "epochs", minimum=1).steps(40, 10) == 1


# --- text is never executed -----------------------------------------------------------------------

EVIL = [
    "__import__('os').makedirs({path!r})",
    "open({path!r}, 'w')",
    "[open({path!r}, 'w')]",
    "{{'a': open({path!r}, 'w')}}",
    "(lambda: open({path!r}, 'w'))()",
]


@pytest.mark.parametrize("code", EVIL)
@pytest.mark.parametrize("key", sorted(KEYS))
def test_values_of_our_keys_are_not_executed(code: str, key: str, tmp_path: Path, flags: Any) -> None:
    text = code.format(path=str(tmp_path / "trace"))
    flags(f"--{key}={text}")
    for settings in ({}, {key: text}):
        with contextlib.suppress(ConfigError):
            config(**settings)
        assert not (tmp_path / "trace").exists()
    assert literal(text) == text


def test_recboles_own_keys_keep_its_eval() -> None:
    assert config(learning_rate="1/1000")["learning_rate"] == 0.001


@pytest.mark.parametrize("value", ["1/0", "''.nothing", "[][1]", "{}['a']", "int('x')"])
def test_a_failing_eval_of_recboles_keys_is_refused(value: str, flags: Any) -> None:
    with pytest.raises(ConfigError) as error:
        config(learning_rate=value)
    assert_refused(error, "learning_rate", repr(value), "allowed")
    flags(f"--learning_rate={value}")
    with pytest.raises(ConfigError) as error:
        config()
    assert_refused(error, "learning_rate", repr(value), "allowed")


def test_the_users_dict_is_not_changed() -> None:
    settings = {"dsl_density": "0.2", "learning_rate": "0.01"}
    assert RecBoleDSLConfig("BPR", "ml-100k", config_dict=settings).dsl.density == 0.2
    assert settings == {"dsl_density": "0.2", "learning_rate": "0.01"}
    nested = {"train_neg_sample_args": {"sample_num": 2}}
    RecBoleDSLConfig("BPR", "ml-100k", config_dict=nested)
    assert nested == {"train_neg_sample_args": {"sample_num": 2}}


# --- layers ---------------------------------------------------------------------------------------


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_every_layer_wins_over_those_below(properties: Path, tmp_path: Path, flags: Any) -> None:
    key = "dsl_grow_window"

    def check(expected: int, files: list[Path] | None = None, **settings: Any) -> None:
        built = RecBoleDSLConfig("DMF", "ml-100k", files, settings)
        assert built.dsl.grow_window == expected
        assert built["learning_rate"] == expected / 1000
        assert built.dsl.min_weights == 77

    def both(value: int, indent: int = 0) -> str:
        pad = " " * indent
        return f"{pad}{key}: {value}\n{pad}learning_rate: {value}e-3\n"

    model, dataset = properties / "model/DMF.yaml", properties / "dataset/ml-100k.yaml"
    overall = (properties / "overall.yaml").read_text().replace(f"{key}: ~", f"{key}: 1")
    write(properties / "overall.yaml", overall + "learning_rate: 1e-3\n")
    write(model, "scope:\n  dsl_min_weights: 77\n")
    check(1)
    method = properties / "method/dsl_plus.yaml"
    write(method, method.read_text() + both(2))
    check(2)
    write(model, model.read_text() + "methods:\n  dsl_plus:\n" + both(3, 4))
    check(3)
    write(dataset, "methods:\n  dsl_plus:\n" + both(4, 4))
    check(4)
    write(dataset, dataset.read_text() + "models:\n  DMF:\n    dsl_plus:\n" + both(5, 6))
    check(5)
    first, second = write(tmp_path / "a.yaml", both(6)), write(tmp_path / "b.yaml", both(7))
    check(6, [first])
    check(7, [first, second])
    check(8, [first, second], dsl_grow_window=8, learning_rate=0.008)
    flags("--dsl_grow_window=9", "--learning_rate=0.009")
    check(9, [first, second], dsl_grow_window=8, learning_rate=0.008)


def test_the_method_comes_from_user_model_family_or_overall(
    properties: Path, tmp_path: Path, flags: Any
) -> None:
    assert config("DMF").dsl.method == config("GRU4Rec").dsl.method == "dsl_plus"
    assert property_files.layers("", "", None)["dsl_method"] == DSLConfig.from_config({}).method == "dsl"
    write(properties / "model/DMF.yaml", "default_method: rigl\n")
    assert config("DMF").dsl.method == "rigl"
    (properties / "family/general.yaml").unlink()
    assert (config("DMF").dsl.method, config("CDAE").dsl.method) == ("rigl", "dsl")
    write(properties / "model/LightGCN.yaml", "default_method: dsl_plus\n")
    assert config("LightGCN", dsl_method=None).dsl.method == "dsl_plus"
    file = write(tmp_path / "my.yaml", "dsl_method: rigl\n")
    assert RecBoleDSLConfig("LightGCN", "ml-100k", [file]).dsl.method == "rigl"
    both = RecBoleDSLConfig("LightGCN", "ml-100k", [file], {"dsl_method": "set"})
    assert (both.dsl.method, both.dsl.drop) == ("set", "set")
    flags("--dsl_method=static")
    both = RecBoleDSLConfig("LightGCN", "ml-100k", [file], {"dsl_method": "set"})
    assert (both["dsl_method"], both.dsl.update_ratio) == ("static", 0)


def test_a_section_of_another_method_has_no_effect(properties: Path) -> None:
    write(properties / "model/BPR.yaml", "methods:\n  set:\n    dsl_density: 0.3\n")
    assert config(dsl_method="set").dsl.density == 0.3
    assert config(dsl_method="rigl").dsl.density == 0.1


def test_a_method_file_of_ones_own(tmp_path: Path) -> None:
    file = write(tmp_path / "slow.yaml", "dsl_density: 0.3\ndsl_update_interval: 5 epochs\n")
    built = config(dsl_method=str(file))
    assert (built.dsl.method, built.dsl.density) == ("slow", 0.3)
    with pytest.raises(ConfigError) as error:
        config(dsl_method=str(write(tmp_path / "dsl.yaml", "")))
    assert_refused(error, "dsl_method", "'dsl'", "allowed")
    with pytest.raises(ConfigError) as error:
        config(dsl_method=str(write(tmp_path / "named.yaml", "dsl_method: x\n")))
    assert_refused(error, "dsl_method='x'", "named.yaml", "allowed")
    with pytest.raises(ConfigError) as error:
        config(dsl_method=str(write(tmp_path / "typo.yaml", "dsl_dropp: set\n")))
    assert_refused(error, "dsl_dropp", "typo.yaml", "did you mean 'dsl_drop'")


def test_at_density_one_a_method_changes_no_setting_of_recbole(tmp_path: Path) -> None:
    """Dropout that suits sparse rows is for sparse rows; a method file of one's own is meant as it is."""
    assert config("SASRec", dsl_density=0.5)["hidden_dropout_prob"] == 0
    for one in ({"dsl_density": 1}, {"dsl_density": 1.0, "dsl_method": "dsl_plus"}, {"dsl_method": "dense"}):
        built = config("SASRec", **one)
        assert built["hidden_dropout_prob"] == built["attn_dropout_prob"] == 0.5
    assert config("SASRec", dsl_density=1, hidden_dropout_prob=0.1)["hidden_dropout_prob"] == 0.1
    mine = write(tmp_path / "mine.yaml", "dsl_density: 1\nhidden_dropout_prob: 0.3\n")
    assert config("SASRec", dsl_method=str(mine))["hidden_dropout_prob"] == 0.3


@pytest.mark.parametrize(
    "given, told",
    [
        ({"transform": "crop_itemseq"}, "transform='crop_itemseq' needs eta, the share of a sequence"),
        (
            {"transform": "reorder_itemseq", "beta": 2},
            "needs beta, the share of a sequence that it changes, and",
        ),
        ({"transform": "user_defined"}, "transform='user_defined' is refused"),
        ({"transform": "crop"}, "transform='crop' is refused"),
        ({"transform": ["crop_itemseq"]}, "transform=['crop_itemseq'] is refused"),
        (
            {"train_neg_sample_args": {"distribution": "uniform", "sample_num": "none"}},
            "train_neg_sample_args='none' is",
        ),
    ],
)
def test_what_recbole_says_in_the_first_batch_only(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        config("SASRec", loss_type="BPR", **given)
    assert_refused(error, told, "allowed")
    config("SASRec", transform="crop_itemseq", eta=0.5)
    config("SASRec", transform="mask_itemseq", mask_ratio=0.2)


def test_a_none_above_density_and_budget_switches_that_one_off(tmp_path: Path) -> None:
    """The other one counts, of whatever lower layer; if there is none, the method's."""
    density = write(tmp_path / "density.yaml", "dsl_density: 0.5\n")
    budget = write(tmp_path / "budget.yaml", "dsl_budget: 500\n")

    def dsl(*files: Path, **settings: Any) -> Any:
        return RecBoleDSLConfig("BPR", "ml-100k", list(files), settings).dsl

    left = dsl(density, budget, dsl_budget=None)
    assert (left.budget, left.density) == (None, 0.5)
    kept = dsl(budget, density, dsl_density=None).budget
    assert kept is not None and kept.count == 500
    assert dsl(budget, dsl_budget=None) == config().dsl
    with pytest.raises(ConfigError, match="dsl_density=None is refused"):
        dsl(density, dsl_density=None)


def test_numbers_in_quotes_are_numbers(tmp_path: Path) -> None:
    """As those of flags are: also for rules that compare them."""
    one = write(tmp_path / "one.yaml", "dsl_density: '1'\n")
    assert RecBoleDSLConfig("SASRec", "ml-100k", [one])["hidden_dropout_prob"] == 0.5
    ratio = write(tmp_path / "ratio.yaml", "dsl_update_ratio: '0.001'\n")
    assert RecBoleDSLConfig("BPR", "ml-100k", [ratio]).dsl.update_ratio == 0.001


def test_the_least_ratio_by_default_follows_a_method_file_of_ones_own(tmp_path: Path) -> None:
    """As it follows a flag; one that the file sets itself does not."""
    method = write(tmp_path / "mine.yaml", "dsl_density: 0.2\ndsl_update_ratio: 0.001\n")
    assert config(dsl_method=str(method)).dsl.update_ratio_min == 0.001
    write(tmp_path / "mine.yaml", "dsl_density: 0.2\ndsl_update_ratio: 0.001\ndsl_update_ratio_min: 0.002\n")
    with pytest.raises(ConfigError, match="contradicts"):
        config(dsl_method=str(method))


def test_columns_of_ones_own_models_may_be_lists() -> None:
    """RecBole keeps keys that it does not know."""
    assert config(CONTEXT_FIELD=["a", "b"])["CONTEXT_FIELD"] == ["a", "b"]


def test_none_in_a_file_is_not_set(tmp_path: Path) -> None:
    """YAML reads it as text; the command line's None and YAML's ~ mean the same."""
    density = write(tmp_path / "density.yaml", "dsl_density: 0.5\n")
    for none in ("None", "~"):
        budget = write(tmp_path / "budget.yaml", f"dsl_budget: {none}\n")
        assert RecBoleDSLConfig("BPR", "ml-100k", [density, budget]).dsl.density == 0.5
        both = write(tmp_path / "both.yaml", f"dsl_density: 0.5\ndsl_budget: {none}\n")
        assert RecBoleDSLConfig("BPR", "ml-100k", [both]).dsl.density == 0.5
        start = write(tmp_path / "start.yaml", f"dsl_start_from: {none}\n")
        assert RecBoleDSLConfig("BPR", "ml-100k", [start]).dsl == config().dsl
        scope = write(tmp_path / "scope.yaml", f"dsl_include: {none}\n")
        assert RecBoleDSLConfig("SASRec", "ml-100k", [scope]).dsl == config("SASRec").dsl
    assert config().dsl.init_values == "topology" and config("SASRec").dsl.exclude


@pytest.mark.parametrize("flag", ["0,1", "[0,1]", "'0,1'"])
def test_several_gpus_are_named_to_cuda(flag: str, flags: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """RecBole evaluates 0,1 to two numbers; CUDA takes them as text, in one process and in several."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    flags(f"--gpu_id={flag}")
    RecBoleDSLConfig("BPR", "ml-100k")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
    os.environ.pop("CUDA_VISIBLE_DEVICES")
    place = {"nproc": 2, "world_size": 2, "ip": "localhost", "port": "1", "offset": 0, "local_rank": 1}
    chosen: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **_: chosen.append(backend))
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    built = RecBoleDSLConfig("BPR", "ml-100k", config_dict=place)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1" and chosen == [1, "nccl"]
    assert built["device"] == torch.device("cuda", 1)


def test_a_file_with_scientific_notation_holds_a_number(tmp_path: Path) -> None:
    path = write(tmp_path / "x.yaml", "a: 1e-4\nb: 1.5e3\nc: .5e-1\nd: 1e-4x\ne: 12\n")
    assert property_files.read_mapping(path) == {
        "a": 0.0001, "b": 1500.0, "c": 0.05, "d": "1e-4x", "e": 12,
    }  # fmt: skip


def test_the_users_density_beats_a_property_files_budget(properties: Path) -> None:
    write(properties / "model/BPR.yaml", "methods:\n  dsl_plus:\n    dsl_budget: 100\n")
    assert config().dsl.budget == Budget(100, "weights")
    built = config(dsl_density=0.2)
    assert (built.dsl.budget, built.dsl.density) == (None, 0.2)


BAD_PROPERTY_FILES = [
    ("model/BPR.yaml", "methods:\n  dsl:\n    {key}: nmf\n"),
    ("dataset/ml-100k.yaml", "methods:\n  rigl:\n    {key}: nmf\n"),
    ("dataset/ml-100k.yaml", "models:\n  LightGCN:\n    dsl:\n      {key}: nmf\n"),
    ("model/BPR.yaml", "methods:\n  dsl:\n    {key}: [nmf]\n"),
]


@pytest.mark.parametrize("key", sorted(property_files.DEFINING_KEYS))
@pytest.mark.parametrize(("name", "text"), BAD_PROPERTY_FILES)
def test_model_and_dataset_files_cannot_redefine_a_method(
    properties: Path, name: str, text: str, key: str
) -> None:
    write(properties / name, text.format(key=key))
    with pytest.raises(ConfigError) as error:
        config()
    assert_refused(error, key, "nmf", Path(name).name, "allowed")


@pytest.mark.parametrize(
    ("given", "split"),
    [
        ({}, "erk"),
        ({"init": "random"}, "erk"),
        ({"init": "er"}, None),
        ({"init": "er", "split": "size"}, "size"),
    ],
)
def test_a_topology_of_the_user_s_says_how_budgets_are_split(given: dict[str, str], split: str | None) -> None:
    """MultiVAE's file has a split for its own topology; that of er is not it."""
    keys = {f"dsl_{key}": value for key, value in given.items()}
    assert config("MultiVAE", dsl_method="dsl_plus", **keys).dsl.split == split


WITHOUT_TABLES = "methods:\n  dsl_plus:\n    dsl_init: random\n"


@pytest.mark.parametrize("topology", ["random", "er", "erk"])
@pytest.mark.parametrize("name", ["model/DMF.yaml", "family/general.yaml"])
def test_a_model_without_tables_starts_at_random(properties: Path, name: str, topology: str) -> None:
    """So that every method takes every model; what the user asks for still comes first."""
    for file in ("model/DMF.yaml", "family/general.yaml"):
        write(properties / file, "")
    assert config("DMF", dsl_method="dsl_plus").dsl.init == "spectral"
    write(properties / name, WITHOUT_TABLES.replace("random", topology))
    assert config("DMF", dsl_method="dsl_plus").dsl.init == topology
    assert config("DMF", dsl_method="dsl_plus", dsl_init="nmf").dsl.init == "nmf"
    assert config("DMF", dsl_method="rigl").dsl.init == "erk"


def test_a_family_tunes_methods_below_its_models(properties: Path) -> None:
    write(properties / "family/general.yaml", "methods:\n  set: {dsl_density: 0.3, dsl_grow_window: 3}\n")
    write(properties / "model/DMF.yaml", "methods:\n  set: {dsl_density: 0.4}\n")
    built = config("DMF", dsl_method="set").dsl
    assert (built.density, built.grow_window) == (0.4, 3)
    assert config("DMF", dsl_method="rigl").dsl.density == 0.1


def test_only_a_method_that_needs_tables_is_given_another_start(properties: Path) -> None:
    """Another would be another method under the same name."""
    write(properties / "model/DMF.yaml", "methods:\n  rigl:\n    dsl_init: random\n")
    with pytest.raises(ConfigError) as error:
        config("DMF")
    assert_refused(error, "dsl_init", "rigl", "DMF.yaml", "allowed")


def test_a_dataset_does_not_say_how_models_start(properties: Path) -> None:
    write(properties / "dataset/ml-100k.yaml", WITHOUT_TABLES)
    with pytest.raises(ConfigError) as error:
        config()
    assert_refused(error, "dsl_init", "random", "ml-100k.yaml", "allowed")


SCHEMA_ERRORS = [
    ("model/BPR.yaml", "dsl_density: 0.1\n", "part 'dsl_density'"),
    ("model/BPR.yaml", "method:\n  dsl: {}\n", "did you mean 'methods'"),
    ("model/BPR.yaml", "scope:\n  dsl_density: 0.1\n", "scope key 'dsl_density'"),
    ("model/BPR.yaml", "scope: [a]\n", "scope=['a']"),
    ("model/BPR.yaml", "methods:\n  dls: {}\n", "did you mean 'dsl'"),
    ("model/BPR.yaml", "methods:\n  dsl: 3\n", "dsl=3"),
    ("model/BPR.yaml", "methods:\n  dsl:\n    dsl_densty: 1\n", "did you mean 'dsl_density'"),
    ("model/BPR.yaml", "default_method: dsl_pls\n", "did you mean 'dsl_plus'"),
    ("family/general.yaml", "default_method: dsl_pls\n", "did you mean 'dsl_plus'"),
    ("model/BPR.yaml", "[1, 2]\n", "holds a list"),
    ("model/BPR.yaml", "recbole:\n  dsl_density: 1\n", "dsl_density below recbole"),
    ("model/BPR.yaml", "packages: [faiss]\n", "packages=['faiss']"),
    ("family/general.yaml", "dsl_density: 1\n", "key 'dsl_density'"),
    ("family/general.yaml", "methods:\n  dls: {}\n", "did you mean 'dsl'"),
    ("family/general.yaml", "methods:\n  dsl: {dsl_grow: random}\n", "dsl_grow='random'"),
    ("dataset/ml-100k.yaml", "scope: {}\n", "part 'scope'"),
    ("dataset/ml-100k.yaml", "models:\n  BPR:\n    dls: {}\n", "did you mean 'dsl'"),
    ("dataset/ml-100k.yaml", "a: [\n", "not valid YAML"),
]


@pytest.mark.parametrize(("name", "text", "part"), SCHEMA_ERRORS)
def test_property_files_have_a_schema(properties: Path, name: str, text: str, part: str) -> None:
    write(properties / name, text)
    with pytest.raises(ConfigError) as error:
        config()
    assert_refused(error, part, Path(name).name)


def test_families_lie_between_overall_and_model(properties: Path) -> None:
    write(properties / "family" / "sequential.yaml", "dsl_exclude: ['*position*']\ndsl_min_weights: 7\n")
    write(properties / "model" / "SASRec.yaml", "scope:\n  dsl_min_weights: 8\n")
    sequential, other = config("SASRec"), config("BPR")
    assert (sequential.dsl.exclude, sequential.dsl.min_weights) == (("*position*",), 8)
    assert (other.dsl.exclude, other.dsl.min_weights) == ((), 1024)
    assert config("SASRec", dsl_exclude=[], dsl_min_weights=9).dsl.exclude == ()
    assert sequential.left_to_files == {"include", "exclude", "groups", "init"}


def test_a_scope_of_the_users_is_without_the_exceptions_of_files() -> None:
    named = config("SASRec", dsl_include=["position_embedding.weight"])
    assert named.dsl.exclude == () and named.left_to_files == {"exclude", "groups", "init"}
    assert config("SASRec", dsl_include=["*"], dsl_exclude=["a"]).dsl.exclude == ("a",)


def test_recbole_keys_of_a_model_are_defaults(properties: Path) -> None:
    write(properties / "model" / "BPR.yaml", "recbole:\n  embedding_size: 24\n  stopping_step: 3\n")
    built = config("BPR", stopping_step=5)
    assert (built["embedding_size"], built["stopping_step"]) == (24, 5)


def test_softmax_losses_of_sequential_models_need_no_flag() -> None:
    assert config("GRU4Rec")["train_neg_sample_args"]["distribution"] == "none"
    assert config("GRU4Rec", loss_type="BPR")["train_neg_sample_args"]["distribution"] == "uniform"
    with pytest.raises(ConfigError, match="should be None when the loss_type is CE"):
        config("GRU4Rec", train_neg_sample_args={"distribution": "uniform"})


def test_a_package_that_a_model_needs_is_named_before_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "faiss" else find(name, *more)
    )
    with pytest.raises(ConfigError) as error:
        config("NCL", data_path="nowhere")
    assert_refused(error, "NCL", "faiss", "pip install faiss-cpu")


def shipped(kind: str) -> list[str]:
    return sorted(path.stem for path in (property_files.properties_dir() / kind).glob("*.yaml"))


def test_every_shipped_file_is_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    read = functools.cache(property_files.read_mapping)  # each file is in hundreds of the combinations
    monkeypatch.setattr(property_files, "read_mapping", lambda *given: copy.deepcopy(read(*given)))
    assert set(shipped("method")) >= METHODS
    classes = {recbole_names.model_class_name(p) for p in recbole_names.model_files().values()}
    assert set(shipped("model")) <= classes
    for dataset in ("", *shipped("dataset")):
        assert set(property_files.dataset_file(dataset).get("models", {})) <= classes
        for model in ("", *shipped("model")):
            for method in (None, *shipped("method")):
                layers = property_files.layers(model, dataset, method, "sequential")
                assert DSLConfig.from_config(layers).method == layers["dsl_method"]


def test_only_factors_of_the_interactions_are_done_without() -> None:
    """Where a shipped file changes the topology of a method, it was from factors, which need a table."""
    for kind in ("family", "model"):
        for name in shipped(kind):
            methods = property_files.read_mapping(property_files.properties_dir() / kind / f"{name}.yaml").get(
                "methods", {}
            )
            for method, section in methods.items():
                if "dsl_init" in section:
                    assert property_files.method_settings(method)["dsl_init"] in TOPOLOGIES_WITH_VALUES, name


@pytest.mark.parametrize("dataset", ["", *shipped("dataset")])
@pytest.mark.parametrize("model", ["ModelWithoutFile", *shipped("model")])
def test_dsl_is_the_papers_method_everywhere(model: str, dataset: str) -> None:
    dsl = DSLConfig.from_config(property_files.layers(model, dataset, "dsl"))
    assert (dsl.init, dsl.drop, dsl.grow, dsl.schedule) == (
        "random", "magnitude", "last_gradient", "cosine",
    )  # fmt: skip


def test_dense_is_recbole() -> None:
    dense = DSLConfig.from_config({"dsl_method": "dense"})
    assert (dense.density, dense.update_ratio, dense.init_values) == (1.0, 0.0, "model")


# --- RecBole's configuration ----------------------------------------------------------------------


def test_recboles_keys_keep_their_values() -> None:
    from recbole.config import Config

    ours, theirs = config("LightGCN"), Config("LightGCN", "ml-100k")
    for key, value in theirs.final_config_dict.items():
        assert ours[key] == value, key
    assert set(ours.final_config_dict) - set(theirs.final_config_dict) == KEYS


def test_a_model_class_and_names_from_settings() -> None:
    class MyBPR(BPR):
        pass

    built = config(MyBPR, embedding_size=8)
    assert (built["model"], built.dsl.method) == ("MyBPR", "dsl_plus")  # of properties/model/BPR.yaml
    built = RecBoleDSLConfig(config_dict={"model": "BPR", "dataset": "ml-100k"})
    assert (built["model"], built["dataset"]) == ("BPR", "ml-100k")


def test_typed_settings_follow_later_changes() -> None:
    built = config()
    built["dsl_density"] = 0.25
    assert built.dsl.density == 0.25
    built["dsl_density"] = 25
    with pytest.raises(ConfigError):
        _ = built.dsl


REFUSED_RUNS = [
    ({"model": None}, "model is not set"),
    ({"dataset": None}, "dataset is not set"),
    ({"model": "LightGNC"}, "did you mean 'LightGCN'"),
    ({"model": "lightgcn"}, "allowed is 'LightGCN'"),
    ({"model": "multivae"}, "allowed is 'MultiVAE'"),
    ({"model": "../BPR"}, "no model"),
    ({"model": 3}, "model=3"),
    ({"model": dict}, "no recommender class"),
    ({"model": "Pop"}, "no weights that gradients train"),
    ({"model": "EASE"}, "no weights that gradients train"),
    ({"model": "ItemKNN"}, "no weights that gradients train"),
    ({"model": "Random"}, "no weights that gradients train"),
    ({"model": "XGBoost"}, "external library"),
    ({"model": "LightGBM"}, "external library"),
    ({"dataset": "ml-100"}, "did you mean 'ml-100k'"),
    ({"dataset": "../ml-1m"}, "name of a dataset"),
    ({"dataset": 3}, "dataset=3"),
    ({"dataset": ""}, "name of a dataset"),
    ({"learner": "sparse_adam"}, "adamw"),
    ({"learner": "adm"}, "did you mean 'adam'"),
    ({"learner": None}, "adamw"),
    ({"dsl_density": 0.1, "dsl_budget": "2MB"}, "allowed is one of them"),
    ({"model": "NeuMF", "dsl_width": 256}, "embedding_size"),
    ({"learning_rate": "abc"}, "a number above 0"),
    ({"learning_rate": -1}, "a number above 0"),
    ({"weight_decay": -0.1}, "a number of at least 0"),
    ({"epochs": "many"}, "a whole number of at least 0"),
    ({"train_batch_size": 0}, "a whole number of at least 1"),
    ({"eval_batch_size": 1.5}, "a whole number of at least 1"),
    ({"embedding_size": 0}, "a whole number of at least 1"),
    ({"seed": "abc"}, "a whole number from 0 to 4294967295"),
    ({"clip_grad_norm": 5}, "'max_norm': 1.0"),
    ({"worker": "many"}, "a whole number of at least 0"),
    *(
        ({key: None}, "allowed is a")
        for key in (
            *(
                "learning_rate",
                "weight_decay",
                "epochs",
                "train_batch_size",
                "eval_batch_size",
                "embedding_size",
            ),
            *("stopping_step", "seed", "eval_step", "metric_decimal_place", "worker"),
        )
    ),
    ({"checkpoint_dir": "/dev/null/saved"}, "cannot be written"),
    ({"state": "WARN"}, "did you mean 'warning'"),
    ({"state": 3}, "one of debug, info, warning, error, critical"),
    ({"valid_metric": "NDGC@10"}, "did you mean 'ndcg@10'"),
    ({"valid_metric": "NDCG@20"}, "ndcg@10"),
    ({"dsl_Density": 0.1}, "did you mean 'dsl_density'"),
    ({"dsl-density": 0.1}, "did you mean 'dsl_density'"),
    ({"dsl_": 1}, "no known setting"),
    ({"benchmark_filename": "train"}, "['train', 'valid', 'test']"),
    ({"benchmark_filename": ["train"]}, "list of three"),
    ({"benchmark_filename": ["train", "valid", "test"]}, "ml-100k.train.inter"),
]


@pytest.mark.parametrize(("settings", "part"), REFUSED_RUNS)
def test_a_run_that_cannot_work_is_refused(settings: dict[str, Any], part: str) -> None:
    arguments: dict[str, Any] = {"model": "BPR", "dataset": "ml-100k", **settings}
    with pytest.raises(ConfigError) as error:
        config(**arguments)
    assert_refused(error, part, *settings)


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"topk": 0}, "topk"),
        ({"model": "SASRec", "train_neg_sample_args": {"distribution": "uniform"}}, "train_neg_sample_args"),
        ({"train_neg_sample_args": {"distribution": "normal"}}, "normal"),
    ],
)
def test_what_recbole_refuses_is_a_config_error(settings: dict[str, Any], part: str) -> None:
    arguments: dict[str, Any] = {"model": "BPR", "dataset": "ml-100k", **settings}
    with pytest.raises(ConfigError, match="RecBole refuses the settings") as error:
        config(**arguments)
    assert_refused(error, part)


@pytest.mark.parametrize("learner", ["adam", "AdamW", "sgd", "adagrad", "rmsprop"])
def test_known_learners_are_allowed(learner: str) -> None:
    assert config(learner=learner)["learner"] == learner


def test_a_metric_is_not_needed_without_evaluation() -> None:
    assert config(eval_step=0, valid_metric="Foo@10")["valid_metric"] == "Foo@10"


def test_the_number_of_weights_is_from_the_highest_layer_that_says_one(tmp_path: Path, flags: Any) -> None:
    """A budget above a density takes its place and the other way round; one layer says one of them."""
    density, budget = tmp_path / "density.yaml", tmp_path / "budget.yaml"
    density.write_text("dsl_density: 0.2\n")
    budget.write_text("dsl_budget: 3000\n")
    both = RecBoleDSLConfig("BPR", "ml-100k", [density, budget]).dsl
    assert both.budget is not None and both.budget.count == 3000
    reverse = RecBoleDSLConfig("BPR", "ml-100k", [budget, density]).dsl
    assert reverse.budget is None and reverse.density == 0.2
    flags("--dsl_budget=500")
    assert RecBoleDSLConfig("BPR", "ml-100k", [density], {"dsl_density": 0.3}).dsl.budget.count == 500
    flags()
    density.write_text("dsl_density: 0.2\ndsl_budget: 3000\n")
    with pytest.raises(ConfigError, match="allowed is one of them"):
        RecBoleDSLConfig("BPR", "ml-100k", [density])


def test_another_topology_needs_no_other_values_by_hand() -> None:
    """BPR's default starts from the factors' values, which a random topology does not have."""
    assert config().dsl.init_values == "topology"
    assert config(dsl_init="random").dsl.init_values == "fan_in"
    with pytest.raises(ConfigError, match="dsl_init_values='topology' contradicts"):
        config(dsl_init="random", dsl_init_values="topology")


def test_width_is_allowed_where_there_is_an_embedding_size() -> None:
    assert config(dsl_width=256).dsl.width == 256


def test_every_recbole_model_name_is_known() -> None:
    files = recbole_names.model_files()
    assert len(files) > 80
    for path in files.values():
        name = recbole_names.model_class_name(path)
        assert name.lower() == path.stem
        if path.parent.name != recbole_names.EXTERNAL_LIBRARY_FOLDER:
            recbole_names.check_model_name(name)


def test_looking_up_a_name_imports_no_model() -> None:
    before = set(sys.modules)
    with pytest.raises(ConfigError):
        recbole_names.check_model_name("Caserr")
    assert set(sys.modules) == before


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def get_model(name: str) -> None:
        raise ModuleNotFoundError("No module named 'faiss'")

    monkeypatch.setattr("recbole.config.configurator.get_model", get_model)
    with pytest.raises(ConfigError) as error:
        config("NCL")
    assert_refused(error, "'NCL'", "faiss", "allowed")


def test_datasets(tmp_path: Path) -> None:
    def at(dataset: str, **settings: Any) -> RecBoleDSLConfig:
        return config(dataset=dataset, data_path=str(tmp_path), **settings)

    assert at("ml-1m")["dataset"] == "ml-1m"  # RecBole downloads it
    (tmp_path / "mine").mkdir()
    with pytest.raises(ConfigError) as error:
        at("mine")
    assert_refused(error, "'mine'", "mine.inter")
    with pytest.raises(ConfigError) as error:
        at("mien")
    assert_refused(error, "'mien'", "did you mean 'mine'")
    write(tmp_path / "mine" / "mine.inter", "")
    assert at("mine")["dataset"] == "mine"
    parts = ["train", "valid", "test"]
    with pytest.raises(ConfigError) as error:
        at("mine", benchmark_filename=parts)
    assert_refused(error, "'mine'", "mine.train.inter")
    for part in parts:
        write(tmp_path / "mine" / f"mine.{part}.inter", "")
    assert at("mine", benchmark_filename=parts)
    with pytest.raises(ConfigError) as error:
        at("mine", benchmark_filename=["train", "test"])
    assert_refused(error, "benchmark_filename=['train', 'test']", "list of three")


def test_files_of_data(tmp_path: Path) -> None:
    """RecBole prepares data anew where it lacks them; where it has them the dataset's folder is not needed."""
    saved = write(tmp_path / "saved.pth", "")
    assert config(dataset="elsewhere", data_path=str(tmp_path), dataset_save_path=str(saved))
    for key in ("dataset_save_path", "dataloaders_save_path"):
        with pytest.raises(ConfigError) as error:
            config(dataset="ml-100k", **{key: str(tmp_path / "none.pth")})
        assert_refused(error, key, "none.pth", "save_dataset")


def test_a_list_may_be_a_tuple() -> None:
    """--topk=5,10 is one."""
    assert config(topk=(5, 10))["topk"] == [5, 10]


@pytest.mark.parametrize(
    "settings",
    [
        {"load_col": {"inter": ["user_id", "item_id"]}},
        {"load_col": None, "unload_col": {"inter": ["timestamp"]}},
    ],
    ids=["not loaded", "left out"],
)
def test_a_column_that_is_left_out_is_told(settings: dict[str, Any]) -> None:
    """The file has it, the settings do not take it."""
    with pytest.raises(DataError) as error:
        load_data(config(model="SASRec", train_neg_sample_args=None, **settings))
    assert_refused(error, "TIME_FIELD='timestamp'", "load_col")


@pytest.mark.parametrize(
    "worker, method, told", [(1, "spawn", ["file_system"]), (1, "fork", []), (0, "spawn", [])]
)
def test_loaders_that_are_not_forked_are_handed_files(
    worker: int, method: str, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python 3.14 starts processes afresh; torch's default there ends in 'unable to resize file'."""
    chosen: list[str] = []
    monkeypatch.setattr(torch.multiprocessing, "get_start_method", lambda: method)
    monkeypatch.setattr(torch.multiprocessing, "set_sharing_strategy", chosen.append)
    load_data(config(worker=worker))
    assert chosen == told


def test_a_byte_order_mark_is_told(tmp_path: Path) -> None:
    """It is invisible, and belongs to the first field's name."""
    write(tmp_path / "mine" / "mine.inter", "\ufeffuser_id:token\titem_id:token\nu\ti\n")
    with pytest.raises(DataError) as error:
        load_data(config(dataset="mine", data_path=str(tmp_path)))
    assert_refused(error, "mine.inter begins with a byte order mark", "allowed")


def test_none_on_the_command_line_is_none(flags: Any) -> None:
    """Of names and paths, too."""
    flags("--dsl_method=None", "--dsl_result=None")
    assert (config().dsl.method, config().dsl.result) == ("dsl_plus", None)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"USER_ID_FIELD": "uid"}, "USER_ID_FIELD='uid' is no field of mine.inter, which has user_id, item_id"),
        ({"TIME_FIELD": "when", "eval_args": {"order": "TO"}}, "TIME_FIELD='when' is no field of mine.inter"),
        ({"field_separator": ","}, "field_separator=','"),
        (
            {"USER_ID_FIELD": "uid", "benchmark_filename": ["part", "part", "part"]},
            "is no field of mine.part.inter",
        ),
    ],
)
def test_settings_that_do_not_fit_a_header_are_told_by_name(
    tmp_path: Path, settings: dict[str, Any], told: str
) -> None:
    for part in ("", ".part"):
        write(tmp_path / "mine" / f"mine{part}.inter", "user_id:token\titem_id:token\n" + "u\ti\nv\tj\nu\tj\n")
    with pytest.raises(DataError) as error:
        load_data(config(dataset="mine", data_path=str(tmp_path), **settings))
    assert_refused(error, "'mine'", told)


CONFIG_FILES = [
    (None, "cannot be read"),
    ("a: [\n", "not valid YAML"),
    ("a: 1\n b: 2\n", "in line 2"),
    ("- 1\n- 2\n", "holds a list"),
    ("just words\n", "holds a str"),
    ("a: &x [*x]\n", "holds itself"),
    ("1: 2\n", "keys that are no words"),
    ("dsl_densitiy: 0.1\n", "did you mean 'dsl_density'"),
]


@pytest.mark.parametrize(("text", "part"), CONFIG_FILES)
def test_bad_config_files_are_refused(tmp_path: Path, text: str | None, part: str) -> None:
    file = tmp_path / "mine.yaml"
    if text is not None:
        write(file, text)
    with pytest.raises(ConfigError) as error:
        RecBoleDSLConfig("BPR", "ml-100k", [str(file)])
    assert_refused(error, "mine.yaml", part)


def test_more_config_files(tmp_path: Path) -> None:
    file = write(tmp_path / "empty.yaml", "# nothing\n")
    assert RecBoleDSLConfig("BPR", "ml-100k", [file])
    assert RecBoleDSLConfig("BPR", "ml-100k", str(file))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00a")
    for bad in (tmp_path / "binary.yaml", tmp_path):
        with pytest.raises(ConfigError) as error:
            RecBoleDSLConfig("BPR", "ml-100k", [bad])
        assert_refused(error, str(bad))


# --- the result file ------------------------------------------------------------------------------


def test_writable_paths_leave_no_trace(tmp_path: Path) -> None:
    file = write(tmp_path / "old.json", "kept")
    stamp = file.stat().st_mtime_ns
    check_writable(file)
    assert (file.read_text(), file.stat().st_mtime_ns) == ("kept", stamp)
    check_writable(tmp_path / "new.json")
    check_writable(tmp_path / "a" / "b" / "new.json")
    assert [path.name for path in tmp_path.iterdir()] == ["old.json"]
    assert config(dsl_result=str(tmp_path / "a" / "new.json")).dsl.result
    assert [path.name for path in tmp_path.iterdir()] == ["old.json"]


def test_a_file_that_is_there_needs_a_folder_that_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is replaced by one that is written beside it."""
    file = write(tmp_path / "old.json", "kept")

    def locked(dir: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(dir))

    monkeypatch.setattr("tempfile.TemporaryFile", locked)
    with pytest.raises(ConfigError, match="cannot be written"):
        check_writable(file)


def test_a_file_that_is_no_result_is_not_overwritten(tmp_path: Path) -> None:
    """A config file, a checkpoint, JSON of something else; older results, of whatever schema, are."""
    for text in ("epochs: 3\n", '{"epochs_run": 3}', "[1]", "\x00\x01", "3"):
        with pytest.raises(ConfigError) as error:
            config(dsl_result=str(write(tmp_path / "file", text)))
        assert_refused(error, "dsl_result", repr(str(tmp_path / "file")), "would be lost", "allowed")
        assert (tmp_path / "file").read_text() == text
    for text in ("", '{"schema": 1, "model": "BPR", "epochs_run": 3}'):
        assert config(dsl_result=str(write(tmp_path / "file", text))).dsl.result


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX only")
def test_a_link_stays_one_and_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """A result must not take the place of a device, nor wait for who reads a pipe."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link to a pipe").symlink_to(tmp_path / "pipe")
    for path in ("/dev/null", tmp_path / "pipe", tmp_path / "link to a pipe"):
        with pytest.raises(ConfigError) as error:
            config(dsl_result=str(path))
        assert_refused(error, "dsl_result", repr(str(path)), "a device or a pipe", "allowed")
    (tmp_path / "folder").mkdir()
    link, target = tmp_path / "link.json", tmp_path / "folder" / "target.json"
    link.symlink_to(target)
    assert config(dsl_result=str(link)).dsl.result
    for text in ("one", "two"):
        write_text_whole(link, text)
        assert link.is_symlink() and target.read_text() == text


def test_unwritable_paths_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "file", "")
    for path in (tmp_path, file / "below.json", tmp_path / ("x" * 300), tmp_path / "a\0b"):
        with pytest.raises(ConfigError) as error:
            config(dsl_result=str(path))
        assert_refused(error, "dsl_result", repr(str(path)), "allowed")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_missing_rights_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "file.json", "")
    file.chmod(0o444)
    tmp_path.chmod(0o555)
    for path in (file, tmp_path / "new.json", tmp_path / "a" / "new.json"):
        with pytest.raises(ConfigError):
            check_writable(path)
    tmp_path.chmod(0o755)


# --- the command line -----------------------------------------------------------------------------

DROPPED = [
    (["--dsl_density", "0.1"], "allowed is --dsl_density=0.1"),
    (["--a=b=c"], "exactly one '='"),
    (["-x"], "'-x'"),
    (["-x=3"], "'-x=3'"),
    (["word"], "belongs to no key"),
    (["--model=BPR", "and", "more"], "'and'"),
    (["--config_files", "a.yaml", "b.yaml"], "'b.yaml'"),
    (["--verbose"], "allowed is --verbose=value"),
    (["--"], "'--'"),
    (["--=3"], "'--=3'"),
    ([""], "''"),
    (["--model"], "has no value"),
    (["--epochs=3", "--epochs=4"], "--epochs=4 contradicts --epochs=3"),
    (["--model", "BPR", "--model=NeuMF"], "contradicts --model=BPR"),
    (["-m", "BPR", "--model=NeuMF"], "contradicts --model=BPR"),
    (["--dsl_density=0.1", "--dsl_density=0.10"], "contradicts"),
]


@pytest.mark.parametrize(("arguments", "part"), DROPPED)
def test_arguments_that_recbole_would_drop_are_refused(arguments: list[str], part: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_command_line(arguments)
    assert_refused(error, part, "allowed")


ACCEPTED = [
    [],
    ["--model", "BPR", "-d", "ml-100k", "--config_files", "a.yaml b.yaml", "--nproc", "2"],
    ["-m", "BPR", "--model=BPR"],
    ["-m=BPR"],
    ["--ip", "localhost", "--port", "5678", "--world_size", "-1", "--group_offset", "0"],
    ["--config_files=a=b.yaml"],
    ["--epochs=3", "--epochs=3", "--dsl_density=0.1", "--dsl_budget=", "--anything=3"],
]


@pytest.mark.parametrize("arguments", ACCEPTED)
def test_good_command_lines_are_accepted(arguments: list[str]) -> None:
    check_command_line(arguments)


def test_the_entry_point_may_have_options_of_its_own() -> None:
    with pytest.raises(ConfigError):
        check_command_line(["--to", "model/"])
    check_command_line(["--to", "model/"], ["--to"])


def test_unknown_flags_are_kept_with_a_warning(flags: Any, caplog: pytest.LogCaptureFixture) -> None:
    flags("--learnin_rate=0.1", "--learning_rate=0.01", "--embedding_size=8", "--nproc=1")
    with caplog.at_level(logging.WARNING, "recbole_dsl.command_line"):
        built = config()
    assert built["learnin_rate"] == 0.1
    (message,) = [r.getMessage() for r in caplog.records if r.name == "recbole_dsl.command_line"]
    assert "--learnin_rate" in message and "did you mean 'learning_rate'" in message


FLAG_ERRORS = [
    (["--dsl_densty=0.1"], "the command line"),
    (["--dsl_density=2"], "dsl_density=2"),
    (["--dsl_density=nan"], "dsl_density='nan'"),
    (["--epochs=3", "--epochs=4"], "epochs=4"),
]


@pytest.mark.parametrize(("arguments", "part"), FLAG_ERRORS)
def test_flags_are_checked(flags: Any, arguments: list[str], part: str) -> None:
    flags(*arguments)
    with pytest.raises(ConfigError, match=r"[Aa]llowed") as error:
        config()
    assert_refused(error, part)
