"""Multiple choice: averages over orders, and the protocol with known readers."""

import collections
import dataclasses
import functools
import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ralm_jax.data.questions import multiple_choice, reading
from ralm_jax.data.questions.reading import Question
from ralm_jax.evaluation import choice_evaluator, gathering
from ralm_jax.evaluation.choice_evaluator import ChoiceEvaluator
from ralm_jax.evaluation.records import Answer
from ralm_jax.evaluation.task import ScoringOptions
from ralm_jax.models.choices import ChoiceTokens
from ralm_jax.retrieval.index_source import IndexSource
from ralm_jax.runs import opening
from tests import tiny


def ask(options='wxyz', answers='C', **fields):
  return Question(
    **{
      'id': 'id',
      'question': 'why?',
      'gold_passage_ids': (),
      'line': 1,
      'options': tuple(options),
      'answers': tuple(answers),
      **fields,
    }
  )


def test_average_over_orders():
  """A reader that likes the letter A, and knows a little."""
  orders = multiple_choice.orderings(4, 'cyclic')
  knows, likes = np.asarray([0.0, 0.0, 1.0, 0.5]), np.asarray([3.0, 0, 0, 0])
  logits = np.stack([knows[list(order)] + likes for order in orders])
  result = choice_evaluator.combine('wxyz', orders, logits)
  assert result.first_choices == (0, 3, 2, 1) and result.choice == 2
  softmax = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  expected = [
    np.mean([softmax[i, order.index(option)] for i, order in enumerate(orders)])
    for option in range(4)
  ]
  np.testing.assert_allclose(result.probabilities, expected, rtol=1e-12)
  assert result.metrics(ask()) == {
    'accuracy': 0.0,
    'permuted_accuracy': 0.25,
    'debiased_accuracy': 1.0,
  }
  assert set(result.metrics(ask(answers='')).values()) == {None}


def _atlas_marginal(options, orders, logits):
  """Atlas's average, by option text, from the description of its code."""
  of_text = collections.defaultdict(list)
  for order, row in zip(orders, logits):
    weights = np.exp(row - row.max())
    for letter, probability in enumerate(weights / weights.sum()):
      of_text[options[order[letter]]].append(probability)
  return {text: np.mean(values) for text, values in of_text.items()}


@pytest.mark.parametrize('kind', multiple_choice.PERMUTATIONS)
@pytest.mark.parametrize('options', [('a', 'b', 'c', 'd'), ('a', 'b', 'a', 'd'), ('a', 'b', 'c')])
def test_average_is_that_of_atlas(kind, options):
  orders = multiple_choice.orderings(len(options), kind)
  logits = np.random.default_rng(0).normal(0, 4, (len(orders), len(options)))
  result = choice_evaluator.combine(options, orders, logits)
  expected = _atlas_marginal(options, orders, logits)
  for option, probability in zip(options, result.probabilities):
    assert probability == pytest.approx(expected[option])
  assert options[result.choice] == max(expected, key=expected.get)
  assert result.probabilities.sum() == pytest.approx(1)


def test_options_of_equal_text_are_equally_right():
  question = ask(options=('same', 'b', 'same', 'd'), answers='C')
  result = choice_evaluator.combine(question.options, [(0, 1, 2, 3)], np.asarray([[5.0, 0, 1, 0]]))
  assert result.choice == 0  # The first of the two.
  assert set(result.metrics(question).values()) == {1.0}


# The protocol, on a real model with its index.


@pytest.fixture(scope='module')
def trained():
  return tiny.trained()


@pytest.fixture(scope='module')
def opened(trained):
  """Its prompts fit: the tiny run was trained on shorter questions."""
  opened = opening.open_checkpoint(trained.run)
  text = dataclasses.replace(opened.spec.text, reader_query_length=70, passage_length=110)
  return dataclasses.replace(
    opened,
    spec=dataclasses.replace(
      opened.spec, tokenizer=dataclasses.replace(opened.spec.tokenizer, text=text)
    ),
  )


def make_questions(n=9):
  rng = random.Random(1)
  words = 'red green blue white black golden silver'.split()
  result = []
  for i in range(n):
    options = rng.sample(words, 3 if i % 4 == 3 else 4)
    result.append(
      ask(
        options,
        rng.choice('ABCD'[: len(options)]),
        id=f'q{i}',
        line=i,
        question=f'what is the colour of {tiny.names()[i]}?',
        group='astronomy' if i % 2 else 'virology',
        metadata={'i': i},
      )
    )
  return result


