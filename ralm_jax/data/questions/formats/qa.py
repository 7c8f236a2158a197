"""Open-domain question answering as published.

  nq_open        NQ-open (Lee et al. 2019): {question, answer: [...]} a line
  triviaqa       TriviaQA's own files, filtered or unfiltered: the answer's
                 `Value` is the target (in title case where it is written in
                 capitals, as Atlas trains), its `Aliases` are the answers
  web_questions  WebQuestions (Berant et al. 2013): the authors' {utterance,
                 targetValue} or the array of {qId, qText, answers}
  curated_trec   CuratedTREC (Baudis and Sedivy 2015): the answers are regular
                 expressions. A text that matches is the target

Each is read as well in the forms in which DPR (tables of question and list),
FiD (`target`, and `ctxs`, the passages) and FlashRAG (`golden_answers`) have
copied them. DPR's training files name gold passages (`positive_ctxs`).
"""

from collections.abc import Iterator
import re
from typing import Any

from ralm_jax.data.questions import answer_patterns
from ralm_jax.data.questions.formats import records
from ralm_jax.data.questions.formats.records import Fields, OnError, Record, RecordFormat
from ralm_jax.files import byte_streams
from ralm_jax.files.json_records import JsonReader

_ANSWERS = ('answer', 'answers', 'golden_answers')
# What a file of TriviaQA's own may begin with, even if it has no questions.
_TRIVIAQA_KEYS = ('Data', 'Domain', 'Split', 'VerifiedEval', 'Version')
_DESCRIPTION = r'\(description (?:"(?:[^"\\]|\\.)*"|[^()"]*)\)'
_TARGET_VALUE = re.compile(rf'\(list(?:\s*{_DESCRIPTION})*\s*\)')


def _dataset(path: str, on_error: OnError = None) -> Iterator[Record]:
  if _is_one_object(path):
    return records.array_in_object(path, 'Data', on_error)
  return records.array_lines_or_table(path, on_error)


def _is_one_object(path: str) -> bool:
  """Whether the first object of a file is TriviaQA's, around all questions."""
  try:
    with byte_streams.open_bytes(path) as file:
      reader = JsonReader(file, path)
      for place, key in enumerate(reader.members()):
        if (place == 0 and key in _TRIVIAQA_KEYS) or (key == 'Data' and reader.peek() == '['):
          return True
        reader.skip()
  except ValueError:
    pass  # No object, or damaged, which whoever reads on reports.
  return False


def _question(fields: Fields) -> dict[str, Any]:
  row = {
    'question': fields.text('question'),
    **fields.id('id'),
    **fields.rest('target'),
    **_passages(fields),
  }
  answers = fields.answers(*_ANSWERS)
  return row if answers is None else {**row, 'answers': answers}


def _passages(fields: Fields) -> dict[str, Any]:
  """Passages that FiD's files bring, and gold ones that DPR's name."""
  row: dict[str, Any] = {}
  passages = fields.objects('ctxs')
  if passages is not None:
    row['passages'] = [one.rest('id', 'title', 'text') for one in passages]
  gold = fields.objects('positive_ctxs') or []
  names = [one.first('passage_id', 'psg_id') for one in gold]
  ids = [one.get(name) for one, name in zip(gold, names) if name is not None]
  return {**row, 'gold_passage_ids': ids} if ids else row


def _triviaqa(fields: Fields) -> dict[str, Any]:
  if fields.get('Question') is not None:
    return _answered(fields, 'Question', 'Answer', 'Value', 'Aliases', 'QuestionId')
  # Hugging Face's copy has the same fields in small letters.
  if isinstance(fields.get('answer'), dict):
    return _answered(fields, 'question', 'answer', 'value', 'aliases', 'question_id')
  return _question(fields)


def _answered(
  fields: Fields, question: str, answer: str, value: str, aliases: str, key: str
) -> dict[str, Any]:
  """A row of TriviaQA, whose fields have these names."""
  row = {'question': fields.text(question), **fields.id(key)}
  if fields.get(answer) is None and not fields.require_answers:
    return row  # The blind test set.
  inside = fields.object(answer)
  target = inside.text(value)
  # The answer as it stands is right too, should the aliases not have it.
  answers = dict.fromkeys([*(inside.texts(aliases) or []), target])
  return {**row, 'answers': list(answers), 'target': target.title() if target.isupper() else target}


def _web_questions(fields: Fields) -> dict[str, Any]:
  if fields.first('qText', 'utterance') is None:
    return _question(fields)
  row = {'question': fields.text('qText', 'utterance'), **fields.id('qId', 'id')}
  if fields.get('targetValue') is None:
    answers = fields.answers('answers', 'targetValue')
    return row if answers is None else {**row, 'answers': answers}
  value = fields.text('targetValue')
  if not _TARGET_VALUE.fullmatch(value.strip()):
    raise fields.error(
      'targetValue', f'must be like (list (description a) (description "b c")), found {value!r:.60}'
    )
  return {**row, 'answers': [_described(one) for one in re.findall(_DESCRIPTION, value)]}


def _described(description: str) -> str:
  text = description.removeprefix('(description ').removesuffix(')')
  if not text.startswith('"'):
    return text
  return re.sub(r'\\(.)', r'\1', text[1:-1])


def _curated_trec(fields: Fields) -> dict[str, Any]:
  row = {
    'question': fields.text('question', 'qText'),
    **fields.id('id', 'qId'),
    **_passages(fields),
  }
  name = fields.first(*_ANSWERS)
  answers = fields.answers(*_ANSWERS)
  if name is None or answers is None:
    return row
  for answer in answers:
    try:
      answer_patterns.compiled(answer)
    except ValueError as error:
      raise fields.error(name, f'must hold patterns, but {error}') from error
  target = fields.get('target') or answer_patterns.example(answers)
  return {
    **row,
    'answers': answers,
    'patterns': True,
    **({} if target is None else {'target': target}),
  }


_layout = records.array_lines_or_table
FORMATS = (
  RecordFormat('nq_open', 'one question and its answers a line', _question, _layout),
  RecordFormat(
    'triviaqa', "an object whose 'Data' are questions, or one question a line", _triviaqa, _dataset
  ),
  RecordFormat(
    'web_questions', 'an array of questions, or one question a line', _web_questions, _layout
  ),
  RecordFormat(
    'curated_trec', 'one question and the patterns of its answers a line', _curated_trec, _layout
  ),
)
