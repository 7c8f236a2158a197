"""How an evaluator has answers decoded."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import hashlib

import numpy as np

from ralm_jax.checkpoints import specification
from ralm_jax.checkpoints.specification import Specification
from ralm_jax.data.text.tokenization import QueryTokenizer
from ralm_jax.decoding.options import DecodingOptions
from ralm_jax.losses import option_types
from ralm_jax.losses.array_types import Int, Shaped
from ralm_jax.losses.option_types import Count, Seed
from ralm_jax.models import generation
from ralm_jax.models.readings import READINGS


@dataclasses.dataclass(frozen=True)
class AnswerOptions:
  """Choices beside the model's own."""

  decoding: DecodingOptions = DecodingOptions()
  rag_decoding: str = 'thorough'  #: of RAG-Sequence; or 'fast'
  #: Of thorough decoding: candidates scored at a time; None for as many as beams.
  candidate_chunk: Count | None = None
  max_length: Count | None = None  #: tokens of an answer at most; None for those of a target
  #: Text that every answer begins with, not part of it; `{question}` stands for the question.
  decoder_prefix: str = ''
  decoder_prefix_length: Count = 64  #: tokens a prefix has at most
  prefill_chunk: Count = 128  #: tokens of the prefix computed at a time
  seed: Seed = 0  #: of the draws

  def __post_init__(self):
    if self.rag_decoding not in generation.RAG_DECODINGS:
      raise ValueError(
        f'rag_decoding {self.rag_decoding!r} is unknown; choose one of {generation.RAG_DECODINGS}.'
      )
    option_types.check_fields(self)

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

  def with_room(self, spec: Specification) -> Specification:
    """With prompts that leave a decoder-only reader positions for answers of `max_length`."""
    if spec.tokenizer.prompts is None or (self.max_length or 0) <= spec.text.target_length:
      return spec
    return specification.with_text(spec, target_length=self.max_length)

  def draw_keys(self, questions: Sequence[str], size: int) -> Shaped[np.ndarray, '{size} 2'] | None:
    """Key data of the draws of at most `size` questions, or None where nothing is drawn.

    They are of the seed and of what is asked, wherever and beside whatever it is.
    """
    if not self.decoding.sample:
      return None
    keys = np.zeros((size, 2), np.uint32)
    for i, question in enumerate(questions):
      digest = hashlib.sha256(f'{self.seed} {question}'.encode()).digest()
      keys[i] = np.frombuffer(digest[:8], '<u4')
    return keys

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
      ids = tokenizer.reader.prefix(text)
      if len(ids) > self.decoder_prefix_length:
        raise ValueError(
          f'The decoder prefix {text!r} has {len(ids)} tokens, more than decoder_prefix_length, '
          f'{self.decoder_prefix_length}; raise it or shorten the prefix.'
        )
      tokens[i, self.decoder_prefix_length - len(ids) :] = ids
      lengths[i] = len(ids)
    return tokens, lengths
