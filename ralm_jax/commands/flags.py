"""The parser that every command has, and the flags that several of them share.

Nothing here imports what a command works with: `ralm COMMAND --help` is instant.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
import difflib
import os
import sys
from typing import Any

from ralm_jax.data.option_values import DEMONSTRATION_CHOICES, PAGE_FIELDS, PASSAGE_ORDERS
from ralm_jax.files import user_cache
from ralm_jax.losses.option_types import Amount, Count, Number, Positive, Seed, Share, parsed

# Numbers that a flag can mean, checked as it is parsed.
COUNT, NUMBER, SEED = map(parsed, (Count, Number, Seed))
AMOUNT, POSITIVE, SHARE, REAL = map(parsed, (Amount, Positive, Share, float))

# Tables of the library, whose modules take long to import; a test compares them.
BACKENDS = ('process', 'device')
DEVICE_DTYPES = ('bfloat16', 'float16', 'float32')
RAG_DECODINGS = ('thorough', 'fast')
READINGS = ('fusion', 'rag_sequence', 'rag_token', 'in_context', 'parallel')
KILT_FORMATS = tuple(
  f'kilt_{name}' for name in 'fever aida wned cweb trex zsre nq hotpotqa triviaqa eli5 wow'.split()
)
RECORD_FORMATS = (
  *('qa', 'nq_open', 'triviaqa', 'web_questions', 'curated_trec'),
  *('fever', 'fever_2way', 'fever_symmetric', *KILT_FORMATS),
  *('mmlu', 'ms_marco', 'jeopardy', 'templama', 'dated'),
)


def record_format(name: str) -> str:
  """A layout of questions that there is."""
  if name not in RECORD_FORMATS:
    from ralm_jax.data.questions.formats import catalogue

    try:
      catalogue.find(name)  # where a program has registered more
    except ValueError as error:
      raise argparse.ArgumentTypeError(str(error)) from error
  return name


def _early_stopping(text: str) -> bool | str:
  return {'true': True, 'false': False}.get(text, text)


def _flag(text: str, kind: Any = None, default: Any = None, **more: Any) -> dict[str, Any]:
  return {'help': text, 'type': kind, 'default': default, **more}


def _choice(values: tuple[str, ...], text: str) -> dict[str, Any]:
  """The first one is the default."""
  return _flag(text, default=values[0], choices=values)


def _switch(text: str) -> dict[str, Any]:
  return {'help': text, 'action': 'store_true'}


# What argparse is told of each; `shared` adds those that a command names.
_INDEX = {
  'index': _flag('index folder, or give --retrieval_address (default: none)', metavar='INDEX'),
  'retrieval_address': _flag(
    'of a running retrieval process, in place of --index (default: none)', metavar='HOST:PORT'
  ),
  'corpus': _flag("where the index's corpus is now (default: where it says)", metavar='CORPUS'),
  'retry_for_s': _flag('how long to wait for an absent process', AMOUNT, 30.0, metavar='SECONDS'),
}
_SEARCH = {
  **_INDEX,
  'n_passages': _flag('passages retrieved for a question (default: as in training)', COUNT),
  'backend': _choice(
    BACKENDS, "what searches: a process with the index (FAISS), or this program's devices, exactly"
  ),
  'device_dtype': _choice(
    DEVICE_DTYPES, 'of the embeddings on the devices; float16 is what is stored'
  ),
}
_BUILD = {
  'index_type': _flag(
    'flat, pq, ivf_flat, ivf_pq, or a FAISS factory string such as OPQ64_256,PQ64np', default='flat'
  ),
  'bytes_per_vector': _flag('of pq and ivf_pq', COUNT, 64),
  'nlist': _flag(
    'inverted lists of ivf_* (default: about 4 times the root of the passages)', COUNT
  ),
  'nprobe': _flag(
    'inverted lists that a query visits (default: twice the root of --nlist, at least 16)', COUNT
  ),
  'opq': _switch('rotate before quantising'),
  'rerank': _flag(
    'candidates scored exactly; 0 for none (default: 4 times the passages asked for, at least 100)',
    NUMBER,
  ),
}
_DECODING = {
  'num_beams': _flag('sequences that a beam search keeps; 1 is no search', COUNT, 1),
  'sample': _switch('draw tokens in place of the likeliest'),
  'temperature': _flag('divides the logits before tokens are drawn', POSITIVE, 1.0),
  'top_k': _flag('draw among so many; 0 for all', NUMBER, 0),
  'top_p': _flag('draw among the likeliest with so much probability together', SHARE, 1.0),
  'seed': _flag('of the draws', SEED, 0),
  'length_penalty': _flag('above 0 favours long answers of a beam search', REAL, 1.0),
  'early_stopping': _flag(
    'when a beam search ends, as in Hugging Face (default: false)',
    _early_stopping,
    False,
    choices=(True, False, 'never'),
    metavar='{true,false,never}',
  ),
  'min_length': _flag('tokens of an answer at least', NUMBER, 0),
  'max_length': _flag('tokens of an answer at most (default: as in training)', COUNT),
  'num_return': _flag('answers of each question', COUNT, 1),
  'rag_decoding': _choice(RAG_DECODINGS, 'of RAG-Sequence'),
  'candidate_chunk': _flag(
    'answers scored at a time by thorough decoding (default: as many as there are beams)', COUNT
  ),
  'decoder_prefix': _flag(
    'begins every answer; {question} is the question (default: nothing)', None, '', metavar='TEXT'
  ),
  'decoder_prefix_length': _flag('tokens that a prefix has at most', COUNT, 64),
  'prefill_chunk': _flag('tokens of a prompt or prefix computed at a time', COUNT, 128),
}
_READING = {
  'reading': _flag('how the reader reads (default: as the checkpoint says)', choices=READINGS),
  'passage_order': _flag(
    'of passages in the prompt of a decoder-only reader (default: as the checkpoint says)',
    choices=PASSAGE_ORDERS,
  ),
  'demonstrations': _flag(
    'answered questions, of which a decoder-only reader is shown some before the one it is asked '
    '(default: none)',
    nargs='+',
    metavar='FILE',
  ),
  'demonstrations_format': _flag(
    'layout of these files (default: that of the questions)', record_format, metavar='FORMAT'
  ),
  'num_demonstrations': _flag('how many (default: 4)', COUNT),
  'demonstration_choice': _choice(
    DEMONSTRATION_CHOICES, 'the same for all, by hash; or the nearest by the retriever'
  ),
  'demonstrations_seed': _flag('of the choice by hash', SEED, 0),
  'demonstration_passages': _flag(
    "passages that each is shown with: its record's, its gold one in the corpus, or what is "
    'retrieved for it',
    NUMBER,
    1,
  ),
  'passage_cache_mib': _flag(
    'MiB of passages kept as they have been read, with --reading parallel (default: none)', COUNT
  ),
  'passage_cache': _flag('a folder that keeps them (default: memory)', metavar='DIR'),
}
_OTHERS = {
  'checkpoint': _flag('MODEL_DIR (its newest), or a checkpoint_STEP in it', metavar='CKPT'),
  'questions': _flag(
    'jsonl of {question, answers, id?, gold_passage_id?}, or what --record_format says; '
    'globs allowed',
    required=True,
    nargs='+',
    metavar='FILE',
  ),
  'record_format': _flag(
    'layout of the questions: qa is our own, the others are those in which benchmarks are '
    f'published: {", ".join(RECORD_FORMATS[1:])}',
    record_format,
    'qa',
    metavar='FORMAT',
  ),
  'on_error': _choice(
    ('raise', 'skip'), 'what to do about a malformed record: stop, or leave it out and count it'
  ),
  'shots_seed': _flag('of the choice of --shots', SEED, 0),
  'text': _flag(
    "fields of TextConfig, such as n_passages=40 and question_format='{question}', in which \\n is "
    'a newline (default: as in the checkpoint)',
    default=[],
    nargs='+',
    action='extend',
    metavar='FIELD=VALUE',
  ),
  'reader_vocabulary': _flag(
    "the reader's spiece.model, tokenizer.json, tokenizer.model, vocab.json beside merges.txt, or "
    ".gguf; a model's folder, or its name as --from of ralm convert has it",
    metavar='NAME',
  ),
  'retriever_vocabulary': _flag(
    "the retriever's vocab.txt, tokenizer.json or SentencePiece model; a folder or a name",
    metavar='NAME',
  ),
  'batch_size': _flag('encoded at a time', COUNT),
  'page_field': _choice(
    PAGE_FIELDS,
    "where passages name the pages of KILT's provenance; auto: their document (or wikipedia_id) "
    'where they have one, else their id',
  ),
  'page_separators': _flag(
    "characters of which the first ends the page's id within a passage's: with _ the passage 290_3 "
    'is of page 290 (default: the whole id is the page)',
    default='',
    metavar='CHARACTERS',
  ),
}
_SHARED = {**_SEARCH, **_BUILD, **_READING, **_DECODING, **_OTHERS}
INDEX, SEARCH, BUILD = map(tuple, (_INDEX, _SEARCH, _BUILD))
READING, DECODING = map(tuple, (_READING, _DECODING))


def shared(
  to: argparse._ActionsContainer, *names: str, also: str | None = None, **changes: Any
) -> None:
  """Adds flags that several commands have; `changes` are what this one says differently.

  `also` is another name of the one flag.
  """
  for name in names:
    aliases = [f'--{also}'] if also else []
    to.add_argument(f'--{name}', *aliases, **{**_SHARED[name], **changes})


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
  """Shows every default but those that the help text tells, or that are none."""

  def _get_help_string(self, action: argparse.Action) -> str:
    text = action.help or ''
    told = '(default' in text or action.required
    if told or any(action.default is none for none in (None, False, argparse.SUPPRESS)):
      return text
    return f'{text} (default: %(default)s)'


class Parser(argparse.ArgumentParser):
  """Takes - for _ in names of flags, and names the nearest to a misspelt one.

  As argparse does, it takes the beginning of a name for the whole, where only one name begins so.
  A command that `compiles` keeps its programs for the next one.
  """

  def __init__(
    self, prog: str | None, description: str | None, *, compiles: bool = False, **options: Any
  ):
    super().__init__(prog=prog, description=description, formatter_class=_HelpFormatter, **options)
    if compiles:
      text = (
        'folder of compiled programs, which later commands start with; off for none (default: '
        "the user's cache, or JAX_COMPILATION_CACHE_DIR)"
      )
      self.add_argument('--compilation_cache', metavar='DIR', help=text)

  def parse_known_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
    argv = list(sys.argv[1:] if args is None else args)
    end = argv.index('--') if '--' in argv else len(argv)
    argv = [*map(self._spelt, argv[:end]), *argv[end:]]
    found, rest = super().parse_known_args(argv, namespace)
    for action in self._actions:
      if action.option_strings and action.metavar != 'TEXT' and hasattr(found, action.dest):
        setattr(found, action.dest, _from_home(getattr(found, action.dest)))
    if hasattr(found, 'compilation_cache'):
      user_cache.keep_compiled_programs(found.compilation_cache)
    return found, rest

  def _spelt(self, argument: str) -> str:
    """A flag as it was defined; anything else as it is."""
    name, equals, value = argument.partition('=')
    # As for argparse, what holds a space is no flag.
    if not name.startswith('--') or ' ' in name:
      return argument
    flags = {_underscored(flag): flag for flag in self._option_string_actions if flag != '-h'}
    wanted = _underscored(name)
    same = [flags[wanted]] if wanted in flags else []
    found = same or [flag for known, flag in flags.items() if known.startswith(wanted)]
    if not found:
      self.error(f'unknown flag {name}.{did_you_mean(wanted, flags)}')
    return f'{found[0]}{equals}{value}' if len(found) == 1 else argument


def _from_home(value: Any) -> Any:
  """A path that a shell leaves as it is in `--flag=~/path`."""
  if isinstance(value, list):
    return list(map(_from_home, value))
  return os.path.expanduser(value) if isinstance(value, str) and value[:2] == '~/' else value


def _underscored(flag: str) -> str:
  return '--' + flag[2:].replace('-', '_')


def did_you_mean(name: str, known: Iterable[str]) -> str:
  """A question with the nearest of the known names; '' where none is near."""
  near = difflib.get_close_matches(name, list(known), n=1)
  return f' Did you mean {near[0]}?' if near else ''


def pick(arguments: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
  """Values of some flags, by name."""
  return {name: getattr(arguments, name) for name in names}
