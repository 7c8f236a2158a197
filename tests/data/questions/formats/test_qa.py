"""Question answering sets as published, and as others have copied them."""

import gzip
import json
import re

import pytest

from ralm_jax.data.questions import answer_patterns, reading
from ralm_jax.data.questions.reading import FilePassage
from ralm_jax.files import json_records


def read(path, record_format, **options):
  return reading.read_questions(path, record_format=record_format, **options)


def write_lines(path, *rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows), 'utf-8')
  return path


def trivia(number, **answer):
  return {
    'Answer': {
      'Aliases': ['Sun Road', 'The Sun Road'],
      'Type': 'FreeForm',
      'NormalizedAliases': ['sun road'],
      'NormalizedValue': 'sun road',
      'Value': 'Sun Road',
      **answer,
    },
    'EntityPages': [{'Filename': 'Sun.txt', 'Title': 'Sun'}],
    'Question': f'Which road {number}?',
    'QuestionId': f'tc_{number}',
    'SearchResults': [{'Description': '}],[{"Data": "\\"', 'Rank': 0}],
  }


def test_nq_open_as_published(tmp_path):
  path = write_lines(
    tmp_path / 'NQ-open.dev.jsonl',
    {'question': 'when was the file made', 'answer': ['14 December', 'in 1972']},
    {'question': 'who made it', 'answer': ['[somebody]']},
  )
  found = read(path, 'nq_open')
  assert [(q.id, q.question, q.answers, q.target, q.line) for q in found] == [
    ('NQ-open.dev.jsonl:1', 'when was the file made', ('14 December', 'in 1972'), None, 1),
    ('NQ-open.dev.jsonl:2', 'who made it', ('[somebody]',), None, 2),
  ]


def test_copies_of_flashrag(shared_data):
  path = shared_data / 'psgs_w100/nq_test_sample.jsonl'
  with open(path, encoding='utf-8') as file:
    rows = [json.loads(line) for line in file]
  for record_format in ('nq_open', 'triviaqa', 'web_questions'):
    assert [(q.id, q.question, q.answers) for q in read(path, record_format)] == [
      (row['id'], row['question'], tuple(row['golden_answers'])) for row in rows
    ]


def test_copies_of_fid_bring_passages(tmp_path):
  rows = [
    {
      'id': '7',
      'question': 'q',
      'target': 'A',
      'answers': ['a', 'A'],
      'ctxs': [{'id': '3', 'title': 'T', 'text': 'x', 'score': '81.2'}, {'title': '', 'text': 'y'}],
    }
  ]
  path = tmp_path / 'train.json'
  path.write_text(json.dumps(rows))
  for one in (path, write_lines(tmp_path / 'train.jsonl', *rows)):
    for record_format in ('nq_open', 'triviaqa'):
      [question] = read(one, record_format)
      assert (question.id, question.target, question.answers) == ('7', 'A', ('a', 'A'))
      assert question.passages == (FilePassage('3', 'T', 'x'), FilePassage('', '', 'y'))


def test_training_files_of_dpr_name_gold_passages(tmp_path):
  path = tmp_path / 'biencoder-nq-train.json'
  path.write_text(
    json.dumps(
      [
        {
          'dataset': 'nq',
          'question': 'q',
          'answers': ['a'],
          'negative_ctxs': [],
          'positive_ctxs': [
            {'title': 'T', 'text': 'x', 'passage_id': '12'},
            {'title': 'T', 'text': 'y', 'psg_id': 9},
          ],
        }
      ]
    )
  )
  [question] = read(path, 'nq_open')
  assert question.gold_passage_ids == ('12', '9')
  assert question.passages == ()


