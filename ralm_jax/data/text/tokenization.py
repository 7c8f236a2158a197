"""Questions and answers to static token rows, by a TextConfig. NumPy only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import dataclasses
import functools

import numpy as np

from ralm_jax.data.batches import QueryBatch
from ralm_jax.data.ragged import RaggedTokens
from ralm_jax.data.text import templates
from ralm_jax.data.text.base_vocabulary import SentinelVocabulary
from ralm_jax.data.text.vocabularies import Vocabulary
from ralm_jax.data.text_config import TextConfig


@dataclasses.dataclass(frozen=True)
class QueryTokenizer:
  """Tokenises queries and targets; ValueError for a sentinel that the vocabulary lacks."""

  text: TextConfig
  reader_vocabulary: Vocabulary
  retriever_vocabulary: Vocabulary

  def __post_init__(self):
    if isinstance(self.reader_vocabulary, SentinelVocabulary):
      return
    for field in ('question_format', 'target_format'):
      format = getattr(self.text, field)
      if '<extra_id_' in format:
        raise ValueError(
          f'TextConfig.{field} {format!r} has a sentinel of T5, which the reader vocabulary '
          f'{self.reader_vocabulary.path} does not know; for BART use question_format = '
          "'{question}' and target_format = '{answer}' (<mask> is its mask)."
        )

  @functools.cached_property
  def query_leads(self) -> bool:
    """Whether the reader's inputs begin with the query."""
    return templates.leading_field(self.text.reader_format) == 'query'

  @functools.cached_property
  def query_start(self) -> list[int]:
    """What a retriever's query begins with: special tokens and the prompt."""
    vocabulary = self.retriever_vocabulary
    return [*vocabulary.retriever_prefix, *vocabulary.encode_start(self.text.query_prompt)]

  @functools.cached_property
  def query_space(self) -> int:
    """Ids of a retriever's query without special tokens and prompt."""
    return max(0, self.text.query_length - len(self.query_start) - 1)

  def framed_query(self, ids: Sequence[int]) -> list[int]:
    """A retriever's query, cut on the right, with its special tokens."""
    return [*self.query_start, *ids[: self.query_space], self.retriever_vocabulary.eos_id]

  def framed_target(self, ids: Sequence[int]) -> list[int]:
    """A target with special tokens; a cut one has no end (Atlas), unless there is a start (RAG)."""
    vocabulary, length = self.reader_vocabulary, self.text.target_length
    prefix = vocabulary.reader_prefix
    if prefix:
      ids = [*prefix, *ids[: max(0, length - len(prefix) - 1)]]
    return [*ids[:length], vocabulary.eos_id][:length]

  def retriever_query(self, query: str) -> list[int]:
    """Ids for the query encoder; [CLS], [SEP] or eos survive truncation."""
    vocabulary = self.retriever_vocabulary
    encode = vocabulary.encode if self.text.query_prompt else vocabulary.encode_start
    return self.framed_query(encode(query))

  def reader_query(self, query: str, length: int | None = None) -> list[int]:
    """What the reader's format puts in place of {query}, without eos, cut to `length`."""
    vocabulary = self.reader_vocabulary
    encode = vocabulary.encode_start if self.query_leads else vocabulary.encode
    length = self.text.reader_query_length if length is None else length
    return encode(query)[:length]

  def reader_question(self, question: str) -> list[int]:
    """`reader_query` of a question in its format, the question cut to fit.

    Cut at its end, as Atlas does and as `reader_query` is, the format would lose what follows the
    question: the sentinel in whose place the reader writes. It is kept wherever it leaves space for
    the question. (A retriever has no use for it: there the end of the format goes first.)
    """
    format, length = self.text.question_format, self.text.reader_query_length
    whole = self.reader_query(self.text.query(question), length + 1)
    after = format.rpartition('{question}')[2]
    end = self.reader_vocabulary.encode(after) if after.strip() else []
    if len(whole) <= length or not 0 < len(end) < length:
      return whole[:length]
    before = format.removesuffix(after).replace('{question}', question)
    return self.reader_query(before, length - len(end)) + end

  def cut(self, question: str) -> tuple[str, ...]:
    """Which of a question's texts are too long: 'query' of the retriever, 'question'."""
    text = self.text
    query, length = text.query(question), text.reader_query_length
    of_retriever = self.retriever_vocabulary.encode_start(query)
    too_long = {
      'query': not text.closed_book and len(of_retriever) > self.query_space,
      'question': len(self.reader_query(query, length + 1)) > length,
    }
    return tuple(name for name, is_cut in too_long.items() if is_cut)

  def count_cut(self, questions: Sequence[str], targets: Sequence[str]) -> dict[str, int]:
    """How many texts are too long, by what they are and the length that cuts them."""
    text, reader = self.text, self.reader_vocabulary
    queries = list(map(text.query, questions))
    read = reader.encode_start_batch if self.query_leads else reader.encode_batch
    room = text.target_length - len(reader.reader_prefix) - 1
    asked = [] if text.closed_book else self.retriever_vocabulary.encode_start_batch(queries)
    answered = reader.encode_start_batch(list(map(text.target, targets)))
    return {
      'queries (query_length)': sum(len(ids) > self.query_space for ids in asked),
      'questions (reader_query_length)': sum(
        len(ids) > text.reader_query_length for ids in read(queries)
      ),
      'targets (target_length)': sum(len(ids) > room for ids in answered),
    }

  def cuts_target(self, answer: str) -> bool:
    """Whether a target loses its end, the end of sequence aside."""
    vocabulary, length = self.reader_vocabulary, self.text.target_length
    ids = vocabulary.encode_start(self.text.target(answer))
    return len(vocabulary.reader_prefix) + len(ids) + 1 > length

  def target(self, answer: str) -> list[int]:
    return self.framed_target(self.reader_vocabulary.encode_start(self.text.target(answer)))

  def answer(self, tokens: Sequence[int]) -> str:
    """The text of tokens up to an end of sequence, without sentinels and special tokens."""
    vocabulary = self.reader_vocabulary
    ids = [int(token) for token in tokens]
    if vocabulary.eos_id in ids:
      ids = ids[: ids.index(vocabulary.eos_id)]
    return vocabulary.decode(ids).strip()

  def batch(
    self,
    questions: Sequence[str],
    answers: Sequence[str] | None = None,
    *,
    size: int | None = None,
    first_index: int = 0,
  ) -> QueryBatch:
    """A QueryBatch of `size`, from texts with one target each (or none), numbered on."""
    size = size or len(questions)
    queries = [self.text.query(question) for question in questions]
    reader, retriever = self.reader_vocabulary, self.retriever_vocabulary

    def rows(sequences: Iterable[Sequence[int]], length: int, pad_id: int) -> np.ndarray:
      ids = list(sequences)
      return RaggedTokens.from_lists(ids + [[]] * (size - len(ids))).pad(length, pad_id)

    index = np.full(size, -1, np.int64)
    index[: len(questions)] = first_index + np.arange(len(questions))
    return QueryBatch(
      query_tokens=rows(
        map(self.retriever_query, queries), self.text.query_length, retriever.pad_id
      ),
      reader_query_tokens=rows(
        map(self.reader_question, questions), self.text.reader_query_length, reader.pad_id
      ),
      target_tokens=rows(map(self.target, answers or []), self.text.target_length, reader.pad_id),
      example_index=index,
    )
