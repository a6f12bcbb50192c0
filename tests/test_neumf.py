"""All items' scores of RecBole's NeuMF at once: what it predicts for pairs, in every storage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from recbole.data.interaction import Interaction
from recbole.model.general_recommender import BPR, NeuMF
from recbole.model.layers import MLPLayers
from torch import Tensor

from recbole_dsl import neumf
from tests.model_runs import settings_of, sparse_trainer_of

DSL = {"method": "dsl", "density": 0.3, "update_interval": 3}
PARTS: dict[str, dict[str, Any]] = {
    "both": {},
    "factors": {"mlp_train": False},
    "layers": {"mf_train": False},
    "one layer": {"mlp_hidden_size": [8], "dropout_prob": 0.5},
    "other sizes": {"mf_embedding_size": 4, "mlp_embedding_size": 6, "mlp_hidden_size": [10, 8, 5]},
}
STORAGES: dict[str, dict[str, Any]] = {
    "packed": {},
    "masked": {"storage": "masked"},
    "layers packed": {"include": ["mlp_layers.*.weight", "*mlp_embedding.weight"], "groups": "per_tensor"},
    "dense": {"density": 1.0},
}


def model_of(data: Path, dsl: dict[str, Any], **settings: Any) -> Any:
    """A NeuMF in double precision whose tables and biases count, as after training."""
    trainer, _ = sparse_trainer_of("NeuMF", {**settings_of("NeuMF", data), **settings}, **{**DSL, **dsl})
    torch.manual_seed(3)
    for name, parameter in trainer.model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
        elif "layer" not in name:
            parameter.data *= 50
    return trainer.model.double().eval()


def predicted(model: Any, users: Tensor) -> Tensor:
    """(n, items): RecBole's scores of all pairs."""
    items = torch.arange(model.n_items)
    pairs = {model.USER_ID: users.repeat_interleave(len(items)), model.ITEM_ID: items.repeat(len(users))}
    with torch.no_grad():
        return model.predict(Interaction(pairs)).view(len(users), -1)


@pytest.mark.usefixtures("in_folder")
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("parts", PARTS)
def test_scores_are_those_of_pairs(
    parts: str, storage: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several users, in one block, in blocks of items, and in blocks that hold some users each."""
    if storage == "layers packed" and parts == "factors":
        storage = "packed"  # there are no layers
    include = {"include": ["*mf_embedding.weight"]} if parts == "factors" else {}
    model = model_of(data, {**STORAGES[storage], **include}, **PARTS[parts])
    users = torch.tensor([3, 1, 1, 5])
    expected = predicted(model, users)
    assert expected.std() > 1e-3
    for pairs in (7, 2 * model.n_items, 2**12):
        monkeypatch.setattr(neumf, "PAIRS_AT_ONCE", pairs)
        with neumf.ranking(model) as ours:
            assert ours
            scores = model.full_sort_predict(Interaction({model.USER_ID: users}))
        torch.testing.assert_close(scores, expected, rtol=1e-12, atol=0)


class OtherForward(NeuMF):
    """Scores otherwise."""

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        """The negative."""
        return -super().forward(user, item)


@pytest.mark.usefixtures("in_folder")
def test_it_lasts_as_long_as_the_block(data: Path) -> None:
    """An error ends it, too."""
    model = model_of(data, {})
    asked = Interaction({model.USER_ID: torch.tensor([1])})
    with pytest.raises(KeyError), neumf.ranking(model):
        raise KeyError
    assert "full_sort_predict" not in vars(model)
    with pytest.raises(NotImplementedError):
        model.full_sort_predict(asked)


def other_layers(model: Any) -> None:
    model.mlp_layers = torch.nn.Sequential(model.mlp_layers.mlp_layers)


def own_layers(model: Any) -> None:
    model.mlp_layers.__class__ = type("Residual", (MLPLayers,), {})


def no_bias(model: Any) -> None:
    model.predict_layer = torch.nn.Linear(model.predict_layer.in_features, 1, bias=False)


@pytest.mark.usefixtures("in_folder")
@pytest.mark.parametrize("change", [other_layers, own_layers, no_bias])
def test_models_of_other_parts_are_left_alone(change: Any, data: Path) -> None:
    """A subclass may have made its layers of anything."""
    model = model_of(data, {})
    change(model)
    assert not neumf.takes(model)


@pytest.mark.usefixtures("in_folder")
def test_layers_may_normalise(data: Path) -> None:
    """A subclass whose layers have batch norms, or an activation that looks at pairs."""
    model = model_of(data, {"include": ["*mlp_embedding.weight"]})
    sizes = [2 * model.mlp_embedding_size, *model.mlp_hidden_size]
    model.mlp_layers = MLPLayers(sizes, 0.0, activation="dice", bn=True).double().eval()
    for layer in model.mlp_layers.mlp_layers:
        if isinstance(layer, torch.nn.BatchNorm1d):
            torch.nn.init.normal_(layer.running_mean)
    users = torch.tensor([4, 2])
    scores = neumf.scores_of_all_items(model, users)
    torch.testing.assert_close(scores, predicted(model, users), rtol=1e-12, atol=0)


@pytest.mark.usefixtures("in_folder")
def test_models_that_score_otherwise_are_left_alone(data: Path) -> None:
    """Those that drop out, other forwards, in the class or in the object, and other models."""
    model = model_of(data, {})
    others = [None, BPR.__new__(BPR), model.train()]
    for other in others:
        assert not neumf.takes(other)
    model.eval()
    assert neumf.takes(model)
    model.forward = lambda user, item: user * item
    assert not neumf.takes(model)
    del model.forward
    model.__class__ = OtherForward
    assert not neumf.takes(model)
    with neumf.ranking(model) as ours:
        assert not ours and "full_sort_predict" not in vars(model)
