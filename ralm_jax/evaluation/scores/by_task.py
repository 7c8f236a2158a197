"""The families of metrics that tasks are scored by: one entry of `_TABLE` each.

Every record format has a family, question files may name one, and so may the
user (`--metrics`); their names are in `data/option_values.py`. Where answers are
patterns, these are searched whatever the family.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

from ralm_jax.data.option_values import METRICS_FAMILIES
from ralm_jax.data.questions.reading import Question
from ralm_jax.evaluation import metrics as answer_metrics
from ralm_jax.evaluation.scores import generation, kilt, mmlu

Scores = dict[str, float]
Records = Sequence[Mapping[str, Any]]


def answer_texts(question: Question) -> tuple[str, ...]:
  """Answers as a passage would hold them: an option's text for its letter, no patterns."""
  if question.options:
    return tuple(question.options[ord(letter) - ord('A')] for letter in question.answers)
  return () if question.patterns else question.answers


@dataclasses.dataclass(frozen=True)
class MetricFamily:
  """What answers of one kind are scored by; every score is from 0 to 1."""

  name: str
  # (prediction, answers) -> metrics of one answer.
  of_question: Callable[[str, Sequence[str]], Scores]
  # (predictions, their answers) -> what is no mean over questions.
  of_corpus: Callable[[Sequence[str], Sequence[Sequence[str]]], Scores] | None = None
  # Records whose questions have groups -> means over several groups.
  of_groups: Callable[[Records], dict[str, Any]] | None = None
  # Answers that a passage which helps would hold; () where none would.
  answer_strings: Callable[[Question], tuple[str, ...]] = answer_texts
  # 'writing' decodes; 'choosing' scores the letters of options instead.
  answers_by: str = 'writing'

  @property
  def chooses(self) -> bool:
    return self.answers_by == 'choosing'


def _each(**scores: Callable[..., float]) -> Callable[..., Scores]:
  """Several scores of the same predictions and answers, by name."""
  return lambda predicted, answers: {name: of(predicted, answers) for name, of in scores.items()}


def _accuracy(prediction: str, answers: Sequence[str]) -> float:
  return float(prediction in answers)


def _language_modeling(prediction: str, answers: Sequence[str]) -> Scores:
  """F1 is of words as written."""
  own = _each(accuracy=_accuracy, f1=generation.word_f1)(prediction, answers)
  return own | generation.rouge(prediction, answers)


_QA = _each(exact_match=answer_metrics.exact_match, f1=answer_metrics.f1)
# BLEU of one sentence says little by itself, but pairs of runs compare.
_SENTENCES: dict[str, Callable[..., float]] = {
  'rouge_l': answer_metrics.rouge_l,
  'sentence_bleu_1': generation.sentence_bleu_1,
}
_TABLE = {
  one.name: one
  for one in (
    MetricFamily('qa', _QA),
    MetricFamily(
      'label',
      _each(accuracy=_accuracy, exact_match=answer_metrics.exact_match),
      # The label of a claim stands in no passage.
      answer_strings=lambda question: answer_texts(question) if question.options else (),
    ),
    MetricFamily('kilt', kilt.kilt_metrics),
    MetricFamily('long_answer', _each(f1=answer_metrics.f1, rouge_l=answer_metrics.rouge_l)),
    MetricFamily('generation', _each(**_SENTENCES), _each(bleu_1=generation.bleu_1)),
    MetricFamily(
      'question_generation',
      _each(**_SENTENCES, sentence_q_bleu_1=generation.sentence_q_bleu_1),
      _each(bleu_1=generation.bleu_1, q_bleu_1=generation.q_bleu_1),
    ),
    MetricFamily('multiple_choice', _QA, of_groups=mmlu.summary, answers_by='choosing'),
    MetricFamily('language_modeling', _language_modeling),
  )
}


def family(name: str) -> MetricFamily:
  """Raises ValueError for an unknown one."""
  if name not in _TABLE:
    raise ValueError(f'metrics {name!r} are unknown; choose one of {", ".join(METRICS_FAMILIES)}.')
  return _TABLE[name]


def family_of(questions: Sequence[Question], metrics: str | None = None) -> str:
  """The name of the family that questions are to be scored by.

  What the user says (`metrics`) goes before what they say themselves. ValueError
  where they are of several families, or of one that there is not.
  """
  families = {metrics or q.metrics or ('multiple_choice' if q.options else 'qa') for q in questions}
  if len(families) > 1:
    raise ValueError(
      f'The questions are scored by {" and ".join(sorted(families))}; evaluate '
      'them apart, or choose one with --metrics.'
    )
  (name,) = families or (metrics or 'qa',)
  return family(name).name


def question_metrics(name: str, question: Question, prediction: str) -> Scores:
  """Metrics of one answer to a question with at least one right answer."""
  if question.patterns:
    return {'exact_match': generation.regex_match(prediction, question.answers)}
  return family(name).of_question(prediction, question.answers)


def corpus_metrics(name: str, records: Records) -> Scores:
  """What is no mean over questions: BLEU counts words over all answers."""
  of_corpus = family(name).of_corpus
  rows = [r for r in records if r.get('answers') and r.get('prediction') is not None]
  if of_corpus is None or not rows:
    return {}
  return of_corpus([row['prediction'] for row in rows], [row['answers'] for row in rows])


def evidence_metrics(
  question: Question, pages: Sequence[str], metrics: Mapping[str, float | None]
) -> Scores:
  """R-precision and recall by page, and KILT scores, of one answer with these metrics.

  `pages` are those of the passages, best first.
  """
  found = kilt.provenance_metrics(pages, question.provenance)
  if 'rouge_l' not in metrics or 'accuracy' not in metrics:
    return found  # Of another family, or the reader was not asked.
  return {**found, **kilt.combined(metrics, found)}
