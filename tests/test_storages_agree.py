"""Packed and masked storage train the same model: same losses, same topology."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

from recbole_dsl import sparsify

USERS, ITEMS, DIM = 40, 50, 16
INTERVAL, UPDATES = 3, 10


def interactions() -> Tensor:
    """A fixed binary user-item matrix, (users, items)."""
    draw = torch.Generator().manual_seed(1)
    return (torch.rand(USERS, ITEMS, generator=draw) < 0.15).double()


class BPR(nn.Module):
    """Inner products of looked-up rows."""

    groups = "joint"

    def __init__(self) -> None:
        super().__init__()
        self.user = nn.Embedding(USERS, DIM)
        self.item = nn.Embedding(ITEMS, DIM)

    def tables(self) -> tuple[Tensor, Tensor]:
        return self.user.weight, self.item.weight

    def loss(self, users: Tensor, liked: Tensor, other: Tensor) -> Tensor:
        u, i, j = self.user(users), self.item(liked), self.item(other)
        return nn.functional.softplus((u * (j - i)).sum(1)).mean() + 0.01 * u.pow(2).mean()


class LightGCN(BPR):
    """Whole tables, propagated over the interaction graph."""

    def __init__(self) -> None:
        super().__init__()
        r = interactions()
        graph = torch.zeros(USERS + ITEMS, USERS + ITEMS, dtype=r.dtype)
        graph[:USERS, USERS:], graph[USERS:, :USERS] = r, r.T
        degree = graph.sum(1).clamp_min(1).rsqrt()
        self.register_buffer("graph", (degree[:, None] * graph * degree).to_sparse_coo())

    def loss(self, users: Tensor, liked: Tensor, other: Tensor) -> Tensor:
        all_rows = torch.cat([self.user.weight, self.item.weight])
        layers = [all_rows]
        for _ in range(2):
            layers.append(torch.sparse.mm(self.graph.to(all_rows.dtype), layers[-1]))
        mean = torch.stack(layers).mean(0)
        u, items = mean[users], mean[USERS:]
        ranking = nn.functional.softplus((u * (items[other] - items[liked])).sum(1)).mean()
        return ranking + 0.01 * self.user(users).pow(2).mean()


class AutoEncoder(nn.Module):
    """Linear layers over a user's items, one group per matrix."""

    groups = "per_tensor"

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rows", interactions())
        self.encoder, self.decoder = nn.Linear(ITEMS, DIM), nn.Linear(DIM, ITEMS)

    def loss(self, users: Tensor, liked: Tensor, other: Tensor) -> Tensor:
        x = self.rows[users].to(self.encoder.bias.dtype)
        logits = self.decoder(torch.tanh(self.encoder(x)))
        return -(logits.log_softmax(1) * x).sum(1).mean()


