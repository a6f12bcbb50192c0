"""dsl_learning_rate_power: sparse Linear matrices learn at a rate of their own."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from recbole_dsl import SparseHandle, sparsify
from recbole_dsl.errors import DSLError
from recbole_dsl.sparsity.learning_rate import rate_scale, scale_learning_rate
from tests.model_runs import sparse_trainer_of
from tests.test_resume import at_step, check_resume, settings

pytestmark = pytest.mark.usefixtures("in_folder")


def tower(density: float = 0.25, **options: object) -> tuple[nn.ModuleDict, SparseHandle]:
    """A table, a matrix of 8 by 16 and its dense bias."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"table": nn.Embedding(10, 16), "layer": nn.Linear(16, 8)})
    options = {"include": ["*.weight"], "groups": "per_tensor", "learning_rate_power": 0.5, **options}
    return model, sparsify(model, density, **options)


def rates(optimizer: torch.optim.Optimizer) -> dict[int, float]:
    """The learning rate of every parameter by its id."""
    return {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}


def density_of(group: Any) -> float:
    """Live weights of a sparse group over all of its tensors."""
    return group.budget / sum(rows * columns for rows, columns in group.table_shapes)


def test_scale_by_hand() -> None:
    """A quarter of the weights: twice the rate at power 1/2, four times at 1; none but Linear matrices."""
    assert rate_scale(["linear"], 0.25, 0.5) == 2.0
    assert rate_scale(["linear", "linear"], 0.25, 1.0) == 4.0
    assert rate_scale(["linear"], 0.25, 0.0) == rate_scale(["linear"], 1.0, 1.0) == 1.0
    assert rate_scale(["embedding"], 0.25, 1.0) == rate_scale(["linear", "embedding"], 0.25, 1.0) == 1.0


@pytest.mark.parametrize("storage", ["packed", "masked"])
def test_a_step_is_as_much_larger(storage: str) -> None:
    """Of plain gradient descent: rate, scale and gradient multiplied."""
    model, handle = tower(storage=storage)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.125)
    handle.attach(optimizer)
    parameters = {g.name: g.trained_parameters()[0] for g in handle.groups}
    before = {name: p.detach().clone() for name, p in parameters.items()}
    model["layer"](model["table"].weight).sum().backward()
    gradients = {name: p.grad.clone() for name, p in parameters.items()}
    bias = model["layer"].bias.detach().clone()
    optimizer.step()
    for name, scale in (("table.weight", 1.0), ("layer.weight", 2.0)):
        live = handle.masks()[name] if storage == "masked" else ...
        wanted = before[name] - 0.125 * scale * gradients[name]
        torch.testing.assert_close(parameters[name].detach()[live], wanted[live])
    torch.testing.assert_close(model["layer"].bias.detach(), bias - 0.125 * 10.0)


def test_others_and_joint_groups_keep_their_rate() -> None:
    """A group that holds a table as well has one parameter, so one rate."""
    model, handle = tower(groups="joint")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    handle.attach(optimizer)
    assert set(rates(optimizer).values()) == {0.01}
    model, handle = tower(density=1.0, learning_rate_power=1.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    handle.attach(optimizer)
    assert len(optimizer.param_groups) == 1


def test_attaching_again_changes_nothing() -> None:
    """Nor does an optimizer whose state was loaded, and no parameter is lost or doubled."""
    model, handle = tower()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.5)
    handle.attach(optimizer)
    once = rates(optimizer)
    handle.attach(optimizer)
    assert rates(optimizer) == once
    assert sorted(once.values()) == [0.01, 0.01, 0.02]
    assert all(group["weight_decay"] == 0.5 for group in optimizer.param_groups)
    state = copy.deepcopy(optimizer.state_dict())
    other = torch.optim.Adam(model.parameters(), lr=0.03)
    handle.attach(other)
    other.load_state_dict(state)
    handle.attach(other)
    assert rates(other) == once


def test_another_scale_replaces_the_first() -> None:
    """And 1 gives the optimizer's rate back."""
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    for scale in (4.0, 2.0, 1.0):
        scale_learning_rate(optimizer, [parameter], scale)
        assert rates(optimizer) == {id(parameter): 0.5 * scale}


