"""Settings: a YAML file and `key=value` overrides become a checked dataclass, or an error that says what to do.

OmegaConf merges, resolves and builds (structured configs); the checks before it give every mistake its dotted path, its
value and the nearest right name. Nothing here knows what a run's settings are.
"""

import copy
import dataclasses
import difflib
import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from envs.plugin import Plugin, did_you_mean, plugin_names
from envs.ranges import check_ranges, hints_of, limit_of, refuse_out_of_range
from rl.config.yaml_core import advice, read_yaml, yaml_line, yaml_text
from rollout.disk import replace_text

T = TypeVar("T")

_ACCEPTED: dict[Any, tuple[type, ...]] = {
    bool: (bool,),
    int: (int,),
    float: (int, float),
    str: (str,),
    Path: (str, Path),
}
"""What may stand for a single value; of other types OmegaConf decides. True and False are no numbers."""
_TAKEN = ("name", "module")
"""Keys of a plugin's entry that say which plugin; a class cannot have settings of these names."""


def load_settings(schema: type[T], path: Path, overrides: Sequence[str] = ()) -> T:
    """`schema` (a dataclass, nested ones included) from a YAML file and overrides.

    path: a file, or the name of a shipped one (see `find_config`). overrides: "dotted.key=value", the value in YAML
    (1.2, see rl/config/yaml_core.py); each replaces what stands at the key, whole mappings too. Interpolations
    ("${seed}") are resolved. Raises FileNotFoundError without a file, ValueError for everything that does not fit.
    """
    config = _read_yaml(path)
    for override in overrides:
        _apply(config, override)
    return cast(T, _checked(schema, cast(dict[str, Any], OmegaConf.to_container(config, resolve=False)), ""))


def overrides_mapping(overrides: Sequence[str]) -> dict[str, Any]:
    """What "dotted.key=value" overrides say, as a mapping of their own; raises ValueError for one of another form."""
    config = OmegaConf.create({})
    for override in overrides:
        _apply(config, override)
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))


def override_of(key: str, value: Any) -> str:
    """The override that sets `key` to `value` as it is, such as a path that YAML would read as a number."""
    return f"{key}={yaml_line(_plain(value))}"


def settings_from(schema: type[T], values: Mapping[str, Any], where: str) -> T:
    """`schema` from a mapping that was read already, checked as a file is; where: its dotted path, for errors."""
    return cast(T, _checked(schema, _plain(values), where))


