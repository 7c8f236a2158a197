"""`runs.evaluation.evaluate`: where passages come from, what is asked for, and resuming."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ralm_jax.data.questions import reading as questions_lib
from ralm_jax.evaluation.evaluator import Evaluator
from ralm_jax.evaluation.task import EvaluationTask, ScoringOptions
from ralm_jax.models.reader_batch import ReaderBatch
from ralm_jax.retrieval.index_source import IndexSource
from ralm_jax.runs import evaluation, opening
from tests import tiny


@pytest.fixture(scope='module')
def trained() -> tiny.Trained:
  return tiny.trained()


@pytest.fixture(scope='module')
def opened(trained):
  return opening.open_checkpoint(trained.run)


def _evaluate(opened, questions, output, *, index=None, generation=None, batch_size=8, **options):
  return evaluation.evaluate(
    opened,
    EvaluationTask.make(questions=str(questions), **options),
    IndexSource(index, generation=generation),
    str(output),
    batch_size=batch_size,
    progress=False,
  )


def _records(output):
  return [json.loads(line) for line in (output / 'predictions.jsonl').read_text().splitlines()]


def test_passages_of_the_file(trained, opened, tmp_path):
  """In the file's order; the same answers as if the index had found them."""
  rows = tiny.questions()[:5]
  plain = tiny.write_jsonl(tmp_path / 'plain.jsonl', rows)
  # Scored by the encoders of now, since the index is stale.
  _evaluate(opened, plain, tmp_path / 'index', index=trained.index, n_candidates=3)
  found = _records(tmp_path / 'index')
  with_passages = tiny.write_jsonl(
    tmp_path / 'q.jsonl',
    [
      row
      | {
        'passages': [
          {'id': p['id'], 'title': p['title'], 'text': p['text']} for p in record['passages']
        ]
      }
      for row, record in zip(rows, found)
    ],
  )
  _evaluate(opened, with_passages, tmp_path / 'file', passages_from='file')
  for one, other in zip(found, _records(tmp_path / 'file'), strict=True):
    assert one['prediction'] == other['prediction']
    assert one['log_probability'] == pytest.approx(other['log_probability'], abs=1e-4)
    assert [p['id'] for p in one['passages']] == [p['id'] for p in other['passages']]
    np.testing.assert_allclose(
      [p['score'] for p in one['passages']], [p['score'] for p in other['passages']], rtol=1e-4
    )
  with pytest.raises(ValueError, match='brings passages along'):
    _evaluate(opened, plain, tmp_path / 'none', passages_from='file')
  with pytest.raises(ValueError, match='leave --index'):
    _evaluate(opened, with_passages, tmp_path / 'both', passages_from='file', index=trained.index)


def test_questions_with_fewer_passages(opened, tmp_path):
  rows = tiny.questions()[:3]
  rows[0]['passages'] = [{'title': 'Almar', 'section': 'Colour', 'text': 'red'}]
  rows[1]['passages'] = [{'text': str(i)} for i in range(5)]
  questions = tiny.write_jsonl(tmp_path / 'q.jsonl', rows)
  _evaluate(opened, questions, tmp_path / 'out', passages_from='file')
  records = _records(tmp_path / 'out')
  assert [len(r['passages']) for r in records] == [1, 3, 0]
  assert records[0]['passages'][0]['title'] == 'Almar: Colour'
  assert records[0]['passages'][0]['probability'] == pytest.approx(1)
  # However many slots stay empty, what is read is the same.
  _evaluate(opened, questions, tmp_path / 'wide', passages_from='file', n_passages=5)
  wide = _records(tmp_path / 'wide')
  for i in (0, 2):
    assert wide[i]['prediction'] == records[i]['prediction']
    assert wide[i]['log_probability'] == pytest.approx(records[i]['log_probability'], abs=1e-4)


def test_closed_book_answers_of_a_model_that_reads(trained, opened, tmp_path):
  _evaluate(opened, trained.data.questions, tmp_path, passages_from='none', num_examples=3)
  records = _records(tmp_path)
  assert len(records) == 3
  assert all(r['passages'] == [] and 'prediction' in r for r in records)
  assert 'recall@1_gold' not in json.loads((tmp_path / 'metrics.json').read_text())


def test_retrieving_alone(trained, opened, tmp_path):
  means = _evaluate(
    opened,
    trained.data.questions,
    tmp_path,
    index=trained.index,
    retrieve_only=True,
    num_examples=9,
  )
  records = _records(tmp_path)
  assert len(records) == 9 == means['count']
  assert all('prediction' not in r and len(r['passages']) == 3 for r in records)
  assert 'exact_match' not in means and 0 <= means['recall@1_gold'] <= 1
  with pytest.raises(ValueError, match='retrieving alone'):
    _evaluate(
      opened,
      trained.data.questions,
      tmp_path,
      index=trained.index,
      retrieve_only=True,
      passage_effects=True,
    )


