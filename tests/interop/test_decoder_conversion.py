"""Decoder-only readers through `ralm convert`: in, out, and back, bit for bit."""

import shutil

import flax.traverse_util
import numpy as np
import pytest

pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

import torch

from ralm_jax.checkpoints.specification import Specification
from ralm_jax.interop import decoder_maps, huggingface, initial_weights
from ralm_jax.interop.files import safetensors_file
from ralm_jax.interop.files.safetensors_file import SafetensorsFile
from ralm_jax.models.decoder_lm import DecoderLM
from tests import decoder_folders, tiny
from tests.commands import converting
from tests.commands.converting import Opened, convert
from tests.interop import huggingface_folders as folders

SIZES = {'vocab_size': 960}
TOKENIZERS = {'llama': 'llama2', 'smollm': 'smollm2'}
TEXT = {'passage_length': 16, 'reader_query_length': 16, 'target_length': 8, 'query_length': 16}
TEXT |= {'retriever_passage_length': 16}


@pytest.fixture(scope='module')
def sources(tmp_path_factory):
  """A folder of every family and a BERT, with their vocabularies."""
  made = tmp_path_factory.mktemp('sources')
  data = tiny.make_data(tmp_path_factory.mktemp('data'))
  folders.bert(vocab_size=128).save_pretrained(made / 'bert')
  shutil.copy(data.retriever_vocabulary, made / 'bert' / 'vocab.txt')
  for family in folders.DECODERS:
    decoder_folders.write(made / family, TOKENIZERS.get(family, family))
    folders.decoder(family, **SIZES).save_pretrained(made / family)
  return made


def _run(sources, family, to, **options):
  convert(to, f'reader={sources / family}', f'retriever={sources}/bert', text=TEXT, **options)
  return Opened(to)


def _flat(tree):
  return flax.traverse_util.flatten_dict(tree, sep='/')


@pytest.mark.parametrize(
  'family, scan_layers',
  [
    *(pytest.param(family, family in ('llama', 'qwen2'), id=family) for family in folders.DECODERS),
    pytest.param('gemma3', True, id='gemma3 scanned'),
  ],
)
def test_in_and_out_bit_for_bit(family, scan_layers, sources, tmp_path):
  run = _run(sources, family, tmp_path / 'run', scan_layers=scan_layers)
  model, vocabulary = run.spec.model, run.spec.tokenizer.reader_vocabulary
  config, params = huggingface.load_decoder(sources / family)
  # Its tokenizer has the last word on ids.
  ids = {name: getattr(vocabulary, name) for name in ('bos_id', 'eos_id', 'pad_id')}
  expected = type(config)(**(vars(config) | {'scan_layers': scan_layers} | ids))
  assert (model.reader_config, model.reading) == (expected, 'in_context')
  assert run.spec.text.question_format == 'Question: {question}\nAnswer:'
  found = run.params['reader']
  wanted = decoder_maps.scan(config, params) if scan_layers else params
  assert _flat(found).keys() == _flat(wanted).keys()
  for path, array in _flat(found).items():
    np.testing.assert_array_equal(array, _flat(wanted)[path], path)
  # Out again: the very bytes, read by transformers to equal logits.
  convert(tmp_path / 'out', tmp_path / 'run', to_format='huggingface')
  weights = [folder / 'model.safetensors' for folder in (sources / family, tmp_path / 'out/reader')]
  old, new = (SafetensorsFile(str(path)) for path in weights)
  assert old.tensors == new.tensors
  for name in old.tensors:
    arrays = [file.read(name) for file in (old, new)]
    if family == 'gemma3' and 'norm' in name:
      arrays = [array + np.float32(1) for array in arrays]  # As both compute with it.
    np.testing.assert_array_equal(*(array.view(np.uint32) for array in arrays), name)
  peers = [
    transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    for folder in (sources / family, tmp_path / 'out' / 'reader')
  ]
  tokens = torch.arange(3, 27)[None]
  with torch.no_grad():
    first, second = (peer(tokens).logits for peer in peers)
  assert torch.equal(first, second)
  actual = DecoderLM(model.reader_config).apply(
    {'params': found}, tokens.numpy(), np.ones_like(tokens)
  )
  np.testing.assert_allclose(actual, first, atol=1e-4, rtol=1e-4)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / 'out' / 'reader')
  text = 'Who wrote Hamlet? William\nShakespeare'
  assert theirs(text, add_special_tokens=False).input_ids == vocabulary.encode_start(text)
  again = Specification.load(tmp_path / 'run').model
  assert again == model
  back = huggingface.load_decoder(tmp_path / 'out' / 'reader')
  assert back[0] == type(config)(**(vars(config) | ids))


