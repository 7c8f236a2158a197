"""Question files of ours, and the manifest that says what they are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
import dataclasses
import hashlib
import json
import os
from typing import Any

from ralm_jax.data.questions.reading import Question
from ralm_jax.files import checksums, progress as progress_lib

MANIFEST = 'manifest.json'
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Written:
  """A file that was written."""

  name: str
  records: int
  sha256: str
  how: str = ''  # How its records were chosen; '' where they are all of the source's.


def row(question: Question) -> dict[str, Any]:
  """A question as a line of a 'qa' file, which reads as the same question.

  An id that was only made of file and line is left out: it would name a place
  in a file that this is not.
  """
  place = f'{os.path.basename(question.path)}:{question.line}'
  made = question.id == place or question.id.startswith(f'{place}#')
  fields = {
    'id': None if made else question.id,
    'question': question.question,
    'answers': list(question.answers),
    'target': question.target,
    'gold_passage_ids': list(question.gold_passage_ids) or None,
    'exclude_passage_ids': list(question.exclude_passage_ids) or None,
    'date': question.date,
    'options': list(question.options) or None,
    'passages': [
      {**({'id': passage.id} if passage.id else {}), 'title': passage.title, 'text': passage.text}
      for passage in question.passages
    ]
    or None,
    'provenance': [list(pages) for pages in question.provenance] or None,
    'group': question.group or None,
    'patterns': question.patterns or None,
    'metadata': dict(question.metadata) or None,
    'metrics': question.metrics or None,
  }
  return {name: value for name, value in fields.items() if value is not None}


def write_rows(
  folder: str, name: str, rows: Iterable[dict[str, Any]], *, how: str = '', progress: bool = True
) -> Written:
  """Writes one JSON object a line; ValueError where there are none."""
  path = os.path.join(folder, f'{name}.jsonl')
  os.makedirs(os.path.dirname(path), exist_ok=True)
  digest = hashlib.sha256()
  records = 0
  with (
    open(path, 'xb') as file,
    progress_lib.bar(desc=f'writing {name}', unit=' lines', show=progress) as bar,
  ):
    for one in rows:
      line = json.dumps(one, ensure_ascii=False).encode('utf-8') + b'\n'
      file.write(line)
      digest.update(line)
      records += 1
      bar.update()
  if not records:
    raise ValueError(f'{name}: no record is left to write')
  return Written(f'{name}.jsonl', records, digest.hexdigest(), how)


def write_manifest(folder: str, manifest: dict[str, Any]) -> None:
  """Writes what the folder is made of."""
  with open(os.path.join(folder, MANIFEST), 'x', encoding='utf-8') as file:
    json.dump(manifest, file, indent=2, ensure_ascii=False)
    file.write('\n')


def read_manifest(folder: str) -> dict[str, Any] | None:
  """What an earlier output is made of; None without a manifest of ours."""
  try:
    with open(os.path.join(folder, MANIFEST), encoding='utf-8') as file:
      manifest = json.load(file)
  except (FileNotFoundError, NotADirectoryError, ValueError):
    return None
  ours = (
    isinstance(manifest, dict)
    and manifest.get('format') == FORMAT
    and {'benchmark', 'files'} <= set(manifest)
  )
  return manifest if ours else None


def difference(before: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
  """What differs, in words; files may have moved."""
  for name in ('benchmark', 'variant', 'version'):
    if before.get(name) != manifest[name]:
      return f'{name} {before.get(name)!r} was, {manifest[name]!r} is'
  for name, value in manifest['options'].items():
    if (was := before['options'].get(name)) != value:
      return f'option {name} {was!r} was, {value!r} is'
  contents = [
    {(source['role'], source['sha256']): source['path'] for source in m['sources']}
    for m in (before, manifest)
  ]
  for one, other, what in (
    (contents[1], contents[0], 'was not among the files'),
    (contents[0], contents[1], 'is no longer among the files'),
  ):
    for key in one:
      if key not in other:
        return f'{one[key]} {what}'
  return ''


def damaged(folder: str, manifest: dict[str, Any]) -> str | None:
  """Why an output is not what its manifest says; None where it is."""
  for file in manifest['files']:
    path = os.path.join(folder, file['name'])
    try:
      found = checksums.sha256_of(path)
    except FileNotFoundError:
      return f'{path} is missing'
    if found != file['sha256']:
      return f'{path} was changed since it was written'
  return None
