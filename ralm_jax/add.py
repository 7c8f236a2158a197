"""Add: put a passage into a corpus and its index, without training."""
from __future__ import annotations

import argparse
from collections.abc import Sequence
import hashlib
import os
import sys

import numpy as np

from ralm_jax import runs
from ralm_jax.data import corpus as corpus_lib
from ralm_jax.data import passages as passages_lib
from ralm_jax.retrieval import assembler as assembler_lib
from ralm_jax.retrieval import connection as connection_lib
from ralm_jax.retrieval import embedding
from ralm_jax.retrieval import retriever as retriever_lib


def add(
    passages: Sequence[passages_lib.Passage],
    *,
    checkpoint: str,
    index: str | None = None,
    retrieval_address: str | None = None,
    retry_for_s: float = 30.0,
) -> int:
  """Adds passages to the corpus and the index; returns the new generation.

  Interrupted between the two, the passages are in the corpus but not yet
  searched; the same call again, or any other, embeds them.

  Args:
    passages: with ids the corpus does not have.
    checkpoint: whose passage encoder the index was made with.
    index: INDEX folder.
    retrieval_address: of a running process instead.
    retry_for_s: how long an unreachable process is waited for.

  Raises:
    ValueError: an id is taken by another passage, or the index is of another
      corpus.
  """
  opened = runs.open_checkpoint(checkpoint)
  with connection_lib.connect(
      index=index, address=retrieval_address, retry_for_s=retry_for_s
  ) as connected:
    status = connected.client.status()
    runs.check_dimension(opened.spec, status.dim)
    runs.warn_if_stale(opened, status.metadata)
    store = connected.store
    retriever_lib.check_index_of_corpus(status.metadata, status.count, store)
    new = _not_yet_stored(passages, store)
    if new:
      corpus_lib.append_passages(store.directory, new)
      store.reload()
    rows = np.arange(status.count, len(store))
    if not len(rows):
      return status.generation
    embedder = embedding.PassageEmbedder(
        opened.spec.model, opened.partitioner,
        assembler_lib.Assembler(opened.spec.tokenizer, store),
        batch_size=max(8, opened.partitioner.mesh.size),
    )
    return connected.client.add(
        rows, embedder.embed(opened.params, rows),
        {**status.metadata, 'corpus_fingerprint': store.fingerprint},
    )


def _not_yet_stored(
    passages: Sequence[passages_lib.Passage], store: corpus_lib.PassageStore
) -> list[passages_lib.Passage]:
  """Leaves out passages that are stored already, word for word."""
  rows = store.rows_of([passage.id for passage in passages], unknown=-1)
  new = []
  for passage, row in zip(passages, rows):
    first = passages_lib.split_long(passage, store.max_words)[0]
    if row < 0 or store.passage(int(row)).text != first.text:
      new.append(passage)
  return new


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
  """Adds from command-line flags."""
  parser = argparse.ArgumentParser(prog=prog, description=__doc__)
  parser.add_argument('--checkpoint', required=True, metavar='CKPT')
  parser.add_argument('--index', metavar='INDEX')
  parser.add_argument('--retrieval_address', metavar='HOST:PORT')
  parser.add_argument('--title', help='of one passage')
  parser.add_argument('--text', help='of one passage')
  parser.add_argument('--section', default='')
  parser.add_argument('--id', help='default: made of title and text')
  parser.add_argument(
      '--input', nargs='+', metavar='FILE',
      help='or files of passages, as for `ralm corpus`')
  arguments = parser.parse_args(argv)
  if bool(arguments.input) == bool(arguments.text):
    parser.error('give either --text (with --title) or --input')
  if arguments.input:
    passages = list(passages_lib.iterate_passages(arguments.input))
  else:
    title = arguments.title or ''
    digest = hashlib.sha256(f'{title}\n{arguments.text}'.encode()).hexdigest()
    passages = [passages_lib.Passage(
        arguments.id or f'added-{digest[:12]}', title, arguments.section,
        arguments.text,
    )]
  generation = add(
      passages, checkpoint=arguments.checkpoint, index=arguments.index,
      retrieval_address=arguments.retrieval_address,
  )
  where = arguments.retrieval_address or os.path.normpath(arguments.index)
  print(f'{where}: {len(passages)} added, now generation {generation}')


if __name__ == '__main__':
  from ralm_jax import cli

  sys.exit(cli.main(['add', *sys.argv[1:]]))
