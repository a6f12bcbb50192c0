"""``dsl_width: auto``: which width the interactions choose, and that a run keeps it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from recbole_dsl import load_data_and_model
from recbole_dsl.cli import main
from recbole_dsl.config import RecBoleDSLConfig
from recbole_dsl.experiment import build_model, choose_width, load_data, run_recbole_dsl
from recbole_dsl.handle import insert
from recbole_dsl.settings import DSLConfig
from recbole_dsl.sparsity import ranking, width
from recbole_dsl.sparsity.factors import FACTORISATIONS, Factorisation
from recbole_dsl.sparsity.interactions import Interactions
from recbole_dsl.training.trainer import sparse_trainer
from tests.model_runs import no_flags, settings_of, sparse_trainer_of
from tests.tiny_data import NAME

pytestmark = pytest.mark.usefixtures("in_folder")


def blocks(count: int, size: int, each: int, seed: int = 0) -> Interactions:
    """``count`` groups of ``size`` users, each with ``each`` of the ``size`` items of its group."""
    draw = torch.Generator().manual_seed(seed)
    pairs = [
        (b * size + u, b * size + int(i))
        for b in range(count)
        for u in range(size)
        for i in torch.randperm(size, generator=draw)[:each]
    ]
    users, items = torch.tensor(pairs).T
    return Interactions(users, items, count * size, count * size)


# --- the choice ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "per_row", "qualities", "chosen"),
    [
        (64, 6.4, {64: 0.10, 128: 0.12, 256: 0.14, 512: 0.15, 1024: 0.16}, 1024),
        (64, 6.4, {64: 0.10, 128: 0.12, 256: 0.123}, 128),  # not 3 % better
        (64, 6.4, {64: 0.10, 128: 0.102, 256: 0.9}, 64),  # a climb does not look beyond a step
        (64, 1.6, {64: 0.10, 128: 0.05, 32: 0.106, 16: 0.112}, 16),
        (64, 1.6, {64: 0.10, 128: 0.05, 32: 0.104}, 64),  # not 5 % better
        (64, 3.2, {64: 0.10, 128: 0.05, 32: 0.106}, 32),  # of 16 columns a fifth would live
        (64, 6.4, {64: 0.10, 128: 0.05}, 64),
        (64, 40.0, {64: 0.10, 128: 0.05}, 64),
        (300, 6.4, {300: 0.1, 600: 0.2}, 600),  # 1200 would be too many
        (2000, 6.4, {2000: 0.1, 1000: 0.05}, 2000),
        (1000, 1.6, {1000: 0.1, 500: 0.2, 250: 0.3}, 250),
        (256, 6.4, {256: 0.0, 512: 0.0, 1024: 0.0}, 1024),  # nothing is found: no reason to stay
    ],
)
def test_the_climb(
    own: int, per_row: float, qualities: dict[int, float], chosen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the model's width by doublings or halvings; no other width is tried."""
    monkeypatch.setattr(width, "ranking_quality", lambda _k, _a, columns, *_: qualities[columns])
    assert width.best_width(blocks(4, 6, 4), own, per_row, 0, "nmf", 1024) == chosen