@pytest.mark.parametrize('name', ['nq-test.qa.csv', 'trivia.tsv', 'some.txt'])
@pytest.mark.parametrize('record_format', ['nq_open', 'triviaqa', 'web_questions'])
def test_tables_of_dpr(tmp_path, name, record_format):
  path = tmp_path / name
  path.write_text(
    "who made it\t['somebody', \"it's me\"]\r\n"
    '"who said ""no"", twice"\t"[\'Béla\', ""d\'Or""]"\n'
    '"Hallo" is "what"\t["x"]\n',
    'utf-8',
  )
  assert [(q.question, q.answers, q.line) for q in read(path, record_format)] == [
    ('who made it', ('somebody', "it's me"), 1),
    ('who said "no", twice', ('Béla', "d'Or"), 2),
    ('"Hallo" is "what"', ('x',), 3),
  ]
  zipped = tmp_path / f'{name}.gz'
  zipped.write_bytes(gzip.compress(path.read_bytes()))
  assert [q.answers for q in read(zipped, record_format)] == [
    q.answers for q in read(path, record_format)
  ]


@pytest.mark.parametrize(
  'line, message',
  [
    ('question', 'expected 2 columns .* found 1'),
    ('a\tb\tc', 'found 3'),
    ('q\tx', "the second column must be a list such as .* found 'x'"),
    ("q\t('x',)", 'must be a list'),
    ("q\t__import__('os')", 'must be a list'),
    ('q\t[1]', "field 'answers' must be a list of strings, found a list of other"),
    (' \t["a"]', "field 'question' must be a text, found a blank one"),
    ('q\t[]', "field 'answers' holds no answer"),
  ],
)
def test_malformed_tables(tmp_path, line, message):
  path = tmp_path / 'q.tsv'
  path.write_text(f'q\t["a"]\n{line}\n')
  with pytest.raises(ValueError, match=rf'q\.tsv:2: .*{message}'):
    read(path, 'nq_open')
  assert len(read(path, 'nq_open', on_error='skip')) == 1


@pytest.mark.parametrize('chunk', [1, 7, 100, 1 << 20])
@pytest.mark.parametrize('first', ['Data', 'Domain', 'other'])
def test_triviaqa_as_published(tmp_path, monkeypatch, chunk, first):
  """One object: the questions and, before or after them, what they are."""
  monkeypatch.setattr(json_records, '_CHUNK', chunk)
  rows = [
    trivia(1),
    trivia(2, Value='SUN ROAD', Aliases=['Sunroad']),
    trivia(3, Value='4', Aliases=[]),
    trivia(4, Value="McDonald's", Aliases=['Maccas']),
  ]
  whole = {
    'Domain': 'unfiltered-web',
    'VerifiedEval': False,
    'Version': 1.0,
    'other': {'Data': [3], 'x': [1]},
    'Data': rows,
  }
  path = tmp_path / 'unfiltered-web-dev.json'
  path.write_text(
    json.dumps(dict(sorted(whole.items(), key=lambda item: item[0] != first)), indent=4)
  )
  found = read(path, 'triviaqa')
  assert [(q.id, q.question, q.answers, q.target, q.line) for q in found] == [
    ('tc_1', 'Which road 1?', ('Sun Road', 'The Sun Road'), 'Sun Road', 1),
    # In capitals only what the reader learns to write.
    ('tc_2', 'Which road 2?', ('Sunroad', 'SUN ROAD'), 'Sun Road', 2),
    ('tc_3', 'Which road 3?', ('4',), '4', 3),
    # Title case would make it "Mcdonald'S".
    ('tc_4', 'Which road 4?', ('Maccas', "McDonald's"), "McDonald's", 4),
  ]


def test_triviaqa_in_small_letters(tmp_path):
  path = write_lines(
    tmp_path / 'rc.jsonl',
    {
      'question': 'q',
      'question_id': 'tc_9',
      'entity_pages': {},
      'answer': {'aliases': ['a', 'b'], 'value': 'AB', 'type': 'FreeForm'},
    },
  )
  [question] = read(path, 'triviaqa')
  assert (question.id, question.answers, question.target) == ('tc_9', ('a', 'b', 'AB'), 'Ab')


def test_triviaqa_without_answers(tmp_path):
  blind = trivia(5)
  del blind['Answer']
  path = tmp_path / 'test-without-answers.json'
  path.write_text(json.dumps({'Data': [blind], 'Version': 1.0}))
  [question] = read(path, 'triviaqa', require_answers=False)
  assert (question.id, question.answers, question.target) == ('tc_5', (), None)
  with pytest.raises(ValueError, match="record 1: missing field 'Answer'"):
    read(path, 'triviaqa')


