"""Flax's msgpack files, by where their tensors lie rather than by value.

`flax.serialization.msgpack_restore` holds the file and all its tensors in
memory at once. Here the headers are walked, and a tensor is read when it is asked for. Nothing but
maps, lists, strings, numbers and arrays exists in such a file.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import math
import mmap
import os
import struct
from typing import Any

import ml_dtypes
import numpy as np

PathLike = str | os.PathLike[str]

# Flax's extension types.
_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3
_CHUNKED = '__msgpack_chunked_array__'
_MAX_DEPTH = 100


@dataclasses.dataclass(frozen=True)
class Span:
  """Where an array lies in the file."""

  shape: tuple[int, ...]
  dtype: np.dtype
  # (offset, bytes) of its parts, in order; more than one above 1 GB.
  pieces: tuple[tuple[int, int], ...]


class MsgpackFile:
  """A msgpack file and what is where in it.

  Its `tree` is of dicts, lists, strings, numbers, None, bytes as their (offset, bytes), and a
  `Span` for every array.
  """

  def __init__(self, path: PathLike):
    """Walks the headers of the whole file.

    Raises FileNotFoundError, or ValueError where it is truncated or no msgpack of Flax's.
    """
    self.path = os.fspath(path)
    with open(self.path, 'rb') as file:
      if not os.fstat(file.fileno()).st_size:
        raise ValueError(f'{self.path} is empty; fetch it again.')
      with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        self.tree = self._walk(mapped)

  def _walk(self, mapped: mmap.mmap) -> Any:
    walk = _Walk(mapped, len(mapped))
    try:
      tree = walk.value(0)
      if walk.at != len(mapped):
        raise ValueError(f'{len(mapped) - walk.at} bytes follow its end')
      return tree
    except (ValueError, TypeError, IndexError, KeyError, struct.error) as e:
      raise ValueError(
        f'{self.path} is truncated or no msgpack file of Flax or T5X ({e}); fetch it again.'
      ) from e

  def read(self, span: Span) -> np.ndarray:
    """The array itself; ValueError where the file has become shorter since."""
    flat = np.empty(math.prod(span.shape), span.dtype)
    target, done = flat.view(np.uint8).data, 0
    # Read, not mapped: mapped pages would stay and count as memory.
    with open(self.path, 'rb') as file:
      for offset, size in span.pieces:
        file.seek(offset)
        if file.readinto(target[done : done + size]) != size:
          raise ValueError(f'{self.path} has been truncated; fetch it again.')
        done += size
    return flat.reshape(span.shape)

  def read_part(self, span: Span, axis: int, index: int) -> np.ndarray:
    """Slice `index` of `axis`, a copy; ValueError as `read`."""
    if len(span.pieces) != 1:
      return np.take(self.read(span), index, axis=axis)
    ((offset, size),) = span.pieces
    if os.path.getsize(self.path) < offset + size:
      raise ValueError(f'{self.path} has been truncated; fetch it again.')
    mapped = np.memmap(self.path, span.dtype, 'r', offset=offset, shape=span.shape)
    return np.array(np.take(mapped, index, axis=axis))


class _Walk:
  """Reads values one after the other, and only notes where bytes lie."""

  def __init__(self, buffer: Any, end: int, at: int = 0):
    self._buffer, self._end, self.at = buffer, end, at

  def _take(self, size: int) -> int:
    """Moves on by `size` bytes; where they begin."""
    start = self.at
    if start + size > self._end:
      raise ValueError(
        f'{size} bytes are announced at {start}, where the file has {self._end - start}'
      )
    self.at = start + size
    return start

  def _number(self, code: str) -> Any:
    start = self._take(struct.calcsize(code))
    return struct.unpack_from('>' + code, self._buffer, start)[0]

  def _text(self, size: int) -> str:
    start = self._take(size)
    return self._buffer[start : self.at].decode('utf-8')

  def _list(self, size: int, depth: int) -> list[Any]:
    return [self.value(depth + 1) for _ in range(self._items(size))]

  def _map(self, size: int, depth: int) -> Any:
    result = {}
    for _ in range(self._items(size)):
      key = self.value(depth + 1)
      result[key] = self.value(depth + 1)
    return _joined(result) if _CHUNKED in result else result

  def _items(self, size: int) -> int:
    # Each takes a byte at least, so that a short file announces no more.
    if size > self._end - self.at:
      raise ValueError(f'{size} items are announced at {self.at}')
    return size

  def _extension(self, size: int) -> Any:
    code = self._number('b')
    start = self._take(size)
    if code == _COMPLEX:
      return None
    if code not in (_ARRAY, _SCALAR):
      raise ValueError(f'an unknown extension type {code} at {start}')
    shape, name, data = _Walk(self._buffer, self.at, start).value(0)
    if not isinstance(name, str):
      # Flax wrote the name as bytes at first.
      name = self._buffer[name[0] : sum(name)].decode()
    dtype, shape = _dtype(name), tuple(shape)
    if not isinstance(data, tuple) or data[1] != math.prod(shape) * dtype.itemsize:
      raise ValueError(f'an array {shape} of {name} at {start} has other data')
    return Span(shape, dtype, (data,))

  def value(self, depth: int) -> Any:
    """The next value."""
    if depth > _MAX_DEPTH:
      raise ValueError(f'containers nested more than {_MAX_DEPTH} deep')
    code = self._number('B')
    if code < 0x80:
      return code
    if code < 0x90:
      return self._map(code & 0x0F, depth)
    if code < 0xA0:
      return self._list(code & 0x0F, depth)
    if code < 0xC0:
      return self._text(code & 0x1F)
    if code >= 0xE0:
      return code - 0x100
    if code in _CONSTANTS:
      return _CONSTANTS[code]
    if code in _NUMBERS:
      return self._number(_NUMBERS[code])
    if code in _FIXED_EXTENSIONS:
      return self._extension(_FIXED_EXTENSIONS[code])
    if code not in _SIZED:
      raise ValueError(f'byte {code:#x} at {self.at - 1} begins nothing')
    kind, size_code = _SIZED[code]
    size = self._number(size_code)
    if kind == 'bytes':
      return self._take(size), size
    build: Callable[..., Any] = {
      'text': self._text,
      'extension': self._extension,
      'list': lambda n: self._list(n, depth),
      'map': lambda n: self._map(n, depth),
    }[kind]
    return build(size)


_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
# Type bytes follow one another, each kind in all its sizes.
_NUMBERS = dict(enumerate('fdBHIQbhiq', 0xCA))
_FIXED_EXTENSIONS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_SIZED = {
  first + i: (kind, code)
  for kinds, codes in (
    ({0xC4: 'bytes', 0xC7: 'extension', 0xD9: 'text'}, 'BHI'),
    ({0xDC: 'list', 0xDE: 'map'}, 'HI'),
  )
  for first, kind in kinds.items()
  for i, code in enumerate(codes)
}


def _joined(chunked: dict[str, Any]) -> Span:
  """The array that Flax cut into pieces."""
  shape, chunks = (
    [value for _, value in sorted(chunked[name].items(), key=lambda x: int(x[0]))]
    for name in ('shape', 'chunks')
  )
  if not chunks or not all(isinstance(chunk, Span) for chunk in chunks):
    raise ValueError('an array in pieces without its pieces')
  pieces = tuple(piece for chunk in chunks for piece in chunk.pieces)
  size = math.prod(shape) * chunks[0].dtype.itemsize
  if sum(piece[1] for piece in pieces) != size:
    raise ValueError(f'an array {tuple(shape)} whose pieces have another size')
  return Span(tuple(shape), chunks[0].dtype, pieces)


def _dtype(name: str) -> np.dtype:
  dtype = np.dtype(ml_dtypes.bfloat16) if name == 'bfloat16' else np.dtype(name)
  if dtype.hasobject or dtype.names is not None:
    raise ValueError(f'an array of {name}')
  return dtype
