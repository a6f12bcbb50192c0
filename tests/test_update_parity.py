"""One update, position for position, against a naive reference written from design §3.

The reference works on Python lists and knows neither packed nor masked storage. Before every update
the real weights and optimizer state are recorded; the reference predicts what they become.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from recbole_dsl.packed.surgery import mask, pack
from recbole_dsl.sparsity import rows, selection, update
from recbole_dsl.sparsity.explorer import ExplorationSettings, Explorer
from recbole_dsl.sparsity.names import DROP_NAMES, GROWTH_NAMES
from recbole_dsl.sparsity.randomness import generator_for
from recbole_dsl.sparsity.targets import list_tensors

STORAGES = ("packed", "masked")
THRESHOLD = 0.75

# --- the reference --------------------------------------------------------------------------------


@dataclass
class Snapshot:
    """Everything about a group by flat position: who lives, values, gradients, optimizer state."""

    live: list[int]
    values: list[float]
    gradients: list[float]
    state: dict[str, list[float]]


@dataclass
class NaiveExplorer:
    """The algorithm of design §3, said as plainly as possible."""

    positions: int
    interval: int
    end: int
    ratio: float
    drop: str
    grow: str
    window: int | None = None
    ratio_min: float = 0.005
    momentum: float = 0.9
    seed: int = 0
    births: dict[str, float] = field(default_factory=dict)
    rows: list[list[int]] = field(default_factory=list)
    columns: list[list[int]] = field(default_factory=list)
    row_power: float = 0.0
    column_power: float = 0.0
    ever_live: set[int] = field(default_factory=set)
    scored: set[int] | None = None
    step: int = 0

    def __post_init__(self) -> None:
        self.scores = [0.0] * self.positions
        self.draws = generator_for(self.seed, "growth/joint")

    def is_due(self) -> bool:
        return self.step % self.interval == 0 and self.step <= self.end

    def observe(self, gradient: list[float]) -> None:
        """Count a step; inside the growth window add its dense gradient to the scores."""
        self.step += 1
        length = 1 if self.grow == "last_gradient" else min(self.window or math.inf, self.interval)
        due = -(-self.step // self.interval) * self.interval
        if due <= self.end and self.step > due - length:
            self.scores = [s + g for s, g in zip(self.scores, gradient, strict=True)]

    def update(self, now: Snapshot) -> Snapshot:
        """The snapshot after the update that is due."""
        self.ever_live |= set(now.live)
        scored = [p for p in range(self.positions) if self.scored is None or p in self.scored]
        live = [p for p in scored if p in now.live]
        dead = [p for p in scored if p not in now.live]
        cosine = (1 + math.cos(math.pi * self.step / self.end)) / 2
        ratio = self.ratio_min + (self.ratio - self.ratio_min) * cosine
        k = min(math.floor(ratio * len(live)), len(dead))
        after = now
        if k > 0:
            after = self.exchange(now, live, dead, k)
        keep = self.momentum if self.grow == "momentum" else 0.0
        self.scores = [s * keep for s in self.scores]
        self.ever_live |= set(after.live)
        return after

    def exchange(self, now: Snapshot, live: list[int], dead: list[int], k: int) -> Snapshot:
        strength = {p: abs(now.values[p]) for p in now.live}
        if self.drop == "taylor":
            strength = {p: abs(now.values[p] * now.gradients[p]) for p in now.live}
        if self.drop == "row_magnitude":
            for row in self.rows:
                living = [p for p in row if p in now.live]
                squares = sum(now.values[p] * now.values[p] for p in living)
                for p in living:
                    strength[p] /= root(squares / len(living)) or 1.0
        drop = self.dropped(now, live, strength, k)
        score = self.growth_score()
        pool = sorted(dead + drop)
        grow = sorted((p for p in pool if score[p] > 0), key=lambda p: (-score[p], p))[: len(drop)]
        missing = len(drop) - len(grow)
        not_chosen = [p for p in drop if p not in grow]
        weakest_first = sorted(not_chosen, key=lambda p: (strength[p], p))
        stay = weakest_first[len(weakest_first) - missing :]
        gone = [p for p in not_chosen if p not in stay]
        new = [p for p in grow if p not in drop]
        changed = set(gone) | set(new)
        return Snapshot(
            live=sorted((set(now.live) - set(gone)) | set(new)),
            values=[0.0 if p in changed else v for p, v in enumerate(now.values)],
            gradients=now.gradients,
            state={
                name: [self.births[name] if p in changed else v for p, v in enumerate(state)]
                for name, state in now.state.items()
            },
        )

    def dropped(self, now: Snapshot, live: list[int], strength: dict[int, float], k: int) -> list[int]:
        def weakest(positions: list[int], count: int) -> list[int]:
            return sorted(positions, key=lambda p: (strength[p], p))[:count]

        if self.drop == "threshold":
            return weakest([p for p in live if strength[p] < THRESHOLD], k)
        if self.drop == "set":
            negative = [p for p in live if now.values[p] < 0]
            positive = [p for p in live if now.values[p] >= 0]
            n_negative = min(k // 2, len(negative))
            n_positive = min(k - n_negative, len(positive))
            return weakest(positive, n_positive) + weakest(negative, k - n_positive)
        return weakest(live, k)

    def growth_score(self) -> list[float]:
        if not self.grow.startswith("random"):
            columns = [
                [p for p in column if self.scored is None or p in self.scored] for column in self.columns
            ]
            score = relative([abs(s) for s in self.scores], columns, self.column_power)
            return relative(score, self.rows, self.row_power)
        draws = torch.rand(self.positions, generator=self.draws, dtype=torch.float64)
        score = (1 - draws).tolist()
        if self.grow == "random_never_live":
            score = [s + (p not in self.ever_live) for p, s in enumerate(score)]
        return score


def root(square: float) -> float:
    """The square root as torch rounds it, which may be one off in the last bit.

    Weights of different rows can be equal relative to their rows: 0.75 / √1.125 = 0.5 / √0.5. The last bit
    decides between them.
    """
    return torch.tensor(square, dtype=torch.float64).sqrt().item()


def relative(score: list[float], lines: list[list[int]], power: float) -> list[float]:
    """Each score divided by the norm of its row or column to the power."""
    result = list(score)
    for line in lines:
        norm = math.sqrt(sum(score[p] * score[p] for p in line))
        for p in line:
            result[p] /= norm**power or 1.0
    return result


# --- the real thing -------------------------------------------------------------------------------


class Tables(nn.Module):
    """Two tables; the loss makes their dense gradients whatever a test wants them to be."""

    def __init__(self, first: Tensor, second: Tensor) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(first.clone()), nn.Parameter(second.clone())

    def loss(self, gradient: Tensor) -> Tensor:
        n = self.first.numel()
        one, two = gradient[:n].view_as(self.first), gradient[n:].view_as(self.second)
        return (self.first * one).sum() + (self.second * two).sum()


OPTIMIZERS = {
    "sgd": (lambda p: torch.optim.SGD(p, lr=0.5), {}),
    "sgd_momentum": (
        lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.5),
        {"momentum_buffer": 0.0},
    ),
    "adam": (
        lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True),
        {"exp_avg": 0.0, "exp_avg_sq": 0.0, "max_exp_avg_sq": 0.0},
    ),
    "adam_fused": (
        lambda p: torch.optim.Adam(p, lr=0.1, fused=True),
        {"exp_avg": 0.0, "exp_avg_sq": 0.0},
    ),
    "adamw": (
        lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
        {"exp_avg": 0.0, "exp_avg_sq": 0.0},
    ),
    "adagrad": (
        lambda p: torch.optim.Adagrad(p, lr=0.1, initial_accumulator_value=0.25),
        {"sum": 0.25},
    ),
    "rmsprop": (
        lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.5, centered=True),
        {"square_avg": 0.0, "momentum_buffer": 0.0, "grad_avg": 0.0},
    ),
}


def by_position(group, tensors: list[Tensor], fill: float) -> list[float]:
    """Per-weight tensors of a group (values, gradients or state) as a list over all positions."""
    flat = torch.cat([t.detach().reshape(-1) for t in tensors])
    if group.storage == "packed":
        dense = torch.full((sum(r * c for r, c in group.table_shapes),), fill, dtype=flat.dtype)
        dense[group.live_positions()] = flat
        flat = dense
    return flat.tolist()


def snapshot(group, optimizer, births: dict[str, float]) -> Snapshot:
    """What the group and its optimizer hold now."""
    own = group.trained_parameters()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in own]
    return Snapshot(
        live=group.live_positions().tolist(),
        values=by_position(group, own, 0.0),
        gradients=by_position(group, gradients, 0.0),
        state={
            name: by_position(group, [optimizer.state[p][name] for p in own], birth)
            for name, birth in births.items()
        },
    )


def check_run(
    tables: tuple[Tensor, Tensor],
    live: Sequence[int],
    gradients: list[Tensor],
    *,
    storage: str = "packed",
    optimizer: str = "sgd",
    interval: int = 1,
    ratio: float = 0.5,
    drop: str = "magnitude",
    grow: str = "accumulated_gradient",
    window: int | None = None,
    end: int | None = None,
    ratio_min: float = 0.005,
    row_power: float = 0.0,
    column_power: float = 0.0,
    growth_rows: float = 1.0,
) -> tuple[Explorer, list[Snapshot]]:
    """Train on the given gradients and compare every update with the reference."""
    make, births = OPTIMIZERS[optimizer]
    end = end or 2 * len(gradients)
    model = Tables(*tables)
    put = pack if storage == "packed" else mask
    group = put(model, "joint", list_tensors(model), torch.tensor(sorted(live)))
    explorer = Explorer(
        [group],
        ExplorationSettings(
            update_interval=interval, end=end, update_ratio=ratio, update_ratio_min=ratio_min,
            drop=drop, drop_threshold=THRESHOLD, grow=grow, grow_window=window, grow_row_power=row_power,
            grow_column_power=column_power, growth_rows=growth_rows,
        ),
    )  # fmt: skip
    optim = make(model.parameters())
    before: list[Snapshot] = []
    optim.register_step_post_hook(lambda *_: before.append(snapshot(group, optim, births)))
    explorer.attach(optim)
    positions = sum(t.numel() for t in tables)
    numbers = torch.arange(positions).split([t.numel() for t in tables])
    shaped = [flat.view(t.shape) for t, flat in zip(tables, numbers, strict=True)]
    naive = NaiveExplorer(
        positions, interval, end, ratio, drop, grow, window, ratio_min,
        births=births, rows=[row for t in shaped for row in t.tolist()], row_power=row_power,
        columns=[column for t in shaped for column in t.T.tolist()], column_power=column_power,
    )  # fmt: skip
    naive.ever_live |= set(live)
    after = []
    for gradient in gradients:
        optim.zero_grad()
        model.loss(gradient).backward()
        if group.growth_scores is not None and group.growth_scores.where.rows is not None:
            scored = zip(shaped, group.growth_scores.where.rows, strict=True)
            naive.scored = {p for table, rows in scored for p in table[rows].flatten().tolist()}
        optim.step()
        naive.observe(gradient.tolist())
        expected = naive.update(before[-1]) if naive.is_due() else before[-1]
        found = snapshot(group, optim, births)
        assert found.live == expected.live
        assert found.values == expected.values
        assert found.state == expected.state
        assert len(found.live) == group.budget
        after.append(found)
    return explorer, after


# --- generated cases ------------------------------------------------------------------------------


@st.composite
def runs(draw, ties: bool = True) -> dict:
    """Small tables, gradients and settings with many zeros and, with ``ties``, many equal magnitudes.

    Scores relative to a norm can be equal for two rows in exact arithmetic, while the order of a sum decides
    which is the larger float. Without ``ties`` only a row's or a column's single nonzero can be equal to that
    of another, and its norm is exact.
    """
    tied = st.integers(-2, 2).map(lambda i: i / 2)
    seeds = st.integers(0, 2**32)

    def vector(n: int) -> Tensor:
        values = torch.tensor(draw(st.lists(tied, min_size=n, max_size=n)), dtype=torch.float64)
        if ties:
            return values
        generator = torch.Generator().manual_seed(draw(seeds))
        return values * (1 + torch.rand(n, generator=generator, dtype=torch.float64))

    rows, cols, more = draw(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 2)))
    n = rows * cols + more * 3
    interval = draw(st.integers(1, 3))
    return {
        "tables": (vector(rows * cols).view(rows, cols), vector(more * 3).view(more, 3)),
        "gradients": [vector(n) for _ in range(2 * interval)],
        "interval": interval,
        "live": draw(st.sets(st.integers(0, n - 1), min_size=1)),
        "ratio": draw(st.sampled_from([0.3, 0.5, 1.0])),
        "window": draw(st.sampled_from([None, 1, 2])),
    }


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("grow", GROWTH_NAMES)
@pytest.mark.parametrize("drop", DROP_NAMES)
@settings(max_examples=15, deadline=None)
@given(run=runs(), block=st.sampled_from([2, 5, 100]))
def test_every_pair_of_criteria_follows_the_reference(storage, grow, drop, run, block) -> None:
    """Two updates with every drop and growth criterion, in both storages, in blocks of any size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(update, "SLOTS_PER_BLOCK", block)
        check_run(**run, storage=storage, optimizer="sgd_momentum", drop=drop, grow=grow)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("grow", ["accumulated_gradient", "momentum", "random"])
