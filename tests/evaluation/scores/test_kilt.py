"""KILT's scores against its official scorer, and its prediction files.

The official scorer (eval_downstream.py and eval_retrieval.py of
facebookresearch/KILT at 847377e and c730838, and ROUGE-L of the `rouge` package
1.0.1 that it calls) is written out here from its source, apart from ours.
"""

import collections
import functools
import json
import random
import re
import string

import pytest

from ralm_jax import cli
from ralm_jax.data.questions.formats import kilt
from ralm_jax.evaluation import kilt_predictions, metrics
from ralm_jax.evaluation.scores import kilt as kilt_metrics

# The official scorer.


def _official_normalize(text):
  text = ''.join(c for c in text.lower() if c not in set(string.punctuation))
  return ' '.join(re.sub(r'\b(a|an|the)\b', ' ', text).split())


def _official_f1(prediction, answer):
  prediction = _official_normalize(prediction).split()
  answer = _official_normalize(answer).split()
  same = sum((collections.Counter(prediction) & collections.Counter(answer)).values())
  if same == 0:
    return 0
  precision, recall = same / len(prediction), same / len(answer)
  return (2 * precision * recall) / (precision + recall)


def _official_rouge_l(prediction, answer):
  hypothesis, reference = (
    [' '.join(s.split()) for s in text.split('.') if len(s) > 0] for text in (prediction, answer)
  )
  if not hypothesis or not reference:
    return 0.0  # Its ValueError is caught.
  union = set()
  for r in reference:
    x = r.split(' ')
    for h in hypothesis:
      y = h.split(' ')

      @functools.cache
      def table(i, j, x=x, y=y):
        if i == 0 or j == 0:
          return 0
        if x[i - 1] == y[j - 1]:
          return table(i - 1, j - 1) + 1
        return max(table(i - 1, j), table(i, j - 1))

      def reconstruct(i, j, x=x, y=y, table=table):
        if i == 0 or j == 0:
          return []
        if x[i - 1] == y[j - 1]:
          return reconstruct(i - 1, j - 1) + [x[i - 1]]
        if table(i - 1, j) > table(i, j - 1):
          return reconstruct(i - 1, j)
        return reconstruct(i, j - 1)

      union |= set(reconstruct(len(x), len(y)))
  r = len(union) / len({w for s in reference for w in s.split(' ')})
  p = len(union) / len({w for s in hypothesis for w in s.split(' ')})
  return 2.0 * ((p * r) / (p + r + 1e-8))


def _official_ids(item):
  lists = []
  for output in item['output']:
    ids = []
    for provenance in output.get('provenance', []):
      if 'wikipedia_id' in provenance:
        one = str(provenance['wikipedia_id']).strip()
        if one not in ids:
          ids.append(one)
    lists.append(ids)
  return lists


def _official_r_precision(guess, gold):
  guessed = _official_ids(guess)[0]
  scores = []
  for ids in _official_ids(gold):
    hits = sum(page in ids for page in guessed[: len(ids)])
    scores.append(hits / len(ids) if ids else 0)
  return max(scores)


def _official_rank(guess, gold):
  guessed = _official_ids(guess)[0]
  if not guessed:
    return [], 0
  sets = []
  for output in gold['output']:
    if 'provenance' in output:
      one = {str(p['wikipedia_id']).strip() for p in output['provenance']}
      if one not in sets:
        sets.append(one)
  count = len(sets)
  rank = []
  for page in guessed:
    found = False
    for index, left in enumerate(sets):
      if page not in left:
        continue
      found = True
      if f'set {index}' in rank:
        rank.remove(f'set {index}')
      left.remove(page)
      rank.append(f'set {index}' if left else True)
    if not found:
      rank.append(False)
  return rank, count


def _official(gold_items, guess_items, ks):
  """Means over a file, by our names."""
  totals = collections.Counter()
  for gold, guess in zip(gold_items, guess_items):
    r_precision = _official_r_precision(guess, gold)
    totals['r_precision'] += r_precision
    rank, count = _official_rank(guess, gold)
    for k in ks:
      if count > 0:
        totals[f'recall@{k}_page'] += rank[:k].count(True) / count
        totals[f'precision@{k}_page'] += rank[:k].count(True) / k
        totals[f'success_rate@{k}_page'] += int(True in rank[:k])
    answers = {
      o['answer'].strip() for o in gold['output'] if o.get('answer') and o['answer'].strip()
    }
    answer = str(guess['output'][0]['answer']).strip()
    if not answer:
      continue
    scores = {
      'accuracy': int(answer in answers),
      'exact_match': max(_official_normalize(answer) == _official_normalize(a) for a in answers),
      'f1': max(_official_f1(answer, a) for a in answers),
      'rouge_l': max(_official_rouge_l(answer, a) for a in answers),
    }
    for name, score in scores.items():
      totals[name] += score
      totals[f'kilt_{name}'] += score if r_precision == 1 else 0
  return {name: total / len(gold_items) for name, total in totals.items()}


