"""The vocabulary of an exported folder, so that `transformers` reads the same ids."""

from __future__ import annotations

import json
import os
from typing import Any

import tokenizers

from ralm_jax.data.text.base_vocabulary import Vocabulary
from ralm_jax.data.text.byte_pair_vocabulary import BytePairVocabulary
from ralm_jax.data.text.vocabularies import SentencePieceVocabulary
from ralm_jax.data.text.word_piece_vocabulary import WordPieceVocabulary
from ralm_jax.files import atomic_files

_STEMS = {'.model': 'spiece', '.txt': 'vocab', '.json': 'tokenizer'}
# What the class that a model's configuration leads to reads by itself.
_OWN = {'t5': SentencePieceVocabulary, 'bart': BytePairVocabulary, 'bert': WordPieceVocabulary}


def write(folder: str, vocabulary: Vocabulary, kind: str) -> None:
  """Writes a vocabulary beside the weights of a model of a kind (`Part.kind`).

  One of another kind than the model's becomes a `tokenizer.json`, which says what it is: a BERT
  tokenizer would find none of its own files and go on with five tokens.

  Raises:
    ValueError: `transformers` has no tokenizer with these ids.
  """
  if kind == 'decoder':
    decoder: Any = vocabulary  # What else reads a decoder's ids?
    for name, content in decoder.huggingface_files().items():
      atomic_files.write_json(os.path.join(folder, name), content, indent=2)
    return
  config = vocabulary.huggingface_config()
  if not isinstance(vocabulary, _OWN[kind]):
    config = _general_config(vocabulary)
    if isinstance(vocabulary, SentencePieceVocabulary):
      content = unigram_json(vocabulary).encode('utf-8')
      atomic_files.write(os.path.join(folder, 'tokenizer.json'), content)
    elif isinstance(vocabulary, WordPieceVocabulary):
      vocabulary.save_json(folder)
    else:
      vocabulary.save(folder, 'tokenizer')
  else:
    vocabulary.save(folder, _STEMS[vocabulary.suffix])
  if config is not None:
    path = os.path.join(folder, 'tokenizer_config.json')
    atomic_files.write(path, json.dumps(config, indent=2).encode('utf-8'))


def _general_config(vocabulary: Vocabulary) -> dict[str, Any]:
  name = vocabulary.name_of
  return {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'pad_token': name(vocabulary.pad_id),
    'eos_token': name(vocabulary.eos_id),
    'unk_token': name(vocabulary.unk_id),
    'clean_up_tokenization_spaces': False,
  }


def unigram_json(vocabulary: SentencePieceVocabulary) -> str:
  """A SentencePiece model with its sentinels as a `tokenizer.json`.

  Raises:
    ValueError: its ids are not those of a Unigram model of the tokenizers library.
  """
  pieces = vocabulary.scored_pieces()
  sentinels = [f'<extra_id_{i}>' for i in reversed(range(vocabulary.extra_ids))]
  model = tokenizers.models.Unigram(
    [*pieces, *((name, 0.0) for name in sentinels)], vocabulary.unk_id, False
  )
  made = tokenizers.Tokenizer(model)
  if charsmap := vocabulary.character_map():
    made.normalizer = tokenizers.normalizers.Precompiled(charsmap)
  made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
    [
      tokenizers.pre_tokenizers.WhitespaceSplit(),
      tokenizers.pre_tokenizers.Metaspace(prepend_scheme='always'),
    ]
  )
  made.decoder = tokenizers.decoders.Metaspace(prepend_scheme='always')
  names = [vocabulary.name_of(i) for i in (vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id)]
  made.post_processor = tokenizers.processors.TemplateProcessing(
    single=f'$A {names[1]}', special_tokens=[(names[1], vocabulary.eos_id)]
  )
  made.add_special_tokens([*names, *sentinels])
  texts = [piece.replace('\u2581', ' ').strip() for piece, _ in pieces if piece not in names]
  texts += [' '.join(texts[at : at + 40]) for at in range(0, len(texts), 40)]
  found = made.encode_batch(texts, add_special_tokens=False)
  for text, ours, theirs in zip(texts, vocabulary.encode_batch(texts), found):
    if ours != theirs.ids:
      raise ValueError(
        f'{vocabulary.path}: transformers would read {text!r:.60} as {theirs.ids[:8]}, it is '
        f'{ours[:8]}: such a SentencePiece model cannot be exported with a model of this kind.'
      )
  return made.to_str()
