"""SentencePiece's BPE with byte fallback, of Llama 2, Mistral and Gemma, as a `tokenizer.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
from typing import Any

from ralm_jax.data.text.tokenizer_parts import TokenizerParts

Json = dict[str, Any]

# Kinds of pieces, in SentencePiece's files and in GGUF alike.
UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6
_SPACE = '\u2581'


@dataclasses.dataclass(frozen=True)
class Pieces:
  """What a SentencePiece model knows of its pieces, in the order of their ids."""

  texts: Sequence[str]
  scores: Sequence[float]
  kinds: Sequence[int]


def tokenizer_json(pieces: Pieces, dummy_prefix: bool) -> Json:
  """The tokenizer; with `dummy_prefix` a space is written before a text."""
  steps: list[Json] = [{'type': 'Replace', 'pattern': {'String': ' '}, 'content': _SPACE}]
  back: list[Json] = [
    {'type': 'Replace', 'pattern': {'String': _SPACE}, 'content': ' '},
    {'type': 'ByteFallback'},
    {'type': 'Fuse'},
  ]
  if dummy_prefix:
    steps.insert(0, {'type': 'Prepend', 'prepend': _SPACE})
    back.append({'type': 'Strip', 'content': ' ', 'start': 1, 'stop': 0})
  ids = {text: i for i, text in enumerate(pieces.texts)}
  whole = zip(pieces.texts, pieces.scores, pieces.kinds)
  merged = {text: score for text, score, kind in whole if kind not in (UNKNOWN, CONTROL, BYTE)}
  unknown = (text for text, kind in zip(pieces.texts, pieces.kinds) if kind == UNKNOWN)
  return {
    'normalizer': {'type': 'Sequence', 'normalizers': steps},
    'pre_tokenizer': None,
    'decoder': {'type': 'Sequence', 'decoders': back},
    'model': bpe_json(
      ids, _merges(merged, ids), unk_token=next(unknown, None), fuse_unk=True, byte_fallback=True
    ),
    'added_tokens': added_tokens(pieces.texts, pieces.kinds, normalized=True),
  }


def added_tokens(texts: Sequence[str], kinds: Sequence[int], normalized: bool) -> list[Json]:
  """What is looked for before anything else; `normalized`: in the text as SentencePiece sees it."""
  return [
    {
      'id': i,
      'content': text,
      'special': kind != USER_DEFINED,
      'normalized': normalized and kind == USER_DEFINED,
    }
    for i, (text, kind) in enumerate(zip(texts, kinds))
    if kind in (UNKNOWN, CONTROL, USER_DEFINED)
  ]


def bpe_json(vocab: Mapping[str, int], merges: Sequence[Sequence[str]], **changes: Any) -> Json:
  """The model of a `tokenizer.json`; `changes` are what is not the library's default."""
  return {
    'type': 'BPE',
    'dropout': None,
    'unk_token': None,
    'continuing_subword_prefix': '',
    'end_of_word_suffix': '',
    'fuse_unk': False,
    'byte_fallback': False,
    'ignore_merges': False,
    'vocab': dict(vocab),
    'merges': [list(merge) for merge in merges],
    **changes,
  }


def _merges(pieces: Mapping[str, float], ids: Mapping[str, int]) -> list[tuple[str, str]]:
  """Every way to make a piece of two others, likeliest pieces first, as SentencePiece merges."""
  found = []
  for piece, score in pieces.items():
    for at in range(1, len(piece)):
      first, second = piece[:at], piece[at:]
      if first in pieces and second in pieces:
        found.append((-score, ids[piece], ids[first], ids[second], first, second))
  return [(first, second) for *_, first, second in sorted(found)]


def read_model(path: pathlib.Path, content: bytes) -> TokenizerParts | None:
  """The parts of a `tokenizer.model` with what lies beside it; None for one of another kind.

  Raises:
    ValueError: it changes texts before it cuts them, which its `tokenizer.json` alone could say.
  """
  from google.protobuf import message
  from sentencepiece import sentencepiece_model_pb2

  try:
    generated: Any = sentencepiece_model_pb2
    model = generated.ModelProto.FromString(content)
  except message.DecodeError:
    return None
  trainer, normalizer = model.trainer_spec, model.normalizer_spec
  if trainer.model_type != trainer.BPE or trainer.bos_id < 0 or not trainer.byte_fallback:
    return None
  if normalizer.remove_extra_whitespaces or normalizer.precompiled_charsmap:
    raise ValueError(
      f'{path}: normalises texts ({normalizer.name}), which is not computed here; save the '
      'tokenizer with transformers, which writes tokenizer.json'
    )
  pieces = Pieces(*zip(*((p.piece, p.score, p.type) for p in model.pieces)))
  roles = {'bos': trainer.bos_id, 'eos': trainer.eos_id, 'pad': trainer.pad_id}
  named = {f'{role}_token': pieces.texts[i] for role, i in roles.items() if i >= 0}
  return TokenizerParts.beside(
    tokenizer_json(pieces, normalizer.add_dummy_prefix),
    path,
    {**named, 'unk_token': pieces.texts[trainer.unk_id], 'add_bos_token': True},
  )
