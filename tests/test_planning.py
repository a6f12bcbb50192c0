"""Plans: formulas against measured bytes of models, optimizers and files, by hand, and on the command line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from benchmarks.baseline import run_recbole_itself
from recbole_dsl import sparsify
from recbole_dsl.cli import main
from recbole_dsl.costs import held_bytes
from recbole_dsl.errors import ConfigError
from recbole_dsl.packed.index import build_index, column_dtype, pointer_dtype, slices_of
from recbole_dsl.packed.optimizer_state import STATE_RULES
from recbole_dsl.planning import (
    LINES,
    OPTIMIZERS,
    PRECISIONS,
    Bytes,
    Group,
    Plan,
    Setup,
    Table,
    dense_bytes,
    groups_of,
    least_growth_memory,
    readable,
    ring_bytes,
    shared_out,
    sparse_bytes,
)
from recbole_dsl.quantities import LARGEST, parse_count
from recbole_dsl.sparsity.scores import GrowthScores, sample_rows, score_dtype
from tests.recbole_runs import QUIET, sparse_run
from tests.test_experiment import checkpoints

CPU = torch.device("cpu")
Shapes = Sequence[tuple[int, int]]
SHAPES = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 30)), min_size=1, max_size=3)
BUILT: dict[tuple[str, bool], Callable[..., torch.optim.Optimizer]] = {
    ("adam", False): torch.optim.Adam,
    ("adamw", False): torch.optim.AdamW,
    ("sgd", False): lambda p: torch.optim.SGD(p, lr=0.1),
    ("sgd", True): lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    ("adagrad", False): torch.optim.Adagrad,
    ("rmsprop", False): torch.optim.RMSprop,
    ("rmsprop", True): lambda p: torch.optim.RMSprop(p, momentum=0.9),
}
"""Real optimizers by the name and the momentum of a plan."""

BILLION = [Table("users", 10**9, 128), Table("items", 10**8, 128)]
EXAMPLE = ["plan", "--users", "1e9", "--items", "1e8", "--dim", "128", "--density", "0.05"]


def tables_of(shapes: Shapes) -> list[Table]:
    """Named as the model's parameters."""
    return [Table(f"t{i}", rows, columns) for i, (rows, columns) in enumerate(shapes)]


class Tables(nn.Module):
    """Raw tables of any shapes."""

    def __init__(self, shapes: Shapes, precision: str = "float32") -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        for i, shape in enumerate(shapes):
            values = torch.randn(shape, generator=draw).to(getattr(torch, precision))
            setattr(self, f"t{i}", nn.Parameter(values))
        self.names = [f"t{i}" for i in range(len(shapes))]

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """One optimizer step in which every weight has a gradient."""
        optimizer.zero_grad()
        torch.stack([getattr(self, name).float().pow(2).sum() for name in self.names]).sum().backward()
        optimizer.step()


# --- measured -------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    shapes=SHAPES,
    density=st.floats(0.001, 1),
    built=st.sampled_from(list(BUILT)),
    precision=st.sampled_from(list(PRECISIONS)),
    joint=st.booleans(),
)
def test_what_training_holds(
    shapes: Shapes, density: float, built: tuple[str, bool], precision: str, joint: bool
) -> None:
    """Live weights, weights, index, gradient, optimizer state and record, dense and sparse, to the byte."""
    setup = Setup(*built, precision)
    groups = groups_of(tables_of(shapes), joint, density)
    dense, sparse = Tables(shapes, precision), Tables(shapes, precision)
    handle = sparsify(sparse, density, include=["t*"], groups="joint" if joint else "per_tensor")
    assert [group.live for group in groups] == [group.budget for group in handle.groups]
    assert {group.storage for group in handle.groups} == {"packed"}
    for model, planned in ((dense, dense_bytes(groups, setup)), (sparse, sparse_bytes(groups, setup))):
        optimizer = BUILT[built](model.parameters())
        model.step(optimizer)
        held = held_bytes(model, optimizer)
        assert held == {
            "weight_bytes": planned.weights,
            "index_bytes": planned.index,
            "gradient_bytes": planned.gradient,
            "optimizer_bytes": planned.optimizer,
        }
        assert planned.training_state == sum(held.values())
        if model is sparse:
            assert planned.record == handle.explorer.record_bytes


