"""A profile: what one model needs to run beyond its trained length, layer by layer.

A profile says which strategy each layer gets and carries the settings that are known. Whatever it leaves out is solved
for the length and resolution at hand. It is plain data: immutable, hashable and comparable; `profile_json` has the file
format.
"""

from __future__ import annotations

import importlib.resources
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, cast

from freeloc_fx.compat import unwrapped
from freeloc_fx.errors import PlanError, ProfileError
from freeloc_fx.method import solve
from freeloc_fx.method.build import parse
from freeloc_fx.method.positions import VRPR
from freeloc_fx.method.sensitivity import Sensitivity
from freeloc_fx.method.visibility import TSA

from . import fingerprint, profile_json
from .layer_strategy import Layer, LayerLike, LayerStrategy, name_of
from .profile_fields import (
    factor,
    json_object,
    layers_field,
    lengths,
    part_settings,
    per_layer,
    sensitivities,
    sorted_items,
    stages,
    to_json,
)
from .profile_json import FrozenMapping, integer, string
from .settings import SizedTSA, tiers

__all__ = ["LayerStrategy", "Profile", "Sensitivity", "SizedTSA"]


VRPRSetting = VRPR | Mapping[str, Any]


TSASetting = TSA | SizedTSA | Mapping[str, Any]


