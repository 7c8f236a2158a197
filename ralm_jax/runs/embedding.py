"""Embedding a corpus with a checkpoint, into an index."""

from __future__ import annotations

from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.retrieval import embedding, prompt_assembler
from ralm_jax.retrieval.embedding import Origin, PassageEmbedder
from ralm_jax.runs import opening
from retrieval_service.options import IndexOptions


def embed(
  *,
  checkpoint: str,
  corpus: str,
  output: str,
  options: IndexOptions = IndexOptions(),
  batch_size: int = 256,
  progress: bool = True,
) -> int:
  """Builds a new generation of the index `output`, made where missing; returns its number."""
  store = PassageStore.open(corpus)
  opened = opening.open_checkpoint(checkpoint)
  spec, params = opened.spec, opened.params
  assembler = prompt_assembler.assembler_of(spec, store)
  embedder = PassageEmbedder(spec.model, opened.partitioner, assembler, batch_size=batch_size)
  origin = Origin(opened.name, opened.directory, opened.step)
  return embedding.build_generation(
    embedder, params, store, output, options, origin=origin, progress=progress
  )