@settings(max_examples=80, deadline=None)
@given(
    shapes=SHAPES,
    density=st.floats(0.01, 1),
    memory=st.none() | st.integers(1, 6000),
    precision=st.sampled_from(list(PRECISIONS)),
    joint=st.booleans(),
)
def test_what_a_growth_window_holds(
    shapes: Shapes, density: float, memory: int | None, precision: str, joint: bool
) -> None:
    """All rows, or as many as training scores in that memory; the least that it accepts where it refuses."""

    def explored(bound: int | None) -> int:
        """Bytes that a real explorer holds in its first window."""
        model = Tables(shapes, precision)
        handle = sparsify(
            model, density, include=["t*"], groups="joint" if joint else "per_tensor", update_interval=1,
            update_ratio=1.0, schedule="constant", growth_memory=bound,
        )  # fmt: skip
        handle.attach(torch.optim.SGD(model.parameters(), lr=0.1))
        return handle.explorer.growth_bytes

    groups = groups_of(tables_of(shapes), joint, density)
    setup = Setup(precision=precision, growth_memory=memory)
    planned = sparse_bytes(groups, setup).growth_scores
    least = least_growth_memory(groups, setup)
    if memory is not None and memory < least:
        with pytest.raises(ConfigError, match="dsl_growth_memory"):
            explored(least - 1)
        memory = least
    assert explored(memory) == planned
    assert memory is None or planned <= memory


@settings(max_examples=60, deadline=None)
@given(shapes=SHAPES, share=st.floats(0.01, 0.99), precision=st.sampled_from(list(PRECISIONS)))
def test_scores_of_a_share_of_the_rows(shapes: Shapes, share: float, precision: str) -> None:
    """The share rounded half up, at least a row of each table, and what finding the rows again takes."""
    tables = tables_of(shapes)
    group = Group(tuple(tables), 1)
    dtype = getattr(torch, precision)
    where = sample_rows(
        shapes, score_dtype(dtype).itemsize, None, torch.Generator(), torch.device("cpu"), share
    )
    scores = GrowthScores(where, dtype, CPU)
    planned = sparse_bytes([group], Setup(precision=precision, growth_rows=share)).growth_scores
    assert planned == (scores.bytes if group.weights > 1 else 0)


def test_of_two_bounds_on_growth_the_tighter_counts() -> None:
    """100 rows × 10: their inverse takes 400 bytes, a scored row 48. A tenth of the rows, or 1000 bytes."""
    groups = groups_of([Table("t", 100, 10)], True, 0.1)
    figures = [
        sparse_bytes(groups, Setup(growth_memory=memory, growth_rows=share)).growth_scores
        for memory, share in ((None, 0.1), (1000, 1.0), (1000, 0.1), (1000, 0.5), (None, 1.0))
    ]
    assert figures == [400 + 10 * 48, 400 + 12 * 48, 400 + 10 * 48, 400 + 12 * 48, 4000]


@pytest.mark.parametrize("columns", [255, 256, 257, 2**15, 2**15 + 1])
@pytest.mark.parametrize("other", [1, 300])
def test_index_at_the_borders_of_its_types(columns: int, other: int) -> None:
    """Real groups of one wide table and one other, beside each other."""
    shapes = [(3, columns), (2, other)]
    (group,) = groups_of(tables_of(shapes), True, 0.3)
    model = Tables(shapes)
    sparsify(model, 0.3, include=["t*"], groups="joint")
    held = held_bytes(model, torch.optim.Adam(model.parameters()))
    assert held["index_bytes"] == sparse_bytes([group], Setup()).index


def test_row_pointers_at_the_border_of_their_types() -> None:
    """int32 up to 2^31 - 1 live weights, int64 from 2^31 on; what is stored has the planned size."""
    tables = (Table("t", 2**25, 128),)
    below, at = (sparse_bytes([Group(tables, live)], Setup()).index for live in (2**31 - 1, 2**31))
    assert below == 2**31 - 1 + 4 * (2**25 + 1)
    assert at == 2**31 + 8 * (2**25 + 1)
    assert pointer_dtype(2**31 - 1) == torch.int32 and pointer_dtype(2**31) == torch.int64
    pointers, _ = build_index(torch.arange(5), slices_of(["t"], [(3, 4)]))
    assert pointers.dtype == pointer_dtype(5)


