"""Open-domain question answering: published sets, and the user's own jsonl."""

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
  require_answers: bool = True,
  duplicate_ids: str = 'number',
  record_format: str = 'qa',
  on_error: str = 'raise',
  shots: int | None = None,
  shots_seed: int = 0,
  shots_list: str | None = None,
) -> str:
  """Registers a question-answering task and returns its name.

  The target of a question is its `target`, else one of its answers, another in
  every epoch. Where the answers are patterns, it is a text made of one.

  In gin: `MIXTURE_OR_TASK_NAME = @qa.jsonl_task()`.

  Args:
    name: of the task.
    train: files or globs of `{question, answers, ...}`, see
      `ralm_jax/data/questions/reading.py`.
    validation: likewise.
    test: likewise.
    text: formats and lengths.
    reader_vocabulary: file or object.
    retriever_vocabulary: file or object.
    require_answers: whether a training question without answers is an error;
      otherwise it is left out.
    duplicate_ids: 'error', or 'number' to tell equal ids apart.
    record_format: of the files, see `ralm_jax/data/questions/formats/catalogue.py`.
    on_error: 'raise', or 'skip' to leave malformed records out.
    shots: only so many training questions, chosen by hash.
    shots_seed: of the choice.
    shots_list: file that lists the training questions to take instead.

  Raises:
    ValueError: no file is given, a line is wrong (with file and line), or a
      question has options.
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
          f'{question.path}:{question.line}: the question has options, which '
          'this task would not show; use tasks.multiple_choice.mmlu_task '
          '(gin_configs/runs/multiple_choice.gin)'
        )
  return registration.register_questions(
    name, loaded, registration.make_tokenizer(text, reader_vocabulary, retriever_vocabulary)
  )


def nq_open(name: str = 'nq_open', **task: Any) -> str:
  """Natural Questions, open (Lee et al. 2019); arguments of `jsonl_task`."""
  return jsonl_task(name, **{'record_format': 'nq_open', **task})


def triviaqa(name: str = 'triviaqa', **task: Any) -> str:
  """TriviaQA (Joshi et al. 2017), filtered or not, which is a choice of files."""
  return jsonl_task(name, **{'record_format': 'triviaqa', **task})


def web_questions(name: str = 'web_questions', **task: Any) -> str:
  """WebQuestions (Berant et al. 2013); arguments of `jsonl_task`."""
  return jsonl_task(name, **{'record_format': 'web_questions', **task})


def curated_trec(name: str = 'curated_trec', **task: Any) -> str:
  """CuratedTREC (Baudis and Sedivy 2015), whose answers are patterns.

  The target is the file's own, where it names one (`target`), else a text made
  of the pattern (`answer_patterns.example`).
  """
  return jsonl_task(name, **{'record_format': 'curated_trec', **task})
