"""Keeps a run from being lost: knows where training is, saves it there, and takes it up there again.

A position lies between two optimizer steps. Of a position inside a pass the checkpoint also holds the
random generators as they were at the pass's start, so that the same batches can be drawn, and skipped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from logging import getLogger
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch

from ..errors import CheckpointError
from ..plain import plain
from ..quantities import Pace
from . import randomness
from .checkpoint import checkpoint_state, load_weights, refuse_spoilt_weights, write_checkpoint
from .signals import Interrupted, Signals


@dataclass
class Position:
    """Where training is.

    ``epoch``: the one it is in; ``passes``: the losses of its finished passes; ``step``: steps made in the
    running pass, and ``total`` their losses; ``steps``: steps of the whole run. ``loss``: of the whole
    epoch once its last step is made, before its validation. ``finished``: why no epoch follows, if none does.
    """

    epoch: int = 0
    passes: list[Any] = field(default_factory=list)
    step: int = 0
    total: Any = None
    steps: int = 0
    loss: Any = None
    finished: str | None = None

    @property
    def inside_epoch(self) -> bool:
        """Whether the epoch has begun."""
        return bool(self.passes or self.step or self.loss is not None)

    def __str__(self) -> str:
        if self.finished:
            return f"the end of training ({self.finished})"
        if self.loss is not None:
            return f"the end of epoch {self.epoch}, before its validation"
        if not self.inside_epoch:
            return f"the start of epoch {self.epoch}"
        which = f", pass {len(self.passes) + 1}" if self.passes else ""
        return f"step {self.step} of epoch {self.epoch}{which}"


class Keeper:
    """Saves and restores the run of one trainer.

    Args:
        trainer: a sparse trainer that is complete but has not begun.
        loaders: training and validation data, whose generators belong to the run.
        pace: how often to save; None for the start, the end and when stopped only.
        identity: of the data and settings, stored in every checkpoint.
    """

    def __init__(
        self, trainer: Any, loaders: Sequence[Any], pace: Pace | None, identity: Mapping[str, Any]
    ) -> None:
        self.trainer, self.pace, self.identity = trainer, pace, identity
        self.generators = [g for loader in loaders for g in randomness.generators_of(loader)]
        self.signals = Signals()
        self.saves = False
        self.position = Position()
        self.steps_to_skip = 0
        self.file: Path | None = None
        self._resumed: dict[str, Any] | None = None
        self._passes_begun = 0
        self._pass_randomness: dict[str, Any] | None = None
        self._epoch_end: dict[str, Any] = {}
        self._scaler: Any = None
        self._saved_at = monotonic()
        self._saved_position = ""

    # --- what the trainer tells -----------------------------------------------------------------

    def begin(self, saves: bool) -> None:
        """Training begins, or goes on; ``saves``: whether files may be written."""
        self.saves = saves
        if self._resumed is None:
            self.position = Position()
            self.save()

    def begin_epoch(self, epoch: int) -> Any:
        """Before anything of an epoch; returns its loss if it was trained before, else None."""
        self._passes_begun = 0
        if self._resumed is None:
            first = self.position.steps == 0 and self.position.loss is None
            self.position = Position(epoch, steps=self.position.steps)
            if not first:
                self._save_if_due("epochs", epoch)
            return None
        if self._resumed["run"]["position"]["finished"]:  # all is loaded, and NCL has made its clusters anew
            self._resumed = None
            return None
        if self.position.loss is not None:
            self._epoch_end = self._resumed["run"]["randomness"]  # it may be stopped in the validation again
            self._restore_all()
            return self.position.loss
        if not self.position.inside_epoch:
            self._restore_all()
        return None

    def begin_pass(self, epoch: int) -> tuple[bool, Any]:
        """Whether the next pass of the epoch has been made before, and its losses so far."""
        number, self._passes_begun = self._passes_begun, self._passes_begun + 1
        self.steps_to_skip = 0
        if self._resumed is not None:
            if number < len(self.position.passes):
                return True, self.position.passes[number]
            if self.position.step:
                self._pass_randomness = self._resumed["run"]["pass_randomness"]
                randomness.restore(self._pass_randomness, self.generators)
                self.steps_to_skip = self.position.step
                return False, self.position.total
            self._restore_all()
        self._pass_randomness = randomness.states(self.generators)
        self.position.step, self.position.total = 0, None
        return False, None

    def restore_inside_pass(self, scaler: Any) -> None:
        """The batches before the position are skipped: go on from there."""
        assert self._resumed is not None
        if self._resumed["run"]["scaler"]:
            scaler.load_state_dict(self._resumed["run"]["scaler"])
        self._restore_all()

    def after_step(self, total: Any, scaler: Any) -> None:
        """A step is made; ``total``: the losses of its pass so far."""
        self.position.step += 1
        self.position.steps += 1
        self.position.total = total
        self._scaler = scaler
        self._stop_if_asked()
        self._save_if_due("steps", self.position.steps)

    def end_pass(self, total: Any) -> None:
        """A pass is over."""
        self.position.passes.append(total)
        self.position.step, self.position.total = 0, None
        self._pass_randomness = self._scaler = None

    def end_epoch(self, loss: Any) -> None:
        """The last step of an epoch is made; its validation follows."""
        self.position.loss = loss
        self._epoch_end = randomness.states(self.generators)
        self._stop_if_asked()

    def in_evaluation(self) -> None:
        """Between two batches of an evaluation: stop if that was asked for.

        Of several processes each has its own number of batches, so there it waits for the next step.
        """
        if self.trainer.ranks.count == 1:
            self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        """All processes stop when one has been asked to."""
        (number,) = self.trainer.ranks.highest([self.signals.caught or 0])
        if number:
            self.signals.caught = number
            self.stop()

    def end(self, reason: str) -> None:
        """Training is over; a signal that has come since the last step is obeyed now."""
        trained = self.position.epoch + (self.position.loss is not None)
        self.position = Position(trained, steps=self.position.steps, finished=reason)
        self.save()
        self._resumed = None
        self._stop_if_asked()

    def is_finished(self, epochs: int) -> bool:
        """Whether nothing is left to train of a run of so many epochs that was taken up."""
        if self.position.finished == "early stopping" or self.position.epoch >= epochs:
            self._resumed = None
            return True
        self.position.finished = None  # there are more epochs now
        return False

    # --- what the user is told ------------------------------------------------------------------

    @property
    def place(self) -> str:
        """The step that is being made."""
        return f"step {self.position.step + 1} of epoch {self.position.epoch}"

    @property
    def last_good(self) -> str:
        """Where to go on from after a failure."""
        if self._saved_position and self.file is not None:
            return f"the last checkpoint is '{self.file}', of {self._saved_position}"
        return "there is no checkpoint to go on from"

    # --- saving ---------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the run as it is now into its ``…-last.dsl``, if files may be written.

        Raises:
            CheckpointError: the file cannot be written; an older one is whole, and so is the training.
            NumberError: weights are no finite numbers.
        """
        if not self.saves:
            return
        refuse_spoilt_weights(self.trainer.model, self.place, self.last_good)
        if self.file is None:
            self.file = self.trainer.claim_files()
        state = {**checkpoint_state(self.trainer, self.position.epoch), "run": self._run_state()}
        if self.trainer.writes_files:
            write_checkpoint(self.file, state)
        self._saved_at, self._saved_position = monotonic(), str(self.position)

    def _save_if_due(self, event: str, count: int) -> None:
        if self.pace is None:
            return
        due = self.pace.is_due(event, count, monotonic() - self._saved_at)
        if self.pace.unit == "minutes":  # clocks differ
            due = bool(self.trainer.ranks.told_by_first(due))
        if not due:
            return
        try:
            self.save()
        except CheckpointError as error:  # the run goes on; the next time may find room
            self._saved_at = monotonic()
            getLogger().error(f"{error} Training goes on; {self.last_good}.")

    def stop(self) -> None:
        """Save, and leave as the caught signal asks for.

        Raises:
            Interrupted: always.
        """
        number = self.signals.caught
        assert number is not None
        try:
            if self.position.finished is None:
                self.save()
        except CheckpointError as error:  # the older file is whole
            raise Interrupted(number, f"stopped at {self.position}; {error} Now {self.last_good}.") from None
        how = (
            f"go on with --resume='{self.file}'" if self.file is not None else "nothing was saved, as asked for"
        )
        raise Interrupted(number, f"stopped at {self.position}; {how}.")

    def _run_state(self) -> dict[str, Any]:
        """What goes on from this position, besides weights: plain values and tensors."""
        trainer, in_validation = self.trainer, self.position.loss is not None
        own = {
            "position": asdict(self.position),
            "randomness": self._epoch_end if in_validation else randomness.states(self.generators),
            "pass_randomness": self._pass_randomness if self.position.step else None,
        }
        return {
            **own,
            "ranks": trainer.ranks.of_all(own) if trainer.ranks.count > 1 else [],
            "identity": self.identity,
            "scaler": self._scaler.state_dict() if self._scaler is not None else {},
            "optimizers": {name: part.state_dict() for name, part in trainer.stateful_parts().items()},
            "explorer": self._explorer_state(),
            "attributes": trainer.changed_attributes.state_dict(),
            "trainer": {
                "best_valid_result": plain(trainer.best_valid_result),
                "train_loss": [[epoch, float(loss)] for epoch, loss in sorted(trainer.train_loss_dict.items())],
                "preparation_seconds": trainer.preparation_seconds,
                "epoch_seconds": trainer.epoch_seconds,
                "seconds_in_epoch": trainer.seconds_in_epoch,
                "valid_results": [[epoch, plain(told)] for epoch, told in trainer.valid_results.items()],
                "updates": trainer.updates_made,
                "best_file": Path(trainer.saved_model_file).name,
            },
        }

    def _explorer_state(self) -> dict[str, Any]:
        """The explorer's, with growth scores of all processes together."""
        ranks = self.trainer.ranks
        state: dict[str, Any] = self.trainer.sparse.explorer.state_dict()
        for group in state.values():
            if ranks.count > 1 and group["scores"] is not None:
                group["scores"]["sums"] = group["scores"]["sums"].clone()
                ranks.add_up(group["scores"]["sums"])
        return state

    # --- taking up ------------------------------------------------------------------------------

    def resume(self, state: dict[str, Any], file: Path, writes_there: bool) -> None:
        """Go on from a checkpoint that :meth:`save` wrote.

        Args:
            state: its contents. file: where it is. writes_there: save into it and its best again.
        """
        run, trainer = state["run"], self.trainer
        number = trainer.ranks.number
        if number < len(run["ranks"]):
            run |= run["ranks"][number]
        self._resumed = state
        self.position = Position(**run["position"])
        trainer.start_epoch = self.position.epoch
        trainer.cur_step, trainer.best_valid_score = state["cur_step"], state["best_valid_score"]
        kept = run["trainer"]
        trainer.best_valid_result = kept["best_valid_result"]
        trainer.train_loss_dict = {epoch: loss for epoch, loss in kept["train_loss"]}
        trainer.preparation_seconds = kept.get("preparation_seconds", trainer.preparation_seconds)
        trainer.epoch_seconds = list(kept["epoch_seconds"])
        trainer.seconds_before = kept.get("seconds_in_epoch", 0.0)
        trainer.valid_results = {epoch: told for epoch, told in kept["valid_results"]}
        trainer.updates_made = list(kept["updates"])
        trainer.saved_model_file = str(file.with_name(kept["best_file"]))
        if writes_there:
            self.file = file
        self._saved_position = str(self.position)
        self._load(state)

    def _restore_all(self) -> None:
        """Everything as it was at the position; afterwards training is as if it had never stopped."""
        assert self._resumed is not None
        self._load(self._resumed)
        self._resumed = None

    def _load(self, state: dict[str, Any]) -> None:
        run, trainer = state["run"], self.trainer
        load_weights(trainer.model, state)
        trainer.changed_attributes.load_state_dict(run["attributes"])
        parts = trainer.stateful_parts()
        for name, kept in run["optimizers"].items():
            parts[name].load_state_dict(kept)
        trainer.sparse.explorer.load_state_dict(run["explorer"])
        for group in trainer.sparse.groups:
            if group.growth_scores is not None and not trainer.ranks.is_first:
                group.growth_scores.sums.zero_()  # the first process has them for all
        randomness.restore(run["randomness"], self.generators)
        if trainer.ranks.number >= max(1, len(run["ranks"])):  # a process that the run did not have
            seed = trainer.ranks.seed(trainer.config["seed"])
            torch.manual_seed(seed)
            np.random.seed(seed)