@pytest.mark.parametrize(
  'content, message',
  [
    (
      {'Data': [trivia(1), {**trivia(2), 'Answer': 'x'}]},
      "record 2: field 'Answer' must be an object, found a string",
    ),
    ({'Data': [trivia(1), trivia(2, Value=None)]}, "record 2: in 'Answer': missing field 'Value'"),
    (
      {'Data': [trivia(1), trivia(2, Aliases={})]},
      "record 2: in 'Answer': field 'Aliases' must be a list",
    ),
    ({'Data': [trivia(1), []]}, 'record 2: expected an object, found a list'),
    ({'Domain': 'Web', 'Version': 1}, "missing field 'Data' of the one object"),
    ({'Domain': 'Web', 'Data': 3}, 'malformed JSON: expected an array'),
    (
      '{"Data": [{"Question": "q", "Answer": {"Value": "a"}}], "Data": []}',
      "field 'Data' is there twice",
    ),
  ],
)
def test_malformed_triviaqa(tmp_path, content, message):
  path = tmp_path / 'web-dev.json'
  path.write_text(content if isinstance(content, str) else json.dumps(content))
  with pytest.raises(ValueError, match=re.escape(message)) as caught:
    read(path, 'triviaqa')
  assert str(caught.value).startswith(str(path))
  if 'record 2' in message:
    assert [q.id for q in read(path, 'triviaqa', on_error='skip')] == ['tc_1']


def test_real_web_questions(shared_data):
  """The array, and the authors' own layout made of it."""
  folder = shared_data / 'webquestions'
  counts = {'trainmodel': 2834, 'devtest': 189, 'val': 755, 'test': 2032}
  for name, count in counts.items():
    with open(folder / f'{name}.json', encoding='utf-8') as file:
      rows = json.load(file)
    found = read(folder / f'{name}.json', 'web_questions')
    assert len(found) == count
    assert [(q.id, q.question, q.answers) for q in found] == [
      (row['qId'], row['qText'], tuple(row['answers'])) for row in rows
    ]


def described(answer):
  if re.fullmatch(r'[\w.-]+', answer):
    return f'(description {answer})'
  escaped = answer.replace('\\', '\\\\').replace('"', '\\"')
  return f'(description "{escaped}")'


def test_web_questions_of_the_authors(shared_data, tmp_path):
  with open(shared_data / 'webquestions/test.json', encoding='utf-8') as file:
    rows = json.load(file)
  rows.append({'qText': 'q', 'answers': ['a "b" (c) \\ d', 'x)', '2012', 'é']})
  path = tmp_path / 'webquestions.examples.test.json'
  path.write_text(
    '['
    + ',\n'.join(
      json.dumps(
        {
          'url': 'http://x.y/z',
          'utterance': row['qText'],
          'targetValue': f'(list {" ".join(map(described, row["answers"]))})',
        }
      )
      for row in rows
    )
    + ']'
  )
  assert [(q.question, q.answers) for q in read(path, 'web_questions')] == [
    (row['qText'], tuple(row['answers'])) for row in rows
  ]


@pytest.mark.parametrize(
  'row, message',
  [
    ({'utterance': 'q', 'targetValue': '(list (description a'}, 'must be like'),
    ({'utterance': 'q', 'targetValue': '(name a)'}, 'must be like'),
    ({'utterance': 'q', 'targetValue': '(list)'}, 'holds no answer'),
    ({'utterance': 'q'}, "missing field 'answers'"),
    ({'qText': 'q', 'answers': [1]}, 'list of other things'),
    ({'question': ' ', 'answers': ['a']}, 'a blank one'),
    ({'query': 'q'}, "missing field 'question'; found 'query'"),
  ],
)
def test_malformed_web_questions(tmp_path, row, message):
  path = write_lines(tmp_path / 'q.jsonl', {'qText': 'q', 'answers': ['a']}, row)
  with pytest.raises(ValueError, match=message) as caught:
    read(path, 'web_questions')
  assert str(caught.value).startswith(f'{path}:2: ')


