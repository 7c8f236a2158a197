"""The protocol on real files: what an oracle and a guesser must score.

A stub stands in for the model. It answers from the gold passage, or always the
same; everything else (reading, records, metrics, averages) is the real thing.
"""

from __future__ import annotations

import collections

import pytest

from ralm_jax.data.corpus import passages as passages_lib
from ralm_jax.data.corpus.passage_store import StoredPassage
from ralm_jax.data.corpus.passages import Passage
from ralm_jax.data.questions import reading
from ralm_jax.evaluation import records, summary
from ralm_jax.evaluation.records import Answer, AnsweredPassage
from ralm_jax.evaluation.scores import by_task, retrieval


def _score(questions, answer):
  """Metrics of `answer(question) -> (text, passages)` on all questions."""
  family = by_task.family_of(questions)
  rows = []
  for question in questions:
    text, passages = answer(question)
    shown = tuple(AnsweredPassage(passage, 1.0, 1.0) for passage in passages)
    rows.append(records.prediction_record(question, Answer(text, 0.0, shown, len(shown)), family))
  return summary.summarize(rows, family)


def _stored(passage: Passage, **changes) -> StoredPassage:
  return StoredPassage(
    **{
      'id': passage.id,
      'title': passage.title,
      'section': passage.section,
      'text': passage.text,
      'document': passage.document,
      'row': 0,
      **changes,
    }
  )


@pytest.mark.parametrize('name', ['xquad_en', 'qed_dev'])
def test_oracle_of_open_questions(shared_data, name):
  """It answers whatever stands in the gold passage, so it scores their share."""
  passages = {
    passage.id: passage
    for passage in passages_lib.iterate_passages(
      [str(shared_data / 'passages' / f'{name.split("_dev")[0]}.jsonl')]
    )
  }
  questions = reading.read_questions(shared_data / 'qa' / f'{name}.jsonl', duplicate_ids='number')

  def answer(question):
    gold = [_stored(passages[i]) for i in question.gold_passage_ids if i in passages]
    found = [a for a in question.answers if any(retrieval.has_answer(p.text, [a]) for p in gold)]
    return (found or ['nothing of the kind'])[0], gold[:1]

  means = _score(questions, answer)
  holds = [answer(q)[0] in q.answers for q in questions]
  assert means['exact_match'] == pytest.approx(sum(holds) / len(holds))
  assert means['exact_match'] > 0.9
  assert means['recall@1_gold'] == pytest.approx(
    sum(bool(answer(q)[1]) for q in questions) / len(questions)
  )
  assert means['f1'] >= means['exact_match']
  assert means['count'] == len(questions)


@pytest.mark.parametrize(
  'record_format, path',
  [
    ('fever', 'fever/paper_dev_first3000.jsonl'),
    ('fever_2way', 'fever/paper_dev_first3000.jsonl'),
    ('fever_symmetric', 'fever_symmetric/symmetric_v0.1/*.jsonl'),
    ('fever_symmetric', 'fever_symmetric/symmetric_v0.2/*.jsonl'),
  ],
)
def test_guesser_of_labels(shared_data, record_format, path):
  """It scores the share of the label that it always says; an oracle scores 1."""
  questions = reading.read_questions(
    str(shared_data / path), record_format=record_format, duplicate_ids='number'
  )
  labels = collections.Counter(q.answers[0] for q in questions)
  assert len(labels) == (3 if record_format == 'fever' else 2)
  for label, count in labels.items():
    means = _score(questions, lambda q, label=label: (label, ()))
    assert means['accuracy'] == means['exact_match'] == count / len(questions)
  assert _score(questions, lambda q: (q.answers[0], ()))['accuracy'] == 1
  # A label in another case is another string, as in the original.
  assert _score(questions, lambda q: (q.answers[0].upper(), ()))['accuracy'] == 0
  if record_format == 'fever_symmetric':
    assert all(q.passages for q in questions)


@pytest.mark.parametrize(
  'page, answer, expected',
  [
    ('10287141', 'suicide', 1.0),  # of rows 1 and 2; row 3 says 'it was suicide'
    ('1', 'suicide', 0.0),
    ('10287141', 'accident', 0.0),
  ],
)
def test_kilt_scores_need_answer_and_page(shared_data, page, answer, expected):
  questions = reading.read_questions(
    shared_data / 'kilt/zsre_gold1.jsonl', record_format='kilt_zsre'
  )
  passage = _stored(Passage('x', 'Chen Yi-hsiung', '', 'text'), document=page)
  means = _score(questions[:2], lambda q: (answer, [passage]))
  assert means['kilt_exact_match'] == expected
  assert means['exact_match'] == float(answer == 'suicide')
  assert means['r_precision'] == float(page == '10287141')


def test_web_questions(shared_data):
  """An oracle that says the last of several answers is right."""
  for name in ('test', 'val', 'devtest', 'trainmodel'):
    questions = reading.read_questions(
      shared_data / f'webquestions/{name}.json', record_format='web_questions'
    )
    means = _score(questions, lambda q: (q.answers[-1].upper(), ()))
    assert means['exact_match'] == 1
