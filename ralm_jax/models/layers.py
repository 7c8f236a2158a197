"""Layers shared by the T5 and BERT stacks, with logical axis names.

Every parameter carries logical axis names (`embed`, `joined_kv`, `mlp`,
`vocab`, ...) that `training/partitioning.py` maps to mesh axes; activations are
constrained by the same mechanism. Parameters are float32 (`param_dtype`),
computation happens in the configured dtype, and softmax, norms and logits are
float32 whatever that dtype is.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
import functools
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np

Array = jax.Array
Dtype = Any

# Finite, so that a row without a single valid key averages instead of
# producing NaN; far enough below any score to vanish in float32 and bfloat16.
MASK_BIAS = -1e10

default_kernel_init = nn.initializers.variance_scaling(
    1.0, 'fan_in', 'normal'
)


def constrain(array: Array, *logical_axes: str | None) -> Array:
  """Constrains an activation's sharding by logical names; no-op off a mesh.

  A mesh axis that does not divide its dimension is left out, for otherwise XLA
  pads, or replicates the whole array on the way from one uneven layout to
  another. The compiler then chooses that dimension's layout: a batch smaller
  than the `data` axis keeps its keys spread over it in cross-attention.

  Args:
    array: an activation.
    logical_axes: a name or None for every dimension.
  """
  mesh = jax.sharding.get_abstract_mesh()
  rules = nn.get_logical_axis_rules()
  if mesh.empty or not rules:
    return array
  spec = nn.logical_to_mesh_axes(logical_axes, rules)

  def fit(axis: str | tuple[str, ...] | None, size: int):
    names = (axis,) if isinstance(axis, str) else axis or ()
    divides = size % math.prod(mesh.shape[name] for name in names) == 0
    return axis if divides else PartitionSpec.UNCONSTRAINED

  return jax.lax.with_sharding_constraint(
      array, PartitionSpec(*map(fit, spec, array.shape))
  )


def mask_to_bias(mask: Array) -> Array:
  """mask: bool or int, true where attendable -> float32 bias of 0 or -1e10."""
  return jnp.where(mask.astype(bool), 0.0, MASK_BIAS).astype(jnp.float32)


def attend(
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None,
    *,
    scale: float = 1.0,
    dropout: Callable[[Array], Array] | None = None,
) -> Array:
  """Softmax attention over the last key axis; scores and softmax in float32.

  Args:
    query: [batch, query_length, heads, d_kv].
    key: [batch, key_length, heads, d_kv].
    value: [batch, key_length, heads, d_kv].
    bias: float32, broadcastable to [batch, heads, query_length, key_length].
    scale: multiplies the scores; T5 uses 1, BERT 1/sqrt(d_kv).
    dropout: applied to the probabilities when given.

  Returns:
    [batch, query_length, heads, d_kv] in the dtype of `value`.
  """
  if scale != 1.0:
    query = query * jnp.asarray(scale, query.dtype)
  scores = jnp.einsum(
      'bqhd,bkhd->bhqk', query, key, preferred_element_type=jnp.float32
  )
  if bias is not None:
    scores = scores + bias
  probabilities = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
  if dropout is not None:
    probabilities = dropout(probabilities)
  return jnp.einsum('bhqk,bkhd->bqhd', probabilities, value)


class Dense(nn.Module):
  """A linear map over the last axis; kernel [features_in, features]."""

  features: int
  kernel_axes: tuple[str, str]
  use_bias: bool = False
  kernel_init: Callable[..., Array] = default_kernel_init
  dtype: Dtype = jnp.float32
  param_dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, inputs: Array) -> Array:
    kernel = self.param(
        'kernel',
        nn.with_logical_partitioning(self.kernel_init, self.kernel_axes),
        (inputs.shape[-1], self.features),
        self.param_dtype,
    )
    outputs = jnp.dot(inputs.astype(self.dtype), kernel.astype(self.dtype))
    if self.use_bias:
      bias = self.param(
          'bias',
          nn.with_logical_partitioning(
              nn.initializers.zeros_init(), (self.kernel_axes[-1],)
          ),
          (self.features,),
          self.param_dtype,
      )
      outputs = outputs + bias.astype(self.dtype)
    return outputs


class Embed(nn.Module):
  """An embedding table [num_embeddings, features] that can also attend."""

  num_embeddings: int
  features: int
  embedding_axes: tuple[str | None, str] = ('vocab', 'embed')
  embedding_init: Callable[..., Array] = nn.initializers.normal(1.0)
  dtype: Dtype = jnp.float32
  param_dtype: Dtype = jnp.float32

  def setup(self):
    self.embedding = self.param(
        'embedding',
        nn.with_logical_partitioning(self.embedding_init, self.embedding_axes),
        (self.num_embeddings, self.features),
        self.param_dtype,
    )

  def __call__(self, tokens: Array) -> Array:
    """tokens: int [...] -> [..., features] in the computation dtype."""
    return jnp.take(self.embedding, tokens, axis=0).astype(self.dtype)

  def attend(self, hidden: Array) -> Array:
    """hidden: [..., features] -> float32 [..., num_embeddings]."""
    return jnp.dot(
        hidden.astype(self.dtype),
        self.embedding.astype(self.dtype).T,
        preferred_element_type=jnp.float32,
    )


class RMSNorm(nn.Module):
  """T5's layer norm: no centring, no bias; the statistic is float32."""

  epsilon: float = 1e-6
  dtype: Dtype = jnp.float32
  param_dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, inputs: Array) -> Array:
    hidden = inputs.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(hidden), axis=-1, keepdims=True)
    scale = self.param(
        'scale',
        nn.with_logical_partitioning(nn.initializers.ones_init(), ('embed',)),
        (inputs.shape[-1],),
        self.param_dtype,
    )
    normed = hidden * jax.lax.rsqrt(mean_square + self.epsilon)
    return normed.astype(self.dtype) * scale.astype(self.dtype)


