"""``recbole-dsl export``: a checkpoint as an artifact that is served."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .command_line import Parser, a_path
from .config import no_flags
from .exporting import export_artifact
from .recbole_names import import_model
from .serving.artifact import Manifest
from .serving.quantise import VALUES


def parser() -> Parser:
    """The options."""
    result = Parser(
        "export",
        "Write a checkpoint as an artifact: a folder of sparse weights, names and a manifest, which "
        "'recbole-dsl recommend' and 'recbole-dsl serve' read without the data. The dataset has to be there.",
    )
    result.add_argument("checkpoint", type=a_path, help="a file ….dsl or …-last.dsl")
    result.add_argument("--to", type=a_path, required=True, metavar="DIR", help="the folder to write")
    result.add_argument(
        "--values", choices=VALUES, default="fp32", help="how weights are written (default: fp32)"
    )
    result.add_argument(
        "--with-history",
        action="store_true",
        help="store what each user has, so that it can be left out; sequential models need it",
    )
    result.add_argument(
        "--no-metrics", action="store_true", help="do not evaluate the model and the artifact on the test data"
    )
    result.add_argument(
        "--model", metavar="PACKAGE.MODULE:CLASS", help="the class of a model that is not RecBole's"
    )
    result.add_argument("--data_path", help="folder of the datasets, if it is not that of the training")
    result.add_argument("--force", action="store_true", help="replace an artifact that exists")
    return result


def run(argv: Sequence[str]) -> None:
    """The command."""
    options = parser().read(argv)
    if options is None:
        return
    settings: dict[str, Any] = {"state": "ERROR", "show_progress": False}
    if options.data_path is not None:
        settings["data_path"] = options.data_path
    with no_flags():
        manifest = export_artifact(
            options.checkpoint,
            options.to,
            values=options.values,
            with_history=options.with_history,
            metrics=not options.no_metrics,
            replace=options.force,
            model_class=None if options.model is None else import_model(options.model),
            **settings,
        )
    print(as_text(options.to, manifest))


def as_text(folder: Path, manifest: Manifest) -> str:
    """What was written, in a few lines."""
    sizes = manifest.sizes
    lines = [
        f"{folder}: {manifest.model} on {manifest.dataset}, {manifest.values}, "
        f"{sizes['live']:,} of {sizes['sparse_weights']:,} sparse weights live",
        f"  weights and index {sizes['weights_file']:,} bytes, "
        f"{sizes['weights_file'] / sizes['dense_fp32']:.4f} of the dense fp32 tensors; all files "
        f"{sizes['files']:,} bytes",
    ]
    if manifest.metrics:
        trained, own = manifest.metrics["trained"], manifest.metrics["artifact"]
        lines.append(
            f"  test: {', '.join(f'{key} {own[key]:.4f} (trained {trained[key]:.4f})' for key in own)}"
        )
    return "\n".join(lines)
