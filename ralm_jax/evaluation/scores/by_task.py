"""The families of metrics that tasks are scored by: one entry of `_TABLE` each.

Every record format has a family, question files may name one, and so may the
user (`--metrics`). Where answers are patterns, these are searched whatever the
family.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

from ralm_jax.data.corpus.passage_store import StoredPassage
from ralm_jax.data.questions import rows as question_rows
from ralm_jax.data.questions.reading import Question
from ralm_jax.evaluation import kilt_predictions, metrics as answer_metrics
from ralm_jax.evaluation.scores import generation, kilt, mmlu

FAMILIES = question_rows.METRICS_FAMILIES
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


def _qa(prediction: str, answers: Sequence[str]) -> Scores:
  """Exact match and F1, SQuAD-normalised."""
  return {
    'exact_match': answer_metrics.exact_match(prediction, answers),
    'f1': answer_metrics.f1(prediction, answers),
  }


def _label(prediction: str, answers: Sequence[str]) -> Scores:
  """Equal strings, and exact match."""
  return {
    'accuracy': float(prediction in answers),
    'exact_match': answer_metrics.exact_match(prediction, answers),
  }


def _long_answer(prediction: str, answers: Sequence[str]) -> Scores:
  return {
    'f1': answer_metrics.f1(prediction, answers),
    'rouge_l': answer_metrics.rouge_l(prediction, answers),
  }


def _generation(prediction: str, answers: Sequence[str]) -> Scores:
  """BLEU of one sentence says little by itself, but pairs of runs compare."""
  return {
    'rouge_l': answer_metrics.rouge_l(prediction, answers),
    'sentence_bleu_1': generation.sentence_bleu_1(prediction, answers),
  }


def _question_generation(prediction: str, answers: Sequence[str]) -> Scores:
  return {
    **_generation(prediction, answers),
    'sentence_q_bleu_1': generation.sentence_q_bleu_1(prediction, answers),
  }


def _language_modeling(prediction: str, answers: Sequence[str]) -> Scores:
  """F1 is of words as written."""
  return {
    'accuracy': float(prediction in answers),
    'f1': generation.word_f1(prediction, answers),
    **generation.rouge(prediction, answers),
  }


def _corpus_bleu(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> Scores:
  return {'bleu_1': generation.bleu_1(predictions, answers)}


def _corpus_q_bleu(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> Scores:
  return {
    **_corpus_bleu(predictions, answers),
    'q_bleu_1': generation.q_bleu_1(predictions, answers),
  }


_TABLE = {
  one.name: one
  for one in (
    MetricFamily('qa', _qa),
    # The label of a claim stands in no passage.
    MetricFamily('label', _label, answer_strings=lambda q: answer_texts(q) if q.options else ()),
    MetricFamily('kilt', kilt.kilt_metrics),
    MetricFamily('long_answer', _long_answer),
    MetricFamily('generation', _generation, _corpus_bleu),
    MetricFamily('question_generation', _question_generation, _corpus_q_bleu),
    MetricFamily('multiple_choice', _qa, of_groups=mmlu.summary, answers_by='choosing'),
    MetricFamily('language_modeling', _language_modeling),
  )
}


def family(name: str) -> MetricFamily:
  """Raises ValueError for an unknown one."""
  if name not in _TABLE:
    raise ValueError(f'metrics {name!r} are unknown; choose one of {", ".join(FAMILIES)}.')
  return _TABLE[name]


def family_of(questions: Sequence[Question], metrics: str | None = None) -> str:
  """The name of the family that questions are to be scored by.

  Args:
    questions: those that do not say are of 'multiple_choice' or 'qa'.
    metrics: what the user says, which goes first.

  Raises:
    ValueError: they are of several families, or of one that there is not.
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
  question: Question, passages: Sequence[StoredPassage], metrics: Mapping[str, float | None]
) -> Scores:
  """R-precision and recall by page, and KILT scores, of one answer.

  Args:
    question: with provenance.
    passages: shown, best first.
    metrics: of the answer, by which evidence that was found is multiplied.
  """
  pages = [
    kilt_predictions.page_of({'id': p.source_id, 'document': p.document, 'title': p.title})
    for p in passages
  ]
  found = kilt.provenance_metrics(pages, question.provenance)
  if 'rouge_l' not in metrics or 'accuracy' not in metrics:
    return found  # Of another family, or the reader was not asked.
  return {**found, **kilt.combined(metrics, found)}
