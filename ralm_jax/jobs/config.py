"""What evaluation jobs are told: checkpoints, tasks and indexes."""

from __future__ import annotations

from collections.abc import Sequence
import contextlib
import dataclasses
import glob
import os
import re
from typing import Any

from ralm_jax.checkpoints import store
from ralm_jax.evaluation import option_fields
from ralm_jax.evaluation.answering import AnswerOptions
from ralm_jax.evaluation.task import (
  EvaluationTask,
  PassageOptions,
  QuestionOptions,
  ReadingOptions,
  ScoringOptions,
)
from ralm_jax.jobs import cells
from ralm_jax.losses import option_types
from ralm_jax.losses.option_types import Amount, Count, Number, Positive
from ralm_jax.retrieval.index_source import IndexSource


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """Which checkpoints to evaluate."""

  path: str  #: MODEL_DIR (its newest), MODEL_DIR/checkpoint_<step>, or a glob of either
  #: In tables and folders; None for `<run>-<step>`, which is put behind it where a glob
  #: finds several.
  name: str | None = None
  index: str | None = None  #: name of the one index to evaluate it with; None for all


@dataclasses.dataclass(frozen=True)
class _Named:
  name: str  #: in tables and folders


@dataclasses.dataclass(frozen=True)
class Task(ScoringOptions, ReadingOptions, PassageOptions, QuestionOptions, _Named):
  """A named EvaluationTask, with its options beside each other as gin files bind them."""

  answering: AnswerOptions = AnswerOptions()

  def __post_init__(self):
    self.evaluation()  # it can be

  def evaluation(self) -> EvaluationTask:
    return option_fields.fill(EvaluationTask, vars(self))


@dataclasses.dataclass(frozen=True)
class Index(IndexSource):
  """An IndexSource with a name; two of one path may compare generations."""

  name: str | None = None  #: in tables and folders; None for the folder's name or the address
  retrieval_address: str | None = None  #: `address` as gin files bind it

  def __post_init__(self):
    super().__post_init__()
    if self.retrieval_address is not None:
      object.__setattr__(self, 'address', self.retrieval_address)
    if self.generation is not None and self.backend == 'device':
      raise ValueError("Index.generation goes with backend = 'process', which keeps several.")
    if (self.path is None) == (self.address is None):
      raise ValueError(
        f'An Index has either a path or a retrieval_address; got {self.path!r} and '
        f'{self.address!r}.'
      )
    self.check_backend()

  @property
  def label(self) -> str:
    if self.name:
      return self.name
    place = self.address or os.path.basename(os.path.abspath(self.path or ''))
    return place if self.generation is None else (f'{place} generation {self.generation}')


@dataclasses.dataclass(frozen=True)
class JobOptions:
  """How cells are worked on."""

  batch_size: Count = 32  #: questions at a time
  retry_for_s: Amount = 30.0  #: how long an unreachable retrieval process is waited for
  #: A worker of another host that gives no sign of life for so long counts as dead.
  claim_timeout_s: Positive = 600.0
  follow_index: bool = False  #: whether a cell stays finished when its index is refreshed
  search_queries: Number = 64  #: questions that the search is timed with; 0 times none
  progress: bool = True  #: show progress bars

  def __post_init__(self):
    option_types.check_fields(self)


@dataclasses.dataclass(frozen=True)
class FoundCheckpoint:
  """A checkpoint that is there."""

  name: str
  directory: str
  step: int
  index: str | None

  @property
  def path(self) -> str:
    return os.path.join(self.directory, f'checkpoint_{self.step}')


def find_checkpoints(
  checkpoints: str | Checkpoint | Sequence[str | Checkpoint],
) -> list[FoundCheckpoint]:
  """The checkpoints that are there.

  FileNotFoundError for a path or glob that finds none, ValueError for two of one name or
  what names no checkpoint.
  """
  found: dict[FoundCheckpoint, None] = {}
  for item in listed('checkpoints', checkpoints, Checkpoint):
    path = os.path.expanduser(item.path)
    paths = [path]
    if glob.has_magic(path) and not os.path.exists(path):
      paths = [p for p in sorted(glob.glob(path)) if _holds_checkpoint(p)]
      if not paths:
        raise FileNotFoundError(f'{path}: no checkpoint matches')
    for each in paths:
      directory, step = store.find(each)
      name = f'{os.path.basename(directory)}-{step}'
      if item.name is not None:
        name = item.name if len(paths) == 1 else f'{item.name}-{name}'
      # One of several names comes under each.
      found.setdefault(FoundCheckpoint(name, directory, step, item.index))
  by_name: dict[str, FoundCheckpoint] = {}
  for one in found:
    other = by_name.setdefault(cells.file_name(one.name), one)
    if other.path != one.path:
      raise ValueError(
        f'{other.path} and {one.path} are both called {one.name}; name them apart with '
        'Checkpoint.name.'
      )
  return list(found)


def _holds_checkpoint(path: str) -> bool:
  """Whether a glob's match is a checkpoint, or a run that has one."""
  if re.fullmatch(r'checkpoint_\d+', os.path.basename(path)):
    return os.path.isdir(path)
  with contextlib.suppress(OSError):
    return not os.path.basename(path).startswith('checkpoint_') and bool(store.find(path))
  return False


def listed(what: str, items: Any, kind: type) -> list[Any]:
  """One thing or several, as a list; a text is the first field of its kind."""
  if isinstance(items, (str, os.PathLike, kind)):
    items = [items]
  if not isinstance(items, Sequence):
    raise ValueError(f'{what} is {items!r}; give a text, {kind.__name__}() or a list of such.')
  for item in items:
    if not isinstance(item, (str, os.PathLike, kind)):
      raise ValueError(f'{what} holds {item!r}, which is neither a text nor {kind.__name__}.')
  return [item if isinstance(item, kind) else kind(os.fspath(item)) for item in items]


def check_names(what: str, names: Sequence[str]) -> None:
  """Raises ValueError where two names would be one folder's."""
  seen: dict[str, str] = {}
  for name in names:
    other = seen.setdefault(cells.file_name(name), name)
    if other is not name:
      raise ValueError(
        f'Two {what} have names that make one folder, {other!r} and {name!r}; give each its own.'
      )
