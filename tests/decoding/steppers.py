"""Steppers for the tests: plain enough to be right by reading."""

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class History:
  """tokens: int32 [batch, n, room]; length: int32 []."""

  tokens: jax.Array
  length: jax.Array


class Recomputing:
  """Keeps the tokens alone and computes every logit from all of them.

  Args:
    logits_of: (int32 [batch, n, room], int32 [] length) -> float32
      [batch, n, vocab], logits behind the first `length` tokens of a row.
    prefix: int32 [batch, p], what the decoder begins with.
    max_length: tokens to produce at most.
  """

  def __init__(self, logits_of, prefix, max_length):
    self.logits_of = logits_of
    self.prefix = prefix
    self.room = prefix.shape[1] + max_length

  def start(self):
    batch, length = self.prefix.shape
    tokens = jnp.zeros((batch, 1, self.room), jnp.int32)
    history = History(tokens.at[:, 0, :length].set(self.prefix), jnp.asarray(length, jnp.int32))
    return self.logits_of(history.tokens, history.length)[:, 0], history

  def expand(self, cache, n):
    return cache.replace(tokens=jnp.repeat(cache.tokens, n, axis=1))

  def step(self, tokens, cache):
    extended = cache.tokens.at[:, :, cache.length].set(tokens)
    cache = History(extended, cache.length + 1)
    return self.logits_of(cache.tokens, cache.length), cache

  def reorder(self, cache, parents):
    return cache.replace(tokens=jnp.take_along_axis(cache.tokens, parents[..., None], axis=1))


class Chain(Recomputing):
  """A toy language: logits depend on the last two tokens of a row.

  Args:
    tables: float32 [batch, n, n, vocab], by last token but one and last token,
      modulo n. Every row begins behind two tokens 0.
    max_length: tokens to produce at most.
  """

  def __init__(self, tables, max_length):
    batch, n = tables.shape[:2]
    flat = tables.reshape(batch, n * n, -1)

    def logits_of(rows, length):
      last = jax.lax.dynamic_slice_in_dim(rows, length - 2, 2, axis=-1)
      index = last[..., 0] % n * n + last[..., 1] % n
      return jnp.take_along_axis(flat, index[..., None], axis=1)

    super().__init__(logits_of, jnp.zeros((batch, 2), jnp.int32), max_length)
