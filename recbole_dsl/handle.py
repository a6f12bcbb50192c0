"""Make any torch module sparse: targets → groups → budgets → topologies → storage → exploration.

Needs torch only. RecBole's trainers use :func:`insert`; people without RecBole use :func:`sparsify`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from .errors import ConfigError, DSLError, TargetError
from .packed.group import PackedGroup
from .packed.index import table_shape
from .packed.layout import names_of_tensors
from .packed.masked import MaskedGroup
from .packed.surgery import check_names, check_uniform, mask, pack, unpack, values_at
from .quantities import Budget
from .settings import AUTO, DSLConfig, values_for
from .sparsity.budget import (
    allocate,
    budget_of_bytes,
    budget_of_density,
    bytes_of_everything,
    erdos_renyi_shares,
    least_bytes,
)
from .sparsity.explorer import ExplorationSettings, Explorer, UpdateEvent
from .sparsity.factors import Factorisation
from .sparsity.initial import InitialValues, draw_values, fan_in_scale, usual_values
from .sparsity.interactions import Interactions
from .sparsity.learning_rate import rate_scale
from .sparsity.names import SPLIT_NAMES, TOPOLOGIES_OF_SHAPES, TOPOLOGIES_WITH_VALUES
from .sparsity.randomness import generator_for
from .sparsity.targets import Selection, TensorInfo, matches, select_targets
from .sparsity.topology import TOPOLOGIES, Factor, Topology, TopologyContext

Group = PackedGroup | MaskedGroup


@dataclass
class SparseHandle:
    """A model made sparse, and the way back.

    ``dense_weights``: number of weights of the sparsified tensors in the dense model they are
    compared with (for ``dsl_width`` that is the model of the original width). ``copies``: frozen groups
    that a model keeps of others. ``inherited``: names of the groups whose tensors were sparse already.
    ``norms``: of the rows' values by group, where these are the topology's (``dsl_init_norm``).
    ``without_factors``: a topology from factors was the default, but they fit none of the tensors.
    """

    module: nn.Module
    groups: list[Group]
    selection: Selection
    explorer: Explorer
    dense_weights: int
    copies: Sequence[Group] = ()
    inherited: Sequence[str] = ()
    norms: Mapping[str, float] = field(default_factory=dict)
    without_factors: bool = False

    def __repr__(self) -> str:
        groups = ", ".join(f"{g.storage} {g.name!r}" for g in self.groups)
        return f"SparseHandle({self.live} of {self.dense_weights} weights live: {groups or 'unpacked'})"

    @property
    def live(self) -> int:
        """Live weights, counted from the topology."""
        return sum(sum(g.live_per_tensor()) for g in self.groups)

    @property
    def budget(self) -> int:
        """Live weights allowed."""
        return sum(g.budget for g in self.groups)

    @property
    def density(self) -> float:
        """Live weights over weights of the sparsified tensors in the dense model."""
        return self.live / self.dense_weights

    @property
    def overall_density(self) -> float:
        """Live and dense trainable weights over all trainable weights of the dense model."""
        left = sum(t.parameter.numel() for t, _ in self.selection.left if t.parameter.requires_grad)
        return (self.live + left) / (self.dense_weights + left)

    def masks(self) -> dict[str, Tensor]:
        """A boolean mask of every sparse tensor by its parameter name; True is live."""
        return {name: m for group in self.groups for name, m in group.masks().items()}

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Start exploration with the steps of ``optimizer``, which must own whole groups.

        With ``learning_rate_power`` sparse Linear matrices get parameter groups of their own, so learning-rate
        schedulers are made, and an optimizer's saved state is loaded, afterwards. State that the optimizer has
        before its first step from here on is taken for that of the topology it makes the step with.

        With a gradient scaler, steps that it skips do not count. Its scale is known for optimizers
        with fused kernels only, so with others a change of scale weights the steps of a growth window
        unequally.

        Raises:
            DSLError: it owns no group (built before the module was made sparse), a group is split
                over several optimizers, or a scheduler that was made before would not know a group's rate.
            UnsupportedOptimizerError: per-weight state of this optimizer is not understood.
        """
        if not self.explorer.attach(optimizer):
            raise DSLError(
                f"the optimizer {type(optimizer).__name__} owns no sparse group, so it would train none; "
                "allowed is one built from module.parameters() after the module was made sparse."
            )

    def unpack(self) -> nn.Module:
        """Restore the dense module in place (dead weights zero), stop exploring, return it.

        Packed parameters are new objects, so a training that goes on needs a new optimizer.
        """
        self.explorer.detach()
        unpack(self.module, [*self.groups, *self.copies])
        self.groups, self.copies = [], ()
        return self.module


