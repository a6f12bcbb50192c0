"""Every cure of `recbole_dsl.compat` against what RecBole did on the versions it was made for."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
import yaml

from recbole_dsl import compat
from recbole_dsl.errors import DataError, DSLError
from tests import stack_parity
from tests.harm import Harm

compat.apply()

from recbole.config import Config  # noqa: E402
from recbole.data import create_dataset, data_preparation  # noqa: E402
from recbole.model.general_recommender import BPR  # noqa: E402
from recbole.trainer import trainer as recbole_trainer  # noqa: E402
from recbole.utils import FeatureType, get_model, get_trainer, init_seed  # noqa: E402

INTERACTIONS = [
    # user, item, rating, time
    ("u1", "i1", "5", "1"),
    ("u1", "i2", "3", "2"),
    ("u1", "i3", "4", "3"),
    ("u2", "i2", "", "4"),
    ("u2", "i3", "2", "5"),
    ("u3", "i1", "1", "6"),
    ("u3", "i3", "5", "7"),
    ("u3", "i4", "2", "8"),
]
ITEMS = [
    # item, price, color, tags, vector; i4 has no row at all
    ("i1", "1.0", "red", "a b", "1 2"),
    ("i2", "", "", "", ""),
    ("i3", "4.0", "blue", "b c d", "3"),
]


KG_COLUMNS = {
    "inter": ["user_id", "item_id"],
    "kg": ["head_id", "relation_id", "tail_id"],
    "link": ["item_id", "entity_id"],
}


def write_table(path: Path, header: str, rows: list[tuple[str, ...]]) -> None:
    path.write_text("\n".join(["\t".join(header.split()), *("\t".join(row) for row in rows), ""]))


@pytest.fixture(autouse=True)
def own_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep pytest's flags out of RecBole's Config, and its log folders out of the checkout."""
    monkeypatch.setattr(sys, "argv", ["test"])
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def tiny(tmp_path: Path) -> Any:
    """Return a function that builds a configuration of a small data set with missing values."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    write_table(
        folder / "tiny.inter",
        "user_id:token item_id:token rating:float timestamp:float",
        INTERACTIONS,
    )
    write_table(
        folder / "tiny.item",
        "item_id:token price:float color:token tags:token_seq vector:float_seq",
        ITEMS,
    )
    write_table(
        folder / "tiny.kg",
        "head_id:token relation_id:token tail_id:token",
        [("e1", "r1", "e2"), ("e2", "r2", "e3"), ("e3", "r1", "e4")],
    )
    write_table(folder / "tiny.link", "item_id:token entity_id:token", [("i1", "e1"), ("i3", "e3")])

    def config(model: str = "BPR", **overrides: Any) -> Config:
        values: dict[str, Any] = {
            "data_path": str(tmp_path),
            "checkpoint_dir": str(tmp_path / "saved"),
            "gpu_id": "",
            "state": "ERROR",
            "show_progress": False,
            "epochs": 1,
            "load_col": {
                "inter": ["user_id", "item_id", "rating", "timestamp"],
                "item": ["item_id", "price", "color", "tags", "vector"],
            },
            "normalize_all": False,
            # i4 stands for an item that nothing is known about
            "filter_inter_by_user_or_item": False,
            "eval_args": {
                "split": {"RS": [1, 0, 0]},
                "group_by": "user",
                "order": "TO",
                "mode": "full",
            },
        }
        return Config(model=model, dataset="tiny", config_dict={**values, **overrides})

    return config


# the stack ---------------------------------------------------------------------------------------


def test_apply_twice_changes_nothing() -> None:
    before = recbole_trainer.torch, scipy.sparse.dok_matrix._update
    compat.apply()
    assert (recbole_trainer.torch, scipy.sparse.dok_matrix._update) == before


def test_check_stack_accepts_the_installed_version() -> None:
    compat.check_stack()


def test_check_stack_names_a_wrong_version(monkeypatch: pytest.MonkeyPatch) -> None:
    import recbole

    monkeypatch.setattr(recbole, "__version__", "1.1.0")
    with pytest.raises(DSLError, match=r"1\.2\.1.*1\.1\.0"):
        compat.check_stack()


def test_check_stack_says_that_recbole_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "recbole", None)
    with pytest.raises(DSLError, match="not installed"):
        compat.check_stack()


def test_importing_compat_imports_no_recbole_and_applying_it_no_ray() -> None:
    code = (
        "import sys, recbole_dsl.compat as compat\n"
        "assert 'recbole' not in sys.modules\n"
        "compat.apply()\n"
        "assert 'recbole.trainer.trainer' in sys.modules\n"
        "assert 'ray' not in sys.modules and 'recbole.quick_start' not in sys.modules\n"
    )
    root = Path(compat.__file__).resolve().parents[1]
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        check=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )


def test_user_sees_unchanged_torch_and_pandas() -> None:
    assert torch.load.__module__ == "torch.serialization"
    assert pd.read_csv.__module__.startswith("pandas")
    frame = pd.DataFrame({"a": [[1], [2, 3]]})
    if int(pd.__version__.split(".")[0]) >= 3:
        assert frame["a"].agg(len) == 2


def test_pickles_of_data_are_opened_only_where_they_are_named(tiny: Any, tmp_path: Path) -> None:
    """RecBole looks in the folder of checkpoints, too; what it has saved is read where the user says so."""
    plain = tiny(save_dataset=True, save_dataloaders=True)
    data_preparation(plain, create_dataset(plain))
    saved = tmp_path / "saved"
    names = [saved / "tiny-Dataset.pth", saved / "tiny-for-BPR-dataloader.pth"]
    assert all(name.is_file() for name in names) and plain["dataset_save_path"] is None
    named = tiny(dataset_save_path=str(names[0]), dataloaders_save_path=str(names[1]))
    (tmp_path / "tiny" / "tiny.inter").rename(tmp_path / "elsewhere")
    data = create_dataset(named)
    assert len(data) == 8 and len(data_preparation(named, data)) == 3
    (tmp_path / "elsewhere").rename(tmp_path / "tiny" / "tiny.inter")
    for name in names:
        name.write_bytes(pickle.dumps(Harm(tmp_path / "harm")))
    config = tiny()
    data_preparation(config, create_dataset(config))
    assert not (tmp_path / "harm").exists()


def test_a_saved_file_that_is_not_used_is_told(
    tiny: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It was made with another seed; RecBole says nothing."""
    plain = tiny(save_dataset=True, save_dataloaders=True)
    data_preparation(plain, create_dataset(plain))
    assert not caplog.records or "is not used" not in caplog.text
    files = {
        "dataset_save_path": str(tmp_path / "saved" / "tiny-Dataset.pth"),
        "dataloaders_save_path": str(tmp_path / "saved" / "tiny-for-BPR-dataloader.pth"),
    }
    same = tiny(**files)
    data_preparation(same, create_dataset(same))
    assert "is not used" not in caplog.text
    other = tiny(seed=7, **files)
    data_preparation(other, create_dataset(other))
    told = [record.getMessage() for record in caplog.records if "is not used" in record.getMessage()]
    assert [line.split("=")[0] for line in told] == list(files)
    bad = tmp_path / "bad.pth"
    bad.write_text("seed: 7")
    with pytest.raises(DataError, match=r"bad\.pth' cannot be read .* save_dataset"):
        create_dataset(tiny(dataset_save_path=str(bad)))


