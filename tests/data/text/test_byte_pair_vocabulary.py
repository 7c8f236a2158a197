"""Byte-level BPE against transformers' BartTokenizer, and the whitespace property."""

import itertools
import json
import random
import shutil

import pytest

from ralm_jax.data.text import vocabularies
from ralm_jax.data.text.byte_pair_vocabulary import BytePairVocabulary

TEXTS = [
  '',
  'a',
  'two words',
  "don't we'll I've",
  'non\u00a0breaking',
  'naïve café',
  '東京 tower',
  '“quotes” — dash…',
  '🙂 smile',
  '\u200bzero width',
  'UPPER lower',
  '3.14159 x²+y²',
  'a_b-c/d',
  'é vs e\u0301',
  'thin\u2009space and\u3000wide',
  'supercalifragilistic' * 4,
  'fill <mask> in',
  '<mask>',
  '<mask> first',
  'last <mask>',
  'glued<mask>here',
  'an </s> end',
  '</s> x',
  'a <s>struck</s> word',
  '<pad>',
  'x\x85y',
  '<unk> is',
  'trailing \u200b',
  '!',
  "'s",
  'it is what it is',
]


@pytest.fixture(scope='module')
def vocabulary(byte_pair_folder):
  return BytePairVocabulary(byte_pair_folder / 'tokenizer.json')


@pytest.fixture(scope='module')
def peer(byte_pair_folder):
  transformers = pytest.importorskip('transformers')
  content = json.loads((byte_pair_folder / 'tokenizer.json').read_text())
  # The tokenizer of a released folder: <mask> takes in the space before it.
  return transformers.BartTokenizer(
    vocab=content['model']['vocab'],
    merges=[tuple(pair) for pair in content['model']['merges']],
    mask_token=transformers.AddedToken('<mask>', lstrip=True, special=True),
  )


def test_agrees_with_transformers(vocabulary, peer, shared_data):
  texts = list(TEXTS)
  for path in sorted((shared_data / 'passages').glob('*.jsonl')):
    with open(path, encoding='utf-8') as file:
      texts += [
        ' '.join(json.loads(line)['text'].split()) for line in itertools.islice(file, 0, 4000, 401)
      ]
  ids = lambda text: peer(text, add_special_tokens=False).input_ids
  for text in texts:
    assert vocabulary.encode_start(text) == ids(text), text
    assert vocabulary.encode(text) == (ids(' ' + text) if text else []), text
  assert vocabulary.encode_batch(texts) == [vocabulary.encode(t) for t in texts]
  assert vocabulary.encode_start_batch(texts) == [vocabulary.encode_start(t) for t in texts]
  for name in ('bos', 'pad', 'eos', 'unk', 'mask'):
    assert getattr(vocabulary, f'{name}_id') == getattr(peer, f'{name}_token_id')
  assert vocabulary.vocab_size == len(peer)


def test_agrees_with_transformers_on_real_words(tmp_path, shared_data, peer):
  """Thousands of pieces of real text, so that merges run deep."""
  del peer
  import tokenizers
  import transformers

  with open(shared_data / 'passages/w100.jsonl', encoding='utf-8') as file:
    texts = [json.loads(line)['text'] for line in file]
  trained = tokenizers.ByteLevelBPETokenizer()
  trained.train_from_iterator(
    texts[::3],
    vocab_size=4000,
    show_progress=False,
    special_tokens=['<s>', '<pad>', '</s>', '<unk>', '<mask>'],
  )
  trained.save_model(str(tmp_path))
  ours = vocabularies.load_vocabulary(tmp_path / 'vocab.json')
  theirs = transformers.BartTokenizer.from_pretrained(tmp_path)
  for text in texts[1::10]:
    text = ' '.join(text.split())
    assert ours.encode_start(text) == theirs(text, add_special_tokens=False).input_ids
    assert ours.decode(ours.encode(text)) == text


def test_splits_at_whitespace(vocabulary):
  """`encode(a + ' ' + b)` is `encode(a) + encode(b)`, whatever stands there."""
  generator = random.Random(0)
  alphabet = [
    *"ab C9's.,\t\n",
    '\u00a0',
    '\u2009',
    '\x1c',
    '\x85',
    '\u180e',
    '\u200b',
    'é',
    '東',
    '<mask>',
    '</s>',
    '<s>',
    ' ',
    'the',
    "'ll",
    '\r',
  ]
  for _ in range(3000):
    left, right = (''.join(generator.choices(alphabet, k=generator.randrange(7))) for _ in range(2))
    joined = f'{left} {right}'
    apart = vocabulary.encode(left) + vocabulary.encode(right)
    assert vocabulary.encode(joined) == apart, (left, right)
    start = vocabulary.encode_start(left)
    if start:
      assert vocabulary.encode_start(joined) == start + vocabulary.encode(right)


