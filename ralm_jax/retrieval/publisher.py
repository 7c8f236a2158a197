"""Refreshing an index with the passage encoder of now (Atlas, section 2.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import functools
import hashlib
import json
import logging
import os
import threading
import time
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from ralm_jax.files import progress as progress_bars
from ralm_jax.models.retrieval_lm import RetrievalLM
from ralm_jax.retrieval import embedding
from ralm_jax.retrieval.assembler import Assembler
from ralm_jax.retrieval.backend import SearchBackend
from ralm_jax.retrieval.embedding import PassageEmbedder
from ralm_jax.retrieval.lockstep import Lockstep
from ralm_jax.training import partitioning
from ralm_jax.training.multihost import Agreement
from ralm_jax.training.partitioning import Partitioner
from retrieval_service.results import ServerStatus

PyTree = Any
# In the metadata of a generation that a run published: the one it began with.
STARTED_WITH = 'run_started_with'
_BUILD_TIMEOUT_S = 48 * 3600.0
_ATTEMPTS = 5


@dataclasses.dataclass(frozen=True)
class RefreshSchedule:
  """At which steps to refresh."""

  #: (start, end, rate): at `start`, and every `rate` steps from there before `end`; None is open.
  #: The first range that holds a step decides.
  ranges: tuple[tuple[int, int | None, int], ...] = ()

  @classmethod
  def parse(cls, schedule: str | int | None) -> RefreshSchedule:
    """Reads '0-1000:500,1000-10000:2000', a rate from step 0 on, or None (or -1) for never.

    A malformed schedule is a ValueError that names the part.
    """
    if schedule is None or str(schedule).strip() in ('-1', 'None'):
      return cls()
    text = str(schedule).strip()
    if isinstance(schedule, bool) or not text:
      raise ValueError(f'A refresh schedule cannot be {schedule!r}; {_SYNTAX}')
    if text.isdecimal():
      return cls((_checked(text, '0', None, text),))
    ranges = []
    for part in text.split(','):
      bounds, colon, rate = part.partition(':')
      start, dash, end = bounds.partition('-')
      if not colon or not dash:
        raise ValueError(
          f'The refresh schedule {text!r} has the part {part.strip()!r}, '
          f'which is no range; {_SYNTAX}'
        )
      ranges.append(_checked(part.strip(), start, end, rate))
    return cls(tuple(ranges))

  def __bool__(self) -> bool:
    return bool(self.ranges)

  def fires(self, step: int) -> bool:
    """Whether to refresh before the step is taken."""
    for start, end, rate in self.ranges:
      if start <= step and (end is None or step < end):
        return (step - start) % rate == 0
    return False


_SYNTAX = "write START-END:RATE,… such as '0-1000:500,1000-10000:2000', or RATE."


def _checked(part: str, start: str, end: str | None, rate: str) -> tuple[int, int | None, int]:
  """The range of numbers that a part of a schedule means."""
  numbers = [text.strip() for text in (start, end or '0', rate)]
  first, last, every = map(int, numbers) if all(map(str.isdecimal, numbers)) else (-1, -1, -1)
  if first < 0:
    problem = 'whose numbers are not all whole'
  elif every < 1:
    problem = 'whose rate is not at least 1'
  elif end is not None and last <= first:
    problem = 'which ends before it starts'
  else:
    return first, None if end is None else last, every
  raise ValueError(f'The refresh schedule has the part {part!r}, {problem}; {_SYNTAX}')


@dataclasses.dataclass(frozen=True)
class Refreshed:
  """What a refresh did: `passages` is 0 where the embeddings were there already."""

  generation: int
  passages: int
  seconds: float

  @property
  def metrics(self) -> dict[str, float]:
    result = {'refresh/generation': float(self.generation), 'refresh/seconds': self.seconds}
    if self.passages:
      result['refresh/passages_per_second'] = self.passages / self.seconds
    return result


class IndexPublisher:
  """Embeds a corpus on all devices and has the retrieval process serve it."""

  def __init__(
    self,
    client: SearchBackend,
    model: RetrievalLM,
    partitioner: Partitioner,
    assembler: Assembler,
    *,
    index: str | os.PathLike[str] | None = None,
    batch_size: int = 256,
    chunk_size: int | None = None,
    progress: bool = True,
  ):
    """Compiles nothing yet.

    Args:
      client: of the index; on several processes each has one.
      index: the INDEX folder, where it is on this machine.
      batch_size: passages at a time, over all devices.
      chunk_size: passages a message at most; None for 32 batches.
    """
    if assembler.store is None:
      raise ValueError('There is no corpus to embed.')
    self._client = client
    self._store = assembler.store
    self._index = index
    processes = jax.process_count()
    if processes > 1:
      # Each on its own devices and at its own pace.
      partitioner = dataclasses.replace(partitioner, devices=list(partitioner.mesh.local_devices))
    self._partitioner = partitioner
    self._embedder = PassageEmbedder(
      model, partitioner, assembler, batch_size=max(1, batch_size // processes)
    )
    self._dim = model.retriever.embedding_dim
    self._chunk_size = chunk_size or 32 * batch_size
    self._progress = progress and jax.process_index() == 0
    self._lockstep = Lockstep(processes > 1)
    # The others wait for a build, which trains and adds at lowest priority.
    self._agreement = Agreement(timeout_s=_BUILD_TIMEOUT_S)

  def publish(self, params: PyTree, key: str, **description: Any) -> Refreshed:
    """Embeds and builds; every process calls it, and none returns before it is served.

    What is served is left alone if it comes of the same encoder.

    Args:
      params: `{'retriever': ...}` at least, on the mesh.
      key: names the build, together with corpus and encoder: a finished one of that name is served
        instead of being made again.
      **description: for the index's metadata.

    Raises:
      ValueError: the embeddings cannot be stored, or the process refuses them.
      RuntimeError: the build failed, on a full disk for one.
      ConnectionError: the process stays away or dies again and again.
    """
    start = time.monotonic()
    params = embedding.gathered_retriever(params)
    fingerprint = embedding.retriever_fingerprint(params)
    if jax.process_count() > 1:
      params = jax.device_put(params, self._partitioner.replicated)
    status = None
    with self._agreement.together():
      # The edits first: whatever they put is in the corpus that is read next.
      if jax.process_index() == 0:
        status = self._client.status()
      self._store.reload()
      rows = embedding.live_rows(self._store)
    counts = self._lockstep.gather(len(rows))
    if np.ptp(counts):
      raise RuntimeError(
        f'The processes read corpora of different sizes ({counts.tolist()} '
        'passages); was one just added to? The same command goes on.'
      )
    served = status and embedding.is_of(status.metadata, self._store, fingerprint)
    generation = self._lockstep.of_first(status.generation if status and served else 0)
    passages = 0
    if not generation:
      header = self._header(status, fingerprint, key, description) if status else None
      generation = self._upload(params, rows, header)
      passages = len(rows)
    with self._agreement.together():
      if jax.process_index():
        # What it searches may serve the same folder on its own.
        self._client.reload()
    return Refreshed(generation, passages, time.monotonic() - start)

  def _header(
    self, status: ServerStatus, fingerprint: str, key: str, description: Mapping[str, Any]
  ) -> dict[str, Any]:
    """The arguments of `RetrievalClient.build`."""
    own = embedding.describe(self._store, fingerprint, self._index)
    if self._index is None:
      # Where the corpus is, the server's machine may see otherwise.
      own['corpus'] = status.metadata.get('corpus', own['corpus'])
    # Of another embedding, of another run.
    strange = ('passages_per_second', STARTED_WITH)
    served = {name: value for name, value in status.metadata.items() if name not in strange}
    options = status.options
    named_by = [key, fingerprint, self._store.fingerprint, options and options.to_dict()]
    identity = json.dumps(named_by)
    return {
      'dim': self._dim,
      'options': options,
      'metadata': {**served, **own, **description},
      'edits_applied': status.edits,
      'build_id': hashlib.blake2b(identity.encode(), digest_size=16).hexdigest(),
    }

  def _upload(self, params: PyTree, rows: np.ndarray, header: dict[str, Any] | None) -> int:
    """Until the build is acknowledged, also by a process that was restarted."""
    for attempt in range(1, _ATTEMPTS + 1):
      generation = 0
      chunks = _Chunks(functools.partial(self._chunks, params, rows))
      with self._agreement.together():
        try:
          if header is not None:
            generation = self._client.build(chunks, **header)
        except ConnectionError as error:
          if attempt == _ATTEMPTS:
            raise
          logging.warning('The refresh begins again: %s', error)
        finally:
          # The first's end is the end for all; the others come here at once and embed their parts.
          chunks.finish(stop=jax.process_index() == 0)
        if header is not None and not generation:
          self._client.status()  # waits for the process
      generation = self._lockstep.of_first(generation)
      if generation:
        return generation
    raise AssertionError('unreachable')

  def _chunks(
    self, params: PyTree, rows: np.ndarray, stopping: threading.Event
  ) -> Iterator[tuple[np.ndarray | None, np.ndarray]]:
    """Pairs of ids and float16 [n, dim], the same on every process."""
    processes = jax.process_count()
    parts = list(embedding.chunks(rows, self._chunk_size))

    def own(part: np.ndarray) -> np.ndarray:
      if processes == 1:
        return part
      # As many on each process; the last repeats a row to fill up.
      count = -(-len(part) // processes)
      index = np.arange(count) + jax.process_index() * count
      return part[np.minimum(index, len(part) - 1)]

    with progress_bars.bar(
      total=len(rows), unit=' passages', desc='refreshing the index', show=self._progress
    ) as bar:
      stream = self._embedder.stream(params, map(own, parts))
      for part, embedded in zip(parts, stream):
        with np.errstate(over='ignore'):
          embedded = embedded.astype(np.float16)
        stop = stopping.is_set()
        if processes > 1:
          with partitioning.dispatching():
            embedded, stops = multihost_utils.process_allgather((embedded, np.asarray(stop)))
          embedded = embedded.reshape(-1, embedded.shape[-1])[: len(part)]
          stop = bool(np.any(stops))
        if stop:
          return
        yield embedding.ids_of(part, rows), embedding.as_stored(embedded, part)
        bar.update(len(part))


class _Chunks:
  """An iterator that a thread of gRPC reads, and another one may finish."""

  def __init__(self, make: Callable[[threading.Event], Iterator[Any]]):
    self._stopping = threading.Event()
    self._lock = threading.Lock()
    self._chunks = make(self._stopping)

  def __iter__(self) -> _Chunks:
    return self

  def __next__(self) -> Any:
    with self._lock:
      return next(self._chunks)

  def finish(self, *, stop: bool) -> None:
    """Goes through what is left, which all processes exchange; with `stop`, as little as can be."""
    if stop:
      self._stopping.set()
    for _ in self:
      pass
