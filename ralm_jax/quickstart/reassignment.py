"""Title reassignment: passages shown under each other's titles.

Where the answer to a question is the title of a passage, a small reader soon
knows the training titles by heart and learns nothing that helps on new ones.
Reassigned at random in every batch, the titles carry no information but where
they stand, so that only reading answers the question.
"""
from __future__ import annotations

import dataclasses

import numpy as np

from ralm_jax.data import batches
from ralm_jax.data import corpus


class TitleReassignment:
  """An augmentation (see `retrieval/augmenter.py`) for title answers."""

  def __init__(
      self,
      store: corpus.PassageStore,
      *,
      probability: float = 1.0,
      include_gold: bool = True,
      n_passages: int | None = None,
      title_pool: np.ndarray | None = None,
      seed: int = 0,
  ):
    """Learns which title belongs to which row.

    Args:
      store: the corpus; its titles are answers.
      probability: share of examples whose titles are reassigned.
      include_gold: put the answer's passage among the passages shown if the
        search missed it.
      n_passages: show so many of those found, drawn at random; None all.
      title_pool: int64 [n], rows whose titles may be drawn; None all. Leave out
        those of test answers, which training must never show as answers.
      seed: of the draws, with the step.
    """
    self._store = store
    self._pool = np.arange(len(store)) if title_pool is None else title_pool
    self._probability = probability
    self._include_gold = include_gold
    self._n_passages = n_passages
    self._seed = seed
    rows = np.arange(len(store))
    titles = store.tokens(rows, 'reader_title')
    self._row_of_title = {titles[i].tobytes(): i for i in range(len(store))}
    self._eos = store.reader_vocabulary.eos_id
    self._pad = store.reader_vocabulary.pad_id

  def gold_rows(self, target_tokens: np.ndarray) -> np.ndarray:
    """[batch, length] targets -> [batch] int64 rows of the title; -1 unknown."""
    found = np.full(len(target_tokens), -1, np.int64)
    for i, target in enumerate(target_tokens):
      answer = target[(target != self._pad) & (target != self._eos)]
      found[i] = self._row_of_title.get(answer.astype(np.int32).tobytes(), -1)
    return found

  def __call__(
      self, queries: batches.QueryBatch, rows: np.ndarray, step: int
  ) -> tuple[batches.QueryBatch, np.ndarray, np.ndarray]:
    """Returns the examples with new targets, their rows and title rows."""
    generator = np.random.default_rng((self._seed, step))
    gold = self.gold_rows(queries.target_tokens)
    known = gold >= 0
    rows = rows.copy()
    if self._include_gold:
      missing = known & ~np.any(rows == gold[:, None], axis=-1)
      rows[missing, -1] = gold[missing]
    # A random order: the place of the answer must not give it away.
    order = np.argsort(generator.random(rows.shape), axis=-1)
    if self._n_passages is not None:
      # The gold passage stays among those that are kept.
      at_gold = np.take_along_axis(rows == gold[:, None], order, -1)
      keep = np.argsort(~at_gold, axis=-1, kind='stable')
      order = np.take_along_axis(order, keep, -1)[:, : self._n_passages]
      shuffle = np.argsort(generator.random(order.shape), axis=-1)
      order = np.take_along_axis(order, shuffle, -1)
    rows = np.take_along_axis(rows, order, -1)

    title_rows = rows.copy()
    renamed = known & (generator.random(len(rows)) < self._probability)
    drawn = self._pool[generator.integers(0, len(self._pool), rows.shape)]
    title_rows[renamed] = np.where(rows >= 0, drawn, -1)[renamed]

    targets = queries.target_tokens.copy()
    gold_places = rows == gold[:, None]
    for i in np.flatnonzero(renamed & np.any(gold_places, -1)):
      new = self._store.tokens(
          title_rows[i, np.argmax(gold_places[i])][None], 'reader_title'
      ).values
      new = np.append(new, self._eos)[: targets.shape[1]]
      targets[i] = self._pad
      targets[i, : len(new)] = new
    return dataclasses.replace(queries, target_tokens=targets), rows, title_rows
