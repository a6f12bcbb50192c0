"""The public interface for people without RecBole: sparsify, masks, and the handle."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from recbole_dsl import SparseHandle, masks, sparsify
from recbole_dsl.errors import (
    CheckpointError,
    ConfigError,
    DSLError,
    PackedWriteError,
    TargetError,
    UnsupportedOptimizerError,
)
from recbole_dsl.settings import DSLConfig
from recbole_dsl.sparsity import topology
from recbole_dsl.sparsity.explorer import UpdateEvent
from recbole_dsl.sparsity.factors import Factorisation
from recbole_dsl.sparsity.interactions import Interactions
from recbole_dsl.sparsity.targets import list_tensors


def tables() -> nn.ModuleDict:
    """A user and an item table and a dense vector: 320 + 480 + 8 weights."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"user": nn.Embedding(40, 8), "item": nn.Embedding(60, 8)})
    model.register_parameter("bias", nn.Parameter(torch.zeros(8)))
    return model


def sparse_tables(density: float | None = None, **options) -> tuple[nn.ModuleDict, SparseHandle]:
    """The tables made sparse jointly, at density 0.25 if nothing else is said."""
    model = tables()
    if density is None and "budget" not in options:
        density = 0.25
    options = {"include": ["*.weight"], "groups": "joint", **options}
    return model, sparsify(model, density, **options)


def loss(model: nn.ModuleDict) -> Tensor:
    """Depends on every weight."""
    return (model["user"].weight.sum(0) * model["item"].weight.cos().sum(0) + model.bias).sum()


