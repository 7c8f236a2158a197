"""Question answering from files: published sets, and the user's own jsonl."""

from __future__ import annotations

from typing import Any

from ralm_jax.data.text.vocabularies import Vocabulary
from ralm_jax.data.text_config import TextConfig
from ralm_jax.losses.option_types import Count, Seed
from ralm_jax.tasks import registration


def jsonl_task(
  name: str = 'qa_jsonl',
  train: Any = None,
  validation: Any = None,
  test: Any = None,
  *,
  text: TextConfig | None = None,
  reader_vocabulary: str | Vocabulary,
  retriever_vocabulary: str | Vocabulary,
  require_answers: bool = True,
  duplicate_ids: str = 'number',
  record_format: str = 'qa',
  on_error: str = 'raise',
  shots: Count | None = None,
  shots_seed: Seed = 0,
  shots_list: str | None = None,
) -> str:
  """Registers a question-answering task and returns its name.

  The target of a question is its `target`, else one of its answers, another in
  every epoch. Where the answers are patterns, it is a text made of one.

  In gin: `MIXTURE_OR_TASK_NAME = @qa.jsonl_task()`.

  Args:
    train: files or globs of `{question, answers, ...}`, see
      `ralm_jax/data/questions/reading.py`.
    record_format: and what follows: see `registration.read_splits`.

  Raises:
    ValueError: no file is given, a line is wrong (with file and line), or a question has options.
  """
  loaded = registration.read_splits(
    {'train': train, 'validation': validation, 'test': test},
    require_answers=require_answers,
    duplicate_ids=duplicate_ids,
    record_format=record_format,
    on_error=on_error,
    shots=shots,
    shots_seed=shots_seed,
    shots_list=shots_list,
  )
  for questions in loaded.values():
    for question in questions:
      if question.options:
        raise ValueError(
          f'{question.path}:{question.line}: the question has options, which this task would not '
          'show; use tasks.multiple_choice.mmlu_task (gin_configs/runs/multiple_choice.gin)'
        )
  return registration.register_questions(
    name, loaded, registration.make_tokenizer(text, reader_vocabulary, retriever_vocabulary)
  )
