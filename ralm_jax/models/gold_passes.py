"""The reader's forward passes behind the gold scores.

None of them has dropout or a gradient. All of them start from the passages'
encoder states, which the reader's own loss may have computed already. What one
gold score has asked for is there for the next.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from ralm_jax.losses import sequence
from ralm_jax.losses.array_types import Array, Float, Int, PyTree, Shaped
from ralm_jax.models import attention, decoder_stack, fid, layers
from ralm_jax.models.fid import PassageReader, ReaderConfig


@runtime_checkable
class Passes(Protocol):
  """What gold scores ask of a reader; `GoldPasses` has the words for it."""

  @property
  def config(self) -> Any: ...

  def log_probs_of_each(self, temperature: float = 1.0) -> Float[Array, 'b k t']: ...

  def log_probs_leaving_out(self) -> Float[Array, 'b k t']: ...

  def attention_norms(
    self, target_mask: Shaped[Array, 'b t'], last_layers: int | None = None
  ) -> Float[Array, 'b k s']: ...


@dataclasses.dataclass(frozen=True)
class GoldPasses:
  """Passes over one batch.

  Attributes:
    reader: whose likelihoods and attention are asked for.
    params: of the reader.
    encoded_context: encoder states of the first passages, where there are any.
    context_variables: what a reading of all passages has left in the collection
      `attention.NORMS`, where there was one.
    chunk: passages at a time, to bound memory; None takes all at once.
  """

  reader: PassageReader
  params: PyTree
  reader_tokens: Int[Array, 'b k s']
  reader_mask: Shaped[Array, 'b k s']
  target_tokens: Int[Array, 'b t']
  encoded_context: Float[Array, 'b n s d'] | None = None
  context_variables: PyTree = None
  chunk: int | None = None
  _log_probs: dict[float, Array] = dataclasses.field(default_factory=dict, init=False)

  @property
  def config(self) -> ReaderConfig:
    return self.reader.config

  @property
  def _params(self) -> PyTree:
    return jax.lax.stop_gradient(self.params)

  @property
  def _decoder_inputs(self) -> Int[Array, 'b t']:
    return decoder_stack.shift_right(self.target_tokens, self.reader.config.decoder_start_id)

  @functools.cached_property
  def encoded(self) -> Float[Array, 'b k s d']:
    """Encoder states of all passages."""
    have = 0
    parts: list[Array] = []
    if self.encoded_context is not None:
      parts.append(jax.lax.stop_gradient(self.encoded_context))
      have = self.encoded_context.shape[1]
    if have < self.reader_tokens.shape[1]:
      parts.append(
        layers.call(
          self.reader,
          self._params,
          self.reader_tokens[:, have:],
          self.reader_mask[:, have:],
          method='encode_passages',
        )
      )
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)

  def log_probs_of_each(self, temperature: float = 1.0) -> Float[Array, 'b k t']:
    """log p(target token | query, one passage), of logits over a temperature."""

    def score(
      encoded: Float[Array, 'b n s d'], mask: Shaped[Array, 'b n s']
    ) -> Float[Array, 'b n t']:
      logits = layers.call(
        self.reader, self._params, encoded, mask, self._decoder_inputs, method='decode_each'
      )
      if temperature != 1.0:
        logits = logits / temperature
      return sequence.token_log_probs(logits, self.target_tokens[:, None])

    if temperature not in self._log_probs:
      self._log_probs[temperature] = layers.map_passages(
        score, (self.encoded, self.reader_mask), self.chunk, 'gold_chunk'
      )
    return self._log_probs[temperature]

  def log_probs_leaving_out(self) -> Float[Array, 'b k t']:
    """log p(target token | query, all passages but one)."""
    logits = layers.call(
      self.reader,
      self._params,
      self.encoded,
      self.reader_mask,
      self._decoder_inputs,
      chunk=self.chunk,
      method='decode_leaving_out',
    )
    return sequence.token_log_probs(logits, self.target_tokens[:, None])

  def attention_norms(
    self, target_mask: Shaped[Array, 'b t'], last_layers: int | None = None
  ) -> Float[Array, 'b k s']:
    """Attention norms of all passages read together.

    Args:
      target_mask: the positions that count.
      last_layers: how many of the last decoder layers count; None counts all.
    """
    variables = self.context_variables
    if variables is None:
      _, variables = layers.call(
        self.reader,
        self._params,
        self.encoded,
        self.reader_mask,
        self._decoder_inputs,
        norm_weights=target_mask,
        method='decode_fused',
        mutable=[attention.NORMS],
      )
    return fid.attention_norms(variables, self.reader_mask, last_layers)