def test_column_ids_at_the_borders_of_their_types() -> None:
    """uint8, int16, int32, int64."""
    borders = [2**8, 2**8 + 1, 2**15, 2**15 + 1, 2**31, 2**31 + 1]
    assert [column_dtype(columns).itemsize for columns in borders] == [1, 2, 2, 4, 4, 8]


def test_every_optimizer_of_training_is_planned() -> None:
    """By RecBole's name, which is the class's in small letters."""
    assert set(OPTIMIZERS) == {kind.__name__.lower() for kind in STATE_RULES}
    assert {(name, state.with_momentum is not None) for name, state in OPTIMIZERS.items()} == {
        (name, (name, True) in BUILT) for name in OPTIMIZERS
    }


@pytest.mark.usefixtures("in_folder")
def test_what_runs_hold_and_save(tmp_path: Path) -> None:
    """BPR on ml-100k, RecBole's file and ours: at most 20 kB more than planned, for names and settings."""
    tables = [Table("users", 944, 256), Table("items", 1683, 256)]
    groups, setup = groups_of(tables, True, 0.25), Setup()
    how = {"epochs": 1, "embedding_size": 256}
    run_recbole_itself("BPR", "ml-100k", {**QUIET, **how, "checkpoint_dir": str(tmp_path / "dense")})
    (dense,) = (tmp_path / "dense").glob("*.pth")
    result = sparse_run("BPR", tmp_path / "sparse", dsl_density=0.25, dsl_method="dsl", **how)
    sparse, _ = checkpoints(tmp_path / "sparse", "BPR")
    planned = sparse_bytes(groups, setup)
    assert 0 <= dense.stat().st_size - dense_bytes(groups, setup).checkpoint < 20_000
    assert 0 <= sparse.stat().st_size - planned.checkpoint < 20_000 < 0.01 * planned.checkpoint
    for name, cost in (("weights", "weight"), ("index", "index"), ("optimizer", "optimizer")):
        assert getattr(planned, name) == result.costs[f"{cost}_bytes"]
    assert planned.record == result.costs["exploration_record_bytes"]


# --- by hand --------------------------------------------------------------------------------------


def test_a_billion_users_by_hand() -> None:
    """1.1 · 10⁹ rows × 128 at 0.05: 7.04 · 10⁹ live weights, so 8-byte pointers; all scores in a window."""
    plan = Plan(tuple(groups_of(BILLION, True, 0.05)), Setup(), workers=8)
    assert plan.weights == 140_800_000_000 and plan.live == 7_040_000_000
    assert plan.replicated.dense == Bytes(
        weights=563_200_000_000,
        index=0,
        gradient=563_200_000_000,
        optimizer=2 * 563_200_000_000 + 2 * 4,
        growth_scores=0,
        record=0,
        checkpoint=1_689_600_000_008,
        artifact=563_200_000_000,
    )
    assert plan.replicated.sparse == Bytes(
        weights=28_160_000_000,
        index=7_040_000_000 + 8 * 1_100_000_001,
        gradient=28_160_000_000,
        optimizer=56_320_000_004,
        growth_scores=563_200_000_000,
        record=17_600_000_000,
        checkpoint=28_160_000_000 + 15_840_000_008 + 56_320_000_004,
        artifact=28_160_000_000 + 7_040_000_000 + 1_100_000_000,
    )
    assert plan.replicated.dense.training_state == 2_252_800_000_008
    assert plan.replicated.sparse.training_state == 128_480_000_012
    assert plan.replicated.sparse.in_growth_window == 128_480_000_012 + 580_800_000_000
    # A share has 880 000 000 live weights in 137 500 000 rows, so pointers of 4 bytes.
    assert plan.sharded.sparse.index == 880_000_000 + 4 * 137_500_001
    assert plan.sharded.sparse.training_state == 16 * 880_000_000 + 880_000_000 + 4 * 137_500_001 + 4
    assert plan.sharded.dense.training_state == 281_600_000_008
    assert plan.traffic == {"dense": 985_600_000_000, "sparse": 49_280_000_000}
    assert plan.state_on_all == {
        "replicated": {"dense": 18_022_400_000_064, "sparse": 1_027_840_000_096},
        "row_sharded": {"dense": 2_252_800_000_064, "sparse": 124_080_000_064},
    }


