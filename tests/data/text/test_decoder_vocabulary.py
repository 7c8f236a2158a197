"""Vocabularies of decoder-only readers: ids of transformers, exact text, special tokens."""

import copy
import json
import pickle
import unicodedata

import numpy as np
import pytest

from ralm_jax.data.text import vocabularies
from ralm_jax.data.text.decoder_vocabulary import DecoderVocabulary
from ralm_jax.interop import huggingface_tokenizers
from tests import decoder_folders

transformers = pytest.importorskip('transformers')

HARD = [
  '',
  'a',
  ' leading',
  '  two leading',
  'trailing ',
  'two  inner   spaces',
  'tabs\tand\t\tmore',
  'one\nnewline',
  '\nfirst a newline',
  'two\n\nnewlines\n\n\n and three\r\n',
  'The population was 1,234,567 in 2024 (3.14 %).',
  "I'll, we've, it's, DON'T 's",
  '東京は日本の首都です。',
  'القاهرة هي عاصمة مصر، وعدد سكانها ١٢٣.',
  'नई दिल्ली भारत की राजधानी है।',
  'naïve e\u0301 is not é',
  'a family 👩‍👩‍👧 and a flag 🇩🇪',
  'no-break\u00a0space, zero\u200bwidth, \u2581 itself, \ufeff mark',
  '\x00 and \x7f',
  'ends a turn: <|im_end|> or </s> or <eos> or <|eot_id|><|end_of_text|> <end_of_turn>\n',
  '<s>[INST] <<SYS>> [/INST] <think> </think> <0x0A> <unk> <mask>',
]


@pytest.fixture(scope='module', params=decoder_folders.FAMILIES)
def family(request):
  return request.param


@pytest.fixture(scope='module')
def folder(family, tmp_path_factory):
  return decoder_folders.write(tmp_path_factory.mktemp(family), family).parent


@pytest.fixture(scope='module')
def vocabulary(folder):
  return vocabularies.load_vocabulary(folder / 'tokenizer.json')


@pytest.fixture(scope='module')
def theirs(folder, family):
  # GPT2Tokenizer, which SmolLM2 names, leaves out in transformers 5 that its digits stand alone.
  auto = transformers.PreTrainedTokenizerFast if family == 'smollm2' else transformers.AutoTokenizer
  return auto.from_pretrained(folder)


def test_ids_are_those_of_transformers(vocabulary, theirs):
  assert isinstance(vocabulary, DecoderVocabulary)
  expected = [
    theirs(text, add_special_tokens=False, split_special_tokens=True).input_ids for text in HARD
  ]
  assert vocabulary.encode_start_batch(HARD) == expected
  assert [vocabulary.encode_start(text) for text in HARD] == expected


def test_segments_are_those_of_a_prompt(vocabulary, theirs):
  """Behind a newline, and behind a special token."""
  special = vocabulary.name_of(vocabulary.eos_id)
  for text in HARD:
    if text[:1].strip():  # Another newline or space would be read with the first.
      before = vocabulary.encode_start('x\n')
      whole = theirs(f'x\n{text}', add_special_tokens=False, split_special_tokens=True).input_ids
      assert before + vocabulary.encode_segment(text) == whole, text
    chat = f'{special}{text}'
    whole = theirs(chat, add_special_tokens=False).input_ids
    assert vocabulary.encode_segment(chat, special=True) == whole, text


def test_text_is_exact(vocabulary, family):
  for text in HARD:
    ids = [vocabulary.eos_id, *vocabulary.encode_segment(text), vocabulary.pad_id]
    if family in decoder_folders.SENTENCE_PIECE:
      text = text.replace('\u2581', ' ')
    elif family.startswith('qwen'):
      text = unicodedata.normalize('NFC', text)
    assert vocabulary.decode(ids) == text


ROLES = {  # bos, ends, pad
  'llama2': ('<s>', ['</s>'], '<unk>'),
  'mistral': ('<s>', ['</s>'], '<unk>'),
  'llama3': (
    '<|begin_of_text|>',
    ['<|eot_id|>', '<|end_of_text|>', '<|eom_id|>'],
    '<|finetune_right_pad_id|>',
  ),
  'smollm2': (None, ['<|im_end|>'], '<repo_name>'),
  'qwen2': (None, ['<|im_end|>', '<|endoftext|>'], '<|endoftext|>'),
  'qwen3': (None, ['<|im_end|>', '<|endoftext|>'], '<|endoftext|>'),
  'gemma3': ('<bos>', ['<end_of_turn>', '<eos>'], '<pad>'),
}


