"""Packed modules compute, differentiate, save and copy like dense ones with zeros."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from recbole_dsl import SparseHandle, sparsify
from recbole_dsl.errors import SecondOrderError, StaleGraphError
from recbole_dsl.packed.group import PackedGroup
from recbole_dsl.packed.surgery import pack, unpack
from recbole_dsl.sparsity.randomness import generator_for
from recbole_dsl.sparsity.scores import GrowthScores, PositionMap
from recbole_dsl.sparsity.targets import list_tensors
from recbole_dsl.sparsity.topology import random_subset


class Mixed(nn.Module):
    """One of everything that can be packed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.user = nn.Embedding(9, 6)
        self.item = nn.Embedding(7, 6, padding_idx=2)
        self.layers = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 6, bias=False))
        self.raw = nn.Parameter(torch.randn(4, 2, 3))
        self.several = nn.ParameterList([nn.Parameter(torch.randn(6)), nn.Parameter(torch.ones(2))])
        self.norm = nn.LayerNorm(6)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        hidden = self.layers(self.user(users)) * self.item(items) + self.raw.flatten()[:6]
        return self.norm(hidden + self.several[0]) * (1 + self.several[1].sum())


SPARSE = ["user.weight", "item.weight", "layers.*.weight", "raw", "several.*"]
USERS, ITEMS = torch.tensor([0, 3, 3, 8]), torch.tensor([2, 6, 1, 2])


def pack_some(model: nn.Module, share: float = 0.5, names: list[str] | None = None) -> PackedGroup:
    """Pack a random share of the packable tensors that ``names`` lists (None: all), jointly."""
    tensors = [t for t in list_tensors(model) if t.packable and (not names or t.name in names)]
    total = sum(t.parameter.numel() for t in tensors)
    live = random_subset(total, max(1, int(share * total)), generator_for(0, "test"))
    return pack(model, "joint", tensors, live)


def twins(make: Callable[[], nn.Module] = Mixed, **more) -> tuple[nn.Module, nn.Module]:
    """A packed model and its dense copy with zeros at the dead positions."""
    packed = make()
    dense = copy.deepcopy(packed)
    group = pack_some(packed, **more)
    parameters = dict(dense.named_parameters())
    with torch.no_grad():
        for name, mask in group.masks().items():
            parameters[name].mul_(mask)
    return packed, dense


def group_of(model: nn.Module) -> PackedGroup:
    """The one packed group of a model."""
    (group,) = [m for m in model.modules() if isinstance(m, PackedGroup)]
    return group


def assert_same_gradients(packed: nn.Module, dense: nn.Module) -> None:
    """Live gradients equal the dense ones at live positions; those of dense-left tensors agree."""
    group, wanted = group_of(packed), dict(dense.named_parameters())
    parts = [
        (torch.zeros_like(wanted[name]) if wanted[name].grad is None else wanted[name].grad)[mask]
        for name, mask in group.masks().items()
    ]
    found = group.weight.grad
    torch.testing.assert_close(torch.zeros_like(group.weight) if found is None else found, torch.cat(parts))
    for name, parameter in packed.named_parameters():
        if name in wanted:
            torch.testing.assert_close(parameter.grad, wanted[name].grad)


def compare(packed: nn.Module, dense: nn.Module, loss_of: Callable[[nn.Module], Tensor]) -> None:
    """Same loss, same gradients."""
    losses = [loss_of(model) for model in (packed, dense)]
    torch.testing.assert_close(losses[0], losses[1])
    for loss in losses:
        loss.backward()
    assert_same_gradients(packed, dense)


def square(model: nn.Module) -> Tensor:
    """A loss that uses every tensor of :class:`Mixed`."""
    return model(USERS, ITEMS).pow(3).sum()


# --- forward and backward -------------------------------------------------------------------------


def test_the_test_model_is_not_trivial() -> None:
    """Every packed tensor has a gradient, so comparing gradients proves something."""
    _, dense = twins()
    square(dense).backward()
    assert all(p.grad.abs().max() > 1e-3 for n, p in dense.named_parameters())


@pytest.mark.parametrize("share", [0.05, 0.5, 1.0])
def test_whole_model(share: float) -> None:
    """Embeddings, Linear layers in a Sequential, raw parameters and a ParameterList at once."""
    compare(*twins(share=share), square)


@pytest.mark.parametrize(
    "ids",
    [
        torch.tensor([1, 1, 1, 0]),
        torch.tensor(4),
        torch.tensor([[1, 2], [2, 5]]),
        torch.tensor([[[0], [6]]], dtype=torch.int32),
        torch.empty(0, dtype=torch.int64),
        torch.empty(2, 0, dtype=torch.int64),
        torch.arange(12).view(3, 4).t() % 7,
    ],
    ids=["repeated", "scalar", "matrix", "int32", "empty", "empty_matrix", "transposed"],
)
def test_embedding_lookups(ids: Tensor) -> None:
    """Any shape of ids, repeated or none, with a padding row among them."""

    def loss(model: nn.Module) -> Tensor:
        rows = model.item(ids)
        assert rows.shape == (*ids.shape, 6)
        return (rows * torch.linspace(-1, 1, 6)).sum() + rows.pow(2).sum()

    compare(*twins(), loss)


