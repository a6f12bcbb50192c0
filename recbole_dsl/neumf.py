"""RecBole's NeuMF ranks all items without a row for every pair.

RecBole repeats the user for each item and sends the pairs through the whole network (trainer.py:526). The first
layer is linear, in the user's half and in the item's half of its input, so here it is applied once to each user
and once to each item. Only what follows is computed for pairs, as many at a time as a cache holds. Scores are
those of ``predict`` but for the order of summation.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial, reduce
from typing import Any

import torch
from recbole.model.general_recommender.neumf import NeuMF
from recbole.model.layers import MLPLayers
from torch import Tensor, nn
from torch.nn.functional import linear

METHODS = ("forward", "predict", "full_sort_predict")
"""What must be RecBole's own."""

PAIRS_AT_ONCE, PAIRS_AT_ONCE_ON_DEVICE = 2**12, 2**18


@contextlib.contextmanager
def ranking(model: Any) -> Iterator[bool]:
    """While it lasts, a NeuMF has a ``full_sort_predict``; other models are left alone.

    Yields:
        Whether the model is a NeuMF, or one that scores as that does.
    """
    if not takes(model):
        yield False
        return
    model.full_sort_predict = partial(_full_sort_predict, model)
    try:
        yield True
    finally:
        del model.full_sort_predict


def takes(model: Any) -> bool:
    """Whether it scores as RecBole's NeuMF does, and drops nothing out."""
    return (
        isinstance(model, NeuMF)
        and not model.training
        and all(getattr(type(model), name) is getattr(NeuMF, name) for name in METHODS)
        and not any(name in vars(model) for name in METHODS)
        and type(model.mlp_layers) is MLPLayers
        and isinstance(model.predict_layer, nn.Linear)
        and model.predict_layer.bias is not None
    )


def _full_sort_predict(model: Any, interaction: Any) -> Tensor:
    return scores_of_all_items(model, interaction[model.USER_ID])


@torch.no_grad()
def scores_of_all_items(model: Any, users: Tensor) -> Tensor:
    """What ``predict`` says of every pair: (n, items) for the ids ``users`` (n,)."""
    pairs = PAIRS_AT_ONCE if users.device.type == "cpu" else PAIRS_AT_ONCE_ON_DEVICE
    weights = model.predict_layer.weight[0]
    shares = []
    if model.mf_train:
        shares.append(_of_factors(model, users, weights[: model.mf_embedding_size]))
    if model.mlp_train:
        shares.append(_of_layers(model, users, weights[-model.mlp_hidden_size[-1] :], pairs))
    blocks = torch.arange(model.n_items, device=users.device).split(pairs)
    scores = torch.cat([reduce(torch.add, [share(items) for share in shares]) for items in blocks], 1)
    return scores.add_(model.predict_layer.bias).sigmoid_()


def _of_factors(model: Any, users: Tensor, weights: Tensor) -> Callable[[Tensor], Tensor]:
    vectors = model.user_mf_embedding(users) * weights
    return lambda items: vectors @ model.item_mf_embedding(items).T


def _of_layers(model: Any, users: Tensor, weights: Tensor, pairs: int) -> Callable[[Tensor], Tensor]:
    _, first, *others = model.mlp_layers.mlp_layers  # the first drops out
    later = nn.Sequential(*others)
    of_user, of_item = first.weight.split(model.mlp_embedding_size, 1)
    halves = linear(model.user_mlp_embedding(users), of_user, first.bias).unsqueeze(1)

    def share(items: Tensor) -> Tensor:
        other_halves = linear(model.item_mlp_embedding(items), of_item)
        some_users = halves.split(max(pairs // len(items), 1))
        scores = [later((some + other_halves).flatten(0, 1)) @ weights for some in some_users]
        return torch.cat(scores).view(-1, len(items))

    return share
