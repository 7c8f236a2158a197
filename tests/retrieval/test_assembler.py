"""Recall of a batch, against the plain loop."""

import numpy as np
import pytest

from ralm_jax.models.retrieval_lm import ReaderBatch
from ralm_jax.retrieval import assembler


def _slow_recall(batch, skip):
  hits = examples = 0
  for tokens, target, mask, found in zip(
    batch.reader_tokens, batch.target_tokens, batch.target_mask, batch.passage_mask
  ):
    answer = target[skip : max(mask.sum() - 1, 0)].tolist()
    if not answer or not found.any():
      continue
    examples += 1
    hits += any(
      passage[i : i + len(answer)].tolist() == answer
      for passage in tokens[found]
      for i in range(len(passage) - len(answer) + 1)
    )
  return hits / examples if examples else float('nan')


@pytest.mark.parametrize('seed', range(20))
def test_recall_of_random_batches(seed):
  rng = np.random.default_rng(seed)
  # Few different tokens, so that answers of several tokens are often found.
  lengths = rng.integers(0, 6, 30)
  target_mask = np.arange(5) < lengths[:, None]
  tokens = rng.integers(1, 4, (30, 3, 7))
  batch = ReaderBatch(
    reader_tokens=tokens,
    reader_mask=tokens > 0,
    passage_mask=rng.random((30, 3)) < 0.7,
    target_tokens=np.where(target_mask, rng.integers(1, 4, (30, 5)), 0),
    target_mask=target_mask,
  )
  for skip in (0, 1, 5):
    expected = _slow_recall(batch, skip)
    found = assembler.answer_recall(batch, skip)
    assert found == pytest.approx(expected, nan_ok=True)
  assert 0 < assembler.answer_recall(batch, 0) < 1


def test_answer_longer_than_any_passage():
  batch = ReaderBatch(
    reader_tokens=np.full((1, 1, 2), 5),
    reader_mask=np.ones((1, 1, 2), bool),
    passage_mask=np.ones((1, 1), bool),
    target_tokens=np.full((1, 4), 5),
    target_mask=np.ones((1, 4), bool),
  )
  assert assembler.answer_recall(batch) == 0
