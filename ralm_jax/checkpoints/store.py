"""Orbax checkpoints: the state, this process's position and a description.

`MODEL_DIR/checkpoint_<step>/{state,host,metadata}`. A checkpoint is written
aside and renamed, so that what carries the name is whole.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import errno
import hashlib
import io
import os
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

PyTree = Any
_PREFIX = 'checkpoint'
WARM_START = 'warm_start_steps'  #: in the metadata of its checkpoints


class HostArraysHandler(ocp.CheckpointHandler):
  """One npz file a process: what each host alone knows (its data position)."""

  @staticmethod
  def _file(directory) -> Any:
    index, count = jax.process_index(), jax.process_count()
    return directory / f'process_{index:05}-of-{count:05}.npz'

  def save(self, directory, args: HostArraysSave) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **args.item)
    self._file(directory).write_bytes(buffer.getvalue())

  def restore(self, directory, args: HostArraysRestore | None = None):
    path = self._file(directory)
    if not path.exists():
      found = sorted(p.name for p in directory.iterdir())
      raise ValueError(
        f'{directory} was written by another number of processes than {jax.process_count()} (found '
        f'{found}), so the position in the data is unknown. Resume with as many processes, or '
        'start from its parameters with INITIAL_CHECKPOINT_PATH.'
      )
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
      return {name: arrays[name] for name in arrays.files}


@ocp.args.register_with_handler(HostArraysHandler, for_save=True)
@dataclasses.dataclass
class HostArraysSave(ocp.args.CheckpointArgs):
  item: Mapping[str, np.ndarray]


@ocp.args.register_with_handler(HostArraysHandler, for_restore=True)
@dataclasses.dataclass
class HostArraysRestore(ocp.args.CheckpointArgs):
  item: Any = None


@dataclasses.dataclass(frozen=True)
class Restored:
  """A checkpoint's content."""

  state: PyTree  #: of the structure asked for, on its shardings
  host: dict[str, np.ndarray]  #: this process's arrays
  metadata: dict[str, Any]  #: JSON values


