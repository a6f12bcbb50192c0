"""The words that settings may use; each table of the sparsity core has exactly these rows.

Kept apart from the tables so that settings can be checked without importing torch.
"""

from typing import Final

SCHEDULE_NAMES: Final = ("cosine", "linear", "constant")
DROP_NAMES: Final = ("magnitude", "row_magnitude", "set", "taylor", "threshold")
GROWTH_NAMES: Final = (
    "accumulated_gradient",
    "last_gradient",
    "momentum",
    "random",
    "random_never_live",
)
TOPOLOGY_NAMES: Final = ("random", "er", "erk", "aligned", "magnitude", "nmf", "spectral")
SPLIT_NAMES: Final = ("size", "er", "erk")
INIT_TABLES_NAMES: Final = ("both", "users", "items", "auto")
STORAGE_NAMES: Final = ("packed", "masked")
KERNEL_NAMES: Final = ("auto", "numba", "triton", "torch")
COMPILERS: Final = {
    "numba": "pip install 'recbole-dsl[fast]' installs it",
    "triton": "torch for CUDA on Linux brings it along",
}
"""Packages that compile kernels, and where each comes from."""
GRAPH_NAMES: Final = ("csr", "recbole")
DATA_PATH_NAMES: Final = ("fast", "recbole")

TOPOLOGIES_WITH_VALUES: Final = ("nmf", "spectral")
"""Topologies from the interactions, which also propose initial values (``dsl_init_values: topology``)."""

TOPOLOGIES_OF_SHAPES: Final = ("random", "er", "erk")
"""Topologies that look at the shapes of tensors only, so the tensors need no values."""
