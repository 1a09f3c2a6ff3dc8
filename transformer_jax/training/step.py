"""The train step: the training state, the pure update function, and its compilation for a mesh."""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from transformer_jax.config import ConfigError
from transformer_jax.data import nearest_sizes, rows_per_batch
from transformer_jax.models import build, example_inputs, training_keys
from transformer_jax.objectives.base import Apply, Sums
from transformer_jax.optimizers.optimizers import make_optimizer, make_schedule
from transformer_jax.runs.experiment import Experiment
from transformer_jax.sharding import partitioning
from transformer_jax.types import Batch, PyTree

Step = Callable[["TrainState", Batch], tuple["TrainState", Sums]]


@flax.struct.dataclass
class TrainState:
    """Holds everything on the device that training changes; the data iterator holds the rest.

    There is no random state: the dropout of step ``n`` depends on ``config.train.seed`` and ``n`` only.
    Leaves are arrays, or stand-ins for arrays such as ``ShapeDtypeStruct`` or shardings.
    """

    step: Any  # number of optimizer updates so far, int32 ()
    params: PyTree
    optimizer: optax.OptState


def make_init(experiment: Experiment) -> Callable[[], TrainState]:
    """Returns the function that initializes the state; its parameters are boxed with their logical axes."""
    model = build(experiment.model)
    optimizer = make_optimizer(experiment.optimizer, experiment.train.num_steps)

    def init() -> TrainState:
        key = jax.random.key(experiment.train.seed)
        params = model.init(key, **cast(Any, example_inputs(experiment.model)))["params"]
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    return init


def make_train_step(experiment: Experiment) -> Step:
    """Returns the pure function of one update: ``(state, batch) -> (state, sums)``.

    The gradient is that of the loss per token of the whole batch, without padding. With gradient
    accumulation, the rows are split into micro-batches, and the sum of their gradients is divided by the
    number of tokens of all. Except for dropout and rounding, the update is the same as without accumulation.
    """
    apply, objective = cast(Apply, build(experiment.model).apply), experiment.objective
    optimizer = make_optimizer(experiment.optimizer, experiment.train.num_steps)
    schedule = make_schedule(experiment.optimizer, experiment.train.num_steps)
    parts = experiment.train.gradient_accumulation_steps

    def loss_gradient(params: PyTree, batch: Batch, rng: jax.Array, *, mean: bool) -> tuple[Sums, PyTree]:
        def loss(params: PyTree) -> tuple[jax.Array, Sums]:
            return objective.loss(apply, params, batch, training_keys(experiment.model, rng), train=True)

        total, pullback, sums = jax.vjp(loss, params, has_aux=True)
        # Scaling the cotangent gives the mean directly and saves a pass over all gradients.
        return sums, pullback(1 / sums["tokens"] if mean else jnp.ones_like(total))[0]

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Sums]:
        rng = jax.random.fold_in(jax.random.key(experiment.train.seed), state.step)
        if parts == 1:
            sums, gradient = loss_gradient(state.params, batch, rng, mean=True)
        else:
            # Row i goes to micro-batch i % parts, so that every device keeps its own rows.
            micro = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), dict(batch))

            def add(total, part):
                index, rows = part
                new = loss_gradient(state.params, rows, jax.random.fold_in(rng, index), mean=False)
                return jax.tree.map(jnp.add, total, new), None

            one = jax.tree.map(lambda x: x[0], micro)
            shapes = jax.eval_shape(partial(loss_gradient, mean=False), state.params, one, rng)
            zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
            (sums, gradient), _ = jax.lax.scan(add, zeros, (jnp.arange(parts), micro))
            gradient = jax.tree.map(lambda leaf: leaf / sums["tokens"], gradient)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        extra = {"gradient_norm": _global_norm(gradient), "rate": schedule(state.step)}
        return TrainState(state.step + 1, params, optimizer_state), sums | cast(Sums, extra)

    return train_step


def _global_norm(tree: PyTree) -> jax.Array:
    """Returns the L2 norm over all leaves."""
    # The optimizer computes the squares too. Without the barrier, XLA would share and store them.
    leaves = jax.tree.leaves(jax.lax.optimization_barrier(tree))
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in leaves))


def compile_train_step(experiment: Experiment, mesh: Mesh) -> tuple[PyTree, Callable[[], TrainState], Step]:
    """Returns the state as ``ShapeDtypeStruct``s with shardings, its initializer, and the update, for a mesh.

    The update donates its input state. It is compiled at the first batch of each shape.

    Raises:
      ConfigError: the number of rows of a batch is not divisible by the number of devices and micro-batches
        that share them, or the number of tokens of a row is not divisible by ``mesh.context``.
    """
    _check_rows(experiment, mesh)
    init = make_init(experiment)
    boxed = jax.eval_shape(init)
    shardings = partitioning.state_shardings(mesh, boxed, experiment.mesh.rules)
    template = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        partitioning.unbox(boxed),
        shardings,
    )
    # The state is initialized in shards, so that no device ever holds all of it.
    sharded_init = jax.jit(lambda: partitioning.unbox(init()), out_shardings=shardings)
    update = partitioning.on_mesh(
        make_train_step(experiment), mesh, experiment.mesh.rules, experiment.mesh.attention
    )
    step = jax.jit(update, donate_argnums=0, out_shardings=(shardings, None))
    return template, sharded_init, step


def _check_rows(experiment: Experiment, mesh: Mesh) -> None:
    data, micro = experiment.data, experiment.train.gradient_accumulation_steps
    shares = partitioning.num_batch_shards(mesh) * micro
    contexts = mesh.shape[partitioning.CONTEXT_AXIS]
    for length in data.lengths if experiment.model.has_vocabulary else ():
        if length % contexts:
            raise ConfigError(
                f"the row length of {length} tokens is not divisible by config.mesh.context={contexts}; make "
                "config.data.max_length and all values of config.data.buckets multiples of it"
            )
    for length in data.lengths:
        rows = rows_per_batch(data.tokens_per_batch, length, data.batch_size)
        if rows % shares:
            given = "batch_size" if data.batch_size else "tokens_per_batch"
            nearest = nearest_sizes(getattr(data, given), data.lengths, data.batch_size, shares)
            raise ConfigError(
                f"config.data.{given}={getattr(data, given)} makes batches of {rows} rows of "
                f"{length} tokens, and {rows} is not divisible by {shares} = mesh.data x mesh.fsdp x "
                "train.gradient_accumulation_steps; "
                + (f"use {given}={' or '.join(map(str, nearest))}" if nearest else f"change {given}")
                + " or change one of these three"
            )
