"""T5 1.0 and 1.1 (Raffel et al. 2020): configuration, encoder and decoder.

The parameter tree is named as T5X names it
(`encoder/layers_0/attention/query/kernel`, `token_embedder/embedding`, ...), so
that T5X checkpoints map one to one.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from ralm_jax.models import decoder_stack, layers
from ralm_jax.models.attention import (
  CrossAttentionOptions,
  MultiHeadAttention,
  RelativePositionBias,
)
from ralm_jax.models.layers import Dense, Embed, MlpBlock, RMSNorm

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class T5Config:
  """Sizes and choices of a T5 stack; names are T5X's."""

  vocab_size: int = 32128
  emb_dim: int = 512
  num_heads: int = 6
  num_encoder_layers: int = 8
  num_decoder_layers: int = 8
  head_dim: int = 64
  mlp_dim: int = 1024
  # ('relu',) is T5 1.0; ('gelu', 'linear') is T5 1.1 and lm-adapt.
  mlp_activations: tuple[str, ...] = ('gelu', 'linear')
  # Applied to every dropout site, attention probabilities included.
  dropout_rate: float = 0.0
  # True ties the output head to the embedding (T5 1.0).
  logits_via_embedding: bool = False
  # Scales decoder outputs by emb_dim**-0.5; None: where the head is tied.
  scale_decoder_outputs: bool | None = None
  relative_attention_num_buckets: int = 32
  relative_attention_max_distance: int = 128
  layer_norm_epsilon: float = 1e-6
  pad_id: int = 0
  eos_id: int = 1
  decoder_start_id: int = 0
  # Standard deviation of the embedding at initialisation.
  embedding_init_stddev: float = 1.0
  dtype: Any = 'float32'
  param_dtype: Any = 'float32'
  # One compiled layer for the whole stack; faster to compile when deep.
  scan_layers: bool = False
  # 'none', 'dots' (save matrix products without batch axes) or 'full'.
  remat_policy: str = 'none'

  def __post_init__(self):
    # gin and JSON hand over lists; a config must stay hashable for jit.
    object.__setattr__(self, 'mlp_activations', tuple(self.mlp_activations))


def _attention(config: T5Config, name: str, **kwargs) -> MultiHeadAttention:
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
  def __call__(self, hidden, bias, deterministic, decode=False):
    """hidden: [batch, length, embed]; bias: [batch|1, heads, length, length]."""
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
  group_chunk: int | None = None

  @nn.compact
  def __call__(
    self,
    carry,
    encoded,
    self_bias,
    cross_bias,
    group_mask,
    norm_weights,
    deterministic,
    decode=False,
    uses_norms=None,
  ):
    """One layer.

    Args:
      carry: hidden, [batch, length, embed]; with `norm_weights` a pair of it
        and the sum of the attention norms, float32 [batch, keys].
      encoded: [batch, keys, embed]; None once a cache holds its projections.
      self_bias: [1, 1, length, length].
      cross_bias: [batch, 1, 1, keys].
      group_mask: as in `attention.attend_in_groups`, in place of `cross_bias`.
      norm_weights: [batch, length].
      deterministic: no dropout.
      decode: use the cache.
      uses_norms: whether this layer adds its attention norms to the sum.
    """
    config = self.config
    hidden, norms = (carry, None) if norm_weights is None else carry
    normed = _norm(config, 'pre_self_attention_layer_norm')(hidden)
    attended = _attention(config, 'self_attention', max_decode_length=self.max_decode_length)(
      normed, normed, self_bias, deterministic=deterministic, decode=decode
    )
    hidden = hidden + _dropout(config, attended, deterministic)
    normed = _norm(config, 'pre_cross_attention_layer_norm')(hidden)
    # A layer known not to count computes no norms; in a scanned stack all
    # layers are one program.
    own_weights = None if uses_norms is False else norm_weights
    attended = _attention(
      config, 'encoder_decoder_attention', is_cross=True, group_chunk=self.group_chunk
    )(
      normed,
      encoded,
      cross_bias,
      deterministic=deterministic,
      decode=decode,
      norm_weights=own_weights,
      group_mask=group_mask,
    )
    if own_weights is not None:
      attended, own_norms = attended
      norms = norms + jnp.where(uses_norms, own_norms, 0.0)
    hidden = hidden + _dropout(config, attended, deterministic)
    normed = _norm(config, 'pre_mlp_layer_norm')(hidden)
    fed = _mlp(config)(normed, deterministic=deterministic)
    hidden = hidden + _dropout(config, fed, deterministic)
    hidden = layers.constrain(hidden, 'batch', 'length', 'embed')
    return hidden if norm_weights is None else (hidden, norms)


def _relative_bias(config: T5Config, bidirectional: bool):
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
  def __call__(self, embedded: Array, mask: Array, *, deterministic: bool = True) -> Array:
    """embedded: [batch, length, embed], mask: [batch, length] -> hidden."""
    config = self.config
    positions = jnp.arange(embedded.shape[1])
    bias = _relative_bias(config, bidirectional=True)(positions, positions)
    bias = bias + layers.mask_to_bias(mask)[:, None, None, :]
    hidden = _dropout(config, embedded, deterministic)
    run = layers.stack_layers(
      EncoderLayer,
      config.num_encoder_layers,
      scan=config.scan_layers,
      remat_policy=config.remat_policy,
      config=config,
    )
    hidden = run(hidden, bias, deterministic=deterministic)
    hidden = _norm(config, 'encoder_norm')(hidden)
    return _dropout(config, hidden, deterministic)


