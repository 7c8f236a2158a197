"""Which metrics a task is scored by, and where they come from.

A family is a set of metrics; every record format has one, question files may
name one, and so may the user (`--metrics`).

  qa                   exact match and F1, SQuAD-normalised; patterns are searched
  label                accuracy (equal strings) and exact match
  kilt                 accuracy, exact match, F1 and ROUGE-L of KILT's scorer
  long_answer          F1 and ROUGE-L
  generation           ROUGE-L; BLEU-1 over all answers
  question_generation  likewise, and Q-BLEU-1
  multiple_choice      accuracy, standard and de-biased (`multiple_choice.py`)
  language_modeling    accuracy, F1 of words as written, ROUGE-1, -2 and -L
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ralm_jax.data.corpus.passage_store import StoredPassage
from ralm_jax.data.questions import rows as question_rows
from ralm_jax.data.questions.reading import Question
from ralm_jax.evaluation import kilt_predictions, metrics as metrics_lib
from ralm_jax.evaluation.scores import generation, kilt, mmlu

FAMILIES = question_rows.METRICS_FAMILIES


def family_of(questions: Sequence[Question]) -> str:
  """The family that questions are to be scored by.

  Raises:
    ValueError: they are of several families.
  """
  families = {
    question.metrics or ('multiple_choice' if question.options else 'qa') for question in questions
  }
  if len(families) > 1:
    raise ValueError(
      f'The questions are scored by {" and ".join(sorted(families))}; evaluate '
      'them apart, or choose one with --metrics.'
    )
  (family,) = families or ('qa',)
  check(family)
  return family


def check(family: str) -> None:
  """Raises ValueError for an unknown family."""
  if family not in FAMILIES:
    raise ValueError(f'metrics {family!r} are unknown; choose one of {", ".join(FAMILIES)}.')


def question_metrics(family: str, question: Question, prediction: str) -> dict[str, float | None]:
  """Metrics of one answer, each from 0 to 1.

  Args:
    family: one of `FAMILIES`.
    question: with at least one answer.
    prediction: what the reader wrote.
  """
  answers = question.answers
  if question.patterns:
    return {'exact_match': generation.regex_match(prediction, answers)}
  if family == 'label':
    return {
      'accuracy': float(prediction in answers),
      'exact_match': metrics_lib.exact_match(prediction, answers),
    }
  if family == 'kilt':
    return kilt.kilt_metrics(prediction, answers)
  if family == 'long_answer':
    return {
      'f1': metrics_lib.f1(prediction, answers),
      'rouge_l': metrics_lib.rouge_l(prediction, answers),
    }
  if family in ('generation', 'question_generation'):
    # BLEU of one sentence says little by itself, but pairs of runs compare.
    return {
      'rouge_l': metrics_lib.rouge_l(prediction, answers),
      'sentence_bleu_1': generation.sentence_bleu_1(prediction, answers),
      **(
        {'sentence_q_bleu_1': generation.sentence_q_bleu_1(prediction, answers)}
        if family == 'question_generation'
        else {}
      ),
    }
  if family == 'language_modeling':
    return {
      'accuracy': float(prediction in answers),
      'f1': generation.word_f1(prediction, answers),
      **generation.rouge(prediction, answers),
    }
  return {
    'exact_match': metrics_lib.exact_match(prediction, answers),
    'f1': metrics_lib.f1(prediction, answers),
  }


def corpus_metrics(family: str, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """What is no mean over questions: BLEU counts words over all answers."""
  if family not in ('generation', 'question_generation'):
    return {}
  rows = [r for r in records if r.get('answers') and r.get('prediction') is not None]
  if not rows:
    return {}
  predictions = [row['prediction'] for row in rows]
  answers = [row['answers'] for row in rows]
  result = {'bleu_1': generation.bleu_1(predictions, answers)}
  if family == 'question_generation':
    result['q_bleu_1'] = generation.q_bleu_1(predictions, answers)
  return result


def category_metrics(family: str, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """MMLU's categories, where its subjects are the groups."""
  if family != 'multiple_choice':
    return {}
  return mmlu.summary(records)


def answer_strings(family: str, question: Question) -> tuple[str, ...]:
  """Answers that a passage which helps would hold; () where none would.

  The label of a claim, an option's letter and a pattern stand in no passage.
  """
  if family == 'multiple_choice' or question.options:
    return tuple(question.options[ord(letter) - ord('A')] for letter in question.answers)
  if family == 'label' or question.patterns:
    return ()
  return question.answers


def evidence_metrics(
  question: Question, passages: Sequence[StoredPassage], metrics: Mapping[str, float | None]
) -> dict[str, float | None]:
  """R-precision and recall by page, and KILT scores, of one answer.

  Args:
    question: with provenance.
    passages: shown, best first.
    metrics: of the answer, by which evidence that was found is multiplied.
  """
  found = kilt.provenance_metrics(
    [
      kilt_predictions.page_of(
        {'id': passage.source_id, 'document': passage.document, 'title': passage.title}
      )
      for passage in passages
    ],
    question.provenance,
  )
  if 'rouge_l' not in metrics or 'accuracy' not in metrics:
    return found  # Of another family, or the reader was not asked.
  return {**found, **kilt.combined(metrics, found)}
