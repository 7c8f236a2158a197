"""Runs of words shared with passages, against comparing every pair."""

import math
import random

import pytest

from ralm_jax.evaluation import word_spans
from ralm_jax.evaluation.word_spans import SpanFinder


def _longest_run(first, second):
  first, second = word_spans.words_of(first), word_spans.words_of(second)
  best = 0
  for i in range(len(first)):
    for j in range(len(second)):
      length = 0
      while (
        i + length < len(first)
        and j + length < len(second)
        and first[i + length] == second[j + length]
      ):
        length += 1
      best = max(best, length)
  return best


@pytest.mark.parametrize('share', [0.3, 0.75, 1.0])
@pytest.mark.parametrize('min_words', [1, 4])
def test_finds_what_comparing_every_pair_finds(share, min_words):
  rng = random.Random(int(share * 100) + min_words)
  # Few words, so that long runs and repeated ones are common.
  words = ('a', 'b', 'c', 'd', 'é', '1')
  count = 0
  for _ in range(30):
    questions = [' '.join(rng.choices(words, k=rng.randint(0, 16))) for _ in range(5)]
    passages = []
    for _ in range(6):
      parts = rng.choices(words, k=rng.randint(0, 20))
      if rng.random() < 0.5:
        question = rng.choice(questions).split()
        parts[2:2] = question[rng.randint(0, 2) : len(question) - rng.randint(0, 2)]
      passages.append(', '.join(parts))
    finder = SpanFinder(questions, share, min_words)
    found = {}
    for span in finder.find(passages):
      assert (span.question, span.passage) not in found
      assert len(finder.span_text(span).split()) == span.length
      assert finder.span_text(span) in ' '.join(word_spans.words_of(passages[span.passage]))
      found[span.question, span.passage] = span.length
    expected = {}
    for q, question in enumerate(questions):
      n = len(word_spans.words_of(question))
      assert finder.n_words(q) == n
      assert finder.is_searched(q) == (n >= min_words)
      for p, passage in enumerate(passages):
        run = _longest_run(question, passage)
        if n >= min_words and run >= math.ceil(share * n - 1e-9) and run:
          expected[q, p] = run
    assert found == expected
    count += len(found)
  assert count > 10


def test_case_punctuation_and_normal_forms_do_not_matter():
  finder = SpanFinder(['Who won the “Café de Flore” prize?'], 1.0)
  (span,) = finder.find(['', 'x', 'They ask: who won the Cafe\u0301-de-Flore PRIZE'])
  assert span.passage == 2 and span.length == 7


def test_a_run_does_not_cross_passages():
  finder = SpanFinder(['one two three four'], 0.75)
  assert not list(finder.find(['one two', 'three four', '', 'one', 'two']))
  assert [s.passage for s in finder.find(['', '', 'one two three', ''])] == [2]


@pytest.mark.parametrize(
  'texts, passages', [([], ['a b c']), (['', '?!'], ['a']), (['a b'], []), (['a b'], ['', '', ''])]
)
def test_nothing_to_find(texts, passages):
  assert not list(SpanFinder(texts, 0.5).find(passages))


@pytest.mark.parametrize('share, min_words', [(0.0, 1), (1.1, 1), (0.5, 0)])
def test_settings_out_of_range(share, min_words):
  with pytest.raises(ValueError):
    SpanFinder(['a'], share, min_words)
