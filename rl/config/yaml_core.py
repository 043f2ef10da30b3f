"""YAML by the core schema of YAML 1.2: 010 is ten, and no, on, 12:30 and 1_000 are text.

PyYAML and OmegaConf go by YAML 1.1, where these are eight, false, true, 750 and 1000. Where a number or a bool is
expected, text is refused, so that none of these is ever taken for another. https://yaml.org/spec/1.2.2, 10.3.2.
"""

import re
from typing import IO, Any, ClassVar, get_origin

import yaml

_TAG = "tag:yaml.org,2002:"
_PLAIN = {
    "null": ("~nN", re.compile(r"(?:~|null|Null|NULL|)\Z")),
    "bool": ("tTfF", re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")),
    "int": ("-+0123456789", re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z")),
    "float": (
        "-+.0123456789",
        re.compile(
            r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
        ),
    ),
}
"""By kind of value: how its text may begin, and all of its text."""
_MEANT_AS_BOOL = {"y", "yes", "on", "n", "no", "off"}
_MEANT_AS_NUMBER = re.compile(r"[-+]?(?:0b[01_]+|0[xo][0-9a-f_]+|\.?[0-9][0-9_:.]*(?:e[-+]?[0-9_]+)?)\Z", re.IGNORECASE)


def read_yaml(text: str | bytes | IO[bytes]) -> Any:
    """What one YAML document holds, None for an empty one. Raises yaml.YAMLError, mostly with its place."""
    return yaml.load(text, Loader=_CoreLoader)


def yaml_text(value: Any) -> str:
    """Mappings, lists and plain values as YAML that every reader, of 1.1 or 1.2, reads as `value`."""
    return str(yaml.dump(value, Dumper=_Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False))


def yaml_line(value: Any) -> str:
    """YAML of a value in one line, to stand behind the "=" of an override."""
    flow = yaml.dump([value], Dumper=_Dumper, default_flow_style=True, allow_unicode=True, sort_keys=False, width=2**31)
    return str(flow).strip()[1:-1]


def advice(value: Any, wanted: type) -> str:
    """What to write where `value` is text that YAML 1.1 would take for a bool or a number; "" for anything else."""
    if not isinstance(value, str):
        return ""
    if wanted is bool and value.lower() in _MEANT_AS_BOOL:
        return " Write true or false."
    if wanted in (int, float) and _MEANT_AS_NUMBER.match(value):
        return " Write it in plain digits, without quotes."
    if get_origin(wanted) is dict and value.isidentifier():
        return f" Write {{name: {value}}}, or set its key `name` alone."
    return ""


class _CoreLoader(yaml.SafeLoader):
    """Plain values by the core schema, merge keys as ever; a key given twice is an error."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            name = (key.tag, key.value if isinstance(key, yaml.ScalarNode) else key.start_mark.index)
            if name in seen:
                problem = f"found duplicate key {key.value}"
                raise yaml.constructor.ConstructorError(
                    "while constructing a mapping", node.start_mark, problem, key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes text that either schema would read as something else."""


def _plain(loader: Any, node: Any) -> Any:
    kind, text = node.tag.removeprefix(_TAG), loader.construct_scalar(node)
    if not _PLAIN[kind][1].match(text):
        raise yaml.constructor.ConstructorError(None, None, f"{text!r} is no {kind} of YAML 1.2", node.start_mark)
    if kind == "int":
        return int(text[2:], 8 if text[1] == "o" else 16) if text[:2] in ("0o", "0x") else int(text)
    if kind == "float":
        return float(re.sub(r"\.(?=[in])", "", text.lower()))  # Python says inf and nan without the dot
    return None if kind == "null" else text.lower() == "true"


def _whole(loader: Any, node: Any) -> Any:
    """A mapping or a list, built at once, so that one that holds itself is an error."""
    mapping = isinstance(node, yaml.MappingNode)
    return loader.construct_mapping(node, deep=True) if mapping else loader.construct_sequence(node, deep=True)


def _text(dumper: Any, text: str) -> Any:
    meant = text.lower() in _MEANT_AS_BOOL | {"nan", "inf"} or _MEANT_AS_NUMBER.match(text)
    style = "'" if meant else None if text.isprintable() else '"'  # line breaks escaped
    return dumper.represent_scalar(f"{_TAG}str", text, style=style)


for _kind, (_begins, _pattern) in _PLAIN.items():
    for _class in (_CoreLoader, _Dumper):
        _class.add_implicit_resolver(_TAG + _kind, _pattern, [*_begins, ""] if _kind == "null" else list(_begins))
    _CoreLoader.add_constructor(_TAG + _kind, _plain)
_CoreLoader.add_implicit_resolver(f"{_TAG}merge", re.compile(r"<<\Z"), ["<"])
_CoreLoader.add_constructor(f"{_TAG}map", _whole)
_CoreLoader.add_constructor(f"{_TAG}seq", _whole)
_Dumper.add_representer(str, _text)
