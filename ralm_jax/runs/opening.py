"""Opening a checkpoint folder for embedding, evaluation or asking."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import dataclasses
import logging
import os
from typing import Any

import jax

from ralm_jax.checkpoints import specification, store as checkpoints
from ralm_jax.checkpoints.specification import Specification
from ralm_jax.checkpoints.store import Checkpoints
from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.evaluation.answering import AnswerOptions
from ralm_jax.evaluation.demonstrations import Pool
from ralm_jax.evaluation.evaluator import Evaluator
from ralm_jax.evaluation.task import PassageOptions, ReadingOptions, ScoringOptions
from ralm_jax.retrieval import connect, embedding, prompt_assembler
from ralm_jax.retrieval.index_source import IndexSource
from ralm_jax.retrieval.retriever import PassageRetriever, SearchFilter
from ralm_jax.training.partitioning import Partitioner
from retrieval_service.results import ServerStatus

PyTree = Any


@dataclasses.dataclass(frozen=True)
class OpenedCheckpoint:
  """A checkpoint ready for use."""

  spec: Specification
  params: PyTree  #: on the mesh
  partitioner: Partitioner
  directory: str  # MODEL_DIR
  step: int

  @property
  def name(self) -> str:
    return os.path.join(self.directory, f'checkpoint_{self.step}')


def open_checkpoint(
  path: str | os.PathLike[str], partitioner: Partitioner | None = None
) -> OpenedCheckpoint:
  """Loads MODEL_DIR or MODEL_DIR/checkpoint_<step>, parameters only; ValueError if damaged."""
  directory, step = checkpoints.find(path)
  spec = Specification.load(directory)
  partitioner = partitioner or Partitioner()
  abstract = partitioner.abstract(jax.eval_shape(spec.model.init, jax.random.key(0)))
  with contextlib.closing(Checkpoints(directory, read_only=True)) as store:
    params = store.restore_params(step, abstract)
  return OpenedCheckpoint(spec, params, partitioner, directory, step)


@contextlib.contextmanager
def open_evaluator(
  opened: OpenedCheckpoint,
  source: IndexSource | None = None,
  *,
  batch_size: int = 32,
  passages: PassageOptions = PassageOptions(),
  answering: AnswerOptions = AnswerOptions(),
  scoring: ScoringOptions = ScoringOptions(),
  how_read: ReadingOptions = ReadingOptions(),
  record_format: str = 'qa',
) -> Iterator[Evaluator]:
  """An evaluator of a checkpoint with its index.

  It follows a process that is told to serve another index, unless one generation is asked for.
  `record_format` is of demonstrations whose own is not given.

  Raises:
    ValueError: a reading that the reader does not have, demonstrations at fault, passages that the
      model cannot read, or an index for none.
  """
  source = source or IndexSource()
  passages.check_source(source)
  shown = Pool.read(how_read, record_format)
  spec = specification.with_reading(opened.spec, how_read.reading, how_read.passage_order)
  if how_read.passage_order and not (shown or spec.model.reading_object.reads_together):
    raise ValueError(
      f'The reading {spec.model.reading!r} has no two passages in one prompt, whose order '
      '--passage_order could be: leave it out, or use --reading in_context.'
    )
  if spec.text.closed_book and (source.path or source.address):
    raise ValueError(
      f'{opened.name} was trained closed-book: leave --index and --retrieval_address out.'
    )
  if spec.text.closed_book and passages.passages_from == 'file':
    raise ValueError(
      f'{opened.name} was trained closed-book and reads no passages; leave '
      "passages_from = 'file' out."
    )
  if passages.passages_from == 'none':
    spec = specification.without_passages(spec)
  with contextlib.ExitStack() as stack:
    retriever = None
    if not spec.text.closed_book and passages.passages_from == 'index':
      retriever = stack.enter_context(_retriever(opened, source, passages))
    yield Evaluator(
      spec,
      opened.partitioner,
      retriever,
      batch_size=batch_size,
      passages=passages,
      answering=answering,
      scoring=scoring,
      how_read=how_read,
      shown=shown,
    )


@contextlib.contextmanager
def _retriever(
  opened: OpenedCheckpoint, source: IndexSource, passages: PassageOptions
) -> Iterator[PassageRetriever]:
  """Of the index; says when that is stale, now and after a swap."""
  spec = opened.spec
  with connect.connect(source, partitioner=opened.partitioner, follow_swaps=True) as connected:

    def open_corpus(status: ServerStatus, former: PassageStore) -> PassageStore:
      store = connected.open_corpus(status, former)
      prompt_assembler.assembler_of(spec, store)  # has the same vocabularies
      warn_if_stale(opened, status.metadata)
      return store

    warn_if_stale(opened, connected.client.status().metadata)
    retriever = PassageRetriever(
      connected.client,
      connected.store,
      passages.depth(spec.text),
      search_filter=SearchFilter(by=passages.search_filter),
      generation=source.generation,
      open_corpus=open_corpus if source.generation is None else None,
    )
    check_dimension(spec, retriever.embedding_dim)
    yield retriever


def check_dimension(spec: Specification, dim: int) -> None:
  """Raises ValueError where index and retriever differ in embedding size."""
  ours = spec.model.retriever.embedding_dim
  if ours != dim:
    raise ValueError(
      f"The index holds embeddings of size {dim}, the checkpoint's retriever "
      f'makes {ours}; embed the corpus with this checkpoint (`ralm embed`).'
    )


def warn_if_stale(opened: OpenedCheckpoint, metadata: dict[str, Any]) -> None:
  """Says when the index was embedded by other parameters."""
  made_by = metadata.get('encoder_fingerprint')
  if made_by and made_by != embedding.retriever_fingerprint(opened.params):
    source = metadata.get('checkpoint') or 'other parameters'
    logging.warning(
      f'The index was embedded with {source}, not with {opened.name}: its embeddings are '
      'stale. Run `ralm embed` for exact ones.'
    )
