"""The one entrance to greedy decoding, sampling and beam search."""

from __future__ import annotations

import jax

from ralm_jax.decoding import beam, greedy, rows, sampling
from ralm_jax.decoding.constraints import Constraints
from ralm_jax.decoding.options import DecodingOptions
from ralm_jax.decoding.rows import Choose
from ralm_jax.decoding.stepper import Decoded, Stepper


def decode(
  stepper: Stepper,
  options: DecodingOptions = DecodingOptions(),
  *,
  max_length: int,
  eos_id: int,
  pad_id: int,
  forced_first_id: int | None = None,
  forced_last_id: int | None = None,
  rng: jax.Array | None = None,
) -> Decoded:
  """Produces sequences as `options` say; to be called under `jax.jit`.

  Every example of the batch is decoded as if it were alone, and the loop ends
  with the last of them. Lengths and forced tokens are those of `Constraints`;
  `rng`, a key or one an example, is needed with `options.sample`, and not read without.

  Raises:
    ValueError: `min_length` above `max_length`, an id outside the vocabulary,
      or sampling without a key.
  """
  constraints = Constraints(
    max_length=max_length,
    eos_id=eos_id,
    pad_id=pad_id,
    min_length=options.min_length,
    forced_first_id=forced_first_id,
    forced_last_id=forced_last_id,
  )
  if options.num_beams > 1:
    return beam.beam_search(stepper, options, constraints)
  choose: Choose = greedy.take_likeliest
  if options.sample:
    if rng is None:
      raise ValueError('Sampling needs a key: give `rng`.')
    choose = sampling.draw(options, rng)
  return rows.decode_rows(stepper, choose, constraints, num_rows=options.num_return)
