"""The reader's forward passes behind the gold scores.

None of them has dropout or a gradient. All of them start from the passages'
encoder states, which the reader's own loss may have computed already.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ralm_jax.losses import sequence
from ralm_jax.models import decoder_stack, layers
from ralm_jax.models.fid import FusionInDecoder

Array = jax.Array
Params = Any


@dataclasses.dataclass(frozen=True)
class GoldPasses:
  """Passes over one batch.

  Attributes:
    reader: whose likelihoods and attention are asked for.
    params: of the reader.
    reader_tokens: int [batch, n_passages, length].
    reader_mask: bool [batch, n_passages, length].
    target_tokens: int [batch, target_length].
    encoded_context: [batch, n, length, embed], encoder states of the first n
      passages, where there are any.
    chunk: passages at a time, to bound memory; None takes all at once.
  """

  reader: FusionInDecoder
  params: Params
  reader_tokens: Array
  reader_mask: Array
  target_tokens: Array
  encoded_context: Array | None = None
  chunk: int | None = None

  @property
  def _variables(self) -> Params:
    return jax.lax.stop_gradient({'params': self.params})

  @property
  def _decoder_inputs(self) -> Array:
    return decoder_stack.shift_right(self.target_tokens, self.reader.config.decoder_start_id)

  def encoded(self) -> Array:
    """Encoder states of all passages: [batch, n_passages, length, embed]."""
    have, parts = 0, []
    if self.encoded_context is not None:
      parts.append(jax.lax.stop_gradient(self.encoded_context))
      have = self.encoded_context.shape[1]
    if have < self.reader_tokens.shape[1]:
      parts.append(
        self.reader.apply(
          self._variables,
          self.reader_tokens[:, have:],
          self.reader_mask[:, have:],
          method='encode_passages',
        )
      )
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)

  def log_probs_of_each(self, encoded: Array, *, temperature: float = 1.0) -> Array:
    """log p(target token | query, one passage).

    Args:
      encoded: from `encoded`.
      temperature: divides the reader's logits.

    Returns:
      float32 [batch, n_passages, target_length].
    """
    decoder_inputs = self._decoder_inputs

    def score(encoded: Array, mask: Array) -> Array:
      logits = self.reader.apply(
        self._variables, encoded, mask, decoder_inputs, method='decode_each'
      )
      if temperature != 1.0:
        logits = logits / temperature
      return sequence.token_log_probs(logits, self.target_tokens[:, None])

    n_passages = self.reader_tokens.shape[1]
    if not self.chunk or self.chunk >= n_passages:
      return score(encoded, self.reader_mask)
    split = lambda array: layers.split_passages(array, self.chunk, 'gold_chunk')
    return layers.join_passages(
      jax.lax.map(lambda part: score(*part), (split(encoded), split(self.reader_mask)))
    )

  def log_probs_leaving_out(self, encoded: Array) -> Array:
    """log p(target token | query, all passages but one).

    Args:
      encoded: from `encoded`.

    Returns:
      float32 [batch, n_passages, target_length].
    """
    logits = self.reader.apply(
      self._variables,
      encoded,
      self.reader_mask,
      self._decoder_inputs,
      chunk=self.chunk,
      method='decode_leaving_out',
    )
    return sequence.token_log_probs(logits, self.target_tokens[:, None])

  def attention_norms(
    self, encoded: Array, target_mask: Array, n_layers: int | None = None
  ) -> Array:
    """Attention norms of all passages read together.

    Args:
      encoded: from `encoded`.
      target_mask: [batch, target_length], the positions that count.
      n_layers: how many of the last decoder layers count; None counts all.

    Returns:
      float32 [batch, n_passages, length].
    """
    _, norms = self.reader.apply(
      self._variables,
      encoded,
      self.reader_mask,
      self._decoder_inputs,
      norm_weights=target_mask,
      norm_layers=n_layers,
      method='decode_fused',
    )
    return norms