def test_vectors_of_items_are_no_pickle(tmp_path: Path) -> None:
    """LDiffRec reads a file beside the data."""
    from recbole.model.general_recommender import ldiffrec

    np.save(tmp_path / "good.npy", np.ones(3))
    assert ldiffrec.np.load(tmp_path / "good.npy", allow_pickle=True).tolist() == [1, 1, 1]
    (tmp_path / "bad.npy").write_bytes(pickle.dumps(Harm(tmp_path / "harm")))
    with pytest.raises(ValueError, match="pickle"):
        ldiffrec.np.load(tmp_path / "bad.npy", allow_pickle=True)
    assert not (tmp_path / "harm").exists() and np.load is not ldiffrec.np.load


# numpy -------------------------------------------------------------------------------------------


def test_numpy_names(tiny: Any) -> None:
    tiny()
    assert np.float_ is np.float64
    assert np.complex_ is np.complex128
    assert np.unicode_ is np.str_
    assert np.float is np.float64
    assert np.bool is np.bool_
    assert np.long is np.int_


# scipy -------------------------------------------------------------------------------------------


def test_dok_update() -> None:
    matrix = scipy.sparse.dok_matrix((2, 3), dtype=np.float32)
    matrix._update({(0, 2): 1.0, (1, 0): 2.0})
    assert matrix.toarray().tolist() == [[0, 0, 1], [2, 0, 0]]


