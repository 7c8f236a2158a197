"""An evaluation task: what is asked, read, answered and scored.

An option is one field here (or of `AnswerOptions`) and one flag of its name;
`option_fields.fill` brings them together, and `jobs.Task` has the same fields.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from ralm_jax.data.option_values import DEMONSTRATION_CHOICES, PASSAGE_ORDERS, PASSAGES_FROM
from ralm_jax.data.questions import few_shot, reading
from ralm_jax.data.questions.reading import Question
from ralm_jax.data.text_config import TextConfig
from ralm_jax.evaluation import option_fields
from ralm_jax.evaluation.answering import AnswerOptions
from ralm_jax.evaluation.kilt_predictions import PageOptions
from ralm_jax.losses import option_types
from ralm_jax.losses.option_types import Count, Number, Seed
from ralm_jax.retrieval.index_source import IndexSource


@dataclasses.dataclass(frozen=True)
class QuestionOptions:
  """Which questions are asked, and in what form."""

  questions: str | Sequence[str]  #: files or globs of `{question, answers, id?, ...}`
  record_format: str = 'qa'  #: of the files, see `data/questions/formats/catalogue.py`
  #: Fields of TextConfig to use instead of the checkpoint's own, such as
  #: `question_format` and `reader_query_length`.
  text: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
  num_examples: Count | None = None  #: only the first so many questions
  shots: Count | None = None  #: only so many questions, chosen by hash
  shots_seed: Seed = 0  #: of that choice
  require_answers: bool = True  #: whether a question without answers is an error
  on_error: str = 'raise'  #: or 'skip' to leave malformed records out

  def __post_init__(self):
    option_types.check_fields(self)

  def read(self) -> list[Question]:
    """Raises ValueError for what cannot be read, with file and line."""
    rows = reading.read_questions(
      self.questions,
      require_answers=self.require_answers,
      duplicate_ids='number',
      record_format=self.record_format,
      on_error=self.on_error,
    )
    if self.shots is not None:
      rows = few_shot.choose(rows, self.shots, self.shots_seed)
    return rows[: self.num_examples]


@dataclasses.dataclass(frozen=True)
class PassageOptions:
  """Which passages an answer is read from."""

  #: 'index'; 'file' for those that questions bring along, in their order; 'none' for
  #: closed-book answers of any model.
  passages_from: str = 'index'
  n_passages: Count | None = None  #: for a question; None takes the model's own number
  #: Fetched from a stale index, of which the checkpoint's own encoders keep `n_passages`.
  n_candidates: Count | None = None
  rerank_chunk: Count | None = None  #: candidates encoded at a time; None encodes all
  #: What a question's exclusions drop: 'passage', 'document' or 'none', which ignores dates too.
  search_filter: str = 'passage'

  def __post_init__(self):
    option_types.check_fields(self)
    if self.passages_from not in PASSAGES_FROM:
      raise ValueError(
        f'passages_from {self.passages_from!r} must be one of {", ".join(PASSAGES_FROM)}.'
      )
    idle = {'index': (), 'file': ('n_candidates',), 'none': ('n_candidates', 'n_passages')}
    self._refuse([name for name in idle[self.passages_from] if getattr(self, name) is not None])
    if self.rerank_chunk is not None and self.n_candidates is None:
      raise ValueError('rerank_chunk is of re-ranking: give n_candidates too, or leave it out.')

  def check_source(self, source: IndexSource) -> None:
    """Raises ValueError for an index that no passages come from."""
    if self.passages_from != 'index':
      self._refuse(source.flags_given)

  def _refuse(self, given: Sequence[str]) -> None:
    if given:
      raise ValueError(
        f'Passages come from {self.passages_from!r}, where {" and ".join(given)} would have '
        f'no effect: leave --{given[0]} out.'
      )

  def count(self, text: TextConfig) -> int:
    """Passages that a question is answered from."""
    return self.n_passages or text.n_passages

  def depth(self, text: TextConfig) -> int:
    """Passages that are fetched from the index."""
    return self.n_candidates or self.count(text)


@dataclasses.dataclass(frozen=True)
class ReadingOptions:
  """How the reader reads its passages, and what it is shown beside them."""

  reading: str | None = None  #: of `readings.READINGS`; None for the checkpoint's own
  #: Of a decoder-only reader's prompt: 'best_last' or 'best_first'; None for the checkpoint's own.
  passage_order: str | None = None
  #: Files or globs of answered questions, of which a decoder-only reader is shown some.
  demonstrations: str | Sequence[str] | None = None
  demonstrations_format: str | None = None  #: of these files; None for that of the questions
  num_demonstrations: Count | None = None  #: shown before each question; None: 4
  #: 'seed': the same for all, by hash; 'nearest': those nearest to each question by the retriever.
  demonstration_choice: str = 'seed'
  demonstrations_seed: Seed = 0  #: of the choice by hash
  #: Passages that each is shown with: its record's, its gold one, or what is retrieved for it.
  demonstration_passages: Number = 1
  #: Of reading in parallel: MiB of passages kept as they have been read, for later questions.
  passage_cache_mib: Count | None = None
  passage_cache: str | None = None  #: a folder for them; None keeps them in memory

  def __post_init__(self):
    option_types.check_fields(self)
    for name, known in (
      ('passage_order', (None, *PASSAGE_ORDERS)),
      ('demonstration_choice', DEMONSTRATION_CHOICES),
    ):
      if getattr(self, name) not in known:
        raise ValueError(
          f'{name} {getattr(self, name)!r} must be one of {", ".join(filter(None, known))}.'
        )
    if self.passage_cache and self.passage_cache_mib is None:
      raise ValueError('passage_cache is a folder of bounded size: give passage_cache_mib, too.')
    if self.demonstrations:
      return
    for field in dataclasses.fields(self):
      if 'demonstration' in field.name and getattr(self, field.name) != field.default:
        raise ValueError(f'--{field.name} is of demonstrations: name a file of --demonstrations.')

  @property
  def n_shown(self) -> int:
    """Demonstrations before each question, where there are any."""
    return self.num_demonstrations or 4


@dataclasses.dataclass(frozen=True)
class ScoringOptions(PageOptions):
  """What is measured."""

  metrics: str | None = None  #: a family of `scores/by_task.py`; None for that of the questions
  #: Orders of a multiple choice's options that are averaged: 'single', 'cyclic' or 'all'.
  permutations: str = 'cyclic'
  retrieve_only: bool = False  #: find passages and leave the reader out
  passage_effects: bool = False  #: also each passage's effect on the answer's log-likelihood
  #: Also the mean negative log-likelihood of a target's tokens, the target being
  #: `question.target` or the first answer.
  with_loss: bool = False


@dataclasses.dataclass(frozen=True)
class EvaluationTask:
  """All that is asked of a checkpoint; with an index it decides the predictions."""

  questions: QuestionOptions
  answering: AnswerOptions = AnswerOptions()
  scoring: ScoringOptions = ScoringOptions()
  passages: PassageOptions = PassageOptions()
  how_read: ReadingOptions = ReadingOptions()

  def __post_init__(self):
    if self.scoring.retrieve_only and self.answering != AnswerOptions():
      raise ValueError(
        'Nothing is decoded when passages alone are retrieved: leave the decoding options out.'
      )

  @classmethod
  def make(cls, **options: Any) -> EvaluationTask:
    """By the names of the fields of its parts: `make(questions=..., num_beams=4)`."""
    return option_fields.make(cls, **options)