class LayerNorm(nn.Module):
  """BERT's layer norm with bias; statistics are float32.

  `second_moment=True` divides by sqrt(E[x^2] + eps) without centring the second
  moment, which is what all released Atlas weights were trained with.
  """

  epsilon: float = 1e-12
  second_moment: bool = False
  dtype: Dtype = jnp.float32
  param_dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, inputs: Array) -> Array:
    hidden = inputs.astype(jnp.float32)
    mean = jnp.mean(hidden, axis=-1, keepdims=True)
    centred = hidden - mean
    moment = jnp.mean(
        jnp.square(hidden if self.second_moment else centred),
        axis=-1, keepdims=True,
    )
    shape = (inputs.shape[-1],)
    scale = self.param(
        'scale',
        nn.with_logical_partitioning(nn.initializers.ones_init(), ('embed',)),
        shape, self.param_dtype,
    )
    bias = self.param(
        'bias',
        nn.with_logical_partitioning(nn.initializers.zeros_init(), ('embed',)),
        shape, self.param_dtype,
    )
    normed = centred * jax.lax.rsqrt(moment + self.epsilon)
    return (normed * scale + bias).astype(self.dtype)


def relative_position_bucket(
    relative_position: Array,
    *,
    bidirectional: bool,
    num_buckets: int = 32,
    max_distance: int = 128,
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
            nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform'),
            ('heads', 'relpos_buckets'),
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
  query_init: Callable[..., Array] = default_kernel_init
  dropout_rate: float = 0.0
  is_cross: bool = False
  max_decode_length: int | None = None
  dtype: Dtype = jnp.float32
  param_dtype: Dtype = jnp.float32

  def _cached_self(
      self, key: Array, value: Array
  ) -> tuple[Array, Array]:
    """Writes one chunk into the cache; key, value: [batch, chunk, heads, d]."""
    batch, _, heads, d_kv = key.shape
    shape = (batch, self.max_decode_length, heads, d_kv)
    cached_key = self.variable('cache', 'cached_key', jnp.zeros, shape, key.dtype)
    cached_value = self.variable(
        'cache', 'cached_value', jnp.zeros, shape, value.dtype
    )
    index = self.variable(
        'cache', 'cache_index', lambda: jnp.zeros((), jnp.int32)
    )
    start = (0, index.value, 0, 0)
    cached_key.value = jax.lax.dynamic_update_slice(cached_key.value, key, start)
    cached_value.value = jax.lax.dynamic_update_slice(
        cached_value.value, value, start
    )
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
  ) -> Array:
    """Attends.

    Args:
      query_inputs: [batch, query_length, embed].
      key_value_inputs: [batch, key_length, embed].
      bias: float32, broadcastable to [batch, heads, query_length, key_length].
      deterministic: no dropout.
      decode: use the cache.

    Returns:
      [batch, query_length, embed].
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
      hidden = hidden.reshape(
          hidden.shape[:-1] + (self.num_heads, self.head_dim)
      )
      return constrain(hidden, 'batch', 'length', 'heads', 'kv')

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

    dropout = None
    if self.dropout_rate and not deterministic:
      dropout = nn.Dropout(self.dropout_rate, deterministic=False)
    attended = attend(query, key, value, bias, scale=self.scale, dropout=dropout)
    attended = attended.reshape(
        attended.shape[:-2] + (self.num_heads * self.head_dim,)
    )
    return Dense(
        query_inputs.shape[-1],
        kernel_axes=('joined_kv', 'embed'),
        use_bias=self.use_bias,
        dtype=self.dtype,
        param_dtype=self.param_dtype,
        name='out',
    )(attended)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    'relu': jax.nn.relu,
    # The tanh form is what T5 1.1 calls gelu; BERT's is the error function.
    'gelu': functools.partial(jax.nn.gelu, approximate=True),
    'gelu_exact': functools.partial(jax.nn.gelu, approximate=False),
    'silu': jax.nn.silu,
    'linear': lambda x: x,
}


class MlpBlock(nn.Module):
  """T5's feed-forward block; several activations make it gated (GLU)."""

  mlp_dim: int
  activations: Sequence[str] = ('relu',)
  dropout_rate: float = 0.0
  use_bias: bool = False
  dtype: Dtype = jnp.float32
  param_dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, inputs: Array, *, deterministic: bool = True) -> Array:
    """inputs: [batch, length, embed] -> the same shape."""
    unknown = set(self.activations) - set(ACTIVATIONS)
    if unknown:
      raise ValueError(
          f'Unknown activation {sorted(unknown)}; known: {sorted(ACTIVATIONS)}.'
      )
    hidden = None
    for i, activation in enumerate(self.activations):
      name = 'wi' if len(self.activations) == 1 else f'wi_{i}'
      branch = Dense(
          self.mlp_dim,
          kernel_axes=('embed', 'mlp'),
          use_bias=self.use_bias,
          dtype=self.dtype,
          param_dtype=self.param_dtype,
          name=name,
      )(inputs)
      branch = ACTIVATIONS[activation](branch)
      hidden = branch if hidden is None else hidden * branch
    hidden = nn.Dropout(self.dropout_rate)(hidden, deterministic=deterministic)
    hidden = constrain(hidden, 'batch', 'length', 'mlp')
    return Dense(
        inputs.shape[-1],
        kernel_axes=('mlp', 'embed'),
        use_bias=self.use_bias,
        dtype=self.dtype,
        param_dtype=self.param_dtype,
        name='wo',
    )(hidden)