def train(model: nn.ModuleDict, handle: SparseHandle, steps: int, optimizer=None) -> None:
    """Some steps."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.01)
    handle.attach(optimizer)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()


def test_attributes_of_the_handle() -> None:
    """live, budget, density over the sparse tensors, overall density over all trainable weights."""
    model, handle = sparse_tables()
    assert handle.live == handle.budget == 200
    assert handle.dense_weights == 800
    assert handle.density == 0.25
    assert handle.overall_density == pytest.approx(208 / 808)
    assert handle.module is model
    assert [t.name for t in handle.selection.taken] == ["user.weight", "item.weight"]


@pytest.mark.parametrize("storage", ["packed", "masked"])
def test_masks_of_parts_that_were_made_sparse_alone(storage: str) -> None:
    """Each by its name in the whole."""
    model = nn.ModuleDict({name: nn.Sequential(nn.Embedding(rows, 8)) for name, rows in (("a", 40), ("b", 60))})
    for name, density in (("a", 0.1), ("b", 0.2)):
        sparsify(model[name], density, include=["*"], storage=storage)
    found = masks(model)
    assert {name: (tuple(m.shape), int(m.sum())) for name, m in found.items()} == {
        "a.0.weight": ((40, 8), 32),
        "b.0.weight": ((60, 8), 96),
    }


def test_masks_of_handle_and_of_module_agree() -> None:
    """By parameter name, of the dense shape, True where live."""
    model, handle = sparse_tables()
    for found in (handle.masks(), masks(model)):
        assert {n: tuple(m.shape) for n, m in found.items()} == {
            "user.weight": (40, 8),
            "item.weight": (60, 8),
        }
        assert sum(int(m.sum()) for m in found.values()) == 200
        assert not model["user"].weight[~found["user.weight"]].any()
    assert masks(nn.Linear(2, 2)) == {}


def test_parameters_are_the_live_values_and_the_dense_left_ones() -> None:
    """Nothing of the dense size is trainable any more."""
    model, _ = sparse_tables()
    assert sorted(p.numel() for p in model.parameters()) == [8, 200]
    assert all(p.is_leaf and p.requires_grad for p in model.parameters())


def test_initial_values_are_the_models_own() -> None:
    """Live weights keep the value they had."""
    dense = tables()
    model, handle = sparse_tables()
    for name, mask in handle.masks().items():
        table = name.split(".")[0]
        assert torch.equal(model[table].weight[mask], dense[table].weight[mask])


def test_density_one_is_the_dense_model() -> None:
    """Same values, same training, no update moves anything."""
    dense = tables()
    model, handle = sparse_tables(1.0, update_interval=1)
    reference = torch.optim.SGD(dense.parameters(), lr=0.01)
    train(model, handle, 3)
    for _ in range(3):
        reference.zero_grad()
        loss(dense).backward()
        reference.step()
    torch.testing.assert_close(model["user"].weight.as_subclass(Tensor), dense["user"].weight.data)
    assert handle.live == 800


def test_updates_are_reported() -> None:
    """on_update gets one event per group and update, with true numbers."""
    events = []
    model = tables()
    handle = sparsify(
        model, 0.25, include=["*.weight"], groups="per_tensor", update_interval=2, end=5,
        update_ratio=0.4, schedule="constant", on_update=events.append,
    )  # fmt: skip
    before = handle.masks()
    train(model, handle, 7)
    assert [(e.group, e.step) for e in events] == [
        (g, s) for s in (2, 4) for g in ("user.weight", "item.weight")
    ]
    assert [e.ratio for e in events] == [pytest.approx(0.4)] * 4
    assert [e.dropped for e in events] == [32, 48] * 2
    assert [e.live for e in events] == [80, 120] * 2
    assert all(0 <= e.regrown <= e.grown <= e.dropped for e in events)
    assert all(0.25 <= e.exploration_rate <= 0.25 + 0.4 * 0.25 * 2 for e in events)
    last = {e.group: e.exploration_rate for e in events}
    total = (320 * last["user.weight"] + 480 * last["item.weight"]) / 800
    assert handle.explorer.exploration_rate == pytest.approx(total)
    gone = sum(int((before[n] & ~m).sum()) for n, m in handle.masks().items())
    assert gone > 0


def test_unpack_gives_back_the_dense_module() -> None:
    """The values stay, training goes on dense, and exploration has stopped."""
    model, handle = sparse_tables(update_interval=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    train(model, handle, 2, optimizer)
    values = model["user"].weight.detach().clone()
    assert handle.unpack() is model
    assert type(model["user"].weight) is nn.Parameter
    assert torch.equal(model["user"].weight, values)
    assert sorted(p.numel() for p in model.parameters()) == [8, 320, 480]
    assert masks(model) == {}
    optimizer.step()
    again = sparsify(model, 0.5, include=["*.weight"], groups="joint")
    assert again.live == 400


def test_unpack_of_masked_groups_trains_dense_again() -> None:
    """Dead weights get gradients again."""
    model, handle = sparse_tables(storage="masked")
    dead = ~handle.masks()["user.weight"]
    handle.unpack()
    loss(model).backward()
    assert model["user"].weight.grad[dead].any()


def test_detach_stops_exploration() -> None:
    """No update and no growth scores after it; steps go on."""
    model, handle = sparse_tables(update_interval=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    train(model, handle, 1, optimizer)
    live = handle.groups[0].live_positions()
    handle.explorer.detach()
    loss(model).backward()
    optimizer.step()
    assert handle.explorer.updates == 1
    assert torch.equal(handle.groups[0].live_positions(), live)
    assert handle.groups[0].growth_scores is None


def test_attaching_again_moves_to_the_new_optimizer_and_keeps_the_count() -> None:
    """Two steps with one optimizer and one with another: the update of step 3 happens once."""
    model, handle = sparse_tables(update_interval=3)
    old = torch.optim.SGD(model.parameters(), lr=0.01)
    train(model, handle, 2, old)
    train(model, handle, 1, torch.optim.Adam(model.parameters()))
    assert handle.explorer.updates == 1


def test_an_optimizer_that_was_replaced_must_not_step() -> None:
    """Its state would be of weights that have moved since; without a gradient, or attached again, it may."""
    model, handle = sparse_tables(update_interval=3)
    old, new = (torch.optim.Adam(model.parameters()) for _ in range(2))
    train(model, handle, 2, old)
    train(model, handle, 1, new)
    loss(model).backward()
    with pytest.raises(DSLError, match="group 'joint' belongs to another optimizer, which was attached later"):
        old.step()
    model.zero_grad()
    old.step()
    assert handle.explorer.progress[0].step == 3
    train(model, handle, 1, old)
    with pytest.raises(DSLError, match="attached later"):
        new.step()
    assert handle.explorer.progress[0].step == 4
    handle.explorer.detach()
    assert handle.explorer.attach(new) == 1


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("grow", ["accumulated_gradient", "momentum"])
@pytest.mark.parametrize("storage", ["packed", "masked"])
def test_a_gradient_that_is_thrown_away_before_the_step(storage: str, grow: str, to_none: bool) -> None:
    """As loops do with what is no number: growth scores forget it, too, and every update goes on exchanging."""
    events: list[UpdateEvent] = []
    options = {"grow": grow, "update_interval": 2, "end": 100, "on_update": events.append}
    model, handle = sparse_tables(storage=storage, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    handle.attach(optimizer)
    for step in range(6):
        optimizer.zero_grad(set_to_none=to_none)
        (loss(model) * (float("nan") if step == 1 else 1.0)).backward()
        if step == 1:
            optimizer.zero_grad(set_to_none=to_none)
        optimizer.step()
    assert [event.grown > 0 for event in events] == [True] * 3
    assert all(group.live_values().isfinite().all() for group in handle.groups)


def test_masks_of_another_budget_are_not_loaded() -> None:
    """As packed weights of another number are not."""
    other, _ = sparse_tables(0.5, storage="masked")
    model, handle = sparse_tables(storage="masked")
    before = handle.masks()
    with pytest.raises(RuntimeError, match="the masks leave 400 weights live"):
        model.load_state_dict(other.state_dict())
    assert all(torch.equal(mask, before[name]) for name, mask in handle.masks().items())
    assert handle.live == handle.budget == 200


@pytest.mark.parametrize("window", [None, 1])
@pytest.mark.parametrize("first", ["attach", "load"])
def test_a_state_may_be_loaded_before_or_after_attaching(first: str, window: int | None) -> None:
    """At the first step of a growth window, too: the sampled rows are those of the run that was saved."""
    options = {"update_interval": 2, "growth_rows": 0.3, "grow_window": window, "min_weights": 1}

    def made() -> tuple[nn.ModuleDict, SparseHandle, torch.optim.Optimizer]:
        model, handle = sparse_tables(**options)
        return model, handle, torch.optim.SGD(model.parameters(), lr=0.1)

    def go_on(model: nn.ModuleDict, optimizer: torch.optim.Optimizer, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            loss(model).backward()
            optimizer.step()

    whole, handle, optimizer = made()
    handle.attach(optimizer)
    go_on(whole, optimizer, 2 if window is None else 3)
    saved = copy.deepcopy((whole.state_dict(), handle.explorer.state_dict()))
    go_on(whole, optimizer, 5)
    model, again, optimizer = made()
    if first == "attach":
        again.attach(optimizer)
    model.load_state_dict(saved[0])
    again.explorer.load_state_dict(saved[1])
    if first == "load":
        again.attach(optimizer)
    go_on(model, optimizer, 5)
    assert torch.equal(again.groups[0].live_positions(), handle.groups[0].live_positions())
    assert torch.equal(again.groups[0].live_values(), handle.groups[0].live_values())


def test_a_masked_group_of_which_a_tensor_is_frozen_sits_out() -> None:
    """As packed storage refuses; its weights and its budget are not given to the others."""
    model, handle = sparse_tables(storage="masked", update_interval=1)
    model["item"].weight.requires_grad_(False)
    before, live = model["item"].weight.clone(), handle.groups[0].live_positions()
    train(model, handle, 4)
    assert torch.equal(model["item"].weight, before)
    assert torch.equal(handle.groups[0].live_positions(), live)
    model["item"].weight.requires_grad_(True)
    train(model, handle, 4)
    assert not torch.equal(handle.groups[0].live_positions(), live)


@pytest.mark.parametrize(
    ("method", "init", "grow", "density"),
    [
        (None, "random", "accumulated_gradient", 0.1),
        ("dsl", "random", "last_gradient", 0.5),
        ("rigl", "erk", "last_gradient", 0.1),
        ("set", "er", "random", 0.1),
        ("dense", "random", "last_gradient", 1.0),
    ],
)
def test_a_method_that_is_named_is_that_method(
    method: str | None, init: str, grow: str, density: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file says topology, growth and density; the defaults of a loop of one's own do not hide them."""
    seen: list[DSLConfig] = []
    monkeypatch.setattr("recbole_dsl.handle.insert", lambda module, config, **_: seen.append(config))
    sparsify(tables(), include=["*.weight"], groups="joint", **({"method": method} if method else {}))
    config = seen[0]
    assert (config.init, config.grow, config.density) == (init, grow, density)
    assert (config.update_interval.steps(0, 0), config.end.steps(0, 0)) == (100, 10_000)


