"""The readers behind `decoding.decode`: passages encoded once, keys cached."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ralm_jax.decoding.options import DecodingOptions
from ralm_jax.losses import sequence
from ralm_jax.losses.array_types import Array, Bool, Float, Int, Shaped
from ralm_jax.models import layers, rag
from ralm_jax.models.attention import CrossAttentionOptions
from ralm_jax.models.decoder_stack import DecoderCache
from ralm_jax.models.fid import PassageReader

Cache = Any
Params = Any


RAG_DECODINGS = ('thorough', 'fast')


@dataclasses.dataclass(frozen=True)
class Generation:
  """How answers are produced.

  Attributes:
    max_length: tokens to produce at most.
    options: how tokens are chosen.
    rag_decoding: of RAG-Sequence, see `prediction.decode_by_sequence`.
    candidate_chunk: of thorough decoding: candidates scored at a time; None
      takes as many as there are beams.
    prefill_chunk: positions of a prompt or a prefix that are computed at a time.
    stop_ids: tokens that end an answer as the end of sequence does; of decoder-only readers.

  Raises:
    ValueError: an unknown `rag_decoding`.
  """

  max_length: int
  options: DecodingOptions = DecodingOptions()
  rag_decoding: str = 'thorough'
  candidate_chunk: int | None = None
  prefill_chunk: int = 128
  stop_ids: tuple[int, ...] = ()

  def __post_init__(self):
    if self.rag_decoding not in RAG_DECODINGS:
      raise ValueError(
        f'rag_decoding {self.rag_decoding!r} is unknown; choose one of {RAG_DECODINGS}.'
      )


@dataclasses.dataclass(frozen=True)
class Prefix:
  """Tokens, padded on the LEFT, that every answer begins with and does not count."""

  tokens: Int[Array, 'b t']
  lengths: Int[Array, ' b']

  def repeat(self, n: int) -> Prefix:
    """For n rows an example."""
    return Prefix(jnp.repeat(self.tokens, n, axis=0), jnp.repeat(self.lengths, n, axis=0))


@dataclasses.dataclass(frozen=True)
class CachedReader:
  """A stepper: `n` rows an example share the keys and values of its passages.

  With `log_prior` there are k decodings a row, one for each passage, and the
  next token's distribution is RAG-Token's marginal over them; without, one.

  Attributes:
    encoded: encoder states of b * k passages; k = 1 without a prior.
    max_length: tokens to produce at most.
    log_prior: None decodes from all keys together.
    prefix: of every answer.
    prefill_chunk: positions of the prefix that are computed at a time.
  """

  reader: PassageReader
  params: Params
  encoded: Float[Array, 'passages keys d']
  encoded_mask: Shaped[Array, 'passages keys']
  max_length: int
  log_prior: Float[Array, 'b k'] | None = None
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

  def _rows(self, array: Shaped[Array, 'b {n} *rest'], n: int) -> Shaped[Array, ' rows *rest']:
    """[batch, n, ...] -> [batch * k * n, ...], the same for every passage."""
    spread = jnp.broadcast_to(array[:, None], (self._batch, self._n_passages, n, *array.shape[2:]))
    return spread.reshape(-1, *array.shape[2:])

  def _left_padding(self, n: int) -> Int[Array, ' rows'] | None:
    if self.prefix is None:
      return None
    padding = self._prefix_length - self.prefix.lengths
    return self._rows(jnp.broadcast_to(padding[:, None], (self._batch, n)), n)

  def _apply(
    self,
    tokens: Int[Array, 'rows t'],
    cache: Cache | None,
    n: int,
    cache_length: int,
    last_only: bool = True,
  ) -> tuple[Float[Array, 'rows t_or_1 v'], Cache]:
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
      cache=DecoderCache(cache_length, self._left_padding(n)),
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

  def _inputs(self) -> Int[Array, 'b t']:
    """The start token, right before a row's first token, and the prefix."""
    start = self.reader.config.decoder_start_id
    first = jnp.full((self._batch, 1), start, jnp.int32)
    if self.prefix is None:
      return first
    length = self._prefix_length
    position = jnp.arange(length + 1)
    inputs = jnp.concatenate([first, self.prefix.tokens.astype(jnp.int32)], axis=1)
    at_start = position[None] == (length - self.prefix.lengths)[:, None]
    return jnp.where(at_start, start, inputs)

  def start(self) -> tuple[Float[Array, 'b v'], Cache]:
    """Fills the cache with the start token and the prefix, chunk by chunk.

    Returns:
      Logits of the first token to produce, and the cache of one row an example.
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

  def _marginalize(self, logits: Float[Array, 'rows 1 v'], n: int) -> Float[Array, 'b {n} v']:
    logits = logits.reshape(self._batch, self._n_passages, n, -1)
    if self.log_prior is None:
      return logits[:, 0]
    return rag.marginal_log_probs(self.log_prior, logits)

  def step(
    self, tokens: Int[Array, 'b rows'], cache: Cache
  ) -> tuple[Float[Array, 'b rows v'], Cache]:
    """Logits of the next token."""
    n = tokens.shape[1]
    logits, cache = self._apply(self._rows(tokens, n)[:, None], cache, n, self._cache_length)
    return self._marginalize(logits, n), cache

  def expand(self, cache: Cache, n: int) -> Cache:
    """The cache of one row an example -> of n equal rows."""
    return _map_own_cache(lambda rows, axis: jnp.repeat(rows, n, axis=axis), cache)

  def reorder(self, cache: Cache, parents: Int[Array, 'b rows']) -> Cache:
    """The cache whose row j of an example continues row `parents[:, j]`."""
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

  def score(
    self, candidates: Int[Array, 'b c t'], mask: Bool[Array, 'b c t'], cache: Cache
  ) -> Float[Array, 'b k c']:
    """log p(candidate | x, z) of every candidate under every passage.

    Args:
      candidates: what follows the prefix.
      mask: true on tokens that count.
      cache: any of this reader, for its projected keys and values.
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

  It gets the axis of their rows, too, which is followed by that of positions;
  `of_indices` gets the counters. Cross-attention has the same keys and values
  for all rows of an example and stays as it is.
  """

  def visit(path: tuple[Any, ...], leaf: Array) -> Array:
    names = [str(getattr(key, 'key', key)) for key in path]
    if names[-1] in ('position', 'cache_index'):
      return of_indices(leaf)
    if 'encoder_decoder_attention' in names:
      return leaf
    return function(leaf, leaf.ndim - 4)

  return jax.tree_util.tree_map_with_path(visit, cache)
