"""Which values an option's type takes, and what is said of others."""

import argparse
import dataclasses
from typing import Literal

import numpy as np
import pytest

from ralm_jax.losses import option_types
from ralm_jax.losses.option_types import Amount, Count, Dropout, Dtype, Number, Positive, Seed

NAN, INF = float('nan'), float('inf')


@pytest.mark.parametrize(
  'hint, meant, others',
  [
    (Count, [1, 7, np.int64(2)], [0, -1, 1.0, '1', True, None, NAN]),
    (Number, [0, 1], [-1, 0.5, False]),
    (Seed, [0, 2**32 - 1], [-1, 2**32]),
    (Amount, [0, 0.0, 1e-4, 1], [-1e-9, NAN, INF, '1e-4x', 'nan']),
    (Positive, [1e-9, 1], [0, 0.0, -1, NAN]),
    (Dropout, [0, 0.999], [1, 1.0, -0.1, NAN]),
    (Dtype, ['float32', 'bfloat16', 'float16', np.float32], ['fp8', 'int8', 'float64']),
    (Count | None, [None, 1], [0, 'None']),
    (Amount | None, [None, 0], [-1]),
    (str, ['a', ''], [1, None, True]),
    (bool, [True, False], [0, 1, 'yes']),
    (list[Count], [[], [1, 2]], [[1, 0], 'abc', 3]),
    (Literal['a', 'b'], ['a'], ['c', None]),
    (argparse.ArgumentParser, ['whatever is not known is taken'], []),
  ],
)
def test_what_is_meant(hint, meant, others):
  assert [option_types.expected(value, hint) for value in meant] == [None] * len(meant)
  assert all(option_types.expected(value, hint) for value in others)


@pytest.mark.parametrize(
  'value, hint, words',
  [
    (0, Count, 'at least 1'),
    ('x', Count, 'a whole number, at least 1'),
    (1, Dropout, 'from 0 to below 1'),
    (-1, Seed, 'from 0 to 4294967295'),
    (0, Positive | None, 'above 0 or None'),
    (3, str | None, 'a text or None'),
  ],
)
def test_it_is_said_in_words(value, hint, words):
  assert option_types.expected(value, hint) == words


def test_fields_of_a_dataclass():
  @dataclasses.dataclass
  class Options:
    period: Count = 1
    name: 'NotImported | None' = None  # noqa: F821

    def __post_init__(self):
      option_types.check_fields(self)

  assert Options(3, 'anything').period == 3
  with pytest.raises(ValueError, match=r'^Options.period must be at least 1, not 0\.$'):
    Options(0)


def test_flags():
  parse = option_types.parsed(Positive)
  assert parse('0.5') == 0.5
  for text in ('nan', 'inf', '0', '-1', 'x'):
    with pytest.raises(argparse.ArgumentTypeError, match='above 0'):
      parse(text)
