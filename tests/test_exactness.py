"""live == budget after every update, to the last weight, however odd the model or its gradients."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recbole_dsl import SparseHandle, sparsify
from recbole_dsl.sparsity.names import DROP_NAMES, GROWTH_NAMES

STORAGES = ("packed", "masked")


def two_tables(rows: int = 30, cols: int = 8, **options) -> nn.ModuleDict:
    """A user and an item table."""
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "user": nn.Embedding(rows, cols, **options),
            "item": nn.Embedding(rows + 10, cols, **options),
        }
    )


def lookup_loss(model: nn.ModuleDict, step: int) -> Tensor:
    """A BPR-like loss on only two users and four items, so most rows have no gradient."""
    users = torch.tensor([step % 3, 1])
    items = torch.tensor([[0, 1], [2, step % 7]])
    scores = (model["user"](users)[:, None] * model["item"](items)).sum(-1)
    return nn.functional.softplus(scores[:, 1] - scores[:, 0]).mean()


def assert_exact(handle: SparseHandle) -> None:
    """Count what is really stored, not what is claimed."""
    for group in handle.groups:
        live = group.live_positions().tolist()
        assert live == sorted(set(live))
        assert len(live) == group.budget == sum(group.live_per_tensor())
        assert sum(int(m.sum()) for m in group.masks().values()) == group.budget
        if group.storage == "packed":
            assert group.weight.numel() == group.column_ids.numel() == group.budget
            assert int(group.row_pointers[0]) == 0
            assert int(group.row_pointers[-1]) == group.budget
        else:
            for t, parameter in enumerate(group.trained_parameters()):
                dead = ~getattr(group, f"mask_{t}")
                assert not parameter.detach()[dead].any(), "a dead weight has a value"
    assert handle.live == handle.budget


def train(
    model: nn.Module, loss_of: Callable[[nn.Module, int], Tensor], steps: int = 12, **options
) -> SparseHandle:
    """Train with an update every second step and check exactness after each step."""
    settings = {"update_interval": 2, "end": 100, "include": ["*"], "groups": "joint", **options}
    events = []
    handle = sparsify(model, **settings, on_update=events.append)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05, weight_decay=0.01)
    handle.attach(optimizer)
    assert_exact(handle)
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
        assert_exact(handle)
    can_move = handle.budget < handle.dense_weights
    assert handle.explorer.updates == (steps // 2 if can_move else 0)
    assert len(events) == handle.explorer.updates * len(handle.groups)
    assert all(event.live == event_group_budget(handle, event.group) for event in events)
    return handle


def event_group_budget(handle: SparseHandle, name: str) -> int:
    """The budget of the group an event speaks of."""
    return next(g.budget for g in handle.groups if g.name == name)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("grow", GROWTH_NAMES)
@pytest.mark.parametrize("drop", DROP_NAMES)
def test_row_sparse_gradients(storage: str, grow: str, drop: str) -> None:
    """Only a few rows are ever looked up; every criterion keeps the budget."""
    train(
        two_tables(), lookup_loss, density=0.2, storage=storage, grow=grow, drop=drop,
        drop_threshold=0.3,
    )  # fmt: skip


@pytest.mark.parametrize("storage", STORAGES)
def test_the_topology_really_moves(storage: str) -> None:
    """The checks above would be idle if nothing were exchanged."""
    model = two_tables()
    handle = sparsify(model, 0.2, groups="joint", include=["*"], storage=storage)
    before = handle.groups[0].live_positions()
    handle = train(two_tables(), lookup_loss, density=0.2, storage=storage)
    assert not torch.equal(before, handle.groups[0].live_positions())


@pytest.mark.parametrize("storage", STORAGES)
def test_all_gradients_zero(storage: str) -> None:
    """Nothing can be grown, so the topology stays as it is."""
    model = two_tables()
    first: list[Tensor] = []

    def loss(model: nn.ModuleDict, step: int) -> Tensor:
        return 0.0 * lookup_loss(model, step)

    handle = train(model, loss, steps=2, density=0.2, storage=storage)
    first.append(handle.groups[0].live_positions())
    fresh = sparsify(two_tables(), 0.2, groups="joint", include=["*"], storage=storage)
    assert torch.equal(first[0], fresh.groups[0].live_positions())


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("budget", [1, 3, 20])
def test_fewer_weights_than_rows(storage: str, budget: int) -> None:
    """Most rows are empty."""
    train(two_tables(), lookup_loss, budget=budget, storage=storage, update_ratio=1.0, schedule="constant")


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("density", [0.1, 0.6, 0.97, 1.0])
def test_all_live_weights_may_be_replaced(storage: str, density: float) -> None:
    """α = 1, from few to no dead positions."""
    train(two_tables(), lookup_loss, density=density, storage=storage, update_ratio=1.0)


@pytest.mark.parametrize("storage", STORAGES)
def test_single_row_table_and_vector(storage: str) -> None:
    """A table of one row and a 1-D raw parameter are tensors like others."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.row = nn.Embedding(1, 40)
            self.vector = nn.Parameter(torch.linspace(-1, 1, 40))

    def loss(model: Odd, step: int) -> Tensor:
        return ((model.row(torch.tensor([0, 0])) - model.vector - step) ** 2).sum()

    for groups in ("joint", "per_tensor"):
        train(Odd(), loss, density=0.3, storage=storage, groups=groups)