# --- refusals -------------------------------------------------------------------------------------


def test_unknown_settings_are_refused_with_the_nearest() -> None:
    """A misspelt setting must not pass silently; the model is left alone."""
    model = tables()
    with pytest.raises(ConfigError, match="update_interval"):
        sparsify(model, 0.5, include=["*.weight"], update_intervall=3)
    assert type(model["user"]) is nn.Embedding


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": 0.0}, "dsl_density=0.0"),
        ({"density": 1.5}, "dsl_density=1.5"),
        ({"grow": "acumulated_gradient"}, "did you mean 'accumulated_gradient'"),
        ({"end": "30%"}, "dsl_end='30%' cannot be counted"),
        ({"update_interval": "2 epochs"}, "dsl_update_interval='2 epochs' cannot be counted"),
        ({"width": 128}, "dsl_width=128"),
        ({"budget": 801}, "from 1 to 800 weights"),
        ({"budget": "100B"}, "less than the"),
        ({"init": "nmf"}, "dsl_init='nmf' and 'spectral' need the interactions of users"),
    ],
)
def test_wrong_settings_are_refused(options: dict, message: str) -> None:
    """One sentence that names key, value and what is allowed; the model is left alone."""
    model = tables()
    with pytest.raises(ConfigError, match=message):
        sparsify(model, **{"include": ["*.weight"], "groups": "joint", **options})
    assert type(model["user"]) is nn.Embedding
    assert [n for n, _ in model.named_parameters()] == ["bias", "user.weight", "item.weight"]


def test_the_fewest_bytes_that_are_told_are_enough() -> None:
    """And one byte less is refused: a weight, its column id and a pointer for each of 100 rows."""
    with pytest.raises(ConfigError, match="at least 409 bytes"):
        sparsify(nn.ModuleDict({"a": nn.Embedding(100, 64)}), include=["*"], budget="408B")
    assert sparsify(nn.ModuleDict({"a": nn.Embedding(100, 64)}), include=["*"], budget="409B").live == 1


def test_the_fewest_bytes_are_those_of_all_groups() -> None:
    """Not of the first that has too few."""

    def sparse(budget: str) -> SparseHandle:
        return sparsify(
            nn.ModuleList([nn.Embedding(82, 264), nn.Embedding(3, 6)]), budget=budget, min_weights=0
        )

    with pytest.raises(ConfigError, match=r"at least \d+ bytes") as error:
        sparse("9B")
    least = int(str(error.value).split()[-2])
    assert sparse(f"{least}B").live > 0
    with pytest.raises(ConfigError, match=f"at least {least} bytes"):
        sparse(f"{least // 2}B")


def test_a_refusal_for_the_last_group_leaves_the_first_alone(monkeypatch) -> None:
    """All or nothing becomes sparse."""
    model = tables()
    model["tag"] = nn.Embedding(7, 8)

    def no_tags(context):
        if context.shapes == [(7, 8)]:
            raise ConfigError("no tags")
        return topology.random(context)

    monkeypatch.setitem(topology.TOPOLOGIES, "random", no_tags)
    with pytest.raises(ConfigError, match="no tags"):
        sparsify(model, 0.5, include=["*.weight"], groups="per_tensor", init="random")
    assert type(model["user"]) is nn.Embedding


def test_nmf_takes_other_tensors_along() -> None:
    """Users and items start at their factors, tags at random with the share of their size."""
    model = tables()
    model["tag"] = nn.Embedding(7, 8)
    ids = torch.arange(40)
    handle = sparsify(
        model,
        0.25,
        include=["*.weight"],
        groups="joint",
        init="nmf",
        interactions=Interactions(ids, ids, 40, 60),
    )
    live = {name: int(mask.sum()) for name, mask in handle.masks().items()}
    assert live["tag.weight"] == 14
    assert sum(live.values()) == handle.live == handle.budget == 214


def test_nmf_without_a_user_or_item_table_is_refused() -> None:
    """The message names what it found and what is allowed."""
    model = nn.ModuleDict({"tag": nn.Embedding(7, 8)})
    ids = torch.tensor([0, 1])
    with pytest.raises(
        ConfigError, match=r"needs a table or matrix of users or items .* which are tag\.weight"
    ):
        sparsify(model, 0.5, include=["*.weight"], init="nmf", interactions=Interactions(ids, ids, 40, 60))
    assert type(model["tag"]) is nn.Embedding


