"""The corpus that questions are answered from, as long as its index is served."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses

import numpy as np

from ralm_jax.data import dates
from ralm_jax.data.corpus.passage_ids import RowsOfIds
from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.data.questions.reading import Question
from ralm_jax.data.text.tokenization import QueryTokenizer
from ralm_jax.losses.array_types import Int
from ralm_jax.retrieval.assembler import Assembler


@dataclasses.dataclass(frozen=True)
class Bounds:
  """What the questions of a batch must not see."""

  exclude_rows: Int[np.ndarray, 'b n'] | None  #: filled with -1; None excludes nothing
  max_dates: Int[np.ndarray, ' b']


class SearchedCorpus:
  """One corpus, and all that means passages by its rows."""

  def __init__(self, tokenizer: QueryTokenizer, store: PassageStore):
    """Raises ValueError where the corpus was tokenised with other vocabularies."""
    self.store = store
    self.assembler = Assembler(tokenizer, store)
    self._rows_of = RowsOfIds(store)

  def bounds(self, questions: Sequence[Question | str], size: int) -> Bounds:
    """Of questions, and of padding up to `size`."""
    exclude_ids: list[Sequence[str]] = [()] * size
    max_dates = np.full(size, dates.NO_DATE_BOUND, np.int32)
    for i, question in enumerate(questions):
      if not isinstance(question, str):
        exclude_ids[i] = question.exclude_passage_ids
        max_dates[i] = question.max_date
    return Bounds(self._rows_of(exclude_ids), max_dates)
