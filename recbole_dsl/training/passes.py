"""How many optimizer steps an epoch of a RecBole trainer has, and how many epochs a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from recbole import trainer as trainers


def planned_epochs(base: type, config: Any) -> int:
    """Epochs that a run of trainer ``base`` has at most: of pre-training, if that is its stage."""
    if issubclass(base, trainers.PretrainTrainer) and config["train_stage"] != "finetune":
        return config["pretrain_epochs"]
    return config["epochs"]


def steps_per_epoch(base: type, config: Any, train_data: Any, tensors: Sequence[str]) -> int:
    """Optimizer steps of ``tensors`` (names) in an average epoch of trainer ``base``, rounded down.

    RecBole's knowledge-aware trainers pass through interactions and triples, RecVAE trains encoder
    and decoder in turns.
    """
    for cls in base.__mro__:
        if cls in _STEPS:
            return max(1, int(_STEPS[cls](config, train_data, tensors)))
    return len(train_data)


def _interactions_and_triples(train_data: Any) -> tuple[int, int]:
    return len(train_data.general_dataloader), len(train_data.kg_dataloader)


def _kg_steps(config: Any, train_data: Any, _: Sequence[str]) -> Fraction:
    """trainer.py:690: interactions with triples in one pass, or epochs of one and of the other."""
    interactions, triples = _interactions_and_triples(train_data)
    first, second = config["train_rec_step"], config["train_kg_step"]
    if first is None or second is None:
        return Fraction(interactions)
    return Fraction(first * interactions + second * triples, first + second)


def _kgat_steps(_: Any, train_data: Any, __: Sequence[str]) -> Fraction:
    """trainer.py:719: one pass through each."""
    return Fraction(sum(_interactions_and_triples(train_data)))


def _mkr_steps(config: Any, train_data: Any, _: Sequence[str]) -> Fraction:
    """trainer.py:845: one through interactions, one through triples every ``kge_interval`` epochs."""
    interactions, triples = _interactions_and_triples(train_data)
    return interactions + Fraction(triples, config["kge_interval"])


def _recvae_steps(config: Any, train_data: Any, tensors: Sequence[str]) -> Fraction:
    """trainer.py:1258: some passes for the encoder, then some for the decoder."""
    encoder = all(name.startswith("encoder.") for name in tensors)
    return Fraction(len(train_data) * (config["n_enc_epochs"] if encoder else config["n_dec_epochs"]))


_STEPS: dict[type, Callable[[Any, Any, Sequence[str]], Fraction]] = {
    trainers.KGTrainer: _kg_steps,
    trainers.KGATTrainer: _kgat_steps,
    trainers.MKRTrainer: _mkr_steps,
    trainers.RecVAETrainer: _recvae_steps,
}
