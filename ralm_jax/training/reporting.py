"""Training metrics to the console and TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
import logging
import time

import jax
import numpy as np

_CONSOLE = (
  'loss/reader loss/retriever accuracy retrieval/recall retrieval/rerank_overlap '
  'retrieval/staleness gradient_norm/reader gradient_norm/retriever skipped_steps'
).split()


class Reporter:
  """Averages metrics between reports and writes them.

  `retrieval/wait_seconds` is how long the device stood idle for the next batch
  to be retrieved and assembled, `retrieval/wait_share` its part of the time.

  Device metrics are kept as arrays and fetched once a report, so that a step
  never waits for the host.
  """

  def __init__(self, total_steps: int, *, directory: str | None = None, period: int = 10):
    """Opens the writers on the first process; without `directory` only the console reports."""
    self._total_steps = total_steps
    self._period = max(period, 1)
    self._device: list[Mapping[str, jax.Array]] = []
    self._host: list[Mapping[str, float]] = []
    self._start = time.monotonic()
    self._writer = None
    self.is_first = jax.process_index() == 0
    if directory and self.is_first:
      # Imports TensorFlow, which takes seconds.
      from clu import metric_writers

      self._writer = metric_writers.SummaryWriter(directory)

  def leave_out(self, seconds: float) -> None:
    """Takes time spent on something else (an evaluation) out of the rates."""
    self._start += seconds

  def add(self, step: int, device: Mapping[str, jax.Array], host: Mapping[str, float]) -> None:
    """Adds the metrics of a finished step; reports when due."""
    self._device.append(device)
    self._host.append(host)
    if step % self._period == 0 or step == self._total_steps:
      self.report(step)

  def report(self, step: int) -> dict[str, float]:
    """Writes and returns the averages since the last report."""
    if not self._device:
      return {}
    device = jax.device_get(self._device)
    seconds = max(time.monotonic() - self._start, 1e-9)
    count = len(device)
    metrics = {name: float(np.mean([row[name] for row in device])) for name in device[0]}
    for name in {key for row in self._host for key in row}:
      values = [row[name] for row in self._host if name in row]
      values = [value for value in values if not np.isnan(value)]
      if values:
        metrics[name] = float(np.mean(values))
    metrics['skipped_steps'] = float(device[-1]['skipped_steps'])
    for name in ('reader_tokens', 'target_tokens', 'examples'):
      if name in metrics:
        metrics[f'timing/{name}_per_second'] = metrics.pop(name) * count / seconds
    metrics['timing/steps_per_second'] = count / seconds
    waiting = sum(row.get('retrieval/wait_seconds', 0.0) for row in self._host)
    metrics['retrieval/wait_share'] = waiting / seconds
    self.write(step, metrics)
    if self.is_first:
      left = (self._total_steps - step) * seconds / count
      shown = '  '.join(f'{name} {metrics[name]:.4g}' for name in _CONSOLE if name in metrics)
      wait = f'wait {100 * metrics["retrieval/wait_share"]:.1f} %'
      pace = f'{count / seconds:.2f} steps/s  {wait}  left {_duration(left)}'
      logging.info('step %d/%d  %s  %s', step, self._total_steps, shown, pace)
    self._start = time.monotonic()
    self._device, self._host = [], []
    return metrics

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    if self._writer is not None:
      self._writer.write_scalars(step, dict(metrics))
      self._writer.flush()


def _duration(seconds: float) -> str:
  minutes, seconds = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{seconds:02}'
