"""How many workers the classes of an app may have, where somebody has said otherwise than the code. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gworker.options import Options
from gworker.router.membership import PoolDefinition


class Bounds:
    """What was said for each class and variant. `said` is what is written down."""

    def __init__(self, said: dict[tuple[str, str], dict[str, Any]] | None = None) -> None:
        self.said = said or {}

    def change(self, class_name: str, variant: str, now: Options, **asked: int | None) -> Options:
        """Have other bounds from now on; None leaves one as it is. Returns the options `now` with them.

        Raises InvalidDefinition for bounds that cannot be.
        """
        wanted = dict(self.said.get((class_name, variant), {}))
        wanted |= {name: bound for name, bound in asked.items() if bound is not None}
        options = now.replace(**wanted)
        self.said[class_name, variant] = wanted
        return options

    def applied(self, definition: PoolDefinition) -> PoolDefinition:
        """A definition with the bounds that were said for its class, if any were."""
        changes = self.said.get((definition.key.class_name, definition.key.variant))
        return definition if not changes else replace(definition, options=replace(definition.options, **changes))
