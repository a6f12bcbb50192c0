"""In-place writes into a packed weight are refused by name; reading it stays ordinary."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_dsl import sparsify
from recbole_dsl.errors import PackedWriteError
from recbole_dsl.packed.readonly import ReadOnlyWeight

NAME = "table.weight"


class Model(nn.Module):
    """A table and a matrix."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(6, 4)
        self.linear = nn.Linear(4, 5)

    def loss(self) -> Tensor:
        return self.linear(self.table.weight).pow(2).sum() + self.table(torch.tensor([1, 1])).sum()


def packed_model() -> Model:
    """Half of both matrices live."""
    model = Model()
    sparsify(model, 0.5, include=["*.weight"], groups="joint")
    return model


def write_data(m: Model) -> None:
    m.table.weight.data = torch.ones(6, 4)


def write_data_add(m: Model) -> None:
    m.table.weight.data.add_(1)


def write_data_item(m: Model) -> None:
    m.table.weight.data[0] = 1


def write_data_copy(m: Model) -> None:
    m.table.weight.data.copy_(torch.ones(6, 4))


def write_data_slice(m: Model) -> None:
    m.table.weight.data[1:3].zero_()


def write_data_uniform(m: Model) -> None:
    m.table.weight.data.uniform_(-1, 1)


def write_data_relu_positional(m: Model) -> None:
    F.relu(m.table.weight.data, True)


def write_out(m: Model) -> None:
    torch.add(torch.ones(6, 4), 1, out=m.table.weight.detach())


def write_out_tuple(m: Model) -> None:
    out = (m.table.weight.detach()[:, 0], torch.empty(6, dtype=torch.int64))
    torch.max(torch.ones(6, 3), 1, out=out)


def write_normalize_out(m: Model) -> None:
    w = m.table.weight.detach()
    F.normalize(w, dim=1, out=w)


def write_init_normal(m: Model) -> None:
    nn.init.normal_(m.table.weight)


def write_init_xavier(m: Model) -> None:
    nn.init.xavier_normal_(m.table.weight)


def write_init_uniform(m: Model) -> None:
    nn.init.uniform_(m.table.weight, -1, 1)


def write_init_kaiming(m: Model) -> None:
    nn.init.kaiming_uniform_(m.table.weight)


def write_init_constant(m: Model) -> None:
    nn.init.constant_(m.table.weight, 1.0)


def write_init_trunc_normal(m: Model) -> None:
    nn.init.trunc_normal_(m.table.weight)


def write_init_orthogonal(m: Model) -> None:
    nn.init.orthogonal_(m.table.weight)


def write_detach_mul(m: Model) -> None:
    m.table.weight.detach().mul_(2)


def write_slice(m: Model) -> None:
    with torch.no_grad():
        m.table.weight[0].add_(1)


def write_slice_assignment(m: Model) -> None:
    with torch.no_grad():
        m.table.weight[0] = 1


def write_mask_assignment(m: Model) -> None:
    with torch.no_grad():
        m.table.weight[m.table.weight > 0] = 0


def write_transpose(m: Model) -> None:
    with torch.no_grad():
        m.table.weight.t().zero_()


def write_view_chain(m: Model) -> None:
    with torch.no_grad():
        m.table.weight.view(-1).unsqueeze(0).transpose(0, 1)[3].fill_(9)


def write_unbound_row(m: Model) -> None:
    with torch.no_grad():
        m.table.weight.unbind(0)[2].zero_()


def write_chunk(m: Model) -> None:
    with torch.no_grad():
        torch.chunk(m.table.weight, 2)[0].zero_()


def write_iteration(m: Model) -> None:
    with torch.no_grad():
        for row in m.table.weight:
            row.zero_()


def write_plus_equals(m: Model) -> None:
    with torch.no_grad():
        m.table.weight += 1


def write_local_times_equals(m: Model) -> None:
    w = m.table.weight
    with torch.no_grad():
        w *= 2


def write_no_grad_add(m: Model) -> None:
    with torch.no_grad():
        m.table.weight.add_(torch.ones(6, 4))


def write_copy(m: Model) -> None:
    with torch.no_grad():
        m.table.weight.copy_(torch.ones(6, 4))


def write_unbound_method(m: Model) -> None:
    with torch.no_grad():
        torch.Tensor.mul_(m.table.weight, 2)


def write_relu_inplace(m: Model) -> None:
    with torch.no_grad():
        F.relu(m.table.weight, inplace=True)


def write_relu_positional(m: Model) -> None:
    with torch.no_grad():
        F.relu(m.table.weight, True)


def write_dropout_positional(m: Model) -> None:
    F.dropout(m.table.weight.detach(), 0.9, True, True)


