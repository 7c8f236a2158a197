"""What T5 and BART have in common: their methods, a decoder's positions and stack."""

from __future__ import annotations

import dataclasses
from typing import Any

from flax import linen as nn
import jax.numpy as jnp

from ralm_jax.losses.array_types import Array, Float, Int, Shaped
from ralm_jax.models import layers
from ralm_jax.models.attention import CrossAttentionOptions


@dataclasses.dataclass(frozen=True)
class DecoderCache:
  """The keys and values of earlier positions, in the collection `cache`.

  Attributes:
    length: positions it has room for.
    left_padding: padding before each row's first token.
  """

  length: int
  left_padding: Int[Array, ' rows'] | None = None


@dataclasses.dataclass(frozen=True)
class DecoderPositions:
  """Where a chunk of decoder inputs stands, and what it may attend to.

  Attributes:
    query: positions of the chunk in the cache.
    key: positions of what is attended to.
    mask_bias: causal, and blind to padding before a row's first token.
  """

  query: Int[Array, ' t']
  key: Int[Array, ' keys']
  mask_bias: Float[Array, 'rows_or_1 1 t keys']


def decoder_positions(
  module: nn.Module, length: int, cache: DecoderCache | None
) -> DecoderPositions:
  """Positions of a teacher-forced sequence, or of one chunk behind the cache.

  The decoder, `module`, keeps the position in its collection `cache`.
  """
  if cache is not None:
    # Every layer's cache has an index; the stack needs it before them.
    position = module.variable('cache', 'position', lambda: jnp.zeros((), jnp.int32))
    query = position.value + jnp.arange(length)
    key = jnp.arange(cache.length)
    position.value = position.value + length
  else:
    query = key = jnp.arange(length)
  mask = (key[None, :] <= query[:, None])[None]
  if cache is not None and cache.left_padding is not None:
    mask = mask & (key >= cache.left_padding[:, None])[:, None, :]
  return DecoderPositions(query, key, layers.mask_to_bias(mask)[:, None])


def run_decoder_layers(
  layer_class: type[nn.Module],
  config: Any,
  hidden: Float[Array, 'rows t d'],
  encoded: Float[Array, 'b keys d'] | None,
  encoded_mask: Shaped[Array, 'b keys'],
  self_bias: Float[Array, '#rows #h t cached_keys'],
  *,
  deterministic: bool,
  cache: DecoderCache | None,
  options: CrossAttentionOptions,
) -> Float[Array, 'rows t d']:
  """Runs a stack of layers that are called as `t5.DecoderLayer` is."""
  cross_bias = None
  if options.group_mask is None:
    cross_bias = layers.mask_to_bias(encoded_mask)[:, None, None, :]
  run = layers.stack_layers(
    layer_class,
    config,
    config.num_decoder_layers,
    max_decode_length=None if cache is None else cache.length,
  )
  return run(
    hidden,
    encoded,
    self_bias,
    cross_bias,
    options,
    deterministic=deterministic,
    decode=cache is not None,
  )


class EncoderDecoder(nn.Module):
  """The methods of T5 and BART, over what each of them sets up.

  Subclasses have a `config`, an `encoder`, a `decoder`, `embed` and `logits`.
  """

  config: Any

  def embed(self, tokens: Int[Array, 'rows t']) -> Float[Array, 'rows t d']:
    raise NotImplementedError

  def logits(self, hidden: Float[Array, 'rows t d']) -> Float[Array, 'rows t v']:
    raise NotImplementedError

  def check_length(self, length: int, what: str) -> None:
    """Raises ValueError for more positions than there are."""

  def encode(
    self, tokens: Int[Array, 'rows s'], mask: Shaped[Array, 'rows s'], *, deterministic: bool = True
  ) -> Float[Array, 'rows s d']:
    self.check_length(tokens.shape[-1], 'Inputs')
    return self.encoder(self.embed(tokens), mask, deterministic=deterministic)

  def decode(
    self,
    encoded: Float[Array, 'b keys d'] | None,
    encoded_mask: Shaped[Array, 'b keys'],
    decoder_input_tokens: Int[Array, 'rows t'],
    *,
    deterministic: bool = True,
    cache: DecoderCache | None = None,
    last_only: bool = False,
    options: CrossAttentionOptions = CrossAttentionOptions(),
  ) -> Float[Array, 'rows _ v']:
    """Logits, teacher-forced or one chunk behind the cache.

    Args:
      encoded: None once a cache holds its projections.
      encoded_mask: true where attendable; not read with a group mask.
      cache: append the chunk to it and attend to all of it.
      last_only: logits of the last position alone.
      options: of the cross-attention; with a group mask rows are b * groups.
    """
    length = decoder_input_tokens.shape[-1] if cache is None else cache.length
    self.check_length(length, 'Targets')
    hidden = self.decoder(
      self.embed(decoder_input_tokens),
      encoded,
      encoded_mask,
      deterministic=deterministic,
      cache=cache,
      options=options,
    )
    return self.logits(hidden[:, -1:] if last_only else hidden)

  def __call__(
    self,
    tokens: Int[Array, 'b s'],
    mask: Shaped[Array, 'b s'],
    decoder_input_tokens: Int[Array, 'b t'],
    *,
    deterministic: bool = True,
  ) -> Float[Array, 'b t v']:
    encoded = self.encode(tokens, mask, deterministic=deterministic)
    return self.decode(encoded, mask, decoder_input_tokens, deterministic=deterministic)


def shift_right(tokens: Int[Array, '*b t'], start_id: int = 0) -> Int[Array, '*b t']:
  """Targets -> decoder inputs that begin with `start_id`."""
  start = jnp.full_like(tokens[..., :1], start_id)
  return jnp.concatenate([start, tokens[..., :-1]], axis=-1)
