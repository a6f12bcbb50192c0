"""Initial topologies: exact budgets, ties, seeds, Erdős–Rényi counts, and the nmf factors."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recbole_dsl.errors import ConfigError
from recbole_dsl.sparsity import factors as factors_of
from recbole_dsl.sparsity import selection
from recbole_dsl.sparsity import topology as topologies
from recbole_dsl.sparsity.factors import (
    Factorisation,
    degree_normalised,
    nonnegative_factors,
    scaled,
    spectral_factors,
)
from recbole_dsl.sparsity.interactions import Interactions
from recbole_dsl.sparsity.names import TOPOLOGIES_WITH_VALUES, TOPOLOGY_NAMES
from recbole_dsl.sparsity.randomness import generator_for
from recbole_dsl.sparsity.targets import list_tensors
from recbole_dsl.sparsity.topology import TOPOLOGIES, Factor, Topology, TopologyContext, random_subset


def context(shapes, budget: int, seed: int = 0, initial=None, factors=None) -> TopologyContext:
    """A context with normal initial values and, where not given, random factors."""
    draw = generator_for(7, "initial")
    tables = initial or [torch.randn(*s, generator=draw) for s in shapes]
    if factors is None:
        factors = [torch.rand(*s, generator=draw) for s in shapes]
    known = [Factor(f) if isinstance(f, torch.Tensor) else f for f in factors]
    return TopologyContext(shapes, budget, tables, known, generator_for(seed, "topology"))


def build(name: str, *args, **more) -> Topology:
    """Run the topology ``name`` on :func:`context`."""
    return TOPOLOGIES[name](context(*args, **more))


def test_table_has_exactly_the_names_that_settings_allow() -> None:
    """Settings are checked against names.py."""
    assert tuple(TOPOLOGIES) == TOPOLOGY_NAMES
    proposing = [n for n in TOPOLOGY_NAMES if build(n, [(4, 3)], 5).values is not None]
    assert tuple(proposing) == TOPOLOGIES_WITH_VALUES


@settings(max_examples=80, deadline=None)
@given(
    name=st.sampled_from(TOPOLOGY_NAMES),
    shapes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 6)), min_size=1, max_size=3),
    data=st.data(),
)
def test_every_topology_has_exactly_its_budget(name, shapes, data) -> None:
    """Distinct ascending int64 positions within the group, as many as the budget; same by seed."""
    weights = sum(r * c for r, c in shapes)
    budget = data.draw(st.integers(1, weights))
    topology = build(name, shapes, budget)
    positions = topology.live.tolist()
    assert topology.live.dtype == torch.int64
    assert positions == sorted(set(positions))
    assert len(positions) == budget
    assert 0 <= positions[0] <= positions[-1] < weights
    assert torch.equal(topology.live, build(name, shapes, budget).live)


@pytest.mark.parametrize("name", ["random", "er", "erk"])
def test_random_topologies_depend_on_the_seed(name: str) -> None:
    """Another seed, other positions."""
    first, second = (build(name, [(50, 8)], 80, seed=s).live for s in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("k", [0, 1, 3, 9, 10])
def test_random_subset_is_uniform(k: int) -> None:
    """Over 2000 draws every one of ten numbers appears k/10 of the time, within five sigma."""
    generator, draws = generator_for(3, "subset"), 2000
    subsets = [random_subset(10, k, generator) for _ in range(draws)]
    assert all(s.unique().numel() == k and s.dtype == torch.int64 for s in subsets)
    counts = torch.bincount(torch.cat(subsets), minlength=10)
    sigma = (draws * k / 10 * (1 - k / 10)) ** 0.5
    assert (counts - draws * k / 10).abs().max() <= 5 * sigma


def test_erdos_renyi_splits_by_rows_plus_columns() -> None:
    """160 weights over 100×10 and 20×30 split as 110 : 50; a kernel counts only for erk."""
    live = build("er", [(100, 10), (20, 30)], 160).live
    assert int((live < 1000).sum()) == 110
    shapes = [(8, 4, 3, 3), (20, 30)]
    tables = [torch.zeros(8, 36), torch.zeros(20, 30)]
    in_first = {name: int((build(name, shapes, 68, initial=tables).live < 288).sum()) for name in ("er", "erk")}
    assert in_first == {"er": round(68 * 108 / 158), "erk": 18}


def test_aligned_fills_the_same_columns_of_all_tables() -> None:
    """3 + 2 rows, 12 weights: columns 0 and 1 of every row, then column 2 of the first two."""
    live = build("aligned", [(3, 4), (2, 4)], 12).live.tolist()
    assert live == [0, 1, 2, 4, 5, 6, 8, 9, 12, 13, 16, 17]


def test_magnitude_takes_the_largest_values_over_the_group_lowest_position_first() -> None:
    """|w| over both tables compete, ties go to the lower position."""
    tables = [torch.tensor([[1.0, -3.0], [0.5, 1.0]]), torch.tensor([[2.0, -1.0]])]
    assert build("magnitude", [(2, 2), (1, 2)], 3, initial=tables).live.tolist() == [0, 1, 4]
    assert build("magnitude", [(2, 2), (1, 2)], 4, initial=tables).live.tolist() == [0, 1, 3, 4]


@settings(max_examples=100, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 6)), min_size=1, max_size=3),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    block=st.sampled_from([1, 4, 1000]),
    data=st.data(),
)
def test_aligned_and_magnitude_are_what_a_sort_of_all_positions_says(shapes, dtype, block, data) -> None:
    """By column, or by |w|, then by position; values that are no numbers come last."""
    odd = st.sampled_from([0.0, -0.0, 1.0, -1.0, float("inf"), float("nan"), 1e-40])
    sizes = [rows * cols for rows, cols in shapes]
    flat = data.draw(st.lists(odd | st.floats(-2, 2, width=16), min_size=sum(sizes), max_size=sum(sizes)))
    values = torch.tensor(flat, dtype=dtype)
    initial = [part.view(shape) for part, shape in zip(values.split(sizes), shapes, strict=True)]
    budget = data.draw(st.integers(1, sum(sizes)))
    columns = torch.cat([torch.arange(cols).repeat(rows) for rows, cols in shapes])
    size = values.abs().nan_to_num(nan=-1.0, posinf=torch.inf)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "SCORES_PER_BLOCK", block)
        for name, order in (
            ("aligned", columns.argsort(stable=True)),
            ("magnitude", (-size).argsort(stable=True)),
        ):
            assert torch.equal(
                build(name, shapes, budget, initial=initial).live, order[:budget].sort().values
            ), name


def test_nmf_compares_rows_on_equal_terms() -> None:
    """A row's entries are divided by its norm: (3, 4) gives .6 .8 and (30, 40) no more."""
    factors = [torch.tensor([[30.0, 40.0], [3.0, 4.0], [5.0, 12.0]])]
    assert build("nmf", [(3, 2)], 1, factors=factors).live.tolist() == [5]
    assert build("nmf", [(3, 2)], 3, factors=factors).live.tolist() == [1, 3, 5]


