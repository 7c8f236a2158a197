"""KILT's eleven sets (Petroni et al. 2021) as their authors publish them.

One object a line: `id`, `input`, and `output`, a list of `answer`, of
`provenance` (Wikipedia pages that hold the evidence), or of both:

kilt_fever                       claims; SUPPORTS is answered 'true', REFUTES 'false' (Atlas)
kilt_aida, kilt_wned, kilt_cweb  a text with [START_ENT] mention [END_ENT]; the answer is the title
                                 of its page. Of a long text the 40 words around the mention are
                                 the question (`MENTION_WORDS`)
kilt_trex, kilt_zsre             'subject [SEP] relation', or a question of it
kilt_nq, kilt_hotpotqa           questions
kilt_triviaqa                    questions, which the files leave out (`triviaqa_questions`)
kilt_eli5                        questions with long answers
kilt_wow                         turns of a dialogue; the answer is the next. Of a longer one the
                                 last 36 words are the question (`DIALOGUE_WORDS`)

Answers are those of all outputs, each once, without spaces around them. The
hidden test sets have no `output`; read them with `require_answers=False`.

A query that is too long loses its end, which is the very turn of a dialogue that is to be answered,
and often the mention of an article. Both numbers are about what TextConfig's default of 64 tokens
holds; a larger `query_length` or `reader_query_length` shows no more of these four sets.
"""

from collections.abc import Mapping, Sequence
import functools
import re
from typing import Any

from ralm_jax.data.questions.formats import records
from ralm_jax.data.questions.formats.records import Fields, RecordFormat
from ralm_jax.files import json_records

_LABELS = {'SUPPORTS': 'true', 'REFUTES': 'false'}
_ENTITY_LINKING = ('kilt_aida', 'kilt_wned', 'kilt_cweb')
_START, _END = '[START_ENT]', '[END_ENT]'
_WORD = re.compile(r'\S+')

# About 64 tokens of English prose with the default formats. A few too many cut
# nothing but the end of what follows the mention, which is in the middle.
MENTION_WORDS = 40
# Fewer, since a few too many would cut the end of the last turn.
DIALOGUE_WORDS = 36

# What a file of each format holds, for errors.
EXPECTED = {
  'kilt_fever': 'one claim of KILT a line, {id, input, output}',
  **dict.fromkeys(_ENTITY_LINKING, f'one text of KILT with {_START} a line, {{id, input, output}}'),
  **dict.fromkeys(
    ('kilt_trex', 'kilt_zsre'), "one 'subject [SEP] relation' of KILT a line, {id, input, output}"
  ),
  **dict.fromkeys(
    ('kilt_nq', 'kilt_hotpotqa', 'kilt_triviaqa', 'kilt_eli5'),
    'one question of KILT a line, {id, input, output}',
  ),
  'kilt_wow': 'one dialogue of KILT a line, {id, input, output}',
}


def with_questions(record_format: str, questions: Mapping[str, str]) -> RecordFormat:
  """A format of KILT that takes blank questions from elsewhere (`triviaqa_questions`).

  Records have `question`, `answers`, and `provenance`: the pages of each output
  that has any. An output whose provenance is an empty list names no evidence;
  the official scorer counts it as evidence that is never found.
  """
  convert = functools.partial(_row, record_format=record_format, questions=questions)
  return RecordFormat(record_format, EXPECTED[record_format], convert, metrics='kilt')


def published_answer(answer: str, record_format: str) -> str:
  """An answer as KILT's files write it: FEVER's labels for true and false."""
  if record_format != 'kilt_fever':
    return answer
  return {ours: theirs for theirs, ours in _LABELS.items()}.get(answer, answer)


def triviaqa_questions(paths: Sequence[str]) -> dict[str, str]:
  """The questions that KILT's files of TriviaQA leave out, by QuestionId.

  They are in `wikipedia-train.json`, `wikipedia-dev.json` and
  `wikipedia-test-without-answers.json` of triviaqa-rc.tar.gz.
  """
  result = {}
  for path in paths:
    for record in records.array_in_object(path, 'Data'):
      fields = Fields(record, require_answers=False)
      result[fields.text('QuestionId')] = fields.text('Question')
  return result


