"""Embedding a corpus with a checkpoint, into an index."""

from __future__ import annotations

from collections.abc import Sequence

from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.retrieval import embedding, prompt_assembler
from ralm_jax.retrieval.embedding import Origin
from ralm_jax.retrieval.former_embeddings import FormerEmbeddings, ReusingEmbedder
from ralm_jax.runs import opening
from ralm_jax.runs.opening import OpenedCheckpoint
from retrieval_service.options import IndexOptions


def embed(
  *,
  checkpoint: str | OpenedCheckpoint,
  corpus: str,
  output: str,
  options: IndexOptions = IndexOptions(),
  batch_size: int = 256,
  chunk_size: int = 8192,
  former: Sequence[str] = (),
  progress: bool = True,
) -> int:
  """Builds a new generation of the index `output`, made where missing; returns its number.

  An interruption loses at most a few chunks. Embeddings of `former` indexes, by the same encoder in
  the same form, are taken over where a passage's text is the same.
  """
  store = PassageStore.open(corpus)
  if not isinstance(checkpoint, OpenedCheckpoint):
    checkpoint = opening.open_checkpoint(checkpoint)
  opened, spec, params = checkpoint, checkpoint.spec, checkpoint.params
  assembler = prompt_assembler.assembler_of(spec, store)
  embedder = ReusingEmbedder(
    spec.model,
    opened.partitioner,
    assembler,
    batch_size=batch_size,
    store=store,
    former=FormerEmbeddings(former),
  )
  origin = Origin(opened.name, opened.directory, opened.step)
  return embedding.build_generation(
    embedder,
    params,
    store,
    output,
    options,
    origin=origin,
    chunk_size=chunk_size,
    progress=progress,
  )
