"""gworker under the name `gworker_client`: the same objects."""

from __future__ import annotations

from gworker import *  # noqa: F403
from gworker import __all__ as __all__
from gworker import __version__ as __version__
