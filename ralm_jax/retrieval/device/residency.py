"""Which generations are on the devices, while several threads search them."""

from __future__ import annotations

import collections
import logging
import threading

import jax
import numpy as np

from ralm_jax.retrieval.device.search import Best, DeviceSearch
from ralm_jax.retrieval.device.view import DeviceView, StartedSearch
from retrieval_service.live import LiveView

logger = logging.getLogger(__name__)


class Residency:
  """Puts generations on the devices when they are searched; may be shared among threads."""

  def __init__(self, search: DeviceSearch):
    self._search = search
    # Held while something is put on the devices or freed. The second one is
    # taken within it, and held to dispatch a search, never to wait for one.
    self._changing = threading.RLock()
    self._dispatching = threading.Lock()
    self._views: collections.OrderedDict[int, DeviceView] = collections.OrderedDict()
    self._running: Best | None = None

  @property
  def numbers(self) -> tuple[int, ...]:
    """Of the generations there, the one searched last at the end."""
    with self._dispatching:
      return tuple(self._views)

  def start(self, live: LiveView, queries: np.ndarray, k: int, approximate: bool) -> StartedSearch:
    """`DeviceView.search` of this state of a generation, or a later one."""

    def dispatch(view: DeviceView) -> StartedSearch:
      started = view.search(self._search, queries, k, approximate)
      self._running = started.best
      return started

    with self._dispatching:
      view = self._views.get(live.number)
      if view is not None and view.live.edits >= live.edits:
        self._views.move_to_end(live.number)
        return dispatch(view)
    # Nothing can be freed between the two.
    with self._changing:
      view = self.put(live)
      with self._dispatching:
        return dispatch(view)

  def put(self, live: LiveView) -> DeviceView:
    """Puts a generation and its edits on the devices, as far as they are not."""
    with self._changing:
      view = self._views.get(live.number)
      if view is not None and view.live.edits >= live.edits:
        return view
      if view is not None:
        view = view.moved_to(self._search, live)
      else:
        self.free(keep=self.room(live) - 1)
        logger.info(
          f'putting generation {live.number} on the devices: {live.generation.count} vectors of '
          f'{live.dim}'
        )
        view = DeviceView.load(self._search, live)
      with self._dispatching:
        self._views[live.number] = view
      return view

  def room(self, live: LiveView) -> int:
    """How many generations may be on the devices, this one among them."""
    if (limit := self._search.options.resident) is not None:
      return limit
    needed = self._search.shard_bytes(live.generation.count, live.dim)
    return 2 if self._search.has_room(needed) else 1

  def free(self, keep: int = 0) -> None:
    """Frees all but the generations searched last, once they are searched."""
    with self._changing:
      with self._dispatching:
        leaving = [self._views.popitem(last=False)[1] for _ in range(len(self._views) - keep)]
        if leaving and self._running is not None:
          jax.block_until_ready(self._running)
      for view in leaving:
        view.delete()
