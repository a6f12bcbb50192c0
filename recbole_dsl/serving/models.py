"""How each of RecBole's models is served: which tensors its artifact holds, and who makes scores of them.

A model is a row of :data:`VECTORS`, of :data:`BY_RECBOLE` or of :data:`REFUSED`. The tests
compare the scores of each with its ``full_sort_predict`` or ``predict``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from .encoders import Graph


@dataclass(frozen=True)
class Source:
    """What an artifact of a model that scores by inner products holds.

    ``tensors``: names in the artifact, and of each the module and the attribute that it is, or a tensor.
    ``graphs``: interactions that the encoder needs. ``activation``: what makes a score of an inner product.
    """

    encoder: str
    tensors: dict[str, Any]
    graphs: dict[str, Graph] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    activation: str | None = None


def _tables(users: str, items: str) -> Callable[[Any], Source]:
    def source(model: Any) -> Source:
        return Source(
            "tables", {"users": (getattr(model, users), "weight"), "items": (getattr(model, items), "weight")}
        )

    return source


_embeddings = _tables("user_embedding", "item_embedding")


def _computed(vectors: Callable[[Any], tuple[Tensor, Tensor]]) -> Callable[[Any], Source]:
    """Vectors that the model itself computes, once, and that are written as they are: dense."""

    def source(model: Any) -> Source:
        users, items = vectors(model)
        return Source("tables", {"users": users, "items": items})

    return source


def _enmf(model: Any) -> Source:
    """ENMF weighs columns."""
    return Source(
        "tables", {**_embeddings(model).tensors, "column_weights": model.H_i.weight.detach().flatten()}
    )


def _graph_of(matrix: Any) -> Graph:
    """Of a scipy matrix of users × items; repeated interactions count once, as RecBole's graphs do."""
    rows = matrix.tocsr()
    rows.sum_duplicates()
    rows.sort_indices()
    return Graph(rows.indptr.astype(np.int64), rows.indices, rows.shape[1])


def _light_graph(model: Any) -> Source:
    matrix = getattr(model, "interaction_matrix", None)
    if matrix is None:  # SGL keeps two arrays
        import scipy.sparse as sp

        pairs = (np.asarray(model._user), np.asarray(model._item))
        matrix = sp.coo_matrix((np.ones(len(pairs[0])), pairs), (model.n_users, model.n_items))
        if matrix.tocsr().nnz < matrix.nnz:  # repeated ones weigh more there, not in LightGCN
            return _computed(_restored)(model)
    options = {"layers": int(model.n_layers)}
    return Source("light_graph", _embeddings(model).tensors, {"graph": _graph_of(matrix)}, options)


def _ngcf(model: Any) -> Source:
    if model.node_dropout != 0:
        return _computed(_restored)(model)
    tensors = dict(_embeddings(model).tensors)
    for number, layer in enumerate(model.GNNlayers):
        for part, linear in (("linear", layer.linear), ("interact", layer.interActTransform)):
            tensors[f"layer{number}.{part}.weight"] = (linear, "weight")
            tensors[f"layer{number}.{part}.bias"] = (linear, "bias")
    options = {"layers": len(model.GNNlayers)}
    return Source("ngcf", tensors, {"graph": _graph_of(model.interaction_matrix)}, options)


def _simplex(model: Any) -> Source:
    if model.aggregator != "mean":
        return _computed(_simplex_vectors)(model)
    tensors = dict(_tables("user_emb", "item_emb")(model).tensors) | {"map": (model.UI_map, "weight")}
    lengths = model.history_item_len.cpu().numpy()
    history = model.history_item_id.cpu().numpy()
    items = history[np.arange(history.shape[1]) < lengths[:, None]]
    graph = Graph.of_counts(lengths, items, model.n_items)
    return Source("simplex", tensors, {"aggregated": graph}, {"gamma": float(model.gamma)})


def _simplex_vectors(model: Any) -> tuple[Tensor, Tensor]:
    normalize = torch.nn.functional.normalize
    users = []
    for ids in torch.arange(model.n_users, device=model.device).split(256):
        items = model.item_emb(model.history_item_id[ids])
        users.append(model.get_UI_aggregation(model.user_emb(ids), items, model.history_item_len[ids]))
    return normalize(torch.cat(users), dim=1), normalize(model.item_emb.weight, dim=1)


