"""A strategy: what one attention site does with a long video, composed from named parts.

Names are parts joined by "+": "direct", "vrpr", "tsa", "vrpr+tsa", "riflex+tsa", "clip+window", each with an optional
"+temp". A part says what it contributes for one geometry; two parts that contribute the same thing do not compose. The
parts of FreeLOC are here, those of its peers in `freeloc_fx.peers`, one file a method.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from numbers import Real
from typing import Any, TypeVar

from . import checks, solve
from .decay import ScoreDecay
from .errors import StrategyError
from .frequencies import FrequencyMap, Unchanged
from .mixture import Mixture
from .positions import VRPR, Identity, PositionMap
from .solve_sparse import vrpr_sparse
from .visibility import TSA, Everything, Rotating, Visibility, visible_tokens

__all__ = [
    "FIELDS",
    "PARTS",
    "STEPPED",
    "Geometry",
    "Strategy",
    "build",
    "check_settings",
    "own_settings",
    "parse",
    "part",
]


@dataclass(frozen=True)
class Geometry:
    """One call's token grid beside the trained length. frames, trained_frames: latent frames; height, width: tokens."""

    trained_frames: int
    frames: int
    height: int
    width: int

    @property
    def tokens(self) -> int:
        """Tokens in a frame."""
        return self.height * self.width


@dataclass(frozen=True)
class Strategy:
    """What one attention site does with a long video. Immutable and hashable; the default changes nothing.

    positions, frequencies: a query of frame i and a key of frame j meet at the angle P[i, j] * omega' instead of
        (i - j) * omega. visibility: which pairs are computed. temperature: factor on every score. decay: factor on the
        positive scores of a pair of frames. mixture: several strategies instead of this one; the other fields are then
        the defaults, because each of the strategies has its own. text_scale, text_last: where text and video attend to
        each other, the video token of frame i stands at text_scale * i, but never beyond text_last. stages:
        ((n, strategy), ...), rising n: before denoising step n that strategy runs instead, counted from 0.

    Raises:
        StrategyError: a mixture beside another field that is not the default.
    """

    name: str = "direct"
    positions: PositionMap = field(default_factory=Identity)
    visibility: Visibility = field(default_factory=Everything)
    temperature: float = 1.0
    frequencies: FrequencyMap = field(default_factory=Unchanged)
    decay: ScoreDecay | None = None
    mixture: Mixture | None = None
    text_scale: float = 1.0
    text_last: int | None = None
    stages: tuple[tuple[int, Strategy], ...] = ()

    def __post_init__(self) -> None:
        if self.mixture is not None and (others := _set_fields(replace(self, mixture=None, stages=()))):
            raise StrategyError(
                f"strategy {self.name!r}: a mixture leaves the {', '.join(others)} to the strategies it mixes"
            )

    @property
    def changes_nothing(self) -> bool:
        return self.mixture is None and not _set_fields(self) and all(s.changes_nothing for _, s in self.stages)

    @property
    def turns_by_fractions(self) -> list[str]:
        """What turns q or k by other than a whole number of frames, so that rates must be known beyond whole turns."""
        found = {s.frequencies.describe()["kind"] for s in self.members if not isinstance(s.frequencies, Unchanged)}
        found |= {"squeeze"} if any(s.text_scale not in (0.0, 1.0) for s in self.members) else set()
        return sorted(found.union(*(early.turns_by_fractions for _, early in self.stages)))

    @property
    def follows_steps(self) -> bool:
        """Whether anything depends on the denoising step."""
        return bool(self.stages) or self.period > 1

    @property
    def members(self) -> tuple[Strategy, ...]:
        """The strategies to run: those of the mixture, or this one alone."""
        return (self,) if self.mixture is None else self.mixture.strategies

    @property
    def period(self) -> int:
        """Number of denoising steps after which `at` begins again; 1 where nothing depends on the step."""
        if self.mixture is not None:
            return math.lcm(*(strategy.period for strategy in self.mixture.strategies))
        return self.visibility.period if isinstance(self.visibility, Rotating) else 1

    def at(self, step: int) -> Strategy:
        """The strategy at a denoising step, counted from 0 at the first one of a generation.

        There are at most `period` different ones, and a strategy that does not rotate is itself at every step.

        Raises:
            StrategyError: the step is not an integer from 0.
        """
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise StrategyError(f"strategy {self.name!r}: expected a step from 0, found {step!r}")
        if self.stages:
            for stop, strategy in self.stages:
                if step < stop:
                    return strategy.at(step)
            return replace(self, stages=()).at(step)
        if self.mixture is not None:
            strategies = tuple(strategy.at(step) for strategy in self.mixture.strategies)
            if strategies == self.mixture.strategies:
                return self
            return replace(self, mixture=self.mixture.with_strategies(strategies))
        if not isinstance(self.visibility, Rotating):
            return self
        return replace(self, visibility=self.visibility.at(step))

    def describe(self) -> dict[str, Any]:
        """JSON-serialisable settings; different strategies describe themselves differently."""
        mixture = self.mixture
        return {
            "name": self.name,
            **self.positions.describe(),
            **self.visibility.describe(),
            "temperature": self.temperature,
            "frequencies": self.frequencies.describe(),
            "decay": None if self.decay is None else self.decay.describe(),
            "mixture": None
            if mixture is None
            else {**mixture.describe(), "strategies": [strategy.describe() for strategy in mixture.strategies]},
            "period": self.period,
            **({} if self.text_scale == 1.0 else {"text_scale": self.text_scale}),
            **({} if self.text_last is None else {"text_last": self.text_last}),
            **({} if not self.stages else {"stages": [{"before": n, **early.describe()} for n, early in self.stages]}),
        }