def test_padding_row_gets_no_gradient_by_lookup() -> None:
    """As in nn.Embedding the padding row's gradient is zero, though its weights are live."""
    packed, _ = twins(share=1.0, names=["item.weight"])
    packed.item(torch.tensor([2, 3])).sum().backward()
    gradient = group_of(packed).weight.grad.view(7, 6)
    assert not gradient[2].any()
    assert gradient[3].all()


@pytest.mark.parametrize("ids", [[9], [-1], [0, 100]])
@pytest.mark.parametrize("whole_first", [False, True])
def test_ids_out_of_range_are_refused(ids: list[int], whole_first: bool) -> None:
    """Never another row or another table, whichever way the rows are fetched."""
    packed, _ = twins()
    if whole_first:
        _ = packed.user.weight
    with pytest.raises(IndexError):
        packed.user(torch.tensor(ids))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.uint8])
def test_ids_of_a_wrong_type_are_refused(dtype: torch.dtype) -> None:
    """nn.Embedding takes int32 and int64 only; a float is no id."""
    packed, dense = twins()
    for model in (dense, packed):
        with pytest.raises((RuntimeError, TypeError), match="indices"):
            model.user(torch.ones(2, dtype=dtype))


@pytest.mark.parametrize("name", ["user.weight", "layers.0.weight", "layers.2.weight", "raw", "several.0"])
def test_whole_tensor_is_readable_and_differentiable(name: str) -> None:
    """``module.weight`` has the dense tensor's values, shape, type and gradient."""

    def read(model: nn.Module) -> Tensor:
        module, _, attribute = name.rpartition(".")
        return getattr(model.get_submodule(module), attribute)

    packed, dense = twins()
    whole = read(packed)
    assert whole.shape == read(dense).shape
    assert whole.dtype == read(dense).dtype
    assert whole.requires_grad
    assert torch.equal(whole, read(dense))
    compare(packed, dense, lambda m: (read(m) ** 3).sum())


def test_lookups_and_whole_tables_in_one_step() -> None:
    """Rows fetched before and after a whole table was materialised all reach the gradient."""

    def loss(model: nn.Module) -> Tensor:
        first = model.user(USERS).pow(2).sum()
        whole = (model.user.weight @ model.item.weight.T).sigmoid().sum()
        return first + whole + (model.user(USERS) * model.item(ITEMS)).sum()

    compare(*twins(), loss)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_transformer_layers(mode: str) -> None:
    """Their fused paths see that weights are no ordinary tensors and step aside."""

    def make() -> nn.Module:
        torch.manual_seed(0)
        return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).train(mode == "train")

    inputs = torch.randn(3, 4, 8)
    packed, dense = twins(make)
    with torch.no_grad():
        torch.testing.assert_close(packed(inputs), dense(inputs))
    compare(packed, dense, lambda m: m(inputs).pow(3).sum())


def test_functional_linear_and_bias_gradient() -> None:
    """A Linear layer with leading dimensions, its bias dense."""
    inputs = torch.randn(2, 3, 6)
    compare(*twins(), lambda m: m.layers[0](inputs).pow(2).sum())


def test_autocast() -> None:
    """Under autocast a packed Linear computes in bfloat16 like a dense one."""
    packed, dense = twins()
    inputs = torch.randn(3, 6)
    with torch.autocast("cpu", torch.bfloat16):
        found, wanted = packed.layers(inputs), dense.layers(inputs)
    assert found.dtype == wanted.dtype == torch.bfloat16
    assert torch.equal(found, wanted)


# --- several losses, several passes ---------------------------------------------------------------


def step_two_losses(model: nn.Module) -> None:
    """Two graphs, two backward passes."""
    one, two = square(model), model.user.weight.pow(2).sum() + model.user(USERS).sum()
    one.backward()
    two.backward()


def step_shared_graph(model: nn.Module) -> None:
    """Two losses on one lookup: the first backward pass keeps the graph."""
    rows, whole = model.user(USERS), model.item.weight
    (rows.pow(2).sum() + whole.sum()).backward(retain_graph=True)
    (rows.pow(3).sum() + whole.pow(2).sum()).backward()


def step_accumulated(model: nn.Module) -> None:
    """Forward, backward, forward, backward without zero_grad."""
    for _ in range(2):
        square(model).backward()


def step_grad_function(model: nn.Module) -> None:
    """torch.autograd.grad leaves no trace in the .grad of the next pass."""
    torch.autograd.grad(square(model), [p for p in model.parameters()], allow_unused=True)
    square(model).backward()


