"""Answers from passages: fused, or by RAG's marginal likelihoods."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ralm_jax.decoding import decode, options as options_lib, stepper as stepper_lib, top_k
from ralm_jax.models import layers, rag
from ralm_jax.models.fid import PassageReader
from ralm_jax.models.generation import CachedReader, Prefix

Array = jax.Array
Params = Any
Decoded = stepper_lib.Decoded
DecodingOptions = options_lib.DecodingOptions

RAG_DECODINGS = ('thorough', 'fast')


def predict(
  reader: PassageReader,
  params: Params,
  tokens: Array,
  mask: Array,
  *,
  reading: str,
  log_prior: Array | None,
  max_length: int,
  options: DecodingOptions,
  rag_decoding: str = 'thorough',
  candidate_chunk: int | None = None,
  prefix: Prefix | None = None,
  prefill_chunk: int = 128,
  rng: Array | None = None,
) -> Decoded:
  """Decodes answers; every passage is encoded once.

  Args:
    reader: T5 or BART.
    params: of the reader.
    tokens: int32 [batch, n_passages, length].
    mask: bool [batch, n_passages, length].
    reading: 'fusion', 'rag_sequence' or 'rag_token'.
    log_prior: float32 [batch, n_passages], of the RAG readings.
    max_length: tokens to produce at most.
    options: how tokens are chosen.
    rag_decoding: of 'rag_sequence': see `_sequence`.
    candidate_chunk: of thorough decoding: candidates scored at a time; None
      takes as many as there are beams.
    prefix: what every answer begins with.
    prefill_chunk: positions of the prefix computed at a time.
    rng: key of the draws, with `options.sample`.

  Raises:
    ValueError: an unknown `rag_decoding`, or as `decode.decode`.
  """
  if rag_decoding not in RAG_DECODINGS:
    raise ValueError(f'rag_decoding {rag_decoding!r} is unknown; choose one of {RAG_DECODINGS}.')
  batch, n_passages, length = tokens.shape
  encoded = reader.apply({'params': params}, tokens, mask, method='encode_passages')
  shared: dict[str, Any] = dict(
    reader=reader, params=params, max_length=max_length, prefix=prefix, prefill_chunk=prefill_chunk
  )
  if reading == 'fusion':
    stepper = CachedReader(
      encoded=encoded.reshape(batch, n_passages * length, -1),
      encoded_mask=mask.reshape(batch, -1),
      **shared,
    )
    return _decode(stepper, options, rng)
  each = CachedReader(
    encoded=encoded.reshape(batch * n_passages, length, -1),
    encoded_mask=mask.reshape(batch * n_passages, length),
    log_prior=log_prior,
    **shared,
  )
  if reading == 'rag_token':
    return _decode(each, options, rng)
  return _sequence(
    each, options, rng, rag_decoding, candidate_chunk or max(options.num_beams, options.num_return)
  )


def _decode(stepper: CachedReader, options: DecodingOptions, rng: Array | None) -> Decoded:
  config = stepper.reader.config
  # As in Hugging Face, what is forced first is what follows the bare start.
  first = None if stepper.prefix is not None else getattr(config, 'forced_first_id', None)
  return decode.decode(
    stepper,
    options,
    max_length=stepper.max_length,
    eos_id=config.eos_id,
    pad_id=config.pad_id,
    forced_first_id=first,
    forced_last_id=getattr(config, 'forced_last_id', None),
    rng=rng,
  )


def _sequence(
  each: CachedReader,
  options: DecodingOptions,
  rng: Array | None,
  rag_decoding: str,
  candidate_chunk: int,
) -> Decoded:
  """RAG-Sequence's decoding (Lewis et al. 2020, section 2.5).

  A search under each passage gives the candidates. Thorough decoding scores
  every candidate under every passage; fast decoding counts it as impossible
  under the passages whose own search did not find it. Drawing takes the draws
  of a passage that is itself drawn from the prior, which is exact.

  Returns:
    `scores` are the log-likelihoods that rank the answers, marginal over
    passages; `log_probs` are those, too.
  """
  prior = each.log_prior
  batch, n_passages = prior.shape
  count = options.num_return if options.sample else options.num_beams
  alone = CachedReader(
    each.reader,
    each.params,
    each.encoded,
    each.encoded_mask,
    each.max_length,
    prefix=_for_each_passage(each.prefix, n_passages),
    prefill_chunk=each.prefill_chunk,
  )
  search = options if options.sample else dataclasses.replace(options, num_return=count)
  draw_rng = passage_rng = None
  if rng is not None:
    draw_rng, passage_rng = jax.random.split(rng)
  found = _decode(alone, search, draw_rng)
  tokens = found.tokens.reshape(batch, n_passages, count, -1)
  if options.sample:
    chosen = jax.random.categorical(passage_rng, prior[:, None], axis=-1, shape=(batch, count))
    tokens = jnp.take_along_axis(tokens, chosen[:, None, :, None], axis=1)[:, 0]
    log_probs = _marginal(each, tokens, candidate_chunk)
    return Decoded(tokens, log_probs, log_probs)
  candidates = tokens.reshape(batch, n_passages * count, -1)
  if rag_decoding == 'fast':
    found_log_probs = found.log_probs.reshape(batch, n_passages, count)
    scores = _fast(prior, tokens, found_log_probs, candidates)
  else:
    scores = _marginal(each, candidates, candidate_chunk)
  # What the query alone suggests, in a slot without passage, is no answer.
  absent = prior < rag.ABSENT
  absent &= ~jnp.all(absent, axis=-1, keepdims=True)
  absent = jnp.repeat(absent, count, axis=1)
  # Of equal candidates the first one counts, else they would fill the answers.
  same = jnp.all(candidates[:, :, None] == candidates[:, None], axis=-1)
  same &= ~absent[:, None]
  repeated = jnp.any(jnp.tril(same, -1), axis=-1)
  ranked = jnp.where(repeated | absent, -jnp.inf, scores)
  scores, best = top_k.top_k(ranked, options.num_return)
  tokens = jnp.take_along_axis(candidates, best[..., None], axis=1)
  return Decoded(tokens, scores, scores)


def _for_each_passage(prefix: Prefix | None, n_passages: int) -> Prefix | None:
  if prefix is None:
    return None
  return Prefix(
    jnp.repeat(prefix.tokens, n_passages, axis=0), jnp.repeat(prefix.lengths, n_passages, axis=0)
  )


def _marginal(each: CachedReader, candidates: Array, chunk: int) -> Array:
  """log p(candidate | x) of RAG-Sequence: [batch, n, length] -> [batch, n]."""
  batch, n, length = candidates.shape
  config = each.reader.config
  _, cache = each.start()
  chunk = min(chunk, n)
  padding = -n % chunk
  padded = jnp.pad(candidates, ((0, 0), (0, padding), (0, 0)), constant_values=config.pad_id)

  def score(part: Array) -> Array:
    log_probs = each.score(part, answer_mask(part, config.eos_id), cache)
    joint = each.log_prior[..., None] + log_probs
    return jax.nn.logsumexp(joint, axis=1)

  parts = layers.split_passages(padded, chunk, 'candidate_chunk')
  scores = jax.lax.map(score, parts)
  return layers.join_passages(scores)[:, :n]


def _fast(prior: Array, tokens: Array, log_probs: Array, candidates: Array) -> Array:
  """Scores of candidates by the searches that found them.

  Args:
    prior: [batch, K].
    tokens: [batch, K, n, length], each passage's own.
    log_probs: [batch, K, n].
    candidates: [batch, C, length].

  Returns:
    float32 [batch, C].
  """
  same = jnp.all(tokens[:, :, :, None] == candidates[:, None, None], axis=-1)  # [batch, K, n, C]
  # A passage's own beams differ from each other.
  of_candidate = jnp.max(jnp.where(same, log_probs[..., None], -jnp.inf), axis=2)
  return rag.fast_log_likelihood(prior, of_candidate, jnp.any(same, axis=2))


def answer_mask(tokens: Array, eos_id: int) -> Array:
  """bool [..., length], true up to the end of sequence, which is included."""
  ended = jnp.cumsum((tokens == eos_id).astype(jnp.int32), axis=-1)
  before = jnp.pad(ended[..., :-1], [(0, 0)] * (tokens.ndim - 1) + [(1, 0)])
  return before == 0
