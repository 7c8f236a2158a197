"""Scores of sentences against the packages and formulas they come from."""

import collections
import json
import math
import random
import re
import string

import pytest

from ralm_jax.evaluation import metrics
from ralm_jax.evaluation.scores import generation
from ralm_jax.evaluation.scores.generation import AnswerabilityWeights

sacrebleu = pytest.importorskip('sacrebleu')
WORDS = (
  'the',
  'a',
  'file',
  'Files',
  'holds',
  'ten',
  'U.S.',
  'café',
  'text,',
  '3.5',
  "it's",
  '«nothing»',
  'end.',
  'Of',
  '(path)',
  '東京',
  'FILE',
  'HOLDS',
  'The',
)


def sentences(count, seed, least=0):
  generator = random.Random(seed)
  return [' '.join(generator.choices(WORDS, k=generator.randint(least, 12))) for _ in range(count)]


def pairs(count, seed=0):
  generator = random.Random(seed)
  return sentences(count, seed), [
    sentences(generator.randint(1, 4), seed + i + 1, least=1) for i in range(count)
  ]


def test_bleu_is_sacrebleus():
  predictions, references = pairs(40)
  streams = [[some[i] if i < len(some) else None for some in references] for i in range(4)]
  expected = sacrebleu.metrics.BLEU(lowercase=True, max_ngram_order=1).corpus_score(
    predictions, streams
  )
  assert generation.bleu_1(predictions, references) == pytest.approx(
    expected.score / 100, abs=1e-12
  )
  metric = sacrebleu.metrics.BLEU(lowercase=True, max_ngram_order=1, effective_order=True)
  for prediction, some in zip(predictions, references):
    assert generation.sentence_bleu_1(prediction, some) == pytest.approx(
      metric.sentence_score(prediction, some).score / 100, abs=1e-12
    )
  assert generation.bleu_1(['THE FILE HOLDS'], [['the file holds']]) == (pytest.approx(1))
  assert generation.sentence_bleu_1('THE FILE', ['the file']) == (pytest.approx(1))


def plain_bleu_1(predictions, references):
  """Papineni et al.: clipped counts, and the reference of the closest length."""
  same = total = expected = 0
  for prediction, some in zip(predictions, references):
    words = prediction.lower().split()
    most = collections.Counter()
    for one in some:
      most |= collections.Counter(one.lower().split())
    same += (collections.Counter(words) & most).total()
    total += len(words)
    expected += min((abs(len(one.split()) - len(words)), len(one.split())) for one in some)[1]
  if not total:
    return 0.0
  return same / total * min(1.0, math.exp(1 - expected / total))


def test_bleu_is_the_formula():
  generator = random.Random(4)
  make = lambda least: ' '.join(
    generator.choices(['the', 'A', 'file', 'holds', 'ten'], k=generator.randint(least, 9))
  )
  predictions = [make(0) for _ in range(30)]
  references = [[make(1) for _ in range(generator.randint(1, 3))] for _ in range(30)]
  assert generation.bleu_1(predictions, references) == pytest.approx(
    plain_bleu_1(predictions, references), abs=1e-12
  )
  # Words are counted over the corpus: no mean over sentences.
  assert generation.bleu_1(['a b c d', 'x'], [['a b c d'], ['y']]) == (pytest.approx(4 / 5))
  assert generation.bleu_1([''], [['a']]) == 0
  assert generation.sentence_bleu_1('', ['a']) == 0
  assert generation.sentence_bleu_1('The file', ['x', 'the FILE']) == (pytest.approx(1))


def test_question_bleu_of_the_authors_test():
  """Their test: 0.765 where n-grams and words score 0.8 alike."""
  question = 'Is this a great question?'
  assert generation.q_bleu_1([question], [['Is this a good question?']]) == pytest.approx(
    0.765, abs=1e-3
  )
  # By part: relevant 1/2, entities ('Is') 1, no question word 0, function words 1.
  assert generation.sentence_q_bleu_1(question, ['Is this a good question?']) == pytest.approx(
    0.7 * (0.1 / 2 + 0.6 + 0.1) + 0.3 * 0.8
  )


