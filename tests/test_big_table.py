"""Tables larger than memory: created without a dense copy, sampled exactly, updated with little memory."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from recbole_dsl import sparsify
from recbole_dsl.errors import ConfigError, TargetError
from recbole_dsl.sparsity import rows, sampling, selection, update
from recbole_dsl.sparsity.randomness import generator_for
from recbole_dsl.sparsity.sampling import hypergeometric, random_subset
from tests.test_memory import peak_bytes

ROOT = Path(__file__).resolve().parents[1]


# --- exact samples --------------------------------------------------------------------------------


@pytest.mark.parametrize(("good", "bad", "draws"), [(3, 4, 2), (5, 2, 4), (1, 9, 9), (6, 6, 6), (4, 0, 3)])
def test_hypergeometric_has_its_probabilities(good: int, bad: int, draws: int) -> None:
    """4000 draws against the formula, every outcome within five sigma."""
    generator, n = generator_for(1, "hypergeometric"), 4000
    found = [hypergeometric(good, bad, draws, generator) for _ in range(n)]
    for x in range(draws + 1):
        p = math.comb(good, x) * math.comb(bad, draws - x) / math.comb(good + bad, draws)
        sigma = math.sqrt(n * p * (1 - p))
        assert abs(found.count(x) - n * p) <= 5 * sigma


def test_hypergeometric_of_billions() -> None:
    """Mean and variance of 100 draws among 10^10, where factorials in double precision fail."""
    generator = generator_for(2, "hypergeometric")
    good, bad, draws = 4 * 10**9, 6 * 10**9, 10**9
    found = torch.tensor([hypergeometric(good, bad, draws, generator) for _ in range(100)]).double()
    mean, total = draws * good / (good + bad), good + bad
    variance = mean * (bad / total) * (total - draws) / (total - 1)
    assert abs(float(found.mean()) - mean) <= 5 * math.sqrt(variance / 100)
    assert 0.5 <= float(found.var()) / variance <= 1.7


@pytest.mark.parametrize("k", [0, 1, 4, 9, 10])
def test_subsets_by_blocks_are_uniform(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pair of ten numbers is together as often as in a uniform subset, within five sigma."""
    monkeypatch.setattr(sampling, "LARGE", 4)
    monkeypatch.setattr(sampling, "BLOCK", 4)
    generator, draws = generator_for(4, "subset"), 1500
    together = torch.zeros(10, 10)
    for _ in range(draws):
        subset = random_subset(10, k, generator)
        assert subset.numel() == k and (subset.diff() > 0).all() and subset.dtype == torch.int64
        here = torch.zeros(10).index_fill_(0, subset, 1.0)
        together += here[:, None] * here
    one, pair = k / 10, k * (k - 1) / 90
    expected = torch.full((10, 10), pair).fill_diagonal_(one)
    sigma = (draws * expected * (1 - expected)).sqrt()
    assert ((together - draws * expected).abs() <= 5 * sigma + 1e-3).all()


# --- creation on the meta device ------------------------------------------------------------------


class Tables(nn.Module):
    """A user and an item table, and a layer whose bias stays dense."""

    def __init__(self, rows: int, columns: int = 64) -> None:
        super().__init__()
        self.user = nn.Embedding(rows, columns)
        self.item = nn.Embedding(rows, columns, padding_idx=0)
        self.layer = nn.Linear(columns, columns, bias=False)

    def loss(self, users: Tensor, items: Tensor) -> Tensor:
        return nn.functional.softplus((self.layer(self.user(users)) * self.item(items)).sum(1)).mean()


def on_meta(rows: int, columns: int = 64) -> Tables:
    """The same without memory."""
    with torch.device("meta"):
        return Tables(rows, columns)


