"""Exact match, F1 and ROUGE-L against independent transcriptions."""

from collections import Counter
import json
import re
import string
import sys

import numpy as np
import pytest

from ralm_jax.evaluation import metrics

EDGE_TEXTS = [
  '',
  ' ',
  '.',
  '...',
  'a',
  'A',
  'The',
  'the the',
  'a an the',
  'The Who',
  'The Eiffel Tower.',
  'eiffel tower',
  'U.S.A.',
  'a.b.c',
  'a-b',
  'A - B',
  'theatre',
  'an-the-other',
  "the's",
  'l’été',
  'Wilhelm Conrad Röntgen',
  'Ro\u0308ntgen',
  'R\u00f6ntgen',
  'İstanbul',
  'ΟΔΟΣ',
  'straße',
  'STRASSE',
  'the\u00a0end',
  'the\u2003end',
  'a\tb\nc',
  '“quoted”',
  '1,234.5',
  '16.1 %',
  '\u200bthe\u200b',
  'é the',
  'thé',
  'athe',
  'the_end',
  '東京 the 都',
  'ﬁne',
  'a\u0301',
  '$',
  '€',
  'naïve — dash',
  'a\x1cb',
]


# evaluate-v1.1.py of SQuAD, transcribed step by step and kept apart from the
# implementation on purpose.
def official_normalize(s):
  def remove_articles(text):
    return re.sub(r'\b(a|an|the)\b', ' ', text)

  def white_space_fix(text):
    return ' '.join(text.split())

  def remove_punc(text):
    exclude = set(string.punctuation)
    return ''.join(ch for ch in text if ch not in exclude)

  def lower(text):
    return text.lower()

  return white_space_fix(remove_articles(remove_punc(lower(s))))


def official_f1(prediction, ground_truth):
  prediction_tokens = official_normalize(prediction).split()
  ground_truth_tokens = official_normalize(ground_truth).split()
  common = Counter(prediction_tokens) & Counter(ground_truth_tokens)
  num_same = sum(common.values())
  if num_same == 0:
    return 0
  precision = 1.0 * num_same / len(prediction_tokens)
  recall = 1.0 * num_same / len(ground_truth_tokens)
  return (2 * precision * recall) / (precision + recall)


def official_em(prediction, ground_truth):
  return official_normalize(prediction) == official_normalize(ground_truth)


def assert_official(prediction, answers):
  where = (prediction, answers)
  expected_em = max(official_em(prediction, a) for a in answers)
  assert metrics.exact_match(prediction, answers) == float(expected_em), where
  expected_f1 = max(official_f1(prediction, a) for a in answers)
  assert metrics.f1(prediction, answers) == expected_f1, where


def questions(shared_data, name):
  path = shared_data / 'qa' / name
  return [json.loads(line) for line in path.read_text('utf-8').splitlines()]


def test_known_values():
  assert metrics.exact_match('The Eiffel Tower.', ['eiffel tower']) == 1
  assert metrics.exact_match('Eiffel', ['eiffel tower']) == 0
  assert metrics.exact_match('tower', ['x', 'Tower!']) == 1
  # Two of three and two of two tokens: 2 * 2/3 * 1 / (5/3) = 0.8.
  assert metrics.f1('big eiffel tower', ['the Eiffel Tower']) == pytest.approx(0.8)
  # A repeated token counts as often as both sides have it.
  assert metrics.f1('bora bora', ['bora']) == pytest.approx(2 / 3)
  assert metrics.f1('x', ['y', 'x']) == 1
  assert isinstance(metrics.exact_match('a', ['b']), float)
  assert isinstance(metrics.f1('a', ['b']), float)


def test_normalization_keeps_the_official_order():
  # Punctuation vanishes before articles are looked for, and leaves no space.
  assert metrics.normalize_answer('a-b, the. An') == 'ab'
  assert metrics.normalize_answer('The end of a Thé') == 'end of thé'
  assert metrics.normalize_answer('“The” end') == '“ ” end'
  assert metrics.normalize_answer('the') == ''


@pytest.mark.parametrize('text', EDGE_TEXTS)
def test_edge_texts_agree_with_squad(text):
  assert metrics.normalize_answer(text) == official_normalize(text)
  for other in EDGE_TEXTS:
    assert_official(text, [other])
  assert_official(text, EDGE_TEXTS[::3])


def test_empty_texts_as_in_v1_1():
  assert metrics.exact_match('', ['The']) == 1.0
  assert metrics.f1('', ['The']) == 0.0
  assert metrics.f1('', ['x']) == 0.0


