"""Shared by all tests: eight fake CPU devices and the real data when present."""
import os
import pathlib

# Before JAX starts; tests of sharding build meshes over these devices.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
_FLAGS = os.environ.get('XLA_FLAGS', '')
if 'xla_force_host_platform_device_count' not in _FLAGS:
  os.environ['XLA_FLAGS'] = (
      _FLAGS + ' --xla_force_host_platform_device_count=8'
  ).strip()

import pytest  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHARED_DATA = ROOT.parent / 'shared' / 'data'


@pytest.fixture(scope='session')
def shared_data() -> pathlib.Path:
  """The folder of real data; tests that need it are skipped without it."""
  if not SHARED_DATA.is_dir():
    pytest.skip('the real data is not beside the checkout')
  return SHARED_DATA
