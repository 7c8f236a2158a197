"""What every decoded sequence must keep to, whoever chooses its tokens."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from ralm_jax.losses.array_types import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class Constraints:
  """Lengths and forced tokens; lengths count the tokens produced.

  Attributes:
    max_length: tokens to produce at most.
    eos_id: ends a sequence.
    pad_id: follows the end.
    min_length: before so many tokens a sequence cannot end.
    forced_first_id: what the first token must be (Hugging Face's `forced_bos_token_id`, which it
      forces only where the decoder began with its start token alone).
    forced_last_id: what the token at `max_length` must be (Hugging Face's `forced_eos_token_id`).

  Raises:
    ValueError: lengths that no sequence can have.
  """

  max_length: int
  eos_id: int
  pad_id: int = 0
  min_length: int = 0
  forced_first_id: int | None = None
  forced_last_id: int | None = None

  def __post_init__(self):
    if self.max_length < 1:
      raise ValueError(f'max_length must be at least 1, got {self.max_length}.')
    if self.min_length > self.max_length:
      raise ValueError(f'min_length={self.min_length} is above max_length={self.max_length}.')

  def check_vocabulary(self, size: int) -> None:
    """Raises ValueError for an id that logits of `size` tokens do not have."""
    for name in ('eos_id', 'pad_id', 'forced_first_id', 'forced_last_id'):
      value = getattr(self, name)
      if value is not None and not 0 <= value < size:
        raise ValueError(f'{name}={value} is not in the vocabulary of {size} tokens.')

  def apply(self, scores: Float[Array, '*b v'], step: Int[Array, '']) -> Float[Array, '*b v']:
    """Rules tokens out of logits or log-probabilities with -inf.

    After `step` tokens. A forced token has 0 and all others -inf; as in Hugging
    Face's processors nothing is normalised again.
    """
    tokens = jnp.arange(scores.shape[-1])
    if self.min_length:
      too_early = (step < self.min_length) & (tokens == self.eos_id)
      scores = jnp.where(too_early, -jnp.inf, scores)

    def force(scores: Array, token: int, here: Array) -> Array:
      return jnp.where(here, jnp.where(tokens == token, 0.0, -jnp.inf), scores)

    if self.forced_first_id is not None:
      scores = force(scores, self.forced_first_id, step == 0)
    if self.forced_last_id is not None:
      last = step == self.max_length - 1
      scores = force(scores, self.forced_last_id, last)
    return scores
