"""``recbole-dsl to-recbole``: a checkpoint of sparse training as a dense one that RecBole's own tools read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .command_line import Parser, a_path
from .errors import ConfigError
from .settings import check_writable


def parser() -> Parser:
    """The options."""
    result = Parser(
        "to-recbole",
        "Write a checkpoint as a dense one of RecBole's own (a pickle, as RecBole needs it), which "
        "its trainers read, and its load_data_and_model where ray and torch < 2.6 are installed. The dataset "
        "has to be there.",
    )
    result.add_argument("checkpoint", type=a_path, help="a file ….dsl or …-last.dsl")
    result.add_argument("--out", type=a_path, required=True, help="the file to write, usually ….pth")
    result.add_argument("--data_path", help="folder of the datasets, if it is not that of the training")
    result.add_argument(
        "--model", metavar="PACKAGE.MODULE:CLASS", help="the class of a model that is not RecBole's"
    )
    result.add_argument("--force", action="store_true", help="write over a file that exists")
    return result


def run(argv: Sequence[str]) -> None:
    """The command."""
    options = parser().read(argv)
    if options is None:
        return
    if options.out.exists() and not options.force:
        raise ConfigError(f"--out={options.out} exists; allowed is another name, or --force.")
    if options.out.exists() and options.checkpoint.exists() and options.out.samefile(options.checkpoint):
        raise ConfigError(f"--out={options.out} is the checkpoint itself; allowed is another name.")
    check_writable(options.out, "--out")
    from .recbole_names import import_model

    settings = {} if options.data_path is None else {"data_path": options.data_path}
    model_class = None if options.model is None else import_model(options.model)
    write_recbole_checkpoint(options.checkpoint, options.out, model_class, **settings)
    print(f"{options.out}: dense, {options.out.stat().st_size:,} bytes")


def write_recbole_checkpoint(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    model_class: type | None = None,
    **settings: Any,
) -> None:
    """Write a checkpoint as a dense one of RecBole's.

    Dead weights are zeros. The optimizer's state is that before the first step: a dense optimizer
    would need moments of weights that never existed.

    Args:
        checkpoint: a best or a last one. out: the file, a pickle; an older one is replaced.
        model_class, settings: as in :func:`recbole_dsl.loading.load_data_and_model`.

    Raises:
        CheckpointError, ConfigError, DataError: as there.
    """
    import torch
    from recbole.config import Config
    from recbole.utils import get_trainer

    from .config import no_flags
    from .files import written_whole
    from .loading import load_data_and_model, nothing_written
    from .packed.surgery import unpack
    from .property_files import of_recbole
    from .training.adaptations import other_state
    from .training.checkpoint import read_description

    described = read_description(checkpoint)
    config, model, *_ = load_data_and_model(checkpoint, model_class, **settings)
    unpack(model, [module for module in model.modules() if getattr(module, "is_sparse_group", False)])
    theirs = of_recbole(config.given)
    if config.dsl.width is not None:
        theirs["embedding_size"] = config.dsl.width
    if config["train_neg_sample_args"]["distribution"] == "none":
        theirs["train_neg_sample_args"] = None  # which is RecBole's own answer to its default

    class Literal(Config):
        """RecBole evaluates text as Python, which the file of somebody else must not be able to use."""

        def _convert_config_dict(self, config_dict: dict[str, Any]) -> dict[str, Any]:
            return config_dict

    with no_flags(), config.under_recbole_name():
        dense = Literal(model=model_class or config["model"], dataset=config["dataset"], config_dict=theirs)
    dense.__class__ = Config  # so it is pickled, and read without this package
    with nothing_written(dense):
        optimizer = get_trainer(dense["MODEL_TYPE"], dense["model"])(dense, model).optimizer
    state = {
        "config": dense,
        "epoch": described["epoch"],
        "cur_step": described["cur_step"],
        "best_valid_score": described["best_valid_score"],
        "state_dict": model.state_dict(),
        "other_parameter": other_state(model),
        "optimizer": optimizer.state_dict(),
    }
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    with written_whole(out) as file:
        torch.save(state, file, pickle_protocol=4)
