"""Calendar dates as days, where a year or a month alone may be known.

A date is 'YYYY', 'YYYY-MM' or 'YYYY-MM-DD', perhaps with a time behind it. What it leaves open is
read so that nothing of the future leaks into an answer: a *passage* of 2019 may have been written
in December and counts as of its last day, a *question* of 2019 may be asked in January and sees
what was known on its first. So a question dated '2019' sees passages dated '2018' and '2019-01-01',
but none that is dated '2019'; whoever means the whole year writes '2019-12-31'.
"""

import calendar
import datetime
import re

import numpy as np

# Later than any bound, so that one comparison drops undated passages, too.
NO_DATE = int(np.iinfo(np.int32).max)
# As a bound: everything may be seen, even what has no date.
NO_DATE_BOUND = NO_DATE

_EPOCH = datetime.date(1970, 1, 1).toordinal()
# A time of day is read past: days are compared as they are written.
_TIME = r'(?:[T ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:[.,][0-9]+)?)?(?:Z|[+-][0-9]{2}:?[0-9]{2})?)?'
_LAYOUT = re.compile(rf'([0-9]{{4}})(?:-([0-9]{{2}})(?:-([0-9]{{2}}){_TIME})?)?')


def first_day(text: str) -> int:
  """Days from 1970-01-01 to the first day that a date allows; ValueError if it is none."""
  year, month, day = _parse(text)
  return _days(text, year, month or 1, day or 1)


def last_day(text: str) -> int:
  """Days from 1970-01-01 to the last day that a date allows; ValueError if it is none."""
  year, month, day = _parse(text)
  month = month or 12
  if day:
    return _days(text, year, month, day)
  return _days(text, year, month, 1) + calendar.monthrange(year, month)[1] - 1


def text_of(days: int) -> str:
  """The day as 'YYYY-MM-DD'; '' for `NO_DATE`."""
  if days == NO_DATE:
    return ''
  return datetime.date.fromordinal(days + _EPOCH).isoformat()


def _parse(text: str) -> tuple[int, int | None, int | None]:
  """Year, month and day; None for what is left open."""
  match = _LAYOUT.fullmatch(text)
  if not match or {'00', '0000'} & set(match.groups()):
    raise _error(text)
  month, day = (int(part) if part else None for part in match.groups()[1:])
  return int(match[1]), month, day


def _days(text: str, year: int, month: int, day: int) -> int:
  try:
    return datetime.date(year, month, day).toordinal() - _EPOCH
  except ValueError as error:
    raise _error(text) from error


def _error(text: str) -> ValueError:
  return ValueError(f"{text!r} is no date; write 'YYYY', 'YYYY-MM' or 'YYYY-MM-DD'")
