"""Named tensors of a Hugging Face folder, without executing anything in it."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
import json
import os
from typing import Any

import numpy as np

_SAFETENSORS = 'model.safetensors'
_TORCH = 'pytorch_model.bin'


class WeightFiles(Mapping[str, np.ndarray]):
  """Tensors by name, read one at a time from one file or several shards.

  Reads `model.safetensors`, `pytorch_model.bin` or their sharded forms with an
  `.index.json`. Torch files are read with `weights_only`, which builds tensors
  and plain containers only.
  """

  def __init__(self, directory: str | os.PathLike[str]):
    self.directory = os.fspath(directory)
    if not os.path.isdir(self.directory):
      raise FileNotFoundError(
          f'{self.directory} is not a folder; give a Hugging Face checkpoint '
          f'folder with config.json and {_SAFETENSORS} or {_TORCH}.'
      )
    self._file_of: dict[str, str] = {}
    self._torch_state: tuple[str, dict[str, Any]] | None = None
    for name in (_SAFETENSORS, _TORCH):
      path = os.path.join(self.directory, name)
      if os.path.exists(path):
        self._file_of = {key: path for key in self._names(path)}
        return
      index = path + '.index.json'
      if os.path.exists(index):
        weight_map = read_json(index)['weight_map']
        self._file_of = {
            key: os.path.join(self.directory, file)
            for key, file in weight_map.items()
        }
        missing = sorted(
            {f for f in self._file_of.values() if not os.path.exists(f)}
        )
        if missing:
          raise FileNotFoundError(
              f'{index} names {missing[0]}, which does not exist; the '
              'download is incomplete.'
          )
        return
    raise FileNotFoundError(
        f'{self.directory} holds neither {_SAFETENSORS} nor {_TORCH} (nor '
        f'their .index.json); found {sorted(os.listdir(self.directory))[:10]}.'
    )

  def _names(self, path: str) -> list[str]:
    if path.endswith('.safetensors'):
      with self._safe_open(path) as file:
        return list(file.keys())
    return list(self._torch_file(path))

  def _safe_open(self, path: str):
    import safetensors

    try:
      return safetensors.safe_open(path, framework='np')
    except safetensors.SafetensorError as e:
      raise ValueError(
          f'{path} is truncated or not a safetensors file ({e}); fetch it again.'
      ) from e

  def _torch_file(self, path: str) -> dict[str, Any]:
    if self._torch_state is None or self._torch_state[0] != path:
      try:
        import torch
      except ImportError as e:
        raise ImportError(
            f'Reading {path} needs PyTorch; install it, or convert the file to '
            'safetensors.'
        ) from e
      try:
        state = torch.load(
            path, map_location='cpu', weights_only=True, mmap=True
        )
      except Exception as e:
        raise ValueError(
            f'{path} cannot be read as plain weights ({type(e).__name__}); it '
            'is truncated, or holds objects other than tensors, which are '
            'never executed.'
        ) from e
      self._torch_state = (path, state)
    return self._torch_state[1]

  def __getitem__(self, name: str) -> np.ndarray:
    path = self._file_of[name]
    if path.endswith('.safetensors'):
      with self._safe_open(path) as file:
        return file.get_tensor(name)
    return self._torch_file(path)[name].float().numpy()

  def __contains__(self, name: object) -> bool:
    return name in self._file_of

  def __iter__(self) -> Iterator[str]:
    return iter(self._file_of)

  def __len__(self) -> int:
    return len(self._file_of)


def read_json(path: str) -> dict[str, Any]:
  """The JSON object in a file; errors name the file."""
  try:
    with open(path, encoding='utf-8') as file:
      return json.load(file)
  except FileNotFoundError:
    raise FileNotFoundError(f'{path} does not exist.') from None
  except json.JSONDecodeError as e:
    raise ValueError(f'{path}:{e.lineno} is not valid JSON: {e.msg}.') from e
