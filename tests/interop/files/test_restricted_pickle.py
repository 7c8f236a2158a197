"""Pickles that hold data are read; pickles that would run something are not."""

import builtins
import collections
import io
import os
import pathlib
import pickle
import struct
import subprocess

import numpy as np
import pytest

from ralm_jax.interop.files import restricted_pickle

LOADERS = (restricted_pickle.load_plain, restricted_pickle.load_arrays)


def write(path: pathlib.Path, value, protocol: int = 4) -> pathlib.Path:
  path.write_bytes(pickle.dumps(value, protocol))
  return path


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_survives(tmp_path, protocol):
  value = [
    {'id': 'é', 'text': 'a\n"b"', 'n': 3, 'x': 1.5, 'none': None, 'yes': True},
    {'nested': [(1, 2), [], {}]},
    2**80,
    -1,
  ]
  path = write(tmp_path / 'plain', value, protocol)
  for load in LOADERS:
    assert load(path) == value


def test_bytes_and_sets_survive(tmp_path):
  value = [b'\x00\xff', {1, 'b'}, frozenset({2})]
  path = write(tmp_path / 'plain', value)
  for load in LOADERS:
    assert load(path) == value


ARRAYS = {
  'half': np.arange(12, dtype=np.float16).reshape(3, 4),
  'single': np.linspace(-1, 1, 7, dtype=np.float32),
  'big_endian': np.arange(5, dtype='>f4'),
  'integers': np.array([[2**40], [-1]]),
  'flags': np.array([True, False]),
  'strings': np.array(['a', 'éé', '']),
  'fortran': np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4)),
  'strided': np.arange(24, dtype=np.float32).reshape(4, 6)[::2, 1::2],
  'empty': np.zeros((0, 8), np.float32),
  'zero_dim': np.array(2.5),
}


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize('name', ARRAYS)
def test_arrays_survive(tmp_path, name, protocol):
  array = ARRAYS[name]
  ids, found, again = restricted_pickle.load_arrays(
    write(tmp_path / 'arrays', (['a', 'b'], array, array), protocol)
  )
  assert ids == ['a', 'b'] and found is again
  assert type(found) is np.ndarray and found.dtype == array.dtype
  np.testing.assert_array_equal(found, array)


def test_the_older_numpy_is_known(tmp_path):
  """NumPy 1 wrote its module's former name."""
  content = pickle.dumps((['a'], ARRAYS['half']), 2)
  assert b'numpy._core.multiarray' in content
  path = tmp_path / 'old'
  path.write_bytes(content.replace(b'numpy._core.multiarray', b'numpy.core.multiarray'))
  np.testing.assert_array_equal(restricted_pickle.load_arrays(path)[1], ARRAYS['half'])


@pytest.mark.parametrize('protocol', (0, 2, 4, 5))
def test_numbers_of_numpy_become_numbers(tmp_path, protocol):
  found = restricted_pickle.load_arrays(
    write(tmp_path / 'n', [(np.int64(7), np.float32(0.5))], protocol)
  )
  assert found == [(7, 0.5)]
  assert [type(n) for n in found[0]] == [int, float]


def test_plain_data_has_no_arrays(tmp_path):
  path = write(tmp_path / 'a', [np.zeros(3)])
  with pytest.raises(ValueError, match='multiarray'):
    restricted_pickle.load_plain(path)


class Reduced:
  """Pickles as a call of its choice."""

  def __init__(self, *call):
    self.call = call

  def __reduce__(self):
    return self.call