def test_a_budget_for_each_table_by_hand() -> None:
    """The items' 640 000 000 live weights need pointers of 4 bytes only; two step counts."""
    planned = sparse_bytes(groups_of(BILLION, False, 0.05), Setup())
    assert planned.index == 7_040_000_000 + 8 * 1_000_000_001 + 4 * 100_000_001
    assert planned.optimizer == 56_320_000_008


@pytest.mark.parametrize(
    ("values", "dense", "sparse"),
    [("fp32", 25_600, 3_300), ("fp16", 12_800, 2_020), ("bf16", 12_800, 2_020), ("int8", 6_600, 1_580)],
)
def test_artifacts_by_hand(values: str, dense: int, sparse: int) -> None:
    """100 rows × 64 at 0.1: 640 values and column ids, 100 row counts, for int8 100 scales of 2 bytes.

    That is 0.129 (fp32) and 0.062 (int8) of the dense fp32 table.
    """
    groups, setup = groups_of([Table("t", 100, 64)], True, 0.1), Setup(artifact_values=values)
    assert dense_bytes(groups, setup).artifact == dense
    assert sparse_bytes(groups, setup).artifact == sparse


def test_row_counts_of_artifacts_grow_with_the_columns() -> None:
    """A row of 256 columns may have 256 live weights, which no byte holds; ids from 0 on still take one."""
    figures = [
        sparse_bytes(groups_of([Table("t", 10, columns)], True, budget=5), Setup()).artifact
        for columns in (255, 256, 257, 2**16)
    ]
    assert figures == [5 * 5 + 10, 5 * 5 + 20, 5 * 6 + 20, 5 * 6 + 40]


def test_budgets_in_weights() -> None:
    """One for all, or in proportion with at least one each."""
    tables = [Table("a", 10, 10), Table("b", 1, 1)]
    assert [group.live for group in groups_of(tables, True, budget=50)] == [50]
    assert [group.live for group in groups_of(tables, False, budget=50)] == [49, 1]


@settings(max_examples=100, deadline=None)
@given(shapes=SHAPES, density=st.floats(0.001, 1), workers=st.integers(1, 50), joint=st.booleans())
def test_shares_cover_the_whole(shapes: Shapes, density: float, workers: int, joint: bool) -> None:
    """With less than a row and a live weight per device too much, and room for the live weights."""
    groups = groups_of(tables_of(shapes), joint, density)
    for whole, part in zip(groups, shared_out(groups, workers), strict=True):
        assert 0 <= part.live * workers - whole.live < workers
        assert 1 <= part.live <= part.weights
        for table, share in zip(whole.tables, part.tables, strict=True):
            assert share.columns == table.columns and 0 <= share.rows * workers - table.rows < workers
    alone = Plan(tuple(groups), Setup())
    assert alone.sharded == alone.replicated and alone.traffic == {"dense": 0, "sparse": 0}


