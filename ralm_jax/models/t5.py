"""T5 1.0 and 1.1 (Raffel et al. 2020): configuration, encoder and decoder.

The parameter tree is named as T5X names it (`encoder/layers_0/attention/query/kernel`,
`token_embedder/embedding`, ...), so that T5X checkpoints map one to one.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from flax import linen as nn
import jax.numpy as jnp

from ralm_jax.losses import option_types
from ralm_jax.losses.array_types import Array, Float, Int, Shaped
from ralm_jax.losses.option_types import Amount, Count, Dropout, Dtype, Number, Positive
from ralm_jax.models import decoder_stack, layers
from ralm_jax.models.attention import (
  CrossAttentionOptions,
  MultiHeadAttention,
  RelativePositionBias,
)
from ralm_jax.models.decoder_stack import DecoderCache, EncoderDecoder
from ralm_jax.models.layers import Dense, Embed, MlpBlock, RMSNorm


@dataclasses.dataclass(frozen=True)
class T5Config:
  """Sizes and choices of a T5 stack; names are T5X's."""

  vocab_size: Count = 32128
  emb_dim: Count = 512
  num_heads: Count = 6
  num_encoder_layers: Number = 8
  num_decoder_layers: Number = 8
  head_dim: Count = 64
  mlp_dim: Count = 1024
  # ('relu',) is T5 1.0; ('gelu', 'linear') is T5 1.1 and lm-adapt.
  mlp_activations: tuple[str, ...] = ('gelu', 'linear')
  # Applied to every dropout site, attention probabilities included.
  dropout_rate: Dropout = 0.0
  # True ties the output head to the embedding (T5 1.0).
  logits_via_embedding: bool = False
  # Scales decoder outputs by emb_dim**-0.5; None: where the head is tied.
  scale_decoder_outputs: bool | None = None
  relative_attention_num_buckets: Count = 32
  relative_attention_max_distance: Count = 128
  layer_norm_epsilon: Positive = 1e-6
  pad_id: Number = 0
  eos_id: Number = 1
  decoder_start_id: Number = 0
  # Standard deviation of the embedding at initialisation.
  embedding_init_stddev: Amount = 1.0
  dtype: Dtype = 'float32'
  param_dtype: Dtype = 'float32'
  # One compiled layer for the whole stack; faster to compile when deep.
  scan_layers: bool = False
  # 'none', 'dots' (save matrix products without batch axes) or 'full'.
  remat_policy: Literal['none', 'dots', 'full'] = 'none'

  def __post_init__(self):
    option_types.check_fields(self)
    # gin and JSON hand over lists; a config must stay hashable for jit.
    object.__setattr__(self, 'mlp_activations', tuple(self.mlp_activations))


def _attention(config: T5Config, name: str, **kwargs: Any) -> MultiHeadAttention:
  # T5 has no 1/sqrt(d_kv) in its scores; the query's initialisation has it.
  scaled = nn.initializers.variance_scaling(1.0 / config.head_dim, 'fan_in', 'normal')
  return MultiHeadAttention(
    num_heads=config.num_heads,
    head_dim=config.head_dim,
    query_init=scaled,
    dropout_rate=config.dropout_rate,
    dtype=config.dtype,
    param_dtype=config.param_dtype,
    name=name,
    **kwargs,
  )


def _norm(config: T5Config, name: str) -> RMSNorm:
  return RMSNorm(
    epsilon=config.layer_norm_epsilon, dtype=config.dtype, param_dtype=config.param_dtype, name=name
  )


def _mlp(config: T5Config) -> MlpBlock:
  return MlpBlock(
    mlp_dim=config.mlp_dim,
    activations=config.mlp_activations,
    dropout_rate=config.dropout_rate,
    dtype=config.dtype,
    param_dtype=config.param_dtype,
    name='mlp',
  )


def _dropout(config: T5Config, hidden: Array, deterministic: bool) -> Array:
  return nn.Dropout(config.dropout_rate)(hidden, deterministic=deterministic)


class EncoderLayer(nn.Module):
  """Self-attention and feed-forward, each behind a norm and a residual."""

  config: T5Config

  @nn.compact
  def __call__(
    self,
    hidden: Float[Array, 'b s d'],
    bias: Float[Array, '#b h s s'],
    deterministic: bool,
    decode: bool = False,
  ) -> Float[Array, 'b s d']:
    del decode
    config = self.config
    normed = _norm(config, 'pre_attention_layer_norm')(hidden)
    attended = _attention(config, 'attention')(normed, normed, bias, deterministic=deterministic)
    hidden = hidden + _dropout(config, attended, deterministic)
    normed = _norm(config, 'pre_mlp_layer_norm')(hidden)
    fed = _mlp(config)(normed, deterministic=deterministic)
    hidden = hidden + _dropout(config, fed, deterministic)
    return layers.constrain(hidden, 'batch', 'length', 'embed')


