"""What a training run is told of its checkpoints and its index."""

from __future__ import annotations

import dataclasses
import os

from ralm_jax.data.text_config import TextConfig
from ralm_jax.losses import option_types
from ralm_jax.losses.option_types import Amount, Count, Number
from ralm_jax.models.retrieval_lm import RetrievalLM
from ralm_jax.retrieval.index_source import IndexSource
from ralm_jax.retrieval.publisher import RefreshSchedule
from ralm_jax.retrieval.retriever import SearchFilter
from retrieval_service.options import IndexOptions


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """When to save and what to keep."""

  period: Number = 1000  #: steps between checkpoints
  keep: Count | None = 3  #: newest ones to keep; None keeps all
  keep_period: Count | None = None  #: also keep every multiple of it
  asynchronous: bool = True  #: write while training goes on

  def __post_init__(self):
    option_types.check_fields(self)


@dataclasses.dataclass(frozen=True)
class RetrievalConfig:
  """Where passages come from, and how the index is kept fresh."""

  corpus: str | None = None  #: CORPUS folder; None takes the one the index names
  index: str | None = None  #: INDEX folder; built with the starting parameters if it is empty
  address: str | None = None  #: 'host:port' of a running retrieval process instead
  backend: str = 'process'  #: or 'device' for exact search on the devices that train
  device_dtype: str = 'bfloat16'  #: of the embeddings on the devices
  approximate: bool = False  #: approximate top-k on the devices, which a TPU is faster at
  options: IndexOptions = IndexOptions()  #: how a missing index is built
  retry_for_s: Amount = 300.0  #: how long a search waits for a dead process
  embed_batch_size: Count = 256  #: passages at a time when building or refreshing
  search_filter: SearchFilter = SearchFilter()  #: what an example must not see
  #: Passages to fetch from the index, of which the passage encoder of now keeps
  #: TextConfig.n_passages; None does not re-rank.
  n_candidates: Count | None = None
  rerank_chunk: Count | None = None  #: candidates a query encoded at a time; None encodes all
  #: When training stops for the index to be refreshed: 'START-END:RATE,…', a number of
  #: steps, or None for never.
  refresh_index: str | Count | None = None
  #: Search whatever generation is current, which a second job publishes (`ralm refresh`);
  #: else the run keeps to its own.
  follow_current: bool = False

  def __post_init__(self):
    option_types.check_fields(self)

  @property
  def schedule(self) -> RefreshSchedule:
    return RefreshSchedule.parse(self.refresh_index)

  @property
  def index_is_missing(self) -> bool:
    return self.index is not None and not os.path.exists(os.path.join(self.index, 'CURRENT'))

  def check(self, model: RetrievalLM, text: TextConfig) -> None:
    """Raises ValueError where it contradicts itself, model or texts."""
    self.source.check_backend()
    if self.schedule and not model.moves_passages:
      raise ValueError(
        f'RetrievalConfig.refresh_index is {self.refresh_index!r}, but nothing trains the passage '
        f'encoder (fixed retriever, or query_side = {model.query_side!r}), so the index never gets '
        'stale. Set it to None (gin: REFRESH_INDEX).'
      )
    if self.schedule and self.follow_current:
      raise ValueError(
        'RetrievalConfig has both refresh_index and follow_current: either the run refreshes its '
        'index, or a second job does (gin: REFRESH_INDEX = None, or FOLLOW_CURRENT = False).'
      )
    if self.n_candidates is None:
      return
    if self.n_candidates < text.n_passages:
      raise ValueError(
        f'RetrievalConfig.n_candidates {self.n_candidates} is fewer than the {text.n_passages} '
        'passages to keep of them (gin: N_CANDIDATES, N_PASSAGES).'
      )
    if model.uses_stored_embeddings:
      raise ValueError(
        "RetrievalConfig.n_candidates re-encodes candidates, query_side = 'stored' takes them as "
        'the index has them: set one of the two to None (gin: N_CANDIDATES, QUERY_SIDE).'
      )

  @property
  def source(self) -> IndexSource:
    return IndexSource(
      path=self.index,
      address=self.address,
      corpus=self.corpus,
      backend=self.backend,
      device_dtype=self.device_dtype,
      approximate=self.approximate,
      retry_for_s=self.retry_for_s,
    )
