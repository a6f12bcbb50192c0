"""What single RecBole models need besides sparse weights: copies, caches and zeros they do not expect."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import TargetError
from ..handle import Group
from ..packed.group import PackedGroup
from ..packed.layers import SLOTS
from ..packed.layout import names_of_tensors
from ..packed.masked import MaskedGroup
from ..packed.surgery import keep_out_of_broadcast

CACHE_PREFIX = "restore_"
"""RecBole's graph models keep propagated embeddings under such names until the next loss."""

OTHER_CACHES = ("i_embedding",)
"""The same of DMF, which lists it among its other parameters."""


STATE = {"FwFM": ("weight",), "KGAT": ("A_in",), "NNCF": ("u_neigh", "i_neigh")}
"""Attributes besides weights that scores depend on, and that RecBole does not save, by the class's name."""


REBUILT = {"SGL": ("sub_graph1", "sub_graph2")}
"""Attributes that ``model.train()`` makes anew at the start of every epoch, by the class's name."""


def clear_model_caches(model: Any) -> None:
    """Forget embeddings a model keeps between evaluations: the weights have changed."""
    for name in list(vars(model)):
        if is_cache(model, name):
            setattr(model, name, None)


def is_cache(model: Any, name: str) -> bool:
    """Whether an attribute holds embeddings that a model computes again when they are gone."""
    others = getattr(model, "other_parameter_name", ())
    return name.startswith(CACHE_PREFIX) or (name in OTHER_CACHES and name in others)


def rebuilt_every_epoch(model: nn.Module) -> list[str]:
    """Attributes that need not be kept, since every epoch makes them anew from random numbers."""
    return [name for cls in _recbole_names(model) for name in REBUILT.get(cls, ())]


def other_state(model: Any) -> dict[str, Any]:
    """What a checkpoint of a model holds besides its state dict; RecBole loads it by ``setattr``."""
    extra = {key: getattr(model, key) for name in _recbole_names(model) for key in STATE.get(name, ())}
    return {**(model.other_parameter() or {}), **extra}


def loss_of_interactions(model: Any) -> Callable[[Any], Any]:
    """The loss of a batch of interactions, of the encoder's turn where encoder and decoder take turns."""
    if "RecVAE" in _recbole_names(model):
        return functools.partial(model.calculate_loss, encoder_flag=True)
    return getattr(model, "calculate_rs_loss", model.calculate_loss)


def adapt(model: nn.Module) -> list[Group]:
    """Apply to a model that has just become sparse what its class, or one it derives from, needs.

    Returns:
        Frozen groups that have been added.

    Raises:
        TargetError: the model cannot work with these groups.
    """
    steps = [step for name in _recbole_names(model) for step in ADAPTATIONS.get(name, ())]
    return [group for step in steps for group in step(model)]


def _recbole_names(model: nn.Module) -> list[str]:
    """Names of the RecBole classes a model is of."""
    return [cls.__name__ for cls in type(model).__mro__ if cls.__module__.startswith("recbole.model.")]


def store_old_encoder_packed(model: Any) -> list[Group]:
    """RecVAE: store the frozen copy of the encoder as the encoder is stored.

    At the end of every epoch RecBole loads the encoder's state dict into the copy (recvae.py:197),
    which works between equals only. So the copy has the encoder's topology from the start, with
    its own initial values.
    """
    encoder, old = model.encoder, model.prior.encoder_old
    inside = {id(m) for m in encoder.modules()}
    for child in encoder.modules():
        for group, number in child.__dict__.get(SLOTS, {}).values():
            if id(group) not in inside:
                raise TargetError(
                    f"sparse group {group.name!r} holds {group.slices[number].name!r} together with tensors "
                    "outside of the encoder, which RecVAE copies as a whole; allowed are groups within the "
                    "encoder and groups within the decoder, such as dsl_groups='per_tensor'."
                )
    twin = copy.deepcopy(encoder)
    names = names_of_tensors(twin)
    for group in twin.modules():
        if isinstance(group, PackedGroup):
            firsts = [names[id(group), number][0] for number in range(len(group.slices))]
            _take_values(group, [old.get_parameter(name) for name in firsts])
        elif isinstance(group, MaskedGroup):
            group.release()
    own = dict(old.named_parameters())
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if name in own:
                parameter.copy_(own[name])
    model.prior.encoder_old = twin.requires_grad_(False)
    groups = [group for group in twin.modules() if isinstance(group, PackedGroup | MaskedGroup)]
    for group in groups:
        if isinstance(group, MaskedGroup):
            group.clear_dead()  # the copy is a dense model's
        else:
            keep_out_of_broadcast(model, group)
    return groups