def step_no_grad_between(model: nn.Module) -> None:
    """A look at the weights under no_grad between two differentiable uses."""
    first = model.user(USERS).pow(2).sum()
    with torch.no_grad():
        _ = model.user.weight.norm(), model.user(USERS)
    second = model.user.weight.pow(2).sum() + model.user(USERS).pow(2).sum()
    (first + second).backward()


def step_unused_forward(model: nn.Module) -> None:
    """A forward pass whose graph is thrown away."""
    _ = square(model)
    square(model).backward()


def step_mode_switch(model: nn.Module) -> None:
    """train() and eval() between forward and backward."""
    loss = square(model) + model.user.weight.pow(2).sum()
    model.eval()
    loss = loss + square(model)
    model.train()
    loss.backward()


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(reentrant: bool) -> None:
    """A part recomputed during the backward pass adds to the gradient of the rest."""

    def loss(model: nn.Module) -> Tensor:
        def part(x: Tensor) -> Tensor:
            return model.layers(x) * model.user(USERS)

        start = model.user(USERS)
        end = checkpoint(part, start, use_reentrant=reentrant)
        return (end * model.user(USERS)).pow(2).sum() + model.raw.pow(2).sum()

    compare(*twins(), loss)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_table_read_outside_and_inside_of_a_checkpoint(reentrant: bool) -> None:
    """What is computed again has a dense copy of its own: a pass within a pass ends elsewhere."""

    def loss(model: nn.Module) -> Tensor:
        outside = model.user.weight.sin().sum()
        end = checkpoint(lambda x: x @ model.user.weight.t(), model.user(USERS), use_reentrant=reentrant)
        return (end.sum(1) * model.user(USERS).sum(1)).sum() + outside

    compare(*twins(), loss)


@pytest.mark.parametrize(
    "step",
    [
        step_two_losses,
        step_shared_graph,
        step_accumulated,
        step_grad_function,
        step_no_grad_between,
        step_unused_forward,
        step_mode_switch,
    ],
)
def test_steps_of_several_passes(step: Callable[[nn.Module], None]) -> None:
    """Whatever the order of forward and backward passes, the gradients are the dense ones."""
    packed, dense = twins()
    for model in (packed, dense):
        step(model)
    assert_same_gradients(packed, dense)


class _Breaks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        raise ValueError("broken on purpose")


def test_interrupted_backward_leaves_no_garbage() -> None:
    """A pass that fails half-way gives nothing to the gradient of the next step, nor of a retry."""
    packed, dense = twins()
    rows = packed.user(USERS)
    whole = packed.item.weight
    broken = _Breaks.apply(rows).sum() + (packed.user(USERS) * 100).sum() + whole.sum()
    with pytest.raises(ValueError, match="broken on purpose"):
        broken.backward(retain_graph=True)
    assert group_of(packed).weight.grad is None
    rows.sum().backward()
    dense.user(USERS).sum().backward()
    assert_same_gradients(packed, dense)
    packed.zero_grad()
    dense.zero_grad()
    compare(packed, dense, square)


# --- caches ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_reading_without_gradient_never_swallows_a_gradient(mode: str, context) -> None:
    """A dense copy made under no_grad is not used by the next differentiable step."""
    packed, dense = twins()
    for model in (packed, dense):
        model.train(mode == "train")
        with context():
            _ = model.user.weight.sum(), model(USERS, ITEMS)
    compare(packed, dense, lambda m: m.user.weight.pow(2).sum() + square(m))


