"""Eval: answer a file of questions and score the answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import hashlib
import json
import os
from typing import Any

from ralm_jax.checkpoints import specification
from ralm_jax.data.questions import few_shot, reading
from ralm_jax.data.questions.reading import Question
from ralm_jax.evaluation import choice_evaluator, prediction_files
from ralm_jax.evaluation.answering import AnswerOptions
from ralm_jax.evaluation.choice_evaluator import ChoiceEvaluator
from ralm_jax.evaluation.evaluator import Evaluator
from ralm_jax.evaluation.scores import by_task
from ralm_jax.runs import opening
from ralm_jax.runs.opening import OpenedCheckpoint


def evaluate(
  *,
  checkpoint: str | OpenedCheckpoint,
  questions: str | Sequence[str],
  output: str,
  index: str | None = None,
  retrieval_address: str | None = None,
  generation: int | None = None,
  corpus: str | None = None,
  n_passages: int | None = None,
  retry_for_s: float = 30.0,
  backend: str = 'process',
  device_dtype: str = 'bfloat16',
  search_filter: str = 'passage',
  n_candidates: int | None = None,
  rerank_chunk: int | None = None,
  batch_size: int = 32,
  require_answers: bool = True,
  record_format: str = 'qa',
  metrics: str | None = None,
  passages_from: str = 'index',
  retrieve_only: bool = False,
  passage_effects: bool = False,
  with_loss: bool = False,
  on_error: str = 'raise',
  shots: int | None = None,
  shots_seed: int = 0,
  num_examples: int | None = None,
  text: Mapping[str, Any] | None = None,
  permutations: str = 'cyclic',
  resume: bool = True,
  progress: bool = True,
  **answering: Any,
) -> dict[str, Any]:
  """Writes `predictions.jsonl` and `metrics.json`; returns the metrics.

  Interrupted, it goes on behind the predictions that are written already, if
  checkpoint, index, questions and choices are the same.

  Args:
    checkpoint: MODEL_DIR or MODEL_DIR/checkpoint_<step>, or one that is open.
    questions: jsonl files or globs of `{question, answers, id?, ...}`.
    output: folder of the results.
    index: INDEX folder; a retrieval process is started for it.
    retrieval_address: 'host:port' of a running one instead.
    generation: of the index; None for whichever is current.
    corpus: None takes the one the index names.
    n_passages: None takes the model's own number.
    retry_for_s: how long an unreachable retrieval process is waited for.
    backend: 'process', or 'device' for exact search on this program's devices.
    device_dtype: of the embeddings on the devices.
    search_filter: what a question's exclusions drop: 'passage', 'document' or
      'none', which ignores dates too.
    n_candidates: fetched from a stale index, of which the checkpoint's own
      encoders keep `n_passages`; None does not re-rank.
    rerank_chunk: candidates encoded at a time; None encodes all.
    batch_size: questions at a time.
    require_answers: whether a question without answers is an error.
    record_format: of the files, see `data/questions/formats/catalogue.py`.
    metrics: one of `task_metrics.FAMILIES`; None for that of the format.
    passages_from: 'index'; 'file' for the passages that questions bring along,
      in their order; 'none' for closed-book answers of any model.
    retrieve_only: find passages and leave the reader out.
    passage_effects: also each passage's effect on the answer's log-likelihood.
    with_loss: also the mean negative log-likelihood of a target's tokens.
    on_error: 'raise', or 'skip' to leave malformed records out.
    shots: only so many questions, chosen by hash.
    shots_seed: of the choice.
    num_examples: only the first so many questions.
    text: fields of TextConfig to use instead of the checkpoint's own, such as
      `question_format` and `reader_query_length`.
    permutations: orders of a multiple choice's options that are averaged:
      'single', 'cyclic' or 'all'.
    resume: False begins anew.
    progress: show a progress bar.
    **answering: fields of `answering.AnswerOptions` and of its
      `DecodingOptions`: `num_beams`, `sample`, `rag_decoding`, ...
  """
  choices = {
    name: value
    for name, value in locals().items()
    if name
    not in ('checkpoint', 'output', 'progress', 'resume', 'retry_for_s', 'retrieval_address')
  }
  options = AnswerOptions.make(**answering)
  _check(choices, options)
  rows = reading.read_questions(
    questions,
    require_answers=require_answers,
    duplicate_ids='number',
    record_format=record_format,
    on_error=on_error,
  )
  if shots is not None:
    rows = few_shot.choose(rows, shots, shots_seed)
  rows = rows[:num_examples]
  metrics = by_task.family_of(rows, metrics)
  chooses = by_task.family(metrics).chooses
  choice_evaluator.check(metrics, rows, permutations)
  if chooses and options != AnswerOptions():
    raise ValueError(
      "Of a multiple choice the options' letters are scored, not decoded: "
      'leave the decoding options out.'
    )
  opened = (
    checkpoint if isinstance(checkpoint, OpenedCheckpoint) else opening.open_checkpoint(checkpoint)
  )
  if text:
    opened = dataclasses.replace(opened, spec=specification.with_text(opened.spec, **text))
  with opening.open_evaluator(
    opened,
    index=index,
    retrieval_address=retrieval_address,
    generation=generation,
    corpus=corpus,
    n_passages=n_passages,
    batch_size=batch_size,
    retry_for_s=retry_for_s,
    backend=backend,
    device_dtype=device_dtype,
    search_filter=search_filter,
    n_candidates=n_candidates,
    rerank_chunk=rerank_chunk,
    passages_from=passages_from,
    evaluation={
      'answering': options,
      'reads': not retrieve_only,
      'passage_effects': passage_effects,
      'with_loss': with_loss,
      'metrics': metrics,
    },
  ) as evaluator:
    if passages_from == 'file' and not any(q.passages for q in rows):
      raise ValueError(
        f'No question of {questions} brings passages along (field '
        "'passages'); take them from an index."
      )
    answers = evaluator
    if chooses and not retrieve_only:
      answers = ChoiceEvaluator(evaluator, permutations=permutations)
    predict = functools.partial(answers.predictions, opened.params, rows, progress=progress)
    return prediction_files.write(
      predict,
      output,
      metrics=metrics,
      batch_size=evaluator.size,
      resume_as=_name(opened, evaluator, rows, choices) if resume else None,
    )


def _check(choices: Mapping[str, Any], options: AnswerOptions) -> None:
  """Raises ValueError for a choice that cannot be, or has no effect."""
  for name in (
    'batch_size',
    'n_passages',
    'n_candidates',
    'rerank_chunk',
    'num_examples',
    'shots',
    'generation',
  ):
    value = choices[name]
    if value is not None and value < 1:
      raise ValueError(f'{name} must be at least 1, not {value}.')
  source = choices['passages_from']
  if source != 'index':
    given = [
      name
      for name in (
        'index',
        'generation',
        'corpus',
        'n_candidates',
        *(['n_passages'] if source == 'none' else []),
      )
      if choices[name] is not None
    ]
    if choices['backend'] != 'process':
      given.append('backend')
    if given:
      raise ValueError(
        f'Passages come from {source!r}, where {" and ".join(given)} would have '
        f'no effect: leave --{given[0]} out.'
      )
  if choices['rerank_chunk'] is not None and choices['n_candidates'] is None:
    raise ValueError('rerank_chunk is of re-ranking: give n_candidates too, or leave it out.')
  if choices['retrieve_only'] and options != AnswerOptions():
    raise ValueError(
      'Nothing is decoded when passages alone are retrieved: leave the decoding options out.'
    )


def _name(
  opened: OpenedCheckpoint,
  evaluator: Evaluator,
  questions: Sequence[Question],
  choices: Mapping[str, Any],
) -> str:
  """Tells apart evaluations whose predictions may differ."""
  digest = hashlib.sha256()
  for question in questions:
    digest.update(repr(dataclasses.replace(question, path='')).encode('utf-8'))
  return json.dumps(
    {
      'checkpoint': os.path.abspath(opened.name),
      # A folder that was written again holds other parameters.
      'written_ns': os.stat(opened.name).st_mtime_ns,
      'model': repr(opened.spec.model),
      'text': dataclasses.asdict(opened.spec.text),
      'vocabularies': [
        opened.spec.tokenizer.reader_vocabulary.fingerprint,
        opened.spec.tokenizer.retriever_vocabulary.fingerprint,
      ],
      'index': evaluator.source_id,
      'questions': digest.hexdigest(),
      **choices,
    },
    default=str,
    sort_keys=True,
  )
