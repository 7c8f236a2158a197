"""Pickles of plain data, read without running anything in them.

A pickle is a program. Here its only building blocks are lists, tuples, dicts, sets, strings, bytes,
numbers, and, where asked for, NumPy arrays of numbers or strings. Even these are not built by
NumPy's own functions, some of which trust what they are given: stand-ins take down what the pickle
says of an array, and the array is made of it once that has been checked.
"""

from __future__ import annotations

from collections.abc import Callable
import math
import os
import pickle
import re
from typing import Any

import numpy as np

from ralm_jax.files import byte_streams

PathLike = str | os.PathLike[str]

# Numbers and strings of fixed width. Objects, records and dates are none.
_DTYPE = re.compile(r'[<>=|]?(b1|[iu][1248]|f[248]|c8|c16|[SU][0-9]{1,6})')
_MAX_DEPTH = 64


def load_plain(path: PathLike) -> Any:
  """Reads a pickle of plain containers.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the pickle is truncated or damaged, or it names a function or
      class (the message says which); nothing of it has run.
  """
  return _load(path, {})


def load_arrays(path: PathLike) -> Any:
  """Reads a pickle of plain containers and NumPy arrays, read-only views of its bytes.

  Raises as `load_plain`; an array of objects or records, or one whose data have not the size of
  its shape, is damaged.
  """
  return _finished(_load(path, _array_globals()), os.fspath(path))


class Unpickler(pickle.Unpickler):
  """Finds no global but those it was given."""

  # For whoever trusts a file that names others.
  remedy = 'rewrite it with plain lists, strings and arrays'

  def __init__(self, file: Any, path: str, known: dict[tuple[str, str], Any]):
    super().__init__(file)
    self._path, self._known = path, known

  def find_class(self, module: str, name: str) -> Any:
    try:
      return self._known[module, name]
    except KeyError:
      raise Refused(
        f'{self._path} names {module}.{name}, a function or class to run; only plain data is read, '
        f'and nothing in the file was executed. If you trust it, {self.remedy}.'
      ) from None

  def persistent_load(self, pid: Any) -> Any:
    raise Refused(
      f'{self._path} refers to data outside itself; only plain data is read. '
      'Is it a file for torch.load?'
    )


class Refused(ValueError):
  """Its message is complete; told apart from what damage raises."""


def _load(path: PathLike, known: dict[tuple[str, str], Any]) -> Any:
  path = os.fspath(path)
  byte_streams.check_fetched(path)
  with open(path, 'rb') as file:
    if file.read(4) == b'PK\x03\x04':
      raise ValueError(f'{path} is a zip file, as torch.save and numpy.savez write, not a pickle.')
    file.seek(0)
    try:
      return Unpickler(file, path, known).load()
    except Refused as e:
      raise ValueError(str(e)) from None
    except MemoryError:
      raise MemoryError(
        f'{path} does not fit into memory, or is damaged and asks for more than it holds.'
      ) from None
    except Exception as e:  # Damage can surface as nearly any error.
      raise ValueError(
        f'{path} is truncated or not a pickle of plain data '
        f'({type(e).__name__}: {e}); fetch it again.'
      ) from e


class _Token:
  """A global that can be named and passed on, but neither called nor changed."""

  __slots__ = ()


class StandIn:
  """What a pickle calls in place of a library's function.

  Not a function of Python's, whose attributes a pickle could set.
  """

  __slots__ = ('__call',)
  __call: Callable[..., Any]

  def __init__(self, call: Callable[..., Any]):
    object.__setattr__(self, '_StandIn__call', call)

  def __call__(self, *args: Any) -> Any:
    return self.__call(*args)

  def __setattr__(self, name: str, value: Any) -> None:
    raise AttributeError(f'a pickle sets {name!r} of a function')


class _DType:
  """What a pickle says of an array's type."""

  __slots__ = ('_name',)

  def __init__(self, name: Any, *unused_flags: Any):
    if isinstance(name, _DType):
      name = name.text
    if not isinstance(name, str):
      raise ValueError(f'an array type that is no name: {name!r:.60}')
    self._name = name

  def __setstate__(self, state: Any) -> None:
    # (version, byte order, subarray, names, fields, size, alignment, ...)
    order, parts = state[1], state[2:5]
    if order not in ('<', '>', '=', '|') or any(p is not None for p in parts):
      raise ValueError(f'an array of records: {state!r:.80}')
    self._name = order + self._name.lstrip('<>=|')

  @property
  def text(self) -> str:
    return self._name

  def checked(self) -> np.dtype:
    if not _DTYPE.fullmatch(self._name):
      raise ValueError(
        f'an array of type {self._name!r}, which is neither of numbers nor of strings'
      )
    return np.dtype(self._name)


