"""BERT (Devlin et al. 2019): the encoder behind Contriever and DPR."""

from __future__ import annotations

import dataclasses
from typing import Literal

from flax import linen as nn
import jax.numpy as jnp

from ralm_jax.losses import option_types
from ralm_jax.losses.array_types import Array, Float, Int, Shaped
from ralm_jax.losses.option_types import Amount, Count, Dropout, Dtype, Number, Positive
from ralm_jax.models import layers
from ralm_jax.models.attention import MultiHeadAttention
from ralm_jax.models.layers import Embed, LayerNorm, MlpBlock


@dataclasses.dataclass(frozen=True)
class BertConfig:
  """Sizes and choices of a BERT encoder."""

  vocab_size: Count = 30522
  emb_dim: Count = 768
  num_heads: Count = 12
  num_layers: Number = 12
  mlp_dim: Count = 3072
  mlp_activation: str = 'gelu_exact'
  max_positions: Count = 512
  type_vocab_size: Count = 2
  dropout_rate: Dropout = 0.0
  layer_norm_epsilon: Positive = 1e-12
  # True is the uncentred second moment of the released Atlas code.
  second_moment_layer_norm: bool = False
  # A linear map after pooling (DPR's optional projection); 0 means none.
  projection_dim: Number = 0
  embedding_init_stddev: Amount = 0.02
  pad_id: Number = 0
  dtype: Dtype = 'float32'
  param_dtype: Dtype = 'float32'
  scan_layers: bool = False
  remat_policy: Literal['none', 'dots', 'full'] = 'none'

  def __post_init__(self):
    option_types.check_fields(self)
    if self.emb_dim % self.num_heads:
      raise ValueError(
        f'BertConfig.emb_dim {self.emb_dim} is not divisible by num_heads {self.num_heads}.'
      )


def _norm(config: BertConfig, name: str) -> LayerNorm:
  return LayerNorm(
    epsilon=config.layer_norm_epsilon,
    second_moment=config.second_moment_layer_norm,
    dtype=config.dtype,
    param_dtype=config.param_dtype,
    name=name,
  )


class BertLayer(nn.Module):
  """Post-norm self-attention and feed-forward."""

  config: BertConfig

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
    head_dim = config.emb_dim // config.num_heads
    init = nn.initializers.normal(0.02)
    attended = MultiHeadAttention(
      num_heads=config.num_heads,
      head_dim=head_dim,
      use_bias=True,
      scale=head_dim**-0.5,
      query_init=init,
      dropout_rate=config.dropout_rate,
      dtype=config.dtype,
      param_dtype=config.param_dtype,
      name='attention',
    )(hidden, hidden, bias, deterministic=deterministic)
    dropout = nn.Dropout(config.dropout_rate)
    hidden = _norm(config, 'attention_layer_norm')(
      hidden + dropout(attended, deterministic=deterministic)
    )
    fed = MlpBlock(
      mlp_dim=config.mlp_dim,
      activations=(config.mlp_activation,),
      use_bias=True,
      dtype=config.dtype,
      param_dtype=config.param_dtype,
      name='mlp',
    )(hidden, deterministic=True)
    hidden = _norm(config, 'mlp_layer_norm')(hidden + dropout(fed, deterministic=deterministic))
    return layers.constrain(hidden, 'batch', 'length', 'embed')


class Bert(nn.Module):
  """Token ids to hidden states; no pooler."""

  config: BertConfig

  @nn.compact
  def __call__(
    self, tokens: Int[Array, 'b s'], mask: Shaped[Array, 'b s'], *, deterministic: bool = True
  ) -> Float[Array, 'b s d']:
    """Raises ValueError where the tokens exceed the table of positions."""
    config = self.config
    length = tokens.shape[-1]
    if length > config.max_positions:
      raise ValueError(
        f'Input length {length} exceeds BertConfig.max_positions '
        f'{config.max_positions}; shorten the query or passage length.'
      )

    def embed(name: str, rows: int, first_axis: str | None) -> Embed:
      return Embed(
        rows,
        config.emb_dim,
        embedding_axes=(first_axis, 'embed'),
        embedding_init=nn.initializers.normal(config.embedding_init_stddev),
        dtype=config.dtype,
        param_dtype=config.param_dtype,
        name=name,
      )

    hidden = embed('token_embedder', config.vocab_size, 'vocab')(tokens)
    hidden += embed('position_embedder', config.max_positions, None)(jnp.arange(length))
    # One segment only: retrievers never use the second.
    hidden += embed('type_embedder', config.type_vocab_size, None)(jnp.zeros((), jnp.int32))
    hidden = _norm(config, 'embedding_layer_norm')(hidden)
    hidden = nn.Dropout(config.dropout_rate)(hidden, deterministic=deterministic)
    hidden = layers.constrain(hidden, 'batch', 'length', 'embed')
    bias = layers.mask_to_bias(mask)[:, None, None, :]
    run = layers.stack_layers(BertLayer, config, config.num_layers)
    return run(hidden, bias, deterministic=deterministic)