# Ours, from the files that users have.

_KS = (1, 2, 5, 20)
_PAGES = kilt_predictions.PageOptions(page_separators='_')


def _ours(tmp_path, gold_items, predictions, record_format):
  """Means of our scores, and the prediction file as the scorer reads it."""
  gold = tmp_path / 'gold.jsonl'
  gold.write_text(''.join(json.dumps(item) + '\n' for item in gold_items))
  rows = [r.row for r in kilt.with_questions(record_format, {}).records(str(gold))]
  scores = []
  for row, prediction in zip(rows, predictions, strict=True):
    answer = kilt_metrics.kilt_metrics(prediction['prediction'], row['answers'])
    found = [page for p in prediction['passages'] if (page := _PAGES.page_of(p))]
    pages = kilt_metrics.provenance_metrics(found, row.get('provenance', ()), _KS)
    scores.append(answer | pages | kilt_metrics.combined(answer, pages))
  path = tmp_path / 'predictions.jsonl'
  path.write_text(''.join(json.dumps(p) + '\n' for p in predictions))
  count = kilt_predictions.write(
    path, tmp_path / 'guess.jsonl', record_format=record_format, pages=_PAGES
  )
  guess = [json.loads(line) for line in (tmp_path / 'guess.jsonl').read_text().splitlines()]
  assert count == len(guess) == len(gold_items)
  assert [str(g['id']) for g in guess] == [str(g['id']) for g in gold_items]
  return metrics.mean_metrics(scores), guess


def _prediction(number, text, pages):
  return {
    'id': str(number),
    'prediction': text,
    'passages': [
      {'id': f'{page}_{i}', 'title': f'T{page}', 'text': 'x'} for i, page in enumerate(pages)
    ],
  }


_WORDS = (
  'the',
  'A',
  'river',
  'River',
  'Oslo',
  'in',
  '1945',
  'naïve',
  'U.S.',
  'end.',
  '“so”',
  'is',
  'not',
  '...',
  'war',
)


def _made(count, seed, labels=False):
  """Gold records and predictions that touch every rule."""
  rng = random.Random(seed)

  def text():
    return ' '.join(rng.choices(_WORDS, k=rng.randint(1, 9)))

  def pages(most):
    return [str(rng.randint(1, 6)) for _ in range(rng.randint(0, most))]

  gold, predictions = [], []
  for number in range(count):
    answers = (
      [rng.choice(('SUPPORTS', 'REFUTES'))]
      if labels
      else [text() for _ in range(rng.randint(1, 3))]
    )
    output = []
    for answer in answers:
      output.append({'answer': f' {answer}' if rng.random() < 0.2 else answer})
      if found := pages(3):
        output[-1]['provenance'] = [{'wikipedia_id': page} for page in found]
    if rng.random() < 0.3:  # Evidence beside the answers, as ELI5's.
      output.append({'provenance': [{'wikipedia_id': 2}, {'wikipedia_id': 3}]})
    gold.append({'id': number, 'input': 'q', 'output': output})
    right = {'SUPPORTS': 'true', 'REFUTES': 'false'}.get(answers[-1], answers[-1])
    guess = rng.choice((right, right, right.lower(), f'{right} ', text(), '', '...'))
    known = [p['wikipedia_id'] for p in output[0].get('provenance', [])]
    found = known + pages(3) if rng.random() < 0.4 else pages(8)
    predictions.append(_prediction(number, guess, found))
  return gold, predictions


@pytest.mark.parametrize('record_format', ['kilt_nq', 'kilt_fever'])
def test_made_rows_score_as_the_official_scorer_has_them(record_format, tmp_path):
  gold, predictions = _made(200, seed=1, labels=record_format == 'kilt_fever')
  ours, guess = _ours(tmp_path, gold, predictions, record_format)
  official = _official(gold, guess, _KS)
  assert 0.1 < official['kilt_accuracy'] < official['accuracy'] < 0.7
  assert 0.05 < official['r_precision'] < 0.9
  assert ours == pytest.approx(official, abs=1e-12)


