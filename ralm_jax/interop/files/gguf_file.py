"""GGUF files, read one tensor at a time and without executing anything in them.

The header is read here: the reader of the package `gguf` makes an array of every string, 0.7 GB and
eight seconds for a vocabulary of 262,144. What quantised blocks mean is the package's.
"""

from __future__ import annotations

import dataclasses
import os
import re
import struct
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from ralm_jax.files import byte_streams
from ralm_jax.interop.files.tensor_source import TensorInfo, TensorSource

_MAGIC = b'GGUF'
_VERSIONS = (2, 3)
_ALIGNMENT = 32
_STRING, _ARRAY = 8, 9
# Of values of metadata, by GGUF's number.
_SCALARS: dict[int, np.dtype] = {
  **{0: np.dtype('<u1'), 1: np.dtype('<i1'), 2: np.dtype('<u2'), 3: np.dtype('<i2')},
  **{4: np.dtype('<u4'), 5: np.dtype('<i4'), 6: np.dtype('<f4'), 7: np.dtype('?')},
  **{10: np.dtype('<u8'), 11: np.dtype('<i8'), 12: np.dtype('<f8')},
}
# Types that are arrays as they stand; all others are dequantised to float32.
PLAIN = {'F32': np.dtype('<f4'), 'F16': np.dtype('<f2'), 'BF16': np.dtype(ml_dtypes.bfloat16)}
_PART = re.compile(r'(.*)-(\d{5})-of-(\d{5})\.gguf')
_ROWS_AT_ONCE = 1 << 22  # Values that are dequantised together.


@dataclasses.dataclass(frozen=True)
class _Tensor:
  """Where a tensor lies, and as what."""

  path: str
  offset: int
  nbytes: int
  type: Any  # gguf.GGMLQuantizationType
  info: TensorInfo


