"""RAG-Sequence and RAG-Token marginalisation (Lewis et al. 2020, section 2.1).

RAG-Sequence: p(y|x) = sum_z p(z|x) prod_i p(y_i | x, z, y_<i)
RAG-Token:    p(y|x) = prod_i sum_z p(z|x) p(y_i | x, z, y_<i)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ralm_jax.losses.array_types import Array, Bool, Float, Shaped
from ralm_jax.models.reader_batch import slots_read

# Log-probabilities below it are those of missing passages.
ABSENT = -1e9


def log_prior(
  scores: Float[Array, 'b k'], passage_mask: Bool[Array, 'b k'] | None = None
) -> Float[Array, 'b k']:
  """log p(z | x) over the passages retrieved; about -1e10 for missing ones.

  The scores are the retriever's, over its temperature. An example without any
  passage is sure of its first slot, where the bare query is read.
  """
  scores = scores.astype(jnp.float32)
  if passage_mask is not None:
    # A missing passage's own score may be -inf, whose gradient is NaN.
    scores = jnp.where(passage_mask, scores, jnp.where(slots_read(passage_mask), 0, 10 * ABSENT))
  return jax.nn.log_softmax(scores, axis=-1)


def sequence_log_likelihood(
  log_prior: Float[Array, 'b k'],
  token_log_probs: Float[Array, 'b k t'],
  target_mask: Shaped[Array, 'b t'],
) -> Float[Array, ' b']:
  """log p(target | query) of RAG-Sequence, of log p(y_i | x, z, y_<i)."""
  mask = target_mask.astype(jnp.float32)[:, None]
  # Masked positions may hold anything, also infinities.
  token_log_probs = jnp.where(mask > 0, token_log_probs, 0.0)
  sequences = jnp.sum(token_log_probs.astype(jnp.float32) * mask, axis=-1)
  return jax.nn.logsumexp(log_prior.astype(jnp.float32) + sequences, axis=-1)


def token_log_likelihood(
  log_prior: Float[Array, 'b k'],
  token_log_probs: Float[Array, 'b k t'],
  target_mask: Shaped[Array, 'b t'],
) -> Float[Array, ' b']:
  """log p(target | query) of RAG-Token, of log p(y_i | x, z, y_<i)."""
  joint = log_prior.astype(jnp.float32)[..., None] + token_log_probs.astype(jnp.float32)
  mask = target_mask.astype(jnp.float32)
  tokens = jnp.where(mask > 0, jax.nn.logsumexp(joint, axis=1), 0.0)
  return jnp.sum(tokens * mask, axis=-1)


def sequence_nll(
  log_prior: Float[Array, 'b k'],
  token_log_probs: Float[Array, 'b k t'],
  target_mask: Shaped[Array, 'b t'],
) -> Float[Array, ' b']:
  """-log p(target | query) of RAG-Sequence."""
  return -sequence_log_likelihood(
    jnp.asarray(log_prior), jnp.asarray(token_log_probs), jnp.asarray(target_mask)
  )


def token_nll(
  log_prior: Float[Array, 'b k'],
  token_log_probs: Float[Array, 'b k t'],
  target_mask: Shaped[Array, 'b t'],
) -> Float[Array, ' b']:
  """-log p(target | query) of RAG-Token."""
  return -token_log_likelihood(
    jnp.asarray(log_prior), jnp.asarray(token_log_probs), jnp.asarray(target_mask)
  )


def marginal_log_probs(
  log_prior: Float[Array, 'b k'], logits: Float[Array, 'b k *t v']
) -> Float[Array, 'b *t v']:
  """RAG-Token's distribution over the next token, normalised."""
  log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
  prior = log_prior.reshape(log_prior.shape + (1,) * (logits.ndim - 2))
  return jax.nn.logsumexp(prior + log_probs, axis=1)


def fast_log_likelihood(
  log_prior: Float[Array, 'b k'],
  found_log_probs: Float[Array, 'b k c'],
  found: Bool[Array, 'b k c'],
) -> Float[Array, 'b c']:
  """RAG-Sequence's fast decoding (Lewis et al. 2020, section 2.5).

  A candidate that a passage's own beam did not produce counts as impossible
  under that passage: -inf where no passage's beam found it.
  """
  joint = log_prior[..., None] + found_log_probs
  return jax.nn.logsumexp(jnp.where(found, joint, -jnp.inf), axis=1)
