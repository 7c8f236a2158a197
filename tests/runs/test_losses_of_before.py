"""The losses of every kind of training are those that an earlier version reported.

`losses_of_before.json` was recorded by `recorded_runs.py` with the code as it was before it was
put into rooms. After a change of behaviour that is meant, record the configurations that it
concerns anew and say so in the commit.
"""

import functools
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests import tiny
from tests.runs import recorded_runs

HERE = pathlib.Path(__file__).resolve().parent
RECORD = json.loads((HERE / 'losses_of_before.json').read_text())
# The programs that XLA compiles are the same ones, and give the same bits on the same processor.
# Other processors sum in another order, and a rewritten expression may be fused otherwise: a unit
# in the last place of float32 is 6e-8 to 1.2e-7, and three steps of training multiply it.
RTOL = 1e-5
QUICK = ('perplexity', 'bart_rag_token_stored')
NAMES = list(recorded_runs.CONFIGURATIONS)


@functools.cache
def _runs(quick: bool) -> dict[str, dict]:
  """Results of all configurations of a kind, from one process."""
  import tempfile

  names = [name for name in NAMES if (name in QUICK) == quick]
  with tempfile.TemporaryDirectory(prefix='losses-') as folder:
    output = pathlib.Path(folder) / 'runs.json'
    environment = tiny.environment(8)
    environment.setdefault('JAX_COMPILATION_CACHE_DIR', os.path.join(folder, 'cache'))
    done = subprocess.run(
      [sys.executable, str(HERE / 'recorded_runs.py'), str(output), *names],
      env=environment,
      cwd=folder,
      capture_output=True,
      text=True,
      check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(output.read_text())['runs']


@pytest.mark.parametrize(
  'name', [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_the_losses_are_those_of_before(name):
  for package in ('jax', 'jaxlib', 'numpy'):
    version = importlib.metadata.version(package)
    if version != RECORD['versions'][package]:
      pytest.skip(f'recorded with {package} {RECORD["versions"][package]}; this is {version}')
  expected, found = RECORD['runs'][name], _runs(name in QUICK)[name]
  assert 'error' not in found, found['error']
  # Every figure of before is still reported; more may be.
  assert expected.keys() <= found.keys()
  for metric, values in expected.items():
    assert found[metric] == pytest.approx(values, rel=RTOL, abs=1e-9), metric
