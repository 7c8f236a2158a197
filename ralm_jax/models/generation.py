"""The readers behind `decoding.decode`: passages encoded once, keys cached."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ralm_jax.losses import sequence
from ralm_jax.models import layers, rag
from ralm_jax.models.attention import CrossAttentionOptions
from ralm_jax.models.fid import PassageReader

Array = jax.Array
Cache = Any
Params = Any


@dataclasses.dataclass(frozen=True)
class Prefix:
  """Tokens that every answer begins with, and that are not part of it.

  Attributes:
    tokens: int32 [batch, length], padded on the LEFT.
    lengths: int32 [batch], tokens of each row.
  """

  tokens: Array
  lengths: Array


@dataclasses.dataclass(frozen=True)
class CachedReader:
  """A stepper: `n` rows an example share the keys and values of its passages.

  With `log_prior` there are K decodings a row, one for each passage, and the
  next token's distribution is RAG-Token's marginal over them; without, one.

  Attributes:
    reader: T5 or BART.
    params: of the reader.
    encoded: [batch * K, keys, embed], encoder states; K = 1 without a prior.
    encoded_mask: bool [batch * K, keys].
    max_length: tokens to produce at most.
    log_prior: float32 [batch, K]; None decodes from all keys together.
    prefix: of every answer.
    prefill_chunk: positions of the prefix that are computed at a time.
  """

  reader: PassageReader
  params: Params
  encoded: Array
  encoded_mask: Array
  max_length: int
  log_prior: Array | None = None
  prefix: Prefix | None = None
  prefill_chunk: int = 128

  @property
  def _n_passages(self) -> int:
    return 1 if self.log_prior is None else self.log_prior.shape[1]

  @property
  def _batch(self) -> int:
    return self.encoded.shape[0] // self._n_passages

  @property
  def _prefix_length(self) -> int:
    return 0 if self.prefix is None else self.prefix.tokens.shape[1]

  def _rows(self, array: Array, n: int) -> Array:
    """[batch, n, ...] -> [batch * K * n, ...], the same for every passage."""
    spread = jnp.broadcast_to(array[:, None], (self._batch, self._n_passages, n, *array.shape[2:]))
    return spread.reshape(-1, *array.shape[2:])

  def _left_padding(self, n: int) -> Array | None:
    if self.prefix is None:
      return None
    padding = self._prefix_length - self.prefix.lengths
    return self._rows(jnp.broadcast_to(padding[:, None], (self._batch, n)), n)

  def _apply(
    self, tokens: Array, cache: Cache | None, n: int, max_decode_length: int, last_only: bool = True
  ) -> tuple[Array, Cache]:
    """tokens: [batch * K * n, length] -> logits [rows, length or 1, vocab]."""
    options = CrossAttentionOptions()
    if n > 1:
      mask = self.encoded_mask.astype(bool)[:, None]
      options = CrossAttentionOptions(
        group_mask=jnp.broadcast_to(mask, (mask.shape[0], n, mask.shape[-1]))
      )
    tokens = layers.constrain(tokens, 'batch', 'length')
    variables = {'params': self.params}
    logits, updated = self.reader.apply(
      variables if cache is None else variables | {'cache': cache},
      self.encoded if cache is None else None,
      self.encoded_mask,
      tokens,
      decode=True,
      max_decode_length=max_decode_length,
      left_padding=self._left_padding(n),
      last_only=last_only,
      options=options,
      method='decode',
      mutable=['cache'],
    )
    return logits, updated['cache']

  @property
  def _cache_length(self) -> int:
    # The last token produced is never fed back.
    return self._prefix_length + self.max_length

  def _inputs(self) -> Array:
    """The start token and the prefix: int32 [batch, 1 + prefix length].

    The start stands right before a row's first token, behind its padding.
    """
    start = self.reader.config.decoder_start_id
    first = jnp.full((self._batch, 1), start, jnp.int32)
    if self.prefix is None:
      return first
    length = self._prefix_length
    position = jnp.arange(length + 1)
    inputs = jnp.concatenate([first, self.prefix.tokens.astype(jnp.int32)], axis=1)
    at_start = position[None] == (length - self.prefix.lengths)[:, None]
    return jnp.where(at_start, start, inputs)

  def start(self) -> tuple[Array, Cache]:
    """Fills the cache with the start token and the prefix, chunk by chunk.

    Returns:
      float32 [batch, vocab] logits of the first token to produce, and the
      cache of one row an example.
    """
    inputs = self._rows(self._inputs()[:, None], 1)
    length = inputs.shape[1]
    # A first part that makes the rest a whole number of chunks; it also
    # computes the cross-attention's keys and values.
    chunk = min(self.prefill_chunk, length)
    first = length % chunk or chunk
    logits, cache = self._apply(inputs[:, :first], None, 1, self._cache_length)
    if first < length:
      parts = inputs[:, first:].reshape(len(inputs), -1, chunk)

      def fill(carry, part):
        _, cache = carry
        return self._apply(part, cache, 1, self._cache_length), None

      (logits, cache), _ = jax.lax.scan(fill, (logits, cache), jnp.swapaxes(parts, 0, 1))
    return self._marginalize(logits, 1)[:, 0], cache

  def _marginalize(self, logits: Array, n: int) -> Array:
    """[batch * K * n, 1, vocab] -> float32 [batch, n, vocab]."""
    logits = logits.reshape(self._batch, self._n_passages, n, -1)
    if self.log_prior is None:
      return logits[:, 0]
    return rag.marginal_log_probs(self.log_prior, logits)

  def step(self, tokens: Array, cache: Cache) -> tuple[Array, Cache]:
    """int32 [batch, n], cache -> float32 [batch, n, vocab], cache."""
    n = tokens.shape[1]
    logits, cache = self._apply(self._rows(tokens, n)[:, None], cache, n, self._cache_length)
    return self._marginalize(logits, n), cache

  def expand(self, cache: Cache, n: int) -> Cache:
    """The cache of one row an example -> of n equal rows."""
    return _map_own_cache(lambda rows, axis: jnp.repeat(rows, n, axis=axis), cache)

  def reorder(self, cache: Cache, parents: Array) -> Cache:
    """The cache whose row j of an example continues row `parents[:, j]`.

    Args:
      cache: of n rows an example.
      parents: int32 [batch, n].
    """
    n = parents.shape[1]
    index = self._rows(parents, n).reshape(-1, n)

    def take(rows: Array, axis: int) -> Array:
      # Rows of an example apart from examples: a gather over both at once would
      # bring the caches of all devices together on each.
      shape = rows.shape
      grouped = rows.reshape(*shape[:axis], -1, n, *shape[axis + 1 :])
      spread = index.reshape((1,) * axis + index.shape + (1,) * (rows.ndim - axis - 1))
      return jnp.take_along_axis(grouped, spread, axis=axis + 1).reshape(shape)

    return _map_own_cache(take, cache)

  def score(self, candidates: Array, mask: Array, cache: Cache) -> Array:
    """log p(candidate | x, z) of every candidate under every passage.

    Args:
      candidates: int32 [batch, n, length], what follows the prefix.
      mask: bool [batch, n, length], true on tokens that count.
      cache: any of this reader, for its projected keys and values.

    Returns:
      float32 [batch, K, n].
    """
    n, length = candidates.shape[1:]
    inputs = jnp.concatenate(
      [jnp.repeat(self._inputs()[:, None], n, axis=1), candidates[..., :-1]], axis=-1
    )
    total = inputs.shape[-1]

    def empty(rows: Array, axis: int) -> Array:
      shape = list(rows.shape)
      shape[axis], shape[axis + 1] = self.encoded.shape[0] * n, total
      return jnp.zeros(shape, rows.dtype)

    cache = _map_own_cache(empty, cache, jnp.zeros_like)
    logits, _ = self._apply(self._rows(inputs, n), cache, n, total, last_only=False)
    logits = logits[:, self._prefix_length :]
    log_probs = sequence.token_log_probs(logits, self._rows(candidates, n))
    log_probs = jnp.sum(log_probs * self._rows(mask, n), axis=-1)
    return log_probs.reshape(self._batch, -1, n)


def _map_own_cache(
  function: Callable[[Array, int], Array],
  cache: Cache,
  of_indices: Callable[[Array], Array] = lambda index: index,
) -> Cache:
  """Applies a function to the self-attention's keys and values.

  Args:
    function: gets them and the axis of their rows, which is followed by that of
      positions.
    cache: of a decoder. Cross-attention has the same keys and values for all
      rows of an example and stays as it is.
    of_indices: gets the counters.
  """

  def visit(path, leaf: Array) -> Array:
    names = [str(getattr(key, 'key', key)) for key in path]
    if names[-1] in ('position', 'cache_index'):
      return of_indices(leaf)
    if 'encoder_decoder_attention' in names:
      return leaf
    return function(leaf, leaf.ndim - 4)

  return jax.tree_util.tree_map_with_path(visit, cache)
