"""The marginal likelihood that trains RAG's generator and query encoder."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ralm_jax.losses import retriever, sequence
from ralm_jax.losses.sequence import WeightedSum
from ralm_jax.models import decoder_stack, layers, rag
from ralm_jax.models.fid import PassageReader
from ralm_jax.models.reader_batch import ReaderBatch

Array = jax.Array
Params = Any


def token_log_probs(
  reader: PassageReader,
  params: Params,
  batch: ReaderBatch,
  *,
  dropout_rng: Array | None = None,
  chunk: int | None = None,
) -> Array:
  """log p(y_i | x, z, y_<i) for every passage z, with gradients.

  Args:
    reader: T5 or BART.
    params: of the reader.
    batch: the arrays.
    dropout_rng: None for no dropout.
    chunk: passages at a time; their logits are then computed again for the
      gradient, so that memory holds those of one chunk. None takes all.

  Returns:
    float32 [batch, n_passages, target_length].
  """
  inputs = decoder_stack.shift_right(batch.target_tokens, reader.config.decoder_start_id)

  def score(tokens: Array, mask: Array, rng: Array | None) -> Array:
    variables, kwargs = {'params': params}, {'deterministic': rng is None}
    rngs = [None, None] if rng is None else jax.random.split(rng)
    apply = lambda *args, rng, method: reader.apply(
      variables, *args, **kwargs, method=method, rngs={} if rng is None else {'dropout': rng}
    )
    encoded = apply(tokens, mask, rng=rngs[0], method='encode_passages')
    logits = apply(encoded, mask, inputs, rng=rngs[1], method='decode_each')
    return sequence.token_log_probs(logits, batch.target_tokens[:, None])

  n_passages = batch.reader_tokens.shape[1]
  if not chunk or chunk >= n_passages:
    return score(batch.reader_tokens, batch.reader_mask, dropout_rng)
  parts = [
    layers.split_passages(array, chunk, 'gold_chunk')
    for array in (batch.reader_tokens, batch.reader_mask)
  ]
  if dropout_rng is None:
    run = lambda part: score(*part, None)
  else:
    parts.append(jax.random.split(dropout_rng, len(parts[0])))
    run = lambda part: score(*part)
  return layers.join_passages(jax.lax.map(jax.checkpoint(run), parts))


def marginal_loss(
  log_probs: Array, scores: Array, batch: ReaderBatch, *, reading: str
) -> tuple[WeightedSum, dict[str, WeightedSum]]:
  """-log p(y | x), summed over examples (Lewis et al. 2020, section 2.4).

  Args:
    log_probs: [batch, n_passages, target_length], from `token_log_probs`.
    scores: [batch, n_passages], of the retriever, over its temperature.
    batch: its masks.
    reading: 'rag_sequence' or 'rag_token'.

  Returns:
    The loss with the number of examples, and metrics: the loss a token, the
    entropies of p(z|x) and p(z|x,y), and how often they agree on the best z.
  """
  prior = rag.log_prior(scores, batch.passage_mask)
  nll_fn = rag.sequence_nll if reading == 'rag_sequence' else rag.token_nll
  nll = nll_fn(prior, log_probs, batch.target_mask)
  examples = jnp.any(batch.target_mask, axis=-1).astype(jnp.float32)
  total = jnp.sum(nll * examples)
  tokens = jnp.sum(batch.target_mask.astype(jnp.float32))

  # An example without any passage says nothing of the retriever.
  counted = examples * jnp.any(batch.passage_mask, axis=-1)

  def mean(values: Array) -> WeightedSum:
    values = jax.lax.stop_gradient(values).astype(jnp.float32)
    return WeightedSum(jnp.sum(values * counted), jnp.sum(counted))

  posterior = jax.lax.stop_gradient(prior) + jnp.sum(
    jax.lax.stop_gradient(log_probs) * batch.target_mask[:, None], axis=-1
  )
  mask = batch.passage_mask
  best = lambda logits: jnp.argmax(jnp.where(mask, logits, -jnp.inf), axis=-1)
  return WeightedSum(total, jnp.sum(examples)), {
    'nll_per_token': WeightedSum(jax.lax.stop_gradient(total), tokens),
    'retriever/entropy': mean(retriever.entropy(prior, mask)),
    'retriever/posterior_entropy': mean(retriever.entropy(posterior, mask)),
    'retriever/posterior_agreement': mean(best(prior) == best(posterior)),
  }
