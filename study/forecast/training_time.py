"""Seconds of a training: the larger of its arithmetic and of the weights that ranks exchange."""

import math
from dataclasses import dataclass, field

from core.gpu_specs import Gpu
from core.model_size import (
    ModelShape,
    flops_per_token,
    forward_flops_per_token,
    parameters,
    trained,
)
from core.recipe import Training
from study.forecast.assumptions import ASSUMED_GPU, CHECKPOINTED, SELECTIVE, UNCOMPILED
from study.forecast.gpu_rates import Rates, rates_of


@dataclass(frozen=True)
class Layout:
    """Where the trainings of a stage run: one GPU, or what a cluster profile gives."""

    ranks: int = 1
    per_node: int = 1
    """Ranks on a node."""
    minutes: int | None = None
    """Time limit of a job; a longer training continues in further jobs."""
    requeue: int = 0
    """Number of these further jobs, at most."""
    gpu_memory_gb: float | None = None
    tokens_per_second: float | None = None
    """Of one GPU."""
    gpu: Gpu | None = ASSUMED_GPU
    """Of each rank. None: it has none."""
    rates: Rates = field(default_factory=rates_of)
    """Of each rank."""
    mem_gb: float | None = None
    """Memory of a node, 1e9 bytes."""
    signal_seconds: int | None = None
    """How long before its end a job is told to stop."""


@dataclass(frozen=True)
class Seconds:
    """Of an optimizer step, or of an evaluation."""

    arithmetic: float = 0.0
    communication: float = 0.0
    """Gathering of weights, reduction of gradients."""
    overlap: bool = True
    """Whether both go on at once: FSDP2 communicates while GPUs compute. Cores do one of them."""

    @property
    def total(self) -> float:
        """What passes."""
        if self.overlap:
            return max(self.arithmetic, self.communication)
        return self.arithmetic + self.communication

    @property
    def waiting(self) -> float:
        """Communication that no arithmetic hides."""
        return self.total - self.arithmetic


def step_seconds(
    model: ModelShape, recipe: Training, layout: Layout, positions_per_row: float
) -> Seconds:
    """Of one optimizer step on rows of so many positions, padding included."""
    positions = recipe.rows_per_step * positions_per_row
    rows, share = _rows(recipe, layout, positions)
    flops = layout.rates.training_flops
    flops *= 1 if recipe.compile or not layout.gpu else UNCOMPILED
    flops *= {"none": 1, "selective": SELECTIVE, "full": CHECKPOINTED}[
        recipe.activation_checkpointing
    ]
    arithmetic = share * positions * flops_per_token(model, recipe) / flops
    passes = -(-rows // (recipe.micro_batch_size or rows))
    reductions = 1 if recipe.gradient_sync == "step" else passes
    communication = (
        _gathers(recipe) * passes * _gather_seconds(model, recipe, layout)
        + reductions * _shard_gradients_seconds(model, recipe, layout)
        + _replica_gradients_seconds(model, recipe, layout)
    )
    return Seconds(arithmetic, communication, layout.gpu is not None)


def eval_seconds(
    model: ModelShape, recipe: Training, layout: Layout, positions_per_row: float, rows: int
) -> Seconds:
    """Of one evaluation of the loss on so many held-out rows, a step's number of them at a time."""
    sizes = [recipe.rows_per_step] * (rows // recipe.rows_per_step)
    sizes += [rows % recipe.rows_per_step] if rows % recipe.rows_per_step else []
    passes, positions = 0, 0.0  # of the rank that has most
    for size in sizes:
        ranks_rows, share = _rows(recipe, layout, size * positions_per_row, size)
        passes += -(-ranks_rows // (recipe.micro_batch_size or ranks_rows))
        positions += share * size * positions_per_row
    flops = layout.rates.training_flops * (1 if recipe.compile or not layout.gpu else UNCOMPILED)
    arithmetic = positions * forward_flops_per_token(model, recipe) / flops
    communication = passes * _gather_seconds(model, recipe, layout)
    return Seconds(arithmetic, communication, layout.gpu is not None)


def gathered_bytes(
    model: ModelShape, recipe: Training, layout: Layout, positions_per_row: float
) -> float:
    """Bytes of weights and gradients that a rank receives in an optimizer step from its shards."""
    rows, _ = _rows(recipe, layout, recipe.rows_per_step * positions_per_row)
    passes = -(-rows // (recipe.micro_batch_size or rows))
    reductions = 1 if recipe.gradient_sync == "step" else passes
    shards = _shards(recipe, layout)
    weights = _gathers(recipe) * passes * parameters(model).total * _product_bytes(recipe)
    return (weights + 4 * reductions * trained(model, recipe)) * (shards - 1) / shards


def _rows(
    recipe: Training, layout: Layout, positions: float, rows: int | None = None
) -> tuple[int, float]:
    """Rows of the rank that has most, and its share of the positions.

    Args:
        positions: of the whole step, in so many `rows` (None: rows_per_step), before packing.
    """
    rows = rows or recipe.rows_per_step
    if recipe.packed:  # as recipes.schedule.pack: as few rows as hold them, the same for each rank
        fewest = -(-math.ceil(positions) // recipe.seq_len)
        rows = min(rows, -(-fewest // layout.ranks) * layout.ranks)
    of_rank = -(-rows // layout.ranks)
    return of_rank, of_rank / rows


def _gathers(recipe: Training) -> int:
    """How often a micro-batch gathers weights: forward, backward, and the start model's forward."""
    return 3 if recipe.kl_to_start else 2


def _gather_seconds(model: ModelShape, recipe: Training, layout: Layout) -> float:
    """To gather all weights once, a layer at a time: in a forward pass, and in a backward pass."""
    shards = _shards(recipe, layout)
    received = parameters(model).total * _product_bytes(recipe) * (shards - 1) / shards
    return received / _shard_bytes_per_second(recipe, layout)


def _shard_gradients_seconds(model: ModelShape, recipe: Training, layout: Layout) -> float:
    """To sum the gradients in fp32 over the ranks that share the weights."""
    shards = _shards(recipe, layout)
    received = 4 * trained(model, recipe) * (shards - 1) / shards
    return received / _shard_bytes_per_second(recipe, layout)


def _replica_gradients_seconds(model: ModelShape, recipe: Training, layout: Layout) -> float:
    """To sum them over the nodes that have replicas of the weights, once a step."""
    replicas = layout.ranks // _shards(recipe, layout)
    # A ring sends and receives each of a node's shards twice.
    received = 2 * 4 * trained(model, recipe) * (replicas - 1) / replicas
    return received / layout.rates.network_bytes


def _shards(recipe: Training, layout: Layout) -> int:
    """Ranks that share the weights."""
    return layout.per_node if recipe.sharding == "hybrid" else layout.ranks


def _shard_bytes_per_second(recipe: Training, layout: Layout) -> float:
    """That a rank receives; over several nodes all that a rank receives passes a node's network."""
    if _shards(recipe, layout) > layout.per_node:
        return min(layout.rates.node_bytes, layout.rates.network_bytes)
    return layout.rates.node_bytes


def _product_bytes(recipe: Training) -> int:
    return 4 if recipe.dtype == "fp32" else 2