class GgufFile(TensorSource):
  """Tensors in the order of PyTorch (`[out, in]`), dequantised to float32, with their metadata.

  Of a file in parts (`-00001-of-00003.gguf`) any part names the whole.
  """

  def __init__(self, path: str | os.PathLike[str]):
    """Reads the header.

    Raises:
      FileNotFoundError: there is no such file, or a part of it is missing.
      ValueError: it is no GGUF file, of another version or byte order, cut short, or holds a tensor
        of a type that is not known.
      ImportError: the package `gguf` is missing.
    """
    self._index: dict[str, _Tensor] = {}
    self.path = os.fspath(path)
    parts = [self.path]
    if named := _PART.fullmatch(self.path):
      count = int(named[3])
      parts = [f'{named[1]}-{i:05}-of-{count:05}.gguf' for i in range(1, count + 1)]
    self.description = parts[0]
    self.metadata: dict[str, Any] = {}  #: plain values, by key
    for part in parts:
      if not os.path.isfile(part):
        raise FileNotFoundError(f'{part} does not exist; {self.path} is of {len(parts)} parts.')
      byte_streams.check_fetched(part)
      with open(part, 'rb') as file:
        header = _Header(part, file)
        # The first part has it all, the others their own number.
        self.metadata = header.metadata() | self.metadata
        for name, tensor in header.tensors().items():
          if name in self._index:
            raise ValueError(f'{part}: tensor {name!r} is there twice; fetch it again.')
          self._index[name] = tensor
    if (said := self.metadata.get('split.count', 1)) > len(parts):
      raise ValueError(
        f'{self.path} is one of {said} parts, which its name does not say; name them '
        f'NAME-00001-of-{said:05}.gguf.'
      )

  def info(self, name: str) -> TensorInfo:
    return self._index[name].info

  def types(self) -> dict[str, int]:
    """How many tensors there are of each type ('Q4_K', …)."""
    names = [tensor.type.name for tensor in self._index.values()]
    return {name: names.count(name) for name in sorted(set(names))}

  def __getitem__(self, name: str) -> np.ndarray:
    from gguf import quants

    tensor = self._index[name]
    data = np.fromfile(tensor.path, np.uint8, count=tensor.nbytes, offset=tensor.offset)
    if data.size != tensor.nbytes:
      raise ValueError(f'{tensor.path} is cut short in tensor {name!r}; fetch it again.')
    shape = tensor.info.shape
    if tensor.type.name in PLAIN:
      return data.view(tensor.info.dtype).reshape(shape)
    rows = data.reshape(-1, tensor.nbytes // (int(np.prod(shape[:-1])) or 1))
    out = np.empty((len(rows), shape[-1]), np.float32)
    # In pieces: the package holds what it returns twice.
    step = max(1, _ROWS_AT_ONCE // shape[-1])
    for at in range(0, len(rows), step):
      out[at : at + step] = quants.dequantize(rows[at : at + step], tensor.type)
    return out.reshape(shape)


class _Header:
  """What stands before the data of one file, read in order."""

  def __init__(self, path: str, file: BinaryIO):
    self._path, self._file = path, file
    self._size = os.path.getsize(path)
    self._what = 'its header'  # What is being read, for errors.
    if (magic := file.read(4)) != _MAGIC:
      raise ValueError(f'{path} is no GGUF file: it begins with {magic!r}, expected {_MAGIC!r}.')
    (version,) = self._numbers('<I')
    if version and not version & 0xFFFF:
      raise ValueError(f'{path} is a big-endian GGUF file; only little-endian ones are read.')
    if version not in _VERSIONS:
      raise ValueError(
        f'{path} is of GGUF version {version}, expected {" or ".join(map(str, _VERSIONS))}; '
        'convert the model anew with a current llama.cpp.'
      )
    self._n_tensors, self._n_values = self._numbers('<QQ')

  def metadata(self) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for number in range(self._n_values):
      self._what = f'the name of value {number} of its metadata'
      key = self._text()
      self._what = f'{key} in its metadata'
      values[key] = self._value(*self._numbers('<I'))
    self._alignment = values.get('general.alignment', _ALIGNMENT)
    if not isinstance(self._alignment, int) or self._alignment < 1:
      raise ValueError(f'{self._path}: general.alignment is {self._alignment!r}; fetch it again.')
    return values

  def tensors(self) -> dict[str, _Tensor]:
    found = {}
    for number in range(self._n_tensors):
      self._what = f'the name of tensor {number}'
      name = self._text()
      self._what = f'the description of tensor {name!r}'
      (axes,) = self._numbers('<I')
      if axes > 4:
        raise self._damaged(f'tensor {name!r} has {axes} axes')
      *dims, kind, offset = self._numbers(f'<{axes}QIQ')
      # GGUF names the innermost axis first.
      found[name] = name, tuple(dims[::-1]), kind, offset
    start = -(-self._file.tell() // self._alignment) * self._alignment
    return {name: self._tensor(start, *what) for name, what in found.items()}

  def _tensor(
    self, start: int, name: str, shape: tuple[int, ...], kind: int, offset: int
  ) -> _Tensor:
    of_type, block, size = self._type(name, kind)
    count = 1
    for length in shape:
      count *= length
    if not shape or shape[-1] % block:
      raise self._damaged(f'tensor {name!r} has rows of {shape[-1:]}, no multiple of {block}')
    nbytes = count // block * size
    if start + offset + nbytes > self._size:
      raise ValueError(
        f'{self._path} is cut short: tensor {name!r} ends at byte {start + offset + nbytes:,}, the '
        f'file at {self._size:,}; fetch it again.'
      )
    info = TensorInfo(shape, PLAIN.get(of_type.name, np.dtype(np.float32)))
    return _Tensor(self._path, start + offset, nbytes, of_type, info)

  def _type(self, name: str, kind: int) -> tuple[Any, int, int]:
    """GGUF's type of a number, with the values and the bytes of one block."""
    try:
      from gguf import constants, quants
    except ImportError as e:
      raise ImportError(f'Reading {self._path} needs the package gguf: pip install gguf.') from e
    problem = f'number {kind}'
    try:
      of_type = constants.GGMLQuantizationType(kind)
      problem = of_type.name
      block, size = constants.GGML_QUANT_SIZES[of_type]
      if of_type.name not in PLAIN:
        quants.dequantize(np.zeros((1, size), np.uint8), of_type)
    except (ValueError, KeyError, NotImplementedError) as e:
      raise ValueError(
        f'{self._path}: tensor {name!r} is of type {problem}, which is not known; quantise the '
        'model as Q8_0 or Q4_K, or update the package gguf.'
      ) from e
    return of_type, block, size

  def _damaged(self, what: str) -> ValueError:
    return ValueError(f'{self._path} is damaged ({what}); fetch it again.')

  def _read(self, count: int) -> bytes:
    if count > self._size - self._file.tell():
      raise ValueError(
        f'{self._path} is cut short or damaged: it ends in {self._what}; fetch it again.'
      )
    return self._file.read(count)

  def _numbers(self, form: str) -> tuple[int, ...]:
    return struct.unpack(form, self._read(struct.calcsize(form)))

  def _text(self) -> str:
    (length,) = self._numbers('<Q')
    content = self._read(length)
    try:
      return content.decode('utf-8')
    except UnicodeDecodeError as e:
      raise self._damaged(f'{self._what} is no UTF-8: {content!r:.40}') from e

  def _value(self, kind: int) -> Any:
    if kind == _STRING:
      return self._text()
    if kind == _ARRAY:
      of, length = self._numbers('<IQ')
      if of in _SCALARS:
        dtype = _SCALARS[of]
        return np.frombuffer(self._read(length * dtype.itemsize), dtype).tolist()
      if of != _STRING:
        raise self._damaged(f'{self._what} is an array of type {of}')
      return [self._text() for _ in range(length)]
    if kind not in _SCALARS:
      raise self._damaged(f'{self._what} is of type {kind}, which there is not')
    dtype = _SCALARS[kind]
    return np.frombuffer(self._read(dtype.itemsize), dtype)[0].item()
