"""Fusion-in-Decoder (Izacard & Grave 2021): encode apart, decode together."""

from __future__ import annotations

import jax.numpy as jnp

from ralm_jax.losses.array_types import Array, Float, Int, PyTree, Shaped
from ralm_jax.models import attention, decoder_stack, layers
from ralm_jax.models.attention import CrossAttentionOptions
from ralm_jax.models.bart import Bart, BartConfig
from ralm_jax.models.decoder_config import DecoderConfig
from ralm_jax.models.decoder_stack import EncoderDecoder
from ralm_jax.models.t5 import T5, T5Config

Tokens = Int[Array, 'b n s']
Mask = Shaped[Array, 'b n s']
Encoded = Float[Array, 'b n s d']
Targets = Int[Array, 'b t']


class PassageReader(EncoderDecoder):
  """Reads passages with the `encode` and `decode` of the model it is mixed into.

  Positions restart in every passage and there is no passage embedding, so the
  parameters are those of the plain model, and one passage gives its own logits.
  """

  def encode_passages(
    self, passage_tokens: Tokens, passage_mask: Mask, *, deterministic: bool = True
  ) -> Encoded:
    """Encodes every passage on its own."""
    batch, n_passages, length = passage_tokens.shape
    # batch x passages is one axis to shard, so that a mesh larger than the
    # batch still has work for every device.
    tokens = layers.constrain(passage_tokens.reshape(batch * n_passages, length), 'batch', 'length')
    mask = layers.constrain(passage_mask.reshape(batch * n_passages, length), 'batch', 'length')
    encoded = self.encode(tokens, mask, deterministic=deterministic)
    return encoded.reshape(batch, n_passages, length, encoded.shape[-1])

  def decode_fused(
    self,
    encoded: Encoded,
    passage_mask: Mask,
    decoder_input_tokens: Targets,
    *,
    deterministic: bool = True,
    norm_weights: Shaped[Array, 'b t'] | None = None,
  ) -> Float[Array, 'b t v']:
    """Teacher-forced logits over the passages of each example together.

    Where the collection `attention.NORMS` is mutable, `attention_norms` below
    finds the norms in it, with these weights of the target's positions.
    """
    batch, n_passages, length, embed = encoded.shape
    return self.decode(
      encoded.reshape(batch, n_passages * length, embed),
      passage_mask.reshape(batch, n_passages * length),
      decoder_input_tokens,
      deterministic=deterministic,
      options=CrossAttentionOptions(norm_weights=norm_weights),
    )

  def decode_each(
    self,
    encoded: Encoded,
    passage_mask: Mask,
    decoder_input_tokens: Targets,
    *,
    deterministic: bool = True,
  ) -> Float[Array, 'b n t v']:
    """Teacher-forced logits with one passage at a time."""
    batch, n_passages, length, embed = encoded.shape
    logits = self.decode(
      encoded.reshape(batch * n_passages, length, embed),
      passage_mask.reshape(batch * n_passages, length),
      _for_each(decoder_input_tokens, n_passages),
      deterministic=deterministic,
    )
    return logits.reshape(batch, n_passages, *logits.shape[1:])

  def decode_leaving_out(
    self,
    encoded: Encoded,
    passage_mask: Mask,
    decoder_input_tokens: Targets,
    *,
    chunk: int | None = None,
  ) -> Float[Array, 'b n t v']:
    """Teacher-forced logits of n decodings, each without one passage.

    Encoder states and the projections of keys and values are those of all passages, computed once;
    only what each decoding attends to differs, for `chunk` left-out passages at a time.
    """
    batch, n_passages, length, embed = encoded.shape
    others = ~jnp.eye(n_passages, dtype=bool)
    group_mask = passage_mask.astype(bool)[:, None] & others[None, :, :, None]
    logits = self.decode(
      encoded.reshape(batch, n_passages * length, embed),
      passage_mask.reshape(batch, n_passages * length),
      _for_each(decoder_input_tokens, n_passages),
      options=CrossAttentionOptions(
        group_mask=group_mask.reshape(batch, n_passages, -1), group_chunk=chunk
      ),
    )
    return logits.reshape(batch, n_passages, *logits.shape[1:])

  def __call__(
    self,
    passage_tokens: Tokens,
    passage_mask: Mask,
    decoder_input_tokens: Targets,
    *,
    deterministic: bool = True,
  ) -> Float[Array, 'b t v']:
    encoded = self.encode_passages(passage_tokens, passage_mask, deterministic=deterministic)
    return self.decode_fused(
      encoded, passage_mask, decoder_input_tokens, deterministic=deterministic
    )


def _for_each(tokens: Targets, n: int) -> Int[Array, 'rows t']:
  """The rows of each example n times."""
  batch, length = tokens.shape
  return jnp.broadcast_to(tokens[:, None], (batch, n, length)).reshape(batch * n, length)


class FusionInDecoder(PassageReader, T5):
  """A T5 whose decoder attends to all passages of an example at once."""


class BartFusionInDecoder(PassageReader, Bart):
  """A BART whose decoder attends to all passages of an example at once."""


ReaderConfig = T5Config | BartConfig


def make_reader(config: ReaderConfig) -> FusionInDecoder | BartFusionInDecoder:
  if isinstance(config, BartConfig):
    return BartFusionInDecoder(config)
  return FusionInDecoder(config)


def has_dropout(config: ReaderConfig | DecoderConfig) -> bool:
  """Whether training draws anything at random."""
  return max(config.dropout_rate, getattr(config, 'attention_dropout_rate', 0.0)) > 0


def read(
  reader: PassageReader,
  tokens: Tokens,
  mask: Mask,
  target_tokens: Targets,
  *,
  deterministic: bool,
  norm_weights: Shaped[Array, 'b t'] | None = None,
) -> tuple[Encoded, Float[Array, 'b t v']]:
  """Encoder states and logits of one forward pass."""
  encoded = reader.encode_passages(tokens, mask, deterministic=deterministic)
  logits = reader.decode_fused(
    encoded,
    mask,
    decoder_stack.shift_right(target_tokens, reader.config.decoder_start_id),
    deterministic=deterministic,
    norm_weights=norm_weights,
  )
  return encoded, logits


def attention_norms(
  variables: PyTree, passage_mask: Mask, last_layers: int | None = None
) -> Float[Array, 'b n s']:
  """What each token of the passages gave to a fused decoding.

  Args:
    variables: what `apply(..., mutable=[attention.NORMS])` has left.
    passage_mask: of the passages that were read.
    last_layers: how many of the last layers count; None counts all.
  """
  norms = attention.summed_norms(variables[attention.NORMS], last_layers)
  return norms.reshape(passage_mask.shape)
