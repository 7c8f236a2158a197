"""DualEncoder: Contriever (tied, mean pooling) and DPR (two towers, CLS).

Another pooling is an entry of `POOLINGS`, another architecture one of `ENCODERS`:
a configuration and a module with its `config`, `pooling` and `normalize`, whose
method `embed(tokens, mask, *, deterministic)` gives [b, d] in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from flax import linen as nn
import jax
import jax.numpy as jnp

from ralm_jax.losses.array_types import Array, Float, Int, PyTree, Shaped
from ralm_jax.models import layers
from ralm_jax.models.bert import Bert, BertConfig
from ralm_jax.models.layers import Dense


def _mean(hidden: Float[Array, 'b s d'], mask: Shaped[Array, 'b s']) -> Float[Array, 'b d']:
  # A padding row has no token at all; it embeds to zero, not to NaN.
  weights = mask.astype(jnp.float32)[..., None]
  count = jnp.maximum(jnp.sum(weights, axis=-2), 1.0)
  return jnp.sum(hidden * weights, axis=-2) / count


# The values of `pooling`: functions of hidden states and their mask.
POOLINGS: dict[str, Callable[..., Array]] = {
  'mean': _mean,
  'cls': lambda hidden, mask: hidden[..., 0, :],
}


@runtime_checkable
class EncoderConfig(Protocol):
  """What every architecture's configuration says."""

  @property
  def vocab_size(self) -> int: ...

  @property
  def emb_dim(self) -> int: ...

  @property
  def projection_dim(self) -> int: ...  # 0: embeddings have `emb_dim`

  @property
  def max_positions(self) -> int: ...

  @property
  def pad_id(self) -> int: ...

  @property
  def dropout_rate(self) -> float: ...


class Tower(Bert):
  """A BERT encoder with pooling and an optional projection."""

  pooling: str = 'mean'
  normalize: bool = False

  @nn.compact
  def embed(
    self, tokens: Int[Array, 'b s'], mask: Shaped[Array, 'b s'], *, deterministic: bool = True
  ) -> Float[Array, 'b d']:
    """Embeddings in float32."""
    hidden = Bert.__call__(self, tokens, mask, deterministic=deterministic).astype(jnp.float32)
    pooled = POOLINGS[self.pooling](hidden, mask)
    if self.config.projection_dim:
      pooled = Dense(
        self.config.projection_dim,
        kernel_axes=('embed', 'joined_kv'),
        use_bias=True,
        name='projection',
      )(pooled)
    if self.normalize:
      # Not the norm itself, whose derivative at a zero row would be NaN.
      square = jnp.sum(jnp.square(pooled), axis=-1, keepdims=True)
      pooled = pooled * jax.lax.rsqrt(jnp.maximum(square, 1e-24))
    return pooled


# What a specification calls an architecture: its configuration and its tower.
ENCODERS: dict[str, tuple[type, type[nn.Module]]] = {'bert': (BertConfig, Tower)}


def encoder_name(config: EncoderConfig) -> str:
  """The architecture's key in `ENCODERS`.

  Raises:
    ValueError: there is none with such a configuration.
  """
  for name, (config_class, _) in ENCODERS.items():
    if type(config) is config_class:
      return name
  raise ValueError(
    f"{type(config).__name__} is no retriever's configuration; dual_encoder.ENCODERS has "
    f'{", ".join(kind.__name__ for kind, _ in ENCODERS.values())}.'
  )


class DualEncoder(nn.Module):
  """Embeds queries and passages for inner-product search.

  Tied towers share one parameter tree, that of the encoder itself, so that a loaded BERT is a
  DualEncoder; untied ones live under `query_encoder` and `passage_encoder`.

  Attributes:
    config: of both towers.
    pooling: 'mean' over tokens (Contriever) or 'cls', the first token (DPR).
    tied: one tower for both sides.
    normalize: scale embeddings to unit length (sentence-transformers).
    scale_scores: scores are divided by sqrt(dim) (Atlas); else they are plain
      inner products (DPR, RAG).
  """

  config: EncoderConfig
  pooling: str = 'mean'
  tied: bool = True
  normalize: bool = False
  scale_scores: bool = True

  def setup(self):
    if self.pooling not in POOLINGS:
      raise ValueError(f'pooling {self.pooling!r} is unknown; choose one of {tuple(POOLINGS)}.')
    _, tower = ENCODERS[encoder_name(self.config)]
    kwargs: dict[str, Any] = dict(
      config=self.config, pooling=self.pooling, normalize=self.normalize
    )
    if self.tied:
      self.encoder = tower(**kwargs)
      nn.share_scope(self, self.encoder)
    else:
      self.query_encoder = tower(**kwargs)
      self.passage_encoder = tower(**kwargs)

  @property
  def embedding_dim(self) -> int:
    return self.config.projection_dim or self.config.emb_dim

  def encode_queries(
    self, tokens: Int[Array, 'b q'], mask: Shaped[Array, 'b q'], *, deterministic: bool = True
  ) -> Float[Array, 'b d']:
    tower = self.encoder if self.tied else self.query_encoder
    return tower.embed(tokens, mask, deterministic=deterministic)

  def encode_passages(
    self, tokens: Int[Array, '*b p'], mask: Shaped[Array, '*b p'], *, deterministic: bool = True
  ) -> Float[Array, '*b d']:
    tower = self.encoder if self.tied else self.passage_encoder
    leading, length = tokens.shape[:-1], tokens.shape[-1]
    embeddings = tower.embed(
      layers.constrain(tokens.reshape(-1, length), 'batch', 'length'),
      layers.constrain(mask.reshape(-1, length), 'batch', 'length'),
      deterministic=deterministic,
    )
    return embeddings.reshape(*leading, embeddings.shape[-1])

  def __call__(
    self,
    query_tokens: Int[Array, 'b q'],
    query_mask: Shaped[Array, 'b q'],
    passage_tokens: Int[Array, 'b k p'],
    passage_mask: Shaped[Array, 'b k p'],
    *,
    deterministic: bool = True,
  ) -> Float[Array, 'b k']:
    """Scores, see `retriever_scores`."""
    queries = self.encode_queries(query_tokens, query_mask, deterministic=deterministic)
    passages = self.encode_passages(passage_tokens, passage_mask, deterministic=deterministic)
    return retriever_scores(queries, passages, scale=self.scale_scores)


def retriever_scores(
  queries: Float[Array, 'b d'], passages: Float[Array, 'b k d'], *, scale: bool = True
) -> Float[Array, 'b k']:
  """Inner products, over sqrt(d) (Atlas, section 2.2) or plain (DPR)."""
  scores = jnp.einsum('bd,bnd->bn', queries, passages)
  if not scale:
    return scores
  return scores / jnp.sqrt(jnp.float32(queries.shape[-1]))


def untie(params: PyTree) -> PyTree:
  """Parameters of two towers, both those of a tied encoder, if it is one."""
  if 'query_encoder' in params:
    return params
  return {'query_encoder': params, 'passage_encoder': params}
