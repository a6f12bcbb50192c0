"""Where a budget goes and whom it serves: rows and recall by popularity decile.

Users and items are sorted by their training interactions (ties: lower id first) and cut into ten groups of
equal size, the most popular first; the padding id 0 is in none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from recbole.data.dataloader import FullSortEvalDataLoader

from ..sparsity.interactions import Interactions

DECILES = 10


def deciles(counts: np.ndarray) -> np.ndarray:
    """The decile of every id, 0 for the most popular; -1 for the padding id 0.

    Args:
        counts: (n,) training interactions of every id.
    """
    order = 1 + np.argsort(-counts[1:], kind="stable")
    result = np.full(len(counts), -1)
    result[order] = np.arange(len(order)) * DECILES // max(1, len(order))
    return result


def live_per_row(groups: Sequence[Any]) -> dict[str, np.ndarray]:
    """How many weights of each row live, by the names of the sparse tensors of two dimensions."""
    found = {}
    for group in groups:
        pointers = group.live_rows().row_pointers.detach().cpu().numpy().astype(np.int64)
        for part in group.slices:
            if len(part.shape) == 2:
                found[part.name] = np.diff(pointers[part.first_row : part.first_row + part.rows + 1])
    return found


def by_popularity(
    trainer: Any,
    interactions: Interactions | None,
    test_data: Any,
    ks: Sequence[int],
    before: Mapping[str, np.ndarray] | None = None,
    after: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """What a tested model does for each decile of users and items.

    Returns:
        For ``users`` and ``items``: ``rows`` and training ``interactions`` of every decile, and ``live``
        weights per row by tensor, ``before`` and ``after`` training. For items also the test interactions
        (``positives``) and ``recall``, the share of them that is among the first k recommended, by k; null
        where the evaluation does not rank all items. Empty for data without users and items.
    """
    if interactions is None:
        return {}
    told: dict[str, Any] = {}
    times = {"before": before or {}, "after": after or {}}
    sides = {
        "users": (interactions.users, interactions.n_users, "user"),
        "items": (interactions.items, interactions.n_items, "item"),
    }
    for side, (ids, n, role) in sides.items():
        counts = np.bincount(ids.numpy(), minlength=n)
        of = deciles(counts)
        told[side] = {
            "rows": [int((of == d).sum()) for d in range(DECILES)],
            "interactions": [int(counts[of == d].sum()) for d in range(DECILES)],
            "live": {
                name: {when: _by_decile(rows[name], of) for when, rows in times.items() if name in rows}
                for name, last in times["after"].items()
                if interactions.role_of_rows(name, len(last)) == role
            },
        }
        if side == "items":
            told[side] |= _recall(trainer, test_data, of, ks)
    return told


def _by_decile(live: np.ndarray, of: np.ndarray) -> list[float | None]:
    """Mean live weights per row of every decile; None for one without rows."""
    return [float(live[of == d].mean()) if (of == d).any() else None for d in range(DECILES)]


@torch.no_grad()
def _recall(trainer: Any, test_data: Any, of: np.ndarray, ks: Sequence[int]) -> dict[str, Any]:
    if not isinstance(test_data, FullSortEvalDataLoader):
        return {"positives": None, "recall": None}
    trainer.model.eval()
    positives: Any = np.zeros(DECILES, np.int64)
    hits: Any = np.zeros((max(ks), DECILES), np.int64)
    for batch in test_data:
        _, scores, users, items = trainer._full_sort_batch_eval(batch)
        ranked = scores.topk(min(max(ks), scores.shape[1]), dim=-1).indices
        users, items = users.to(ranked.device), items.to(ranked.device)
        found = (ranked[users] == items.unsqueeze(1)).cpu().numpy()
        groups = of[items.cpu().numpy()]
        positives += np.bincount(groups, minlength=DECILES)
        for place in range(found.shape[1]):
            hits[place] += np.bincount(groups[found[:, place]], minlength=DECILES)
    reached = hits.cumsum(axis=0)
    return {
        "positives": positives.tolist(),
        "recall": {
            str(k): [float(reached[k - 1, d] / positives[d]) if positives[d] else None for d in range(DECILES)]
            for k in ks
        },
    }
