"""What a training will hold, before anything is built: bytes as exact integers, dense beside sparse.

Pure arithmetic that needs neither torch nor RecBole. ``tests/test_planning.py`` compares every formula
with the bytes of real models, optimizers and files.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Final

from .errors import ConfigError
from .sparsity.budget import (
    allocate,
    budget_of_density,
    index_bytes,
    least_score_memory,
    most_score_memory,
    sample_bytes,
    scored_row_counts,
    split_score_memory,
)

PRECISIONS: Final = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}
"""Bytes of a weight in training."""

ARTIFACT_VALUES: Final = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
"""Bytes of a weight in a served artifact."""

INT8_SCALE_BYTES: Final = 2
"""int8 values have a scale of half precision in each row."""


@dataclass(frozen=True)
class OptimizerState:
    """Tensors of the weights' size that an optimizer holds, without and with momentum (None: it knows
    none), and the bytes of its step count, one for each parameter."""

    tensors: int
    with_momentum: int | None
    step_bytes: int


OPTIMIZERS: Final = {
    "adam": OptimizerState(2, None, 4),
    "adamw": OptimizerState(2, None, 4),
    "sgd": OptimizerState(0, 1, 0),
    "adagrad": OptimizerState(1, None, 4),
    "rmsprop": OptimizerState(1, 2, 4),
}


def with_momentum() -> list[str]:
    """The optimizers that know momentum as an option."""
    return [name for name, state in OPTIMIZERS.items() if state.with_momentum is not None]


@dataclass(frozen=True)
class Table:
    """A dense tensor of ``rows`` × ``columns`` weights, both ≥ 1."""

    name: str
    rows: int
    columns: int

    @property
    def weights(self) -> int:
        """Number of weights, dead ones included."""
        return self.rows * self.columns


@dataclass(frozen=True)
class Group:
    """Tables that share a budget of ``live`` weights."""

    tables: tuple[Table, ...]
    live: int

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(rows, columns) of each table."""
        return [(table.rows, table.columns) for table in self.tables]

    @property
    def weights(self) -> int:
        """Number of weights, dead ones included."""
        return sum(table.weights for table in self.tables)


@dataclass(frozen=True)
class Setup:
    """How it is trained and served.

    ``optimizer``, ``precision`` and ``artifact_values``: keys of the tables above; ``momentum``: only where
    the optimizer knows one; ``growth_memory``: bytes for the growth scores of all groups, None for no
    bound; ``growth_rows``: share of the rows that are scored, in (0, 1].

    Raises:
        ConfigError: momentum with an optimizer that knows none.
    """

    optimizer: str = "adam"
    momentum: bool = False
    precision: str = "float32"
    growth_memory: int | None = None
    growth_rows: float = 1.0
    artifact_values: str = "fp32"

    def __post_init__(self) -> None:
        if self.momentum and self.optimizer not in with_momentum():
            raise ConfigError(
                f"momentum contradicts optimizer {self.optimizer!r}: allowed with it are "
                f"{' and '.join(with_momentum())}."
            )

    @property
    def value_bytes(self) -> int:
        """Bytes of a weight in training."""
        return PRECISIONS[self.precision]

    @property
    def score_bytes(self) -> int:
        """Bytes of a growth score, which is at least single precision."""
        return max(4, self.value_bytes)


@dataclass(frozen=True)
class Bytes:
    """What one device holds, and the files it writes.

    ``growth_scores`` exist inside growth windows only, ``record`` is the exploration record.
    """

    weights: int
    index: int
    gradient: int
    optimizer: int
    growth_scores: int
    record: int
    checkpoint: int
    artifact: int

    @property
    def training_state(self) -> int:
        """Weights, index, gradient and optimizer state: what is held all the time."""
        return self.weights + self.index + self.gradient + self.optimizer

    @property
    def in_growth_window(self) -> int:
        """The most that is held between two steps."""
        return self.training_state + self.growth_scores + self.record

    def to_dict(self) -> dict[str, int]:
        """All figures by name, sums included."""
        single = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**single, "training_state": self.training_state, "in_growth_window": self.in_growth_window}