def test_nmf_fills_up_at_random_when_factors_are_zero() -> None:
    """Rows without interactions have zero factors: all positive entries, then a random rest."""
    factors = [torch.zeros(40, 4)]
    factors[0][3] = torch.tensor([1.0, 2.0, 3.0, 0.0])
    topology = build("nmf", [(40, 4)], 50, factors=factors)
    assert topology.live.numel() == 50
    assert {12, 13, 14} <= set(topology.live.tolist())
    assert int(topology.values.count_nonzero()) == 3
    rest = [t for t in topology.live.tolist() if t not in (12, 13, 14)]
    assert min(rest) < 50 and max(rest) > 110, "the rest is spread over the whole table"
    other = build("nmf", [(40, 4)], 50, seed=1, factors=factors)
    assert not torch.equal(topology.live, other.live)


def test_nmf_with_all_zero_factors_is_finite() -> None:
    """No interactions at all: random positions, values zero, nothing is NaN."""
    topology = build("nmf", [(5, 4)], 6, factors=[torch.zeros(5, 4)])
    assert topology.values.tolist() == [0.0] * 6


def test_nmf_values_are_the_factors_and_those_of_the_model_elsewhere() -> None:
    """Of three tables the second says nothing about users or items: 4 of 10 weights, 2 of its 4."""
    initial = [torch.full((2, 2), 0.02), torch.tensor([[0.1, 0.2], [0.3, 0.4]]), torch.full((1, 2), -0.02)]
    factors = [torch.tensor([[3.0, 4.0], [0.0, 1.0]]), None, torch.tensor([[6.0, 8.0]])]
    topology = build("nmf", [(2, 2), (2, 2), (1, 2)], 5, initial=initial, factors=factors)
    known = [p for p in topology.live.tolist() if not 4 <= p < 8]
    assert known == [1, 3, 9]
    everything = torch.cat([torch.tensor([3.0, 4.0, 0.0, 1.0, 0.1, 0.2, 0.3, 0.4, 6.0, 8.0])])
    assert torch.equal(topology.values, everything[topology.live])
    half = TOPOLOGIES["nmf"](
        replace(context([(2, 2), (2, 2), (1, 2)], 5, initial=initial, factors=factors), norm=0.5)
    )
    scale = torch.tensor([0.5] * 4 + [1.0] * 4 + [0.5] * 2)
    assert torch.equal(half.values, (scale * everything)[half.live])