def test_effects_and_loss(trained, opened, tmp_path):
  """Each passage has its own effect, each question its own loss."""
  _evaluate(
    opened,
    trained.data.questions,
    tmp_path,
    index=trained.index,
    num_examples=3,
    passage_effects=True,
    with_loss=True,
  )
  records = _records(tmp_path)
  (questions,) = [questions_lib.read_questions(trained.data.questions)[:3]]
  with opening.open_evaluator(opened, IndexSource(trained.index), batch_size=8) as evaluator:
    retrieved = evaluator.retrieve(opened.params, questions)
    batch = evaluator.reader_batch(questions, retrieved, [r['answers'][0] for r in records])
    model = opened.spec.model
    likelihood = np.asarray(jax.jit(model.score)(opened.params, batch))
    effects = jax.jit(model.passage_effects)(opened.params, batch)
  with opening.open_evaluator(
    opened, IndexSource(trained.index), batch_size=8, scoring=ScoringOptions(passage_effects=True)
  ) as evaluator:
    retrieved, found = evaluator.find(opened.params, questions)
    answers = evaluator.with_likelihoods(
      opened.params,
      evaluator.reader_batch(questions, retrieved),
      questions,
      batch.target_tokens,
      found,
    )
  for answer, expected in zip(answers, np.asarray(effects)):
    assert len(answer.passages) == 3 and np.ptp(expected) > 0
    np.testing.assert_allclose([shown.effect for shown in answer.passages], expected, atol=1e-4)
  tokens = batch.target_mask.sum(-1)
  for i, record in enumerate(records):
    assert record['metrics']['loss'] == pytest.approx(-likelihood[i] / tokens[i], abs=1e-4)
    assert all('effect' in p for p in record['passages'])


@pytest.mark.parametrize('reading', ['fusion', 'rag_sequence', 'rag_token'])
def test_effects_of_every_reading(reading):
  """Leaving a passage out is a batch that never had it."""
  model = tiny.make_model(
    reading=reading, gold_score='perplexity' if reading == 'fusion' else 'none'
  )
  params = jax.tree.map(
    lambda x: x.unbox() if hasattr(x, 'unbox') else x,
    model.init(jax.random.key(0)),
    is_leaf=lambda x: hasattr(x, 'unbox'),
  )
  rng = np.random.default_rng(0)
  tokens = rng.integers(3, 200, (2, 3, 7))
  batch = ReaderBatch(
    reader_tokens=tokens,
    reader_mask=np.ones(tokens.shape, bool),
    passage_mask=np.ones((2, 3), bool),
    target_tokens=rng.integers(3, 200, (2, 4)),
    target_mask=np.asarray([[1, 1, 1, 1], [1, 1, 0, 0]], bool),
    passage_scores=rng.normal(size=(2, 3)).astype(np.float32),
  )
  batch = jax.tree.map(jnp.asarray, batch)
  quick = {'compiler_options': {'xla_backend_optimization_level': 0}}
  effects_of = jax.jit(model.passage_effects, **quick)
  score = jax.jit(model.score, **quick)
  effects, whole = effects_of(params, batch), score(params, batch)
  for k in range(3):
    rest = np.asarray([j for j in range(3) if j != k])
    fewer = batch.replace(
      **{
        name: getattr(batch, name)[:, rest]
        for name in ('reader_tokens', 'reader_mask', 'passage_mask', 'passage_scores')
      }
    )
    np.testing.assert_allclose(effects[:, k], whole - score(params, fewer), atol=2e-4)
  one = batch.replace(passage_mask=np.asarray([[1, 0, 0]] * 2, bool))
  assert not np.any(effects_of(params, one))


def test_resumes_behind_what_is_written(trained, opened, tmp_path, monkeypatch):
  options = {'index': trained.index, 'num_examples': 21}
  _evaluate(opened, trained.data.questions, tmp_path / 'whole', **options)
  answer = Evaluator.answer
  calls = []

  def interrupted(self, params, questions):
    calls.append(len(questions))
    if len(calls) == 3:
      raise KeyboardInterrupt
    return answer(self, params, questions)

  out = tmp_path / 'parts'
  monkeypatch.setattr(Evaluator, 'answer', interrupted)
  with pytest.raises(KeyboardInterrupt):
    _evaluate(opened, trained.data.questions, out, **options)
  assert not (out / 'predictions.jsonl').exists()
  with open(out / 'predictions.jsonl.partial', 'a') as file:
    file.write('{"id": "torn')
  calls[:] = [0] * 10
  means = _evaluate(opened, trained.data.questions, out, **options)
  assert calls[10:] == [5]  # The first two batches of 8 were kept.
  assert means['count'] == 21
  assert (out / 'predictions.jsonl').read_bytes() == (
    tmp_path / 'whole' / 'predictions.jsonl'
  ).read_bytes()
  assert sorted(p.name for p in out.iterdir()) == ['metrics.json', 'predictions.jsonl']