def read_mapping(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """What a YAML file (see `find_config`) holds, overrides applied, unchecked, its interpolations resolved."""
    config = _read_yaml(path)
    for override in overrides:
        _apply(config, override)
    try:
        return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    except OmegaConfBaseException as error:
        raise ValueError(f"{path}: {error.full_key}: {str(error).splitlines()[0]}; correct that value.") from error


def save_settings(settings: Any, path: Path) -> None:
    """Write a settings dataclass as YAML in which nothing is left to resolve; loading it gives an equal object."""
    replace_text(path, yaml_text(_plain(settings)))


def shipped_configs(folder: str = "") -> list[str]:
    """Names of the YAML files that come with Polytrace, without ".yaml", sorted.

    folder: "" for those of jobs, `rewards`, `presets`, `findings`, `representations` or `label`.
    """
    files = resources.files("configs").joinpath(folder).iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def find_config(path: Path) -> Traversable:
    """The file that `path` means: one on disk, that of a run by its folder, else a shipped one.

    Shipped are `demo`, also as `demo.yaml` or `configs/demo.yaml`, and `rewards/iou` and `presets/qwen3_vl` in the same
    ways. Raises FileNotFoundError with the names that there are.
    """
    if path.is_file():
        return cast(Traversable, path)
    if (path / "config.yaml").is_file():
        return cast(Traversable, path / "config.yaml")
    name, folder = path.name.removesuffix(".yaml"), path.parent
    kinds = ("rewards", "presets", "findings", "representations", "label")
    kind = next((kind for kind in kinds if folder in (Path(kind), Path("configs") / kind)), "")
    shipped = shipped_configs(kind)
    if name in shipped and (kind or folder in (Path("."), Path("configs"))):
        return resources.files("configs") / kind / f"{name}.yaml"
    beside = sorted(file.name for file in folder.glob("[!.]*.yaml"))
    where = f"{path} is a folder" if path.is_dir() else f"there is no file {path}"
    raise FileNotFoundError(
        f"{where}{did_you_mean(name, [Path(file).stem for file in beside] + shipped)} Give a YAML file; "
        f"in {folder}/: {', '.join(beside) or 'no YAML file'}. Shipped: {', '.join(shipped) or 'none'}."
    )


def plugin_from_settings(
    package: str,
    class_name: str,
    entry: Mapping[str, Any],
    where: str,
    supplied: Sequence[str] = (),
    beside: type | None = None,
) -> Plugin:
    """The Plugin that a config entry asks for, its settings checked against the fields of the class.

    entry: `name`, or `module` (path of a file outside the packages, from the current folder), or both; every other key
    is a field of the class. where: the dotted path of the entry, for errors.
    supplied: fields that the program itself gives when it builds the object, so that a config may not.
    beside: a dataclass whose fields with a default may stand in the entry too; checked here, and left to the caller.
    Raises ValueError for what does not fit, FileNotFoundError where `module` is no file.
    """
    _check(entry, dict[str, Any], where)
    name, module = entry.get("name"), entry.get("module")
    _check(name, str | None, f"{where}.name")
    _check(module, str | None, f"{where}.module")
    if name is None and module is None:
        raise ValueError(
            f"{where} has no name; set {where}.name to one of {', '.join(plugin_names(package))}, "
            f"or {where}.module to a file that defines a class {class_name}."
        )
    path = None if module is None else Path(module).expanduser().resolve()
    recipe = Plugin(package, class_name, name or cast(Path, path).stem, {}, None if path is None else str(path))
    try:
        schema = _settable(recipe.load(), supplied, beside)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{where}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    given = {key: value for key, value in entry.items() if key not in _TAKEN}
    for key in given:
        if key in supplied:
            raise ValueError(f"{where}.{key} is {given[key]!r}, but the run itself gives {key}; remove the line.")
    built = vars(_checked(schema, _plain(given), where))
    own = [key for key in given if key not in _names_beside(beside)]
    return dataclasses.replace(recipe, settings={key: built[key] for key in own})


def _read_yaml(path: Path) -> DictConfig:
    content = find_config(path).read_bytes()
    try:
        held = read_yaml(content)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ValueError(f"{path}{place}: {error.problem or error.context}; correct the YAML there.") from error
    except (YAMLError, ValueError) as error:
        raise ValueError(f"{path} is not a YAML file of `key: value` lines: {error}.") from error
    if held is not None and not isinstance(held, dict):
        raise ValueError(f"{path} holds {str(held)[:40]!r} at the top; write lines of `key: value`.")
    try:
        return OmegaConf.create(held or {})
    except OmegaConfBaseException as error:
        raise ValueError(f"{path}: {error.full_key}: {str(error).splitlines()[0]}; correct that value.") from error


def _apply(config: DictConfig, override: str) -> None:
    """Set what a "dotted.key=value" says."""
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ValueError(f"override {override!r} is not of the form key=value, such as learner.lr=1e-5.")
    try:
        OmegaConf.update(config, key, read_yaml(text), merge=False)
    except MarkedYAMLError as error:
        raise ValueError(f"override {override!r}: {error.problem}; correct the YAML after the '='.") from error
    except (YAMLError, OmegaConfBaseException, ValueError) as error:
        raise ValueError(f"override {override!r} cannot be applied: {str(error).splitlines()[0]}.") from error


def _checked(schema: type, values: dict[str, Any], where: str) -> Any:
    """An instance of the dataclass `schema`; `where` is the dotted path of `values`, "" at the top."""
    _check(values, schema, where)
    try:
        built = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.create(values)))
    except MissingMandatoryValue as error:
        path = _join(where, str(error.full_key))
        raise ValueError(f"{path} has no value and no default; set it in the file, or by {path}=VALUE.") from error
    except OmegaConfBaseException as error:
        path = _join(where, str(error.full_key or ""))
        raise ValueError(f"{path}: {str(error).splitlines()[0]}; correct that value.") from error
    check_ranges(built, where)  # what interpolations gave
    return built


def _check(value: Any, hint: Any, where: str) -> None:
    """Raise ValueError at the first value that does not fit its type or its range.

    What interpolations give is checked when they are resolved: its type by OmegaConf, its range by `_checked`.
    """
    if get_origin(hint) is Annotated:
        _check(value, get_args(hint)[0], where)
        if not (isinstance(value, str) and "${" in value):
            refuse_out_of_range(value, limit_of(hint), where)
        return
    if hint is Any or (isinstance(value, str) and "${" in value):
        return
    origin, args = get_origin(hint) or hint, get_args(hint)
    if origin in (Union, UnionType):
        _check_union(value, hint, where)
    elif dataclasses.is_dataclass(hint):
        _check_fields(value, cast(type, hint), where)
    elif origin is dict:
        _require(isinstance(value, Mapping), value, hint, where)
        for key, item in value.items():
            _check(item, args[1] if args else Any, _join(where, str(key)))
    elif origin in (list, tuple):
        _require(isinstance(value, list | tuple), value, hint, where)
        same = origin is list or Ellipsis in args
        _require(same or not args or len(value) == len(args), value, hint, where)
        for i, item in enumerate(value):
            _check(item, args[0 if same else i] if args else Any, f"{where}[{i}]")
    else:
        _require(_fits(value, hint), value, hint, where)