def change_by_optimizer(model: nn.Module) -> None:
    """One SGD step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    square(model).backward()
    optimizer.step()
    optimizer.zero_grad()


def change_by_load(model: nn.Module) -> None:
    """Other values from a state dict."""
    model.load_state_dict({k: v + 1 if v.is_floating_point() else v for k, v in model.state_dict().items()})


def change_values(model: nn.Module) -> None:
    """A direct write into the live values."""
    with torch.no_grad():
        group_of(model).values.mul_(2)


def change_type(model: nn.Module) -> None:
    """Other dtype, and other values so that the change shows."""
    model.double()
    change_values(model)


def change_by_replacing(model: nn.Module) -> None:
    """As torch.nn.utils.vector_to_parameters does."""
    group_of(model).values.data = group_of(model).values.detach() * 2


def change_data(model: nn.Module) -> None:
    """As weight averaging does before an evaluation; the version counter does not move."""
    group_of(model).values.data.mul_(2)


CHANGES = [change_by_optimizer, change_by_load, change_values, change_type, change_by_replacing]


@pytest.mark.parametrize(
    ("mode", "change"),
    [*((mode, change) for mode in ("train", "eval") for change in CHANGES), ("eval", change_data)],
)
def test_dense_copies_follow_every_change(mode: str, change: Callable[[nn.Module], None]) -> None:
    """A cached table is never older than the values."""
    packed, _ = twins()
    packed.train(mode == "train")
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            before = packed.user.weight.detach().clone()
    change(packed)
    group = group_of(packed)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            now = packed.user.weight
            assert now.dtype == group.dtype
            assert not torch.equal(now.detach().float(), before)
            live = now.detach()[group.masks()["user.weight"]]
            number = [s.name for s in group.slices].index("user.weight")
            assert torch.equal(live, group.values.detach()[group.span(number)])
            torch.testing.assert_close(packed.user(torch.arange(9)), now)


def test_dense_copy_is_shared_within_a_step_and_gone_after_it() -> None:
    """Two reads of one step materialise once; after the backward pass nothing is kept."""
    packed, _ = twins()
    group = group_of(packed)
    first, second = packed.user.weight, packed.user.weight
    assert first.data_ptr() == second.data_ptr()
    (first.sum() + second.sum()).backward()
    assert group._dense == {}
    assert packed.user.weight.data_ptr() is not None
    compare(*twins(), lambda m: (m.user.weight * m.user.weight).sum())


def test_dense_copies_follow_a_topology_update() -> None:
    """Cached in evaluation mode before an update, the table shows the new topology after it."""
    model = Mixed()
    handle = sparsify(model, 0.3, include=["user.weight"], update_interval=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle.attach(optimizer)
    model.eval()
    mask = handle.masks()["user.weight"]
    model.user.weight.sin().sum().backward()
    _ = model.user.weight, model.user(USERS)
    optimizer.step()
    assert not torch.equal(handle.masks()["user.weight"], mask), "the update moved nothing"
    whole = model.user.weight
    assert torch.equal(whole != 0, handle.masks()["user.weight"] & (whole != 0))
    assert torch.equal(model.user(torch.arange(9)), whole)


def attached(kind: type[torch.optim.Optimizer], **options: Any) -> tuple[Mixed, SparseHandle, Any]:
    """A model with one packed table, whose optimizer has long to go to the first update."""
    model = Mixed()
    handle = sparsify(model, 0.3, include=["user.weight"], update_interval=100, end=1000)
    optimizer = kind(model.parameters(), **options)
    handle.attach(optimizer)
    return model, handle, optimizer


@pytest.mark.parametrize("fused", [False, True])
def test_a_table_read_before_the_step_is_not_that_of_after_it(fused: bool) -> None:
    """Fused optimizers move no counter of writes."""
    model, handle, optimizer = attached(torch.optim.Adam, lr=0.1, fused=fused)
    model.user.weight.sin().sum().backward()
    before = model.user.weight.detach().clone()
    optimizer.step()
    live = handle.masks()["user.weight"]
    assert ((model.user.weight - before).abs()[live] > 0.01).all()


@pytest.mark.parametrize("detached", [False, True])
def test_a_table_read_before_a_step_that_nobody_tells_of(detached: bool) -> None:
    """Without an explorer, or when it is gone, a fused optimizer's step is seen by nobody."""

    def weights(fused: bool) -> Tensor:
        model = Mixed()
        handle = sparsify(model, 0.3, include=["user.weight"], update_interval=100, end=1000)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
        if detached:
            handle.attach(optimizer)
            handle.explorer.detach()
        for _ in range(4):
            optimizer.zero_grad()
            model.user.weight.sin().sum().backward()
            model.user.weight.norm()  # for a log, say
            optimizer.step()
        return model.user.weight.detach().as_subclass(Tensor)

    torch.testing.assert_close(weights(fused=True), weights(fused=False), rtol=0, atol=1e-6)


def test_reads_between_gradients_and_a_step_that_nobody_tells_of_share_a_copy() -> None:
    """As while gradients accumulate: a graph does not hold a dense copy for every read."""
    model = Mixed()
    sparsify(model, 0.3, include=["user.weight"])
    model.user.weight.sin().sum().backward()
    assert model.user.weight.data_ptr() == model.user.weight.data_ptr()


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_of_weights_that_were_frozen_after_the_backward_pass(fused: bool) -> None:
    """It is made, since there is a gradient, and tables that were read before it are forgotten."""
    model, handle, optimizer = attached(torch.optim.SGD, lr=1.0, fused=fused)
    model.user.weight.sum().backward()
    model.user.requires_grad_(False)
    before = model.user.weight.clone()
    optimizer.step()
    live = handle.masks()["user.weight"]
    torch.testing.assert_close(model.user.weight[live], before[live] - 1)


def test_a_look_without_gradient_does_not_split_a_step() -> None:
    """One node and one buffer for all lookups, and the same dense copy after it."""
    packed, _ = twins()
    group = group_of(packed)
    packed.user(USERS)
    before, table = group.step_gradient, packed.user.weight
    with torch.no_grad():
        packed.user(USERS)
        packed.user.weight.norm()
    packed.user(USERS)
    assert group.step_gradient is before
    assert packed.user.weight.data_ptr() == table.data_ptr()

    def looks(model: nn.Module) -> Tensor:
        loss = model.user(USERS).sum()
        with torch.no_grad():
            model.user(USERS)
        return loss + model.user(USERS).square().sum() + model.user.weight.sin().sum()

    compare(*twins(), looks)