@pytest.mark.parametrize("line", ["row_power", "column_power"])
@settings(max_examples=25, deadline=None)
@given(run=runs(ties=False), block=st.sampled_from([2, 5, 100]), power=st.sampled_from([0.5, 1.0]))
def test_relative_scores_follow_the_reference(storage, grow, line, run, block, power) -> None:
    """Gradients, and sums kept over windows, are divided by a norm; random draws are not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(update, "SLOTS_PER_BLOCK", block)
        check_run(**run, storage=storage, drop="row_magnitude", grow=grow, **{line: power})


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("grow", ["accumulated_gradient", "last_gradient"])
@pytest.mark.parametrize("drop", DROP_NAMES)
@settings(max_examples=15, deadline=None)
@given(
    run_and_powers=st.one_of(
        st.tuples(runs(), st.just((0.0, 0.0))), st.tuples(runs(ties=False), st.just((0.5, 1.0)))
    ),
    block=st.sampled_from([2, 5, 100]),
    share=st.sampled_from([0.3, 0.6]),
)
def test_some_rows_are_exchanged_among_themselves(storage, grow, drop, run_and_powers, block, share) -> None:
    """The sampled rows lose as many weights as they gain, by their own live weights; all others stay."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((rows, "POSITIONS_PER_BLOCK"), (selection, "SCORES_PER_BLOCK")):
            patch.setattr(module, name, block)
        patch.setattr(update, "SLOTS_PER_BLOCK", block)
        run, (row_power, column_power) = run_and_powers
        given_powers = {"row_power": row_power, "column_power": column_power}
        check_run(**run, storage=storage, grow=grow, drop=drop, growth_rows=share, **given_powers)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@settings(max_examples=15, deadline=None)