@pytest.fixture(scope='module')
def evaluator(trained, opened):
  with opening.open_evaluator(opened, IndexSource(trained.index), batch_size=8) as evaluator:
    yield evaluator


@pytest.fixture(scope='module')
def records(opened, evaluator):
  return list(
    ChoiceEvaluator(evaluator, permutations='cyclic').predictions(opened.params, make_questions())
  )


def test_records(opened, evaluator, records):
  questions = make_questions()
  assert [record['id'] for record in records] == [q.id for q in questions]
  for question, record in zip(questions, records):
    n = len(question.options)
    assert [p['order'] for p in record['permutations']] == {
      3: ['ABC', 'CAB', 'BCA'],
      4: ['ABCD', 'DABC', 'CDAB', 'BCDA'],
    }[n]
    assert all(len(p['logits']) == n for p in record['permutations'])
    assert sum(record['choice_probabilities']) == pytest.approx(1)
    best = 'ABCD'[int(np.argmax(record['choice_probabilities']))]
    assert record['prediction'] == best
    assert record['log_probability'] == pytest.approx(np.log(max(record['choice_probabilities'])))
    assert record['metrics']['debiased_accuracy'] == float(best in record['answers'])
    assert len(record['passages']) == 3 and record['index']
    assert record['group'] == question.group and record['metadata']
    assert record['query'] == question.question
    # An option's text is what a passage may hold.
    assert 'recall@1_answer' in record['metrics']
  json.dumps(records)


def test_logits_are_those_of_the_prompt(opened, evaluator, records):
  """One order of one question, by hand."""
  question = make_questions()[1]
  shown = multiple_choice.render(
    multiple_choice.permuted(question, (3, 0, 1, 2)), opened.spec.tokenizer
  )
  tokenizer = opened.spec.tokenizer
  retrieved = evaluator.retrieve(opened.params, [shown])
  batch = evaluator.reader_batch([shown], retrieved)
  targets = list(map(tokenizer.target, 'ABCD'))
  scores = jax.jit(
    functools.partial(opened.spec.model.choice_logits, choices=ChoiceTokens.make(targets))
  )(opened.params, batch)
  np.testing.assert_allclose(records[1]['permutations'][1]['logits'], scores[0], atol=1e-4)


def test_batches_and_resuming_change_nothing(trained, opened, records):
  with opening.open_evaluator(
    opened,
    IndexSource(trained.index),
    batch_size=5,
    scoring=ScoringOptions(passage_effects=True, with_loss=True),
  ) as evaluator:
    chooser = ChoiceEvaluator(evaluator, permutations='cyclic')
    questions = make_questions()
    again = list(chooser.predictions(opened.params, questions, done=1))
  assert [record['id'] for record in again] == [f'q{i}' for i in range(5, 9)]
  for one, other in zip(records[5:], again):
    np.testing.assert_allclose(
      one['choice_probabilities'], other['choice_probabilities'], atol=1e-5
    )
    assert [p['id'] for p in one['passages']] == [p['id'] for p in other['passages']]
    assert 'loss' not in one['metrics'] and other['metrics']['loss'] > 0
    effects = [passage['effect'] for passage in other['passages']]
    assert np.all(np.isfinite(effects)) and np.any(effects)


def test_prompts_that_do_not_fit_are_refused(trained, evaluator):
  opened = opening.open_checkpoint(trained.run)
  with opening.open_evaluator(opened, IndexSource(trained.index), batch_size=8) as short:
    with pytest.raises(ValueError, match='set it to .* or more'):
      next(ChoiceEvaluator(short).predictions(opened.params, make_questions()))


# Readers whose answers are known.


class KnownReader:
  """Stands for model and passages; letters are scored as a function says."""

  def __init__(self, score, size=64):
    self._score_letters = score
    self._shown = None
    self.batch_size = self.size = size
    self.scoring = ScoringOptions()
    tokenizer = type(
      'Tokenizer',
      (),
      {
        'target': staticmethod(lambda letter: [5, ord(letter)]),
        'text': type(
          'Text',
          (),
          {'reader_query_length': 10**6, 'choice_prompt_length': 356, 'query': staticmethod(str)},
        ),
        'reader_vocabulary': type(
          'Vocabulary', (), {'encode': staticmethod(lambda text: text.split()), 'pad_id': 0}
        ),
      },
    )
    model = type('Model', (), {'choice_logits': staticmethod(lambda params, batch, choices: None)})
    self.spec = type('Spec', (), {'tokenizer': tokenizer, 'model': model})
    self.partitioner = self

  def partition_rows(self, function):
    del function
    return lambda params, batch: jnp.asarray(
      [self._score_letters(question) for question in self._shown]
      + [[0.0] * 4] * (self.size - len(self._shown))
    )

  def put_batch(self, batch):
    return batch

  def heads(self, params, questions):
    return None

  def find(self, params, questions, heads):
    self._shown = questions
    return None, [Answer(None, None, ())] * len(questions)

  def with_likelihoods(self, params, batch, questions, tokens, answers):
    return answers

  def reader_batch(self, questions, retrieved, heads):
    return None