def test_backward_after_an_index_was_assigned_is_refused() -> None:
    """The new buffers are others, though torch counts as many writes of them."""
    one, other = Mixed(), Mixed()
    for seed, model in enumerate((one, other)):
        sparsify(model, 0.3, include=["user.weight"], seed=seed)
    late = one.user.weight.sum()
    one.load_state_dict(other.state_dict(), assign=True)
    with pytest.raises(StaleGraphError, match="after its topology was updated"):
        late.backward()


@pytest.mark.parametrize("read", [lambda m: m.user(USERS), lambda m: m.user.weight])
def test_backward_through_an_old_topology_is_refused(read) -> None:
    """Its gradient would go to other positions than it belongs to."""
    model = Mixed()
    handle = sparsify(model, 0.3, include=["user.weight"], update_interval=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle.attach(optimizer)
    late = read(model).sum()
    model.user.weight.sin().sum().backward()
    optimizer.step()
    with pytest.raises(StaleGraphError, match=r"'user.weight' after its topology was updated"):
        late.backward()
    read(model).sum().backward()
    assert handle.groups[0].weight.grad is not None


# --- names, saving, copying -----------------------------------------------------------------------


def test_state_dict_names() -> None:
    """Fixed: the group's weight, row pointers and column ids, at the innermost common module."""
    packed, _ = twins()
    assert set(packed.state_dict()) == {
        "packed_joint.weight",
        "packed_joint.row_pointers",
        "packed_joint.column_ids",
        "layers.0.bias",
        "norm.weight",
        "norm.bias",
    }
    one = nn.ModuleDict({"user": nn.Embedding(4, 3)})
    sparsify(one, 0.5, include=["*"])
    assert set(one.state_dict()) == {
        f"user.packed_user_weight.{part}" for part in ("weight", "row_pointers", "column_ids")
    }


def test_every_packed_parameter_name_ends_in_weight() -> None:
    """Seven RecBole models regularise the parameters whose name ends so."""
    packed, _ = twins()
    names = [n for n, p in packed.named_parameters() if p is group_of(packed).weight]
    assert len(names) == 1
    assert names[0].endswith("weight")


def test_state_dict_round_trip_through_a_file() -> None:
    """Saved, loaded with weights_only, put into a model with another topology: the same model."""
    packed, _ = twins()
    file = io.BytesIO()
    torch.save(packed.state_dict(), file)
    file.seek(0)
    other = Mixed()
    tensors = [t for t in list_tensors(other) if t.packable]
    budget = group_of(packed).budget
    pack(other, "joint", tensors, torch.arange(budget))
    _ = other.user.weight
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(USERS, ITEMS), packed(USERS, ITEMS))
    for name, mask in group_of(packed).masks().items():
        assert torch.equal(mask, group_of(other).masks()[name])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda s: s["packed_joint.row_pointers"].zero_(),
        lambda s: s["packed_joint.row_pointers"].copy_(s["packed_joint.row_pointers"].flip(0)),
        lambda s: s["packed_joint.column_ids"].fill_(255),
        lambda s: s["packed_joint.column_ids"].zero_(),
    ],
    ids=["no rows", "falling", "beyond the columns", "repeated"],
)
def test_a_state_dict_without_a_valid_index_is_refused(spoil) -> None:
    """Live weights in the wrong place, or none, never load silently; the model stays as it was."""
    model = Mixed()
    pack_some(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = {k: v.clone() for k, v in before.items()}
    spoil(state)
    with pytest.raises(RuntimeError, match="are no index of"):
        model.load_state_dict(state)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items() if "packed" in k)


def test_gradients_of_gradients_are_refused_by_name() -> None:
    """They would end at the packed values without a word; of looked-up rows they are right."""
    model = Mixed()
    group = pack_some(model)
    table = model.user
    rows = table(torch.tensor([1, 2]))
    (gradient,) = torch.autograd.grad(rows.pow(3).sum(), rows, create_graph=True)
    gradient.pow(2).sum().backward()
    assert group.weight.grad.any()
    with pytest.raises(SecondOrderError, match="'joint'"):
        torch.autograd.grad(table(torch.tensor([1])).pow(3).sum(), group.weight, create_graph=True)


def test_sparse_gradients_of_a_whole_table() -> None:
    """``F.embedding(ids, table.weight, sparse=True)`` hands back a sparse gradient."""
    model = Mixed()
    group, table = pack_some(model), model.user
    found = []
    for sparse in (True, False):
        model.zero_grad()
        nn.functional.embedding(torch.tensor([1, 2, 1]), table.weight, sparse=sparse).pow(2).sum().backward()
        found.append(group.weight.grad)
    assert found[0].any() and torch.equal(*found)


