"""sentence-transformers folders: what they say is obeyed, said not to be, or refused."""

import json
import re
import shutil

import numpy as np
import pytest

pytest.importorskip('torch')
pytest.importorskip('transformers')

import torch
import transformers

from ralm_jax.data.ragged import RaggedTokens
from ralm_jax.data.text.templates import TokenTemplate
from ralm_jax.interop import composing, huggingface
from ralm_jax.runs import opening
from tests.commands import converting
from tests.interop import huggingface_folders as folders

QUESTIONS = ['Who painted the house?', 'what is the color of the lake near the old house ' * 3]
PASSAGES = [('Lake', 'The lake is blue.'), ('House', 'It was painted by the painter. ' * 6)]
E5 = {'query': 'query: ', 'passage': 'passage: '}


@pytest.fixture(scope='module')
def sources(tmp_path_factory):
  return converting.make(tmp_path_factory.mktemp('sources'))


def _folder(
  sources, path, *, prompts=None, default=None, longest=None, pooling='mean_tokens', **said
):
  """A folder around the sources' BERT."""
  shutil.copytree(sources / 'bert', path)
  folders.sentence_transformer(path / 'modules', pooling)
  for name in ('modules.json', '1_Pooling'):
    shutil.move(path / 'modules' / name, path / name)
  shutil.rmtree(path / 'modules')
  content = {'prompts': prompts or {}, 'default_prompt_name': default, **said}
  (path / 'config_sentence_transformers.json').write_text(json.dumps(content))
  if longest is not None:
    (path / 'sentence_bert_config.json').write_text(json.dumps({'max_seq_length': longest}))
  return path


def _theirs(path, texts, longest, normalize=True):
  """As sentence-transformers embeds, by transformers."""
  tokenizer = transformers.AutoTokenizer.from_pretrained(path)
  how = dict(padding=True, truncation=True, max_length=longest, return_tensors='pt')
  encoded = tokenizer(texts, **how)
  model = transformers.AutoModel.from_pretrained(path).eval()
  with torch.no_grad():
    hidden = model(**encoded).last_hidden_state
  mask = encoded['attention_mask'][..., None].float()
  pooled = (hidden * mask).sum(1) / mask.sum(1)
  return torch.nn.functional.normalize(pooled, dim=1).numpy() if normalize else pooled.numpy()


def _ours(run):
  """Embeddings of the questions and the passages by a run."""
  opened = opening.open_checkpoint(run)
  tokenizer, model = opened.spec.tokenizer, opened.spec.model
  vocabulary, text = tokenizer.retriever_vocabulary, tokenizer.text
  queries = tokenizer.batch(QUESTIONS).query_tokens
  template = TokenTemplate.for_retriever(vocabulary, text.retriever_format)
  fields = {
    name: RaggedTokens.from_lists(vocabulary.encode_batch(texts))
    for name, texts in zip(('title', 'text'), zip(*PASSAGES))
  }
  passages = template.render(fields, text.retriever_passage_length)
  passages = passages.pad(text.retriever_passage_length, vocabulary.pad_id)
  return (
    model.encode_queries(opened.params, queries, queries != vocabulary.pad_id),
    model.encode_passages(opened.params, passages, passages != vocabulary.pad_id),
  )


@pytest.mark.parametrize(
  'said, query, passage',
  [
    ({'prompts': E5}, 'query: ', 'passage: '),
    ({'prompts': {'query': 'find {it}: ', 'document': '{} '}}, 'find {it}: ', '{} '),
    ({'prompts': {'all': 'embed: '}, 'default': 'all'}, 'embed: ', 'embed: '),
    ({'prompts': E5 | {'document': ''}, 'default': 'query'}, 'query: ', ''),
    ({'prompts': E5, 'longest': 12}, 'query: ', 'passage: '),
  ],
  ids=['e5', 'braces', 'default', 'document first', 'cut'],
)
def test_embeddings_are_transformers_own(said, query, passage, sources, tmp_path):
  """Within 1e-5, on unit vectors: prompts, lengths, pooling and normalisation together."""
  path = _folder(sources, tmp_path / 'folder', **said)
  longest = said.get('longest', 32)
  text = {'reader_query_length': 24, 'passage_length': 64, 'question_format': '{question}'}
  text |= {'query_length': longest, 'retriever_passage_length': longest}
  converting.convert(tmp_path / 'run', sources / 't5', path, text=text)
  ours = _ours(tmp_path / 'run')
  asked = [query + question for question in QUESTIONS]
  np.testing.assert_allclose(ours[0], _theirs(path, asked, longest), atol=1e-5)
  read = [f'{passage}{title} {text}' for title, text in PASSAGES]
  np.testing.assert_allclose(ours[1], _theirs(path, read, longest), atol=1e-5)
  # The way out and in again keeps them.
  if query:
    converting.convert(tmp_path / 'out', tmp_path / 'run', to_format='huggingface')
    back = tmp_path / 'out' / 'retriever'
    converting.convert(tmp_path / 'again', sources / 't5', back, text=text)
    for before, after in zip(ours, _ours(tmp_path / 'again')):
      np.testing.assert_allclose(before, after, atol=1e-6)


def _part(sources, tmp_path, **said):
  return huggingface.open_sentence_transformer(_folder(sources, tmp_path / 'folder', **said))


