"""The table of metric families."""

import pytest

from ralm_jax.data.option_values import METRICS_FAMILIES
from ralm_jax.data.questions.reading import Question
from ralm_jax.evaluation.scores import by_task


def _question(**fields):
  values = {'id': 'q', 'question': 'which?', 'answers': ('B',), 'gold_passage_ids': (), 'line': 1}
  return Question(**{**values, **fields})


@pytest.mark.parametrize('name', METRICS_FAMILIES)
def test_a_right_answer_of_every_family(name):
  family = by_task.family(name)
  assert family.name == name
  scores = family.of_question('who wrote Hamlet', ['who wrote Hamlet'])
  assert scores and all(0 < score < 1 + 1e-9 for score in scores.values())
  records = [
    {'prediction': 'who wrote it', 'answers': ['who wrote it'], 'group': 'x', 'metrics': {}}
  ]
  assert all(0 < score < 1 + 1e-9 for score in by_task.corpus_metrics(name, records).values())
  assert family.chooses == (name == 'multiple_choice')


def test_strings_that_helpful_passages_hold():
  choice = _question(options=('red', 'green'))
  for name in METRICS_FAMILIES:
    assert by_task.family(name).answer_strings(choice) == ('green',)
  assert by_task.family('qa').answer_strings(_question()) == ('B',)
  assert by_task.family('qa').answer_strings(_question(patterns=True)) == ()
  assert by_task.family('label').answer_strings(_question()) == ()


def test_the_family_of_questions():
  assert by_task.family_of([]) == by_task.family_of([_question()]) == 'qa'
  choice = _question(options=('red', 'green'))
  assert by_task.family_of([choice]) == 'multiple_choice'
  assert by_task.family_of([choice, _question()], 'label') == 'label'
  with pytest.raises(ValueError, match='by multiple_choice and qa; evaluate them apart'):
    by_task.family_of([choice, _question()])
  with pytest.raises(ValueError, match="'bleu' are unknown"):
    by_task.family_of([_question(metrics='bleu')])
