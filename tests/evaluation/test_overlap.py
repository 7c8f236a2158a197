"""What an evaluation set shares with training data and a corpus."""

import json
import random

import pytest

from ralm_jax.commands import leakage as command
from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.data.corpus.passages import Passage
from ralm_jax.data.questions.reading import Question
from ralm_jax.evaluation import leakage, overlap, word_spans
from ralm_jax.evaluation.overlap import CorpusMatch, CorpusScan, Settings
from ralm_jax.evaluation.scores import by_task
from ralm_jax.evaluation.task import QuestionOptions
from tests import tiny


def _question(number, text, answers=('x',), **fields):
  return Question(
    id=f'q{number}',
    question=text,
    answers=tuple(answers),
    gold_passage_ids=(),
    line=number,
    **fields,
  )


def _passage(identifier, text, title='T'):
  return Passage(identifier, title, '', text)


def test_questions_seen_in_training():
  evaluation = [
    _question(0, 'Who wrote the Hobbit?', ['J. R. R. Tolkien']),
    _question(1, 'who played mike stivic on all in the family', ['Rob Reiner']),
    _question(2, 'what is the capital of france', ['Paris']),
    _question(3, 'where is the eiffel tower', ['paris, ', 'the Paris']),
    _question(4, 'a new question', ['A new answer']),
  ]
  training = [
    _question(10, 'who wrote hobbit', ['tolkien']),
    _question(11, 'who played michael stivic on all in the family', ['him']),
    _question(12, 'what is the capital of germany', ['Berlin', 'Paris']),
  ]
  matches = overlap.training_matches(evaluation, training)
  assert [m.kind for m in matches] == ['exact', 'near', '', '', '']
  assert [m.id for m in matches] == ['q10', 'q11', '', '', '']
  assert matches[1].word_overlap == pytest.approx(8 / 10)
  assert [m.answer for m in matches] == [None, None, 'Paris', 'paris, ', None]
  assert [m.category for m in matches] == [
    'question_overlap',
    'question_overlap',
    'answer_overlap',
    'answer_overlap',
    'no_overlap',
  ]
  # The best of several is kept, whatever their order.
  for order in (training, training[::-1]):
    again = [_question(20, 'Who wrote the Hobbit book', ['x']), *order]
    found = overlap.training_matches(evaluation[:1], again, Settings(word_overlap=0.6))
    assert (found[0].kind, found[0].id) == ('exact', 'q10')


def test_near_copies_are_those_that_comparing_every_pair_finds():
  rng = random.Random(0)
  words = [f'w{i}' for i in range(12)]

  def made(count):
    return [_question(i, ' '.join(rng.choices(words, k=rng.randint(1, 10)))) for i in range(count)]

  evaluation, training = made(80), made(80)
  for threshold in (0.5, 0.8, 1.0):
    found = overlap.training_matches(evaluation, training, Settings(word_overlap=threshold))
    for question, match in zip(evaluation, found):
      one = set(word_spans.words_of(question.question))
      best = max(
        len(one & other) / len(one | other)
        for other in (set(word_spans.words_of(t.question)) for t in training)
      )
      assert match.word_overlap == (best if best >= threshold else 0.0)


def test_letters_stand_for_options_and_patterns_for_nothing():
  choice = _question(0, 'which', ['B'], options=('red', 'green'))
  assert by_task.answer_texts(choice) == ('green',)
  pattern = _question(1, 'when', ['19(45|46)'], patterns=True)
  assert by_task.answer_texts(pattern) == ()
  seen = overlap.training_matches([choice, pattern], [_question(2, 'other', ['B', '19(45|46)'])])
  assert [m.answer for m in seen] == [None, None]


def test_questions_in_the_corpus():
  questions = [
    _question(0, 'Which planet is closest to the sun?', ['Mercury']),
    _question(1, 'Which planet is farthest from the sun?', ['Neptune']),
    _question(2, 'Why?', ['Because']),
    _question(3, 'Quoted by its own passage of a set', exclude_passage_ids=('p3',)),
  ]
  scan = CorpusScan(questions)
  scan.add(
    [
      _passage('p0', 'Quiz: which planet is closest to the SUN'),
      _passage('p1', 'Why? Because. Which planet is closest to the sun? Mercury.'),
      _passage('p2', 'Which planet is farthest away from the sun.'),
      _passage('p3', 'Quoted by its own passage of a set'),
    ]
  )
  scan.add([_passage('p4', 'it asks which planet is closest to the moon and sun')])
  assert set(scan.matches) == {0}
  assert scan.matches[0] == CorpusMatch(
    'p1', 'T', 'which planet is closest to the sun', 1.0, True, passages=3
  )
  # More of the question goes before an answer beside less of it.
  part = CorpusScan(questions[:1])
  part.add(
    [
      _passage('p0', 'Which planet is closest to the sun'),
      _passage('p1', 'Mercury is closest, planet is closest to the sun'),
    ]
  )
  assert part.matches[0].passage_id == 'p0' and not part.matches[0].has_answer
  rows = overlap.report_rows(questions, None, scan)
  assert [row['clean'] for row in rows] == [False, True, True, True]
  assert [row['searched'] for row in rows] == [True, True, False, True]
  assert overlap.summarize(rows) == {
    'count': 4,
    'clean': 3,
    'in_corpus': 1,
    'in_corpus_with_answer': 1,
    'too_short': 1,
  }