def _dmf(model: Any) -> Source:
    if not bool((model.interaction_matrix.data == 1).all()):
        return replace(_computed(_dmf_vectors)(model), activation="sigmoid")
    tensors, options = {}, {}
    for side in ("user", "item"):
        tensors[f"{side}.first.weight"] = (getattr(model, f"{side}_linear"), "weight")
        layers = [m for m in getattr(model, f"{side}_fc_layers").modules() if isinstance(m, torch.nn.Linear)]
        options[f"{side}_layers"] = len(layers)
        for number, layer in enumerate(layers):
            tensors[f"{side}{number}.weight"], tensors[f"{side}{number}.bias"] = (
                (layer, "weight"),
                (layer, "bias"),
            )
    return Source("dmf", tensors, {"graph": _graph_of(model.interaction_matrix)}, options, "sigmoid")


def _dmf_vectors(model: Any) -> tuple[Tensor, Tensor]:
    ids = torch.arange(model.n_users, device=model.device).split(64)
    users = torch.cat([model.user_fc_layers(model.get_user_embedding(part)) for part in ids])
    return users, model.get_item_embedding()


def _restored(model: Any) -> tuple[Tensor, Tensor]:
    """Those that a model keeps from one evaluation to the next.

    Some drop edges of their graph whenever they compute them, also in evaluations (NGCF's ``node_dropout``,
    ``node_dropout_rate`` of KGIN and MCCLK): what is served is one draw, as an evaluation is.
    """
    user = torch.ones(1, dtype=torch.int64, device=model.device)
    model.full_sort_predict(Interaction({model.USER_ID: user}))
    kept = [getattr(model, f"restore_{name}_e", None) for name in ("item", "entity")]
    return model.restore_user_e, next(rows for rows in kept if rows is not None)[: model.n_items]


def _mcclk(model: Any) -> Source:
    users, items = _restored(model)
    activation = "sigmoid" if model.loss_type.lower() == "bce" else None
    return Source("tables", {"users": users, "items": items}, activation=activation)


def _cke(model: Any) -> tuple[Tensor, Tensor]:
    return model.user_embedding.weight, model.item_embedding.weight + model.entity_embedding.weight[
        : model.n_items
    ]


VECTORS: Final[dict[str, Callable[[Any], Source]]] = {
    "BPR": _embeddings,
    "LINE": _embeddings,
    "ENMF": _enmf,
    "LightGCN": _light_graph,
    "NCL": _light_graph,
    "SGL": _light_graph,
    "NGCF": _ngcf,
    "SimpleX": _simplex,
    "DMF": _dmf,
    "DGCF": _computed(_restored),
    "SpectralCF": _computed(_restored),
    "CKE": _computed(_cke),
    "KGAT": _computed(_restored),
    "KGIN": _computed(_restored),
    "MCCLK": _mcclk,
}
"""Models whose scores are inner products: served by numpy alone. The last six hold dense vectors."""


_INTERACTIONS = (
    "CDAE", "ConvNCF", "FISM", "GCMC", "MacridVAE", "MultiDAE", "MultiVAE", "NAIS", "RaCT", "RecVAE",
)  # fmt: skip
_SEQUENCES = (
    "BERT4Rec", "CORE", "Caser", "FEARec", "FOSSIL", "FPMC", "GCSAN", "GRU4Rec", "GRU4RecCPR", "HGN", "HRM",
    "LightSANs", "NARM", "NPE", "NextItNet", "RepeatNet", "SASRec", "SASRecCPR", "SHAN", "SINE", "SRGNN",
    "STAMP", "TransRec",
)  # fmt: skip

BY_RECBOLE: Final[dict[str, str]] = {
    "NeuMF": "nothing",
    **dict.fromkeys(_INTERACTIONS, "interactions"),
    **dict.fromkeys(_SEQUENCES, "sequences"),
}
"""Models that score by a network, which RecBole builds without its dataset where they are served.

Each with what it needs besides weights: nothing, the training interactions, or users' sequences.
"""

FEATURES = "its scores need features of users or items, which an artifact does not hold"
_KNOWLEDGE = "its scores need the knowledge graph, which an artifact does not hold"
_RANDOM = "it draws random numbers when it scores, so it has no answer to reproduce"

REFUSED: Final[dict[str, str]] = {
    **dict.fromkeys(("DiffRec", "LDiffRec"), _RANDOM),
    "NNCF": "its scores need the neighbours that RecBole draws when it builds the model",
    **dict.fromkeys(("CFKG", "KGCN", "KGNNLS", "KTUP", "MKR", "RippleNet", "KSR", "GRU4RecKG"), _KNOWLEDGE),
    **dict.fromkeys(("DIEN", "DIN", "FDSA", "GRU4RecF", "S3Rec", "SASRecF"), FEATURES),
}
"""Models that are not served, and why; all context-aware ones besides, for :data:`FEATURES`."""


def refused(name: str) -> str:
    """Why a RecBole model is not served."""
    return REFUSED.get(name, FEATURES)