def run(kind: type[nn.Module], storage: str, dtype: torch.dtype) -> tuple[list[float], list]:
    """Losses of every step, and the live positions per group at the end, of one training."""
    torch.manual_seed(0)
    model = kind().to(dtype)
    handle = sparsify(
        model, 0.2, groups=kind.groups, include=["*.weight"], storage=storage, seed=3,
        update_interval=INTERVAL, end=1000, update_ratio=0.3,
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    handle.attach(optimizer)
    draw = torch.Generator().manual_seed(2)
    losses = []
    for _ in range(INTERVAL * UPDATES):
        batch = [torch.randint(n, (32,), generator=draw) for n in (USERS, ITEMS, ITEMS)]
        optimizer.zero_grad()
        loss = model.loss(*batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert handle.explorer.updates == UPDATES
    return losses, [set(g.live_positions().tolist()) for g in handle.groups]


class Training:
    """A run of :class:`BPR` in double precision, step by step."""

    def __init__(self, storage: str, attached: bool = True, seed: int = 3, interval: int = 2) -> None:
        torch.manual_seed(0)
        self.model = BPR().double()
        self.handle = sparsify(
            self.model, 0.2, groups="joint", include=["*.weight"], storage=storage, seed=seed,
            update_interval=interval, end=1000, update_ratio=0.3,
        )  # fmt: skip
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.02, amsgrad=True)
        if attached:
            self.handle.attach(self.optimizer)
        self.draw = torch.Generator().manual_seed(2)

    def losses(self, steps: int) -> list[float]:
        found = []
        for _ in range(steps):
            batch = [torch.randint(n, (32,), generator=self.draw) for n in (USERS, ITEMS, ITEMS)]
            self.optimizer.zero_grad()
            loss = self.model.loss(*batch)
            loss.backward()
            self.optimizer.step()
            found.append(loss.item())
        return found

    def weights(self) -> dict:
        return copy.deepcopy(self.model.state_dict())


def test_optimizer_state_follows_to_a_topology_that_is_loaded() -> None:
    """The weights of an earlier step are loaded and trained on with the optimizer as it is."""

    def losses(storage: str) -> list[float]:
        run = Training(storage)
        run.losses(5)
        earlier = run.weights()
        run.losses(8)
        run.model.load_state_dict(earlier)
        return run.losses(6)

    assert losses("packed") == pytest.approx(losses("masked"), rel=1e-12)


def test_optimizer_state_does_not_wait_at_positions_that_were_dead() -> None:
    """Another topology is loaded, trained for a while, and the first one again."""

    def losses(storage: str) -> list[float]:
        run = Training(storage)
        run.losses(5)
        earlier = run.weights()
        run.losses(8)
        later = run.weights()
        run.model.load_state_dict(earlier)
        found = run.losses(1)
        run.model.load_state_dict(later)
        return found + run.losses(6)

    assert losses("packed") == pytest.approx(losses("masked"), rel=1e-12)


@pytest.mark.parametrize("storage", ["packed", "masked"])
def test_weights_that_are_loaded_for_a_while_leave_no_trace(storage: str) -> None:
    """As to evaluate another epoch's."""
    run, other = Training(storage), Training(storage)
    earlier = [run.losses(5), run.weights()][1]
    other.losses(5)
    assert run.losses(8) == other.losses(8)
    now = run.weights()
    run.model.load_state_dict(earlier)
    run.model.load_state_dict(now)
    assert run.losses(6) == other.losses(6)


@pytest.mark.parametrize("storage", ["packed", "masked"])
@pytest.mark.parametrize("optimizer_first", [False, True])
def test_optimizer_state_that_is_loaded_too_is_of_the_loaded_topology(
    optimizer_first: bool, storage: str
) -> None:
    """In either order: the run repeats what it has done."""
    run = Training(storage)
    run.losses(5)
    kept = run.weights(), copy.deepcopy(run.optimizer.state_dict()), run.draw.get_state()
    explorer = copy.deepcopy(run.handle.explorer.state_dict())
    expected = run.losses(7)
    parts = [(run.model, kept[0]), (run.optimizer, kept[1])]
    for part, state in reversed(parts) if optimizer_first else parts:
        part.load_state_dict(copy.deepcopy(state))
    run.handle.explorer.load_state_dict(explorer)
    run.draw.set_state(kept[2])
    assert run.losses(7) == expected


@pytest.mark.parametrize("storage", ["packed", "masked"])
@pytest.mark.parametrize("order", list(itertools.permutations(["weights", "state", "attach"])))
def test_a_run_goes_on_whatever_is_loaded_first(order: tuple[str, ...], storage: str) -> None:
    """A state that was loaded before the optimizer was attached is of the topology that comes, too."""
    run, other = Training(storage), Training(storage, attached=False)
    run.losses(5)
    weights, state, draw = run.weights(), copy.deepcopy(run.optimizer.state_dict()), run.draw.get_state()
    explorer = copy.deepcopy(run.handle.explorer.state_dict())
    expected = run.losses(2)
    load = {
        "weights": lambda: other.model.load_state_dict(weights),
        "state": lambda: other.optimizer.load_state_dict(state),
        "attach": lambda: other.handle.attach(other.optimizer),
    }
    for part in order:
        load[part]()
    other.handle.explorer.load_state_dict(explorer)
    other.draw.set_state(draw)
    assert other.losses(2) == expected


@pytest.mark.parametrize("storage", ["packed", "masked"])
@pytest.mark.parametrize("detached", [False, True])
def test_state_follows_to_a_topology_that_is_loaded_before_the_optimizer_is_attached_again(
    detached: bool, storage: str
) -> None:
    """The same optimizer, whose state is that of its last step."""

    def losses(again: bool) -> list[float]:
        run = Training(storage)
        run.losses(5)
        earlier = run.weights()
        run.losses(7)
        if again and detached:
            run.handle.explorer.detach()
        run.model.load_state_dict(earlier)
        if again:
            run.handle.attach(run.optimizer)
        return run.losses(2)  # the next update would need scores that are gone

    assert losses(again=True) == losses(again=False)


@pytest.mark.parametrize("storage", ["packed", "masked"])
def test_state_follows_to_a_topology_that_is_loaded_before_steps_that_nobody_explores(storage: str) -> None:
    """Once, before the first of them, and not again when the optimizer is attached again."""

    def losses(again: bool) -> list[float]:
        run = Training(storage, interval=1000)
        run.losses(5)
        other = Training(storage, attached=False, seed=4).weights()
        run.handle.explorer.detach()
        run.model.load_state_dict(other)
        found = run.losses(5)
        if again:
            run.handle.attach(run.optimizer)
        return found + run.losses(3)

    assert losses(again=True) == losses(again=False)


def test_a_frozen_part_of_a_masked_group_does_not_keep_the_state_of_the_rest() -> None:
    """Other masks are loaded; old momentum would move what is dead now."""
    model = BPR()
    handle = sparsify(model, 0.2, groups="joint", include=["*.weight"], storage="masked", update_interval=1000)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    handle.attach(optimizer)
    model.user.weight.requires_grad_(False)
    draw = torch.Generator().manual_seed(2)

    def step() -> None:
        optimizer.zero_grad()
        model.loss(*(torch.randint(n, (32,), generator=draw) for n in (USERS, ITEMS, ITEMS))).backward()
        optimizer.step()

    step()
    loaded = copy.deepcopy(model.state_dict())
    masks = [name for name in loaded if "mask_" in name]
    for name in (*masks, "user.weight", "item.weight"):
        loaded[name] = loaded[name].roll(1, dims=1)
    model.load_state_dict(loaded)
    step()
    dead = ~handle.masks()["item.weight"]
    assert masks and not bool(model.item.weight[dead].any())


@pytest.mark.parametrize("storage", ["packed", "masked"])
@pytest.mark.parametrize("to_none", [True, False])
def test_scores_do_not_depend_on_the_order_of_passes(storage: str, to_none: bool) -> None:
    """One of the passes of a step touches rows without live weights only, so its gradient of these is zero."""

    def check(dead_first: bool, thrown_away: bool) -> None:
        torch.manual_seed(0)
        model = nn.ModuleDict({"table": nn.Embedding(64, 2)})
        handle = sparsify(
            model, 0.1, include=["table.weight"], storage=storage, update_interval=5, end=100, seed=1
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        handle.attach(optimizer)
        alive = handle.masks()["table.weight"].any(1)
        some, none = alive.nonzero().flatten()[:2], (~alive).nonzero().flatten()[:3]
        for step in range(2):
            optimizer.zero_grad(set_to_none=to_none)
            if thrown_away and step:
                model["table"](torch.cat([some, none])).sum().backward()
                optimizer.zero_grad(set_to_none=to_none)
            for rows in (none, some) if dead_first else (some, none):
                (2 * model["table"](rows)).sum().backward()
            optimizer.step()
        expected = torch.zeros(64, 2)
        expected[some] = expected[none] = 4.0
        found = handle.groups[0].growth_scores
        assert found is not None
        assert torch.equal(found.sums.view(64, 2), expected)

    for dead_first in (False, True):
        for thrown_away in (False, True):
            check(dead_first, thrown_away)


MODELS = pytest.mark.parametrize("kind", [BPR, LightGCN, AutoEncoder])


@MODELS
def test_double_precision_trajectories_are_identical(kind: type[nn.Module]) -> None:
    """Thirty steps with ten updates: every loss to 1e-12, every position."""
    packed, packed_live = run(kind, "packed", torch.float64)
    masked, masked_live = run(kind, "masked", torch.float64)
    torch.testing.assert_close(packed, masked, rtol=1e-12, atol=1e-12)
    assert packed_live == masked_live
    assert packed[-1] != packed[0]


@MODELS
def test_single_precision_trajectories_agree(kind: type[nn.Module]) -> None:
    """The same to rounding until the first update; nearly all positions after the tenth."""
    packed, packed_live = run(kind, "packed", torch.float32)
    masked, masked_live = run(kind, "masked", torch.float32)
    before = INTERVAL
    torch.testing.assert_close(packed[:before], masked[:before], rtol=1e-5, atol=1e-5)
    common = sum(len(p & m) for p, m in zip(packed_live, masked_live, strict=True))
    assert common >= 0.999 * sum(len(p) for p in packed_live)