@given(run=runs())
def test_every_optimizer_state_follows_its_weight(storage, optimizer, run) -> None:
    """Values and state stay with their positions; arrivals are as at their birth."""
    check_run(**run, storage=storage, optimizer=optimizer)


# --- cases made by hand ---------------------------------------------------------------------------

FIRST = torch.tensor([[4.0, 0.0, 1.0], [0.0, 2.0, 0.0]], dtype=torch.float64)
SECOND = torch.tensor([[3.0, 0.0, 5.0]], dtype=torch.float64)
LIVE = [0, 2, 4, 6, 8]
BY_HAND = {"tables": (FIRST, SECOND), "live": LIVE, "end": 10**6}  # so α stays what it was


def gradient(**at: float) -> Tensor:
    """A gradient over the nine positions, zero but at the named ones (``p3=1.0``)."""
    result = torch.zeros(9, dtype=torch.float64)
    for name, value in at.items():
        result[int(name[1:])] = value
    return result


@pytest.mark.parametrize("storage", STORAGES)
def test_the_smallest_weight_gives_way_to_the_largest_gradient(storage) -> None:
    """|w| = 4 1 2 3 5; k = floor(0.4 · 5) = 2; positions 2 and 4 go, 3 and 7 come."""
    _, (after,) = check_run(
        **BY_HAND, storage=storage, ratio=0.4 + 1e-9, gradients=[gradient(p1=1.0, p3=-3.0, p7=2.0)]
    )
    assert after.live == [0, 3, 6, 7, 8]
    assert [after.values[p] for p in after.live] == [4.0, 0.0, 3.0, 0.0, 5.0]


