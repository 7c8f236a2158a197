"""Questions and answers to static token rows, by a TextConfig. NumPy only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import dataclasses
import functools

import numpy as np

from ralm_jax.data.batches import QueryBatch
from ralm_jax.data.ragged import RaggedTokens
from ralm_jax.data.text.decoder_vocabulary import DecoderVocabulary
from ralm_jax.data.text.prompts import PromptFormat
from ralm_jax.data.text.reader_texts import ReaderSide, ReaderTexts
from ralm_jax.data.text.vocabularies import Vocabulary
from ralm_jax.data.text_config import TextConfig


@dataclasses.dataclass(frozen=True)
class QueryTokenizer:
  """Tokenises queries and targets; ValueError for a format that the vocabulary cannot write."""

  text: TextConfig
  reader_vocabulary: Vocabulary
  retriever_vocabulary: Vocabulary

  #: of the reader: inputs of encoder-decoders, or prompts, told by its vocabulary
  reader: ReaderSide = dataclasses.field(init=False, repr=False, compare=False)

  def __post_init__(self):
    vocabulary = self.reader_vocabulary
    reader: ReaderSide
    if isinstance(vocabulary, DecoderVocabulary):
      reader = PromptFormat(self.text, vocabulary)
    else:
      reader = ReaderTexts(self.text, vocabulary)
    object.__setattr__(self, 'reader', reader)

  @property
  def prompts(self) -> PromptFormat | None:
    """Of decoder-only readers; None for others."""
    return self.reader if isinstance(self.reader, PromptFormat) else None

  @property
  def query_leads(self) -> bool:
    """Whether the reader's inputs begin with the query."""
    return isinstance(self.reader, ReaderTexts) and self.reader.query_leads

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
    return self.reader.framed_target(ids)

  def retriever_query(self, query: str) -> list[int]:
    """Ids for the query encoder; [CLS], [SEP] or eos survive truncation."""
    vocabulary = self.retriever_vocabulary
    encode = vocabulary.encode if self.text.query_prompt else vocabulary.encode_start
    return self.framed_query(encode(query))

  def retriever_question(self, question: str) -> list[int]:
    """`retriever_query` of a question in its format."""
    return self.retriever_query(self.text.retriever_query(question))

  def reader_query(self, query: str, length: int | None = None) -> list[int]:
    return self.reader.query(query, length)

  def reader_question(self, question: str) -> list[int]:
    return self.reader.question(question)

  def cut(self, question: str) -> tuple[str, ...]:
    """Which of a question's texts are too long: 'query' of the retriever, 'question'."""
    text = self.text
    of_retriever = self.retriever_vocabulary.encode_start(text.retriever_query(question))
    too_long = {
      'query': not text.closed_book and len(of_retriever) > self.query_space,
      'question': self.reader.question_lengths([question])[0] > text.reader_query_length,
    }
    return tuple(name for name, is_cut in too_long.items() if is_cut)

  def count_cut(self, questions: Sequence[str], targets: Sequence[str]) -> dict[str, int]:
    """How many texts are too long, by what they are and the length that cuts them."""
    text, encode = self.text, self.retriever_vocabulary.encode_start_batch
    asked = [] if text.closed_book else encode(list(map(text.retriever_query, questions)))
    longer = lambda lengths, length: sum(one > length for one in lengths)
    return {
      'queries (query_length)': longer(map(len, asked), self.query_space),
      'questions (reader_query_length)': longer(
        self.reader.question_lengths(questions), text.reader_query_length
      ),
      'targets (target_length)': longer(self.reader.target_lengths(targets), text.target_length),
    }

  def cuts_target(self, answer: str) -> bool:
    """Whether a target loses its end, the end of sequence aside."""
    return self.reader.target_lengths([answer])[0] > self.text.target_length

  def target(self, answer: str) -> list[int]:
    return self.reader.target(answer)

  def answer(self, tokens: Sequence[int]) -> str:
    return self.reader.answer(tokens)

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
    reader, retriever = self.reader_vocabulary, self.retriever_vocabulary

    def rows(sequences: Iterable[Sequence[int]], length: int, pad_id: int) -> np.ndarray:
      ids = list(sequences)
      return RaggedTokens.from_lists(ids + [[]] * (size - len(ids))).pad(length, pad_id)

    index = np.full(size, -1, np.int64)
    index[: len(questions)] = first_index + np.arange(len(questions))
    return QueryBatch(
      query_tokens=rows(
        map(self.retriever_question, questions), self.text.query_length, retriever.pad_id
      ),
      reader_query_tokens=rows(
        map(self.reader_question, questions), self.text.reader_query_length, reader.pad_id
      ),
      target_tokens=rows(map(self.target, answers or []), self.text.target_length, reader.pad_id),
      example_index=index,
    )
