"""Layers shared by the T5 and BERT stacks, with logical axis names.

Every parameter carries logical axis names (`embed`, `joined_kv`, `mlp`, `vocab`, ...) that
`training/partitioning.py` maps to mesh axes; activations are constrained by the same mechanism.
Parameters are float32 (`param_dtype`), computation happens in the configured dtype, and softmax,
norms and logits are float32 whatever that dtype is.
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

from ralm_jax.losses.array_types import Array, Float, Int, PyTree, Shaped

Dtype = Any

# Finite, so that a row without a single valid key averages instead of
# producing NaN; far enough below any score to vanish in float32 and bfloat16.
MASK_BIAS = -1e10

default_kernel_init = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal')


def constrain(array: Array, *logical_axes: str | None) -> Array:
  """Constrains an activation's sharding by logical names; no-op off a mesh.

  A mesh axis that does not divide its dimension is left out, for otherwise XLA
  pads, or replicates the whole array on the way from one uneven layout to
  another. The compiler then chooses that dimension's layout: a batch smaller
  than the `data` axis keeps its keys spread over it in cross-attention.
  """
  mesh = jax.sharding.get_abstract_mesh()
  rules = nn.get_logical_axis_rules()
  if mesh.empty or not rules:
    return array
  spec: Any = nn.logical_to_mesh_axes(logical_axes, rules)

  def fit(axis: str | tuple[str, ...] | None, size: int):
    names = (axis,) if isinstance(axis, str) else axis or ()
    divides = size % math.prod(mesh.shape[name] for name in names) == 0
    return axis if divides else PartitionSpec.UNCONSTRAINED

  return jax.lax.with_sharding_constraint(array, PartitionSpec(*map(fit, spec, array.shape)))


def mask_to_bias(mask: Shaped[Array, '*b']) -> Float[Array, '*b']:
  """Adds nothing where attendable, elsewhere `MASK_BIAS`."""
  return jnp.where(mask.astype(bool), 0.0, MASK_BIAS).astype(jnp.float32)


def call(module: nn.Module, params: PyTree, *args: Any, **kwargs: Any) -> Any:
  """`module.apply` of parameters alone; returns what the method does."""
  return module.apply({'params': params}, *args, **kwargs)


def split_passages(
  array: Shaped[Array, 'b n *rest'], size: int, name: str
) -> Shaped[Array, 'parts b {size} *rest']:
  """Parts of `size` passages, for `jax.lax.map`.

  Raises:
    ValueError: `size`, which the user knows as `name`, does not divide n.
  """
  batch, n = array.shape[:2]
  if n % size:
    raise ValueError(f'{name} {size} must divide the number of passages {n}.')
  parts = array.reshape(batch, n // size, size, *array.shape[2:])
  return jnp.moveaxis(parts, 1, 0)


def join_passages(parts: Shaped[Array, 'parts b size *rest']) -> Shaped[Array, 'b n *rest']:
  """The inverse of `split_passages`."""
  count, batch, size = parts.shape[:3]
  return jnp.moveaxis(parts, 0, 1).reshape(batch, count * size, *parts.shape[3:])


def map_passages(
  function: Callable[..., Array], arrays: tuple[PyTree, ...], size: int | None, name: str
) -> Array:
  """`function(*arrays)` for `size` passages, axis 1, at a time; None takes all at once."""
  if not size or size >= arrays[0].shape[1]:
    return function(*arrays)
  parts = tuple(split_passages(jnp.asarray(array), size, name) for array in arrays)
  return join_passages(jax.lax.map(lambda part: function(*part), parts))


class Dense(nn.Module):
  """A linear map over the last axis; kernel [features_in, features]."""

  features: int
  kernel_axes: tuple[str, str]
  use_bias: bool = False
  kernel_init: Callable[..., Array] = default_kernel_init
  dtype: Dtype = jnp.float32
  param_dtype: Dtype = jnp.float32
  # None: that of `dtype`. float32 keeps what the accumulator knew of logits.
  output_dtype: Dtype | None = None

  @nn.compact
  def __call__(self, inputs: Float[Array, '*b d']) -> Float[Array, '*b features']:
    kernel: Any = self.param(
      'kernel',
      nn.with_logical_partitioning(self.kernel_init, self.kernel_axes),
      (inputs.shape[-1], self.features),
      self.param_dtype,
    )
    outputs = jnp.dot(
      inputs.astype(self.dtype), kernel.astype(self.dtype), preferred_element_type=self.output_dtype
    )
    if self.use_bias:
      bias: Any = self.param(
        'bias',
        nn.with_logical_partitioning(nn.initializers.zeros_init(), (self.kernel_axes[-1],)),
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
    self.embedding: Any = self.param(
      'embedding',
      nn.with_logical_partitioning(self.embedding_init, self.embedding_axes),
      (self.num_embeddings, self.features),
      self.param_dtype,
    )

  def __call__(self, tokens: Int[Array, '*b']) -> Float[Array, '*b d']:
    return jnp.take(self.embedding, tokens, axis=0).astype(self.dtype)

  def attend(self, hidden: Float[Array, '*b d']) -> Float[Array, '*b v']:
    """Inner products with every row, in float32."""
    return jnp.dot(
      hidden.astype(self.dtype),
      self.embedding.astype(self.dtype).T,
      preferred_element_type=jnp.float32,
    )


_ONES = nn.with_logical_partitioning(nn.initializers.ones_init(), ('embed',))
_ZEROS = nn.with_logical_partitioning(nn.initializers.zeros_init(), ('embed',))


class RMSNorm(nn.Module):
  """T5's layer norm: no centring, no bias; the statistic is float32."""

  epsilon: float = 1e-6
  dtype: Dtype = jnp.float32
  param_dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, inputs: Float[Array, '*b d']) -> Float[Array, '*b d']:
    hidden = inputs.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(hidden), axis=-1, keepdims=True)
    scale: Any = self.param('scale', _ONES, inputs.shape[-1:], self.param_dtype)
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
  def __call__(self, inputs: Float[Array, '*b d']) -> Float[Array, '*b d']:
    hidden = inputs.astype(jnp.float32)
    mean = jnp.mean(hidden, axis=-1, keepdims=True)
    centred = hidden - mean
    moment = jnp.mean(jnp.square(hidden if self.second_moment else centred), axis=-1, keepdims=True)
    scale: Any = self.param('scale', _ONES, inputs.shape[-1:], self.param_dtype)
    bias: Any = self.param('bias', _ZEROS, inputs.shape[-1:], self.param_dtype)
    normed = centred * jax.lax.rsqrt(moment + self.epsilon)
    return (normed * scale + bias).astype(self.dtype)


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
  def __call__(
    self, inputs: Float[Array, 'b s d'], *, deterministic: bool = True
  ) -> Float[Array, 'b s d']:
    unknown = set(self.activations) - set(ACTIVATIONS)
    if unknown:
      raise ValueError(f'Unknown activation {sorted(unknown)}; known: {sorted(ACTIVATIONS)}.')
    branches = []
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
      branches.append(ACTIVATIONS[activation](branch))
    hidden = functools.reduce(jnp.multiply, branches)
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
  layer_class: type[nn.Module], config: Any, num_layers: int, **layer_kwargs: Any
) -> Callable[..., Array]:
  """Returns `run(hidden, *inputs, deterministic, decode)` over a layer stack.

  Unscanned layers are named `layers_0`, `layers_1`, ... as T5X names them; a
  scanned stack is one module `layers` whose parameters have a leading axis
  `layers`. Each layer is called as `layer(hidden, *inputs, deterministic,
  decode)`, inputs being arrays, trees of them or None, and returns the new hidden.

  Args:
    layer_class: takes `config` and `layer_kwargs`.
    config: its `scan_layers` and `remat_policy` are read here.

  Raises:
    ValueError: for an unknown rematerialisation policy.
  """
  scan, policy = config.scan_layers, config.remat_policy
  if policy not in REMAT_POLICIES:
    raise ValueError(f'remat_policy {policy!r} is unknown; choose one of {sorted(REMAT_POLICIES)}.')
  layer_kwargs['config'] = config

  def run(hidden: Array, *inputs: PyTree, deterministic: bool, decode: bool = False) -> Array:
    cls = layer_class
    if policy != 'none' and not decode:
      # deterministic and decode, which follow the inputs.
      static = (2 + len(inputs), 3 + len(inputs))
      cls = nn.remat(
        cls, policy=REMAT_POLICIES[policy], prevent_cse=not scan, static_argnums=static
      )
    if not scan:
      for i in range(num_layers):
        hidden = cls(name=f'layers_{i}', **layer_kwargs)(hidden, *inputs, deterministic, decode)
      return hidden
    scanned = nn.scan(
      lambda layer, carry, _: (layer(carry, *inputs, deterministic, decode), None),
      # With the norms that cross-attention leaves, see `attention.NORMS`.
      variable_axes={'params': 0, 'cache': 0, 'attention_norms': 0},
      split_rngs={'params': True, 'dropout': True},
      length=num_layers,
      metadata_params={nn.PARTITION_NAME: 'layers'},
    )
    hidden, _ = scanned(cls(name='layers', **layer_kwargs), hidden, None)
    return hidden

  return run