@pytest.mark.parametrize("storage", STORAGES)
def test_a_dropped_weight_that_wins_its_place_back_never_left(storage) -> None:
    """Position 2 (|w| = 1 + step) has the largest gradient of the pool: value and state stay."""
    _, (after,) = check_run(
        **BY_HAND,
        storage=storage,
        optimizer="sgd_momentum",
        ratio=0.4 + 1e-9,
        gradients=[gradient(p2=-1.0, p1=0.5)],
    )
    assert after.live == [0, 1, 2, 6, 8]
    assert after.values[2] == 1.5
    assert after.state["momentum_buffer"][2] == -1.0


@pytest.mark.parametrize("storage", STORAGES)
def test_without_enough_growth_the_strongest_dropped_stay(storage) -> None:
    """k = 4 drops 2 4 6 0, one position can be grown: only the weakest, 2, really leaves."""
    _, (after,) = check_run(**BY_HAND, storage=storage, ratio=0.8 + 1e-9, gradients=[gradient(p5=1.0)])
    assert after.live == [0, 4, 5, 6, 8]
    assert after.values[4] == 2.0


@pytest.mark.parametrize("storage", STORAGES)
def test_no_gradient_no_exchange(storage) -> None:
    """All growth scores zero: every dropped weight keeps its place and value."""
    _, (after,) = check_run(**BY_HAND, storage=storage, ratio=1.0, gradients=[gradient()])
    assert after.live == LIVE
    assert [after.values[p] for p in LIVE] == [4.0, 1.0, 2.0, 3.0, 5.0]