@pytest.mark.parametrize(
  'prediction, reference, expected',
  [
    # All parts alike.
    ('Which city did Ann leave?', 'Which city did Ann leave?', 1),
    # No question word, which the authors' code counts as 0.
    ('Ann did leave it.', 'Ann did leave it.', 0.86),
    # 'Which city' is the type of the question, one word of two is alike.
    (
      'Which town did Ann leave?',
      'Which city did Ann leave?',
      0.7 * (0.6 + 0.2 / 2 + 0.1 + 0.1) + 0.3 * 0.8,
    ),
    # Bob for Ann: entities have most of the weight.
    ('who did Bob leave ?', 'who did Ann leave ?', 0.7 * 0.4 + 0.3 * 0.75),
    # Short of a word: both ways of BLEU have their share, one its brevity.
    ('who left', 'who left Ann', 0.7 * (0.2 + 0.1) + 0.3 * math.exp(1 - 3 / 2)),
    ('', 'who left', 0),
    ('who left', '', 0),
    ('?', '?', 0),
    ('x y', 'p q', 0),
  ],
)
def test_question_bleu_by_part(prediction, reference, expected):
  assert generation.sentence_q_bleu_1(prediction, [reference]) == pytest.approx(expected)


def test_question_bleu_of_several():
  questions = ['Who left Ann?', 'Ann came. Then what left?']
  references = [['nothing', 'Who left Ann?'], ['Ann came, then what left']]
  scores = [generation.sentence_q_bleu_1(p, r) for p, r in zip(questions, references)]
  # There is no function word in it.
  assert scores[0] == pytest.approx(1 - 0.7 * 0.1)
  # Full stops and commas are no part of words; 'Then' has become small.
  assert 0.5 < scores[1] < 1
  assert generation.q_bleu_1(questions, references) == pytest.approx(sum(scores) / 2)
  weights = AnswerabilityWeights(answerability=0)
  assert generation.sentence_q_bleu_1('who left bob', ['who left ann'], weights) == pytest.approx(
    2 / 3
  )
  for wrong in (dict(entities=0.9), dict(answerability=1.1), dict(question_type=-0.1)):
    with pytest.raises(ValueError, match='weights are'):
      AnswerabilityWeights(**wrong)


@pytest.mark.parametrize('use_stemmer', [False, True])
def test_rouge_is_rouge_scores(use_stemmer):
  from rouge_score import rouge_scorer

  scorer = rouge_scorer.RougeScorer(['rouge1', 'rouge2', 'rougeL'], use_stemmer=use_stemmer)
  for prediction, some in zip(*pairs(30, 7)):
    expected = [scorer.score(one, prediction) for one in some]
    found = generation.rouge(prediction, some, use_stemmer=use_stemmer)
    assert found == {
      'rouge_1': max(e['rouge1'].fmeasure for e in expected),
      'rouge_2': max(e['rouge2'].fmeasure for e in expected),
      'rouge_l': max(e['rougeL'].fmeasure for e in expected),
    }
    assert found['rouge_l'] == metrics.rouge_l(prediction, some, use_stemmer=use_stemmer)


def test_rouge_by_hand():
  found = generation.rouge('the cat sat', ['nothing', 'the cat on a mat sat'])
  assert found == pytest.approx(
    {'rouge_1': 2 * 1 * 0.5 / 1.5, 'rouge_2': 2 * 0.5 * 0.2 / 0.7, 'rouge_l': 2 * 1 * 0.5 / 1.5}
  )


@pytest.mark.parametrize(
  'prediction, patterns, expected',
  [
    ('it was in 1964', [r'\b1964\b'], 1),
    ('it was in 19645', [r'\b1964\b'], 0),
    ('TOKYO', ['x', "Tokyo('s)?"], 1),
    ('', ['a|b'], 0),
    ('', ['x?'], 1),
    ('in Québec', ['Qu[eé]bec'], 1),
    ('one\ntwo', ['^two'], 1),
  ],
)
def test_patterns(prediction, patterns, expected):
  assert generation.regex_match(prediction, patterns) == expected


