"""Words and the reader's ids to token ids, remembered. NumPy only.

What pretext tasks need to be as fast as if both models' tokens of what they make were stored:
vocabularies split at whitespace, so that a text's ids are those of its words.
"""

from __future__ import annotations

from collections.abc import Sequence
import functools
import sys
from typing import TYPE_CHECKING

import numpy as np

from ralm_jax.data.text.base_vocabulary import SentinelVocabulary, Vocabulary
from ralm_jax.data.text.tokenization import QueryTokenizer

if TYPE_CHECKING:  # Which would load jax.
  from ralm_jax.losses.array_types import Int


class WordEncoder:
  """Encodes words one by one and remembers them.

  Vocabularies split at whitespace, so that this gives the ids of the words
  joined by single blanks, several times as fast. To T5's and BERT's all
  whitespace is the same; byte-level BPE would have ids for line breaks.
  """

  def __init__(self, vocabulary: Vocabulary, capacity: int = 2**18):
    """Remembers `capacity` words; then it starts anew."""
    self.vocabulary = vocabulary
    self._capacity = capacity
    self._ids: dict[str, list[int]] = {}

  def encode(self, words: Sequence[str], limit: int | None = None) -> list[int]:
    result: list[int] = []
    known = self._ids.get
    limit = sys.maxsize if limit is None else limit
    for word in words:
      result += known(word) or self._learn(word)
      if len(result) >= limit:
        return result[:limit]
    return result

  def encode_start(self, words: Sequence[str], limit: int | None = None) -> list[int]:
    """`encode` of words with which a sequence begins."""
    if not words or not self.vocabulary.first_word_differs:
      return self.encode(words, limit)
    first = self.vocabulary.encode_start(words[0])
    rest = None if limit is None else max(0, limit - len(first))
    return (first + self.encode(words[1:], rest))[:limit]

  def last_words(self, words: Sequence[str], limit: int) -> Sequence[str]:
    """The most of the last words that have no more ids than `limit`."""
    total, kept = 0, 0
    for word in reversed(words):
      total += len(self._ids.get(word) or self._learn(word))
      if total > limit:
        break
      kept += 1
    return words[len(words) - kept :]

  def _learn(self, word: str) -> list[int]:
    if len(self._ids) >= self._capacity:
      self._ids.clear()
    ids = self._ids[word] = self.vocabulary.encode(word)
    return ids


class Translator:
  """The reader's ids to those that the retriever has for the same text."""

  def __init__(self, vocabulary: SentinelVocabulary, encoder: WordEncoder, capacity: int = 2**18):
    self._vocabulary = vocabulary
    self._encoder = encoder
    self._capacity = capacity
    self._ids: dict[tuple[int, ...], list[int]] = {}
    self._first_sentinel = vocabulary.vocab_size - vocabulary.extra_ids
    # Pieces that begin a word are those which a blank appears in front of.
    pieces = range(self._first_sentinel)
    word = next((i for i in pieces if vocabulary.decode([i]).isalnum()), 0)
    self._begins = np.ones(vocabulary.vocab_size, bool)
    self._begins[: self._first_sentinel] = [' ' in vocabulary.decode([word, i]) for i in pieces]

  def __call__(self, tokens: Int[np.ndarray, ' n'], limit: int) -> list[int]:
    """No more than `limit` ids of tokens, sentinels included."""
    begins = self._begins[tokens]
    # The end of a word behind a sentinel is looked up by itself.
    begins[1:] |= tokens[:-1] >= self._first_sentinel
    bounds = [*np.flatnonzero(begins).tolist(), len(tokens)]
    if bounds[0]:
      bounds.insert(0, 0)
    listed: list[int] = tokens.tolist()
    ids: list[int] = []
    if self._encoder.vocabulary.first_word_differs:
      words = self._words(listed[: bounds[1]])
      ids += self._encoder.encode_start(words)
      bounds.pop(0)
    for start, end in zip(bounds, bounds[1:]):
      if len(ids) >= limit:
        break
      key = tuple(listed[start:end])
      found = self._ids.get(key)
      if found is None:
        if len(self._ids) >= self._capacity:
          self._ids.clear()
        found = self._ids[key] = self._encoder.encode(self._words(key))
      ids += found
    return ids[:limit]

  def _words(self, tokens: Sequence[int]) -> list[str]:
    return self._vocabulary.decode(tokens, keep_sentinels=True).split()


class PretextTokenizer:
  """Words to the ids that `QueryTokenizer` gives their text."""

  def __init__(self, tokenizer: QueryTokenizer):
    """Wraps a tokenizer; its formats play no part. ValueError for prompts of a conversation."""
    if tokenizer.prompts is not None and tokenizer.text.prompt_style == 'chat':
      raise ValueError(
        'A pretext task goes on with a text, for which a conversation has no place; set '
        "TextConfig.prompt_style = 'plain', or train the reader on questions."
      )
    self.text = tokenizer.text
    self.reader = WordEncoder(tokenizer.reader_vocabulary)
    self.retriever = WordEncoder(tokenizer.retriever_vocabulary)
    self.query_space = tokenizer.query_space
    self.framed_query = tokenizer.framed_query
    self.framed_target = tokenizer.framed_target
    self._query_leads = tokenizer.query_leads
    self._prompts = tokenizer.prompts

  @functools.cached_property
  def translator(self) -> Translator:
    """From the reader's ids to the retriever's; needs sentinels."""
    return Translator(self.sentinel_vocabulary('A translator'), self.retriever)

  def query(self, words: Sequence[str]) -> list[int]:
    return self.framed_query(self.retriever.encode_start(words, self.query_space))

  def reader_query(self, words: Sequence[str]) -> list[int]:
    """Ids in place of the {query} of the reader's format."""
    if self._prompts is not None:
      return self._prompts.query(' '.join(words))
    encode = self.reader.encode_start if self._query_leads else self.reader.encode
    return encode(words, self.text.reader_query_length)

  def target(self, words: Sequence[str]) -> list[int]:
    """Ids of a target from its words."""
    return self.framed_target(self.target_words(words, self.text.target_length))

  def target_words(self, words: Sequence[str], limit: int | None = None) -> list[int]:
    """Ids of words that a target begins with; a prompt goes on with them, behind a space."""
    encode = self.reader.encode if self._prompts is not None else self.reader.encode_start
    return encode(words, limit)

  def sentinel_vocabulary(self, objective: str) -> SentinelVocabulary:
    """The reader's vocabulary; ValueError unless it has T5's sentinels."""
    vocabulary = self.reader.vocabulary
    if not isinstance(vocabulary, SentinelVocabulary):
      raise ValueError(
        f'{objective} puts sentinels such as <extra_id_0> in the text, which the reader vocabulary '
        f'{vocabulary.path} does not have; use one of T5, or PrefixLM or TitleSection.'
      )
    return vocabulary
