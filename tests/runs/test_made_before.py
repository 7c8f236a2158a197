"""What an earlier version wrote is opened, evaluated, resumed and edited as by that version.

The fixture holds a corpus, indexes (exact and compressed, one with live edits and one with two
generations), checkpoints of one and of two towers, and the folder of an evaluation job;
`made_before.py` says how it was made, and what that version got out of it.
"""

import json
import subprocess
import sys
import tarfile

import pytest

from tests import tiny

FIXTURE = tiny.ROOT / 'tests' / 'fixtures' / 'made_before'
EXPECTED = json.loads((FIXTURE / 'expected.json').read_text())
# As in `test_losses_of_before.py`.
RTOL = 1e-6


@pytest.fixture(scope='module')
def found(tmp_path_factory) -> dict:
  """What comes out of a copy with the code of now, in one process."""
  folder = tmp_path_factory.mktemp('made_before')
  with tarfile.open(FIXTURE / 'artefacts.tar.xz') as archive:
    archive.extractall(folder / 'copy', filter='data')
  output = folder / 'found.json'
  done = subprocess.run(
    [
      sys.executable,
      str(tiny.ROOT / 'tests' / 'runs' / 'made_before.py'),
      'use',
      str(folder / 'copy'),
      str(output),
    ],
    env={**tiny.environment(8), 'JAX_COMPILATION_CACHE_DIR': str(folder / 'cache')},
    cwd=folder,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(output.read_text())


def _compare(found, expected, where):
  """Numbers up to rounding, all else equal; there may be more than was expected."""
  if isinstance(expected, dict):
    assert expected.keys() <= found.keys(), where
    for key, value in expected.items():
      _compare(found[key], value, f'{where}, {key}')
  elif isinstance(expected, list):
    assert len(found) == len(expected), where
    for i, (one, other) in enumerate(zip(found, expected)):
      _compare(one, other, f'{where}, {i}')
  elif isinstance(expected, float):
    assert found == pytest.approx(expected, rel=RTOL, abs=1e-7), where
  else:
    assert found == expected, where


@pytest.mark.slow
@pytest.mark.parametrize('what', EXPECTED)
def test_the_result_is_that_of_before(found, what):
  _compare(found[what], EXPECTED[what], what)
