"""Fast samplers, loaders and evaluation: bit for bit what RecBole's own give, from the same draws."""

from __future__ import annotations

import copy
import pickle
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recbole.data.interaction import Interaction
from recbole.evaluator import Collector, Evaluator
from recbole.evaluator.collector import DataStruct
from recbole.sampler import KGSampler, RepeatableSampler, Sampler
from recbole.utils import KGDataLoaderState, init_seed

from recbole_dsl.config import RecBoleDSLConfig
from recbole_dsl.experiment import build_model, load_data, run_recbole_dsl
from recbole_dsl.training.evaluation import (
    FastCollector,
    Rows,
    UserScores,
    generator_states,
    hits_of,
    same_states,
)
from recbole_dsl.training.loading import SCORES_AT_ONCE, Positions, Table, accelerate
from recbole_dsl.training.sampling import Pairs, vectorise
from recbole_dsl.training.trainer import sparse_trainer
from tests.model_runs import no_flags, settings_of
from tests.recbole_runs import QUIET
from tests.tiny_data import NAME

pytestmark = pytest.mark.usefixtures("in_folder")

RANKING = ["Recall", "MRR", "NDCG", "Hit", "Precision", "MAP", "GAUC", "ShannonEntropy"]
LABELED: dict[str, Any] = {
    "eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "RO", "group_by": None, "mode": "labeled"},
    "load_col": {"inter": ["user_id", "item_id", "rating"], "user": "*", "item": "*"},
    "threshold": {"rating": 4},
    "train_neg_sample_args": None,
    "metrics": ["AUC", "LogLoss", "MAE", "RMSE"],
    "valid_metric": "AUC",
}
ONE = {"distribution": "uniform", "sample_num": 1}
UNI = {"eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "RO", "group_by": "user", "mode": "uni100"}}
POP = {"eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "RO", "group_by": "user", "mode": "pop100"}}
TIMED = {"inter": ["user_id", "item_id", "timestamp"]}
ORDER: dict[str, Any] = {
    "load_col": TIMED,
    "train_neg_sample_args": None,
    "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"},
    "MAX_ITEM_LIST_LENGTH": 6,
}
ORDER_UNI: dict[str, Any] = {
    "load_col": TIMED,
    "loss_type": "BPR",
    "train_neg_sample_args": {"distribution": "uniform", "sample_num": 1},
    "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "uni5"},
    "MAX_ITEM_LIST_LENGTH": 6,
}
DRAWN = {"distribution": "popularity", "sample_num": 3, "alpha": 0.7}
DYNAMIC = {"distribution": "uniform", "sample_num": 2, "dynamic": True, "candidate_num": 3}


# --- samplers ------------------------------------------------------------------------------------


class Dataset:
    """What samplers ask of a dataset."""

    uid_field, iid_field = "user", "item"
    head_entity_field, tail_entity_field = "head", "tail"

    def __init__(self, pairs: list[tuple[int, int]], users: int, items: int) -> None:
        columns = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
        self.inter_feat = Interaction({"user": columns[:, 0], "item": columns[:, 1]})
        self.head_entities, self.tail_entities = columns[:, 0].numpy(), columns[:, 1].numpy()
        self.user_num, self.item_num, self.entity_num = users, items, max(users, items)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[list[tuple[int, int]]], int, int]:
    """Pairs of three phases, users, items; item 1 is never used, so that something can be drawn."""
    users, items = draw(st.integers(2, 6)), draw(st.integers(4, 12))
    pair = st.tuples(st.integers(1, users - 1), st.integers(2, items - 1))
    return [draw(st.lists(pair, min_size=1, max_size=25)) for _ in range(3)], users, items


def make_sampler(kind: str, distribution: str, world: Any) -> Any:
    """A sampler of RecBole's; popularity also knows item 1, as part of what is never refused."""
    phases, users, items = world
    names = ["train", "valid", "test"]
    alpha = 0.75
    if kind == "Sampler":
        # A further user, 0, has the item that no other user has.
        datasets = [Dataset([*pairs, (0, 1)], users, items) for pairs in phases]
        return Sampler(names, datasets, distribution, alpha).set_phase("valid")
    joined = Dataset([*(pair for pairs in phases for pair in pairs), (0, 1)], users, items)
    if kind == "KGSampler":
        return KGSampler(joined, distribution, alpha)
    return RepeatableSampler(names, joined, distribution, alpha).set_phase("test")


