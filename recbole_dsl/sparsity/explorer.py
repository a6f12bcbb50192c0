"""Exploration: drop-and-grow updates, driven by the optimizer's own steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from ..errors import CheckpointError, ConfigError, DSLError
from .budget import least_score_memory, most_score_memory, split_score_memory
from .criteria import (
    DROP_CRITERIA,
    GROWTH_CRITERIA,
    DropContext,
    GrowthContext,
    relative_to_columns,
    relative_to_rows,
)
from .learning_rate import scale_learning_rate
from .randomness import generator_for
from .record import ExplorationRecord
from .schedule import update_ratio
from .scores import GrowthScores, PositionMap, sample_rows, score_dtype
from .selection import BlockScore
from .storage import SparseGroup
from .update import plan_update

ROUNDING: Final = 2.0**-50
"""What products of floats may lack to a whole number, relatively."""


@dataclass(frozen=True)
class ExplorationSettings:
    """Settings of an exploration, all counts in optimizer steps.

    ``update_interval`` ≥ 1 (ΔT); ``end`` ≥ 0 (T_end, no update after it); ``update_ratio``,
    ``update_ratio_min`` in [0, 1]; ``grow_window`` ≥ 1 or None for ``update_interval``;
    ``grow_row_power`` and ``grow_column_power`` in [0, 1], see :func:`relative_to_rows` and
    :func:`relative_to_columns`, which goes first; ``grow_moment`` in [0, 1], the share of the second moments
    around them that grown weights start with; ``growth_memory`` bytes for growth scores
    or None for no bound; ``growth_rows`` in (0, 1], the share of each tensor's rows that is scored at
    most; ``seed`` of our own generators;
    ``record``: keep one bit per position that says whether it was live before.
    """

    update_interval: int
    end: int
    update_ratio: float = 0.5
    update_ratio_min: float = 0.005
    schedule: str = "cosine"
    drop: str = "magnitude"
    drop_threshold: float | None = None
    grow: str = "accumulated_gradient"
    grow_window: int | None = None
    grow_momentum: float = 0.9
    grow_row_power: float = 0.0
    grow_column_power: float = 0.0
    grow_moment: float = 0.0
    growth_memory: int | None = None
    growth_rows: float = 1.0
    record: bool = True
    seed: int = 0

    @property
    def window(self) -> int:
        """Length of the growth window in steps, at most the update interval."""
        fixed = GROWTH_CRITERIA[self.grow].window or self.grow_window or self.update_interval
        return min(fixed, self.update_interval)

    @property
    def updates(self) -> int:
        """Number of updates a run of at least ``end`` steps makes."""
        return self.end // self.update_interval if self.update_ratio > 0 else 0


@dataclass(frozen=True)
class UpdateEvent:
    """What one update of one group did.

    ``live`` is counted from the new topology; ``exploration_rate`` is None without a record.
    """

    group: str
    step: int
    ratio: float
    dropped: int
    grown: int
    regrown: int
    live: int
    exploration_rate: float | None


@dataclass
class GroupProgress:
    """The explorer's state of one group."""

    group: SparseGroup
    settings: ExplorationSettings
    record: ExplorationRecord | None
    generator: torch.Generator
    learning_rate_scale: float = 1.0
    step: int = 0
    updates: int = 0
    score_bytes: int = 0  # the most that growth scores have held
    score_memory: int | None = None  # bytes that they may take
    optimizer: torch.optim.Optimizer | None = None
    hooks: list[RemovableHandle] = field(default_factory=list, repr=False)
    replaced: WeakKeyDictionary[torch.optim.Optimizer, RemovableHandle] = field(
        default_factory=WeakKeyDictionary, repr=False
    )

    def remove_hooks(self) -> None:
        while self.hooks:
            self.hooks.pop().remove()
        self.group.follow_no_loads()

    def take(self, optimizer: torch.optim.Optimizer | None) -> None:
        """Make ``optimizer`` the group's; the one before must not step it any more, since its state stays."""
        self.remove_hooks()
        before, self.optimizer = self.optimizer, optimizer
        if optimizer is None:
            return
        if optimizer in self.replaced:
            self.replaced.pop(optimizer).remove()
        if before is not None and before is not optimizer:
            self.replaced[before] = before.register_step_pre_hook(_Replaced(self))


