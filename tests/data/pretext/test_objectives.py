"""Examples of passages, against the texts they stand for."""

import random
import re

import numpy as np
import pytest

from ralm_jax.data.pretext import noise
from ralm_jax.data.pretext.noise import NoiseConfig
from ralm_jax.data.pretext.objectives import (
  MaskedSpans,
  PrefixLM,
  PretextTokenizer,
  SalientSpans,
  Source,
  TitleSection,
)
from ralm_jax.data.pretext.tokens import WordEncoder
from ralm_jax.data.text import vocabularies
from ralm_jax.data.text.tokenization import QueryTokenizer
from ralm_jax.data.text.vocabularies import SentencePieceVocabulary
from ralm_jax.data.text_config import TextConfig
from tests import decoder_folders

TEXT = TextConfig(
  question_format='{question}',
  target_format='{answer}',
  query_length=48,
  reader_query_length=40,
  target_length=24,
)


def _tokenizer(reader, retriever, **lengths):
  import dataclasses

  return QueryTokenizer(
    dataclasses.replace(TEXT, **lengths),
    vocabularies.load_vocabulary(reader),
    vocabularies.load_vocabulary(retriever),
  )


def _example(objective, tokenizer, text, seed=0, title='a title', section='part'):
  wrapped = PretextTokenizer(tokenizer)
  objective.check(wrapped)
  source = Source(title, section, text)
  prepared = objective.prepare(source, wrapped)
  return objective.example(source, prepared, wrapped, np.random.default_rng(seed))


@pytest.fixture(params=['small', 'byte_pair', 'official'])
def files(request, sentencepiece_file, wordpiece_file, byte_pair_folder):
  """Reader's and retriever's vocabulary, in several combinations."""
  if request.param == 'official':
    shared = request.getfixturevalue('shared_data')
    return (
      shared / 'tokenizers/t5/spiece.model',
      shared / 'tokenizers/bert-base-uncased/vocab.txt',
    )
  if request.param == 'byte_pair':
    return byte_pair_folder / 'vocab.json', byte_pair_folder / 'vocab.json'
  return sentencepiece_file, wordpiece_file


LINES = (
  'The file object will be seekable, if “x” is naïve: <extra_id_3> 42 '
  'readers\n\n wrote 1,000 words of it\u00a0before noon. '
) * 2
# Line breaks are whitespace to T5 and BERT alone.
PROSE = ' '.join(LINES.split())


@pytest.mark.parametrize(
  'lengths',
  [
    {},
    {'query_length': 9, 'reader_query_length': 7, 'target_length': 5},
    {'query_length': 400, 'reader_query_length': 400, 'target_length': 400},
  ],
)
def test_words_give_the_ids_of_their_text(files, lengths):
  """The same as what tokenises questions and answers."""
  tokenizer = _tokenizer(*files, **lengths)
  wrapped = PretextTokenizer(tokenizer)
  texts = [PROSE, 'one', '', 'Étude № 7']
  if not tokenizer.reader_vocabulary.first_word_differs:
    texts.append(LINES)
  for text in texts:
    for _ in range(2):  # new and remembered
      words = text.split()
      assert wrapped.query(words) == tokenizer.retriever_query(text)
      assert wrapped.reader_query(words) == tokenizer.reader_query(text)
      assert wrapped.target(words) == tokenizer.target(text)


@pytest.mark.parametrize('family', ['smollm2', 'llama2', 'gemma3'])
@pytest.mark.parametrize('objective', [PrefixLM(), TitleSection()])
def test_prompts_go_on_with_the_target(objective, family, wordpiece_file, tmp_path):
  """Tail and target are the ids of one text, up to the end of its line."""
  vocabulary = decoder_folders.write(tmp_path, family, size=700)
  lengths = {'reader_query_length': 200, 'target_length': 200}
  tokenizer = _tokenizer(vocabulary, wordpiece_file, **lengths)
  text = 'The north wind blew over the sea, and nobody saw it.'
  made = _example(objective, tokenizer, text, title='Wind', section='History')
  whole = text if isinstance(objective, PrefixLM) else f'Wind, History {text}'
  encode = tokenizer.reader_vocabulary.encode_segment
  assert made.reader_query + made.target == encode(whole) + encode('\n')
  assert made.reader_query and len(made.target) > 2
  with pytest.raises(ValueError, match='MaskedSpans puts sentinels .* PrefixLM'):
    _example(MaskedSpans(), tokenizer, text)
  with pytest.raises(ValueError, match="prompt_style = 'plain'"):
    PretextTokenizer(_tokenizer(vocabulary, wordpiece_file, prompt_style='chat'))


def test_few_words_are_remembered(sentencepiece_file):
  encoder = WordEncoder(vocabularies.load_vocabulary(sentencepiece_file), capacity=3)
  words = PROSE.split()
  assert encoder.encode(words) == encoder.vocabulary.encode(' '.join(words))
  assert len(encoder._ids) <= 3
  ids = [encoder.vocabulary.encode(word) for word in words]
  for limit in range(30):
    kept = encoder.last_words(words, limit)
    assert kept == words[len(words) - len(kept) :]
    assert sum(map(len, ids[len(words) - len(kept) :])) <= limit
    assert len(kept) == len(words) or sum(map(len, ids[len(words) - len(kept) - 1 :])) > limit