@pytest.mark.parametrize('n', [1, 9, 12])
def test_processes_share_the_questions(monkeypatch, n):
  """Each answers its own, as `gathering.parts` has it, in as many batches."""
  questions = make_questions(n)
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  answered, batches = [], []
  for process in range(2):
    monkeypatch.setattr(jax, 'process_index', lambda process=process: process)
    reader = KnownReader(lambda q: [1.0 * (letter in q.answers) for letter in 'ABCD'], size=3)
    reader.batch_size = 6
    find, count = reader.find, []
    reader.find = lambda *args, find=find, count=count: (count.append(1), find(*args))[1]
    chooser = ChoiceEvaluator(reader, permutations='all')
    rows = list(chooser.predictions(None, questions))
    mine = [q.id for part in gathering.parts(questions, 6, process=process) for q in part]
    assert [row['id'] for row in rows] == mine
    assert all(row['metrics']['debiased_accuracy'] == 1 for row in rows)
    answered += mine
    batches.append(len(count))
  assert sorted(answered) == sorted(q.id for q in questions)
  assert batches[0] == batches[1]


def mmlu(shared_data):
  files = sorted((shared_data / 'mmlu').glob('test/*_test.csv'))
  if not files:
    pytest.skip('MMLU is not among the real data')
  return reading.read_questions(files, record_format='mmlu')


def known_metrics(score, questions, permutations):
  chooser = ChoiceEvaluator(KnownReader(score), permutations=permutations)
  return chooser.evaluate(None, questions)


def test_a_reader_that_knows_gets_everything(shared_data):
  questions = mmlu(shared_data)
  knows = lambda q: [1.0 * (letter in q.answers) for letter in 'ABCD']
  found = known_metrics(knows, questions, 'cyclic')
  assert found['count'] == len(questions) == 1067
  assert found['accuracy'] == found['permuted_accuracy'] == 1
  assert found['debiased_accuracy'] == 1
  assert found['categories']['all']['debiased_accuracy'] == 1
  assert found['categories']['stem']['count'] == 562


def test_a_reader_that_always_says_c(shared_data):
  """Standard accuracy is C's share; over all orders every letter's is 1/4."""
  questions = mmlu(shared_data)
  found = known_metrics(lambda q: [0.0, 0, 9, 0], questions, 'cyclic')
  share = np.mean([q.answers == ('C',) for q in questions])
  assert found['accuracy'] == pytest.approx(share)
  assert found['permuted_accuracy'] == pytest.approx(0.25)
  # De-biased nothing is left: all options are equal and the first is taken.
  assert found['debiased_accuracy'] == pytest.approx(
    np.mean([q.answers == ('A',) for q in questions])
  )


def test_a_reader_that_guesses(shared_data):
  """Within four standard errors of one in four, de-biased too."""
  questions = mmlu(shared_data)
  rng = np.random.default_rng(0)
  found = known_metrics(lambda q: rng.normal(size=4), questions, 'all')
  error = np.sqrt(0.25 * 0.75 / len(questions))
  for name in ('accuracy', 'permuted_accuracy', 'debiased_accuracy'):
    assert abs(found[name] - 0.25) < 4 * error, name


def test_a_biased_reader_that_knows_a_little(shared_data):
  """What de-biasing is for: knowledge weaker than the taste for a letter."""
  questions = mmlu(shared_data)

  def score(question):
    return [2.0 * (letter == 'B') + 0.5 * (letter in question.answers) for letter in 'ABCD']

  found = known_metrics(score, questions, 'cyclic')
  assert found['debiased_accuracy'] == 1
  assert found['accuracy'] == pytest.approx(np.mean([q.answers == ('B',) for q in questions]))


def test_questions_that_are_none():
  choice_evaluator.check('qa', [ask(options='')], 'cyclic')
  with pytest.raises(ValueError, match="'options' is missing"):
    choice_evaluator.check('multiple_choice', [ask(options='', answers='')], 'cyclic')
  with pytest.raises(ValueError, match='7 options are too many'):
    choice_evaluator.check('multiple_choice', [ask(options='abcdefg')], 'all')
