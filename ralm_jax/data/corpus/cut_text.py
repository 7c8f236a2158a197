"""How much of a corpus is never read: passages longer than what models take."""

from __future__ import annotations

import numpy as np

from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.data.text.decoder_vocabulary import DecoderVocabulary
from ralm_jax.data.text.templates import TITLE_START, TokenTemplate
from ralm_jax.data.text_config import TextConfig


def cut_passages(
  store: PassageStore, text: TextConfig, rows: np.ndarray | None = None
) -> dict[str, int]:
  """Passages of which the retriever, and of which the reader, reads only a part.

  Of `rows`, int64 [n], or of all.
  Those of the reader are cut whatever is asked; the question takes more of its space.
  """
  ours = {
    'retriever': (TokenTemplate.for_retriever, text.retriever_format, 'retriever_passage_length'),
    'reader': (TokenTemplate.for_reader, text.reader_format, 'passage_length'),
  }
  cut = {}
  for side, (template_of, text_format, limit) in ours.items():
    vocabulary = getattr(store, f'{side}_vocabulary')
    lengths = {name: store.token_counts(f'{side}_{name}', rows) for name in ('title', 'text')}
    if side == 'reader' and isinstance(vocabulary, DecoderVocabulary):
      bare = text.passage_format.replace('{title}', 'x').replace('{text}', 'x')
      around = len(vocabulary.encode_segment(bare)) - 2 * len(vocabulary.encode('x'))
      cut[side] = int((lengths['title'] + lengths['text'] + around > text.passage_length).sum())
      continue
    template = template_of(vocabulary, text_format)
    lengths[TITLE_START] = lengths['title']
    lengths['query'] = np.zeros_like(lengths['title'])
    kept = template.shown(lengths, getattr(text, limit))
    cut[side] = int(np.any([kept[name] < lengths[name] for name in kept], axis=0).sum())
  return cut


def note(
  store: PassageStore,
  text: TextConfig,
  lengths: str = "checkpoint's lengths",
  rows: np.ndarray | None = None,
) -> str | None:
  """What is to be said of passages that are cut; None where none is."""
  cut = cut_passages(store, text, rows)
  count = len(store) if rows is None else len(rows)
  if not any(cut.values()) or text.closed_book:
    return None
  prompts = isinstance(store.reader_vocabulary, DecoderVocabulary)
  shared = '' if prompts else ', part of which is the question'
  return (
    f'{max(cut.values()):,} of {count:,} passages are longer than what is read of them with the '
    f'{lengths}: the retriever (retriever_passage_length {text.retriever_passage_length}) cuts '
    f'{cut["retriever"]:,}, the reader (passage_length {text.passage_length}{shared}) '
    f'{cut["reader"]:,}. What is cut is never seen: build the corpus with '
    '--max_words N, or raise these fields of TextConfig.'
  )
