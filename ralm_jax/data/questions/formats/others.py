"""Question files in the layouts and with the field names of others, as rows of our own layout.

Read are one JSON object a line or an array of them (FiD), tables with a header (PopQA) and SQuAD's
own files, versions 1 and 2, whose paragraphs are passages. Their questions without an answer are
left out where answers are required. Names are those of Hugging Face's copies of NQ-open, TriviaQA,
SQuAD, HotpotQA and WebQuestions, of BEIR, FiD and PopQA.
"""

from collections.abc import Iterator
from typing import Any

from ralm_jax.data.questions.formats import records
from ralm_jax.data.questions.formats.records import Fields, OnError, Record
from ralm_jax.files import byte_streams
from ralm_jax.files.json_records import JsonReader

_NAMES = {
  'question': ('query', 'question_text'),
  'id': ('_id', 'question_id', 'query_id', 'qid'),
  'answers': ('possible_answers',),
  'passages': ('ctxs',),
}
# What a file of SQuAD's begins with.
_SQUAD_KEYS = ('data', 'version')


def row(fields: Fields) -> dict[str, Any] | None:
  """The row of a record; None for a question of SQuAD 2 that has no answer."""
  result = fields.row()
  for name, others in _NAMES.items():
    other = fields.first(*others)
    if result.get(name) is None and other is not None:
      result[name] = result[other]
  if result.get('question') is None and '_id' in result and 'text' in result:
    result['question'] = result['text']  # BEIR's queries.jsonl.
  for name in ('answers', 'answer', 'possible_answers'):
    if result.get(name) is not None:
      _unpack(result, name)
  if result.pop('is_impossible', None) is True and fields.require_answers:
    return None
  return result


def _unpack(result: dict[str, Any], name: str) -> None:
  """Answers that are objects of texts, or a list written as text."""
  value = result[name]
  if isinstance(value, dict) and 'text' in value:
    texts = value['text']
    result[name] = list(dict.fromkeys(texts)) if _are_texts(texts) else texts
  elif isinstance(value, dict) and 'value' in value:
    aliases = value.get('aliases') or []
    if _are_texts(aliases) and isinstance(value['value'], str):
      result[name] = list(dict.fromkeys([*aliases, value['value']]))
      result.setdefault('target', value['value'])
  elif isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
    texts = [one.get('text') for one in value]
    result[name] = list(dict.fromkeys(texts)) if _are_texts(texts) else texts
  elif isinstance(value, str) and name == 'answers' and 'possible_answers' in result:
    result[name] = records.listed(value)


def _are_texts(values: Any) -> bool:
  return isinstance(values, list) and all(isinstance(one, str) for one in values)


def layout(path: str, on_error: OnError = None) -> Iterator[Record]:
  """Finds the records of a file, whichever of the layouts it has."""
  if _is_squad(path):
    yield from _squad(path, on_error)
  else:
    yield from records.array_lines_or_table(path, on_error)


def _is_squad(path: str) -> bool:
  try:
    with byte_streams.open_bytes(path) as file:
      reader = JsonReader(file, path)
      if reader.peek() != '{':
        return False
      for key in reader.members():
        if key == 'data':
          return reader.peek() == '['
        if key not in _SQUAD_KEYS:
          return False
        reader.skip()
  except ValueError:
    pass  # Damaged, which whoever reads on reports.
  return False


def _squad(path: str, on_error: OnError) -> Iterator[Record]:
  number = 0
  for article in records.array_in_object(path, 'data', on_error):
    fields = Fields(article, require_answers=False)
    for paragraph in fields.objects('paragraphs') or []:
      passage = {'title': fields.get('title') or '', 'text': paragraph.get('context') or ''}
      for question in paragraph.objects('qas') or []:
        number += 1
        where = f'{article.where}: question {number}'
        yield Record(number, where, {**question.row(), 'passages': [passage]})