def test_state_dict_of_another_budget_is_refused() -> None:
    """A checkpoint of another size never loads halfway."""
    packed, _ = twins()
    other, _ = twins(share=0.3)
    with pytest.raises(RuntimeError, match="size mismatch"):
        other.load_state_dict(packed.state_dict())


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda s: s.update(other_budget()),
        lambda s: s.pop("packed_joint.column_ids"),
        lambda s: s.pop("packed_joint.row_pointers"),
        lambda s: s.pop("packed_joint.weight"),
    ],
    ids=["other budget", "no columns", "no rows", "no values"],
)
def test_half_of_a_state_is_not_loaded(spoil, strict: bool) -> None:
    """Whoever goes on after the error has the model that he had, whose index is that of its values."""
    model = Mixed()
    group = pack_some(model)
    before = {k: v.clone() for k, v in group.state_dict().items()}
    state = {k: v.clone() for k, v in model.state_dict().items()}
    state["packed_joint.weight"] += 1
    spoil(state)
    with pytest.raises(RuntimeError, match=r"size mismatch for packed_joint\."):
        model.load_state_dict(state, strict=strict)
    assert all(torch.equal(group.state_dict()[k], v) for k, v in before.items())
    model(USERS, ITEMS)


def other_budget() -> dict[str, Tensor]:
    """The sparse part of a state with fewer live weights."""
    model = Mixed()
    pack_some(model, share=0.3)
    return {k: v for k, v in model.state_dict().items() if "packed" in k}


def through_pickle(model: nn.Module) -> nn.Module:
    """Pickle and back."""
    return pickle.loads(pickle.dumps(model))


def through_torch_save(model: nn.Module) -> nn.Module:
    """torch.save of the whole module and back."""
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, through_pickle, through_torch_save])
def test_copies_are_equal_and_independent(duplicate: Callable[[nn.Module], nn.Module]) -> None:
    """Even in the middle of a step, with cached tables; training the copy leaves the original."""
    packed, _ = twins()
    _ = packed.user.weight, packed(USERS, ITEMS)
    other = duplicate(packed)
    wanted = packed(USERS, ITEMS).detach().clone()
    assert torch.equal(other(USERS, ITEMS), wanted)
    assert group_of(other) is not group_of(packed)
    change_by_optimizer(other)
    assert not torch.equal(other(USERS, ITEMS), wanted)
    assert torch.equal(packed(USERS, ITEMS), wanted)
    assert type(other.user).__name__ == "Embedding"


def test_classes_look_the_same() -> None:
    """``type(m).__name__`` and ``isinstance`` are those of the dense module."""
    packed, dense = twins()
    for name, module in dense.named_modules():
        mine = packed.get_submodule(name)
        assert type(mine).__name__ == type(module).__name__
        assert type(mine).__qualname__ == type(module).__qualname__
        assert isinstance(mine, type(module))
    assert "packed in 'joint'" in repr(packed.user)


def test_apply_to_all_modules_and_zero_grad() -> None:
    """What trainers do with a model works: apply, zero_grad, named_modules, half precision."""
    packed, _ = twins()
    seen: list[str] = []
    packed.apply(lambda m: seen.append(type(m).__name__))
    assert "Embedding" in seen
    square(packed).backward()
    packed.zero_grad()
    assert all(p.grad is None for p in packed.parameters())
    packed.bfloat16()
    assert packed.user(USERS).dtype == torch.bfloat16


def test_sequential_at_the_root() -> None:
    """A group is no layer: a Sequential that is the model itself still runs only its own layers."""

    def make() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Sequential(nn.Linear(5, 3)))

    packed, dense = twins(make)
    assert len(packed) == 3
    compare(packed, dense, lambda m: m(torch.linspace(-1, 1, 12).view(2, 6)).pow(2).sum())
    unpack(packed, [group_of(packed)])
    assert list(packed.state_dict()) == list(dense.state_dict())


def test_module_list_at_the_root() -> None:
    """The same for lists that are looped over."""

    def make() -> nn.ModuleList:
        torch.manual_seed(0)
        return nn.ModuleList([nn.Linear(4, 4, bias=False) for _ in range(3)])

    def loss(model: nn.ModuleList) -> Tensor:
        x = torch.linspace(-1, 1, 8).view(2, 4)
        for layer in model:
            x = layer(x)
        return x.pow(2).sum()

    packed, dense = twins(make)
    assert len(packed) == 3
    compare(packed, dense, loss)


# --- unpacking ------------------------------------------------------------------------------------


def test_unpack_restores_the_dense_model() -> None:
    """Same classes, parameter order and values, and nothing of ours is left."""
    packed, dense = twins()
    unpack(packed, [group_of(packed)])
    assert [n for n, _ in packed.named_parameters()] == [n for n, _ in dense.named_parameters()]
    assert [n for n, _ in packed.named_modules()] == [n for n, _ in dense.named_modules()]
    for name, module in dense.named_modules():
        assert type(packed.get_submodule(name)) is type(module)
        assert packed.get_submodule(name).__dict__.keys() == module.__dict__.keys()
    for found, wanted in zip(packed.parameters(), dense.parameters(), strict=True):
        assert type(found) is nn.Parameter
        assert torch.equal(found, wanted)
    loss = square(packed)
    loss.backward()
    assert packed.user.weight.grad is not None


