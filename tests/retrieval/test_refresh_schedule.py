"""When an index is refreshed."""

import pytest

from ralm_jax.retrieval.publisher import RefreshSchedule


def _fires(schedule, steps=12001):
  parsed = RefreshSchedule.parse(schedule)
  return [step for step in range(steps) if parsed.fires(step)]


def test_ranges_of_atlas():
  assert _fires('0-1000:500,1000-10000:2000') == [0, 500, 1000, 3000, 5000, 7000, 9000]


@pytest.mark.parametrize(
  'schedule,steps',
  [
    (None, []),
    (-1, []),
    ('-1', []),
    ('None', []),
    (4, [0, 4, 8]),
    ('4', [0, 4, 8]),
    (' 2-7 : 2 ', [2, 4, 6]),
    # Counted from the range's own start; the first range that fits decides.
    ('1-4:2, 3-9:1', [1, 3, 4, 5, 6, 7, 8]),
    ('0-10:5,0-10:1', [0, 5]),
    # Nothing between ranges.
    ('0-2:1,5-6:1', [0, 1, 5]),
  ],
)
def test_steps(schedule, steps):
  assert _fires(schedule, 10) == steps


def test_whether_there_is_one():
  assert RefreshSchedule.parse('5')
  assert not RefreshSchedule.parse(None)


@pytest.mark.parametrize(
  'schedule,part,problem',
  [
    ('0-1000:500,1000:2000', "'1000:2000'", 'no range'),
    ('0-1000', "'0-1000'", 'no range'),
    ('0-10:1,', "''", 'no range'),
    ('0-x:5', "'0-x:5'", 'not all whole'),
    ('0-10:2.5', "'0-10:2.5'", 'not all whole'),
    ('0-10:-1', "'0-10:-1'", 'not all whole'),
    ('0-10:0', "'0-10:0'", 'not at least 1'),
    ('0', "'0'", 'not at least 1'),
    ('7-7:1', "'7-7:1'", 'ends before'),
    (-5, "'-5'", 'no range'),
    ('', "''", 'cannot be'),
    (True, 'True', 'cannot be'),
    ('never', "'never'", 'no range'),
  ],
)
def test_malformed(schedule, part, problem):
  with pytest.raises(ValueError) as raised:
    RefreshSchedule.parse(schedule)
  assert part in str(raised.value) and problem in str(raised.value)
  assert "'0-1000:500,1000-10000:2000'" in str(raised.value)  # how to write it