@pytest.mark.parametrize("name", ["LightGCN", "NGCF"])
def test_adjacency(tiny: Any, name: str) -> None:
    config = tiny(name)
    train = data_preparation(config, create_dataset(config))[0].dataset
    model = get_model(name)(config, train)
    found = model.norm_adj_matrix.to_dense().numpy()

    size = train.user_num + train.item_num
    expected = np.zeros((size, size))
    for user, item in zip(train.inter_feat["user_id"], train.inter_feat["item_id"], strict=True):
        expected[user, train.user_num + item] = expected[train.user_num + item, user] = 1
    degree = expected.sum(axis=1) + 1e-7
    expected = expected / np.sqrt(np.outer(degree, degree))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


# pandas ------------------------------------------------------------------------------------------


def rows_by_token(dataset: Any, field: str) -> dict[str, Any]:
    """Map each item token to the item's value of a field."""
    feat = dataset.get_item_feature()
    return dict(zip(dataset.field2id_token["item_id"], feat[field], strict=True))


def test_words_are_tokens_and_rows_without_a_token_go(tiny: Any, tmp_path: Path) -> None:
    """Whatever they mean to pandas; of rows without a user or an item those go, and no others."""
    tiny()
    rows = [("NA", "a"), ("", "b"), ("u1", ""), ("u2", "null"), ("u2", "None"), ("u3", "nan"), ("NA", "null")]
    header = "user_id:token item_id:token rating:float timestamp:float"
    table = [(user, item, "NA" if item == "nan" else "1", "1") for user, item in rows]
    write_table(tmp_path / "tiny" / "tiny.inter", header, table)
    config = tiny(load_col={"inter": ["user_id", "item_id", "rating", "timestamp"]})
    data = create_dataset(config)
    users, items = (data.field2id_token[field] for field in ("user_id", "item_id"))
    table = data.inter_feat
    pairs = [(users[user], items[item]) for user, item in zip(table["user_id"], table["item_id"], strict=True)]
    assert sorted(pairs) == sorted(row for row in rows if all(row))
    assert table["rating"].tolist() == [1] * 5  # the one that is missing is the mean


def test_missing_tokens_become_padding(tiny: Any) -> None:
    dataset = create_dataset(tiny())
    names = dataset.field2id_token["color"]
    dataset.build()
    color = {item: names[value] for item, value in rows_by_token(dataset, "color").items()}
    assert color == {"[PAD]": "[PAD]", "i1": "red", "i2": "[PAD]", "i3": "blue", "i4": "[PAD]"}


def test_missing_floats_become_the_mean(tiny: Any) -> None:
    dataset = create_dataset(tiny())
    dataset.build()
    price = {item: float(value) for item, value in rows_by_token(dataset, "price").items()}
    assert price == {"[PAD]": 2.5, "i1": 1.0, "i2": 2.5, "i3": 4.0, "i4": 2.5}
    known = [float(row[2]) for row in INTERACTIONS if row[2]]
    missing = dataset.inter_feat["rating"][dataset.inter_feat["timestamp"] == 4]
    assert missing.item() == pytest.approx(sum(known) / len(known))