@pytest.mark.parametrize(("widest", "chosen"), [(1, 64), (127, 64), (128, 128), (300, 256)])
def test_no_more_than_the_widest(widest: int, chosen: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever would rank better; the model's own columns may be more."""
    monkeypatch.setattr(width, "ranking_quality", lambda _k, _a, columns, *_: float(columns))
    assert width.best_width(blocks(4, 6, 4), 64, 6.4, 0, "nmf", widest) == chosen


def test_factors_that_take_more_than_they_may_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 × 24 rows of 128 columns take 24,576 bytes."""
    monkeypatch.setattr(width, "ranking_quality", lambda _k, _a, columns, *_: float(columns))
    monkeypatch.setattr(width, "FACTOR_BYTES", 24_576)
    assert width.best_width(blocks(4, 6, 4), 64, 6.4, 0, "nmf", 1024) == 128


@pytest.mark.parametrize("kind", FACTORISATIONS)
def test_many_small_groups_get_many_columns(kind: str) -> None:
    """60 groups are told apart by 64 columns, not by 16."""
    assert width.best_width(blocks(60, 8, 5), 16, 3.0, 0, kind, 64) == 64


def test_few_large_groups_get_few_columns() -> None:
    """Two groups and a budget of 1.6 weights in each row, a tenth of 16."""
    assert width.best_width(blocks(2, 100, 30), 32, 1.6, 0, "nmf", 256) == 16


@pytest.mark.parametrize("kind", FACTORISATIONS)
def test_the_same_seed_chooses_the_same_and_draws_from_no_global_generator(kind: str) -> None:
    """The split, the factors and the users that are asked have generators of their own."""
    before = torch.get_rng_state()
    some = blocks(10, 10, 5)
    known, asked = width._split(some, 3)
    one, two = (width.ranking_quality(known, asked, 8, 3.0, 3, kind) for _ in range(2))
    assert one == two and 0 < one <= 1
    assert torch.equal(torch.get_rng_state(), before)


def test_a_tenth_is_held_out_and_repeated_pairs_are_one() -> None:
    """Known and asked pairs are all pairs, each once."""
    users, items = torch.arange(2000) % 50, torch.arange(2000) % 37
    known, asked = width._split(Interactions(users, items, 50, 37), 0)
    pairs = [set(zip(part.users.tolist(), part.items.tolist(), strict=True)) for part in (known, asked)]
    assert not pairs[0] & pairs[1] and len(pairs[0] | pairs[1]) == len(known.users) + len(asked.users)
    assert pairs[0] | pairs[1] == set(zip(users.tolist(), items.tolist(), strict=True))
    assert 0.07 < len(pairs[1]) / 1850 < 0.13


def test_ndcg_by_hand() -> None:
    """Found at ranks 1 and 3 of two: (1 + ½) / (1 + 1/log₂3); at rank 2 of one: 1/log₂3."""
    ranked = torch.tensor([[4, 0, 2], [1, 3, 0]])
    wanted = torch.tensor([[0, 0, 1, 0, 1], [0, 0, 0, 1, 0]], dtype=torch.bool)
    second = 1 / torch.tensor(3.0).log2()
    torch.testing.assert_close(ranking._ndcg(ranked, wanted), torch.stack([1.5 / (1 + second), second]))


def test_users_are_ranked_in_blocks_that_the_catalogue_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more scores at once than allowed, at least one user's; the result is that of all at once."""
    draw = torch.Generator().manual_seed(0)
    ids = [torch.randint(50, (600,), generator=draw) for _ in range(4)]
    asked, known = (Interactions(users, items, 50, 50) for users, items in (ids[:2], ids[2:]))
    tables = [torch.rand(50, 4, generator=draw) for _ in range(2)]
    found, shapes, marks = [], [], ranking._Items.marks

    def noted(self: Any, first: int, like: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(like.shape))
        return marks(self, first, like)

    monkeypatch.setattr(ranking._Items, "marks", noted)
    for scores in (2**25, 50 * 7, 1):
        monkeypatch.setattr(ranking, "SCORES", scores)
        found.append(ranking.ndcg(*tables, asked, 0, known))
    assert found[1:] == pytest.approx([found[0]] * 2) and 0 < found[0] < 1
    assert {rows for rows, _ in shapes} == {50, 7, 1}
    assert ranking.ndcg(*tables, Interactions(*torch.empty(2, 0, dtype=torch.int64), 50, 50), 0, known) == 0


@pytest.mark.parametrize("kind", FACTORISATIONS)
def test_known_items_are_not_ranked(kind: str) -> None:
    """One block of which each user lacks one item: with it alone left to rank, the ranking is perfect."""
    known = Interactions(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 2]), 2, 3)
    asked = Interactions(torch.tensor([0, 1]), torch.tensor([2, 0]), 2, 3)
    assert width.ranking_quality(known, asked, 2, 2.0, 0, kind) == pytest.approx(1.0)


