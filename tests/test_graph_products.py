"""Products with a model's sparse matrices: equal to torch's, taken over only where they may be."""

from __future__ import annotations

import copy
import gc
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recbole.model.general_recommender import LightGCN
from torch import Tensor, nn

from recbole_dsl import graph
from recbole_dsl.costs import MacCounter
from recbole_dsl.graph import GraphProducts, Matrix, compress, holds_sparse
from recbole_dsl.graph.layers import Layers, stackable
from recbole_dsl.kernels import csr
from tests.model_runs import difference_of_losses, settings_of, sparse_run, sparse_trainer_of
from tests.tiny_data import EMBEDDING

pytestmark = pytest.mark.usefixtures("in_folder")

KERNELS = ("torch", "numba")
BY_HAND = torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 3.0]])


class Holder(nn.Module):
    """A model that holds a matrix."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix = matrix


def coo(
    rows: list[int], columns: list[int], values: list[float], shape: tuple[int, int], **kwargs: Any
) -> Tensor:
    """An uncoalesced COO tensor."""
    return torch.sparse_coo_tensor(
        torch.tensor([rows, columns], dtype=torch.int64),
        torch.tensor(values),
        shape,
        check_invariants=True,
        **kwargs,
    )


def taken(products: GraphProducts, sparse: Tensor, dense: Tensor, times: int = 2) -> Tensor:
    """The product, which has to be ours; a matrix out of order is ours the second time."""
    result = None
    for _ in range(times):
        result = products.times(sparse, dense)
    assert result is not None
    return result


# the product -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernels", KERNELS)
def test_by_hand(kernels: str) -> None:
    """Two rows, the second with two entries."""
    dense = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]], requires_grad=True)
    product = taken(GraphProducts(kernels), BY_HAND.to_sparse(), dense, 1)
    assert product.tolist() == [[4.0, 40.0], [10.0, 100.0]]
    (product * torch.tensor([[1.0, 0.0], [0.0, 1.0]])).sum().backward()
    assert dense.grad is not None and dense.grad.tolist() == [[0.0, 1.0], [2.0, 0.0], [0.0, 3.0]]


@st.composite
def matrices(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """A sparse matrix with empty rows, repeated entries in any order, and the dense one it stands for."""
    rows, columns = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    entry = st.tuples(st.integers(0, rows - 1), st.integers(0, columns - 1), st.integers(-4, 4))
    entries = draw(st.lists(entry, max_size=40))
    if draw(st.booleans()) and rows == columns:
        entries += [(column, row, value) for row, column, value in entries]
    if draw(st.booleans()):
        entries.sort()
    r, c, v = (list(part) for part in zip(*entries, strict=True)) if entries else ([], [], [])
    sparse = coo(r, c, [float(x) for x in v], (rows, columns))
    form = draw(st.sampled_from(["as it is", "coalesced", "csr"]))
    if form == "csr":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return sparse.coalesce().to_sparse_csr(), sparse.to_dense()
    return sparse.coalesce() if form == "coalesced" else sparse, sparse.to_dense()


@given(matrices(), st.integers(1, 5), st.sampled_from(KERNELS), st.sampled_from([0.0, 0.4, 1.0]), st.randoms())
@settings(deadline=None, max_examples=150)
def test_equal_to_the_dense_product(
    pair: tuple[Tensor, Tensor], width: int, kernels: str, share: float, random: Any
) -> None:
    """Forward, backward and backward of that, whatever rows of the dense matrix are zero.

    In float64, since sums of large cubes that cancel say nothing in float32.
    """
    sparse, full = (matrix.double() for matrix in pair)
    draw = torch.Generator().manual_seed(random.randrange(2**31))
    dense = torch.randn(full.shape[1], width, generator=draw, dtype=torch.float64)
    dense *= (torch.rand(full.shape[1], 1, generator=draw) < share).double()
    weights = torch.randn(full.shape[0], width, generator=draw, dtype=torch.float64)
    results = []
    for product in (taken(GraphProducts(kernels), sparse, dense.requires_grad_()), full @ dense):
        grad = torch.autograd.grad((product**3 * weights).sum(), dense, create_graph=True)[0]
        again = torch.autograd.grad((grad * weights.sum()).sum(), dense)[0] if grad.requires_grad else grad
        results.append((product.detach(), grad.detach(), again.detach()))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("width", [1, 7, 64])
def test_kernels_agree_and_threads_change_nothing(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """numba and torch to rounding; one thread and three to the last bit."""
    monkeypatch.setattr(csr, "SMALL_PRODUCT", 0)
    monkeypatch.setattr("recbole_dsl.kernels.ITEMS_PER_THREAD", 1)
    draw = torch.Generator().manual_seed(1)
    sparse = torch.rand(300, 200, generator=draw).mul_((torch.rand(300, 200, generator=draw) < 0.1).float())
    dense = torch.randn(200, width, generator=draw)
    mostly_zero = dense * (torch.rand(200, 1, generator=draw) < 0.2).float()
    found = {}
    threads = torch.get_num_threads()
    try:
        for kernels, number in (("torch", 1), ("numba", 1), ("numba", 3)):
            torch.set_num_threads(number)
            products = GraphProducts(kernels)
            found[kernels, number] = [
                taken(products, sparse.to_sparse(), d.clone().requires_grad_()).detach()
                for d in (dense, mostly_zero)
            ]
    finally:
        torch.set_num_threads(threads)
    for one, three, plain in zip(*found.values(), strict=True):
        torch.testing.assert_close(one, three, rtol=1e-5, atol=1e-5)
        assert torch.equal(three, plain)


def test_infinity_times_zero_stays_none() -> None:
    """Zero rows are left out of products only where that changes nothing."""
    sparse = torch.tensor([[float("inf"), 1.0]]).to_sparse()
    assert taken(GraphProducts(), sparse, torch.zeros(2, 1, requires_grad=True)).isnan().all()


def test_columns_outside_are_refused() -> None:
    """Compiled loops would read someone else's memory."""
    wrong = torch.sparse_coo_tensor(torch.tensor([[0], [5]]), torch.ones(1), (2, 3), check_invariants=False)
    with pytest.raises(IndexError, match=r"column ids in \[5, 5\] in a sparse matrix of 3 columns"):
        compress(wrong, sort=True)