def masks(module: nn.Module) -> dict[str, Tensor]:
    """A boolean mask of every sparse tensor of ``module`` by its parameter name; True is live."""
    names = names_of_tensors(module)  # whatever part of it was made sparse on its own
    found = {}
    for child in module.modules():
        if isinstance(child, PackedGroup | MaskedGroup):
            for tensor, (own, mask) in enumerate(child.masks().items()):
                found[names.get((id(child), tensor), [own])[0]] = mask
    return found


_OF_RUNS: Final = ("start_from", "resume", "result", "save_every")
"""Settings of files of RecBole's runs, which :func:`sparsify` could only ignore."""


def sparsify(
    module: nn.Module,
    density: float | None = None,
    *,
    interactions: Interactions | None = None,
    on_update: Callable[[UpdateEvent], None] | None = None,
    initial_values: InitialValues = usual_values,
    **settings: Any,
) -> SparseHandle:
    """Make the weights of any module sparse in place, before its optimizer is built.

    A module built under ``torch.device("meta")``, whose dense tensors take no memory, may be larger than
    memory: its live weights are created where they are drawn, at random (``init`` is ``'random'``,
    ``'er'`` or ``'erk'``), on the CPU. Tensors that stay dense must not be on ``meta``.

    Args:
        module: a module whose tensors have their initial values; do not write into them later.
        density: share of live weights over the sparsified tensors, in (0, 1]. Default: the ``method``'s,
            if one is given, else 0.1; a ``budget`` takes its place.
        interactions: needed by ``init='nmf'`` and ``'spectral'`` only (used by ``method='dsl_plus'``), a
            :class:`recbole_dsl.sparsity.interactions.Interactions`.
        on_update: called after every update of a group.
        initial_values: initial values of tensors on the meta device: called with a tensor's description
            (``name``, ``shape``, ``kind``, ``places``), flat positions in it (1-D int64) and a generator, it
            returns the values there. Default: standard normal for ``nn.Embedding`` with a zero padding
            row, uniform in ±1/√inputs for ``nn.Linear``, both as torch has them.
        settings: any setting of the configuration without its ``dsl_`` prefix, such as
            ``include=['*.weight']``, ``groups='joint'``, ``update_interval=100``, ``end=10_000``
            (steps; percent and epochs need a trainer that knows its length), ``grow``, ``seed``.
            Without a ``method``: random topology, magnitude drop, accumulated-gradient growth. With
            one, its file says these and the density; where it starts from factors and there are no
            ``interactions``, the topology is random. Updates every 100 steps until step 10 000, as the
            files count in epochs and percent.

    Returns:
        The handle: ``handle.attach(optimizer)`` starts exploration.

    Raises:
        ConfigError: an unknown setting or a value that is not allowed.
        TargetError: nothing to make sparse, a pattern without a match, or a tensor on the meta device
            that stays dense.
    """
    defaults: dict[str, Any] = {"update_interval": 100, "end": 10_000, "seed": 0}
    if "method" not in settings:
        defaults |= {"method": "dsl", "init": "random", "grow": "accumulated_gradient", "density": 0.1}
    budget = settings.get("budget")
    if density is not None and budget is not None:
        raise ConfigError(f"density={density!r} contradicts budget={budget!r}: allowed is one of them.")
    if density is not None:
        defaults["density"] = density
    merged = {f"dsl_{k}": v for k, v in {**defaults, **settings}.items()}
    config = DSLConfig.from_config(merged)
    for name in ("update_interval", "end"):
        if getattr(config, name).unit != "steps":
            raise ConfigError(
                f"dsl_{name}={merged[f'dsl_{name}']!r} cannot be counted without a trainer; "
                "allowed here is a number of steps."
            )
    for name in _OF_RUNS:
        if settings.get(name) not in (None, False):
            raise ConfigError(
                f"dsl_{name}={settings[name]!r} is refused, because sparsify reads and writes no files: it is "
                "allowed in runs of run_recbole_dsl."
            )
    if config.width is not None:
        raise ConfigError(
            f"dsl_width={config.width} changes how a RecBole model is built; "
            "allowed for a module that exists already is None."
        )
    asks_for_factors = interactions is not None or "init" in settings
    asks_for_factors |= settings.get("init_values") == "topology"
    return insert(
        module,
        config,
        spans=lambda _: (config.update_interval.steps(0, 0), config.end.steps(0, 0)),
        interactions=interactions,
        on_update=on_update,
        lenient=() if asks_for_factors else ("init",),
        initial_values=initial_values,
    )


