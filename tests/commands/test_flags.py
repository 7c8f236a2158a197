"""Flags of every command: what they say of themselves, how they may be written."""

import argparse
import importlib
import subprocess
import sys

import pytest

import ralm_jax
from ralm_jax import cli
from ralm_jax.commands import ask, convert, flags
from ralm_jax.data.questions.formats import catalogue, kilt as kilt_formats
from ralm_jax.interop import convert as conversion, huggingface_export, recognition
from ralm_jax.models import generation, packing, readings
from ralm_jax.retrieval import index_source
from ralm_jax.retrieval.device import search

HEAVY = 'jax numpy tensorflow seqio faiss grpc pyarrow flax gin'.split()
# What users type that has a parser; evaluation has a second one for gin.
CALLS = {**{name: [name] for name in cli.COMMANDS}, 'eval by gin': ['eval', '--gin_file=x']}


class _Parsed(Exception):
  pass


@pytest.fixture
def parser_of(monkeypatch):
  """Gives the parser that a call makes, in place of what it does."""

  def stop(parser, *unused_arguments):
    raise _Parsed(parser)

  def find(argv: list[str]) -> argparse.ArgumentParser:
    module, _, function = cli.COMMANDS[argv[0]][0].partition(':')
    with monkeypatch.context() as patched:
      for name in ('parse_args', 'parse_intermixed_args'):
        patched.setattr(argparse.ArgumentParser, name, stop)
      with pytest.raises(_Parsed) as raised:
        getattr(importlib.import_module(module), function or 'main')(argv[1:], prog='ralm')
    return raised.value.args[0]

  return find


@pytest.mark.parametrize('call', CALLS)
def test_every_flag_says_what_it_is(call, parser_of):
  """And what it is where it is not given: its default, or what then happens."""
  parser = parser_of(CALLS[call])
  assert isinstance(parser, flags.Parser) and parser.description
  formatter = parser._get_formatter()
  for action in parser._actions:
    shown = formatter._expand_help(action) if action.help else ''
    assert shown.strip(), f'{action.dest} has no help'
    switch = action.nargs == 0 and not isinstance(action, argparse.BooleanOptionalAction)
    if not (action.required or switch):
      assert '(default: ' in shown and '(default: )' not in shown, f'{action.dest}: {shown}'
  assert parser.format_help()


def test_choices_are_those_of_the_library():
  """Flags name them without importing what has them."""
  assert flags.BACKENDS == index_source.BACKENDS
  assert flags.DEVICE_DTYPES == search.DTYPES
  assert flags.RAG_DECODINGS == generation.RAG_DECODINGS
  assert flags.RECORD_FORMATS == tuple(catalogue.FORMATS)
  assert flags.KILT_FORMATS == tuple(kilt_formats.EXPECTED)
  assert convert.FORMATS == conversion.FORMATS
  assert convert.LAYER_NORMS == conversion.LAYER_NORMS
  assert flags.READINGS == tuple(readings.READINGS)
  assert flags.PASSAGE_ORDERS == packing.PASSAGE_ORDERS
  assert convert.SIDES == recognition.SIDES
  assert convert.MAX_SHARD_BYTES == huggingface_export.MAX_SHARD_BYTES


def test_formats_that_a_program_registers(monkeypatch, capsys):
  parser = flags.Parser('ralm', '')
  flags.shared(parser, 'record_format')
  with pytest.raises(SystemExit):
    parser.parse_args(['--record_format', 'ours'])
  assert "record_format is 'ours'; it must be one of qa, nq_open" in capsys.readouterr().err
  monkeypatch.setitem(catalogue.FORMATS, 'ours', catalogue.FORMATS['qa'])
  assert parser.parse_args(['--record_format', 'ours']).record_format == 'ours'


def test_help_imports_nothing_heavy():
  """Of each command and of `ralm` itself: their help is there at once."""
  code = (
    'import contextlib, io, sys\n'
    'from ralm_jax import cli\n'
    f'for argv in ([], *{list(CALLS.values())!r}):\n'
    '  for flag in ("--help", "--version")[: 1 if argv else 2]:\n'
    '    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n'
    '      cli.main([*argv, flag])\n'
    f'    found = set({HEAVY!r}) & set(sys.modules)\n'
    '    assert not found, (argv, found)\n'
  )
  subprocess.run([sys.executable, '-c', code], check=True)


@pytest.mark.parametrize('module', ['ralm_jax', 'ralm_jax.train', 'ralm_jax.embed'])
def test_modules_run_as_commands(module):
  argv = ['train'] if module == 'ralm_jax' else []
  shown = subprocess.run(
    [sys.executable, '-m', module, *argv, '--help'], capture_output=True, text=True, check=True
  )
  command = module.removeprefix('ralm_jax').lstrip('.') or 'train'
  assert shown.stdout.startswith(f'usage: ralm {command} ')


def test_version(capsys):
  with pytest.raises(SystemExit) as raised:
    cli.main(['--version'])
  assert raised.value.code == 0
  assert capsys.readouterr().out == f'ralm {ralm_jax.__version__}\n'


