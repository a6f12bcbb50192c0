"""The order of the comparisons."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import compare_docs, data_path, grid
from benchmarks.speed_docs import RESULTS
from recbole_dsl.compare.options import read_tuned
from recbole_dsl.training import lightgcn
from tests.tiny_data import NAME

needs_bash = pytest.mark.skipif(os.name == "nt", reason="the scripts are bash's")


def test_the_lines_that_the_script_reads() -> None:
    """Model, dataset, space, as many trials as it has points (or tuned ones, none), own settings; of all."""
    assert list(grid.commands(["BPR/ml-1m", "NeuMF/ml-1m", "LightGCN/gowalla", "LightGCN/yelp2018"])) == [
        "BPR ml-1m benchmarks/compare/space_of_five_small.txt 5",
        "NeuMF ml-1m benchmarks/compare/space_of_five_small.txt 5 --eval_batch_size=16384",
        "LightGCN gowalla benchmarks/compare/space_of_three_large.txt 3",
        "LightGCN yelp2018 benchmarks/compare/tuned_on_gowalla.yaml 0",
    ]
    assert len(list(grid.commands([]))) == len(grid.order())


def test_every_comparison_has_its_files() -> None:
    """The schedule of its dataset, and its space, or settings for every method."""
    for one in grid.order():
        assert (grid.FOLDER / f"{one['dataset']}.yaml").is_file()
        file, points = grid.search_of(one)
        assert file.is_file() and (points > 1) == ("space" in one) != ("tuned" in one)
        if "tuned" in one:
            settings = read_tuned(str(file))["chosen"][one["model"]][one["dataset"]]
            assert list(settings) == ["dense", "narrow", "dsl", "dsl_plus"]


@pytest.mark.parametrize(
    "source, datasets",
    [
        ("gowalla", {"LightGCN": ["yelp2018", "amazon-book-kgat"]}),
        ("ml-1m", {"NeuMF": ["citeulike-t", "foursquare-fgcrec"]}),
        ("citeulike-t", {"MultiVAE": ["foursquare-fgcrec"]}),
    ],
)
def test_rates_of_another_dataset(source: str, datasets: dict[str, list[str]]) -> None:
    """Are as they were tuned there."""
    file = grid.FOLDER / f"tuned_on_{source}.yaml"
    content = read_tuned(str(file))
    assert source in content["how"] and list(content["chosen"]) == list(datasets)
    for model, taken in content["chosen"].items():
        tuned = read_tuned(str(RESULTS / f"compare/{model}-{source}-tuning/tuned.yaml"))["chosen"][model][
            source
        ]
        assert list(taken) == datasets[model] and all(rates == tuned for rates in taken.values())
        assert all(grid.by_name()[f"{model}/{dataset}"]["tuned"] == file.stem for dataset in taken)


def test_committed_comparisons_can_go_on() -> None:
    """Their settings and rates are those of the order's files; with others ``compare`` refuses the folder."""
    made = 0
    names = {f"{one['model']}-{one['dataset']}": one for one in grid.order()}
    ends = ("", *(f"-at-{density:g}" for density in compare_docs.AIMS))
    for (name, one), end in itertools.product(names.items(), ends):
        file = RESULTS / f"compare/{name}{end}/grid.json"
        if not file.exists():
            continue
        committed = json.loads(file.read_text(encoding="utf-8"))
        own_rates = RESULTS / f"compare/{name}-tuning{end}/tuned.yaml"
        tuned = grid.search_of(one)[0] if "tuned" in one else own_rates
        assert committed["tuned"] == read_tuned(str(tuned)), name
        schedule = yaml.safe_load((grid.FOLDER / f"{one['dataset']}.yaml").read_text(encoding="utf-8"))
        own = {key: str(value) for key, value in grid.settings_of(one).items()}
        assert {**committed["settings"], **schedule, **own} == committed["settings"], name
        made += 1
    assert made > 10


def test_a_comparison_that_is_not_listed() -> None:
    """Is refused by name."""
    with pytest.raises(SystemExit, match=r"BPR/mars is not in .*order\.yaml; allowed: BPR/citeulike-t"):
        list(grid.commands(["BPR/mars"]))