def around_mention(text: str, max_words: int) -> str:
  """The words around the mention of an entity linking text.

  Of `max_words`, the two marks included, the mention is in the middle as far as the text allows,
  and is kept whole in any case. A text that is no longer, or has no mention, stays as it is.
  """
  words = [match.span() for match in _WORD.finditer(text)]
  start = text.find(_START)
  end = text.find(_END, start)
  if len(words) <= max_words or start < 0 or end < 0:
    return text
  first = next(i for i, (_, stop) in enumerate(words) if stop > start)
  last = next(i for i, (_, stop) in enumerate(words) if stop > end)
  spare = max(max_words - (last - first + 1), 0)
  left = min(max(first - spare // 2, 0), max(len(words) - max_words, 0))
  left = min(left, first)
  right = max(min(left + max_words, len(words)) - 1, last)
  return text[words[left][0] : words[right][1]]


def last_words(text: str, max_words: int) -> str:
  """The end of a text: its last words, with what is between them."""
  words = [match.start() for match in _WORD.finditer(text)]
  return text if len(words) <= max_words else text[words[-max_words] :]


def _row(fields: Fields, record_format: str, questions: Mapping[str, str]) -> dict[str, Any]:
  row = {'question': _input(fields, record_format, questions), **fields.id('id')}
  outputs = fields.objects('output')
  if outputs is None:
    if fields.require_answers:
      raise fields.missing('output')
    return row  # A hidden test set.
  answers = [answer for output in outputs if (answer := _answer(output))]
  if fields.require_answers and not answers:
    raise fields.error('output', 'holds no answer')
  if record_format == 'kilt_fever':
    for label in answers:
      if label.upper() not in _LABELS:
        raise fields.error(
          'output', f'has the answer {label!r:.40}; expected {" or ".join(_LABELS)}'
        )
    answers = [_LABELS[label.upper()] for label in answers]
  provenance = [pages for output in outputs if (pages := _pages(output))]
  return {
    **row,
    'answers': list(dict.fromkeys(answers)),
    **({'provenance': provenance} if provenance else {}),
  }


def _input(fields: Fields, record_format: str, questions: Mapping[str, str]) -> str:
  text = fields.get('input')
  if text is None or text == '':
    known = questions.get(str(fields.get('id')))
    if known is not None:
      return known
    if record_format == 'kilt_triviaqa':
      raise fields.error(
        'input',
        'is missing or blank: KILT publishes TriviaQA without its '
        'questions; join those of triviaqa-rc.tar.gz by their QuestionId',
      )
  text = fields.text('input')
  if record_format in _ENTITY_LINKING and not (0 <= text.find(_START) < text.find(_END)):
    raise fields.error('input', f'has no mention between {_START} and {_END}')
  if record_format in _ENTITY_LINKING:
    return around_mention(text, MENTION_WORDS)
  if record_format == 'kilt_wow':
    return last_words(text, DIALOGUE_WORDS)
  return text


def _answer(output: Fields) -> str:
  answer = output.get('answer')
  if answer is None:
    return ''
  if not isinstance(answer, str):
    raise output.error('answer', f'must be a string, found {json_records.kind(answer)}')
  return answer.strip()


def _pages(output: Fields) -> list[str]:
  """The pages of one output, each once; evidence that names no page is none."""
  pages = []
  for evidence in output.objects('provenance') or []:
    page = evidence.get('wikipedia_id')
    if page is None:
      continue
    if isinstance(page, bool) or not isinstance(page, (str, int)):
      raise evidence.error(
        'wikipedia_id', f'must be a string or an integer, found {json_records.kind(page)}'
      )
    if page := str(page).strip():
      pages.append(page)
  return list(dict.fromkeys(pages))


FORMATS = tuple(with_questions(name, {}) for name in EXPECTED)
