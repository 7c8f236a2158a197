"""Attention with relative positions and a key-value cache."""

from __future__ import annotations

from collections.abc import Callable
import functools
from typing import Any

from flax import linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ralm_jax.losses.array_types import Array, Bool, Float, Int, PyTree, Shaped
from ralm_jax.models import layers
from ralm_jax.models.layers import Dense

Dtype = Any
# The collection of what cross-attention takes in; computed only where mutable.
NORMS = 'attention_norms'


def attention_probabilities(
  query: Float[Array, 'b q h e'],
  key: Float[Array, 'b keys h e'],
  bias: Float[Array, '#b #h #q #keys'] | None,
  *,
  scale: float = 1.0,
) -> Float[Array, 'b h q keys']:
  """Softmax over the keys; scores and softmax in float32.

  Args:
    scale: multiplies the scores; T5 uses 1, BERT 1/sqrt(head_dim).
  """
  if scale != 1.0:
    query = query * jnp.asarray(scale, query.dtype)
  scores = jnp.einsum('bqhd,bkhd->bhqk', query, key, preferred_element_type=jnp.float32)
  if bias is not None:
    scores = scores + bias
  return jax.nn.softmax(scores, axis=-1)


def mix_values(
  probabilities: Float[Array, 'b h q keys'],
  value: Float[Array, 'b keys h e'],
  dropout: Callable[[Array], Array] | None = None,
) -> Float[Array, 'b q h e']:
  """Values by their probabilities, in the dtype of the values."""
  probabilities = probabilities.astype(value.dtype)
  if dropout is not None:
    probabilities = dropout(probabilities)
  return jnp.einsum('bhqk,bkhd->bqhd', probabilities, value)


def attention_norms(
  probabilities: Float[Array, 'b h q keys'],
  value: Float[Array, 'b keys h e'],
  weights: Shaped[Array, 'b q'] | None,
) -> Float[Array, 'b keys']:
  """How much of each key's value the queries take in (Atlas, section 2.2).

  Attention probability times norm of the value, averaged over heads and summed
  over queries with their weights (None: 1 each). No gradient reaches it.
  """
  probabilities, value = jax.lax.stop_gradient((probabilities, value))
  if weights is None:
    weights = jnp.ones(probabilities.shape[::2], jnp.float32)
  # Queries first: what remains has no query axis.
  taken = jnp.einsum('bhqk,bq->bkh', probabilities, weights.astype(jnp.float32))
  norms = jnp.linalg.norm(value.astype(jnp.float32), axis=-1)
  return jnp.mean(taken * norms, axis=-1)


def summed_norms(collection: PyTree, last_layers: int | None = None) -> Float[Array, 'b keys']:
  """Sums the attention norms of a decoder's layers.

  Args:
    collection: what a reader's pass has left in the collection `NORMS`.
    last_layers: how many of the last layers count; None counts all.
  """
  decoder = collection['decoder']
  if 'layers' in decoder:
    norms = list(decoder['layers']['encoder_decoder_attention']['by_key'][0])
  else:
    norms = [
      decoder[f'layers_{i}']['encoder_decoder_attention']['by_key'][0] for i in range(len(decoder))
    ]
  return sum(norms[-(last_layers or len(norms)) :], jnp.zeros_like(norms[0]))


def attend_in_groups(
  query: Float[Array, 'rows q h e'],
  key: Float[Array, 'b keys h e'],
  value: Float[Array, 'b keys h e'],
  mask: Bool[Array, 'b groups keys'],
  *,
  scale: float = 1.0,
  group_chunk: int | None = None,
) -> Float[Array, 'rows q h e']:
  """Attention of several groups of queries (rows = b * groups) to one set of keys.

  Each group sees its own part of the keys, which are projected once for all.

  Args:
    mask: true where attendable.
    group_chunk: groups at a time, to bound memory; None takes all at once.
  """
  batch, groups = mask.shape[:2]
  length, heads, head_dim = query.shape[1:]

  def attend_chunk(
    query: Float[Array, 'b chunk q h e'], bias: Float[Array, 'b chunk keys']
  ) -> Float[Array, 'b chunk q h e']:
    chunk = query.shape[1]
    bias = jnp.broadcast_to(bias[:, None, :, None, :], (batch, 1, chunk, length, bias.shape[-1]))
    probabilities = attention_probabilities(
      query.reshape(batch, chunk * length, heads, head_dim),
      key,
      bias.reshape(batch, 1, chunk * length, -1),
      scale=scale,
    )
    return mix_values(probabilities, value).reshape(batch, chunk, length, heads, head_dim)

  query = query.reshape(batch, groups, length, heads, head_dim)
  attended = layers.map_passages(
    attend_chunk, (query, layers.mask_to_bias(mask)), group_chunk, 'gold_chunk'
  )
  # Without a single key a group takes in nothing, not the mean of what it must not see.
  attended = jnp.where(jnp.any(mask, axis=-1)[:, :, None, None, None], attended, 0)
  return attended.reshape(batch * groups, length, heads, head_dim)


