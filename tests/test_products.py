"""Packed Linear: whichever product is chosen, outputs, gradients and growth scores are the dense ones."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from recbole_dsl import compiling, sparsify
from recbole_dsl.packed import linear as linear_module
from recbole_dsl.packed import sparse_input
from recbole_dsl.packed.linear import PackedLinear, sparse_is_faster
from recbole_dsl.packed.sparse_input import LinearOfNonzeros, mostly_zeros

needs_numba = pytest.mark.skipif(not compiling.numba_installed(), reason="needs numba")


@pytest.fixture
def any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled products for matrices of any size."""
    monkeypatch.setattr(linear_module, "TRANSPOSED", 0.0)
    monkeypatch.setattr(sparse_input, "SMALLEST_MATRIX", 1)
    monkeypatch.setattr(linear_module, "SMALLEST_BATCH", 1)


def pair(outputs: int, inputs: int, density: float, dtype: torch.dtype = torch.float32) -> Any:
    """A packed Linear, the same one dense, and the handle of the first."""
    torch.manual_seed(0)
    packed = nn.Sequential(nn.Linear(inputs, outputs, dtype=dtype))
    handle = sparsify(packed, density, include=["0.weight"], update_interval=5, end=100)
    dense = copy.deepcopy(packed)
    dense[0] = nn.Linear(inputs, outputs, dtype=dtype)
    with torch.no_grad():
        dense[0].weight.copy_(packed[0].weight)
        dense[0].bias.copy_(packed[0].bias)
    return packed, dense, handle


def same_pass(packed: nn.Module, dense: nn.Module, handle: Any, x: Tensor, asks: bool) -> None:
    """Outputs and all gradients of one forward and backward pass agree."""
    group, inputs = handle.groups[0], [x.clone().requires_grad_(asks) for _ in range(2)]
    weights = torch.linspace(-1, 1, dense[0].out_features, dtype=x.dtype)
    out = [m(i) for m, i in zip((packed, dense), inputs, strict=True)]
    for o in out:
        (o * weights).pow(2).sum().backward()
    torch.testing.assert_close(out[0], out[1])
    live = dense[0].weight.grad.reshape(-1)[group.flat_positions(0)]
    torch.testing.assert_close(group.weight.grad, live, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(packed[0].bias.grad, dense[0].bias.grad)
    if asks:
        torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-4, atol=1e-4)


