"""How much each passage helps a target: its likelihood without that passage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from ralm_jax.models import rag, rag_loss
from ralm_jax.models.gold_passes import GoldPasses
from ralm_jax.models.reader_batch import ReaderBatch

if TYPE_CHECKING:
  from ralm_jax.models import retrieval_lm

Array = jax.Array
Params = Any


def passage_effects(model: retrieval_lm.RetrievalLM, params: Params, batch: ReaderBatch) -> Array:
  """log p(target | all passages) - log p(target | all but this one).

  Positive where the passage makes the target likelier. With fusion the passage
  is masked in cross-attention, as LOOP does (Atlas, section 2.2); with RAG the
  prior is shared out among the others. A passage that the reader does not read
  (`n_context`), or the only one there is, has no effect.

  Args:
    model: reader and retriever.
    params: of the model.
    batch: the arrays; `target_tokens` is what the effect is on.

  Returns:
    float32 [batch, n_passages].
  """
  n_passages = batch.reader_tokens.shape[1]
  mask = batch.target_mask
  if model.marginalizes:
    log_probs = rag_loss.token_log_probs(
      model.reader, params['reader'], batch, chunk=model.gold_chunk
    )
    prior = model.log_prior(params, batch)
    likelihood = (
      rag.sequence_log_likelihood if model.reading == 'rag_sequence' else rag.token_log_likelihood
    )
    all_of_them = likelihood(prior, log_probs, mask)
    without = jax.vmap(
      lambda left_out: likelihood(
        jax.nn.log_softmax(jnp.where(left_out, 10 * rag.ABSENT, prior), axis=-1), log_probs, mask
      ),
      out_axes=1,
    )(jnp.eye(n_passages, dtype=bool)[:, None])
    n_read = n_passages
  else:
    n_read = min(model.n_context or n_passages, n_passages)
    passes = GoldPasses(
      model.reader,
      params['reader'],
      batch.reader_tokens[:, :n_read],
      batch.reader_mask[:, :n_read],
      batch.target_tokens,
      chunk=model.gold_chunk,
    )
    without = jnp.sum(passes.log_probs_leaving_out(passes.encoded()) * mask[:, None], axis=-1)
    all_of_them = model.score(params, batch)
  effects = all_of_them[:, None] - without
  # Without its last passage a reader attends to nothing at all.
  others = jnp.sum(batch.passage_mask[:, :n_read], axis=-1, keepdims=True) > 1
  effects = jnp.where(others & batch.passage_mask[:, :n_read], effects, 0.0)
  return jnp.pad(effects, ((0, 0), (0, n_passages - n_read)))
