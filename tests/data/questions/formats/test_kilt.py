"""KILT's layout: answers, evidence, hidden tests, and what is malformed."""

import gzip
import json

import pytest

from ralm_jax.data.questions.formats import catalogue, kilt
from ralm_jax.data.text import vocabularies
from ralm_jax.data.text.tokenization import QueryTokenizer
from ralm_jax.data.text_config import TextConfig


def _write(path, rows):
  path.write_text(
    ''.join((row if isinstance(row, str) else json.dumps(row)) + '\n' for row in rows)
  )
  return str(path)


def _rows(path, record_format, questions=(), **options):
  found = kilt.with_questions(record_format, dict(questions))
  return [r.row for r in found.records(path, **options)]


def _evidence(*pages):
  return [{'wikipedia_id': page, 'title': f't{page}'} for page in pages]


# A record of each set, with the answers and the evidence it must give.
_RECORDS = {
  'kilt_fever': (
    'Paris is in Spain.',
    [
      {'answer': 'REFUTES', 'provenance': _evidence('22989')},
      {'answer': 'REFUTES', 'provenance': _evidence('22989', '26667')},
    ],
    ['false'],
    [['22989'], ['22989', '26667']],
  ),
  'kilt_aida': (
    'the [START_ENT] Leicestershire [END_ENT] side won',
    [{'answer': 'Leicestershire County Cricket Club', 'provenance': _evidence('1622318')}],
    ['Leicestershire County Cricket Club'],
    [['1622318']],
  ),
  'kilt_wned': (
    'in [START_ENT] Rome [END_ENT]',
    [{'answer': 'Rome', 'provenance': _evidence('25458')}],
    ['Rome'],
    [['25458']],
  ),
  'kilt_cweb': (
    '[START_ENT] Rome [END_ENT] is old',
    [{'answer': 'Rome', 'provenance': _evidence('25458')}],
    ['Rome'],
    [['25458']],
  ),
  # T-REx names other forms of the answer without evidence.
  'kilt_trex': (
    'Effie Germon [SEP] place of birth',
    [{'answer': 'Augusta', 'provenance': _evidence('1')}, {'answer': 'Augusta, GA'}],
    ['Augusta', 'Augusta, GA'],
    [['1']],
  ),
  'kilt_zsre': (
    'Chen [SEP] manner of death',
    [{'answer': ' suicide ', 'provenance': _evidence(10287141)}, {'answer': 'suicide'}],
    ['suicide'],
    [['10287141']],
  ),
  'kilt_nq': (
    'who got it',
    [{'answer': 'B'}, {'answer': 'A', 'provenance': _evidence('2', '2')}],
    ['B', 'A'],
    [['2']],
  ),
  'kilt_hotpotqa': (
    'which of both',
    [{'answer': 'yes', 'provenance': _evidence('8', '7')}],
    ['yes'],
    [['8', '7']],
  ),
  'kilt_triviaqa': ('Which city?', [{'answer': 'Oslo', 'provenance': []}], ['Oslo'], None),
  # ELI5 gives its evidence beside the answers.
  'kilt_eli5': (
    'why?',
    [{'answer': 'Because.\nIt is.'}, {'answer': ''}, {'provenance': _evidence('3')}],
    ['Because.\nIt is.'],
    [['3']],
  ),
  'kilt_wow': (
    'I like tea.\nMe too!\nWhy?',
    [{'answer': 'It is warm.', 'provenance': _evidence('4')}],
    ['It is warm.'],
    [['4']],
  ),
}


def test_every_set_is_known():
  assert set(_RECORDS) == set(kilt.EXPECTED)


@pytest.mark.parametrize('record_format', _RECORDS)
def test_a_record_of_each_set(record_format, tmp_path):
  text, output, answers, provenance = _RECORDS[record_format]
  path = _write(
    tmp_path / 'x.jsonl', [{'id': 'a', 'input': text, 'output': output, 'meta': {'x': 1}}]
  )
  expected = {'question': text, 'id': 'a', 'answers': answers}
  if provenance:
    expected['provenance'] = provenance
  assert _rows(path, record_format) == [expected]


