"""Refreshing the index at step boundaries of a training run."""

from __future__ import annotations

import logging
import os
import time
from typing import Any

from ralm_jax.retrieval.publisher import STARTED_WITH, IndexPublisher, RefreshSchedule
from ralm_jax.retrieval.retriever import PassageRetriever
from ralm_jax.retrieval.staleness import GenerationSteps
from ralm_jax.runs.pinning import Pins

PyTree = Any


class ScheduledRefresh:
  """Publishes the index anew when it is due, and searches what it published."""

  def __init__(
    self,
    schedule: RefreshSchedule,
    publisher: IndexPublisher,
    retrievers: list[PassageRetriever],
    pins: Pins,
    steps: GenerationSteps,
    *,
    run: str | os.PathLike[str],
    freeze_retriever_steps: int = 0,
  ):
    """Does nothing yet; the encoder does not change in the first `freeze_retriever_steps`."""
    self._schedule = schedule
    self._publisher = publisher
    self._retrievers = retrievers
    self._pins = pins
    self._steps = steps
    self._run = os.path.realpath(run)
    self._frozen = freeze_retriever_steps
    self._start, self._spent = time.monotonic(), 0.0

  def due(self, step: int) -> bool:
    """Whether to refresh when so many steps have been taken."""
    if 0 < step <= self._frozen:
      return False
    return self._schedule.fires(step)

  def refresh(self, params: PyTree, step: int) -> dict[str, float]:
    """Refreshes with the parameters after `step` steps; returns metrics.

    Every process calls it, with no search under way. `refresh/share` is its part of all time.
    """
    done = self._publisher.publish(
      params,
      f'{self._run} {step}',
      checkpoint=f'{self._run} at step {step}',
      run=self._run,
      step=step,
      **{STARTED_WITH: self._pins.started_with},
    )
    self._pins.add(done.generation)
    self._steps.tell(done.generation, step)
    for retriever in self._retrievers:
      retriever.generation = done.generation
    self._spent += done.seconds
    share = self._spent / (time.monotonic() - self._start)
    if done.passages:
      logging.info(
        f'Refreshed the index at step {step}: generation {done.generation}, {done.passages} '
        f'passages in {done.seconds:.1f} s ({done.passages / done.seconds:.0f} passages/s; '
        f'{100 * share:.1f} % of all time so far).'
      )
    else:
      logging.info(
        'Step %d searches generation %d, which is of its encoder already.', step, done.generation
      )
    return {**done.metrics, 'refresh/share': share}
