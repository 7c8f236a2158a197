"""Refresh: follow a run's checkpoints and publish its index anew from each.

A second job beside `ralm train` with RetrievalConfig.follow_current = True
(gin: FOLLOW_CURRENT), on devices of its own.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from typing import Any, Protocol

import jax
import orbax.checkpoint as ocp

from ralm_jax.checkpoints import store
from ralm_jax.checkpoints.specification import Specification
from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.losses.array_types import PyTree
from ralm_jax.retrieval import connect, embedding, prompt_assembler, retriever
from ralm_jax.retrieval.embedding import Origin, PassageEmbedder
from ralm_jax.retrieval.publisher import IndexPublisher, Refreshed
from ralm_jax.runs import opening
from ralm_jax.training.partitioning import Partitioner
from retrieval_service.client import RetrievalClient
from retrieval_service.generations import GenerationStore
from retrieval_service.live import LiveView

_MAX_FAILURES = 3


def refresh(
  *,
  model_dir: str,
  index: str | None = None,
  retrieval_address: str | None = None,
  corpus: str | None = None,
  every_steps: int = 1,
  poll_s: float = 10.0,
  once: bool = False,
  stop_after_steps: int | None = None,
  batch_size: int = 256,
  keep_generations: int = 2,
  retry_for_s: float = 300.0,
  partitioner: Partitioner | None = None,
  progress: bool = True,
) -> int:
  """Embeds the corpus with each new checkpoint's encoder and publishes it.

  Stopped at any moment, it goes on when called again: a checkpoint whose encoder is served already
  is passed over. Where checkpoints come faster than a corpus is embedded, it takes the newest.

  With `index` a process that serves that folder notices; `keep_generations` stay in it, and pinned
  ones. Publishes when the run is `every_steps` further; returns how many generations it published.

  Raises:
    ValueError: what does not fit together, or a checkpoint that stays unreadable.
    FileNotFoundError: there is no such index or corpus, or no checkpoint to publish `once`.
    ConnectionError: there is no retrieval process at the address.
  """
  if (index is None) == (retrieval_address is None):
    raise ValueError(
      'Give either the INDEX folder (--index) or the address of the retrieval process that serves '
      'it (--retrieval_address).'
    )
  if once:
    store.find(model_dir)
  with contextlib.ExitStack() as stack:
    if index is not None:
      connect.check_index_folder(index)
      target: _Target = _IndexFolder(
        index, corpus, batch_size=batch_size, keep=keep_generations, progress=progress
      )
    else:
      assert retrieval_address is not None
      client = stack.enter_context(RetrievalClient(retrieval_address, retry_for_s=retry_for_s))
      target = _ServedIndex(client, corpus, batch_size=batch_size, progress=progress)
    follower = _Follower(
      model_dir,
      target,
      partitioner or Partitioner(),
      every_steps=every_steps,
      stop_after_steps=stop_after_steps,
    )
    while True:
      published = follower.look(at_once=once)
      if once and published or follower.finished:
        return follower.published
      if not published:
        time.sleep(poll_s)


class _Target(Protocol):
  """Where new generations go."""

  def metadata(self) -> dict[str, Any]:
    """Of what is current."""

  def publish(
    self, spec: Specification, partitioner: Partitioner, params: PyTree, run: str, step: int
  ) -> Refreshed:
    """Embeds with `{'retriever': ...}`, unless it is current already."""


class _ServedIndex:
  """A retrieval process at an address."""

  def __init__(
    self, client: RetrievalClient, corpus: str | None, *, batch_size: int, progress: bool
  ):
    self._client = client
    status = client.status()
    client.stay_with(status.index_id)  # A swap must not redirect the uploads.
    self._store = PassageStore.open(corpus or connect.find_corpus(status.metadata))
    self._batch_size = batch_size
    self._progress = progress
    self._publisher: IndexPublisher | None = None

  def metadata(self) -> dict[str, Any]:
    status = self._client.status()
    self._store.reload()
    retriever.check_index_of_corpus(status.metadata, status.next_id, self._store)
    return status.metadata

  def publish(self, spec, partitioner, params, run, step):
    if self._publisher is None:
      opening.check_dimension(spec, self._client.status().dim)
      self._publisher = IndexPublisher(
        self._client,
        spec.model,
        partitioner,
        prompt_assembler.assembler_of(spec, self._store),
        batch_size=self._batch_size,
        progress=self._progress,
      )
    return self._publisher.publish(
      params, f'{run} {step}', checkpoint=f'{run}/checkpoint_{step}', run=run, step=step
    )


class _IndexFolder:
  """An INDEX folder, whoever serves it."""

  def __init__(self, index: str, corpus: str | None, *, batch_size: int, keep: int, progress: bool):
    self._index = index
    self._folder = GenerationStore(index)
    self._store = PassageStore.open(corpus or connect.find_corpus(self._current().metadata, index))
    self._batch_size = batch_size
    self._keep = keep
    self._progress = progress
    self._embedder: PassageEmbedder | None = None

  def _current(self) -> LiveView:
    current = self._folder.open_live(verify_checksums=False)
    if current is None:
      raise FileNotFoundError(f'{self._index} holds no generation of an index any more.')
    return current

  def metadata(self) -> dict[str, Any]:
    current = self._current()
    self._store.reload()
    retriever.check_index_of_corpus(current.metadata, self._folder.next_id(), self._store)
    return current.metadata

  def publish(self, spec, partitioner, params, run, step):
    current = self._current()
    if self._embedder is None:
      opening.check_dimension(spec, current.dim)
      self._embedder = PassageEmbedder(
        spec.model,
        partitioner,
        prompt_assembler.assembler_of(spec, self._store),
        batch_size=self._batch_size,
      )
    start = time.monotonic()
    passages = 0
    number = current.number
    self._store.reload()
    fingerprint = embedding.retriever_fingerprint(params)
    if not embedding.is_of(current.metadata, self._store, fingerprint):
      # Interrupted, it goes on where it was.
      number = embedding.build_generation(
        self._embedder,
        params,
        self._store,
        self._index,
        current.generation.manifest.options,
        origin=Origin(f'{run}/checkpoint_{step}', run, step),
        progress=self._progress,
      )
      passages = len(self._store)
      self._folder.prune(self._keep)
    return Refreshed(number, passages, time.monotonic() - start)


class _Follower:
  """Publishes the newest checkpoint of a run, time and again."""

  def __init__(
    self,
    model_dir: str,
    target: _Target,
    partitioner: Partitioner,
    *,
    every_steps: int,
    stop_after_steps: int | None,
  ):
    if every_steps < 1:
      raise ValueError(f'every_steps must be at least 1, not {every_steps}.')
    self._run = os.path.realpath(model_dir)
    self._target = target
    self._partitioner = partitioner
    self._every_steps = every_steps
    self._stop_after_steps = stop_after_steps
    metadata = target.metadata()
    own = metadata.get('run') == self._run
    self._last: int | None = metadata.get('step') if own else None
    self._failures = 0
    self._said = ''
    self.published = 0

  @property
  def finished(self) -> bool:
    """Whether there is nothing more to wait for."""
    return (
      self._stop_after_steps is not None
      and self._last is not None
      and self._last >= self._stop_after_steps
    )

  def look(self, *, at_once: bool = False) -> bool:
    """Publishes the newest checkpoint if it is due; False to look again later."""
    step = self._newest()
    if step is None or not (at_once or self._is_due(step)):
      self._say_what_is_missing(step)
      return False
    try:
      spec = Specification.load(self._run)
      params = load_retriever(self._run, step, spec.model, self._partitioner)
    except Exception as error:
      # The run removes old checkpoints, maybe while one is read.
      self._failures += 1
      if self._failures >= _MAX_FAILURES and step == self._newest():
        reason = (str(error).splitlines() or [''])[0][:200]
        raise ValueError(
          f'{self._run}/checkpoint_{step} cannot be read ({type(error).__name__}: {reason}). It is '
          'damaged, or of another model; remove it, and an older one is taken.'
        ) from error
      logging.info('checkpoint_%d cannot be read (%s); looking again.', step, type(error).__name__)
      return False
    self._failures = 0
    try:
      done = self._target.publish(spec, self._partitioner, params, self._run, step)
    except ConnectionError as error:
      logging.warning('checkpoint_%d is not published yet: %s', step, error)
      return False
    self._last = step
    self._said = ''
    if done.passages:
      self.published += 1
      logging.info(
        f'checkpoint_{step} is generation {done.generation}: {done.passages} passages in '
        f'{done.seconds:.1f} s ({done.passages / done.seconds:.0f} passages/s).'
      )
    else:
      logging.info(
        'checkpoint_%d has the encoder that is served, generation %d.', step, done.generation
      )
    return True

  def _newest(self) -> int | None:
    try:
      return store.find(self._run)[1]
    except FileNotFoundError:
      return None

  def _is_due(self, step: int) -> bool:
    if step == self._last:
      return False
    if self._last is None or step < self._last:  # the run began anew
      return True
    last = self._stop_after_steps
    return step - self._last >= self._every_steps or (last is not None and step >= last)

  def _say_what_is_missing(self, step: int | None) -> None:
    """Once, until something has changed."""
    if step is None or self._last is None:
      message = f'Waiting for a first checkpoint in {self._run}.'
    else:
      message = (
        f'checkpoint_{self._last} is published; waiting for one of step '
        f'{self._last + self._every_steps} or later in {self._run}.'
      )
    if message != self._said:
      logging.info('%s', message)
      self._said = message


def load_retriever(directory: str, step: int, model: Any, partitioner: Partitioner) -> PyTree:
  """`{'retriever': ...}` of a checkpoint; FileNotFoundError where that is being removed."""
  path = os.path.join(directory, f'checkpoint_{step}', 'state')
  files = _count_files(path)
  boxed = jax.eval_shape(model.init, jax.random.key(0))['retriever']
  abstract = {'params': {'retriever': partitioner.abstract(boxed)}}
  with ocp.PyTreeCheckpointer() as checkpointer:
    restored = checkpointer.restore(path, args=store.restore_args(abstract, partial=True))
  # Whether all was there while it was read.
  if not files or _count_files(path) != files:
    raise FileNotFoundError(f'{path} is being removed.')
  store.check_finite(restored['params'], os.path.dirname(path))
  return restored['params']


def _count_files(path: str) -> int:
  return sum(len(files) for _, _, files in os.walk(path))
