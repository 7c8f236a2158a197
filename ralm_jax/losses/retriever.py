"""Retriever losses: train the retriever towards the reader's gold scores."""
from __future__ import annotations

import jax
import jax.numpy as jnp

from ralm_jax.losses.sequence import WeightedSum

Array = jax.Array

_MASKED = -1e30


def _masked_log_softmax(scores: Array, passage_mask: Array | None) -> Array:
  scores = scores.astype(jnp.float32)
  if passage_mask is not None:
    scores = jnp.where(passage_mask, scores, _MASKED)
  return jax.nn.log_softmax(scores, axis=-1)


def entropy(scores: Array, passage_mask: Array | None = None) -> Array:
  """Entropy in nats of softmax(scores) over the passages: [..., n] -> [...]."""
  log_probs = _masked_log_softmax(scores, passage_mask)
  return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)


def kl_per_example(
    retriever_scores: Array,
    gold_scores: Array,
    *,
    temperature_score: float,
    temperature_gold: float,
    passage_mask: Array | None = None,
) -> Array:
  """KL(gold || retriever) of each example (Atlas, section 2.2).

  Args:
    retriever_scores: [batch, n_passages], query . passage / sqrt(dim).
    gold_scores: [batch, n_passages]; no gradient reaches them.
    temperature_score: divides the retriever's scores.
    temperature_gold: divides the gold scores.
    passage_mask: bool [batch, n_passages], false on padding passages.

  Returns:
    float32 [batch]; 0 where no passage is valid.
  """
  # float32 before the division: a small temperature magnifies rounding.
  retriever_scores = retriever_scores.astype(jnp.float32)
  gold_scores = jax.lax.stop_gradient(gold_scores).astype(jnp.float32)
  log_retriever = _masked_log_softmax(
      retriever_scores / temperature_score, passage_mask
  )
  log_gold = _masked_log_softmax(gold_scores / temperature_gold, passage_mask)
  terms = jnp.exp(log_gold) * (log_gold - log_retriever)
  if passage_mask is not None:
    terms = jnp.where(passage_mask, terms, 0.0)
  return jnp.sum(terms, axis=-1)


def kl_distillation(
    retriever_scores: Array,
    gold_scores: Array,
    *,
    temperature_score: float = 0.1,
    temperature_gold: float = 0.1,
    passage_mask: Array | None = None,
    reduction: str = 'batch',
) -> Array:
  """KL(gold || retriever) reduced to a scalar; see `kl_weighted_sum`."""
  return kl_weighted_sum(
      retriever_scores,
      gold_scores,
      temperature_score=temperature_score,
      temperature_gold=temperature_gold,
      passage_mask=passage_mask,
      reduction=reduction,
  ).mean


def kl_weighted_sum(
    retriever_scores: Array,
    gold_scores: Array,
    *,
    temperature_score: float = 0.1,
    temperature_gold: float = 0.1,
    passage_mask: Array | None = None,
    example_mask: Array | None = None,
    reduction: str = 'batch',
) -> WeightedSum:
  """KL(gold || retriever) as a sum over examples and its weight.

  Args:
    retriever_scores: [batch, n_passages], query . passage / sqrt(dim).
    gold_scores: [batch, n_passages].
    temperature_score: divides the retriever's scores.
    temperature_gold: divides the gold scores.
    passage_mask: bool [batch, n_passages], false on padding passages; an
      example without a single passage has no weight.
    example_mask: [batch], false on padding examples.
    reduction: 'batch' averages over examples; 'element' also divides by the
      number of passages, as the released code does (its gradient then depends
      on n_passages).

  Raises:
    ValueError: for an unknown reduction.
  """
  if reduction not in ('batch', 'element'):
    raise ValueError(
        f"reduction {reduction!r} is unknown; choose 'batch' or 'element'."
    )
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
    divergence = divergence / retriever_scores.shape[-1]
  return WeightedSum(jnp.sum(divergence * weights), jnp.sum(weights))
