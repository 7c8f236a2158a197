"""What decoding asks of a model, and what it gives back."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import flax.struct

from ralm_jax.losses.array_types import Array, Float, Int

# A pytree of arrays that only the stepper understands.
Cache = Any


@runtime_checkable
class Stepper(Protocol):
  """A model that continues rows of tokens, one token a row at a time.

  An example of the batch has one row at first and n after `expand`. A step must keep the structure,
  shapes and dtypes of the cache, which is carried through a `lax.while_loop`.
  """

  def start(self) -> tuple[Float[Array, 'b v'], Cache]:
    """Reads the start token and the forced prefix: logits of the first token to produce."""
    ...

  def expand(self, cache: Cache, n: int) -> Cache:
    """From 1 to n rows an example, each a copy of the first."""
    ...

  def step(
    self, tokens: Int[Array, 'b rows'], cache: Cache
  ) -> tuple[Float[Array, 'b rows v'], Cache]:
    """Logits of the next token."""
    ...

  def reorder(self, cache: Cache, parents: Int[Array, 'b rows']) -> Cache:
    """Row i of an example becomes a copy of its row parents[i]."""
    ...


@flax.struct.dataclass
class Decoded:
  """What decoding produced.

  Attributes:
    tokens: the end of sequence is part of a sequence, `pad_id` follows it. Beams
      stand best first, draws in the order they were drawn.
    log_probs: sum of the log-probabilities the model itself gives the tokens,
      the end of sequence included, whether they were forced or not.
    scores: of beams what ranks them: the sum over the tokens that were not forced, over the length
      to the power of the length penalty. Otherwise `log_probs`.
  """

  tokens: Int[Array, 'b num_return max_length']
  log_probs: Float[Array, 'b num_return']
  scores: Float[Array, 'b num_return']
