"""Fusion in the decoder (Izacard & Grave 2021), with distillation to the retriever."""

from __future__ import annotations

from collections.abc import Callable
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from ralm_jax.losses import sequence
from ralm_jax.losses.array_types import Array, Bool, Float, Int, PyTree
from ralm_jax.models import attention, decoder_stack, fid, layers
from ralm_jax.models.choices import ChoiceTokens
from ralm_jax.models.gold_passes import GoldPasses, Passes
from ralm_jax.models.reader_and_retriever import ReaderAndRetriever
from ralm_jax.models.reader_batch import ReaderBatch
from ralm_jax.models.readings.together import Together


class Fusion(Together):
  """The decoder attends to the first `n_context` passages at once."""

  def forward(
    self, model: ReaderAndRetriever, params: PyTree, batch: ReaderBatch, rng: Array | None
  ) -> tuple[Float[Array, 'b t v'], Callable[[], Passes]]:
    shares = rng is None or model.gold_encoder == 'shared'
    n_read = model.n_read(batch)
    # Passages that are scored but not read would be missing from the norms.
    keeps_norms = (
      model.distils
      and shares
      and n_read == batch.reader_tokens.shape[1]
      and any(teacher.reads_attention for teacher in model.teachers.values())
    )
    (encoded, logits), variables = nn.apply(
      fid.read, model.reader, mutable=[attention.NORMS] if keeps_norms else []
    )(
      {'params': params['reader']},
      batch.reader_tokens[:, :n_read],
      batch.reader_mask[:, :n_read],
      batch.target_tokens,
      deterministic=rng is None,
      norm_weights=batch.target_mask,
      rngs={} if rng is None else {'dropout': rng},
    )
    return logits, lambda: model.make_gold_passes(
      params, batch, encoded if shares else None, variables if keeps_norms else None
    )

  def score(
    self, model: ReaderAndRetriever, params: PyTree, batch: ReaderBatch
  ) -> Float[Array, ' b']:
    tokens, mask = _read(model, batch)
    logits = layers.call(
      model.reader,
      params['reader'],
      tokens,
      mask,
      decoder_stack.shift_right(batch.target_tokens, model.passage_reader.config.decoder_start_id),
    )
    log_probs = sequence.token_log_probs(logits, batch.target_tokens)
    return jnp.sum(log_probs * batch.target_mask, axis=-1)

  def choice_logits(
    self, model: ReaderAndRetriever, params: PyTree, batch: ReaderBatch, choices: ChoiceTokens
  ) -> Float[Array, 'b options']:
    """With letters of one token, raw logits of the letters where they stand in the
    target, behind `<extra_id_0>` (Atlas's `get_choice_logits`); else likelihoods.
    """
    tokens, mask = _read(model, batch)
    apply = functools.partial(layers.call, model.reader, params['reader'])
    inputs_of = functools.partial(model.decoder_inputs, batch_size=len(tokens))
    if choices.position is not None:
      # All targets are the same before the letter.
      inputs = inputs_of(jnp.asarray(choices.tokens[0]))
      logits = apply(tokens, mask, inputs[:, : choices.position + 1])
      letters = choices.tokens[:, choices.position]
      return logits[:, choices.position, letters].astype(jnp.float32)
    encoded = apply(tokens, mask, method='encode_passages')

    def score(target: Int[Array, ' t'], target_mask: Bool[Array, ' t']) -> Float[Array, ' b']:
      logits = apply(encoded, mask, inputs_of(target), method='decode_fused')
      log_probs = sequence.token_log_probs(logits, target[None])
      return jnp.sum(log_probs * target_mask, axis=-1)

    scores = jax.lax.map(
      lambda choice: score(*choice), (jnp.asarray(choices.tokens), jnp.asarray(choices.mask))
    )
    return scores.T  # [options, b] -> [b, options]

  def passage_effects(
    self, model: ReaderAndRetriever, params: PyTree, batch: ReaderBatch
  ) -> Float[Array, 'b n']:
    """A passage is masked in cross-attention, as LOOP does (Atlas, section 2.2)."""
    tokens, mask = _read(model, batch)
    passes = GoldPasses(
      model.passage_reader,
      params['reader'],
      tokens,
      mask,
      batch.target_tokens,
      chunk=model.gold_chunk,
    )
    without = jnp.sum(passes.log_probs_leaving_out() * batch.target_mask[:, None], axis=-1)
    return self.score(model, params, batch)[:, None] - without


def _read(model: ReaderAndRetriever, batch: ReaderBatch) -> tuple[Any, Any]:
  """Tokens and mask of the passages that are read."""
  n_read = model.n_read(batch)
  return batch.reader_tokens[:, :n_read], batch.reader_mask[:, :n_read]
