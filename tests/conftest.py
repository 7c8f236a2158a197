"""Shared by all tests: eight fake CPU devices, compiled programs, the real data if present."""

import atexit
import os
import pathlib
import shutil
import tempfile

# Before JAX starts, here and in the processes that tests start. Tests of sharding
# build meshes over the devices; less optimised code compiles in half the time.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
for flag in ('--xla_force_host_platform_device_count=8', '--xla_backend_optimization_level=0'):
  if flag.partition('=')[0] not in os.environ.get('XLA_FLAGS', ''):
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {flag}'.strip()
# One program is compiled once a session, whichever test, worker or process needs it.
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp(prefix='compiled-')
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.1'
  os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'
  atexit.register(shutil.rmtree, os.environ['JAX_COMPILATION_CACHE_DIR'], ignore_errors=True)

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHARED_DATA = ROOT.parent / 'shared' / 'data'


@pytest.fixture(scope='session')
def shared_data() -> pathlib.Path:
  """The folder of real data; tests that need it are skipped without it."""
  if not SHARED_DATA.is_dir():
    pytest.skip('the real data is not beside the checkout')
  return SHARED_DATA