@pytest.mark.parametrize(
    "shape, expected",
    [((50, 64), 1000 * 4 + 64 * 4 + 8 + 50 * 4 + 64 * 4 + 8), ((1, 2500), 1000 * 4 + 64 * 4 + 8 + 2500 * 4)],
)
def test_the_least_growth_memory_that_is_told_is_enough(shape: tuple[int, int], expected: int) -> None:
    """A row of each tensor with its number and the inverse, or all of one that takes less."""

    def sparse(memory: int) -> SparseHandle:
        model = nn.Sequential(nn.Embedding(1000, 64), nn.Linear(shape[1], shape[0]))
        handle = sparsify(model, 0.1, growth_memory=memory, update_interval=5, groups="per_tensor")
        handle.attach(torch.optim.SGD(model.parameters(), lr=0.1))
        return handle

    with pytest.raises(ConfigError, match=r"dsl_growth_memory=2000 bytes .* at least \d+ bytes") as error:
        sparse(2000)
    least = int(str(error.value).split()[-2])
    assert least == expected
    sparse(least)
    with pytest.raises(ConfigError, match=f"dsl_growth_memory={least - 1} bytes .* at least {least} bytes"):
        sparse(least - 1)


def test_too_little_growth_memory_is_refused_before_training() -> None:
    """Not only when the first growth window opens, a hundred steps later."""
    model = tables()
    with pytest.raises(ConfigError, match="dsl_growth_memory=64 bytes is too small"):
        handle = sparsify(
            model, 0.5, include=["*.weight"], groups="joint", growth_memory=64,
            update_interval=100, grow_window=1,
        )  # fmt: skip
        handle.attach(torch.optim.SGD(model.parameters(), lr=0.1))


def test_a_model_that_is_sparse_already_is_refused() -> None:
    """A second sparsify finds no dense tensor with the names."""
    model, _ = sparse_tables()
    with pytest.raises(TargetError):
        sparsify(model, 0.1, include=["user.weight"])
    with pytest.raises(TargetError):
        sparsify(model, 0.1, include=["packed_joint.weight"])
    masked, _ = sparse_tables(storage="masked")
    with pytest.raises(TargetError, match="sparse already"):
        sparsify(masked, 0.1, include=["user.weight"])


@pytest.mark.parametrize("storage", ["packed", "masked"])
def test_an_optimizer_from_before_is_refused(storage: str) -> None:
    """It holds the dense tables, which packing has taken out of the model, or nothing of it."""
    model = tables()
    early = torch.optim.SGD(model.parameters() if storage == "packed" else [model.bias], lr=0.1)
    handle = sparsify(model, 0.2, include=["*.weight"], groups="joint", storage=storage)
    with pytest.raises(DSLError, match="SGD owns no sparse group"):
        handle.attach(early)


class MyAdam(torch.optim.Adam):
    """A subclass may keep state of its own."""


@pytest.mark.parametrize("storage", ["packed", "masked"])
@pytest.mark.parametrize(
    "kind",
    [MyAdam, torch.optim.Adamax, torch.optim.LBFGS, torch.optim.NAdam, torch.optim.ASGD],
)
def test_unknown_optimizers_are_refused_by_name(kind, storage: str) -> None:
    """Their per-weight state might silently stay behind."""
    model, handle = sparse_tables(storage=storage)
    with pytest.raises(UnsupportedOptimizerError, match=f"optimizer {kind.__name__} "):
        handle.attach(kind(model.parameters(), lr=0.1))


