"""Title reassignment: passages shown under each other's titles.

Where the answer to a question is the title of a passage, a small reader soon knows the training
titles by heart and learns nothing that helps on new ones. Given other titles at random in every
batch, and now and then titles of random pieces, it can only answer by reading.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ralm_jax.data import ragged
from ralm_jax.data.batches import QueryBatch
from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.data.ragged import RaggedTokens
from ralm_jax.retrieval.augmenter import Shown


class TitleReassignment:
  """An augmentation (see `retrieval/augmenter.py`) for title answers."""

  def __init__(
    self,
    store: PassageStore,
    *,
    title_rows: np.ndarray | None = None,
    random_titles: float = 0.0,
    max_title_length: int = 19,
    seed: int = 0,
  ):
    """Learns which title belongs to which row.

    Titles are drawn of `title_rows` (int64 [n]; None all), from which leave out those of test
    answers, which training must never show. `random_titles` is the share of titles made of random
    pieces, drawn as often as they occur in titles.
    """
    self._random_titles, self._seed = random_titles, seed
    self._eos = store.reader_vocabulary.eos_id
    self._pad = store.reader_vocabulary.pad_id
    titles = store.tokens(np.arange(len(store)), 'reader_title')
    self._row_of_title = {titles[i].tobytes(): i for i in range(len(store))}
    self._max_length = max_title_length
    if title_rows is not None:
      titles = titles.take(title_rows)
    self._titles = titles.truncate(max_title_length)

  def gold_rows(self, target_tokens: np.ndarray) -> np.ndarray:
    """[batch, length] targets -> [batch] int64 rows of the title; -1 unknown."""
    found = np.full(len(target_tokens), -1, np.int64)
    for i, target in enumerate(target_tokens):
      answer = target[(target != self._pad) & (target != self._eos)]
      found[i] = self._row_of_title.get(answer.astype(np.int32).tobytes(), -1)
    return found

  def _draw(self, count: int, generator: np.random.Generator) -> RaggedTokens:
    """`count` titles, some of them of random pieces."""
    drawn = self._titles.take(generator.integers(0, len(self._titles), count))
    if not self._random_titles:
      return drawn
    lengths = generator.integers(3, min(13, self._max_length + 1), count)
    pieces = generator.choice(self._titles.values, int(lengths.sum()))
    invented = RaggedTokens(pieces, ragged.offsets_of(lengths))
    both = RaggedTokens(
      np.concatenate([drawn.values, invented.values]),
      np.concatenate([drawn.offsets, drawn.offsets[-1] + invented.offsets[1:]]),
    )
    random = generator.random(count) < self._random_titles
    return both.take(np.arange(count) + count * random)

  def __call__(self, queries: QueryBatch, rows: np.ndarray, step: int) -> Shown:
    """The gold passage comes first; every passage has a title drawn anew.

    An example whose answer is no title of the corpus is left out (it has no
    target). A gold passage that the search missed takes the last one's place.
    """
    generator = np.random.default_rng((self._seed, step))
    gold = self.gold_rows(queries.target_tokens)
    known = gold >= 0
    rows = rows.copy()
    missing = known & ~np.any(rows == gold[:, None], axis=-1)
    rows[missing, -1] = gold[missing]
    order = np.argsort(rows != gold[:, None], axis=-1, kind='stable')
    rows = np.take_along_axis(rows, order, -1)

    titles = self._draw(rows.size, generator)
    targets = np.full_like(queries.target_tokens, self._pad)
    for i in np.flatnonzero(known):
      target = np.append(titles[i * rows.shape[1]], self._eos)
      target = target[: targets.shape[1]]
      targets[i, : len(target)] = target
    return Shown(dataclasses.replace(queries, target_tokens=targets), rows, titles)