def test_roles(vocabulary, theirs, family):
  bos, ends, pad = ROLES[family]
  name = vocabulary.name_of
  assert (vocabulary.bos_id is None) == (bos is None)
  assert bos is None or name(vocabulary.bos_id) == bos
  assert [name(i) for i in vocabulary.end_ids] == ends
  assert vocabulary.eos_id == vocabulary.end_ids[0] != vocabulary.pad_id
  assert name(vocabulary.pad_id) == pad
  framed = [*vocabulary.reader_prefix, *vocabulary.encode_start('a text')]
  assert framed == theirs('a text').input_ids
  assert vocabulary.vocab_size == len(theirs)


def test_one_saved_file_is_the_whole_folder(vocabulary, tmp_path):
  name = vocabulary.save(tmp_path, 'reader')
  assert [path.name for path in tmp_path.iterdir()] == [name] == ['reader.json']
  saved = vocabularies.load_vocabulary(tmp_path / name)
  assert isinstance(saved, DecoderVocabulary)
  for field in ('fingerprint', 'end_ids', 'pad_id', 'bos_id', 'unk_id', 'chat_template'):
    assert getattr(saved, field) == getattr(vocabulary, field), field
  assert saved.encode_start_batch(HARD) == vocabulary.encode_start_batch(HARD)
  assert saved.special_names == vocabulary.special_names


def test_copies_know_what_is_text(vocabulary):
  name = vocabulary.name_of(vocabulary.eos_id)
  for other in (pickle.loads(pickle.dumps(vocabulary)), copy.deepcopy(vocabulary)):
    assert other.fingerprint == vocabulary.fingerprint
    assert other.encode_segment(name) == vocabulary.encode_segment(name)
    assert vocabulary.eos_id not in other.encode_segment(f'a {name} b')
    assert vocabulary.eos_id in other.encode_segment(f'a {name} b', special=True)


def test_stop_ids(vocabulary):
  for stop in ('\n', '.', 'of', '東'):
    expected = [i for i in range(vocabulary.vocab_size) if stop in vocabulary.decode([i])]
    assert vocabulary.stop_ids(stop) == tuple(expected)
  assert vocabulary.encode_segment('\n')[0] in vocabulary.stop_ids('\n')
  assert vocabulary.eos_id not in vocabulary.stop_ids('e')
  with pytest.raises(ValueError, match='empty stop string'):
    vocabulary.stop_ids('')


def test_half_a_character_is_refused(vocabulary):
  with pytest.raises(ValueError, match='lone surrogate'):
    vocabulary.encode_batch(['whole', 'half \ud83d'])


def test_transformers_reads_what_is_exported(vocabulary, family, tmp_path):
  """The same ids, roles and template, and we what was exported."""
  huggingface_tokenizers.write(str(tmp_path), vocabulary, 'decoder')
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  ours = vocabularies.load_vocabulary(tmp_path / 'tokenizer.json')
  for text in HARD:
    found = theirs(text, split_special_tokens=True).input_ids
    # Nothing else is framed by transformers than a text that is there.
    assert found == [*vocabulary.reader_prefix, *vocabulary.encode_start(text)], text
  assert theirs.pad_token_id == vocabulary.pad_id and theirs.eos_token_id in vocabulary.end_ids
  assert theirs.chat_template == vocabulary.chat_template
  assert ours.end_ids == vocabulary.end_ids and ours.bos_id == vocabulary.bos_id
  assert ours.encode_start_batch(HARD) == vocabulary.encode_start_batch(HARD)


def changed(folder, change, file='tokenizer.json'):
  """A folder with one of its files changed."""
  path = folder / file
  content = json.loads(path.read_text())
  change(content)
  path.write_text(json.dumps(content))
  return folder / 'tokenizer.json'


@pytest.mark.parametrize(
  'file, change, message',
  [
    ('tokenizer.json', lambda c: c['model'].pop('merges'), "not a tokenizer.json .*'merges'"),
    ('tokenizer.json', lambda c: c['model'].update(vocab=3), 'not a tokenizer.json'),
    ('tokenizer.json', lambda c: c['model']['merges'].append(['x', 'no']), 'not a tokenizer.json'),
    ('tokenizer.json', lambda c: c.update(pre_tokenizer={'type': 'No'}), 'not a tokenizer.json'),
    ('tokenizer_config.json', lambda c: c.update(eos_token=[1]), 'not a tokenizer.json'),
    ('tokenizer_config.json', lambda c: c.update(eos_token={}), 'not a tokenizer.json'),
    ('tokenizer_config.json', lambda c: c.update(chat_template=7), 'chat_template is 7'),
  ],
)
def test_damaged_folders_are_refused(tmp_path, file, change, message):
  path = changed(decoder_folders.write(tmp_path, 'qwen2').parent, change, file)
  with pytest.raises(ValueError, match=message) as caught:
    vocabularies.load_vocabulary(path)
  assert str(path) in str(caught.value) and '\n' not in str(caught.value)


