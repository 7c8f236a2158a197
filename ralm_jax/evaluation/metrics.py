"""Scores of one prediction against its reference answers.

Exact match and F1 follow the official SQuAD script, evaluate-v1.1 (Rajpurkar et al., 2016,
https://arxiv.org/abs/1606.05250), which open-domain question answering and the original Atlas
evaluation both use. ROUGE-L is the F-measure of the `rouge-score` package, as T5's scores are;
KILT's scorer uses another (`scores.kilt.rouge_l`). Every score is a fraction between 0 and 1 and
the best over the references. TypeError is raised for what is no text or no list of them, ValueError
for no references, and ImportError for a package that is not installed.
"""

import collections
from collections.abc import Mapping, Sequence
import functools
import math
import re
import string
from typing import Any

_PUNCTUATION = str.maketrans('', '', string.punctuation)
_ARTICLES = re.compile(r'\b(a|an|the)\b')


def normalize_answer(text: str) -> str:
  """Lower-cases, strips ASCII punctuation, removes articles, joins by spaces.

  The order is the official one and it matters: punctuation is removed, not
  replaced, before articles are looked for, so 'a-b' becomes 'ab' and 'a.' is
  an article. Nothing else is folded: accents stay, composed and decomposed
  forms differ, and punctuation outside ASCII (curly quotes, dashes) stays.

  The answers 'A' and 'The' normalise to nothing. Option letters of
  multiple-choice questions must therefore not be compared with this.
  """
  text = _ARTICLES.sub(' ', text.lower().translate(_PUNCTUATION))
  return ' '.join(text.split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
  """1.0 if the normalised prediction equals a normalised answer, else 0.0.

  As in the official script two texts that both normalise to '' match.
  """
  _check(prediction, answers)
  prediction = normalize_answer(prediction)
  return float(any(prediction == normalize_answer(a) for a in answers))


def f1(prediction: str, answers: Sequence[str]) -> float:
  """Harmonic mean of token precision and recall, the best over the answers.

  As in evaluate-v1.1 no common token means 0, also when both are empty (the
  SQuAD 2.0 script, which has unanswerable questions, gives 1 there).
  """
  _check(prediction, answers)
  tokens = normalize_answer(prediction).split()
  return max(_token_f1(tokens, normalize_answer(a).split()) for a in answers)


def _token_f1(prediction: list[str], answer: list[str]) -> float:
  common = collections.Counter(prediction) & collections.Counter(answer)
  same = sum(common.values())
  if not same:
    return 0.0
  precision, recall = same / len(prediction), same / len(answer)
  return 2 * precision * recall / (precision + recall)


def rouge_l(prediction: str, answers: Sequence[str], *, use_stemmer: bool = False) -> float:
  """ROUGE-L F-measure (longest common subsequence), the best over the answers.

  The package keeps ASCII letters and digits only: text in another script scores 0 whatever it says.
  `use_stemmer` compares words by their Porter stem.
  """
  _check(prediction, answers)
  scorer = rouge_scorer(('rougeL',), use_stemmer)
  return max(float(scorer.score(answer, prediction)['rougeL'].fmeasure) for answer in answers)


@functools.cache
def rouge_scorer(kinds: tuple[str, ...], use_stemmer: bool) -> Any:
  try:
    import rouge_score.rouge_scorer  # Optional, and slow to import.
  except ImportError as error:
    raise ImportError('ROUGE needs the rouge-score package: pip install rouge-score') from error
  return rouge_score.rouge_scorer.RougeScorer(list(kinds), use_stemmer=use_stemmer)


def mean_metrics(rows: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
  """Averages each metric over the rows that have it.

  A metric that is None in a row, or missing there, does not apply to that question (a recall by
  gold passage where the data name none) and does not count in its mean, neither as 0 nor in the
  denominator. Metrics are in order of first appearance, None where no row has a value.

  Raises:
    TypeError: a value is neither a number (of Python, NumPy or JAX) nor None.
  """
  values: dict[str, list[float]] = {}
  for index, row in enumerate(rows):
    for name, value in row.items():
      column = values.setdefault(name, [])
      if value is None:
        continue
      try:
        if isinstance(value, (str, bytes)):
          raise TypeError("float() would take '1' for a number")
        column.append(float(value))
      except TypeError as error:
        raise TypeError(
          f'metric {name!r} of row {index} is {value!r}; it must be a number or None'
        ) from error
  # fsum does not depend on the order, so that hosts which evaluated the
  # questions in another order print the same digits.
  return {
    name: math.fsum(column) / len(column) if column else None for name, column in values.items()
  }


def means_and_count(rows: Sequence[Mapping[str, float | None]]) -> dict[str, Any]:
  """Means, `count`, and how many rows those are `averaged_over` that fewer of them have."""
  means = mean_metrics(rows)
  having = {name: sum(row.get(name) is not None for row in rows) for name in means}
  fewer = {name: n for name, n in having.items() if 0 < n < len(rows)}
  return {**means, 'count': len(rows), **({'averaged_over': fewer} if fewer else {})}


def _check(prediction: str, answers: Sequence[str]) -> None:
  if not isinstance(prediction, str):
    raise TypeError(f'the prediction must be a string, not {type(prediction).__name__}')
  # A bare string is a sequence of letters and would score silently wrong.
  if isinstance(answers, str) or not isinstance(answers, Sequence):
    raise TypeError(
      f'answers must be a list of strings, not {type(answers).__name__}; '
      'write [answer] for a single one'
    )
  if not answers:
    raise ValueError(
      'answers is empty: there is nothing to compare the prediction with; '
      'leave questions without answers out of the score'
    )
  for answer in answers:
    if not isinstance(answer, str):
      raise TypeError(f'answers holds {answer!r}, which is not a string')