@pytest.mark.parametrize("storage", STORAGES)
def test_tied_weights_count_once(storage: str) -> None:
    """Two modules that share a parameter share its live weights and both move it."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.table = nn.Embedding(20, 8)
            self.out = nn.Linear(8, 20, bias=False)
            self.out.weight = self.table.weight

    def loss(model: Tied, step: int) -> Tensor:
        ids = torch.tensor([step % 5, 7])
        return nn.functional.cross_entropy(model.out(model.table(ids)), ids)

    model = Tied()
    handle = train(model, loss, density=0.25, storage=storage)
    assert handle.budget == 40
    assert torch.equal(model.table.weight, model.out.weight)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("grow", GROWTH_NAMES)
def test_sampled_growth_rows(storage: str, grow: str) -> None:
    """With room for the scores of only some rows, only those rows gain weights."""
    model = two_tables(200, 16)
    handle = train(
        model, lambda m, _: m["user"].weight.sin().sum() + m["item"].weight.cos().sum(),
        density=0.1, storage=storage, grow=grow, growth_memory=9000,
    )  # fmt: skip
    where = handle.explorer._sample(handle.explorer.progress[0])
    assert where.rows is not None, "the bound was meant to force sampling"
    assert where.count * 4 + where.bytes <= 9000


@pytest.mark.parametrize("storage", STORAGES)
def test_padding_rows_have_no_gradient(storage: str) -> None:
    """Padding rows are ordinary rows whose gradient stays zero, so nothing grows there."""

    def loss(model: nn.ModuleDict, step: int) -> Tensor:
        ids = torch.tensor([0, 0, 1, 2 + step % 3])
        return (model["user"](ids) * model["item"](ids) + model["user"](ids)).sum()

    model = two_tables(padding_idx=0)
    handle = train(model, loss, steps=2, density=0.2, storage=storage)
    mine = handle.masks()["user.weight"][0]
    fresh = sparsify(two_tables(padding_idx=0), 0.2, groups="joint", include=["*"], storage=storage)
    assert not (mine & ~fresh.masks()["user.weight"][0]).any()


@pytest.mark.parametrize("storage", STORAGES)
def test_gradients_that_are_not_zeroed_do_not_revive_dead_weights(storage: str) -> None:
    """A step without zero_grad after an update uses no gradient of before the update."""
    model = two_tables()
    handle = sparsify(model, 0.2, groups="joint", include=["*"], storage=storage, update_interval=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle.attach(optimizer)
    for step in range(5):
        lookup_loss(model, step).backward()
        optimizer.step()
        assert all(parameter.grad is None for parameter in handle.groups[0].trained_parameters())
        values = handle.groups[0].live_values().clone()
        optimizer.step()
        assert torch.equal(handle.groups[0].live_values(), values)
        assert_exact(handle)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("grow", ["accumulated_gradient", "random"])
def test_same_seed_same_topology_and_global_generators_untouched(storage: str, grow: str) -> None:
    """Training twice gives the same topology, and never moves a global generator."""
    options = {"density": 0.2, "storage": storage, "grow": grow}
    first = train(two_tables(), lookup_loss, **options, seed=5)
    model = two_tables()
    torch.manual_seed(99)
    before = torch.get_rng_state(), repr(np.random.get_state()), random.getstate()
    second = train(model, lookup_loss, **options, seed=5)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert repr(np.random.get_state()) == before[1]
    assert random.getstate() == before[2]
    other = train(two_tables(), lookup_loss, **options, seed=6)
    live = [h.groups[0].live_positions() for h in (first, second, other)]
    assert torch.equal(live[0], live[1])
    assert not torch.equal(live[0], live[2])


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("grow", ["accumulated_gradient", "last_gradient", "random"])
def test_a_frozen_group_keeps_weights_and_topology_and_then_goes_on(storage: str, grow: str) -> None:
    """Steps that it sits out are none of its own: the run is that in which they had never been."""

    def run(frozen: bool) -> SparseHandle:
        model = two_tables()
        handle = sparsify(
            model, 0.2, groups={"u": ["user.*"], "i": ["item.*"]}, include=["*"], storage=storage,
            update_interval=2, grow=grow,
        )  # fmt: skip
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        handle.attach(optimizer)
        for step in range(8):
            if frozen and step in (3, 6):
                before = [(g.live_positions(), g.live_values().clone()) for g in handle.groups]
                model.requires_grad_(False)
                bias = nn.Parameter(torch.zeros(()))
                for _ in range(3):
                    optimizer.zero_grad()
                    (lookup_loss(model, step) + bias).backward()
                    optimizer.step()
                model.requires_grad_(True)
                for group, (live, values) in zip(handle.groups, before, strict=True):
                    assert torch.equal(group.live_positions(), live) and torch.equal(
                        group.live_values(), values
                    )
            optimizer.zero_grad()
            lookup_loss(model, step).backward()
            assert all(p.grad is not None for group in handle.groups for p in group.trained_parameters())
            optimizer.step()
        assert handle.explorer.updates == 4
        assert_exact(handle)
        return handle

    for one, other in zip(run(True).groups, run(False).groups, strict=True):
        assert torch.equal(one.live_positions(), other.live_positions())
        assert torch.equal(one.live_values(), other.live_values())


def test_random_growth_collects_no_gradients() -> None:
    """Layers need not make a dense gradient for it; nor for anybody once exploring has stopped."""
    for grow, collects in (("random", False), ("random_never_live", False), ("accumulated_gradient", True)):
        model = two_tables()
        handle = sparsify(model, 0.2, include=["*"], update_interval=4, grow=grow)
        handle.attach(torch.optim.SGD(model.parameters(), lr=0.1))
        assert [group.collects for group in handle.groups] == [collects] * 2
        handle.explorer.detach()
        assert not any(group.collects for group in handle.groups)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("unscales", [False, True])
def test_scores_are_those_of_the_loss_without_its_scale(storage: str, fused: bool, unscales: bool) -> None:
    """Whoever scales the loss tells by how much, whatever the optimizer is told of it."""
    sums = []
    for scale in (1.0, 1024.0):
        model = two_tables()
        handle = sparsify(model, 0.2, groups="joint", include=["*"], storage=storage, update_interval=9)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05, fused=fused)
        handle.attach(optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        for step in range(2):
            optimizer.zero_grad()
            handle.explorer.loss_scale = scaler.get_scale()
            scaler.scale(lookup_loss(model, step)).backward()
            if unscales:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        sums.append(handle.groups[0].growth_scores.sums)
    assert sums[0].any()
    torch.testing.assert_close(*sums)


def test_masked_scores_are_not_changed_through_other_parameters_gradients() -> None:
    """Autograd may give one tensor to two parameters; clipping one is not to change the scores of the other."""
    table = nn.Embedding(6, 4)
    handle = sparsify(table, 0.5, include=["*"], storage="masked", update_interval=9)
    shift = nn.Parameter(torch.zeros(6, 4))
    optimizer = torch.optim.SGD([*table.parameters(), shift], lr=0.1)
    handle.attach(optimizer)
    factors = torch.arange(24.0).view(6, 4)
    ((table.weight + shift) * factors).sum().backward()
    torch.nn.utils.clip_grad_norm_([shift], 1e-3)
    optimizer.step()
    assert torch.equal(handle.groups[0].growth_scores.sums, factors.flatten())


def scaled_run(
    factors: list[float],
    storage: str,
    fused: bool,
    forward_first: bool = False,
    to_none: bool = True,
    **options,
) -> tuple[SparseHandle, list[int]]:
    """Steps under a gradient scaler, of losses times ``factors``; also the updates after each step.

    ``forward_first``: gradients are cleared between the forward and the backward pass; ``to_none``: how.
    """
    model = two_tables()
    handle = sparsify(model, 0.2, groups="joint", include=["*"], storage=storage, update_interval=2, **options)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05, fused=fused)
    handle.attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    updates, real_steps = [], 0
    for factor in factors:
        handle.explorer.loss_scale = None if fused else scaler.get_scale()
        if not forward_first:
            optimizer.zero_grad(to_none)
        with torch.autograd.set_detect_anomaly(False):  # which RecBole's trainers leave switched on
            loss = factor * lookup_loss(model, real_steps)
            if forward_first:
                optimizer.zero_grad(to_none)
            scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        real_steps += factor < float("inf")
        updates.append(handle.explorer.updates)
        assert handle.explorer.progress[0].step == real_steps
    assert_exact(handle)
    return handle, updates


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("storage", STORAGES)
def test_a_skipped_step_does_not_count(storage: str, fused: bool) -> None:
    """The gradient scaler skips a step with infinite gradients: no step, no update."""
    _, updates = scaled_run([1.0, float("inf"), 1.0], storage, fused)
    assert updates == [0, 0, 1]


@pytest.mark.parametrize("grow", ["accumulated_gradient", "last_gradient", "momentum"])
@pytest.mark.parametrize("storage", STORAGES)
def test_a_skipped_step_leaves_no_trace_in_the_scores(storage: str, grow: str) -> None:
    """With fused kernels, whose scaler tells its scale: the run goes as if the step had never been."""
    clean, _ = scaled_run([1.0, 1.0, 1.0, 1.0], storage, True, grow=grow)
    other, _ = scaled_run([1.0, float("inf"), 1.0, float("inf"), 1.0, 1.0], storage, True, grow=grow)
    assert clean.explorer.updates == other.explorer.updates == 2
    assert torch.equal(clean.groups[0].live_positions(), other.groups[0].live_positions())
    torch.testing.assert_close(clean.groups[0].live_values(), other.groups[0].live_values())


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("forward_first", [True, False])
@pytest.mark.parametrize("grow", ["accumulated_gradient", "momentum"])
@pytest.mark.parametrize("storage", STORAGES)
def test_nor_does_it_whenever_gradients_are_cleared(
    storage: str, grow: str, forward_first: bool, to_none: bool
) -> None:
    """Before the forward pass or after it, to None or to zero."""
    options = {"grow": grow, "forward_first": forward_first, "to_none": to_none}
    clean, _ = scaled_run([1.0, 1.0, 1.0, 1.0], storage, False, **options)
    other, _ = scaled_run([1.0, float("inf"), 1.0, float("inf"), 1.0, 1.0], storage, False, **options)
    assert clean.explorer.updates == other.explorer.updates == 2
    assert torch.equal(clean.groups[0].live_positions(), other.groups[0].live_positions())
    torch.testing.assert_close(clean.groups[0].live_values(), other.groups[0].live_values())


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("storage", STORAGES)
def test_gradients_that_were_thrown_away_do_not_grow(storage: str, to_none: bool) -> None:
    """A backward pass that zero_grad discards counts for nothing, not even in the same step."""

    def run(thrown_away: bool) -> Tensor:
        model = two_tables()
        handle = sparsify(model, 0.2, groups="joint", include=["*"], storage=storage, update_interval=2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        handle.attach(optimizer)
        for step in range(4):
            if thrown_away:
                (100.0 * lookup_loss(model, step + 7)).backward()
            optimizer.zero_grad(to_none)
            lookup_loss(model, step).backward()
            optimizer.step()
        assert handle.explorer.updates == 2
        return handle.groups[0].live_positions()

    assert torch.equal(run(True), run(False))


@pytest.mark.parametrize("storage", STORAGES)
def test_clipping_throws_no_score_away(storage: str) -> None:
    """It writes to gradients, as zero_grad does, and those of a batch without a live weight are zero."""
    model = nn.ModuleDict({"user": nn.Embedding(100, 8)})
    handle = sparsify(model, budget=6, storage=storage, update_interval=10, update_ratio_min=0.5, include=["*"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle.attach(optimizer)
    dead = [row for row, live in enumerate(handle.masks()["user.weight"].any(dim=1)) if not live]
    for row in dead[:9]:
        optimizer.zero_grad()
        model["user"](torch.tensor([row])).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    scored = handle.groups[0].growth_scores.sums.view(100, 8).any(dim=1).nonzero().flatten().tolist()
    assert scored == dead[:9]


@pytest.mark.parametrize("storage", STORAGES)
def test_passes_of_one_step_all_count(storage: str) -> None:
    """Gradients accumulated over two backward passes grow what one pass over the sum grows."""

    def run(parts: bool) -> Tensor:
        model = two_tables().double()
        handle = sparsify(model, 0.2, groups="joint", include=["*"], storage=storage, update_interval=2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        handle.attach(optimizer)
        for step in range(4):
            optimizer.zero_grad()
            if parts:
                lookup_loss(model, step).backward()
                lookup_loss(model, step + 7).backward()
            else:
                (lookup_loss(model, step) + lookup_loss(model, step + 7)).backward()
            optimizer.step()
        return handle.groups[0].live_positions()

    assert torch.equal(run(True), run(False))


@pytest.mark.parametrize("storage", STORAGES)
def test_half_precision_gradients_are_summed_in_single(storage: str) -> None:
    """600 gradients of 1 are 600; summed as bfloat16 they would stop at 256."""
    model = nn.ParameterDict({"w": nn.Parameter(torch.zeros(8, 8, dtype=torch.bfloat16))})
    handle = sparsify(model, 0.5, include=["w"], storage=storage, update_interval=1000, init="aligned", seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    handle.attach(optimizer)
    for _ in range(600):
        optimizer.zero_grad()
        model["w"].sum().backward()
        optimizer.step()
    sums = handle.groups[0].growth_scores.sums
    assert sums.dtype == torch.float32 and torch.equal(sums, torch.full((64,), 600.0))


def test_momentum_scores_other_rows_in_every_window() -> None:
    """A bounded sample is drawn anew; rows in both keep their scores, decayed."""
    model = nn.ModuleDict({"user": nn.Embedding(200, 8)})
    handle = sparsify(
        model, 0.2, update_interval=2, grow="momentum", growth_memory=3500, include=["*"], update_ratio=0.1
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle.attach(optimizer)
    group, seen = handle.groups[0], []
    for step in range(20):
        before = group.growth_scores
        if step % 2 == 0:
            seen.append(set(before.where.rows[0].tolist()))
        optimizer.zero_grad()
        model["user"](torch.arange(200)).sum().backward()
        optimizer.step()
        assert group.growth_scores.bytes <= 3500
    assert len({frozenset(rows) for rows in seen}) == len(seen)
    both = sorted(seen[-1] & set(group.growth_scores.where.rows[0].tolist()))
    slots = group.growth_scores.where.row_slots[0][torch.tensor(both)].long()
    assert both and (group.growth_scores._table(0)[slots] > 0).all()


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("drop", DROP_NAMES)
def test_weights_that_are_no_numbers_keep_the_budget(storage: str, drop: str) -> None:
    """A model that has diverged does not also lose count."""
    model = two_tables()
    with torch.no_grad():
        model["user"].weight[::2] = float("inf")
        model["item"].weight[::3] = float("nan")
    handle = sparsify(
        model, 0.3, groups="joint", include=["*"], storage=storage, drop=drop, drop_threshold=0.3,
        update_interval=1, update_ratio=1.0, grow="random",
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    handle.attach(optimizer)
    for step in range(3):
        with torch.autograd.set_detect_anomaly(False):  # which RecBole's trainers leave switched on
            lookup_loss(model, step).backward()
        optimizer.step()
        for group in handle.groups:
            live = group.live_positions().tolist()
            assert live == sorted(set(live)) and len(live) == group.budget
    assert handle.explorer.updates == 3


def test_density_one_holds_no_growth_scores() -> None:
    """Density 1.0 means RecBole: nothing can be exchanged, so nothing is accumulated."""
    model = two_tables()
    handle = sparsify(model, 1.0, groups="joint", include=["*"], update_interval=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle.attach(optimizer)
    for step in range(4):
        lookup_loss(model, step).backward()
        optimizer.step()
        assert handle.groups[0].growth_scores is None
