"""Scores of generated sentences, and of answers that are patterns.

BLEU and ROUGE are the numbers of `sacrebleu` and `rouge-score`. Scores of one
prediction are the best over its references, where the metric has no way of its
own with several. All are fractions between 0 and 1. TypeError is raised for
references that are no list of texts, ValueError where there are none, or of another
number than predictions, and ImportError for a package that is not installed.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
import dataclasses
import functools
import math
from typing import Any

from ralm_jax.data.questions import answer_patterns
from ralm_jax.evaluation import metrics

# Nema & Khapra's list, with which their scores were made: no list of a library.
_FUNCTION_WORDS = frozenset(
  """
did have ourselves hers between yourself but again there about once during out
very having with they own an be some for do its yours such into of most itself
other off is s am or as from him each the themselves until below are we these
your his through don nor me were her more himself this down should our their
while above both up to ours had she all no at any before them same and been in
will on does yourselves then that because over so can not now under he you
herself has just too only myself those i after few t being if theirs my against
a by doing it further was here than
""".split()
)
_QUESTION_WORDS = frozenset('what which why who whom whose where when how'.split())
# What the tokenizer of COCO's caption scores leaves out of a text; full stops
# are cut off all words.
_PUNCTUATION = frozenset(['', "''", "'", '``', '`', '?', '!', ',', ':', '-', '--', ';'])


@dataclasses.dataclass(frozen=True)
class AnswerabilityWeights:
  """How Q-BLEU weighs the parts of a question.

  The defaults are those of the authors' code for SQuAD, which RAG uses. What the
  first three leave of 1 is the weight of the function words.
  """

  entities: float = 0.6  #: of words that begin with a capital
  question_type: float = 0.2  #: of words such as 'who', and what follows 'what' and 'which'
  relevant_words: float = 0.1  #: of other words that are not function words
  answerability: float = 0.7  #: of all these together; n-grams have the rest

  def __post_init__(self):
    values = dataclasses.asdict(self)
    total = self.entities + self.question_type + self.relevant_words
    if any(not 0 <= value <= 1 for value in values.values()) or total > 1 + 1e-9:
      raise ValueError(
        f'weights are {values}; each must be between 0 and 1, and those of '
        'entities, question type and relevant words at most 1 together'
      )


def bleu_1(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
  """BLEU of single words over a corpus (Papineni et al. 2002).

  sacrebleu's corpus score with max_ngram_order=1, lowercase=True and the rest as
  is: tokenize='13a', smooth_method='exp' (which only shows where nothing at all
  matches), effective_order=False. Predictions may have several references each.
  """
  _check_corpus(predictions, references)
  score = _bleu(False).corpus_score(list(predictions), _streams(references))
  return score.score / 100


def sentence_bleu_1(prediction: str, references: Sequence[str]) -> float:
  """BLEU of single words, all references at once; effective_order=True as sacrebleu advises."""
  references = _checked(references)
  return _bleu(True).sentence_score(prediction, list(references)).score / 100


def _streams(references: Sequence[Sequence[str]]) -> list[list[str | None]]:
  """First references, second ones, ...; None where there are no more."""
  most = max(map(len, references))
  return [[some[i] if i < len(some) else None for some in references] for i in range(most)]


@functools.lru_cache(maxsize=2)
def _bleu(sentence: bool) -> Any:
  return _sacrebleu().BLEU(max_ngram_order=1, lowercase=True, effective_order=sentence)


def _sacrebleu() -> Any:
  try:
    from sacrebleu import metrics as sacrebleu_metrics  # Optional, and slow to import.
  except ImportError as error:
    raise ImportError('BLEU needs the sacrebleu package: pip install sacrebleu') from error
  return sacrebleu_metrics


def q_bleu_1(
  predictions: Sequence[str],
  references: Sequence[Sequence[str]],
  weights: AnswerabilityWeights = AnswerabilityWeights(),
) -> float:
  """Mean of `sentence_q_bleu_1`, which is how its authors score a corpus."""
  _check_corpus(predictions, references)
  pairs = zip(predictions, references)
  return math.fsum(sentence_q_bleu_1(*pair, weights) for pair in pairs) / len(predictions)


def sentence_q_bleu_1(
  prediction: str, references: Sequence[str], weights: AnswerabilityWeights = AnswerabilityWeights()
) -> float:
  """Q-BLEU-1 of one generated question (Nema and Khapra 2018, section 4).

  RAG (Lewis et al. 2020, section 3.3) has it for Jeopardy questions. It follows
  the authors' answerability_score.py (PrekshaNema25/Answerability-Metric): BLEU-1
  of the prediction, and an F1 of BLEU-1 one way and the other of each part of
  it, of words in lower case without punctuation. As there, a part that neither
  text has counts as 0, so that a perfect clue without a question word scores
  0.86.

  Their words are those of the Stanford tokenizer, a Java program; here they are
  of NLTK's Treebank tokenizer, which splits much the same, without full stops.
  """
  return max(_q_bleu_1(prediction, reference, weights) for reference in _checked(references))


def _q_bleu_1(prediction: str, reference: str, weights: AnswerabilityWeights) -> float:
  predicted, expected = _parts(prediction), _parts(reference)
  shares = {
    'entities': weights.entities,
    'question_type': weights.question_type,
    'relevant_words': weights.relevant_words,
    'function_words': (1 - weights.entities - weights.question_type - weights.relevant_words),
  }
  parts = [share * _part_f1(predicted[part], expected[part]) for part, share in shares.items()]
  words = _word_bleu(_words(prediction), _words(reference))
  return weights.answerability * math.fsum(parts) + (1 - weights.answerability) * words


def _parts(question: str) -> dict[str, list[str]]:
  """The words of each part, in lower case; some words are in several."""
  words = question.split()
  types = []
  for i, word in enumerate(words):
    # Only 'What' and 'what' ask, 'WHAT' does not.
    if word.lower() in _QUESTION_WORDS and word in (word.lower(), word.capitalize()):
      types.append(word)
      # What follows tells the type of the answer: 'which city'.
      if word.lower() in ('what', 'which'):
        types.extend(words[i + 1 : i + 2])
  first_asks = bool(words) and words[0].lower() in _QUESTION_WORDS
  parts = {
    'entities': [w for w in words[first_asks:] if w[0].isupper()],
    'question_type': types,
    'relevant_words': [
      w for w in words if w not in types and not w[0].isupper() and w not in _FUNCTION_WORDS
    ],
    'function_words': [w for w in words if w.lower() in _FUNCTION_WORDS],
  }
  return {name: _words(' '.join(part)) for name, part in parts.items()}


def _words(text: str) -> list[str]:
  # The tokenizer is made for single sentences: it leaves a full stop within
  # the text with its word, and takes the one at the end from 'u.s.'.
  tokens = (token.rstrip('.') for token in _treebank()(text.lower()))
  return [token for token in tokens if token not in _PUNCTUATION]


@functools.lru_cache(maxsize=1)
def _treebank() -> Callable[[str], list[str]]:
  try:
    from nltk.tokenize import treebank  # Comes with rouge-score.
  except ImportError as error:
    raise ImportError('q_bleu_1 needs the nltk package: pip install nltk') from error
  return treebank.TreebankWordTokenizer().tokenize


def _part_f1(prediction: list[str], reference: list[str]) -> float:
  one = _word_bleu(prediction, reference)
  other = _word_bleu(reference, prediction)
  return 2 * one * other / (one + other) if one + other else 0.0


def _word_bleu(prediction: list[str], reference: list[str]) -> float:
  """BLEU-1 of words; 0 if there are none."""
  if not prediction or not reference:
    return 0.0
  return _plain_bleu().sentence_score(' '.join(prediction), [' '.join(reference)]).score / 100


@functools.lru_cache(maxsize=1)
def _plain_bleu() -> Any:
  return _sacrebleu().BLEU(
    max_ngram_order=1, tokenize='none', smooth_method='none', effective_order=True, force=True
  )


def rouge(
  prediction: str, references: Sequence[str], *, use_stemmer: bool = False
) -> dict[str, float]:
  """F-measures of ROUGE-1, -2 and -L (Lin 2004) by `rouge-score`, each the best by itself."""
  scorer = metrics.rouge_scorer(('rouge1', 'rouge2', 'rougeL'), use_stemmer)
  scores = [scorer.score(reference, prediction) for reference in _checked(references)]
  return {
    name: max(float(score[kind].fmeasure) for score in scores)
    for name, kind in (('rouge_1', 'rouge1'), ('rouge_2', 'rouge2'), ('rouge_l', 'rougeL'))
  }


def regex_match(prediction: str, patterns: Sequence[str]) -> float:
  """1.0 if a pattern is found anywhere in the prediction, see `answer_patterns.matches`."""
  return float(answer_patterns.matches(prediction, _checked(patterns)))


def word_f1(prediction: str, references: Sequence[str]) -> float:
  """F1 of the words between spaces, as they are written; the best counts.

  Atlas's for language modelling: nothing is normalised. No common word is 0, also
  where both texts are empty.
  """
  words = collections.Counter(prediction.split())
  best = 0.0
  for reference in _checked(references):
    expected = collections.Counter(reference.split())
    same = (words & expected).total()
    if same:
      best = max(best, 2 * same / (words.total() + expected.total()))
  return best


def _check_corpus(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
  if not predictions or len(predictions) != len(references):
    raise ValueError(
      f'{len(predictions)} predictions and references of {len(references)}; give as many of '
      'both, and at least one'
    )
  for some in references:
    _checked(some)


def _checked(references: Sequence[str]) -> Sequence[str]:
  # A bare string is a sequence of letters and would score silently wrong.
  if isinstance(references, str) or not all(isinstance(one, str) for one in references):
    raise TypeError(
      f'references must be a list of texts, found {references!r:.60}; write [reference] for a '
      'single one'
    )
  if not references:
    raise ValueError(
      'there are no references to compare the prediction with; leave questions without answers '
      'out of the score'
    )
  return references
