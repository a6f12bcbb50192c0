"""Pre-training stages (S3Rec, RaCT), whose sparse weights a later stage starts from."""

from __future__ import annotations

import functools
from pathlib import Path
from time import time
from typing import Any

from recbole.utils import set_color

from ..errors import CheckpointError
from ..files import claim
from .checkpoint import checkpoint_state, refuse_spoilt_weights, unwritable, write_checkpoint
from .keeper import Keeper
from .ranks import Ranks


class SparsePretrainingMixin:
    """Pre-trains as RecBole's ``PretrainTrainer``, and keeps what it has trained.

    RecBole's own files are pickles, are written over, and the last epoch is in one only if
    ``save_step`` divides it. Here every file is a checkpoint like all others under a name of its own.
    """

    config: Any
    model: Any
    logger: Any
    checkpoint_dir: str
    saved_model_file: str
    ranks: Ranks
    keeper: Keeper
    _keeps = True

    def fit(
        self,
        train_data: Any,
        valid_data: Any = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
        callback_fn: Any = None,
    ) -> tuple[float, Any]:
        """Train the stage that ``train_stage`` names; with ``saved=False`` no file is written."""
        self._keeps = saved
        return super().fit(  # type: ignore[misc]
            train_data, valid_data, verbose, saved, show_progress, callback_fn
        )

    def pretrain(self, train_data: Any, verbose: bool = True, show_progress: bool = False) -> tuple[float, Any]:
        """One pre-training stage; returns RecBole's best score and result, which are unset."""
        trainer: Any = self
        epochs = trainer.pretrain_epochs
        for epoch in range(trainer.start_epoch, epochs):
            started = time()
            loss = trainer._train_epoch(train_data, epoch, show_progress=show_progress)
            trainer.train_loss_dict[epoch] = sum(loss) if isinstance(loss, tuple) else loss
            if verbose:
                self.logger.info(trainer._generate_train_loss_output(epoch, started, time(), loss))
            trainer._add_train_loss_to_tensorboard(epoch, loss)
            due = (epoch + 1) % trainer.save_step == 0 or epoch + 1 == epochs
            if due and self._keeps:
                self._save_stage(epoch, verbose)
        return trainer.best_valid_score, trainer.best_valid_result

    def _save_stage(self, epoch: int, verbose: bool) -> None:
        stage = self.model.train_stage
        name = f"{self.config['model']}-{self.config['dataset']}-{stage}-{epoch + 1}.dsl"
        refuse_spoilt_weights(self.model, f"the end of epoch {epoch}", self.keeper.last_good)
        state = checkpoint_state(self, epoch)
        write = functools.partial(_write_stage, Path(self.checkpoint_dir) / name, state)
        path = self.saved_model_file = self.ranks.done_by_first(write)
        if verbose:
            self.logger.info(
                set_color("Saving pre-trained model", "blue")
                + f": {path} (the next stage takes it as --pre_model_path={path})"
            )


def _write_stage(path: Path, state: dict[str, Any]) -> str:
    """Write ``state`` to ``path``, or beside what is there; returns where.

    Raises:
        CheckpointError: it cannot be written.
    """
    try:
        path = claim(path)
    except OSError as error:
        raise unwritable(path, error) from None
    try:
        write_checkpoint(path, state)
    except CheckpointError:
        path.unlink(missing_ok=True)  # claimed, and empty
        raise
    return str(path)