def attacks(touch: str) -> dict[str, bytes]:
  """Pickles that would make the file `touch`, or something worse."""
  command = f'touch {touch}'
  python = f'__import__("os").system({command!r})'

  def text(*lines: str) -> bytes:
    return '\n'.join(lines).encode()

  def name(value: str) -> bytes:
    return b'\x8c' + struct.pack('B', len(value)) + value.encode()

  def dotted(module: str, attribute: str) -> bytes:
    # STACK_GLOBAL takes an attribute's attributes.
    return b'\x80\x04' + name(module) + name(attribute) + b'\x93'

  array = dotted('numpy._core.multiarray', '_reconstruct')
  kind, letter = dotted('numpy', 'ndarray')[2:], name('b')
  return {
    'system': pickle.dumps(Reduced(os.system, (command,))),
    'system_protocol_0': text('cposix', 'system', f"(S'{command}'", 'tR.'),
    'inst': text('(S' + repr(command), 'ios', 'system', '.'),
    'obj': b'(' + text('cos', 'system', 'S' + repr(command), 'o.'),
    'eval': pickle.dumps(Reduced(builtins.eval, (python,))),
    'exec': pickle.dumps(Reduced(builtins.exec, (python,))),
    'popen': pickle.dumps(Reduced(subprocess.Popen, (['touch', touch],))),
    'inside_a_list': pickle.dumps([{'id': '0', 'text': Reduced(os.system, (command,))}]),
    'getattr': pickle.dumps(Reduced(getattr, (Reduced(__import__, ('os',)), 'system'))),
    'import': pickle.dumps(Reduced(__import__, ('antigravity',))),
    'dotted': dotted('os', 'path.os.system') + name(command) + b'\x85R.',
    'dotted_array': dotted('numpy._core.multiarray', '_reconstruct.__globals__.get') + b'.',
    'dotted_type': dotted('numpy', 'ndarray.__class__.mro') + b'.',
    'numpy_load': dotted('numpy', 'load') + name(touch) + b'\x85R.',
    'numpy_runstring': dotted('numpy.testing._private.utils', 'runstring')
    + name(python)
    + b'}\x86R.',
    'ordered_dict': pickle.dumps(collections.OrderedDict(a=1)),
    'a_class_of_ours': pickle.dumps(pathlib.PurePosixPath('/x')),
    'persistent': b'\x80\x04' + name('x') + b'Q.',
    'extension': b'\x80\x02\x82\x01.',
    # Changing what is called, rather than calling.
    'build_attributes': array + b'}' + name('__call__') + name('x') + b'sb.',
    'build_slots': array + b'N}' + name('_StandIn__call') + name('x') + b's\x86b.',
    'new_object': kind.join([b'\x80\x04', b'K\x01\x85\x81.']),
    'call_the_type': kind.join([b'\x80\x04', b'K\x01\x85R.']),
    'other_type': array + name('x') + b'K\x00\x85' + letter + b'\x87R.',
    'bare_function': array + b'.',
  }


@pytest.mark.parametrize('attack', list(attacks('x')))
def test_nothing_is_run(tmp_path, monkeypatch, attack):
  touch = tmp_path / 'was_here'
  path = tmp_path / 'malicious'
  path.write_bytes(attacks(str(touch))[attack])
  monkeypatch.setattr(os, 'system', lambda *_: touch.write_text('system'))
  for load in LOADERS:
    with pytest.raises(ValueError, match=str(path)):
      load(path)
    assert not touch.exists()
  # Nor has anything changed: an honest file still reads.
  np.testing.assert_array_equal(
    restricted_pickle.load_arrays(write(path, [np.arange(3)]))[0], range(3)
  )


def test_the_attacks_are_attacks(tmp_path):
  """Python's own unpickler runs the first ones, so the test means something."""
  for attack in (
    'system',
    'system_protocol_0',
    'inst',
    'obj',
    'eval',
    'popen',
    'inside_a_list',
    'dotted',
  ):
    touch = tmp_path / attack
    value = pickle.loads(attacks(str(touch))[attack])
    if attack == 'popen':
      value.wait()
    assert touch.exists(), attack


def test_the_message_names_file_and_function(tmp_path):
  path = tmp_path / 'passages.3.pt'
  path.write_bytes(pickle.dumps([Reduced(os.system, ('true',))]))
  with pytest.raises(ValueError, match=r'passages\.3\.pt names posix\.system'):
    restricted_pickle.load_plain(path)


