"""Questions over several processes: each answers its share, all get the records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import json
from typing import Any

import jax
import numpy as np

from ralm_jax.data.questions.reading import Question
from ralm_jax.training import partitioning
from ralm_jax.training.partitioning import Partitioner


def gather(values: Sequence[Any]) -> list[Any]:
  """JSON values of all processes, the first one's first; every process calls this."""
  if jax.process_count() == 1:
    return list(values)
  from jax.experimental import multihost_utils

  mine = np.frombuffer(json.dumps(list(values)).encode('utf-8'), np.uint8)
  sizes = np.asarray(multihost_utils.process_allgather(np.asarray([len(mine)]))).ravel()
  padded = np.zeros(int(sizes.max()), np.uint8)
  padded[: len(mine)] = mine
  everyone = np.asarray(multihost_utils.process_allgather(padded))
  return [
    value
    for size, own in zip(sizes, everyone.reshape(len(sizes), -1))
    for value in json.loads(own[:size].tobytes())
  ]


def per_process(batch_size: int, partitioner: Partitioner) -> int:
  """Questions of a batch that each process answers; ValueError where they do not divide it."""
  if batch_size < 1:
    raise ValueError(f'The evaluation batch size must be at least 1, not {batch_size}.')
  if batch_size % jax.process_count():
    raise ValueError(
      f'The evaluation batch size {batch_size} must be a multiple of the number of processes, '
      f'{jax.process_count()}.'
    )
  shards = partitioner.mesh.shape[partitioning.DATA]
  if jax.process_count() > 1 and batch_size % shards:
    raise ValueError(
      f'On several processes the evaluation batch size {batch_size} must be a multiple of the '
      f'{shards} data partitions (gin: EVAL_BATCH_SIZE).'
    )
  return batch_size // jax.process_count()


def parts(
  questions: Sequence[Question], batch_size: int, *, process: int, done: int = 0
) -> Iterator[Sequence[Question]]:
  """What a process answers of each batch; the first `done` batches are left out."""
  size = batch_size // jax.process_count()
  for start in range(done * batch_size, len(questions), batch_size):
    yield questions[start : start + batch_size][process * size : (process + 1) * size]