PATTERN = r'20\s?,?\s?(32|40)0\s?-?\s?f(ee|oo)t|6,194-meter'


@pytest.mark.parametrize('layout', ['lines', 'array', 'table', 'dpr'])
def test_curated_trec(tmp_path, layout):
  path = tmp_path / ('curated-test.tsv' if layout == 'table' else 'curated.txt')
  patterns = [PATTERN, '[EÉ]lys[ée]e']
  if layout == 'lines':
    write_lines(
      path, *({'question': f'q{i}', 'answer': [pattern]} for i, pattern in enumerate(patterns))
    )
  elif layout == 'array':
    path.write_text(
      json.dumps(
        [
          {'qId': f'c{i}', 'qText': f'q{i}', 'answers': [pattern]}
          for i, pattern in enumerate(patterns)
        ]
      )
    )
  elif layout == 'table':
    path.write_text(
      ''.join(f'{1669 + i}\tfactoid\tq{i}\t{pattern}\n' for i, pattern in enumerate(patterns)),
      'utf-8',
    )
  else:
    path.write_text(
      ''.join(f'q{i}\t{[pattern]!r}\n' for i, pattern in enumerate(patterns)), 'utf-8'
    )
  found = read(path, 'curated_trec')
  assert [(q.question, q.answers, q.target, q.patterns) for q in found] == [
    ('q0', (PATTERN,), '20 320 feet', True),
    ('q1', ('[EÉ]lys[ée]e',), 'Elysée', True),
  ]
  assert found[0].id == {'array': 'c0', 'table': '1669'}.get(layout, f'{path.name}:1')


def test_patterns_that_are_none(tmp_path):
  path = write_lines(
    tmp_path / 'c.jsonl',
    {'question': 'q', 'answer': ['fine']},
    {'question': 'q', 'answer': ['fine', '(a|b']},
  )
  with pytest.raises(
    ValueError, match=(r"c\.jsonl:2: field 'answer' must hold patterns, but '\(a\|b' is no regular")
  ):
    read(path, 'curated_trec')
  assert len(read(path, 'curated_trec', on_error='skip')) == 1


def test_patterns_without_answers(tmp_path):
  path = write_lines(tmp_path / 'c.jsonl', {'question': 'q'})
  [question] = read(path, 'curated_trec', require_answers=False)
  assert question.answers == () and question.target is None
  with pytest.raises(ValueError, match="missing field 'answer'"):
    read(path, 'curated_trec')


@pytest.mark.parametrize(
  'pattern, text, found',
  [
    ('20,?320', 'at 20320 feet', True),
    ('^six$', 'five\nSix\nseven', True),
    ('^six$', 'sixty', False),
    ('Qu[eé]bec', 'in Québec', True),
    ('Qu[eé]bec', 'in Que\u0301bec', True),
    ('Que\u0301bec', 'QUÉBEC', True),
    ('four|\\b4\\b', '14', False),
    ('a', '', False),
  ],
)
def test_patterns_are_searched(pattern, text, found):
  assert answer_patterns.matches(text, ['nothing here', pattern]) is found


@pytest.mark.parametrize(
  'pattern, text',
  [
    ("Tokyo('s)?", 'Tokyo'),
    (r'New\s?York', 'New York'),
    ('Aug.*1945', 'Aug 1945'),
    (r'\b2,?[4567][0-9][0-9]\b', '2400'),
    (r'(?:five|5)\b', 'five'),
    ('(a|b)c(d|e)', 'acd'),
    (r'\d{3}x', '000x'),
    ('((North|South).*){2}', 'North North'),
    (r'(?<!x)y', 'y'),
    ('x(?=y)', None),
    ('.*', None),
    ('x' * 5000, None),
  ],
)
def test_texts_made_of_patterns(pattern, text):
  """What a reader may learn to write; it always matches."""
  assert answer_patterns.example([pattern]) == text
  assert answer_patterns.example(['x(?=y)', pattern]) == text
