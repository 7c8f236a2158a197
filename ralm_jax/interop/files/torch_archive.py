"""Files of torch.save, without PyTorch and without running anything in them.

Such a file is a zip archive: a pickle that describes tensors, and their bytes beside it,
uncompressed. The pickle is read with stand-ins for the few functions that describe tensors; what
else a training run leaves in there, the options it was started with for one, becomes an empty
object. Tensors are read from the file one at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import io
import math
import os
import struct
from typing import Any
import zipfile

import ml_dtypes
import numpy as np

from ralm_jax.interop.files.restricted_pickle import Refused, StandIn, Unpickler
from ralm_jax.interop.files.tensor_source import TensorInfo

PathLike = str | os.PathLike[str]

_FLOATS = dict(Half=np.float16, Float=np.float32, Double=np.float64, BFloat16=ml_dtypes.bfloat16)
_INTEGERS = dict(Char=np.int8, Short=np.int16, Int=np.int32, Long=np.int64, Byte=np.uint8)
_DTYPES: dict[str, Any] = {**_FLOATS, **_INTEGERS, 'Bool': np.bool_}
# What may be in a file beside tensors, and is not looked at.
_IGNORED = frozenset(
  (module, name)
  for module, names in {
    'argparse': 'Namespace',
    'torch': 'Size device float16 float32 float64 bfloat16 int64 int32 bool',
    'numpy': 'dtype ndarray',
    'numpy.core.multiarray': 'scalar _reconstruct',
    'numpy._core.multiarray': 'scalar _reconstruct',
    '_codecs': 'encode',
    'pathlib': 'Path PosixPath WindowsPath PurePosixPath',
    'collections': 'defaultdict Counter deque',
    'builtins': 'set frozenset list dict tuple int str',
    '__builtin__': 'set frozenset list dict tuple int str',
  }.items()
  for name in names.split()
)


@dataclasses.dataclass(frozen=True)
class _Storage:
  dtype: np.dtype
  key: str
  count: int


@dataclasses.dataclass(frozen=True)
class StoredTensor:
  """A tensor in an archive, not read."""

  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]

  def __post_init__(self):
    numbers = (self.offset, *self.shape, *self.strides)
    if not isinstance(self.storage, _Storage) or (
      len(self.shape) != len(self.strides) or any(type(n) is not int or n < 0 for n in numbers)
    ):
      raise ValueError('a tensor whose description makes no sense')
    last = self.offset + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides))
    if math.prod(self.shape) and last >= self.storage.count:
      raise ValueError(
        f'a tensor of shape {self.shape} that reaches beyond its {self.storage.count} numbers'
      )

  @property
  def info(self) -> TensorInfo:
    return TensorInfo(self.shape, self.storage.dtype)

  @property
  def is_contiguous(self) -> bool:
    expected = 1
    for size, stride in zip(reversed(self.shape), reversed(self.strides)):
      if size != 1 and stride != expected:
        return False
      expected *= size
    return True


class TorchArchive:
  """A file of torch.save; `value` is what was saved, with a `StoredTensor` for every tensor."""

  def __init__(self, path: PathLike):
    """Reads the description, no tensor.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is truncated, not of torch.save, or names a function or class that has no
        place in such a file; nothing of it has run.
    """
    self.path = os.fspath(path)
    try:
      with zipfile.ZipFile(self.path) as archive:
        names = [n for n in archive.namelist() if n.endswith('/data.pkl')]
        if len(names) != 1:
          raise zipfile.BadZipFile('it has no data.pkl')
        self._prefix = names[0].removesuffix('data.pkl')
        if f'{self._prefix}byteorder' in archive.namelist():
          order = archive.read(f'{self._prefix}byteorder')
          if order != b'little':
            raise zipfile.BadZipFile(f'its byte order is {order!r:.20}')
        self._entries = {entry.filename: entry for entry in archive.infolist()}
        content = archive.read(names[0])
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as e:
      raise ValueError(
        f'{self.path} is truncated, or not a file of torch.save as of PyTorch '
        f'1.6 ({e}); fetch it again, or save it anew with a current PyTorch.'
      ) from e
    try:
      self.value = _Unpickler(io.BytesIO(content), self.path, _globals()).load()
    except Refused as e:
      raise ValueError(str(e)) from None
    except Exception as e:  # Damage can surface as nearly any error.
      raise ValueError(f'{self.path} is damaged ({type(e).__name__}: {e}); fetch it again.') from e

  def read(self, tensor: StoredTensor) -> np.ndarray:
    """The tensor itself, contiguous; ValueError where the file ends before it does."""
    dtype = tensor.storage.dtype
    if not math.prod(tensor.shape):
      return np.zeros(tensor.shape, dtype)
    start = self._start(tensor.storage)
    if tensor.is_contiguous:
      count = math.prod(tensor.shape)
      flat = np.fromfile(self.path, dtype, count, offset=start + tensor.offset * dtype.itemsize)
      if len(flat) != count:
        raise self._short()
      return flat.reshape(tensor.shape)
    # A view of something larger: only its own numbers are touched.
    mapped = np.memmap(self.path, dtype, 'r', offset=start, shape=(tensor.storage.count,))
    strides = [stride * dtype.itemsize for stride in tensor.strides]
    view = np.lib.stride_tricks.as_strided(mapped[tensor.offset :], tensor.shape, strides)
    return np.array(view, order='C')

  def _start(self, storage: _Storage) -> int:
    """Where in the file the numbers begin."""
    entry = self._entries.get(f'{self._prefix}data/{storage.key}')
    size = storage.count * storage.dtype.itemsize
    if entry is None or entry.compress_type != zipfile.ZIP_STORED or (entry.file_size < size):
      raise self._short()
    with open(self.path, 'rb') as file:
      file.seek(entry.header_offset)
      header = file.read(30)
    if len(header) < 30 or header[:4] != b'PK\x03\x04':
      raise self._short()
    start = entry.header_offset + 30 + sum(struct.unpack('<HH', header[26:30]))
    if start + size > os.path.getsize(self.path):
      raise self._short()
    return start

  def _short(self) -> ValueError:
    return ValueError(
      f'{self.path} does not hold the numbers of all its tensors; it is damaged, fetch it again.'
    )


class _Dict(dict):
  """In place of OrderedDict; what was attached to one is dropped."""

  def __setstate__(self, unused_state: Any) -> None:
    pass


class _Ignored:
  """In place of an object that is not looked at; it takes anything and does nothing."""

  __slots__ = ()

  def __new__(cls, *unused: Any) -> _Ignored:
    return object.__new__(cls)

  def _take(self, *unused: Any) -> None:
    pass

  __setstate__ = __setitem__ = append = extend = _take

  def __iter__(self) -> Iterator[Any]:
    return iter(())


class _StorageType(StandIn):
  """In place of `torch.FloatStorage` and its like; a name, never called."""

  __slots__ = ('dtype',)
  dtype: np.dtype

  def __init__(self, dtype: Any):
    super().__init__(_refuse_call)
    object.__setattr__(self, 'dtype', np.dtype(dtype))


def _refuse_call(*unused: Any) -> None:
  raise ValueError('a call of a type of storage')


def _rebuild(storage: Any, offset: Any, shape: Any, strides: Any, *unused: Any) -> StoredTensor:
  return StoredTensor(storage, offset, tuple(shape), tuple(strides))


def _globals() -> dict[tuple[str, str], Any]:
  return {
    ('torch._utils', '_rebuild_tensor_v2'): StandIn(_rebuild),
    ('torch._utils', '_rebuild_parameter'): StandIn(lambda tensor, *unused: tensor),
    ('collections', 'OrderedDict'): StandIn(_Dict),
    **{('torch', f'{name}Storage'): _StorageType(dtype) for name, dtype in _DTYPES.items()},
    **dict.fromkeys(_IGNORED, _Ignored),
  }


class _Unpickler(Unpickler):
  """Knows where the archive keeps the numbers of a tensor."""

  remedy = 'load it with PyTorch and save its tensors alone'

  def persistent_load(self, pid: Any) -> _Storage:
    kind, storage, key, _, count = pid
    known = kind == 'storage' and isinstance(storage, _StorageType)
    if not known or not isinstance(key, str) or type(count) is not int:
      raise ValueError(f'a reference {pid!r:.60}')
    return _Storage(storage.dtype, key, count)