def test_whitespace_is_collapsed_and_words_know_their_place(vocabulary):
  assert vocabulary.encode(' the\t\n file ') == vocabulary.encode('the file')
  assert vocabulary.encode('  ') == vocabulary.encode_start('\n') == []
  assert vocabulary.encode_start('the file') != vocabulary.encode('the file')
  assert vocabulary.encode_start('the file') == [
    *vocabulary.encode_start('the'),
    *vocabulary.encode('file'),
  ]
  assert vocabulary.first_word_differs


def test_decoding(vocabulary):
  ids = [
    vocabulary.bos_id,
    *vocabulary.encode('naïve 東京 file'),
    vocabulary.mask_id,
    vocabulary.eos_id,
    vocabulary.pad_id,
    vocabulary.vocab_size,
    10**6,
    -1,
  ]
  assert vocabulary.decode(ids) == 'naïve 東京 file'
  assert vocabulary.decode([]) == ''


def test_both_layouts_are_one_vocabulary(byte_pair_folder, tmp_path):
  """Wherever it is read from and saved to, ids and fingerprint are the same."""
  loaded = [
    vocabularies.load_vocabulary(byte_pair_folder / name)
    for name in ('tokenizer.json', 'vocab.json')
  ]
  for name, vocabulary in zip('ab', loaded[:2]):
    assert vocabulary.save(tmp_path, name) == f'{name}.json'
    loaded.append(vocabularies.load_vocabulary(tmp_path / f'{name}.json'))
  assert len({v.fingerprint for v in loaded}) == 1
  for text in TEXTS:
    assert len({tuple(v.encode(text)) for v in loaded}) == 1


def test_mask_takes_in_its_space_whatever_a_file_says(byte_pair_folder, tmp_path, vocabulary):
  """As the library writes it where nothing else is asked for."""
  changed = vocabularies.load_vocabulary(
    edited(
      byte_pair_folder, tmp_path, lambda content: content['added_tokens'][-1].update(lstrip=False)
    )
  )
  assert changed.fingerprint == vocabulary.fingerprint
  assert changed.encode('fill <mask> in') == vocabulary.encode('fill <mask> in')


def test_a_piece_may_be_called_model(byte_pair_folder, tmp_path, vocabulary):
  """As one of GPT-2's and BART's is."""
  pieces = json.loads((byte_pair_folder / 'vocab.json').read_text())
  pieces['model'] = len(pieces)
  (tmp_path / 'vocab.json').write_text(json.dumps(pieces))
  shutil.copy(byte_pair_folder / 'merges.txt', tmp_path)
  found = vocabularies.load_vocabulary(tmp_path / 'vocab.json')
  assert found.vocab_size == vocabulary.vocab_size + 1
  assert found.encode('the file') == vocabulary.encode('the file')


def test_byte_order_marks(byte_pair_folder, tmp_path, vocabulary):
  for name in ('tokenizer.json', 'vocab.json', 'merges.txt'):
    (tmp_path / name).write_bytes(b'\xef\xbb\xbf' + (byte_pair_folder / name).read_bytes())
  for name in ('tokenizer.json', 'vocab.json'):
    found = vocabularies.load_vocabulary(tmp_path / name)
    assert found.fingerprint == vocabulary.fingerprint


def test_saving_keeps_a_file_that_is_the_same(vocabulary, tmp_path):
  path = tmp_path / vocabulary.save(tmp_path, 'a')
  before = path.stat().st_ino
  vocabulary.save(tmp_path, 'a')
  assert path.stat().st_ino == before
  path.write_bytes(b'{')
  vocabulary.save(tmp_path, 'a')
  assert vocabularies.load_vocabulary(path).fingerprint == vocabulary.fingerprint
  assert [p.name for p in tmp_path.iterdir()] == ['a.json']


def test_transformers_reads_what_is_saved(vocabulary, tmp_path):
  transformers = pytest.importorskip('transformers')
  vocabulary.save(tmp_path, 'tokenizer')
  saved = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / 'tokenizer.json'))
  assert saved('the <mask> file').input_ids == [
    vocabulary.bos_id,
    *vocabulary.encode_start('the <mask> file'),
    vocabulary.eos_id,
  ]


def edited(byte_pair_folder, tmp_path, edit):
  """A tokenizer.json with something changed."""
  content = json.loads((byte_pair_folder / 'tokenizer.json').read_text())
  edit(content)
  path = tmp_path / 'tokenizer.json'
  path.write_text(json.dumps(content))
  return path


