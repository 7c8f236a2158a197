"""MMLU's averages, against the official script's as it defines them."""

import random

import numpy as np
import pytest

from ralm_jax.evaluation import summary
from ralm_jax.evaluation.scores import mmlu
from tests import tiny


def test_categories_are_those_of_mmlu():
  assert {name: len(subjects) for name, subjects in mmlu.CATEGORIES.items()} == {
    'humanities': 13,
    'social_sciences': 12,
    'stem': 18,
    'other': 14,
  }
  assert len(mmlu.CATEGORY_OF) == 57


def _made_records(n, subjects):
  rng = random.Random(0)
  records = []
  for i in range(n):
    right, debiased = rng.random() < 0.4, rng.random() < 0.6
    records.append(
      {
        'id': str(i),
        'query': f'q{rng.randrange(n)}',
        'options': ['a', 'b'],
        'answers': ['A'],
        'prediction': 'A' if debiased else 'B',
        'group': rng.choice(subjects),
        'metrics': {'accuracy': float(right), 'debiased_accuracy': float(debiased)},
      }
    )
  return records


def _official_score(records, subjects):
  """Atlas's `score_categories`, from the description of its code."""
  hits, debiased_hits = [], []
  for subject in subjects:
    of_question = {
      row['query'] + str(row['options']): row['metrics']
      for row in records
      if row['group'] == subject
    }
    hits += [row['accuracy'] for row in of_question.values()]
    debiased_hits += [row['debiased_accuracy'] for row in of_question.values()]
  return sum(hits) / len(hits), sum(debiased_hits) / len(debiased_hits)


def test_category_averages_are_those_of_the_official_script():
  records = _made_records(4000, sorted(mmlu.CATEGORY_OF))
  unique = mmlu.unique(records)
  assert 3900 < len(unique) < 4000  # Some questions are asked twice.
  for rows in (unique, records):
    found = mmlu.summary(rows)['categories']
    assert found['all']['count'] == len(rows)
  found = mmlu.summary(unique)['categories']
  for name, subjects in [*mmlu.CATEGORIES.items(), ('all', sorted(mmlu.CATEGORY_OF))]:
    expected = _official_score(records, subjects)
    assert (found[name]['accuracy'], found[name]['debiased_accuracy']) == (pytest.approx(expected))


def test_micro_and_macro_averages():
  records = (
    _made_records(60, ['astronomy'])
    + _made_records(30, ['virology'])
    + _made_records(10, ['of_my_own'])
  )
  found = summary.summarize(records, 'multiple_choice')
  groups = found['groups']
  mean = lambda rows: np.mean([row['metrics']['accuracy'] for row in rows])
  assert found['count'] == 100 and found['accuracy'] == mean(records)
  assert set(found['categories']) == {'stem', 'other', 'all'}
  assert found['categories']['all']['count'] == 90
  assert found['categories']['all']['accuracy'] == mean(records[:90])
  assert found['subject_average']['accuracy'] == pytest.approx(
    np.mean([groups['astronomy']['accuracy'], groups['virology']['accuracy']])
  )
  assert mmlu.summary(records[90:]) == {}


def test_table_of_several_files(tmp_path, capsys):
  for subject in ('astronomy', 'virology'):
    rows = _made_records(50, [subject])
    tiny.write_jsonl(tmp_path / f'{subject}.jsonl', rows + rows[:1])
  files = str(tmp_path / '*.jsonl')
  mmlu.main([files])
  lines = {line[:36].strip(): line[36:].split() for line in capsys.readouterr().out.splitlines()}
  assert [
    lines[name][0] for name in ('astronomy', 'stem', 'virology', 'all', 'mean of subjects')
  ] == ['51', '51', '51', '102', '2']
  assert 'humanities' not in lines
  mmlu.main([files, '--unique'])
  n_unique = len({row['query'] for row in _made_records(50, ['astronomy'])})
  assert f'{2 * n_unique}' == next(
    line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith('all')
  )
  with pytest.raises(ValueError, match='subject of MMLU'):
    mmlu.table([{'metrics': {}}])
