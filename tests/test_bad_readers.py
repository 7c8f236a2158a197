"""Bad input of decoder-only readers through the commands: one line with place and remedy."""

import json
import pathlib
import shutil
import struct

import pytest

pytest.importorskip('torch')
pytest.importorskip('gguf')

import numpy as np
import safetensors.numpy

from ralm_jax import cli
from tests import decoder_folders, tiny
from tests.interop import gguf_files, huggingface_folders as folders

LENGTHS = 'query_length=32 retriever_passage_length=32 passage_length=64 reader_query_length=64'
TEXT = [*LENGTHS.split(), 'target_length=8']


@pytest.fixture(scope='module')
def world(tmp_path_factory) -> pathlib.Path:
  """`reader`, `bert`, `t5`, a run `START` with its corpus and index, and `ask.jsonl`."""
  folder = tmp_path_factory.mktemp('world')
  (folder / 'data').mkdir()
  data = tiny.make_data(folder / 'data')
  for name, model, vocabulary, as_name in (
    ('bert', folders.bert(vocab_size=256), data.retriever_vocabulary, 'vocab.txt'),
    ('t5', folders.t5(vocab_size=256), data.reader_vocabulary, 'spiece.model'),
  ):
    model.save_pretrained(folder / name)
    shutil.copy(vocabulary, folder / name / as_name)
  _write_reader(folder / 'reader')
  _write_reader(folder / 'other', family='qwen2')
  _write_reader(folder / 'short', positions=80)
  for architecture in ('llama', 'mamba'):
    metadata = {'llama.context_length': 64, 'tokenizer.ggml.tokens': ['a', 'b']}
    tensors = {'token_embd.weight': np.ones((2, 32)), 'output_norm.weight': np.ones(32)}
    tensors = {key: value.astype(np.float32) for key, value in tensors.items()}
    gguf_files.write(folder / f'{architecture}.gguf', architecture, metadata, tensors)
  rows = tiny.questions()
  for name, chosen in (('ask', rows[:3]), ('same', rows[2:8]), ('few', rows[8:10])):
    tiny.write_jsonl(folder / f'{name}.jsonl', chosen)
  tiny.write_jsonl(folder / 'shown.jsonl', rows[10:16])
  tiny.write_jsonl(folder / 'unanswered.jsonl', [{**row, 'answers': []} for row in rows[10:16]])
  lines = (folder / 'shown.jsonl').read_text().splitlines()
  (folder / 'malformed.jsonl').write_text('\n'.join([lines[0], '{"question": ', *lines[1:]]))
  for reader, run in (('reader', 'START'), ('other', 'OTHER'), ('t5', 'T5')):
    assert _convert(folder, folder / reader, folder / run) == 0
    corpus = ['--input', data.passages, '--checkpoint', folder / run]
    assert _main('corpus', *corpus, '--output', folder / f'{run}-CORPUS') == 0
  return folder


def _write_reader(folder, family='smollm2', positions=512):
  import torch
  import transformers

  path = decoder_folders.write(folder, family, size=500)
  kept = {one.name: one.read_bytes() for one in folder.iterdir() if one.name != 'config.json'}
  ids = json.loads(path.read_text())
  size = max([*ids['model']['vocab'].values(), *(one['id'] for one in ids['added_tokens'])]) + 1
  torch.manual_seed(0)
  config = transformers.LlamaConfig(
    vocab_size=size,
    hidden_size=32,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=positions,
    tie_word_embeddings=True,
  )
  transformers.LlamaForCausalLM(config).save_pretrained(folder)
  for name, content in kept.items():
    (folder / name).write_bytes(content)


def _main(*argv) -> int:
  return cli.main([str(argument) for argument in argv])


def _convert(world, reader, to, *text) -> int:
  retriever = f'retriever={world / "bert"}'
  return _main(
    *('convert', '--from', f'reader={reader}', retriever, '--to', to, '--text', *TEXT, *text)
  )


@pytest.fixture
def error(capsys):
  """What a failing command says, which is one line."""

  def run(status: int) -> str:
    shown = capsys.readouterr().err
    assert status == 1, shown
    found = [line for line in shown.splitlines() if line.startswith('ralm ')]
    assert len(found) == 1 and 'Traceback' not in shown, shown
    return found[0]

  return run


# Weights.


def _damaged(whole: pathlib.Path, how: str) -> bytes:
  raw = bytearray(whole.read_bytes())
  if how == 'type':
    at = raw.index(b'token_embd.weight') + len(b'token_embd.weight') + 4 + 16
    raw[at : at + 4] = struct.pack('<I', 99)
  elif how != 'architecture':
    raw = raw[: {'magic': 2, 'header': 18, 'metadata': 90, 'tensors': len(raw) - 8}[how]]
  return bytes(raw)


@pytest.mark.parametrize(
  'how, said',
  [
    ('magic', "is no GGUF file: it begins with b'GG'"),
    ('header', 'is cut short or damaged: it ends in its header; fetch it again'),
    ('metadata', 'metadata; fetch it again'),
    ('tensors', 'is cut short: tensor'),
    ('type', "tensor 'token_embd.weight' is of type number 99, which is not known; quantise"),
    ('architecture', "is of architecture 'mamba', expected llama"),
  ],
)
def test_gguf_files_at_fault(world, tmp_path, how, said, error):
  path = tmp_path / 'model.gguf'
  whole = world / ('mamba.gguf' if how == 'architecture' else 'llama.gguf')
  path.write_bytes(_damaged(whole, how))
  line = error(_convert(world, path, tmp_path / 'to'))
  assert str(path) in line and said in line
  assert not (tmp_path / 'to').exists()


