"""Rows that are continued each on its own: greedy decoding and sampling."""

from __future__ import annotations

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from ralm_jax.decoding.constraints import Constraints
from ralm_jax.decoding.stepper import Cache, Decoded, Stepper
from ralm_jax.losses.array_types import Array, Bool, Float, Int

# Constrained logits and the step -> tokens.
Choose = Callable[[Float[Array, 'b rows v'], Int[Array, '']], Int[Array, 'b rows']]


@flax.struct.dataclass
class _Loop:
  step: Int[Array, '']  # tokens produced so far
  token: Int[Array, 'b rows']  # the newest
  tokens: Int[Array, 'b rows max_length']
  log_probs: Float[Array, 'b rows']
  ended: Bool[Array, 'b rows']
  cache: Cache


def decode_rows(
  stepper: Stepper, choose: Choose, constraints: Constraints, *, num_rows: int
) -> Decoded:
  """Continues `num_rows` rows an example until all of them have ended."""
  logits, cache = stepper.start()
  batch, vocab = logits.shape
  constraints.check_vocabulary(vocab)
  shape = (batch, num_rows)

  def advance(loop: _Loop, logits: Float[Array, 'b rows v'], cache: Cache) -> _Loop:
    logits = logits.astype(jnp.float32)
    token = choose(constraints.apply(logits, loop.step), loop.step)
    token = jnp.where(loop.ended, constraints.pad_id, token).astype(jnp.int32)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), token[..., None], axis=-1)[
      ..., 0
    ]
    return _Loop(
      step=loop.step + 1,
      token=token,
      tokens=jax.lax.dynamic_update_slice(loop.tokens, token[..., None], (0, 0, loop.step)),
      log_probs=loop.log_probs + jnp.where(loop.ended, 0.0, chosen),
      ended=loop.ended | (token == constraints.eos_id),
      cache=cache,
    )

  def unfinished(loop: _Loop) -> Array:
    return (loop.step < constraints.max_length) & ~jnp.all(loop.ended)

  nothing = _Loop(
    step=jnp.zeros((), jnp.int32),
    token=jnp.zeros(shape, jnp.int32),
    tokens=jnp.full(shape + (constraints.max_length,), constraints.pad_id, jnp.int32),
    log_probs=jnp.zeros(shape, jnp.float32),
    ended=jnp.zeros(shape, bool),
    cache=None,
  )
  first = advance(
    nothing,
    jnp.broadcast_to(logits[:, None], (batch, num_rows, vocab)),
    stepper.expand(cache, num_rows),
  )
  end = jax.lax.while_loop(
    unfinished, lambda loop: advance(loop, *stepper.step(loop.token, loop.cache)), first
  )
  return Decoded(end.tokens, end.log_probs, end.log_probs)
