"""How questions are divided."""

import random

import pytest

from ralm_jax.data.questions.reading import Question
from ralm_jax.preparation import splits


def _questions(n, path='o.jsonl'):
  return [
    Question(
      id=f'{path}:{i + 1}',
      question=f'question {i}',
      answers=('a',),
      gold_passage_ids=(),
      line=i + 1,
      path=path,
    )
    for i in range(n)
  ]


def test_a_hash_of_the_question_alone_decides():
  questions = _questions(3000)
  carved = splits.carve(questions, {'test': 0.2, 'dev': 0.1}, 'train')
  assert sum(map(len, carved.values())) == 3000
  # Three standard deviations around the shares.
  assert abs(len(carved['test']) - 600) < 66 and abs(len(carved['dev']) - 300) < 50
  shuffled = random.Random(1).sample(questions, 2000)
  again = splits.carve(shuffled, {'test': 0.2, 'dev': 0.1}, 'train')
  for name in carved:
    assert set(again[name]) <= set(carved[name])
  # A copy of a question never leaves for another split.
  copies = splits.carve(questions + _questions(3000, 'p.jsonl'), {'dev': 0.1}, 'train')
  texts = {name: {q.question for q in chosen} for name, chosen in copies.items()}
  assert not texts['dev'] & texts['train']


def test_fractions_that_cannot_be():
  with pytest.raises(ValueError, match='give 0 to 1'):
    splits.carve(_questions(9), {'dev': 1.5}, 'train')
  with pytest.raises(ValueError, match='more than all'):
    splits.carve(_questions(9), {'dev': 0.6, 'test': 0.6}, 'train')
  with pytest.raises(ValueError, match='too few questions to make dev'):
    splits.carve(_questions(1), {'dev': 1e-9}, 'train')
  assert list(splits.carve(_questions(9), {'dev': 0.0}, 'train')) == ['train']


def test_lists_of_places(tmp_path):
  path = tmp_path / 'NQ.dev.idx.json'
  path.write_text('[3, 0, 4]')
  questions = _questions(5)
  chosen = splits.at(questions, str(path))
  assert [q.question for q in chosen] == ['question 3', 'question 0', 'question 4']
  # A malformed record that was left out does not move the others.
  left = questions[:3] + questions[4:]
  with pytest.raises(ValueError, match='entry 0 is 3, but the original has no such'):
    splits.at(left, str(path))
  chosen = splits.at(left, str(path), skipped=True)
  assert [q.question for q in chosen] == ['question 0', 'question 4']
  with pytest.raises(ValueError, match='entry 2 is 4, but the original ends at 3'):
    splits.at(questions[:4], str(path), skipped=True)
  for content, message in (
    ('[1, 1]', 'entry 1: 1 is in the list twice'),
    ('[-1]', 'entry 0 is -1'),
    ('[true]', 'entry 0 is True'),
    ('{}', 'JSON list'),
    ('[1', 'malformed'),
  ):
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
      splits.read_indexes(str(path))


def test_auxiliary_questions_as_atlas_shuffles_them():
  questions = _questions(50)
  train, valid = splits.auxiliary(questions, 10)
  # The words of its script, with our order of files.
  random.seed(10)
  combined = list(questions)
  random.shuffle(combined)
  assert valid == combined[-10:] and train == combined[:-10]
  for n in (0, 50):
    with pytest.raises(ValueError, match='50 auxiliary questions'):
      splits.auxiliary(questions, n)
