"""Trainer: the loop around the pure train step.

With look-ahead, the queries of batch t+1 are encoded before step t is
dispatched, so that search and assembly overlap it; only the candidates are one
update old, the scores in the loss are always computed anew. Where the index is
refreshed before step t+1, its batch is retrieved after that instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import logging
import threading
import time
from typing import Any, Protocol

import jax
import numpy as np

from ralm_jax.checkpoints.store import Checkpoints
from ralm_jax.data.batches import QueryBatch
from ralm_jax.models.retrieval_lm import RetrievalLM
from ralm_jax.retrieval.augmenter import PendingBatch, PreparedBatch, RetrievalAugmenter
from ralm_jax.training import rerank_step, train_state, train_step
from ralm_jax.training.multihost import Agreement
from ralm_jax.training.partitioning import Partitioner
from ralm_jax.training.reporting import Reporter
from ralm_jax.training.train_state import Optimizers

PyTree = Any
TrainState = train_state.TrainState


class BatchIterator(Protocol):
  """Endless batches whose position can be saved."""

  def __next__(self) -> QueryBatch: ...

  def state(self) -> dict[str, np.ndarray]:
    """The position, as arrays."""

  def restore(self, state: Mapping[str, np.ndarray]) -> None:
    """Goes to a saved position."""


class IndexRefresh(Protocol):
  """Renews what is searched; `refreshing.ScheduledRefresh` is one."""

  def due(self, step: int) -> bool:
    """Whether to refresh when so many steps have been taken."""

  def refresh(self, params: PyTree, step: int) -> dict[str, float]:
    """Refreshes with these parameters; returns metrics."""


@dataclasses.dataclass
class Progress:
  """Where a run stands; a resume starts from exactly this."""

  state: TrainState
  pending: PendingBatch | None = None

  @property
  def step(self) -> int:
    return int(self.state.step)


class Trainer:
  """Runs train steps, checkpoints and evaluations."""

  def __init__(
    self,
    model: RetrievalLM,
    optimizers: Optimizers,
    partitioner: Partitioner,
    augmenter: RetrievalAugmenter,
    checkpoints: Checkpoints | None = None,
    *,
    num_microbatches: int = 1,
    freeze_retriever_steps: int = 0,
    global_clip_norm: float | None = None,
    rerank_to: int | None = None,
    rerank_chunk: int | None = None,
    index_refresh: IndexRefresh | None = None,
    retrieval_lookahead: int = 1,
    checkpoint_period: int = 1000,
    on_checkpoint: Callable[[int, int], None] | None = None,
    metadata: Mapping[str, Any] | None = None,
  ):
    """Prepares the step; nothing is compiled yet.

    Args:
      model: computes the losses.
      optimizers: per module.
      partitioner: of the mesh.
      augmenter: retrieves and assembles batches.
      checkpoints: of the run; None saves nothing.
      num_microbatches: parts a batch is processed in.
      freeze_retriever_steps: the first so many steps leave the retriever as it
        is.
      global_clip_norm: clips the gradients of all modules together.
      rerank_to: passages to keep of a batch's candidates, by the encoders of
        the step; None keeps all.
      rerank_chunk: candidates encoded at a time; None encodes all.
      index_refresh: renews the index between steps; None never does.
      retrieval_lookahead: 1 retrieves the next batch during a step, 0 after it.
      checkpoint_period: steps between checkpoints.
      on_checkpoint: called with (step, index generation) of each new one, by
        every process.
      metadata: JSON values to save with every checkpoint; a run that goes on
        from one must have the same.
    """
    if retrieval_lookahead not in (0, 1):
      raise ValueError(f'retrieval_lookahead must be 0 or 1, not {retrieval_lookahead}.')
    self._model = model
    self._optimizers = optimizers
    self._partitioner = partitioner
    self._augmenter = augmenter
    self._checkpoints = checkpoints
    self._lookahead = retrieval_lookahead
    self._checkpoint_period = checkpoint_period
    self._on_checkpoint = on_checkpoint
    self._metadata = dict(metadata or {})
    self._index_refresh = index_refresh
    self._agreement = Agreement()
    self._state_shardings = train_state.shardings(model, optimizers, partitioner)
    self.step_fn = train_step.partition_train_step(
      model,
      optimizers,
      partitioner,
      num_microbatches=num_microbatches,
      freeze_retriever_steps=freeze_retriever_steps,
      global_clip_norm=global_clip_norm,
    )
    self.rerank_fn = None
    if rerank_to is not None:
      self.rerank_fn = rerank_step.partition_rerank(
        model, partitioner, rerank_to, chunk=rerank_chunk
      )

  def initialize(self, seed: int = 0, params: PyTree | None = None) -> TrainState:
    """A fresh state, random or from given host parameters."""
    return train_state.initialize(self._model, self._optimizers, self._partitioner, seed, params)

  def resume(self, iterator: BatchIterator) -> Progress | None:
    """The newest checkpoint's progress; None if there is no checkpoint.

    Moves `iterator` to its saved position. What had been retrieved for the
    next batch belongs to the checkpoint and is not searched again; a refresh
    that was due there is in it.

    Raises:
      ValueError: the checkpoint cannot be restored, or was made with other
        `metadata`.
    """
    if self._checkpoints is None or self._checkpoints.latest_step() is None:
      return None
    step = self._checkpoints.latest_step()
    abstract = jax.eval_shape(
      lambda rng: train_state.create(self._model, self._model.init(rng), self._optimizers, 0),
      jax.random.key(0),
    )
    abstract = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      abstract,
      self._state_shardings,
    )
    self._check_metadata(step)
    restored = self._checkpoints.restore(step, abstract)
    host = restored.host
    iterator.restore(_take(host, 'iterator/'))
    pending = self._augmenter.resume(_take(host, 'pending/'), step)
    logging.info('Resumed from checkpoint_%d.', step)
    return Progress(restored.state, pending)

  def _check_metadata(self, step: int) -> None:
    """Raises ValueError where the run's settings differ from a checkpoint's."""
    saved = self._checkpoints.metadata(step)
    for name, value in self._metadata.items():
      if saved.get(name, value) != value:
        raise ValueError(
          f'{self._checkpoints.directory}/checkpoint_{step} was trained with '
          f'{name} {saved[name]}, this run has {value}: its position in the '
          'data would mean other examples. Go on with the same, or start '
          'another MODEL_DIR from its parameters (INITIAL_CHECKPOINT_PATH).'
        )

  def train(
    self,
    progress: Progress,
    iterator: BatchIterator,
    total_steps: int,
    *,
    reporter: Reporter | None = None,
    eval_period: int | None = None,
    evaluate: Callable[[TrainState], None] | None = None,
  ) -> TrainState:
    """Trains until `total_steps`, counted from the beginning of the run.

    Args:
      progress: from `resume`, or of a fresh state.
      iterator: gives this process's examples.
      total_steps: where to end.
      reporter: gets the metrics.
      eval_period: steps between evaluations; None for none.
      evaluate: called with the state; every process calls it.

    Returns:
      The final state; it has been saved.
    """
    state, pending = progress.state, progress.pending
    step = progress.step
    finished: _Finished | None = None
    if pending is None:
      self._refresh_if_due(state, step, reporter)
    while step < total_steps:
      if pending is None:
        pending = self._augmenter.submit(state.params, next(iterator), step)
      prepared = self._agreed(pending)
      waited = finished.seconds_since() if finished is not None else 0.0
      # The next batch's queries are encoded with the parameters of now.
      next_pending = None
      if self._lookahead and not self._is_due(step + 1):
        next_pending = self._augmenter.submit(state.params, next(iterator), step + 1)
      device_batch = self._partitioner.put_batch(prepared.reader_batch)
      extra = {}
      if self.rerank_fn is not None:
        reranked, overlap = self.rerank_fn(state.params, device_batch)
        device_batch = reranked.batch
        extra['retrieval/rerank_overlap'] = overlap
      state, metrics = self.step_fn(state, device_batch)
      finished = _Finished(metrics['loss'])
      step += 1
      pending = next_pending
      if reporter is not None:
        examples = len(prepared.queries) * jax.process_count()
        reporter.add(
          step,
          {**metrics, **extra},
          {**prepared.metrics, 'retrieval/wait_seconds': waited, 'examples': float(examples)},
        )
      if self._refresh_if_due(state, step, reporter):
        finished = None
      due = self._checkpoint_period and step % self._checkpoint_period == 0
      if self._checkpoints is not None and (due or step == total_steps):
        if pending is None:
          pending = self._augmenter.submit(state.params, next(iterator), step)
        self._save(step, state, pending, iterator)
        finished = None
      if evaluate is not None and eval_period and (step % eval_period == 0 or step == total_steps):
        evaluating = time.monotonic()
        evaluate(state)
        finished = None
        if reporter is not None:
          reporter.leave_out(time.monotonic() - evaluating)
    if self._checkpoints is not None:
      self._checkpoints.wait()
    return state

  def _is_due(self, step: int) -> bool:
    return self._index_refresh is not None and self._index_refresh.due(step)

  def _refresh_if_due(self, state: TrainState, step: int, reporter: Reporter | None) -> bool:
    """Refreshes the index before anything is retrieved for this step."""
    if not self._is_due(step):
      return False
    refreshing = time.monotonic()
    metrics = self._index_refresh.refresh(state.params, step)
    if reporter is not None:
      reporter.leave_out(time.monotonic() - refreshing)
      reporter.write(step, metrics)
    return True

  def _agreed(self, pending: PendingBatch) -> PreparedBatch:
    """The batch, once every process has its own; else all stop."""
    with self._agreement.together():
      prepared = pending.result()
    return prepared

  def _save(
    self, step: int, state: TrainState, pending: PendingBatch, iterator: BatchIterator
  ) -> None:
    prepared = self._agreed(pending)
    host = {
      **{f'iterator/{k}': v for k, v in iterator.state().items()},
      **{f'pending/{k}': v for k, v in pending.snapshot().items()},
    }
    generation = prepared.retrieved.generation
    self._checkpoints.save(
      step,
      state,
      host,
      {**self._metadata, 'generation': generation, 'index': prepared.retrieved.index_id},
    )
    if self._on_checkpoint is not None:
      with self._agreement.together():
        self._on_checkpoint(step, generation)


class _Finished:
  """Knows when the device finished a step, without the loop waiting for it."""

  def __init__(self, output: jax.Array):
    self._time: float | None = None
    threading.Thread(target=self._watch, args=(output,), daemon=True).start()

  def _watch(self, output: jax.Array) -> None:
    jax.block_until_ready(output)
    self._time = time.monotonic()

  def seconds_since(self) -> float:
    """How long the device has been idle; 0 while the step still runs."""
    return 0.0 if self._time is None else time.monotonic() - self._time


def _take(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
  return {
    name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)
  }