def write_module_inplace(m: Model) -> None:
    with torch.no_grad():
        nn.ReLU(inplace=True)(m.table.weight)


def write_foreach(m: Model) -> None:
    with torch.no_grad():
        torch._foreach_add_([torch.ones(6, 4), m.table.weight.detach()], 1.0)


def write_renorm(m: Model) -> None:
    with torch.no_grad():
        m.table.weight.renorm_(2, 0, 0.1)


def write_embedding_renorm(m: Model) -> None:
    F.embedding(torch.tensor([0, 1]), m.table.weight, max_norm=0.01)


def write_aten_overload(m: Model) -> None:
    torch.ops.aten.relu_.default(m.table.weight.detach())


def write_aten_overload_no_grad(m: Model) -> None:
    with torch.no_grad():
        torch.ops.aten.relu_.default(m.table.weight)


def write_index_put(m: Model) -> None:
    with torch.no_grad():
        m.table.weight.index_put_((torch.tensor([0]),), torch.ones(4))


def write_scatter(m: Model) -> None:
    m.table.weight.detach().scatter_(0, torch.zeros(1, 4, dtype=torch.int64), 1.0)


def write_assignment(m: Model) -> None:
    m.table.weight = nn.Parameter(torch.ones(6, 4))


def write_set(m: Model) -> None:
    m.table.weight.data.set_(torch.ones(6, 4))


def write_gradient(m: Model) -> None:
    """A gradient put where no optimizer looks for it."""
    m.table.weight.grad = torch.ones(6, 4)


def write_reset_parameters(m: Model) -> None:
    m.table.reset_parameters()