def insert(
    module: nn.Module,
    config: DSLConfig,
    *,
    spans: Callable[[Sequence[str]], tuple[int, int]],
    default_seed: int = 0,
    interactions: Interactions | None = None,
    dense_size: Callable[[TensorInfo], int] | None = None,
    on_update: Callable[[UpdateEvent], None] | None = None,
    lenient: Collection[str] = (),
    initial_values: InitialValues = usual_values,
) -> SparseHandle:
    """Make ``module`` sparse as ``config`` says; the common path of :func:`sparsify` and trainers.

    Args:
        spans: ``update_interval`` and ``end`` of a group, given the names of its tensors, in steps of
            the optimizer that trains it.
        dense_size: number of weights a tensor has in the dense model that density is counted against
            (default: its own).
        initial_values: of tensors on the meta device.
        lenient: those of ``include``, ``exclude``, ``groups`` and ``init`` that are defaults for many models:
            their patterns need not match a tensor, and where factors fit none, the topology is random.
    """
    seed = config.seed if config.seed is not None else default_seed
    selection = select_targets(module, config.include, config.exclude, config.min_weights, lenient)
    without_factors = "init" in lenient and not _factors_fit(selection, config, interactions)
    if without_factors:
        config = replace(config, init="random", init_values=values_for("random", config.init_values))
    plans = _plan_groups(selection, config, "groups" in lenient)
    for name, tensors, _ in plans:
        check_uniform(name, tensors)
    check_names(module, plans)
    _check_meta(module, plans, config)
    _check_interactions(selection, config, interactions)
    dense = dense_size or (lambda tensor: tensor.parameter.numel())
    budgets = _budgets(plans, config, dense)
    total = sum(dense(t) for _, tensors, _ in plans for t in tensors)
    starts = [sparse_start(tensors, budget) for (_, tensors, _), budget in zip(plans, budgets, strict=True)]
    # All topologies first, so that one that is refused leaves the module as it was.
    topologies = [
        _topology(name, tensors, budget, start, config, seed, interactions, selection.taken)
        for (name, tensors, _), budget, start in zip(plans, budgets, starts, strict=True)
    ]
    values = [
        _values(name, tensors, topology, config, seed, initial_values, start is not None)
        for (name, tensors, _), topology, start in zip(plans, topologies, starts, strict=True)
    ]
    norms = {
        name: topology.norm
        for (name, *_), topology in zip(plans, topologies, strict=True)
        if topology.norm is not None and config.init_values == "topology"
    }
    groups: list[Group] = []
    for name, tensors, storage in plans:  # which frees the positions of each once they are stored
        groups.append(_store(module, name, tensors, storage, topologies.pop(0).live, values.pop(0)))
    for group in groups:
        group.kernels = config.kernels
    settings = functools.partial(
        ExplorationSettings,
        update_ratio=config.update_ratio,
        update_ratio_min=config.update_ratio_min,
        schedule=config.schedule,
        drop=config.drop,
        drop_threshold=config.drop_threshold,
        grow=config.grow,
        grow_window=config.grow_window,
        grow_momentum=config.grow_momentum,
        grow_row_power=config.grow_row_power,
        grow_column_power=config.grow_column_power,
        grow_moment=config.grow_moment,
        growth_memory=config.growth_memory,
        record=config.exploration_record,
        seed=seed,
    )
    each, scales = [], []
    for group, (_, tensors, _) in zip(groups, plans, strict=True):
        interval, end = spans([s.name for s in group.slices])
        weights = sum(t.parameter.numel() for t in tensors)
        scored = _scored_share(config.growth_rows, sum(map(dense, tensors)), weights)
        each.append(settings(update_interval=interval, end=end, growth_rows=scored))
        density = group.budget / weights
        scales.append(rate_scale([t.kind for t in tensors], density, config.learning_rate_power))
    inherited = [plan[0] for plan, start in zip(plans, starts, strict=True) if start is not None]
    explorer = Explorer(groups, each, on_update, scales)
    left = selection.without_weights()
    return SparseHandle(
        module,
        groups,
        left,
        explorer,
        total,
        inherited=inherited,
        norms=norms,
        without_factors=without_factors,
    )