def test_unpack_in_the_middle_of_evaluation() -> None:
    """Cached tables are not shared with the restored parameters' gradient."""
    packed, dense = twins()
    packed.eval()
    with torch.no_grad():
        _ = packed.user.weight
    unpack(packed, [group_of(packed)])
    assert packed.user.weight.is_leaf and packed.user.weight.requires_grad
    assert torch.equal(packed.user.weight, dense.user.weight)


def test_tied_weights_stay_tied_packed_and_unpacked() -> None:
    """Both places read the same live weights; after unpacking they hold one parameter."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.table, self.out = nn.Embedding(7, 4), nn.Linear(4, 7)
            self.out.weight = self.table.weight

    packed, dense = twins(Tied)
    assert len(list(packed.parameters())) == len(list(dense.parameters())) == 2
    compare(packed, dense, lambda m: m.out(m.table(ITEMS)).pow(2).sum())
    unpack(packed, [group_of(packed)])
    assert packed.table.weight is packed.out.weight


def test_two_groups_in_one_module() -> None:
    """A module may have tensors in different groups, and they unpack in any order."""
    model = nn.Bilinear(3, 4, 5)
    model.extra = nn.Parameter(torch.randn(6, 6))
    dense = copy.deepcopy(model)
    first = pack(model, "one", [t for t in list_tensors(model) if t.name == "weight"], torch.arange(60))
    second = pack(model, "two", [t for t in list_tensors(model) if t.name == "extra"], torch.arange(36))
    one, two = torch.randn(2, 3), torch.randn(2, 4)
    assert torch.equal(model(one, two), dense(one, two))
    unpack(model, [first])
    assert type(model).__name__ == "Bilinear" and type(model) is not nn.Bilinear
    unpack(model, [second])
    assert type(model) is nn.Bilinear
    assert list(model.state_dict()) == list(dense.state_dict())
    for name, value in dense.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


# --- compile and DDP ------------------------------------------------------------------------------


def test_torch_compile_runs_or_falls_back() -> None:
    """The graph breaks at packed reads; results and gradients are those of eager mode."""
    packed, dense = twins()
    torch._dynamo.reset()
    compiled = torch.compile(packed, backend="eager")
    found = compiled(USERS, ITEMS)
    torch.testing.assert_close(found, dense(USERS, ITEMS))
    found.pow(3).sum().backward()
    square(dense).backward()
    assert_same_gradients(packed, dense)


def test_index_stays_out_of_the_broadcast() -> None:
    """DDP ignores the index buffers while packed, and nothing else; unpacking forgets the list."""
    packed, _ = twins()
    assert packed._ddp_params_and_buffers_to_ignore == [
        "packed_joint.row_pointers",
        "packed_joint.column_ids",
    ]
    unpack(packed, [group_of(packed)])
    assert not hasattr(packed, "_ddp_params_and_buffers_to_ignore")


# --- the index ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "dtype"),
    [
        (1, torch.uint8),
        (256, torch.uint8),
        (257, torch.int16),
        (2**15, torch.int16),
        (2**15 + 1, torch.int32),
    ],
)
def test_index_types(columns: int, dtype: torch.dtype) -> None:
    """Column ids take the smallest type that fits, and the last column is still read right."""
    model = nn.Embedding(2, columns)
    wanted = model.weight.detach().clone()
    last = torch.tensor([columns - 1, 2 * columns - 1])
    group = pack(model, "g", list_tensors(model), last)
    assert group.column_ids.dtype == dtype
    assert group.row_pointers.dtype == torch.int32
    found = model(torch.tensor([1, 0])).detach()
    assert torch.equal(found[:, -1], wanted[[1, 0], -1])
    assert int(found.count_nonzero()) == 2 if columns > 1 else True


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=3), min_size=1, max_size=4),
    data=st.data(),
)
def test_pack_and_unpack_are_inverse(shapes: list[list[int]], data) -> None:
    """Any shapes, any live positions: unpacking gives the live values at their places, else 0."""
    model = nn.ParameterList([nn.Parameter(torch.randn(s)) for s in shapes])
    holder = nn.ModuleDict({"a": model})
    flat = torch.cat([p.detach().reshape(-1) for p in model])
    live = sorted(data.draw(st.sets(st.integers(0, flat.numel() - 1), min_size=1)))
    wanted = torch.zeros_like(flat)
    wanted[live] = flat[live]
    group = pack(holder, "g", list_tensors(holder), torch.tensor(live))
    assert group.live_positions().tolist() == live
    assert torch.equal(torch.cat([w.detach().reshape(-1) for w in model]), wanted)
    ends = [*[s.first_position for s in group.slices][1:], flat.numel()]
    counts = [sum(e0 <= p < e1 for p in live) for e0, e1 in zip([0, *ends], ends, strict=False)]
    assert group.live_per_tensor() == counts
    unpack(holder, [group])
    assert [list(p.shape) for p in model] == shapes
    assert torch.equal(torch.cat([p.detach().reshape(-1) for p in model]), wanted)


@pytest.mark.parametrize(
    "read",
    [lambda m: m.user(USERS), lambda m: m.layers(torch.ones(3, 6)), lambda m: m.user.weight * m.raw.sum()],
)
@pytest.mark.parametrize("steps", [0, 2])
def test_a_group_that_was_frozen_gets_gradients_again(read, steps: int) -> None:
    """What was read while it was frozen knows of no gradient, and is not used afterwards."""
    model = Mixed()
    group = pack_some(model)
    group.weight.requires_grad_(False)
    for _ in range(steps):
        read(model)
    group.weight.requires_grad_(True)
    read(model).sum().backward()
    assert group.weight.grad is not None and group.weight.grad.any()


def matrix_1024() -> tuple[nn.Linear, PackedGroup]:
    """A Linear whose products go through its live weights."""
    torch.manual_seed(0)
    layer = nn.Linear(1024, 1024, bias=False)
    return layer, pack_some(layer, share=0.01)


def test_a_gradient_after_the_weights_have_changed_is_of_those_the_product_had() -> None:
    """As in torch it is refused where it would be of others; a dense product made a copy of its own."""
    layer, group = matrix_1024()
    inputs = torch.randn(32, 1024, requires_grad=True)
    before = layer.weight.detach().clone()
    out = layer(inputs)
    with torch.no_grad():
        group.weight.mul_(2)
    if group.compiled(inputs):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.sum().backward()
    else:
        out.sum().backward()
        assert inputs.grad is not None
        torch.testing.assert_close(inputs.grad, before.sum(0).expand(32, -1))


def test_a_parametrised_packed_module() -> None:
    """Its class is derived from once more; attributes go where they did."""
    layer = torch.nn.Sequential(torch.nn.Linear(64, 64))
    handle = sparsify(layer, 0.2)
    expected = layer(torch.ones(2, 64)) + layer[0].bias
    torch.nn.utils.parametrize.register_parametrization(layer[0], "bias", _Doubled())
    layer[0].note = "set"
    assert torch.allclose(layer(torch.ones(2, 64)), expected) and "packed" in repr(layer[0])
    assert handle.live == handle.budget


class _Doubled(torch.nn.Module):
    def forward(self, bias: Tensor) -> Tensor:
        return 2 * bias


@pytest.mark.parametrize("zeros", [False, True])
def test_a_gradient_of_the_inputs_alone_is_no_growth_score(zeros: bool) -> None:
    """``torch.autograd.grad`` with respect to inputs trains no weights; the pass that does, counts once."""
    layer, group = matrix_1024()
    handle_scores = GrowthScores(PositionMap(group.table_shapes), torch.float32, torch.device("cpu"))
    group.growth_scores, group.collects = handle_scores, True
    inputs = torch.randn(32, 1024)
    if zeros:
        inputs[:, 3:] = 0
    else:
        inputs.requires_grad_()
    out = layer(inputs)
    if inputs.requires_grad:
        torch.autograd.grad(out.square().sum(), inputs, retain_graph=True)
    out.square().sum().backward()
    handle_scores.commit()
    dense = group.masks()["weight"] * layer.weight.detach()
    expected = 2 * (inputs.detach() @ dense.t()).t() @ inputs.detach()
    torch.testing.assert_close(handle_scores.sums.view(1024, 1024), expected, rtol=1e-4, atol=1e-4)


def test_ids_with_strides_are_read_as_others() -> None:
    """A column of a batch: rows and gradients are those of its copy, bit for bit, by the same loops."""
    packed, _ = twins()
    batch = torch.tensor([[0, 5], [3, 1], [3, 2]])
    group, found = group_of(packed), []
    for ids in (batch[:, 0], batch[:, 0].clone()):
        group.weight.grad = None
        rows = packed.user(ids)
        rows.sin().sum().backward()
        found.append((rows.detach(), group.weight.grad.clone()))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_masked_layer_that_was_frozen_for_a_step_trains_masked_again() -> None:
    """Its gradient hook survives the freeze, so dead positions get no gradient in the step after it."""
    layer = nn.Linear(40, 40)
    handle = sparsify(layer, 0.2, include=["weight"], storage="masked")
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    handle.attach(optimizer)
    layer.weight.requires_grad_(False)
    layer(torch.ones(1, 40)).sum().backward()
    optimizer.step()
    layer.weight.requires_grad_(True)
    layer(torch.ones(1, 40)).sum().backward()
    assert layer.weight.grad is not None
    assert not layer.weight.grad[~handle.masks()["weight"]].any() and layer.weight.grad.any()
