"""TrainState: everything a step changes, and how it lies on the mesh."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ralm_jax.losses.array_types import Array, Int, PyTree, Shaped
from ralm_jax.training.optimizers import Optimizer
from ralm_jax.training.partitioning import Partitioner

# Module name ('reader', 'retriever') to its optimiser; a module without one is frozen.
Optimizers = Mapping[str, Optimizer]


def trained_params(model: Any, optimizers: Optimizers, params: PyTree) -> PyTree:
  """What steps change: neither modules without an optimiser nor the model's `frozen_towers`."""
  return {
    name: {
      part: tree
      for part, tree in params[name].items()
      if name != 'retriever' or part not in model.frozen_towers
    }
    for name in optimizers
  }


def with_trained(params: PyTree, trained: PyTree) -> PyTree:
  """All parameters, those of `trained_params` replaced."""
  return {name: {**tree, **trained.get(name, {})} for name, tree in params.items()}


@flax.struct.dataclass
class TrainState:
  """The state of a run."""

  step: Int[Array, '']  #: steps taken, skipped ones included
  params: PyTree  #: `{'reader': ..., 'retriever': ...}`, unboxed
  opt_state: PyTree  #: the same keys as the optimisers, of `trained_params`
  rng: Shaped[Array, ' words']  #: key data, folded with the step for dropout
  skipped_steps: Int[Array, '']  #: left out for non-finite gradients


def create(model: Any, params: PyTree, optimizers: Optimizers, seed: int) -> TrainState:
  """A state at step 0 from (possibly boxed) parameters."""
  params = nn.meta.unbox(params)
  trained = trained_params(model, optimizers, params)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state={
      name: optimizer.transformation.init(trained[name]) for name, optimizer in optimizers.items()
    },
    rng=jax.random.key_data(jax.random.key(seed)),
    skipped_steps=jnp.zeros((), jnp.int32),
  )


def shardings(model: Any, optimizers: Optimizers, partitioner: Partitioner) -> TrainState:
  """As a TrainState of NamedSharding; moments lie as parameters do, factored ones replicated."""
  boxed = jax.eval_shape(model.init, jax.random.key(0))
  param_shardings = partitioner.param_shardings(boxed)
  abstract_state = jax.eval_shape(lambda p: create(model, p, optimizers, 0), boxed)
  trained = trained_params(model, optimizers, abstract_state.params)
  trained_shardings = trained_params(model, optimizers, param_shardings)
  replicated = partitioner.replicated

  def of_optimizer(name: str) -> PyTree:
    return optax.tree_map_params(
      optimizers[name].transformation,
      lambda leaf, param, sharding: sharding if leaf.shape == param.shape else replicated,
      abstract_state.opt_state[name],
      trained[name],
      trained_shardings[name],
      transform_non_params=lambda _: replicated,
    )

  return jax.tree.map(lambda _: replicated, abstract_state).replace(
    params=param_shardings, opt_state={name: of_optimizer(name) for name in optimizers}
  )


def abstract(model: Any, optimizers: Optimizers, partitioner: Partitioner) -> TrainState:
  """A TrainState of ShapeDtypeStructs on their shardings, to restore into."""
  return jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
    jax.eval_shape(lambda rng: create(model, model.init(rng), optimizers, 0), jax.random.key(0)),
    shardings(model, optimizers, partitioner),
  )


def initialize(
  model: Any,
  optimizers: Optimizers,
  partitioner: Partitioner,
  seed: int = 0,
  params: PyTree | None = None,
) -> TrainState:
  """A sharded state, from random or given parameters; ValueError where those do not fit."""
  state_shardings = shardings(model, optimizers, partitioner)
  if params is not None:
    check_same_shapes(jax.eval_shape(model.init, jax.random.key(0)), params)
    params = jax.tree.map(_on_mesh, params, state_shardings.params)
    return partitioner.partition(
      lambda p: create(model, p, optimizers, seed), out_shardings=state_shardings
    )(params)
  return partitioner.partition(
    lambda rng: create(model, model.init(rng), optimizers, seed), out_shardings=state_shardings
  )(jax.random.key(seed))


def _on_mesh(leaf: Any, sharding: jax.sharding.Sharding) -> jax.Array:
  if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
    return leaf
  return jax.make_array_from_callback(leaf.shape, sharding, lambda index: np.asarray(leaf[index]))


def check_same_shapes(expected: PyTree, found: PyTree) -> None:
  """Raises ValueError naming the first parameters that differ."""

  def shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    return {
      '/'.join(str(key.key) for key in path): leaf.shape
      for path, leaf in jax.tree_util.tree_leaves_with_path(nn.meta.unbox(tree))
    }

  wanted, given = shapes(expected), shapes(found)
  problems = (
    [f'{name} is missing' for name in wanted if name not in given]
    + [f'{name} is not part of the model' for name in given if name not in wanted]
    + [
      f'{name} has shape {given[name]}, the model has {shape}'
      for name, shape in wanted.items()
      if name in given and given[name] != shape
    ]
  )
  if problems:
    more = f' (and {len(problems) - 3} more)' if len(problems) > 3 else ''
    raise ValueError(
      'The parameters do not fit the model: '
      + '; '.join(problems[:3])
      + more
      + '. Use the model configuration they were made with.'
    )