class Checkpoints:
  """Checkpoints of one run."""

  def __init__(
    self,
    directory: str | os.PathLike[str],
    *,
    keep: int | None = 3,
    keep_period: int | None = None,
    asynchronous: bool = True,
    read_only: bool = False,
  ):
    """Opens or creates MODEL_DIR; its newest `keep` (None: all) and each `keep_period`th stay."""
    self.directory = os.path.abspath(os.fspath(directory))
    self._manager = ocp.CheckpointManager(
      self.directory,
      item_handlers={
        'state': ocp.PyTreeCheckpointHandler(),
        'host': HostArraysHandler(),
        'metadata': ocp.JsonCheckpointHandler(),
      },
      options=ocp.CheckpointManagerOptions(
        step_prefix=_PREFIX,
        max_to_keep=None if read_only else keep,
        keep_period=keep_period,
        create=not read_only,
        read_only=read_only,
        cleanup_tmp_directories=not read_only,
        enable_async_checkpointing=asynchronous,
      ),
    )

  def steps(self) -> list[int]:
    return sorted(self._manager.all_steps())

  def latest_step(self) -> int | None:
    return self._manager.latest_step()

  def save(
    self, step: int, state: PyTree, host: Mapping[str, np.ndarray], metadata: Mapping[str, Any]
  ) -> None:
    """Saves; arrays are copied when it returns. An OSError leaves earlier ones usable.

    Raises ValueError, and saves nothing, where a parameter is not finite.
    """
    if step in self._manager.all_steps():
      return
    check_finite(
      _params(state), f'Step {step} of {self.directory}', f'It is not saved; {self._newest()}.'
    )
    try:
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.PyTreeSave(state),
          host=HostArraysSave(host),
          metadata=ocp.args.JsonSave(dict(metadata)),
        ),
        force=True,
      )
    except Exception as e:
      raise self._save_error(step, e) from e

  def wait(self) -> None:
    """Waits until everything saved is on disk; raises as `save` does."""
    try:
      self._manager.wait_until_finished()
    except Exception as e:
      raise self._save_error(None, e) from e

  def _save_error(self, step: int | None, cause: Exception) -> OSError:
    which = 'a checkpoint' if step is None else f'checkpoint_{step}'
    return OSError(
      f'Saving {which} in {self.directory} failed: {_root_cause(cause)}. '
      f'T{self._newest()[1:]}. Free space (or lower '
      'CheckpointConfig.keep) and start the same command again to resume.'
    )

  def _newest(self) -> str:
    steps = self.steps()
    return f'the newest usable checkpoint is {f"checkpoint_{steps[-1]}" if steps else "none yet"}'

  def restore(self, step: int, abstract_state: PyTree) -> Restored:
    """Restores onto the shardings of `abstract_state`; ValueError where it does not fit."""
    self._check_shapes(step, _params(abstract_state))
    state, metadata = restore_args(abstract_state), ocp.args.JsonRestore()
    restored = self._restore(step, state=state, host=HostArraysRestore(), metadata=metadata)
    check_finite(_params(restored['state']), self._name(step), self._remedy(step))
    return Restored(restored['state'], restored['host'], restored['metadata'])

  def _restore(self, step: int, **items: ocp.args.CheckpointArgs) -> Any:
    try:
      return self._manager.restore(step, args=ocp.args.Composite(**items))
    except Exception as e:
      raise self._restore_error(step, e) from e

  def metadata(self, step: int) -> dict[str, Any]:
    args = ocp.args.Composite(metadata=ocp.args.JsonRestore())
    return self._manager.restore(step, args=args)['metadata']

  def check_metadata(self, step: int, wanted: Mapping[str, Any]) -> None:
    """Raises ValueError where a run's settings differ from those that a checkpoint says."""
    saved = self.metadata(step)
    path = f'{self.directory}/checkpoint_{step}'
    if (WARM_START in saved) != (WARM_START in wanted):
      kind = 'a warm start' if WARM_START in saved else 'a training run'
      raise ValueError(
        f'{path} is of {kind}, which this is not; give another MODEL_DIR, and that checkpoint as '
        'INITIAL_CHECKPOINT_PATH to begin with its parameters.'
      )
    for name, value in wanted.items():
      if name != WARM_START and saved.get(name, value) != value:
        raise ValueError(
          f'{path} was trained with {name} {saved[name]}, this run has {value}: its position in '
          'the data would mean other examples. Go on with the same, or start another MODEL_DIR '
          'from its parameters (INITIAL_CHECKPOINT_PATH).'
        )

  def restore_params(self, step: int, abstract_params: PyTree) -> PyTree:
    """The parameters alone; as `restore`."""
    self._check_shapes(step, abstract_params)
    state = restore_args({'params': abstract_params}, partial=True)
    params = self._restore(step, state=state)['state']['params']
    check_finite(params, self._name(step), self._remedy(step))
    return params

  def param_shapes(self, step: int) -> dict[str, tuple[int, ...]] | None:
    """Shape of every parameter by its path, read without its data."""
    try:
      metadata = self._manager.item_metadata(step)['state']
      tree = getattr(metadata, 'tree', metadata)
      return _shapes(tree['params'])
    except (KeyError, TypeError, AttributeError):
      return None
    except Exception as e:
      raise self._restore_error(step, e) from e

  def _check_shapes(self, step: int, abstract_params: PyTree) -> None:
    """Raises ValueError naming the parameters that differ in shape."""
    found = self.param_shapes(step)
    wanted = _shapes(abstract_params)
    if found is not None:
      problems = [
        f'{name} has shape {found.get(name)} in the checkpoint, {shape} in the model'
        for name, shape in wanted.items()
        if found.get(name) != shape
      ] + [
        f'{name} is in the checkpoint but not in the model' for name in found if name not in wanted
      ]
      if problems:
        raise ValueError(
          f'{self._name(step)} is of another model: '
          + '; '.join(problems[:3])
          + (f' (and {len(problems) - 3} more)' if len(problems) > 3 else '')
          + '.'
        )

  def _restore_error(self, step: int, cause: Exception) -> ValueError:
    return ValueError(
      f'{self._name(step)} cannot be restored: {_root_cause(cause)}. It is damaged, or of another '
      f'model. {self._remedy(step)}'
    )

  def _name(self, step: int) -> str:
    return f'{self.directory}/checkpoint_{step}'

  def _remedy(self, step: int) -> str:
    others = [s for s in self.steps() if s != step]
    if not others:
      return 'There is no other checkpoint in the folder.'
    return f'Remove the folder to fall back to checkpoint_{others[-1]}.'

  def close(self) -> None:
    self._manager.close()


