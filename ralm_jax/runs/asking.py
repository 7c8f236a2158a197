"""Questions one at a time, of an index that may change between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
from typing import Any

from ralm_jax.checkpoints import specification
from ralm_jax.evaluation.answering import AnswerOptions
from ralm_jax.evaluation.records import Answer
from ralm_jax.evaluation.task import PassageOptions, ReadingOptions
from ralm_jax.retrieval.index_source import IndexSource
from ralm_jax.runs import opening


@contextlib.contextmanager
def open_session(
  *,
  checkpoint: str,
  source: IndexSource | None = None,
  n_passages: int | None = None,
  answering: AnswerOptions = AnswerOptions(),
  how_read: ReadingOptions = ReadingOptions(),
  text: Mapping[str, Any] | None = None,
) -> Iterator[Callable[[str], Answer]]:
  """Gives a function from a question to its answer, from what is served when it is asked.

  `text` are fields of TextConfig to use instead of the checkpoint's own.
  """
  opened = opening.open_checkpoint(checkpoint)
  if text:
    spec = specification.with_text(opened.spec, **text)
    opened = dataclasses.replace(opened, spec=spec)
  with opening.open_evaluator(
    opened,
    source,
    batch_size=opened.partitioner.mesh.size,
    passages=PassageOptions(n_passages=n_passages),
    answering=answering,
    how_read=how_read,
  ) as evaluator:
    yield lambda question: evaluator.answer(opened.params, [question])[0]


def ask(
  question: str,
  *,
  checkpoint: str,
  source: IndexSource | None = None,
  n_passages: int | None = None,
  answering: AnswerOptions = AnswerOptions(),
  how_read: ReadingOptions = ReadingOptions(),
  text: Mapping[str, Any] | None = None,
) -> Answer:
  if not question.strip():
    raise ValueError('The question is empty; write it as an argument.')
  with open_session(
    checkpoint=checkpoint,
    source=source,
    n_passages=n_passages,
    answering=answering,
    how_read=how_read,
    text=text,
  ) as answer:
    return answer(question)
