"""The train step compiles for a TPU, with libtpu and without one.

  pip install libtpu && python -m pytest -m tpu_compiler -s

Proves shapes, layouts and memory, not numbers: nothing runs.
"""

import importlib.util
import json
import math
import os
import pathlib
import re
import subprocess
import sys

import pytest

WORKER = pathlib.Path(__file__).with_name('tpu_compile_worker.py')
V5E_BYTES, V5P_BYTES = 16 * 2**30, 95 * 10**9


@pytest.mark.tpu_compiler
@pytest.mark.parametrize('size', ['tiny', 'base'])
def test_train_step_compiles_for_v5e(size):
  report = _compiled(size, 'v5e:2x4', devices=8)
  assert 0 < _bytes_per_device(report) < V5E_BYTES
  if size == 'base':
    assert report['argument_bytes'] < 1.2 * 12 * report['parameters'] / 8


@pytest.mark.tpu_compiler
@pytest.mark.parametrize('name', ['mistral_7b', 'llama3_8b'])
def test_recipes_of_decoder_only_readers_fit_what_they_name(name):
  """As the file has them, on the slice that its first lines name."""
  recipe = WORKER.parents[2] / 'gin_configs' / 'recipes' / f'{name}.gin'
  (topology,) = re.findall(r'TPU (v5p:\w+)', recipe.read_text())
  report = _compiled(str(recipe), topology, devices=math.prod(map(int, topology[4:].split('x'))))
  assert 7.2e9 < report['parameters'] < 8.2e9
  # With room for what the runtime needs.
  assert 0 < _bytes_per_device(report) < 0.9 * V5P_BYTES
  assert report['argument_bytes'] < 1.2 * 12 * report['parameters'] / report['devices']


def _bytes_per_device(report):
  return (
    report['argument_bytes']
    + report['output_bytes']
    - report['alias_bytes']
    + report['temporary_bytes']
    + report['code_bytes']
  )


def _compiled(what, topology, devices):
  """The worker's report; the donated state is updated in place, and spread over the devices."""
  if importlib.util.find_spec('libtpu') is None:
    pytest.skip('libtpu is not installed')
  environment = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
  environment['PYTHONPATH'] = os.pathsep.join(
    [str(WORKER.parents[2]), environment.get('PYTHONPATH', '')]
  )
  done = subprocess.run(
    [sys.executable, str(WORKER), what, topology],
    env=environment,
    text=True,
    capture_output=True,
    timeout=1800,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-4000:]
  report = json.loads(done.stdout.strip().splitlines()[-1])
  print(f'{what}: {json.dumps(report, indent=1)}')
  print(f'{what}: {_bytes_per_device(report) / 2**30:.2f} GiB of a device')
  assert report['devices'] == devices
  assert report['alias_bytes'] >= 0.9 * 12 * report['parameters'] / devices
  assert 'rematerialization' not in done.stderr, done.stderr[-4000:]
  return report
