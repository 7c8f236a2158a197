"""Question answering from files: published sets, and the user's own jsonl."""

from __future__ import annotations

from typing import Any

from ralm_jax.data.text.vocabularies import Vocabulary
from ralm_jax.data.text_config import TextConfig
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
  **reading: Any,
) -> str:
  """Registers a question-answering task and returns its name.

  The target of a question is its `target`, else one of its answers, another in
  every epoch. Where the answers are patterns, it is a text made of one.

  In gin: `MIXTURE_OR_TASK_NAME = @qa.jsonl_task()`.

  Args:
    train: files or globs of `{question, answers, ...}`, see
      `ralm_jax/data/questions/reading.py`.
    **reading: options of `registration.read_splits`, such as `record_format`.

  Raises:
    ValueError: no file is given, a line is wrong (with file and line), or a question has options.
  """
  loaded = registration.read_splits(
    {'train': train, 'validation': validation, 'test': test}, **reading
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
