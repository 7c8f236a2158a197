"""Questions whose answers change with time.

  templama  TempLAMA (Dhingra et al. 2022): sentences with `_X_` in the place
            of the answer, which becomes `<extra_id_0>` as in Atlas
  dated     our own layout, each question with a `date`

The year becomes the question's group, so that metrics are given by year, and the date as written
goes into its metadata. It is no bound on the passages that may be shown: in these protocols the
index decides what is known. (The `date` of our own layout, record format 'qa', is such a bound.)
"""

from typing import Any

from ralm_jax.data import dates
from ralm_jax.data.questions.formats import records
from ralm_jax.data.questions.formats.records import Fields, RecordFormat

_BLANK = '_X_'
_SENTINEL = '<extra_id_0>'


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
    else fields.objects('answer') or []
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


FORMATS = (
  RecordFormat(
    'templama', 'one dated query with its answers a line', _templama, records.array_or_lines
  ),
  RecordFormat(
    'dated', 'one question with answers and a date a line', _dated, records.array_or_lines
  ),
)