def drawn(sampler: Any, keys: Any, items: Any, num: int) -> tuple[Any, tuple[Any, ...]]:
    """What a sampler gives (or the error it raises) and the generators' states afterwards."""
    init_seed(3, True)
    try:
        if isinstance(sampler, KGSampler):
            result = sampler.sample_by_entity_ids(keys, num)
        else:
            result = sampler.sample_by_user_ids(keys, items, num)
    except Exception as error:
        result = repr(error)
    return result, generator_states()


def assert_equal(one: Any, other: Any) -> None:
    """Nested tuples, interactions, tensors and plain values."""
    assert type(one) is type(other)
    if isinstance(one, tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b)
    elif isinstance(one, Interaction):
        assert set(one.columns) == set(other.columns) and len(one) == len(other)
        for name in one.columns:
            assert_equal(one[name], other[name])
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)
    else:
        assert one == other


@pytest.mark.parametrize("distribution", ["uniform", "popularity"])
@pytest.mark.parametrize("kind", ["Sampler", "KGSampler", "RepeatableSampler"])
@settings(max_examples=60, deadline=None)
@given(world=worlds(), data=st.data())
def test_samplers_draw_what_recboles_do(kind: str, distribution: str, world: Any, data: Any) -> None:
    """Same samples, same states, whatever the keys: one, many, equal, repeated, lists or arrays."""
    _, users, _ = world
    slow = make_sampler(kind, distribution, world)
    fast = copy.copy(slow)
    vectorise(fast)
    assert type(fast) is not type(slow) and isinstance(fast, type(slow))
    for _ in range(2):
        keys = data.draw(st.lists(st.integers(1, users - 1), min_size=1, max_size=12))
        items = data.draw(st.lists(st.integers(2, 3), min_size=len(keys), max_size=len(keys)))
        num = data.draw(st.integers(1, 4))
        form = data.draw(st.sampled_from([list, np.array, lambda x: np.array(x, dtype=np.int32)]))
        one, state = drawn(slow, form(keys), form(items), num)
        other, fast_state = drawn(fast, form(keys), form(items), num)
        assert isinstance(one, torch.Tensor)
        assert_equal(one, other)
        assert same_states(state, fast_state)


@pytest.mark.parametrize("keys", [[], [99], [2, 99], [-1, 2], [1.0, 2.0]])
@pytest.mark.parametrize("num", [0, 2])
@pytest.mark.parametrize("kind", ["Sampler", "KGSampler", "RepeatableSampler"])
def test_samplers_refuse_what_recboles_do(kind: str, num: int, keys: list[Any]) -> None:
    """No keys, unknown, negative, or of another type: RecBole's result or error."""
    slow = make_sampler(kind, "uniform", ([[(1, 2), (2, 3)]] * 3, 3, 6))
    fast = copy.copy(slow)
    vectorise(fast)
    one, state = drawn(slow, keys, [2] * len(keys), num)
    other, fast_state = drawn(fast, keys, [2] * len(keys), num)
    assert_equal(one, other)
    assert same_states(state, fast_state)


def test_an_alias_table_may_answer_minus_one() -> None:
    """RecBole's does, for a leftover of rounding; it is no item, and not the last one of the user before."""
    pairs = Pairs([{4}, {0, 4}, set()], 5)
    found = pairs.contain(np.array([1, 1, 1, 2, 0, 2]), np.array([-1, 0, 4, -1, 4, 0]))
    assert found.tolist() == [False, True, True, False, True, False]
    assert not Pairs([set(), set()], 5).contain(np.array([0, 1]), np.array([0, 4])).any()


@settings(max_examples=50, deadline=None)
@given(
    sets=st.lists(st.sets(st.integers(0, 30), max_size=12), min_size=1, max_size=20),
    seed=st.integers(0, 1000),
)
def test_pairs_know_their_pairs(sets: list[set[int]], seed: int) -> None:
    """Every answer is that of the sets."""
    draw = np.random.default_rng(seed)
    keys, values = draw.integers(0, len(sets), 200), draw.integers(0, 31, 200)
    expected = [v in sets[k] for k, v in zip(keys.tolist(), values.tolist(), strict=True)]
    assert Pairs(sets, 31).contain(keys, values).tolist() == expected


