"""Which tensors become sparse, why the others do not, and how they are grouped."""

from __future__ import annotations

from fnmatch import fnmatch

import pytest
import torch
from torch import Tensor, nn

from recbole_dsl import sparsify
from recbole_dsl.errors import TargetError
from recbole_dsl.packed.surgery import pack
from recbole_dsl.sparsity.targets import list_tensors, select_targets


@pytest.mark.parametrize("hook", ["register_hook", "register_post_accumulate_grad_hook"])
def test_a_hooked_parameter_is_not_packed(hook: str) -> None:
    """Its hook would never be called; under masks it is."""
    model = nn.Sequential(nn.Embedding(64, 16), nn.Linear(16, 64))
    called = []
    getattr(model[1].weight, hook)(lambda _: called.append(1))
    handle = sparsify(model, 0.2)
    assert [group.storage for group in handle.groups] == ["packed", "masked"]
    model(torch.arange(8)).sum().backward()
    assert called == [1]


@pytest.mark.parametrize("table_first", [True, False])
def test_a_table_that_is_a_linear_layers_matrix_as_well(table_first: bool) -> None:
    """As in language models."""
    table, layer = nn.Embedding(64, 32), nn.Linear(32, 64)
    layer.weight = table.weight
    handle = sparsify(nn.Sequential(*((table, layer) if table_first else (layer, table))), 0.2)
    assert handle.live == handle.budget == 410
    assert torch.equal(table.weight, layer.weight)


def test_what_is_no_matrix_of_a_linear_layer() -> None:
    """Empty tensors, and vectors that a class of one's own adds."""

    class Scaled(nn.Linear):
        def __init__(self) -> None:
            super().__init__(64, 2048)
            self.scale = nn.Parameter(torch.ones(2048))
            self.empty = nn.Parameter(torch.ones(0, 5))

    handle = sparsify(Scaled(), 0.2, init_values="fan_in")
    assert [part.name for group in handle.groups for part in group.slices] == ["weight"]
    reasons = {t.name: reason for t, reason in handle.selection.left}
    assert "raw parameter" in reasons["scale"] and reasons["empty"] == "it has no weights"