REMAT_POLICIES = {
    'none': None,
    'full': jax.checkpoint_policies.nothing_saveable,
    'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def stack_layers(
    layer_class: type[nn.Module],
    num_layers: int,
    *,
    scan: bool,
    remat_policy: str,
    **layer_kwargs,
) -> Callable[..., Array]:
  """Returns `run(hidden, *arrays, deterministic, decode)` over a layer stack.

  Unscanned layers are named `layers_0`, `layers_1`, ... as T5X names them; a
  scanned stack is one module `layers` whose parameters have a leading axis
  `layers`. Each layer is called as
  `layer(hidden, *arrays, deterministic, decode)` and returns the new hidden.

  Raises:
    ValueError: for an unknown rematerialisation policy.
  """
  if remat_policy not in REMAT_POLICIES:
    raise ValueError(
        f'remat_policy {remat_policy!r} is unknown; choose one of '
        f'{sorted(REMAT_POLICIES)}.'
    )

  def run(hidden, *arrays, deterministic: bool, decode: bool = False):
    cls = layer_class
    if remat_policy != 'none' and not decode:
      static = tuple(range(2 + len(arrays), 4 + len(arrays)))
      cls = nn.remat(
          cls,
          policy=REMAT_POLICIES[remat_policy],
          prevent_cse=not scan,
          static_argnums=static,
      )
    if not scan:
      for i in range(num_layers):
        hidden = cls(name=f'layers_{i}', **layer_kwargs)(
            hidden, *arrays, deterministic, decode
        )
      return hidden
    scanned = nn.scan(
        lambda layer, carry, _: (
            layer(carry, *arrays, deterministic, decode), None
        ),
        variable_axes={'params': 0, 'cache': 0},
        split_rngs={'params': True, 'dropout': True},
        length=num_layers,
        metadata_params={nn.PARTITION_NAME: 'layers'},
    )
    hidden, _ = scanned(cls(name='layers', **layer_kwargs), hidden, None)
    return hidden

  return run
