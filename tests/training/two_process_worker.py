"""One of several processes that train together; started by test_multiprocess.

  two_process_worker.py <coordinator> <processes> <index> <partitions> <output> [decoder]

Takes three steps on this process's rows and writes the losses.
"""

import os
import sys

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=4'

import jax  # pylint: disable=g-import-not-at-top
import numpy as np

coordinator, processes, index, partitions, output, *kind = sys.argv[1:]
processes, index = int(processes), int(index)
jax.config.update('jax_cpu_collectives_implementation', 'gloo')
jax.distributed.initialize(coordinator, processes, index, initialization_timeout=60)

from ralm_jax.training import partitioning
from ralm_jax.training.partitioning import Partitioner
from tests.runs import tiny_run


def own_rows(array):
  size = array.shape[0] // processes
  return array[index * size : (index + 1) * size]


assert len(jax.devices()) == 4 * processes and len(jax.local_devices()) == 4
partitioner = Partitioner(num_partitions=int(partitions))
model, make = tiny_run.make_model(), tiny_run.make_batch
if kind:
  model, make = tiny_run.make_decoder_model(), tiny_run.make_prompt_batch
batches = [make(seed=seed) for seed in range(3)]
run = tiny_run.run_steps(partitioner, model, [jax.tree.map(own_rows, batch) for batch in batches])
assert run.step.cache_size() == 1
# Every process reads its own rows back.
np.testing.assert_array_equal(
  partitioning.local_rows(run.batch.reader_tokens), own_rows(batches[-1].reader_tokens)
)
try:
  partitioner.put_batch(jax.tree.map(lambda x: x[:1], batches[0]))
except ValueError as error:
  assert 'BATCH_SIZE' in str(error), error
else:
  raise AssertionError('A batch of 2 rows was split over more partitions.')
try:
  wide = Partitioner(num_partitions=len(jax.devices()))
  wide.put_batch(batches[0])
except ValueError as error:
  assert 'use at most the devices of one process, 4' in str(error), error
else:
  raise AssertionError('Processes fed different rows of one data partition.')
np.save(output, run.losses)
jax.distributed.shutdown()