def _check_meta(module: nn.Module, plans: Sequence[GroupPlan], config: DSLConfig) -> None:
    """Refuse what needs values that tensors on the meta device do not have."""
    empty = [(t, storage) for _, tensors, storage in plans for t in tensors if t.parameter.is_meta]
    sparse = {id(t.parameter) for t, _ in empty}
    named = [*module.named_parameters(), *module.named_buffers()]
    left = [name for name, tensor in named if tensor.is_meta and id(tensor) not in sparse]
    if left:
        raise TargetError(
            f"{', '.join(left[:6])}{', …' if len(left) > 6 else ''} stays dense, but is on the meta device and "
            "has no values; allowed is a tensor of its own before sparsify, or its name in dsl_include."
        )
    masked = [t.name for t, storage in empty if storage == "masked"]
    if masked:
        raise TargetError(
            f"{masked[0]} is on the meta device, but masked storage keeps it dense; allowed for it is a real "
            "device, or dsl_exclude."
        )
    if empty and config.init not in TOPOLOGIES_OF_SHAPES:
        raise ConfigError(
            f"dsl_init={config.init!r} looks at whole tensors, but {empty[0][0].name} is on the meta device; "
            f"allowed there are {', '.join(map(repr, TOPOLOGIES_OF_SHAPES))}."
        )


def _factors_fit(selection: Selection, config: DSLConfig, interactions: Interactions | None) -> bool:
    """Whether the topology needs no factors, or a tensor gets some."""
    if config.init not in TOPOLOGIES_WITH_VALUES:
        return True
    return interactions is not None and any(map(interactions.has_factors, selection.taken))


def _check_interactions(selection: Selection, config: DSLConfig, interactions: Interactions | None) -> None:
    if interactions is not None and not _factors_fit(selection, config, interactions):
        raise ConfigError(
            f"dsl_init={config.init!r} (of dsl_method={config.method!r}) needs a table or matrix of users or "
            f"items among the sparse tensors, which are {', '.join(t.name for t in selection.taken[:6])}; "
            "allowed here are dsl_init='random', 'er', 'erk', 'aligned' and 'magnitude'."
        )


GroupPlan = tuple[str, list[TensorInfo], str]


def _plan_groups(selection: Selection, config: DSLConfig, lenient: bool) -> list[GroupPlan]:
    """(name, tensors, storage) of every group; tensors that cannot be packed get one of their own."""
    named = _named_groups(selection.taken, config.groups, lenient)
    plans: list[GroupPlan] = []
    for name, tensors in named.items():
        packed = [t for t in tensors if t.packable and config.storage == "packed"]
        masked = [t for t in tensors if t not in packed]
        if packed:
            plans.append((name, packed, "packed"))
        if masked:
            plans.append((f"{name}_masked" if packed else name, masked, "masked"))
    return plans


def _named_groups(
    taken: Sequence[TensorInfo], groups: str | Mapping[str, Sequence[str]], lenient: bool
) -> dict[str, list[TensorInfo]]:
    if groups == "joint":
        return {"joint": list(taken)}
    if isinstance(groups, str):
        return {t.name: [t] for t in taken}
    result: dict[str, list[TensorInfo]] = {name: [] for name in groups}
    for tensor in taken:
        homes = [name for name, patterns in groups.items() if matches(tensor, patterns)]
        if not homes and lenient:
            result[tensor.name] = [tensor]
            continue
        if len(homes) != 1:
            found = f"is in several ({', '.join(homes)})" if homes else "is in none of them"
            raise TargetError(
                f"dsl_groups: sparse tensor {tensor.name!r} {found}; "
                f"allowed is exactly one of {', '.join(groups)}."
            )
        result[homes[0]].append(tensor)
    if lenient:
        return {name: tensors for name, tensors in result.items() if tensors}
    for name, tensors in result.items():
        if not tensors:
            raise TargetError(
                f"dsl_groups: the patterns {list(groups[name])} of group {name!r} match no sparse "
                f"tensor; allowed are those of {', '.join(t.name for t in taken)}."
            )
    return result


def _scored_share(asked: float | str, dense: int, weights: int) -> float:
    """The share of the rows that are scored before an update; ``auto``: those of ``dense`` positions in all."""
    return min(1.0, dense / weights) if isinstance(asked, str) else asked


