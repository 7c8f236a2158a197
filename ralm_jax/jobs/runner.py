"""Jobs: many checkpoints × tasks × indexes, each cell evaluated once.

`ralm eval --gin_file=gin_configs/runs/evaluation.gin ...` calls `run`. Started
again, or on several hosts that share OUTPUT, it does what is not finished yet.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax

from ralm_jax.jobs import config, results, tables, watch as watch_lib
from ralm_jax.jobs.config import Checkpoint, Index, JobOptions, Task
from ralm_jax.jobs.results import TableOptions
from ralm_jax.jobs.worker import Worker
from ralm_jax.losses.option_types import Amount, Count, Positive


def run(
  *,
  tasks: Task | Sequence[Task],
  output: str,
  checkpoints: str | Checkpoint | Sequence[str | Checkpoint] = (),
  indexes: str | Index | Sequence[str | Index] = (),
  shard: str = '0/1',
  watch: str | None = None,
  until_step: Count | None = None,
  idle_s: Amount | None = None,
  poll_s: Positive = 10.0,
  require_answers: bool | None = None,
  options: JobOptions = JobOptions(),
  table: TableOptions = TableOptions(),
  show: bool = True,
) -> list[dict[str, Any]]:
  """Evaluates every cell that is not finished; writes results and tables.

  A checkpoint or index that is a text is its path. Cells that read no passages from an
  index are done once, without one. What is finished in `output`, which workers on several
  hosts share, stays, and is marked in the tables where it is not of what is configured now.

  Args:
    shard: 'I/N' does the Ith of N parts of the cells, I from 0; of those of
      `watch`, their names decide. Without it several workers may work on the
      same cells, too: each takes one that no other is at.
    watch: MODEL_DIR of a run that is training; its checkpoints are evaluated
      as they come, after `checkpoints`, see `watch.follow`.
    require_answers: whether a question without answers is an error, of all
      tasks; None leaves it to each.
    show: print table.md at the end.

  Returns:
    The rows of results.jsonl.

  Raises:
    ValueError, FileNotFoundError: for what cannot be evaluated at all.
    RuntimeError: cells have failed; all others are finished.
  """
  if jax.process_count() > 1:
    raise ValueError(
      'Evaluation jobs run on one process each: start one on every host without --multihost, '
      "with shard = 'I/N' or none; they share OUTPUT."
    )
  if not checkpoints and watch is None:
    raise ValueError('Give checkpoints to evaluate, or a run to watch.')
  tasks = [tasks] if isinstance(tasks, Task) else list(tasks)
  if require_answers is not None:
    tasks = [dataclasses.replace(task, require_answers=require_answers) for task in tasks]
  if watch is None and table.baseline is not None:
    known = [found.name for found in config.find_checkpoints(checkpoints)]
    known += [row['checkpoint'] for row in results.read_cells(output)]
    tables.check_baseline(table, list(dict.fromkeys(known)))
  with Worker(tasks, indexes, output, options=options, table=table) as worker:
    if checkpoints:
      worker.work(checkpoints, shard)
    if watch is not None:
      for found in watch_lib.follow(watch, until_step=until_step, idle_s=idle_s, poll_s=poll_s):
        worker.work([Checkpoint(found.path)], shard, passing=True)
  try:
    rows = results.write_results(output, worker.wanted(), table)
    text = tables.write_table(output, table, rows, pending=worker.is_partial)
  except Exception:
    worker.check()  # what happened to the cells tells more
    raise
  if show:
    print(text)
    print(f'written to {output}/{results.RESULTS} and {tables.TABLE}')
  worker.check()
  return rows