class Model(nn.Module):
    """A bit of everything; comments say what happens by default."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.user_embedding = nn.Embedding(64, 16)  # taken: 1024 weights
        self.small_embedding = nn.Embedding(63, 16)  # too small
        self.frozen = nn.Embedding(64, 16)
        self.frozen.weight.requires_grad_(False)
        self.renormed = nn.Embedding(64, 16, max_norm=1.0)
        self.mlp = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32))  # taken: 2048
        self.raw = nn.Parameter(torch.randn(64, 64))
        self.gru = nn.GRU(16, 32)
        self.conv = nn.Conv2d(8, 16, 3)
        self.attention = nn.MultiheadAttention(32, 2)
        self.steps = nn.Parameter(torch.arange(2000), requires_grad=False)


def taken(model: nn.Module, **options) -> list[str]:
    """Names of the tensors that become sparse."""
    return [t.name for t in select_targets(model, **options).taken]


def test_default_selection_and_reasons() -> None:
    """Large embedding tables and Linear matrices; every other tensor has its reason."""
    selection = select_targets(Model())
    assert [t.name for t in selection.taken] == [
        "user_embedding.weight",
        "mlp.0.weight",
        "attention.out_proj.weight",
    ]
    reasons = {t.name: reason for t, reason in selection.left}
    assert "fewer than dsl_min_weights=1024" in reasons["small_embedding.weight"]
    assert "frozen" in reasons["frozen.weight"]
    assert "frozen" in reasons["steps"]
    assert "max_norm" in reasons["renormed.weight"]
    assert "raw parameter" in reasons["raw"]
    assert "rnn parameter" in reasons["gru.weight_ih_l0"]
    assert "convolution parameter" in reasons["conv.weight"]
    assert "attention parameter" in reasons["attention.in_proj_weight"]
    for name in ("mlp.0.bias", "mlp.1.weight", "mlp.1.bias", "gru.bias_ih_l0", "conv.bias"):
        assert "biases and norms" in reasons[name]
    names = {n for n, _ in Model().named_parameters()}
    assert set(reasons) | {t.name for t in selection.taken} == names


def test_include_and_exclude() -> None:
    """Patterns name tensors; exclude is stronger; include overrides the smallest size."""
    model = Model()
    assert taken(model, include=["*_embedding.weight"]) == [
        "user_embedding.weight",
        "small_embedding.weight",
    ]
    assert taken(model, include=["*_embedding.weight"], exclude=["small*"]) == ["user_embedding.weight"]
    assert "user_embedding.weight" not in taken(model, exclude=["user_*"])
    assert taken(model, include=["raw"]) == ["raw"]
    assert taken(model, include=["mlp.?.*"]) == ["mlp.0.weight"], "biases and norms never"


def test_min_weights() -> None:
    """At the border: as many weights as the minimum are enough."""
    assert "small_embedding.weight" in taken(Model(), min_weights=1008)
    assert "small_embedding.weight" not in taken(Model(), min_weights=1009)


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_pattern_without_match_is_refused(option: str) -> None:
    """A misspelt name must not pass silently; the message names the nearest one."""
    with pytest.raises(TargetError, match=f"dsl_{option} pattern 'user_embeding.weight'") as error:
        select_targets(Model(), **{option: ["user_embeding.weight"]})
    assert "did you mean 'user_embedding.weight'?" in str(error.value)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.LayerNorm(2000), "biases and norms"),
        (nn.Linear(2, 2), "fewer than dsl_min_weights"),
        (nn.ReLU(), "no parameters"),
    ],
)
def test_nothing_to_sparsify_is_refused(model: nn.Module, reason: str) -> None:
    """The message gives the reasons."""
    with pytest.raises(TargetError, match=f"nothing to make sparse .*{reason}"):
        select_targets(model)


def test_excluding_all_is_refused() -> None:
    """Then there is nothing left."""
    with pytest.raises(TargetError, match="excluded by dsl_exclude"):
        select_targets(nn.Embedding(64, 16), exclude=["weight"])


def test_tied_tensors_are_one_with_several_names() -> None:
    """Either name selects it, and it counts once."""
    model = nn.ModuleDict({"table": nn.Embedding(64, 16), "out": nn.Linear(16, 64)})
    model["out"].weight = model["table"].weight
    for pattern in ("table.*", "out.weight"):
        (tensor,) = select_targets(model, include=[pattern]).taken
        assert tensor.name == "table.weight"
        assert tensor.names == ("table.weight", "out.weight")
        assert len(tensor.places) == 2
    handle = sparsify(model, 0.5, include=["out.weight"])
    assert list(handle.masks()) == ["table.weight"]


def test_complex_tensors_stay_dense() -> None:
    """FMLP-Rec has complex filters: not a real floating-point type."""
    model = nn.ParameterDict({"filter": nn.Parameter(torch.randn(64, 64, dtype=torch.cfloat))})
    with pytest.raises(TargetError, match="not a real floating-point type"):
        select_targets(model, include=["filter"])


# --- groups ---------------------------------------------------------------------------------------


def tables() -> nn.ModuleDict:
    """Three tables."""
    return nn.ModuleDict({name: nn.Embedding(20, 8) for name in ("user", "item", "tag")})


def groups_of(groups, **more) -> dict[str, list[str]]:
    """Group names and the names of their tensors."""
    handle = sparsify(tables(), 0.25, include=["*"], groups=groups, **more)
    return {g.name: list(g.masks()) for g in handle.groups}


def test_joint_and_per_tensor_groups() -> None:
    """One budget for all, or one for each."""
    assert groups_of("joint") == {"joint": ["user.weight", "item.weight", "tag.weight"]}
    assert groups_of("per_tensor") == {f"{n}.weight": [f"{n}.weight"] for n in ("user", "item", "tag")}


def test_named_groups() -> None:
    """A mapping of names to patterns; each group has its own budget."""
    groups = {"main": ["user.*", "item.*"], "rest": ["tag.weight"]}
    assert groups_of(groups) == {"main": ["user.weight", "item.weight"], "rest": ["tag.weight"]}
    handle = sparsify(tables(), 0.25, include=["*"], groups=groups)
    assert [g.budget for g in handle.groups] == [80, 40]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"main": ["user.*", "item.*"]}, "'tag.weight' is in none of them"),
        ({"a": ["*"], "b": ["tag.*"]}, r"'tag.weight' is in several \(a, b\)"),
        ({"a": ["*"], "b": ["nothing*"]}, r"patterns \['nothing\*'\] of group 'b' match no sparse"),
    ],
)
def test_wrong_groups_are_refused(groups: dict, message: str) -> None:
    """Every sparse tensor is in exactly one group, and every group has one; nothing is changed."""
    model = tables()
    before = [n for n, _ in model.named_parameters()]
    with pytest.raises(TargetError, match=message):
        sparsify(model, 0.25, include=["*"], groups=groups)
    assert [n for n, _ in model.named_parameters()] == before


def test_a_group_of_mixed_types_is_refused() -> None:
    """One dtype and device per group; nothing is changed."""
    model = tables()
    model["tag"].double()
    with pytest.raises(TargetError, match="mixes types or devices"):
        sparsify(model, 0.25, include=["*"], groups="joint")
    assert type(model["user"]) is nn.Embedding
    sparsify(model, 0.25, include=["*"], groups="per_tensor")


def test_group_names_that_are_taken_are_refused() -> None:
    """The group is a child module, so its name must be free."""
    model = Model()
    model.packed_joint = nn.ReLU()
    with pytest.raises(TargetError, match="'joint' would be 'packed_joint' in Model, which another has there"):
        sparsify(model, 0.25, groups="joint")
    assert type(model.user_embedding) is nn.Embedding


@pytest.mark.parametrize("storage", ["packed", "masked"])
def test_group_names_that_come_to_the_same_are_refused(storage: str) -> None:
    """Before any of them is stored, so nothing is changed."""
    model = nn.ParameterDict({"p": nn.Parameter(torch.ones(4, 4)), "q": nn.Parameter(torch.ones(4, 4))})
    groups = {"a.b": ["p"], "a_b": ["q"]}
    with pytest.raises(TargetError, match=f"'a_b' would be '{storage}_a_b' in ParameterDict"):
        sparsify(model, 0.25, include=["*"], groups=groups, storage=storage)
    assert [name for name, _ in model.named_parameters()] == ["p", "q"]


@pytest.mark.parametrize(
    "module, storage",
    [
        (lambda: nn.Embedding(300, 8, sparse=True), "packed"),
        (lambda: nn.EmbeddingBag(300, 8, sparse=True, mode="sum"), "packed"),
        (lambda: nn.Embedding(300, 8, max_norm=1.0), "masked"),
        (lambda: nn.EmbeddingBag(300, 8, max_norm=1.0, mode="sum"), "masked"),
        (lambda: nn.Embedding(300, 8, max_norm=1.0, sparse=True), "masked"),
        (lambda: nn.EmbeddingBag(300, 8, scale_grad_by_freq=True, mode="sum"), "packed"),
    ],
)
def test_unusual_embeddings_that_are_named_train(module, storage: str) -> None:
    """They stay dense unless they are named; then those whose forward pass changes weights are masked."""
    with pytest.raises(TargetError, match="sparse only if dsl_include names it"):
        sparsify(nn.Sequential(module()), 0.1)
    model = nn.Sequential(module())
    handle = sparsify(model, 0.1, include=["*"], update_interval=2)
    assert handle.groups[0].storage == storage
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle.attach(optimizer)
    before = handle.groups[0].live_values().clone()
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.arange(300)[:, None]).pow(2).sum().backward()
        optimizer.step()
    assert handle.live == 240 and handle.explorer.updates == 2
    assert not torch.equal(handle.groups[0].live_values(), before)


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_masked_tables_with_sparse_gradients_have_dense_ones(kind: type[nn.Module]) -> None:
    """As the packed ones: the same training."""

    def weights(storage: str) -> torch.Tensor:
        torch.manual_seed(0)
        model = nn.Sequential(kind(300, 8, sparse=True))
        handle = sparsify(model, 0.1, include=["*"], storage=storage, update_interval=2, seed=1)
        optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1)
        handle.attach(optimizer)
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.arange(300)[:, None]).pow(2).sum().backward()
            optimizer.step()
        return handle.groups[0].live_values()

    torch.testing.assert_close(weights("masked"), weights("packed"))


@pytest.mark.parametrize("name", ["a.weight", "b.weight"])
def test_a_module_that_is_registered_twice_has_both_names(name: str) -> None:
    """Either selects it, once, and it is one sparse table afterwards, and one dense one again."""
    model = nn.ModuleDict({"a": nn.Embedding(8, 4)})
    model["b"] = model["a"]
    before = model["a"].weight.detach().clone()
    handle = sparsify(model, 0.25, include=[name])
    assert handle.live == 8 and model["a"] is model["b"]
    assert int((model["b"].weight != 0).sum()) == 8
    kept = handle.masks()["a.weight"]
    handle.unpack()
    assert torch.equal(model["b"].weight, before * kept)


# --- masked only ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "pattern"),
    [
        (nn.GRU(8, 8), "weight_*"),
        (nn.GRUCell(8, 8), "weight_*"),
        (nn.Conv1d(8, 8, 3), "weight"),
        (nn.MultiheadAttention(8, 2), "in_proj_weight"),
        (nn.Embedding(8, 8, max_norm=1.0), "weight"),
    ],
)
def test_unpackable_modules_are_masked_and_only_if_included(module, pattern: str) -> None:
    """Never by default; if named, masked, and packing them is refused."""
    wrapped = nn.ModuleDict({"it": module, "other": nn.Linear(2, 2)})
    assert not {n for n in taken(wrapped, min_weights=1) if fnmatch(n, f"it.{pattern}")}
    tensors = select_targets(module, [pattern]).taken
    with pytest.raises(TargetError, match="cannot be packed"):
        pack(module, "g", tensors, torch.arange(3))
    handle = sparsify(module, 0.25, include=[pattern], groups="joint")
    assert [g.storage for g in handle.groups] == ["masked"]
    assert handle.live == handle.budget


def test_a_joint_group_splits_into_packed_and_masked() -> None:
    """What can be packed is, the rest becomes a group of its own with its own budget."""
    model = nn.ModuleDict({"table": nn.Embedding(16, 8), "gru": nn.GRU(8, 8)})
    handle = sparsify(model, 0.25, include=["*weight*"], groups="joint")
    assert [(g.name, g.storage, g.budget) for g in handle.groups] == [
        ("joint", "packed", 32),
        ("joint_masked", "masked", 96),
    ]


def test_a_masked_gru_trains_within_its_budget() -> None:
    """A few updates on a GRU: the loss falls, live weights are exactly the budget."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"gru": nn.GRU(4, 8, batch_first=True), "out": nn.Linear(8, 1)})
    handle = sparsify(model, 0.3, include=["gru.weight_*"], groups="joint", update_interval=5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    handle.attach(optimizer)
    inputs = torch.randn(16, 6, 4)
    target = inputs.sum((1, 2)).unsqueeze(1).tanh()
    first = handle.groups[0].live_positions()

    def loss() -> Tensor:
        return (model["out"](model["gru"](inputs)[0][:, -1]) - target).pow(2).mean()

    start = loss().item()
    for _ in range(40):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        live = sum(int(p.count_nonzero()) for n, p in model["gru"].named_parameters() if "bias" not in n)
        assert live <= handle.budget
    assert loss().item() < 0.5 * start
    assert handle.explorer.updates == 8
    assert not torch.equal(handle.groups[0].live_positions(), first)


def test_names_follow_the_order_of_named_parameters() -> None:
    """Budgets and topologies depend on the order, so it is that of torch."""
    model = Model()
    assert [t.name for t in list_tensors(model)] == [n for n, _ in model.named_parameters()]


def test_single_columns_stay_dense_unless_named() -> None:
    """Per row, their index takes as much as they do."""
    model = nn.ModuleDict({"table": nn.Embedding(2000, 8), "bias_term": nn.Embedding(2000, 1)})
    left = dict((t.name, reason) for t, reason in select_targets(model).left)
    assert taken(model) == ["table.weight"] and left["bias_term.weight"].startswith("a single column")
    assert taken(model, include=["*.weight"]) == ["table.weight", "bias_term.weight"]


def test_patterns_of_property_files_need_not_match() -> None:
    """They hold for many models; a user's do have to."""
    model = nn.ModuleDict({"table": nn.Embedding(200, 8), "position_embedding": nn.Embedding(200, 8)})
    absent = ["position_*", "nowhere.*"]
    assert taken(model, exclude=absent, lenient=["exclude"]) == ["table.weight"]
    assert taken(model, include=["table.*", "nowhere.*"], lenient=["include"]) == ["table.weight"]
    assert taken(model, include=["nowhere.*"], lenient=["include"]) == [
        "table.weight",
        "position_embedding.weight",
    ]
    for option in ("include", "exclude"):
        with pytest.raises(TargetError, match="nowhere"):
            select_targets(model, **{option: absent})