# transposes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_symmetric_matrix_is_its_own_transpose(kernels: str) -> None:
    """Found exactly: pattern and every bit of the values; uncoalesced as RecBole's is."""
    rows, columns, values = [0, 0, 1, 2, 2], [1, 2, 0, 0, 2], [2.0, 3.0, 2.0, 3.0, 4.0]
    symmetric = compress(coo(rows, columns, values, (3, 3)), sort=True)
    assert symmetric is not None
    assert symmetric.transpose(kernels) is symmetric and symmetric.symmetric
    values[0] += 1e-6
    pattern_only = compress(coo(rows, columns, values, (3, 3)), sort=True)
    assert pattern_only is not None
    once = pattern_only.transpose(kernels)
    assert once is not pattern_only and once is pattern_only.transpose(kernels) and not pattern_only.symmetric
    dense = csr.as_csr(*once.parts, once.width).to_dense()
    assert torch.equal(dense, coo(rows, columns, values, (3, 3)).to_dense().T)
    assert Matrix(*csr.transposed(*once.parts, 3, kernels), 3).shape == (3, 3)


def test_recboles_adjacency_is_symmetric(data: Path) -> None:
    """No transpose is stored for LightGCN, and its entries need no sorting."""
    trainer, _ = sparse_trainer_of("LightGCN", settings_of("LightGCN", data))
    matrix = compress(trainer.model.norm_adj_matrix, sort=False)
    assert matrix is not None and matrix.transpose("auto") is matrix


# what is remembered --------------------------------------------------------------------------------


def test_converted_once_and_forgotten_with_the_tensor() -> None:
    """The matrix dies with the tensor it was made from, though a graph of it was used."""
    dense = torch.ones(3, 2, requires_grad=True)
    # To compile a loop, numba takes frames that hold its arguments; so of another matrix.
    taken(GraphProducts(), BY_HAND.to_sparse(), dense).sum().backward()
    products = GraphProducts()
    sparse = BY_HAND.to_sparse()
    taken(products, sparse, dense).sum().backward()
    first = products.matrix(sparse)
    assert first is products.matrix(sparse) and first is not None
    watched = weakref.ref(first)
    del first, sparse
    gc.collect()
    assert watched() is None and len(products._known) == 0


