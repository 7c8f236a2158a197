"""Passages that come with the questions, as a store of token columns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ralm_jax.data.corpus.passage_store import StoredPassage
from ralm_jax.data.questions.rows import FilePassage
from ralm_jax.data.ragged import RaggedTokens
from ralm_jax.data.text.vocabularies import Vocabulary


class FilePassages:
  """Some passages in memory, tokenised when asked for; stands in for a `PassageStore`."""

  directory = 'the question file'

  def __init__(
    self,
    passages: Sequence[FilePassage],
    reader_vocabulary: Vocabulary,
    retriever_vocabulary: Vocabulary,
  ):
    self._passages = list(passages)
    self.reader_vocabulary = reader_vocabulary
    self.retriever_vocabulary = retriever_vocabulary
    self._columns: dict[str, list[list[int]]] = {}

  def __len__(self) -> int:
    return len(self._passages)

  def passages(self, rows: Sequence[int] | np.ndarray) -> list[StoredPassage]:
    """The texts of rows [N] int, in their order; empty ones at -1."""
    nothing = FilePassage('', '', '')
    return [
      StoredPassage(row=int(row), id=one.id, title=one.title, section='', text=one.text)
      for row, one in ((row, self._passages[row] if row >= 0 else nothing) for row in rows)
    ]

  def tokens(
    self, rows: Sequence[int] | np.ndarray, column: str, *, max_length: int | None = None
  ) -> RaggedTokens:
    """As `PassageStore.tokens`."""
    stored = self._column(column)
    return RaggedTokens.from_lists([stored[row][:max_length] if row >= 0 else [] for row in rows])

  def _column(self, column: str) -> list[list[int]]:
    if column in self._columns:
      return self._columns[column]
    side, field = column.split('_', 1)
    vocabulary = getattr(self, f'{side}_vocabulary')
    start = field.endswith('_start')
    texts = [getattr(one, field.removesuffix('_start')) for one in self._passages]
    encode = vocabulary.encode_start_batch if start else vocabulary.encode_batch
    self._columns[column] = encode(texts)
    return self._columns[column]
