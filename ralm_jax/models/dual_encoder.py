"""DualEncoder: Contriever (tied, mean pooling) and DPR (two towers, CLS)."""

from __future__ import annotations

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from ralm_jax.losses.array_types import Array, Float, Int, PyTree, Shaped
from ralm_jax.models import layers
from ralm_jax.models.bert import Bert, BertConfig
from ralm_jax.models.layers import Dense

POOLINGS = ('mean', 'cls')


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
    if self.pooling == 'mean':
      # A padding row has no token at all; it embeds to zero, not to NaN.
      weights = mask.astype(jnp.float32)[..., None]
      count = jnp.maximum(jnp.sum(weights, axis=-2), 1.0)
      pooled = jnp.sum(hidden * weights, axis=-2) / count
    else:
      pooled = hidden[..., 0, :]
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


class DualEncoder(nn.Module):
  """Embeds queries and passages for inner-product search.

  Tied towers share one parameter tree, that of the encoder itself, so that a
  loaded BERT is a DualEncoder; untied ones live under `query_encoder` and
  `passage_encoder`.

  Attributes:
    config: of both towers.
    pooling: 'mean' over tokens (Contriever) or 'cls', the first token (DPR).
    tied: one tower for both sides.
    normalize: scale embeddings to unit length (sentence-transformers).
    scale_scores: scores are divided by sqrt(dim) (Atlas); else they are plain
      inner products (DPR, RAG).
  """

  config: BertConfig
  pooling: str = 'mean'
  tied: bool = True
  normalize: bool = False
  scale_scores: bool = True

  def setup(self):
    if self.pooling not in POOLINGS:
      raise ValueError(f'pooling {self.pooling!r} is unknown; choose one of {POOLINGS}.')
    kwargs: dict[str, Any] = dict(
      config=self.config, pooling=self.pooling, normalize=self.normalize
    )
    if self.tied:
      self.encoder = Tower(**kwargs)
      nn.share_scope(self, self.encoder)
    else:
      self.query_encoder = Tower(**kwargs)
      self.passage_encoder = Tower(**kwargs)

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
