"""Safetensors files, read and written one tensor at a time.

The format is a little-endian uint64 with the size of a JSON header, the header
(`{name: {dtype, shape, data_offsets}, "__metadata__": {str: str}}`), then the
data. The library of that name reads bfloat16 only into PyTorch and writes only
what is wholly in memory; neither suits a stream of large tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
import json
import os
from typing import Any

import ml_dtypes
import numpy as np

from ralm_jax.interop.files.tensor_source import TensorInfo

_DTYPES = {
  'BOOL': np.dtype(bool),
  'BF16': np.dtype(ml_dtypes.bfloat16),
  **{f'F{bits}': np.dtype(f'float{bits}') for bits in (16, 32, 64)},
  **{f'I{bits}': np.dtype(f'int{bits}') for bits in (8, 16, 32, 64)},
  **{f'U{bits}': np.dtype(f'uint{bits}') for bits in (8, 16, 32, 64)},
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
# The library refuses larger headers; so does this reader.
_MAX_HEADER = 100_000_000


class SafetensorsFile:
  """An index of one file; tensors are read when asked for."""

  def __init__(self, path: str):
    """Reads the header; ValueError where the file is truncated or no safetensors file."""
    self.path = path
    self._offsets: dict[str, int] = {}
    self.tensors: dict[str, TensorInfo] = {}
    size = os.path.getsize(path)
    with open(path, 'rb') as file:
      length = int.from_bytes(file.read(8), 'little')
      if size < 8 or not 2 <= length <= min(_MAX_HEADER, size - 8):
        raise self._damaged(f'{size} bytes with a header of {length}')
      try:
        header = json.loads(file.read(length))
        self.metadata: dict[str, str] = header.pop('__metadata__', {})
        end = 8 + length
        for name, entry in header.items():
          first, last = entry['data_offsets']
          self._offsets[name] = 8 + length + first
          self.tensors[name] = self._info(name, entry, last - first)
          end = max(end, 8 + length + last)
      except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as e:
        raise self._damaged(f'its header is not readable: {e!r}') from e
    if end != size:
      raise self._damaged(f'{size} bytes where its header calls for {end}')

  def _damaged(self, what: str) -> ValueError:
    return ValueError(
      f'{self.path} is truncated or not a safetensors file ({what}); fetch it again.'
    )

  def _info(self, name: str, entry: Mapping[str, Any], nbytes: int) -> TensorInfo:
    if entry['dtype'] not in _DTYPES:
      raise ValueError(
        f'{self.path}: tensor {name!r} is of type {entry["dtype"]}, which '
        f'is not supported; supported: {sorted(_DTYPES)}.'
      )
    info = TensorInfo(tuple(entry['shape']), _DTYPES[entry['dtype']])
    if info.nbytes != nbytes:
      raise self._damaged(f'tensor {name!r} of shape {info.shape} has {nbytes} bytes')
    return info

  def read(self, name: str) -> np.ndarray:
    """One tensor, in memory of its own."""
    info, offset = self.tensors[name], self._offsets[name]
    data = np.fromfile(self.path, np.uint8, count=info.nbytes, offset=offset)
    if data.size != info.nbytes:
      raise self._damaged(f'tensor {name!r} ends early')
    return data.view(info.dtype).reshape(info.shape)

  def release(self) -> None:
    """Nothing is held between reads."""


def write(
  path: str,
  tensors: Mapping[str, TensorInfo],
  arrays: Iterable[np.ndarray],
  metadata: Mapping[str, str] | None = None,
) -> None:
  """Writes one file, array after array; the content is on disk afterwards.

  Raises ValueError where an array is not what `tensors` says.
  """
  header: dict[str, Any] = {'__metadata__': dict(metadata)} if metadata else {}
  offset = 0
  for name, info in tensors.items():
    shape, end = list(info.shape), offset + info.nbytes
    header[name] = {'dtype': _NAMES[info.dtype], 'shape': shape, 'data_offsets': [offset, end]}
    offset = end
  text = json.dumps(header, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)
  with open(path, 'wb') as file:
    file.write(len(text).to_bytes(8, 'little') + text)
    for (name, info), array in zip(tensors.items(), arrays, strict=True):
      if tuple(array.shape) != info.shape or array.dtype != info.dtype:
        raise ValueError(
          f'{path}: tensor {name!r} is {array.dtype}{list(array.shape)}, '
          f'announced as {info.dtype}{list(info.shape)}.'
        )
      file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