def test_published_rows(shared_data):
  path = shared_data / 'kilt' / 'zsre_gold1.jsonl'
  rows = _rows(str(path), 'kilt_zsre')
  published = [json.loads(line) for line in path.read_text().splitlines()]
  assert [r['question'] for r in rows] == [p['input'] for p in published]
  assert [r['answers'] for r in rows] == [['suicide'], ['suicide'], ['it was suicide']]
  assert {tuple(r['provenance'][0]) for r in rows} == {('10287141',)}


@pytest.mark.parametrize('hidden', [{}, {'output': None}, {'output': []}])
def test_hidden_tests_have_no_answers(hidden, tmp_path):
  path = tmp_path / 'x.jsonl.gz'
  path.write_bytes(gzip.compress(json.dumps({'id': 7, 'input': 'a claim', **hidden}).encode()))
  for record_format in ('kilt_fever', 'kilt_nq'):
    (row,) = _rows(str(path), record_format, require_answers=False)
    assert row['question'] == 'a claim' and not row.get('answers')
    with pytest.raises(ValueError, match=r'x\.jsonl\.gz:1: .*output'):
      _rows(str(path), record_format)


def test_labels_go_there_and_back():
  for label, ours in (('SUPPORTS', 'true'), ('REFUTES', 'false')):
    assert kilt.published_answer(ours, 'kilt_fever') == label
    assert kilt.published_answer(ours, 'kilt_nq') == ours
  assert kilt.published_answer('maybe', 'kilt_fever') == 'maybe'


_GOOD = {'id': 1, 'input': 'x', 'output': [{'answer': 'SUPPORTS'}]}


@pytest.mark.parametrize(
  'bad, message',
  [
    ({**_GOOD, 'output': [{'answer': 'NOT ENOUGH INFO'}]}, "'NOT ENOUGH INFO'"),
    ({**_GOOD, 'output': {'answer': 'SUPPORTS'}}, "'output' must be a list"),
    ({**_GOOD, 'output': [{'answer': 3}]}, "'answer' must be a string"),
    (
      {**_GOOD, 'output': [{'answer': 'SUPPORTS', 'provenance': 'x'}]},
      "'provenance' must be a list",
    ),
    (
      {**_GOOD, 'output': [{'answer': 'SUPPORTS', 'provenance': [{'wikipedia_id': [1]}]}]},
      "'wikipedia_id' must be a string or an integer",
    ),
    ({**_GOOD, 'output': [{'provenance': _evidence('1')}]}, 'holds no answer'),
    ({'id': 1, 'output': []}, "missing field 'input'"),
    ({**_GOOD, 'input': ' '}, "'input' must be a text"),
    ('{"id": 1', 'malformed JSON'),
  ],
)
def test_malformed_records_are_named_or_skipped(bad, message, tmp_path):
  path = _write(tmp_path / 'x.jsonl', [_GOOD, bad, {**_GOOD, 'id': 2}])
  with pytest.raises(ValueError, match=message) as caught:
    _rows(path, 'kilt_fever')
  assert str(caught.value).startswith(f'{path}:2: ')
  errors = []
  rows = _rows(path, 'kilt_fever', on_error=errors.append)
  assert [row['id'] for row in rows] == [1, 2]
  assert [str(error) for error in errors] == [str(caught.value)]


def test_a_text_without_a_mention_is_malformed(tmp_path):
  path = _write(
    tmp_path / 'x.jsonl',
    [{'id': 1, 'input': 'Rome [END_ENT] [START_ENT]', 'output': [{'answer': 'Rome'}]}],
  )
  with pytest.raises(ValueError, match=r'x\.jsonl:1: .*no mention'):
    _rows(path, 'kilt_aida')


def test_triviaqa_gets_its_questions(tmp_path):
  path = _write(tmp_path / 'x.jsonl', [{'id': 'tc_3', 'input': '', 'output': [{'answer': 'York'}]}])
  with pytest.raises(ValueError, match='triviaqa-rc.tar.gz'):
    _rows(path, 'kilt_triviaqa')
  original = tmp_path / 'wikipedia-dev.json'
  original.write_text(
    json.dumps(
      {
        'Version': 1,
        'Data': [{'QuestionId': 'tc_3', 'Question': 'Where was Dench born?', 'Answer': {}}],
      }
    )
  )
  questions = kilt.triviaqa_questions([str(original)])
  (row,) = _rows(path, 'kilt_triviaqa', questions=questions)
  assert row['question'] == 'Where was Dench born?'


