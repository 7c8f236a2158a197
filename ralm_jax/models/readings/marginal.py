"""RAG (Lewis et al. 2020): one passage at a time, and marginal over them."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from ralm_jax.decoding.stepper import Decoded
from ralm_jax.losses import retriever, sequence
from ralm_jax.losses.array_types import Array, Bool, Float, Int, PyTree, Shaped
from ralm_jax.losses.sequence import WeightedSum
from ralm_jax.models import decoder_stack, fid, layers, prediction, rag
from ralm_jax.models.bart import BartConfig
from ralm_jax.models.choices import ChoiceTokens
from ralm_jax.models.decoder_config import DecoderConfig
from ralm_jax.models.fid import PassageReader
from ralm_jax.models.prediction import Passages
from ralm_jax.models.reader_and_retriever import ReaderAndRetriever
from ralm_jax.models.reader_batch import LossOutput, ReaderBatch
from ralm_jax.models.readings.reading import Randomness, Reading
from ralm_jax.models.t5 import T5Config


class Marginal(Reading):
  """The marginal likelihood trains the generator and the query encoder.

  A subclass says how likelihoods under each passage become one, and how answers are decoded.
  """

  marginalizes = True
  readers = (T5Config, BartConfig, DecoderConfig)

  @staticmethod
  def log_likelihood(
    log_prior: Float[Array, 'b k'],
    token_log_probs: Float[Array, 'b k t'],
    target_mask: Shaped[Array, 'b t'],
  ) -> Float[Array, ' b']:
    """log p(target | query) of log p(y_i | x, z, y_<i)."""
    raise NotImplementedError

  def check(self, model: ReaderAndRetriever) -> None:
    if model.gold_score != 'none' or model.compared_gold_scores:
      raise ValueError(
        f'RetrievalLM.reading {model.reading!r} trains the retriever by its own '
        f"likelihood; set gold_score = 'none' (it is {model.gold_score!r}) and "
        'compared_gold_scores = () (gin: GOLD_SCORE).'
      )
    for name, neutral in (('n_context', None), ('label_smoothing', 0.0), ('z_loss', 0.0)):
      if getattr(model, name) != neutral:
        raise ValueError(
          f'RetrievalLM.{name} does not go with reading = {model.reading!r}; leave it at {neutral}.'
        )

  def loss_weights(
    self, model: ReaderAndRetriever, batch: ReaderBatch
  ) -> tuple[Float[Array, ''], Float[Array, '']]:
    """The only loss counts examples."""
    targets = jnp.any(batch.target_mask, axis=-1).astype(jnp.float32)
    return jnp.sum(targets), jnp.zeros((), jnp.float32)

  def loss(
    self,
    model: ReaderAndRetriever,
    params: PyTree,
    batch: ReaderBatch,
    randomness: Randomness,
    retriever_learns: Bool[Array, ''] | None,
  ) -> LossOutput:
    drops = randomness.reader is not None and fid.has_dropout(model.reader_config)
    log_probs = _token_log_probs(model, params, batch, randomness.reader if drops else None)
    scores = model.retriever_scores(params, batch, randomness.retriever)
    if not model.train_retriever:
      scores = jax.lax.stop_gradient(scores)
    elif retriever_learns is not None:
      scores = jnp.where(retriever_learns, scores, jax.lax.stop_gradient(scores))
    loss, metrics = self.marginal_loss(log_probs, scores / model.temperature_score, batch)
    zero = jnp.zeros((), jnp.float32)
    return LossOutput(loss, WeightedSum(zero, zero), metrics)

  def marginal_loss(
    self, log_probs: Float[Array, 'b k t'], scores: Float[Array, 'b k'], batch: ReaderBatch
  ) -> tuple[WeightedSum, dict[str, WeightedSum]]:
    """-log p(y | x), summed over examples (Lewis et al. 2020, section 2.4).

    Args:
      log_probs: from `token_log_probs`.
      scores: of the retriever, over its temperature.
      batch: its masks.

    Returns:
      The loss with the number of examples, and metrics: the loss a token, the
      entropies of p(z|x) and p(z|x,y), and how often they agree on the best z.
    """
    prior = rag.log_prior(scores, batch.passage_mask)
    nll = -self.log_likelihood(prior, log_probs, batch.target_mask)
    examples = jnp.any(batch.target_mask, axis=-1).astype(jnp.float32)
    total = jnp.sum(nll * examples)
    tokens = jnp.sum(batch.target_mask.astype(jnp.float32))

    # An example without any passage says nothing of the retriever.
    counted = examples * jnp.any(batch.passage_mask, axis=-1)

    def mean(values: Shaped[Array, ' b']) -> WeightedSum:
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

  def score(
    self, model: ReaderAndRetriever, params: PyTree, batch: ReaderBatch
  ) -> Float[Array, ' b']:
    log_probs = _token_log_probs(model, params, batch)
    return self.log_likelihood(model.log_prior(params, batch), log_probs, batch.target_mask)

  def choice_logits(
    self, model: ReaderAndRetriever, params: PyTree, batch: ReaderBatch, choices: ChoiceTokens
  ) -> Float[Array, 'b options']:
    """Log-likelihoods of each option's target; passages are encoded once."""
    prior = model.log_prior(params, batch)
    if model.decoder_reader:
      passes = model.prompt_passes(params, batch)
      log_probs = passes.choice_log_probs(choices, of_each=True)
    else:
      log_probs = self._choice_log_probs(model, params, batch, choices)
    targets = choices.tokens
    masks = jnp.broadcast_to(choices.mask[:, None], (len(targets), len(prior), targets.shape[1]))
    return jax.vmap(self.log_likelihood, in_axes=(None, 2, 0), out_axes=1)(prior, log_probs, masks)

  @staticmethod
  def _choice_log_probs(
    model: ReaderAndRetriever, params: PyTree, batch: ReaderBatch, choices: ChoiceTokens
  ) -> Float[Array, 'b k options t']:
    apply = functools.partial(layers.call, model.reader, params['reader'])
    targets = jnp.asarray(choices.tokens)

    def score(
      tokens: Int[Array, 'b n s'], mask: Shaped[Array, 'b n s']
    ) -> Float[Array, 'b n options t']:
      encoded = apply(tokens, mask, method='encode_passages')

      def of(target: Int[Array, ' t']) -> Float[Array, 'b n t']:
        inputs = model.decoder_inputs(target, batch_size=len(tokens))
        logits = apply(encoded, mask, inputs, method='decode_each')
        return sequence.token_log_probs(logits, target[None, None])

      return jnp.moveaxis(jax.lax.map(of, targets), 0, 2)

    return layers.map_passages(
      score, (batch.reader_tokens, batch.reader_mask), model.gold_chunk, 'gold_chunk'
    )

  def passage_effects(
    self, model: ReaderAndRetriever, params: PyTree, batch: ReaderBatch
  ) -> Float[Array, 'b n']:
    """The prior of a passage is shared out among the others."""
    mask = batch.target_mask
    log_probs = _token_log_probs(model, params, batch)
    prior = model.log_prior(params, batch)
    without = jax.vmap(
      lambda left_out: self.log_likelihood(
        jax.nn.log_softmax(jnp.where(left_out, 10 * rag.ABSENT, prior), axis=-1), log_probs, mask
      ),
      out_axes=1,
    )(jnp.eye(prior.shape[1], dtype=bool)[:, None])
    return self.log_likelihood(prior, log_probs, mask)[:, None] - without


