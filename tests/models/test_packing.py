"""Segments packed to prompts, against Python lists."""

import jax
import numpy as np
import pytest

from ralm_jax.models import packing


def _segments(rng, rows, sizes):
  """Arrays with holes at random."""
  return [
    (rng.integers(1, 100, (rows, size)).astype(np.int32), rng.random((rows, size)) < 0.6)
    for size in sizes
  ]


def _expected(segments, row):
  return [int(t) for tokens, mask in segments for t, m in zip(tokens[row], mask[row]) if m]


@pytest.mark.parametrize('length', [None, 30, 9, 5])
def test_prompts_are_what_is_not_masked_and_end_together(length):
  segments = _segments(np.random.default_rng(0), 5, (7, 4, 3))
  segments[0][1][3], segments[1][1][3] = False, False  # A row of the last segment alone.
  prompt = jax.jit(packing.pack, static_argnums=1)(segments, length)
  assert prompt.tokens.shape == (5, min(length or 14, 14))
  for row in range(5):
    expected = _expected(segments, row)
    count = int(prompt.mask[row].sum())
    assert count == min(len(expected), prompt.tokens.shape[1])
    assert prompt.mask[row, prompt.tokens.shape[1] - count :].all()
    np.testing.assert_array_equal(
      prompt.tokens[row, prompt.tokens.shape[1] - count :], expected[len(expected) - count :]
    )


def test_values_of_a_prompt_are_found_by_segment():
  segments = _segments(np.random.default_rng(1), 4, (6, 5))
  prompt = packing.pack(segments)
  values = prompt.of_segments(prompt.tokens.astype(np.float32))
  tokens = np.concatenate([tokens for tokens, _ in segments], axis=1)
  mask = np.concatenate([mask for _, mask in segments], axis=1)
  np.testing.assert_array_equal(np.where(mask, values, 0), np.where(mask, tokens, 0))


@pytest.mark.parametrize('order', packing.PASSAGE_ORDERS)
def test_passages_stand_in_their_order_and_are_told_apart_again(order):
  tokens = np.arange(24).reshape(2, 3, 4)
  flat, mask = packing.passage_segments(tokens, np.ones_like(tokens), order)
  first = 2 if order == 'best_last' else 0
  np.testing.assert_array_equal(flat[:, :4], tokens[:, first])
  assert mask.all()
  np.testing.assert_array_equal(packing.passage_values(flat, 3, order), tokens)