def check_finite(params: PyTree, name: str, remedy: str = '') -> None:
  """Raises ValueError where parameters hold NaN or infinity; every process calls it."""
  flat = jax.tree_util.tree_leaves_with_path(params)
  counts = jax.device_get([_not_finite(leaf) for _, leaf in flat])
  bad = [
    f'{"/".join(str(getattr(key, "key", key)) for key in path)} ({count} of {leaf.size} values)'
    for (path, leaf), count in zip(flat, counts)
    if count
  ]
  if bad:
    more = f' and {len(bad) - 3} more' if len(bad) > 3 else ''
    raise ValueError(
      f'{name} has parameters that are not finite (NaN or infinite): {", ".join(bad[:3])}{more}. '
      f'Its training diverged, or what it was made from was damaged. {remedy}'.rstrip()
    )


@jax.jit
def _not_finite(array: Any) -> Any:
  return jnp.sum(~jnp.isfinite(array))


def restore_args(abstract: PyTree, *, partial: bool = False) -> ocp.args.PyTreeRestore:
  """What orbax is to restore; `partial` leaves out what the checkpoint has besides."""
  targets = ocp.checkpoint_utils.construct_restore_args(abstract)
  return ocp.args.PyTreeRestore(item=abstract, restore_args=targets, partial_restore=partial)


def _params(state: PyTree) -> PyTree:
  return state['params'] if isinstance(state, Mapping) else state.params


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
  return {
    '/'.join(str(getattr(key, 'key', key)) for key in path): tuple(leaf.shape)
    for path, leaf in jax.tree_util.tree_leaves_with_path(
      tree, is_leaf=lambda x: hasattr(x, 'shape')
    )
  }


def _root_cause(error: BaseException) -> str:
  while error.__cause__ is not None:
    error = error.__cause__
  # TensorStore reports the system's errors inside pages of its own.
  system = os.strerror(errno.ENOSPC)
  if system in str(error):
    return system
  text = str(error).strip().splitlines()
  return f'{type(error).__name__}: {text[0] if text else ""}'[:500]


def find(path: str | os.PathLike[str]) -> tuple[str, int]:
  """Run folder and step of MODEL_DIR (its newest) or MODEL_DIR/checkpoint_<step>.

  Raises:
    FileNotFoundError: there is no checkpoint; the message says what is there.
  """
  path = os.path.abspath(os.fspath(path))
  match = re.fullmatch(rf'{_PREFIX}_(\d+)', os.path.basename(path))
  if match and os.path.isdir(path):
    return os.path.dirname(path), int(match.group(1))
  if not os.path.isdir(path):
    raise FileNotFoundError(
      f'{path} does not exist; give the MODEL_DIR of a run or one of its {_PREFIX}_<step> folders.'
    )
  steps = [
    int(m.group(1)) for name in os.listdir(path) if (m := re.fullmatch(rf'{_PREFIX}_(\d+)', name))
  ]
  if not steps:
    raise FileNotFoundError(
      f'{path} holds no {_PREFIX}_<step> folder; found {sorted(os.listdir(path))[:8]}.'
    )
  return path, max(steps)


def fingerprint(path: str | os.PathLike[str]) -> str:
  """Tells a checkpoint from another of the same path; its data is not read.

  Orbax names data files at random, so that the names are of this very write;
  a copy has the same ones.
  """
  digest = hashlib.sha256()
  state = pathlib.Path(path, 'state')
  for file in sorted(state.rglob('*')):
    if file.is_file():
      digest.update(f'{file.relative_to(state)} {file.stat().st_size}\n'.encode())
  return digest.hexdigest()
