"""Attention with relative positions and a key-value cache."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ralm_jax.models import layers
from ralm_jax.models.layers import Dense

Array = jax.Array
Dtype = Any


def attend(
  query: Array,
  key: Array,
  value: Array,
  bias: Array | None,
  *,
  scale: float = 1.0,
  dropout: Callable[[Array], Array] | None = None,
  norm_weights: Array | None = None,
) -> Array | tuple[Array, Array]:
  """Softmax attention over the last key axis; scores and softmax in float32.

  Args:
    query: [batch, query_length, heads, d_kv].
    key: [batch, key_length, heads, d_kv].
    value: [batch, key_length, heads, d_kv].
    bias: float32, broadcastable to [batch, heads, query_length, key_length].
    scale: multiplies the scores; T5 uses 1, BERT 1/sqrt(d_kv).
    dropout: applied to the probabilities when given.
    norm_weights: [batch, query_length], to return `attention_norms` as well.

  Returns:
    [batch, query_length, heads, d_kv] in the dtype of `value`; with
    `norm_weights` a pair of it and float32 [batch, key_length].
  """
  if scale != 1.0:
    query = query * jnp.asarray(scale, query.dtype)
  scores = jnp.einsum('bqhd,bkhd->bhqk', query, key, preferred_element_type=jnp.float32)
  if bias is not None:
    scores = scores + bias
  exact_probabilities = jax.nn.softmax(scores, axis=-1)
  probabilities = exact_probabilities.astype(value.dtype)
  if dropout is not None:
    probabilities = dropout(probabilities)
  attended = jnp.einsum('bhqk,bkhd->bqhd', probabilities, value)
  if norm_weights is None:
    return attended
  return attended, attention_norms(exact_probabilities, value, norm_weights)


def attention_norms(probabilities: Array, value: Array, weights: Array) -> Array:
  """How much of each key's value the queries take in (Atlas, section 2.2).

  Attention probability times norm of the value, averaged over heads and summed
  over queries with their weights. No gradient reaches it.

  Args:
    probabilities: float32 [batch, heads, query_length, key_length].
    value: [batch, key_length, heads, d_kv].
    weights: [batch, query_length].

  Returns:
    float32 [batch, key_length].
  """
  probabilities, value = jax.lax.stop_gradient((probabilities, value))
  # Queries first: what remains has no query axis.
  taken = jnp.einsum('bhqk,bq->bkh', probabilities, weights.astype(jnp.float32))
  norms = jnp.linalg.norm(value.astype(jnp.float32), axis=-1)
  return jnp.mean(taken * norms, axis=-1)


def attend_in_groups(
  query: Array,
  key: Array,
  value: Array,
  mask: Array,
  *,
  scale: float = 1.0,
  group_chunk: int | None = None,
) -> Array:
  """Attention of several groups of queries to one set of keys and values.

  Each group sees its own part of the keys, which are projected once for all.

  Args:
    query: [batch * groups, query_length, heads, d_kv].
    key: [batch, key_length, heads, d_kv].
    value: [batch, key_length, heads, d_kv].
    mask: bool [batch, groups, key_length], true where attendable.
    scale: multiplies the scores.
    group_chunk: groups at a time, to bound memory; None takes all at once.

  Returns:
    [batch * groups, query_length, heads, d_kv].
  """
  batch, groups = mask.shape[:2]
  length, heads, d_kv = query.shape[1:]

  def attend_chunk(query: Array, bias: Array) -> Array:
    """query: [batch, chunk, length, heads, d_kv]; bias: [batch, chunk, keys]."""
    chunk = query.shape[1]
    bias = jnp.broadcast_to(bias[:, None, :, None, :], (batch, 1, chunk, length, bias.shape[-1]))
    attended = attend(
      query.reshape(batch, chunk * length, heads, d_kv),
      key,
      value,
      bias.reshape(batch, 1, chunk * length, -1),
      scale=scale,
    )
    return attended.reshape(batch, chunk, length, heads, d_kv)

  query = query.reshape(batch, groups, length, heads, d_kv)
  bias = layers.mask_to_bias(mask)
  if not group_chunk or group_chunk >= groups:
    attended = attend_chunk(query, bias)
  else:
    split = functools.partial(layers.split_passages, size=group_chunk, name='gold_chunk')
    attended = layers.join_passages(
      jax.lax.map(lambda part: attend_chunk(*part), (split(query), split(bias)))
    )
  return attended.reshape(batch * groups, length, heads, d_kv)


def relative_position_bucket(
  relative_position: Array, *, bidirectional: bool, num_buckets: int = 32, max_distance: int = 128
) -> Array:
  """T5's logarithmic distance buckets (Raffel et al. 2020, section 2.1).

  Args:
    relative_position: int [...], key position minus query position.
    bidirectional: whether keys to the right have buckets of their own.
    num_buckets: total number of buckets.
    max_distance: distances from here on share the last bucket.

  Returns:
    int32 [...] in [0, num_buckets).
  """
  bucket = jnp.zeros_like(relative_position)
  distance = -relative_position
  if bidirectional:
    num_buckets //= 2
    bucket += (distance < 0).astype(jnp.int32) * num_buckets
    distance = jnp.abs(distance)
  else:
    distance = jnp.maximum(distance, 0)
  max_exact = num_buckets // 2
  # The maximum avoids log(0); those entries take the exact branch below.
  logarithmic = max_exact + (
    jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / max_exact)
    / np.log(max_distance / max_exact)
    * (num_buckets - max_exact)
  ).astype(jnp.int32)
  logarithmic = jnp.minimum(logarithmic, num_buckets - 1)
  return bucket + jnp.where(distance < max_exact, distance, logarithmic)


class RelativePositionBias(nn.Module):
  """One bias table for all layers of a stack: rel_embedding [heads, buckets]."""

  num_heads: int
  bidirectional: bool
  num_buckets: int = 32
  max_distance: int = 128
  param_dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, query_positions: Array, key_positions: Array) -> Array:
    """[query_length], [key_length] -> float32 [1, heads, query, key]."""
    table = self.param(
      'rel_embedding',
      nn.with_logical_partitioning(
        nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform'), ('heads', 'relpos_buckets')
      ),
      (self.num_heads, self.num_buckets),
      self.param_dtype,
    )
    buckets = relative_position_bucket(
      key_positions[None, :] - query_positions[:, None],
      bidirectional=self.bidirectional,
      num_buckets=self.num_buckets,
      max_distance=self.max_distance,
    )
    return jnp.take(table.astype(jnp.float32), buckets, axis=1)[None]


@dataclasses.dataclass(frozen=True)
class CrossAttentionOptions:
  """What a decoder's cross-attention does beside attending.

  Attributes:
    norm_weights: [batch, length], weights of the decoder's positions; the
      attention norms of the keys are then summed over positions and layers
      (`attention_norms`).
    norm_layers: how many of the last layers count; None counts all.
    group_mask: bool [batch, groups, keys]: the decoder's rows are groups of
      queries that see each their own part of one set of keys
      (`attend_in_groups`).
    group_chunk: groups at a time; None takes all at once.
  """

  norm_weights: Array | None = None
  norm_layers: int | None = None
  group_mask: Array | None = None
  group_chunk: int | None = None


class MultiHeadAttention(nn.Module):
  """Self- or cross-attention with an optional key-value cache.

  With `decode=True` the `cache` collection is used: self-attention appends its
  keys and values at `cache_index`; cross-attention (`is_cross=True`) computes
  them from `key_value_inputs` at the first call and reads them afterwards, when
  `key_value_inputs` may be None.
  """

  num_heads: int
  head_dim: int
  use_bias: bool = False
  scale: float = 1.0
  query_init: Callable[..., Array] = layers.default_kernel_init
  dropout_rate: float = 0.0
  is_cross: bool = False
  max_decode_length: int | None = None
  # Of `attend_in_groups`.
  group_chunk: int | None = None
  dtype: Dtype = jnp.float32
  param_dtype: Dtype = jnp.float32

  def _cached_self(self, key: Array, value: Array) -> tuple[Array, Array]:
    """Writes one chunk into the cache; key, value: [batch, chunk, heads, d]."""
    batch, _, heads, d_kv = key.shape
    shape = (batch, self.max_decode_length, heads, d_kv)
    cached_key = self.variable('cache', 'cached_key', jnp.zeros, shape, key.dtype)
    cached_value = self.variable('cache', 'cached_value', jnp.zeros, shape, value.dtype)
    index = self.variable('cache', 'cache_index', lambda: jnp.zeros((), jnp.int32))
    start = (0, index.value, 0, 0)
    cached_key.value = jax.lax.dynamic_update_slice(cached_key.value, key, start)
    cached_value.value = jax.lax.dynamic_update_slice(cached_value.value, value, start)
    index.value = index.value + key.shape[1]
    return cached_key.value, cached_value.value

  @nn.compact
  def __call__(
    self,
    query_inputs: Array,
    key_value_inputs: Array | None,
    bias: Array | None,
    *,
    deterministic: bool = True,
    decode: bool = False,
    norm_weights: Array | None = None,
    group_mask: Array | None = None,
  ) -> Array | tuple[Array, Array]:
    """Attends.

    Args:
      query_inputs: [batch, query_length, embed].
      key_value_inputs: [batch, key_length, embed].
      bias: float32, broadcastable to [batch, heads, query_length, key_length].
      deterministic: no dropout.
      decode: use the cache.
      norm_weights: [batch, query_length], to return `attention_norms` as well.
      group_mask: bool [batch, groups, key_length]; the queries are then those
        of `attend_in_groups`, [batch * groups, query_length, embed], without
        dropout, and `bias` is not read.

    Returns:
      [batch, query_length, embed]; with `norm_weights` a pair of it and
      float32 [batch, key_length].
    """
    project = functools.partial(
      Dense,
      self.num_heads * self.head_dim,
      kernel_axes=('embed', 'joined_kv'),
      use_bias=self.use_bias,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
    )

    def split(hidden: Array) -> Array:
      hidden = hidden.reshape(hidden.shape[:-1] + (self.num_heads, self.head_dim))
      return layers.constrain(hidden, 'batch', 'length', 'heads', 'kv')

    query = split(project(name='query', kernel_init=self.query_init)(query_inputs))
    project_key, project_value = project(name='key'), project(name='value')
    if decode and self.is_cross:
      if self.has_variable('cache', 'cached_key'):
        key = self.get_variable('cache', 'cached_key')
        value = self.get_variable('cache', 'cached_value')
      else:
        key = split(project_key(key_value_inputs))
        value = split(project_value(key_value_inputs))
        self.put_variable('cache', 'cached_key', key)
        self.put_variable('cache', 'cached_value', value)
    else:
      key = split(project_key(key_value_inputs))
      value = split(project_value(key_value_inputs))
      if decode:
        key, value = self._cached_self(key, value)

    norms = None
    if group_mask is not None:
      attended = attend_in_groups(
        query, key, value, group_mask, scale=self.scale, group_chunk=self.group_chunk
      )
    else:
      dropout = None
      if self.dropout_rate and not deterministic:
        dropout = nn.Dropout(self.dropout_rate, deterministic=False)
      attended = attend(
        query, key, value, bias, scale=self.scale, dropout=dropout, norm_weights=norm_weights
      )
      if norm_weights is not None:
        attended, norms = attended
    attended = attended.reshape(attended.shape[:-2] + (self.num_heads * self.head_dim,))
    outputs = Dense(
      query_inputs.shape[-1],
      kernel_axes=('joined_kv', 'embed'),
      use_bias=self.use_bias,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      name='out',
    )(attended)
    return outputs if norm_weights is None else (outputs, norms)