@pytest.mark.parametrize('settings', [{'span_share': 0.0}, {'word_overlap': 1.5}, {'min_words': 0}])
def test_settings_out_of_range(settings):
  with pytest.raises(ValueError, match=next(iter(settings))):
    Settings(**settings)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  return tiny.make_data(tmp_path_factory.mktemp('leakage'))


def _files(data, folder):
  """Eight questions: two trained on, three in the corpus, one of them both."""
  texts = [p['text'] for p in tiny.passages()]
  rows = [
    {
      'id': str(i),
      'question': f'what is the colour of {name}?',
      'answers': [str(i)],
      'group': 'even' if i % 2 == 0 else 'odd',
    }
    for i, name in enumerate(tiny.names()[:8])
  ]
  for i in (0, 3, 5):
    rows[i]['question'] = texts[i].split('.')[1].strip()
    rows[i]['answers'] = [texts[i].split()[3]]  # 'city', and so on.
  training = [
    {'question': rows[5]['question'], 'answers': ['other']},
    {'question': rows[6]['question'].upper(), 'answers': ['6']},
    {'question': 'nothing like these', 'answers': ['7']},
  ]
  return (
    tiny.write_jsonl(folder / 'eval.jsonl', rows),
    tiny.write_jsonl(folder / 'train.jsonl', training),
  )


def test_the_report_and_the_scores_of_clean_questions(data, tmp_path, capsys):
  questions, training = _files(data, tmp_path)
  predictions = tiny.write_jsonl(
    tmp_path / 'predictions.jsonl',
    [
      {'id': str(i), 'metrics': {'exact_match': float(i in (0, 1, 3, 5, 6)), 'f1': None}}
      for i in range(8)
    ],
  )
  output = tmp_path / 'out' / 'report.jsonl'
  command.main(
    [
      '--questions',
      str(questions),
      '--training',
      str(training),
      '--corpus',
      str(data.corpus),
      '--predictions',
      str(predictions),
      '--output',
      str(output),
    ]
  )
  rows = [json.loads(line) for line in output.read_text().splitlines()]
  assert [row['id'] for row in rows] == [str(i) for i in range(8)]
  assert [row['id'] for row in rows if row['corpus']] == ['0', '3', '5']
  assert [row['training']['kind'] for row in rows] == [''] * 5 + ['exact', 'exact', '']
  assert rows[0]['corpus']['passage_id'] == 'p0' and rows[0]['corpus']['share'] == 1
  assert rows[0]['corpus']['has_answer']
  summary = json.loads((tmp_path / 'out' / 'report.summary.json').read_text())
  expected = {
    'count': 8,
    'clean': 4,
    'question_exact': 2,
    'question_near': 0,
    'answer': 2,
    'question_overlap': 2,
    'answer_overlap': 1,
    'no_overlap': 5,
    'in_corpus': 3,
    'in_corpus_with_answer': 3,
    'too_short': 0,
  }
  assert {name: summary[name] for name in expected} == expected
  assert summary['groups'] == {'even': {'count': 4, 'clean': 2}, 'odd': {'count': 4, 'clean': 2}}
  scores = {name: (part['count'], part['exact_match']) for name, part in summary['scores'].items()}
  assert scores == {
    'all': (8, 5 / 8),
    'clean': (4, 1 / 4),
    'leaked': (4, 1.0),
    'question_overlap': (2, 1.0),
    'answer_overlap': (1, 0.0),
    'no_overlap': (5, 3 / 5),
  }
  clean = json.loads((tmp_path / 'out' / 'report.clean_ids.json').read_text())
  assert clean == ['1', '2', '4', '7']
  assert len(list((tmp_path / 'out').iterdir())) == 3  # Nothing half-done is left.
  shown = capsys.readouterr().out
  assert 'in_corpus' in shown and '37.5%' in shown and 'exact_match 0.2500' in shown


def test_an_interrupted_scan_goes_on(data, tmp_path, monkeypatch):
  questions, _ = _files(data, tmp_path)
  output = tmp_path / 'report.jsonl'
  options = {
    'questions': QuestionOptions(str(questions)),
    'output': output,
    'corpus': str(data.corpus),
    'chunk_size': 4,
    'progress': False,
  }
  read: list[int] = []
  passages = PassageStore.passages

  def counted(store, rows):
    read.extend(rows.tolist())
    if read == list(range(20)):
      raise KeyboardInterrupt
    return passages(store, rows)

  monkeypatch.setattr(PassageStore, 'passages', counted)
  monkeypatch.setattr(leakage, '_SAVE_PERIOD_S', -1.0)
  with pytest.raises(KeyboardInterrupt):
    leakage.report(**options)
  assert not output.exists()
  # Other settings look for other things: they begin at the beginning.
  before = len(read)
  other = leakage.report(**{**options, 'output': tmp_path / 'other.jsonl'})
  assert len(read) - before == tiny.COUNT
  partial = output.with_name('report.jsonl.partial')
  state = partial.read_bytes()
  before = len(read)
  assert leakage.report(**options) == other
  assert read[before:] == list(range(16, tiny.COUNT))
  partial.write_bytes(state)
  before = len(read)
  leakage.report(**options, settings=Settings(span_share=0.9))
  assert read[before:] == list(range(tiny.COUNT))


