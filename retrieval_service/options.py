"""How an index is built and searched: one frozen description, free of FAISS."""

from __future__ import annotations

import argparse
from collections.abc import Callable
import dataclasses
from typing import Any

FRIENDLY_TYPES = ('flat', 'pq', 'ivf_flat', 'ivf_pq')


@dataclasses.dataclass(frozen=True)
class IndexOptions:
  """The index to build. Similarity is always the inner product."""

  #: 'flat', 'pq', 'ivf_flat', 'ivf_pq', or any FAISS factory string such as 'OPQ64_256,PQ64np' or
  #: 'PCAR128,SQ4'. The fields down to `opq` shape the friendly names only.
  index_type: str = 'flat'
  #: code size of 'pq' and 'ivf_pq'; divides the dimension unless `opq` is set
  bytes_per_vector: int = 64
  #: inverted lists of 'ivf_*'. None: about 4 sqrt(count), with at least 39 training points for
  #: each.
  nlist: int | None = None
  #: rotates (and reduces) the space before quantising: better recall for minutes of training
  opq: bool = False
  nprobe: int | None = None  #: inverted lists visited a query. None: max(16, 2 sqrt(nlist)).
  #: candidates scored again from the stored embeddings. None: max(4k, 100), and just over k where
  #: the index is exact already. 0: none, so that scores are the index's own approximation.
  rerank: int | None = None
  #: at most so many vectors train the index, drawn evenly. None: what the codebooks can use, 64 a
  #: list and at least 65,536.
  train_size: int | None = None

  def __post_init__(self):
    if not isinstance(self.index_type, str) or not self.index_type.strip():
      raise ValueError(
        f'index_type: expected one of {", ".join(FRIENDLY_TYPES)} or a FAISS '
        f'factory string, found {self.index_type!r}'
      )
    for name in ('bytes_per_vector', 'nlist', 'nprobe', 'rerank', 'train_size'):
      value = getattr(self, name)
      if value is None and name != 'bytes_per_vector':
        continue
      least = 0 if name == 'rerank' else 1
      if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f'{name}: expected an integer of at least {least}, found {value!r}')

  @property
  def is_friendly(self) -> bool:
    """Whether `index_type` is one of our names, not a factory string."""
    return self.index_type in FRIENDLY_TYPES

  def to_dict(self) -> dict[str, Any]:
    """The options as JSON can hold them."""
    return dataclasses.asdict(self)

  @classmethod
  def from_dict(cls, fields: dict[str, Any]) -> IndexOptions:
    """The inverse of `to_dict`; an unknown field is a ValueError."""
    known = {field.name for field in dataclasses.fields(cls)}
    unknown = sorted(set(fields) - known)
    if unknown:
      raise ValueError(
        f'unknown index option {", ".join(unknown)}; known: {", ".join(sorted(known))}'
      )
    return cls(**fields)


def _flag(default: Any, meaning: str) -> Any:
  return dataclasses.field(default=default, metadata={'help': meaning})


def _at_least(least: int) -> Callable[[str], int]:
  def parse(text: str) -> int:
    try:
      value = int(text)
    except ValueError:
      value = least - 1
    if value < least:
      raise argparse.ArgumentTypeError(f'must be a whole number, at least {least}, not {text}')
    return value

  return parse


_count, _number = _at_least(1), _at_least(0)


@dataclasses.dataclass(frozen=True)
class ServingOptions:
  """How a process serves an index; `add_flags` makes a flag of each.

  A build takes one thread fewer, which keeps searches meanwhile as quick as ever.
  """

  nprobe: int | None = _flag(None, "inverted lists a query visits (default: the index's own)")
  rerank: int | None = _flag(
    None, "candidates scored exactly; 0 for none (default: the index's own)"
  )
  threads: int | None = _flag(None, 'threads a search uses (default: all cores)')
  build_threads: int | None = _flag(
    None, 'threads a build uses (default: one fewer than --threads)'
  )
  verify_checksums: bool = _flag(
    True, 'read an index whole before it is first served (default: %(default)s)'
  )
  keep_generations: int = _flag(
    2, 'newest generations kept after a build, besides pinned ones (default: %(default)s)'
  )

  @classmethod
  def add_flags(cls, parser: argparse.ArgumentParser) -> None:
    for field in dataclasses.fields(cls):
      switch = isinstance(field.default, bool)
      how: Any = {'action': argparse.BooleanOptionalAction} if switch else {'type': _count}
      if field.name == 'rerank':
        how['type'] = _number
      parser.add_argument(
        f'--{field.name}', default=field.default, help=field.metadata['help'], **how
      )

  @classmethod
  def from_flags(cls, arguments: argparse.Namespace) -> ServingOptions:
    return cls(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(cls)})