def script(name: str, *words: str, folder: Path, **variables: str) -> Any:
    """Run a script of the comparisons with a ``recbole-dsl`` that prints what it is asked."""
    stub = folder / "recbole-dsl"
    stub.write_text('#!/bin/sh\necho "$@"\n', encoding="utf-8")
    stub.chmod(0o755)
    python = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{python}{os.pathsep}{os.environ['PATH']}"}
    for name_of_setting in (
        "AT",
        "DATA",
        "SCHEDULE",
        "STUDY",
        "DENSITY",
        "DENSITIES",
        "JOBS",
        "SEEDS",
        "SUFFIX",
        "RUNS",
        "METHODS",
    ):
        environment.pop(name_of_setting, None)
    environment.update(variables)
    command = ["bash", str(grid.FOLDER / name), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@needs_bash
def test_dense_from_factors_is_tuned_as_the_comparison(tmp_path: Path) -> None:
    """With its space, trials and own settings; a pair that has none is refused."""
    done = script("from_factors.sh", "LightGCN", "ml-1m", folder=tmp_path)
    tune, compare = done.stdout.splitlines()[:2]
    assert done.returncode == 0 and tune.startswith("tune ") and compare.startswith("compare ")
    assert "--train_batch_size=16384" in tune.split() and "--train_batch_size=16384" in compare.split()
    assert "--space=benchmarks/compare/space_of_three_large.txt --trials=3" in tune
    assert "space.txt --trials=4" in script("from_factors.sh", "BPR", "ml-100k", folder=tmp_path).stdout
    done = script("from_factors.sh", "BPR", "mars", folder=tmp_path)
    assert done.returncode != 0 and not done.stdout and "BPR/mars is not in" in done.stderr


@needs_bash
def test_a_comparison_that_is_not_tuned(tmp_path: Path) -> None:
    """Takes the settings of its file, and has no dense one from factors."""
    done = script("accuracy.sh", folder=tmp_path, DATA="data", PAIRS="LightGCN/yelp2018", DENSITIES="0.1")
    (compare,) = done.stdout.splitlines()
    assert done.returncode == 0 and compare.startswith("compare ") and " --densities=0.1 " in compare
    assert compare.endswith("--tuned=benchmarks/compare/tuned_on_gowalla.yaml")
    done = script("accuracy.sh", folder=tmp_path, DATA="data", PAIRS="LightGCN/gowalla")
    tune, compare = done.stdout.splitlines()
    assert tune.startswith("tune ") and tune.split()[-3:] == [
        "--space=benchmarks/compare/space_of_three_large.txt",
        "--trials=3",
        "--density=0.1",
    ]
    assert compare.endswith("--tuned=benchmarks/results/compare/LightGCN-gowalla-tuning/tuned.yaml")
    done = script("from_factors.sh", "LightGCN", "yelp2018", folder=tmp_path)
    assert done.returncode == 2 and not done.stdout and done.stderr.startswith("LightGCN/yelp2018 is refused: ")


@needs_bash
def test_a_density_that_is_tuned_for_itself(tmp_path: Path) -> None:
    """Has trials and cells in folders of its own; rates that were tuned elsewhere are of no density."""
    done = script("accuracy.sh", folder=tmp_path, DATA="data", PAIRS="MultiVAE/ml-1m", AT="0.5", SEEDS="3")
    tune, compare = (line.split() for line in done.stdout.splitlines())
    assert {"--name=MultiVAE-ml-1m-tuning-at-0.5", "--density=0.5"} <= {*tune}
    assert {"--name=MultiVAE-ml-1m-at-0.5", "--densities=0.5", "--seeds=3"} <= {*compare}
    assert compare[-1] == "--tuned=benchmarks/results/compare/MultiVAE-ml-1m-tuning-at-0.5/tuned.yaml"
    done = script("accuracy.sh", folder=tmp_path, DATA="data", PAIRS="LightGCN/yelp2018", AT="0.5")
    assert done.returncode == 2 and not done.stdout and done.stderr.startswith("AT=0.5 is refused for ")


@needs_bash
def test_variants_of_the_ablation(tmp_path: Path) -> None:
    """Those that are named, each in a folder of its own; others are refused before the first is run."""
    done = script("ablation.sh", "BPR", "ml-100k", "0.001", "width-64", "base", folder=tmp_path)
    base, wide = done.stdout.splitlines()
    assert done.returncode == 0 and base.endswith("--name=BPR-ml-100k-base --learning_rate=0.001 --jobs=2")
    assert wide.endswith("--name=BPR-ml-100k-width-64 --learning_rate=0.001 --jobs=2 --dsl_width=64")
    done = script("ablation.sh", "BPR", "ml-100k", "0.001", "base", "width-65", folder=tmp_path)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("width-65 is no variant; allowed: base values-of-the-model")


@needs_bash
def test_models_as_they_come_are_all_run(tmp_path: Path) -> None:
    """What the script starts by itself is what the page tells of."""
    runner = tmp_path / "xargs"
    runner.write_text("#!/bin/sh\ncat\n", encoding="utf-8")
    runner.chmod(0o755)
    done = script("out_of_the_box.sh", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    started = [line.split("/") for line in done.stdout.splitlines()]
    names = {"-".join((*words[:2], *words[-2:])) for words in started}
    kept = {path.stem for path in (RESULTS / "out_of_the_box").glob("*-2020.json")}
    assert kept <= names and {n.rsplit("-", 2)[0] for n in names} == {n.rsplit("-", 2)[0] for n in kept}
    done = script("out_of_the_box.sh", folder=tmp_path, RUNS="BPR/ml-100k", METHODS="dense", SEEDS="7")
    assert done.stdout == "BPR/ml-100k/ml-100k/dense/7\n"


@pytest.mark.usefixtures("in_folder")
def test_the_clock_leaves_lightgcn_as_it_is(data: Path) -> None:
    """What is measured of wide tables is the way that training goes."""
    settings = {"dsl_width": 256, "dsl_init": "random", "dsl_init_values": "model"}
    case = data_path.Case("LightGCN", "LightGCN", NAME, settings, 1, 10)
    run = data_path.Run(case, "fast", str(data), "saved")
    assert lightgcn.takes(run.trainer.model)
    assert run.measure("epoch")["forward"] > 0
