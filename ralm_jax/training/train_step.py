"""The train step: losses, accumulation, clipping, update. A pure function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ralm_jax.losses import option_types
from ralm_jax.losses.array_types import Array, Bool, Float, Int, PyTree
from ralm_jax.losses.option_types import Count, Number, Positive
from ralm_jax.losses.sequence import WeightedSum
from ralm_jax.models import layers
from ralm_jax.models.retrieval_lm import ReaderBatch, RetrievalLM
from ralm_jax.training import train_state
from ralm_jax.training.optimizers import Optimizer
from ralm_jax.training.partitioning import PartitionedFunction, Partitioner
from ralm_jax.training.train_state import Optimizers, TrainState

Metrics = dict[str, Float[Array, '']]
# (trained parameters, batch, rng) -> their gradients, and sums to report.
GradFn = Callable[[PyTree, ReaderBatch, Array], tuple[PyTree, dict[str, WeightedSum]]]


@dataclasses.dataclass(frozen=True)
class StepOptions:
  """How a step is taken, and its batch retrieved."""

  num_microbatches: Count = 1  #: parts the batch is processed in, to save memory
  #: The first so many steps leave the retriever as it is, and its loss out; its
  #: learning-rate schedule goes on.
  freeze_retriever_steps: Number = 0
  #: Gradients of all modules are scaled down together to this norm, in place of each optimiser's
  #: own clipping (as the released code does on one device); None clips each module by itself.
  global_clip_norm: Positive | None = None
  retrieval_lookahead: int = 1  #: 1 retrieves the next batch during a step, 0 after it
  #: The run stops when so many steps in a row have been skipped, since they were not finite; None
  #: never does.
  max_skipped_steps: Count | None = 20

  def __post_init__(self):
    option_types.check_fields(self)
    if self.retrieval_lookahead not in (0, 1):
      raise ValueError(f'retrieval_lookahead must be 0 or 1, not {self.retrieval_lookahead}.')


def make_train_step(
  model: RetrievalLM, optimizers: Optimizers, options: StepOptions = StepOptions()
) -> Callable[[TrainState, ReaderBatch], tuple[TrainState, Metrics]]:
  """Builds the pure function `train_step(state, batch) -> (state, metrics)`.

  The gradient is that of reader loss per target token of the whole batch plus retriever loss per
  example of the whole batch, whatever the number of microbatches or devices. A step whose gradient,
  or what it would make of a parameter, is not finite changes nothing but the counters. A module
  without an optimiser is frozen.

  Raises:
    ValueError: (when traced) if the microbatches do not divide the batch.
  """

  def train_step(state: TrainState, batch: ReaderBatch) -> tuple[TrainState, Metrics]:
    rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
    learns = None
    if options.freeze_retriever_steps and model.learns_retriever:
      learns = state.step >= options.freeze_retriever_steps
    trained = train_state.trained_params(model, optimizers, state.params)

    weights = model.loss_weights(batch)
    grad_fn = _make_grad_fn(model, state.params, weights, learns)
    grads, sums = _accumulate(grad_fn, trained, batch, rng, options.num_microbatches)
    metrics = {name: value.mean for name, value in sums.items()}
    loss = metrics['loss/reader'] + (
      model.retriever_loss_weight * metrics.get('loss/retriever', 0.0)
    )

    norms = {name: optax.tree.norm(grads[name]) for name in optimizers}
    finite = jnp.isfinite(loss)
    for norm in norms.values():
      finite &= jnp.isfinite(norm)
    grads = _clip(grads, norms, optimizers, options.global_clip_norm)

    opt_state, proposed = {}, {}
    for name, optimizer in optimizers.items():
      proposed[name] = optimizer.propose(grads[name], state.opt_state[name], trained[name])
    for leaf in jax.tree.leaves([params for params, _ in proposed.values()]):
      finite &= jnp.all(jnp.isfinite(leaf))
    for name, optimizer in optimizers.items():
      moves = finite if learns is None or name != 'retriever' else finite & learns
      new_params, new_opt_state = proposed[name]
      trained[name] = _where(moves, new_params, trained[name])
      opt_state[name] = _moved(state.opt_state[name], new_opt_state, finite, moves)
      metrics[f'learning_rate/{name}'] = _learning_rate(optimizer, state)
      metrics[f'gradient_norm/{name}'] = norms[name]

    skipped = state.skipped_steps + (~finite).astype(jnp.int32)
    metrics |= {
      'loss': loss,
      'skipped_steps': skipped.astype(jnp.float32),
      'target_tokens': weights[0],
      'reader_tokens': jnp.sum(
        batch.without_empty_slots(model.n_read(batch)).reader_mask, dtype=jnp.float32
      ),
    }
    params = train_state.with_trained(state.params, trained)
    return TrainState(state.step + 1, params, opt_state, state.rng, skipped), metrics

  return train_step


def partition_train_step(
  model: RetrievalLM,
  optimizers: Optimizers,
  partitioner: Partitioner,
  options: StepOptions = StepOptions(),
  **jit_kwargs: Any,
) -> PartitionedFunction:
  """`make_train_step` compiled for a mesh; the given state is donated.

  The new state lies exactly as `train_state.initialize` laid the old one. Left to itself the
  compiler may choose another layout for it, and the second step would be compiled all over again.
  """
  return partitioner.partition(
    make_train_step(model, optimizers, options),
    donate_argnums=0,
    out_shardings=(train_state.shardings(model, optimizers, partitioner), partitioner.replicated),
    **jit_kwargs,
  )


def _make_grad_fn(
  model: RetrievalLM, params: PyTree, weights: tuple[Array, Array], learns: Bool[Array, ''] | None
) -> GradFn:
  """Gradient of a part's exact share of the loss; the whole batch's weights are known before."""
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

  return jax.grad(loss_fn, has_aux=True)


def _accumulate(
  grad_fn: GradFn, trained: PyTree, batch: ReaderBatch, rng: Array, num_microbatches: int
) -> tuple[PyTree, dict[str, WeightedSum]]:
  """Gradients and sums over the microbatches."""
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


def _clip(
  grads: PyTree, norms: Mapping[str, Array], optimizers: Optimizers, global_norm: float | None
) -> PyTree:
  """Scales gradients down to their limit: each module's, or that of all together."""
  together = jnp.sqrt(sum(jnp.square(norm) for norm in norms.values()))
  clipped = dict(grads)
  for name, optimizer in optimizers.items():
    norm, limit = norms[name], optimizer.clip_norm
    if global_norm is not None:
      norm, limit = together, global_norm
    if limit is not None:
      scale = jnp.minimum(1.0, limit / (norm + 1e-6))
      clipped[name] = jax.tree.map(lambda g, s=scale: g * s, grads[name])
  return clipped


def _moved(old: PyTree, new: PyTree, finite: Bool[Array, ''], moves: Bool[Array, '']) -> PyTree:
  """An optimiser's new state where it `moves`; where `finite`, schedules count frozen steps too."""
  is_schedule = lambda node: isinstance(node, optax.ScaleByScheduleState)

  def choose(old: PyTree, new: PyTree) -> PyTree:
    return _where(finite if is_schedule(old) else moves, new, old)

  return jax.tree.map(choose, old, new, is_leaf=is_schedule)


def _learning_rate(optimizer: Optimizer, state: TrainState) -> Float[Array, '']:
  """Of the step that is being taken; skipped ones are not counted."""
  count: Int[Array, ''] = state.step - state.skipped_steps
  return jnp.asarray(optimizer.learning_rate_fn(count), jnp.float32)


def _where(condition: Bool[Array, ''], new: PyTree, old: PyTree) -> PyTree:
  return jax.tree.map(lambda x, y: jnp.where(condition, x, y), new, old)
