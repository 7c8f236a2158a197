"""Independent crops."""

import numpy as np
import pytest

from ralm_jax.data.pretext import crops
from ralm_jax.data.pretext.crops import CropConfig
from ralm_jax.data.ragged import RaggedTokens


def sequences(lengths):
  return RaggedTokens.from_lists([np.arange(100 * i, 100 * i + n) for i, n in enumerate(lengths)])


def test_crops_are_contiguous_runs_of_their_own_sequence():
  tokens = sequences([40, 3, 0, 25, 1])
  config = CropConfig(0.2, 0.5, deletion_rate=0.0, min_tokens=4)
  for seed in range(20):
    found = crops.random_crops(tokens, config, np.random.default_rng(seed))
    assert len(found) == 5
    for i, n in enumerate([40, 3, 0, 25, 1]):
      crop = found[i]
      assert len(crop) == 0 if n == 0 else min(4, n) <= len(crop)
      assert len(crop) <= max(0.5 * n + 1, min(4, n))
      if len(crop):
        assert np.array_equal(crop, np.arange(crop[0], crop[0] + len(crop)))
        assert crop[0] // 100 == i and crop[-1] // 100 == i


def test_deletion_drops_the_stated_share_and_leaves_no_sequence_empty():
  tokens = sequences([90] * 99 + [1])
  config = CropConfig(1.0, 1.0, deletion_rate=0.3)
  found = crops.random_crops(tokens, config, np.random.default_rng(0))
  assert 0.65 < found.lengths.sum() / tokens.lengths.sum() < 0.75
  assert found.lengths.min() >= 1
  for i in range(100):
    assert np.all(np.diff(found[i]) > 0) and np.all(found[i] // 100 == i)


def test_frame_keeps_special_tokens_under_truncation():
  tokens, mask = crops.frame(sequences([10, 2, 0]), 6, prefix=[7], suffix=[8], pad_id=0)
  assert tokens[0].tolist() == [7, 0, 1, 2, 3, 8]
  assert tokens[1].tolist() == [7, 100, 101, 8, 0, 0]
  assert tokens[2].tolist() == [7, 8, 0, 0, 0, 0]
  assert mask.sum(-1).tolist() == [6, 4, 2]


def test_a_bad_range_is_refused():
  with pytest.raises(ValueError, match='min_ratio'):
    CropConfig(0.6, 0.5)
