"""What T5 and BART read and write: questions and targets as tokens, by a TextConfig."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools
from typing import Protocol

from ralm_jax.data.text import templates
from ralm_jax.data.text.base_vocabulary import SentinelVocabulary, Vocabulary
from ralm_jax.data.text_config import TextConfig


class ReaderSide(Protocol):
  """A reader's side of a `QueryTokenizer`."""

  def query(self, text: str, length: int | None = None) -> list[int]:
    """A question in its format, cut to `length` (None: `reader_query_length`)."""

  def question(self, question: str) -> list[int]:
    """A question, put into its format and cut to fit."""

  def question_lengths(self, questions: Sequence[str]) -> list[int]:
    """Tokens of whole questions in their format."""

  def target_lengths(self, answers: Sequence[str]) -> list[int]:
    """Tokens of whole targets, what frames them included."""

  def framed_target(self, ids: Sequence[int]) -> list[int]:
    """A target of at most `target_length` tokens, with what frames it."""

  def target(self, answer: str) -> list[int]:
    """A framed target of an answer."""

  def prefix(self, text: str) -> list[int]:
    """What an answer begins with, with what stands before it in a target."""

  def answer(self, tokens: Sequence[int]) -> str:
    """The text of what was decoded, up to its end."""


@dataclasses.dataclass(frozen=True)
class ReaderTexts:
  """Of encoder-decoders; ValueError for a sentinel that the vocabulary lacks."""

  text: TextConfig
  vocabulary: Vocabulary

  def __post_init__(self):
    if not isinstance(self.vocabulary, SentinelVocabulary):
      self.text.refuse_sentinels(
        self.vocabulary.path,
        "for BART use question_format = '{question}' and target_format = '{answer}' (<mask> is its "
        'mask)',
      )

  @functools.cached_property
  def query_leads(self) -> bool:
    """Whether the reader's inputs begin with the query."""
    return templates.leading_field(self.text.reader_format) == 'query'

  def framed_target(self, ids: Sequence[int]) -> list[int]:
    """A cut one has no end (Atlas), unless there is a start (RAG)."""
    length, prefix = self.text.target_length, self.vocabulary.reader_prefix
    if prefix:
      ids = [*prefix, *ids[: max(0, length - len(prefix) - 1)]]
    return [*ids[:length], self.vocabulary.eos_id][:length]

  def query(self, text: str, length: int | None = None) -> list[int]:
    """What the reader's format puts in place of {query}, without eos."""
    encode = self.vocabulary.encode_start if self.query_leads else self.vocabulary.encode
    length = self.text.reader_query_length if length is None else length
    return encode(text)[:length]

  def question(self, question: str) -> list[int]:
    """`query` of a question in its format, the question cut to fit.

    Cut at its end, as Atlas does and as `query` is, the format would lose what follows the
    question: the sentinel in whose place the reader writes. It is kept wherever it leaves space for
    the question. (A retriever has no use for it: there the end of the format goes first.)
    """
    format, length = self.text.question_format, self.text.reader_query_length
    whole = self.query(self.text.query(question), length + 1)
    after = format.rpartition('{question}')[2]
    end = self.vocabulary.encode(after) if after.strip() else []
    if len(whole) <= length or not 0 < len(end) < length:
      return whole[:length]
    before = format.removesuffix(after).replace('{question}', question)
    return self.query(before, length - len(end)) + end

  def question_lengths(self, questions: Sequence[str]) -> list[int]:
    vocabulary = self.vocabulary
    encode = vocabulary.encode_start_batch if self.query_leads else vocabulary.encode_batch
    return list(map(len, encode(list(map(self.text.query, questions)))))

  def target_lengths(self, answers: Sequence[str]) -> list[int]:
    framed = len(self.vocabulary.reader_prefix) + 1
    targets = self.vocabulary.encode_start_batch(list(map(self.text.target, answers)))
    return [len(ids) + framed for ids in targets]

  def target(self, answer: str) -> list[int]:
    return self.framed_target(self.vocabulary.encode_start(self.text.target(answer)))

  def prefix(self, text: str) -> list[int]:
    return [*self.vocabulary.reader_prefix, *self.vocabulary.encode_start(text)]

  def answer(self, tokens: Sequence[int]) -> str:
    """Without sentinels and special tokens."""
    ids = [int(token) for token in tokens]
    if self.vocabulary.eos_id in ids:
      ids = ids[: ids.index(self.vocabulary.eos_id)]
    return self.vocabulary.decode(ids).strip()