def relative_position_bucket(
  relative_position: Int[Array, '*b'],
  *,
  bidirectional: bool,
  num_buckets: int = 32,
  max_distance: int = 128,
) -> Int[Array, '*b']:
  """T5's logarithmic distance buckets (Raffel et al. 2020, section 2.1).

  Args:
    relative_position: key position minus query position.
    bidirectional: whether keys to the right have buckets of their own.
    num_buckets: of both directions together.
    max_distance: distances from here on share the last bucket.
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
  def __call__(
    self, query_positions: Int[Array, ' q'], key_positions: Int[Array, ' keys']
  ) -> Float[Array, '1 h q keys']:
    table: Any = self.param(
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


@flax.struct.dataclass
class CrossAttentionOptions:
  """What a decoder's cross-attention does beside attending.

  Attributes:
    norm_weights: how much each of the decoder's positions counts in the
      attention norms, where the collection `NORMS` is asked for.
    group_mask: the decoder's rows are groups of queries that see each their own
      part of one set of keys (`attend_in_groups`).
    group_chunk: groups at a time; None takes all at once.
  """

  norm_weights: Shaped[Array, 'b t'] | None = None
  group_mask: Bool[Array, 'b groups keys'] | None = None
  group_chunk: int | None = flax.struct.field(pytree_node=False, default=None)


class MultiHeadAttention(nn.Module):
  """Self- or cross-attention with an optional key-value cache.

  With `decode=True` the `cache` collection is used: self-attention appends its keys and values at
  `cache_index`; cross-attention (`is_cross=True`) computes them from `key_value_inputs` at the
  first call and reads them afterwards, when `key_value_inputs` may be None. Cross-attention also
  leaves its `attention_norms` in the collection `NORMS`, where that is mutable.
  """

  num_heads: int
  head_dim: int
  use_bias: bool = False
  scale: float = 1.0
  query_init: Callable[..., Array] = layers.default_kernel_init
  dropout_rate: float = 0.0
  is_cross: bool = False
  max_decode_length: int | None = None
  dtype: Dtype = jnp.float32
  param_dtype: Dtype = jnp.float32

  def _cached_self(
    self, key: Float[Array, 'b chunk h e'], value: Float[Array, 'b chunk h e']
  ) -> tuple[Float[Array, 'b keys h e'], Float[Array, 'b keys h e']]:
    """Writes one chunk into the cache."""
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
    query_inputs: Float[Array, 'rows q d'],
    key_value_inputs: Float[Array, 'b keys d'] | None,
    bias: Float[Array, '#rows #h #q #cached_keys'] | None,
    *,
    deterministic: bool = True,
    decode: bool = False,
    options: CrossAttentionOptions = CrossAttentionOptions(),
  ) -> Float[Array, 'rows q d']:
    """Attends; with a group mask without dropout, and without reading `bias`."""
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
    inputs: Any = key_value_inputs
    key: Any
    value: Any
    if decode and self.is_cross:
      if self.has_variable('cache', 'cached_key'):
        key = self.get_variable('cache', 'cached_key')
        value = self.get_variable('cache', 'cached_value')
      else:
        key = split(project_key(inputs))
        value = split(project_value(inputs))
        self.put_variable('cache', 'cached_key', key)
        self.put_variable('cache', 'cached_value', value)
    else:
      key = split(project_key(inputs))
      value = split(project_value(inputs))
      if decode:
        key, value = self._cached_self(key, value)

    if options.group_mask is not None:
      attended = attend_in_groups(
        query, key, value, options.group_mask, scale=self.scale, group_chunk=options.group_chunk
      )
    else:
      dropout = None
      if self.dropout_rate and not deterministic:
        dropout = nn.Dropout(self.dropout_rate, deterministic=False)
      probabilities = attention_probabilities(query, key, bias, scale=self.scale)
      if self.is_cross and self.is_mutable_collection(NORMS) and not self.is_initializing():
        self.sow(NORMS, 'by_key', attention_norms(probabilities, value, options.norm_weights))
      attended = mix_values(probabilities, value, dropout)
    attended = attended.reshape(attended.shape[:-2] + (self.num_heads * self.head_dim,))
    return Dense(
      query_inputs.shape[-1],
      kernel_axes=('joined_kv', 'embed'),
      use_bias=self.use_bias,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      name='out',
    )(attended)