def _budgets(plans: Sequence[GroupPlan], config: DSLConfig, dense: Callable[[TensorInfo], int]) -> list[int]:
    sizes = [sum(dense(t) for t in tensors) for _, tensors, _ in plans]
    caps = [sum(t.parameter.numel() for t in tensors) for _, tensors, _ in plans]
    shares: list[float] = [float(size) for size in sizes]
    split = config.split or (config.init if config.init in SPLIT_NAMES else "size")
    if split != "size":
        shares = [
            sum(erdos_renyi_shares([t.shape for t in tensors], kernel=split == "erk"))
            for _, tensors, _ in plans
        ]
    if config.budget is None:
        wanted = [budget_of_density(size, config.density) for size in sizes]
        if any(budget > cap for budget, cap in zip(wanted, caps, strict=True)):
            raise ConfigError(
                f"dsl_density={config.density} asks for {sum(wanted)} live weights, more than the "
                f"{sum(caps)} of dsl_width={config.width}: allowed is a lower density or more columns."
            )
        return wanted if split == "size" else _split(sum(wanted), shares, caps)
    if config.budget.unit == "weights":
        if not len(plans) <= config.budget.count <= sum(caps):
            raise ConfigError(
                f"dsl_budget={config.budget} is refused: allowed is a number from {len(plans)} to "
                f"{sum(caps)} weights, at least one for each sparse group."
            )
        return _split(config.budget.count, shares, caps)
    return _budgets_of_bytes(plans, config.budget, shares)


def _budgets_of_bytes(plans: Sequence[GroupPlan], total: Budget, shares: Sequence[float]) -> list[int]:
    """Budgets whose values and index fit into the groups' shares of ``total`` bytes.

    What a group has no weights for goes to the others.
    """
    for name, _, storage in plans:
        if storage == "masked":
            raise ConfigError(
                f"dsl_budget={total} is refused, because sparse group {name!r} is masked and takes more "
                "than the dense weights whatever its budget; allowed are a number of weights, and "
                "packed groups."
            )
    shapes = [[table_shape(t.shape) for t in tensors] for _, tensors, _ in plans]
    sizes = [tensors[0].parameter.element_size() for _, tensors, _ in plans]
    most = list(map(bytes_of_everything, shapes, sizes))
    if total.count > sum(most):
        raise ConfigError(
            f"dsl_budget={total} is more than all weights of the sparse tensors and their index take; allowed "
            f"is at most {sum(most)} bytes."
        )
    memories = allocate(total.count, shares, most)
    budgets = list(map(budget_of_bytes, memories, shapes, sizes))
    each = zip(plans, memories, shapes, sizes, budgets, strict=True)
    for (name, *_), memory, tables, size, budget in each:
        if budget < 1:
            rows, least = sum(rows for rows, _ in tables), least_bytes(tables, size)
            enough = max(
                math.ceil(least_bytes(tables, size) * sum(shares) / share)
                for share, tables, size in zip(shares, shapes, sizes, strict=True)
            )
            raise ConfigError(
                f"dsl_budget={total} leaves {memory} bytes for sparse group {name!r}, less "
                f"than the {least} that a weight and the index of its {rows} rows take; allowed are "
                f"at least {enough} bytes."
            )
    return budgets


def _split(total: int, shares: Sequence[float], caps: Sequence[int]) -> list[int]:
    """``total`` over groups, at least one weight each."""
    rest = allocate(total - len(caps), shares, [cap - 1 for cap in caps])
    return [1 + more for more in rest]


def _topology(
    name: str,
    tensors: Sequence[TensorInfo],
    budget: int,
    given: Tensor | None,
    config: DSLConfig,
    seed: int,
    interactions: Interactions | None,
    among: Sequence[TensorInfo],
) -> Topology:
    weights = sum(t.parameter.numel() for t in tensors)
    if budget == weights:  # density 1 means the model's own initial values, whatever the method
        return Topology(torch.arange(weights))
    if given is not None and given.numel() == budget:
        return Topology(given)
    factors, norm, later = None, 1.0, []
    if config.init in TOPOLOGIES_WITH_VALUES and interactions is not None:
        factors = interactions.factors(tensors, seed, _factorisation(config), among, config.init_linear_norm)
        later = _later(tensors, among, config, interactions)
        room = sum(f.entries.numel() for f, after in zip(factors, later, strict=True) if f and not after)
        norm = _norm(factors, config, seed, interactions, alone=any(later) and budget <= room)
    context = TopologyContext(
        shapes=[t.shape for t in tensors],
        budget=budget,
        initial=[t.parameter.detach().reshape(table_shape(t.shape)) for t in tensors],
        factors=factors,
        generator=generator_for(seed, f"topology/{name}"),
        norm=norm,
        later=later,
    )
    topology = TOPOLOGIES[config.init](context)
    if given is None:
        return topology
    others = topology.live[~torch.isin(topology.live, given)]
    chosen = torch.randperm(others.numel(), generator=generator_for(seed, f"rest of topology/{name}"))
    rest = others[chosen[: budget - given.numel()].to(others.device)]
    return Topology(torch.cat([given, rest]).sort().values)


