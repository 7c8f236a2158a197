"""All that a training run has to do with its index."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools
import logging

import jax

from ralm_jax.checkpoints.specification import Specification
from ralm_jax.checkpoints.store import Checkpoints
from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.evaluation.task import PassageOptions
from ralm_jax.losses.array_types import PyTree
from ralm_jax.retrieval import embedding, prompt_assembler, retriever as retriever_lib
from ralm_jax.retrieval.augmenter import Augmentation, BatchOptions, RetrievalAugmenter
from ralm_jax.retrieval.connect import Connection
from ralm_jax.retrieval.embedding import Origin, PassageEmbedder
from ralm_jax.retrieval.publisher import IndexPublisher
from ralm_jax.retrieval.retriever import PassageRetriever
from ralm_jax.retrieval.staleness import CurrentFollower, GenerationSteps
from ralm_jax.runs import opening
from ralm_jax.runs.pinning import Pins
from ralm_jax.runs.refreshing import ScheduledRefresh
from ralm_jax.runs.settings import RetrievalConfig
from ralm_jax.training import train_state
from ralm_jax.training.multihost import Agreement
from ralm_jax.training.partitioning import Partitioner
from ralm_jax.training.train_state import Optimizers, TrainState
from retrieval_service.options import IndexOptions
from retrieval_service.results import ServerStatus


class NoIndex:
  """What a closed-book run has in place of a `RunIndex`."""

  evaluation_retriever = None
  rerank_to = rerank_chunk = None
  passages = PassageOptions()
  index_refresh = on_checkpoint = None
  built_with: TrainState | None = None

  def __init__(self, spec: Specification, partitioner: Partitioner):
    self._spec = spec
    self._partitioner = partitioner
    self.assembler = prompt_assembler.assembler_of(spec, None)

  def batches(self, augmentation: Augmentation | None, recall_skip: int) -> RetrievalAugmenter:
    """Makes examples into batches; there is no recall to report."""
    options = BatchOptions(augmentation)
    return RetrievalAugmenter(self._spec.model, self._partitioner, self.assembler, None, options)

  def check_same_index(self, index_id: str | None) -> None:
    """There is none."""

  def begin(self, generation: int | None, params: PyTree) -> None:
    """Nothing to choose."""

  def end(self) -> None:
    """Nothing to keep."""


class RunIndex:
  """Searches the index of a run, keeps its generations and renews it."""

  def __init__(
    self,
    cfg: RetrievalConfig,
    connected: Connection,
    spec: Specification,
    partitioner: Partitioner,
    checkpoints: Checkpoints,
    *,
    freeze_retriever_steps: int = 0,
    built_with: TrainState | None = None,
  ):
    """Checks that index, corpus and model belong together."""
    client, store = connected.client, connected.store
    _check_options(cfg, client.status())
    self._client = client
    self._spec = spec
    self._partitioner = partitioner
    self.built_with = built_with
    n_candidates = cfg.n_candidates or spec.text.n_passages
    reranks = n_candidates > spec.text.n_passages
    self.rerank_to = spec.text.n_passages if reranks else None
    self.rerank_chunk = cfg.rerank_chunk if reranks else None
    self.passages = PassageOptions()
    if reranks:
      self.passages = PassageOptions(n_candidates=n_candidates, rerank_chunk=cfg.rerank_chunk)

    make_retriever = functools.partial(
      PassageRetriever, client, store, n_candidates, search_filter=cfg.search_filter
    )
    self.retriever = make_retriever(return_embeddings=spec.model.uses_stored_embeddings)
    self.evaluation_retriever = make_retriever()
    opening.check_dimension(spec, self.retriever.embedding_dim)
    self.assembler = prompt_assembler.assembler_of(spec, store, kept=self.rerank_to)
    self._owner = checkpoints.directory

    def check(status: ServerStatus) -> None:
      store.reload()
      retriever_lib.check_index_of_corpus(status.metadata, status.next_id, store)

    self._generation_steps = GenerationSteps(client, self._owner, check=check)
    self._agreement = Agreement()
    self._pins: Pins | None = None
    self._before_search: Callable[[], None] = lambda: None
    self.index_refresh: ScheduledRefresh | None = None
    if not cfg.follow_current:
      self._pins = Pins(client, checkpoints, self._owner)
      if cfg.schedule:
        self.index_refresh = self._scheduled_refresh(cfg, self._pins, freeze_retriever_steps)
    elif cfg.index is not None:
      self._before_search = CurrentFollower(client, cfg.index)

  def _scheduled_refresh(
    self, cfg: RetrievalConfig, pins: Pins, freeze_retriever_steps: int
  ) -> ScheduledRefresh:
    publisher = IndexPublisher(
      self._client,
      self._spec.model,
      self._partitioner,
      self.assembler,
      index=cfg.index,
      batch_size=cfg.embed_batch_size,
    )
    return ScheduledRefresh(
      cfg.schedule,
      publisher,
      [self.retriever, self.evaluation_retriever],
      pins,
      self._generation_steps,
      run=self._owner,
      freeze_retriever_steps=freeze_retriever_steps,
    )

  def batches(self, augmentation: Augmentation | None, recall_skip: int) -> RetrievalAugmenter:
    return RetrievalAugmenter(
      self._spec.model,
      self._partitioner,
      self.assembler,
      self.retriever,
      BatchOptions(augmentation, recall_skip, self._spec.text.n_passages),
      generation_steps=self._generation_steps if self._spec.model.moves_passages else None,
      before_search=self._before_search,
    )

  @property
  def on_checkpoint(self) -> Callable[[int, int], None] | None:
    """Keeps the generation of a new checkpoint."""
    return None if self._pins is None else self._pins.at_checkpoint

  def check_same_index(self, index_id: str | None) -> None:
    """Raises ValueError where a checkpoint that says its index has another: numbers may agree."""
    found = self.retriever.index_id
    if self._pins is not None and index_id and found and index_id != found:
      raise ValueError(
        f'The checkpoint was made with the index of id {index_id}; the one that is searched now '
        f'has id {found}. Serve that one again (`ralm swap`, `ralm serve`), or, to go on with '
        'whatever is served: RetrievalConfig.follow_current = True (gin: FOLLOW_CURRENT).'
      )

  def begin(self, generation: int | None, params: PyTree) -> None:
    """Chooses the generation to search, by every process; LookupError if it is gone."""
    if self._pins is None:
      with self._agreement.together():
        if jax.process_index() == 0:
          self._client.pin(self._owner, [])  # of an earlier start without
      return
    searched = self._pins.begin(generation)
    for retriever in (self.retriever, self.evaluation_retriever):
      retriever.generation = searched
    if generation is None and self._spec.model.learns_retriever:
      self._recognise_start(searched, params)

  def _recognise_start(self, generation: int, params: PyTree) -> None:
    """Tells whether the index is of the parameters the run starts with."""
    fingerprint = embedding.retriever_fingerprint(embedding.gathered_retriever(params))
    with self._agreement.together():
      status = self._client.status()
    if status.generation == generation and (
      status.metadata.get('encoder_fingerprint') == fingerprint
    ):
      self._generation_steps.tell(generation, 0)
    elif self._spec.model.query_side in ('stored', 'frozen'):
      made_by = status.metadata.get('checkpoint') or 'of an unknown checkpoint'
      logging.warning(
        f'The index was embedded by other parameters ({made_by}) than those of the passage encoder '
        'that query-side training keeps; embed the corpus with the starting checkpoint first '
        '(`ralm embed`).'
      )

  def end(self) -> None:
    """The last checkpoint is on disk."""
    if self._pins is not None:
      self._pins.end()


def _check_options(cfg: RetrievalConfig, status: ServerStatus) -> None:
  """Raises ValueError where an index is asked for otherwise than the one that there is."""
  if status.options is None:
    return
  for field in dataclasses.fields(IndexOptions):
    asked, found = getattr(cfg.options, field.name), getattr(status.options, field.name)
    if asked not in (field.default, found):
      macro = 'INDEX_TYPE' if field.name == 'index_type' else f'IndexOptions.{field.name}'
      raise ValueError(
        f'{macro} is {asked!r}, but {cfg.index or cfg.address} holds an index already, whose '
        f'{field.name} is {found!r}: only a missing index is built by it. Leave it out, or name '
        'another INDEX to be built.'
      )


def build_missing_index(
  cfg: RetrievalConfig,
  spec: Specification,
  optimizers: Optimizers,
  partitioner: Partitioner,
  params: PyTree,
  *,
  run: str,
  seed: int,
) -> TrainState:
  """Embeds the corpus with the parameters a run starts from; returns those."""
  if cfg.index is None or cfg.corpus is None:
    raise ValueError(
      f'{cfg.index} holds no index yet; bind RetrievalConfig.corpus (gin: CORPUS) to build one.'
    )
  if jax.process_count() > 1:
    raise ValueError(
      f'{cfg.index} holds no index yet; on several processes build it first with `ralm embed`.'
    )
  store = PassageStore.open(cfg.corpus)
  state = train_state.initialize(spec.model, optimizers, partitioner, seed, params)
  embedder = PassageEmbedder(
    spec.model,
    partitioner,
    prompt_assembler.assembler_of(spec, store),
    batch_size=cfg.embed_batch_size,
  )
  logging.info('Building %s of %d passages.', cfg.index, len(store))
  origin = Origin('the start of training', run, step=0)
  embedding.build_generation(embedder, state.params, store, cfg.index, cfg.options, origin=origin)
  return state
