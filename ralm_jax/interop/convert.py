"""Released weights to a run of ours, or ours to Hugging Face folders.

Tensors are streamed: memory is needed for the largest one and little more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from ralm_jax.checkpoints.specification import Specification
from ralm_jax.files import checksums, named_source, new_folder
from ralm_jax.interop import composing, conversion_report, conversion_writers, targets, tensor_maps
from ralm_jax.interop.composing import Gathered
from ralm_jax.interop.huggingface_export import MAX_SHARD_BYTES

FORMATS = ('run', 'huggingface')
LAYER_NORMS = ('standard', 'atlas')


@dataclasses.dataclass(frozen=True)
class Overrides:
  """What is said of the model beside the checkpoints; None leaves what they say."""

  reader_vocabulary: str | None = None
  retriever_vocabulary: str | None = None
  scan_layers: bool | None = None  # One compiled layer for each stack.
  # 'standard' or 'atlas' (the released code's) for the retriever; None is 'atlas' for Atlas
  # checkpoints and as in the source for others.
  layer_norm: str | None = None
  dtype: str | None = None  # Of computation; parameters are float32.
  reading: str | None = None
  text: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  retriever_heads: int | None = None  # Of an Atlas retriever whose heads are not of size 64.

  def __post_init__(self):
    if self.layer_norm not in (None, *LAYER_NORMS):
      raise ValueError(f"layer_norm {self.layer_norm!r} is unknown; choose 'standard' or 'atlas'.")

  @property
  def vocabularies(self) -> dict[str, str | None]:
    return {'reader': self.reader_vocabulary, 'retriever': self.retriever_vocabulary}


@dataclasses.dataclass(frozen=True)
class Checks:
  """How strict a conversion is."""

  verify: bool = True  # Compare the files with the checksums that lie beside them.
  allow_missing: bool = False  # Initialise missing tensors at random.
  allow_unused: bool = False  # Leave tensors out that have no place.
  seed: int = 0  # Of the tensors that are missing.


@dataclasses.dataclass(frozen=True)
class Report:
  """What a conversion has done, or would do."""

  lines: list[str]
  failure: str | None = None  # Why it would fail, after a dry run; None where it would not.


def convert(
  sources: Sequence[tuple[str | None, str]],
  to: str | None,
  to_format: str = 'run',
  *,
  overrides: Overrides = Overrides(),
  checks: Checks = Checks(),
  dry_run: bool = False,
  max_shard_bytes: int = MAX_SHARD_BYTES,
  progress: bool = True,
) -> Report:
  """Converts weights.

  Args:
    sources: (side or None, path or name), see `recognition.SIDES` and `files/named_source.py`.
    to: folder to make; must not exist or be empty. None with `dry_run` only.
    dry_run: write nothing; the report lists every tensor and says whether it would fail.

  Raises:
    FileExistsError: there is something at `to`.
    FileNotFoundError, ValueError: a source is missing, damaged, of another kind or does not fit.
  """
  if to_format not in FORMATS:
    raise ValueError(f'to_format {to_format!r} is unknown; choose one of {FORMATS}.')
  if to is None and not dry_run:
    raise ValueError('Name the folder to make with --to, or use --dry_run.')
  if to is not None and not dry_run:
    new_folder.check(to)  # Before anything is fetched.
  located = [(side, name, named_source.locate(name, side)) for side, name in sources]
  sources = [(side, found.path) for side, _, found in located]
  if not dry_run:
    _check_files(sources, to, checks, progress)
  second_moment = None if overrides.layer_norm is None else overrides.layer_norm == 'atlas'
  gathered = composing.configure(
    composing.gather(sources, overrides.retriever_heads),
    scan_layers=overrides.scan_layers,
    dtype=overrides.dtype,
    second_moment_layer_norm=second_moment,
  )
  lines = [f'{name}: {found.note}' for _, name, found in located if found.note]
  lines += conversion_report.report(gathered, to_format, every_tensor=dry_run)
  if to is None or dry_run:
    try:
      _check_files(sources, to, checks, progress)
      lines += _rehearse(gathered, to_format, overrides, checks)
    except (ValueError, OSError) as e:
      return Report(lines, str(e))
    return Report(lines)
  _check_tensors(gathered, to_format, checks)
  if to_format == 'run':
    spec = _specification(gathered, overrides, checks)
    lines[-1:-1] = conversion_report.choices(spec)
    conversion_writers.write_run(to, gathered, spec, seed=checks.seed, progress=progress)
    made = 'checkpoint_0, usable as INITIAL_CHECKPOINT_PATH and by ralm embed, eval and ask'
  else:
    vocabularies = composing.find_vocabularies(gathered, overrides.vocabularies)
    folders = conversion_writers.write_huggingface(
      to, gathered, vocabularies, max_shard_bytes=max_shard_bytes, progress=progress
    )
    made = f'Hugging Face folders {", ".join(folders)}'
  return Report([*lines, f'{to}: {made}'])


def _check_files(
  sources: Sequence[tuple[str | None, str]], to: str | None, checks: Checks, progress: bool
) -> None:
  if to is not None:
    new_folder.check(to)
  if checks.verify:
    for path in dict.fromkeys(path for _, path in sources):
      checksums.verify(path, progress=progress)


def _check_tensors(gathered: Gathered, to_format: str, checks: Checks) -> None:
  targets.check(
    gathered,
    allow_unused=checks.allow_unused,
    allow_missing=checks.allow_missing and to_format == 'run',
  )


def _specification(gathered: Gathered, overrides: Overrides, checks: Checks) -> Specification:
  model = composing.make_model(gathered, overrides.reading, allow_missing=checks.allow_missing)
  return composing.make_specification(
    gathered, model, composing.make_text(gathered, overrides.text), overrides.vocabularies
  )


def _rehearse(
  gathered: Gathered, to_format: str, overrides: Overrides, checks: Checks
) -> list[str]:
  """Does all of a conversion but its writing; returns lines on what is open."""
  _check_tensors(gathered, to_format, checks)
  for target in targets.of(gathered):
    if not target.missing:
      tensor_maps.read(target.part.source, target.entry, copy=False)  # Whether it is finite.
  if to_format == 'huggingface':
    conversion_writers.export_maps(gathered)
    composing.find_vocabularies(gathered, overrides.vocabularies)
  elif gathered.needed:
    # Parts may be looked at one by one.
    return [f'Not yet a run: give --from {side}=PATH as well.' for side in gathered.needed]
  else:
    spec = _specification(gathered, overrides, checks)
    conversion_writers.check_complete(gathered, spec)
    return list(conversion_report.choices(spec))
  return []
