"""A part of a strategy's name: what it gives to the strategy, and the settings that it takes.

Each method defines its part beside its mathematics, and `catalogue` lists all parts. Nothing is registered by being
imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from freeloc_fx.errors import StrategyError

from .checks import Check
from .strategy import Geometry

__all__ = ["Contribute", "Part"]

Contribute = Callable[[Geometry, Any, Mapping[str, Any]], dict[str, Any]]
"""(geometry, the part's own settings, what the parts before it gave) -> fields of `Strategy`."""


@dataclass(frozen=True)
class Part:
    """One part of strategy names.

    Args:
        name: the part as it stands in a strategy's name, as in "riflex".
        contribute: the function that gives fields of `Strategy` for one geometry. The first line of its docstring says
            what the part does; `catalogue.strategies` shows it.
        sets: names of the fields of `Strategy` that `contribute` gives.
        settings: what a profile's `parts` may set under the part's name, each with its check; None where the part takes
            a value of another kind, or none.
        value: the class whose instances are this part with its settings filled in, `Window` for "window"; None where
            there is none.
        stepped: whether the strategy that it gives depends on the denoising step.
        key: under which name settings hold the part's own; the part's name unless said otherwise.
        words: for a part whose settings are no mapping of `settings`: the settings' names and what each may be.
        mixes: for a part that gives a mixture: names of the fields that the strategies mixed set themselves.
    """

    name: str
    contribute: Contribute
    sets: tuple[str, ...]
    settings: Mapping[str, Check] | None = None
    value: type | None = None
    stepped: bool = False
    key: str = ""
    words: Mapping[str, str] | None = None
    mixes: tuple[str, ...] = ()

    def __call__(self, geometry: Geometry, settings: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        """Give what the part contributes to a strategy.

        Args:
            geometry: one call's token grid beside the trained length.
            settings: settings of all parts by their keys.
            given: the fields that the parts before it gave.

        Returns:
            Fields of `Strategy` by name, those that `sets` lists.

        Raises:
            StrategyError: a setting is unknown or not what its check wants.
            SolveError: settings are to be solved for a geometry of fewer than two trained frames.
        """
        own = settings.get(self.key or self.name)
        if self.settings is not None:
            self.check(own or {})
            own = dict(own or {})
        return self.contribute(geometry, own, given)

    def check(self, value: Any) -> None:
        """Refuse settings that the part does not take.

        Args:
            value: a mapping from the names in `settings` to values.

        Raises:
            StrategyError: the message begins with the setting's path, as in "riflex.k: ...".
        """
        known = self.settings or {}
        if not isinstance(value, Mapping):
            raise StrategyError(f"{self.name}: expected a mapping of {', '.join(known)}, found {value!r}")
        for key, item in value.items():
            if key not in known:
                raise StrategyError(f"{self.name}.{key}: unknown key; expected {', '.join(known)}")
            known[key](f"{self.name}.{key}", item)

    def settings_of(self, value: Any, trained_frames: int) -> dict[str, Any] | None:
        """Read the settings off an instance of `value`.

        Args:
            value: the instance.
            trained_frames: latent frames of the training clips, which some of the classes carry too.

        Returns:
            The settings that differ from the class's defaults, or None for a part without `settings`.

        Raises:
            StrategyError: the instance says something that is no setting: another trained length, or a field that the
                part decides by itself.
        """
        found: dict[str, Any] = {}
        for field in fields(value):
            item = getattr(value, field.name)
            if field.name == "trained_frames":
                if item != trained_frames:
                    raise StrategyError(
                        f"{self.name}.trained_frames: expected the profile's {trained_frames}, found {item}"
                    )
            elif field.default is MISSING or item != field.default:
                if field.name not in (self.settings or {}):
                    raise StrategyError(f"{self.name}.{field.name}: expected {field.default!r}, found {item!r}")
                found[field.name] = item
        return None if self.settings is None else found
