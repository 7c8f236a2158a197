"""A SentencePiece vocabulary of the quickstart's own passages."""

from __future__ import annotations

import json

import sentencepiece

from ralm_jax.quickstart import recipe


def train_vocabulary(passages: str, prefix: str, size: int) -> str:
  """Trains a SentencePiece model on the passages; returns its path."""
  with open(passages, encoding='utf-8') as file:
    rows = [json.loads(line) for line in file]
  texts = [text for row in rows for text in (row['title'], row['text'])]
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(texts),
    model_prefix=prefix,
    vocab_size=size,
    model_type='unigram',
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    user_defined_symbols=list(recipe.SYMBOLS),
    character_coverage=1.0,
    hard_vocab_limit=False,
    minloglevel=2,
    # One thread: the same corpus gives the same vocabulary.
    num_threads=1,
  )
  return prefix + '.model'
