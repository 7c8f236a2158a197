"""Options and constraints: what they refuse, and what a constraint does."""

import jax.numpy as jnp
import numpy as np
import pytest

from ralm_jax.decoding.constraints import Constraints
from ralm_jax.decoding.options import DecodingOptions


@pytest.mark.parametrize(
  'wrong, message',
  [
    (dict(num_beams=0), 'num_beams must be an integer of at least 1, got 0'),
    (dict(num_beams=2.0), 'num_beams must be an integer'),
    (dict(num_beams=True), 'num_beams must be an integer'),
    (dict(min_length=-1), 'min_length must be an integer of at least 0'),
    (dict(sample='yes'), 'sample must be True or False'),
    (dict(sample=True, temperature=0.0), 'temperature must be above 0'),
    (dict(sample=True, temperature=float('nan')), 'temperature must be a finite'),
    (dict(sample=True, top_p=0.0), r'top_p must be in \(0, 1\]'),
    (dict(sample=True, top_p=1.5), r'top_p must be in \(0, 1\]'),
    (dict(sample=True, top_k=-1), 'top_k must be an integer'),
    (dict(length_penalty='1'), 'length_penalty must be a finite number'),
    (dict(early_stopping='always'), "True, False or 'never', got 'always'"),
    (dict(early_stopping=1), "True, False or 'never', got 1"),
    (dict(sample=True, num_beams=2), 'exclude each other'),
    (dict(temperature=0.7), 'temperature=0.7 has no effect unless sample'),
    (dict(top_k=5, num_beams=3), 'top_k=5 has no effect unless sample'),
    (dict(length_penalty=2.0), 'length_penalty=2.0 has no effect unless num_beams'),
    (dict(num_return=2), 'num_return=2 sequences of num_beams=1'),
    (dict(num_return=4, num_beams=3), 'raise num_beams'),
  ],
)
def test_wrong_options_are_refused(wrong, message):
  with pytest.raises(ValueError, match=message):
    DecodingOptions(**wrong)


def test_right_options_are_taken():
  DecodingOptions()
  DecodingOptions(num_beams=3, num_return=3, early_stopping='never')
  DecodingOptions(sample=True, num_return=9, top_k=40, top_p=0.9)
  DecodingOptions(num_beams=np.int64(2), length_penalty=-1)
  # A static argument of jit.
  hash(DecodingOptions(num_beams=2, early_stopping=True))


def test_wrong_constraints_are_refused():
  with pytest.raises(ValueError, match='max_length must be at least 1'):
    Constraints(max_length=0, eos_id=1)
  with pytest.raises(ValueError, match='min_length=4 is above max_length=3'):
    Constraints(max_length=3, eos_id=1, min_length=4)
  limits = Constraints(max_length=3, eos_id=1, forced_last_id=7)
  limits.check_vocabulary(8)
  with pytest.raises(ValueError, match='forced_last_id=7 is not in the vocab'):
    limits.check_vocabulary(7)


def test_constraints_by_step():
  limits = Constraints(max_length=5, eos_id=2, min_length=3, forced_first_id=0, forced_last_id=2)
  scores = jnp.asarray([[0.5, 1.0, 4.0, -2.0]] * 3)
  infinite = -np.inf
  expected = [
    [0.0, infinite, infinite, infinite],
    [0.5, 1.0, infinite, -2.0],
    [0.5, 1.0, infinite, -2.0],
    [0.5, 1.0, 4.0, -2.0],
    [infinite, infinite, 0.0, infinite],
  ]
  for step, row in enumerate(expected):
    np.testing.assert_array_equal(limits.apply(scores, jnp.asarray(step)), [row] * 3)
