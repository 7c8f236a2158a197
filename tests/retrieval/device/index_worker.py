"""One of two processes that search together; started by test_device_index.

  index_worker.py <coordinator> <index> <partitions> <folder>

Each of four devices; the first process builds and edits, both compare what they
find with brute force.
"""

import os
import sys

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=4'

import jax  # pylint: disable=g-import-not-at-top
import ml_dtypes
import numpy as np

coordinator, process, partitions, folder = sys.argv[1:]
process = int(process)
jax.config.update('jax_cpu_collectives_implementation', 'gloo')
jax.distributed.initialize(coordinator, 2, process, initialization_timeout=60)

from ralm_jax.retrieval import connect
from ralm_jax.retrieval.device.index import DeviceIndex
from ralm_jax.training.partitioning import Partitioner

DIM = 16


def vectors(count, seed):
  rng = np.random.default_rng(seed)
  return rng.standard_normal((count, DIM)).astype(np.float16)


def check(held, batch, k, answering, **options):
  """`held`: ids to vectors. Each process asks something else."""
  queries = vectors(batch, 50 + process).astype(np.float32)
  found = index.search(queries, k, return_embeddings=True, **options)
  ids = np.array(sorted(held))
  stored = np.stack([held[i] for i in ids])
  kept = stored.astype(ml_dtypes.bfloat16).astype(np.float64)
  scores = queries.astype(np.float64) @ kept.T
  best = np.argsort(-scores, axis=1, kind='stable')[:, :k]
  np.testing.assert_array_equal(found.ids, ids[best])
  np.testing.assert_allclose(
    found.scores, np.take_along_axis(scores, best, 1), rtol=1e-5, atol=1e-5
  )
  np.testing.assert_array_equal(found.embeddings, stored[best])
  assert found.generation == answering
  return found


partitioner = Partitioner(num_partitions=int(partitions))
index = DeviceIndex(folder, partitioner)
assert index.needs_strict_order
try:
  connect.check_lookahead(index, 1)
  raise AssertionError('look-ahead was allowed')
except ValueError as error:
  assert 'retrieval_lookahead' in str(error)

first = dict(enumerate(vectors(77, 1)))
if process == 0:
  index.build([(None, np.stack(list(first.values())))], dim=DIM)
  index.pin('run', [1])
else:
  try:
    index.build([(None, vectors(7, 1))], dim=DIM)
    raise AssertionError('the second process wrote')
  except RuntimeError as error:
    assert 'the first process alone writes' in str(error)
for batch in (1, 5, 8):
  check(first, batch, 9, 1)

edited = {**first, 3: vectors(1, 4)[0], 90: vectors(1, 5)[0]}
del edited[7]
if process == 0:
  index.edit([3, 90], np.stack([edited[3], edited[90]]), delete_ids=[7])
assert check(edited, 4, 77, 1).edits == 1

second = dict(enumerate(vectors(120, 2)))
if process == 0:
  index.build([(None, np.stack(list(second.values())))], dim=DIM)
second[90] = second.pop(90)
del second[7]
check(second, 4, 20, 2)
check(edited, 4, 20, 1, generation=1)
check(second, 4, 20, 2)

wrong = np.full((4, DIM), np.nan if process else 1.0, np.float32)
try:
  index.search(wrong, 3)
  raise AssertionError('a query that is not finite was searched')
except ValueError as error:
  assert process == 1 and 'not finite' in str(error), error
except RuntimeError as error:
  assert process == 0 and 'Process 1 failed' in str(error), error
index.close()
jax.distributed.shutdown()
