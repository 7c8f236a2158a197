"""Stopping a run whose steps change nothing, as something of them is not finite."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np


class SkippedSteps:
  """Counts the steps in a row that were skipped.

  It looks at a step once the next one is dispatched, so that the devices never wait for it. Every
  process counts the same, from the same numbers.
  """

  def __init__(self, most: int | None, already: int = 0):
    """Stops at `most` in a row, None never; `already` were skipped before this start."""
    self._most = most
    self._already = self._total = already
    self._in_row = 0
    self._step = 0
    self._newest: Any = None

  def add(self, step: int, total: Any) -> None:
    """The skipped steps of the run when `step` was taken, still on the devices.

    Raises:
      RuntimeError: too many in a row, before this step.
    """
    self.settle()
    self._step, self._newest = step, total

  def settle(self) -> bool:
    """Waits for the newest step; says whether it was skipped. RuntimeError as `add`."""
    if self._newest is not None:
      total = int(np.asarray(self._newest))
      self._in_row = self._in_row + 1 if total > self._total else 0
      self._total, self._newest = total, None
    if self._most is not None and self._in_row >= self._most:
      last = self._step - self._in_row
      raise RuntimeError(
        f'{self._in_row} steps in a row were skipped, since their loss, gradients or parameters '
        f'were not finite; {f"step {last} was the last that counted" if last else "none counted"}. '
        'Lower the learning rate (LEARNING_RATE, RETRIEVER_LEARNING_RATE; of a warm start '
        'WARM_START_LEARNING_RATE), warm up longer (WARMUP_STEPS) or compute in float32 (DTYPE), '
        'and start again: it goes on from the last checkpoint, or from an earlier one with '
        'INITIAL_CHECKPOINT_PATH and another MODEL_DIR.'
      )
    return self._in_row > 0

  def report(self, steps: int) -> None:
    """One line at the end, where any of so many steps were skipped."""
    self.settle()
    skipped = self._total - self._already
    if skipped:
      logging.warning(
        '%d of %d steps were skipped, since their loss, gradients or parameters were not finite.',
        skipped,
        steps,
      )