def test_a_scanned_run_unscanned_and_exported_from_one_file(sources, tmp_path):
  _run(sources, 'gemma3', tmp_path / 'scanned', scan_layers=True)
  convert(tmp_path / 'plain', tmp_path / 'scanned', scan_layers=False, text={})
  expected = huggingface.load_decoder(sources / 'gemma3')[1]
  converting.assert_equal(Opened(tmp_path / 'plain').params['reader'], expected)
  # One file, with its configuration and vocabulary beside it.
  file = sources / 'gemma3' / 'model.safetensors'
  convert(tmp_path / 'of_file', f'reader={file}', f'retriever={sources}/bert', text=TEXT)
  converting.assert_equal(Opened(tmp_path / 'of_file').params['reader'], expected)


def test_initial_weights(sources):
  for scan_layers in (False, True):
    params = initial_weights.from_huggingface(
      str(sources / 'qwen2'), str(sources / 'bert'), scan_layers=scan_layers
    )['reader']
    config, expected = huggingface.load_decoder(sources / 'qwen2')
    converting.assert_equal(
      params, decoder_maps.scan(config, expected) if scan_layers else expected
    )


def test_a_missing_tensor_is_named_or_initialised(sources, tmp_path):
  shutil.copytree(sources / 'llama', tmp_path / 'llama')
  path = str(tmp_path / 'llama' / 'model.safetensors')
  file, absent = SafetensorsFile(path), 'model.layers.1.mlp.up_proj.weight'
  kept = {name: info for name, info in file.tensors.items() if name != absent}
  safetensors_file.write(path, kept, [file.read(name) for name in kept])
  both = [f'reader={tmp_path}/llama', f'retriever={sources}/bert']
  with pytest.raises(ValueError, match=f'missing: {absent} of .*llama'):
    convert(tmp_path / 'run', *both, text=TEXT)
  lines = convert(tmp_path / 'run', *both, text=TEXT, allow_missing=True)
  assert any(f'missing: {absent} -> reader/decoder/layers_1/mlp/wi_1/kernel' in x for x in lines)
  found = Opened(tmp_path / 'run').params['reader']['decoder']
  assert np.std(found['layers_1']['mlp']['wi_1']['kernel']) > 0.01


def test_a_decoder_is_no_retriever(sources, tmp_path):
  with pytest.raises(ValueError, match='is a Hugging Face decoder, expected a BERT encoder'):
    convert(tmp_path / 'run', f'retriever={sources}/llama')
  with pytest.raises(ValueError, match=r'expected a reader \(T5, BART, decoder-only\)'):
    convert(tmp_path / 'run', f'reader={sources}/bert')


def test_a_vocabulary_of_another_model_is_refused(sources, tmp_path):
  shutil.copytree(sources / 'llama', tmp_path / 'llama')
  folders.decoder('llama').save_pretrained(tmp_path / 'llama')  # Of 64 tokens.
  with pytest.raises(ValueError, match='has 900 ids, the reader model only 64'):
    convert(tmp_path / 'run', f'reader={tmp_path}/llama', f'retriever={sources}/bert', text=TEXT)
  shutil.copy(sources / 'bert' / 'vocab.txt', tmp_path / 'vocab.txt')
  with pytest.raises(ValueError, match='vocab.txt is that of a reader with an encoder'):
    convert(
      tmp_path / 'run',
      f'reader={sources}/llama',
      f'retriever={sources}/bert',
      text=TEXT,
      reader_vocabulary=str(tmp_path / 'vocab.txt'),
    )