class RagSequence(Marginal):
  """p(y|x) = sum_z p(z|x) prod_i p(y_i | x, z, y_<i)."""

  ranks_candidates = True
  log_likelihood = staticmethod(rag.sequence_log_likelihood)

  def predict(
    self, passages: Passages, *, log_prior: Array | None = None, rng: Array | None = None
  ) -> Decoded:
    return prediction.decode_by_sequence(passages.each(log_prior), passages.generation, rng)


class RagToken(Marginal):
  """p(y|x) = prod_i sum_z p(z|x) p(y_i | x, z, y_<i)."""

  log_likelihood = staticmethod(rag.token_log_likelihood)

  def predict(
    self, passages: Passages, *, log_prior: Array | None = None, rng: Array | None = None
  ) -> Decoded:
    return prediction.decode(passages.each(log_prior), passages.generation.options, rng)


def _token_log_probs(
  model: ReaderAndRetriever, params: PyTree, batch: ReaderBatch, rng: Array | None = None
) -> Float[Array, 'b k t']:
  """log p(y_i | x, z, y_<i) for every passage z; `rng` is dropout's, None for none."""
  if model.decoder_reader:
    return model.prompt_passes(params, batch, rng).log_probs_of_each()
  reader = model.passage_reader
  return token_log_probs(reader, params['reader'], batch, dropout_rng=rng, chunk=model.gold_chunk)


def token_log_probs(
  reader: PassageReader,
  params: PyTree,
  batch: ReaderBatch,
  *,
  dropout_rng: Array | None = None,
  chunk: int | None = None,
) -> Float[Array, 'b k t']:
  """log p(y_i | x, z, y_<i) for every passage z, with gradients.

  Args:
    chunk: passages at a time; their logits are then computed again for the
      gradient, so that memory holds those of one chunk. None takes all.
  """
  inputs = decoder_stack.shift_right(batch.target_tokens, reader.config.decoder_start_id)

  def score(
    tokens: Int[Array, 'b n s'], mask: Shaped[Array, 'b n s'], rng: Array | None
  ) -> Float[Array, 'b n t']:
    keys: list[Any] = [{}, {}]
    if rng is not None:
      keys = [{'dropout': key} for key in jax.random.split(rng)]
    apply = functools.partial(layers.call, reader, params, deterministic=rng is None)
    encoded = apply(tokens, mask, rngs=keys[0], method='encode_passages')
    logits = apply(encoded, mask, inputs, rngs=keys[1], method='decode_each')
    return sequence.token_log_probs(logits, batch.target_tokens[:, None])

  n_passages = batch.reader_tokens.shape[1]
  if not chunk or chunk >= n_passages:
    return score(batch.reader_tokens, batch.reader_mask, dropout_rng)
  parts = [
    layers.split_passages(array, chunk, 'gold_chunk')
    for array in (batch.reader_tokens, batch.reader_mask)
  ]
  rngs = None if dropout_rng is None else jax.random.split(dropout_rng, len(parts[0]))
  run = jax.checkpoint(lambda part: score(*part))
  return layers.join_passages(jax.lax.map(run, (*parts, rngs)))