@pytest.mark.parametrize(
  'argv, hint',
  [
    (['evla'], 'unknown command evla. Did you mean eval?'),
    (['--versoin'], 'Did you mean --version?'),
    (['ask', '--chekpoint', 'c', 'why'], 'unknown flag --chekpoint. Did you mean --checkpoint?'),
    (['eval', '--n-pasages=3'], 'Did you mean --n_passages?'),
    (['serve', '--no-verify-checksum'], ''),
    (['train', '--gin-fil', 'x'], ''),
    (['corpus', '--nothing_of_the_kind'], 'unknown flag --nothing_of_the_kind.\n'),
  ],
)
def test_the_nearest_name(argv, hint, capsys):
  with pytest.raises(SystemExit) as raised:
    cli.main([*argv, *(['--help'] if not hint else [])])
  shown = capsys.readouterr()
  assert raised.value.code == (2 if hint else 0)
  assert hint in shown.err


@pytest.mark.parametrize(
  'argv, expected',
  [
    (['--n-passages', '3'], {'n_passages': 3}),
    (['--n_passages=3'], {'n_passages': 3}),
    (['--n-pass=3'], {'n_passages': 3}),
    (['--no_verify'], {'verify': False}),
    (['--no-verify'], {'verify': False}),
    (['--text', 'a-b=c-d'], {'text': ['a-b=c-d']}),
    (['--text=--n-passages 3'], {'text': ['--n-passages 3']}),
    (['--length-penalty', '-3', '--', '--nprobe'], {'length_penalty': -3, 'words': ['--nprobe']}),
    (['--what is this'], {'words': ['--what is this']}),
  ],
)
def test_dashes_are_underscores(argv, expected):
  """In names of flags, wholly written or not; never in what is given to them."""
  parser = flags.Parser('ralm', '')
  flags.shared(parser, 'n_passages', 'text', 'nprobe', 'length_penalty')
  parser.add_argument('--verify', action=argparse.BooleanOptionalAction, default=True)
  parser.add_argument('words', nargs='*')
  found = vars(parser.parse_args(argv))
  assert {name: found[name] for name in expected} == expected


def test_the_beginning_of_two_names_is_neither(capsys):
  parser = flags.Parser('ralm', '')
  flags.shared(parser, 'n_passages', 'nprobe', 'nlist')
  with pytest.raises(SystemExit):
    parser.parse_args(['--n', '3'])
  assert 'ambiguous option: --n could match' in capsys.readouterr().err


def test_commands_take_dashes_too(capsys):
  with pytest.raises(SystemExit):
    cli.main(['warm-start', '--help'])
  assert capsys.readouterr().out.startswith('usage: ralm warm_start')


@pytest.mark.parametrize(
  'argv, questions',
  [
    (['who', 'wrote', 'hamlet', '--checkpoint', 'c'], ['who wrote hamlet']),
    (['--checkpoint', 'c', 'who', 'wrote', 'hamlet'], ['who wrote hamlet']),
    (['who', '--checkpoint', 'c', 'wrote', 'hamlet'], ['who wrote hamlet']),
    (['who wrote hamlet', '--checkpoint', 'c'], ['who wrote hamlet']),
    (['--checkpoint', 'c', 'who wrote hamlet', 'why?'], ['who wrote hamlet', 'why?']),
    (['why?', '--checkpoint', 'c'], ['why?']),
    ([' ', '--checkpoint', 'c'], [' ']),
    (['--checkpoint', 'c'], 'standard input'),
  ],
)
def test_questions_of_a_command_line(argv, questions, monkeypatch):
  asked = []
  monkeypatch.setattr('ralm_jax.runs.asking.ask', lambda question, **_: asked.append(question))
  monkeypatch.setattr(ask, 'format_answer', str)
  monkeypatch.setattr(sys, 'stdin', 'standard input')
  monkeypatch.setattr(
    ask, 'ask_lines', lambda lines, **_: asked.extend([lines] if lines is sys.stdin else lines)
  )
  ask.main(argv, prog='ralm ask')
  assert asked == (questions if isinstance(questions, list) else [questions])


@pytest.mark.parametrize(
  'argv, error',
  [
    (['eval', '--batch_size', '-1'], '--batch_size: must be at least 1, not -1'),
    (['eval', '--n_passages', '0'], '--n_passages: must be at least 1, not 0'),
    (['eval', '--temperature', 'nan'], '--temperature: must be a number, above 0, not nan'),
    (['ask', '--top_p', '1.5'], '--top_p: must be from 0 to 1, not 1.5'),
    (['ask', '--seed', '-3'], '--seed: must be from 0 to 4294967295, not -3'),
    (['embed', '--nlist', '2.5'], '--nlist: must be a whole number, at least 1, not 2.5'),
    (['refresh', '--every_steps', '0'], '--every_steps: must be at least 1, not 0'),
    (['corpus', '--max_words', 'x'], '--max_words: must be a whole number, at least 1, not x'),
    (['train', '--seeds', '0'], '--seeds: must be at least 1, not 0'),
    (['serve', '--threads', '-1'], '--threads: must be a whole number, at least 1, not -1'),
    (['serve', '--rerank', '-1'], '--rerank: must be a whole number, at least 0, not -1'),
  ],
)
def test_numbers_that_cannot_be_meant(argv, error, capsys):
  with pytest.raises(SystemExit) as raised:
    cli.main(argv)
  assert raised.value.code == 2
  assert error in capsys.readouterr().err
