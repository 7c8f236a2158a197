"""Dates: what is left open is read so that nothing leaks."""

import datetime

import numpy as np
import pytest

from ralm_jax.data import dates


def days(*date):
  return (datetime.date(*date) - datetime.date(1970, 1, 1)).days


@pytest.mark.parametrize(
  'text, first, last',
  [
    ('2019-05-17', (2019, 5, 17), (2019, 5, 17)),
    ('1970-01-01', (1970, 1, 1), (1970, 1, 1)),
    ('1066-10-14', (1066, 10, 14), (1066, 10, 14)),
    ('2019', (2019, 1, 1), (2019, 12, 31)),
    ('2019-04', (2019, 4, 1), (2019, 4, 30)),
    ('2019-12', (2019, 12, 1), (2019, 12, 31)),
    ('2019-02', (2019, 2, 1), (2019, 2, 28)),
    ('2020-02', (2020, 2, 1), (2020, 2, 29)),
    ('2000-02-29', (2000, 2, 29), (2000, 2, 29)),
    ('9999', (9999, 1, 1), (9999, 12, 31)),
    ('0001', (1, 1, 1), (1, 12, 31)),
  ],
)
def test_first_and_last_day(text, first, last):
  assert dates.first_day(text) == days(*first)
  assert dates.last_day(text) == days(*last)
  assert dates.text_of(dates.last_day(text)) == datetime.date(*last).isoformat()


@pytest.mark.parametrize(
  'text',
  [
    '',
    ' ',
    '19',
    '201',
    '20190517',
    '2019-5-17',
    '2019-13',
    '2019-00',
    '2019-02-29',
    '2019-04-31',
    '17.5.2019',
    '2019-05-17T12',
    '2019-05T12:00:00',
    ' 2019',
    '2019\n',
    '٢٠١٩',
    '0000',
    '-2019',
    'May 2019',
  ],
)
def test_what_is_no_date(text):
  for read in (dates.first_day, dates.last_day):
    with pytest.raises(ValueError, match="is no date; write 'YYYY'"):
      read(text)


def test_nothing_leaks_in_or_out_of_a_year():
  """No passage of a year is as early as a question of that year."""
  assert dates.last_day('2018') < dates.first_day('2019') < dates.last_day('2019')
  assert dates.last_day('2019-03') <= dates.first_day('2019-04')
  # What has no date is later than every bound but none at all.
  assert dates.NO_DATE > dates.last_day('9999')
  assert not dates.NO_DATE > dates.NO_DATE_BOUND
  assert dates.NO_DATE == np.int32(dates.NO_DATE)
  assert dates.text_of(dates.NO_DATE) == ''


@pytest.mark.parametrize(
  'text', ['2019-05-17T12:00:00Z', '2019-05-17 23:59', '2019-05-17T12:00:00.25+02:00']
)
def test_times_of_day_are_read_past(text):
  assert dates.first_day(text) == dates.last_day(text) == dates.first_day('2019-05-17')
