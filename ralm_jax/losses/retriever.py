"""Retriever losses: train the retriever towards the reader's gold scores."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ralm_jax.losses.array_types import Array, Bool, Float, Shaped
from ralm_jax.losses.sequence import WeightedSum

Scores = Float[Array, 'b k']
PassageMask = Bool[Array, 'b k'] | None
ExampleMask = Shaped[Array, ' b'] | None
KL_REDUCTIONS = ('batch', 'element')
EMDR2_LEVELS = ('sequence', 'token')
_MASKED = -1e30


def _masked_log_softmax(scores: Scores, passage_mask: PassageMask) -> Scores:
  scores = scores.astype(jnp.float32)
  if passage_mask is not None:
    scores = jnp.where(passage_mask, scores, _MASKED)
  return jax.nn.log_softmax(scores, axis=-1)


def entropy(scores: Scores, passage_mask: PassageMask = None) -> Float[Array, ' b']:
  """Entropy in nats of softmax(scores) over the passages."""
  log_probs = _masked_log_softmax(scores, passage_mask)
  return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)


def kl_per_example(
  retriever_scores: Scores,
  gold_scores: Scores,
  *,
  temperature_score: float,
  temperature_gold: float,
  passage_mask: PassageMask = None,
) -> Float[Array, ' b']:
  """KL(gold || retriever) (Atlas, section 2.2); 0 where no passage is valid.

  Args:
    retriever_scores: query . passage / sqrt(dim).
    gold_scores: no gradient reaches them.
  """
  # float32 before the division: a small temperature magnifies rounding.
  retriever_scores = retriever_scores.astype(jnp.float32)
  gold_scores = jax.lax.stop_gradient(gold_scores).astype(jnp.float32)
  log_retriever = _masked_log_softmax(retriever_scores / temperature_score, passage_mask)
  log_gold = _masked_log_softmax(gold_scores / temperature_gold, passage_mask)
  terms = jnp.exp(log_gold) * (log_gold - log_retriever)
  if passage_mask is not None:
    terms = jnp.where(passage_mask, terms, 0.0)
  return jnp.sum(terms, axis=-1)


def kl_distillation(retriever_scores: Scores, gold_scores: Scores, **options: Any) -> Array:
  """KL(gold || retriever) reduced to a scalar; see `kl_weighted_sum`."""
  return kl_weighted_sum(retriever_scores, gold_scores, **options).mean


def kl_weighted_sum(
  retriever_scores: Scores,
  gold_scores: Scores,
  *,
  temperature_score: float = 0.1,
  temperature_gold: float = 0.1,
  passage_mask: PassageMask = None,
  example_mask: ExampleMask = None,
  reduction: str = 'batch',
) -> WeightedSum:
  """KL(gold || retriever) as a sum over examples and its weight.

  Args:
    retriever_scores: query . passage / sqrt(dim).
    passage_mask: an example without a single passage has no weight.
    reduction: 'batch' averages over examples; 'element' also divides by the number of an example's
      passages, as the released code does (its gradient then depends on that number).

  Raises:
    ValueError: for an unknown reduction.
  """
  if reduction not in KL_REDUCTIONS:
    raise ValueError(f'reduction {reduction!r} is unknown; choose one of {KL_REDUCTIONS}.')
  retriever_scores = jnp.asarray(retriever_scores)
  divergence = kl_per_example(
    retriever_scores,
    jnp.asarray(gold_scores),
    temperature_score=temperature_score,
    temperature_gold=temperature_gold,
    passage_mask=passage_mask,
  )
  weights = jnp.ones(divergence.shape, jnp.float32)
  if passage_mask is not None:
    weights *= jnp.any(passage_mask, axis=-1)
  if example_mask is not None:
    weights *= example_mask
  if reduction == 'element':
    counted = jnp.ones_like(retriever_scores) if passage_mask is None else passage_mask
    divergence = divergence / jnp.maximum(jnp.sum(counted, axis=-1), 1)
  return WeightedSum(jnp.sum(divergence * weights), jnp.sum(weights))


def emdr2(
  retriever_scores: Scores,
  token_log_probs: Float[Array, 'b k t'],
  target_mask: Shaped[Array, 'b t'],
  **options: Any,
) -> Array:
  """EMDR² reduced to a scalar; see `emdr2_weighted_sum`."""
  return emdr2_weighted_sum(retriever_scores, token_log_probs, target_mask, **options).mean


def emdr2_weighted_sum(
  retriever_scores: Scores,
  token_log_probs: Float[Array, 'b k t'],
  target_mask: Shaped[Array, 'b t'],
  *,
  temperature_score: float = 1.0,
  level: str = 'sequence',
  passage_mask: PassageMask = None,
  example_mask: ExampleMask = None,
) -> WeightedSum:
  """EMDR² (Sachan et al. 2021, eq. 6; Atlas, section 2.2): the retriever's part.

  `-log sum_k p(target | query, passage_k) p(passage_k | query)`, the passage
  being a latent variable; the reader's likelihoods are constants.

  Args:
    retriever_scores: query . passage / sqrt(dim).
    token_log_probs: log p(target token | query, one passage, earlier tokens);
      no gradient reaches them.
    level: 'sequence' sums over passages the likelihoods of whole targets (paper) and averages over
      examples; 'token' does so for every token and averages over tokens, as the released code does.

  Raises:
    ValueError: for an unknown level.
  """
  retriever_scores = jnp.asarray(retriever_scores).astype(jnp.float32)
  log_probs = jax.lax.stop_gradient(jnp.asarray(token_log_probs))
  log_probs = log_probs.astype(jnp.float32)
  targets = jnp.asarray(target_mask).astype(jnp.float32)
  log_prior = _masked_log_softmax(retriever_scores / temperature_score, passage_mask)
  weights = emdr2_weights(
    targets, level=level, passage_mask=passage_mask, example_mask=example_mask
  )
  if level == 'sequence':
    sequences = jnp.sum(log_probs * targets[:, None], axis=-1)
    log_marginal = jax.nn.logsumexp(log_prior + sequences, axis=-1)
  else:
    log_marginal = jax.nn.logsumexp(log_prior[..., None] + log_probs, axis=1)
  # Without a passage the prior is nothing but masks.
  losses = jnp.where(weights > 0, -log_marginal, 0.0)
  return WeightedSum(jnp.sum(losses * weights), jnp.sum(weights))


def emdr2_weights(
  target_mask: Shaped[Array, 'b t'],
  *,
  level: str,
  passage_mask: PassageMask = None,
  example_mask: ExampleMask = None,
) -> Float[Array, ' b *t']:
  """Weights of EMDR²'s terms, one an example or one a token."""
  if level not in EMDR2_LEVELS:
    raise ValueError(f'level {level!r} is unknown; choose one of {EMDR2_LEVELS}.')
  target_mask = target_mask.astype(jnp.float32)
  examples = jnp.ones(target_mask.shape[0], jnp.float32)
  for mask in (None if passage_mask is None else jnp.any(passage_mask, axis=-1), example_mask):
    if mask is not None:
      examples *= mask
  if level == 'token':
    return target_mask * examples[:, None]
  return examples