def test_patterns_that_are_none():
  with pytest.raises(ValueError, match='is no regular expression'):
    generation.regex_match('x', ['(a'])


@pytest.mark.parametrize(
  'prediction, references, expected',
  [
    ('a b c', ['a b c'], 1),
    ('a b', ['b c d'], 2 * 0.5 / 3 / (0.5 + 1 / 3)),
    ('The file', ['the file'], 0.5),  # As written, articles and all.
    ('a a', ['a'], 2 * 0.5 / 1.5),
    ('', [''], 0),
    ('', ['a'], 0),
    ('a', [''], 0),
    ('x', ['y', 'x z', 'x'], 1),
    (' a\t b\n', ['b  a'], 1),
  ],
)
def test_words_as_written(prediction, references, expected):
  assert generation.word_f1(prediction, references) == pytest.approx(expected)


@pytest.mark.parametrize(
  'score',
  [
    generation.sentence_bleu_1,
    generation.sentence_q_bleu_1,
    generation.rouge,
    generation.regex_match,
    generation.word_f1,
  ],
)
def test_references_that_are_none(score):
  with pytest.raises(ValueError, match='no references'):
    score('a', [])
  for wrong in ('abc', [1], ['a', None]):
    with pytest.raises(TypeError, match='must be a list of texts'):
      score('a', wrong)


@pytest.mark.parametrize('score', [generation.bleu_1, generation.q_bleu_1])
def test_corpora_that_are_none(score):
  for predictions, references in (([], []), (['a'], []), (['a'], [['a'], ['b']])):
    with pytest.raises(ValueError, match='give as many of both'):
      score(predictions, references)
  with pytest.raises(TypeError, match='must be a list of texts'):
    score(['a'], ['a'])
  with pytest.raises(ValueError, match='no references'):
    score(['a', 'b'], [['a'], []])


# evaluate-v1.1 of SQuAD, written out from its description.


def official_normal(text):
  text = ''.join(c for c in text.lower() if c not in set(string.punctuation))
  return ' '.join(re.sub(r'\b(a|an|the)\b', ' ', text).split())


def official_scores(prediction, answers):
  exact = f1 = 0.0
  for answer in answers:
    exact = max(exact, float(official_normal(prediction) == official_normal(answer)))
    words, expected = official_normal(prediction).split(), official_normal(answer).split()
    same = sum(min(words.count(w), expected.count(w)) for w in set(words))
    if same:
      precision, recall = same / len(words), same / len(expected)
      f1 = max(f1, 2 * precision * recall / (precision + recall))
  return exact, f1


def test_answers_score_as_by_squads_script(shared_data):
  """Real answers, one for another's question and changed as readers change them."""
  generator = random.Random(0)
  rows = []
  for name in ('xquad_en', 'qed_dev', 'timeqa_train'):
    with open(shared_data / f'qa/{name}.jsonl', encoding='utf-8') as file:
      rows.extend(json.loads(line)['answers'] for line in file)
  with open(shared_data / 'webquestions/test.json', encoding='utf-8') as file:
    rows.extend(row['answers'] for row in json.load(file))
  assert len(rows) > 5000 and any(not a.isascii() for some in rows for a in some)
  changes = (
    lambda text: text,
    str.upper,
    lambda text: f'the {text}.',
    lambda text: '',
    lambda text: text.replace(' ', '\u00a0'),
    lambda text: text.replace('-', '–'),
    lambda text: text.split()[0],
    lambda text: f'“{text}”',
    lambda text: 'A',
    lambda text: text + ' ' + text,
    lambda text: 'İ' + text,
  )
  exact = 0
  for some in generator.sample(rows, 1500):
    text = generator.choice(changes)(
      generator.choice(some if generator.random() < 0.7 else generator.choice(rows))
    )
    found = metrics.exact_match(text, some), metrics.f1(text, some)
    assert found == pytest.approx(official_scores(text, some))
    exact += found[0]
  assert 300 < exact < 1200