def test_a_new_phase_or_distribution_is_noticed() -> None:
    """Tables kept beside RecBole's own are made anew with them."""
    world = ([[(1, 2)], [(1, 3)], [(1, 4)]], 3, 6)
    slow = make_sampler("Sampler", "popularity", world)
    fast = copy.copy(slow)
    vectorise(fast)
    for distribution, used in (("uniform", [set(), {2, 3, 4}, set()]), ("popularity", [set(), {2}, set()])):
        for sampler in (slow, fast):
            sampler.set_distribution(distribution)
            sampler.used_ids = np.array(used)
        one, other = (drawn(s, [1, 2, 1], [2, 2, 2], 5) for s in (slow, fast))
        assert_equal(one[0], other[0])
        assert same_states(one[1], other[1])


def test_samplers_of_ones_own_stay() -> None:
    """A subclass may have changed anything; a sampler without a phase has nothing to look up yet."""

    class Own(Sampler):
        pass

    data = Dataset([(1, 2)], 3, 6)
    own = Own(["train"], [data]).set_phase("train")
    unset = Sampler(["train"], [data])
    for sampler in (own, unset):
        before = type(sampler)
        vectorise(sampler)
        assert type(sampler) is before


# --- loaders -------------------------------------------------------------------------------------


def loaders(model: str, folder: Path, path: str, **keys: Any) -> tuple[Any, list[Any]]:
    """Config and the three loaders of a model on the tiny data, or ``dataset``."""
    sys.argv = sys.argv[:1]
    dataset = keys.pop("dataset", NAME)
    if dataset == NAME:
        keys = {"data_path": str(folder), **keys}
    given = {**QUIET, "dsl_data_path": path, "checkpoint_dir": str(folder / "saved"), **keys}
    config = RecBoleDSLConfig(model, dataset, config_dict=given)
    return config, list(load_data(config)[1:])


def batches(loader: Any, epochs: int = 2) -> Iterator[Any]:
    """All batches of some epochs and the states after each: globals', then the loader's own."""
    for _ in range(epochs):
        for batch in loader:
            yield batch, generator_states(), loader.generator.get_state()


