"""The fields of one row of a question file, checked."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import json
from typing import Any

from ralm_jax.data import dates
from ralm_jax.data.questions import answer_patterns
from ralm_jax.files import json_records

# What answers are scored by, see `evaluation/scores/by_task.py`.
METRICS_FAMILIES = (
  'qa',
  'label',
  'kilt',
  'long_answer',
  'generation',
  'question_generation',
  'multiple_choice',
  'language_modeling',
)
_ANSWER_FIELDS = ('answers', 'golden_answers', 'answer')


@dataclasses.dataclass(frozen=True)
class FilePassage:
  """A passage that the question file supplies.

  Attributes:
    id: as written; '' where there is none.
    title: with the section, `title: section`, where there is one.
    text: as written.
  """

  id: str
  title: str
  text: str


def parse(
  row: dict[str, Any], where: str, position_id: str, require_answers: bool, metrics: str = ''
) -> dict[str, Any]:
  """Arguments of a `questions.Question`, but for `line` and `path`.

  Args:
    row: as read.
    where: file and line.
    position_id: what a row without id is called.
    require_answers: whether a row without an answer is an error.
    metrics: of a row that names none.

  Raises:
    ValueError: a field is missing or of the wrong type; names `where`.
  """
  if row.get('question') is None:
    raise ValueError(f"{where}: missing field 'question'; found {_names(row)}")
  question = _string(row['question'], where, 'question')
  if not question.strip():
    raise ValueError(f"{where}: field 'question' is blank; write the question")
  target = row.get('target')
  if target is not None:
    # A blank target is as no target, as a blank answer is no answer.
    target = _string(target, where, 'target')
    target = target if target.strip() else None
  answers = _answers(row, target, where)
  if require_answers and not answers:
    present = [f for f in (*_ANSWER_FIELDS, 'target') if f in row]
    raise ValueError(
      f'{where}: '
      + (
        f'field {present[0]!r} holds no answer (blank ones do not count)'
        if present
        else f"missing field 'answers'; found {_names(row)}"
      )
      + '; add one, or read with require_answers=False'
    )
  options = _options(row, where)
  if options:
    answers = _letters(answers, options, where)
  patterns = row.get('patterns', False)
  if not isinstance(patterns, bool):
    raise ValueError(
      f"{where}: field 'patterns' must be true or false, found {json_records.kind(patterns)}"
    )
  if patterns:
    _check_patterns(answers, where)
  return {
    'id': _id(row['id'], where, 'id') if row.get('id') is not None else position_id,
    'question': question,
    'answers': answers,
    'gold_passage_ids': _passage_ids(row, where, 'gold_passage_id'),
    'target': target,
    'exclude_passage_ids': _passage_ids(row, where, 'exclude_passage_id'),
    'date': _date(row, where),
    'options': options,
    'passages': _passages(row, where),
    'provenance': _provenance(row, where),
    'group': _id(row['group'], where, 'group') if row.get('group') is not None else '',
    'patterns': patterns,
    'metadata': _metadata(row, where),
    'metrics': _metrics(row, where) or metrics,
  }


def _answers(row: dict[str, Any], target: str | None, where: str) -> tuple[str, ...]:
  for field in _ANSWER_FIELDS:
    value = row.get(field)
    if value is None:
      continue
    if field == 'answer' and isinstance(value, str):
      value = [value]
    if not isinstance(value, list):
      raise ValueError(
        f'{where}: field {field!r} must be a list of strings, found '
        f'{json_records.kind(value)}; write ["..."]'
      )
    answers = [_string(answer, where, f'{field}[{index}]') for index, answer in enumerate(value)]
    answers = [answer for answer in answers if answer.strip()]
    if answers:
      return tuple(answers)
  return () if target is None else (target,)


def _passage_ids(row: dict[str, Any], where: str, single: str) -> tuple[str, ...]:
  """The field `single` and its plural, a list."""
  ids: list[str] = []
  if row.get(single) is not None:
    ids.append(_id(row[single], where, single))
  field = f'{single}s'
  many = row.get(field)
  if many is not None:
    if not isinstance(many, list):
      raise ValueError(
        f'{where}: field {field!r} must be a list of ids, found '
        f'{json_records.kind(many)}; a single id goes into {single!r}'
      )
    ids.extend(_id(one, where, f'{field}[{index}]') for index, one in enumerate(many))
  return tuple(dict.fromkeys(ids))


def _options(row: dict[str, Any], where: str) -> tuple[str, ...]:
  """A list of texts, or an object from the letters A, B, ... to texts."""
  value = row.get('options')
  if value is None:
    return ()
  if isinstance(value, dict):
    letters = [chr(ord('A') + i) for i in range(len(value))]
    if list(value) != letters:
      raise ValueError(
        f"{where}: field 'options' must have the keys "
        f'{", ".join(letters)} in this order, found {", ".join(value)}'
      )
    value = list(value.values())
  if not isinstance(value, list) or not 2 <= len(value) <= 26:
    raise ValueError(
      f"{where}: field 'options' must be a list of 2 to 26 texts, found "
      + (f'{len(value)}' if isinstance(value, list) else json_records.kind(value))
    )
  options = tuple(_string(option, where, f'options[{i}]') for i, option in enumerate(value))
  for i, option in enumerate(options):
    if not option.strip():
      raise ValueError(f"{where}: field 'options[{i}]' is blank; write the option")
  return options


def _letters(answers: tuple[str, ...], options: tuple[str, ...], where: str) -> tuple[str, ...]:
  known = [chr(ord('A') + i) for i in range(len(options))]
  for answer in answers:
    if answer not in known:
      raise ValueError(
        f"{where}: the answer {answer!r:.40} is not one of the options' letters {', '.join(known)}"
      )
  return answers


def _check_patterns(answers: tuple[str, ...], where: str) -> None:
  for answer in answers:
    try:
      answer_patterns.compiled(answer)
    except ValueError as error:
      raise ValueError(f'{where}: the answer {error}; mend it or leave it out') from error


def _passages(row: dict[str, Any], where: str) -> tuple[FilePassage, ...]:
  value = row.get('passages')
  if value is None:
    return ()
  if not isinstance(value, list):
    raise ValueError(
      f"{where}: field 'passages' must be a list of objects with title and "
      f'text, found {json_records.kind(value)}'
    )
  return tuple(_passage(one, where, f'passages[{i}]') for i, one in enumerate(value))


def _passage(value: Any, where: str, field: str) -> FilePassage:
  if not isinstance(value, dict):
    raise ValueError(
      f'{where}: field {field!r} must be an object with title and text, found '
      f'{json_records.kind(value)}'
    )
  if value.get('text') is None:
    raise ValueError(f"{where}: field '{field}.text' is missing; found {_names(value)}")
  title, section = (
    '' if value.get(name) is None else _string(value[name], where, f'{field}.{name}').strip()
    for name in ('title', 'section')
  )
  return FilePassage(
    id=_id(value['id'], where, f'{field}.id') if value.get('id') is not None else '',
    title=f'{title}: {section}' if section else title,
    text=_string(value['text'], where, f'{field}.text'),
  )


def _provenance(row: dict[str, Any], where: str) -> tuple[tuple[str, ...], ...]:
  value = row.get('provenance')
  if value is None:
    return ()
  if not isinstance(value, list) or not all(isinstance(s, list) for s in value):
    raise ValueError(
      f"{where}: field 'provenance' must be a list of lists of page ids, found "
      f'{json_records.kind(value)}' + (' of other things' if isinstance(value, list) else '')
    )
  sets = (
    tuple(dict.fromkeys(_id(page, where, f'provenance[{i}][{j}]') for j, page in enumerate(pages)))
    for i, pages in enumerate(value)
  )
  return tuple(dict.fromkeys(pages for pages in sets if pages))


def _metadata(row: dict[str, Any], where: str) -> Mapping[str, Any]:
  value = row.get('metadata')
  if value is None:
    return {}
  try:
    json.dumps(value, ensure_ascii=False).encode('utf-8')
  except UnicodeEncodeError as error:
    raise ValueError(
      f"{where}: field 'metadata' holds half a surrogate pair; write the character itself"
    ) from error
  return value if isinstance(value, dict) else {'metadata': value}


def _metrics(row: dict[str, Any], where: str) -> str:
  if row.get('metrics') is None:
    return ''
  family = _string(row['metrics'], where, 'metrics')
  if family and family not in METRICS_FAMILIES:
    raise ValueError(
      f"{where}: field 'metrics' is {family!r:.40}; choose one of "
      f'{", ".join(METRICS_FAMILIES)}, or leave it out'
    )
  return family


def _date(row: dict[str, Any], where: str) -> str | None:
  if row.get('date') is None:
    return None
  text = _id(row['date'], where, 'date')
  try:
    dates.first_day(text)
  except ValueError as error:
    raise ValueError(f"{where}: field 'date': {error}, or leave it out") from error
  return text


def _id(value: Any, where: str, field: str) -> str:
  # bool is an int in Python, but true is no id.
  if isinstance(value, int) and not isinstance(value, bool):
    return str(value)
  if not isinstance(value, str):
    raise ValueError(
      f'{where}: field {field!r} must be a string or an integer, found {json_records.kind(value)}'
    )
  if not value.strip():
    raise ValueError(f'{where}: field {field!r} is blank; leave it out instead')
  return _string(value, where, field)


def _string(value: Any, where: str, field: str) -> str:
  if not isinstance(value, str):
    raise ValueError(f'{where}: field {field!r} must be a string, found {json_records.kind(value)}')
  try:
    value.encode('utf-8')
  except UnicodeEncodeError as error:
    # JSON can spell half of a surrogate pair, which no file can then hold.
    raise ValueError(
      f'{where}: field {field!r} holds half a surrogate pair at character '
      f'{error.start}; write the character itself'
    ) from error
  return value


def _names(row: dict[str, Any]) -> str:
  return ', '.join(map(repr, list(row)[:8])) or 'no field'