@pytest.mark.parametrize("init", ["random", "er", "erk"])
@pytest.mark.parametrize("groups", ["joint", "per_tensor"])
def test_meta_and_real_tensors_get_one_topology(init: str, groups: str) -> None:
    """Positions depend on shapes and seed only; values are those of torch's distributions."""
    settings = {"density": 0.1, "init": init, "groups": groups, "seed": 3}
    meta, real = on_meta(2000), Tables(2000)
    handle, other = sparsify(meta, **settings), sparsify(real, **settings)
    for mine, theirs in zip(handle.groups, other.groups, strict=True):
        assert torch.equal(mine.live_positions(), theirs.live_positions())
    assert handle.live == handle.budget == other.budget
    assert meta.user.weight.device.type == "cpu"
    live = meta.user.weight.detach()
    live = live[live != 0]
    assert abs(float(live.mean())) < 0.1 and abs(float(live.std()) - 1) < 0.1
    assert not meta.item.weight[0].any()
    layer = meta.layer.weight.detach().abs()
    assert 0 < float(layer.max()) <= 1 / 8
    again = sparsify(on_meta(2000), **settings)
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(handle.groups, again.groups, strict=True))


def test_values_of_ones_own() -> None:
    """Asked with the tensor, positions in it and a generator; a wrong shape is told."""

    def rows_as_values(tensor, positions: Tensor, generator: torch.Generator) -> Tensor:
        return (positions // tensor.shape[1]).float() + 1

    model = on_meta(100)
    sparsify(model, 0.2, include=["*"], initial_values=rows_as_values)
    live = model.item.weight.detach()
    wanted = torch.arange(1, 101.0)[:, None].expand_as(live)
    assert torch.equal(live[live != 0], wanted[live != 0])
    with pytest.raises(ConfigError, match=r"initial_values gave \(1,\) for user.weight"):
        sparsify(on_meta(100), 0.2, initial_values=lambda *_: torch.zeros(1))


def test_global_generators_are_left_alone() -> None:
    """Creation draws from our own."""
    before = torch.get_rng_state()
    sparsify(on_meta(100), 0.2)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("init", ["aligned", "magnitude", "nmf"])
def test_topologies_that_need_values_are_refused(init: str) -> None:
    """In one sentence, and the module stays as it was."""
    model = on_meta(100)
    with pytest.raises(ConfigError, match=f"dsl_init='{init}' looks at whole tensors, but user.weight is on"):
        sparsify(model, 0.2, init=init)
    assert type(model.user) is nn.Embedding and model.user.weight.is_meta


def test_what_stays_dense_must_be_real() -> None:
    """Biases, excluded tensors, buffers and raw parameters are named; masked storage is refused."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(64, 64))
    with pytest.raises(TargetError, match=r"0.bias stays dense, but is on the meta device"):
        sparsify(model, 0.2)
    model[0].bias = nn.Parameter(torch.zeros(64))
    assert sparsify(model, 0.2).live == round(0.2 * 64 * 64)
    with pytest.raises(TargetError, match=r"item.weight, layer.weight stays dense"):
        sparsify(on_meta(100), 0.2, include=["user.*"])
    with pytest.raises(TargetError, match=r"user.weight is on the meta device, but masked storage"):
        sparsify(on_meta(100), 0.2, storage="masked")
    raw = nn.ParameterDict({"w": nn.Parameter(torch.empty(64, 64, device="meta"))})
    with pytest.raises(TargetError, match=r"w \(raw\) is on the meta device and has no usual distribution"):
        sparsify(raw, 0.2, include=["w"])


def test_a_meta_table_trains() -> None:
    """Steps and updates as for any other."""
    model = on_meta(500)
    handle = sparsify(model, 0.1, groups="joint", update_interval=2, growth_rows=0.2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    handle.attach(optimizer)
    draw = torch.Generator().manual_seed(0)
    before = handle.groups[0].live_positions()
    for _ in range(6):
        optimizer.zero_grad()
        model.loss(*(torch.randint(500, (64,), generator=draw) for _ in range(2))).backward()
        optimizer.step()
    assert handle.explorer.updates == 3 and handle.live == handle.budget
    assert not torch.equal(handle.groups[0].live_positions(), before)


@pytest.mark.slow
def test_positions_beyond_32_bits() -> None:
    """3.2·10^9 positions with 20 000 live: made, looked up, trained and moved exactly."""
    columns = 1000
    with torch.device("meta"):
        model = nn.Embedding(3_200_000, columns)
    handle = sparsify(
        model, budget=20_000, update_interval=2, growth_rows=0.002, exploration_record=False,
        update_ratio=0.5, schedule="constant",
    )  # fmt: skip
    live = handle.groups[0].live_positions()
    assert live.numel() == 20_000 and (live.diff() > 0).all()
    assert int(live[-1]) > 2**31 and abs(int((live > 2**31).sum()) / 20_000 - (1 - 2**31 / 3.2e9)) < 0.03
    high = live[live > 2**31][:50]
    found = model(high // columns).detach()
    assert torch.equal(found[torch.arange(50), high % columns], handle.groups[0].weight[live > 2**31][:50])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle.attach(optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        scored = handle.groups[0].growth_scores.where.rows[0]
        growth = model(scored).sum(1) @ torch.arange(1.0, scored.numel() + 1)  # most in the last row
        (growth + model(high // columns).pow(2).sum()).backward()
        optimizer.step()
    after = handle.groups[0].live_positions()
    new = after[~torch.isin(after, live)]
    assert handle.explorer.updates == 1 and after.numel() == 20_000 and (after.diff() > 0).all()
    exchanged = int(torch.isin(live // columns, scored).sum()) // 2
    assert new.numel() == exchanged > 5 and torch.isin(new // columns, scored).all() and int(new[-1]) > 2**31
    gone = live[~torch.isin(live, after)]
    assert gone.numel() == exchanged and torch.isin(gone // columns, scored).all()


# --- peak memory ----------------------------------------------------------------------------------


@pytest.mark.parametrize("drop", ["magnitude", "taylor"])
def test_an_update_takes_a_byte_per_live_weight_and_eight_per_exchanged_one(
    drop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And 6 MB for blocks and counts; a list of the live positions would take 16 MB."""
    for module, name in ((rows, "POSITIONS_PER_BLOCK"), (selection, "SCORES_PER_BLOCK")):
        monkeypatch.setattr(module, name, 2**16)
    monkeypatch.setattr(update, "SLOTS_PER_BLOCK", 2**16)
    model = on_meta(160_000)
    handle = sparsify(
        model, 0.1, groups="joint", growth_memory=None, update_interval=2, drop=drop, schedule="constant",
        exploration_record=False,
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
    handle.attach(optimizer)
    ids = torch.arange(160_000)
    for step in range(2):
        optimizer.zero_grad()
        for part in ids.split(10_000):
            model.loss(part, part).backward()
        taken = peak_bytes(optimizer.step) if step else optimizer.step() or 0
    exchanged = handle.budget - int(handle.groups[0].live_values().count_nonzero())
    assert handle.explorer.updates == 1 and handle.budget > 2_000_000 and exchanged > 0.3 * handle.budget
    assert taken <= handle.budget + 8 * (handle.budget // 2) + 6 * 10**6


def measured(*options: str) -> dict:
    """What benchmarks/big_table.py reports for a size of its own, in a process of its own."""
    command = [sys.executable, str(ROOT / "benchmarks" / "big_table.py"), "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_peak_memory_of_a_whole_run() -> None:
    """2 × 200 000 rows: the benchmark, which asserts its bound, and a quarter of the dense model."""
    told = measured("--rows", "400000", "--batch", "1024")
    assert told["live"] == told["budget"] == 400_000 * 64 // 20
    assert told["updates"] >= 2 and told["exchanged"] > 0
    assert told["peak_bytes"] <= told["bound_bytes"]
    assert told["peak_bytes"] - told["process_bytes"] < 0.25 * told["dense_bytes"]


@pytest.mark.slow
def test_forty_million_rows() -> None:
    """41 GB of dense training in a tenth of it; about two minutes."""
    told = measured()
    assert told["live"] == told["budget"] == 128_000_000 and told["updates"] == 2
    assert told["peak_bytes"] <= told["bound_bytes"] < 4.3 * 10**9 < told["dense_bytes"] / 9