def test_nothing_says_what_ends_a_text(tmp_path):
  path = decoder_folders.write(tmp_path, 'llama3')
  for file in tmp_path.iterdir():
    if file != path:
      file.unlink()
  with pytest.raises(ValueError, match='nothing says which token ends a text; put tokenizer_co'):
    vocabularies.load_vocabulary(path)
  (tmp_path / 'config.json').write_text('{"eos_token_id": 890, "pad_token_id": -1}')
  vocabulary = vocabularies.load_vocabulary(path)
  assert vocabulary.end_ids == (890,) and vocabulary.pad_id != 890
  assert vocabulary.name_of(vocabulary.bos_id) == '<|begin_of_text|>'  # As it frames texts itself.


def test_a_special_token_that_text_makes_is_refused(tmp_path):
  def change(content):
    name, model = '<unk>', content['model']
    for at in range(1, len(name)):
      for piece in (name[:at], name[at], name[: at + 1]):
        model['vocab'].setdefault(piece, len(model['vocab']))
      model['merges'].insert(at - 1, [name[:at], name[at]])

  path = changed(decoder_folders.write(tmp_path, 'llama2').parent, change)
  with pytest.raises(ValueError, match="the text '<unk>' becomes the special token"):
    vocabularies.load_vocabulary(path)


def test_fingerprints_are_of_what_decides_ids(tmp_path):
  """Not of the path or the chat template; of merges and roles."""
  fingerprints = {}
  changes = {
    'same': ('tokenizer.json', lambda c: c.update(truncation=None)),
    'template': ('tokenizer_config.json', lambda c: c.update(chat_template='{{ 1 }}')),
    'merges': ('tokenizer.json', lambda c: c['model']['merges'].pop()),
    'pad': ('tokenizer_config.json', lambda c: c.update(pad_token='<|fim_pad|>')),
  }
  for name, (file, change) in changes.items():
    folder = decoder_folders.write(tmp_path / name, 'qwen2').parent
    path = changed(folder, change, file)
    fingerprints[name] = vocabularies.load_vocabulary(path).fingerprint
  assert fingerprints['same'] == fingerprints['template']
  assert len(set(fingerprints.values())) == 3


def test_ids_that_are_none_have_no_text(vocabulary):
  ids = vocabulary.encode_segment('東京 x')
  noise = [-1, vocabulary.vocab_size, 10**9]
  assert vocabulary.decode([*noise, *ids, *noise]) == '東京 x'
  assert vocabulary.decode([]) == ''


@pytest.mark.slow
def test_ten_thousand_lines(shared_data, tmp_path, family):
  """Of real text, and of words of many scripts, by a vocabulary that is trained on some of them."""
  lines = []
  for name in ('w100', 'timeqa', 'nq_oracle', 'hotpot100'):
    with open(shared_data / f'passages/{name}.jsonl', encoding='utf-8') as source:
      lines += [json.loads(line)['text'] for line in source]
  for name in ('test', 'valid'):  # Lines that begin and end with spaces.
    lines += (shared_data / f'wikitext2/{name}.txt').read_text('utf-8').split('\n')
  random = np.random.default_rng(0)
  random.shuffle(lines)
  blocks = [(0x20, 95), (0xC0, 0x180), (0x370, 0x90), (0x400, 0x100), (0x590, 0x70)]
  blocks += [(0x600, 0x100), (0x900, 0x80), (0xE00, 0x60), (0x3040, 0xC0), (0x4E00, 0x5200)]
  blocks += [(0xAC00, 0x2BA4), (0x1F300, 0x300), (0x2000, 0x70), (0x0, 0x20), (0x2150, 0x40)]
  for _ in range(2_000):
    words = []
    for at in random.integers(0, len(blocks), 12):
      first, count = blocks[at]
      words.append(''.join(map(chr, first + random.integers(0, count, random.integers(1, 7)))))
    lines.insert(0, ' '.join(words))
  lines = lines[:10_000]
  path = decoder_folders.write(tmp_path, family, tuple(lines[1_500:4_000]), size=6_000)
  ours = vocabularies.load_vocabulary(path)
  auto = transformers.PreTrainedTokenizerFast if family == 'smollm2' else transformers.AutoTokenizer
  theirs = auto.from_pretrained(path.parent)
  expected = theirs(lines, add_special_tokens=False, split_special_tokens=True).input_ids
  for text, ids, wanted in zip(lines, ours.encode_start_batch(lines), expected):
    assert ids == wanted, text
