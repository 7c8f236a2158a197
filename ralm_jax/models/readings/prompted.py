"""Decoder-only readers: passages in one prompt, or each read by itself and attended to together."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import jax.numpy as jnp

from ralm_jax.losses import sequence
from ralm_jax.losses.array_types import Array, Float, PyTree
from ralm_jax.models.choices import ChoiceTokens
from ralm_jax.models.decoder_config import DecoderConfig
from ralm_jax.models.gold_passes import Passes
from ralm_jax.models.reader_and_retriever import ReaderAndRetriever
from ralm_jax.models.reader_batch import ReaderBatch
from ralm_jax.models.readings.together import Together


class InContext(Together):
  """The first `n_context` passages stand in one prompt (Ram et al. 2023)."""

  readers: ClassVar[tuple[type, ...]] = (DecoderConfig,)
  reads_together: ClassVar[bool] = True

  def forward(
    self, model: ReaderAndRetriever, params: PyTree, batch: ReaderBatch, rng: Array | None
  ) -> tuple[Float[Array, 'b t v'], Callable[[], Passes]]:
    passes = model.prompt_passes(params, batch, rng)
    return passes.logits_together(), lambda: passes.frozen()

  def score(
    self, model: ReaderAndRetriever, params: PyTree, batch: ReaderBatch
  ) -> Float[Array, ' b']:
    logits = model.prompt_passes(params, batch).logits_together()
    return _sum(sequence.token_log_probs(logits, batch.target_tokens), batch)

  def choice_logits(
    self, model: ReaderAndRetriever, params: PyTree, batch: ReaderBatch, choices: ChoiceTokens
  ) -> Float[Array, 'b options']:
    """Log-likelihoods of each option's target; what stands before is read once."""
    log_probs = model.prompt_passes(params, batch).choice_log_probs(choices)[:, 0]
    return jnp.sum(log_probs * choices.mask, axis=-1)

  def passage_effects(
    self, model: ReaderAndRetriever, params: PyTree, batch: ReaderBatch
  ) -> Float[Array, 'b n']:
    without = model.prompt_passes(params, batch).log_probs_leaving_out()
    return self.score(model, params, batch)[:, None] - _sum(without, batch)


class Parallel(InContext):
  """Every passage is read by itself, all at the same positions, and then all are attended to.

  What Fusion-in-Decoder is for readers with an encoder (Ratner et al. 2023).
  """

  reads_together: ClassVar[bool] = False


def _sum(log_probs: Float[Array, ' b *n t'], batch: ReaderBatch) -> Float[Array, ' b *n']:
  mask = batch.target_mask if log_probs.ndim == 2 else batch.target_mask[:, None]
  return jnp.sum(log_probs * mask, axis=-1)