@pytest.mark.parametrize(
    "write",
    [lambda t: t.mul_(2), lambda t: t._values().mul_(2), lambda t: t._values().fill_(2), lambda t: t.zero_()],
)
def test_writes_are_seen(write: Callable[[Tensor], Any]) -> None:
    """In place, into the matrix or its values; between forward and backward they are torch's error."""
    products, sparse, dense = GraphProducts(), BY_HAND.to_sparse(), torch.ones(3, 2, requires_grad=True)
    stale = taken(products, sparse, dense)
    write(sparse)
    assert torch.equal(taken(products, sparse, dense), sparse.to_dense() @ dense)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        stale.sum().backward()


def test_entries_out_of_order_are_sorted_at_the_second_product() -> None:
    """One product alone is not worth it (DMF makes a new matrix for every evaluation)."""
    products, dense = GraphProducts(), torch.ones(3, 2)
    sparse = coo([1, 0], [2, 1], [3.0, 2.0], (2, 3))
    assert products.times(sparse, dense) is None
    product = products.times(sparse, dense)
    assert product is not None and product.tolist() == [[2.0, 2.0], [3.0, 3.0]]


# what is taken over --------------------------------------------------------------------------------

PRODUCTS: dict[str, Callable[[Any, Any], Any]] = {
    "torch.sparse.mm": torch.sparse.mm,
    "torch.mm": torch.mm,
    "torch.matmul": torch.matmul,
    "torch.spmm": torch.spmm,
    "mm": lambda a, b: a.mm(b),
    "matmul": lambda a, b: a.matmul(b),
    "@": lambda a, b: a @ b,
}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The dense sides of all products that were ours."""
    found: list[Tensor] = []
    plain = Matrix.times

    def times(self: Matrix, dense: Tensor, kernels: str) -> Tensor:
        found.append(dense)
        return plain(self, dense, kernels)

    monkeypatch.setattr(Matrix, "times", times)
    return found


@pytest.mark.parametrize("name", PRODUCTS)
def test_every_way_to_write_a_product(name: str, calls: list[Tensor]) -> None:
    """And none of them outside of the mode, or after it."""
    sparse, dense = BY_HAND.to_sparse(), torch.rand(3, 2)
    with GraphProducts().active(Holder(sparse)):
        product = PRODUCTS[name](sparse, dense)
    torch.testing.assert_close(product, BY_HAND @ dense)
    assert len(calls) == 1
    PRODUCTS[name](sparse, dense)
    assert len(calls) == 1


LEFT: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "a matrix with a gradient": lambda: (BY_HAND.to_sparse().requires_grad_(), torch.rand(3, 2)),
    "values with a gradient": lambda: (
        torch.sparse_coo_tensor([[0], [1]], torch.ones(1, requires_grad=True), (2, 3)),
        torch.rand(3, 2),
    ),
    "dense": lambda: (BY_HAND, torch.rand(3, 2)),
    "two sparse matrices": lambda: (BY_HAND.to_sparse(), torch.rand(3, 2).to_sparse()),
    "a vector": lambda: (BY_HAND.to_sparse(), torch.rand(3)),
    "half precision": lambda: (BY_HAND.bfloat16().to_sparse(), torch.rand(3, 2).bfloat16()),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left_to_torch(name: str, calls: list[Tensor]) -> None:
    """With torch's result."""
    a, b = LEFT[name]()
    with GraphProducts().active(Holder(BY_HAND.to_sparse())):
        product = a @ b
    expected = a.detach().to_dense().float() @ b.to_dense().float()
    torch.testing.assert_close(product.to_dense().float(), expected, rtol=1e-2, atol=1e-2)
    assert not calls


def test_autocast_multiplies_in_the_matrix_s_own_precision(calls: list[Tensor]) -> None:
    """Forward and backward, at first sight; torch's product in half precision has no gradient on a CPU."""
    sparse = BY_HAND.to_sparse()
    dense = torch.rand(3, 2, dtype=torch.bfloat16, requires_grad=True)
    with GraphProducts().active(Holder(sparse)), torch.autocast("cpu", torch.bfloat16, enabled=True):
        product = torch.sparse.mm(sparse, dense)
        product.sum().backward()
    assert product.dtype == torch.float32 and calls
    torch.testing.assert_close(product, BY_HAND @ dense.float())
    torch.testing.assert_close(dense.grad, BY_HAND.sum(0)[:, None].expand(3, 2).bfloat16())