def _set_fields(strategy: Strategy) -> list[str]:
    """Names of the fields that change something."""
    default = {
        "positions": Identity(),
        "visibility": Everything(),
        "temperature": 1.0,
        "frequencies": Unchanged(),
        "decay": None,
        "mixture": None,
        "text_scale": 1.0,
        "text_last": None,
    }
    return [f.name for f in fields(strategy) if f.name in default and getattr(strategy, f.name) != default[f.name]]


T = TypeVar("T")
Settings = Mapping[str, Any]
Part = Callable[[Geometry, Settings, dict[str, Any]], dict[str, Any]]
Check = Callable[[str, Any], None]
PARTS: dict[str, Part] = {}
"""Name -> function of (geometry, settings, what the parts before it gave) that returns fields of `Strategy`."""
FIELDS: dict[str, Mapping[str, Check]] = {}
"""Name -> the settings that the part takes: each a function of (path, value) that raises StrategyError."""


STEPPED: set[str] = set()
"""Parts whose strategies depend on the denoising step."""


def part(name: str, settings: Mapping[str, Check] | None = None, *, stepped: bool = False) -> Callable[[Part], Part]:
    """Register a part of strategy names.

    Args:
        settings: what the part takes under its own name in a profile's `parts`, each with its check.
        stepped: the strategy depends on the denoising step.
    """

    def register(function: Part) -> Part:
        PARTS[name] = function
        if stepped:
            STEPPED.add(name)
        if settings is not None:
            FIELDS[name] = settings
        return function

    return register


def check_settings(name: str, value: Any) -> None:
    """Refuse settings that the part `name`, one of `FIELDS`, does not take.

    Raises:
        StrategyError: the message begins with the setting's path, as in "riflex.k: ...".
    """
    known = FIELDS[name]
    if not isinstance(value, Mapping):
        raise StrategyError(f"{name}: expected a mapping of {', '.join(known)}, found {value!r}")
    for key, item in value.items():
        if key not in known:
            raise StrategyError(f"{name}.{key}: unknown key; expected {', '.join(known)}")
        known[key](f"{name}.{key}", item)


def own_settings(name: str, settings: Settings) -> dict[str, Any]:
    """The checked settings of the part `name`, empty where there are none."""
    value = settings.get(name)
    if value is None:
        return {}
    check_settings(name, value)
    return dict(value)


def _from_settings(name: str, kind: type[T], value: Any) -> T:
    """A dataclass as it is, or from a mapping of its fields."""
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise StrategyError(f"{name}: expected {kind.__name__} or a mapping of its fields, found {value!r}")
    try:
        return kind(**value)
    except TypeError as error:  # a missing or an unknown field
        raise StrategyError(f"{name}: {error}") from error


@part("direct")
def _direct(geometry: Geometry, settings: Settings, given: dict[str, Any]) -> dict[str, Any]:
    return {}


@part("vrpr")
def _vrpr(geometry: Geometry, settings: Settings, given: dict[str, Any]) -> dict[str, Any]:
    explicit = settings.get("vrpr")
    if explicit is not None:
        return {"positions": _from_settings("vrpr", VRPR, explicit)}
    rule = given.get("visibility", Everything())
    return {"positions": vrpr_sparse(geometry.trained_frames, rule, geometry.frames, geometry.height, geometry.width)}


@part("tsa")
def _tsa(geometry: Geometry, settings: Settings, given: dict[str, Any]) -> dict[str, Any]:
    explicit = settings.get("tsa")
    value = explicit if explicit is not None else solve.tsa(geometry.trained_frames, geometry.height, geometry.width)
    return {"visibility": _from_settings("tsa", TSA, value)}