def test_padding_row_is_never_negative(tiny: Any) -> None:
    dataset = create_dataset(tiny())
    dataset.build()
    feat = dataset.get_item_feature()
    assert len(feat) == dataset.item_num == 5
    for field in ("item_id", "color", "tags"):
        assert feat[field].min() >= 0


def test_token_sequences(tiny: Any) -> None:
    dataset = create_dataset(tiny())
    names = dataset.field2id_token["tags"]
    assert sorted(names) == ["[PAD]", "a", "b", "c", "d"]
    dataset.build()
    tags = {item: [names[t] for t in row if t] for item, row in rows_by_token(dataset, "tags").items()}
    assert tags == {"[PAD]": [], "i1": ["a", "b"], "i2": [], "i3": ["b", "c", "d"], "i4": []}


def test_token_sequences_of_equal_length(tiny: Any, tmp_path: Path) -> None:
    write_table(
        tmp_path / "tiny" / "tiny.item",
        "item_id:token tags:token_seq",
        [("i1", "a b"), ("i2", "b c"), ("i3", "c a"), ("i4", "d d")],
    )
    dataset = create_dataset(tiny(load_col={"inter": ["user_id", "item_id"], "item": ["item_id", "tags"]}))
    names = dataset.field2id_token["tags"]
    dataset._change_feat_format()
    tags = {item: [names[t] for t in row] for item, row in rows_by_token(dataset, "tags").items()}
    assert tags["i1"] == ["a", "b"] and tags["i2"] == ["b", "c"] and tags["i3"] == ["c", "a"]


def test_normalized_float_sequences(tiny: Any) -> None:
    dataset = create_dataset(tiny(normalize_field=["vector"]))
    dataset.build()
    vector = {item: row.tolist() for item, row in rows_by_token(dataset, "vector").items()}
    assert vector["i1"] == [0.0, 0.5]
    assert vector["i3"] == [1.0, 0.0]


@pytest.mark.parametrize("discretization", [None, {"vector": {"method": "ED", "bucket": 2}}])
def test_numerical_float_sequences(tiny: Any, discretization: Any) -> None:
    dataset = create_dataset(tiny(numerical_features=["vector"], discretization=discretization))
    lengths = [len(pair[0]) for pair in dataset.item_feat["vector"]]
    assert lengths == [0, 2, 0, 1, 0]


def test_interactions_own_their_memory(tiny: Any) -> None:
    dataset = create_dataset(tiny())
    frame = dataset.item_feat.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        interaction = dataset._dataframe_to_interaction(frame)
    if not frame["item_id"].to_numpy().flags.writeable:
        before = frame["item_id"].tolist()
        interaction["item_id"] += 1
        assert frame["item_id"].tolist() == before


def test_loading_is_quiet(tiny: Any) -> None:
    config = tiny()
    with warnings.catch_warnings():
        warnings.simplefilter("error", getattr(pd.errors, "ChainedAssignmentError", UserWarning))
        create_dataset(config)


def test_entities_of_items_come_first(tiny: Any) -> None:
    dataset = create_dataset(tiny("CKE", load_col=KG_COLUMNS))
    items, entities = dataset.field2id_token["item_id"], dataset.field2id_token["entity_id"]
    # RecBole merges both into one space: linked items carry the ids of their entities.
    linked = {"i1": "e1", "i3": "e3"}
    assert {items[-2], items[-1]} == set(linked)
    names = {number: linked.get(token, token) for number, token in enumerate(entities)}
    heads, tails = dataset.kg_feat["head_id"], dataset.kg_feat["tail_id"]
    triples = {(names[head], names[tail]) for head, tail in zip(heads, tails, strict=True)}
    assert triples == {("e1", "e2"), ("e2", "e3"), ("e3", "e4")}