def test_tables_that_come_later_get_what_the_others_leave() -> None:
    """The entries of the first as far as they are not zero, then those of the second, then anything."""
    factors = [torch.tensor([[0.3, 0.4], [0.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.6, 0.8]])]
    initial = [torch.zeros(2, 2)] * 2
    for budget, live in ((2, [1, 3]), (3, [0, 1, 3]), (4, [0, 1, 3, 4]), (6, [0, 1, 3, 4, 6, 7])):
        both = context([(2, 2), (2, 2)], budget, initial=initial, factors=factors)
        found = TOPOLOGIES["spectral"](replace(both, later=[False, True])).live
        assert found.tolist() == live
        other = TOPOLOGIES["spectral"](replace(both, later=[True, True])).live
        assert torch.equal(other, TOPOLOGIES["spectral"](both).live)
    found = TOPOLOGIES["spectral"](replace(both, budget=2, later=[True, False])).live
    assert found.tolist() == [4, 7]


def test_scaled_factors_rank_as_the_matrix_does() -> None:
    """Users have norm 1, items their popularity: √degree times their factor, norms of 1 on average."""
    users = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    items = torch.tensor([[1.0, 0.0], [0.0, 0.5], [0.0, 0.0]])
    w, h = scaled(users, items, torch.tensor([4.0, 16.0, 0.0]))
    torch.testing.assert_close(w, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    torch.testing.assert_close(h, torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
    # 1 and ½, times degree^popularity, in proportion:
    lengths = {-0.5: (4.0, 1.0), 0.0: (2.0, 1.0), 1.0: (1.0, 2.0)}
    for popularity, (first, second) in lengths.items():
        h = scaled(users, items, torch.tensor([4, 16, 0]), popularity)[1]
        mean = ((first**2 + second**2) / 2) ** 0.5
        torch.testing.assert_close(h.norm(dim=1), torch.tensor([first, second, 0.0]) / mean)
    nothing = scaled(torch.zeros(2, 2), torch.zeros(3, 2), torch.zeros(3))
    assert all(torch.equal(t, torch.zeros_like(t)) for t in nothing)


def test_nmf_without_interactions_is_refused() -> None:
    """The message names what is allowed instead."""
    bad = TopologyContext([(2, 2)], 2, [torch.zeros(2, 2)], None, generator_for(0, "x"))
    with pytest.raises(ConfigError, match="allowed without them are 'random'"):
        TOPOLOGIES["nmf"](bad)


def test_factors_find_blocks_and_leave_silent_rows_zero() -> None:
    """Two blocks of users and items get separate factors; a user without items is all zero."""
    pairs = [(u, i) for u in range(6) for i in range(4) if u < 5 and (u < 3) == (i < 2)]
    users, items = torch.tensor(pairs).T
    matrix = degree_normalised(users, items, 6, 4)
    assert matrix.to_dense()[0, 0].item() == pytest.approx(1 / (2 * 3) ** 0.5)
    w, h = nonnegative_factors(matrix, 2, generator_for(0, "nmf"), iterations=200)
    assert w.min() >= 0 and h.min() >= 0
    assert w[5].tolist() == [0.0, 0.0]
    torch.testing.assert_close(w @ h.T, matrix.to_dense(), atol=1e-3, rtol=0)
    assert set(w[:3].argmax(1).tolist()).isdisjoint(w[3:5].argmax(1).tolist())


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_spectral_factors_find_blocks(power: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three blocks of ones are three columns of one sign each, whatever mixes of them the singular vectors are.

    A user without items is zero, as are columns beyond the matrix's rank; inner products at ½ are the matrix.
    """
    monkeypatch.setattr(factors_of, "ENOUGH", 0.0)  # the rotation is gone through to its end
    blocks = {0: (0, 1), 1: (2, 3), 2: (4, 5)}
    pairs = [(u, i) for u in range(9) for i in blocks[u // 3]]
    users, items = torch.tensor(pairs).T
    matrix = degree_normalised(users, items, 10, 7)
    w, h = spectral_factors(matrix, 5, generator_for(0, "spectral"), power)
    assert w.shape == (10, 5) and h.shape == (7, 5)
    for factor, rows, each in ((w, 9, 3), (h, 6, 2)):
        live = factor.abs() > 1e-3
        assert live[:rows].sum(1).tolist() == [1] * rows and not live[rows:].any()
        columns = live[:rows].int().argmax(1)
        assert [len(set(columns[n : n + each].tolist())) for n in range(0, rows, each)] == [1, 1, 1]
        assert len(set(columns.tolist())) == 3
        assert torch.equal(factor[rows:], torch.zeros_like(factor[rows:]))
    # All singular values are 1, so no power changes anything.
    torch.testing.assert_close(w @ h.T, matrix.to_dense(), atol=1e-4, rtol=0)


@settings(deadline=None, max_examples=30)
@given(n=st.integers(2, 12), m=st.integers(2, 12), rank=st.integers(1, 14), seed=st.integers(0, 99))
def test_spectral_factors_are_the_best_of_their_rank(n: int, m: int, rank: int, seed: int) -> None:
    """At ½ their product is the truncated singular value decomposition; equal generators give equal factors."""
    draw = torch.Generator().manual_seed(seed)
    filled = (torch.rand(n, m, generator=draw) < 0.4).nonzero()
    if not len(filled):
        return
    matrix = degree_normalised(filled[:, 0], filled[:, 1], n, m)
    left, values, right = torch.linalg.svd(matrix.to_dense(), full_matrices=False)
    w, h = spectral_factors(matrix, rank, generator_for(seed, "s"), iterations=40)
    if rank < len(values) and values[rank] > 0.98 * values[rank - 1]:
        return  # which of two equal ones is kept is open
    best = (left[:, :rank] * values[:rank]) @ right[:rank]
    torch.testing.assert_close(w @ h.T, best, atol=2e-3, rtol=0)
    again = spectral_factors(matrix, rank, generator_for(seed, "s"), iterations=40)
    assert torch.equal(w, again[0]) and torch.equal(h, again[1])


def test_spectral_factors_do_not_depend_on_threads() -> None:
    """Nor does what is largest in them, which is the topology; processes of one training compare theirs."""
    draw = torch.Generator().manual_seed(0)
    filled = (torch.rand(400, 300, generator=draw) < 0.05).nonzero()
    matrix = degree_normalised(filled[:, 0], filled[:, 1], 400, 300)
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found.append(torch.cat(spectral_factors(matrix, 32, generator_for(0, "s"))))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-6, rtol=1e-5)
        largest = [set(f.abs().flatten().topk(2000).indices.tolist()) for f in (found[0], other)]
        assert largest[0] == largest[1]


@pytest.mark.parametrize(("n", "m"), [(40, 30), (30, 40)])
def test_blocks_change_no_factor_and_no_topology(n: int, m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products are made of some columns at a time, and entries ranked of some rows at a time."""
    filled = (torch.rand(n, m, generator=torch.Generator().manual_seed(0)) < 0.3).nonzero()
    matrix = degree_normalised(filled[:, 0], filled[:, 1], n, m)

    def made() -> tuple[Tensor, Tensor, Topology]:
        w, h = spectral_factors(matrix, 7, generator_for(0, "s"))
        return w, h, build("spectral", [(n, 7), (m, 7)], 100, factors=[w, h])

    whole = made()
    monkeypatch.setattr(factors_of, "COLUMNS_PER_BLOCK", 3)
    monkeypatch.setattr(factors_of, "ROWS_PER_BLOCK", 4)
    monkeypatch.setattr(topologies, "ROWS_PER_BLOCK", 4)
    parts = made()
    torch.testing.assert_close(parts[:2], whole[:2], atol=1e-6, rtol=1e-5)
    assert torch.equal(parts[2].live, whole[2].live)


def test_a_rotation_ends_when_it_gains_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its 60 iterations, with a criterion that they would raise by less than a hundredth."""
    loadings = torch.nn.functional.normalize(
        torch.rand(80, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 8, dim=1
    )

    def criterion(iterations: int) -> float:
        squares = (loadings @ factors_of.varimax(loadings, iterations)).square()
        return float(squares.var(0, correction=0).sum())

    early, start = criterion(60), criterion(0)
    monkeypatch.setattr(factors_of, "ENOUGH", 0.0)
    late = criterion(60)
    assert start < early < late < 1.01 * early


def test_lower_powers_let_narrow_tastes_count_more() -> None:
    """Power 0 gives all singular vectors the same length, 1 that of their values."""
    draw = torch.Generator().manual_seed(0)
    filled = (torch.rand(30, 20, generator=draw) < 0.3).nonzero()
    matrix = degree_normalised(filled[:, 0], filled[:, 1], 30, 20)
    values = torch.linalg.svdvals(matrix.to_dense())[:4]
    for power in (0.0, 0.3, 1.0):
        w, _ = spectral_factors(matrix, 4, generator_for(0, "s"), power, iterations=60)
        found = torch.linalg.svdvals(w)
        torch.testing.assert_close(found, values**power, atol=1e-3, rtol=1e-3)


def test_repeated_interactions_count_once() -> None:
    """R is binary."""
    once = degree_normalised(torch.tensor([0, 1]), torch.tensor([0, 1]), 2, 2)
    twice = degree_normalised(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 1]), 2, 2)
    assert torch.equal(once.to_dense(), twice.to_dense())


def test_interactions_tell_user_tables_from_item_tables() -> None:
    """By the number of rows, by name when both fit, and None for anything else."""
    model = torch.nn.Module()
    model.user_embedding = torch.nn.Embedding(5, 2)
    model.item_embedding = torch.nn.Embedding(4, 2)
    model.other = torch.nn.Embedding(7, 2)
    user, item, other = list_tensors(model)
    ids = torch.tensor([0, 1])
    different = Interactions(ids, ids, 5, 4)
    assert [different.role(t) for t in (user, item, other)] == ["user", "item", None]
    w, nothing, h = different.factors([user, other, item], 0, Factorisation("nmf"))
    assert (w.entries.shape, nothing, h.entries.shape) == ((5, 2), None, (4, 2))
    same = Interactions(ids, ids, 5, 5)
    assert same.role(user) == "user"


def test_matrices_with_an_output_or_an_input_for_each_item_get_positions() -> None:
    """Of the factor as it is or transposed, by item; values stay theirs. Not where two numbers fit."""
    model = torch.nn.Module()
    model.encoder = torch.nn.Linear(4, 3)
    model.decoder = torch.nn.Linear(3, 4)
    model.users = torch.nn.Linear(3, 5)
    model.square = torch.nn.Linear(4, 4)
    model.between = torch.nn.Linear(5, 4)
    tensors = [t for t in list_tensors(model) if t.kind == "linear"]
    ids = torch.tensor([0, 1, 2, 3, 0])
    known = Interactions(torch.arange(5), ids, 5, 4)
    assert [known.side(t) for t in tensors] == [("item", 1), ("item", 0), ("user", 0), None, None]
    assert not any(known.role(t) for t in tensors)
    encoder, decoder, users, *others = known.factors(tensors, 0, Factorisation("spectral"))
    assert torch.equal(encoder.entries, decoder.entries) and encoder.entries.shape == (4, 3)
    assert users.entries.shape == (5, 3) and others == [None, None]
    assert (encoder.of_columns, decoder.of_columns, users.of_columns) == (True, False, False)
    assert not any(f.as_values for f in (encoder, decoder, users))
    valued = known.factors(tensors, 0, Factorisation("spectral"), linear_norm=0.1)
    assert [f and (f.as_values, f.norm) for f in valued] == [(True, 0.1)] * 3 + [None, None]
    assert torch.equal(valued[0].entries, encoder.entries) and valued[0].of_columns
    as_many = Interactions(ids, ids, 4, 4)
    assert [as_many.side(t) for t in tensors[:2]] == [("item", 1), ("item", 0)]
    model.user_layer = torch.nn.Linear(4, 3)
    assert as_many.side(list_tensors(model)[-2]) == ("user", 1)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 7), columns=st.integers(1, 7), seed=st.integers(0, 3), data=st.data())
def test_a_factor_of_columns_lives_where_its_transpose_does(rows, columns, seed, data) -> None:
    """Position for position, and its values are the initial ones."""
    budget = data.draw(st.integers(1, rows * columns))
    entries = torch.randn(columns, rows, generator=torch.Generator().manual_seed(seed))
    upright = build("spectral", [(columns, rows)], budget, factors=[entries])
    matrix = context([(rows, columns)], budget, factors=[Factor(entries, of_columns=True, as_values=False)])
    turned = TOPOLOGIES["spectral"](matrix)
    marks = torch.zeros(columns * rows)
    marks[upright.live] = 1
    assert torch.equal(turned.live, marks.view(columns, rows).T.reshape(-1).nonzero().flatten())
    assert torch.equal(turned.values, matrix.initial[0].reshape(-1)[turned.live])
    assert turned.norm is None and upright.norm == 1.0
    assert turned.proposes == [False] and upright.proposes == [True]


def test_a_factor_may_have_a_norm_of_its_own() -> None:
    """Beside a table, whose values are multiplied by the context's, and a tensor without factors."""
    table, matrix = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0], [5.0, 0.0]])
    own = Factor(matrix, of_columns=True, norm=0.1)
    both = replace(context([(1, 2), (2, 2), (1, 2)], 4, factors=[table, own, None]), norm=2.0)
    found = TOPOLOGIES["spectral"](both)
    assert found.live.tolist()[:3] == [0, 3, 4] and found.norm == 2.0  # of the matrix [[0, 5], [4, 0]]
    torch.testing.assert_close(found.values[:3], torch.tensor([6.0, 0.5, 0.4]))
    assert found.proposes == [True, True, False]
    alone = TOPOLOGIES["spectral"](replace(context([(2, 2)], 2, factors=[own]), norm=2.0))
    assert alone.norm is None  # nothing has taken the context's
    torch.testing.assert_close(alone.values, torch.tensor([0.5, 0.4]))


def test_nothing_draws_from_a_global_generator() -> None:
    """torch's, numpy's and Python's own generators stay where they were."""
    before = torch.get_rng_state(), repr(np.random.get_state()), random.getstate()
    for name in TOPOLOGY_NAMES:
        build(name, [(9, 4), (5, 4)], 20, factors=[torch.zeros(9, 4), torch.ones(5, 4)])
    ids = torch.tensor([0, 1, 2])
    nonnegative_factors(degree_normalised(ids, ids, 3, 3), 2, generator_for(0, "f"), 3)
    spectral_factors(degree_normalised(ids, ids, 3, 3), 2, generator_for(0, "f"))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert repr(np.random.get_state()) == before[1]
    assert random.getstate() == before[2]