class Unlucky:
  """An object for an array of objects."""

  def __reduce__(self):
    return os.system, ('touch /dev/null',)


def records() -> np.ndarray:
  return np.zeros(2, [('a', 'f4'), ('b', 'i4')])


@pytest.mark.parametrize(
  'array',
  [
    np.array([{'a': 1}, None], object),
    np.array([Unlucky()], object),
    records(),
    np.array(['2020-01-01'], 'M8[D]'),
    np.zeros(2, 'V8'),
  ],
  ids=['objects', 'malicious', 'records', 'dates', 'void'],
)
@pytest.mark.parametrize('protocol', (2, 4, 5))
def test_arrays_of_other_things_are_refused(tmp_path, array, protocol):
  with pytest.raises(ValueError, match=str(tmp_path)):
    restricted_pickle.load_arrays(write(tmp_path / 'a', (['x'], array), protocol))


class Stated:
  """Pickles as an array with a state of one's own."""

  def __init__(self, *state):
    self.state = state

  def __reduce__(self):
    return (np._core.multiarray._reconstruct, (np.ndarray, (0,), b'b'), self.state)


SINGLE = np.dtype('f4')


@pytest.mark.parametrize(
  'state',
  [
    (1, (1000, 1000), SINGLE, False, b'\0' * 8),
    (1, (2,), SINGLE, False, b'\0' * 9),
    (1, (-1, -2), SINGLE, False, b'\0' * 8),
    (1, (2**62, 4), SINGLE, False, b''),
    (1, (0, 2**62), SINGLE, False, b'\0' * 4),
    (1, 2, SINGLE, False, b'\0' * 8),
    (1, (2.0,), SINGLE, False, b'\0' * 8),
    (1, (1,), 'f4', False, b'\0' * 4),
    (1, (1,), SINGLE, False, [1.0]),
    (1, (1,), SINGLE, False),
    (1, (1,), np.dtype('O'), False, b'\0' * 8),
  ],
)
def test_states_that_lie_are_refused(tmp_path, state):
  with pytest.raises(ValueError, match=str(tmp_path)):
    restricted_pickle.load_arrays(write(tmp_path / 'a', [Stated(*state)]))


def test_a_container_in_itself(tmp_path):
  loop: list = []
  loop.append(loop)
  with pytest.raises(ValueError, match='holds itself'):
    restricted_pickle.load_arrays(write(tmp_path / 'loop', loop))
  deep: list = []
  for _ in range(400):
    deep = [deep]
  with pytest.raises(ValueError, match='deep'):
    restricted_pickle.load_arrays(write(tmp_path / 'deep', deep))


def test_a_small_file_stays_small(tmp_path):
  """2^60 elements by naming one list twice, sixty times."""
  many: list = ['x']
  for _ in range(60):
    many = [many, many]
  found = restricted_pickle.load_arrays(write(tmp_path / 'many', many))
  assert found[0] is found[1]


@pytest.mark.parametrize('keep', (0, 1, 5, 100, -1))
def test_a_truncated_file(tmp_path, keep):
  content = pickle.dumps((['a'], np.zeros(100, np.float32)), 4)
  path = tmp_path / 'cut'
  path.write_bytes(content[:keep])
  with pytest.raises(ValueError, match='cut is truncated'):
    restricted_pickle.load_arrays(path)


def test_other_files(tmp_path):
  path = tmp_path / 'file'
  path.write_text('{"id": 1}')
  with pytest.raises(ValueError, match='not a pickle'):
    restricted_pickle.load_plain(path)
  content = io.BytesIO()
  np.savez(content, a=np.zeros(3))
  path.write_bytes(content.getvalue())
  with pytest.raises(ValueError, match='zip file'):
    restricted_pickle.load_arrays(path)
  with pytest.raises(FileNotFoundError):
    restricted_pickle.load_plain(tmp_path / 'nothing')