@pytest.mark.parametrize("storage", STORAGES)
def test_the_whole_topology_can_move(storage) -> None:
    """α = 1 with k = 4 dead positions limiting it: all dead come alive, the strongest one stays."""
    everywhere = gradient(p1=1, p3=1, p5=1, p7=1)
    _, (after,) = check_run(**BY_HAND, storage=storage, ratio=1.0, gradients=[everywhere])
    assert after.live == [1, 3, 5, 7, 8]


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(
    ("grow", "window", "grown"),
    [
        ("accumulated_gradient", None, 1),  # 3+0+0 beats 0+1+1 and 0+0+1.5
        ("accumulated_gradient", 2, 3),
        ("accumulated_gradient", 1, 5),
        ("last_gradient", None, 5),
        ("momentum", 2, 3),
    ],
)
def test_growth_windows(storage, grow, window, grown) -> None:
    """Only the gradients of the window's steps are summed."""
    steps = [gradient(p1=3.0), gradient(p3=1.0), gradient(p3=1.0, p5=1.5)]
    _, after = check_run(
        **BY_HAND, storage=storage, interval=3, ratio=0.2 + 1e-9, grow=grow, window=window,
        gradients=steps,
    )  # fmt: skip
    assert set(after[-1].live) - set(LIVE) == {grown}


@pytest.mark.parametrize("storage", STORAGES)
def test_opposite_gradients_cancel(storage) -> None:
    """|sum|, not the sum of |g|: +5 and -5 make 0, which 0.1 beats."""
    steps = [gradient(p1=5.0, p3=0.1), gradient(p1=-5.0)]
    _, after = check_run(**BY_HAND, storage=storage, interval=2, ratio=0.2 + 1e-9, gradients=steps)
    assert set(after[-1].live) - set(LIVE) == {3}


@pytest.mark.parametrize("storage", STORAGES)
def test_momentum_remembers_the_last_window(storage) -> None:
    """After the first update 0.9 · 2 is left of position 3's score, more than the 1.5 of 5.

    (Position 1 is grown first and then pushed to a large value, so that it is not dropped again.)
    """
    steps = [gradient(p1=3.0, p3=2.0), gradient(p1=-10.0, p5=1.5)]
    remembering, forgetting = (
        check_run(**BY_HAND, storage=storage, ratio=0.2 + 1e-9, grow=grow, gradients=steps)[1][-1].live
        for grow in ("momentum", "accumulated_gradient")
    )
    assert 3 in remembering and 5 not in remembering
    assert 5 in forgetting and 3 not in forgetting


def test_no_update_after_the_end() -> None:
    """T_end = 2: steps 1 and 2 update, step 3 does not, and it opens no growth window."""
    steps = [gradient(p1=1.0), gradient(p3=1.0), gradient(p5=1.0)]
    explorer, after = check_run(**{**BY_HAND, "end": 2}, ratio=0.5, ratio_min=0.5, gradients=steps)
    assert explorer.updates == 2
    assert after[1].live == after[2].live
    assert explorer.progress[0].group.growth_scores is None


def test_what_is_told_of_an_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: of the two that grow one had just been dropped."""
    events: list[Any] = []
    plain = Explorer.__init__
    monkeypatch.setattr(
        Explorer, "__init__", lambda self, groups, told, *_: plain(self, groups, told, events.append)
    )
    check_run(**BY_HAND, ratio=0.4 + 1e-9, gradients=[gradient(p2=-1.0, p1=0.5)])
    (event,) = events
    assert (event.dropped, event.grown, event.regrown, event.live) == (2, 2, 1, 5)
