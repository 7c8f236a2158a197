"""The train step: losses, accumulation, clipping, update. A pure function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ralm_jax.losses.sequence import WeightedSum
from ralm_jax.models import layers
from ralm_jax.models.retrieval_lm import ReaderBatch, RetrievalLM
from ralm_jax.training import train_state
from ralm_jax.training.partitioning import PartitionedFunction, Partitioner
from ralm_jax.training.train_state import Optimizers

Array = jax.Array
PyTree = Any
Metrics = dict[str, Array]
TrainState = train_state.TrainState


def make_train_step(
  model: RetrievalLM,
  optimizers: Optimizers,
  *,
  num_microbatches: int = 1,
  freeze_retriever_steps: int = 0,
  global_clip_norm: float | None = None,
) -> Callable[[TrainState, ReaderBatch], tuple[TrainState, Metrics]]:
  """Builds `train_step(state, batch) -> (state, metrics)`.

  The gradient is that of reader loss per target token of the whole batch plus
  retriever loss per example of the whole batch, whatever the number of
  microbatches or devices. A step whose gradient is not finite changes nothing
  but the counters.

  Args:
    model: computes the losses.
    optimizers: per module; a module without one is frozen.
    num_microbatches: parts the batch is processed in, to save memory.
    freeze_retriever_steps: the first so many steps leave the retriever as it
      is, and its loss out; its learning-rate schedule goes on.
    global_clip_norm: gradients of all modules are scaled down together to this
      norm, in place of each optimiser's own clipping (as the released code
      does on one device); None clips each module by itself.

  Returns:
    A pure function; metrics are float32 scalars.

  Raises:
    ValueError: (when traced) if the batch does not divide.
  """

  def train_step(state: TrainState, batch: ReaderBatch) -> tuple[TrainState, Metrics]:
    rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
    weights = model.loss_weights(batch)
    trained = train_state.trained_params(model, optimizers, state.params)
    learns = None
    if freeze_retriever_steps and model.learns_retriever:
      learns = state.step >= freeze_retriever_steps
    grads, sums = _accumulate(
      model, trained, state.params, batch, rng, weights, learns, num_microbatches
    )

    metrics = {name: value.mean for name, value in sums.items()}
    norms = {name: optax.tree.norm(grads[name]) for name in optimizers}
    loss = metrics['loss/reader'] + (
      model.retriever_loss_weight * metrics.get('loss/retriever', 0.0)
    )
    finite = jnp.isfinite(loss)
    for norm in norms.values():
      finite &= jnp.isfinite(norm)

    opt_state = dict(state.opt_state)
    all_norms = jnp.sqrt(sum(jnp.square(norm) for norm in norms.values()))
    for name, optimizer in optimizers.items():
      grad, norm, limit = grads[name], norms[name], optimizer.clip_norm
      if global_clip_norm is not None:
        norm, limit = all_norms, global_clip_norm
      if limit is not None:
        scale = jnp.minimum(1.0, limit / (norm + 1e-6))
        grad = jax.tree.map(lambda g, s=scale: g * s, grad)
      old, old_opt_state = trained[name], state.opt_state[name]
      updates, new_opt_state = optimizer.transformation.update(grad, old_opt_state, old)
      moves = finite if learns is None or name != 'retriever' else (finite & learns)
      trained[name] = _choose(moves, optax.apply_updates(old, updates), old)
      # Frozen steps count for the schedule, skipped ones do not.
      opt_state[name] = _choose(
        finite,
        _with_schedules(_choose(moves, new_opt_state, old_opt_state), new_opt_state),
        old_opt_state,
      )
      metrics[f'learning_rate/{name}'] = jnp.asarray(
        optimizer.learning_rate_fn(_schedule_count(old_opt_state, state.step)), jnp.float32
      )
      metrics[f'gradient_norm/{name}'] = norms[name]

    skipped = state.skipped_steps + (~finite).astype(jnp.int32)
    metrics |= {
      'loss': loss,
      'skipped_steps': skipped.astype(jnp.float32),
      'target_tokens': weights[0],
      'reader_tokens': jnp.sum(batch.reader_mask, dtype=jnp.float32),
    }
    state = state.replace(
      step=state.step + 1,
      params=train_state.with_trained(state.params, trained),
      opt_state=opt_state,
      skipped_steps=skipped,
    )
    return state, metrics

  return train_step


def partition_train_step(
  model: RetrievalLM,
  optimizers: Optimizers,
  partitioner: Partitioner,
  *,
  num_microbatches: int = 1,
  freeze_retriever_steps: int = 0,
  global_clip_norm: float | None = None,
  **jit_kwargs: Any,
) -> PartitionedFunction:
  """`make_train_step` compiled for a mesh; the given state is donated.

  The new state lies exactly as `train_state.initialize` laid the old one. Left
  to itself the compiler may choose another layout for it, and the second step
  would be compiled all over again.
  """
  return partitioner.partition(
    make_train_step(
      model,
      optimizers,
      num_microbatches=num_microbatches,
      freeze_retriever_steps=freeze_retriever_steps,
      global_clip_norm=global_clip_norm,
    ),
    donate_argnums=0,
    out_shardings=(train_state.shardings(model, optimizers, partitioner), partitioner.replicated),
    **jit_kwargs,
  )


def _choose(condition: Array, new: PyTree, old: PyTree) -> PyTree:
  return jax.tree.map(lambda x, y: jnp.where(condition, x, y), new, old)


def _is_schedule(node: Any) -> bool:
  return isinstance(node, optax.ScaleByScheduleState)


def _with_schedules(opt_state: PyTree, source: PyTree) -> PyTree:
  """`opt_state` with the learning-rate schedules' counts of `source`."""
  return jax.tree.map(
    lambda own, other: other if _is_schedule(own) else own, opt_state, source, is_leaf=_is_schedule
  )


