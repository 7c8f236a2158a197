"""Shapes in signatures are true: jaxtyping's import hook checks them in a process."""

import subprocess
import sys

import pytest

from tests import tiny

pytest.importorskip('jaxtyping')
pytest.importorskip('beartype')


def test_shapes():
  """For all readings and gold scores; a wrong shape is shown to fail at the end."""
  run = subprocess.run(
    [sys.executable, '-m', 'tests.models.shape_checks'],
    cwd=tiny.ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert run.returncode == 0, run.stderr[-4000:]
  assert run.stdout == 'a wrong shape fails\n'
