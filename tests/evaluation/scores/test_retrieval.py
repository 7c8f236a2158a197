"""Answer matching against DPR's definition, ranks against a plain loop."""

import json
import math
import sys
import unicodedata

import numpy as np
import pytest

from ralm_jax.evaluation import metrics
from ralm_jax.evaluation.scores import retrieval
from ralm_jax.evaluation.scores.retrieval import RetrievalRanks


def dpr_has_answer(answers, text):
  """DPR's SimpleTokenizer and has_answer, with its own `regex` package."""
  regex = pytest.importorskip('regex')
  pattern = regex.compile(
    r'([\p{L}\p{N}\p{M}]+)|([^\p{Z}\p{C}])',
    flags=regex.IGNORECASE + regex.UNICODE + regex.MULTILINE,
  )

  def words(s):
    s = unicodedata.normalize('NFD', s)
    return [m.group().lower() for m in pattern.finditer(s)]

  text = words(text)
  for answer in map(words, answers):
    for i in range(len(text) - len(answer) + 1):
      if answer and answer == text[i : i + len(answer)]:
        return True
  return False


@pytest.mark.parametrize(
  'text, answer, expected',
  [
    ('The party was long', 'art', False),
    ('in 1945 they', '19', False),
    ('in 1945, they', '1945', True),
    ('home of NEWTON D . BAKER ,', 'Newton D. Baker', True),
    ('Newton Baker D.', 'Newton D. Baker', False),
    ('Wilhelm Röntgen', 'ro\u0308ntgen', True),
    ('Wilhelm Ro\u0308ntgen', 'RÖNTGEN', True),
    ('Wilhelm Röntgen', 'Rontgen', False),
    ('a shower of 16.1%', '16.1 %', True),
    ('Saint-Denis', 'Denis', True),
    ('snake_case', 'case', True),
    ('deux\u200bmots', 'mots', True),
    ('हिन्दी भाषा', 'हिन्दी', True),
    ('हिन्दी भाषा', 'हिन', False),
    ('anything', '', False),
    ('anything', ' \u200b ', False),
    ('', 'x', False),
    ('', '', False),
    ('İstanbul', 'İSTANBUL', True),
    ('Å', '\u212b', True),
    ('new york city', 'york', True),
    ('new york', 'new york city', False),
    ('cost: $ 5', '$5', True),
  ],
)
def test_has_answer(text, answer, expected):
  assert retrieval.has_answer(text, [answer]) is expected
  assert dpr_has_answer([answer], text) is expected
  assert retrieval.has_answer(text, ['qqq', answer]) is expected
  assert not retrieval.has_answer(text, [])


def test_tokens_cut_every_character_as_dpr_does():
  # Each assigned code point between two letters: joins, stands alone, splits.
  for code in range(sys.maxunicode + 1):
    kind = unicodedata.category(char := chr(code))[0]
    if kind == 'C' and code > 0xFFFF or unicodedata.decomposition(char):
      continue
    expected = {'L': 1, 'N': 1, 'M': 1, 'P': 3, 'S': 3, 'Z': 2, 'C': 2}[kind]
    tokens = retrieval.answer_tokens(f'x{char}x')
    assert len(tokens) == expected, (hex(code), tokens)


def test_has_answer_agrees_with_dpr_on_real_passages(shared_data):
  paths = (shared_data / 'qa' / 'qed_dev.jsonl', shared_data / 'passages' / 'nq_oracle.jsonl')
  rows, passages = (
    [json.loads(line) for line in path.read_text('utf-8').splitlines()[:150]] for path in paths
  )
  found = 0
  for row, passage in zip(rows, passages):
    # Answers that occur, that nearly do and that do not.
    for answers in (
      row['answers'],
      [passage['title']],
      [passage['text'][10:16]],
      [passage['text'][20:45]],
    ):
      expected = dpr_has_answer(answers, passage['text'])
      assert retrieval.has_answer(passage['text'], answers) == expected
      found += expected
  assert 100 < found < 500


