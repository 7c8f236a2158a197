"""What a folder says is obeyed, or named; what is absent or not finite is an error."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

import safetensors.numpy
import torch

from ralm_jax.checkpoints.specification import Specification
from ralm_jax.data.ragged import RaggedTokens
from ralm_jax.data.text import vocabularies
from ralm_jax.data.text.templates import TokenTemplate
from tests.commands import converting
from tests.commands.converting import convert, folders

TEXTS = ['Paris PARIS', 'the Colour é', '  two  spaces ', 'a [MASK] b', 'x <extra_id_0> y']


@pytest.fixture(scope='module')
def sources(tmp_path_factory):
  return converting.make(tmp_path_factory.mktemp('sources'))


def _copy(sources, name, tmp_path):
  return shutil.copytree(sources / name, tmp_path / name)


def _edit(folder, change):
  path = folder / 'model.safetensors'
  state = safetensors.numpy.load_file(path)
  change(state)
  safetensors.numpy.save_file(state, path)


def _ids(folder, texts=TEXTS):
  return transformers.AutoTokenizer.from_pretrained(folder)(
    texts, add_special_tokens=False
  ).input_ids


def test_e5_prompts_lengths_and_scores(sources, tmp_path):
  """Embeddings of a question and a passage are those that transformers computes, to 1e-5."""
  e5 = tmp_path / 'e5'
  model = folders.sentence_transformer(e5)
  pieces = (sources / 'bert' / 'vocab.txt').read_text().splitlines()[:60]
  (e5 / 'vocab.txt').write_text('\n'.join([*pieces, ':', 'query', 'passage']) + '\n')
  prompts = {'query': 'query: ', 'passage': 'passage: ', 'summary': 'sum: '}
  said = {'prompts': prompts, 'default_prompt_name': None, 'similarity_fn_name': 'euclidean'}
  (e5 / 'config_sentence_transformers.json').write_text(json.dumps(said))
  (e5 / 'sentence_bert_config.json').write_text(json.dumps({'max_seq_length': 12}))
  lines = convert(
    tmp_path / 'run', sources / 't5', e5, text={'question_format': '{question}', 'n_passages': 2}
  )
  for text in ("similarity_fn_name 'euclidean'", 'prompts summary'):
    assert any('not obeyed: ' in line and text in line for line in lines), lines
  opened = converting.Opened(tmp_path / 'run')
  # They survive the way out and in again.
  convert(tmp_path / 'out', tmp_path / 'run', to_format='huggingface')
  convert(
    tmp_path / 'again',
    sources / 't5',
    tmp_path / 'out/retriever',
    text={'question_format': '{question}', 'n_passages': 2},
  )
  assert Specification.load(tmp_path / 'again').text == opened.spec.text
  tokenizer, text = opened.spec.tokenizer, opened.spec.text
  assert (text.query_length, text.retriever_passage_length) == (12, 12)
  peer = transformers.BertTokenizer.from_pretrained(e5)
  question, passage = 'who is the one and what was that of', 'the title and the text of it'
  template = TokenTemplate.for_retriever(tokenizer.retriever_vocabulary, text.retriever_format)
  vocabulary = tokenizer.retriever_vocabulary
  fields = {
    name: RaggedTokens.from_lists([vocabulary.encode(value)])
    for name, value in (('title', 'the title'), ('text', 'and the text of it'))
  }
  ours = {
    f'query: {question}': tokenizer.retriever_query(tokenizer.text.query(question)),
    f'passage: {passage}': template.render(fields, text.retriever_passage_length).values.tolist(),
  }
  for whole, ids in ours.items():
    expected = peer(whole, truncation=True, max_length=12).input_ids
    assert ids == expected
    with torch.no_grad():
      hidden = model(input_ids=torch.tensor([expected])).last_hidden_state.mean(1)[0]
    embedding = opened.spec.model.retriever.apply(
      {'params': opened.params['retriever']},
      jnp.asarray([ids]),
      jnp.ones((1, len(ids)), bool),
      method='encode_queries',
    )
    unit = hidden / hidden.norm()
    np.testing.assert_allclose(np.asarray(embedding)[0], unit.numpy(), atol=1e-5)


def test_a_prompt_that_runs_into_the_text(sources, tmp_path):
  folders.sentence_transformer(tmp_path / 'e5')
  said = json.dumps({'prompts': {'query': 'query:'}})
  (tmp_path / 'e5' / 'config_sentence_transformers.json').write_text(said)
  with pytest.raises(ValueError, match="prompt 'query:' is not supported"):
    convert(tmp_path / 'run', sources / 't5', tmp_path / 'e5')


@pytest.mark.parametrize(
  'file, said, line',
  [
    ('generation_config.json', {'num_beams': 4, 'top_k': 50}, 'num_beams = 4'),
    ('generation_config.json', {'forced_bos_token_id': 0}, 'forced_bos_token_id = 0'),
    ('config.json', {'length_penalty': 2.0, 'min_length': 0}, 'length_penalty = 2.0'),
    ('config.json', {'task_specific_params': {'qa': {}}}, 'task_specific_params = {"qa": {}}'),
  ],
)
def test_how_answers_are_made_is_named(file, said, line, sources, tmp_path):
  t5 = _copy(sources, 't5', tmp_path)
  config = json.loads((t5 / file).read_text())
  (t5 / file).write_text(json.dumps({**config, **said}))
  lines = convert(tmp_path / 'run', t5, sources / 'bert')
  assert any(f'not obeyed: {file}: {line}; answers are made' in one for one in lines)


@pytest.mark.parametrize('field', ['is_decoder', 'add_cross_attention'])
def test_a_bert_that_is_a_decoder(field, sources, tmp_path):
  bert = _copy(sources, 'bert', tmp_path)
  config = json.loads((bert / 'config.json').read_text())
  (bert / 'config.json').write_text(json.dumps({**config, field: True}))
  with pytest.raises(ValueError, match=f'{field} is true'):
    convert(tmp_path / 'run', sources / 't5', bert)


@pytest.mark.parametrize('kind', ['roberta', 'mpnet', 'distilbert'])
def test_other_architectures_are_refused_by_name(kind, sources, tmp_path):
  bert = _copy(sources, 'bert', tmp_path)
  config = json.loads((bert / 'config.json').read_text())
  (bert / 'config.json').write_text(json.dumps({**config, 'model_type': kind}))
  with pytest.raises(ValueError, match=f"of model_type '{kind}', expected"):
    convert(tmp_path / 'run', sources / 't5', bert)


def test_the_tokenizer_pads(sources, tmp_path):
  """Multilingual E5: a BERT whose config.json pads with 0 and whose tokenizer, XLM-R's, with 1."""
  e5 = tmp_path / 'e5'
  folders.bert(vocab_size=256).save_pretrained(e5)
  spiece = transformers.T5Tokenizer.from_pretrained(sources / 't5')
  pieces = json.loads(spiece.backend_tokenizer.to_str())['model']['vocab'][3:240]
  vocab = [('<s>', 0.0), ('<pad>', 0.0), ('</s>', 0.0), ('<unk>', 0.0), *map(tuple, pieces)]
  peer = transformers.XLMRobertaTokenizer(vocab=[*vocab, ('<mask>', 0.0)])
  peer.save_pretrained(e5)
  convert(tmp_path / 'run', sources / 't5', e5)
  opened = Specification.load(tmp_path / 'run')
  assert opened.model.retriever_config.pad_id == peer.pad_token_id == 1
  asked = opened.tokenizer.text.query('the colour')
  assert opened.tokenizer.retriever_query(asked) == peer('the colour').input_ids


def test_sentinels_and_tokens_beside_a_t5(sources, tmp_path):
  t5 = _copy(sources, 't5', tmp_path)
  config = {'tokenizer_class': 'T5Tokenizer', 'extra_ids': 3}
  (t5 / 'tokenizer_config.json').write_text(json.dumps(config))
  ours = vocabularies.load_vocabulary(t5 / 'spiece.model')
  text = 'the <extra_id_0> colour <extra_id_2>'
  peer = transformers.AutoTokenizer.from_pretrained(t5)
  assert ours.encode(text) == peer(text, add_special_tokens=False).input_ids
  assert ours.vocab_size == len(peer)
  (t5 / 'added_tokens.json').write_text(json.dumps({'<hl>': len(peer)}))
  with pytest.raises(ValueError, match='spiece.model has no <hl>, which added_tokens.json'):
    vocabularies.load_vocabulary(t5 / 'spiece.model')
