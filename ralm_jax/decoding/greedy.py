"""Greedy decoding over a cached step function."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

Array = jax.Array
Cache = Any


@flax.struct.dataclass
class GreedyOutput:
  """What decoding produced.

  Attributes:
    tokens: int32 [batch, max_length], `pad_id` after the end of sequence.
    log_probs: float32 [batch], sum of the chosen tokens' log-probabilities,
      the end of sequence included.
  """

  tokens: Array
  log_probs: Array


@flax.struct.dataclass
class _Loop:
  step: Array
  token: Array
  tokens: Array
  log_probs: Array
  finished: Array
  cache: Cache


def greedy_decode(
    step_fn: Callable[[Array, Cache], tuple[Array, Cache]],
    cache: Cache,
    first_logits: Array,
    *,
    max_length: int,
    eos_id: int,
    pad_id: int = 0,
) -> GreedyOutput:
  """Takes the most likely token until every row has ended.

  Args:
    step_fn: (token [batch, 1], cache) -> (float32 logits [batch, 1, vocab],
      cache).
    cache: the cache behind the first token.
    first_logits: float32 [batch, vocab], logits of the first position.
    max_length: number of tokens to produce at most.
    eos_id: ends a sequence; it is part of the output.
    pad_id: fills the rest.
  """
  batch = first_logits.shape[0]

  def choose(logits: Array, finished: Array) -> tuple[Array, Array]:
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    token = jnp.argmax(log_probs, axis=-1).astype(jnp.int32)
    chosen = jnp.max(log_probs, axis=-1)
    return (
        jnp.where(finished, pad_id, token),
        jnp.where(finished, 0.0, chosen),
    )

  def record(loop_step, tokens, token):
    return jax.lax.dynamic_update_slice(tokens, token[:, None], (0, loop_step))

  none_finished = jnp.zeros((batch,), bool)
  token, log_prob = choose(first_logits, none_finished)
  start = _Loop(
      step=jnp.ones((), jnp.int32),
      token=token,
      tokens=record(
          0, jnp.full((batch, max_length), pad_id, jnp.int32), token
      ),
      log_probs=log_prob,
      finished=token == eos_id,
      cache=cache,
  )

  def unfinished(loop: _Loop) -> Array:
    return (loop.step < max_length) & ~jnp.all(loop.finished)

  def advance(loop: _Loop) -> _Loop:
    logits, cache = step_fn(loop.token[:, None], loop.cache)
    token, log_prob = choose(logits[:, 0], loop.finished)
    return _Loop(
        step=loop.step + 1,
        token=token,
        tokens=record(loop.step, loop.tokens, token),
        log_probs=loop.log_probs + log_prob,
        finished=loop.finished | (token == eos_id),
        cache=cache,
    )

  end = jax.lax.while_loop(unfinished, advance, start)
  return GreedyOutput(end.tokens, end.log_probs)