def test_state_of_an_unknown_name_is_refused() -> None:
    """An optimizer of a known class with foreign per-weight state does not move silently."""
    model, handle = sparse_tables(update_interval=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle.attach(optimizer)
    flat = handle.groups[0].weight
    optimizer.state[flat]["lookahead"] = torch.zeros_like(flat)
    loss(model).backward()
    with pytest.raises(UnsupportedOptimizerError, match="'lookahead'"):
        optimizer.step()


def test_a_group_over_two_optimizers_is_refused() -> None:
    """Only a masked group can be split; the message names it."""
    model, handle = sparse_tables(storage="masked")
    with pytest.raises(DSLError, match="group 'joint' is split over several optimizers"):
        handle.attach(torch.optim.SGD([model["user"].weight], lr=0.1))


def test_two_groups_with_two_optimizers_count_on_their_own() -> None:
    """Each group follows the steps of its own optimizer."""
    model, handle = sparse_tables(groups="per_tensor", update_interval=2)
    user, item = (torch.optim.SGD([g.weight], lr=0.01) for g in handle.groups)
    handle.attach(user)
    handle.attach(item)
    for step in range(2):
        loss(model).backward()
        user.step()
        if step == 0:
            item.step()
    assert [p.step for p in handle.explorer.progress] == [2, 1]
    assert [p.updates for p in handle.explorer.progress] == [1, 0]


def test_budgets_in_weights_and_bytes() -> None:
    """A budget takes the place of the density: in weights, or in bytes with the index."""
    _, handle = sparse_tables(budget=123)
    assert handle.live == 123
    _, handle = sparse_tables(budget="1KiB")
    group = handle.groups[0]
    assert 1024 - 5 < group.weight_bytes + group.index_bytes <= 1024


def test_erdos_renyi_shares_between_groups() -> None:
    """With er a budget is split over groups by rows + columns: 48 : 68 of 200."""
    _, handle = sparse_tables(groups="per_tensor", init="er")
    assert [g.budget for g in handle.groups] == [83, 117]


def test_nmf_values_are_used_when_asked_for() -> None:
    """init_values='topology' starts from the factors, 'model' from the model's own values."""
    users, items = torch.arange(40).repeat(3), torch.arange(120) % 60
    known = Interactions(users, items, 40, 60)
    _, own = sparse_tables(init="nmf", interactions=known)
    _, proposed = sparse_tables(init="nmf", interactions=known, init_values="topology")
    assert torch.equal(own.groups[0].live_positions(), proposed.groups[0].live_positions())
    assert proposed.groups[0].values.min() >= 0 > own.groups[0].values.min()
    _, masked = sparse_tables(init="nmf", interactions=known, init_values="topology", storage="masked")
    assert torch.equal(masked.groups[0].live_values(), proposed.groups[0].live_values())


@pytest.mark.parametrize("groups", ["per_tensor", "joint"])
def test_values_of_the_topology_are_of_tables_only(groups: str) -> None:
    """Linear matrices start as with fan_in, also where they share a budget with a table."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"user": nn.Embedding(40, 6), "layer": nn.Linear(12, 9, bias=False)})
    before = model["layer"].weight.detach().clone()
    known = Interactions(torch.arange(40).repeat(3), torch.arange(120) % 60, 40, 60)
    factor, _ = known.factors(list_tensors(model), 3, Factorisation("spectral"))
    options = dict(include=["*.weight"], groups=groups, init_norm=0.5, seed=3, interactions=known)
    handle = sparsify(model, 0.4, init="spectral", init_values="topology", **options)
    masks = {name: mask for group in handle.groups for name, mask in group.masks().items()}
    live = masks["layer.weight"].sum(1, keepdim=True)
    assert live.unique().numel() > 1
    expected = before * masks["layer.weight"] * (12 / live.clamp(min=1)).sqrt()
    torch.testing.assert_close(model["layer"].weight.detach(), expected)
    torch.testing.assert_close(
        model["user"].weight.detach(), 0.5 * factor.entries.float() * masks["user.weight"]
    )


@pytest.mark.parametrize("groups", ["per_tensor", "joint"])
@pytest.mark.parametrize("storage", ["packed", "masked"])
def test_values_of_linear_matrices_by_item(storage: str, groups: str) -> None:
    """The factors of the items times the norm, as columns and as rows; other matrices as with fan_in."""
    torch.manual_seed(0)
    sides = {"encoder": nn.Linear(60, 8, bias=False), "inner": nn.Linear(8, 8, bias=False)}
    model = nn.ModuleDict({**sides, "decoder": nn.Linear(8, 60, bias=False)})
    before, whole = model["inner"].weight.detach().clone(), copy.deepcopy(model)
    known = Interactions(torch.arange(40).repeat(3), torch.arange(120) % 60, 40, 60)
    factor = known.factors(list_tensors(model), 3, Factorisation("spectral"))[0].entries
    options = dict(include=["*.weight"], groups=groups, storage=storage, seed=3, interactions=known)
    options |= dict(init="spectral", init_values="topology", init_norm=7, init_linear_norm=0.25)
    handle = sparsify(model, 0.4, **options)
    masks = {name: mask for group in handle.groups for name, mask in group.masks().items()}
    for name, entries in (("encoder.weight", factor.T), ("decoder.weight", factor)):
        found = model[name.removesuffix(".weight")].weight.detach()
        torch.testing.assert_close(found, 0.25 * entries * masks[name])
    live = masks["inner.weight"].sum(1, keepdim=True)
    expected = before * masks["inner.weight"] * (8 / live.clamp(min=1)).sqrt()
    torch.testing.assert_close(model["inner"].weight.detach(), expected)
    assert not handle.norms  # which are those of tables
    initial = copy.deepcopy(whole)
    sparsify(whole, 1.0, **options)
    assert all(torch.equal(whole[name].weight, initial[name].weight) for name in initial)


@pytest.mark.parametrize("kind", ["er", "erk"])
def test_a_budget_is_split_apart_from_the_topology(kind: str) -> None:
    """Any topology with the budgets of er and erk, and these with those of sizes; exact in sum."""

    def budgets(**options) -> list[int]:
        model = nn.ModuleDict({"wide": nn.Linear(40, 30, bias=False), "flat": nn.Linear(90, 2, bias=False)})
        return [g.budget for g in sparsify(model, include=["*.weight"], groups="per_tensor", **options).groups]

    for more in ({"density": 0.1}, {"budget": 150}):
        shared, by_size = budgets(init=kind, **more), budgets(init="random", **more)
        assert shared != by_size and sum(shared) == sum(by_size)
        assert budgets(init="magnitude", split=kind, **more) == budgets(init="random", split=kind, **more)
        assert budgets(init="magnitude", split=kind, **more) == shared
        assert budgets(init=kind, split="size", **more) == by_size


@pytest.mark.parametrize("storage", ["packed", "masked"])
def test_fan_in_values_make_up_for_dead_inputs(storage: str) -> None:
    """By √(inputs / live inputs) of each output of a Linear; embeddings and full matrices stay as they are."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"table": nn.Embedding(30, 6), "layer": nn.Linear(12, 9, bias=False)})
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    whole = copy.deepcopy(model)
    options = dict(include=["*.weight"], groups="joint", storage=storage, init_values="fan_in", seed=3)
    handle = sparsify(model, 0.4, **options)
    masks = {name: mask for group in handle.groups for name, mask in group.masks().items()}
    live = masks["layer.weight"].sum(1, keepdim=True)
    assert live.unique().numel() > 1
    expected = before["layer.weight"] * masks["layer.weight"] * (12 / live.clamp(min=1)).sqrt()
    torch.testing.assert_close(model["layer"].weight.detach(), expected)
    assert torch.equal(model["table"].weight.detach(), before["table.weight"] * masks["table.weight"])
    sparsify(whole, 1.0, **options)
    assert torch.equal(whole["layer"].weight.detach(), before["layer.weight"])


def test_fan_in_values_of_tensors_on_the_meta_device() -> None:
    """Of 25 inputs 4 live: uniform within 1/5, times 5/2."""
    with torch.device("meta"):
        model = nn.ModuleDict({"layer": nn.Linear(25, 400, bias=False)})
    handle = sparsify(model, 0.16, include=["*.weight"], init_values="fan_in")
    group = handle.groups[0]
    live = group.row_pointers.diff()
    bounds = torch.repeat_interleave((25 / live[live > 0]).sqrt() / 5, live[live > 0])
    shares = group.weight.detach().abs() / bounds
    assert 0.95 < shares.max() <= 1


def test_a_deep_copied_model_does_not_explore() -> None:
    """Training the copy moves no topology and leaves the original alone."""
    model, handle = sparse_tables(update_interval=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    handle.attach(optimizer)
    twin, own = copy.deepcopy(model), masks(model)
    before = masks(twin)
    other = torch.optim.SGD(twin.parameters(), lr=0.01)
    for _ in range(3):
        loss(twin).backward()
        other.step()
    assert handle.explorer.updates == 0
    assert all(torch.equal(before[n], m) for n, m in masks(twin).items())
    loss(model).backward()
    optimizer.step()
    assert handle.explorer.updates == 1
    assert all(torch.equal(before[n], m) for n, m in masks(twin).items())
    assert any(not torch.equal(own[n], m) for n, m in masks(model).items())


def dead_values(model: nn.Module) -> Tensor:
    """What dense tensors under a mask hold at dead positions."""
    return torch.cat([dict(model.named_parameters())[n][~m] for n, m in masks(model).items()])


@pytest.mark.parametrize(
    "change",
    [
        copy.deepcopy,
        lambda m: pickle.loads(pickle.dumps(m)),
        lambda m: (m.load_state_dict(m.state_dict(), assign=True), m)[1],
    ],
    ids=["deepcopy", "pickle", "assign"],
)
def test_masked_weights_stay_dead_in_copies(change) -> None:
    """Copies and models whose parameters were replaced by loading keep their masks while training."""
    model, _ = sparse_tables(storage="masked")
    model = change(model)
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(3):
        loss(model).backward()
        optimizer.step()
    assert dead_values(model).numel() and not dead_values(model).any()


def test_a_write_into_a_masked_tensor_is_undone_at_dead_positions() -> None:
    """The dense tensor takes the write; the next step clears what does not live."""
    model, handle = sparse_tables(storage="masked")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle.attach(optimizer)
    with torch.no_grad():
        model["user"].weight.fill_(1.0)
    loss(model).backward()
    optimizer.step()
    assert not dead_values(model).any()


def test_masked_tensors_of_any_memory_layout() -> None:
    """A transposed parameter and a channels-last convolution move their masks."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.turned = nn.Parameter(torch.randn(40, 30).t())
            self.conv = nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)

    model = Odd()
    handle = sparsify(model, 0.3, include=["turned", "conv.weight"], storage="masked", update_interval=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    handle.attach(optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        (model.turned.sin().sum() + model.conv(torch.randn(1, 4, 6, 6)).pow(2).sum()).backward()
        optimizer.step()
    assert handle.explorer.updates == 3 and handle.live == handle.budget
    assert not dead_values(model).any()


def test_erdos_renyi_shares_hold_for_every_kind_of_budget() -> None:
    """As a density, a number of weights or bytes: the split over groups is the same rule."""
    by_density = sparse_tables(density=0.25, groups="per_tensor", init="er")[1]
    by_count = sparse_tables(budget=by_density.budget, groups="per_tensor", init="er")[1]
    assert [g.budget for g in by_density.groups] == [g.budget for g in by_count.groups]
    by_bytes = sparse_tables(budget="2kB", groups="per_tensor", init="er")[1]
    user, item = (g.weight_bytes + g.index_bytes for g in by_bytes.groups)
    assert user + item <= 2000 and abs(user / item - 48 / 68) < 0.02


def test_bytes_that_a_small_group_cannot_take_go_to_the_others() -> None:
    """Shares are 8 : 108, or 107 : 1443 bytes, but all of a matrix of 4 by 4 takes 100."""
    model = nn.ModuleDict({"small": nn.Linear(4, 4, bias=False), "large": nn.Linear(100, 8, bias=False)})
    options = {"include": ["*.weight"], "groups": "per_tensor", "init": "er", "budget": "1550B"}
    small, large = sparsify(model, **options).groups
    assert small.budget == 16
    used = [group.weight_bytes + group.index_bytes for group in (small, large)]
    assert used[0] == 16 * 5 + 4 * 5 == 100 and 1450 - 5 < used[1] <= 1450


def test_bytes_are_no_budget_for_masked_tensors() -> None:
    """They take more than the dense weights whatever lives in them."""
    with pytest.raises(ConfigError, match="dsl_budget=2KB is refused, because sparse group 'joint' is masked"):
        sparse_tables(budget="2kB", storage="masked")


def test_nmf_whatever_the_default_type() -> None:
    """Factors are float32, also where new tensors are float64."""
    users, items = torch.arange(40), torch.arange(40)
    known = Interactions(users, items, 40, 60)
    torch.set_default_dtype(torch.float64)
    try:
        _, handle = sparse_tables(init="nmf", interactions=known)
    finally:
        torch.set_default_dtype(torch.float32)
    assert handle.groups[0].dtype == torch.float64 and handle.live == handle.budget


def test_a_table_with_as_many_rows_as_users_by_chance_gets_no_factors() -> None:
    """Where a table is named after users, another one of the same size is not theirs."""
    model = nn.ModuleDict({"user": nn.Embedding(40, 8), "age": nn.Embedding(40, 8)})
    known = Interactions(torch.arange(40), torch.arange(40), 40, 60)
    tensors = list_tensors(model)
    user, age = known.factors(tensors, seed=0, how=Factorisation("nmf"))
    assert user is not None and age is None
    assert known.factors(tensors[1:], 0, Factorisation("nmf"), tensors) == [None]
    before = model["age"].weight.detach().clone()
    options = dict(include=["*.weight"], init="spectral", init_values="topology", interactions=known)
    handle = sparsify(model, 0.4, groups="per_tensor", **options)
    assert torch.equal(
        model["age"].weight.detach()[handle.groups[1].masks()["age.weight"]],
        before[handle.groups[1].masks()["age.weight"]],
    )


def test_dsl_plus_of_a_module_starts_at_random_positions() -> None:
    """Without interactions, and with values that suit these."""
    handle = sparsify(tables(), 0.1, method="dsl_plus", include=["*.weight"])
    assert handle.live == handle.budget and not handle.norms
    settings = DSLConfig.from_config({"dsl_method": "dsl_plus", "dsl_init": "random"})
    assert (settings.init, settings.init_values) == ("random", "fan_in")
    for given in ({"init": "spectral"}, {"init_values": "topology"}):
        with pytest.raises(ConfigError, match="need the interactions of users and items"):
            sparsify(tables(), 0.1, method="dsl_plus", include=["*.weight"], **given)
    ids = torch.arange(3)
    with pytest.raises(ConfigError, match="needs a table or matrix of users or items"):
        sparsify(
            tables(), 0.1, method="dsl_plus", include=["*.weight"], interactions=Interactions(ids, ids, 5, 7)
        )


@pytest.mark.parametrize("name, value", [("start_from", "a.pth"), ("resume", True), ("result", "r.json")])
def test_settings_of_files_are_refused(name: str, value: object) -> None:
    """They would be ignored."""
    with pytest.raises(
        ConfigError, match=f"dsl_{name}={value!r} is refused, because sparsify reads and writes no"
    ):
        sparsify(tables(), 0.5, include=["*"], **{name: value})
    sparsify(tables(), 0.5, include=["*"], **{name: None})


@pytest.mark.parametrize(
    "users, items, told",
    [
        ([0, 1], [0, 4], "items from 0 to 4 are refused: allowed are rows of a table of 4, so from 0 to 3"),
        ([0, -1], [0, 1], "users from -1 to 0 are refused"),
        ([0, 1], [0], "as many items as the 2 users"),
        ([[0, 1]], [[0, 1]], "in one dimension"),
        ([0.0, 1.0], [0, 1], "allowed are whole numbers"),
    ],
)
def test_interactions_that_are_none(users: list, items: list, told: str) -> None:
    """Instead of those of the next user."""
    with pytest.raises(ConfigError, match=told):
        Interactions(torch.tensor(users), torch.tensor(items), 5, 4)


def test_density_and_budget_contradict_each_other() -> None:
    """Neither wins silently; without either the density is 0.1."""
    with pytest.raises(ConfigError, match=r"density=0.1 contradicts budget=100"):
        sparsify(tables(), 0.1, budget=100)
    assert sparsify(tables(), include=["*.weight"]).budget == 32 + 48
    assert sparsify(tables(), budget=100, include=["*.weight"]).budget == 100


def test_a_handle_shows_itself_in_one_line() -> None:
    """Not the weights of the module."""
    _, handle = sparse_tables()
    assert repr(handle) == "SparseHandle(200 of 800 weights live: packed 'joint')"


def test_freezing_a_module_whose_own_tensors_are_packed() -> None:
    """The whole may be frozen, a part of its group not."""
    model = nn.Module()
    model.p, model.q = nn.Parameter(torch.ones(50, 8)), nn.Parameter(torch.ones(60, 8))
    model.inner = nn.Embedding(20, 8)
    handle = sparsify(model, 0.1, include=["*"], groups="joint")
    with pytest.raises(
        PackedWriteError, match=r"requires_grad_\(False\) for packed weight 'inner.weight' alone"
    ):
        model.inner.requires_grad_(False)
    model.requires_grad_(False)
    assert not handle.groups[0].weight.requires_grad
    model.requires_grad_(True)
    assert handle.groups[0].weight.requires_grad


def test_freezing_a_packed_module() -> None:
    """With a group of its own it freezes; sharing a group with others it is refused by name."""
    model, handle = sparse_tables(groups="per_tensor")
    model["user"].requires_grad_(False)
    assert [g.weight.requires_grad for g in handle.groups] == [False, True]
    model["user"].requires_grad_(True)
    assert handle.groups[0].weight.requires_grad
    joint, handle = sparse_tables()
    with pytest.raises(PackedWriteError, match=r"'user\.weight' alone, which shares group 'joint'"):
        joint["user"].requires_grad_(False)
    joint.requires_grad_(False)
    assert not handle.groups[0].weight.requires_grad


def test_a_topology_that_is_loaded_has_lived() -> None:
    """The exploration record follows a state dict from elsewhere."""
    _, other = sparse_tables(seed=5)
    model, handle = sparse_tables(seed=3, update_interval=1)
    loaded = other.groups[0].live_positions()
    model.load_state_dict({**model.state_dict(), **other.module.state_dict()})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle.attach(optimizer)
    loss(model).backward()
    optimizer.step()
    assert handle.explorer.progress[0].record.contains(loaded).all()


@pytest.mark.parametrize("storage", ["packed", "masked"])
@pytest.mark.parametrize("init", ["random", "magnitude"])
@pytest.mark.parametrize("nonzero, budget", [(40, 40), (25, 40), (110, 40), (180, 40)])
def test_a_model_that_is_sparse_already_keeps_its_weights(
    storage: str, init: str, nonzero: int, budget: int
) -> None:
    """As after a sparse pre-training: of the weights that have a value, the largest that there is room for."""
    model = nn.ModuleDict({"a": nn.Embedding(20, 8), "b": nn.Embedding(10, 8)})
    where = torch.randperm(240, generator=torch.Generator().manual_seed(3))[:nonzero]
    flat = torch.zeros(240)
    flat[where] = torch.linspace(0.5, 2.0, nonzero)
    with torch.no_grad():
        model["a"].weight.copy_(flat[:160].view(20, 8))
        model["b"].weight.copy_(flat[160:].view(10, 8))
    handle = sparsify(model, budget=budget, include=["*"], groups="joint", storage=storage, init=init)
    largest = where[max(0, nonzero - budget) :]  # the values ascend
    assert handle.live == budget and set(largest.tolist()) <= set(handle.groups[0].live_positions().tolist())
    assert handle.inherited == ["joint"]
    handle.unpack()
    flat[where[: max(0, nonzero - budget)]] = 0
    assert torch.equal(torch.cat([model["a"].weight, model["b"].weight]).flatten(), flat)


def test_a_table_of_zeros_is_an_ordinary_start() -> None:
    """It would be without a weight, and the other one full."""
    model = nn.ModuleDict({"a": nn.Embedding(100, 16), "b": nn.Embedding(300, 16)})
    nn.init.zeros_(model["b"].weight)
    handle = sparsify(model, 0.25, include=["*"], groups="joint")
    assert handle.inherited == [] and all(live > 300 for live in handle.groups[0].live_per_tensor())


def test_more_values_than_the_budget_are_an_ordinary_start() -> None:
    """A row of zeros, as of padding, makes no model sparse."""
    model = nn.ModuleDict({"a": nn.Embedding(20, 8, padding_idx=0)})
    same = nn.ModuleDict({"a": nn.Embedding(20, 8)})
    one, two = (sparsify(m, 0.5, include=["*"]).masks()["a.weight"] for m in (model, same))
    assert torch.equal(one, two)


def test_zeros_of_padding_alone_are_an_ordinary_start() -> None:
    """Though those are as many as the budget leaves out."""
    model = nn.ModuleDict({"a": nn.Embedding(20, 8, padding_idx=0)})
    handle = sparsify(model, 0.95, include=["*"])
    assert handle.budget == 19 * 8 and handle.inherited == []
    assert handle.masks()["a.weight"][0].any()
    sparse = nn.ModuleDict({"a": nn.Embedding(20, 8, padding_idx=0)})
    with torch.no_grad():
        sparse["a"].weight[5, 3] = 0
    handle = sparsify(sparse, 0.95, include=["*"])
    assert handle.inherited == ["a.weight"]


def test_a_group_that_is_full_needs_no_memory_for_scores() -> None:
    """Its share of dsl_growth_memory may be less than a row of scores takes."""
    model = nn.ModuleDict({"large": nn.Embedding(49, 300), "full": nn.Embedding(3, 32)})
    handle = sparsify(model, 0.6, include=["*"], split="er", growth_memory=13000, update_interval=2, end=8)
    assert [group.is_full for group in handle.groups] == [False, True]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle.attach(optimizer)
    for _ in range(8):
        optimizer.zero_grad()
        sum(table.weight.sin().sum() for table in model.values()).backward()
        optimizer.step()
    assert handle.explorer.updates == 4


def test_what_a_product_of_floats_lacks_is_no_weight_less() -> None:
    """0.29 · 100 is 28.999999999999996."""
    model = nn.Embedding(50, 4)
    events: list[UpdateEvent] = []
    handle = sparsify(
        model, budget=100, include=["*"], update_ratio=0.29, schedule="constant", update_interval=1, end=1,
        on_update=events.append,
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle.attach(optimizer)
    model.weight.sin().sum().backward()
    optimizer.step()
    assert [event.dropped for event in events] == [29]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_interactions_of_any_whole_numbers(dtype: torch.dtype) -> None:
    """torch takes uint8 for a mask."""
    users, items = torch.arange(40).repeat(3), torch.arange(120) % 60
    found = []
    for kind in (torch.int64, dtype):
        model = nn.ModuleDict({"user": nn.Embedding(40, 8), "item": nn.Embedding(60, 8)})
        torch.manual_seed(0)
        handle = sparsify(
            model, 0.3, include=["*"], init="nmf", init_values="topology", init_norm="auto",
            interactions=Interactions(users.to(kind), items.to(kind), 40, 60),
        )  # fmt: skip
        found.append([group.live_values().tolist() for group in handle.groups])
    assert found[0] == found[1]


def test_every_group_has_a_weight() -> None:
    """However small its share."""
    model = nn.ModuleDict({"small": nn.Embedding(2, 4), "large": nn.Embedding(500, 4)})
    handle = sparsify(model, budget=3, include=["*"], groups="per_tensor")
    assert [group.budget for group in handle.groups] == [1, 2]


def test_groups_draw_numbers_of_their_own() -> None:
    """Equal tables get neither the same positions nor the same sampled rows."""
    model = nn.ModuleDict({name: nn.Embedding(100, 8) for name in "ab"})
    handle = sparsify(model, 0.1, include=["*"], groups="per_tensor", growth_rows=0.2)
    one, other = (handle.explorer._sample(progress).rows[0] for progress in handle.explorer.progress)
    assert not torch.equal(one, other)
    first, second = (group.live_positions() for group in handle.groups)
    assert not torch.equal(first, second)


def test_what_grows_counts_as_explored_at_once() -> None:
    """Not from the next update on."""
    events: list[UpdateEvent] = []
    model, handle = sparse_tables(update_interval=1, on_update=events.append)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    handle.attach(optimizer)
    before = handle.groups[0].live_positions()
    loss(model).backward()
    optimizer.step()
    lived = set(before.tolist()) | set(handle.groups[0].live_positions().tolist())
    assert events[0].exploration_rate == len(lived) / 800 > 0.25


def test_a_state_of_other_groups_is_refused() -> None:
    """Joint tables cannot take up what two groups have left."""
    _, one = sparse_tables()
    _, other = sparse_tables(groups="per_tensor")
    with pytest.raises(CheckpointError, match="allowed are those of this run"):
        one.explorer.load_state_dict(other.explorer.state_dict())


@pytest.mark.parametrize("more, updates", [({}, 1), ({"growth_rows": 0.4, "update_ratio": 0.01}, 0)])
def test_momentum_of_two_processes_is_that_of_one(more: dict[str, float], updates: int) -> None:
    """After an update every process keeps its part of the decayed sum, as where scored rows lose no weight."""
    sums = []
    for processes in (1, 2):
        model, handle = sparse_tables(grow="momentum", update_interval=1, **more)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        handle.explorer.processes = processes
        handle.explorer.add_up = lambda scores, parts=processes: scores.mul_(parts)
        handle.attach(optimizer)
        (loss(model) / processes).backward()
        optimizer.step()
        assert handle.explorer.updates == updates
        sums.append(processes * handle.groups[0].growth_scores.sums)
    assert sums[0].any()
    torch.testing.assert_close(*sums)