@settings(max_examples=60, deadline=None)
@given(elements=st.integers(1, 300), workers=st.integers(1, 9))
def test_ring_all_reduce(elements: int, workers: int) -> None:
    """A ring that is really run: every worker gets the sum, and sends as many bytes as planned."""
    draw = np.random.default_rng(0)
    chunk = -(-elements // workers)
    data = [draw.integers(9, size=(workers, chunk)).astype(np.float32) for _ in range(workers)]
    total = sum(data)
    sent = [0] * workers
    for turn in range(2 * (workers - 1)):
        messages = []
        for worker in range(workers):
            number = (worker - turn) % workers
            messages.append((number, data[worker][number].copy()))
            sent[worker] += data[worker][number].nbytes
        for worker, (number, message) in enumerate(messages):
            receiver = data[(worker + 1) % workers]
            receiver[number] = receiver[number] + message if turn < workers - 1 else message
    assert all(np.array_equal(each, total) for each in data)
    assert sent == [ring_bytes(elements, 4, workers)] * workers
    assert 0 <= workers * sent[0] - 2 * (workers - 1) * elements * 4 < 8 * workers * workers


# --- text and command line ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "0 B"), (999, "999 B"), (1000, "1 kB"), (28_160_000_000, "28.16 GB"),
        (2_252_800_000_008, "2.253 TB"), (10**24, "1e+06 EB"),
    ],
)  # fmt: skip
def test_readable_amounts(amount: int, text: str) -> None:
    """Decimal units, four digits."""
    assert readable(amount) == text


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("7", 7), ("1e9", 10**9), ("1E+3", 1000), ("1_000_000", 10**6), ("10M", 10**7), ("1.5b", 1_500_000_000),
        ("2k", 2000), ("0.5K", 500), ("1.25e2", 125), (str(LARGEST), LARGEST),
        ("9007199254740993", 9007199254740993),
    ],
)  # fmt: skip
def test_counts_are_read_exactly(text: str, count: int) -> None:
    """In every way to write them; the last one is no float."""
    assert parse_count(text) == count


@pytest.mark.parametrize(
    "text", ["", "0", "1.5", "-1", "1e-3", "ten", "10MB", "1e99", str(LARGEST + 1), "nan", "0.1e0", "1/2", "१"]
)
def test_what_is_no_count(text: str) -> None:
    """Fractions, nothing, too much, other units."""
    with pytest.raises(ConfigError, match="allowed is a whole number"):
        parse_count(text)


