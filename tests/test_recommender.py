"""Recommendations by original tokens: by vectors, by RecBole's models, for users nobody knows, by threads."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from recbole_dsl import SparseRecommender, export_artifact, vectors_command
from recbole_dsl.cli import main
from recbole_dsl.config import RecBoleDSLConfig
from recbole_dsl.errors import ArtifactError, ConfigError, RequestError, UnknownTokenError
from recbole_dsl.recommend_command import _lines, _names
from recbole_dsl.serving.artifact import read_artifact, read_manifest
from tests.model_runs import no_flags, settings_of, sparse_run
from tests.tiny_data import ITEMS, NAME, USERS

INFINITE = {"max_norm": 5.0, "norm_type": float("inf")}
DSL = {"method": "dsl", "density": 0.3, "update_interval": 3}

pytestmark = pytest.mark.usefixtures("in_folder")


@pytest.fixture(scope="module")
def checkpoints(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function that gives the checkpoint of a model, trained once."""
    known: dict[str, Path] = {}
    folder = tmp_path_factory.mktemp("checkpoints")

    def checkpoint(name: str) -> Path:
        if name not in known:
            here = os.getcwd()
            os.chdir(folder)
            try:
                run = sparse_run(name, {**settings_of(name, data), "checkpoint_dir": str(folder / name)}, **DSL)
            finally:
                os.chdir(here)
            known[name] = Path(run.trainer.saved_model_file)
        return known[name]

    return checkpoint