# --- budgets --------------------------------------------------------------------------------------


def groups_of(
    tables: Sequence[Table], joint: bool, density: float | None = None, budget: int | None = None
) -> list[Group]:
    """The tables as one group or as a group each, with the budgets that training would give them.

    Args:
        density: in (0, 1], of each group; or
        budget: live weights over all groups, at least one for each and at most all.
    """
    parts = [tuple(tables)] if joint else [(table,) for table in tables]
    sizes = [sum(table.weights for table in part) for part in parts]
    if budget is not None:
        rest = allocate(budget - len(sizes), [float(size) for size in sizes], [size - 1 for size in sizes])
        budgets = [1 + more for more in rest]
    else:
        assert density is not None
        budgets = [budget_of_density(size, density) for size in sizes]
    return [Group(part, live) for part, live in zip(parts, budgets, strict=True)]


def shared_out(groups: Sequence[Group], workers: int) -> list[Group]:
    """The largest share when the rows of every table, and with them live weights, are split evenly.

    ``workers`` ≥ 1. Shares are rounded up, so times ``workers`` they are at least the whole.
    """
    shares = []
    for group in groups:
        tables = tuple(replace(table, rows=-(-table.rows // workers)) for table in group.tables)
        shares.append(Group(tables, -(-group.live // workers)))
    return shares


# --- bytes ----------------------------------------------------------------------------------------


def optimizer_bytes(weights: int, parameters: int, setup: Setup) -> int:
    """Optimizer state of ``weights`` weights in ``parameters`` parameters, after the first step."""
    state = OPTIMIZERS[setup.optimizer]
    tensors = state.with_momentum if setup.momentum and state.with_momentum else state.tensors
    return weights * setup.value_bytes * tensors + parameters * state.step_bytes


def growth_bytes(groups: Sequence[Group], setup: Setup) -> int:
    """The most that growth scores hold inside a growth window; 0 where every weight is live.

    Groups share the growth memory as :func:`split_score_memory` says. Where not all rows are
    scored, the numbers of those that are (8 bytes each) and the inverse (4 bytes a row) count too.
    A growth memory that training would refuse counts as :func:`least_growth_memory`.
    """
    growing = [group for group in groups if group.live < group.weights]
    shares: list[int | None] = [None] * len(growing)
    if setup.growth_memory is not None:
        least = _each_least(growing, setup)
        most = [most_score_memory(group.shapes, setup.score_bytes, setup.growth_rows) for group in growing]
        shares = [*split_score_memory(max(setup.growth_memory, sum(least)), least, most)]
    return sum(_scores_of(group, share, setup) for group, share in zip(growing, shares, strict=True))


def _scores_of(group: Group, memory: int | None, setup: Setup) -> int:
    shapes, size = group.shapes, setup.score_bytes
    counts = scored_row_counts(shapes, size, memory, setup.growth_rows)
    return group.weights * size if counts is None else sample_bytes(shapes, counts, size)


def least_growth_memory(groups: Sequence[Group], setup: Setup) -> int:
    """The smallest growth memory that training accepts: a row of every table, or all if that is less."""
    return sum(_each_least([group for group in groups if group.live < group.weights], setup))


def _each_least(growing: Sequence[Group], setup: Setup) -> list[int]:
    return [least_score_memory(group.shapes, setup.score_bytes, setup.growth_rows) for group in growing]


def record_bytes(group: Group) -> int:
    """The exploration record: one bit per position."""
    return (group.weights + 7) // 8


def artifact_bytes(group: Group, values: str, sparse: bool) -> int:
    """A served artifact: values; sparse also column ids and the number of live weights in each row.

    That number takes one byte while it fits into one whatever the topology, that is up to 255 columns. Ids are
    counted as the widest table's: how many of the live weights are in each table is the topology's choice.
    What would be larger sparse is written dense. Headers, the manifest and the tokens of users and items are
    not counted.
    """
    rows = sum(table.rows for table in group.tables)
    scales = rows * INT8_SCALE_BYTES if values == "int8" else 0
    dense = group.weights * ARTIFACT_VALUES[values] + scales
    if not sparse:
        return dense
    widest = max(table.columns for table in group.tables)
    ids = group.live * _count_bytes(widest - 1)  # from 0 on, unsigned
    counts = sum(table.rows * _count_bytes(table.columns) for table in group.tables)
    return min(dense, group.live * ARTIFACT_VALUES[values] + scales + ids + counts)


def _count_bytes(columns: int) -> int:
    """Bytes of a whole number from 0 to ``columns``."""
    return next(size for size in (1, 2, 4, 8) if columns < 2 ** (8 * size))


def dense_bytes(groups: Sequence[Group], setup: Setup) -> Bytes:
    """What RecBole's own dense training of the same tables holds."""
    weights = sum(group.weights for group in groups)
    tables = sum(len(group.tables) for group in groups)
    stored = weights * setup.value_bytes
    optimizer = optimizer_bytes(weights, tables, setup)
    return Bytes(
        weights=stored,
        index=0,
        gradient=stored,
        optimizer=optimizer,
        growth_scores=0,
        record=0,
        checkpoint=stored + optimizer,
        artifact=sum(artifact_bytes(group, setup.artifact_values, sparse=False) for group in groups),
    )


def sparse_bytes(groups: Sequence[Group], setup: Setup) -> Bytes:
    """What packed training holds."""
    live = sum(group.live for group in groups)
    stored = live * setup.value_bytes
    index = sum(index_bytes(group.shapes, group.live) for group in groups)
    optimizer = optimizer_bytes(live, len(groups), setup)
    return Bytes(
        weights=stored,
        index=index,
        gradient=stored,
        optimizer=optimizer,
        growth_scores=growth_bytes(groups, setup),
        record=sum(record_bytes(group) for group in groups),
        checkpoint=stored + index + optimizer,
        artifact=sum(artifact_bytes(group, setup.artifact_values, sparse=True) for group in groups),
    )


def ring_bytes(elements: int, element_bytes: int, workers: int) -> int:
    """What each worker sends in a ring all-reduce: 2 · (workers − 1) chunks of 1 / workers, rounded up."""
    return 2 * (workers - 1) * -(-elements // workers) * element_bytes


# --- a plan ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """The same figures of a dense and of a sparse training."""

    dense: Bytes
    sparse: Bytes

    def to_dict(self) -> dict[str, dict[str, int]]:
        """Both by name."""
        return {"dense": self.dense.to_dict(), "sparse": self.sparse.to_dict()}


@dataclass(frozen=True)
class Plan:
    """A training on ``workers`` ≥ 1 devices, in two ways to use them.

    :attr:`replicated` is what one device holds when every device has all weights, as in data-parallel
    training; :attr:`sharded` when each device has its share of the rows. ``notes``: sentences about the
    assumptions.
    """

    groups: tuple[Group, ...]
    setup: Setup
    workers: int = 1
    notes: tuple[str, ...] = ()

    @property
    def weights(self) -> int:
        """Number of weights, dead ones included."""
        return sum(group.weights for group in self.groups)

    @property
    def live(self) -> int:
        """Number of live weights."""
        return sum(group.live for group in self.groups)

    @property
    def replicated(self) -> Comparison:
        """One copy of everything; every data-parallel device holds one."""
        return _comparison(self.groups, self.setup)

    @property
    def sharded(self) -> Comparison:
        """The share of one device when rows are shared out."""
        return _comparison(shared_out(self.groups, self.workers), self.setup)

    @property
    def traffic(self) -> dict[str, int]:
        """Bytes of gradients that each data-parallel worker sends in a step, dense and sparse."""
        size = self.setup.value_bytes
        numbers = {"dense": self.weights, "sparse": self.live}
        return {kind: ring_bytes(number, size, self.workers) for kind, number in numbers.items()}

    @property
    def state_on_all(self) -> dict[str, dict[str, int]]:
        """Training state summed over the devices, for both ways to use them."""
        ways = {"replicated": self.replicated, "row_sharded": self.sharded}
        return {
            way: {
                "dense": each.dense.training_state * self.workers,
                "sparse": each.sparse.training_state * self.workers,
            }
            for way, each in ways.items()
        }

    def to_dict(self) -> dict[str, object]:
        """Everything as JSON-able values, bytes exact."""
        return {
            "groups": [asdict(group) for group in self.groups],
            "weights": self.weights,
            "live": self.live,
            "workers": self.workers,
            "settings": asdict(self.setup),
            "bytes_per_device": {
                "replicated": self.replicated.to_dict(),
                "row_sharded": self.sharded.to_dict(),
            },
            "training_state_on_all_devices": self.state_on_all,
            "gradient_bytes_sent_per_step_and_worker": self.traffic,
            "notes": list(self.notes),
        }


def _comparison(groups: Sequence[Group], setup: Setup) -> Comparison:
    return Comparison(dense_bytes(groups, setup), sparse_bytes(groups, setup))


# --- text -----------------------------------------------------------------------------------------

LINES: Final = (
    ("weights", "weights"),
    ("index", "index"),
    ("gradient", "gradient"),
    ("optimizer", "optimizer state"),
    ("training_state", "= training state"),
    ("growth_scores", "growth scores, at most"),
    ("record", "exploration record"),
    ("in_growth_window", "= inside a growth window"),
    ("checkpoint", "checkpoint file"),
    ("artifact", "served artifact"),
)
"""Figures of :meth:`Bytes.to_dict` and what they are called."""

_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB", "EB")


def readable(amount: int) -> str:
    """``amount`` ≥ 0 bytes in the largest decimal unit that leaves a number of at least 1: '28.16 GB'."""
    power = min((len(str(amount)) - 1) // 3, len(_UNITS) - 1)
    return f"{amount / 1000**power:.4g} {_UNITS[power]}"


def as_text(plan: Plan) -> str:
    """The plan as aligned columns of at most 100 characters."""
    several = plan.workers > 1
    blocks = {"every data-parallel device" if several else "one device": plan.replicated}
    if several:
        blocks["each device, rows shared out"] = plan.sharded
    lines = [*_headline(plan), "", " " * 26 + "".join(f"{title:>34}" for title in blocks)]
    lines.append(" " * 26 + f"{'dense':>12}{'sparse':>12}{'ratio':>10}" * len(blocks))
    tables = [comparison.to_dict() for comparison in blocks.values()]
    for name, label in LINES:
        pairs = [(table["dense"][name], table["sparse"][name]) for table in tables]
        lines.append(f"{label:<26}" + "".join(_cells(*pair) for pair in pairs))
    if several:
        replicated, sharded = (plan.state_on_all[way] for way in ("replicated", "row_sharded"))
        sent = plan.traffic
        state = _cells(replicated["dense"], replicated["sparse"]) + _cells(sharded["dense"], sharded["sparse"])
        lines.append(f"{'state on all devices':<26}{state}")
        lines.append(f"{'gradient sent per step':<26}{_cells(sent['dense'], sent['sparse'])}")
    for note in plan.notes:
        lines += ["", *textwrap.wrap(note, 100)]
    return "\n".join(line.rstrip() for line in lines)


def _headline(plan: Plan) -> list[str]:
    """What is planned: each group's tables and budget, and how it is trained."""
    lines = []
    for group in plan.groups:
        tables = " + ".join(f"{t.name} {t.rows:,} × {t.columns:,}" for t in group.tables)
        share = f"{group.live / group.weights:.4g}"
        text = f"{tables}: {group.weights:,} weights, {group.live:,} live (density {share})"
        lines += textwrap.wrap(text, 100)
    setup = plan.setup
    momentum = " with momentum" if setup.momentum else ""
    devices = "1 device" if plan.workers == 1 else f"{plan.workers:,} devices"
    how = f"{setup.optimizer}{momentum}, {setup.precision}, {setup.artifact_values} served, {devices}"
    return [*lines, how]


def _cells(dense: int, sparse: int) -> str:
    """Three columns: both amounts and their ratio; a dash for what dense training does not have."""
    if not dense:
        return f"{'-':>12}{readable(sparse):>12}{'':>10}"
    return f"{readable(dense):>12}{readable(sparse):>12}{sparse / dense:>10.4g}"