class Explorer:
    """Runs the updates of one or more groups through optimizer hooks.

    Steps are counted per group, by the optimizer that owns it; a step that a gradient scaler skips
    runs no hook and does not count.

    Args:
        groups: which share all settings but ``update_interval``, ``end`` and ``growth_rows``.
        settings: one for all groups, or one for each.
        on_update: called after every update of a group.
        learning_rate_scales: how many times as fast as the optimizer's other parameters each group learns, > 0;
            None: as fast.
    """

    def __init__(
        self,
        groups: Sequence[SparseGroup],
        settings: ExplorationSettings | Sequence[ExplorationSettings],
        on_update: Callable[[UpdateEvent], None] | None = None,
        learning_rate_scales: Sequence[float] | None = None,
    ) -> None:
        each = [settings] * len(groups) if isinstance(settings, ExplorationSettings) else list(settings)
        settings = each[0]
        criterion = GROWTH_CRITERIA[settings.grow]
        if criterion.needs_record and not settings.record and any(s.updates for s in each):
            raise ConfigError(
                f"dsl_grow={settings.grow!r} needs to know which positions have lived; "
                "allowed with it is only dsl_exploration_record=True."
            )
        self.settings = settings
        self.criterion = criterion
        self.on_update = on_update
        self.add_up: Callable[[Tensor], None] | None = None
        """With several processes: replaces growth scores by their sum over all."""
        self.processes = 1
        self.loss_scale: float | None = None
        """What the loss of the running step is multiplied by. To be set by who scales it; if None, what a fused
        optimizer knows is taken, which nothing tells those of other kinds or after ``GradScaler.unscale_``."""
        self.progress = [
            GroupProgress(
                group=group,
                settings=mine,
                record=ExplorationRecord(group) if settings.record else None,
                generator=generator_for(settings.seed, f"growth/{group.name}"),
                learning_rate_scale=scale,
            )
            for group, mine, scale in zip(
                groups, each, learning_rate_scales or [1.0] * len(groups), strict=True
            )
        ]
        if settings.growth_memory is not None:
            self._share_score_memory(settings.growth_memory)

    def attach(self, optimizer: torch.optim.Optimizer) -> int:
        """Count the steps of ``optimizer`` for every group whose parameters it owns.

        A group attached before to another optimizer moves to the new one and keeps its count; a step of the
        old one with a gradient of the group is a DSLError then, as its state would be of other weights.
        A group with a learning rate of its own gets a parameter group of its own. Returns the number of groups
        it owns.

        Raises:
            DSLError: the optimizer owns only a part of a group, or a learning-rate scheduler would not know
                the rate of a group.
            UnsupportedOptimizerError: its per-weight state is not understood.
        """
        owned = self._owned(optimizer)
        for progress in owned:
            scale_learning_rate(optimizer, progress.group.trained_parameters(), progress.learning_rate_scale)
        for progress in owned:
            progress.take(optimizer)
            progress.group.follow_loads(optimizer)
            progress.hooks = [optimizer.register_step_post_hook(_StepHook(self, progress))]
            self._prepare_next_step(progress, begins=False)
        return len(owned)

    def _owned(self, optimizer: torch.optim.Optimizer) -> list[GroupProgress]:
        """The groups whose parameters the optimizer has."""
        parameters = {id(p) for group in optimizer.param_groups for p in group["params"]}
        owned = []
        for progress in self.progress:
            mine = [id(p) in parameters for p in progress.group.trained_parameters()]
            if not any(mine):
                continue
            if not all(mine):
                raise DSLError(
                    f"sparse group {progress.group.name!r} is split over several optimizers; "
                    "allowed is one optimizer per group (set dsl_groups accordingly)."
                )
            progress.group.check_optimizer(optimizer)
            owned.append(progress)
        return owned

    @property
    def idle_groups(self) -> list[str]:
        """Names of the groups whose parameters no attached optimizer owns."""
        return [p.group.name for p in self.progress if p.optimizer is None]

    def detach(self) -> None:
        """Stop exploring: remove all hooks and free the growth scores."""
        for progress in self.progress:
            progress.take(None)
            progress.group.growth_scores = None
            progress.group.collects = False

    @property
    def updates(self) -> int:
        """Updates made so far, the most over all groups."""
        return max((p.updates for p in self.progress), default=0)

    @property
    def exploration_rate(self) -> float | None:
        """Share of all positions that were live at least once; None without a record."""
        records = [p.record for p in self.progress]
        if not records or any(r is None for r in records):
            return None
        return sum(r.count for r in records if r) / sum(r.positions for r in records if r)

    @property
    def can_move(self) -> bool:
        """Whether any group has dead positions to exchange weights with."""
        return any(p.group.budget < _weights(p.group) for p in self.progress)

    @property
    def growth_bytes(self) -> int:
        """The most bytes that growth scores of all groups have held between steps."""
        return sum(p.score_bytes for p in self.progress)

    @property
    def record_bytes(self) -> int:
        """Bytes of the exploration record."""
        return sum(p.record.bytes for p in self.progress if p.record is not None)

    def state_dict(self) -> dict[str, Any]:
        """What the next steps depend on besides weights, topology and optimizer: plain values and tensors.

        By the group's name; taken between two steps.
        """
        return {p.group.name: _state_of(p) for p in self.progress}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as the explorer that gave ``state``, with its schedule.

        Raises:
            CheckpointError: the state is not of these groups.
        """
        if sorted(state) != sorted(p.group.name for p in self.progress):
            raise CheckpointError(
                f"the checkpoint is of an exploration of groups {', '.join(map(repr, state))}; allowed are "
                f"those of this run: {', '.join(repr(p.group.name) for p in self.progress)}."
            )
        for progress in self.progress:
            _load_state(progress, state[progress.group.name])

    def current_ratio(self) -> float:
        """α of the next update of the first group; 0 when no update is to come."""
        progress = self.progress[0]
        due = self._next_update(progress)
        return self._ratio(progress, due) if due is not None and self.can_move else 0.0

    def _ratio(self, progress: GroupProgress, step: int) -> float:
        s = progress.settings
        return update_ratio(s.schedule, step, s.end, s.update_ratio, s.update_ratio_min)

    def _most_exchanged(self, progress: GroupProgress, step: int, live: int, positions: int) -> int:
        """k: how many of the ``live`` weights at some ``positions`` an update at ``step`` may replace."""
        share = self._ratio(progress, step) * (1 + ROUNDING)  # 0.29 · 100 is 28.999…
        return min(int(share * live), positions - live)

    def _next_update(self, progress: GroupProgress) -> int | None:
        """The step of the group's next update, None if exploration is over."""
        settings = progress.settings
        if not settings.updates:
            return None
        due = (progress.step // settings.update_interval + 1) * settings.update_interval
        return due if due <= settings.end else None

    def _after_step(self, progress: GroupProgress, optimizer: torch.optim.Optimizer) -> None:
        scores = progress.group.growth_scores
        if _was_skipped(optimizer) or _is_frozen(progress.group):
            if scores is not None:
                scores.discard()
            progress.group.after_step()  # torch steps a frozen weight that has a gradient, too
            return
        if scores is not None:
            progress.group.discard_cleared()
            scores.commit(self.loss_scale or getattr(optimizer, "grad_scale", None))
        progress.group.after_step()
        progress.step += 1
        interval, end = progress.settings.update_interval, progress.settings.end
        if progress.settings.updates and progress.step % interval == 0 and progress.step <= end:
            self._update(progress)
        self._prepare_next_step(progress)

    def _prepare_next_step(self, progress: GroupProgress, begins: bool = True) -> None:
        """Open, keep or close the growth window for the step that follows.

        ``begins``: whether that step is new, not one that has been prepared before its state was loaded.
        """
        group, settings = progress.group, progress.settings
        due = self._next_update(progress)
        if due is not None and self._most_exchanged(progress, due, group.budget, _weights(group)) == 0:
            due = None  # nor will any later update exchange a weight, as no schedule rises
        if due is None or not self.criterion.needs_gradient:
            group.growth_scores = None
        elif progress.step >= due - settings.window:
            if group.growth_scores is None:
                group.growth_scores = _scores_for(group, self._sample(progress))
            elif (
                begins
                and progress.step % settings.update_interval == settings.update_interval - settings.window
                and group.growth_scores.where.rows is not None
            ):
                group.growth_scores.move_to(self._sample(progress))  # of a criterion that keeps its scores
        elif not self.criterion.keeps_scores:
            group.growth_scores = None
        if group.growth_scores is not None:
            progress.score_bytes = max(progress.score_bytes, group.growth_scores.bytes)
        # Momentum decays over windows, so between windows it keeps its sums but takes none in.
        in_window = due is not None and progress.step >= due - settings.window
        group.collects = in_window and group.growth_scores is not None

    def _sample(self, progress: GroupProgress) -> PositionMap:
        group, memory = progress.group, progress.score_memory
        size, share = score_dtype(group.dtype).itemsize, progress.settings.growth_rows
        return sample_rows(group.table_shapes, size, memory, progress.generator, group.device, share)

    def _share_score_memory(self, memory: int) -> None:
        """Between the groups that grow, of ``memory`` bytes; too few are told now, not at the first window."""
        growing = [p for p in self.progress if p.settings.updates and p.group.budget < _weights(p.group)]
        needs = [
            (p.group.table_shapes, score_dtype(p.group.dtype).itemsize, p.settings.growth_rows) for p in growing
        ]
        least = [least_score_memory(*need) for need in needs]
        if memory < sum(least):
            raise ConfigError(
                f"dsl_growth_memory={memory} bytes is too small to score even one row of each sparse tensor; "
                f"allowed is at least {sum(least)} bytes."
            )
        shares = split_score_memory(memory, least, [most_score_memory(*need) for need in needs])
        for progress, share in zip(growing, shares, strict=True):
            progress.score_memory = share

    @torch.no_grad()
    def _update(self, progress: GroupProgress) -> None:
        group, step, record = progress.group, progress.step, progress.record
        if self._most_exchanged(progress, step, group.budget, _weights(group)) == 0:
            self._reset_scores(group)  # before rows are drawn, for which a group that is full may lack memory
            return
        live, sums = group.live_rows(), group.growth_scores
        where = sums.where if sums is not None else self._sample(progress)
        # Rows that are not scored cannot grow, so nor do they lose weights.
        candidates = live.in_rows(where.rows) if where.rows is not None else None
        exchanging = group.budget if candidates is None else int(candidates.count_nonzero())
        k = self._most_exchanged(progress, step, exchanging, where.count)
        if k == 0:  # nothing happens
            self._reset_scores(group)
            return
        if record is not None:
            record.add_live(live)  # a topology that was loaded lived as well
        context = DropContext(
            group.live_values().detach(),
            group.live_gradients(),
            k,
            live.row_pointers,
            self.settings.drop_threshold,
            live.kernels,
            candidates,
        )
        drop = DROP_CRITERIA[self.settings.drop](context)
        if self.add_up is not None and sums is not None:
            self.add_up(sums.sums)
        plan = plan_update(live, drop, self._growth_score(progress, where), where)
        del live, context, candidates, drop
        assert progress.optimizer is not None
        group.apply_update(plan, progress.optimizer)
        if self.settings.grow_moment:
            group.estimate_moments(plan.arriving, progress.optimizer, self.settings.grow_moment)
        if record is not None:
            record.add(plan.arriving)
        self._reset_scores(group, self.processes)  # each keeps its share of the sum
        progress.updates += 1
        if self.on_update is not None:
            rate = record.rate if record is not None else None
            live_now = sum(group.live_per_tensor())
            self.on_update(
                UpdateEvent(
                    group.name,
                    step,
                    self._ratio(progress, step),
                    plan.dropped,
                    plan.grown,
                    plan.regrown,
                    live_now,
                    rate,
                )
            )

    def _growth_score(self, progress: GroupProgress, where: PositionMap) -> BlockScore:
        """The score of slots ``first`` … ``last`` - 1 of those that ``where`` numbers."""
        sums, record = progress.group.growth_scores, progress.record
        state, settings = progress.generator.get_state(), self.settings
        norms = sums.column_norms() if sums is not None and settings.grow_column_power else None

        def score(first: int, last: int) -> Tensor:
            if first == 0:  # every pass over the scores sees the same draws
                progress.generator.set_state(state)
            ever = None
            if self.criterion.needs_record and record is not None:
                slots = torch.arange(first, last, device=progress.group.device)
                ever = record.contains(where.positions(slots))
            context = GrowthContext(
                gradients=sums.sums[first:last] if sums is not None else None,
                count=last - first,
                ever_live=ever,
                generator=progress.generator,
            )
            scores = self.criterion.score(context).to(progress.group.device)
            if norms is not None:
                relative_to_columns(scores, norms[where.tensor(first)], settings.grow_column_power)
            if sums is not None and settings.grow_row_power:
                relative_to_rows(scores, where.columns(first), settings.grow_row_power)
            return scores

        return score

    def _reset_scores(self, group: SparseGroup, summed_over: int = 1) -> None:
        """Begin a new window; scores that are kept are divided by the processes that hold their sum."""
        scores = group.growth_scores
        if scores is None:
            return
        if self.criterion.keeps_scores:
            scores.sums.mul_(self.settings.grow_momentum / summed_over)
        elif scores.where.rows is None:
            scores.sums.zero_()
        else:
            group.growth_scores = None  # the next window samples other rows


def _state_of(progress: GroupProgress) -> dict[str, Any]:
    scores, record = progress.group.growth_scores, progress.record
    return {
        "step": progress.step,
        "updates": progress.updates,
        "update_interval": progress.settings.update_interval,
        "end": progress.settings.end,
        "score_bytes": progress.score_bytes,
        "generator": progress.generator.get_state(),
        "collects": progress.group.collects,
        "scores": None if scores is None else {"sums": scores.sums, "rows": scores.where.rows},
        "record": None if record is None else {"bits": record.bits, "count": record.count},
    }


def _load_state(progress: GroupProgress, state: Mapping[str, Any]) -> None:
    group = progress.group
    progress.step, progress.updates = state["step"], state["updates"]
    progress.score_bytes = state["score_bytes"]
    progress.settings = replace(progress.settings, update_interval=state["update_interval"], end=state["end"])
    progress.generator.set_state(state["generator"].cpu())
    group.collects, group.growth_scores = state["collects"], None
    if state["scores"] is not None:
        rows = state["scores"]["rows"]
        rows = None if rows is None else [r.to(group.device) for r in rows]
        where = PositionMap(group.table_shapes, rows, device=group.device)
        group.growth_scores = _scores_for(group, where)
        group.growth_scores.sums.copy_(state["scores"]["sums"])
    if progress.record is not None and state["record"] is not None:
        progress.record.bits = state["record"]["bits"].to(group.device).clone()
        progress.record.count = state["record"]["count"]


def _scores_for(group: SparseGroup, where: PositionMap) -> GrowthScores:
    return GrowthScores(where, group.dtype, group.device, group.kernels)


class _StepHook:
    """An optimizer post-step hook that survives ``copy.deepcopy`` of the optimizer as a no-op."""

    def __init__(self, explorer: Explorer, progress: GroupProgress) -> None:
        self.explorer, self.progress = explorer, progress

    def __call__(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self.progress.optimizer is optimizer:
            self.explorer._after_step(self.progress, optimizer)


class _Replaced:
    """A pre-step hook of an optimizer in whose place another one has been attached; see :class:`_StepHook`."""

    def __init__(self, progress: GroupProgress) -> None:
        self.progress = progress

    def __call__(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if optimizer not in self.progress.replaced:
            return
        mine = {id(p) for p in self.progress.group.trained_parameters()}
        stepped = (p for group in optimizer.param_groups for p in group["params"] if p.grad is not None)
        if any(id(parameter) in mine for parameter in stepped):
            raise DSLError(
                f"sparse group {self.progress.group.name!r} belongs to another optimizer, which was attached "
                "later; allowed is one at a time for a group: attach this one again, or clear the gradient."
            )


def _was_skipped(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a gradient scaler made the step that has just ended do nothing.

    For optimizers with fused kernels the scaler hands over what it found and calls ``step`` all the
    same; the others it does not call.
    """
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


def _is_frozen(group: SparseGroup) -> bool:
    """Whether the optimizer leaves a part of a group alone, so that its steps are none of the group's."""
    return not all(parameter.requires_grad for parameter in group.trained_parameters())


def _weights(group: SparseGroup) -> int:
    return sum(rows * cols for rows, cols in group.table_shapes)
