"""A reader or an encoder in a foreign checkpoint, found but not read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from ralm_jax.data.text import templates
from ralm_jax.data.text.vocabularies import Vocabulary
from ralm_jax.data.text_config import TextConfig
from ralm_jax.interop import tensor_maps
from ralm_jax.interop.files.tensor_source import TensorSource
from ralm_jax.interop.tensor_maps import Entry, Params

# What parts were trained with: RAG's BART, DPR, and Atlas' reader.
BART_TEXT = dict(
  question_format='{question}',
  target_format='{answer}',
  reader_format=templates.RAG_READER_FORMAT,
  passage_length=300,
  reader_query_length=128,
)
# A retriever by itself has learnt from bare questions; Atlas's from the reader's prompt.
ENCODER_TEXT = dict(query_format='{question}')
DPR_TEXT = ENCODER_TEXT | dict(
  retriever_format=templates.DPR_RETRIEVER_FORMAT, query_length=128, retriever_passage_length=256
)
ATLAS_TEXT = dict(passage_length=384, n_passages=40)
# One prompt of a few passages; what a language model has seen most of is plain text.
DECODER_TEXT = dict(
  question_format='Question: {question}\nAnswer:',
  target_format=' {answer}',
  passage_length=256,
  reader_query_length=128,
  target_length=32,
  n_passages=3,
)
ATLAS_ENCODER_TEXT = dict(query_format=TextConfig.question_format)
# How cosines become p(passage | question): at the likeliest temperature for a released retriever on
# real questions (benchmarks/retriever_temperature.py).
COSINE_SCORES = dict(scale_scores=False, temperature_score=0.04)


@dataclasses.dataclass(frozen=True)
class Part:
  """One module's worth of a foreign checkpoint."""

  kind: str
  config: Any
  source: TensorSource
  entries: Sequence[Entry]
  pooling: str | None = None  # Of an encoder, where the checkpoint says ('mean', 'cls').
  normalize: bool = False  # An encoder's embeddings are scaled to unit length.
  vocabulary_directories: tuple[str, ...] = ()
  vocabulary: Vocabulary | None = None
  side: str | None = None  # Of a DPR tower: 'query_encoder' or 'passage_encoder'; else None.
  # Fields of `TextConfig` that it was trained with, where known.
  text: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  # Of a run's encoder, the fields of `RetrievalLM` by which its scores become probabilities.
  run_scores: Mapping[str, Any] | None = None
  # What a person should know of how it was read: what is derived, and what is not obeyed.
  notes: Sequence[str] = ()

  @property
  def scores(self) -> Mapping[str, Any]:
    """Fields of `RetrievalLM` by which an encoder's scores become probabilities, where known."""
    return self.run_scores or (COSINE_SCORES if self.normalize else {})

  def read(self) -> Params:
    """All parameters, float32; ValueError where one is missing or misshapen."""
    return tensor_maps.read_all(self.source, self.entries)


@dataclasses.dataclass(frozen=True)
class Leftover:
  """A foreign tensor that no parameter of ours comes from."""

  name: str
  reason: str | None  # Why nothing is lost without it; None where something may be.


# End of a name, or a piece of it, and why nothing is lost.
_UNUSED_SUFFIXES = {
  'position_ids': 'a buffer that counts positions',
  'rotary_emb.inv_freq': 'a buffer of the configuration',
  'rope_freqs.weight': 'how positions are scaled, which the configuration has from it',
  # The first BARTs, by a counter of their code.
  'encoder.version': 'the version of the code that wrote it',
  'decoder.version': 'the version of the code that wrote it',
  # The first T5 checkpoints carry it; the model never had it.
  'EncDecAttention.relative_attention_bias.weight': 'never used by T5',
}
_UNUSED_PIECES = {
  'pooler.': 'the pooler, which retrievers do not use',
  'cls.predictions.': 'the head of masked language modelling',
  'cls.seq_relationship.': 'the head of next sentence prediction',
  'vision_tower.': 'of images, which are not read',
  'multi_modal_projector.': 'of images, which are not read',
}
_EMBEDDINGS = ('shared.weight', 'embed_tokens.weight')
_COPIES = ('encoder.embed_tokens.weight', 'decoder.embed_tokens.weight', 'lm_head.weight')


def leftovers(parts: Iterable[Part]) -> list[Leftover]:
  """The tensors of one checkpoint that are in none of its parts."""
  parts = list(parts)
  used = {entry.name for part in parts for entry in part.entries}
  found: dict[str, Leftover] = {}
  for part in parts:
    names = {entry.name for entry in part.entries}
    embeddings = sorted(name for name in names if name.endswith(_EMBEDDINGS))
    for name in part.source:
      # A copy is one of the embedding of its own part.
      if name not in used and (name not in found or found[name].reason is None):
        found[name] = Leftover(name, _reason(part.source, name, embeddings))
  return list(found.values())


def _reason(source: TensorSource, name: str, embeddings: Sequence[str]) -> str | None:
  for suffix, reason in _UNUSED_SUFFIXES.items():
    if name.endswith(suffix):
      return reason
  for piece, reason in _UNUSED_PIECES.items():
    if piece in name:
      return reason
  for suffix in _COPIES:
    if name.endswith(suffix):
      prefix = name.removesuffix(suffix)
      # Heads of BART and decoder-only models lie beside `model.`, not in it.
      originals = {f'{prefix}{model}{end}' for model in ('', 'model.') for end in _EMBEDDINGS}
      for original in embeddings:
        if original in originals and equal(source, name, original):
          return f'a copy of {original}'
  return None


def equal(source: TensorSource, first: str, second: str) -> bool:
  """Whether two tensors are there with the same bytes."""
  if first not in source or second not in source or source.info(first) != source.info(second):
    return False
  return np.array_equal(
    np.asarray(source[first]).view(np.uint8), np.asarray(source[second]).view(np.uint8)
  )
