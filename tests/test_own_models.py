"""Models outside of RecBole's registry: by path, by class, derived from RecBole's or from scratch."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from recbole.data.dataloader import UserDataLoader
from recbole.model.general_recommender import BPR, Pop, RecVAE
from recbole.trainer import RecVAETrainer, Trainer

from recbole_dsl import experiment
from recbole_dsl.config import RecBoleDSLConfig
from recbole_dsl.errors import ConfigError
from recbole_dsl.training.trainer import make_sparse
from tests.model_runs import no_flags, settings_of, sparse_run, sparse_trainer_of
from tests.recbole_runs import command_line
from tests.tiny_data import write_tiny

EXAMPLES = Path(__file__).resolve().parents[1] / "docs" / "examples"


pytestmark = pytest.mark.usefixtures("in_folder")


def config(model: Any, **settings: Any) -> RecBoleDSLConfig:
    with no_flags():
        return RecBoleDSLConfig(model, "ml-100k", config_dict=settings)


@pytest.mark.parametrize(
    "name, size, tensors",
    [
        ("BPRWithBias", 64, {"user_embedding.weight", "item_embedding.weight"}),
        ("ProductModel", 64, {"user_embedding.weight", "item_embedding.weight", "layer.weight"}),
    ],
)
def test_the_examples_of_the_documentation_run(name: str, size: int, tensors: set[str], tmp_path: Path) -> None:
    """As the page says, with the module found in the working directory."""
    (tmp_path / "my_models.py").write_text((EXAMPLES / "my_models.py").read_text(encoding="utf-8"))
    done = command_line(
        f"--model=my_models:{name}",
        "--epochs=1",
        "--show_progress=False",
        "--dsl_result=out.json",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    found = {t["name"]: t["shape"] for group in result["sparsity"]["groups"] for t in group["tensors"]}
    assert result["model"] == name and found.keys() == tensors
    assert found["item_embedding.weight"][1] == size
    assert result["sparsity"]["live"] == result["sparsity"]["budget"] < result["sparsity"]["weights"]
    assert list((tmp_path / "saved").glob(f"{name}-*.dsl"))


def test_a_derived_class_takes_settings_loaders_and_trainer_of_its_parent(tmp_path: Path) -> None:
    """RecVAE has all three of its own."""

    class MyRecVAE(RecVAE):
        pass

    class Mine(MyRecVAE):
        pass

    settings = settings_of("RecVAE", write_tiny(tmp_path))
    trainer, data = sparse_trainer_of(Mine, settings, density=0.2, method="dsl")
    assert trainer.config.lineage == ["Mine", "RecVAE"]
    assert isinstance(trainer, RecVAETrainer) and isinstance(data[0], UserDataLoader)
    assert trainer.config["model"] == "Mine" and trainer.config["latent_dimension"] == 200
    run = sparse_run(Mine, settings, density=0.2, method="dsl", update_interval=3)
    assert run.valid and run.trainer.sparse.live == run.trainer.sparse.budget


def test_a_model_without_a_table_for_factors_starts_at_random_positions(tmp_path: Path, caplog: Any) -> None:
    """By default, with a warning; asked for by name the factors are refused."""

    class Odd(BPR):
        def __init__(self, config: Any, dataset: Any) -> None:
            super().__init__(config, dataset)
            self.user_embedding = torch.nn.Embedding(self.n_users + 3, self.embedding_size)
            self.item_embedding = torch.nn.Embedding(self.n_items + 5, self.embedding_size)

    settings = settings_of("BPR", write_tiny(tmp_path))
    trainer, data = sparse_trainer_of(Odd, settings, density=0.2, width=64)
    assert trainer.dsl.init == "spectral" and trainer.sparse.without_factors and not trainer.sparse.norms
    group = trainer.sparse.groups[0]
    assert trainer.sparse.live == trainer.sparse.budget and 0.005 < group.live_values().std() < 2
    with caplog.at_level("WARNING"):
        trainer.fit(data[0], show_progress=False)
    assert "all tensors start at random positions" in caplog.text
    usual, _ = sparse_trainer_of("BPR", settings, density=0.2)
    assert not usual.sparse.without_factors
    assert [experiment._sparsity(t)["without_factors"] for t in (trainer, usual)] == [True, False]
    with pytest.raises(ConfigError, match="needs a table or matrix of users or items"):
        sparse_trainer_of(Odd, settings, density=0.2, init="spectral", width=64)


def test_a_trainer_of_ones_own(tmp_path: Path) -> None:
    """Any class derived from RecBole's trainer can be made sparse."""

    class Mine(Trainer):
        steps = 0

        def _train_epoch(self, *args: Any, **kwargs: Any) -> Any:
            Mine.steps += 1
            return super()._train_epoch(*args, **kwargs)

    trainer, data = sparse_trainer_of("BPR", settings_of("BPR", write_tiny(tmp_path)), density=0.2)
    from recbole_dsl.experiment import build_model

    mine = make_sparse(Mine)(trainer.config, build_model(trainer.config, data[0]), data[0])
    mine.fit(data[0], show_progress=False)
    assert type(mine).__name__ == "SparseMine" and Mine.steps == 1 and mine.sparse.live == mine.sparse.budget


@pytest.mark.parametrize(
    "path, says",
    [
        ("nowhere.at_all:Model", "No module named 'nowhere'"),
        ("broken:Model", "SyntaxError"),
        ("mine:Modle", "did you mean 'Model'?"),
        ("mine:number", "has no class 'number'"),
        ("mine:Model", "is no recommender class"),
        ("mine:", "has no class ''"),
        (":Model", "cannot be imported"),
    ],
)
def test_what_cannot_be_a_model_is_one_sentence(path: str, says: str, tmp_path: Path) -> None:
    """Before any data is loaded, and the module path is left as it was."""
    (tmp_path / "mine.py").write_text("number = 3\nclass Model:\n    pass\n")
    (tmp_path / "broken.py").write_text("class Model(:\n")
    sys.modules.pop("mine", None)
    before = list(sys.path)
    with pytest.raises(ConfigError) as refusal:
        config(path, data_path="nowhere")
    assert says in str(refusal.value) and "allowed" in str(refusal.value) and "\n" not in str(refusal.value)
    assert sys.path == before


def test_a_class_without_gradients_is_refused() -> None:
    """Also if it is one's own."""

    class MyPop(Pop):
        pass

    with pytest.raises(ConfigError, match="no weights that gradients train"):
        config(MyPop, data_path="nowhere")


def test_a_name_of_recboles_is_free_for_a_class_of_ones_own() -> None:
    """What RecBole's class of that name needs, or why it is refused, does not concern it."""
    for name in ("Pop", "NCEPLRec", "S3Rec", "NeuMF", "NCL"):
        mine = type(name, (BPR,), {})
        assert config(mine)["model"] == name


class WithIdleTable(BPR):
    """A table that is never read."""

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.idle = torch.nn.Embedding(500, 8)


@pytest.mark.parametrize("learner", ["adam", "sgd"])
def test_a_table_that_nothing_trains_is_told(
    learner: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, by name; the tables that are trained are not mentioned."""
    settings = {**settings_of("BPR", write_tiny(tmp_path)), "epochs": 2, "learner": learner, "state": "WARNING"}
    sparse_run(WithIdleTable, settings, density=0.2, method="dsl", include=["*.weight"], groups="per_tensor")
    told = [record.message for record in caplog.records if "had no gradient" in record.message]
    assert len(told) == 1 and "'idle.weight'" in told[0]