@part("temp")
def _temperature(geometry: Geometry, settings: Settings, given: dict[str, Any]) -> dict[str, Any]:
    """lambda = sqrt(ln S_long / ln S_trained), S = visible tokens, unless the profile carries a measured value."""
    explicit = settings.get("temperature")
    if explicit is not None:
        if isinstance(explicit, bool) or not isinstance(explicit, Real) or not 0 < float(explicit) < math.inf:
            raise StrategyError(f"temperature: expected a positive number, found {explicit!r}")
        return {"temperature": float(explicit)}
    rule = given.get("visibility", Everything())
    visible = float(visible_tokens(rule, geometry.frames, geometry.height, geometry.width).mean())
    trained = geometry.trained_frames * geometry.tokens
    if trained < 2 or visible < 2:
        raise StrategyError(f"temp: needs at least two visible tokens, found {trained} trained and {visible:.1f} long")
    return {"temperature": math.sqrt(math.log(visible) / math.log(trained))}


@part("squeeze")
def _squeeze(geometry: Geometry, settings: Settings, given: dict[str, Any]) -> dict[str, Any]:
    """Text meets a video token at its place in the clip scaled to the trained length: i (L - 1) / (F - 1)."""
    return {"text_scale": min(1.0, (geometry.trained_frames - 1) / max(1, geometry.frames - 1))}


@part("hold", {"last": checks.whole(0)})
def _hold(geometry: Geometry, settings: Settings, given: dict[str, Any]) -> dict[str, Any]:
    """Text meets a video token at its own place up to the last trained frame, and all later ones there: min(i, L - 1).

    Turns by whole frames, unlike "squeeze". Setting: `last`, that latent frame, default L - 1.
    """
    last = own_settings("hold", settings).get("last", geometry.trained_frames - 1)
    return {"text_scale": 1.0, "text_last": last}  # the scale too, so that it does not compose with "squeeze"


def parse(name: str) -> tuple[str, ...]:
    """Split a strategy name into parts.

    Raises:
        StrategyError: not a string, an unknown part, a part twice, or "direct" beside anything but "temp".
    """
    if not isinstance(name, str):
        raise StrategyError(f"strategy: expected a name, found {name!r}")
    parts = tuple(_split(name))
    for item in parts:
        if item not in PARTS:
            raise StrategyError(f"unknown strategy {name!r}: {item!r} is not one of {', '.join(PARTS)}")
    if len(set(parts)) != len(parts):
        raise StrategyError(f"strategy {name!r} names a part twice")
    if "direct" in parts and set(parts) - {"direct", "temp"}:
        raise StrategyError(f"strategy {name!r}: 'direct' composes with 'temp' only")
    if parts == ("temp",):
        raise StrategyError("strategy 'temp' needs something to modify; 'direct+temp' keeps positions and pairs")
    return parts


def _split(name: str) -> list[str]:
    """The parts between "+"; in "freelong+++temp" the first two signs belong to the part "freelong++"."""
    parts: list[str] = []
    pieces = name.split("+")
    while pieces:
        piece = pieces.pop(0)
        if pieces[:2] == ["", ""] and f"{piece}++" in PARTS:
            del pieces[:2]
            piece += "++"
        parts.append(piece)
    return parts


def build(name: str, geometry: Geometry, settings: Settings | None = None) -> Strategy:
    """The strategy `name` for one geometry.

    Where a part gives a mixture, what the other parts give goes to each of the strategies mixed, and "temp" looks at
    what each of them sees.

    Args:
        settings: "vrpr" (VRPR or a mapping of its fields), "tsa" (TSA or likewise), "temperature" (float), and for the
            parts of `FIELDS` a mapping under the part's name; what is absent or None is solved.

    Raises:
        StrategyError: unknown name, settings that a part does not take, or parts that contribute the same thing.
        SolveError: no settings exist for this geometry.
    """
    parts, settings = parse(name), settings or {}
    given: dict[str, Any] = {}
    for item in sorted(parts, key=lambda item: item == "vrpr"):  # VRPR is solved for what the other parts let be seen
        if item != "temp":
            _join(name, given, PARTS[item](geometry, settings, given))
    if "mixture" not in given:
        if "temp" in parts:  # last, because it looks at what is visible
            _join(name, given, PARTS["temp"](geometry, settings, given))
        return Strategy(name=name, **given)
    mixture = given.pop("mixture")
    members = []
    for member in mixture.strategies:
        own = {key: getattr(member, key) for key in _set_fields(member)}
        _join(name, own, given)
        if "temp" in parts:
            _join(name, own, PARTS["temp"](geometry, settings, own))
        members.append(replace(member, **own))
    return Strategy(name=name, mixture=mixture.with_strategies(tuple(members)))


def _join(name: str, given: dict[str, Any], more: Mapping[str, Any]) -> None:
    clash = given.keys() & more.keys()
    if clash:
        raise StrategyError(f"strategy {name!r}: two parts set the {', '.join(sorted(clash))}")
    given |= more


from . import peers  # noqa: E402, F401 - registers the peers' parts, which need `part` from above
