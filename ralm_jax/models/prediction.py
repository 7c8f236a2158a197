"""Answers from passages: fused, or by RAG's marginal likelihoods."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from ralm_jax.decoding import decode as decoding, sampling, top_k
from ralm_jax.decoding.options import DecodingOptions
from ralm_jax.decoding.stepper import Decoded
from ralm_jax.losses.array_types import Array, Bool, Float, Int, PyTree, Shaped
from ralm_jax.models import layers, rag
from ralm_jax.models.decoder_stepper import DecoderStepper
from ralm_jax.models.fid import PassageReader
from ralm_jax.models.generation import CachedReader, Generation, Prefix

# A stepper of one reader or another, all with a `reader`, `max_length`, `prefix` and `log_prior`.
ReaderStepper = CachedReader | DecoderStepper


@runtime_checkable
class Passages(Protocol):
  """What answers are decoded from."""

  @property
  def generation(self) -> Generation: ...

  def together(self) -> ReaderStepper: ...

  def each(self, log_prior: Float[Array, 'b k'] | None) -> ReaderStepper: ...


@dataclasses.dataclass(frozen=True)
class ReadPassages:
  """Passages that are encoded once, to decode from."""

  reader: PassageReader
  params: PyTree
  tokens: Int[Array, 'b k s']
  mask: Shaped[Array, 'b k s']
  generation: Generation
  prefix: Prefix | None = None

  def together(self) -> CachedReader:
    """Decodes from all passages of an example."""
    return self._stepper(len(self.tokens), None)

  def each(self, log_prior: Float[Array, 'b k'] | None) -> CachedReader:
    """Decodes from every passage, and by the marginal over them."""
    return self._stepper(self.tokens.shape[0] * self.tokens.shape[1], log_prior)

  def _stepper(self, rows: int, log_prior: Array | None) -> CachedReader:
    encoded = layers.call(
      self.reader, self.params, self.tokens, self.mask, method='encode_passages'
    )
    return CachedReader(
      self.reader,
      self.params,
      encoded.reshape(rows, -1, encoded.shape[-1]),
      self.mask.reshape(rows, -1),
      self.generation.max_length,
      log_prior=log_prior,
      prefix=self.prefix,
      prefill_chunk=self.generation.prefill_chunk,
    )


def decode(stepper: ReaderStepper, options: DecodingOptions, rng: Array | None) -> Decoded:
  """Raises ValueError as `decoding.decode.decode` does."""
  config = stepper.reader.config
  # As in Hugging Face, what is forced first is what follows the bare start.
  first = None if stepper.prefix is not None else getattr(config, 'forced_first_id', None)
  return decoding.decode(
    stepper,
    options,
    max_length=stepper.max_length,
    eos_id=config.eos_id,
    pad_id=config.pad_id,
    forced_first_id=first,
    forced_last_id=getattr(config, 'forced_last_id', None),
    rng=rng,
  )


def decode_by_sequence(each: ReaderStepper, generation: Generation, rng: Array | None) -> Decoded:
  """RAG-Sequence's decoding (Lewis et al. 2020, section 2.5).

  A search under each passage gives the candidates. Thorough decoding scores every candidate under
  every passage; fast decoding counts it as impossible under the passages whose own search did not
  find it. Drawing takes the draws of a passage that is itself drawn from the prior, which is exact.
  Both `scores` and `log_probs` are the marginal log-likelihoods that rank answers.
  """
  options = generation.options
  prior: Any = each.log_prior
  batch, n_passages = prior.shape
  count = options.num_return if options.sample else options.num_beams
  candidate_chunk = generation.candidate_chunk or max(options.num_beams, options.num_return)
  alone = dataclasses.replace(
    each, log_prior=None, prefix=each.prefix and each.prefix.repeat(n_passages)
  )
  search = options if options.sample else dataclasses.replace(options, num_return=count)
  of_draws: Any = None
  of_choice: Any = None
  if rng is not None:
    keys = rng if rng.ndim else jax.random.split(rng, batch)
    of_draws = sampling.fold_in(keys, jnp.arange(1, n_passages + 1)).reshape(-1)
    of_choice = sampling.fold_in(sampling.fold_in(keys, jnp.zeros((), int)), jnp.arange(count))
  found = decode(alone, search, of_draws)
  tokens = found.tokens.reshape(batch, n_passages, count, -1)
  if options.sample:
    # Each with a key of its own, so that neither slots nor further draws change it.
    choose = jax.vmap(jax.vmap(jax.random.categorical, (0, None)))
    chosen = choose(of_choice, prior)
    tokens = jnp.take_along_axis(tokens, chosen[:, None, :, None], axis=1)[:, 0]
    log_probs = _marginal(each, tokens, candidate_chunk)
    return Decoded(tokens, log_probs, log_probs)
  candidates = tokens.reshape(batch, n_passages * count, -1)
  if generation.rag_decoding == 'fast':
    found_log_probs = found.log_probs.reshape(batch, n_passages, count)
    scores = _fast(prior, tokens, found_log_probs, candidates)
  else:
    scores = _marginal(each, candidates, candidate_chunk)
  # What a slot without passage suggests is no answer.
  absent = jnp.repeat(prior < rag.ABSENT, count, axis=1)
  # Of equal candidates the first one counts, else they would fill the answers.
  same = jnp.all(candidates[:, :, None] == candidates[:, None], axis=-1)
  same &= ~absent[:, None]
  repeated = jnp.any(jnp.tril(same, -1), axis=-1)
  ranked = jnp.where(repeated | absent, -jnp.inf, scores)
  scores, best = top_k.top_k(ranked, options.num_return)
  tokens = jnp.take_along_axis(candidates, best[..., None], axis=1)
  return Decoded(tokens, scores, scores)


def _marginal(
  each: ReaderStepper, candidates: Int[Array, 'b c t'], chunk: int
) -> Float[Array, 'b c']:
  """log p(candidate | x) of RAG-Sequence."""
  batch, n, length = candidates.shape
  config = each.reader.config
  prior: Any = each.log_prior
  _, cache = each.start()
  chunk = min(chunk, n)
  padding = -n % chunk
  padded = jnp.pad(candidates, ((0, 0), (0, padding), (0, 0)), constant_values=config.pad_id)

  def score(part: Int[Array, 'b c t']) -> Float[Array, 'b c']:
    log_probs = each.score(part, answer_mask(part, config.eos_id), cache)
    joint = prior[..., None] + log_probs
    return jax.nn.logsumexp(joint, axis=1)

  parts = layers.split_passages(padded, chunk, 'candidate_chunk')
  scores = jax.lax.map(score, parts)
  return layers.join_passages(scores)[:, :n]


def _fast(
  prior: Float[Array, 'b k'],
  tokens: Int[Array, 'b k n t'],
  log_probs: Float[Array, 'b k n'],
  candidates: Int[Array, 'b c t'],
) -> Float[Array, 'b c']:
  """Scores of candidates by the searches that found them, `tokens` for each passage."""
  same = jnp.all(tokens[:, :, :, None] == candidates[:, None, None], axis=-1)  # [batch, K, n, C]
  # A passage's own beams differ from each other.
  of_candidate = jnp.max(jnp.where(same, log_probs[..., None], -jnp.inf), axis=2)
  return rag.fast_log_likelihood(prior, of_candidate, jnp.any(same, axis=2))


def answer_mask(tokens: Int[Array, '*b t'], eos_id: int) -> Bool[Array, '*b t']:
  """True up to the end of sequence, which is included."""
  ended = jnp.cumsum((tokens == eos_id).astype(jnp.int32), axis=-1)
  before = jnp.pad(ended[..., :-1], [(0, 0)] * (tokens.ndim - 1) + [(1, 0)])
  return before == 0
