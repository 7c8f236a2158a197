"""Fusion-in-Decoder (Izacard & Grave 2021): encode apart, decode together."""

from __future__ import annotations

from flax import linen as nn
import jax
import jax.numpy as jnp

from ralm_jax.models import decoder_stack, layers, t5
from ralm_jax.models.attention import CrossAttentionOptions
from ralm_jax.models.bart import Bart, BartConfig
from ralm_jax.models.t5 import T5Config

Array = jax.Array


class PassageReader(nn.Module):
  """Reads passages with the `encode` and `decode` of the model it is mixed into.

  Positions restart in every passage and there is no passage embedding, so the
  parameters are those of the plain model, and one passage gives its own logits.
  """

  def encode_passages(
    self, passage_tokens: Array, passage_mask: Array, *, deterministic: bool = True
  ) -> Array:
    """Encodes every passage on its own.

    Args:
      passage_tokens: int [batch, n_passages, length].
      passage_mask: [batch, n_passages, length], true on tokens.
      deterministic: no dropout.

    Returns:
      [batch, n_passages, length, embed].
    """
    batch, n_passages, length = passage_tokens.shape
    # batch x passages is one axis to shard, so that a mesh larger than the
    # batch still has work for every device.
    tokens = layers.constrain(passage_tokens.reshape(batch * n_passages, length), 'batch', 'length')
    mask = layers.constrain(passage_mask.reshape(batch * n_passages, length), 'batch', 'length')
    encoded = self.encode(tokens, mask, deterministic=deterministic)
    return encoded.reshape(batch, n_passages, length, encoded.shape[-1])

  def decode_fused(
    self,
    encoded: Array,
    passage_mask: Array,
    decoder_input_tokens: Array,
    *,
    deterministic: bool = True,
    norm_weights: Array | None = None,
    norm_layers: int | None = None,
  ) -> Array | tuple[Array, Array]:
    """Teacher-forced logits over the passages of each example together.

    Args:
      encoded: [batch, n_passages, length, embed].
      passage_mask: [batch, n_passages, length].
      decoder_input_tokens: int [batch, target_length].
      deterministic: no dropout.
      norm_weights: [batch, target_length], to return the attention norms.
      norm_layers: how many of the last decoder layers count for them; None
        counts all.

    Returns:
      float32 [batch, target_length, vocab]; with `norm_weights` a pair of it
      and float32 [batch, n_passages, length], the attention norms
      (`attention.attention_norms`) summed over layers.
    """
    batch, n_passages, length, embed = encoded.shape
    decoded = self.decode(
      encoded.reshape(batch, n_passages * length, embed),
      passage_mask.reshape(batch, n_passages * length),
      decoder_input_tokens,
      deterministic=deterministic,
      options=CrossAttentionOptions(norm_weights=norm_weights, norm_layers=norm_layers),
    )
    if norm_weights is None:
      return decoded
    logits, norms = decoded
    return logits, norms.reshape(batch, n_passages, length)

  def decode_each(
    self,
    encoded: Array,
    passage_mask: Array,
    decoder_input_tokens: Array,
    *,
    deterministic: bool = True,
  ) -> Array:
    """Teacher-forced logits with one passage at a time.

    Args:
      encoded: [batch, n_passages, length, embed].
      passage_mask: [batch, n_passages, length].
      decoder_input_tokens: int [batch, target_length].
      deterministic: no dropout.

    Returns:
      float32 [batch, n_passages, target_length, vocab].
    """
    batch, n_passages, length, embed = encoded.shape
    target_length = decoder_input_tokens.shape[-1]
    tokens = jnp.broadcast_to(decoder_input_tokens[:, None], (batch, n_passages, target_length))
    logits = self.decode(
      encoded.reshape(batch * n_passages, length, embed),
      passage_mask.reshape(batch * n_passages, length),
      tokens.reshape(batch * n_passages, target_length),
      deterministic=deterministic,
    )
    return logits.reshape(batch, n_passages, target_length, -1)

  def decode_leaving_out(
    self,
    encoded: Array,
    passage_mask: Array,
    decoder_input_tokens: Array,
    *,
    chunk: int | None = None,
  ) -> Array:
    """Teacher-forced logits of n_passages decodings, each without one passage.

    Encoder states and the projections of keys and values are those of all
    passages, computed once; only what each decoding attends to differs.

    Args:
      encoded: [batch, n_passages, length, embed].
      passage_mask: [batch, n_passages, length].
      decoder_input_tokens: int [batch, target_length].
      chunk: left-out passages whose attention is computed at a time.

    Returns:
      float32 [batch, n_passages, target_length, vocab].
    """
    batch, n_passages, length, embed = encoded.shape
    target_length = decoder_input_tokens.shape[-1]
    others = ~jnp.eye(n_passages, dtype=bool)
    group_mask = passage_mask.astype(bool)[:, None] & others[None, :, :, None]
    tokens = jnp.broadcast_to(decoder_input_tokens[:, None], (batch, n_passages, target_length))
    logits = self.decode(
      encoded.reshape(batch, n_passages * length, embed),
      passage_mask.reshape(batch, n_passages * length),
      tokens.reshape(batch * n_passages, target_length),
      options=CrossAttentionOptions(
        group_mask=group_mask.reshape(batch, n_passages, -1), group_chunk=chunk
      ),
    )
    return logits.reshape(batch, n_passages, target_length, -1)

  def __call__(
    self,
    passage_tokens: Array,
    passage_mask: Array,
    decoder_input_tokens: Array,
    *,
    deterministic: bool = True,
  ) -> Array:
    """[batch, passages, length] x2, [batch, target] -> float32 [batch, target, vocab]."""
    encoded = self.encode_passages(passage_tokens, passage_mask, deterministic=deterministic)
    return self.decode_fused(
      encoded, passage_mask, decoder_input_tokens, deterministic=deterministic
    )


class FusionInDecoder(PassageReader, t5.T5):
  """A T5 whose decoder attends to all passages of an example at once."""


class BartFusionInDecoder(PassageReader, Bart):
  """A BART whose decoder attends to all passages of an example at once."""


ReaderConfig = T5Config | BartConfig


def make_reader(config: ReaderConfig) -> FusionInDecoder | BartFusionInDecoder:
  """The reader of a configuration."""
  if isinstance(config, BartConfig):
    return BartFusionInDecoder(config)
  return FusionInDecoder(config)


def has_dropout(config: ReaderConfig) -> bool:
  """Whether training draws anything at random."""
  return max(config.dropout_rate, getattr(config, 'attention_dropout_rate', 0.0)) > 0


def read(
  reader: PassageReader,
  tokens: Array,
  mask: Array,
  target_tokens: Array,
  *,
  deterministic: bool,
  norm_weights: Array | None,
  norm_layers: int | None,
) -> tuple[Array, Array, Array | None]:
  """Encoder states, logits and attention norms of one forward pass."""
  encoded = reader.encode_passages(tokens, mask, deterministic=deterministic)
  decoder_inputs = decoder_stack.shift_right(target_tokens, reader.config.decoder_start_id)
  decoded = reader.decode_fused(
    encoded,
    mask,
    decoder_inputs,
    deterministic=deterministic,
    norm_weights=norm_weights,
    norm_layers=norm_layers,
  )
  logits, norms = (decoded, None) if norm_weights is None else decoded
  return encoded, logits, norms