def test_options_of_the_file_that_change_ids_are_put_right(byte_pair_folder, tmp_path, vocabulary):
  """Dropout and truncation are the library's, not the model's."""

  def edit(content):
    content['model']['dropout'] = 0.5
    content['truncation'] = {
      'direction': 'Right',
      'max_length': 3,
      'strategy': 'LongestFirst',
      'stride': 0,
    }
    content['model']['merges'] = [' '.join(pair) for pair in content['model']['merges']]

  changed = vocabularies.load_vocabulary(edited(byte_pair_folder, tmp_path, edit))
  assert changed.fingerprint == vocabulary.fingerprint
  assert changed.encode_start('it is what it is') == vocabulary.encode_start('it is what it is')


@pytest.mark.parametrize(
  'edit, message',
  [
    (lambda c: c['model'].update(type='WordLevel'), 'model WordLevel'),
    (lambda c: c.update(pre_tokenizer=None), r'\(pre_tokenizer\)'),
    (lambda c: c['pre_tokenizer'].update(use_regex=False), 'use_regex'),
    (lambda c: c['pre_tokenizer'].update(add_prefix_space=True), 'add_prefix_space'),
    (lambda c: c.update(normalizer={'type': 'Lowercase'}), 'normalizer'),
    (lambda c: c['model'].update(byte_fallback=True), 'byte_fallback'),
    (lambda c: c['model'].pop('merges'), 'not a tokenizer.json'),
    (lambda c: c['model'].update(vocab=[1]), 'not a tokenizer.json'),
    (lambda c: c.update(model='BPE'), 'not a tokenizer.json'),
    (lambda c: c['model']['merges'].append(['nothing', 'known']), 'not a byte-level BPE'),
    (lambda c: c['model']['vocab'].update(extra=5), 'two pieces have the same id'),
    (lambda c: c['model']['vocab'].update(extra='5'), "id of 'extra' is '5'"),
    (lambda c: c['model']['vocab'].update(extra=-5), "id of 'extra' is -5"),
    (lambda c: c['added_tokens'][0].update(id=77), "two ids for '<s>'"),
    (
      lambda c: (c['model']['vocab'].pop('Ġ'), c['model']['vocab'].pop('é', 0)),
      'of the 256 bytes have no id',
    ),
    (lambda c: c['added_tokens'][-1].update(rstrip=True), 'space behind it'),
  ],
)
def test_unusable_files_are_refused(byte_pair_folder, tmp_path, edit, message):
  path = edited(byte_pair_folder, tmp_path, edit)
  with pytest.raises(ValueError, match=message) as caught:
    vocabularies.load_vocabulary(path)
  assert str(path) in str(caught.value)


def test_other_tokenizers_are_refused(byte_pair_folder, tmp_path):
  """GPT-2's has no special tokens of BART."""

  def edit(content):
    content['added_tokens'] = []
    vocab = content['model']['vocab']
    for name in ('<s>', '<pad>', '</s>'):
      vocab[f'other {name}'] = vocab.pop(name)
    vocab['"<s>"'] = max(vocab.values()) + 1

  with pytest.raises(ValueError, match='it has no <s>, <pad>, </s>'):
    vocabularies.load_vocabulary(edited(byte_pair_folder, tmp_path, edit))


def test_missing_and_damaged_files(byte_pair_folder, tmp_path):
  for name in ('vocab.json', 'tokenizer.json'):
    whole = (byte_pair_folder / name).read_bytes()
    (tmp_path / name).write_bytes(whole[:-20])
    with pytest.raises(ValueError, match=f'{name}: damaged, not whole JSON'):
      vocabularies.load_vocabulary(tmp_path / name)
  shutil.copy(byte_pair_folder / 'vocab.json', tmp_path)
  with pytest.raises(FileNotFoundError, match='needs its merges.txt beside it'):
    vocabularies.load_vocabulary(tmp_path / 'vocab.json')
  (tmp_path / 'merges.txt').write_text('#version: 0.2\na b\na b c\n')
  with pytest.raises(ValueError, match=r"merges.txt:3: expected two pieces, found 'a b c'"):
    vocabularies.load_vocabulary(tmp_path / 'vocab.json')
  with pytest.raises(ValueError, match='neither a SentencePiece.*tokenizer.json'):
    vocabularies.load_vocabulary(byte_pair_folder / 'merges.txt')
  shutil.rmtree(tmp_path)
  tmp_path.mkdir()
  with pytest.raises(ValueError, match='a folder without a vocabulary; name .*tokenizer.json'):
    vocabularies.load_vocabulary(tmp_path)


def test_a_folder_stands_for_its_vocabulary(byte_pair_folder):
  of_file = vocabularies.load_vocabulary(byte_pair_folder / 'tokenizer.json')
  assert vocabularies.load_vocabulary(byte_pair_folder).fingerprint == of_file.fingerprint
