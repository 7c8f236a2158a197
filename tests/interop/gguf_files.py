"""Tiny GGUF files, written by the package's own writer."""

from __future__ import annotations

import os
from typing import Any

import gguf
import numpy as np

TYPES = 'F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q4_K Q5_K Q6_K'.split()
# Halves that scale a block of K-quants, by their bytes; the rest may be anything.
_SCALES = {'Q4_K': (0, 4), 'Q5_K': (0, 4), 'Q6_K': (208, 210)}


def quantised(array: np.ndarray, name: str) -> np.ndarray:
  """The bytes of an array as a type; of K-quants, which the package cannot make, random ones."""
  of_type = gguf.GGMLQuantizationType[name]
  if name not in _SCALES:
    return gguf.quants.quantize(np.asarray(array, np.float32), of_type)
  block, size = gguf.GGML_QUANT_SIZES[of_type]
  rng = np.random.default_rng(0)
  blocks = rng.integers(0, 256, (array.size // block, size), np.uint8)
  first, last = _SCALES[name]
  scales = rng.uniform(1e-4, 1e-3, (len(blocks), (last - first) // 2)).astype(np.float16)
  blocks[:, first:last] = scales.view(np.uint8)
  return blocks.reshape(*array.shape[:-1], -1)


def write(
  path: str | os.PathLike[str],
  architecture: str,
  metadata: dict[str, Any],
  tensors: dict[str, np.ndarray],
  types: dict[str, str] | str = 'F32',
) -> None:
  """Writes a file; `types` by tensor, others (and vectors) are F32."""
  writer = gguf.GGUFWriter(path, architecture)
  for key, value in metadata.items():
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    add |= {str: writer.add_string, list: writer.add_array}
    add[type(value)](key, value)
  for name, array in tensors.items():
    kind = types if isinstance(types, str) else types.get(name, 'F32')
    if array.ndim == 1:
      kind = 'F32'
    data = quantised(array, kind)
    plain = kind in ('F32', 'F16')
    raw = None if plain else gguf.GGMLQuantizationType[kind]
    writer.add_tensor(name, np.ascontiguousarray(data), raw_dtype=raw)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