def _later(
    tensors: Sequence[TensorInfo], among: Sequence[TensorInfo], config: DSLConfig, interactions: Interactions
) -> list[bool]:
    """Which tensors of a group get what others of it leave (``dsl_init_tables``)."""
    roles, first = interactions.roles(tensors, among), interactions.begins_in(config.init_tables)
    waits = any(role in first for role in roles)
    return [waits and role is not None and role not in first for role in roles]


def _factorisation(config: DSLConfig) -> Factorisation:
    return Factorisation(config.init, config.init_power, config.init_popularity)


def _norm(
    factors: Sequence[Factor | None], config: DSLConfig, seed: int, interactions: Interactions, alone: bool
) -> float:
    """Of the factors as values, of one table ``alone``; nothing is worked out where they are not used."""
    if config.init_norm != AUTO:
        return float(config.init_norm)
    ranks = [factor.entries.shape[1] for factor in factors if factor is not None and factor.takes_norm]
    if not ranks or config.init_values != "topology":
        return 1.0
    return interactions.trusted_norm(ranks[0], seed, _factorisation(config), alone)


def sparse_start(tensors: Sequence[TensorInfo], budget: int) -> Tensor | None:
    """Flat positions, ascending, that stay live since the tensors are sparse already; None if they are not.

    A model that was trained sparse before, as in a pre-training, keeps its topology: all weights that are
    not zero, or the ``budget`` largest of them. Tensors count as sparse if each has a weight that is not
    zero, those are no more than the budget, or than three quarters of all, and there are zeros besides those of
    a row of padding.
    """
    total = sum(t.parameter.numel() for t in tensors)
    if budget == total or tensors[0].parameter.is_meta:  # nothing is dead, or has been born
        return None
    counts = [int(t.parameter.count_nonzero()) for t in tensors]
    if 0 in counts or not (sum(counts) <= budget or sum(counts) <= 0.75 * total):
        return None
    if sum(counts) + sum(map(_zeros_of_padding, tensors)) == total:
        return None
    positions, sizes, start = [], [], 0
    for tensor in tensors:
        flat = tensor.parameter.detach().reshape(-1)
        found = flat.nonzero().flatten()
        positions.append(found.cpu() + start)
        sizes.append(flat[found].abs().cpu())
        start += flat.numel()
    live = torch.cat(positions)
    if live.numel() > budget:
        live = live[torch.cat(sizes).argsort(descending=True, stable=True)[:budget]].sort().values
    return live


def _zeros_of_padding(tensor: TensorInfo) -> int:
    rows = {m.padding_idx for m, _ in tensor.places if isinstance(m, nn.Embedding)} - {None}
    return sum(int((tensor.parameter[row] == 0).sum()) for row in rows)


def _values(
    name: str,
    tensors: Sequence[TensorInfo],
    topology: Topology,
    config: DSLConfig,
    seed: int,
    initial_values: InitialValues,
    grown: bool,
) -> Tensor | None:
    """Values of the live weights; None for those the tensors have. ``grown``: these are trained already."""
    values = topology.values if config.init_values == "topology" else None
    if tensors[0].parameter.is_meta:
        generator = generator_for(seed, f"values/{name}")
        values = draw_values(tensors, topology.live, initial_values, generator)
    if config.init_values != "model" and not grown and any(t.kind == "linear" for t in tensors):
        proposes = () if values is None else topology.proposes
        values = values_at(tensors, topology.live).cpu() if values is None else values
        values = values * fan_in_scale(tensors, topology.live, but=proposes)
    return values


def _store(
    module: nn.Module,
    name: str,
    tensors: Sequence[TensorInfo],
    storage: str,
    live: Tensor,
    values: Tensor | None,
) -> Group:
    if not tensors[0].parameter.is_meta:
        device = tensors[0].parameter.device
        live, values = live.to(device), None if values is None else values.to(device)
    if storage == "packed":
        return pack(module, name, tensors, live, values)
    group = mask(module, name, tensors, live)
    if values is not None:
        group.set_values(values)
    return group
