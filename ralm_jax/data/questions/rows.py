"""The fields of one row of a question file, checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import json
import string
from typing import Any

from ralm_jax.data import dates
from ralm_jax.data.option_values import METRICS_FAMILIES
from ralm_jax.data.questions import answer_patterns, answer_texts
from ralm_jax.files import json_records

_ANSWER_FIELDS = ('answers', 'golden_answers', 'answer')
FIELDS = frozenset(
  'question id target date options passages provenance group patterns metadata metrics '
  'gold_passage_id gold_passage_ids exclude_passage_id exclude_passage_ids'.split()
).union(_ANSWER_FIELDS)
_LETTERS = string.ascii_uppercase


@dataclasses.dataclass(frozen=True)
class FilePassage:
  """A passage that the question file supplies, as written."""

  id: str  # '' where there is none.
  title: str  # `title: section`, where there is a section.
  text: str


def parse(
  row: dict[str, Any], where: str, position_id: str, require_answers: bool, metrics: str = ''
) -> dict[str, Any]:
  """Arguments of a `Question` but line and path; ValueError names `where` a field is at fault."""
  return _Row(row, where).question(position_id, require_answers, metrics)


class _Row:
  """A row and where it is from."""

  def __init__(self, row: dict[str, Any], where: str):
    self._row = row
    self._where = where

  def question(self, position_id: str, require_answers: bool, metrics: str) -> dict[str, Any]:
    question = self._field('question', self._string)
    if question is None:
      hint = json_records.did_you_mean('question', self._row)
      raise self._wrong(f"missing field 'question'; found {_names(self._row)}{hint and '.' + hint}")
    if not question.strip():
      raise self._error('question', 'is blank; write the question')
    target = self._field('target', self._string)
    # A blank target is as no target, as a blank answer is no answer.
    listed = answer_texts.listed(target or '')
    if listed is not None:
      target, *_ = [*filter(answer_texts.is_answer, listed), '']
    target = target if target and answer_texts.is_answer(target) else None
    answers = self._answers(target, require_answers)
    options = self._field('options', self._options, ())
    patterns = self._row.get('patterns', False)
    if not isinstance(patterns, bool):
      raise self._error('patterns', f'must be true or false, found {json_records.kind(patterns)}')
    for answer in answers:
      if options and answer not in tuple(_LETTERS[: len(options)]):
        known = ', '.join(_LETTERS[: len(options)])
        raise self._wrong(f"the answer {answer!r:.40} is not one of the options' letters {known}")
      if patterns:
        try:
          answer_patterns.compiled(answer)
        except ValueError as error:
          raise self._wrong(f'the answer {error}; mend it or leave it out') from error
    return {
      'id': self._field('id', self._id, position_id),
      'question': question,
      'answers': answers,
      'gold_passage_ids': self._passage_ids('gold_passage_id'),
      'target': target,
      'exclude_passage_ids': self._passage_ids('exclude_passage_id'),
      'date': self._field('date', self._date),
      'options': options,
      'passages': tuple(
        self._passage(field, one) for field, one in self._items('passages', 'objects')
      ),
      'provenance': self._provenance(),
      'group': self._field('group', self._id, ''),
      'patterns': patterns,
      'metadata': self._field('metadata', self._metadata, {}),
      'metrics': self._field('metrics', self._metrics) or metrics,
    }

  def _wrong(self, problem: str) -> ValueError:
    return ValueError(f'{self._where}: {problem}')

  def _error(self, field: str, problem: str) -> ValueError:
    return self._wrong(f'field {field!r} {problem}')

  def _field(self, field: str, check: Callable[[str, Any], Any], default: Any = None) -> Any:
    value = self._row.get(field)
    return default if value is None else check(field, value)

  def _items(self, field: str, of: str, remedy: str = '') -> list[tuple[str, Any]]:
    """The elements of a list with their names; none without the field."""
    value = self._row.get(field)
    if value is None:
      return []
    if not isinstance(value, list):
      found = json_records.kind(value)
      raise self._error(field, f'must be a list of {of}, found {found}{remedy}')
    return [(f'{field}[{i}]', one) for i, one in enumerate(value)]

  def _string(self, field: str, value: Any) -> str:
    if not isinstance(value, str):
      raise self._error(field, f'must be a string, found {json_records.kind(value)}')
    try:
      value.encode('utf-8')
    except UnicodeEncodeError as error:
      # JSON can spell half of a surrogate pair, which no file can then hold.
      raise self._error(
        field, f'holds half a surrogate pair at character {error.start}; write the character itself'
      ) from error
    return value

  def _id(self, field: str, value: Any) -> str:
    # bool is an int in Python, but true is no id.
    if isinstance(value, int) and not isinstance(value, bool):
      return str(value)
    if not isinstance(value, str):
      raise self._error(field, f'must be a string or an integer, found {json_records.kind(value)}')
    if not value.strip():
      raise self._error(field, 'is blank; leave it out instead')
    return self._string(field, value)

  def _answers(self, target: str | None, required: bool) -> tuple[str, ...]:
    hidden = ''
    for field in _ANSWER_FIELDS:
      value = self._row.get(field)
      listed = answer_texts.listed(value) if isinstance(value, str) else None
      if listed is not None:
        found = [self._string(field, answer) for answer in listed]
      elif field == 'answer' and isinstance(value, str):
        found = [self._string(field, value)]
      else:
        items = self._items(field, 'strings', '; write ["..."]')
        found = [self._string(*item) for item in items]
      if answers := tuple(filter(answer_texts.is_answer, found)):
        return answers
      hidden = hidden or next((answer for answer in found if answer.strip()), '')
    if target is None and required:
      present = [field for field in (*_ANSWER_FIELDS, 'target') if field in self._row]
      problem = (
        f'field {present[0]!r} holds no answer'
        + (f': {hidden!r} marks a hidden one' if hidden else ' (blank ones do not count)')
        if present
        else f"missing field 'answers'; found {_names(self._row)}"
      )
      raise self._wrong(
        f'{problem}; add one, leave such questions out (--on_error skip, gin: ON_ERROR), or have '
        'them answered without scores (ralm infer, require_answers=False)'
      )
    return () if target is None else (target,)

  def _passage_ids(self, single: str) -> tuple[str, ...]:
    """The field `single` and its plural, a list."""
    one = self._field(single, self._id)
    many = self._items(f'{single}s', 'ids', f'; a single id goes into {single!r}')
    ids = [*([] if one is None else [one]), *(self._id(*item) for item in many)]
    return tuple(dict.fromkeys(ids))

  def _options(self, field: str, value: Any) -> tuple[str, ...]:
    """A list of texts, or an object from the letters A, B, ... to texts."""
    if isinstance(value, dict):
      letters = list(_LETTERS[: len(value)])
      if list(value) != letters:
        raise self._error(
          field, f'must have the keys {", ".join(letters)} in this order, found {", ".join(value)}'
        )
      value = list(value.values())
    if not isinstance(value, list) or not 2 <= len(value) <= len(_LETTERS):
      found = len(value) if isinstance(value, list) else json_records.kind(value)
      raise self._error(field, f'must be a list of 2 to 26 texts, found {found}')
    options = tuple(self._string(f'{field}[{i}]', option) for i, option in enumerate(value))
    for i, option in enumerate(options):
      if not option.strip():
        raise self._error(f'{field}[{i}]', 'is blank; write the option')
    return options

  def _passage(self, field: str, value: Any) -> FilePassage:
    if not isinstance(value, dict):
      raise self._error(
        field, f'must be an object with title and text, found {json_records.kind(value)}'
      )
    if value.get('text') is None:
      raise self._error(f'{field}.text', f'is missing; found {_names(value)}')
    title, section = (
      '' if value.get(name) is None else self._string(f'{field}.{name}', value[name]).strip()
      for name in ('title', 'section')
    )
    return FilePassage(
      id='' if value.get('id') is None else self._id(f'{field}.id', value['id']),
      title=f'{title}: {section}' if section else title,
      text=self._string(f'{field}.text', value['text']),
    )

  def _provenance(self) -> tuple[tuple[str, ...], ...]:
    sets = []
    for field, pages in self._items('provenance', 'lists of page ids'):
      if not isinstance(pages, list):
        raise self._error(
          'provenance', 'must be a list of lists of page ids, found a list of other things'
        )
      sets.append(
        tuple(dict.fromkeys(self._id(f'{field}[{j}]', page) for j, page in enumerate(pages)))
      )
    return tuple(dict.fromkeys(pages for pages in sets if pages))

  def _metadata(self, field: str, value: Any) -> Mapping[str, Any]:
    try:
      json.dumps(value, ensure_ascii=False).encode('utf-8')
    except UnicodeEncodeError as error:
      raise self._error(field, 'holds half a surrogate pair; write the character itself') from error
    return value if isinstance(value, dict) else {'metadata': value}

  def _metrics(self, field: str, value: Any) -> str:
    family = self._string(field, value)
    if family and family not in METRICS_FAMILIES:
      raise self._error(
        field, f'is {family!r:.40}; choose one of {", ".join(METRICS_FAMILIES)}, or leave it out'
      )
    return family

  def _date(self, field: str, value: Any) -> str:
    text = self._id(field, value)
    try:
      dates.first_day(text)
    except ValueError as error:
      raise self._wrong(f"field 'date': {error}, or leave it out") from error
    return text


def _names(row: dict[str, Any]) -> str:
  return ', '.join(map(repr, list(row)[:8])) or 'no field'
