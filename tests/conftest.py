"""Shared by all tests: eight fake CPU devices and the real data when present."""

import os
import pathlib

# Before JAX starts; tests of sharding build meshes over these devices.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
_FLAGS = os.environ.get('XLA_FLAGS', '')
if 'xla_force_host_platform_device_count' not in _FLAGS:
  os.environ['XLA_FLAGS'] = (_FLAGS + ' --xla_force_host_platform_device_count=8').strip()

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHARED_DATA = ROOT.parent / 'shared' / 'data'


@pytest.fixture(scope='session')
def shared_data() -> pathlib.Path:
  """The folder of real data; tests that need it are skipped without it."""
  if not SHARED_DATA.is_dir():
    pytest.skip('the real data is not beside the checkout')
  return SHARED_DATA


@pytest.fixture(scope='module')
def compilation_cache(tmp_path_factory):
  """For modules whose tests compile the same programs over and over."""
  import jax

  from tests import tiny

  names = (
    'jax_compilation_cache_dir',
    'jax_persistent_cache_min_compile_time_secs',
    'jax_persistent_cache_min_entry_size_bytes',
  )
  before = {name: getattr(jax.config, name) for name in names}
  tiny.use_compilation_cache(tmp_path_factory.mktemp('cache'))
  yield
  for name, value in before.items():
    jax.config.update(name, value)
