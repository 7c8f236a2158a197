"""What may import what, see the rooms in docs/architecture.md."""

import ast
import graphlib
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
HEAVY = ('tensorflow', 'seqio', 'faiss', 'grpc', 'pyarrow', 'gin')
# A machine with jax, flax and optax alone runs a train step with these.
PURE = [
  *(f'ralm_jax/{folder}' for folder in ('models', 'losses', 'decoding')),
  'ralm_jax/training/train_step.py',
  'ralm_jax/training/train_state.py',
  'ralm_jax/training/partitioning.py',
  'ralm_jax/training/optimizers.py',
  'ralm_jax/training/schedules.py',
]
# The rooms, from the roof down: a file imports from its own and lower ones.
ROOMS = [
  'ralm_jax/cli.py',
  'ralm_jax/quickstart',
  'ralm_jax/commands',
  'ralm_jax/jobs',
  'ralm_jax/runs',
  'ralm_jax/evaluation',
  'ralm_jax/interop',
  'ralm_jax/retrieval',
  'ralm_jax/training',
  'ralm_jax/checkpoints',
  'ralm_jax/preparation',
  'tasks',
  'ralm_jax/data',
  'ralm_jax/models',
  'ralm_jax/decoding',
  'ralm_jax/losses',
  'ralm_jax/files',
  'retrieval_service',
]
# What `python -m` and gin files name.
FACES = ['ralm_jax/__init__.py', 'ralm_jax/__main__.py'] + [
  f'ralm_jax/{name}.py' for name in ('train', 'eval', 'infer', 'embed')
]
# Modules besides the pipeline's that need TensorFlow; the others start fast.
TENSORFLOW = ('ralm_jax/data/pipeline.py', 'ralm_jax/data/features.py', 'tasks/')


def _modules(*folders: str) -> list[str]:
  files = []
  for folder in folders:
    path = ROOT / folder
    files += [path] if path.is_file() else sorted(path.rglob('*.py'))
  assert files
  return [str(file.relative_to(ROOT)) for file in files]


def _imports(file: str, lazy: bool = True) -> set[str]:
  """Dotted names that a file imports; without those inside functions."""
  tree = ast.parse((ROOT / file).read_text())
  skipped = set()
  if not lazy:
    for node in ast.walk(tree):
      if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        skipped.update(map(id, ast.walk(node)))
  names = set()
  for node in ast.walk(tree):
    if id(node) in skipped:
      continue
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f'{file} imports relatively'
      names |= {f'{node.module}.{alias.name}' for alias in node.names}
  return names


def _tops(names: set[str]) -> set[str]:
  return {name.split('.')[0] for name in names}


@pytest.mark.parametrize('file', _modules(*PURE))
def test_the_core_names_nothing_heavy(file):
  assert not _tops(_imports(file)) & set(HEAVY)


def test_the_core_loads_nothing_heavy():
  """Through whatever it imports, too."""
  modules = [
    file.removesuffix('.py').removesuffix('/__init__').replace('/', '.') for file in _modules(*PURE)
  ]
  code = (
    f'import sys, importlib\n'
    f'for name in {modules!r}: importlib.import_module(name)\n'
    f'sys.exit(" ".join({set(HEAVY)!r} & set(sys.modules)) or 0)'
  )
  subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)


def test_the_retrieval_process_is_apart():
  for file in _modules('retrieval_service'):
    assert not _tops(_imports(file)) & {'jax', 'flax', 'ralm_jax', 'tensorflow', 'tasks'}, file
  code = (
    'import sys, retrieval_service.server, retrieval_service.servicer\n'
    'import retrieval_service.client, retrieval_service.local\n'
    'sys.exit(" ".join({"jax", "flax", "ralm_jax", "tensorflow"} & '
    'set(sys.modules)) or 0)'
  )
  subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)


def test_the_client_needs_no_faiss():
  code = 'import sys, retrieval_service.client\nsys.exit("faiss" in sys.modules)'
  subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)


def test_tensorflow_and_seqio_live_in_the_pipeline():
  for file in _modules('ralm_jax', 'tasks'):
    if file.startswith(TENSORFLOW):
      continue
    assert not _tops(_imports(file)) & {'tensorflow', 'seqio'}, file


def test_gin_is_for_entry_points():
  for file in _modules('ralm_jax', 'tasks', 'retrieval_service'):
    if file.startswith(('ralm_jax/commands/', 'ralm_jax/runs/')):
      continue
    assert 'gin' not in _tops(_imports(file)), file


def test_commands_start_without_tensorflow():
  code = (
    'import sys\n'
    'from ralm_jax.commands import ask, evaluate, embed, edits, corpus, serve\n'
    'sys.exit("tensorflow" in sys.modules or "seqio" in sys.modules)'
  )
  subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)


def _imported_files() -> dict[str, set[str]]:
  """The project's files, and which of them each imports, lazily or not."""
  files = _modules('ralm_jax', 'tasks', 'retrieval_service')
  by_name = {
    re.sub('^tasks', 'ralm_jax.tasks', file.removesuffix('.py').removesuffix('/__init__')).replace(
      '/', '.'
    ): file
    for file in files
  }
  graph = {}
  for file in files:
    found = {by_name.get(n, by_name.get(n.rpartition('.')[0])) for n in _imports(file)}
    graph[file] = found - {None, file}
  return graph


def _room(file: str) -> int:
  for level, room in enumerate(ROOMS):
    if file == room or file.startswith(f'{room}/'):
      return level
  raise AssertionError(f'{file} is in no room')


def test_imports_go_downwards():
  graph = _imported_files()
  upwards = [
    f'{file} imports {other}'
    for file, others in graph.items()
    if file not in FACES
    for other in others
    if other in FACES or _room(other) < _room(file)
  ]
  assert not upwards, '\n'.join(upwards)


def test_no_circles():
  """Not between two files either, lazily imported or not."""
  graph = _imported_files()
  try:
    graphlib.TopologicalSorter(graph).prepare()
  except graphlib.CycleError as error:
    pytest.fail(' -> '.join(error.args[1]))


def test_few_modules_lie_loose():
  loose = {str(path.relative_to(ROOT)) for path in (ROOT / 'ralm_jax').glob('*.py')}
  assert loose == {*FACES, 'ralm_jax/cli.py'}
  for face in FACES[2:]:
    assert len((ROOT / face).read_text().splitlines()) <= 10, face
