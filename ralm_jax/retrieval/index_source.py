"""Which index passages come from, and how it is searched."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import os
from typing import Any, Self

from ralm_jax.losses import option_types
from ralm_jax.losses.option_types import Amount, Count, Number

BACKENDS = ('process', 'device')
# Fields whose flags have other names.
_FLAGS = {'path': 'index', 'address': 'retrieval_address'}


@dataclasses.dataclass(frozen=True)
class IndexSource:
  """An index, served by a process or lying on this program's own devices."""

  path: str | os.PathLike[str] | None = None  #: INDEX folder, for a process of our own; or
  address: str | None = None  #: 'host:port' of a running process
  corpus: str | os.PathLike[str] | None = None  #: CORPUS; None takes the one the index names
  generation: Count | None = None  #: the only one searched; None for whichever is current
  backend: str = 'process'  #: or 'device' for exact search on this program's devices
  device_dtype: str = 'bfloat16'  #: of the embeddings there; or 'float16', 'float32'
  approximate: bool = False  #: approximate top-k there, which a TPU is faster at
  nprobe: Count | None = None  #: inverted lists visited, of our own process
  rerank: Number | None = None  #: candidates re-ranked exactly, of our own process
  threads: Count | None = None  #: of FAISS, of our own process
  retry_for_s: Amount = 30.0  #: how long an unreachable process is waited for

  def __post_init__(self):
    option_types.check_fields(self)

  @classmethod
  def from_flags(cls, values: Mapping[str, Any]) -> Self:
    """Of `--index`, `--retrieval_address`, and flags that are named as the fields."""
    fields = {field.name: _FLAGS.get(field.name, field.name) for field in dataclasses.fields(cls)}
    return cls(**{name: values[flag] for name, flag in fields.items() if flag in values})

  @property
  def flags_given(self) -> list[str]:
    """Of what differs from its default, but for waiting, the flags."""
    return [
      _FLAGS.get(field.name, field.name)
      for field in dataclasses.fields(IndexSource)
      if field.name != 'retry_for_s' and getattr(self, field.name) != field.default
    ]

  @property
  def choices(self) -> dict[str, Any]:
    """What of it decides answers, beside the state of the index that it leads to."""
    apart = ('address', 'threads', 'retry_for_s')
    fields = (field.name for field in dataclasses.fields(IndexSource) if field.name not in apart)
    return {name: getattr(self, name) for name in fields}

  def check_backend(self) -> None:
    """Raises ValueError for a backend that cannot be, or not at that address."""
    if self.backend not in BACKENDS:
      raise ValueError(
        f'The retrieval backend is one of {", ".join(BACKENDS)}, not {self.backend!r}.'
      )
    if self.backend == 'device' and self.address is not None:
      raise ValueError(
        "The backend 'device' searches an index folder on this program's own devices; give the "
        f'folder (--index) in place of the address {self.address}.'
      )
