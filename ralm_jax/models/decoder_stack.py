"""What the decoders of T5 and BART have in common: positions, cache, carry."""

from __future__ import annotations

import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from ralm_jax.models import layers
from ralm_jax.models.attention import CrossAttentionOptions

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class DecoderPositions:
  """Where a chunk of decoder inputs stands, and what it may attend to.

  Attributes:
    query: int32 [length], positions of the chunk in the cache.
    key: int32 [keys], positions of what is attended to.
    mask_bias: float32 [1 or rows, 1, length, keys]; causal, and blind to
      padding before a row's first token.
  """

  query: Array
  key: Array
  mask_bias: Array


def decoder_positions(
  module: nn.Module,
  length: int,
  *,
  decode: bool,
  max_decode_length: int | None,
  left_padding: Array | None,
) -> DecoderPositions:
  """Positions of a teacher-forced sequence, or of one chunk behind the cache.

  Args:
    module: the decoder; it keeps the position in its `cache` collection.
    length: of the chunk.
    decode: whether there is a cache.
    max_decode_length: its size.
    left_padding: int32 [rows], padding before each row's first token.
  """
  if decode:
    # Every layer's cache has an index; the stack needs it before them.
    position = module.variable('cache', 'position', lambda: jnp.zeros((), jnp.int32))
    query = position.value + jnp.arange(length)
    key = jnp.arange(max_decode_length)
    position.value = position.value + length
  else:
    query = key = jnp.arange(length)
  mask = (key[None, :] <= query[:, None])[None]
  if left_padding is not None:
    mask = mask & (key >= left_padding[:, None])[:, None, :]
  return DecoderPositions(query, key, layers.mask_to_bias(mask)[:, None])


def run_decoder_layers(
  layer_class: type[nn.Module],
  config: Any,
  hidden: Array,
  encoded: Array | None,
  encoded_mask: Array,
  self_bias: Array,
  *,
  deterministic: bool,
  decode: bool,
  max_decode_length: int | None,
  options: CrossAttentionOptions,
) -> tuple[Array, Array | None]:
  """Runs a stack of decoder layers.

  Args:
    layer_class: called as `t5.DecoderLayer` is.
    config: with `num_decoder_layers`, `scan_layers` and `remat_policy`.
    hidden: [rows, length, embed].
    encoded: [batch, keys, embed]; None once the cache holds its projections.
    encoded_mask: [batch, keys].
    self_bias: float32, broadcastable to [rows, heads, length, keys].
    deterministic: no dropout.
    decode: use the cache.
    max_decode_length: its size.
    options: of the cross-attention.

  Returns:
    The hidden states and, with norm weights, the attention norms summed over
    layers, float32 [batch, keys]; else None.
  """
  cross_bias = None
  if options.group_mask is None:
    cross_bias = layers.mask_to_bias(encoded_mask)[:, None, None, :]
  run = layers.stack_layers(
    layer_class,
    config.num_decoder_layers,
    scan=config.scan_layers,
    remat_policy=config.remat_policy,
    config=config,
    max_decode_length=max_decode_length,
    group_chunk=options.group_chunk,
  )
  collects = options.norm_weights is not None
  carry, flags = hidden, None
  if collects:
    count = config.num_decoder_layers
    first = count - (options.norm_layers or count)
    flags = [i >= first for i in range(count)]
    carry = (hidden, jnp.zeros(encoded_mask.shape, jnp.float32))
  carry = run(
    carry,
    encoded,
    self_bias,
    cross_bias,
    options.group_mask,
    options.norm_weights,
    deterministic=deterministic,
    decode=decode,
    flags=flags,
  )
  return carry if collects else (carry, None)


def shift_right(tokens: Array, start_id: int = 0) -> Array:
  """[..., length] targets -> decoder inputs that begin with `start_id`."""
  start = jnp.full_like(tokens[..., :1], start_id)
  return jnp.concatenate([start, tokens[..., :-1]], axis=-1)
