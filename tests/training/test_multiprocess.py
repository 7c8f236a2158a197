"""Two processes of four devices train as one device does."""

import os
import pathlib
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.runs import tiny_run

WORKER = pathlib.Path(__file__).with_name('two_process_worker.py')
ROOT = WORKER.parents[2]


def _free_port() -> int:
  with socket.socket() as listener:
    listener.bind(('localhost', 0))
    return listener.getsockname()[1]


def _run_together(commands, logs, timeout):
  """Runs processes until all have ended, or one has failed; then ends all."""
  environment = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
  environment['PYTHONPATH'] = os.pathsep.join([str(ROOT), environment.get('PYTHONPATH', '')])
  processes = []
  try:
    for command, log in zip(commands, logs):
      with open(log, 'wb') as file:
        processes.append(
          subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        )
    deadline = time.monotonic() + timeout
    while any(p.poll() is None for p in processes):
      failed = any(p.poll() not in (None, 0) for p in processes)
      if failed or time.monotonic() > deadline:
        break
      time.sleep(0.1)
    codes = [p.poll() for p in processes]
  finally:
    for process in processes:
      if process.poll() is None:
        process.kill()
      process.wait()
  text = '\n'.join(log.read_text(errors='replace')[-3000:] for log in logs)
  assert codes == [0] * len(codes), f'exit codes {codes}\n{text}'


@pytest.mark.parametrize(
  'partitions, kind',
  [
    pytest.param(1, [], id='data', marks=pytest.mark.slow),
    pytest.param(2, [], id='both'),
    pytest.param(2, ['decoder'], id='decoder', marks=pytest.mark.slow),
  ],
)
def test_two_processes_equal_one_device(partitions, kind, tmp_path):
  coordinator = f'localhost:{_free_port()}'
  outputs = [tmp_path / f'losses_{i}.npy' for i in range(2)]
  _run_together(
    [
      [sys.executable, str(WORKER), coordinator, '2', str(i), str(partitions), str(output), *kind]
      for i, output in enumerate(outputs)
    ],
    [tmp_path / f'log_{i}.txt' for i in range(2)],
    timeout=240,
  )
  model, make = tiny_run.make_model(), tiny_run.make_batch
  if kind:
    model, make = tiny_run.make_decoder_model(), tiny_run.make_prompt_batch
  batches = [make(seed=seed) for seed in range(3)]
  expected = tiny_run.run_steps(tiny_run.one_device(), model, batches).losses
  for output in outputs:
    np.testing.assert_allclose(np.load(output), expected, rtol=1e-5, atol=1e-5)
