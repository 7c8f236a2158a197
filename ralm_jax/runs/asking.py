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
from ralm_jax.runs.opening import OpenedCheckpoint
from ralm_jax.runs.workspace import Workspace


@contextlib.contextmanager
def open_session(
  *,
  checkpoint: str | OpenedCheckpoint | None = None,
  source: IndexSource | None = None,
  workspace: Workspace | None = None,
  n_passages: int | None = None,
  answering: AnswerOptions = AnswerOptions(),
  how_read: ReadingOptions = ReadingOptions(),
  text: Mapping[str, Any] | None = None,
) -> Iterator[Callable[[str], Answer]]:
  """Gives a function from a question to its answer, from what is served when it is asked.

  Passages are of a checkpoint's index, or of a workspace, in which what is missing is built first.
  `text` are fields of TextConfig to use instead of the checkpoint's own.
  """
  if (checkpoint is None) == (workspace is None):
    raise ValueError('Give either a checkpoint with its index, or a workspace of documents.')
  with contextlib.ExitStack() as stack:
    if workspace is not None:
      parts = stack.enter_context(workspace.opened())
      opened, source = parts.checkpoint, parts.source
      # A small folder may hold fewer than are read.
      n_passages = min(n_passages or opened.spec.text.n_passages, parts.n_passages)
    elif isinstance(checkpoint, OpenedCheckpoint):
      opened = checkpoint
    else:
      opened = opening.open_checkpoint(checkpoint or '')
    if text:
      opened = dataclasses.replace(opened, spec=specification.with_text(opened.spec, **text))
    evaluator = stack.enter_context(
      opening.open_evaluator(
        opened,
        source,
        batch_size=opened.partitioner.mesh.size,
        passages=PassageOptions(n_passages=n_passages),
        answering=answering,
        how_read=how_read,
      )
    )
    yield lambda question: evaluator.answer(opened.params, [question])[0]


def ask(
  question: str,
  *,
  checkpoint: str | OpenedCheckpoint | None = None,
  source: IndexSource | None = None,
  workspace: Workspace | None = None,
  n_passages: int | None = None,
  answering: AnswerOptions = AnswerOptions(),
  how_read: ReadingOptions = ReadingOptions(),
  text: Mapping[str, Any] | None = None,
) -> Answer:
  """One question; see `open_session`."""
  if not question.strip():
    raise ValueError('The question is empty; write it as an argument.')
  with open_session(
    checkpoint=checkpoint,
    source=source,
    workspace=workspace,
    n_passages=n_passages,
    answering=answering,
    how_read=how_read,
    text=text,
  ) as answer:
    return answer(question)