@pytest.fixture(scope="module")
def folders(checkpoints: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function that gives the artifact of a model, written once, with history."""
    known: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in known:
            known[name] = tmp_path_factory.mktemp("artifacts") / name
            export_artifact(checkpoints(name), known[name], with_history=True)
        return known[name]

    return folder


def seen_in(data: Path) -> dict[str, set[str]]:
    """What each user has in the file."""
    seen: dict[str, set[str]] = {}
    for line in (data / NAME / f"{NAME}.inter").read_text().splitlines()[1:]:
        user, item, *_ = line.split("\t")
        seen.setdefault(user, set()).add(item)
    return seen


@pytest.mark.parametrize("name", ["BPR", "NeuMF"])
def test_an_export_is_made_on_the_cpu(
    name: str, checkpoints: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Artifacts are asked there, so model and artifact are compared there, whatever RecBole would take."""
    checkpoint, plain = checkpoints(name), RecBoleDSLConfig._init_device

    def elsewhere(config: Any) -> None:
        plain(config)
        config.final_config_dict["device"] = torch.device("meta")

    monkeypatch.setattr(RecBoleDSLConfig, "_init_device", elsewhere)
    assert export_artifact(checkpoint, tmp_path / "a").metrics


def test_pairs_are_scored_in_pieces(folders: Any) -> None:
    """As RecBole's evaluation does: what a model makes of a pair may be large."""
    scorer = SparseRecommender.load(folders("ConvNCF")).scorer
    users, sizes, plain = np.array([3, 1]), list[int](), scorer.model.predict
    expected = scorer.matrix(users)

    def predict(pairs: Any) -> Any:
        sizes.append(len(pairs))
        return plain(pairs)

    scorer.model.predict, scorer._config["eval_batch_size"] = predict, 50
    np.testing.assert_allclose(scorer.matrix(users), expected, rtol=1e-5)
    assert sizes == [50, 50, 11] * 2 and expected.shape == (2, 111)


@pytest.mark.parametrize("name", ["BPR", "LightGCN", "NeuMF", "MultiVAE", "SASRec"])
def test_what_users_have_is_left_out(name: str, folders: Any, data: Path) -> None:
    """Of all parts of the data; the rest comes in the order of the scores."""
    recommender, seen = SparseRecommender.load(folders(name)), seen_in(data)
    users = list(recommender.users)
    assert sorted(users) == sorted(seen) and len(users) == USERS
    everything, all_scores = recommender.recommend(users, k=1000, exclude_seen=False)
    left, scores = recommender.recommend(users, k=1000)
    for user, items, numbers, all_items, all_numbers in zip(
        users, left, scores, everything, all_scores, strict=True
    ):
        assert sorted(all_items) == sorted(recommender.items) and len(all_items) == ITEMS
        by_item = dict(zip(all_items, all_numbers, strict=True))
        assert items == [item for item in all_items if item not in seen[user]]
        assert np.allclose(numbers, [by_item[item] for item in items], atol=1e-6)
        assert numbers.dtype == np.float32
    one, its_scores = recommender.recommend(users[5], 3)
    assert one == left[5][:3] and np.allclose(its_scores, scores[5][:3], atol=1e-6)


@pytest.mark.parametrize("name", ["BPR", "LightGCN", "NeuMF"])
def test_candidates(name: str, folders: Any) -> None:
    """Chosen from some items only, with the scores they have among all."""
    recommender = SparseRecommender.load(folders(name))
    user, chosen = recommender.users[3], list(recommender.items[10:30])
    items, scores = recommender.recommend(user, 1000, exclude_seen=False, candidates=chosen)
    all_items, all_scores = recommender.recommend(user, 1000, exclude_seen=False)
    by_item = dict(zip(all_items, all_scores, strict=True))
    assert items == [item for item in all_items if item in chosen]
    assert np.allclose(scores, [by_item[item] for item in items], atol=1e-6)
    fewer, _ = recommender.recommend(user, 1000, candidates=chosen)
    assert set(fewer) < set(items) or set(fewer) == set(items)
    nothing, none = recommender.recommend(user, 5, candidates=[])
    assert nothing == [] and len(none) == 0


@pytest.mark.parametrize("name", ["BPR", "LightGCN", "NeuMF"])
@pytest.mark.parametrize("at_once", [1, 45, 1 << 22])
def test_candidates_of_several_users(
    name: str, at_once: int, folders: Any, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scored together, in parts that fit: what each user is told alone, unknown users among them."""
    monkeypatch.setattr("recbole_dsl.serving.recommender._SCORES", at_once)
    recommender, seen = SparseRecommender.load(folders(name)), seen_in(data)
    users, chosen = list(recommender.users), list(recommender.items[5:25])
    users.insert(3, "nobody")
    items, scores = recommender.recommend(users, 1000, candidates=chosen, unknown="popular")
    assert len(items) == len(scores) == USERS + 1
    for user, its_items, its_scores in zip(users, items, scores, strict=True):
        assert set(its_items) == set(chosen) - seen.get(user, set())
        alone, alone_scores = recommender.recommend(user, 1000, candidates=chosen, unknown="popular")
        order = dict(zip(alone, alone_scores, strict=True))
        assert np.allclose(its_scores, [order[item] for item in its_items], atol=1e-6)
        assert np.all(np.diff(its_scores) <= 0)


def test_unknown_users(folders: Any, data: Path) -> None:
    """An error, or the items with most interactions in training, whose numbers are the scores."""
    recommender = SparseRecommender.load(folders("BPR"))
    with pytest.raises(
        UnknownTokenError, match=f"User 'nobody' is not in the data; allowed is one of its {USERS}"
    ):
        recommender.recommend(["u1", "nobody"])
    items, scores = recommender.recommend(["nobody", "u1"], 4, unknown="popular")
    artifact = read_artifact(folders("BPR"))
    popularity = artifact.catalogue["popularity"]
    order = np.lexsort((np.arange(len(popularity)), -popularity.astype(int)))[:4]
    assert items[0] == [recommender.items[n - 1] for n in order]
    assert scores[0].tolist() == popularity[order].tolist()
    assert items[1] == recommender.recommend("u1", 4)[0]
    assert 0.7 * USERS * 24 < popularity.sum() < USERS * 24  # of the training part
    among, _ = recommender.recommend("nobody", 2, candidates=items[0][2:], unknown="popular")
    assert among == items[0][2:]


@pytest.mark.parametrize("name", ["BPR", "LightGCN", "SimpleX", "SASRec"])
def test_similar_items(name: str, folders: Any) -> None:
    """By cosine, the item itself left out."""
    recommender = SparseRecommender.load(folders(name))
    if name == "SASRec":
        rows = recommender.scorer.model.item_embedding.weight.detach().numpy()[1:]  # type: ignore[attr-defined]
    else:
        _, vectors = recommender.vectors()
        rows = vectors if isinstance(vectors, np.ndarray) else vectors.dense()
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    for number in (0, 7):
        item = recommender.items[number]
        items, cosines = recommender.similar_items(item, 5)
        expected = unit @ unit[number]
        expected[number] = -np.inf
        assert item not in items and len(items) == 5
        places = [list(recommender.items).index(other) for other in items]
        assert np.allclose(cosines, expected[places], atol=1e-5)
        assert cosines[-1] >= np.sort(expected)[-5] - 1e-5


@pytest.mark.parametrize(
    "ask, says",
    [
        (lambda r: r.recommend("u1", 0), "k=0 is refused: allowed is a whole number of at least 1"),
        (lambda r: r.recommend("u1", 2.5), "k=2.5 is refused"),
        (lambda r: r.recommend("u1", True), "k=True is refused"),
        (lambda r: r.recommend(None), "users=None is refused"),
        (lambda r: r.recommend([["u1"]]), "is no token"),
        (lambda r: r.recommend("u1", unknown="guess"), "allowed is one of error, popular"),
        (lambda r: r.recommend("u1", candidates="i1"), "allowed is a list of items"),
        (lambda r: r.recommend("u1", candidates=5), "candidates=5 is refused: allowed is a list of items"),
        (lambda r: r.recommend(b"u1"), "users=b'u1' is refused"),
        (lambda r: r.recommend("u1", candidates=["x"]), "Item 'x' is not in the data"),
        (lambda r: r.similar_items("x"), "Item 'x' is not in the data"),
        (lambda r: r.similar_items("i1", -1), "k=-1 is refused"),
    ],
)
def test_requests_that_are_refused(ask: Any, says: str, folders: Any) -> None:
    """One sentence."""
    with pytest.raises(RequestError, match=says.replace("(", r"\(")):
        ask(SparseRecommender.load(folders("BPR")))


def test_without_history(checkpoints: Any, tmp_path: Path) -> None:
    """What was seen is not known, and that is said; a graph alone is no history; sequences are needed."""
    for name in ("BPR", "LightGCN"):
        export_artifact(checkpoints(name), tmp_path / name, metrics=False)
        recommender = SparseRecommender.load(tmp_path / name)
        assert recommender.manifest.metrics == {} and not recommender.has_history
        with pytest.raises(RequestError, match="exported with --with-history"):
            recommender.recommend("u1")
        assert len(recommender.recommend("u1", exclude_seen=False)[0]) == 10
    with pytest.raises(
        ArtifactError, match="SASRec goes on from the sequences of its users; allowed is an export"
    ):
        export_artifact(checkpoints("SASRec"), tmp_path / "SASRec")


def test_threads_share_a_recommender(folders: Any) -> None:
    """Answers are those of one thread."""
    for name in ("BPR", "LightGCN", "NeuMF"):
        recommender = SparseRecommender.load(folders(name))
        users = list(recommender.users)
        fresh = SparseRecommender.load(folders(name))
        expected = [fresh.recommend(user, 5)[0] for user in users]
        with ThreadPoolExecutor(8) as pool:
            for _ in range(3):
                assert list(pool.map(lambda user, r=recommender: r.recommend(user, 5)[0], users)) == expected


@pytest.mark.parametrize("values", ["fp16", "bf16", "int8"])
@pytest.mark.parametrize("name", ["BPR", "NGCF", "MultiVAE"])
def test_fewer_bytes_cost_little(name: str, values: str, checkpoints: Any, tmp_path: Path) -> None:
    """The manifest has the metrics before and after; files are smaller; scores are near."""
    exact = export_artifact(checkpoints(name), tmp_path / "exact", with_history=True)
    fewer = export_artifact(checkpoints(name), tmp_path / "fewer", values=values, with_history=True)
    assert fewer.sizes["tensors"] < exact.sizes["tensors"]
    metrics = fewer.metrics
    assert metrics["trained"] == exact.metrics["trained"] == pytest.approx(exact.metrics["artifact"], abs=1e-6)
    differences = [abs(metrics["trained"][k] - metrics["artifact"][k]) for k in metrics["trained"]]
    assert metrics["largest_difference"] == max(differences) < 0.1
    users = np.arange(1, USERS + 1)
    scores = [SparseRecommender.load(tmp_path / f).scorer.matrix(users) for f in ("exact", "fewer")]  # type: ignore[attr-defined]
    scale = np.abs(scores[0][:, 1:]).max()
    error = np.abs(scores[0] - scores[1])[:, 1:].max()
    assert 0 < error < 0.03 * scale


def test_an_artifact_of_another_model_s_scores_is_not_written(checkpoints: Any, tmp_path: Path) -> None:
    """A class of one's own that scores otherwise than the model it derives from."""
    from recbole.model.general_recommender import BPR

    class Twice(BPR):
        def full_sort_predict(self, interaction: Any) -> Any:
            return 2 * super().full_sort_predict(interaction)

    with pytest.raises(ArtifactError, match="scores differ from those of Twice by"):
        export_artifact(checkpoints("BPR"), tmp_path / "a", model_class=Twice)

    class Same(BPR):
        pass

    assert export_artifact(checkpoints("BPR"), tmp_path / "b", model_class=Same).model == "Same"
    assert not (tmp_path / "a").exists()


def test_sampled_evaluation(data: Path, tmp_path: Path) -> None:
    """Metrics of sampled items are compared as well."""
    for name in ("BPR", "NeuMF"):
        eval_args = {"split": {"RS": [8, 1, 1]}, "order": "RO", "mode": "uni20", "group_by": "user"}
        run = sparse_run(name, {**settings_of(name, data), "eval_args": eval_args}, **DSL)
        manifest = export_artifact(run.trainer.saved_model_file, tmp_path / name)
        assert manifest.metrics["largest_difference"] <= 1e-6 and manifest.metrics["trained"]


def test_nothing_private_is_in_an_artifact(folders: Any, data: Path) -> None:
    """No path of the machine that trained."""
    for name in ("BPR", "SASRec"):
        text = (folders(name) / "manifest.json").read_text()
        assert str(data) not in text and "checkpoint_dir" not in text


# --- the command line ------------------------------------------------------------------------------


def told(*words: str, capsys: pytest.CaptureFixture[str], status: int = 0) -> str:
    """What a command prints."""
    with no_flags():
        assert main(list(words)) == status
    out = capsys.readouterr()
    return out.out if status == 0 else out.err.strip().splitlines()[-1]


def test_export_and_inspect(checkpoints: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The way a user goes."""
    folder, file = str(tmp_path / "model"), str(checkpoints("BPR"))
    said = told("export", file, "--to", folder, "--values=int8", "--with-history", capsys=capsys)
    assert "BPR on tiny, int8" in said and "test: recall@10" in said
    assert "exists" in told("export", file, "--to", folder, capsys=capsys, status=2)
    told("export", file, "--to", folder, "--force", "--no-metrics", "--with-history", capsys=capsys)
    assert read_manifest(folder).values == "fp32"
    text = told("inspect", folder, capsys=capsys)
    assert "72 users, 110 items" in text and "from the least to the most popular" in text
    found = json.loads(told("inspect", folder, "--json", capsys=capsys))
    groups = found["live_by_popularity"]["items"]
    assert sum(g["rows"] for g in groups) == ITEMS and len(groups) == 5
    live = sum(g["rows"] * g["live_per_row"] for g in groups)
    padding = int(read_artifact(folder).tensors["items"].counts[0])  # type: ignore[union-attr]
    assert round(live) == found["tensors"]["items"]["live"] - padding
    interactions = [g["interactions"] for g in groups]
    assert interactions == sorted(interactions)


def test_recommend_prints(folders: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A table, or JSON; users from flags and files."""
    folder = str(folders("BPR"))
    items, scores = SparseRecommender.load(folder).recommend("u7", 3)
    lines = told("recommend", folder, "--user", "u7", "-k", "3", capsys=capsys).splitlines()
    assert lines[0] == "user u7"
    assert [line.split() for line in lines[2:5]] == [
        [str(rank), item, f"{score:.6g}"]
        for rank, (item, score) in enumerate(zip(items, scores, strict=True), 1)
    ]
    (tmp_path / "users").write_bytes("\ufeffu7\r\n\r\n u3 \n".encode())
    rows = told("recommend", folder, "--users-file", str(tmp_path / "users"), "-k=3", "--json", capsys=capsys)
    answers = [json.loads(line) for line in rows.splitlines()]
    assert [answer["user"] for answer in answers] == ["u7", "u3"]
    assert [found["item"] for found in answers[0]["items"]] == items
    (tmp_path / "few").write_text("\n".join(items[1:]))
    few = told(
        "recommend", folder, "--user=u7", f"--candidates-file={tmp_path / 'few'}", "--json", capsys=capsys
    )
    assert [found["item"] for found in json.loads(few)["items"]] == items[1:]
    assert "item i1" in told("recommend", folder, "--similar-to", "i1", capsys=capsys)
    assert "user nobody" in told("recommend", folder, "--user=nobody", "--unknown=popular", capsys=capsys)


def test_output_that_nobody_reads_or_that_a_terminal_cannot_show(folders: Any, tmp_path: Path) -> None:
    """A closed pipe ends the command as it ends others; signs beyond the terminal's are escaped."""
    program = [sys.executable, "-c", "import sys; from recbole_dsl.cli import main; sys.exit(main())"]
    words = ["recommend", str(folders("BPR")), *[f"--user=u{n}" for n in range(1, 40)], "-k=20"]
    process = subprocess.Popen([*program, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    told = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 141 and not told
    done = subprocess.run(
        [*program, "vectors", str(folders("BPR")), f"--to={tmp_path / 'v'}"],
        capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == 0 and rb"72 \xd7 16" in done.stdout


def test_files_that_cannot_be_written(
    folders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence, and nothing is left behind; other errors of the system stay as they are."""
    folder, out, number = str(folders("BPR")), tmp_path / "out", errno.ENOSPC
    out.mkdir()

    def full(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    for words in (
        ["recommend", folder, "--all", f"--out={out}/r.csv"],
        ["vectors", folder, f"--to={out}/v"],
    ):
        text = told(*words, capsys=capsys, status=2)
        assert text.startswith("error: a file cannot be read or written (No space left on device); allowed is ")
        assert not [path for path in out.rglob("*") if path.is_file()]
    number = errno.EFBIG
    assert "(File too large)" in told("vectors", folder, f"--to={out}/v", capsys=capsys, status=2)
    number = errno.EIO
    with pytest.raises(OSError), no_flags():
        main(["recommend", folder, "--all", f"--out={out}/r.csv"])


def test_recommend_for_all(folders: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """CSV and Parquet hold the same."""
    import pyarrow.parquet as pq

    folder = str(folders("LightGCN"))
    for ending in ("csv", "parquet"):
        said = told("recommend", folder, "--all", f"--out={tmp_path / 'recs'}.{ending}", "-k=4", capsys=capsys)
        assert "72 users" in said
    with open(tmp_path / "recs.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * USERS and list(rows[0]) == ["user", "rank", "item", "score"]
    table = pq.read_table(tmp_path / "recs.parquet").to_pylist()
    assert [(r["user"], r["rank"], r["item"]) for r in table] == [
        (r["user"], int(r["rank"]), r["item"]) for r in rows
    ]
    assert np.allclose([r["score"] for r in table], [float(r["score"]) for r in rows])
    for ending in ("csv", "parquet"):
        told(
            "recommend", folder, "--similar-to=i1", f"--out={tmp_path / 'like'}.{ending}", "-k=2", capsys=capsys
        )
    like = pq.read_table(tmp_path / "like.parquet").to_pylist()
    assert [list(row) for row in like] == [["similar_to", "rank", "item", "score"]] * 2
    assert {row["similar_to"] for row in like} == {"i1"} and "i1" not in {row["item"] for row in like}
    assert (tmp_path / "like.csv").read_text().splitlines()[0] == "similar_to,rank,item,score"
    recommender = SparseRecommender.load(folder)
    assert [r["item"] for r in rows[:4]] == recommender.recommend(recommender.users[0], 4)[0]


@pytest.mark.parametrize(
    "words, says",
    [
        (["recommend", "{a}"], "exactly one of --user, --users-file, --all and --similar-to"),
        (["recommend", "{a}", "--user=u1", "--all"], "exactly one of"),
        (["recommend", "{a}", "--all"], "--all needs --out"),
        (["recommend", "{a}", "--all", "--out=x.txt"], "allowed is a name that ends in .csv or .parquet"),
        (["recommend", "{a}", "--all", "--out={mine}"], "exists; allowed is another name, or --force"),
        (["recommend", "{a}", "--all", "--out=no/x.csv"], "in a folder that does not exist"),
        (["recommend", "{a}", "--user=u1", "-k", "x"], "invalid int value"),
        (["recommend", "{a}", "--usr=u1"], "did you mean '--user'?"),
        (["recommend", "{a}", "--users-file=no"], "--users-file=no cannot be read"),
        (["recommend", "{a}", "--user=nobody"], "User 'nobody' is not in the data"),
        (["recommend", "{a}", "--user=--5"], "User '--5' is not in the data"),
        (["serve", "{a}", "--device=foo"], "device='foo' cannot be used"),
        (["recommend", "nowhere", "--user=u1"], "there is no such folder"),
        (["inspect", "nowhere"], "there is no such folder"),
        (["inspect"], "required: artifact"),
        (["export", "nowhere", "--to=x"], "no such file"),
        (["export", "nowhere", "--to=x", "--values=int4"], "invalid choice: 'int4'"),
        (["vectors", "{a}", "--to={mine}"], "is a file"),
        (["serve", "{a}", "--port=70000"], "allowed is a number from 0 to 65535"),
        (["serve", "{a}", "--max-k=0"], "--max-k=0 is refused"),
        (["serve", "nowhere"], "there is no such folder"),
        (["serve", "{a}", "--host=no.such.host.invalid"], "cannot be listened at"),
        (["serve", "{a}", "--host=1..2"], "cannot be listened at"),
        (["recommend", "{a}", "--similar-to=i1", "--candidates-file=c"], "--candidates-file is for recommend"),
        (["recommend", "{a}", "--similar-to=i1", "--unknown=popular"], "--unknown is for recommendations"),
        (["recommend", "{a}", "--similar-to=i1", "--keep-seen"], "--keep-seen is for recommendations"),
        (["recommend", "{a}", "--user=u1", "--json", "--out=x.csv"], "one of --json, which prints, and --out"),
        (["recommend", "{a}", "--user=\udcff", "--unknown=popular"], "allowed are texts in UTF-8"),
        (["vectors", "{a}", "--to={mine}/x"], "cannot be made"),
    ],
)
def test_mistakes_are_one_sentence(
    words: list[str], says: str, folders: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And nothing is written over."""
    mine = tmp_path / "mine.csv"
    mine.write_text("mine")
    said = told(*(w.format(a=folders("BPR"), mine=mine) for w in words), capsys=capsys, status=2)
    assert said.startswith("error: ") and says in said and mine.read_text() == "mine"


def test_spaces_of_names_in_files(folders: Any, tmp_path: Path) -> None:
    """Count where a name has them, else they are the file's."""
    (tmp_path / "users").write_text("u1 \n u2 \r\nu3\t\n")
    known = SparseRecommender.load(folders("BPR")).users
    assert _names(_lines(tmp_path / "users", "--users-file"), known) == ["u1", "u2", "u3"]
    assert _names(_lines(tmp_path / "users", "--users-file"), [*known, "u1 "]) == ["u1 ", "u2", "u3"]
    assert "u1" in known and "u1 " not in known and 1 not in known


def test_a_user_with_one_interaction(data: Path, tmp_path: Path) -> None:
    """RecBole makes no sequence of it, but it is what the user has: left out, and gone on from."""
    places = {"data_path": str(tmp_path), "checkpoint_dir": str(tmp_path / "saved")}
    columns = ["user_id", "item_id", "rating", "timestamp"]
    given = {**settings_of("SASRec", data), **places, "load_col": {"inter": columns}}
    shutil.copytree(data / NAME, tmp_path / NAME)
    table = tmp_path / NAME / f"{NAME}.inter"
    first, *rows = table.read_text().splitlines()
    table.write_text("\n".join([first, "z\ti3\t4\t1", *rows, "a\ti5\t4\t1"]) + "\n")
    run = sparse_run("SASRec", given, **DSL)
    export_artifact(run.trainer.saved_model_file, tmp_path / "a", with_history=True, metrics=False)
    recommender = SparseRecommender.load(tmp_path / "a")
    everything = set(recommender.items)
    for user, own in (("z", {"i3"}), ("a", {"i5"}), *((u, seen_in(data)[u]) for u in ("u1", "u40"))):
        assert everything - set(recommender.recommend(user, 1000)[0]) == own


def test_products_rank_candidates(folders: Any) -> None:
    """Where an activation makes scores equal, candidates are chosen as all items are."""
    recommender = SparseRecommender.load(folders("BPR"))
    plain = recommender.recommend(recommender.users, 5)
    recommender.scorer._activation = lambda x: np.sign(x)  # type: ignore[attr-defined]
    for ask in ({}, {"candidates": list(recommender.items)}):
        items, scores = recommender.recommend(recommender.users, 5, **ask)  # type: ignore[call-overload]
        assert items == plain[0]
        assert [row.tolist() for row in scores] == [np.sign(row).tolist() for row in plain[1]]


@pytest.mark.parametrize("change", [{"eval_args": {"split": {"RS": [1, 0, 0]}}}, {"clip_grad_norm": INFINITE}])
def test_what_json_does_not_know(change: dict[str, Any], data: Path, tmp_path: Path) -> None:
    """No test part gives no metrics; a number that is not finite is kept as text."""
    given = {**settings_of("BPR", data), "checkpoint_dir": str(tmp_path / "saved"), **change}
    (tmp_path / "given.yaml").write_text(yaml.safe_dump(given))
    words = ["--model=BPR", f"--dataset={NAME}", "--dsl_density=0.3"]
    assert main(["train", *words, f"--config_files={tmp_path / 'given.yaml'}"]) == 0
    (file,) = [path for path in (tmp_path / "saved").glob("*.dsl") if not path.stem.endswith("-last")]
    manifest = export_artifact(file, tmp_path / "a", with_history=True)
    assert bool(manifest.metrics) == ("eval_args" not in change)
    if "clip_grad_norm" in change:
        assert read_manifest(tmp_path / "a").config["given"]["clip_grad_norm"]["norm_type"] == "inf"
    assert len(SparseRecommender.load(tmp_path / "a").recommend("u1", 3)[0]) == 3


def test_vectors_for_other_tools(folders: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """scipy reads them; faiss finds what we find; dense ones are a matrix."""
    import faiss
    import scipy.sparse as sp

    folder, out = folders("BPR"), tmp_path / "vectors"
    told("vectors", str(folder), "--to", str(out), capsys=capsys)
    users, items = sp.load_npz(out / "users.npz"), sp.load_npz(out / "items.npz")
    tokens = json.loads((out / "items.json").read_text())
    recommender = SparseRecommender.load(folder)
    assert tokens == list(recommender.items) and users.shape == (USERS, 16) and items.shape == (ITEMS, 16)
    index = faiss.IndexFlatIP(16)
    index.add(items.toarray())
    _, found = index.search(users.toarray()[:20], 5)
    expected, _ = recommender.recommend(list(recommender.users[:20]), 5, exclude_seen=False)
    assert [[tokens[n] for n in row] for row in found] == expected
    assert "exists; allowed is another folder" in told(
        "vectors", str(folder), "--to", str(out), capsys=capsys, status=2
    )
    told("vectors", str(folder), "--to", str(out), "--dense", "--force", capsys=capsys)
    assert np.allclose(np.load(out / "items.npy"), items.toarray())
    assert not list(out.glob("*.npz"))  # which would be another model's, next time
    before = {path: path.read_bytes() for path in out.iterdir()}
    (out / "items.npz").mkdir()
    assert "items.npz' is a folder" in told(
        "vectors", str(folder), "--to", str(out), "--force", capsys=capsys, status=2
    )
    assert all(path.read_bytes() == content for path, content in before.items())
    told("vectors", str(folders("LightGCN")), "--to", str(tmp_path / "dense"), capsys=capsys)
    assert np.load(tmp_path / "dense" / "users.npy").shape == (USERS, 16)
    assert "does not score by inner products" in told(
        "vectors", str(folders("NeuMF")), "--to", str(tmp_path / "no"), capsys=capsys, status=2
    )


def test_vectors_are_of_one_model(folders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the second file cannot be written the first one of the model before stays, too."""
    out = tmp_path / "vectors"
    assert main(["vectors", str(folders("BPR")), f"--to={out}"]) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    write = vectors_command.write_vectors

    def half(folder: Path, name: str, *more: Any) -> Path:
        if name == "items":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(folder, name, *more)

    monkeypatch.setattr(vectors_command, "write_vectors", half)
    assert main(["vectors", str(folders("LightGCN")), f"--to={out}", "--force"]) == 2
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_file_that_breaks_off_is_not_there(
    folders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recommendations of all users are written whole or not at all."""
    plain, calls = SparseRecommender.recommend, 0

    def failing(self: Any, *arguments: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise KeyboardInterrupt
        return plain(self, *arguments, **more)

    monkeypatch.setattr(SparseRecommender, "recommend", failing)
    monkeypatch.setattr("recbole_dsl.recommend_command.USERS_AT_ONCE", 10)
    for ending in ("csv", "parquet"):
        calls = 0
        assert main(["recommend", str(folders("BPR")), "--all", f"--out={tmp_path / 'r'}.{ending}"]) == 130
    assert list(tmp_path.iterdir()) == []


# --- RecBole's models away from home ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["NeuMF", "MultiVAE", "SASRec", "FISM"])
def test_no_dataset_is_needed(name: str, folders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of the artifact answers alike where there is no data, from a folder that cannot be guessed."""
    expected = SparseRecommender.load(folders(name)).recommend("u3", 7)
    shutil.copytree(folders(name), tmp_path / "elsewhere" / "a")
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(sys, "argv", ["x", "--embedding_size=3", "--seed=9"])
    items, scores = SparseRecommender.load("a").recommend("u3", 7)
    assert items == expected[0] and np.array_equal(scores, expected[1])
    assert sorted(p.name for p in (tmp_path / "elsewhere").iterdir()) == ["a"]


def test_its_weights_are_sparse_where_it_is_served(folders: Any) -> None:
    """Packed, as in training: the live weights are the only ones there are."""
    from recbole_dsl.packed.group import PackedGroup

    recommender = SparseRecommender.load(folders("SASRec"))
    groups = [m for m in recommender.scorer.model.modules() if isinstance(m, PackedGroup)]  # type: ignore[attr-defined]
    sparse = {n: info.live for n, info in recommender.manifest.tensors.items() if info.live is not None}
    assert len(groups) == len(sparse) > 0 and sum(g.budget for g in groups) == sum(sparse.values())  # type: ignore[arg-type]


def test_settings_of_an_artifact_run_nothing(folders: Any, tmp_path: Path) -> None:
    """RecBole would evaluate them as Python."""
    from tests.test_artifact import rewritten

    shutil.copytree(folders("SASRec"), tmp_path / "a")
    harm = tmp_path / "harm"
    rewritten(
        tmp_path / "a",
        lambda body: body["config"]["given"].update(n_layers=f"__import__('os').mkdir({str(harm)!r}) or 1"),
    )
    with pytest.raises(ArtifactError, match="cannot be served"):
        SparseRecommender.load(tmp_path / "a")
    for model in ("os:path", "Nothing", "DeepFM", "LDiffRec", 3):
        shutil.rmtree(tmp_path / "a")
        shutil.copytree(folders("SASRec"), tmp_path / "a")
        rewritten(tmp_path / "a", lambda body, model=model: body["config"].update(model=model))
        with pytest.raises(ArtifactError, match="cannot be served"):
            SparseRecommender.load(tmp_path / "a")
    assert not harm.exists()


def test_values_are_asked_for_by_name(checkpoints: Any, tmp_path: Path) -> None:
    """In Python as well."""
    with pytest.raises(ConfigError, match="values='int4' is refused: allowed is one of fp32, fp16, bf16, int8"):
        export_artifact(checkpoints("BPR"), tmp_path / "a", values="int4")
