"""Greedy decoding: always the most likely token."""

from __future__ import annotations

import jax.numpy as jnp

from ralm_jax.losses.array_types import Array, Float, Int


def take_likeliest(scores: Float[Array, '*b v'], step: Int[Array, '']) -> Int[Array, '*b']:
  """The lowest id of equal ones."""
  del step
  return jnp.argmax(scores, axis=-1).astype(jnp.int32)
