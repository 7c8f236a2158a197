"""Folders in which the commands of the manual find the files they name."""

from __future__ import annotations

import pathlib
import shutil
import tarfile

from ralm_jax import cli
from tests import tiny

# A model of the papers' sizes is parsed, not run.
_LARGE = ('models/base', 'models/large', 'models/xl', 'models/xxl', 'bart_', 'recipes/atlas',
          'recipes/lm_adapt', 'recipes/few_shot_', 'recipes/mmlu_', 'recipes/rag_',
          'recipes/templama', 'recipes/qed_base')  # fmt: skip
# Enough to see that a command does what it says.
SHORT = {
  'train': ['TRAIN_STEPS=2', 'BATCH_SIZE=4', 'WARMUP_STEPS=1', 'CHECKPOINT_PERIOD=2',
            'PASSAGE_LENGTH=48', 'RETRIEVER_PASSAGE_LENGTH=48', 'N_PASSAGES=2'],
  'warm_start': ['WARM_START_STEPS=2', 'WARM_START_BATCH_SIZE=8'],
}  # fmt: skip


def shortened(words: list[str], gin_files: list[str]) -> list[str]:
  """The arguments of `ralm`, with fewer steps, or parsed alone."""
  # The tiny retriever has 64 positions.
  words = ['query_length=64' if word == 'query_length=512' else word for word in words]
  if words[0] not in SHORT or not gin_files:
    return words
  if words[0] == 'train' and any(part in file for file in gin_files for part in _LARGE):
    if '--seeds' in words:
      at = words.index('--seeds')
      words = words[:at] + words[at + 2 :]
    return [*words, '--dry_run']
  return words + [f'--gin.{binding}' for binding in SHORT[words[0]]]


def files(world: pathlib.Path) -> None:
  """Passages, vocabularies and questions of a user's own."""
  data = tiny.trained().data
  (world / 'passages').mkdir()
  shutil.copy(data.passages, world / 'passages' / 'own.jsonl')
  shutil.copy(data.reader_vocabulary, world / 'spiece.model')
  shutil.copy(data.retriever_vocabulary, world / 'vocab.txt')
  rows = tiny.questions()
  for name, part in (('train', rows[:20]), ('dev', rows[20:26]), ('nq_test', rows[26:32])):
    tiny.write_jsonl(world / f'{name}.jsonl', part)
  for name in ('nq_train', 'test'):
    shutil.copy(world / 'train.jsonl', world / f'{name}.jsonl')
  (world / 'questions.txt').write_text('what is the colour of Almar?\n')


def trained(world: pathlib.Path) -> None:
  """Beside these a run, its corpus and its index, all of the world's own."""
  files(world)
  shutil.copytree(tiny.trained().run, world / 'RUN')
  vocabularies = ['--reader_vocabulary', 'spiece.model', '--retriever_vocabulary', 'vocab.txt']
  for argv in (
    ['corpus', '--input', 'passages/*.jsonl', '--output', 'CORPUS', *vocabularies],
    ['embed', '--checkpoint', 'RUN', '--corpus', 'CORPUS', '--output', 'INDEX'],
  ):
    assert cli.main(argv) == 0
  shutil.copytree(world / 'RUN', world / 'START')


def jobs(world: pathlib.Path) -> None:
  """And a gin file of an evaluation job."""
  trained(world)
  (world / 'runs').mkdir()
  shutil.copytree(world / 'RUN', world / 'runs' / 'one')
  (world / 'runs' / 'one' / 'checkpoint_4').rename(world / 'runs' / 'one' / 'checkpoint_400')
  (world / 'my_evaluation.gin').write_text(
    'from __gin__ import dynamic_registration\n'
    'from ralm_jax import jobs\n'
    "include 'gin_configs/runs/evaluation.gin'\n"
    'TASKS = [@own/jobs.Task()]\n'
    "own/jobs.Task:\n  name = 'own'\n  questions = 'dev.jsonl'\n"
  )
  prediction = {'id': 'q1', 'query': 'q', 'prediction': 'red', 'answers': ['red'], 'passages': []}
  (world / 'KILT').mkdir()
  tiny.write_jsonl(world / 'KILT' / 'predictions.jsonl', [prediction])


def swapped(world: pathlib.Path) -> None:
  """And two years' indexes."""
  trained(world)
  for year in (2014, 2024):
    shutil.copytree(world / 'INDEX', world / f'index_{year}')
    (world / f'index_{year}' / 'INDEX_ID').unlink(missing_ok=True)


def published(world: pathlib.Path) -> None:
  """Files as benchmarks publish them."""
  trained(world)
  downloads = world / 'downloads'
  downloads.mkdir()
  for split, count in (('train', 200), ('dev', 20)):
    tiny.write_jsonl(
      downloads / f'NQ-open.{split}.jsonl',
      [{'question': f'{split} {i}?', 'answer': ['red']} for i in range(count)],
    )
  (world / 'MMLU' / 'test').mkdir(parents=True)
  (world / 'MMLU' / 'test' / 'anatomy_test.csv').write_text('Which?,a,b,c,d,B\nWho?,e,f,g,h,A\n')
  from tests.preparation import test_benchmarks

  with tarfile.open(world / 'data.tar', 'w') as archive:
    archive.add(test_benchmarks._mmlu(world / 'data'), 'data')
  (world / 'kilt').mkdir()
  row = {'id': '1', 'input': 'Almar [SEP] colour', 'output': [{'answer': 'red'}]}
  for split in ('train', 'dev'):
    tiny.write_jsonl(world / 'kilt' / f'structured_zeroshot-{split}-kilt.jsonl', [row])