def used(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the autograd functions that run from now on."""
    names: list[str] = []
    for function in (PackedLinear, LinearOfNonzeros):
        plain = function.apply
        monkeypatch.setattr(
            function,
            "apply",
            lambda *a, plain=plain, name=function.__name__: (names.append(name), plain(*a))[1],
        )
    return names


@needs_numba
@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize("collects", [False, True])
@pytest.mark.parametrize("asks", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("density", "batch"), [(0.05, 1), (0.05, 64), (0.12, 65), (0.1, 200)])
def test_sparse_product_is_the_dense_one(
    density: float, batch: int, dtype: torch.dtype, asks: bool, collects: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For batches below, at and above a block, with and without gradient of the input, in a window."""
    packed, dense, handle = pair(30, 70, density, dtype)
    names = used(monkeypatch)
    if collects:
        handle.attach(torch.optim.SGD(packed.parameters(), lr=0.1))
    same_pass(packed, dense, handle, torch.randn(batch, 70, dtype=dtype), asks)
    assert names == ["PackedLinear"]
    scores = handle.groups[0].growth_scores
    assert (scores is not None) is collects
    if collects:
        scores.commit()
        torch.testing.assert_close(scores.sums.view(30, 70), dense[0].weight.grad, rtol=1e-4, atol=1e-4)


@needs_numba
@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize("density", [0.05, 0.5, 1.0])
def test_zeros_of_the_input_are_left_out(density: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """At any density, and the dense gradient still reaches the growth scores."""
    packed, dense, handle = pair(30, 300, density)
    handle.attach(torch.optim.SGD(packed.parameters(), lr=0.1))
    names = used(monkeypatch)
    x = torch.zeros(130, 300)
    x[torch.arange(130), torch.arange(130) * 2] = torch.linspace(-1, 1, 130)
    same_pass(packed, dense, handle, x, False)
    assert names == ["LinearOfNonzeros"]
    if density < 1:
        scores = handle.groups[0].growth_scores
        scores.commit()
        torch.testing.assert_close(scores.sums.view(30, 300), dense[0].weight.grad, rtol=1e-4, atol=1e-4)


@needs_numba
@pytest.mark.usefixtures("any_size")
@settings(max_examples=30, deadline=None)
@given(
    outputs=st.integers(1, 9),
    inputs=st.integers(2, 300),
    batch=st.integers(1, 140),
    seed=st.integers(0, 99),
)
def test_any_shape(outputs: int, inputs: int, batch: int, seed: int) -> None:
    """Rows without live weights, single columns, column ids of one byte and of two."""
    if outputs * inputs * 0.1 < 1:
        return
    packed, dense, handle = pair(outputs, inputs, 0.1)
    x = torch.randn(batch, inputs, generator=torch.Generator().manual_seed(seed))
    same_pass(packed, dense, handle, x, True)


@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize(
    ("density", "kernels_", "expected"),
    [(0.3, "auto", []), (0.05, "torch", []), (0.05, "auto", ["PackedLinear"])],
)
def test_choice(density: float, kernels_: str, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Dense above the crossover and without compiled loops."""
    if expected and not compiling.numba_installed():
        pytest.skip("needs numba")
    packed, dense, handle = pair(30, 70, density)
    handle.groups[0].kernels = kernels_
    names = used(monkeypatch)
    same_pass(packed, dense, handle, torch.randn(100, 70), True)
    assert names == expected


@pytest.mark.parametrize(
    ("rows", "cols", "density", "product", "faster"),
    [
        (600, 3706, 0.1, "vectors", True),
        (600, 3706, 0.2, "vectors", False),
        (600, 3706, 0.05, "weights", True),
        (600, 3706, 0.1, "weights", False),
        (64, 128, 0.01, "vectors", False),  # transposing the batch costs more
    ],
)
def test_crossover(rows: int, cols: int, density: float, product: str, faster: bool) -> None:
    """Decided by size and density alone, so equal runs choose alike."""
    assert sparse_is_faster(rows, cols, int(density * rows * cols), product) is faster


def test_small_matrices_are_multiplied_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    packed, dense, handle = pair(30, 70, 0.05)
    names = used(monkeypatch)
    same_pass(packed, dense, handle, torch.randn(100, 70), True)
    assert not names


@needs_numba
@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize("shape", [(3, 40, 70), (70,), (0, 70)])
def test_batches_of_any_dimensions(shape: tuple[int, ...]) -> None:
    """Sequences, a single vector, no vector at all."""
    packed, dense, _ = pair(30, 70, 0.05)
    x = torch.randn(shape)
    torch.testing.assert_close(packed(x), dense(x))


@needs_numba
@pytest.mark.usefixtures("any_size")
def test_numbers_that_are_none_stay_visible() -> None:
    """Vector instructions may reorder sums, but not lose a NaN or an infinity."""
    packed, _, _ = pair(30, 70, 0.1)
    assert packed(torch.full((64, 70), torch.nan)).isnan().any()
    x = torch.zeros(64, 70)
    x[0, 0] = torch.inf
    assert not packed(x)[0].isfinite().all() or not int((packed[0].weight[:, 0] != 0).sum())


def test_share_of_zeros_is_counted_over_the_batch() -> None:
    """A batch larger than the sample is looked at from end to end."""
    x = torch.zeros(1000, 10)
    assert mostly_zeros(x)
    x[500:] = 1.0
    assert not mostly_zeros(x)


@needs_numba
@pytest.mark.usefixtures("any_size")
def test_autocast_multiplies_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    """The type of the product is autocast's."""
    packed, _, _ = pair(30, 70, 0.05)
    names = used(monkeypatch)
    with torch.autocast("cpu", torch.bfloat16):
        assert packed(torch.randn(64, 70)).dtype == torch.bfloat16
    assert not names


@needs_numba
@pytest.mark.usefixtures("any_size")
def test_threads_change_nothing() -> None:
    """The work is cut so that no two threads share a sum."""
    packed, _, handle = pair(300, 3000, 0.05)
    x = torch.randn(512, 3000, requires_grad=True)
    found = []
    before = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        x.grad = None
        packed.zero_grad()
        packed(x).pow(2).sum().backward()
        found.append((x.grad.clone(), handle.groups[0].weight.grad.clone()))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


# a whole table, as full ranking multiplies it ---------------------------------------------------------


class Ranker(nn.Module):
    """Scores all items for vectors of users."""

    def __init__(self, items: int, columns: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.items = nn.Embedding(items, columns, dtype=dtype)


def ranker(monkeypatch: pytest.MonkeyPatch, **kinds: Any) -> tuple[Ranker, Any, list[int]]:
    """A sparse table in evaluation mode, its group, and how many vectors went by live weights."""
    torch.manual_seed(0)
    model = Ranker(300, 256, **kinds)
    handle = sparsify(model, 0.05)
    taken: list[int] = []
    multiply = linear_module.multiply
    monkeypatch.setattr(
        linear_module,
        "multiply",
        lambda group, tensor, some: taken.append(len(some)) or multiply(group, tensor, some),
    )
    return model.eval(), handle.groups[0], taken


WAYS: dict[str, Any] = {
    "matmul": lambda some, weight: torch.matmul(some, weight.transpose(0, 1)),
    "mm": lambda some, weight: torch.mm(some, weight.t()),
    "operator": lambda some, weight: some @ weight.T,
    "method": lambda some, weight: some.matmul(weight.mT),
}


@needs_numba
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_users_times_a_wide_table_go_by_live_weights(
    way: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same scores, a plain tensor."""
    model, _, taken = ranker(monkeypatch, dtype=dtype)
    users = torch.randn(70, 512, dtype=dtype)[:, ::2]
    with torch.no_grad():
        scores = WAYS[way](users, model.items.weight)
        assert taken == [70] and type(scores) is Tensor
        expected = users @ model.items.weight.as_subclass(Tensor).t()
    torch.testing.assert_close(scores, expected)


@needs_numba
def test_scores_follow_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Written through ``.data`` as well; a copy that is kept says what the weights were when it was made."""
    model, group, taken = ranker(monkeypatch)
    users = torch.randn(70, 256)
    with torch.no_grad():
        kept = model.items.weight
        before = users @ kept.t()
        group.weight.data.mul_(2)
        after = users @ model.items.weight.t()
        assert taken == [70, 70]
        torch.testing.assert_close(after, 2 * before)
        torch.testing.assert_close(users @ kept.t(), before)
        assert taken == [70, 70]


@needs_numba
@pytest.mark.parametrize("layout", ["to_sparse", "to_sparse_csr"])
def test_a_linear_layer_takes_sparse_inputs(layout: str) -> None:
    """As torch's own does; compiled loops take strided ones only."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"layer": nn.Linear(256, 300, bias=False)})
    sparsify(model, 0.1, include=["*.weight"])
    inputs = torch.randn(70, 256).relu()
    with torch.no_grad():
        expected = inputs @ model["layer"].weight.as_subclass(Tensor).t()
        torch.testing.assert_close(model["layer"](getattr(inputs, layout)()), expected)


@needs_numba
def test_other_products_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a gradient, few vectors, parts of the table, other orders, half precision, few columns."""
    model, group, taken = ranker(monkeypatch)
    users, weight = torch.randn(70, 256), model.items.weight
    (users @ weight.t()).sum().backward()
    with torch.no_grad():
        weight = model.items.weight
        plain = weight.as_subclass(Tensor)
        for one, two, dense in (
            (users[:3], weight.t(), plain.t()),
            (users, weight[:299].t(), plain[:299].t()),
            (users, weight.t()[:, 1:], plain.t()[:, 1:]),
            (users[:, :255], weight[:, :255].t(), plain[:, :255].t()),
            (torch.randn(2, 70, 256), weight.t(), plain.t()),
            (torch.randn(70, 300), weight, plain),
        ):
            torch.testing.assert_close(one @ two, one @ dense)
        for sparse in (users.relu().to_sparse(), users.relu().to_sparse_csr()):
            torch.testing.assert_close(sparse @ weight.t(), users.relu() @ plain.t())
        out = torch.empty(70, 300)
        assert torch.mm(users, weight.t(), out=out) is out
        torch.testing.assert_close(out, users @ plain.t())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert (users @ weight.t()).dtype == torch.bfloat16
        group.kernels = "torch"
        torch.testing.assert_close(users @ model.items.weight.t(), users @ plain.t())
    assert taken == []
    narrow = Ranker(300, 16)
    sparsify(narrow, 0.2)
    with torch.no_grad():
        torch.randn(70, 16) @ narrow.eval().items.weight.t()
    assert taken == []