def _schedule_count(opt_state: PyTree, default: Array) -> Array:
  """How many updates the learning-rate schedule has counted."""
  for node in jax.tree.leaves(opt_state, is_leaf=_is_schedule):
    if _is_schedule(node):
      return node.count
  return default


def _accumulate(
  model: RetrievalLM,
  trained: PyTree,
  params: PyTree,
  batch: ReaderBatch,
  rng: Array,
  weights: tuple[Array, Array],
  learns: Array | None,
  num_microbatches: int,
) -> tuple[PyTree, dict[str, WeightedSum]]:
  """Gradients and summed losses over the microbatches.

  The weights of the whole batch are known beforehand, so that every microbatch
  contributes its exact share and nothing is divided afterwards.
  """
  reader_weight, retriever_weight = (jnp.maximum(w, 1e-9) for w in weights)

  def loss_fn(trained: PyTree, batch: ReaderBatch, rng: Array):
    output = model.loss_fn(
      train_state.with_trained(params, trained), batch, rng, retriever_learns=learns
    )
    loss = output.reader.total / reader_weight
    sums = {'loss/reader': output.reader, **output.metrics}
    if model.distils:
      loss += model.retriever_loss_weight * output.retriever.total / retriever_weight
      sums['loss/retriever'] = output.retriever
    return loss, sums

  grad_fn = jax.grad(loss_fn, has_aux=True)
  if num_microbatches <= 1:
    return grad_fn(trained, batch, rng)

  size = batch.target_tokens.shape[0]
  if size % num_microbatches:
    raise ValueError(f'num_microbatches {num_microbatches} must divide the batch size {size}.')

  def split(array: Array) -> Array:
    # Interleaved, so that every device keeps its own rows in each part.
    array = array.reshape(size // num_microbatches, num_microbatches, *array.shape[1:])
    array = jnp.swapaxes(array, 0, 1)
    return layers.constrain(array, None, 'batch', *(None,) * (array.ndim - 2))

  parts = jax.tree.map(split, batch)
  rngs = jax.random.split(rng, num_microbatches)

  def body(carry, part):
    return jax.tree.map(jnp.add, carry, grad_fn(trained, *part)), None

  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype),
    jax.eval_shape(grad_fn, trained, jax.tree.map(lambda x: x[0], parts), rngs[0]),
  )
  total, _ = jax.lax.scan(body, zeros, (parts, rngs))
  return total
