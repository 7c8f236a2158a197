"""BART (Lewis et al. 2019), base and large: RAG's generator.

Post-norm encoder and decoder with learned positions and a tied head. The
methods are those of `t5.T5`, so that either can be a reader.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from flax import linen as nn
import jax
import jax.numpy as jnp

from ralm_jax.losses import option_types
from ralm_jax.losses.array_types import Array, Float, Int, Shaped
from ralm_jax.losses.option_types import Amount, Count, Dropout, Dtype, Number, Positive
from ralm_jax.models import decoder_stack, layers
from ralm_jax.models.attention import CrossAttentionOptions, MultiHeadAttention
from ralm_jax.models.decoder_stack import DecoderCache, EncoderDecoder
from ralm_jax.models.layers import Embed, LayerNorm, MlpBlock

# The first rows of the table of positions are never used; position 0 is row 2.
POSITION_OFFSET = 2


@dataclasses.dataclass(frozen=True)
class BartConfig:
  """Sizes and choices of a BART model; the defaults are BART-large's."""

  vocab_size: Count = 50265
  emb_dim: Count = 1024
  num_heads: Count = 16
  num_encoder_layers: Number = 12
  num_decoder_layers: Number = 12
  encoder_mlp_dim: Count = 4096
  decoder_mlp_dim: Count = 4096
  mlp_activation: str = 'gelu_exact'
  max_positions: Count = 1024
  # Multiplies token embeddings by sqrt(emb_dim).
  scale_embedding: bool = False
  # Of embeddings and residual branches.
  dropout_rate: Dropout = 0.0
  attention_dropout_rate: Dropout = 0.0
  layer_norm_epsilon: Positive = 1e-5
  pad_id: Number = 1
  bos_id: Number = 0
  eos_id: Number = 2
  decoder_start_id: Number = 2
  # Produced first and, where nothing has ended the sequence, last.
  forced_first_id: int | None = None
  forced_last_id: int | None = None
  embedding_init_stddev: Amount = 0.02
  dtype: Dtype = 'float32'
  param_dtype: Dtype = 'float32'
  scan_layers: bool = False
  remat_policy: Literal['none', 'dots', 'full'] = 'none'

  def __post_init__(self):
    option_types.check_fields(self)
    if self.emb_dim % self.num_heads:
      raise ValueError(
        f'BartConfig.emb_dim {self.emb_dim} is not divisible by num_heads {self.num_heads}.'
      )


def _norm(config: BartConfig, name: str) -> LayerNorm:
  return LayerNorm(
    epsilon=config.layer_norm_epsilon, dtype=config.dtype, param_dtype=config.param_dtype, name=name
  )


def _attention(config: BartConfig, name: str, **kwargs: Any) -> MultiHeadAttention:
  head_dim = config.emb_dim // config.num_heads
  return MultiHeadAttention(
    num_heads=config.num_heads,
    head_dim=head_dim,
    use_bias=True,
    scale=head_dim**-0.5,
    query_init=nn.initializers.normal(config.embedding_init_stddev),
    dropout_rate=config.attention_dropout_rate,
    dtype=config.dtype,
    param_dtype=config.param_dtype,
    name=name,
    **kwargs,
  )


def _dropout(config: BartConfig, hidden: Array, deterministic: bool) -> Array:
  return nn.Dropout(config.dropout_rate)(hidden, deterministic=deterministic)


def _feed_forward(config: BartConfig, mlp_dim: int, hidden: Array, deterministic: bool) -> Array:
  fed = MlpBlock(
    mlp_dim=mlp_dim,
    activations=(config.mlp_activation,),
    use_bias=True,
    dtype=config.dtype,
    param_dtype=config.param_dtype,
    name='mlp',
  )(hidden, deterministic=True)
  hidden = hidden + _dropout(config, fed, deterministic)
  hidden = _norm(config, 'mlp_layer_norm')(hidden)
  return layers.constrain(hidden, 'batch', 'length', 'embed')


class EncoderLayer(nn.Module):
  """Self-attention and feed-forward, each with a norm behind its residual."""

  config: BartConfig

  @nn.compact
  def __call__(
    self,
    hidden: Float[Array, 'b s d'],
    bias: Float[Array, 'b 1 1 s'],
    deterministic: bool,
    decode: bool = False,
  ) -> Float[Array, 'b s d']:
    del decode
    config = self.config
    attended = _attention(config, 'attention')(hidden, hidden, bias, deterministic=deterministic)
    hidden = hidden + _dropout(config, attended, deterministic)
    hidden = _norm(config, 'attention_layer_norm')(hidden)
    return _feed_forward(config, config.encoder_mlp_dim, hidden, deterministic)


