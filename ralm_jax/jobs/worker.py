"""A worker of evaluation jobs: does cells one after another."""

from __future__ import annotations

from collections.abc import Sequence
import contextlib
import dataclasses
import datetime
import hashlib
import logging
import os
import platform
import re
import time
from typing import Any

import jax

from ralm_jax.checkpoints.specification import Specification
from ralm_jax.evaluation import prediction_files
from ralm_jax.files import input_files
from ralm_jax.jobs import cells, config, inputs as job_inputs, open_index, results
from ralm_jax.jobs.cells import Cell, Claim, LostClaimError
from ralm_jax.jobs.config import Checkpoint, FoundCheckpoint, Index, JobOptions, Task
from ralm_jax.jobs.inputs import Fingerprints, IndexState
from ralm_jax.jobs.open_index import OpenIndex
from ralm_jax.jobs.results import TableOptions, Wanted
from ralm_jax.runs import evaluation, gin_config, opening
from ralm_jax.runs.opening import OpenedCheckpoint

# What of an index changes when it is refreshed.
_REFRESHED = ('index.generation', 'index.edits')
_INDEX_STATE = ('index',)


@dataclasses.dataclass(frozen=True)
class _Job:
  checkpoint: FoundCheckpoint
  task: Task
  index: Index | None

  @property
  def names(self) -> dict[str, str]:
    return {'checkpoint': self.checkpoint.name, 'task': self.task.name, 'index': _label(self.index)}

  def __str__(self) -> str:
    return ' × '.join(self.names.values())


