"""RecBole's BPR model and loss without its data classes, for benchmarks of tables."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class BPR(nn.Module):
    """A table of users and one of items, and RecBole's BPR loss."""

    def __init__(self, users: int, items: int, columns: int) -> None:
        super().__init__()
        self.user_embedding = nn.Embedding(users, columns)
        self.item_embedding = nn.Embedding(items, columns)

    def forward(self, user: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """The loss of a batch of triples."""
        u = self.user_embedding(user)
        better = (u * self.item_embedding(positive)).sum(1)
        worse = (u * self.item_embedding(negative)).sum(1)
        return -torch.log(1e-10 + torch.sigmoid(better - worse)).mean()