@pytest.mark.parametrize('name', ['qed_dev.jsonl', 'xquad_en.jsonl', 'timeqa_train.jsonl'])
def test_real_answers_agree_with_squad(shared_data, name):
  rows = questions(shared_data, name)
  matches = partial = 0
  for row, neighbour in zip(rows, rows[1:] + rows[:1]):
    answers = row['answers']
    first = answers[0]
    predictions = [
      first,
      f'The {first.upper()}.',
      first.replace(' ', '  '),
      ' '.join(first.split()[:-1]),
      f'{first} {neighbour["answers"][0]}',
      neighbour['answers'][-1],
      row['question'],
    ]
    for prediction in predictions:
      assert_official(prediction, answers)
      matches += metrics.exact_match(prediction, answers)
      partial += 0 < metrics.f1(prediction, answers) < 1
  # The comparison saw all three kinds of outcome.
  assert matches >= len(rows) and partial > len(rows) / 2


def longest_common_subsequence(a, b):
  row = [0] * (len(b) + 1)
  for x in a:
    diagonal = 0
    for j, y in enumerate(b, 1):
      diagonal, row[j] = row[j], (diagonal + 1 if x == y else max(row[j], row[j - 1]))
  return row[-1]


def plain_rouge_l(prediction, answer):
  p, a = (re.findall('[a-z0-9]+', t.lower()) for t in (prediction, answer))
  common = longest_common_subsequence(p, a)
  return 2 * common / (len(p) + len(a)) if common else 0.0


def test_rouge_l(shared_data):
  pytest.importorskip('rouge_score')
  # 'the cat ... mat' in order: 3 of 4 and 3 of 5 tokens.
  assert metrics.rouge_l('the cat mat sat', ['the big cat mat on']) == (pytest.approx(2 * 3 / 9))
  assert metrics.rouge_l('x', ['', 'X.']) == 1.0
  assert metrics.rouge_l('', ['x']) == 0.0
  assert metrics.rouge_l('runs', ['running']) == 0.0
  assert metrics.rouge_l('runs', ['running'], use_stemmer=True) == 1.0
  rows = questions(shared_data, 'qed_dev.jsonl')[:300]
  for row, neighbour in zip(rows, rows[1:]):
    prediction = f'{neighbour["question"]} {row["answers"][0]} {row["question"]}'
    answers = [*row['answers'], neighbour['question'], row['question']]
    assert metrics.rouge_l(prediction, answers) == pytest.approx(
      max(plain_rouge_l(prediction, a) for a in answers)
    )


def test_rouge_l_says_what_to_install(monkeypatch):
  metrics.rouge_scorer.cache_clear()
  monkeypatch.setitem(sys.modules, 'rouge_score', None)
  with pytest.raises(ImportError, match='pip install rouge-score'):
    metrics.rouge_l('x', ['x'])


@pytest.mark.parametrize('metric', [metrics.exact_match, metrics.f1, metrics.rouge_l])
def test_wrong_arguments(metric):
  with pytest.raises(TypeError, match=r'write \[answer\]'):
    metric('eiffel tower', 'eiffel tower')
  with pytest.raises(ValueError, match='answers is empty'):
    metric('eiffel tower', [])
  with pytest.raises(TypeError, match='prediction must be a string'):
    metric(None, ['x'])
  with pytest.raises(TypeError, match='3'):
    metric('x', ['y', 3])


def test_mean_metrics():
  rows = [
    {'exact_match': 1.0, 'recall': None, 'gold': None},
    {'exact_match': np.float32(0.0), 'recall': True},
    {'exact_match': 0, 'recall': np.False_, 'late': np.array(2.0)},
  ]
  assert metrics.mean_metrics(rows) == {
    'exact_match': pytest.approx(1 / 3),
    'recall': 0.5,
    'gold': None,
    'late': 2.0,
  }
  assert metrics.mean_metrics([]) == {}
  with pytest.raises(TypeError, match="'f1' of row 1 is '0.5'"):
    metrics.mean_metrics([{'f1': 1.0}, {'f1': '0.5'}])
  with pytest.raises(TypeError, match="'f1' of row 0"):
    metrics.mean_metrics([{'f1': [0.5]}])


def test_mean_metrics_does_not_depend_on_the_order():
  random = np.random.default_rng(0)
  values = random.random(1000) * 10.0 ** random.integers(-5, 5, 1000)
  rows = [{'f1': value} for value in values]
  assert metrics.mean_metrics(rows) == metrics.mean_metrics(rows[::-1])
