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
from ralm_jax.losses.array_types import PyTree
from ralm_jax.models.retrieval_lm import RetrievalLM
from ralm_jax.training import train_state, train_step
from ralm_jax.training.batch_source import BatchIterator, BatchSource, PendingBatch, PreparedBatch
from ralm_jax.training.multihost import Agreement
from ralm_jax.training.partitioning import PartitionedFunction, Partitioner
from ralm_jax.training.reporting import Reporter
from ralm_jax.training.skipping import SkippedSteps
from ralm_jax.training.train_state import Optimizers, TrainState
from ralm_jax.training.train_step import StepOptions


class IndexRefresh(Protocol):
  """Renews what is searched; `refreshing.ScheduledRefresh` is one."""

  def due(self, step: int) -> bool:
    """Whether to refresh when so many steps have been taken."""

  def refresh(self, params: PyTree, step: int) -> dict[str, float]:
    """Refreshes with these parameters; returns metrics."""


@dataclasses.dataclass(frozen=True)
class Saving:
  """Where and when a run is saved."""

  checkpoints: Checkpoints
  period: int = 1000  #: steps between checkpoints; the last step always saves
  #: JSON values of every checkpoint; a run that goes on from one must have the same.
  metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  #: Called with (step, index generation) of each new one, by every process.
  on_checkpoint: Callable[[int, int], None] | None = None

  def is_due(self, step: int) -> bool:
    return bool(self.period) and step % self.period == 0


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
    source: BatchSource,
    step: StepOptions = StepOptions(),
    *,
    saving: Saving | None = None,
    rerank_fn: PartitionedFunction | None = None,
    index_refresh: IndexRefresh | None = None,
  ):
    """Prepares the step; nothing is compiled yet.

    `rerank_fn`, of `rerank_step`, chooses among a batch's candidates with the step's parameters.
    """
    self._model = model
    self._optimizers = optimizers
    self._partitioner = partitioner
    self._source = source
    self._lookahead = step.retrieval_lookahead
    self._max_skipped_steps = step.max_skipped_steps
    self._saving = saving
    self._index_refresh = index_refresh
    self._agreement = Agreement()
    self.step_fn = train_step.partition_train_step(model, optimizers, partitioner, step)
    self.rerank_fn = rerank_fn

  def initialize(self, seed: int = 0, params: PyTree | None = None) -> TrainState:
    """A fresh state, random or from given host parameters."""
    return train_state.initialize(self._model, self._optimizers, self._partitioner, seed, params)

  def resume(self, iterator: BatchIterator) -> Progress | None:
    """The newest checkpoint's progress; None if there is no checkpoint.

    Moves `iterator` to its saved position. What had been retrieved for the next batch belongs to
    the checkpoint and is not searched again; a refresh that was due there is in it.

    Raises:
      ValueError: the checkpoint cannot be restored, or was made with other
        metadata than `Saving` has.
    """
    step = None if self._saving is None else self._saving.checkpoints.latest_step()
    if self._saving is None or step is None:
      return None
    abstract = train_state.abstract(self._model, self._optimizers, self._partitioner)
    self._saving.checkpoints.check_metadata(step, self._saving.metadata)
    restored = self._saving.checkpoints.restore(step, abstract)
    iterator.restore(_take(restored.host, 'iterator/'))
    pending = self._source.resume(_take(restored.host, 'pending/'), step)
    logging.info('Resumed from checkpoint_%d.', step)
    return Progress(restored.state, pending)

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
    """Trains until `total_steps` of the run in all, and saves; every process calls `evaluate`."""
    state, pending = progress.state, progress.pending
    first = step = progress.step
    finished: _Finished | None = None
    skipped = SkippedSteps(self._max_skipped_steps, int(state.skipped_steps))
    if pending is None:
      self._refresh_if_due(state, step, reporter)
    while step < total_steps:
      if pending is None:
        pending = self._source.submit(state.params, next(iterator), step)
      prepared = self._agreed(pending)
      waited = finished.seconds_since() if finished is not None else 0.0
      # The next batch's queries are encoded with the parameters of now.
      pending = None
      if self._lookahead and not self._is_due(step + 1):
        pending = self._source.submit(state.params, next(iterator), step + 1)
      state, metrics = self._step(state, prepared)
      finished = _Finished(metrics['loss'])
      step += 1
      skipped.add(step, metrics['skipped_steps'])
      if reporter is not None:
        examples = float(len(prepared.queries) * jax.process_count())
        host = {**prepared.metrics, 'retrieval/wait_seconds': waited, 'examples': examples}
        reporter.add(step, metrics, host)
      if self._refresh_if_due(state, step, reporter):
        finished = None
      saves = self._saving is not None and (self._saving.is_due(step) or step == total_steps)
      if self._saving is not None and saves and self._is_sound(skipped, step, total_steps):
        if pending is None:
          pending = self._source.submit(state.params, next(iterator), step)
        self._save(self._saving, step, state, pending, iterator)
        finished = None
      if evaluate is not None and eval_period and (step % eval_period == 0 or step == total_steps):
        evaluating = time.monotonic()
        evaluate(state)
        finished = None
        if reporter is not None:
          reporter.leave_out(time.monotonic() - evaluating)
    if self._saving is not None:
      self._saving.checkpoints.wait()
    skipped.report(step - first)
    return state

  def _step(self, state: TrainState, prepared: PreparedBatch) -> tuple[TrainState, dict[str, Any]]:
    """Dispatches a step; returns the new state and metrics on the devices."""
    batch = self._partitioner.put_batch(prepared.reader_batch)
    reranking = {}
    if self.rerank_fn is not None:
      reranked, reranking['retrieval/rerank_overlap'] = self.rerank_fn(state.params, batch)
      batch = reranked.batch
    state, metrics = self.step_fn(state, batch)
    return state, {**metrics, **reranking}

  @staticmethod
  def _is_sound(skipped: SkippedSteps, step: int, total_steps: int) -> bool:
    """Whether to save: amid skipped steps, only what the run ends with.

    They may follow from parameters that are finite and useless; good checkpoints are kept instead.
    """
    return not skipped.settle() or step == total_steps

  def _is_due(self, step: int) -> bool:
    return self._index_refresh is not None and self._index_refresh.due(step)

  def _refresh_if_due(self, state: TrainState, step: int, reporter: Reporter | None) -> bool:
    """Refreshes the index before anything is retrieved for this step."""
    if self._index_refresh is None or not self._index_refresh.due(step):
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
    self,
    saving: Saving,
    step: int,
    state: TrainState,
    pending: PendingBatch,
    iterator: BatchIterator,
  ) -> None:
    retrieved = self._agreed(pending).retrieved
    host = {
      **{f'iterator/{k}': v for k, v in iterator.state().items()},
      **{f'pending/{k}': v for k, v in pending.snapshot().items()},
    }
    metadata = {'generation': retrieved.generation, 'index': retrieved.index_id}
    saving.checkpoints.save(step, state, host, {**saving.metadata, **metadata})
    if saving.on_checkpoint is not None:
      with self._agreement.together():
        saving.on_checkpoint(step, retrieved.generation)


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