class Decoder(nn.Module):
  """A T5 decoder over embedded tokens, with or without a cache."""

  config: T5Config

  @nn.compact
  def __call__(
    self,
    embedded: Array,
    encoded: Array | None,
    encoded_mask: Array,
    *,
    deterministic: bool = True,
    decode: bool = False,
    max_decode_length: int | None = None,
    left_padding: Array | None = None,
    options: CrossAttentionOptions = CrossAttentionOptions(),
  ) -> tuple[Array, Array | None]:
    """Decodes teacher-forced, or one chunk behind the cache.

    Args:
      embedded: [batch, length, embed]; [batch * groups, ...] with a group mask.
      encoded: [batch, keys, embed]; None once the cache holds its projections.
      encoded_mask: [batch, keys], true where attendable; not read with a group
        mask.
      deterministic: no dropout.
      decode: append `length` positions to the cache and attend to it.
      max_decode_length: size of the cache, needed with `decode`.
      left_padding: int32 [batch], padding before each row's first token.
      options: of the cross-attention.

    Returns:
      [batch, length, embed], normed, and with norm weights the summed attention
      norms, float32 [batch, keys]; else None.
    """
    config = self.config
    positions = decoder_stack.decoder_positions(
      self,
      embedded.shape[1],
      decode=decode,
      max_decode_length=max_decode_length,
      left_padding=left_padding,
    )
    self_bias = positions.mask_bias + _relative_bias(config, bidirectional=False)(
      positions.query, positions.key
    )
    hidden = _dropout(config, embedded, deterministic)
    hidden, norms = decoder_stack.run_decoder_layers(
      DecoderLayer,
      config,
      hidden,
      encoded,
      encoded_mask,
      self_bias,
      deterministic=deterministic,
      decode=decode,
      max_decode_length=max_decode_length,
      options=options,
    )
    hidden = _norm(config, 'decoder_norm')(hidden)
    hidden = _dropout(config, hidden, deterministic)
    return hidden, norms


class T5(nn.Module):
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

  def encode(self, tokens: Array, mask: Array, *, deterministic: bool = True) -> Array:
    """tokens: int [batch, length], mask: [batch, length] -> [batch, length, embed]."""
    embedded = self.token_embedder(tokens)
    embedded = layers.constrain(embedded, 'batch', 'length', 'embed')
    return self.encoder(embedded, mask, deterministic=deterministic)

  def logits(self, hidden: Array) -> Array:
    """hidden: [batch, length, embed] -> float32 [batch, length, vocab]."""
    config = self.config
    scaled = config.scale_decoder_outputs
    if scaled or (scaled is None and config.logits_via_embedding):
      hidden = hidden * jnp.asarray(config.emb_dim**-0.5, hidden.dtype)
    if config.logits_via_embedding:
      logits = self.token_embedder.attend(hidden)
    else:
      logits = self.logits_dense(hidden)
    return layers.constrain(logits, 'batch', 'length', 'vocab')

  def decode(
    self,
    encoded: Array | None,
    encoded_mask: Array,
    decoder_input_tokens: Array,
    *,
    deterministic: bool = True,
    decode: bool = False,
    max_decode_length: int | None = None,
    left_padding: Array | None = None,
    last_only: bool = False,
    options: CrossAttentionOptions = CrossAttentionOptions(),
  ) -> Array | tuple[Array, Array]:
    """Decoder logits; see `Decoder`.

    Args:
      encoded: [batch, keys, embed].
      encoded_mask: [batch, keys].
      decoder_input_tokens: int [batch, length].
      deterministic: no dropout.
      decode: use the `cache` collection.
      max_decode_length: size of the cache.
      left_padding: int32 [batch], padding before each row's first token.
      last_only: logits of the last position alone.
      options: of the cross-attention.

    Returns:
      float32 [batch, length, vocab]; with norm weights a pair of it and the
      summed attention norms, float32 [batch, keys].
    """
    hidden, norms = self.decoder(
      self.token_embedder(decoder_input_tokens),
      encoded,
      encoded_mask,
      deterministic=deterministic,
      decode=decode,
      max_decode_length=max_decode_length,
      left_padding=left_padding,
      options=options,
    )
    logits = self.logits(hidden[:, -1:] if last_only else hidden)
    return logits if norms is None else (logits, norms)

  def __call__(
    self, tokens: Array, mask: Array, decoder_input_tokens: Array, *, deterministic: bool = True
  ) -> Array:
    """[batch, length] x2, [batch, target] -> float32 [batch, target, vocab]."""
    encoded = self.encode(tokens, mask, deterministic=deterministic)
    return self.decode(encoded, mask, decoder_input_tokens, deterministic=deterministic)
