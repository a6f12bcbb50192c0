"""Write ``recbole_dsl/support.json`` and ``docs/models.md`` from real runs of every model.

python -m tests.support_table            run every model (some minutes) and write both
python -m tests.support_table NAME …     run these models only and keep the other rows
python -m tests.support_table --docs     write docs/models.md from support.json as it is
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from recbole_dsl import support
from recbole_dsl.config import RecBoleDSLConfig
from recbole_dsl.errors import ConfigError
from recbole_dsl.experiment import build_model, load_data
from recbole_dsl.results import environment
from recbole_dsl.sparsity.targets import select_targets
from tests.model_checks import check_density_one, check_sparse
from tests.model_runs import names_of_models, no_flags, settings_of
from tests.recbole_runs import QUIET
from tests.tiny_data import NAME, write_tiny

DOCS = Path(__file__).resolve().parents[1] / "docs" / "models.md"
NOT_ON_ML_100K = {"GRU4RecKG", "KSR"}
"""They need vectors of entities, which only the generated dataset has."""


def row(name: str, data: Path) -> dict[str, Any]:
    """Run a model; the fields of its row."""
    try:
        with no_flags():
            RecBoleDSLConfig(name, "ml-100k", config_dict=QUIET)
    except ConfigError as error:
        reason = str(error).partition("because ")[2].partition(";")[0]
        return {"status": support.REFUSED, "reason": reason}
    one, sparse = check_density_one(name, data), check_sparse(name, data)
    return {
        "status": support.TRAINED,
        "trainer": one["trainer"],
        "difference": float(f"{one['difference_of_losses']:.1e}"),
        "updates": sparse["updates"],
        **default_scope(name, data),
    }


def default_scope(name: str, data: Path) -> dict[str, Any]:
    """What is sparse with default settings, on ml-100k and at RecBole's sizes where that is possible."""
    dataset, settings = ("ml-100k", QUIET) if name not in NOT_ON_ML_100K else (NAME, settings_of(name, data))
    with no_flags():
        config = RecBoleDSLConfig(name, dataset, config_dict=settings)
    _, train_data, *_ = load_data(config)
    model = build_model(config, train_data)
    dsl = config.dsl
    taken = select_targets(model, dsl.include, dsl.exclude, dsl.min_weights, config.left_to_files).taken
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {
        "sparse": [
            {"name": t.name, "kind": t.kind, "storage": "packed" if t.packable else "masked"} for t in taken
        ],
        "share": round(sum(t.parameter.numel() for t in taken) / trained, 4),
    }


def write(names: list[str]) -> None:
    """Run the models and write the facts."""
    found = support.facts() if names and support.FACTS.exists() else {"models": {}}
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # RecBole writes its logs into the working directory
        data = write_tiny(Path(folder))
        for name in names or names_of_models():
            found["models"][name] = row(name, data)
            print(name, found["models"][name]["status"], flush=True)
        os.chdir(home)
    found = {"environment": environment(), "models": dict(sorted(found["models"].items()))}
    support.FACTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def page() -> str:
    """The text of docs/models.md."""
    table = support.rows()
    stack = support.facts()["environment"]
    parts = [
        "# Models",
        "",
        f"**{support.count(table)}** models of RecBole 1.2.1 that gradients train are trained sparse. "
        "This page is generated (`python -m tests.support_table`); `recbole-dsl models` prints it, and "
        "`tests/test_every_model.py` has the tests of every row.",
        "",
        "* *share*: sparse tensors / all trainable weights, with default settings on ml-100k at RecBole's "
        "sizes (GRU4RecKG and KSR, which need vectors of entities, on the generated dataset).",
        "* *density 1*: greatest relative difference of a step's loss from RecBole's own, over the first epoch "
        "on a generated dataset (allowed is 1e-3).",
        "* *sparse run*: updates of every group in two epochs at density 0.2, after which budgets, zeros, "
        "evaluation and a reload were checked.",
        "* Tensors below `dsl_min_weights` and what is not listed stay dense unless `dsl_include` names them; "
        "a `dsl_include` of your own replaces the scope. Biases and norms are never sparse. Recurrent, "
        "convolutional and attention weights can be included and are then masked.",
        "",
        "Runs on "
        + ", ".join(f"{key} {stack[key]}" for key in ("python", "torch", "numpy") if key in stack)
        + ".",
    ]
    families = sorted({r.family for r in table if r.status != support.REFUSED})
    for family in sorted(families, key=["general", "sequential", "context_aware", "knowledge_aware"].index):
        parts += ["", f"## {family.replace('_', '-').capitalize()}", "", *_trained(table, family)]
    parts += [
        "",
        "## Refused",
        "",
        "Before any data is loaded, in one sentence.",
        "",
        "| model | because |",
        "|---|---|",
    ]
    parts += [f"| {r.model} | {r.note} |" for r in table if r.status == support.REFUSED]
    return "\n".join(parts) + "\n"


def _trained(table: list[support.Row], family: str) -> list[str]:
    header = ["model", "trainer", "sparse by default", "share", "storage", "density 1", "sparse run", "notes"]
    lines = ["| " + " | ".join(header) + " |", "|---|---|---|---:|---|---:|---:|---|"]
    for r in table:
        if r.family == family and r.status != support.REFUSED:
            model, _, trainer, share, storage, difference, run, scope, note = support.cells(r)
            cells = [model, trainer, scope, share, storage, difference, run, note]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def main(argv: list[str]) -> None:
    """Run as the module's description says."""
    if argv != ["--docs"]:
        torch.set_num_threads(1)
        write(argv)
    DOCS.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