class DecoderLayer(nn.Module):
  """Causal self-attention, cross-attention and feed-forward."""

  config: T5Config
  max_decode_length: int | None = None

  @nn.compact
  def __call__(
    self,
    hidden: Float[Array, 'rows t d'],
    encoded: Float[Array, 'b keys d'] | None,
    self_bias: Float[Array, '#rows #h t cached_keys'],
    cross_bias: Float[Array, 'b 1 1 keys'] | None,
    options: CrossAttentionOptions,
    deterministic: bool,
    decode: bool = False,
  ) -> Float[Array, 'rows t d']:
    config = self.config
    normed = _norm(config, 'pre_self_attention_layer_norm')(hidden)
    attended = _attention(config, 'self_attention', max_decode_length=self.max_decode_length)(
      normed, normed, self_bias, deterministic=deterministic, decode=decode
    )
    hidden = hidden + _dropout(config, attended, deterministic)
    normed = _norm(config, 'pre_cross_attention_layer_norm')(hidden)
    attended = _attention(config, 'encoder_decoder_attention', is_cross=True)(
      normed, encoded, cross_bias, deterministic=deterministic, decode=decode, options=options
    )
    hidden = hidden + _dropout(config, attended, deterministic)
    normed = _norm(config, 'pre_mlp_layer_norm')(hidden)
    fed = _mlp(config)(normed, deterministic=deterministic)
    hidden = hidden + _dropout(config, fed, deterministic)
    return layers.constrain(hidden, 'batch', 'length', 'embed')


def _relative_bias(config: T5Config, bidirectional: bool) -> RelativePositionBias:
  return RelativePositionBias(
    num_heads=config.num_heads,
    bidirectional=bidirectional,
    num_buckets=config.relative_attention_num_buckets,
    max_distance=config.relative_attention_max_distance,
    param_dtype=config.param_dtype,
    name='relpos_bias',
  )


class Encoder(nn.Module):
  """A T5 encoder over embedded tokens."""

  config: T5Config

  @nn.compact
  def __call__(
    self, embedded: Float[Array, 'b s d'], mask: Shaped[Array, 'b s'], *, deterministic: bool = True
  ) -> Float[Array, 'b s d']:
    config = self.config
    embedded = layers.constrain(embedded, 'batch', 'length', 'embed')
    positions = jnp.arange(embedded.shape[1])
    bias = _relative_bias(config, bidirectional=True)(positions, positions)
    bias = bias + layers.mask_to_bias(mask)[:, None, None, :]
    hidden = _dropout(config, embedded, deterministic)
    run = layers.stack_layers(EncoderLayer, config, config.num_encoder_layers)
    hidden = run(hidden, bias, deterministic=deterministic)
    hidden = _norm(config, 'encoder_norm')(hidden)
    return _dropout(config, hidden, deterministic)


class Decoder(nn.Module):
  """A T5 decoder over embedded tokens, with or without a cache."""

  config: T5Config

  @nn.compact
  def __call__(
    self,
    embedded: Float[Array, 'rows t d'],
    encoded: Float[Array, 'b keys d'] | None,
    encoded_mask: Shaped[Array, 'b keys'],
    *,
    deterministic: bool = True,
    cache: DecoderCache | None = None,
    options: CrossAttentionOptions = CrossAttentionOptions(),
  ) -> Float[Array, 'rows t d']:
    """Normed hidden states; arguments as those of `EncoderDecoder.decode`."""
    config = self.config
    positions = decoder_stack.decoder_positions(self, embedded.shape[1], cache)
    self_bias = positions.mask_bias + _relative_bias(config, bidirectional=False)(
      positions.query, positions.key
    )
    hidden = decoder_stack.run_decoder_layers(
      DecoderLayer,
      config,
      _dropout(config, embedded, deterministic),
      encoded,
      encoded_mask,
      self_bias,
      deterministic=deterministic,
      cache=cache,
      options=options,
    )
    hidden = _norm(config, 'decoder_norm')(hidden)
    return _dropout(config, hidden, deterministic)


class T5(EncoderDecoder):
  """Embedding, encoder, decoder and head; the base of FusionInDecoder."""

  config: T5Config

  def setup(self):
    config = self.config
    self.token_embedder = Embed(
      config.vocab_size,
      config.emb_dim,
      embedding_init=nn.initializers.normal(config.embedding_init_stddev),
      dtype=config.dtype,
      param_dtype=config.param_dtype,
    )
    self.encoder = Encoder(config)
    self.decoder = Decoder(config)
    if not config.logits_via_embedding:
      self.logits_dense = Dense(
        config.vocab_size,
        kernel_axes=('embed', 'vocab'),
        dtype=config.dtype,
        param_dtype=config.param_dtype,
        output_dtype=jnp.float32,
      )

  def embed(self, tokens: Int[Array, 'rows t']) -> Float[Array, 'rows t d']:
    return self.token_embedder(tokens)

  def logits(self, hidden: Float[Array, 'rows t d']) -> Float[Array, 'rows t v']:
    """In float32."""
    config = self.config
    scaled = config.scale_decoder_outputs
    if scaled or (scaled is None and config.logits_via_embedding):
      hidden = hidden * jnp.asarray(config.emb_dim**-0.5, hidden.dtype)
    if config.logits_via_embedding:
      logits = self.token_embedder.attend(hidden)
    else:
      logits = self.logits_dense(hidden)
    return layers.constrain(logits, 'batch', 'length', 'vocab')
