"""The train step compiles for a TPU v5e:2x4, with libtpu and without a TPU.

  pip install libtpu && python -m pytest -m tpu_compiler -s

Proves shapes, layouts and memory, not numbers: nothing runs.
"""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

WORKER = pathlib.Path(__file__).with_name('tpu_compile_worker.py')
V5E_BYTES = 16 * 2**30


@pytest.mark.tpu_compiler
@pytest.mark.parametrize('size', ['tiny', 'base'])
def test_train_step_compiles_for_v5e(size):
  if importlib.util.find_spec('libtpu') is None:
    pytest.skip('libtpu is not installed')
  environment = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
  environment['PYTHONPATH'] = os.pathsep.join(
    [str(WORKER.parents[2]), environment.get('PYTHONPATH', '')]
  )
  done = subprocess.run(
    [sys.executable, str(WORKER), size],
    env=environment,
    text=True,
    capture_output=True,
    timeout=900,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-4000:]
  report = json.loads(done.stdout.strip().splitlines()[-1])
  print(f'{size}: {json.dumps(report, indent=1)}')
  assert report['devices'] == 8
  per_device = (
    report['argument_bytes']
    + report['output_bytes']
    - report['alias_bytes']
    + report['temporary_bytes']
    + report['code_bytes']
  )
  print(f'{size}: {per_device / 2**30:.2f} GiB of a device')
  assert 0 < per_device < V5E_BYTES
  # The donated state is updated in place, and spread over the devices.
  assert report['alias_bytes'] >= 0.9 * 12 * report['parameters'] / 8
  if size == 'base':
    assert report['argument_bytes'] < 1.2 * 12 * report['parameters'] / 8
  assert 'rematerialization' not in done.stderr, done.stderr[-4000:]
