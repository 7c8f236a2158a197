"""Which generation an index serves, and how stale its embeddings are."""

from __future__ import annotations

from collections.abc import Callable
import logging
import os
import threading

from ralm_jax.retrieval.backend import SearchBackend
from retrieval_service.results import ServerStatus


class GenerationSteps:
  """Which step's parameters embedded a generation; asked once a generation."""

  def __init__(
    self,
    client: SearchBackend,
    run: str | os.PathLike[str],
    *,
    check: Callable[[ServerStatus], None] = lambda status: None,
  ):
    """Asks nothing yet; `run` is the MODEL_DIR whose steps count.

    What is served, when it has changed, is shown to `check`, which raises if it does not fit.
    """
    self._client = client
    self._run = os.path.realpath(run)
    self._check = check
    self._steps: dict[int, int | None] = {}

  def tell(self, generation: int, step: int | None) -> None:
    """For generations that are known to come of a step of this run."""
    if step is not None:
      self._steps[generation] = step

  def step_of(self, generation: int) -> int | None:
    """None where another run, or nobody knows what, embedded it."""
    if generation not in self._steps:
      status = self._client.status()
      if status.generation not in self._steps:
        self._check(status)
        own = status.metadata.get('run') == self._run
        self._steps[status.generation] = status.metadata.get('step') if own else None
      self._steps.setdefault(generation, None)
    return self._steps[generation]


class CurrentFollower:
  """Has a retrieval process of our own serve what others publish in its folder."""

  def __init__(self, client: SearchBackend, index: str | os.PathLike[str]):
    self._client = client
    self._path = os.path.join(index, 'CURRENT')
    # Whether it had been published when the process opened it, nobody knows.
    self._mark: tuple[int, int] | None = None
    self._reloading = threading.Lock()

  def _look(self) -> tuple[int, int]:
    status = os.stat(self._path)
    return status.st_mtime_ns, status.st_ino

  def __call__(self) -> None:
    """Looks whether another generation has become current; to call often.

    The process reads it while searches go on in the one before; only the first call waits for that.
    """
    mark = self._look()
    if mark == self._mark or self._reloading.locked():
      return
    if self._mark is None:
      self._reload(mark)
    else:
      threading.Thread(target=self._reload, args=(mark,), daemon=True).start()

  def _reload(self, mark: tuple[int, int]) -> None:
    with self._reloading:
      try:
        self._client.reload()
        self._mark = mark
      except (ValueError, RuntimeError, ConnectionError) as e:
        if self._mark is None:
          raise
        # The search that comes next says what is wrong, if it still is.
        logging.warning('The new generation is not served yet: %s', e)
