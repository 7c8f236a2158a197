"""Questions and answers to static token rows, by a TextConfig. NumPy only."""
from __future__ import annotations

from collections.abc import Sequence
import dataclasses

import numpy as np

from ralm_jax.data import batches
from ralm_jax.data import text_config
from ralm_jax.data import vocabularies


@dataclasses.dataclass(frozen=True)
class QueryTokenizer:
  """Tokenises queries for both models and targets for the reader.

  Attributes:
    text: formats and lengths.
    reader_vocabulary: of the reader.
    retriever_vocabulary: of the retriever.
  """

  text: text_config.TextConfig
  reader_vocabulary: vocabularies.Vocabulary
  retriever_vocabulary: vocabularies.Vocabulary

  def retriever_query(self, query: str) -> list[int]:
    """Ids for the query encoder; [CLS], [SEP] or eos survive truncation."""
    vocabulary = self.retriever_vocabulary
    prefix = [vocabulary.cls_id] if hasattr(vocabulary, 'cls_id') else []
    space = self.text.query_length - len(prefix) - 1
    return prefix + vocabulary.encode(query)[:space] + [vocabulary.eos_id]

  def reader_query(self, query: str) -> list[int]:
    """Ids that stand before each passage, without eos."""
    return self.reader_vocabulary.encode(query)[: self.text.reader_query_length]

  def target(self, answer: str) -> list[int]:
    """Ids of a target; a truncated one has no end of sequence, as in Atlas."""
    vocabulary = self.reader_vocabulary
    ids = vocabulary.encode(self.text.target(answer)) + [vocabulary.eos_id]
    return ids[: self.text.target_length]

  def answer(self, tokens: Sequence[int]) -> str:
    """The text of predicted tokens, without sentinels and special tokens."""
    vocabulary = self.reader_vocabulary
    ids = [int(token) for token in tokens]
    if vocabulary.eos_id in ids:
      ids = ids[: ids.index(vocabulary.eos_id)]
    return vocabulary.decode(ids).strip()

  def batch(
      self,
      questions: Sequence[str],
      answers: Sequence[str] | None = None,
      *,
      size: int | None = None,
      first_index: int = 0,
  ) -> batches.QueryBatch:
    """A QueryBatch from texts, filled up with padding rows to `size`.

    Args:
      questions: the questions, at most `size`.
      answers: one target each; None where there is nothing to learn.
      size: rows of the batch.
      first_index: `example_index` of the first question.
    """
    size = size or len(questions)
    queries = [self.text.query(question) for question in questions]
    reader, retriever = self.reader_vocabulary, self.retriever_vocabulary

    def rows(sequences, length: int, pad_id: int) -> np.ndarray:
      array = np.full((size, length), pad_id, np.int32)
      for i, ids in enumerate(sequences):
        array[i, : len(ids)] = ids
      return array

    index = np.full(size, -1, np.int64)
    index[: len(questions)] = first_index + np.arange(len(questions))
    return batches.QueryBatch(
        query_tokens=rows(
            map(self.retriever_query, queries),
            self.text.query_length, retriever.pad_id),
        reader_query_tokens=rows(
            map(self.reader_query, queries),
            self.text.reader_query_length, reader.pad_id),
        target_tokens=rows(
            map(self.target, answers or []),
            self.text.target_length, reader.pad_id),
        example_index=index,
    )
