"""The manual builds, without a warning."""

import subprocess
import sys

import pytest

from tests import tiny


@pytest.mark.slow
def test_the_manual_builds(tmp_path):
  pytest.importorskip('myst_parser')
  built = subprocess.run(
    [sys.executable, '-m', 'sphinx', '-W', '-q', tiny.ROOT / 'docs', tmp_path],
    capture_output=True,
    text=True,
    check=False,
  )
  assert built.returncode == 0, built.stderr[-3000:]
  assert 'FusionInDecoder' in (tmp_path / 'python_api.html').read_text()


def test_readme_is_the_door():
  assert len((tiny.ROOT / 'README.md').read_bytes()) <= 8192
