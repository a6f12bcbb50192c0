"""RecBole's trainers with sparse weights: a mixin over whichever trainer RecBole picks for a model."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from recbole import trainer as trainers
from recbole.utils import InputType, ModelType, get_trainer, set_color

from .. import compat
from ..errors import CheckpointError, DSLError
from ..files import claim_pair, copy_whole
from ..graph import GraphProducts
from ..handle import SparseHandle, insert
from ..results import rounded
from ..settings import DSLConfig
from ..sparsity.explorer import ExplorationSettings, UpdateEvent
from ..sparsity.interactions import Interactions
from ..sparsity.targets import TensorInfo
from .adaptations import adapt, clear_model_caches
from .allocator import keep_freed_memory
from .attributes import ChangedAttributes
from .board import Board
from .checkpoint import (
    checkpoint_state,
    load_weights,
    read_checkpoint,
    read_description,
    refuse_other_tokens,
    refuse_spoilt_weights,
    tokens_of,
    unwritable,
    write_checkpoint,
)
from .evaluation import FastCollector, UserScores
from .fused import fused_twin
from .holding import Hold
from .keeper import Keeper
from .lightgcn import by_columns
from .passes import Plan
from .pretraining import SparsePretrainingMixin
from .ranks import Ranks
from .resuming import LAST, fingerprint, refuse_changes, refuse_other_data
from .steps import stepwise


class SparseTrainerMixin:
    """Makes the model sparse before RecBole's trainer builds its optimizer, and explores.

    Comes before a RecBole trainer in a class; use :func:`sparse_trainer`. Everything that is not
    overridden here (early stopping, validation, evaluation) is RecBole's.

    Args:
        config: a :class:`~recbole_dsl.config.RecBoleDSLConfig`.
        model: the dense model with its initial values.
        train_data: RecBole's training loader; its length and interactions are needed.
    """

    # What RecBole's trainer, the next class in line, sets.
    config: Any
    model: Any
    optimizer: Any
    logger: Any
    tensorboard: Any
    wandblogger: Any
    saved_model_file: str
    cur_step: int
    best_valid_score: float
    best_valid_result: Any
    train_loss_dict: dict[int, float]
    start_epoch: int
    epochs: int
    device: torch.device
    test_batch_size: int
    tot_item_num: int

    def __init__(self, config: Any, model: Any, train_data: Any) -> None:
        self.dsl: DSLConfig = config.dsl
        self.ranks = Ranks(config)
        self.graph = GraphProducts(self.dsl.kernels) if self.dsl.graph == "csr" else None
        self.preparation_seconds = 0.0  # of this run's start, to be told by who has made the model
        self.epoch_seconds: list[float] = []
        self.epoch_started: float | None = None
        self.seconds_before = 0.0  # that the epoch had been trained for when the run was stopped
        self.valid_results: dict[int, dict[str, float]] = {}
        self.updates_made: list[dict[str, Any]] = []
        self.plans: dict[tuple[str, ...], Plan] = {}
        self._dataset = train_data._dataset
        self.sparse: SparseHandle = insert(
            model,
            self.dsl,
            spans=functools.partial(self._spans, config, train_data),
            default_seed=config["seed"],
            interactions=positives_of(train_data),
            dense_size=functools.partial(_dense_size, config),
            on_update=self._on_update,
            lenient=config.left_to_files,
        )
        self.sparse.copies = adapt(model)
        dense = {name for name, _ in model.named_parameters()}  # what adapting has left dense
        selection = self.sparse.selection
        left = tuple((tensor, reason) for tensor, reason in selection.left if tensor.name in dense)
        self.sparse.selection = replace(selection, left=left)
        super().__init__(config, model)  # type: ignore[call-arg]
        self.tensorboard = Board(self.tensorboard)
        if idle := self.sparse.explorer.idle_groups:
            raise DSLError(
                f"No optimizer of {type(self).__name__} trains sparse group {', '.join(map(repr, idle))}; "
                "allowed are tensors that the model trains (set dsl_include or dsl_exclude)."
            )
        self.saved_model_file = self._name = str(Path(self.saved_model_file).with_suffix(".dsl"))
        self._owns_file = False
        self._best_elsewhere: Path | None = None
        self._hold: Hold | None = None
        self._evaluated = 0
        if self.ranks.count > 1:
            self.sparse.explorer.add_up, self.sparse.explorer.processes = self.ranks.add_up, self.ranks.count
            for group in self.sparse.groups:
                self._require_equal(group)
        self.changed_attributes = ChangedAttributes(self.model)
        self.keeper = Keeper(self, [train_data], None, {})  # of passes that are made without fit
        self._to_resume: tuple[dict[str, Any], Path] | None = None
        self._user_scores = UserScores(model, fast=self.dsl.data_path == "fast")
        if self.dsl.data_path == "fast":
            self.eval_collector = FastCollector(config)
        if self.device.type == "cpu":
            keep_freed_memory()
        self._prepare_wandb()
        self._log_start()

    @functools.cached_property
    def tokens(self) -> dict[str, str]:
        """Checksums of the tokens that the rows of the tables stand for."""
        return tokens_of(self._dataset)

    def _spans(self, config: Any, train_data: Any, tensors: Sequence[str]) -> tuple[int, int]:
        """The update interval and the end of exploration of a group, in its optimizer's steps."""
        plan = Plan.of(type(self), config, train_data, tensors)
        self.plans[tuple(tensors)] = plan
        return plan.resolve(self.dsl.update_interval), plan.resolve(self.dsl.end)

    def _build_optimizer(self, **kwargs: Any) -> torch.optim.Optimizer:
        optimizer = super()._build_optimizer(**kwargs)  # type: ignore[misc]
        optimizer = fused_twin(optimizer, self.model)
        self.sparse.explorer.attach(optimizer)
        return optimizer

    # --- a run that can be stopped anywhere ------------------------------------------------------

    def fit(
        self,
        train_data: Any,
        valid_data: Any = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
        callback_fn: Any = None,
    ) -> tuple[float, Any]:
        """RecBole's ``fit``, which a signal ends after a step and :meth:`resume_checkpoint` continues.

        Raises:
            Interrupted: SIGINT or SIGTERM came; the run is saved if ``saved``.
            NumberError: a loss, a gradient or a weight is no finite number.
            CheckpointError: a checkpoint cannot be written.
        """
        self.eval_collector.data_collect(train_data)  # RecBole does so in its fit, which may not be called
        identity = {"settings": self.config.at_start, "data": fingerprint(train_data)}
        taken_up = self._to_resume is not None
        keeper = self.keeper = Keeper(self, [train_data, valid_data], self.dsl.save_every, identity)
        try:
            if self._to_resume is not None:
                self._take_up(keeper, *self._to_resume)
                if keeper.is_finished(self.last_epoch):
                    self.logger.info(f"There is nothing left to train: the run is at {keeper.position}.")
                    best = self.best_valid_score, self.best_valid_result
                    return self._of_best_file(*best) if saved else best
            with keeper.signals:
                keeper.begin(saved)
                result: tuple[float, Any] = super().fit(  # type: ignore[misc]
                    train_data, valid_data, verbose, saved, show_progress, callback_fn
                )
                if taken_up and saved:
                    result = self._of_best_file(*result)
                keeper.end("early stopping" if self._stopped_early else "all epochs")
        finally:
            self._release()
        return result

    def _release(self) -> None:
        if self._hold is not None:
            self._hold.release()
            self._hold = None

    @property
    def _stopped_early(self) -> bool:
        """Whether the last validations were no better, be it that no epoch was left anyway."""
        stopped = bool(self.valid_results) and self.cur_step > self.config["stopping_step"]
        return stopped or len(self.train_loss_dict) < self.last_epoch

    def _of_best_file(self, score: float, result: Any) -> tuple[float, Any]:
        """The best score and result, those of the file of the best epoch where they are not its.

        A run that is killed between two saves leaves a file of a later epoch than the one it is taken up
        from. If it is resumed for fewer epochs, or if sums differ (another number of threads, a GPU), it need
        not write that file again; what is tested and served are its weights.
        """
        best = Path(self.saved_model_file)
        file = self.ranks.done_by_first(lambda: read_description(best) if best.is_file() else {})
        told = file.get("valid_result")
        if told is None or file["best_valid_score"] == float(score):
            return score, result
        self.logger.warning(
            f"'{best}' is of epoch {file['epoch']}, which the run had reached before it was stopped: its "
            f"{self.config['valid_metric']}, {file['best_valid_score']:.4f}, counts as the best."
        )
        self.best_valid_score, self.best_valid_result = file["best_valid_score"], told
        return self.best_valid_score, self.best_valid_result

    def resume_checkpoint(self, resume_file: Any) -> None:
        """Let the next :meth:`fit` go on from a file ``…-last.dsl`` that an earlier one has saved.

        Raises:
            CheckpointError: it cannot be read, holds the best weights only, or another run trains into it.
        """
        self._release()
        self.ranks.done_by_first(functools.partial(self._hold_to_resume, Path(resume_file)))
        state = self._read(resume_file)
        if "run" not in state:
            raise CheckpointError(
                f"'{resume_file}' holds the weights of the best epoch only; allowed is a file whose name ends "
                f"in '{LAST}'."
            )
        self._to_resume = (state, Path(resume_file))

    def _take_up(self, keeper: Keeper, state: dict[str, Any], file: Path) -> None:
        identity = state["run"]["identity"]
        refuse_changes(file, identity["settings"], keeper.identity["settings"])
        refuse_other_data(file, identity["data"], keeper.identity["data"])
        refuse_other_tokens(file, state.get("tokens", {}), self.tokens)
        self._to_resume = None
        writes_there = self._writes_beside(file)
        asked = [progress.settings.end for progress in self.sparse.explorer.progress]
        keeper.resume(state, file, writes_there)
        self._owns_file = writes_there
        best = Path(self.saved_model_file)
        if self.best_valid_result is not None and self.writes_files and not best.is_file():
            raise CheckpointError(
                f"'{file}' goes with the weights of its best epoch so far, but '{best}' is not there; allowed "
                "is to put both files into one folder."
            )
        self._best_elsewhere = best if not writes_there and best.is_file() else None
        self.logger.info(set_color("Resuming", "blue") + f" {file} at {keeper.position}")
        for progress, planned in zip(self.sparse.explorer.progress, asked, strict=True):
            if planned != (end := progress.settings.end):
                self.logger.info(f"  updates of {progress.group.name!r} as in that run, until step {end}")

    def _writes_beside(self, file: Path) -> bool:
        """Whether a run that is taken up from a file saves into it again, not into another folder."""
        return file.parent.resolve() == Path(self._name).parent.resolve()

    def _hold_to_resume(self, file: Path) -> None:
        if file.is_file() and self._writes_beside(file):
            self._hold = Hold(file)

    @property
    def seconds_in_epoch(self) -> float:
        """How long the running epoch has been trained so far, by those before a stop, too."""
        return self.seconds_before if self.epoch_started is None else perf_counter() - self.epoch_started

    @property
    def last_epoch(self) -> int:
        """Epochs that a whole run has, those of its stage if it pre-trains."""
        pretrains = self.config["train_stage"] in ("pretrain", "actor_pretrain", "critic_pretrain")
        return int(self.config["pretrain_epochs"] if pretrains else self.epochs)

    def stateful_parts(self) -> dict[str, Any]:
        """Optimizers and learning-rate schedulers of the trainer by its attributes, each once."""
        kinds = (torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler)
        found = {name: part for name, part in sorted(vars(self).items()) if isinstance(part, kinds)}
        others = {id(part) for name, part in found.items() if name != "optimizer"}
        return {name: part for name, part in found.items() if name != "optimizer" or id(part) not in others}

    @property
    def writes_files(self) -> bool:
        """Whether this process is the one of its run that writes checkpoints."""
        return self.ranks.is_first

    def claim_files(self) -> Path:
        """Names for this run's checkpoints that no other run has; returns that of the last one.

        The best epoch of a run that was taken up from another folder is copied.

        Raises:
            CheckpointError: the folder cannot be written to.
        """
        # RecBole names the file by the second: another run may have the same, another process another.
        best, last = self.ranks.done_by_first(self._claim)
        self.saved_model_file, self._owns_file = best, True
        return Path(last)

    def _claim(self) -> list[str]:
        try:
            best, last = claim_pair(self._name, LAST)
            self._hold = Hold(last)
            if self._best_elsewhere is not None:
                copy_whole(self._best_elsewhere, best)
        except OSError as error:
            raise unwritable(self._name, error) from None
        return [str(best), str(last)]

    def _train_epoch(self, train_data: Any, epoch_idx: int, *args: Any, **kwargs: Any) -> Any:
        keeper = self.keeper
        if (loss := keeper.begin_epoch(epoch_idx)) is not None:
            return loss
        self.epoch_started = perf_counter() - self.seconds_before
        self.seconds_before = 0.0
        with compat.described_progress(self._progress_text), self._graph_products():
            loss = super()._train_epoch(train_data, epoch_idx, *args, **kwargs)  # type: ignore[misc]
        self.epoch_seconds.append(self.seconds_in_epoch)
        self.epoch_started = None
        if len(self.epoch_seconds) == 1:
            self._warn_untrained()
        keeper.end_epoch(loss)
        return loss

    def _valid_epoch(self, valid_data: Any, show_progress: bool = False) -> tuple[float, Any]:
        score, result = super()._valid_epoch(valid_data, show_progress)  # type: ignore[misc]
        told = rounded(result, self.config["metric_decimal_place"])
        self.valid_results[self.keeper.position.epoch] = told
        return score, result

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        if "saved_model_file" not in kwargs and not self._owns_file:
            self.keeper.file = self.claim_files()
        refuse_spoilt_weights(self.model, f"the end of epoch {epoch}", self.keeper.last_good)
        if not self.writes_files:
            return
        path = kwargs.pop("saved_model_file", self.saved_model_file)
        told = self.valid_results.get(epoch)  # best_valid_result is still that of an earlier epoch
        write_checkpoint(path, {**checkpoint_state(self, epoch), "valid_result": told})
        if verbose:
            self.logger.info(set_color("Saving current", "blue") + f": {path}")

    def evaluate(
        self,
        eval_data: Any,
        load_best_model: bool = True,
        model_file: str | None = None,
        show_progress: bool = False,
    ) -> Any:
        """RecBole's evaluation.

        Raises:
            DSLError: there is no checkpoint to load.
            CheckpointError: it is damaged, or of another model.
        """
        path = model_file or self.saved_model_file
        self._evaluated = 0
        if eval_data and load_best_model and self.ranks.is_first and not Path(path).is_file():
            raise DSLError(
                f"There is no checkpoint '{path}' to test; one is written by an epoch whose valid_metric "
                f"({self.config['valid_metric']}) is a number and better than those before, and at the end of "
                "a pre-training."
            )
        if eval_data and load_best_model:
            load_weights(self.model, self._read(path))
            self.logger.info(f"Loading model structure and parameters from {path}")
        try:
            with self._graph_products():
                return super().evaluate(eval_data, False, None, show_progress)  # type: ignore[misc]
        except BaseException:
            self.eval_collector.get_data_struct()  # forgets its batches, which the next evaluation would count
            raise

    def _read(self, path: Any) -> dict[str, Any]:
        """A checkpoint, read by the first process, whose files the others may not see."""
        state: dict[str, Any] = self.ranks.done_by_first(functools.partial(read_checkpoint, path))
        return state

    def _map_reduce(self, result: Any, _: int) -> Any:
        """Metrics of all processes, weighed by the users (or rows) each has evaluated.

        RecBole weighs by the number of batches (trainer.py:615).
        """
        shares = self.ranks.of_all((self._evaluated, dict(result)))
        total, places = sum(count for count, _ in shares), self.config["metric_decimal_place"]
        for key in result:
            result[key] = round(sum(count * part[key] for count, part in shares) / total, places)
        return result

    def _require_equal(self, group: Any) -> None:
        live = group.live_rows()
        self.ranks.require_equal((live.row_pointers, live.column_ids), f"The topology of group {group.name!r}")

    @contextmanager
    def _graph_products(self) -> Iterator[None]:
        """While it lasts, products with the model's sparse matrices are ours, unless ``dsl_graph: recbole``."""
        if self.graph is None:
            yield
            return
        with self.graph.active(self.model), by_columns(self.model, self.graph):
            yield

    def _neg_sample_batch_eval(self, batched_data: Any) -> Any:
        self.keeper.in_evaluation()
        users = batched_data[2]  # None where rows are evaluated
        self._evaluated += len(batched_data[0]) if users is None else int(users[-1]) + 1
        return super()._neg_sample_batch_eval(batched_data)  # type: ignore[misc]

    def _full_sort_batch_eval(self, batched_data: Any) -> Any:
        self.keeper.in_evaluation()
        self._evaluated += len(batched_data[0])
        users = max(self.test_batch_size // self.tot_item_num, 1)
        return self._user_scores(super()._full_sort_batch_eval, batched_data, users)  # type: ignore[misc]

    # --- what the user sees ----------------------------------------------------------------------

    def _progress_text(self) -> str:
        return f" ρ {self.sparse.density:.3g} α {self.sparse.explorer.current_ratio():.3f}"

    def _log_start(self) -> None:
        handle, log = self.sparse, self.logger.info
        log(
            set_color("Sparse training", "blue") + f": method {self.dsl.method}, "
            f"{handle.live} of {handle.dense_weights} weights live (density {handle.density:.4g}, "
            f"overall {handle.overall_density:.4g})"
        )
        for group, progress in zip(handle.groups, handle.explorer.progress, strict=True):
            scale = progress.learning_rate_scale
            tensors = ", ".join(f"{s.name} {tuple(s.shape)}" for s in group.slices)
            rate = "" if scale == 1.0 else f", learning rate × {scale:.3g}"
            log(f"  {group.storage} group {group.name!r}, budget {group.budget}{rate}: {tensors}")
        scales = {progress.learning_rate_scale for progress in handle.explorer.progress}
        asked = self.config.is_given("dsl_learning_rate_power")
        if asked and self.dsl.learning_rate_power and scales == {1.0} and handle.explorer.can_move:
            self.logger.warning(
                f"dsl_learning_rate_power={self.dsl.learning_rate_power} changes nothing: no sparse group "
                "holds Linear matrices only."
            )
        if handle.without_factors:
            self.logger.warning(
                f"dsl_init={self.dsl.init} (of dsl_method={self.dsl.method}) finds no table or matrix of users "
                "or items: all tensors start at random positions."
            )
        for name, norm in handle.norms.items():
            log(f"  values of group {name!r} are factors of the interactions, of norm {norm:.3g}")
        if handle.inherited:
            log(f"  start from sparse weights, whose topology stays: {', '.join(handle.inherited)}")
        small = [tensor for tensor, _ in handle.selection.left if tensor.kind in ("bias", "norm")]
        if small:
            log(f"  dense {len(small)} biases and norms, which are never sparse")
        for tensor, reason in handle.selection.left:
            if tensor not in small:
                log(f"  dense {tensor.name} {tensor.shape}: {reason}")
        if handle.explorer.can_move:
            told: dict[tuple[ExplorationSettings, Plan], list[str]] = {}
            for group, progress in zip(handle.groups, handle.explorer.progress, strict=True):
                plan = self.plans[tuple(s.name for s in group.slices)]
                told.setdefault((progress.settings, plan), []).append(group.name)
            for (settings, plan), groups in told.items():
                self._log_exploration(settings, plan, "" if len(told) == 1 else f" of {', '.join(groups)}")

    def _log_exploration(self, settings: ExplorationSettings, plan: Plan, of_groups: str) -> None:
        """Say when groups are updated, or warn that they will not be."""
        if settings.updates:
            updates = min(settings.end, plan.steps) // settings.update_interval
            if settings.end > plan.steps:
                self.logger.warning(
                    f"dsl_end={self.dsl.end} is step {settings.end}, but the run has {plan.steps} steps"
                    f"{of_groups}: updates go on to its end."
                )
            self.logger.info(
                f"  {updates} update{'' if updates == 1 else 's'}{of_groups}, one every "
                f"{settings.update_interval} steps until step {settings.end}: drop {settings.drop}, "
                f"grow {settings.grow} over {settings.window} steps, {settings.schedule} "
                f"from α = {settings.update_ratio} to {settings.update_ratio_min}"
            )
        elif settings.update_ratio > 0:
            self.logger.warning(
                f"The run is too short for a single update{of_groups}: exploration ends at step "
                f"{settings.end}, before dsl_update_interval={settings.update_interval} steps have "
                "passed; the topology will stay as it starts."
            )

    def _warn_untrained(self) -> None:
        """Tell of groups that no batch of the first epoch has reached: their budget may be idle."""
        for progress in self.sparse.explorer.progress:
            parameters, optimizer = progress.group.trained_parameters(), progress.optimizer
            if optimizer is not None and all(p.grad is None and not optimizer.state.get(p) for p in parameters):
                self.logger.warning(
                    f"Sparse group {progress.group.name!r} had no gradient in the first epoch: if nothing "
                    "trains it, leave it dense with dsl_exclude."
                )

    def _on_update(self, event: UpdateEvent) -> None:
        clear_model_caches(self.model)
        self.updates_made.append(asdict(event))
        if self.ranks.count > 1:
            self._require_equal(next(g for g in self.sparse.groups if g.name == event.group))
        rate = "" if event.exploration_rate is None else f", R = {event.exploration_rate:.4f}"
        self.logger.info(
            set_color("update", "green") + f" step {event.step}, group {event.group!r}: α = {event.ratio:.4f}, "
            f"dropped {event.dropped}, grown {event.grown} (of these re-grown {event.regrown}), "
            f"live {event.live}{rate}"
        )
        numbers = {
            "alpha": event.ratio,
            "dropped": event.dropped,
            "grown": event.grown,
            "regrown": event.regrown,
            "live": event.live,
        }
        if event.exploration_rate is not None:
            numbers["exploration_rate"] = event.exploration_rate
        for name, value in numbers.items():
            self.tensorboard.add_scalar(f"DSL/{event.group}/{name}", value, event.step)
        told = {f"{event.group}/{name}": value for name, value in numbers.items()}
        self.wandblogger.log_metrics({**told, "update_step": event.step}, head="dsl")

    def _prepare_wandb(self) -> None:
        if self.wandblogger.log_wandb:
            self.wandblogger._wandb.define_metric("dsl/*", step_metric="update_step")


def sparse_trainer(model_type: Any, *names: str) -> type:
    """The trainer RecBole picks for a model, made sparse.

    Args:
        model_type: RecBole's ``ModelType``.
        names: the model's class name, then those of the classes it derives from; the first one
            decides that has a trainer of its own.

    Returns:
        A class called ``Sparse<trainer>``, constructed with (config, model, train_data).
    """
    own = next((name for name in names if hasattr(trainers, f"{name}Trainer")), names[0])
    return make_sparse(get_trainer(model_type, own))


@functools.cache
def make_sparse(base: type) -> type:
    """``Sparse<base>`` of a trainer class derived from RecBole's ``Trainer``, one's own included."""
    mixins: tuple[type, ...] = (SparseTrainerMixin,)
    if issubclass(base, trainers.PretrainTrainer):
        mixins = (SparsePretrainingMixin, *mixins)
    return type(f"Sparse{base.__name__}", (*mixins, *stepwise(base)), {"__module__": __name__})


def interactions_of(train_data: Any) -> Interactions | None:
    """User–item pairs of a RecBole training loader; None for data without users and items."""
    dataset = train_data._dataset
    user_field, item_field = dataset.uid_field, dataset.iid_field
    if user_field is None or item_field is None:
        return None
    return Interactions(
        dataset.inter_feat[user_field],
        dataset.inter_feat[item_field],
        dataset.num(user_field),
        dataset.num(item_field),
    )


def positives_of(train_data: Any) -> Interactions | None:
    """Those of :func:`interactions_of` that training takes for liked: by labels, if it learns them."""
    pairs, dataset = interactions_of(train_data), train_data._dataset
    config = dataset.config
    learns_labels = (
        config["MODEL_INPUT_TYPE"] == InputType.POINTWISE
        and config["MODEL_TYPE"] != ModelType.SEQUENTIAL  # of which those of softmax losses look at none
        and config["train_neg_sample_args"]["distribution"] == "none"  # else every row is a positive one
        and dataset.label_field in dataset.inter_feat
    )
    if pairs is None or not learns_labels:
        return pairs
    liked = dataset.inter_feat[dataset.label_field] > 0
    if not liked.any():
        return pairs
    return replace(pairs, users=pairs.users[liked], items=pairs.items[liked], _cache={})


def _dense_size(config: Any, tensor: TensorInfo) -> int:
    """Weights of a tensor in the model of the original ``embedding_size`` (see ``dsl_width``)."""
    size = tensor.parameter.numel()
    return size if config.dense_sizes is None else config.dense_sizes.get(tensor.name, size)