class Worker:
  """Does cells; what is open stays open for the next one."""

  def __init__(
    self,
    tasks: Task | Sequence[Task],
    indexes: str | Index | Sequence[str | Index],
    output: str | os.PathLike[str],
    *,
    options: JobOptions = JobOptions(),
    table: TableOptions = TableOptions(),
  ):
    """Checks names: ValueError for no tasks, two things of one name, or what is no index."""
    self._tasks = [tasks] if isinstance(tasks, Task) else list(tasks)
    if not self._tasks:
      raise ValueError('There are no tasks to evaluate on.')
    for task in self._tasks:
      if not isinstance(task, Task):
        raise ValueError(f'tasks holds {task!r}, which is no Task.')
    self._indexes = config.listed('indexes', indexes, Index)
    config.check_names('tasks', [task.name for task in self._tasks])
    config.check_names('indexes', [results.NO_INDEX, *(index.label for index in self._indexes)])
    self._output = os.fspath(output)
    self._options = options
    self._table = table
    self._failures: list[str] = []
    self._elsewhere = 0
    self._count = 0
    self._sharded = False
    self._fingerprints = Fingerprints()
    self._opened: tuple[str, OpenedCheckpoint] | None = None
    self._index = OpenIndex(options)
    # What cells should be of: as far as has been seen.
    self._found: dict[str, FoundCheckpoint] = {}
    self._checkpoints: dict[str, dict[str, Any]] = {}
    self._states: dict[str, IndexState] = {}

  def __enter__(self) -> Worker:
    return self

  def __exit__(self, *unused_exception) -> None:
    self._index.close()
    self._opened = None

  @property
  def is_partial(self) -> bool:
    """Whether cells are left that failed, or that others are to do."""
    return self._sharded or bool(self._failures or self._elsewhere)

  def work(
    self,
    checkpoints: str | Checkpoint | Sequence[str | Checkpoint],
    shard: str = '0/1',
    *,
    passing: bool = False,
  ) -> None:
    """Does the cells of some checkpoints, which may be gone before their turn if `passing`."""
    try:
      found = config.find_checkpoints(checkpoints)
    except FileNotFoundError as error:
      if not passing:
        raise
      logging.warning('The run has removed a checkpoint meanwhile: %s', error)
      return
    jobs = self._jobs(found)
    mine = _part(jobs, shard, by_name=passing)
    self._sharded |= len(mine) < len(jobs)
    self._found.update((one.name, one) for one in found)
    seconds: list[float] = []
    for i, job in enumerate(mine):
      each = sum(seconds) / len(seconds) if seconds else None
      left = '' if each is None else f', {each * (len(mine) - i) / 60:.0f} min left'
      logging.info('%s (%d of %d%s)', job, i + 1, len(mine), left)
      self._count += 1
      start = time.monotonic()
      try:
        done = self._do(job)
      except LostClaimError as error:
        logging.warning('%s', error)
        self._elsewhere += 1
        continue
      except Exception as error:  # pylint: disable=broad-except
        if passing and not os.path.isdir(job.checkpoint.path):
          logging.warning('%s: the run has removed the checkpoint meanwhile.', job)
          continue
        logging.error('%s failed: %s', job, error)
        logging.debug('', exc_info=True)
        self._failures.append(f'{job}: {type(error).__name__}: {error}')
        continue
      if done:
        seconds.append(time.monotonic() - start)
        self._write_results()

  def check(self) -> None:
    """Raises RuntimeError if any cell has failed."""
    if self._elsewhere:
      others = 'other workers; the last of them makes the whole table'
      logging.info('%d cells are being done by %s.', self._elsewhere, others)
    if self._failures:
      failed = f'{len(self._failures)} of {self._count} cells failed'
      failures = '\n'.join(self._failures)
      raise RuntimeError(f'{failed}; the same command tries those again:\n{failures}')

  def wanted(self, *, whole: bool = True) -> Wanted:
    """What finished cells should be of; `whole` also of what other workers do."""
    ignore: dict[str, tuple[str, ...]] = {}
    states = {}
    for index in self._indexes:
      ignore[index.label] = _REFRESHED if self._options.follow_index else ()
      if index.path is None:  # a process is not asked again for each table
        states[index.label] = self._states.get(index.label)
      try:
        if states.get(index.label) is None and (whole or index.path):
          states[index.label] = self._index_state(index)
      except Exception as error:  # pylint: disable=broad-except
        logging.debug('%s is out of reach: %s', index.label, error)
      if states.get(index.label) is None:
        ignore[index.label] = _INDEX_STATE
    tasks: dict[tuple[str, str], dict[str, Any] | str] = {}
    for task in self._tasks:
      for index in (None, *(self._indexes if task.passages_from == 'index' else ())):
        names, state = (task.name, _label(index)), index and states.get(index.label)
        try:
          tasks[names] = self._task_inputs(task, index, state)
        except (OSError, ValueError) as error:
          tasks[names] = str(error)
    checkpoints = {}
    for name, found in self._found.items():
      with contextlib.suppress(OSError):
        if name not in self._checkpoints and whole:
          self._checkpoints[name] = job_inputs.checkpoint_inputs(found, self._fingerprints)
      # What the run has removed counts no more.
      if name in self._checkpoints and os.path.isdir(found.path):
        checkpoints[name] = self._checkpoints[name]
    return Wanted(tasks, checkpoints, ignore)

  def _task_inputs(
    self, task: Task, index: Index | None, state: IndexState | None
  ) -> dict[str, Any]:
    return job_inputs.task_inputs(task, index, state, self._fingerprints)

  def _write_results(self) -> None:
    """After each cell, so that what is finished can be looked at."""
    try:
      results.write_results(self._output, self.wanted(whole=False))
    except OSError as error:  # at the end it is tried again
      logging.warning('%s is not written: %s', results.RESULTS, error)

  def _jobs(self, checkpoints: Sequence[FoundCheckpoint]) -> list[_Job]:
    """Cells in an order that opens each index once and checkpoints seldom."""
    known = [index.label for index in self._indexes]
    closed_book = {}
    for found in checkpoints:
      if found.index is not None and found.index not in known:
        raise ValueError(
          f'Checkpoint {found.name} is to be evaluated with the index {found.index!r}; there are '
          f'{known or "none"}.'
        )
      if found.directory not in closed_book:
        closed_book[found.directory] = _is_closed_book(found.directory)

    def reads_index(found: FoundCheckpoint, task: Task) -> bool:
      if task.passages_from != 'index' or closed_book[found.directory]:
        return False
      if not self._indexes:
        raise ValueError(
          f'Task {task.name} of {found.name} reads passages; give indexes, or passages_from = '
          "'file' or 'none'."
        )
      return True

    jobs = []
    for turn, index in enumerate((None, *self._indexes)):
      # There and back: the last checkpoint of an index is the first of the next.
      for found in checkpoints[::-1] if turn % 2 else checkpoints:
        jobs += [
          _Job(found, task, index)
          for task in self._tasks
          if reads_index(found, task) == (index is not None)
          and (index is None or found.index in (None, index.label))
        ]
    return jobs

  def _do(self, job: _Job) -> bool:
    """Evaluates a cell if need be; says whether it did."""
    cell = Cell(results.cell_folder(self._output, **job.names))
    checkpoint = job_inputs.checkpoint_inputs(job.checkpoint, self._fingerprints)
    self._checkpoints[job.checkpoint.name] = checkpoint
    state = self._index_state(job.index)
    inputs = {'checkpoint': checkpoint, **self._task_inputs(job.task, job.index, state)}
    ignore = _REFRESHED if self._options.follow_index else ()
    with contextlib.ExitStack() as stack:
      reason, claim = cell.why_undone(inputs, ignore), None
      if reason is not None:
        claim = stack.enter_context(cell.claimed(self._options.claim_timeout_s))
        # Another worker may have finished it since.
        reason = cell.why_undone(inputs, ignore)
      if reason is None:
        logging.info('is finished already.')
        return False
      if claim is None:
        logging.info('another worker is at it.')
        self._elsewhere += 1
        return False
      if cell.manifest() is not None:
        logging.info('is evaluated again: %s', reason)
      try:
        self._evaluate(job, cell, claim, inputs, state)
      except Exception:
        claim.check()  # a worker that took over has removed our files
        raise
    return True

  def _evaluate(
    self, job: _Job, cell: Cell, claim: Claim, inputs: dict[str, Any], state: IndexState | None
  ) -> None:
    start = time.monotonic()
    work = cell.begin(claim, inputs)
    opened = self._open(job.checkpoint)
    evaluation.evaluate(
      opened,
      job.task.evaluation(),
      self._index.source(job.index, state),
      str(work),
      batch_size=self._options.batch_size,
      progress=self._options.progress,
    )
    predictions = work / cells.PREDICTIONS
    records = prediction_files.read(predictions)
    asked = [record['query'] for record in records[: self._options.search_queries]]
    depth = job.task.depth(opened.spec.text)
    search_ms = self._index.milliseconds_a_query(opened, job.index, state, asked, depth)
    if job.index and state and not self._options.follow_index:
      now = IndexState.of(job.index, self._options.retry_for_s)
      open_index.check_answers(records, job.index, state, now)
    about = {
      'names': job.names,
      'run': job.checkpoint.directory,
      'checkpoint': job.checkpoint.path,
      'questions': input_files.expand_inputs(job.task.questions),
      'index': job.index and dataclasses.asdict(job.index),
      'index_passages': state and state.count,
      'index_bytes': state and job.index and state.memory_bytes(job.index),
      'search_ms': search_ms,
      'intervals': results.intervals(predictions, self._table),
      'of_intervals': self._table.of_intervals,
      'seconds': round(time.monotonic() - start, 1),
      'date': datetime.datetime.now(datetime.UTC).isoformat('T', 'seconds'),
      'host': platform.node(),
      'devices': f'{jax.device_count()} × {jax.devices()[0].device_kind}',
      'python': platform.python_version(),
      'versions': job_inputs.package_versions(),
      'gin': gin_config.operative(),
    }
    cell.publish(claim, work, inputs, about)

  def _open(self, found: FoundCheckpoint) -> OpenedCheckpoint:
    if self._opened is None or self._opened[0] != found.path:
      self._opened = None  # frees the memory first
      self._opened = (found.path, opening.open_checkpoint(found.path))
    return self._opened[1]

  def _index_state(self, index: Index | None) -> IndexState | None:
    if index is None:
      return None
    state = IndexState.of(index, self._options.retry_for_s)
    self._states[index.label] = state
    return state


def _label(index: Index | None) -> str:
  return index.label if index else results.NO_INDEX


def _is_closed_book(directory: str) -> bool:
  try:
    return Specification.load(directory).text.closed_book
  except (ValueError, OSError):
    return False  # its cells will say what is wrong


def _part(jobs: list[_Job], shard: str, *, by_name: bool) -> list[_Job]:
  """Jobs of shard 'I/N': neighbours, which share what is open, or by name as they come."""
  match = re.fullmatch(r'(\d+)/(\d+)', shard)
  if not match or not int(match[1]) < int(match[2]):
    raise ValueError(f"shard is {shard!r}; write 'I/N' with I from 0 to N - 1, such as '0/4'.")
  i, n = int(match[1]), int(match[2])
  if by_name:
    hashed = [hashlib.sha256(str(job).encode()).digest()[:8] for job in jobs]
    return [job for job, digest in zip(jobs, hashed) if int.from_bytes(digest) % n == i]
  return jobs[len(jobs) * i // n : len(jobs) * (i + 1) // n]
