"""KILT's scores of one prediction, as its official scorer computes them.

Petroni et al. (2021, https://arxiv.org/abs/2009.02252, section 5) score an answer (accuracy, exact
match, F1, ROUGE-L), the pages it was given (R-precision, recall@k), and both at once: a KILT score
is that of the answer where R-precision is 1 and 0 elsewhere. The rules are those of
`eval_downstream.py` and `eval_retrieval.py` of facebookresearch/KILT, whose means over a file equal
the means of these over its questions. Every score is a fraction between 0 and 1.

ROUGE-L is not `metrics.rouge_l`. The official scorer uses the `rouge` package (1.0.1), which cuts
at full stops, keeps case and punctuation, counts each word once and joins the subsequences of all
sentences; `rouge-score` gives other numbers for the same text, often by several points.

TypeError is raised for a text in place of a list of them, and ValueError for no
answers or a k below 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ralm_jax.evaluation import metrics

# Of the official scorer's recall, precision and success rate.
DEFAULT_KS = (1, 5, 10, 20)
_EPSILON = 1e-8  # The rouge package's guard against a division by zero.

_ANSWER_METRICS = ('accuracy', 'exact_match', 'f1', 'rouge_l')


def kilt_metrics(prediction: str, answers: Sequence[str]) -> dict[str, float]:
  """Scores of the answer, each the best over the references.

  `accuracy` (the very text of a reference, spaces around it aside), `exact_match` and `f1`
  (SQuAD's), and `rouge_l` of the `rouge` package. A blank prediction scores 0 throughout.
  """
  if isinstance(answers, str):
    raise TypeError('answers must be a list of strings; write [answer]')
  references = list(dict.fromkeys(stripped for answer in answers if (stripped := answer.strip())))
  if not references:
    raise ValueError(
      'answers is empty: there is nothing to compare with; leave questions without answers out '
      'of the score'
    )
  prediction = prediction.strip()
  if not prediction:
    return dict.fromkeys(_ANSWER_METRICS, 0.0)
  return {
    'accuracy': float(prediction in references),
    'exact_match': metrics.exact_match(prediction, references),
    'f1': metrics.f1(prediction, references),
    'rouge_l': max(rouge_l(prediction, answer) for answer in references),
  }


def provenance_metrics(
  page_ids: Sequence[str], provenance: Sequence[Sequence[str]], ks: Sequence[int] = DEFAULT_KS
) -> dict[str, float]:
  """Scores of the pages retrieved, against alternative sets of evidence.

  A page counts once, at its best rank, however many of its passages were retrieved. R-precision is
  the share of a set among the first pages, as many as the set has, the best over the sets. In the
  ranking that recall@k looks at, a set is found where its last page is, and its pages before that
  take no place; the recall is the share of the sets found in the first k places.

  Without pages, or where the data name no evidence, all scores are 0, as in the official scorer.
  Fewer than k pages give what they give: nothing is found below them. `ks` are the cut-offs of
  `recall@k_page`, `precision@k_page` and `success_rate@k_page`.
  """
  if isinstance(page_ids, str) or any(isinstance(s, str) for s in provenance):
    raise TypeError('page_ids is a list of ids and provenance a list of such lists')
  for k in ks:
    if k < 1:
      raise ValueError(f'k is {k}; recall needs at least one page')
  pages = list(dict.fromkeys(str(page).strip() for page in page_ids))
  # Alternative answers may name the same evidence: it is one set.
  sets = list(dict.fromkeys(frozenset(str(page).strip() for page in one) for one in provenance))
  found = _places(pages, sets) if pages else []
  scores = {'r_precision': max((_r_precision(pages, s) for s in sets), default=0.0)}
  for k in ks:
    hits = sum(found[:k])
    scores |= {
      f'recall@{k}_page': hits / len(sets) if sets else 0.0,
      f'precision@{k}_page': hits / k,
      f'success_rate@{k}_page': float(hits > 0),
    }
  return scores


def combined(
  answer_scores: Mapping[str, float | None], page_scores: Mapping[str, float]
) -> dict[str, float]:
  """The KILT scores: those of the answer where the pages are right.

  `kilt_accuracy`, `kilt_exact_match`, `kilt_f1` and `kilt_rouge_l` are the
  leaderboard's KILT-AC, KILT-EM, KILT-F1 and KILT-RL.
  """
  right = page_scores['r_precision'] == 1.0
  return {f'kilt_{name}': (right and answer_scores[name]) or 0.0 for name in _ANSWER_METRICS}


def _r_precision(pages: list[str], evidence: frozenset[str]) -> float:
  if not evidence:
    return 0.0
  return len(evidence.intersection(pages[: len(evidence)])) / len(evidence)


def _places(pages: list[str], sets: list[frozenset[str]]) -> list[bool]:
  """Whether a set of evidence is completed, by place of the ranking.

  A page of two sets takes a place in each; a set that is not complete takes the
  place of the last of its pages.
  """
  missing = [set(evidence) for evidence in sets]
  places: list[tuple[bool, int]] = []  # Completed; which set, -1 for none.
  for page in pages:
    of = [index for index, left in enumerate(missing) if page in left]
    for index in of:
      missing[index].remove(page)
      # The set's former place is given up for this one.
      places = [place for place in places if place != (False, index)]
      places.append((not missing[index], index))
    if not of:
      places.append((False, -1))
  return [completed for completed, _ in places]


def rouge_l(prediction: str, answer: str) -> float:
  """ROUGE-L F-measure as the `rouge` package 1.0.1 has it.

  1e-8 short of 1 for the same text; 0 where either has nothing but full stops.
  """
  references, predictions = _sentences(answer), _sentences(prediction)
  if not references or not predictions:
    return 0.0
  common: set[str] = set()
  for reference in references:
    for sentence in predictions:
      common |= _common_words(reference, sentence)
  recall = len(common) / len({word for words in references for word in words})
  precision = len(common) / len({word for words in predictions for word in words})
  return 2.0 * (precision * recall / (precision + recall + _EPSILON))


def _sentences(text: str) -> list[list[str]]:
  # A sentence of nothing but spaces has one word, the empty one, as there.
  return [sentence.split() or [''] for sentence in text.split('.') if sentence]


def _common_words(reference: list[str], prediction: list[str]) -> set[str]:
  """Words of a longest common subsequence.

  Which of several is taken changes the score: going backwards, a word of the
  prediction is given up rather than one of the reference.
  """
  n, m = len(reference), len(prediction)
  lengths = [[0] * (m + 1) for _ in range(n + 1)]
  for i in range(n):
    above, row = lengths[i], lengths[i + 1]
    for j in range(m):
      same = reference[i] == prediction[j]
      row[j + 1] = above[j] + 1 if same else max(above[j + 1], row[j])
  words = set()
  i, j = n, m
  while i and j:
    if reference[i - 1] == prediction[j - 1]:
      words.add(reference[i - 1])
      i, j = i - 1, j - 1
    elif lengths[i - 1][j] > lengths[i][j - 1]:
      i -= 1
    else:
      j -= 1
  return words