def test_published_rows_score_as_kilts_own_tests_have_them(shared_data, tmp_path):
  path = shared_data / 'kilt' / 'zsre_gold1.jsonl'
  gold = [json.loads(line) for line in path.read_text().splitlines()]
  predictions = [
    _prediction(1, 'suicide', ['10287141']),
    _prediction(2, 'a suicide', ['999']),
    _prediction(3, 'suicide', ['999']),
  ]
  ours, guess = _ours(tmp_path, gold, predictions, 'kilt_zsre')
  # Of tests/test_eval_downstream.py there.
  published = {
    'kilt_exact_match': 1 / 3,
    'kilt_f1': 1 / 3,
    'kilt_rouge_l': 0.3333333316666667,
    'exact_match': 2 / 3,
    'f1': 0.8333333333333334,
    'rouge_l': 0.7222222178240741,
    'r_precision': 1 / 3,
    'recall@5_page': 1 / 3,
  }
  assert {name: ours[name] for name in published} == pytest.approx(published, abs=1e-15)
  assert ours == pytest.approx(_official(gold, guess, _KS), abs=1e-15)
  oracle = [_prediction(g['id'], g['output'][0]['answer'], ['10287141']) for g in gold]
  perfect, _ = _ours(tmp_path, gold, oracle, 'kilt_zsre')
  assert perfect['accuracy'] == perfect['kilt_f1'] == perfect['recall@5_page'] == 1
  assert perfect['kilt_rouge_l'] == pytest.approx(0.999999995, abs=1e-15)


def test_evidence_sets_as_kilts_own_tests_have_them():
  scores = kilt_metrics.provenance_metrics(
    ['2', '5', '7', '33', '1', '9', '44', '88'], [('1', '2'), ('5',), ('7', '9', '11')], (1, 5)
  )
  assert scores == {
    'r_precision': 1 / 2,
    'precision@1_page': 1,
    'precision@5_page': 2 / 5,
    'recall@1_page': 1 / 3,
    'recall@5_page': 2 / 3,
    'success_rate@1_page': 1,
    'success_rate@5_page': 1,
  }


def test_a_page_counts_once():
  # Passages of one page push nothing down.
  few = kilt_metrics.provenance_metrics(['1', '1', '1', '2'], [('2',)], (1, 2))
  assert few['recall@1_page'] == 0 and few['recall@2_page'] == 1
  # One set named by two answers is one set.
  twice = kilt_metrics.provenance_metrics(['1', '2'], [('1', '2'), ('2', '1')], (1,))
  assert twice['recall@1_page'] == 1 and twice['r_precision'] == 1


def test_nothing_retrieved_or_nothing_known_scores_zero():
  for pages, provenance in (([], [('1',)]), (['1'], ())):
    assert set(kilt_metrics.provenance_metrics(pages, provenance).values()) == {0.0}
  scores = kilt_metrics.kilt_metrics('  ', ['x'])
  assert set(scores.values()) == {0.0}
  with pytest.raises(ValueError, match='empty'):
    kilt_metrics.kilt_metrics('x', [' '])
  with pytest.raises(TypeError, match='list'):
    kilt_metrics.kilt_metrics('x', 'x')
  with pytest.raises(TypeError, match='list'):
    kilt_metrics.provenance_metrics(['1'], ['22'])


def test_rouge_l_is_that_of_the_rouge_package():
  rng = random.Random(0)
  texts = [' '.join(rng.choices(_WORDS, k=rng.randint(1, 25))) for _ in range(60)]
  texts += ['.', '...', 'a. . b', 'x', ' . ', 'Straße. ΣΟΦΙΑ']
  differ = 0
  for first, second in zip(texts, reversed(texts)):
    score = kilt_metrics.rouge_l(first, second)
    assert score == pytest.approx(_official_rouge_l(first, second), abs=1e-15)
    differ += abs(score - metrics.rouge_l(first, [second])) > 0.02
  assert differ > 20  # rouge-score is no substitute.


@pytest.mark.parametrize(
  'passage, field, page',
  [
    ({'id': '290_3', 'title': 'A'}, 'auto', '290_3'),
    ({'id': 'wiki:0', 'title': 'A'}, 'auto', 'wiki:0'),
    ({'id': 'doc#1', 'title': 'A', 'part_of': 'doc#1'}, 'auto', 'doc#1'),
    ({'id': 'doc#1#2', 'title': 'A', 'part_of': 'doc#1'}, 'auto', 'doc#1'),
    ({'id': '290#2', 'title': 'A'}, 'auto', '290'),
    ({'id': '290-0', 'title': 'A', 'document': '7_1'}, 'auto', '7_1'),
    ({'id': '290-0', 'title': 'A', 'document': '7_1'}, 'id', '290-0'),
    ({'id': '290', 'title': 'A'}, 'title', 'A'),
    ({'id': '290', 'title': 'A'}, 'document', ''),
    ({'id': '_x', 'title': 'A'}, 'auto', '_x'),
  ],
)
def test_page_of(passage, field, page):
  assert kilt_predictions.page_of(passage, field) == page


