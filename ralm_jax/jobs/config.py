"""What evaluation jobs are told: checkpoints, tasks and indexes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
import glob
import os
import re
from typing import Any

from ralm_jax.checkpoints import store
from ralm_jax.evaluation.answering import AnswerOptions
from ralm_jax.jobs import cells
from ralm_jax.retrieval import connect


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """Which checkpoints to evaluate.

  Attributes:
    path: MODEL_DIR (its newest), MODEL_DIR/checkpoint_<step>, or a glob of
      either.
    name: in tables and folders; None for `<run>-<step>`. Where a glob finds
      several, `-<run>-<step>` is put behind it.
    index: name of the one index to evaluate it with; None for all.
  """

  path: str
  name: str | None = None
  index: str | None = None


@dataclasses.dataclass(frozen=True)
class Task:
  """Questions and how they are answered: arguments of `eval.evaluate`.

  Attributes:
    name: in tables and folders.
    questions: files or globs.
    record_format: of the files.
    metrics: family of metrics; None for that of the format.
    passages_from: 'index', 'file' or 'none' (closed-book).
    retrieve_only: without a reader.
    passage_effects: also each passage's effect on the answer's likelihood.
    with_loss: also the loss of the targets.
    n_passages: None takes the model's own number.
    n_candidates: fetched from a stale index and re-ranked; None does not.
    rerank_chunk: candidates encoded at a time.
    search_filter: what exclusions of a question drop.
    text: fields of TextConfig to use instead of the checkpoint's own.
    permutations: of the options of a multiple choice.
    num_examples: only the first so many questions.
    shots: only so many questions, chosen by hash.
    shots_seed: of that choice.
    require_answers: whether a question without answers is an error.
    on_error: 'raise' or 'skip' malformed records.
    answering: how answers are decoded.
  """

  name: str
  questions: str | Sequence[str]
  record_format: str = 'qa'
  metrics: str | None = None
  passages_from: str = 'index'
  retrieve_only: bool = False
  passage_effects: bool = False
  with_loss: bool = False
  n_passages: int | None = None
  n_candidates: int | None = None
  rerank_chunk: int | None = None
  search_filter: str = 'passage'
  text: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
  permutations: str = 'cyclic'
  num_examples: int | None = None
  shots: int | None = None
  shots_seed: int = 0
  require_answers: bool = True
  on_error: str = 'raise'
  answering: AnswerOptions = AnswerOptions()

  def arguments(self) -> dict[str, Any]:
    """Of `eval.evaluate`."""
    values = {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
      if field.name not in ('name', 'answering')
    }
    answering = dict(vars(self.answering))
    decoding = dataclasses.asdict(answering.pop('decoding'))
    return {**values, **answering, **decoding}


@dataclasses.dataclass(frozen=True)
class Index:
  """Where passages come from.

  Attributes:
    path: INDEX folder; a process is started for it. Or
    retrieval_address: 'host:port' of a running one.
    name: in tables and folders; None for the folder's name or the address.
    corpus: None takes the one the index names.
    nprobe: inverted lists visited, of our own process.
    rerank: candidates re-ranked exactly, of our own process.
    threads: FAISS threads, of our own process.
    backend: 'process', or 'device' for exact search on this program's devices.
    device_dtype: of the embeddings there.
    generation: of the index; None for the current one. Two entries of one path
      compare generations.
  """

  path: str | None = None
  retrieval_address: str | None = None
  name: str | None = None
  corpus: str | None = None
  nprobe: int | None = None
  rerank: int | None = None
  threads: int | None = None
  backend: str = 'process'
  device_dtype: str = 'bfloat16'
  generation: int | None = None

  def __post_init__(self):
    if self.generation is not None and self.backend == 'device':
      raise ValueError("Index.generation goes with backend = 'process', which keeps several.")
    if (self.path is None) == (self.retrieval_address is None):
      raise ValueError(
        'An Index has either a path or a retrieval_address; got '
        f'{self.path!r} and {self.retrieval_address!r}.'
      )
    connect.check_backend(self.backend, self.retrieval_address)

  @property
  def label(self) -> str:
    if self.name:
      return self.name
    place = self.retrieval_address or os.path.basename(os.path.abspath(self.path))
    return place if self.generation is None else (f'{place} generation {self.generation}')


@dataclasses.dataclass(frozen=True)
class JobOptions:
  """How cells are worked on.

  Attributes:
    batch_size: questions at a time.
    retry_for_s: how long an unreachable retrieval process is waited for.
    claim_timeout_s: a worker of another host that gives no sign of life for so
      long counts as dead.
    follow_index: whether a cell stays finished when its index is refreshed.
    search_queries: questions that the search is timed with; 0 times none.
    progress: show progress bars.
  """

  batch_size: int = 32
  retry_for_s: float = 30.0
  claim_timeout_s: float = 600.0
  follow_index: bool = False
  search_queries: int = 64
  progress: bool = True


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

  Raises:
    FileNotFoundError: a path or glob that finds none.
    ValueError: two of one name, or what names no checkpoint.
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
        f'{other.path} and {one.path} are both called {one.name}; name them '
        'apart with Checkpoint.name.'
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
  """One thing or several, as a list of that kind.

  Args:
    what: they are, for messages.
    items: of the kind, or texts, which are its first field; one or a sequence.
    kind: Checkpoint or Index.

  Raises:
    ValueError: something else.
  """
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