def assert_same_batches(slow: Any, fast: Any) -> None:
    """Epoch by epoch the same batches; the loaders share the global generators, so each goes alone."""
    init_seed(5, True)
    one = list(batches(slow))
    init_seed(5, True)
    other = list(batches(fast))
    assert len(one) == len(other) and len(slow) == len(fast)
    for (batch, states, own), (fast_batch, fast_states, fast_own) in zip(one, other, strict=True):
        assert_equal(batch, fast_batch)
        assert same_states(states, fast_states)
        assert torch.equal(own, fast_own)


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "pairs": ("BPR", {}),
    "several negatives": ("BPR", {"train_neg_sample_args": DRAWN}),
    "points": ("NeuMF", {"train_neg_sample_args": {"distribution": "uniform", "sample_num": 2}}),
    "full batches only": ("MultiVAE", {"train_neg_sample_args": None, "train_batch_size": 1}),
    "uni100": ("BPR", UNI),
    "pop100": ("BPR", POP),
    "features, labels": ("DeepFM", LABELED),
    "features, uni100": ("DeepFM", {**UNI, "train_neg_sample_args": ONE}),
    "users": ("MultiVAE", {"train_neg_sample_args": None}),
    "sequences": ("SASRec", ORDER),
    "sequences, negatives": ("SASRec", ORDER_UNI),
    "masked sequences": ("BERT4Rec", {**ORDER, "transform": "mask_itemseq"}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_batches_are_recboles(name: str, data: Path) -> None:
    """Training batches, and those of evaluations whose size is RecBole's."""
    model, keys = CASES[name]
    keys = {"eval_batch_size": SCORES_AT_ONCE, **keys} if model != "BPR" else keys
    _, slow = loaders(model, data, "recbole", **keys)
    _, fast = loaders(model, data, "fast", **keys)
    for one, other in zip(slow, fast, strict=True):
        if one.step == other.step:
            assert_same_batches(one, other)
        else:
            assert "uid2history_item" in vars(one)  # larger batches: test_users_of_larger_batches


def test_every_kind_of_loader_is_compared(data: Path) -> None:
    """The cases above cover RecBole's loaders, so that none is skipped unseen."""
    seen = {type(x).__mro__[1 if type(x).__name__.startswith("Fast") else 0].__name__
            for model, keys in CASES.values() for x in loaders(model, data, "fast", **keys)[1]}  # fmt: skip
    assert seen == {"TrainDataLoader", "NegSampleEvalDataLoader", "FullSortEvalDataLoader", "UserDataLoader"}


@pytest.mark.parametrize("state", list(KGDataLoaderState))
def test_knowledge_batches_are_recboles(state: Any, data: Path) -> None:
    """Triples, interactions, and both: the shorter of the two is begun again, the longer cut."""
    found = []
    for path in ("recbole", "fast"):
        loader = loaders("CKE", data, path, train_batch_size=100)[1][0]
        loader.set_mode(state)
        init_seed(5, True)
        found.append([(batch, generator_states()) for _ in range(2) for batch in loader])
    assert len(found[0]) == len(found[1])
    for (batch, states), (fast_batch, fast_states) in zip(*found, strict=True):
        assert_equal(batch, fast_batch)
        assert same_states(states, fast_states)


@pytest.mark.parametrize("dataset", [NAME, "ml-100k"])
def test_users_of_larger_batches(dataset: str, data: Path) -> None:
    """The same users in the same order with the same items, several at once."""
    keys = {"dataset": dataset, "eval_batch_size": 10}
    _, (_, slow, _) = loaders("BPR", data, "recbole", **keys)
    _, (_, fast, _) = loaders("BPR", data, "fast", **keys)
    assert slow.step == 1 and fast.step == 64 and len(fast) == -(-len(slow) // 64)
    one = [(users["user_id"], history[1], items) for users, history, _, items in slow]
    several = [(users["user_id"], history, rows, items) for users, history, rows, items in fast]
    assert torch.equal(torch.cat([u for u, _, _ in one]), torch.cat([u for u, _, _, _ in several]))
    user = 0
    for users, (history_u, history_i), rows, items in several:
        for row in range(len(users)):
            assert torch.equal(history_i[history_u == row], one[user][1])
            assert torch.equal(items[rows == row], one[user][2])
            user += 1
    for name in ("uid2history_item", "uid2positive_item"):
        assert_equal(tuple(getattr(slow, name)), tuple(getattr(fast, name)))


def test_larger_batches_are_whole_ones_of_recboles(data: Path) -> None:
    """What a model draws at once on a GPU depends on their size, so none may be cut elsewhere."""
    _, (_, slow, _) = loaders("BPR", data, "recbole", dataset=NAME, eval_batch_size=7 * 200)
    _, (_, fast, _) = loaders("BPR", data, "fast", dataset=NAME, eval_batch_size=7 * 200)
    assert 1 < slow.step < fast.step <= 64 and fast.step % slow.step == 0


def test_a_user_without_history(data: Path) -> None:
    """All of a user's interactions are in later phases: nothing is masked."""
    split = {
        "eval_args": {"split": {"RS": [0.02, 0.49, 0.49]}, "order": "RO", "group_by": None, "mode": "full"}
    }
    keys = {"eval_batch_size": 64 * 200, **split}
    (_, (_, slow, _)), (_, (_, fast, _)) = (loaders("BPR", data, path, **keys) for path in ("recbole", "fast"))
    assert_same_batches(slow, fast)
    assert sum(len(users) - len(history[0].unique()) for users, history, _, _ in fast) > 10


@pytest.mark.parametrize("shares", [[0.9, 0.1, 0.0], [0.9, 0.0, 0.1]])
def test_a_part_without_users(shares: list[float], data: Path, tmp_path: Path) -> None:
    """Nobody is validated, or nobody tested: the run is RecBole's."""
    given = {
        **settings_of("BPR", data), "checkpoint_dir": str(tmp_path), "dsl_method": "static", "epochs": 1,
        "eval_args": {"split": {"RS": shares}, "order": "RO", "group_by": None, "mode": "full"},
    }  # fmt: skip
    with no_flags():
        slow, fast = (
            run_recbole_dsl("BPR", NAME, config_dict={**given, "dsl_data_path": path})
            for path in ("recbole", "fast")
        )
    assert slow.train_loss == fast.train_loss
    assert slow.best_valid_result == fast.best_valid_result and slow.test_result == fast.test_result


def test_dynamic_negatives(data: Path) -> None:
    """The candidates a model scores highest; it is asked about the same ones."""
    found = []
    for path in ("recbole", "fast"):
        config, (train, _, _) = loaders("BPR", data, path, train_neg_sample_args=DYNAMIC)
        train.get_model(build_model(config, train))
        init_seed(5, True)
        found.append([(batch, generator_states()) for batch in train])
    for (batch, states), (fast_batch, fast_states) in zip(*found, strict=True):
        assert_equal(batch, fast_batch)
        assert same_states(states, fast_states)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@pytest.mark.parametrize("name", ["pairs", "uni100", "features, labels", "users"])
def test_loaders_can_be_copied(name: str, how: str, data: Path) -> None:
    """A copy gives the batches of the original."""
    model, keys = CASES[name]
    for loader in loaders(model, data, "fast", **keys)[1]:
        twin = copy.deepcopy(loader) if how == "deepcopy" else pickle.loads(pickle.dumps(loader))
        assert_same_batches(loader, twin)


@pytest.mark.parametrize("name", ["pairs", "uni100"])
def test_workers_get_what_recboles_get(name: str, data: Path) -> None:
    """Worker processes draw from generators torch seeds for them."""
    model, keys = CASES[name]
    slow, fast = (loaders(model, data, p, worker=2, **keys)[1] for p in ("recbole", "fast"))
    for one, other in zip(slow, fast, strict=True):
        if one.step == other.step:
            assert_equal(tuple(one), tuple(other))


def test_loaders_of_ones_own_stay(data: Path) -> None:
    """A subclass may have changed anything."""
    _, (train, _, _) = loaders("BPR", data, "recbole")

    class Own(type(train)):  # type: ignore[misc]
        pass

    train.__class__ = Own
    before = dict(vars(train))
    accelerate(train)
    assert type(train) is Own and vars(train) == before


def test_rows_by_any_index() -> None:
    """Whatever RecBole's Interaction takes."""
    columns = {"a": torch.arange(6), "b": torch.arange(18.0).view(6, 3)}
    slow, fast = Interaction(columns), Table(columns)
    for index in (
        np.array([1, 5, 1]), np.array([-1, 2]), np.array([], dtype=np.int64), torch.tensor([3]),
        torch.tensor([True, False] * 3), np.array([True, False] * 3), slice(1, 4), [0, 2],
        np.array([2], dtype=np.int32), torch.tensor([1, 2], dtype=torch.uint8),
    ):  # fmt: skip
        assert_equal(slow[index], fast[index])
    assert torch.equal(fast["a"], columns["a"])
    with pytest.raises(IndexError):
        fast[np.array([6])]
    assert [*Positions(3).__getitems__([2, 0])] == [2, 0] and Positions(3)[1] == 1 and len(Positions(3)) == 3


# --- evaluation ----------------------------------------------------------------------------------


def collected(kind: type, config: Any, found: list[Any]) -> Any:
    """Metrics of batches (scores, interaction, positive_u, positive_i)."""
    collector = kind(config)
    for batch in found:
        collector.eval_batch_collect(*batch)
    return Evaluator(config).evaluate(collector.get_data_struct())


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    levels=st.sampled_from([1, 2, 5, 1000]),
    metrics=st.sets(st.sampled_from(RANKING), min_size=1),
)
def test_metrics_of_any_scores(seed: int, levels: int, metrics: set[str]) -> None:
    """With ties, masked items, repeated positives; every ranking metric, alone and together."""
    draw = torch.Generator().manual_seed(seed)
    config = {
        "metrics": sorted(metrics),
        "topk": [1, 3, 7],
        "eval_args": {"mode": "full"},
        "device": torch.device("cpu"),
        "metric_decimal_place": 10,
        "LABEL_FIELD": "label",
    }
    found = []
    for _ in range(3):
        scores = torch.randint(levels, (5, 20), generator=draw).float()
        scores[:, 0] = -torch.inf
        scores[torch.randint(5, (9,), generator=draw), torch.randint(20, (9,), generator=draw)] = -torch.inf
        rows = torch.cat([torch.arange(5), torch.randint(5, (8,), generator=draw)])
        found.append((scores, None, rows, torch.randint(1, 20, (13,), generator=draw)))
    one, other = (collected(kind, config, found) for kind in (Collector, FastCollector))
    assert list(one) == list(other)
    np.testing.assert_array_equal(list(one.values()), list(other.values()))


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(0, 7), min_size=1, max_size=12), last=st.integers(1, 5))
def test_rows_that_were_collected(sizes: list[int], last: int) -> None:
    """Are RecBole's, asked for twice, in a tensor with room for twice as many at most."""
    slow, fast = DataStruct(), Rows()
    for round_of in (sizes, [last]):
        for size in round_of:
            batch = torch.randn(size, 3)
            for store in (slow, fast):
                store.update_tensor("rec.items", batch)
            batch.zero_()  # what was collected is a copy
        fast.finish()
        assert torch.equal(fast["rec.items"], slow["rec.items"])
    assert fast["rec.items"].untyped_storage().nbytes() <= 2 * 12 * (sum(sizes) + last)


