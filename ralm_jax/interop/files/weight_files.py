"""Named tensors of a Hugging Face folder, without executing anything in it."""

from __future__ import annotations

import functools
import json
import os
import re
from typing import Any

import ml_dtypes
import numpy as np

from ralm_jax.files import byte_streams
from ralm_jax.interop.files.safetensors_file import SafetensorsFile
from ralm_jax.interop.files.tensor_source import TensorInfo, TensorSource

SAFETENSORS = 'model.safetensors'
TORCH = 'pytorch_model.bin'
# A torch file is mapped; what has been touched counts as memory until it is mapped anew.
_REMAP_BYTES = 1 << 27


class WeightFiles(TensorSource):
  """Tensors by name, read one at a time from one file or several shards.

  Reads `model.safetensors`, `pytorch_model.bin` or their sharded forms with an `.index.json`. Torch
  files are read with `weights_only`, which builds tensors and plain containers only. Norms named
  `gamma` and `beta` by old checkpoints appear as `weight` and `bias`.
  """

  def __init__(self, directory: str | os.PathLike[str]):
    """Of a folder, or of one safetensors file that is no shard of several.

    Raises FileNotFoundError where there is none, ValueError where a file is damaged.
    """
    self.directory = self.description = os.fspath(directory)
    # Our name to (file, name in it).
    self._index: dict[str, tuple[str, str]] = {}
    self._opened: dict[str, SafetensorsFile | TorchFile] = {}
    self._latest: str | None = None
    if self.directory.endswith('.safetensors') and os.path.isfile(self.directory):
      self._add(self.directory, self._open(self.directory).tensors)
      return
    if not os.path.isdir(self.directory):
      raise FileNotFoundError(
        f'{self.directory} is not a folder; give a Hugging Face checkpoint '
        f'folder with config.json and {SAFETENSORS} or {TORCH}.'
      )
    for name in (SAFETENSORS, TORCH):
      path = os.path.join(self.directory, name)
      if os.path.exists(path):
        self._add(path, self._open(path).tensors)
        return
      if os.path.exists(path + '.index.json'):
        self._add_shards(path + '.index.json')
        return
    raise FileNotFoundError(
      f'{self.directory} holds neither {SAFETENSORS} nor {TORCH} (nor '
      f'their .index.json); found {sorted(os.listdir(self.directory))[:10]}.'
    )

  def _add_shards(self, index: str) -> None:
    weight_map = read_json(index).get('weight_map')
    if not isinstance(weight_map, dict):
      raise ValueError(f"{index} has no object 'weight_map'; fetch it again.")
    for name, file in weight_map.items():
      # Shards lie beside their index.
      if not isinstance(file, str) or os.path.basename(file) != file or not file:
        raise ValueError(
          f'{index} places tensor {name!r} in {file!r}, expected the name of a file beside it.'
        )
    for file in sorted(set(weight_map.values())):
      path = os.path.join(self.directory, file)
      if not os.path.exists(path):
        raise FileNotFoundError(
          f'{index} names {path}, which does not exist; the download is incomplete.'
        )
      found = self._open(path).tensors
      named = [name for name, of in weight_map.items() if of == file]
      if absent := [name for name in named if name not in found]:
        raise ValueError(
          f'{index} places tensor {absent[0]!r} in {path}, which does not '
          'hold it; the files are not of one checkpoint.'
        )
      self._add(path, named)

  def _add(self, path: str, names: Any) -> None:
    for name in names:
      ours = re.sub(r'\.gamma$', '.weight', re.sub(r'\.beta$', '.bias', name))
      self._index[ours if 'LayerNorm' in name else name] = (path, name)

  def _open(self, path: str) -> SafetensorsFile | TorchFile:
    if path not in self._opened:
      byte_streams.check_fetched(path)
      kind = SafetensorsFile if path.endswith('.safetensors') else TorchFile
      self._opened[path] = kind(path)
    return self._opened[path]

  def info(self, name: str) -> TensorInfo:
    path, stored = self._index[name]
    return self._open(path).tensors[stored]

  def __getitem__(self, name: str) -> np.ndarray:
    path, stored = self._index[name]
    if self._latest != path and self._latest is not None:
      self._open(self._latest).release()
    self._latest = path
    return self._open(path).read(stored)


class TorchFile:
  """A file of `torch.save({name: tensor})`, mapped into memory."""

  def __init__(self, path: str):
    self.path = path
    self._read_bytes = 0
    self._mapped = True
    state = self._state
    if not isinstance(state, dict):
      raise ValueError(f'{path} holds a {type(state).__name__}, not tensors by name.')
    self.tensors = {
      name: TensorInfo(tuple(value.shape), _numpy_dtype(value.dtype))
      for name, value in state.items()
      if hasattr(value, 'untyped_storage')
    }

  @functools.cached_property
  def _state(self) -> Any:
    try:
      import torch
    except ImportError as e:
      raise ImportError(
        f'Reading {self.path} needs PyTorch; install it, or convert the file to safetensors.'
      ) from e
    load = functools.partial(torch.load, self.path, map_location='cpu', weights_only=True)
    try:
      try:
        return load(mmap=True)
      except RuntimeError as e:
        # PyTorch before 1.6 wrote another form, which is read whole.
        if 'mmap can only be used' not in str(e):
          raise
        self._mapped = False
        return load()
    except Exception as e:
      raise ValueError(
        f'{self.path} cannot be read as plain weights ({type(e).__name__}); '
        'it is truncated, or holds objects other than tensors, which are '
        'never executed; fetch it again, or convert it to safetensors.'
      ) from e

  def read(self, name: str) -> np.ndarray:
    """One tensor, in memory of its own."""
    import torch

    tensor = self._state[name].detach()
    if tensor.dtype == torch.bfloat16:
      array = tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    else:
      array = tensor.numpy()
    array = np.array(array, order='C')
    self._read_bytes += array.nbytes
    if self._read_bytes > _REMAP_BYTES:
      self.release()
    return array

  def release(self) -> None:
    """Gives back the memory of what has been read; reading goes on."""
    self._read_bytes = 0
    if self._mapped:
      self.__dict__.pop('_state', None)


def _numpy_dtype(dtype: Any) -> np.dtype:
  name = str(dtype).removeprefix('torch.')
  try:
    return np.dtype(getattr(ml_dtypes, name, name))
  except TypeError:
    return np.dtype(f'V{dtype.itemsize}')  # Quantised; NumPy has no such.


def read_json(path: str) -> dict[str, Any]:
  """The JSON object in a file; errors name the file."""
  value = _read_json_value(path)
  if not isinstance(value, dict):
    raise ValueError(f'{path} holds a JSON {type(value).__name__}, not an object.')
  return value


def read_json_list(path: str) -> list[dict[str, Any]]:
  """A JSON array of objects; errors name the file."""
  value = _read_json_value(path)
  if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
    raise ValueError(f'{path} does not hold a JSON array of objects.')
  return value


def _read_json_value(path: str) -> Any:
  try:
    byte_streams.check_fetched(path)
    with open(path, encoding='utf-8') as file:
      return json.load(file)
  except FileNotFoundError:
    raise FileNotFoundError(f'{path} does not exist.') from None
  except UnicodeDecodeError as e:
    raise ValueError(f'{path} is not UTF-8 text: {e.reason}.') from e
  except json.JSONDecodeError as e:
    raise ValueError(f'{path}:{e.lineno} is not valid JSON: {e.msg}.') from e
