"""Greedy decoding: always the most likely token."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def take_likeliest(scores: Array, step: Array) -> Array:
  """float32 [..., vocab] -> int32 [...]; the lowest id of equal ones."""
  del step
  return jnp.argmax(scores, axis=-1).astype(jnp.int32)