@pytest.mark.parametrize("kind", FACTORISATIONS)
def test_the_norm_to_start_from_is_what_the_factors_say_of_their_own_interactions(kind: str) -> None:
    """4.5 × NDCG@10: two blocks of users are described by two columns, half as well by one; at least 0.1."""
    users, items = torch.arange(40).repeat_interleave(10), torch.arange(10).repeat(40)
    apart = Interactions(users, items + 10 * (users % 2), 40, 20)
    assert apart.trusted_norm(2, 0, Factorisation(kind)) == pytest.approx(4.5)
    assert 0.1 < apart.trusted_norm(1, 0, Factorisation("nmf")) < 4.0  # a single sign
    assert apart.trusted_norm(2, 0, Factorisation(kind)) == apart.trusted_norm(2, 0, Factorisation(kind))
    far = Interactions(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), 40, 20)
    assert far.trusted_norm(2, 0, Factorisation(kind)) == 0.1
    assert apart.trusted_norm(2, 0, Factorisation(kind), alone=True) == pytest.approx(13.5)


@pytest.mark.parametrize(
    ("users", "items", "first"),
    [
        (20, 20, "both"),
        (10, 21, "user"),
        (21, 10, "item"),
        (10, 20, "both"),
        (20, 10, "both"),
        (21, 21, "user"),
    ],
)
def test_the_budget_begins_in_the_smaller_table_if_rows_of_the_other_have_little(
    users: int, items: int, first: str
) -> None:
    """Of 200 pairs, one of them twice, fewer than ten for every row of 21."""
    pairs = torch.arange(201) % 200
    of = Interactions(pairs % users, pairs // users % items, users, items)
    assert torch.unique(of.users * items + of.items).numel() == 200
    both = {"user", "item"}
    assert of.begins_in("auto") == (both if first == "both" else {first})
    assert (of.begins_in("both"), of.begins_in("users"), of.begins_in("items")) == (both, {"user"}, {"item"})


def test_the_setting_reaches_the_topology(data: Path) -> None:
    """A budget with room in one table leaves the other empty at first."""
    live = {}
    for tables in ("both", "users", "items"):
        wanted = {"density": 0.05, "init": "spectral", "init_tables": tables, "groups": "joint"}
        trainer, _ = sparse_trainer_of("BPR", settings_of("BPR", data), **wanted)
        live[tables] = trainer.sparse.groups[0].live_per_tensor()
    assert all(live["both"]) and sum(live["both"]) == sum(live["users"]) == sum(live["items"])
    assert live["users"][1] == live["items"][0] == 0


@pytest.mark.parametrize(
    ("dsl", "expected"),
    [
        ({"init_tables": "users", "density": 0.05}, True),
        ({"init_tables": "both", "density": 0.05}, False),
        ({"init_tables": "users", "density": 0.9}, False),  # more than the users' table holds
        ({"init_tables": "users", "density": 0.05, "groups": "per_tensor"}, False),
    ],
    ids=str,
)
def test_values_are_larger_only_where_one_table_begins_alone(
    dsl: dict[str, Any], expected: bool, data: Path
) -> None:
    """Three times, and in no table that is by itself in its group."""
    wanted = {"init": "spectral", "init_values": "topology", "init_norm": "auto", "groups": "joint", **dsl}
    trainer, _ = sparse_trainer_of("BPR", settings_of("BPR", data), **wanted)
    plain, _ = sparse_trainer_of("BPR", settings_of("BPR", data), **{**wanted, "init_tables": "both"})
    assert trainer.sparse.norms
    for name, norm in trainer.sparse.norms.items():
        assert norm == pytest.approx((3.0 if expected else 1.0) * plain.sparse.norms[name])
    if "groups" in dsl:
        assert torch.equal(trainer.sparse.groups[1].live_positions(), plain.sparse.groups[1].live_positions())


def test_auto_is_a_norm(data: Path) -> None:
    """Chosen for LightGCN with dsl_plus; training starts from other values than with a norm of one's own."""
    found = {}
    for norm in (None, 0.5, 1.0):
        own = {} if norm is None else {"dsl_init_norm": norm}
        config = config_of(data, "LightGCN", dsl_method="dsl_plus", **own)
        assert config.dsl.init_norm == ("auto" if norm is None else norm)
        _, train, *_ = load_data(config)
        trainer = sparse_trainer(config["MODEL_TYPE"], *config.lineage)(
            config, build_model(config, train), train
        )
        found[norm] = trainer.sparse.groups[0].live_values().norm()
        (told,) = trainer.sparse.norms.values()
        assert 0.1 <= told <= 4.5 if norm is None else told == norm
    assert found[1.0] == pytest.approx(2 * float(found[0.5]))
    assert found[None] not in (found[0.5], found[1.0])


def test_without_interactions_to_ask_for_the_width_stays() -> None:
    """A single pair is not held out by this seed."""
    one = torch.tensor([0])
    assert width.best_width(Interactions(one, one, 2, 2), 16, 1.0, 0, "nmf", 256) == 16


# --- in a run --------------------------------------------------------------------------------------


def config_of(data: Path, model: str = "BPR", **more: Any) -> RecBoleDSLConfig:
    with no_flags():
        return RecBoleDSLConfig(model, NAME, config_dict={**settings_of(model, data), **more})


def test_a_run_tells_what_was_chosen_and_is_loaded_with_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is chosen anew from the checkpoint, for which a last bit could make a difference."""
    settings = {**settings_of("BPR", data), "epochs": 1, "checkpoint_dir": str(tmp_path / "saved")}
    settings |= {"dsl_width": "auto", "dsl_density": 0.25}
    monkeypatch.setattr("recbole_dsl.experiment.best_width", lambda *_: 24)
    with no_flags():
        result = run_recbole_dsl("BPR", NAME, config_dict=settings)
    assert result.config["dsl_width"] == 24 and result.config["embedding_size"] == 16
    assert [t["shape"][1] for g in result.sparsity["groups"] for t in g["tensors"]] == [24, 24]
    assert result.sparsity["live"] == result.sparsity["budget"] == (73 + 111) * 4
    assert result.costs["preparation_seconds"] > 0

    monkeypatch.setattr("recbole_dsl.experiment.best_width", lambda *_: pytest.fail("chosen again"))
    file = next(f for f in (tmp_path / "saved").glob("*.dsl") if not f.name.endswith("-last.dsl"))
    _, model, *_ = load_data_and_model(file)
    assert model.user_embedding.weight.shape[1] == 24
    assert main(["to-recbole", str(file), "--out", str(tmp_path / "dense.pth")]) == 0
    dense = torch.load(tmp_path / "dense.pth", weights_only=False)
    assert dense["config"]["embedding_size"] == dense["state_dict"]["user_embedding.weight"].shape[1] == 24
    with no_flags():
        again = run_recbole_dsl("BPR", NAME, config_dict={**settings, "epochs": 2, "dsl_resume": True})
    assert again.config["dsl_width"] == 24 and again.epochs_run == 2


@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("BPR", {"dsl_density": 1.0}),
        ("BPR", {"dsl_budget": 500}),
        ("BPR", {"dsl_init": "random"}),
        ("NeuMF", {"dsl_method": "dsl_plus"}),  # has no embedding_size of that name
        ("DeepFM", {}),
    ],
)
def test_where_there_is_nothing_to_choose_the_width_stays(model: str, more: dict[str, Any], data: Path) -> None:
    """The model is built as it would be without the key."""
    config = config_of(data, model, dsl_width="auto", **more)
    if model == "NeuMF":
        config["embedding_size"] = None
    train_data = load_data(config)[1]
    assert choose_width(config, train_data) is None
    shapes = {name: p.shape for name, p in build_model(config, train_data).named_parameters()}
    assert config["dsl_width"] is None and config.dense_sizes is None
    plain = config_of(data, model, dsl_width=None, **more)
    assert shapes == {name: p.shape for name, p in build_model(plain, train_data).named_parameters()}


@pytest.mark.parametrize(("columns", "rows"), [(64, 18 + 28), (24, 49 + 74), (16, None), (8, None)])
def test_wider_tables_are_scored_in_as_many_positions_as_dense_has(
    columns: int, rows: int | None, data: Path
) -> None:
    """By hand: 16 / 64 and 16 / 24 of 73 and 111 rows, each with eight bytes for its number; else all rows."""
    settings = {**settings_of("BPR", data), "dsl_width": columns, "dsl_density": 0.1, "dsl_growth_rows": "auto"}
    settings |= {"dsl_update_interval": 2, "dsl_end": "100%"}
    with no_flags():
        result = run_recbole_dsl("BPR", NAME, config_dict=settings)
    bytes_of_all = (73 + 111) * columns * 4
    expected = bytes_of_all if rows is None else rows * (columns * 4 + 8) + (73 + 111) * 4
    assert result.costs["growth_bytes"] == expected and result.updates


def test_every_group_scores_its_own_share() -> None:
    """A table that is four times as wide as the dense model's beside one of its width."""
    model = torch.nn.ModuleDict({"wide": torch.nn.Embedding(40, 64), "own": torch.nn.Embedding(20, 16)})
    dense = {"wide.weight": 40 * 16, "own.weight": 20 * 16}
    config = DSLConfig.from_config(
        {"dsl_growth_rows": "auto", "dsl_groups": "per_tensor", "dsl_min_weights": 1, "dsl_density": 0.2}
        | {"dsl_grow": "accumulated_gradient", "dsl_update_interval": 2, "dsl_end": 8}
    )
    handle = insert(model, config, spans=lambda _: (2, 8), dense_size=lambda t: dense[t.name])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    handle.attach(optimizer)
    scored = {}
    for _ in range(2):
        for group in handle.groups:
            rows = group.growth_scores.where.rows if group.growth_scores is not None else None
            scored[group.name] = None if rows is None else [len(r) for r in rows]
        optimizer.zero_grad()
        sum(table.weight.square().sum() for table in model.values()).backward()
        optimizer.step()
    assert scored == {"wide.weight": [10], "own.weight": None}


def test_weights_from_a_file_keep_their_width(data: Path, tmp_path: Path) -> None:
    """The file has its own number of columns."""
    config = config_of(data, dsl_width="auto", dsl_start_from=str(tmp_path / "x.pth"), dsl_init_values="model")
    assert choose_width(config, load_data(config)[1]) is None


@pytest.mark.parametrize(
    ("more", "columns"),
    [({}, 32), ({"dsl_width": " 3X "}, 48), ({"embedding_size": 10}, 20), ({"dsl_width": "1x"}, None)]
    + [(more, None) for more in ({"dsl_density": 1.0}, {"dsl_budget": 500}, {"dsl_width": None})],
)
def test_so_many_times_the_models_own_columns(more: dict[str, Any], columns: int | None, data: Path) -> None:
    """Of GRU4Rec twice, by its property file; the budget is that of the width that the model has itself."""
    config = config_of(data, "GRU4Rec", **more)
    train_data = load_data(config)[1]
    model = build_model(config, train_data)
    assert config["dsl_width"] == columns
    own = config["embedding_size"]
    assert model.item_embedding.weight.shape[1] == (columns or own)
    if columns is not None:
        assert config.dense_sizes["item_embedding.weight"] == own * len(model.item_embedding.weight)


def test_dsl_plus_chooses_for_bpr_and_lightgcn(data: Path) -> None:
    """By their property files; another method has the model's width."""
    for model in ("BPR", "LightGCN"):
        assert config_of(data, model).dsl.width == "auto"
        assert config_of(data, model, dsl_method="dsl").dsl.width is None
    assert config_of(data, "NGCF").dsl.width is None
