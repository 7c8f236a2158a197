"""Corpus: passage files to a PassageStore."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ralm_jax.data.corpus import passage_store


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
  """Builds a corpus from command-line flags."""
  parser = argparse.ArgumentParser(prog=prog, description=__doc__)
  parser.add_argument(
    '--input',
    required=True,
    nargs='+',
    metavar='FILE',
    help='jsonl (id, title, section?, text) or DPR tsv; globs and .gz allowed',
  )
  parser.add_argument('--output', required=True, metavar='CORPUS')
  parser.add_argument(
    '--reader_vocabulary',
    required=True,
    metavar='FILE',
    help="the reader's vocabulary (spiece.model, tokenizer.json, or vocab.json beside merges.txt)",
  )
  parser.add_argument(
    '--retriever_vocabulary',
    required=True,
    metavar='FILE',
    help="the retriever's vocab.txt or SentencePiece model",
  )
  parser.add_argument(
    '--max_words', type=int, help='cut longer passages into equal parts of at most so many words'
  )
  parser.add_argument('--workers', type=int, help='processes; default one a core')
  parser.add_argument('--restart', action='store_true', help='discard what the folder holds')
  arguments = parser.parse_args(argv)
  store = passage_store.build_corpus(
    arguments.input,
    arguments.output,
    arguments.reader_vocabulary,
    arguments.retriever_vocabulary,
    max_words=arguments.max_words,
    n_workers=arguments.workers,
    resume=not arguments.restart,
  )
  print(f'{arguments.output}: {len(store):,} passages')
