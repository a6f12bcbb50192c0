"""Every model RecBole registers: trained sparse, or refused with a reason before any data is loaded."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from recbole_dsl import support
from recbole_dsl.config import RecBoleDSLConfig
from recbole_dsl.errors import ConfigError, TargetError
from recbole_dsl.experiment import run_recbole_dsl
from tests.model_checks import check_density_one, check_sparse
from tests.model_runs import names_of_models, no_flags, settings_of, sparse_run, sparse_trainer_of

TRAINED = [row.model for row in support.rows() if row.status != support.REFUSED]
REFUSED = [row.model for row in support.rows() if row.status == support.REFUSED]

IN_MAKE_TEST = {
    "BPR", "LINE", "GCMC", "RecVAE", "RaCT", "NCL", "GRU4RecCPR", "GRU4RecKG", "FM", "LR", "KTUP", "MKR",
    "KGAT",
}  # fmt: skip
"""One for every trainer and every kind of parameter; the others are slow tests."""


def models(names: list[str]) -> Any:
    """A test for every name; those of ``IN_MAKE_TEST`` are not slow."""
    marked = [
        pytest.param(name, marks=() if name in IN_MAKE_TEST else pytest.mark.slow, id=name) for name in names
    ]
    return pytest.mark.parametrize("name", marked)


pytestmark = pytest.mark.usefixtures("in_folder")


def test_every_model_of_recbole_has_a_row() -> None:
    """A model that a later RecBole adds shows up as untested, and here."""
    assert {row.model for row in support.rows()} == set(names_of_models())
    assert [row.model for row in support.rows() if row.status == support.UNTESTED] == []
    assert len(TRAINED) + len(REFUSED) == len(names_of_models()) and set(TRAINED) >= IN_MAKE_TEST


@models(TRAINED)
def test_density_one_is_recbole(name: str, data: Path) -> None:
    """The losses of all steps and the weights at the end; everything in packed storage."""
    found = check_density_one(name, data)
    assert found["trainer"] == support.rows([name])[0].trainer


@models(TRAINED)
def test_sparse_training(name: str, data: Path) -> None:
    """Budgets after at least two updates, zeros in evaluation, metrics after a reload."""
    assert check_sparse(name, data)["storage"] == ["packed"]


@models(TRAINED)
def test_the_whole_experiment(name: str, data: Path, tmp_path: Path) -> None:
    """What the command line runs: set-up, training, test, costs, result."""
    settings = {**settings_of(name, data), "checkpoint_dir": str(tmp_path / "saved")}
    with no_flags():
        result = run_recbole_dsl(
            name, "tiny", config_dict={**settings, "dsl_density": 0.2, "dsl_method": "dsl"}
        )
    assert result.test_result and all(value == value for value in result.test_result.values())
    assert result.sparsity["live"] == result.sparsity["budget"] < result.sparsity["weights"]
    assert result.costs["macs_per_training_step"] > 0 and result.costs["checkpoint_bytes"] > 0


@models(TRAINED)
def test_defaults_train(name: str, data: Path) -> None:
    """An epoch by the default method, with its values and rates: budgets hold, and numbers stay finite."""
    settings = settings_of(name, data)
    run = sparse_run(name, settings)
    assert run.trainer.dsl.method == "dsl_plus" and run.trainer.sparse.live == run.trainer.sparse.budget
    assert run.losses and all(math.isfinite(loss) for loss in run.losses)
    assert all(math.isfinite(value) for value in run.valid.values())


@models(TRAINED)
def test_dsl_plus_takes_every_model(name: str, data: Path) -> None:
    """From factors of the interactions, or at random where they fit no tensor; wanted all the same,
    they are refused."""
    settings = settings_of(name, data)
    trainer, _ = sparse_trainer_of(name, settings, method="dsl_plus")
    assert trainer.sparse.live == trainer.sparse.budget < trainer.sparse.dense_weights
    if trainer.config.dsl.init == "random":
        with pytest.raises(ConfigError, match="needs a table or matrix of users or items"):
            sparse_trainer_of(name, settings, method="dsl_plus", init="nmf")


WIDENED = ["BPR", "RippleNet", "STAMP", "CKE", "DeepFM", "GRU4Rec"]


@pytest.mark.parametrize("name", WIDENED)
def test_width_is_free_for_every_shape_of_tensor(name: str, data: Path) -> None:
    """The budget is a share of the model of the original width, whatever its tensors make of that."""
    settings = settings_of(name, data)
    one, _ = sparse_trainer_of(name, settings, density=0.1, method="dsl", min_weights=0)
    wide, _ = sparse_trainer_of(name, settings, density=0.1, method="dsl", min_weights=0, width=32)
    assert wide.sparse.budget == one.sparse.budget and wide.sparse.dense_weights == one.sparse.dense_weights
    assert wide.sparse.live == wide.sparse.budget


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_any_data_is_loaded(name: str) -> None:
    """One sentence, for a dataset that does not even exist."""
    with no_flags(), pytest.raises(ConfigError) as refusal:
        RecBoleDSLConfig(name, "ml-100k", config_dict={"data_path": "nowhere"})
    message = str(refusal.value)
    assert name in message and "because" in message and "allowed are" in message and "\n" not in message


REGULARISED = {
    "ConvNCF": {"reg_weights": [0.1, 0.1]},
    "NAIS": {"reg_weights": [0.01, 0.01, 0.01]},
    "MacridVAE": {"reg_weights": [0.01, 0.01]},
    "xDeepFM": {"reg_weight": 0.01},
    "PNN": {"reg_weight": 0.01},
    "Caser": {"reg_weight": 0.01},
    "NextItNet": {"reg_weight": 0.01},
}
"""Models that sum over ``named_parameters()``, some over names that end in ``weight``."""


@pytest.mark.slow
@pytest.mark.parametrize("name", REGULARISED)
def test_packed_weights_stay_in_the_regularisation(name: str, data: Path) -> None:
    """With a penalty large enough to be seen in the loss."""
    check_density_one(name, data, **REGULARISED[name])


INNER: dict[str, dict[str, Any]] = {
    "ConvNCF": {"include": ["*_embedding.weight", "predict_layers.*"], "min_weights": 0},
    "EulerNet": {"include": ["*.embedding.weight", "Euler_*.im.weight"]},
    "MacridVAE": {},
    "NAIS": {},
    "PNN": {},
    "xDeepFM": {},
}
"""Settings that make tensors of a regularised module sparse."""


def test_what_eulernet_asks_for_is_not_packed(data: Path) -> None:
    """It would take a packed ``mu`` for a module."""
    settings = settings_of("EulerNet", data)
    dsl = {"density": 0.5, "method": "dsl", "include": ["*"], "min_weights": 0}
    with pytest.raises(TargetError, match=r"EulerNet asks whether its 'mu' is a parameter, .*exclude=\['mu'\]"):
        sparse_trainer_of("EulerNet", settings, **dsl)
    sparse_trainer_of("EulerNet", settings, **dsl, exclude=["mu"])


@pytest.mark.parametrize("name", INNER)
def test_regularised_parameters_are_groups_of_their_own(name: str, data: Path) -> None:
    """In a group with others they would drop out of losses that take a norm of each parameter."""
    settings = {**settings_of(name, data), **REGULARISED.get(name, {"reg_weight": 0.01})}
    dsl = {"density": 0.5, "method": "dsl", **INNER[name]}
    with pytest.raises(TargetError, match=f"but {name}'s loss takes a norm of each parameter of .*per_tensor"):
        sparse_trainer_of(name, settings, groups="joint", **dsl)
    sparse_trainer_of(name, settings, groups="per_tensor", **dsl)
    if name == "PNN":
        sparse_trainer_of(name, {**settings, "reg_weight": 0.0}, groups="joint", **dsl)


@pytest.mark.parametrize(
    "name, settings, tensors",
    [
        ("LINE", {"order": 1}, {"user_embedding.weight", "item_embedding.weight"}),
        ("LINE", {"dsl_include": ["user_embedding.weight"]}, {"user_embedding.weight"}),
        ("DCNV2", {"mixed": True}, {"cross_layer_u.0", "cross_layer_v.0"}),
        ("FFM", {"load_col": {"inter": ["user_id", "item_id", "rating"]}, "normalize_field": None}, set()),
        ("SASRec", {"dsl_include": ["position_embedding.weight"]}, {"position_embedding.weight"}),
    ],
)
def test_scopes_of_files_fit_other_settings(
    name: str, settings: dict[str, Any], tensors: set[str], data: Path
) -> None:
    """Patterns of property files that match nothing are no mistake of the user's."""
    trainer, _ = sparse_trainer_of(name, {**settings_of(name, data), **settings}, density=0.2, method="dsl")
    found = {s.name for group in trainer.sparse.groups for s in group.slices}
    assert found and found >= tensors and (name != "LINE" or found == tensors)