def test_a_scheduler_comes_afterwards() -> None:
    """One that was made before keeps rates for the groups it saw; nothing has changed then."""
    model, handle = tower()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5)
    with pytest.raises(DSLError, match="allowed is to attach first"):
        handle.attach(optimizer)
    assert len(optimizer.param_groups) == 1 and handle.explorer.idle_groups
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    handle.attach(optimizer)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5**epoch)
    optimizer.step()
    scheduler.step()
    assert sorted(rates(optimizer).values()) == [0.25, 0.25, 0.5]


def test_groups_of_the_optimizer_stay_apart() -> None:
    """A parameter group that is emptied goes; one of others keeps its options."""
    first, second = (nn.Parameter(torch.zeros(2)) for _ in range(2))
    groups = [{"params": [first], "lr": 0.5}, {"params": [second], "momentum": 0.25}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    scale_learning_rate(optimizer, [first], 4.0)
    assert [(g["params"], g["lr"], g["momentum"]) for g in optimizer.param_groups] == [
        ([second], 1.0, 0.25),
        ([first], 2.0, 0),
    ]


def test_names_go_along() -> None:
    """Of an optimizer that was given named parameters, where torch knows them."""
    model, handle = tower()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    names = {id(p): name for name, p in model.named_parameters()}
    (group,) = optimizer.param_groups
    group["param_names"] = [names[id(p)] for p in group["params"]]
    handle.attach(optimizer)
    assert len(optimizer.param_groups) == 2
    for group in optimizer.param_groups:
        assert group["param_names"] == [names[id(p)] for p in group["params"]]


def test_a_trainer_has_it(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """MultiVAE's four matrices by their own densities; their biases keep RecBole's rate."""
    matrices = ("encoder.*.weight", "decoder.*.weight")
    dsl = {
        "density": 0.2,
        "learning_rate_power": 1.0,
        "include": matrices,
        "groups": "per_tensor",
        "init": "erk",
    }
    with caplog.at_level("INFO"):
        trainer, _ = sparse_trainer_of("MultiVAE", settings("MultiVAE", data, tmp_path), **dsl)
    sparse = {id(g.weight): g for g in trainer.sparse.groups}
    (line,) = (r.message for r in caplog.records if "group 'encoder.0.weight'" in r.message)
    assert re.search(r"budget \d+, learning rate × [1-9]", line)
    densities = {density_of(group) for group in trainer.sparse.groups}
    assert len(sparse) == 4 and len(densities) > 1
    for parameter, rate in rates(trainer.optimizer).items():
        group = sparse.get(parameter)
        density = 1.0 if group is None else density_of(group)
        assert rate == pytest.approx(trainer.config["learning_rate"] / density)


def test_in_vain(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """BPR has tables only; who has set it is told."""
    sparse_trainer_of("BPR", settings("BPR", data, tmp_path))  # dsl_plus has it for every model
    assert not any("changes nothing" in r.message for r in caplog.records)
    for density, told in ((0.2, 1), (1.0, 0)):
        caplog.clear()
        sparse_trainer_of("BPR", settings("BPR", data, tmp_path), density=density, learning_rate_power=0.5)
        assert sum("dsl_learning_rate_power=0.5 changes nothing" in r.message for r in caplog.records) == told


def test_every_optimizer_of_a_trainer(data: Path, tmp_path: Path) -> None:
    """RecVAE's three: each matrix in the one that owns it, scaled once."""
    dsl = {"density": 0.25, "learning_rate_power": 0.5, "groups": "per_tensor"}
    trainer, _ = sparse_trainer_of("RecVAE", settings("RecVAE", data, tmp_path), **dsl)
    optimizers = {id(p.optimizer): p.optimizer for p in trainer.sparse.explorer.progress}
    assert len(optimizers) > 1
    for progress in trainer.sparse.explorer.progress:
        rate = rates(progress.optimizer)[id(progress.group.weight)]
        assert rate == pytest.approx(trainer.config["learning_rate"] / density_of(progress.group) ** 0.5)


def test_a_run_resumes(data: Path, tmp_path: Path) -> None:
    """Bit for bit, in the middle of an epoch."""
    dsl = {"learning_rate_power": 1.0, "groups": "per_tensor"}
    check_resume("MultiVAE", settings("MultiVAE", data, tmp_path), at_step(3), **dsl)