def test_entity_sequences_are_remapped(tiny: Any) -> None:
    dataset = create_dataset(tiny("CKE", load_col=KG_COLUMNS))
    dataset.field2type["path"] = FeatureType.TOKEN_SEQ
    dataset.field2source["path"] = dataset.field2source[dataset.head_entity_field]
    dataset.kg_feat["path"] = pd.Series([np.array([1, 2]), np.array([0]), np.array([2, 1, 0])])
    dataset._reset_ent_remapID("path", np.array([0, 20, 10]), None, None)
    assert [row.tolist() for row in dataset.kg_feat["path"]] == [[20, 10], [0], [10, 20, 0]]


def test_lengths_of_given_sequences(tiny: Any, tmp_path: Path) -> None:
    header = "user_id:token item_id_list:token_seq item_id:token"
    rows = [("u1", "i1 i2 i3", "i4"), ("u2", "i2", "i1"), ("u3", "i4 i1", "i2")]
    for part in ("train", "valid", "test"):
        write_table(tmp_path / "tiny" / f"tiny.{part}.inter", header, rows)
    dataset = create_dataset(
        tiny(
            "GRU4Rec",
            benchmark_filename=["train", "valid", "test"],
            alias_of_item_id=["item_id_list"],
            load_col={"inter": ["user_id", "item_id_list", "item_id"]},
            train_neg_sample_args=None,
        )
    )
    assert dataset.inter_feat["item_length"].tolist() == [3, 1, 2] * 3


# torch -------------------------------------------------------------------------------------------


@pytest.fixture
def trainer(tiny: Any) -> Any:
    config = tiny()
    init_seed(1, True)
    train = data_preparation(config, create_dataset(config))[0].dataset
    return get_trainer(config["MODEL_TYPE"], "BPR")(config, BPR(config, train))


def test_own_checkpoint(trainer: Any) -> None:
    trainer._save_checkpoint(3, verbose=False)
    weight = trainer.model.user_embedding.weight
    expected = weight.detach().clone()
    weight.data.zero_()
    trainer.resume_checkpoint(trainer.saved_model_file)
    assert trainer.start_epoch == 4
    assert torch.equal(trainer.model.user_embedding.weight, expected)


