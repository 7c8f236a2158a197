"""RAG-Sequence and RAG-Token marginalisation (Lewis et al. 2020, section 2.1).

RAG-Sequence: p(y|x) = sum_z p(z|x) prod_i p(y_i | x, z, y_<i)
RAG-Token:    p(y|x) = prod_i sum_z p(z|x) p(y_i | x, z, y_<i)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array
# Log-probabilities below it are those of missing passages.
ABSENT = -1e9


def log_prior(scores: Array, passage_mask: Array | None = None) -> Array:
  """log p(z | x) over the passages retrieved.

  Args:
    scores: [batch, n_passages], of the retriever, over its temperature.
    passage_mask: bool [batch, n_passages]; an example without any passage gives
      all its slots the same probability.

  Returns:
    float32 [batch, n_passages]; about -1e10 for missing passages.
  """
  scores = scores.astype(jnp.float32)
  if passage_mask is not None:
    # A missing passage's own score may be -inf, whose gradient is NaN.
    scores = jnp.where(passage_mask, scores, 10 * ABSENT)
  return jax.nn.log_softmax(scores, axis=-1)


def sequence_log_likelihood(log_prior: Array, token_log_probs: Array, target_mask: Array) -> Array:
  """log p(target | query) of RAG-Sequence.

  Args:
    log_prior: [batch, n_passages].
    token_log_probs: [batch, n_passages, length], log p(y_i | x, z, y_<i).
    target_mask: [batch, length].

  Returns:
    float32 [batch].
  """
  mask = target_mask.astype(jnp.float32)[:, None]
  # Masked positions may hold anything, also infinities.
  token_log_probs = jnp.where(mask > 0, token_log_probs, 0.0)
  sequences = jnp.sum(token_log_probs.astype(jnp.float32) * mask, axis=-1)
  return jax.nn.logsumexp(log_prior.astype(jnp.float32) + sequences, axis=-1)


def token_log_likelihood(log_prior: Array, token_log_probs: Array, target_mask: Array) -> Array:
  """log p(target | query) of RAG-Token; as `sequence_log_likelihood`."""
  joint = log_prior.astype(jnp.float32)[..., None] + token_log_probs.astype(jnp.float32)
  mask = target_mask.astype(jnp.float32)
  tokens = jnp.where(mask > 0, jax.nn.logsumexp(joint, axis=1), 0.0)
  return jnp.sum(tokens * mask, axis=-1)


def sequence_nll(log_prior: Array, token_log_probs: Array, target_mask: Array) -> Array:
  """-log p(target | query) of RAG-Sequence, float32 [batch]."""
  return -sequence_log_likelihood(
    jnp.asarray(log_prior), jnp.asarray(token_log_probs), jnp.asarray(target_mask)
  )


def token_nll(log_prior: Array, token_log_probs: Array, target_mask: Array) -> Array:
  """-log p(target | query) of RAG-Token, float32 [batch]."""
  return -token_log_likelihood(
    jnp.asarray(log_prior), jnp.asarray(token_log_probs), jnp.asarray(target_mask)
  )


def marginal_log_probs(log_prior: Array, logits: Array) -> Array:
  """RAG-Token's distribution over the next token.

  Args:
    log_prior: [batch, n_passages].
    logits: [batch, n_passages, ..., vocab], of the generator.

  Returns:
    float32 [batch, ..., vocab], normalised.
  """
  log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
  prior = log_prior.reshape(log_prior.shape + (1,) * (logits.ndim - 2))
  return jax.nn.logsumexp(prior + log_probs, axis=1)


def fast_log_likelihood(log_prior: Array, found_log_probs: Array, found: Array) -> Array:
  """RAG-Sequence's fast decoding (Lewis et al. 2020, section 2.5).

  A candidate that a passage's own beam did not produce counts as impossible
  under that passage.

  Args:
    log_prior: [batch, n_passages].
    found_log_probs: [batch, n_passages, candidates], log p(candidate | x, z).
    found: bool [batch, n_passages, candidates], whether z's beam has it.

  Returns:
    float32 [batch, candidates]; -inf where no passage found it.
  """
  joint = log_prior[..., None] + found_log_probs
  return jax.nn.logsumexp(jnp.where(found, joint, -jnp.inf), axis=1)