@pytest.mark.parametrize('kind', ['small', 'official'])
def test_masked_spans(kind, request, sentencepiece_file, wordpiece_file):
  files = sentencepiece_file, wordpiece_file
  if kind == 'official':
    shared = request.getfixturevalue('shared_data')
    files = (
      shared / 'tokenizers/t5/spiece.model',
      shared / 'tokenizers/bert-base-uncased/vocab.txt',
    )
  tokenizer = _tokenizer(*files, query_length=300, reader_query_length=200, target_length=80)
  vocabulary = tokenizer.reader_vocabulary
  text = PROSE.replace('<extra_id_3> ', '')
  tokens = vocabulary.encode(text)
  for seed in range(10):
    made = _example(MaskedSpans(), tokenizer, text, seed)
    # The noise itself.
    spans = noise.random_spans(len(tokens), NoiseConfig(), np.random.default_rng(seed))
    expected = noise.corrupt(
      np.array(tokens), spans, np.arange(vocabulary.vocab_size - 1, 0, -1)[:100]
    )
    assert made.reader_query == expected.inputs.tolist()
    assert made.target == [*expected.targets.tolist(), vocabulary.eos_id]
    # The retriever reads the same as text, `<extra_id_0>` in its pieces.
    shown = vocabulary.decode(made.reader_query, keep_sentinels=True)
    assert '<extra_id_0>' in shown
    assert made.query == tokenizer.retriever_query(shown)
    short = _example(
      MaskedSpans(),
      _tokenizer(*files, query_length=20, reader_query_length=200, target_length=80),
      text,
      seed,
    )
    assert short.query == [*made.query[:19], made.query[-1]]


def test_ids_of_sentinels_count_downwards(shared_data):
  files = (
    shared_data / 'tokenizers/t5/spiece.model',
    shared_data / 'tokenizers/bert-base-uncased/vocab.txt',
  )
  tokenizer = _tokenizer(*files, query_length=60, reader_query_length=200, target_length=80)
  made = _example(MaskedSpans(), tokenizer, 'to be or not to be ' * 8)
  sentinels = [token for token in made.reader_query if token >= 32000]
  assert sentinels == [32099, 32098]
  assert [token for token in made.target if token >= 32000] == sentinels
  pieces = tokenizer.retriever_vocabulary.encode('<extra_id_0>')
  assert tokenizer.retriever_vocabulary.decode(pieces) == '< extra _ id _ 0 >'
  assert any(made.query[i : i + len(pieces)] == pieces for i in range(len(made.query)))


def test_masked_passages_are_no_longer_than_fits(files):
  tokenizer = _tokenizer(*files, reader_query_length=30, target_length=12)
  if not isinstance(tokenizer.reader_vocabulary, SentencePieceVocabulary):
    with pytest.raises(ValueError, match='MaskedSpans puts sentinels .* PrefixLM'):
      _example(MaskedSpans(), tokenizer, PROSE)
    return
  made = _example(MaskedSpans(), tokenizer, PROSE * 5)
  assert len(made.reader_query) <= 30
  assert made.target[-1] == tokenizer.reader_vocabulary.eos_id
  # As Atlas has it, where what is masked may be cut off.
  longer = _example(MaskedSpans(max_tokens=200), tokenizer, PROSE * 5)
  assert len(longer.reader_query) == 30 and len(longer.target) == 12
  assert longer.target[-1] != tokenizer.reader_vocabulary.eos_id


def _atlas_cuts(words, least, most):
  """Left words of each cut that Atlas may draw, of the pieces of re.split."""
  text = ' '.join(f'w{i}' for i in range(words))
  pieces = re.split(r'(\S+)', text)
  low = int(max(2, len(pieces) * least))
  high = int(max(min(len(pieces) - 2, len(pieces) * most), low + 1))
  return {len(''.join(pieces[:cut]).split()) for cut in range(low, high + 1)}


@pytest.mark.parametrize('least, most', [(0.5, 0.5), (0.25, 0.75), (0, 1), (0.9, 0.9)])
@pytest.mark.parametrize('words', [2, 3, 10, 41])
def test_places_where_a_text_is_cut(words, least, most):
  objective = PrefixLM(least, most)
  generator = np.random.default_rng(0)
  drawn = {objective.left_words(words, generator) for _ in range(400)}
  # Atlas may leave nothing to predict; we do not.
  assert drawn == {min(left, words - 1) for left in _atlas_cuts(words, least, most)}
  assert min(drawn) >= 1