def test_other_choices_begin_anew(trained, opened, tmp_path, monkeypatch):
  def broken(self, params, questions):
    raise KeyboardInterrupt

  options = {'index': trained.index, 'num_examples': 9}
  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    answer = Evaluator.answer
    calls = iter([answer, broken])
    patch.setattr(Evaluator, 'answer', lambda self, *args: next(calls)(self, *args))
    _evaluate(opened, trained.data.questions, tmp_path, **options)
  means = _evaluate(opened, trained.data.questions, tmp_path, n_passages=2, **options)
  assert means['count'] == 9
  assert {len(r['passages']) for r in _records(tmp_path)} == {2}


def test_malformed_records(trained, opened, tmp_path, caplog):
  lines = [json.dumps(row) for row in tiny.questions()[:4]]
  lines[1] = '{"question": 3, "answers": ["x"]}'
  lines[2] = '{"question": "what'
  path = tmp_path / 'q.jsonl'
  path.write_text('\n'.join(lines) + '\n')
  with pytest.raises(ValueError, match=r"q.jsonl:2: field 'question' must be"):
    _evaluate(opened, path, tmp_path / 'out', index=trained.index)
  means = _evaluate(opened, path, tmp_path / 'out', index=trained.index, on_error='skip')
  assert means['count'] == 2
  assert 'left out 2 malformed records' in caplog.text
  assert 'q.jsonl:3: malformed JSON' in caplog.text


def test_groups_and_metadata(trained, opened, tmp_path):
  rows = [
    row | {'group': f'kind {i % 2}', 'metadata': {'row': i}}
    for i, row in enumerate(tiny.questions()[:6])
  ]
  questions = tiny.write_jsonl(tmp_path / 'q.jsonl', rows)
  means = _evaluate(opened, questions, tmp_path / 'out', index=trained.index)
  records = _records(tmp_path / 'out')
  assert [r['metadata'] for r in records] == [{'row': i} for i in range(6)]
  for group in ('kind 0', 'kind 1'):
    own = [r['metrics']['f1'] for r in records if r['group'] == group]
    assert means['groups'][group]['f1'] == pytest.approx(np.mean(own))
    assert means['groups'][group]['count'] == 3


@pytest.mark.parametrize(
  'options, message',
  [
    ({'num_examples': 0}, 'num_examples must be at least 1'),
    ({'batch_size': 0}, 'batch_size must be at least 1'),
    ({'n_passages': -2}, 'n_passages must be at least 1'),
    ({'passages_from': 'none', 'n_passages': 9}, 'leave --n_passages out'),
    ({'passages_from': 'file', 'generation': 4}, 'leave --generation out'),
    ({'passages_from': 'web'}, 'must be one of'),
    ({'rerank_chunk': 2}, 'give n_candidates'),
    ({'retrieve_only': True, 'num_beams': 4}, 'Nothing is decoded'),
    ({'metrics': 'multiple_choice', 'retrieve_only': True}, 'options'),
    ({'metrics': 'bleu'}, 'are unknown'),
  ],
)
def test_choices_without_effect(trained, opened, tmp_path, options, message):
  with pytest.raises(ValueError, match=message):
    _evaluate(opened, trained.data.questions, tmp_path / 'out', **options)
  assert not (tmp_path / 'out').exists()


def test_nothing_of_before_stands_beside_what_begins(trained, opened, tmp_path, monkeypatch):
  options = {'index': trained.index, 'num_examples': 9}
  _evaluate(opened, trained.data.questions, tmp_path, **options)
  assert (tmp_path / 'metrics.json').exists()
  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(Evaluator, 'answer', _interrupted)
    _evaluate(opened, trained.data.questions, tmp_path, n_passages=2, **options)
  assert sorted(p.name for p in tmp_path.iterdir()) == [
    'predictions.jsonl.partial',
    'predictions.jsonl.partial.name',
  ]


def _interrupted(self, params, questions):
  raise KeyboardInterrupt


def test_label_metrics(trained, opened, tmp_path):
  claims = [
    {'id': i, 'claim': row['question'], 'label': 'SUPPORTS'}
    for i, row in enumerate(tiny.questions()[:3])
  ]
  means = _evaluate(
    opened,
    tiny.write_jsonl(tmp_path / 'f.jsonl', claims),
    tmp_path / 'out',
    index=trained.index,
    record_format='fever',
  )
  assert means['accuracy'] == 0 and means['recall@1_answer'] is None
