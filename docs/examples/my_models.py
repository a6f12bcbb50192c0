"""Two models outside of RecBole: one derived from a RecBole model, one from scratch."""

import torch
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.model.general_recommender import BPR
from recbole.model.loss import BPRLoss
from recbole.utils import InputType
from torch import nn


class BPRWithBias(BPR):
    """BPR plus a popularity term. Takes BPR's settings, RecBole's and ours, and its data loaders."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.item_bias = nn.Embedding(self.n_items, 1)  # one column: stays dense by default
        nn.init.zeros_(self.item_bias.weight)

    def get_user_embedding(self, user):
        user_e = super().get_user_embedding(user)
        return torch.cat([user_e, torch.ones_like(user_e[:, :1])], dim=1)

    def get_item_embedding(self, item):
        return torch.cat([super().get_item_embedding(item), self.item_bias(item)], dim=1)

    def full_sort_predict(self, interaction):
        items = torch.cat([self.item_embedding.weight, self.item_bias.weight], dim=1)
        return (self.get_user_embedding(interaction[self.USER_ID]) @ items.T).view(-1)


class ProductModel(GeneralRecommender):
    """Every embedding and Linear matrix is found and becomes sparse; nothing here knows of it."""

    input_type = InputType.PAIRWISE

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        size = config["embedding_size"] or 64  # no file gives a model of one's own this key
        self.user_embedding = nn.Embedding(self.n_users, size)
        self.item_embedding = nn.Embedding(self.n_items, size)
        self.layer = nn.Linear(size, size)
        self.loss = BPRLoss()

    def forward(self, user):
        return torch.tanh(self.layer(self.user_embedding(user)))

    def calculate_loss(self, interaction):
        user = self.forward(interaction[self.USER_ID])
        positive = self.item_embedding(interaction[self.ITEM_ID])
        negative = self.item_embedding(interaction[self.NEG_ITEM_ID])
        return self.loss((user * positive).sum(-1), (user * negative).sum(-1))

    def predict(self, interaction):
        return (self.forward(interaction[self.USER_ID]) * self.item_embedding(interaction[self.ITEM_ID])).sum(
            -1
        )

    def full_sort_predict(self, interaction):
        return (self.forward(interaction[self.USER_ID]) @ self.item_embedding.weight.T).view(-1)