def test_checkpoint_of_another_process(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer.best_valid_score = np.float64(0.25)
    trainer._save_checkpoint(3, verbose=False)
    monkeypatch.setattr(compat, "_written_here", {})
    trainer.best_valid_score = 0.0
    trainer.resume_checkpoint(trainer.saved_model_file)
    assert trainer.best_valid_score == 0.25


def test_own_checkpoint_may_hold_anything(tmp_path: Path) -> None:
    view = recbole_trainer.torch
    view.save({"module": torch.nn.Linear(2, 2)}, tmp_path / "own.pth")
    assert isinstance(view.load(tmp_path / "own.pth")["module"], torch.nn.Linear)


@pytest.mark.parametrize("zipped", [True, False])
def test_foreign_code_is_refused(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "foreign.pth"
    torch.save({"state_dict": Harm(tmp_path / "harm")}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(DSLError, match="mkdir"):
        recbole_trainer.torch.load(path)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_settings_in_a_file_are_not_run(tmp_path: Path, zipped: bool) -> None:
    """RecBole's Config would evaluate texts that it is called with; stored ones are attributes alone."""
    harm = f"__import__('os').mkdir({str(tmp_path / 'harm')!r})"

    class Evaluated:
        def __reduce__(self) -> Any:
            return Config, ("BPR", "ml-100k", None, {"x": harm})

    path = tmp_path / "foreign.pth"
    torch.save({"state_dict": {}, "config": Evaluated()}, path, _use_new_zipfile_serialization=zipped)
    assert compat.read_dense_checkpoint(path)["state_dict"] == {}
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("called", [BPR, yaml.FullLoader])
def test_classes_in_a_file_are_names_that_cannot_be_called(tmp_path: Path, called: Any) -> None:
    """A model's constructor would open files, for instance."""

    class Called:
        def __reduce__(self) -> Any:
            return called, ("text",)

    torch.save({"state_dict": Called()}, tmp_path / "foreign.pth")
    with pytest.raises(DSLError, match="Cannot read the checkpoint"):
        compat.read_dense_checkpoint(tmp_path / "foreign.pth")
    torch.save({"state_dict": {}, "class": called}, tmp_path / "named.pth")
    assert compat.read_dense_checkpoint(tmp_path / "named.pth")["class"].__name__ == called.__name__


def test_changed_file_is_no_longer_our_own(tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    recbole_trainer.torch.save({}, path)
    path.write_bytes(pickle.dumps({"f": os.getcwd}))
    with pytest.raises(DSLError):
        recbole_trainer.torch.load(path)


def test_recbole_functions_are_refused_in_foreign_files() -> None:
    import io

    data = b"\x80\x04\x8c\x13recbole.utils.utils\x8c\x0aensure_dir\x93."
    with pytest.raises(pickle.UnpicklingError, match="ensure_dir"):
        compat._CheckpointUnpickler(io.BytesIO(data)).load()


def test_every_module_that_loads_is_covered() -> None:
    import recbole

    root = Path(recbole.__file__).parent
    loading = {
        ".".join(("recbole", *path.relative_to(root).with_suffix("").parts))
        for path in root.rglob("*.py")
        if "torch.load(" in path.read_text(encoding="utf-8")
    }
    # quick_start is never imported.
    assert loading - {"recbole.quick_start.quick_start"} == {
        compat._LOADING_TRAINER,
        *compat._LOADING_MODELS,
    }


# progress ----------------------------------------------------------------------------------------


def test_described_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[dict[str, Any]] = []
    plain = types.SimpleNamespace(tqdm=lambda data, **kwargs: bars.append(kwargs) or data).tqdm
    monkeypatch.setattr(recbole_trainer, "tqdm", plain)
    texts = iter(["live 10 %", "live 20 %"])
    with compat.described_progress(lambda: next(texts)):
        for desc in ("\x1b[1;35mTrain     0\x1b[0m", "Evaluate   ", "Train     1"):
            data = recbole_trainer.tqdm([1, 2], total=2, ncols=100, desc=desc)
            assert data == [1, 2]
    assert recbole_trainer.tqdm is plain
    assert [bar["desc"] for bar in bars] == [
        "\x1b[1;35mTrain     0\x1b[0m live 10 %",
        "Evaluate   ",
        "Train     1 live 20 %",
    ]
    assert [bar["ncols"] for bar in bars] == [110, 100, 110]


def test_described_progress_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = recbole_trainer.tqdm
    with pytest.raises(ValueError), compat.described_progress(str):
        raise ValueError
    assert recbole_trainer.tqdm is plain


# both stacks -------------------------------------------------------------------------------------


def test_parity_tells_differences() -> None:
    run = {"a": {"train_loss": [1.0], "valid": {"ndcg@10": 0.1}, "test": {"ndcg@10": 0.2}}}
    near = {"a": {**run["a"], "train_loss": [1.0 + 1e-7]}}
    far = {"a": {**run["a"], "train_loss": [1.1], "test": {"ndcg@10": 0.3}}}
    assert stack_parity.differences(run, near) == []
    assert len(stack_parity.differences(run, far)) == 2
    assert len(stack_parity.differences(run, {})) == 1


@pytest.mark.slow
def test_parity_run_repeats_itself(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        first, second = stack_parity.run(), stack_parity.run()
    finally:
        torch.set_num_threads(threads)
    assert stack_parity.differences(first, second) == []
    assert set(first) >= {f"recbole {model}" for model in stack_parity.MODELS}


# packages without current builds, models, many runs ------------------------------------------


def test_means_and_softmax_over_groups_of_rows() -> None:
    """By hand: rows 0 and 2 belong together, row 1 stands alone, nothing has index 1."""
    source = torch.tensor([[1.0, -4.0], [5.0, 0.0], [3.0, -2.0]])
    index = torch.tensor([2, 0, 2])
    means = compat.scatter_mean(src=source, index=index, dim=0, dim_size=4)
    assert torch.equal(means, torch.tensor([[5.0, 0.0], [0.0, 0.0], [2.0, -3.0], [0.0, 0.0]]))
    softmax = compat.scatter_softmax(source, index=index, dim=0)
    share = torch.softmax(torch.tensor([1.0, 3.0]), 0)
    assert torch.allclose(softmax, torch.stack([share[[0, 0]], torch.ones(2), share[[1, 1]]]))


def test_gradients_of_means_and_softmax() -> None:
    """Against differences."""
    source = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([0, 3, 3, 1, 0, 3])
    assert torch.autograd.gradcheck(lambda s: compat.scatter_mean(s, index, dim=0, dim_size=5), source)
    assert torch.autograd.gradcheck(lambda s: compat.scatter_softmax(s, index, dim=0), source)


def test_torch_scatter_is_lent_for_the_time_of_a_layer_only() -> None:
    """No other code sees a module of that name, and an error gives it back as well."""
    lent = types.ModuleType("a_module_that_is_lent")
    seen = []

    def layer(fails: bool) -> None:
        import a_module_that_is_lent

        seen.append(a_module_that_is_lent)
        if fails:
            raise ValueError

    wrapped = compat._with_module(lent, layer)
    wrapped(False)
    with pytest.raises(ValueError):
        wrapped(True)
    assert seen == [lent, lent] and lent.__name__ not in sys.modules
    with pytest.raises(ImportError):
        layer(False)


def test_kgats_matrix_is_the_mean_over_each_relation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Naively: every relation's edges, double ones counted twice, divided by their number per head."""
    from tests.model_runs import settings_of, sparse_trainer_of
    from tests.tiny_data import write_tiny

    monkeypatch.chdir(tmp_path)
    trainer, _ = sparse_trainer_of("KGAT", settings_of("KGAT", write_tiny(tmp_path)), density=0.2)
    model = trainer.model
    size = model.n_users + model.n_entities
    expected = torch.zeros(size, size, dtype=torch.float64)
    for relation in range(1, model.n_relations):
        counts = torch.zeros(size, size, dtype=torch.float64)
        for head, tail, kind in zip(model.all_hs, model.all_ts, model.all_rs, strict=True):
            if int(kind) == relation:
                counts[head, tail] += 1
        expected += counts / counts.sum(1, keepdim=True).clamp_min(1)
    assert torch.allclose(model.A_in.to_dense().double(), expected, atol=1e-6)
    assert expected.count_nonzero() > 1000


def test_standard_streams_are_wrapped_once(tmp_path: Path) -> None:
    """Five hundred runs in one process; RecBole's own wrapping ends in a RecursionError."""
    code = """
from recbole_dsl import compat
compat.apply()
from recbole.utils import logger
for _ in range(500):
    logger.init(autoreset=True)
print("still here")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.strip() == "still here", done.stderr[-500:]


def test_nobody_searches_for_anomalies_unasked() -> None:
    """sine.py turns it on when it is imported, before or by our cures; what the user asks for later stays."""
    code = """
import torch
import recbole.model.sequential_recommender
assert torch.is_anomaly_enabled()
from recbole_dsl import compat
compat.apply()
assert not torch.is_anomaly_enabled()
torch.autograd.set_detect_anomaly(True)
import recbole_dsl.experiment
assert torch.is_anomaly_enabled()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    assert done.returncode == 0, done.stderr