@dataclass(frozen=True)
class Profile:
    """Strategies and settings for the layers of one model.

    Args:
        trained_frames: latent frames of the training clips, at least 2.
        layers: one strategy for all layers, or layer index -> strategy; layers absent from a mapping are "direct". A
            strategy is a name, "vrpr+tsa"; or a part with settings that hold for this layer only and win over the
            fields below, `VRPR(10, 14, 2, 8)`; or a tuple of such parts and names, `(VRPR(10, 14, 2, 8), "tsa+temp")`.
            It is kept as a name or a `LayerStrategy`.
        vrpr: None or "solved"; or settings (a `VRPR` or a mapping of its fields) for every length; or a mapping from
            target latent frames to those, other lengths being solved.
        tsa: likewise with `TSA`. A mapping of fields may add "tokens": the settings then hold for that many tokens of
            one latent frame only (D_s counts tokens) and other resolutions are solved.
        temperature: what "+temp" multiplies scores by, one number or layer index -> number; solved where absent.
        parts: settings of other parts of strategy names, by the part's name: {"riflex": {"k": 4}}. `strategies()`
            lists what each takes; what is left out is solved or the method's default.
        lengths: other layers for other lengths: {41: {"layers": ..., "temperature": ...}, ...} by target latent frames,
            both as the fields of that name, the temperature optional. A clip takes those of the nearest ratio of
            lengths; the fields `layers` and `temperature` are then not used.
        schedule: other strategies for the first denoising steps: [{"steps": 5, "layers": "direct"}, ...] runs those
            layers (as in `layers`) for so many steps, entry after entry, and then `layers`. Nothing recompiles.
        quantise: "pair" or "separable", for VRPR settings that are solved or do not say (see `VRPR`).
        name: shown in plans and errors.
        model: the model it is for: {"class": class name, "config": {key: value that must match, ...}}; None: any.
        layer_count: number of layers of the model; None: any.
        sensitivities: layer index -> `Sensitivity` or a mapping of its fields.
        provenance: where the numbers come from, any JSON object.

    Raises:
        ProfileError: a field is malformed; the message begins with the field's path, as in "vrpr.41.w1: ...".
    """

    trained_frames: int
    layers: LayerLike | Mapping[int, LayerLike] = "vrpr+tsa"
    _: KW_ONLY
    vrpr: VRPRSetting | Mapping[int, VRPRSetting] | Literal["solved"] | None = None
    tsa: TSASetting | Mapping[int, TSASetting] | Literal["solved"] | None = None
    temperature: float | Mapping[int, float] | None = None
    parts: Mapping[str, Mapping[str, Any]] | None = None
    lengths: Mapping[int, Mapping[str, Any]] | None = None
    schedule: Sequence[Mapping[str, Any]] | None = None
    quantise: Literal["pair", "separable"] = "pair"
    name: str = "by hand"
    model: Mapping[str, Any] | None = None
    layer_count: int | None = None
    sensitivities: Mapping[int, Sensitivity] | None = None
    provenance: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        integer("trained_frames", self.trained_frames, 2, " latent frames")
        if self.layer_count is not None:
            integer("layer_count", self.layer_count, 1)
        if self.quantise not in ("pair", "separable"):
            raise ProfileError(f"quantise: expected 'pair' or 'separable', found {self.quantise!r}")
        if not string("name", self.name):
            raise ProfileError("name: expected a non-empty string, found ''")
        values = {
            "layers": layers_field("layers", self.layers, self.trained_frames, self.quantise),
            "vrpr": self._settings_field("vrpr", self.vrpr),
            "tsa": self._settings_field("tsa", self.tsa),
            "temperature": per_layer("temperature", self.temperature, factor, optional=True),
            "parts": part_settings(self.parts),
            "lengths": lengths(self.lengths, self.trained_frames, self.quantise),
            "schedule": stages(self.schedule, self.trained_frames, self.quantise),
            "model": fingerprint.field(self.model),
            "sensitivities": sensitivities(self.sensitivities),
            "provenance": json_object("provenance", self.provenance),
        }
        for field, value in values.items():
            object.__setattr__(self, field, value)
        if self.layer_count is not None:
            self._check_indices(self.layer_count)

    def _settings_field(self, kind: Literal["vrpr", "tsa"], value: Any) -> Any:
        """Check the field `vrpr` or `tsa`."""
        if value is None or value == "solved" or (isinstance(value, Mapping) and not value):
            return None
        if not (isinstance(value, Mapping) and any(isinstance(key, int) for key in value)):
            return tiers(kind, kind, value, self.quantise)
        entries = {}
        for frames, item in sorted_items(kind, value, "target latent frames"):
            if frames <= self.trained_frames:
                raise ProfileError(
                    f"{kind}.{frames}: expected target latent frames above the trained {self.trained_frames}"
                )
            entries[frames] = tiers(kind, f"{kind}.{frames}", item, self.quantise)
        return FrozenMapping(entries)

    def _check_indices(self, count: int) -> None:
        """Refuse layer indices from `count` on, wherever the profile has layer indices."""
        fields = {field: getattr(self, field) for field in ("layers", "temperature", "sensitivities")}
        for frames, item in (self.lengths or {}).items():
            fields |= {f"lengths.{frames}.{field}": value for field, value in item.items()}
        for index, stage in enumerate(self.schedule or ()):
            fields[f"schedule.{index}.layers"] = stage["layers"]
        for path, value in fields.items():
            for layer in value if isinstance(value, Mapping) else ():
                if layer >= count:
                    raise ProfileError(f"{path}.{layer}: expected a layer of 0 to {count - 1}, found {layer}")

    # What a layer gets

    def at(self, frames: int) -> Profile:
        """Give the profile for clips of one length: with the layers and temperature of the nearest of `lengths`.

        A profile without `lengths` is the same for all.

        Args:
            frames: latent frames of the clip.

        Returns:
            The profile, without `lengths`.
        """
        if self.lengths is None:
            return self
        nearest = min(self.lengths, key=lambda n: abs(math.log(n / frames)))
        item = self.lengths[nearest]
        return replace(self, layers=item["layers"], temperature=item.get("temperature"), lengths=None)

    @property
    def strategy_names(self) -> frozenset[str]:
        """Names of all strategies that the profile gives to layers, at any length and denoising step."""
        given = [self.layers, *(item["layers"] for item in (*(self.lengths or {}).values(), *(self.schedule or ())))]
        return frozenset(
            name_of(one) for layers in given for one in (layers.values() if isinstance(layers, Mapping) else (layers,))
        )

    def strategy_name(self, layer: int) -> str:
        """Give the name of a layer's strategy.

        Args:
            layer: index of the layer.

        Returns:
            The name, with the parts joined by "+"; "direct" where the profile does not mention the layer.
        """
        return name_of(self._strategy(layer, None))

    def stages(self, layer: int) -> tuple[tuple[int, str], ...]:
        """Give what a layer runs in the first denoising steps.

        Args:
            layer: index of the layer.

        Returns:
            ((n, strategy name), ...) in order: before denoising step n the layer runs that strategy. Empty without a
            schedule.
        """
        result, stop = [], 0
        for index, stage in enumerate(self.schedule or ()):
            stop += stage["steps"]
            result.append((stop, name_of(self._strategy(layer, index))))
        return tuple(result)

    def _strategy(self, layer: int, stage: int | None) -> Layer:
        """Give the strategy of a layer in one entry of the schedule, or after all of them (None)."""
        layers: Any = self.layers if stage is None else (self.schedule or ())[stage]["layers"]
        found: Layer = layers.get(layer, "direct") if isinstance(layers, Mapping) else layers
        return found

    def settings(
        self, layer: int, frames: int, tokens: int | None = None, *, stage: int | None = None
    ) -> dict[str, Any]:
        """Give the settings of a layer in the form that `freeloc_fx.method.build.build` takes.

        Args:
            layer: index of the layer.
            frames: latent frames of the target.
            tokens: tokens of one latent frame; TSA settings that name a number of tokens apply where it is this one.
            stage: index of an entry of the schedule, for the settings in those denoising steps; None for those after.

        Returns:
            {"vrpr": VRPR, "tsa": TSA, "temperature": float}, where None means that it is to be solved, and those of
            `parts` under the parts' names. What the layer's own strategy carries stands in place of the profile's.
        """
        chosen = self._strategy(layer, stage)
        own = chosen.settings if isinstance(chosen, LayerStrategy) else {}
        vrpr: VRPR | None = self._entry_for(own.get("vrpr", self.vrpr), frames)
        solved = vrpr is None and "vrpr" in parse(name_of(chosen)) and frames > self.trained_frames
        if solved and self.quantise == "separable":
            vrpr = solve.vrpr(self.trained_frames, frames, "separable")
        tsa = self._entry_for(own.get("tsa", self.tsa), frames)
        if isinstance(tsa, SizedTSA):
            tsa = tsa.settings if tsa.tokens == tokens else None
        scale = self.temperature
        if isinstance(scale, Mapping):
            scale = scale.get(layer)
        rest = {part: item for part, item in own.items() if part not in ("vrpr", "tsa")}
        return {"vrpr": vrpr, "tsa": tsa, "temperature": scale, **(self.parts or {}), **rest}

    @staticmethod
    def _entry_for(value: Any, frames: int) -> Any:
        """Give the settings for a length, from a mapping by lengths or settings for all lengths."""
        return value.get(frames) if isinstance(value, Mapping) else value

    def with_layers(self, layers: LayerLike | Mapping[int, LayerLike], name: str | None = None) -> Profile:
        """Give a copy with other strategies, at every length and in every denoising step.

        Kept are the settings (`vrpr`, `tsa`, `parts`, `quantise`), what says which model it is for, and the temperature
        of each length: where there are `lengths` they get the new strategies and keep their temperatures, and those
        without one are solved. The strategies of `lengths` and the whole `schedule` are not kept: a schedule for the
        new ones is `dataclasses.replace(copy, schedule=...)`. The provenance says so and has the original's.

        Args:
            layers: the strategies, as in the profile's field.
            name: the copy's name; None for one made from the profile's.

        Raises:
            ProfileError: `layers` is malformed.
        """
        own = {frames: item.get("temperature") for frames, item in (self.lengths or {}).items()}
        differ = any(value is not None for value in own.values())
        return replace(
            self,
            layers=layers,
            temperature=None if own else self.temperature,  # beside `lengths` it stands for none
            lengths={n: {"layers": layers, "temperature": value} for n, value in own.items()} if differ else None,
            schedule=None,
            name=name or f"{self.name}, {layers if isinstance(layers, str) else 'other layers'}",
            provenance={"source": "layers replaced", "base": self.name, "base_provenance": self.provenance},
        )

    # Whether it fits a model

    def check_layers(self, count: int) -> None:
        """Refuse a number of layers that the profile cannot serve.

        Args:
            count: the number of the model's layers.

        Raises:
            ProfileError: the profile is for another number, or names a layer that the model does not have.
        """
        if self.layer_count is not None and self.layer_count != count:
            raise ProfileError(
                f"layer_count: profile {self.name!r} is for {self.layer_count} layers, the model has {count}"
            )
        self._check_indices(count)

    def check_model(self, model: Any) -> None:
        """Refuse a model that the profile is not for, by class and config or by matrices; one for any model passes.

        Args:
            model: a diffusers transformer, or anything with `.config`, compiled or not.

        Raises:
            PlanError: the message begins with the path of what differs.
        """
        if self.model is not None:
            fingerprint.check(self.model, self.name, model)

    # Files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the profile as JSON; a reader sees the old file or the new one, never a part.

        Args:
            path: the file, which may exist.

        Raises:
            OSError: the folder is missing or cannot be written.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        profile_json.write(Path(path), {name: to_json(value) for name, value in values.items() if value is not None})

    @classmethod
    def load(cls, name_or_path: str | os.PathLike[str]) -> Profile:
        """Load a shipped profile by its name, or one from a file.

        Args:
            name_or_path: one of `names`, or the path of a JSON file.

        Raises:
            ProfileError: no such profile or file, or its content is malformed; the message begins with the field's
                path and ends with the file.
        """
        if isinstance(name_or_path, str) and name_or_path in cls.names():
            data = (importlib.resources.files("freeloc_fx.profiles") / f"{name_or_path}.json").read_bytes()
            return cls._from_json(data, f"shipped profile {name_or_path!r}")
        path = Path(name_or_path)
        try:
            data = path.read_bytes()
        except (OSError, ValueError) as error:
            why = "no such file" if isinstance(error, FileNotFoundError) else str(error)
            shipped = ", ".join(cls.names())
            raise ProfileError(
                f"profile {os.fspath(name_or_path)!r}: expected the path of a JSON file ({why}) "
                f"or the name of a shipped profile ({shipped})"
            ) from error
        return cls._from_json(data, str(path))

    @classmethod
    def _from_json(cls, data: bytes, source: str) -> Profile:
        """Make a profile from a file's content; messages end with the source."""
        try:
            return cls(**profile_json.read(data, tuple(field.name for field in fields(cls))))
        except RecursionError:
            raise ProfileError(f"nested too deeply (in {source})") from None
        except ProfileError as error:
            raise ProfileError(f"{error} (in {source})") from error

    @staticmethod
    def names() -> tuple[str, ...]:
        """List the names of the shipped profiles, sorted."""
        files = importlib.resources.files("freeloc_fx.profiles").iterdir()
        return tuple(sorted(file.name.removesuffix(".json") for file in files if file.name.endswith(".json")))

    @classmethod
    def for_model(cls, model: Any) -> Profile:
        """Find the shipped profile made for a model, told by the model's class and config, or by its matrices.

        Args:
            model: a diffusers transformer, or anything with `.config`, compiled or not; or the same checkpoint as
                another code base has it, where the profile counts its matrices.

        Returns:
            The fitting profile that names most of the config.

        Raises:
            ProfileError: none was; the message says how to make one.
        """
        fitting = []
        for name in cls.names():
            profile = cls.load(name)
            try:
                profile.check_model(model)
            except PlanError:
                continue
            if profile.model is not None:
                fitting.append(profile)
        if fitting:
            return max(fitting, key=lambda profile: len(cast("Mapping[str, Any]", profile.model)["config"]))
        raise ProfileError(
            f"no shipped profile is for this {type(unwrapped(model)).__name__} "
            f"(shipped: {', '.join(cls.names())}).\nMake one by hand, with the latent frames of the training clips:\n"
            '    profile = freeloc_fx.Profile(trained_frames=16, layers="vrpr+tsa")\n'
            "or, with a strategy per layer chosen from what each layer is sensitive to, by\n"
            "    freeloc_fx.probe(pipe, prompts=[...], trained_frames=16)"
        )