def test_prefix_lm(files):
  tokenizer = _tokenizer(*files, query_length=300, reader_query_length=300, target_length=300)
  words = PROSE.split()
  cuts = set()
  for seed in range(8):
    made = _example(PrefixLM(0.25, 0.75), tokenizer, PROSE, seed)
    cut = next(
      i
      for i in range(len(words))
      if made.reader_query == tokenizer.reader_query(' '.join(words[:i]))
    )
    cuts.add(cut)
    assert made.query == tokenizer.retriever_query(' '.join(words[:cut]))
    assert made.target == tokenizer.target(' '.join(words[cut:]))
  assert len(cuts) > 2
  assert PrefixLM().prepare(Source('', '', ' word '), PretextTokenizer(tokenizer)) is None
  with pytest.raises(ValueError, match='min_ratio'):
    PrefixLM(0.7, 0.3)


def test_a_long_prefix_keeps_its_end(sentencepiece_file, wordpiece_file):
  tokenizer = _tokenizer(
    sentencepiece_file, wordpiece_file, reader_query_length=12, query_length=14
  )
  words = [one + other for one in 'abcdefg' for other in 'hilmno']
  random.Random(0).shuffle(words)
  made = _example(PrefixLM(), tokenizer, ' '.join(words))
  shown = tokenizer.reader_vocabulary.decode(made.reader_query).split()
  rest = tokenizer.reader_vocabulary.decode(made.target).split()
  start = words.index(shown[0])
  assert words[start : start + len(shown)] == shown
  assert words[start + len(shown)] == rest[0]
  assert len(made.query) <= 14


def test_title_and_section(files):
  tokenizer = _tokenizer(*files, target_length=200)
  made = _example(TitleSection(), tokenizer, PROSE)
  assert made.query == tokenizer.retriever_query('a title, part')
  assert made.reader_query == tokenizer.reader_query('a title, part')
  assert made.target == tokenizer.target(PROSE)
  wrapped = PretextTokenizer(tokenizer)
  for section in ('', ' '):
    assert TitleSection().prepare(Source('a', section, PROSE), wrapped) is None
  # Ids that are stored already are taken.
  stored = np.array(tokenizer.reader_vocabulary.encode(PROSE), np.int32)
  source = Source('a title', 'part', PROSE)
  prepared = TitleSection().prepare(source, wrapped, stored)
  assert (
    TitleSection().example(source, prepared, wrapped, np.random.default_rng(0)).target
    == made.target
  )


def test_salient_spans(sentencepiece_file, wordpiece_file, byte_pair_folder):
  tokenizer = _tokenizer(
    sentencepiece_file, wordpiece_file, query_length=200, reader_query_length=200, target_length=40
  )
  text = 'they met (on May 5, 1821) in Al Baker street with 42 others .'
  seen = set()
  for seed in range(20):
    made = _example(SalientSpans(), tokenizer, text, seed)
    target = tokenizer.reader_vocabulary.decode(made.target, keep_sentinels=True)
    span = target.removeprefix('<extra_id_0> ')
    seen.add(span)
    shown = text.replace(span, ' <extra_id_0> ')
    assert made.reader_query == tokenizer.reader_query(shown)
    assert made.query == tokenizer.retriever_query(shown)
    assert made.target == tokenizer.target(target)
  assert seen == {'May 5, 1821', 'Al Baker', '42'}
  wrapped = PretextTokenizer(tokenizer)
  for nothing in ('no names here', 'Al Baker'):
    assert SalientSpans().prepare(Source('', '', nothing), wrapped) is None
  with pytest.raises(ValueError, match='SalientSpans puts sentinels'):
    _example(SalientSpans(), _tokenizer(byte_pair_folder / 'vocab.json', wordpiece_file), text)


def test_annotator_of_the_user(sentencepiece_file, wordpiece_file):
  tokenizer = _tokenizer(sentencepiece_file, wordpiece_file)
  objective = SalientSpans(annotator=lambda text: [m.span() for m in re.finditer('reader', text)])
  made = _example(objective, tokenizer, 'a reader reads')
  assert (
    tokenizer.reader_vocabulary.decode(made.target, keep_sentinels=True) == '<extra_id_0> reader'
  )
  with pytest.raises(ValueError, match='for a text of 14 characters'):
    _example(SalientSpans(annotator=lambda text: [(3, 40)]), tokenizer, 'a reader reads')


@pytest.mark.parametrize('before, after', [(0, 60), (60, 0), (60, 60), (5, 60), (60, 5)])
def test_a_masked_span_is_never_cut_off(sentencepiece_file, wordpiece_file, before, after):
  tokenizer = _tokenizer(
    sentencepiece_file, wordpiece_file, query_length=40, reader_query_length=20
  )
  reader = tokenizer.reader_vocabulary
  text = ' '.join(['left'] * before + ['42'] + ['right'] * after)
  made = _example(SalientSpans(), tokenizer, text)
  sentinel = reader.vocab_size - 1
  assert len(made.reader_query) <= 20 and sentinel in made.reader_query
  sides = reader.decode(made.reader_query, keep_sentinels=True).partition('<extra_id_0>')
  assert set(sides[0].split()) <= {'left'}
  if before and after:
    assert sides[0].split() and sides[2].split()
  pieces = tokenizer.retriever_vocabulary.encode('<extra_id_0>')
  assert any(made.query[i : i + len(pieces)] == pieces for i in range(len(made.query)))
  assert len(made.query) <= 40