def _check_union(value: Any, hint: Any, where: str) -> None:
    options = [option for option in get_args(hint) if option is not NoneType]
    if value is None and len(options) < len(get_args(hint)):
        return
    if len(options) == 1:
        _check(value, options[0], where)
    else:
        _require(any(_fits(value, option) for option in options), value, hint, where)


def _check_fields(value: Any, schema: type, where: str) -> None:
    _require(isinstance(value, Mapping), value, schema, where)
    hints = hints_of(schema)
    names = [field.name for field in dataclasses.fields(schema) if field.init]
    for key, item in value.items():
        if key not in names:
            near = [_join(where, path) for path in _near_paths(str(key), schema)]
            meant = f"; did you mean {near[0]}?" if near else "."
            there = f"Settings {f'of {where}' if where else 'at the top'}: {', '.join(names) or 'none'}."
            raise ValueError(f"{_join(where, str(key))} is not a setting{meant} {there}")
        _check(item, hints[key], _join(where, key))


def _near_paths(key: str, schema: type) -> list[str]:
    """Dotted paths of settings whose last part is like `key`, the schema's own before those of nested dataclasses."""
    hints = get_type_hints(schema)
    near = difflib.get_close_matches(key, hints, n=1)
    for name, hint in hints.items():
        if dataclasses.is_dataclass(hint):
            near += [f"{name}.{path}" for path in _near_paths(key, cast(type, hint))]
    return near


def _require(fits: bool, value: Any, hint: Any, where: str) -> None:
    if not fits:
        what_to_do = (
            " Put it in quotes." if hint is str and isinstance(value, bool | int | float) else advice(value, hint)
        )
        raise ValueError(f"{where} is {value!r}, expected {_type_name(hint)}.{what_to_do}")


def _fits(value: Any, hint: Any) -> bool:
    if hint not in _ACCEPTED:
        return True
    if value != value:  # not a number: no comparison in a later check would notice
        return False
    if hint is float and isinstance(value, int) and abs(value) > sys.float_info.max:
        return False
    return isinstance(value, _ACCEPTED[hint]) and (hint is bool or not isinstance(value, bool))


def _type_name(hint: Any) -> str:
    if get_origin(hint) is dict or dataclasses.is_dataclass(hint):
        return "a mapping of `key: value`"
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _settable(found: type, supplied: Sequence[str], beside: type | None) -> type:
    """A dataclass of what a config may set: a dataclass's fields, or the parameters of a constructor (nn.Module)."""
    specs: list[tuple[str, Any, Any]]
    if dataclasses.is_dataclass(found):
        specs = _field_specs(found)
    elif any("__init__" in vars(base) for base in found.__mro__[:-1]):  # its own, or that of what it builds on
        parameters = inspect.signature(found, eval_str=True).parameters.values()
        fields = [dataclasses.field(default=MISSING if p.default is p.empty else p.default) for p in parameters]
        specs = [(p.name, p.annotation, field) for p, field in zip(parameters, fields, strict=True)]
    else:
        raise ValueError(
            f"{found.__qualname__} of {_home(found)} is not a dataclass; make it one: its fields are its settings."
        )
    names = _names_beside(beside)
    for name, _, _ in specs:
        if name in names:
            raise ValueError(
                f"{found.__qualname__} of {_home(found)} has a field {name}, but some keys mean something else in "
                f"every such entry ({', '.join(names)}); give the field another name."
            )
    if beside is not None:
        specs += [spec for spec in _field_specs(beside) if spec[0] in names]
    taken = (*_TAKEN, *supplied)
    return dataclasses.make_dataclass(found.__name__, [spec for spec in specs if spec[0] not in taken], kw_only=True)


def _home(found: type) -> str:
    """Where a class is written, for people."""
    return sys.modules[found.__module__].__file__ or found.__module__


def _field_specs(schema: type) -> list[tuple[str, Any, Any]]:
    """What make_dataclass wants to make the fields of the dataclass `schema` again: name, type and field."""
    hints = hints_of(schema)
    return [(field.name, hints[field.name], copy.copy(field)) for field in dataclasses.fields(schema) if field.init]


def _names_beside(beside: type | None) -> list[str]:
    fields = () if beside is None else dataclasses.fields(beside)
    return [field.name for field in fields if field.default is not MISSING]


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where and key else where or key


def _plain(value: Any) -> Any:
    """Settings as what YAML holds: mappings, lists, text, numbers; "${" escaped, since nothing is left to resolve."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(vars(value)[field.name]) for field in dataclasses.fields(value) if field.init}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path | str):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", str(value))
    return value
