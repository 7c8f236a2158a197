"""Checkpoints that cannot be written, or cannot be read."""

import os
import pathlib
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ralm_jax.checkpoints import store as checkpoints_lib
from ralm_jax.checkpoints.store import Checkpoints


def _state(rows: int = 4, value: float = 0.0) -> dict:
  return {
    'params': {'reader': {'kernel': jnp.full((rows, 3), value), 'scale': jnp.ones(3)}},
    'step': jnp.asarray(int(value), jnp.int32),
  }


def _abstract(state) -> dict:
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)


HOST = {'iterator/position': np.arange(5, dtype=np.uint8)}


@pytest.fixture
def run(tmp_path) -> pathlib.Path:
  """A run with checkpoints 1 and 2."""
  store = Checkpoints(tmp_path / 'run')
  for step in (1, 2):
    store.save(step, _state(value=step), HOST, {'generation': step})
  store.wait()
  store.close()
  return tmp_path / 'run'


def _restore(run: pathlib.Path, step: int, rows: int = 4):
  store = Checkpoints(run)
  try:
    return store.restore(step, _abstract(_state(rows)))
  finally:
    store.close()


def test_everything_comes_back(run):
  restored = _restore(run, 2)
  jax.tree.map(np.testing.assert_array_equal, restored.state, _state(value=2))
  assert restored.metadata == {'generation': 2}
  np.testing.assert_array_equal(restored.host['iterator/position'], HOST['iterator/position'])


def test_parameters_that_are_not_finite(run, monkeypatch):
  """Neither saved nor restored, from before there was a check."""
  bad = _state()
  bad['params']['reader']['kernel'] = bad['params']['reader']['kernel'].at[1].set(jnp.nan)
  store = Checkpoints(run)
  with pytest.raises(
    ValueError, match=r'Step 3 .*reader/kernel \(3 of 12.*checkpoint is checkpoint_2'
  ):
    store.save(3, bad, HOST, {})
  assert store.steps() == [1, 2]
  with monkeypatch.context() as patch:
    patch.setattr(checkpoints_lib, 'check_finite', lambda *unused: None)
    store.save(3, bad, HOST, {})
    store.wait()
  store.close()
  named = r'checkpoint_3 has parameters that are not finite .*reader/kernel \(3 of 12 values\)'
  with pytest.raises(ValueError, match=f'{named}.*fall back to checkpoint_2'):
    _restore(run, 3)
  store = Checkpoints(run, read_only=True)
  with pytest.raises(ValueError, match=named):
    store.restore_params(3, _abstract(bad['params']))
  store.close()


def test_keeps_the_newest_and_every_multiple(tmp_path):
  store = Checkpoints(tmp_path, keep=2, keep_period=4)
  for step in range(1, 8):
    store.save(step, _state(value=step), HOST, {})
  store.wait()
  assert store.steps() == [4, 6, 7]
  assert sorted(p.name for p in tmp_path.glob('checkpoint_*')) == [
    'checkpoint_4',
    'checkpoint_6',
    'checkpoint_7',
  ]
  store.close()


def test_half_written_folder_is_no_checkpoint(run):
  half = run / 'checkpoint_3.orbax-checkpoint-tmp'
  shutil.copytree(run / 'checkpoint_2', half)
  assert checkpoints_lib.find(run) == (str(run), 2)
  reader = Checkpoints(run, read_only=True)
  assert reader.latest_step() == 2
  reader.close()
  assert half.exists()  # a reader cleans nothing up: it may still be written
  writer = Checkpoints(run)
  assert writer.latest_step() == 2
  writer.save(3, _state(value=3), HOST, {})  # at the same place
  writer.wait()
  writer.close()
  assert int(_restore(run, 3).state['step']) == 3


def test_parameter_of_another_shape_is_named(run):
  for load in (
    lambda: _restore(run, 2, rows=5),
    lambda: Checkpoints(run, read_only=True).restore_params(2, _abstract(_state(5)['params'])),
  ):
    with pytest.raises(ValueError) as raised:
      load()
    message = str(raised.value)
    assert 'checkpoint_2 is of another model' in message
    assert 'reader/kernel has shape (4, 3) in the checkpoint' in message
    assert '(5, 3) in the model' in message and 'scale' not in message