def write_apply(m: Model) -> None:
    """RecBole's way to initialise a model."""

    def initialise(module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            nn.init.xavier_uniform_(module.weight.data)

    m.apply(initialise)


def write_optimizer(m: Model) -> None:
    """An optimizer over the dense views would train copies."""
    optimizer = torch.optim.SGD([nn.Parameter(m.table.weight.data)], lr=0.1)
    optimizer.param_groups[0]["params"][0].grad = torch.ones(6, 4)
    optimizer.step()


WRITES = [f for name, f in sorted(globals().items()) if name.startswith("write_")]


@pytest.mark.parametrize("grad_first", [True, False])
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("write", WRITES, ids=lambda f: f.__name__[6:])
def test_writes_are_refused_and_leave_no_trace(
    write: Callable[[Model], None], mode: str, grad_first: bool
) -> None:
    """The error names the weight; values, later reads and later gradients are as if never tried."""
    model = packed_model().train(mode == "train")
    clean = copy.deepcopy(model)
    with torch.set_grad_enabled(grad_first):
        _ = model.table.weight  # so that there may be a dense copy that could be spoilt
    with pytest.raises(PackedWriteError, match=NAME):
        write(model)
    assert torch.equal(model.packed_joint.values, clean.packed_joint.values)
    for grad in (grad_first, not grad_first):
        with torch.set_grad_enabled(grad):
            assert torch.equal(model.table.weight, clean.table.weight)
            assert torch.equal(model.table(torch.arange(6)), clean.table(torch.arange(6)))
    losses = []
    for m in (model, clean):
        optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            losses.append(m.loss())
            losses[-1].backward()
            optimizer.step()
    assert losses[:2] == losses[2:]
    assert torch.equal(model.packed_joint.values, clean.packed_joint.values)


def test_there_is_a_case_per_idiom() -> None:
    """The list above is collected by name; an empty one would prove nothing."""
    assert len(WRITES) >= 40


def numpy_of_detached(m: Model) -> np.ndarray:
    return m.table.weight.detach().numpy()


def numpy_of_data(m: Model) -> np.ndarray:
    return m.table.weight.data.cpu().numpy()


def numpy_asarray(m: Model) -> np.ndarray:
    return np.asarray(m.table.weight.detach())


def numpy_of_slice(m: Model) -> np.ndarray:
    return m.table.weight.detach()[1:3].numpy()


def numpy_forced(m: Model) -> np.ndarray:
    return m.table.weight.numpy(force=True)


@pytest.mark.parametrize(
    "read", [numpy_of_detached, numpy_of_data, numpy_asarray, numpy_of_slice, numpy_forced]
)
def test_numpy_arrays_are_read_only_or_copies(read: Callable[[Model], np.ndarray]) -> None:
    """A write into the array is refused by numpy; the weight stays as it was."""
    model = packed_model()
    wanted = model.table.weight.detach().clone()
    array = read(model)
    assert array.sum() != 0
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 7
    assert torch.equal(model.table.weight, wanted)


IDS = torch.tensor([0, 5, 5])
READS = {
    "product": lambda w: w * 2,
    "clone_then_add": lambda w: w.clone().add_(1),
    "detach_clone_then_write": lambda w: w.detach().clone().zero_() + w.detach().sum(),
    "cat": lambda w: torch.cat([w, w]),
    "stack": lambda w: torch.stack([w, w]),
    "matmul": lambda w: w @ w.t(),
    "mm": lambda w: torch.mm(w.t(), w),
    "linear": lambda w: F.linear(torch.ones(2, 4), w),
    "normalize": lambda w: F.normalize(w, dim=1),
    "norm": lambda w: w.norm(),
    "norm_p": lambda w: torch.norm(w, p=1),
    "embedding": lambda w: F.embedding(IDS, w),
    "index": lambda w: w[IDS],
    "index_select": lambda w: w.index_select(0, IDS),
    "gather": lambda w: torch.gather(w, 1, torch.zeros(6, 1, dtype=torch.int64)),
    "split": lambda w: torch.cat(torch.split(w, [2, 4])),
    "max": lambda w: w.max(dim=1).values,
    "topk": lambda w: torch.topk(w, 2).values,
    "einsum": lambda w: torch.einsum("ij,kj->ik", w, w),
    "sparse_mm": lambda w: torch.sparse.mm(torch.eye(6).to_sparse(), w),
    "relu": lambda w: F.relu(w),
    "dropout_off": lambda w: F.dropout(w, 0.5, training=False) + 0,
    "comparison": lambda w: (w > 0).float(),
    "negative": lambda w: -w,
    "reversed_operator": lambda w: 1 - w,
    "sum_of_squares": lambda w: (w**2).sum(),
    "double": lambda w: w.double(),
    "written_as_operand": lambda w: torch.ones(6, 4).add_(w.detach()),
    "out_elsewhere": lambda w: torch.mul(w.detach(), 2, out=torch.empty(6, 4)),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS.keys())
def test_results_with_own_memory_are_plain_tensors(read: Callable[[Tensor], Tensor]) -> None:
    """Same values as from a dense weight, ordinary type, free to be written."""
    model = packed_model()
    dense = model.table.weight.detach().clone().as_subclass(Tensor)
    result = read(model.table.weight)
    assert type(result) is Tensor
    assert torch.equal(result, read(dense.requires_grad_()))
    result.detach().zero_()


def test_views_are_read_only_too() -> None:
    """Whatever shares the memory keeps the protection."""
    w = packed_model().table.weight
    for view in (w.data, w.detach(), w[0], w.t(), w.view(-1), w[:, 1:], w.expand(2, 6, 4), *w[:2]):
        assert type(view) is ReadOnlyWeight
    assert "ReadOnly" in repr(w)


def test_flags_of_the_view_may_be_set() -> None:
    """retain_grad and hooks change no memory."""
    model = packed_model()
    w = model.table.weight
    w.retain_grad()
    seen: list[Tensor] = []
    w.register_hook(lambda g: seen.append(g))
    (w * 3).sum().backward()
    assert torch.equal(w.grad, torch.full((6, 4), 3.0))
    assert torch.equal(seen[0], w.grad)


def test_gradient_of_the_view_can_be_asked_for() -> None:
    """torch.autograd.grad with respect to a weight that was read once."""
    model = packed_model()
    w = model.table.weight
    (gradient,) = torch.autograd.grad(w.pow(2).sum(), w)
    assert torch.equal(gradient, 2 * w)


@pytest.mark.parametrize("wanted", [True, False])
def test_freezing_is_the_module_s(wanted: bool) -> None:
    """A view would forget it, so only what changes nothing is taken."""
    model = packed_model()
    model.table.weight.requires_grad_(True)
    model.table.weight.requires_grad = True
    if not wanted:
        with pytest.raises(PackedWriteError, match=r"allowed is requires_grad_\(False\) of its module"):
            model.table.weight.requires_grad = False
    with torch.no_grad(), pytest.raises(PackedWriteError, match=f"requires_grad={wanted} for packed weight"):
        model.table.weight.requires_grad_(wanted)


def test_saved_and_copied_views() -> None:
    """A deep copy is a plain tensor of its own; a saved one loads without this package's class."""
    w = packed_model().table.weight.detach()
    other = copy.deepcopy(w)
    assert torch.equal(other, w)
    assert other.data_ptr() != w.data_ptr()
    file = io.BytesIO()
    torch.save({"user": w}, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=True)["user"], w)


def test_state_dict_values_are_ordinary() -> None:
    """The flat values themselves are an ordinary parameter and may be written."""
    model = packed_model()
    with torch.no_grad():
        model.packed_joint.values.zero_()
    assert not model.table.weight.any()
