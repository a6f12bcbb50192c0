"""``recbole-dsl inspect``: what an artifact holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from .command_line import Parser, a_path
from .serving.artifact import read_artifact
from .serving.description import description


def parser() -> Parser:
    """The options."""
    result = Parser(
        "inspect", "Check an artifact and say what is in it: sizes, metrics, and where live weights are."
    )
    result.add_argument("artifact", type=a_path, help="the artifact's folder")
    result.add_argument("--json", action="store_true", help="print JSON")
    return result


def run(argv: Sequence[str]) -> None:
    """The command."""
    options = parser().read(argv)
    if options is None:
        return
    told = description(read_artifact(options.artifact))
    print(json.dumps(told, indent=2) if options.json else as_text(told))


def as_text(told: dict[str, Any]) -> str:
    """The same as lines of text."""
    sizes = told["sizes"]
    lines = [
        f"{told['model']} on {told['dataset']}, {told['users']:,} users, {told['items']:,} items; scored by "
        f"{told['scored_by']}; values {told['values']}, {'with' if told['history'] else 'without'} history",
        f"density {told['density']:.4f}: {sizes['live']:,} of {sizes['sparse_weights']:,} sparse weights live",
        f"weights and index {sizes['weights_file']:,} bytes, {told['share_of_dense']:.4f} of the dense fp32 "
        f"tensors ({sizes['dense_fp32']:,})",
        "",
        "files",
        *(f"  {name:<26}{size:>14,} bytes" for name, size in told["files"].items()),
        "",
        "tensors",
    ]
    for name, tensor in told["tensors"].items():
        live = "dense" if tensor["live"] is None else f"{tensor['live']:,} live"
        lines.append(f"  {name:<40} {'×'.join(map(str, tensor['shape'])):>16}  {live}")
    if told["metrics"]:
        trained, own = told["metrics"]["trained"], told["metrics"]["artifact"]
        lines += ["", f"{'test':<16}{'trained':>10}{'artifact':>10}"]
        lines += [f"{key:<16}{trained[key]:>10.4f}{own[key]:>10.4f}" for key in own]
    for name, groups in told["live_by_popularity"].items():
        lines += [
            "",
            f"{name}, from the least to the most popular",
            "      rows  interactions  live per row  density",
        ]
        lines += [
            f"{g['rows']:>10,}{g['interactions']:>14.1f}{g['live_per_row']:>14.2f}{g['density']:>9.4f}"
            for g in groups
        ]
    return "\n".join(lines)
