"""How an evaluator has answers decoded."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses

import numpy as np

from ralm_jax.data.text.tokenization import QueryTokenizer
from ralm_jax.decoding.options import DecodingOptions
from ralm_jax.evaluation import option_fields
from ralm_jax.losses.array_types import Int
from ralm_jax.models import generation
from ralm_jax.models.readings import READINGS


@dataclasses.dataclass(frozen=True)
class AnswerOptions:
  """Choices beside the model's own."""

  decoding: DecodingOptions = DecodingOptions()
  rag_decoding: str = 'thorough'  #: of RAG-Sequence; or 'fast'
  #: Of thorough decoding: candidates scored at a time; None for as many as beams.
  candidate_chunk: int | None = None
  max_length: int | None = None  #: tokens of an answer at most; None for those of a target
  #: Text that every answer begins with, not part of it; `{question}` stands for the question.
  decoder_prefix: str = ''
  decoder_prefix_length: int = 64  #: tokens a prefix has at most
  prefill_chunk: int = 128  #: tokens of the prefix computed at a time
  seed: int = 0  #: of the draws

  def __post_init__(self):
    if self.rag_decoding not in generation.RAG_DECODINGS:
      raise ValueError(
        f'rag_decoding {self.rag_decoding!r} is unknown; choose one of {generation.RAG_DECODINGS}.'
      )
    option_fields.check_at_least_1(
      self, 'decoder_prefix_length', 'prefill_chunk', 'max_length', 'candidate_chunk'
    )
    if not 0 <= self.seed < 2**32:
      raise ValueError(f'seed must be from 0 to 2**32 - 1, got {self.seed}.')

  def check_reading(self, reading: str) -> None:
    """Raises ValueError for a choice that has no effect on such a reader."""
    if self.rag_decoding != 'thorough' and (
      not READINGS[reading].ranks_candidates or self.decoding.sample
    ):
      raise ValueError(
        f'rag_decoding = {self.rag_decoding!r} is of searches of '
        f"RAG-Sequence; the checkpoint's reading is {reading!r}"
        + (' and answers are drawn' if self.decoding.sample else '')
        + ', where it has no effect.'
      )

  def prefixes(
    self, questions: Sequence[str], size: int, tokenizer: QueryTokenizer
  ) -> tuple[Int[np.ndarray, 'b decoder_prefix_length'], Int[np.ndarray, ' b']] | None:
    """Prefixes of at most `size` questions, padded on the left, and their lengths.

    None without a prefix; ValueError where one is too long.
    """
    if not self.decoder_prefix:
      return None
    vocabulary = tokenizer.reader_vocabulary
    tokens = np.full((size, self.decoder_prefix_length), vocabulary.pad_id, np.int32)
    lengths = np.zeros(size, np.int32)
    for i, question in enumerate(questions):
      text = self.decoder_prefix.replace('{question}', question)
      ids = [*vocabulary.reader_prefix, *vocabulary.encode_start(text)]
      if len(ids) > self.decoder_prefix_length:
        raise ValueError(
          f'The decoder prefix {text!r} has {len(ids)} tokens, more than decoder_prefix_length, '
          f'{self.decoder_prefix_length}; raise it or shorten the prefix.'
        )
      tokens[i, self.decoder_prefix_length - len(ids) :] = ids
      lengths[i] = len(ids)
    return tokens, lengths
