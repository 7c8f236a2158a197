"""Evaluator: the same answers whatever the batch, and honest metrics."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from ralm_jax.data.corpus import passage_store
from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.data.questions import reading
from ralm_jax.decoding.options import DecodingOptions
from ralm_jax.evaluation.answering import AnswerOptions
from ralm_jax.evaluation.evaluator import Evaluator
from ralm_jax.evaluation.task import PassageOptions
from ralm_jax.retrieval.assembler import Assembler
from ralm_jax.retrieval.index_source import IndexSource
from ralm_jax.retrieval.retriever import PassageRetriever
from ralm_jax.runs import opening
from ralm_jax.training.partitioning import Partitioner
from retrieval_service.generations import GenerationStore
from tests import tiny


class Search:
  """A search that always finds the same rows, for what needs no process."""

  needs_strict_order = False

  def __init__(self, rows, store, dim=16):
    self._rows, self._store, self._dim = np.asarray(rows), store, dim

  def status(self):
    metadata = {'corpus_fingerprint': self._store.fingerprint}
    return type(
      'Status',
      (),
      {
        'metadata': metadata,
        'count': len(self._store),
        'dim': self._dim,
        'next_id': len(self._store),
        'index_id': '',
      },
    )

  def search(self, query_embeddings, k, generation=None, **unused_options):
    shape = (len(query_embeddings), k)
    scores = np.broadcast_to(-np.arange(k, dtype=np.float32), shape)
    return type(
      'Result',
      (),
      {
        'ids': np.broadcast_to(self._rows[:k], shape),
        'scores': scores,
        'generation': generation or 1,
        'embeddings': None,
      },
    )


@pytest.fixture(scope='module')
def trained() -> tiny.Trained:
  return tiny.trained()


@pytest.fixture(scope='module')
def opened(trained):
  return opening.open_checkpoint(trained.run)


@pytest.fixture(scope='module')
def questions(trained):
  return reading.read_questions(trained.data.questions)


def test_batches_change_nothing(trained, opened, questions, tmp_path):
  """Neither their size nor the padding of the last one."""
  records = []
  for size in (8, 32):  # 21 questions leave 5 in the last batch of 8
    with opening.open_evaluator(opened, IndexSource(trained.index), batch_size=size) as evaluator:
      records.append(list(evaluator.predictions(opened.params, questions[:21])))
  assert len(records[0]) == 21
  for one, other in zip(*records):
    assert one['prediction'] == other['prediction']
    assert [p['id'] for p in one['passages']] == [p['id'] for p in other['passages']]
    assert one['log_probability'] == pytest.approx(other['log_probability'], abs=1e-4)


@pytest.mark.parametrize('reading', ['fusion', 'rag_token', 'rag_sequence'])
def test_draws_are_of_the_question(reading, trained, opened, questions):
  """Whatever is beside it, before it, or on how many devices, and however many are drawn."""
  model = dataclasses.replace(opened.spec.model, reading=reading, gold_score='none')
  asked = questions[:8]

  def drawn(questions, size, count=3, seed=5, devices=1):
    partitioner = Partitioner(devices=jax.devices()[:devices])
    here = opening.open_checkpoint(trained.run, partitioner)
    here = dataclasses.replace(here, spec=dataclasses.replace(here.spec, model=model))
    answering = AnswerOptions(DecodingOptions(sample=True, num_return=count), seed=seed)
    found = {}
    with opening.open_evaluator(
      here, IndexSource(trained.index), batch_size=size, answering=answering
    ) as evaluator:
      for first in range(0, len(questions), size):
        part = questions[first : first + size]
        for question, answer in zip(part, evaluator.answer(here.params, part)):
          others = [text for text, _ in answer.alternatives]
          found[getattr(question, 'question', question)] = [answer.prediction, *others]
    return found

  expected = drawn(asked, 8)
  assert len({tuple(answers) for answers in expected.values()}) > 4
  assert any(len(set(answers)) > 1 for answers in expected.values())
  assert drawn(asked, 3) == expected
  assert drawn(asked[::-1], 1) == expected
  assert drawn([question.question for question in asked[2:4]], 4) == {
    question.question: expected[question.question] for question in asked[2:4]
  }  # as `ralm ask` does
  assert drawn(asked, 8, devices=4) == expected
  fewer = {question: answers[:2] for question, answers in expected.items()}
  assert drawn(asked, 8, count=2) == fewer
  assert drawn(asked, 8, seed=6) != expected


def test_files(trained, opened, questions, tmp_path):
  with opening.open_evaluator(opened, IndexSource(trained.index), batch_size=8) as evaluator:
    means = evaluator.evaluate(opened.params, questions[:10], output=tmp_path)
  rows = [json.loads(line) for line in (tmp_path / 'predictions.jsonl').read_text().splitlines()]
  assert len(rows) == 10 == means['count']
  served = GenerationStore(trained.index)
  for row in rows:
    assert row['index'] == served.index_id()
    assert row['generation'] == served.current()
  assert json.loads((tmp_path / 'metrics.json').read_text()) == means
  assert sorted(p.name for p in tmp_path.iterdir()) == ['metrics.json', 'predictions.jsonl']
  for name in ('exact_match', 'f1', 'recall@1_gold', 'mrr_answer'):
    assert means[name] == pytest.approx(np.mean([row['metrics'][name] for row in rows]))


def test_a_reader_without_probabilities(trained, opened, questions):
  """As of activations that overflow; it answered "" and wrote null."""
  reader = jax.tree.map(lambda leaf: leaf * np.nan, opened.params['reader'])
  with opening.open_evaluator(opened, IndexSource(trained.index), batch_size=8) as evaluator:
    with pytest.raises(
      ValueError, match=f'no probability of an answer to .*{questions[0].question}'
    ):
      next(evaluator.predictions({**opened.params, 'reader': reader}, questions[:1]))


def test_number_of_passages(trained, opened, questions):
  with opening.open_evaluator(
    opened, IndexSource(trained.index), batch_size=8, passages=PassageOptions(n_passages=5)
  ) as evaluator:
    record = next(evaluator.predictions(opened.params, questions[:1]))
  assert len(record['passages']) == 5


def test_gold_passage_that_was_split(opened, trained, tmp_path):
  """A long passage is stored as `long`, `long#1`...; any part of it counts."""
  words = ' '.join(f'word{i}' for i in range(30))
  passages = tiny.write_jsonl(
    tmp_path / 'p.jsonl',
    [{'id': 'short', 'title': 's', 'text': 'a lake'}, {'id': 'long', 'title': 'l', 'text': words}],
  )
  store = passage_store.build_corpus(
    passages,
    tmp_path / 'corpus',
    trained.data.reader_vocabulary,
    trained.data.retriever_vocabulary,
    max_words=10,
    n_workers=1,
    progress=False,
  )
  ids = [p.id for p in store.passages(np.arange(len(store)))]
  assert len(ids) == 4
  rows = [0, 3, 1]  # the short one, then the last part of the long one
  evaluator = Evaluator(
    opened.spec, opened.partitioner, PassageRetriever(Search(rows, store), store, 3), batch_size=8
  )
  (question,) = reading.read_questions(
    tiny.write_jsonl(
      tmp_path / 'q.jsonl',
      [{'question': 'which?', 'answers': ['word25'], 'gold_passage_id': 'long'}],
    )
  )
  record = next(evaluator.predictions(opened.params, [question]))
  assert [p['id'] for p in record['passages']] == [ids[row] for row in rows]
  metrics = record['metrics']
  assert metrics['recall@1_gold'] == 0 and metrics['mrr_gold'] == 0.5
  assert metrics['recall@1_answer'] == 0 and metrics['mrr_answer'] == 0.5


def test_ids_that_only_look_like_parts(opened, trained, tmp_path):
  """Where nothing was cut, `doc#1` is not found by finding `doc#2`."""
  passages = tiny.write_jsonl(
    tmp_path / 'p.jsonl', [{'id': f'doc#{i}', 'title': 't', 'text': 'x'} for i in range(4)]
  )
  store = passage_store.build_corpus(
    passages,
    tmp_path / 'corpus',
    trained.data.reader_vocabulary,
    trained.data.retriever_vocabulary,
    n_workers=1,
    progress=False,
  )
  evaluator = Evaluator(
    opened.spec,
    opened.partitioner,
    PassageRetriever(Search([2, 1, 0], store), store, 3),
    batch_size=8,
  )
  rows = [{'question': 'which?', 'answers': ['x'], 'gold_passage_id': f'doc#{i}'} for i in (1, 3)]
  questions = reading.read_questions(tiny.write_jsonl(tmp_path / 'q.jsonl', rows))
  metrics = [record['metrics'] for record in evaluator.predictions(opened.params, questions)]
  assert [m['mrr_gold'] for m in metrics] == [0.5, 0]
  assert evaluator.retrieval_recall(opened.params, questions, k=3) == 0.5


def test_questions_that_exclude_and_have_dates(trained, opened, tmp_path):
  """What a question must not see is not among what it was answered from."""
  rows = [
    q | {'exclude_passage_ids': [q['gold_passage_id'], 'unknown']} for q in tiny.questions()[:10]
  ]
  path = tiny.write_jsonl(tmp_path / 'q.jsonl', rows)
  plain = reading.read_questions(trained.data.questions)[:10]
  with opening.open_evaluator(
    opened, IndexSource(trained.index), batch_size=8, passages=PassageOptions(n_passages=10)
  ) as evaluator:
    before = list(evaluator.predictions(opened.params, plain))
    after = list(evaluator.predictions(opened.params, reading.read_questions(path)))
    # The corpus has no dates, so that nothing could be shown.
    (dated,) = reading.read_questions(
      tiny.write_jsonl(tmp_path / 'dated.jsonl', [rows[0] | {'date': '2019'}])
    )
    with pytest.raises(ValueError, match='questions have dates, but no passage'):
      list(evaluator.predictions(opened.params, [dated]))
    assert evaluator.retrieval_recall(opened.params, reading.read_questions(path), k=10) == 0
  found = 0
  for question, one, other in zip(rows, before, after):
    gold = question['gold_passage_id']
    ids = [p['id'] for p in one['passages']]
    found += gold in ids
    kept = [id_ for id_ in ids if id_ != gold]
    assert [p['id'] for p in other['passages']][: len(kept)] == kept
    assert len(other['passages']) == 10
    assert other['metrics']['mrr_gold'] == 0
  assert found


def test_metrics_of_what_filters_left(trained, opened, tmp_path):
  """Empty slots are misses: the question is not left out of the averages."""
  names = [f'p{i}' for i in range(tiny.COUNT)]
  rows = [
    tiny.questions()[0] | {'exclude_passage_ids': names[: tiny.COUNT - left]} for left in (0, 2)
  ]
  for i, row in enumerate(rows):
    row['id'] = f'q{i}'
  questions = reading.read_questions(tiny.write_jsonl(tmp_path / 'q.jsonl', rows))
  with opening.open_evaluator(
    opened, IndexSource(trained.index), batch_size=8, passages=PassageOptions(n_passages=5)
  ) as evaluator:
    records = list(evaluator.predictions(opened.params, questions))
  assert [len(record['passages']) for record in records] == [0, 2]
  for record in records:
    assert record['metrics']['recall@5_gold'] == 0
    assert record['metrics']['mrr_answer'] is not None


def test_too_few_passages_after_filtering(opened, trained):
  """Empty slots are not shown and carry no probability."""
  store = PassageStore.open(trained.data.corpus)
  retriever = PassageRetriever(Search([4, -1, -1], store), store, 3)
  found = retriever.search(np.zeros((8, 16), np.float32))
  found = dataclasses.replace(found, scores=np.where(found.rows < 0, -np.inf, found.scores))
  np.testing.assert_allclose(found.probabilities(0.4), np.tile([1.0, 0, 0], (8, 1)))
  evaluator = Evaluator(opened.spec, opened.partitioner, retriever, batch_size=8)
  (answer,) = evaluator.answer(opened.params, ['which?'])
  assert [shown.passage.id for shown in answer.passages] == ['p4']


@pytest.fixture(scope='module')
def closed_book(trained, tmp_path_factory):
  folder = tmp_path_factory.mktemp('closed_book')
  tiny.start(
    folder / 'log',
    [
      {
        'data': str(trained.data.folder),
        'model_dir': str(folder / 'run'),
        'steps': 2,
        'closed_book': True,
      }
    ],
  ).finish()
  return opening.open_checkpoint(folder / 'run')


def test_closed_book(closed_book, questions, tmp_path):
  with opening.open_evaluator(closed_book, batch_size=8) as evaluator:
    means = evaluator.evaluate(closed_book.params, questions[:9], output=tmp_path)
  assert means['count'] == 9 and 'exact_match' in means
  assert not any(
    name.startswith(('recall', 'mrr')) for name, value in means.items() if value is not None
  )
  row = json.loads((tmp_path / 'predictions.jsonl').read_text().split('\n')[0])
  assert row['passages'] == []
  assert row['index'] is None and row['generation'] is None


def test_reader_of_passages_needs_an_index(opened):
  with pytest.raises(ValueError, match='give an index'):
    Evaluator(opened.spec, opened.partitioner, None)


def test_reranking_a_stale_index(trained, opened, questions):
  """With every passage a candidate it is exact search by the parameters of now."""
  rng = np.random.default_rng(0)
  params = {
    **opened.params,
    'retriever': jax.tree.map(
      lambda x: x + 0.3 * rng.standard_normal(x.shape).astype(x.dtype), opened.params['retriever']
    ),
  }
  store = PassageStore.open(trained.data.corpus)
  asked = questions[:8]
  found = {}
  for candidates in (None, len(store)):
    with opening.open_evaluator(
      opened,
      IndexSource(trained.index),
      batch_size=8,
      passages=PassageOptions(
        n_candidates=candidates, rerank_chunk=None if candidates is None else 8
      ),
    ) as evaluator:
      found[candidates] = evaluator.retrieve(params, asked)
  inputs = Assembler(opened.spec.tokenizer, store).passage_inputs(np.arange(len(store)))
  passages = opened.spec.model.encode_passages(params, inputs.tokens[:, 0], inputs.mask[:, 0])
  queries = opened.spec.tokenizer.batch([q.question for q in asked], size=8)
  embedded = opened.spec.model.encode_queries(
    params, queries.query_tokens, queries.query_tokens != 0
  )
  exact = np.asarray(embedded) @ np.asarray(passages).T
  reranked = found[len(store)]
  best = -np.sort(-exact, axis=-1)[:, : reranked.rows.shape[1]]
  np.testing.assert_allclose(reranked.scores, best, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(
    np.take_along_axis(exact, reranked.rows, 1), best, rtol=1e-4, atol=1e-4
  )
  assert np.any(found[None].rows != reranked.rows)