def test_macs_are_entries_times_columns() -> None:
    """Counted as RecBole's own product is."""
    sparse, counter = BY_HAND.to_sparse(), MacCounter([])
    with torch.no_grad(), GraphProducts().active(Holder(sparse)), counter:
        sparse @ torch.rand(3, 6)
    assert counter.macs == 3 * 6


@pytest.mark.parametrize("kernels", KERNELS)
def test_no_warning_reaches_the_user(kernels: str) -> None:
    """torch calls its CSR tensors a beta feature."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        taken(
            GraphProducts(kernels), BY_HAND.to_sparse(), torch.ones(3, 2, requires_grad=True)
        ).sum().backward()


# means over layers ---------------------------------------------------------------------------------

MEAN_LIKE: dict[str, Callable[[Tensor], Any]] = {
    "torch.mean": lambda t: torch.mean(t, dim=1),
    "mean": lambda t: t.mean(1, keepdim=False),
    "mean, counted from the end": lambda t: t.mean(dim=-2),
    "mean of everything": torch.mean,
    "mean of columns": lambda t: t.mean(dim=2),
    "mean that keeps the dimension": lambda t: t.mean(dim=1, keepdim=True),
    "sum": lambda t: torch.sum(t, dim=1),
    "arithmetic": lambda t: 2 * t + t[:, 0:1],
    "in a list": lambda t: torch.cat([t, t], dim=0),
    "in place": lambda t: t.mul_(2) + t,
    "mean of what was written": lambda t: [t.mul_(2), t.mean(dim=1)][1],
    "view": lambda t: t.view(t.shape[0], -1),
}


@pytest.mark.parametrize("name", MEAN_LIKE)
@pytest.mark.parametrize("count", [2, 3])
def test_layers_are_their_stack(name: str, count: int) -> None:
    """Whatever is asked of them, in value and gradient."""
    draw = torch.Generator().manual_seed(count)
    parts = [torch.randn(4, 3, generator=draw, requires_grad=True) for _ in range(count)]
    found = []
    for stack in (Layers.of(parts), torch.stack(parts, dim=1)):
        result = MEAN_LIKE[name](stack)
        assert type(result) is Tensor
        found.append([result.detach(), *torch.autograd.grad((result**2).sum(), parts)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_what_is_no_stack_of_layers() -> None:
    """One tensor, other shapes, types or numbers of dimensions, sparse ones, integers."""
    two = [torch.ones(2, 3), torch.ones(2, 3)]
    assert stackable(two) and stackable(tuple(two))
    others: list[Any] = [two[:1], [two[0], torch.ones(2, 2)], [two[0], two[1].double()], [torch.ones(2)] * 2,
                         [t.to_sparse() for t in two], [t.long() for t in two], two[0], [1.0, 2.0]]  # fmt: skip
    assert not any(stackable(other) for other in others)


def test_layers_past_torchs_functions_are_an_error() -> None:
    """A gradient must not be lost silently."""

    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            with torch._C.DisableTorchFunctionSubclass():
                return x * 2

    with pytest.raises(RuntimeError, match="dsl_graph=recbole"):
        Double.apply(Layers.of([torch.ones(2, 3), torch.ones(2, 3)]))


def test_a_layer_written_to_after_it_was_stacked_is_an_error() -> None:
    """A stack would have its old value."""
    parts = [torch.ones(2, 3), torch.ones(2, 3)]
    layers = Layers.of(parts)
    parts[0].mul_(2)
    for use in (lambda: layers.mean(dim=1), lambda: layers + 1):
        with pytest.raises(RuntimeError, match="written to after"):
            use()


def test_only_recboles_own_models_put_stacks_off() -> None:
    """Other code gets the tensor it asked for."""
    parts = [torch.ones(2, 3), torch.ones(2, 3)]
    with GraphProducts().active(Holder(BY_HAND.to_sparse())):
        assert type(torch.stack(parts, dim=1)) is Tensor
    with GraphProducts(layers_of="tests").active(Holder(BY_HAND.to_sparse())):
        assert type(torch.stack(parts, dim=1)) is Layers and type(torch.stack(parts, dim=0)) is Tensor


# models --------------------------------------------------------------------------------------------

QUICK = ("LightGCN", "NGCF", "SGL", "KGAT")
SLOW = ("NCL", "DGCF", "GCMC", "DMF", "SpectralCF", "KGIN", "MCCLK")
TAKES_NONE = ("DMF",)
"""Multiplies once for an evaluation, with a matrix out of order."""


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
@pytest.mark.parametrize("storage", ["packed", pytest.param("masked", marks=pytest.mark.slow)])
def test_losses_are_those_of_recboles_products(
    name: str, storage: str, data: Path, calls: list[Tensor]
) -> None:
    """All steps of two epochs, with evaluations between them."""
    chosen = {"density": 0.2, "method": "dsl", "storage": storage}
    run_settings = {**settings_of(name, data), "epochs": 2}
    theirs = sparse_run(name, run_settings, **chosen, graph="recbole")
    assert not calls
    ours = sparse_run(name, run_settings, **chosen)
    assert bool(calls) != (name in TAKES_NONE)
    assert difference_of_losses(ours.losses, theirs.losses) < 1e-5
    assert ours.valid == pytest.approx(theirs.valid, abs=0.02)


def test_training_repeats_itself(data: Path) -> None:
    """To the last bit."""
    one, two = (sparse_run("LightGCN", settings_of("LightGCN", data), density=0.2) for _ in range(2))
    assert one.losses == two.losses


class MyGraphModel(LightGCN):
    """A model of one's own: its matrix is made in its own way and multiplied in its own way."""

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.graphs = {"mine": self.norm_adj_matrix.coalesce()}
        del self.norm_adj_matrix

    def forward(self) -> Any:
        """One layer."""
        return torch.split(self.graphs["mine"] @ self.get_ego_embeddings(), [self.n_users, self.n_items])