@pytest.mark.parametrize('record_format', ['kilt_aida', 'kilt_wned', 'kilt_cweb'])
@pytest.mark.parametrize('place', [0, 300, 599])
def test_long_articles_keep_the_mention(record_format, place, tmp_path):
  words = [f'w{i}' for i in range(600)]
  words[place] = f'[START_ENT] {words[place]} [END_ENT]'
  path = _write(
    tmp_path / 'x.jsonl', [{'id': 1, 'input': ' '.join(words), 'output': [{'answer': 'Rome'}]}]
  )
  (row,) = _rows(path, record_format)
  assert f'[START_ENT] w{place} [END_ENT]' in row['question']
  assert len(row['question'].split()) == 40
  assert row['question'] in ' '.join(words)


def test_long_dialogues_keep_the_last_turn(tmp_path):
  turns = '\n'.join(f'This is turn {i} of it.' for i in range(50))
  path = _write(tmp_path / 'x.jsonl', [{'id': 1, 'input': turns, 'output': [{'answer': 'No.'}]}])
  (row,) = _rows(path, 'kilt_wow')
  assert row['question'] == '\n'.join(f'This is turn {i} of it.' for i in range(44, 50))
  # Other sets keep all that there is.
  (row,) = _rows(path, 'kilt_eli5')
  assert row['question'] == turns


def test_what_is_kept_fits_a_query(shared_data, tmp_path):
  """In the official vocabularies: the mention, and the end of a dialogue."""
  folder = shared_data / 'tokenizers'
  tokenizer = QueryTokenizer(
    TextConfig(),
    *map(
      vocabularies.load_vocabulary,
      (next(folder.glob('**/spiece.model')), next(folder.glob('**/vocab.txt'))),
    ),
  )
  prose = (
    'I have never been there myself, but my brother went last year and '
    'he says that the food is great. ' * 30
  ).split()
  for record_format, text, end in (
    ('kilt_wow', ' '.join([*prose, 'Did', 'he', 'see', 'Rome?']), 'see Rome?'),
    (
      'kilt_aida',
      ' '.join([*prose, '[START_ENT]', 'Rome', '[END_ENT]', *prose]),
      '[START_ENT] Rome [END_ENT]',
    ),
  ):
    path = _write(tmp_path / 'x.jsonl', [{'id': 1, 'input': text, 'output': [{'answer': 'Rome'}]}])
    (row,) = _rows(path, record_format)
    ids = tokenizer.reader_question(row['question'])
    assert len(ids) <= 64 and ids[-1] == 32099
    assert end in tokenizer.answer(ids)
    query = tokenizer.retriever_query(tokenizer.text.query(row['question']))
    shown = tokenizer.retriever_vocabulary.decode(query)
    assert len(query) <= 64
    assert end.lower().replace(' ', '').replace('_', '') in (
      shown.replace(' ', '').replace('_', '')
    )


def test_unknown_format():
  with pytest.raises(ValueError, match='kilt_squad.*kilt_fever'):
    catalogue.find('kilt_squad')


@pytest.mark.parametrize('before, after', [(0, 40), (40, 0), (20, 20), (3, 37)])
@pytest.mark.parametrize('max_words', [2, 5, 20])
def test_the_mention_is_not_cut_off(before, after, max_words):
  words = (
    [f'b{i}' for i in range(before)]
    + ['[START_ENT]', 'New', 'York', '[END_ENT]']
    + [f'a{i}' for i in range(after)]
  )
  text = '  '.join(words)
  part = kilt.around_mention(text, max_words)
  assert part in text and '[START_ENT]  New  York  [END_ENT]' in part
  assert len(part.split()) == max(max_words, 4)
  if 0 < before and after and max_words == 20 and before == after:
    assert abs(part.split().index('New') - 9) <= 1
  assert kilt.around_mention(text, len(words)) == text
  assert kilt.around_mention('no mention at all', 2) == 'no mention at all'
