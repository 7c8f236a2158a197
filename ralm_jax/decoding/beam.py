"""Beam search with exactly the semantics of Hugging Face transformers 5.

Where a rule looks arbitrary (candidates beyond the beam that may run on but never end, scores that
are pushed down by a large number instead of masked, an estimate that may end a search too early) it
is theirs: `generation/utils.py`, `_beam_search`. One difference is left: their output is padded
with the end of sequence where the id of padding is 0, ours with `pad_id`.
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ralm_jax.decoding import top_k
from ralm_jax.decoding.constraints import Constraints
from ralm_jax.decoding.options import DecodingOptions
from ralm_jax.decoding.stepper import Cache, Decoded, Stepper
from ralm_jax.losses.array_types import Array, Bool, Float, Int, Shaped

# Finite, so that sequences pushed down by it keep their order among them.
_DOWN = -1e9


@flax.struct.dataclass
class _Sequences:
  """Sequences of each example, best first."""

  tokens: Int[Array, 'b n max_length']
  scores: Float[Array, 'b n']  # normalised by length once they have ended
  log_probs: Float[Array, 'b n']  # the model's, forced tokens included
  ended: Bool[Array, 'b n']

  def take(self, index: Int[Array, 'b m']) -> _Sequences:
    return jax.tree.map(lambda array: _take(array, index), self)

  def best(self, count: int) -> tuple[_Sequences, Int[Array, 'b {count}']]:
    """The `count` of highest score, and which they were."""
    index = top_k.top_k(self.scores, count)[1]
    return self.take(index), index


@flax.struct.dataclass
class _Search:
  """State between two tokens.

  Attributes:
    step: tokens produced so far.
    running: the beams.
    parents: the row of the cache that each continues.
    finished: as many sequences that have ended; a place is empty while its `ended` is false.
    improvable: whether a running beam may yet pass a finished one; false for good once it is false.
    going_on: whether any example needs another token.
  """

  step: Int[Array, '']
  running: _Sequences
  parents: Int[Array, 'b beams']
  finished: _Sequences
  improvable: Bool[Array, ' b']
  going_on: Bool[Array, '']
  cache: Cache


def beam_search(stepper: Stepper, options: DecodingOptions, constraints: Constraints) -> Decoded:
  """The `options.num_return` best sequences that a search finds."""
  beams = options.num_beams
  logits, cache = stepper.start()
  batch, vocab = logits.shape
  constraints.check_vocabulary(vocab)
  if vocab < 2:
    raise ValueError('A beam search needs a vocabulary of at least 2 tokens.')
  search = _extend(
    _nothing(batch, options, constraints),
    jnp.broadcast_to(logits[:, None], (batch, beams, vocab)),
    options,
    constraints,
  )
  search = dataclasses.replace(search, cache=stepper.expand(cache, beams))

  def advance(search: _Search) -> _Search:
    newest = jax.lax.dynamic_index_in_dim(
      search.running.tokens, search.step - 1, axis=-1, keepdims=False
    )
    cache = stepper.reorder(search.cache, search.parents)
    logits, cache = stepper.step(newest, cache)
    search = _extend(search, logits, options, constraints)
    return dataclasses.replace(search, cache=cache)

  end = jax.lax.while_loop(lambda search: search.going_on, advance, search)
  kept = jax.tree.map(lambda x: x[:, : options.num_return], end.finished)
  return Decoded(kept.tokens, kept.log_probs, kept.scores)


def _nothing(batch: int, options: DecodingOptions, constraints: Constraints) -> _Search:
  """The state before the first token; its cache is not in it yet."""
  shape = (batch, options.num_beams)
  empty = _Sequences(
    tokens=jnp.full(shape + (constraints.max_length,), constraints.pad_id, jnp.int32),
    scores=jnp.full(shape, _DOWN, jnp.float32),
    log_probs=jnp.zeros(shape, jnp.float32),
    ended=jnp.zeros(shape, bool),
  )
  # All beams are the same at first: only one of them counts, or every beam
  # would choose the same token.
  first = jnp.arange(options.num_beams) == 0
  return _Search(
    step=jnp.zeros((), jnp.int32),
    running=dataclasses.replace(
      empty, scores=jnp.broadcast_to(jnp.where(first, 0.0, _DOWN), shape)
    ),
    parents=jnp.zeros(shape, jnp.int32),
    finished=empty,
    improvable=jnp.ones((batch,), bool),
    going_on=jnp.ones((), bool),
    cache=None,
  )


def _extend(
  search: _Search,
  logits: Float[Array, 'b beams v'],
  options: DecodingOptions,
  constraints: Constraints,
) -> _Search:
  """Continues every beam by a token and decides whether to go on; leaves the cache."""
  beams, step = options.num_beams, search.step
  # In double precision on the host, as Python does it.
  penalties = jnp.asarray(
    np.arange(1, constraints.max_length + 1, dtype=np.float64) ** options.length_penalty,
    jnp.float32,
  )
  candidates, parents = _candidates(search.running, logits, step, constraints)

  running, chosen = dataclasses.replace(
    candidates, scores=candidates.scores + _DOWN * candidates.ended
  ).best(beams)

  # Candidates beyond the beam are there to run on, never to end.
  may_end = candidates.ended & (jnp.arange(2 * beams) < beams)
  closed = ~search.improvable[:, None]
  scores = candidates.scores / penalties[step]
  if options.early_stopping is True:
    full = jnp.all(search.finished.ended, axis=-1, keepdims=True)
    scores = scores + _DOWN * full
  scores = scores + _DOWN * closed
  scores = scores + _DOWN * ~may_end
  finished, _ = jax.tree.map(
    lambda *parts: jnp.concatenate(parts, axis=1),
    search.finished,
    dataclasses.replace(candidates, scores=scores, ended=may_end),
  ).best(beams)

  improvable = search.improvable & _may_improve(running, finished, step, penalties, options)
  going_on = jnp.any(improvable) & ~jnp.all(candidates.ended)
  if options.early_stopping is True:
    going_on &= ~jnp.all(finished.ended)
  return dataclasses.replace(
    search,
    step=step + 1,
    running=running,
    parents=_take(parents, chosen),
    finished=finished,
    improvable=improvable,
    going_on=going_on,
  )


def _candidates(
  running: _Sequences,
  logits: Float[Array, 'b beams v'],
  step: Int[Array, ''],
  constraints: Constraints,
) -> tuple[_Sequences, Int[Array, 'b candidates']]:
  """The best continuations of all beams together, twice as many as beams.

  At most one continuation of a beam ends it, so that enough of them run on. They come best first,
  `ended` on those that stop here, with the beam that each continues.
  """
  batch, beams, vocab = logits.shape
  log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
  totals = constraints.apply(log_probs, step) + running.scores[..., None]
  # The best of each beam first, then of these: nothing of the vocabulary's size
  # is reshaped across beams, so that it may stay sharded.
  width = min(2 * beams, vocab)
  best, tokens = top_k.top_k(totals, width)
  token_log_probs = jnp.take_along_axis(log_probs, tokens, axis=-1)
  scores, chosen = top_k.top_k(best.reshape(batch, -1), 2 * beams)
  parents = chosen // width
  tokens = _take(tokens.reshape(batch, -1), chosen)
  extended = running.take(parents)
  sequences = _Sequences(
    tokens=jax.lax.dynamic_update_slice(extended.tokens, tokens[..., None], (0, 0, step)),
    scores=scores,
    log_probs=(extended.log_probs + _take(token_log_probs.reshape(batch, -1), chosen)),
    ended=(tokens == constraints.eos_id) | (step == constraints.max_length - 1),
  )
  return sequences, parents


def _may_improve(
  running: _Sequences,
  finished: _Sequences,
  step: Int[Array, ''],
  penalties: Float[Array, ' max_length'],
  options: DecodingOptions,
) -> Bool[Array, ' b']:
  """Whether the best running beam might pass the worst finished one.

  Running beams have `step + 1` tokens; `penalties` divide scores at lengths 1...
  """
  if options.early_stopping == 'never' and options.length_penalty > 0:
    penalty = penalties[-1]
  else:
    penalty = penalties[step]
  best = running.scores[:, :1] / penalty
  worst = jnp.min(finished.scores, axis=-1, keepdims=True)
  return jnp.any(best > jnp.where(finished.ended, worst, _DOWN), axis=-1)


def _take(
  array: Shaped[Array, 'b n *rest'], index: Int[Array, 'b m']
) -> Shaped[Array, 'b m *rest']:
  index = index.reshape(index.shape + (1,) * (array.ndim - 2))
  return jnp.take_along_axis(array, index, axis=1)