class _Array:
  """What a pickle says of an array."""

  __slots__ = ('_shape', '_dtype', '_fortran', '_data')

  def __init__(self, *unused: Any):
    self._data = None

  def __setstate__(self, state: Any) -> None:
    _, self._shape, self._dtype, self._fortran, self._data = state

  @classmethod
  def of_buffer(cls, buffer: Any, dtype: Any, shape: Any, order: Any = 'C', *unused: Any) -> _Array:
    """As protocol 5 has it."""
    array = cls()
    array.__setstate__((1, shape, dtype, order == 'F', buffer))
    return array

  def finished(self) -> np.ndarray:
    """The array itself; ValueError or TypeError where that cannot be."""
    if not isinstance(self._data, (bytes, bytearray, memoryview)):
      raise ValueError(f'an array without data of its own, found {type(self._data).__name__}')
    if not isinstance(self._dtype, _DType):
      raise ValueError(f'an array without a type, found {self._dtype!r:.60}')
    dtype, shape = self._dtype.checked(), self._shape
    if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
      raise ValueError(f'an array of shape {shape!r:.60}')
    expected, found = math.prod(shape) * dtype.itemsize, memoryview(self._data).nbytes
    if expected != found or (expected == 0 and len(self._data)):
      raise ValueError(
        f'an array of shape {shape} and type {dtype} with {found} bytes of '
        f'data, expected {expected}'
      )
    if not expected:
      return np.zeros(shape, dtype)
    array = np.frombuffer(self._data, dtype).reshape(shape, order='F' if self._fortran else 'C')
    array.flags.writeable = False
    return array


def _scalar(dtype: Any, data: Any = None) -> Any:
  if not isinstance(dtype, _DType):
    raise ValueError(f'a number without a type, found {dtype!r:.60}')
  return np.frombuffer(data, dtype.checked(), 1)[0].item()


def _encode(text: Any, encoding: Any = 'utf-8', *unused: Any) -> bytes:
  # How old protocols spell bytes.
  if not isinstance(text, str) or encoding not in ('latin1', 'latin-1'):
    raise ValueError(f'bytes in the encoding {encoding!r:.40}')
  return text.encode('latin-1')


def _no_bytes(*content: Any) -> bytes:
  # How old protocols spell b''.
  if content:
    raise ValueError('a call of bytes')
  return b''


def _array_globals() -> dict[tuple[str, str], Any]:
  ndarray = _Token()

  def reconstruct(kind: Any, *unused: Any) -> _Array:
    if kind is not ndarray:
      raise ValueError(f'an array that is of the type {kind!r:.60}')
    return _Array()

  known: dict[tuple[str, str], Any] = {
    ('numpy', 'ndarray'): ndarray,
    ('numpy', 'dtype'): StandIn(_DType),
    ('_codecs', 'encode'): StandIn(_encode),
    ('__builtin__', 'bytes'): StandIn(_no_bytes),
  }
  for core in ('numpy.core', 'numpy._core'):
    known[f'{core}.multiarray', '_reconstruct'] = StandIn(reconstruct)
    known[f'{core}.multiarray', 'scalar'] = StandIn(_scalar)
    known[f'{core}.numeric', '_frombuffer'] = StandIn(_Array.of_buffer)
  return known


def _finished(value: Any, path: str) -> Any:
  """The same with arrays in the place of their descriptions."""
  # By identity: a pickle may name one object many times, or put it in itself.
  done: dict[int, Any] = {}

  def finish(one: Any, depth: int) -> Any:
    kind = type(one)
    if kind not in (list, tuple, dict, set, frozenset, _Array):
      if kind in (_DType, _Token, StandIn):
        raise ValueError('a piece of an array without the array')
      return one
    key = id(one)
    if key in done:
      if done[key] is finish:
        raise ValueError('a container that holds itself')
      return done[key]
    if depth > _MAX_DEPTH:
      raise ValueError(f'containers nested more than {_MAX_DEPTH} deep')
    done[key] = finish
    if kind is _Array:
      result: Any = one.finished()
    elif kind is dict:
      result = {finish(k, depth + 1): finish(v, depth + 1) for k, v in one.items()}
    else:
      result = kind(finish(item, depth + 1) for item in one)
    done[key] = result
    return result

  try:
    return finish(value, 0)
  except (ValueError, TypeError) as e:
    raise ValueError(f'{path} is damaged, or no plain data: it holds {e}.') from e
  finally:
    done.clear()  # `finish` refers to itself, and so would outlive this call.
