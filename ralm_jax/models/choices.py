"""What a reader thinks of the options of a multiple choice, without decoding."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ralm_jax.losses import sequence
from ralm_jax.models import decoder_stack, layers, rag
from ralm_jax.models.reader_batch import ReaderBatch
from ralm_jax.models.retrieval_lm import RetrievalLM

Array = jax.Array
Params = Any


@dataclasses.dataclass(frozen=True)
class ChoiceTokens:
  """The targets of the options' letters.

  Attributes:
    tokens: int32 [n_options, length], as they are trained on, padded.
    mask: bool [n_options, length], true on tokens.
    position: the only one at which the targets differ: that of the letters.
      None where there is no such position.
  """

  tokens: np.ndarray
  mask: np.ndarray
  position: int | None

  @classmethod
  def make(cls, targets: Sequence[Sequence[int]]) -> ChoiceTokens:
    """Pads the token ids of each letter's target.

    Raises:
      ValueError: two letters have the same tokens.
    """
    targets = [tuple(ids) for ids in targets]
    for i, ids in enumerate(targets):
      if ids in targets[:i]:
        raise ValueError(
          f'Options {targets.index(ids) + 1} and {i + 1} have the same target, '
          f'tokens {list(ids)}: the reader vocabulary does not know their '
          'letters, or target_length cuts them off.'
        )
    length = max(map(len, targets))
    tokens = np.zeros((len(targets), length), np.int32)
    mask = np.zeros((len(targets), length), bool)
    for i, ids in enumerate(targets):
      tokens[i, : len(ids)], mask[i, : len(ids)] = ids, True
    differ = np.flatnonzero(np.any(tokens != tokens[0], axis=0))
    same_length = len(set(map(len, targets))) == 1
    found = (
      same_length and len(differ) == 1 and (len(np.unique(tokens[:, differ[0]])) == len(targets))
    )
    return cls(tokens, mask, int(differ[0]) if found else None)


def choice_logits(
  model: RetrievalLM, params: Params, batch: ReaderBatch, choices: ChoiceTokens
) -> Array:
  """Unnormalised log-probabilities of the options' letters.

  With fusion and letters of one token, raw logits of the letters where they
  stand in the target, behind `<extra_id_0>` (Atlas's `get_choice_logits`). Else
  log p(target | query) of each letter's target, with RAG marginal over passages.

  Args:
    model: reader and reading.
    params: of the model.
    batch: reader_tokens and reader_mask [B, K, L]; for RAG what
      `RetrievalLM.log_prior` needs.
    choices: the targets of n letters.

  Returns:
    float32 [B, n].
  """
  if model.marginalizes:
    return _marginal(model, params, batch, choices)
  n_context = model.n_context or batch.reader_tokens.shape[1]
  tokens = batch.reader_tokens[:, :n_context]
  mask = batch.reader_mask[:, :n_context]
  apply = functools.partial(model.reader.apply, {'params': params['reader']})
  if choices.position is not None:
    # All targets are the same before the letter.
    inputs = _inputs(model, choices.tokens[0], len(tokens))
    logits = apply(tokens, mask, inputs[:, : choices.position + 1])
    letters = choices.tokens[:, choices.position]
    return logits[:, choices.position, letters].astype(jnp.float32)
  encoded = apply(tokens, mask, method='encode_passages')

  def score(target: Array, target_mask: Array) -> Array:
    logits = apply(encoded, mask, _inputs(model, target, len(tokens)), method='decode_fused')
    log_probs = sequence.token_log_probs(logits, target[None])
    return jnp.sum(log_probs * target_mask, axis=-1)

  scores = jax.lax.map(
    lambda choice: score(*choice), (jnp.asarray(choices.tokens), jnp.asarray(choices.mask))
  )
  return scores.T  # [n, B] -> [B, n]


def _marginal(
  model: RetrievalLM, params: Params, batch: ReaderBatch, choices: ChoiceTokens
) -> Array:
  """Log-likelihoods of RAG-Sequence or RAG-Token; passages are encoded once."""
  apply = functools.partial(model.reader.apply, {'params': params['reader']})
  targets = jnp.asarray(choices.tokens)

  def score(tokens: Array, mask: Array) -> Array:
    """[B, k, L] twice -> [B, k, n, T], log p(y_i | x, z, y_<i)."""
    encoded = apply(tokens, mask, method='encode_passages')

    def of(target: Array) -> Array:
      inputs = _inputs(model, target, len(tokens))
      logits = apply(encoded, mask, inputs, method='decode_each')
      return sequence.token_log_probs(logits, target[None, None])

    return jnp.moveaxis(jax.lax.map(of, targets), 0, 2)

  n_passages = batch.reader_tokens.shape[1]
  arrays = (batch.reader_tokens, batch.reader_mask)
  chunk = model.gold_chunk
  if not chunk or chunk >= n_passages:
    log_probs = score(*arrays)
  else:
    parts = [layers.split_passages(a, chunk, 'gold_chunk') for a in arrays]
    log_probs = layers.join_passages(jax.lax.map(lambda part: score(*part), parts))
  likelihood = (
    rag.sequence_log_likelihood if model.reading == 'rag_sequence' else rag.token_log_likelihood
  )
  prior = model.log_prior(params, batch)
  masks = jnp.broadcast_to(choices.mask[:, None], (len(targets), len(prior), targets.shape[1]))
  return jax.vmap(likelihood, in_axes=(None, 2, 0), out_axes=1)(prior, log_probs, masks)


def _inputs(model: RetrievalLM, target: Array | np.ndarray, batch: int) -> Array:
  """[T] -> decoder inputs [batch, T]."""
  target = jnp.asarray(target)
  inputs = decoder_stack.shift_right(target[None], model.reader_config.decoder_start_id)
  return jnp.broadcast_to(inputs, (batch, len(target)))