@torch.no_grad()
def _take_values(group: PackedGroup, tensors: list[nn.Parameter]) -> None:
    for number, tensor in enumerate(tensors):
        values = tensor.reshape(-1)[group.flat_positions(number)]
        group.weight[group.span(number)] = values


def keep_item_graph_finite(model: Any) -> list[Group]:
    """MCCLK: give entities without any value a constant vector in the item–item graph.

    RecBole divides by the length of every vector and by the root of every row's sum
    (mcclk.py:227, 247), which for a row of zeros is a NaN. Of unit vectors only directions count.
    """
    plain = model.gcn.build_adj
    model.gcn.build_adj = functools.partial(_build_adj, plain)
    return []


def _build_adj(plain: Callable[[Tensor, int], Tensor], context: Tensor, topk: int) -> Tensor:
    empty = ~context.detach().bool().any(dim=-1, keepdim=True)
    return plain(torch.where(empty, torch.ones_like(context), context), topk)


def _stays_parameter(attribute: str) -> Callable[[Any], list[Group]]:
    """A parameter that the model knows by ``isinstance`` cannot be packed: what it reads then is a tensor."""

    def check(model: Any) -> list[Group]:
        if attribute in model.__dict__.get(SLOTS, {}):
            raise TargetError(
                f"{type(model).__name__} asks whether its {attribute!r} is a parameter, which packed weights "
                f"are not; allowed is dsl_exclude=['{attribute}'], and dsl_storage='masked'."
            )
        return []

    return check


def _has_penalty(model: Any) -> bool:
    """Whether the factors that RecBole's models multiply norms of parameters with are not all zero."""
    factors = next(
        getattr(model, name) for name in ("regs", "reg_weights", "reg_weight") if hasattr(model, name)
    )
    return any(factors) if isinstance(factors, list | tuple) else bool(factors)


def _one_by_one(*parts: str) -> Callable[[Any], list[Group]]:
    """Packed tensors of modules ``parts`` must be groups of their own: losses have a norm of each parameter.

    Groups of several have one parameter, of which such a loss would take one norm, or none, where the group
    is registered above the module. Where the norms count nothing, any groups will do.
    """

    def check(model: Any) -> list[Group]:
        if not _has_penalty(model):
            return []
        for part in parts:
            for module in getattr(model, part).modules():
                for group, number in module.__dict__.get(SLOTS, {}).values():
                    if len(group.slices) > 1:
                        raise TargetError(
                            f"sparse group {group.name!r} holds {group.slices[number].name!r} together with "
                            f"other tensors, but {type(model).__name__}'s loss takes a norm of each parameter "
                            f"of {part}; allowed is a group for each, such as dsl_groups='per_tensor'."
                        )
        return []

    return check


ADAPTATIONS: dict[str, tuple[Callable[[Any], list[Group]], ...]] = {
    "Caser": (_one_by_one("conv_h"),),
    "ConvNCF": (_one_by_one("cnn_layers", "predict_layers"),),
    "EulerNet": (_one_by_one("Euler_interaction_layers", "reg"), _stays_parameter("mu")),
    "MacridVAE": (_one_by_one("encoder"),),
    "NAIS": (_one_by_one("mlp_layers"),),
    "NextItNet": (_one_by_one("residual_blocks"),),
    "PNN": (_one_by_one("mlp_layers"),),
    "xDeepFM": (_one_by_one("mlp_layers", "first_order_linear", "conv1d_list"),),
    "RecVAE": (store_old_encoder_packed,),
    "MCCLK": (keep_item_graph_finite,),
}
"""By the name of the RecBole class."""
