"""How many optimizer steps a run of a RecBole trainer has, group by group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from recbole import trainer as trainers

from ..quantities import Span


@dataclass(frozen=True)
class Plan:
    """``steps``: optimizer steps of a run that is not stopped early, over ``epochs``."""

    steps: int
    epochs: int

    @classmethod
    def of(cls, base: type, config: Any, train_data: Any, tensors: Sequence[str]) -> Plan:
        """The plan of trainer ``base`` for a group of ``tensors`` (names).

        RecBole's knowledge-aware trainers pass through interactions and triples, RecVAE trains encoder
        and decoder in turns, and a stage of pre-training has a number of epochs of its own.
        """
        pretrains = issubclass(base, trainers.PretrainTrainer) and config["train_stage"] != "finetune"
        epochs = config["pretrain_epochs"] if pretrains else config["epochs"]
        steps_of = next((_STEPS[c] for c in base.__mro__ if c in _STEPS), _interactions)
        return cls(sum(steps_of(config, train_data, tensors, epoch) for epoch in range(epochs)), epochs)

    def resolve(self, span: Span) -> int:
        """A span in steps; an epoch is an average one, rounded down but at least a step."""
        if span.unit == "percent":
            return span.steps(self.steps, 1)
        return span.steps(max(1, self.steps // max(1, self.epochs)), self.epochs)


def _interactions(_: Any, train_data: Any, __: Sequence[str], ___: int) -> int:
    return len(train_data)


def _kg(config: Any, train_data: Any, _: Sequence[str], epoch: int) -> int:
    """trainer.py:690: interactions with triples in one pass, or epochs of one and of the other."""
    first, second = config["train_rec_step"], config["train_kg_step"]
    triples = first is not None and second is not None and epoch % (first + second) >= first
    return len(train_data.kg_dataloader if triples else train_data.general_dataloader)


def _kgat(_: Any, train_data: Any, __: Sequence[str], ___: int) -> int:
    """trainer.py:719: a pass through each."""
    return len(train_data.general_dataloader) + len(train_data.kg_dataloader)


def _mkr(config: Any, train_data: Any, _: Sequence[str], epoch: int) -> int:
    """trainer.py:845: interactions, and triples every ``kge_interval`` epochs."""
    triples = len(train_data.kg_dataloader) if epoch % config["kge_interval"] == 0 else 0
    return len(train_data.general_dataloader) + triples


def _recvae(config: Any, train_data: Any, tensors: Sequence[str], _: int) -> int:
    """trainer.py:1258: some passes for the encoder, then some for the decoder."""
    encoder = all(name.startswith("encoder.") for name in tensors)
    return len(train_data) * (config["n_enc_epochs"] if encoder else config["n_dec_epochs"])


_STEPS: dict[type, Callable[[Any, Any, Sequence[str], int], int]] = {
    trainers.KGTrainer: _kg,
    trainers.KGATTrainer: _kgat,
    trainers.MKRTrainer: _mkr,
    trainers.RecVAETrainer: _recvae,
}
"""Steps of a group in one epoch, by trainer; of any other trainer as many as there are batches."""