def test_missing_and_unknown_parameters_are_named(run):
  params = _state()['params']
  params['reader']['bias'] = params['reader'].pop('scale')
  reader = Checkpoints(run, read_only=True)
  with pytest.raises(ValueError, match='reader/bias') as raised:
    reader.restore_params(2, _abstract(params))
  assert 'reader/scale is in the checkpoint but not in the model' in str(raised.value)
  reader.close()


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
  return sorted(p for p in folder.rglob('*') if p.is_file())


def test_truncated_files(run):
  """Whichever file of a checkpoint is cut, the message names the checkpoint."""
  wrong = 0
  folder = run / 'checkpoint_2'
  expected = jax.tree.map(np.asarray, _state(value=2))
  for path in _files(folder):
    content = path.read_bytes()
    for size in {0, len(content) // 2}:
      path.write_bytes(content[:size])
      try:
        restored = _restore(run, 2)
      except ValueError as e:
        wrong += 1
        assert 'checkpoint_2' in str(e), (path, str(e))
        assert 'fall back to checkpoint_1' in str(e), (path, str(e))
      else:
        # Files that hold nothing that is needed may be damaged.
        jax.tree.map(np.testing.assert_array_equal, restored.state, expected)
      path.write_bytes(content)
  assert wrong >= 6
  shutil.rmtree(folder)
  assert int(_restore(run, 1).state['step']) == 1


def test_another_number_of_processes(run):
  host = run / 'checkpoint_2' / 'host'
  (host / 'process_00000-of-00001.npz').rename(host / 'process_00000-of-00002.npz')
  with pytest.raises(ValueError) as raised:
    _restore(run, 2)
  message = str(raised.value)
  assert 'another number of processes than 1' in message
  assert 'INITIAL_CHECKPOINT_PATH' in message


def test_find(run, tmp_path):
  assert checkpoints_lib.find(run) == (str(run), 2)
  assert checkpoints_lib.find(run / 'checkpoint_1') == (str(run), 1)
  with pytest.raises(FileNotFoundError, match='does not exist; give the MODEL_DIR'):
    checkpoints_lib.find(tmp_path / 'nowhere')
  (tmp_path / 'empty').mkdir()
  with pytest.raises(FileNotFoundError, match='holds no checkpoint_<step> folder'):
    checkpoints_lib.find(tmp_path / 'empty')


@pytest.fixture
def small_disk(tmp_path):
  """A file system of its own of two megabytes."""
  folder = tmp_path / 'disk'
  folder.mkdir()
  mounted = (
    os.geteuid() == 0
    and subprocess.run(
      ['mount', '-t', 'tmpfs', '-o', 'size=2m', 'tmpfs', str(folder)], capture_output=True
    ).returncode
    == 0
  )
  if not mounted:
    pytest.skip('no permission to mount a small file system')
  yield folder
  subprocess.run(['umount', '-l', str(folder)], check=True)


@pytest.mark.parametrize('asynchronous', [False, True])
def test_full_disk(small_disk, asynchronous):
  run = small_disk / 'run'
  store = Checkpoints(run, asynchronous=asynchronous)
  store.save(1, _state(value=1), HOST, {'generation': 1})
  store.wait()
  ballast = small_disk / 'ballast'
  free = os.statvfs(small_disk)
  ballast.write_bytes(bytes(free.f_bavail * free.f_bsize - 16384))
  rng = np.random.default_rng(0)
  big = _state(value=2)
  big['params']['reader']['kernel'] = jnp.asarray(
    rng.standard_normal((40_000, 3)), jnp.float32
  )  # compression does not help
  with pytest.raises(OSError) as raised:
    store.save(2, big, HOST, {'generation': 1})
    store.wait()
  message = str(raised.value)
  assert 'No space left' in message, message
  assert f'in {run} failed' in message
  assert 'newest usable checkpoint is checkpoint_1' in message
  assert 'Free space' in message
  del store  # the program ends

  # The earlier checkpoint is whole, and after space is freed the run goes on.
  assert checkpoints_lib.find(run) == (str(run), 1)
  assert int(_restore(run, 1).state['step']) == 1
  ballast.unlink()
  again = Checkpoints(run)
  assert again.latest_step() == 1
  again.save(2, big, HOST, {'generation': 1})
  again.wait()
  assert again.steps() == [1, 2]
  again.close()
