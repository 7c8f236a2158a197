"""Opening a checkpoint folder for embedding, evaluation or asking."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import logging
import os
from typing import Any

from flax import linen as nn
import jax

from ralm_jax.checkpoints import specification, store as checkpoints
from ralm_jax.checkpoints.specification import Specification
from ralm_jax.checkpoints.store import Checkpoints
from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.evaluation import passage_sources
from ralm_jax.evaluation.evaluator import Evaluator
from ralm_jax.retrieval import connect, embedding
from ralm_jax.retrieval.assembler import Assembler
from ralm_jax.retrieval.retriever import PassageRetriever, SearchFilter
from ralm_jax.training.partitioning import Partitioner
from retrieval_service.results import ServerStatus

PyTree = Any


@dataclasses.dataclass(frozen=True)
class OpenedCheckpoint:
  """A checkpoint ready for use.

  Attributes:
    spec: the model and its texts.
    params: on the mesh.
    partitioner: of the mesh.
    directory: MODEL_DIR.
    step: of the checkpoint.
  """

  spec: Specification
  params: PyTree
  partitioner: Partitioner
  directory: str
  step: int

  @property
  def name(self) -> str:
    return os.path.join(self.directory, f'checkpoint_{self.step}')


def open_checkpoint(
  path: str | os.PathLike[str], partitioner: Partitioner | None = None
) -> OpenedCheckpoint:
  """Loads MODEL_DIR or MODEL_DIR/checkpoint_<step>; parameters only.

  Raises:
    FileNotFoundError: there is no checkpoint.
    ValueError: it is damaged or of another model.
  """
  directory, step = checkpoints.find(path)
  spec = Specification.load(directory)
  partitioner = partitioner or Partitioner()
  boxed = jax.eval_shape(spec.model.init, jax.random.key(0))
  abstract = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    nn.meta.unbox(boxed),
    partitioner.param_shardings(boxed),
  )
  store = Checkpoints(directory, read_only=True)
  try:
    params = store.restore_params(step, abstract)
  finally:
    store.close()
  return OpenedCheckpoint(spec, params, partitioner, directory, step)


@contextlib.contextmanager
def open_evaluator(
  opened: OpenedCheckpoint,
  *,
  index: str | os.PathLike[str] | None = None,
  retrieval_address: str | None = None,
  generation: int | None = None,
  corpus: str | os.PathLike[str] | None = None,
  n_passages: int | None = None,
  batch_size: int = 32,
  backend: str = 'process',
  search_filter: str = 'passage',
  n_candidates: int | None = None,
  rerank_chunk: int | None = None,
  passages_from: str = 'index',
  evaluation: Mapping[str, Any] | None = None,
  **connection: Any,
) -> Iterator[Evaluator]:
  """An evaluator of a checkpoint with its index.

  It follows the process when that is told to serve another index (`ralm swap`).

  Args:
    opened: the checkpoint.
    index: INDEX folder; a process is started for it.
    retrieval_address: of a running process instead.
    generation: of the index, which is then the only one searched; None for
      whichever is current.
    corpus: None takes the one the index names.
    n_passages: retrieved for a question; None for the model's own number.
    batch_size: questions at a time.
    backend: 'process', or 'device' for an index on the checkpoint's mesh.
    search_filter: of what a question excludes: 'passage', 'document', 'none'.
    n_candidates: fetched from the index, of which the checkpoint's encoders
      keep `n_passages`; None does not re-rank.
    rerank_chunk: candidates encoded at a time; None encodes all.
    passages_from: 'index'; 'file' reads those that questions bring along;
      'none' reads the question alone, whatever the model was trained to read.
    evaluation: further arguments of `evaluator.Evaluator`.
    **connection: see `connection.connect`.

  Raises:
    ValueError: an unknown source, or one that the model cannot read from.
  """
  if passages_from not in passage_sources.SOURCES:
    raise ValueError(
      f'passages_from {passages_from!r} must be one of {", ".join(passage_sources.SOURCES)}.'
    )
  spec = opened.spec
  for source, closed in (
    (f'Passages come from {passages_from!r}', passages_from != 'index'),
    (f'{opened.name} was trained closed-book', spec.text.closed_book),
  ):
    if closed and (index or retrieval_address):
      raise ValueError(f'{source}: leave --index and --retrieval_address out.')
  evaluation = dict(evaluation or {})
  if passages_from == 'none':
    spec = specification.without_passages(spec)
  if spec.text.closed_book or passages_from == 'file':
    if spec.text.closed_book and passages_from == 'file':
      raise ValueError(
        f'{opened.name} was trained closed-book and reads no passages; leave '
        "passages_from = 'file' out."
      )
    yield Evaluator(
      spec,
      opened.partitioner,
      None,
      batch_size=batch_size,
      file_passages=(n_passages or spec.text.n_passages if passages_from == 'file' else None),
      search_filter=search_filter,
      **evaluation,
    )
    return
  with connect.connect(
    index=index,
    address=retrieval_address,
    corpus=corpus,
    backend=backend,
    partitioner=opened.partitioner,
    follow_swaps=True,
    **connection,
  ) as connected:

    def open_corpus(status: ServerStatus, former: PassageStore) -> PassageStore:
      store = connected.open_corpus(status, former)
      Assembler(spec.tokenizer, store)  # has the same vocabularies
      warn_if_stale(opened, status.metadata)
      return store

    warn_if_stale(opened, connected.client.status().metadata)
    n_passages = n_passages or spec.text.n_passages
    retriever = PassageRetriever(
      connected.client,
      connected.store,
      n_candidates or n_passages,
      search_filter=SearchFilter(by=search_filter),
      generation=generation,
      open_corpus=open_corpus if generation is None else None,
    )
    check_dimension(spec, retriever.embedding_dim)
    yield Evaluator(
      spec,
      opened.partitioner,
      retriever,
      batch_size=batch_size,
      rerank_to=n_passages if n_candidates else None,
      rerank_chunk=rerank_chunk,
      **evaluation,
    )


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
    logging.warning(
      'The index was embedded with %s, not with %s: its embeddings are '
      'stale. Run `ralm embed` for exact ones.',
      metadata.get('checkpoint') or 'other parameters',
      opened.name,
    )
