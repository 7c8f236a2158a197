"""Eval: answer a file of questions and score the answers."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools
import hashlib
import json
import os
from typing import Any

from ralm_jax.checkpoints import specification, store
from ralm_jax.data.questions.reading import Question
from ralm_jax.evaluation import choice_evaluator, prediction_files
from ralm_jax.evaluation.answering import AnswerOptions
from ralm_jax.evaluation.choice_evaluator import ChoiceEvaluator
from ralm_jax.evaluation.evaluator import Predictor
from ralm_jax.evaluation.scores import by_task
from ralm_jax.evaluation.task import EvaluationTask
from ralm_jax.retrieval.index_source import IndexSource
from ralm_jax.runs import opening
from ralm_jax.runs.opening import OpenedCheckpoint


def evaluate(
  checkpoint: str | os.PathLike[str] | OpenedCheckpoint,
  task: EvaluationTask,
  source: IndexSource | None,
  output: str | os.PathLike[str],
  *,
  batch_size: int = 32,
  resume: bool = True,
  progress: bool = True,
) -> dict[str, Any]:
  """Writes `predictions.jsonl` and `metrics.json`; returns the metrics.

  Interrupted, it goes on behind the predictions that are written already, if checkpoint, index,
  questions and task are the same; without `resume` it begins anew.
  """
  if batch_size < 1:
    raise ValueError(f'batch_size must be at least 1, not {batch_size}.')
  source = source or IndexSource()
  task.passages.check_source(source)
  rows = task.questions.read()
  metrics = by_task.family_of(rows, task.scoring.metrics)
  scoring = dataclasses.replace(task.scoring, metrics=metrics)
  chooses = by_task.family(metrics).chooses
  choice_evaluator.check(metrics, rows, scoring.permutations)
  if chooses and task.answering != AnswerOptions():
    raise ValueError(
      "Of a multiple choice the options' letters are scored, not decoded: "
      'leave the decoding options out.'
    )
  if not isinstance(checkpoint, OpenedCheckpoint):
    checkpoint = opening.open_checkpoint(checkpoint)
  if task.questions.text:
    spec = specification.with_text(checkpoint.spec, **task.questions.text)
    checkpoint = dataclasses.replace(checkpoint, spec=spec)
  with opening.open_evaluator(
    checkpoint,
    source,
    batch_size=batch_size,
    passages=task.passages,
    answering=task.answering,
    scoring=scoring,
    how_read=task.how_read,
    record_format=task.questions.record_format,
  ) as evaluator:
    if evaluator.demonstrations is not None:
      evaluator.demonstrations.check(rows)
    if task.passages.passages_from == 'file' and not any(q.passages for q in rows):
      raise ValueError(
        f'No question of {task.questions.questions} brings passages along (field '
        "'passages'); take them from an index."
      )
    predictor: Predictor = evaluator
    if chooses and not scoring.retrieve_only:
      predictor = ChoiceEvaluator(evaluator, permutations=scoring.permutations)
    inputs = _inputs(checkpoint, rows)
    asked = {'questions': inputs['questions'], 'task': dataclasses.asdict(task)}
    return prediction_files.write(
      functools.partial(predictor.predictions, checkpoint.params, rows, progress=progress),
      output,
      metrics=metrics,
      batch_size=evaluator.size,
      about={
        'run': os.path.realpath(checkpoint.directory),
        'step': checkpoint.step,
        'checkpoint': store.fingerprint(checkpoint.name),
        'asked': hashlib.sha256(json.dumps(asked, default=str).encode()).hexdigest()[:16],
      },
      resume_as=json.dumps(
        {
          **inputs,
          'index': evaluator.source_id,
          'source': source.choices,
          'task': dataclasses.asdict(task),
          'batch_size': batch_size,
        },
        default=str,
        sort_keys=True,
      )
      if resume
      else None,
    )


def _inputs(opened: OpenedCheckpoint, questions: Sequence[Question]) -> dict[str, Any]:
  """Tells checkpoints and questions apart by what they hold."""
  digest = hashlib.sha256()
  for question in questions:
    digest.update(repr(dataclasses.replace(question, path='')).encode('utf-8'))
  return {
    'checkpoint': os.path.abspath(opened.name),
    # A folder that was written again holds other parameters.
    'written_ns': os.stat(opened.name).st_mtime_ns,
    'model': repr(opened.spec.model),
    'text': dataclasses.asdict(opened.spec.text),
    'vocabularies': [
      opened.spec.tokenizer.reader_vocabulary.fingerprint,
      opened.spec.tokenizer.retriever_vocabulary.fingerprint,
    ],
    'questions': digest.hexdigest(),
  }