def test_a_tensor_that_is_missing(world, tmp_path, error):
  reader = shutil.copytree(world / 'reader', tmp_path / 'reader')
  tensors = safetensors.numpy.load_file(reader / 'model.safetensors')
  name = 'model.layers.1.mlp.up_proj.weight'
  del tensors[name]
  safetensors.numpy.save_file(tensors, reader / 'model.safetensors')
  line = error(_convert(world, reader, tmp_path / 'to'))
  assert f'{name} of {reader}' in line and '--allow_missing' in line
  (reader / 'model.safetensors').unlink()
  assert 'holds neither model.safetensors' in error(_convert(world, reader, tmp_path / 'to'))
  assert not (tmp_path / 'to').exists()


@pytest.mark.parametrize(
  'name, said',
  [
    ('package:nope', 'no package nope that could hold weights is installed'),
    ('nobody/nothing', 'no weights of it in the cache of the Hugging Face hub'),
    ('nowhere.gguf', 'nowhere.gguf does not exist'),
  ],
)
def test_names_that_are_nowhere(world, tmp_path, name, said, error, monkeypatch):
  monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
  assert said in error(_convert(world, name, tmp_path / 'to'))


# Templates.


@pytest.mark.parametrize(
  'template, text, said',
  [
    ('{% for m in messages %}', '', 'does not parse'),
    ("{{ raise_exception('Only even years!') }}", '', 'messages of the roles user: Only even'),
    ('{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}', '', 'fails: RecursionError'),
    ('hello', '', 'does not show every message once'),
    (
      "{% if messages[0].role == 'system' %}{{ raise_exception('No system!') }}{% endif %}",
      'system_prompt=Be brief.',
      'No system!; use the plain prompt style (--text prompt_style=plain), or no system prompt',
    ),
  ],
)
def test_chat_templates_that_fail(world, tmp_path, template, text, said, error):
  reader = shutil.copytree(world / 'reader', tmp_path / 'reader')
  (reader / 'chat_template.jinja').write_text(template)
  texts = ['prompt_style=chat', *([text] if text else [])]
  line = error(_convert(world, reader, tmp_path / 'to', *texts))
  assert str(reader / 'tokenizer.json') in line and said in line
  assert 'prompt_style=plain' in line
  assert not (tmp_path / 'to').exists()


# What is asked of a reader.


def _eval(world, run='START', *options):
  how = ['--passages_from', 'none', '--questions', world / 'ask.jsonl']
  return _main('eval', '--checkpoint', world / run, *how, '--output', world / 'OUT', *options)


@pytest.mark.parametrize(
  'run, options, said',
  [
    ('START', '--reading fusion', "'fusion' is not what a decoder-only reader can do; choose"),
    ('T5', '--reading in_context', "'in_context' is not what a T5 reader can do; choose 'fusion'"),
    ('START', '--reading parallel --passage_order best_first', 'no two passages in one prompt'),
    ('T5', '--text prompt_style=chat', "prompt_style 'chat' is of decoder-only readers"),
    ('START', '--num_demonstrations 4', 'name a file of --demonstrations'),
    ('START', '--demonstrations few.jsonl', 'few.jsonl holds 2 questions with an answer, fewer'),
    ('START', '--demonstrations unanswered.jsonl', 'holds 0 questions with an answer'),
    ('START', '--demonstrations malformed.jsonl', 'malformed.jsonl:2: malformed JSON'),
    ('START', '--demonstrations nowhere.jsonl', 'nowhere.jsonl: no such file'),
    ('START', '--demonstrations same.jsonl', 'ask.jsonl:3: the question '),
    ('T5', '--demonstrations shown.jsonl', 'leave --demonstrations out'),
    ('START', '--max_length 500', 'lower reader_query_length (--text) or target_length'),
    ('START', '--text prompt_length=5', 'is longer than its 5 (TextConfig.prompt_length 5'),
    ('START', '--text stop_strings=["x","]', 'is neither a text nor a JSON list'),
  ],
)
def test_what_a_reader_cannot_do(world, run, options, said, error, monkeypatch):
  monkeypatch.chdir(world)
  line = error(_eval(world, run, *options.split()))
  assert said in line
  assert not (world / 'OUT' / 'metrics.json').exists()


def test_a_prompt_longer_than_the_positions(world, tmp_path, error):
  texts = ['reader_query_length=40', 'passage_length=40']
  assert _convert(world, world / 'short', tmp_path / 'SHORT', *texts) == 0
  error_line = error(_eval(world, tmp_path / 'SHORT', '--demonstrations', world / 'shown.jsonl'))
  assert '80 positions of the reader' in error_line and '--num_demonstrations' in error_line


def test_a_stop_string_that_is_never_met(world, tmp_path, capsys):
  where = ['--output', tmp_path, '--text', 'stop_strings=@@@']
  assert (
    _main(
      *('eval', '--checkpoint', world / 'START', '--passages_from', 'none'),
      *('--questions', world / 'ask.jsonl', '--batch_size', 4, *where),
    )
    == 0
  )
  assert '3 of 3 answers reached max_length without a stop string' in capsys.readouterr().err
  assert json.loads((tmp_path / 'metrics.json').read_text())['noted']['unended'] == 3


def test_a_vocabulary_of_another_model(world, tmp_path, error):
  corpus = ['--corpus', world / 'OTHER-CORPUS', '--output', tmp_path / 'INDEX']
  line = error(_main('embed', '--checkpoint', world / 'START', *corpus))
  assert 'tokenised with another reader vocabulary' in line and 'ralm corpus' in line
  named = ['--reader_vocabulary', world / 'bert']
  status = _main(
    *('convert', '--from', f'reader={world / "reader"}', f'retriever={world / "bert"}'),
    *('--to', tmp_path / 'to', *named, '--text', *TEXT),
  )
  assert "the model's is a decoder-only reader; use the model's own vocabulary" in error(status)