def test_files_that_are_read_are_not_replaced(data, tmp_path):
  questions, training = _files(data, tmp_path)
  predictions = tiny.write_jsonl(tmp_path / 'p.jsonl', [{'id': '0', 'metrics': {}}])
  (tmp_path / 'link.jsonl').symlink_to(training)
  summary = tmp_path / 'x.summary.json'
  summary.write_bytes(questions.read_bytes())
  clean = tmp_path / 'x.clean_ids.json'
  clean.write_bytes(training.read_bytes())
  partial = tmp_path / 'x.jsonl.partial'
  partial.write_bytes(training.read_bytes())
  before = {path: path.read_bytes() for path in tmp_path.iterdir()}
  for output, options in (
    (questions, {}),
    (training, {}),
    (predictions, {}),
    (tmp_path / 'y' / '..' / 'eval.jsonl', {}),
    (tmp_path / 'link.jsonl', {}),
    (tmp_path / 'x.jsonl', {'questions': QuestionOptions(str(summary))}),
    (tmp_path / 'x', {'training': QuestionOptions([str(training), str(tmp_path / '*.json')])}),
    (tmp_path / 'x.jsonl', {'training': QuestionOptions(str(partial))}),
  ):
    with pytest.raises(ValueError, match='would replace .*name another output'):
      leakage.report(
        **{
          'questions': QuestionOptions([str(tmp_path / 'ev*.jsonl')]),
          'training': QuestionOptions(str(training)),
          'predictions': str(predictions),
          'output': output,
          'progress': False,
          **options,
        }
      )
  assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
  'row, message',
  [
    ({'id': ['1']}, "field 'id' must be a string, found a list"),
    ({'metrics': {}}, "field 'id' must be a string, found null"),
    ({'id': '1', 'metrics': [1]}, "field 'metrics' must be an object of numbers"),
    (
      {'id': '1', 'metrics': {'em': 'x'}},
      "field 'metrics.em' must be a number or null, found a string",
    ),
    ({'id': '1', 'metrics': {'em': [1.0]}}, "field 'metrics.em' must be a number"),
  ],
)
def test_malformed_predictions(data, tmp_path, row, message):
  questions, training = _files(data, tmp_path)
  predictions = tiny.write_jsonl(tmp_path / 'p.jsonl', [{'id': '0', 'metrics': None}, row])
  with pytest.raises(ValueError) as caught:
    leakage.report(
      questions=QuestionOptions(str(questions)),
      training=QuestionOptions(str(training)),
      progress=False,
      predictions=str(predictions),
      output=tmp_path / 'x.jsonl',
    )
  assert str(caught.value).startswith(f'{predictions}:2: {message}')


def test_what_is_missing_is_said(data, tmp_path):
  questions, training = _files(data, tmp_path)
  with pytest.raises(ValueError, match='--training, --corpus'):
    leakage.report(questions=QuestionOptions(str(questions)), output=tmp_path / 'x.jsonl')
  strange = tiny.write_jsonl(tmp_path / 'p.jsonl', [{'id': 'who?', 'metrics': {}}])
  with pytest.raises(ValueError, match="'who\\?'.*no question"):
    leakage.report(
      questions=QuestionOptions(str(questions)),
      training=QuestionOptions(str(training)),
      output=tmp_path / 'x.jsonl',
      predictions=str(strange),
      progress=False,
    )
  assert not (tmp_path / 'x.jsonl').exists()


def test_gold_ids_that_the_corpus_lacks_are_said(data, tmp_path, caplog):
  rows = [{**q, 'gold_passage_id': f'wiki:{i}'} for i, q in enumerate(tiny.questions()[:3])]
  rows.append(tiny.questions()[3])
  questions = tiny.write_jsonl(tmp_path / 'q.jsonl', rows)
  leakage.report(
    QuestionOptions(str(questions)), tmp_path / 'l.jsonl', corpus=str(data.corpus), progress=False
  )
  assert '3 of 4 questions name gold passages' in caplog.text and "'wiki:0'" in caplog.text


def test_questions_in_scripts_without_spaces():
  """Each character is a word, so that a passage is found that holds most of them."""
  scan = CorpusScan([_question(0, '中国的首都是哪里？'), _question(1, '日本の首都')], Settings())
  assert scan.is_searched(0) and scan.is_searched(1)
  scan.add([_passage('a', '我知道，中国的首都是哪座城市'), _passage('b', '東京は日本の首都です')])
  assert scan.matches[0].passage_id == 'a' and scan.matches[0].share == 7 / 8
  assert scan.matches[1].passage_id == 'b' and scan.matches[1].share == 1