def test_recvae_unpacked_is_recboles(data: Path) -> None:
    """The frozen copy as well, so RecBole's own step between the two works."""
    trainer, _ = sparse_trainer_of("RecVAE", settings_of("RecVAE", data), density=0.2)
    assert trainer.sparse.copies
    model = trainer.sparse.unpack()
    assert not any(".packed_" in key for key in model.state_dict())
    model.update_prior()
    assert torch.equal(model.prior.encoder_old.fc1.weight, model.encoder.fc1.weight)


def test_recvae_masked_copies_live_weights(data: Path) -> None:
    """Dead ones of the frozen encoder are zero from the start, as in packed storage."""
    trainer, _ = sparse_trainer_of("RecVAE", settings_of("RecVAE", data), density=0.2, storage="masked")
    copies = trainer.sparse.copies
    assert copies
    for group in copies:
        assert sum(int(p.count_nonzero()) for p in group.trained_parameters()) <= group.budget


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["packed", "masked"])
def test_recvae_in_either_storage(storage: str, data: Path) -> None:
    """The frozen copy of the encoder is stored as the encoder is."""
    assert check_sparse("RecVAE", data, storage=storage)["storage"] == [storage]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, include, masked",
    [
        ("GRU4Rec", ["item_embedding.weight", "gru_layers.weight_*"], "gru_layers.weight_hh_l0"),
        ("NextItNet", ["item_embedding.weight", "residual_blocks.0.conv*"], "residual_blocks.0.conv1.weight"),
    ],
)  # fmt: skip
def test_layers_that_cannot_be_packed_are_masked_if_included(
    name: str, include: list[str], masked: str, data: Path
) -> None:
    """Recurrent and convolutional weights, reported as masked."""
    assert check_sparse(name, data, include=include)["storage"] == ["masked", "packed"]
    trainer, _ = sparse_trainer_of(name, settings_of(name, data), density=0.2, include=include)
    assert masked in {s.name for g in trainer.sparse.groups if g.storage == "masked" for s in g.slices}
    weight = trainer.model.get_parameter(masked)
    assert 0 < torch.count_nonzero(weight) <= 0.2 * weight.numel() + 1


@pytest.mark.slow
def test_ncl_after_its_warm_up_is_recbole_s(data: Path) -> None:
    """Prototypes count from the second epoch on; by default they do after twenty."""
    check_density_one("NCL", data, epochs=2, warm_up_step=1, proto_reg=0.1)
