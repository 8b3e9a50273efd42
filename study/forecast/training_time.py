"""Seconds of a training: the larger of its arithmetic and of the weights that ranks exchange."""

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
from study.forecast.assumptions import ASSUMED_GPU, CHECKPOINTED, UNCOMPILED
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
    rows = -(-recipe.rows_per_step // layout.ranks)  # of the rank that has most
    flops = layout.rates.training_flops
    flops *= 1 if recipe.compile or not layout.gpu else UNCOMPILED
    flops *= CHECKPOINTED if recipe.activation_checkpointing else 1
    arithmetic = rows * positions_per_row * flops_per_token(model, recipe) / flops
    passes = -(-rows // (recipe.micro_batch_size or rows))
    communication = passes * (
        2 * _gather_seconds(model, recipe, layout) + _reduce_seconds(model, recipe, layout)
    )
    return Seconds(arithmetic, communication, layout.gpu is not None)


def eval_seconds(
    model: ModelShape, recipe: Training, layout: Layout, positions_per_row: float, rows: int
) -> Seconds:
    """Of one evaluation of the loss on so many held-out rows, a step's number of them at a time."""
    sizes = [recipe.rows_per_step] * (rows // recipe.rows_per_step)
    sizes += [rows % recipe.rows_per_step] if rows % recipe.rows_per_step else []
    shares = [-(-size // layout.ranks) for size in sizes]
    passes = sum(-(-share // (recipe.micro_batch_size or share)) for share in shares)
    flops = layout.rates.training_flops * (1 if recipe.compile or not layout.gpu else UNCOMPILED)
    arithmetic = sum(shares) * positions_per_row * forward_flops_per_token(model, recipe) / flops
    communication = passes * _gather_seconds(model, recipe, layout)
    return Seconds(arithmetic, communication, layout.gpu is not None)


def gathered_bytes(model: ModelShape, recipe: Training, layout: Layout) -> float:
    """Bytes of weights and gradients that a rank receives in an optimizer step."""
    rows = -(-recipe.rows_per_step // layout.ranks)
    passes = -(-rows // (recipe.micro_batch_size or rows))
    shards = _shards(recipe, layout)
    weights = 2 * parameters(model).total * _product_bytes(recipe)
    return passes * (weights + 4 * trained(model, recipe)) * (shards - 1) / shards


def _gather_seconds(model: ModelShape, recipe: Training, layout: Layout) -> float:
    """To gather all weights once, a layer at a time: in a forward pass, and in a backward pass."""
    shards = _shards(recipe, layout)
    received = parameters(model).total * _product_bytes(recipe) * (shards - 1) / shards
    return received / _shard_bytes_per_second(recipe, layout)


def _reduce_seconds(model: ModelShape, recipe: Training, layout: Layout) -> float:
    """To sum the gradients in fp32: over the ranks that share the weights, then over replicas."""
    shards = _shards(recipe, layout)
    gradient_bytes = 4 * trained(model, recipe)
    seconds = gradient_bytes * (shards - 1) / shards / _shard_bytes_per_second(recipe, layout)
    replicas = layout.ranks // shards
    # A ring sends and receives each of a node's shards twice.
    return seconds + 2 * gradient_bytes * (replicas - 1) / replicas / layout.rates.network_bytes


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