def test_hits_of_users_without_positives() -> None:
    """They have none; so has everybody where there is no positive pair at all."""
    ranked = torch.tensor([[3, 1], [2, 4]])
    none = torch.tensor([], dtype=torch.int64)
    assert hits_of(ranked, 5, none, none).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert hits_of(ranked, 5, torch.tensor([1, 1]), torch.tensor([4, 3])).tolist() == [[0, 0, 0], [0, 1, 2]]


def evaluations(model: str, folder: Path, **keys: Any) -> list[Any]:
    """Validation and test of one untrained model, by RecBole's path and by ours, with states afterwards."""
    results = []
    for path in ("recbole", "fast"):
        config, (train, valid, test) = loaders(model, folder, path, dsl_density=0.5, **keys)
        network = build_model(config, train)
        trainer = sparse_trainer(config["MODEL_TYPE"], *config.lineage)(config, network, train)
        trainer.eval_collector.data_collect(train)
        init_seed(5, True)
        outcome = []
        for loader in (valid, test, valid):
            outcome.append(dict(trainer.evaluate(loader, load_best_model=False)))
        results.append((outcome, generator_states()))
    return results


# Scoring several users at once may round products otherwise than one by one, in the last bit.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "one user at once": ("BPR", {"metrics": RANKING, "eval_batch_size": 10}),
    "several": ("BPR", {"metrics": RANKING, "eval_batch_size": 700}),
    "graph": ("LightGCN", {"metrics": RANKING, "eval_batch_size": 10}),
    "autoencoder": ("MultiVAE", {"metrics": RANKING, "train_neg_sample_args": None, "eval_batch_size": 10}),
    "pairs only": ("NeuMF", {"metrics": RANKING, "eval_batch_size": 10}),
    "draws": ("DiffRec", {"metrics": RANKING, "eval_batch_size": 10, "noise_scale": 0.1, "sampling_noise": True,
                          "sampling_steps": 2, "steps": 5, "train_neg_sample_args": None}),
    "knowledge": ("CKE", {"metrics": RANKING, "eval_batch_size": 10}),
    "sampled": ("BPR", {"metrics": RANKING, **UNI}),
    "labels": ("DeepFM", LABELED),
    "sequences": ("SASRec", {"metrics": RANKING, **ORDER}),
    "sequences, sampled": ("SASRec", {"metrics": RANKING, **ORDER_UNI}),
    "coverage": ("BPR", {"metrics": ["ItemCoverage", "Recall"], "valid_metric": "Recall@10"}),
    "popularity": ("BPR", {"metrics": ["AveragePopularity"], "valid_metric": "AveragePopularity@10"}),
    "tail": ("BPR", {"metrics": ["TailPercentage"], "valid_metric": "TailPercentage@10"}),
    "inequality": ("BPR", {"metrics": ["GiniIndex"], "valid_metric": "GiniIndex@10"}),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_metrics_of_models(name: str, data: Path) -> None:
    """Every metric of RecBole, and the draws of models that need some, in each kind of evaluation."""
    model, keys = MODELS[name]
    (one, states), (other, fast_states) = evaluations(model, data, metric_decimal_place=10, **keys)
    for slow, fast in zip(one, other, strict=True):
        assert list(slow) == list(fast)
        for metric, value in slow.items():
            assert fast[metric] == pytest.approx(value, abs=1e-6, nan_ok=True)
    assert same_states(states, fast_states)