class DecoderLayer(nn.Module):
  """Causal self-attention, cross-attention and feed-forward."""

  config: BartConfig
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
    attended = _attention(config, 'self_attention', max_decode_length=self.max_decode_length)(
      hidden, hidden, self_bias, deterministic=deterministic, decode=decode
    )
    hidden = hidden + _dropout(config, attended, deterministic)
    hidden = _norm(config, 'self_attention_layer_norm')(hidden)
    attended = _attention(config, 'encoder_decoder_attention', is_cross=True)(
      hidden, encoded, cross_bias, deterministic=deterministic, decode=decode, options=options
    )
    hidden = hidden + _dropout(config, attended, deterministic)
    hidden = _norm(config, 'cross_attention_layer_norm')(hidden)
    return _feed_forward(config, config.decoder_mlp_dim, hidden, deterministic)


def _with_positions(
  config: BartConfig,
  embedded: Float[Array, 'rows t d'],
  positions: Int[Array, '*rows t'],
  deterministic: bool,
) -> Float[Array, 'rows t d']:
  """Adds learned positions, of all rows or of each, and norms."""
  table = Embed(
    config.max_positions + POSITION_OFFSET,
    config.emb_dim,
    embedding_axes=(None, 'embed'),
    embedding_init=nn.initializers.normal(config.embedding_init_stddev),
    dtype=config.dtype,
    param_dtype=config.param_dtype,
    name='position_embedder',
  )
  hidden = embedded + table(positions + POSITION_OFFSET)
  hidden = _norm(config, 'embedding_layer_norm')(hidden)
  hidden = _dropout(config, hidden, deterministic)
  return layers.constrain(hidden, 'batch', 'length', 'embed')


class Encoder(nn.Module):
  """A BART encoder over embedded tokens."""

  config: BartConfig

  @nn.compact
  def __call__(
    self, embedded: Float[Array, 'b s d'], mask: Shaped[Array, 'b s'], *, deterministic: bool = True
  ) -> Float[Array, 'b s d']:
    config = self.config
    hidden = _with_positions(config, embedded, jnp.arange(embedded.shape[1]), deterministic)
    run = layers.stack_layers(EncoderLayer, config, config.num_encoder_layers)
    bias = layers.mask_to_bias(mask)[:, None, None, :]
    return run(hidden, bias, deterministic=deterministic)


class Decoder(nn.Module):
  """A BART decoder over embedded tokens, with or without a cache."""

  config: BartConfig

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
    """Arguments as those of `EncoderDecoder.decode`."""
    config = self.config
    positions = decoder_stack.decoder_positions(self, embedded.shape[1], cache)
    # Positions count from a row's first token.
    query = positions.query
    if cache is not None and cache.left_padding is not None:
      query = jnp.maximum(query[None] - cache.left_padding[:, None], 0)
    return decoder_stack.run_decoder_layers(
      DecoderLayer,
      config,
      _with_positions(config, embedded, query, deterministic),
      encoded,
      encoded_mask,
      positions.mask_bias,
      deterministic=deterministic,
      cache=cache,
      options=options,
    )


class Bart(EncoderDecoder):
  """Embedding, encoder, decoder and tied head."""

  config: BartConfig

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
    self.final_logits_bias: Any = self.param(
      'final_logits_bias',
      nn.with_logical_partitioning(nn.initializers.zeros_init(), ('vocab',)),
      (config.vocab_size,),
      config.param_dtype,
    )

  def check_length(self, length: int, what: str) -> None:
    if length > self.config.max_positions:
      raise ValueError(
        f'{what} of {length} tokens exceed BartConfig.max_positions {self.config.max_positions}; '
        'shorten TextConfig.passage_length, or target_length with the decoder prefix '
        '(--max_length, --decoder_prefix_length).'
      )

  def embed(self, tokens: Int[Array, 'rows t']) -> Float[Array, 'rows t d']:
    embedded = self.token_embedder(tokens)
    if self.config.scale_embedding:
      embedded = embedded * jnp.asarray(self.config.emb_dim**0.5, embedded.dtype)
    return embedded

  def logits(self, hidden: Float[Array, 'rows t d']) -> Float[Array, 'rows t v']:
    """In float32."""
    # A constant of the checkpoint (zeros in the released ones), not a weight.
    bias = jax.lax.stop_gradient(self.final_logits_bias)
    logits = self.token_embedder.attend(hidden) + bias.astype(jnp.float32)
    return layers.constrain(logits, 'batch', 'length', 'vocab')
