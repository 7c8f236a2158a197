"""An answer with its passages, as a record of predictions.jsonl, and metrics."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import math
from typing import Any

import numpy as np

from ralm_jax.data.corpus import passages as passages_lib
from ralm_jax.data.corpus.passage_store import StoredPassage
from ralm_jax.data.questions.reading import Question
from ralm_jax.evaluation.kilt_predictions import PageOptions
from ralm_jax.evaluation.scores import by_task, retrieval

RECALL_AT = (1, 5, 20)


@dataclasses.dataclass(frozen=True)
class AnsweredPassage:
  """A passage the reader was given."""

  passage: StoredPassage
  score: float  #: inner product with the query
  probability: float  #: of the retriever among the passages retrieved
  # log p(answer | all passages) - log p(answer | all but this one), where asked for.
  effect: float | None = None
  #: Characters of the merged title, and of the text, that the reader read; None for all.
  title_read: int | None = None
  text_read: int | None = None

  @property
  def read(self) -> str:
    """What the reader read of it, which is all that helps it."""
    title, text = self.passage.title, self.passage.text
    if self.title_read is not None:
      title = self.passage.merged_title[: self.title_read]
    return f'{title} {text[: self.text_read]}'


@dataclasses.dataclass(frozen=True)
class Answer:
  """What the model says to one question."""

  prediction: str | None  #: None where the reader was not asked
  log_probability: float | None  #: of the answer's tokens; of RAG marginal over passages
  passages: tuple[AnsweredPassage, ...]  #: best first; () closed-book
  n_passages: int = 0  #: asked for, of which filters may have left fewer; 0 closed-book
  index_id: str = ''  #: of the index that the passages are from, where it is known
  generation: int = 0  #: of that index; 0 closed-book
  alternatives: tuple[tuple[str, float], ...] = ()  #: with log-probabilities, best first
  loss: float | None = None  #: mean negative log-likelihood of the target's tokens, if asked for
  #: Which texts of the question were too long: 'query' (of the retriever), 'question' (of the
  #: reader), 'target' (of the loss).
  cut: tuple[str, ...] = ()
  unknown_gold_ids: tuple[str, ...] = ()  #: that are not among the passages that are searched
  ended: bool = True  #: false for a decoder-only reader's answer that its longest length cut


def check_finite(values: Any, question: str) -> None:
  """Raises ValueError where the reader's numbers for a question are not finite."""
  if not np.all(np.isfinite(values)):
    raise ValueError(
      f'The reader finds no probability of an answer to {question!r} ({values}): its activations '
      'overflow the dtype that it computes in (`ralm convert --dtype float32` makes it another), '
      'or its training diverged.'
    )


def prediction_record(
  question: Question, answer: Answer, metrics: str = 'qa', pages: PageOptions = PageOptions()
) -> dict[str, Any]:
  """The object of one line of `predictions.jsonl`.

  Metrics that are not finite are null, and named in `not_finite`.
  """
  record: dict[str, Any] = {
    'id': question.id,
    'query': question.question,
    'answers': list(question.answers),
  }
  if answer.prediction is not None:
    record['prediction'] = answer.prediction
    record['log_probability'] = answer.log_probability
  if answer.alternatives:
    record['alternatives'] = [
      {'prediction': text, 'log_probability': log_probability}
      for text, log_probability in answer.alternatives
    ]
  passages = list(map(_passage_record, answer.passages))
  if question.provenance:
    for passage in passages:
      passage['page'] = pages.page_of(passage)
  scores = answer_metrics(question, answer, metrics, [p['page'] for p in passages if 'page' in p])
  strange = [n for n, score in scores.items() if score is not None and not math.isfinite(score)]
  noted = {
    'cut': list(answer.cut),
    'unknown_gold_ids': list(answer.unknown_gold_ids),
    'unended': not answer.ended,
    'not_finite': strange,
  }
  return {
    **record,
    'passages': passages,
    # A generation's number means something only within its index.
    'index': answer.index_id or None,
    'generation': answer.generation or None,
    **about(question),
    **{name: value for name, value in noted.items() if value},
    'metrics': {**scores, **dict.fromkeys(strange)},
  }


def about(question: Question) -> dict[str, Any]:
  """What a question's record carries along, where there is any."""
  fields = {
    'group': question.group,
    'date': question.date,
    'provenance': [list(pages) for pages in question.provenance],
    'metadata': dict(question.metadata),
  }
  return {name: value for name, value in fields.items() if value}


def _passage_record(shown: AnsweredPassage) -> dict[str, Any]:
  passage = shown.passage
  return {
    'id': passage.id,
    'title': passage.title,
    'text': passage.text,
    # An id that looks like a part's may be a whole one.
    **({'part_of': passage.source_id} if passages_lib.source_id(passage.id) != passage.id else {}),
    **({'document': passage.document} if passage.document else {}),
    **({} if shown.text_read is None else {'characters_read': shown.text_read}),
    'score': shown.score,
    'probability': shown.probability,
    **({} if shown.effect is None else {'effect': shown.effect}),
  }


def answer_metrics(
  question: Question, answer: Answer, metrics: str = 'qa', pages: Sequence[str] = ()
) -> dict[str, float | None]:
  """Metrics of one answer; retrieval by answer string, by gold passage, and by page.

  An answer string counts where the reader read it (or would have, where it was not asked), and not
  in what was cut from a passage. A gold passage counts whole.
  """
  result: dict[str, float | None] = {}
  if question.answers and answer.prediction is not None:
    result |= by_task.question_metrics(metrics, question, answer.prediction)
  if answer.loss is not None:
    result['loss'] = answer.loss
  if not answer.n_passages:
    return result
  shown = [item.passage for item in answer.passages]
  ranks = retrieval.rank_passages(
    [item.read for item in answer.passages],
    known_as(shown, question),
    by_task.family(metrics).answer_strings(question),
    question.gold_passage_ids,
  )
  for kind, rank in (('answer', ranks.answer), ('gold', ranks.gold)):
    result |= retrieval.rank_metrics(rank, answer.n_passages, RECALL_AT, kind)
  if question.provenance:
    result |= by_task.evidence_metrics(question, pages, result)
  return result


def known_as(passages: Sequence[StoredPassage], question: Question) -> list[str]:
  """Ids as the question may name them.

  Any part of a long passage is gold where the passage is, but only one where
  the question names this very part.
  """
  return [p.id if p.id in question.gold_passage_ids else p.source_id for p in passages]