def test_a_model_of_ones_own(data: Path, calls: list[Tensor]) -> None:
    """In training and in evaluation, also of a copy."""
    run = sparse_run(MyGraphModel, settings_of("LightGCN", data), density=0.2)
    assert {tuple(dense.shape)[1] for dense in calls} == {EMBEDDING}
    before = len(calls)
    run.trainer.model = copy.deepcopy(run.trainer.model)
    run.trainer.model.restore_user_e = None
    run.trainer.evaluate(run.data[2], load_best_model=False)
    assert len(calls) == before + 1


@pytest.mark.parametrize("name", ["BPR", "NeuMF"])
def test_models_without_sparse_matrices_pay_nothing(
    name: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mode is never entered for them."""

    def refuse(self: Any) -> None:
        raise AssertionError("entered")

    monkeypatch.setattr(graph._Interception, "__enter__", refuse)
    run = sparse_run(name, settings_of(name, data), density=0.2)
    assert not holds_sparse(run.trainer.model) and run.losses


@pytest.mark.parametrize(
    "attribute, found",
    [
        (BY_HAND.to_sparse(), True),
        ([BY_HAND.to_sparse()], True),
        ({"one": [BY_HAND, BY_HAND.to_sparse()]}, True),
        (scipy.sparse.eye(3), True),
        ([scipy.sparse.eye(3).tocsr()], True),
        (BY_HAND, False),
        ([[[BY_HAND.to_sparse()]]], False),
        ([0] * 1000 + [BY_HAND.to_sparse()], False),
        (None, False),
    ],
)
def test_where_sparse_matrices_are_looked_for(attribute: Any, found: bool) -> None:
    """Attributes of any submodule, lists and mappings of them, torch's and scipy's."""
    model = nn.Sequential(nn.Linear(2, 2), Holder(attribute))
    assert holds_sparse(model) == found


def test_no_global_generator_is_touched() -> None:
    """Conversions and products draw nothing."""
    before = torch.get_rng_state()
    taken(
        GraphProducts(), coo([1, 0], [2, 1], [3.0, 2.0], (2, 3)), torch.ones(3, 2, requires_grad=True)
    ).sum().backward()
    assert torch.equal(torch.get_rng_state(), before)
