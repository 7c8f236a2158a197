"""The k largest in blocks against `jax.lax.top_k`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ralm_jax.decoding import top_k


@pytest.mark.parametrize(
  'size, k',
  [(1, 1), (7, 7), (40, 3), (128, 1), (129, 1), (1024, 8), (1024, 7), (5000, 4), (5001, 18)],
)
@pytest.mark.parametrize('distinct', [3, 10**6])
def test_equals_lax(size, k, distinct):
  """With few distinct values, which of equal scores are taken shows."""
  rng = np.random.default_rng(size + k)
  scores = rng.integers(0, distinct, (3, 2, size)).astype(np.float32) - 5.0
  values, index = jax.jit(top_k.top_k, static_argnums=1)(scores, k)
  expected_values, expected_index = jax.lax.top_k(scores, k)
  np.testing.assert_array_equal(values, expected_values)
  np.testing.assert_array_equal(index, expected_index)


@pytest.mark.parametrize('size', [20, 700])
def test_tokens_ruled_out_are_not_taken_twice(size):
  scores = np.full((3, size), -np.inf, np.float32)
  scores[0, [3, size - 1]] = 1.0, 2.0
  scores[1, 0] = 0.0
  values, index = top_k.top_k(jnp.asarray(scores), 4)
  expected_values, expected_index = jax.lax.top_k(scores, 4)
  np.testing.assert_array_equal(values, expected_values)
  np.testing.assert_array_equal(index, expected_index)