@pytest.mark.parametrize(
  'said, fields',
  [
    ({'longest': 16}, {'query_length': 16, 'retriever_passage_length': 16}),
    ({'longest': 512}, {'query_length': 32, 'retriever_passage_length': 32}),
    ({'prompts': E5}, {'query_prompt': 'query: '}),
    ({'prompts': E5}, {'retriever_format': 'passage: {title} {text}'}),
    ({'prompts': {'query': '', 'document': ''}}, {'query_prompt': ''}),
  ],
)
def test_texts(said, fields, sources, tmp_path):
  path = str(_folder(sources, tmp_path / 'folder', **said))
  gathered = composing.gather([('reader', str(sources / 't5')), ('retriever', path)])
  text = composing.make_text(gathered, {})
  assert fields == {name: getattr(text, name) for name in fields}
  # What the command line says has the last word.
  assert composing.make_text(gathered, {'query_length': 7}).query_length == 7


@pytest.mark.parametrize('similarity, scaled', [('cosine', True), ('dot', False), (None, False)])
def test_similarity(similarity, scaled, sources, tmp_path):
  path = _folder(sources, tmp_path / 'folder', similarity_fn_name=similarity)
  modules = json.loads((path / 'modules.json').read_text())
  (path / 'modules.json').write_text(json.dumps(modules[:2]))
  assert huggingface.open_sentence_transformer(path).normalize == scaled


@pytest.mark.parametrize(
  'said, note',
  [
    ({'similarity_fn_name': 'manhattan'}, "not obeyed: .*similarity_fn_name 'manhattan'"),
    ({'longest': 16}, 'says retriever_passage_length = 16, query_length = 16'),
    ({'prompts': E5}, "its folder says query_prompt = 'query: ', retriever_format = 'passage: "),
    ({'prompts': E5 | {'cluster': 'topic: '}}, 'not obeyed: .*: prompts cluster'),
  ],
)
def test_notes(said, note, sources, tmp_path):
  assert re.search(note, '; '.join(_part(sources, tmp_path, **said).notes))


E5_FORMAT = 'passage: {title} {text}'
BGE = 'Represent this sentence for searching relevant passages: '
UNKNOWN = 'no prompt of its queries and passages is known; .* --text query_prompt='


@pytest.mark.parametrize(
  'name, query, passages, note',
  [
    ('intfloat/e5-base-v2', 'query: ', E5_FORMAT, "of e5-base-v2, whose folder says none: query '"),
    (
      '/home/user/.cache/torch/sentence_transformers/BAAI_bge-small-en/',
      BGE,
      None,
      'of bge-small-en',
    ),
    ('thenlper/gte-base', None, None, None),
    ('nreimers/MiniLM-L6-H384-uncased', None, None, None),
    ('tmp/', None, None, UNKNOWN),
    (None, None, None, UNKNOWN),
  ],
)
@pytest.mark.parametrize('fetched', [False, True], ids=['saved', 'fetched'])
def test_prompts_of_models_known_by_name(name, query, passages, note, fetched, sources, tmp_path):
  """By what config.json says, or by the hub's name in whose cache the folder lies."""
  path = tmp_path / 'folder'
  if fetched and name and name.count('/') == 1 and name[-1] != '/':
    path = tmp_path / f'models--{name.replace("/", "--")}' / 'snapshots' / 'abc'
  path = _folder(sources, path)
  if path.name == 'folder':
    config = json.loads((path / 'config.json').read_text()) | {'_name_or_path': name}
    (path / 'config.json').write_text(json.dumps(config))
  part = huggingface.open_sentence_transformer(path)
  assert part.text.get('query_prompt') == query
  assert part.text.get('retriever_format') == passages
  assert part.text['query_format'] == '{question}'
  told = '; '.join(part.notes)
  assert re.search(note, told) if note else 'prompts of' not in told and 'is known' not in told
  # What a folder says wins over what is known of its name.
  said = {'prompts': {'query': 'find: '}}
  (path / 'config_sentence_transformers.json').write_text(json.dumps(said))
  assert huggingface.open_sentence_transformer(path).text['query_prompt'] == 'find: '


@pytest.mark.parametrize(
  'said, message',
  [
    ({'prompts': {'query': 'ask'}}, "prompt 'ask' is not supported: it must end with a space"),
    ({'prompts': {'query': 3}}, 'prompt 3 is not supported'),
    ({'default': 'none'}, "default_prompt_name is 'none', which is none of its prompts"),
    ({'pooling': 'max_tokens'}, 'pooling .*max_tokens.* is not supported'),
    ({'longest': 'x'}, "max_seq_length is 'x', expected a whole number"),
  ],
)
def test_what_is_refused(said, message, sources, tmp_path):
  with pytest.raises(ValueError, match=message):
    _part(sources, tmp_path, **said)


def test_prompts_left_out_of_the_pooling(sources, tmp_path):
  path = _folder(sources, tmp_path / 'folder', prompts=E5)
  pooling = path / '1_Pooling' / 'config.json'
  pooling.write_text(json.dumps(json.loads(pooling.read_text()) | {'include_prompt': False}))
  with pytest.raises(ValueError, match='include_prompt is false'):
    huggingface.open_sentence_transformer(path)


def test_modules_in_another_order(sources, tmp_path):
  path = _folder(sources, tmp_path / 'folder')
  modules = json.loads((path / 'modules.json').read_text())
  (path / 'modules.json').write_text(json.dumps([modules[0], modules[2], modules[1]]))
  with pytest.raises(ValueError, match="Normalize' is not supported; .* in this order"):
    huggingface.open_sentence_transformer(path)
