"""Questions whose answers change with time.

  templama  TempLAMA (Dhingra et al. 2022): sentences with `_X_` in the place
            of the answer, which becomes `<extra_id_0>` as in Atlas
  dated     our own layout, each question with a `date`

The year becomes the question's group, so that metrics are given by year, and
the date as written goes into its metadata. It is no bound on the passages that
may be shown: in these protocols the index decides what is known. (The `date` of
our own layout, record format 'qa', is such a bound.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ralm_jax.data import dates
from ralm_jax.data.questions.formats import records as published_records
from ralm_jax.data.questions.formats.records import Fields, OnError, Record

if TYPE_CHECKING:  # Reading questions needs the formats, not the reverse.
  from ralm_jax.data.questions import reading as questions_lib

EXPECTED = {
  'templama': 'one dated query with its answers a line',
  'dated': 'one question with answers and a date a line',
}

_BLANK = '_X_'
_SENTINEL = '<extra_id_0>'


def records(
  path: str, record_format: str, require_answers: bool = True, on_error: OnError = None
) -> Iterator[Record]:
  """Reads a file of one of `EXPECTED`, as `qa_formats.records` does."""
  convert = {'templama': _templama, 'dated': _dated}[record_format]
  yield from published_records.converted(
    published_records.array_or_lines(path, on_error), convert, require_answers, on_error
  )


def disjoint_years(
  questions: Iterable[questions_lib.Question], years: Sequence[int | str] = (2017, 2020)
) -> dict[str, list[questions_lib.Question]]:
  """Questions whose answers changed between years, as Atlas's on TempLAMA.

  Of the questions of the same text those of the first of the years are taken,
  and those of later ones that share no answer with it. A text without such a
  later year is left out. Answers are compared as written. Where two questions of
  one year have the same text (two people of the same name), the answers of both
  count, so that it is certain that the later answer is another.

  Args:
    questions: with the year as `group`, as `records` makes them.
    years: two or more, in order.

  Returns:
    Questions by year, in the order in which their texts first occur.

  Raises:
    ValueError: fewer than two years, or one twice; no question is of one of
      the years.
  """
  names = [str(year) for year in years]
  if len(set(names)) < 2 or len(set(names)) < len(names):
    raise ValueError(f'years is {years!r}; give two or more, each once')
  by_text: dict[str, dict[str, list[questions_lib.Question]]] = {}
  for question in questions:
    if question.group in names:
      by_year = by_text.setdefault(question.question, {})
      by_year.setdefault(question.group, []).append(question)
  chosen: dict[str, list[questions_lib.Question]] = {name: [] for name in names}
  for year in names:
    if not any(year in by_year for by_year in by_text.values()):
      raise ValueError(
        f'no question is of the year {year}; read the files with a '
        "record_format of dated questions ('templama', 'dated')"
      )
  for by_year in by_text.values():
    first, *later = [name for name in names if name in by_year]
    known = _answers(by_year[first])
    changed = [year for year in later if not known & _answers(by_year[year])]
    for year in [first, *changed] if changed else []:
      chosen[year].extend(by_year[year])
  return chosen


def _answers(questions: Iterable[questions_lib.Question]) -> set[str]:
  return {answer for question in questions for answer in question.answers}


def _templama(fields: Fields) -> dict[str, Any]:
  query = fields.text('query')
  if query.count(_BLANK) != 1:
    raise fields.error(
      'query', f'must hold {_BLANK} once, in the place of the answer, found {query!r:.60}'
    )
  row = {
    'question': query.replace(_BLANK, _SENTINEL),
    **fields.id('id'),
    **_year(fields, 'relation'),
  }
  if fields.get('answer') is None:
    if fields.require_answers:
      raise fields.missing('answer')
    return row
  # The published files have a list; what the authors' script writes, one object.
  answers = (
    [fields.object('answer')]
    if isinstance(fields.get('answer'), dict)
    else fields.objects('answer')
  )
  return {**row, 'answers': list(dict.fromkeys(answer.text('name') for answer in answers))}


def _dated(fields: Fields) -> dict[str, Any]:
  row = {**fields.row(), **_year(fields, 'group')}
  del row['date']
  return row


def _year(fields: Fields, *others: str) -> dict[str, Any]:
  """Group and metadata of a dated record."""
  date = fields.get('date')
  if date is None:
    raise fields.missing('date')
  if isinstance(date, int) and not isinstance(date, bool):
    date = str(date)
  try:
    dates.first_day(date if isinstance(date, str) else repr(date))
  except ValueError as error:
    raise fields.error('date', f'must be a date: {error}') from error
  metadata = fields.get('metadata') or {}
  if not isinstance(metadata, dict):
    metadata = {'metadata': metadata}
  return {'group': date[:4], 'metadata': {**metadata, 'date': date, **fields.rest(*others)}}