def test_answer_and_gold_hits():
  texts = ['nothing', 'It is Paris .', 'Parisian', 'PARIS']
  hits = retrieval.answer_hits(texts, ['Rome', 'Paris'])
  assert hits.dtype == bool and hits.tolist() == [False, True, False, True]
  assert retrieval.answer_hits([], ['Paris']).shape == (0,)
  hits = retrieval.gold_hits([7, 'x', np.int64(8)], ['8', 7])
  assert hits.dtype == bool and hits.tolist() == [True, False, True]
  # 'p-1' as a bare string would make gold ids of its letters.
  with pytest.raises(TypeError, match=r'write \[gold_passage_id\]'):
    retrieval.gold_hits(['p-1'], 'p-1')
  with pytest.raises(TypeError, match=r'write \[answer\]'):
    retrieval.has_answer('x', 'x')


def test_ranks_are_one_based():
  assert retrieval.first_hit([True, False, True]) == 1
  assert retrieval.first_hit([False, False, True]) == 3
  assert retrieval.first_hit([False, False]) == math.inf
  assert retrieval.first_hit([]) == math.inf
  assert retrieval.recall_at_k(3, 3) == 1.0
  assert retrieval.recall_at_k(4, 3) == 0.0
  assert retrieval.recall_at_k(math.inf, 1000) == 0.0
  assert retrieval.recall_at_k(None, 3) is None
  assert retrieval.reciprocal_rank(4) == 0.25
  assert retrieval.reciprocal_rank(math.inf) == 0.0
  assert retrieval.reciprocal_rank(None) is None
  for wrong in (0, -1, math.nan):
    with pytest.raises(ValueError, match='ranks start at 1'):
      retrieval.recall_at_k(wrong, 3)
    with pytest.raises(ValueError, match='ranks start at 1'):
      retrieval.reciprocal_rank(wrong)
  with pytest.raises(ValueError, match='k is 0'):
    retrieval.recall_at_k(1, 0)


def _means(ranks, ks):
  return metrics.mean_metrics([retrieval.rank_metrics(rank, 30, ks, 'gold') for rank in ranks])


def test_means_agree_with_a_loop():
  random = np.random.default_rng(0)
  hits = random.random([200, 30]) < 0.05
  ranks = list(map(retrieval.first_hit, hits))
  assert math.inf in ranks and 1 in ranks
  means = _means([*ranks, None, None], (1, 5, 30))
  for k in (1, 5, 30):
    assert means[f'recall@{k}_gold'] == pytest.approx(sum(row[:k].any() for row in hits) / 200)
  assert means['mrr_gold'] == pytest.approx(
    sum(0 if rank == math.inf else 1 / rank for rank in ranks) / 200
  )


def test_questions_without_gold_do_not_count():
  means = _means([None, 2, None, math.inf], (1, 2))
  assert means == {'recall@1_gold': 0.0, 'recall@2_gold': 0.5, 'mrr_gold': 0.25}
  assert _means([None], (1,)) == {'recall@1_gold': None, 'mrr_gold': None}


def test_rank_passages():
  texts, ids = ['no', 'Paris', 'gold text'], ['a', 'b', 'c']
  ranks = retrieval.rank_passages
  assert ranks(texts, ids, ['paris'], ['c']) == (RetrievalRanks(answer=2, gold=3))
  assert ranks(texts, ids, ['rome'], ()) == (RetrievalRanks(answer=math.inf, gold=None))
  assert ranks(texts, ids, (), ['elsewhere']) == (RetrievalRanks(answer=None, gold=math.inf))
  with pytest.raises(ValueError, match='3 texts but 2 passage ids'):
    ranks(texts, ids[:2], ['paris'], ())


def test_rank_metrics_leave_out_what_was_not_retrieved():
  assert retrieval.rank_metrics(2.0, 5, (1, 5, 20), 'gold') == {
    'recall@1_gold': 0.0,
    'recall@5_gold': 1.0,
    'mrr_gold': 0.5,
  }
  assert retrieval.rank_metrics(None, 5, (1,), 'gold') == {'recall@1_gold': None, 'mrr_gold': None}
