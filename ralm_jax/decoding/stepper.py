"""What decoding asks of a model, and what it gives back."""

from __future__ import annotations

from typing import Any, Protocol

import flax.struct
import jax

Array = jax.Array
# A pytree of arrays that only the stepper understands.
Cache = Any


class Stepper(Protocol):
  """A model that continues rows of tokens, one token a row at a time.

  An example of the batch has one row at first and n after `expand`. A step must
  keep the structure, shapes and dtypes of the cache, which is carried through a
  `lax.while_loop`.
  """

  def start(self) -> tuple[Array, Cache]:
    """Reads the start token and the forced prefix, if there is one.

    Returns:
      logits of the first token to produce, float32 [batch, vocab], and the
      cache behind them.
    """

  def expand(self, cache: Cache, n: int) -> Cache:
    """From 1 to n rows an example, each a copy of the first."""

  def step(self, tokens: Array, cache: Cache) -> tuple[Array, Cache]:
    """int32 [batch, n] -> logits of the next, float32 [batch, n, vocab]."""

  def reorder(self, cache: Cache, parents: Array) -> Cache:
    """Row i of an example becomes a copy of its row parents[i].

    Args:
      cache: of n rows an example.
      parents: int32 [batch, n], in [0, n).
    """


@flax.struct.dataclass
class Decoded:
  """What decoding produced.

  Attributes:
    tokens: int32 [batch, num_return, max_length]; the end of sequence is part
      of a sequence, `pad_id` follows it. Beams stand best first, draws in the
      order they were drawn.
    log_probs: float32 [batch, num_return], sum of the log-probabilities the
      model itself gives the tokens, the end of sequence included, whether they
      were forced or not.
    scores: float32 [batch, num_return]. Of beams what ranks them: the sum over
      the tokens that were not forced, over the length to the power of the
      length penalty. Otherwise `log_probs`.
  """

  tokens: Array
  log_probs: Array
  scores: Array