def printed(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What the command prints, when all is well."""
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert not err
    return out


def test_the_documented_output_is_the_real_one(capsys: pytest.CaptureFixture[str]) -> None:
    """docs/planning.md shows what the example prints."""
    page = (Path(__file__).resolve().parents[1] / "docs" / "planning.md").read_text(encoding="utf-8")
    shown = printed(capsys, *EXAMPLE, "--optimizer", "adam", "--workers", "8")
    assert f"```\n{shown}```" in page


def test_the_table_fits_and_lines_up(capsys: pytest.CaptureFixture[str]) -> None:
    """At most 100 columns, each figure below its heading, also for many long names."""
    names = ",".join(f"a_rather_long_name_{i}=1e7x64" for i in range(6))
    shown = printed(capsys, "plan", "--tables", names, "--density=0.1", "--workers=1024", "--groups=per_tensor")
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 100
    (heading,) = [line for line in lines if line.split() == ["dense", "sparse", "ratio"] * 2]
    rows = lines[lines.index(heading) + 1 :][: len(LINES)]
    assert [row[:26].strip() for row in rows] == [label for _, label in LINES]
    assert rows[0].split()[1:] == ["15.36", "GB", "1.536", "GB", "0.1", "15", "MB", "1.5", "MB", "0.1"]
    cell = re.compile(r" +(-|[\d.]+ [kMGT]?B) +(-|[\d.]+ [kMGT]?B)(?: +[\d.]+| +)")
    for row in rows:
        assert cell.fullmatch(row[26:60]) and cell.fullmatch(row[60:].ljust(34))


def test_one_device_has_one_block(capsys: pytest.CaptureFixture[str]) -> None:
    """And nothing about devices."""
    shown = printed(capsys, "plan", "--users=10M", "--items=1_000_000", "--dim=64", "--density=0.1")
    assert "one device" in shown and "shared out" not in shown and "per step" not in shown
    (line,) = [line for line in shown.splitlines() if line.startswith("= training state")]
    assert line.split()[3:] == ["11.26", "GB", "1.241", "GB", "0.1102"]


def test_json_is_exact(capsys: pytest.CaptureFixture[str]) -> None:
    """Every figure of the plan as an integer."""
    plan = Plan(tuple(groups_of(BILLION, True, 0.05)), Setup(), workers=8)
    found = json.loads(printed(capsys, *EXAMPLE, "--workers=8", "--growth-memory=None", "--json"))
    assert found["bytes_per_device"]["replicated"] == plan.replicated.to_dict()
    assert found["bytes_per_device"]["row_sharded"]["sparse"] == plan.sharded.sparse.to_dict()
    assert found["training_state_on_all_devices"] == plan.state_on_all
    assert found["gradient_bytes_sent_per_step_and_worker"] == plan.traffic
    assert found["live"] == 7_040_000_000 and found["settings"]["growth_memory"] is None
    assert found["groups"][0]["tables"][1] == {"name": "items", "rows": 10**8, "columns": 128}


def sparse_figures(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, int]:
    """Sparse bytes of 1000 + 500 rows × 16 at density 0.25."""
    base = ["plan", "--users=1000", "--items=500", "--dim=16", "--density=0.25", "--json"]
    return json.loads(printed(capsys, *base, *options))["bytes_per_device"]["replicated"]["sparse"]


def test_every_option_counts(capsys: pytest.CaptureFixture[str]) -> None:
    """6000 live weights of 24 000 in 1500 rows."""
    assert sparse_figures(capsys)["optimizer"] == 48_004
    assert sparse_figures(capsys, "--optimizer=sgd")["optimizer"] == 0
    assert sparse_figures(capsys, "--optimizer=sgd", "--momentum")["optimizer"] == 24_000
    assert sparse_figures(capsys, "--optimizer=rmsprop", "--momentum")["optimizer"] == 48_004
    assert sparse_figures(capsys, "--precision=bfloat16")["gradient"] == 12_000
    assert sparse_figures(capsys, "--groups=per_tensor")["index"] == 6000 + 4 * 1502
    assert sparse_figures(capsys)["growth_scores"] == 96_000
    assert sparse_figures(capsys, "--growth-rows=0.1")["growth_scores"] == 6000 + 150 * 72
    assert sparse_figures(capsys, "--growth-rows=auto")["growth_scores"] == 96_000
    assert sparse_figures(capsys, "--growth-memory=20kB")["growth_scores"] == 6000 + 194 * 72
    assert sparse_figures(capsys, "--artifact-values=int8")["artifact"] == 12_000 + 3 * 1500
    tables = ["plan", "--tables", "a=1e3x16, b = 500 × 16", "--budget=6k", "--json"]
    found = json.loads(printed(capsys, *tables))
    assert found["bytes_per_device"]["replicated"]["sparse"] == sparse_figures(capsys)


def test_nothing_grows_at_density_one(capsys: pytest.CaptureFixture[str]) -> None:
    """So no memory for growth scores is too small, and none is held."""
    plan = ["plan", "--users=1000", "--items=500", "--dim=16", "--density=1", "--growth-memory=64B", "--json"]
    found = json.loads(printed(capsys, *plan))
    assert found["bytes_per_device"]["replicated"]["sparse"]["growth_scores"] == 0


def test_a_default_that_training_would_refuse_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """256 MB do not even hold where the rows of 1.1 billion are; the least that would do is counted."""
    found = json.loads(printed(capsys, *EXAMPLE, "--json"))
    least = 4 * 1_100_000_000 + 2 * (128 * 4 + 8)
    assert found["bytes_per_device"]["replicated"]["sparse"]["growth_scores"] == least
    assert any("dsl_growth_memory=256MB" in note and f"{least:,} bytes" in note for note in found["notes"])


SIZES = ["--users=5", "--items=3", "--dim=4"]  # 32 weights
WRONG = {
    "nothing": ([], ["--users is missing", "a whole number"]),
    "users alone": (["--users=5", "--density=1"], ["--items is missing"]),
    "no density": (SIZES, ["--density is missing", "above 0", "--budget"]),
    "density 0": ([*SIZES, "--density=0"], ["--density='0'", "above 0"]),
    "density 1.5": ([*SIZES, "--density=1.5"], ["--density='1.5'", "at most 1"]),
    "density nan": ([*SIZES, "--density", "nan"], ["--density='nan'"]),
    "half a user": (["--users=1.5", *SIZES[1:], "--density=1"], ["--users='1.5'", "a whole number"]),
    "less than nobody": (["--users", "-5", *SIZES[1:], "--density=1"], ["--users='-5'"]),
    "budget too large": ([*SIZES, "--budget=33"], ["--budget=33", "from 1 to 32 weights"]),
    "budget too small": ([*SIZES, "--budget=1", "--groups=per_tensor"], ["--budget=1", "from 2 to 32"]),
    "both": ([*SIZES, "--budget=3", "--density=0.5"], ["--budget contradicts --density"]),
    "unknown option": ([*SIZES, "--density=1", "--worker=3"], ["'--worker=3'", "'--workers'"]),
    "a word": ([*SIZES, "--density=1", "dense"], ["'dense'"]),
    "no value": ([*SIZES, "--density"], ["--density", "expected one argument"]),
    "value of a flag": ([*SIZES, "--density=1", "--json=yes"], ["--json", "'yes'"]),
    "two values": ([*SIZES, "--density=1", "--dim=8"], ["--dim=8 contradicts --dim=4"]),
    "optimizer": ([*SIZES, "--density=1", "--optimizer=adm"], ["--optimizer='adm'", "'adam'", "rmsprop"]),
    "momentum": ([*SIZES, "--density=1", "--momentum"], ["--momentum", "adam", "sgd", "rmsprop"]),
    "precision": ([*SIZES, "--density=1", "--precision=fp8"], ["--precision='fp8'", "bfloat16"]),
    "values": ([*SIZES, "--density=1", "--artifact-values=fp8"], ["--artifact-values='fp8'", "int8"]),
    "groups": ([*SIZES, "--density=1", "--groups=each"], ["--groups='each'", "joint", "per_tensor"]),
    "workers": ([*SIZES, "--density=1", "--workers=0"], ["--workers='0'", "at least 1"]),
    "growth memory": ([*SIZES, "--density=0.5", "--growth-memory=lots"], ["--growth-memory='lots'", "'2MB'"]),
    "too little": (
        [*SIZES, "--density=0.5", "--growth-memory=10B"],
        ["=10 bytes", "at least 80 bytes"],
    ),
    "growth rows": ([*SIZES, "--density=0.5", "--growth-rows=0"], ["--growth-rows='0'", "above 0"]),
    "tables and dim": (["--tables=a=3x4", "--dim=4", "--density=1"], ["--tables contradicts --dim"]),
    "no table": (["--tables=a", "--density=1"], ["--tables='a'", "name=ROWSxCOLUMNS"]),
    "table without rows": (["--tables=a=0x4", "--density=1"], ["--tables='a=0x4'"]),
    "a table twice": (["--tables=a=3x4,a=3x4", "--density=1"], ["--tables=", "different names"]),
    "too many weights": (["--tables=a=1e18x10", "--density=1"], ["10000000000000000000", str(LARGEST)]),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_are_one_sentence(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What, where and what is allowed; exit status 2, nothing printed."""
    argv, words = WRONG[case]
    assert main(["plan", *argv]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("error: ") and err.endswith(".\n") and err.count("\n") == 1
    assert "allowed" in err
    for word in words:
        assert word in err


def test_momentum_that_an_optimizer_does_not_know_is_refused_in_python_too() -> None:
    """Before any figure could be wrong."""
    with pytest.raises(ConfigError, match="momentum contradicts optimizer 'adam'"):
        Setup("adam", momentum=True)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    """Of the command, with every option, and of the program, which mentions the command."""
    shown = printed(capsys, "plan", "--help")
    for option in (
        "--users",
        "--tables",
        "--budget",
        "--momentum",
        "--workers",
        "--growth-rows",
        "--json",
        "256MB",
    ):
        assert option in shown
    assert "recbole-dsl plan" in printed(capsys, "--help")


def test_planning_needs_neither_torch_nor_recbole() -> None:
    """The whole command, where neither can be imported."""
    code = f"""
import sys
sys.modules["torch"] = sys.modules["recbole"] = None  # makes any import of them raise
from recbole_dsl.cli import main
assert main({EXAMPLE!r}) == 0
"""
    home = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=home)
    assert done.returncode == 0, done.stderr
    assert "7,040,000,000 live" in done.stdout