def test_popularity_ties_many(data: Path) -> None:
    """ml-100k with all scores equal but for a few: the order of ties is RecBole's."""
    (one, _), (other, _) = evaluations(
        "BPR", data, dataset="ml-100k", metrics=RANKING, embedding_size=1, epochs=1
    )
    assert one == other


NOISE: dict[str, Any] = {
    "": lambda: 0.0,
    "torch": lambda: float(torch.rand(1)),
    "numpy": np.random.random,
    "python": random.random,
}


class Scorer:
    """A model that scores users by their id, and may draw from a global generator."""

    def __init__(self, draws: str) -> None:
        self.draws = draws

    def full_sort_predict(self, users: torch.Tensor) -> torch.Tensor:
        """(users, 4)."""
        return users.unsqueeze(1) * torch.ones(4) + NOISE[self.draws]()


@pytest.mark.parametrize("draws", NOISE)
def test_only_models_that_do_not_draw_score_together(draws: str) -> None:
    """Those that do are given RecBole's batches, and spend what they would have spent."""
    model = Scorer(draws)
    sizes: list[int] = []

    def score(batch: Any) -> Any:
        users, (rows, items), positive_u, positive_i = batch
        sizes.append(len(users))
        scores = model.full_sort_predict(users)
        scores[rows, items] = -torch.inf
        return users, scores, positive_u, positive_i

    history = torch.tensor([0, 3, 3, 4]), torch.tensor([1, 2, 3, 0])
    batch = torch.arange(5.0), history, torch.tensor([0, 1, 4]), torch.tensor([2, 2, 2])
    together = UserScores(model, fast=True)
    init_seed(1, True)
    _, scores, _, _ = together(score, batch, 2)
    together(score, batch, 2)
    states = generator_states()
    assert sizes == ([2, 5, 5] if not draws else [2, 2, 1] * 2)
    init_seed(1, True)
    expected = [model.full_sort_predict(users) for users in batch[0].split(2)]
    if draws:
        for users in batch[0].split(2):
            model.full_sort_predict(users)
        assert same_states(states, generator_states())
    expected = torch.cat(expected)
    expected[history] = -torch.inf
    assert torch.equal(scores, expected)


