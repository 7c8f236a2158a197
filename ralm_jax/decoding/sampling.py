"""Sampling with a temperature, among the top k or the top p.

Each function is Hugging Face's warper of its name; tokens are ruled out with
-inf.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ralm_jax.decoding.options import DecodingOptions
from ralm_jax.decoding.rows import Choose
from ralm_jax.losses.array_types import Array, Bool, Float, Int, Shaped

Scores = Float[Array, '*b v']


def keep_top_k(scores: Scores, k: int) -> Scores:
  """Keeps the k highest scores, and those that equal the lowest of them.

  k is at least 1; above the vocabulary it keeps everything.
  """
  k = min(k, scores.shape[-1])
  return _keep_highest(scores, lambda kept: jnp.sum(kept, axis=-1) >= k)


def keep_top_p(scores: Scores, p: float) -> Scores:
  """Keeps the fewest likeliest tokens that together have probability p, in (0, 1].

  Of tokens that are equally likely all or none are kept, so that more than needed may be; Hugging
  Face decides by their place in the vocabulary. Logits of tokens already ruled out are -inf.
  """
  probabilities = jax.nn.softmax(scores, axis=-1)

  def rest_is_small(kept: Array) -> Array:
    rest = jnp.sum(jnp.where(kept, 0.0, probabilities), axis=-1)
    return rest <= 1 - p

  return _keep_highest(scores, rest_is_small)


def _keep_highest(
  scores: Scores, enough: Callable[[Bool[Array, '*b v']], Bool[Array, '*b']]
) -> Scores:
  """Keeps the fewest of the highest scores that are enough; at least one.

  Finds the lowest score to keep bit by bit. That is many times faster than to sort a vocabulary,
  and leaves a sharded one where it is. What is enough is so with any more kept.
  """
  # Integers in the order of the floats: a negative number's bits are inverted,
  # a positive one's sign is set. The two zeros become one.
  bits = jax.lax.bitcast_convert_type(jnp.where(scores == 0, 0.0, scores), jnp.uint32)
  sign = jnp.uint32(1 << 31)
  ordered = jnp.where(bits >= sign, ~bits, bits | sign)

  def raise_by_bit(i: Array, lowest: Array) -> Array:
    higher = lowest | (sign >> i.astype(jnp.uint32))
    return jnp.where(enough(ordered >= higher[..., None]), higher, lowest)

  lowest = jax.lax.fori_loop(0, 32, raise_by_bit, jnp.zeros(scores.shape[:-1], jnp.uint32))
  # Whatever rounding makes of a sum of probabilities, the likeliest stays.
  lowest = jnp.minimum(lowest, jnp.max(ordered, axis=-1))
  return jnp.where(ordered >= lowest[..., None], scores, -jnp.inf)


def warp(scores: Scores, options: DecodingOptions) -> Scores:
  """The logits that are sampled from."""
  if options.temperature != 1.0:
    scores = scores / options.temperature
  if options.top_k:
    scores = keep_top_k(scores, options.top_k)
  if options.top_p < 1.0:
    scores = keep_top_p(scores, options.top_p)
  return scores


def draw(options: DecodingOptions, rng: Shaped[Array, '*b']) -> Choose:
  """Draws every token by a key of its own: of its example, row and step.

  `rng` are the keys of the examples, or one that they are split from. With keys of their own, what
  an example draws depends neither on its batch nor on how many rows are drawn.
  """

  def choose(scores: Float[Array, 'b rows v'], step: Int[Array, '']) -> Int[Array, 'b rows']:
    batch, rows, _ = scores.shape
    of_examples = rng if rng.ndim else jax.random.split(rng, batch)
    keys = fold_in(fold_in(of_examples, jnp.arange(rows)), step)
    return jax.vmap(jax.vmap(jax.random.categorical))(keys, warp(scores, options))

  return choose


def fold_in(keys: Shaped[Array, '*b'], numbers: Int[Array, '*n']) -> Shaped[Array, '*b *n']:
  """Every key with every number folded in."""
  fold = jax.random.fold_in
  for _ in range(numbers.ndim):
    fold = jax.vmap(fold, (None, 0))
  for _ in range(keys.ndim):
    fold = jax.vmap(fold, (0, None))
  return fold(keys, numbers)
