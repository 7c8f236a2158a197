"""Retrieved: the passages that were found for a batch of queries."""

from __future__ import annotations

import dataclasses

import numpy as np

from ralm_jax.data.corpus.passage_ids import NO_PASSAGE


@dataclasses.dataclass(frozen=True)
class Retrieved:
  """What a search found."""

  rows: np.ndarray  #: int64 [b, k], rows of the corpus; -1 where filters left too few
  scores: np.ndarray  #: float32 [b, k], inner products; -inf at -1
  generation: int  #: of the index that answered
  #: float16 [b, k, d] as the index holds them, zeros at -1; None where not asked for
  embeddings: np.ndarray | None = None
  index_id: str = ''  #: which index it is a generation of; '' where that is not known

  @classmethod
  def none(cls, batch: int) -> Retrieved:
    """One empty slot an example: closed-book."""
    return cls(
      np.full((batch, 1), NO_PASSAGE, np.int64), np.full((batch, 1), -np.inf, np.float32), 0
    )

  def probabilities(self, divisor: float) -> np.ndarray:
    """softmax(score / divisor), float32 [b, k]."""
    logits = self.scores / divisor
    best = np.max(logits, axis=-1, keepdims=True)
    weights = np.exp(logits - np.where(np.isfinite(best), best, 0.0))
    total = np.sum(weights, axis=-1, keepdims=True)
    return weights / np.maximum(total, 1e-30)