# --- runs ----------------------------------------------------------------------------------------

RUNS: dict[str, dict[str, Any]] = {
    "BPR": {},
    "SASRec": ORDER,
    "MultiVAE": {"train_neg_sample_args": None},
    "DeepFM": LABELED,
    "CKE": {},
}


@pytest.mark.parametrize("model", RUNS)
def test_a_whole_run_is_recboles(model: str, data: Path, tmp_path: Path) -> None:
    """Losses bit for bit, metrics up to rounding of products of several users at once."""
    sys.argv = sys.argv[:1]
    keys = {**QUIET, "data_path": str(data), "checkpoint_dir": str(tmp_path), "epochs": 2,
            "dsl_update_interval": 3, "metric_decimal_place": 10, **RUNS[model]}  # fmt: skip
    one, other = (
        run_recbole_dsl(model, NAME, config_dict={**keys, "dsl_data_path": path})
        for path in ("recbole", "fast")
    )
    assert one.train_loss == other.train_loss
    assert other.test_result == pytest.approx(one.test_result, abs=1e-6)
    assert other.best_valid_result == pytest.approx(one.best_valid_result, abs=1e-6)


def test_the_switch_leaves_recboles_objects(data: Path) -> None:
    """``dsl_data_path: recbole`` touches nothing; neither does ``fast`` RecBole's classes."""
    config, found = loaders("BPR", data, "recbole")
    trainer = sparse_trainer(config["MODEL_TYPE"], *config.lineage)(
        config, build_model(config, found[0]), found[0]
    )
    for thing in (*found, *(x._sampler for x in found), found[0]._dataset.inter_feat, trainer.eval_collector):
        assert type(thing).__module__.startswith("recbole.")
    assert isinstance(found[0].batch_sampler, torch.utils.data.BatchSampler)