def test_separators_are_a_choice():
  assert kilt_predictions.page_of({'id': 'a-b_1#2'}, separators='_') == 'a-b'
  assert kilt_predictions.page_of({'id': 'a-b_1#2'}, separators='') == 'a-b_1'
  with pytest.raises(ValueError, match='page field'):
    kilt_predictions.PageOptions('page')


def test_fever_gets_its_labels_back(tmp_path):
  path = tmp_path / 'p.jsonl'
  path.write_text(
    ''.join(
      json.dumps(_prediction(*row)) + '\n'
      for row in (('1', 'true', ['5', '5', '6']), ('2', ' false', []), ('3', 'perhaps', []))
    )
  )
  output = tmp_path / 'kilt.jsonl'
  flags = ['--predictions', str(path), '--record_format', 'kilt_fever', '--output', str(output)]
  flags += ['--separators', '_']
  assert cli.main(['kilt', *flags]) == 0
  rows = [json.loads(line) for line in output.read_text().splitlines()]
  assert rows[0] == {
    'id': '1',
    'output': [
      {
        'answer': 'SUPPORTS',
        'provenance': [{'wikipedia_id': '5', 'title': 'T5'}, {'wikipedia_id': '6', 'title': 'T6'}],
      }
    ],
  }
  assert [row['output'][0]['answer'] for row in rows] == ['SUPPORTS', 'REFUTES', 'perhaps']
  kilt_predictions.write(path, output, record_format='kilt_fever', pages=_PAGES, with_text=True)
  first = json.loads(output.read_text().splitlines()[0])['output'][0]['provenance']
  assert [p['wikipedia_id'] for p in first] == ['5', '5', '6'] and first[0]['text'] == 'x'


def test_the_predictions_are_not_replaced(tmp_path):
  path = tmp_path / 'p.jsonl'
  path.write_text(json.dumps(_prediction('1', 'true', ['5'])) + '\n')
  before = path.read_bytes()
  (tmp_path / 'link').symlink_to(path)
  for output in (path, tmp_path / 'link', tmp_path / 'x' / '..' / 'p.jsonl'):
    with pytest.raises(ValueError, match='would replace the predictions'):
      kilt_predictions.write(path, output, record_format='kilt_nq')
  assert path.read_bytes() == before


def test_fields_that_are_null_are_none(tmp_path):
  path = tmp_path / 'p.jsonl'
  path.write_text(
    ''.join(
      json.dumps(row) + '\n'
      for row in (
        {'id': '1', 'prediction': 'x', 'passages': None},
        {
          'id': '2',
          'prediction': 'x',
          'passages': [{'id': 5, 'title': None, 'document': None, 'text': None}],
        },
      )
    )
  )
  kilt_predictions.write(path, tmp_path / 'out', record_format='kilt_nq', with_text=True)
  rows = [json.loads(line) for line in (tmp_path / 'out').read_text().splitlines()]
  assert [row['output'][0]['provenance'] for row in rows] == [
    [],
    [{'wikipedia_id': '5', 'text': ''}],
  ]


@pytest.mark.parametrize(
  'lines, message',
  [
    ([], 'no predictions'),
    ([{'id': 'a', 'prediction': 'x'}, {'id': 'a', 'prediction': 'y'}], ':2: .*already'),
    ([{'id': 'a', 'answer': 'x'}], ":1: .*'prediction'"),
    (
      [{'id': 'a', 'prediction': 'x', 'passages': [{'id': '', 'title': ''}]}],
      ':1: none of the 1 passages',
    ),
    *(
      ([{'id': 'a', 'prediction': 'x', 'passages': passages}], message)
      for passages, message in (
        ([1], r":1: field 'passages\[0\]' must be an object, found a number"),
        ('abc', ":1: field 'passages' must be a list of objects, found a string"),
        ({'id': '1'}, ":1: field 'passages' must be a list .* found an object"),
        (
          [{'id': '1'}, {'id': ['1']}],
          r":1: field 'passages\[1\]\.id' must be a string, found a list",
        ),
        ([{'id': '1', 'title': 3}], r"\.title' must be a string, found a number"),
        ([{'id': True}], r"\.id' must be a string, found a boolean"),
      )
    ),
  ],
)
def test_bad_predictions_leave_no_file(lines, message, tmp_path):
  path = tmp_path / 'p.jsonl'
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  with pytest.raises(ValueError, match=message):
    kilt_predictions.write(path, tmp_path / 'out', record_format='kilt_nq')
  assert [p.name for p in tmp_path.iterdir()] == ['p.jsonl']
