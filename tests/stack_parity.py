"""Compare what RecBole learns on two software stacks.

``python -m tests.stack_parity OUT.json`` trains on the installed stack and writes losses and
metrics.  ``python -m tests.stack_parity --compare A.json B.json`` fails, and says where, unless
metrics are identical and losses agree to 1e-6.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from recbole_dsl import compat

MODELS = ("BPR", "LightGCN")
LOSS_TOLERANCE = 1e-6


def settings(checkpoint_dir: str) -> dict[str, Any]:
    """Return the settings that all runs share."""
    return {
        "epochs": 2,
        "gpu_id": "",
        "show_progress": False,
        "checkpoint_dir": checkpoint_dir,
        "state": "ERROR",
    }


def train_recbole(model: str, checkpoint_dir: str) -> dict[str, Any]:
    """Train RecBole's own model with RecBole's own trainer."""
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer, init_seed

    config = Config(model=model, dataset="ml-100k", config_dict=settings(checkpoint_dir))
    init_seed(config["seed"], config["reproducibility"])
    train_data, valid_data, test_data = data_preparation(config, create_dataset(config))
    init_seed(config["seed"], config["reproducibility"])
    network = get_model(model)(config, train_data.dataset).to(config["device"])
    trainer = get_trainer(config["MODEL_TYPE"], model)(config, network)
    _, best_valid = trainer.fit(train_data, valid_data, saved=True, show_progress=False)
    test = trainer.evaluate(test_data, load_best_model=True, show_progress=False)
    return outcome(list(trainer.train_loss_dict.values()), best_valid, test)


def train_dsl(model: str, checkpoint_dir: str) -> dict[str, Any]:
    """Train the same model sparse."""
    from recbole_dsl.experiment import run_recbole_dsl

    result = run_recbole_dsl(
        model=model,
        dataset="ml-100k",
        config_dict={**settings(checkpoint_dir), "dsl_density": 0.2},
        saved=False,
    )
    return outcome(result.train_loss, result.best_valid_result, result.test_result)


def outcome(train_loss: list[Any], valid: dict[str, Any], test: dict[str, Any]) -> dict[str, Any]:
    """Put what is compared into plain numbers."""
    return {
        "train_loss": [float(loss) for loss in train_loss],
        "valid": {name: float(value) for name, value in valid.items()},
        "test": {name: float(value) for name, value in test.items()},
    }


def run() -> dict[str, Any]:
    """Train everything on the installed stack."""
    compat.apply()
    # Sums over several threads depend on how the threads share the work.
    torch.set_num_threads(1)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for model in MODELS:
            results[f"recbole {model}"] = train_recbole(model, folder)
            if importlib.util.find_spec("recbole_dsl.experiment"):
                results[f"recbole_dsl {model}"] = train_dsl(model, folder)
    return results


def differences(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Return one sentence for every number in which two runs differ."""
    found = []
    if first.keys() != second.keys():
        found.append(f"runs: {sorted(first)} against {sorted(second)}")
    for name in sorted(first.keys() & second.keys()):
        losses = first[name]["train_loss"], second[name]["train_loss"]
        if len(losses[0]) != len(losses[1]) or any(
            abs(a - b) > LOSS_TOLERANCE * max(1.0, abs(a)) for a, b in zip(*losses, strict=False)
        ):
            found.append(f"{name}, train_loss: {losses[0]} against {losses[1]}")
        for part in ("valid", "test"):
            if first[name][part] != second[name][part]:
                found.append(f"{name}, {part}: {first[name][part]} against {second[name][part]}")
    return found


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.stack_parity", description=__doc__)
    parser.add_argument("out", nargs="?", type=Path, help="file to write the results to")
    parser.add_argument("--compare", nargs=2, type=Path, metavar="JSON")
    arguments = parser.parse_args(argv)
    if (arguments.out is None) == (arguments.compare is None):
        parser.error("give either a file to write or --compare with two files")
    if arguments.compare:
        found = differences(*(json.loads(path.read_text()) for path in arguments.compare))
        print("\n".join(found) or "both stacks agree")
        return 1 if found else 0
    # RecBole's Config takes whatever stands on the command line for settings.
    sys.argv = sys.argv[:1]
    arguments.out.write_text(json.dumps(run(), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
