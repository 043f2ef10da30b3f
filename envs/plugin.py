"""To add something, add one file: a config names the file, the file defines one class, its fields are its settings.

A Plugin is the recipe, not the thing: it is small and picklable, so it travels to workers, and each builds its own.
"""

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Plugin:
    """A class in a file, and the settings to build it with."""

    package: str
    """Import package of the folder that holds plugins of this kind; for people only where `module` is set."""
    class_name: str
    """What the file must define: Reward, Policy, Head, Algorithm, Env, Codec or Engine."""
    name: str
    """Name of the file without ".py"; with `module`, what the config calls it."""
    settings: dict[str, Any]
    """Fields of the class that the config sets, already of the right types; the others keep their defaults."""
    module: str | None = None
    """Path of a file outside the packages; absolute where workers run in another folder."""

    def load(self) -> type:
        """The class itself.

        Raises ValueError where no such file or class is, FileNotFoundError where `module` is no file. What the file's
        own code raises passes through.
        """
        module = self._import_named() if self.module is None else _import_file(Path(self.module))
        defined_there = vars(module)
        found = defined_there.get(self.class_name)
        if not isinstance(found, type):
            defined = (
                ", ".join(key for key, value in defined_there.items() if isinstance(value, type)) or "no class at all"
            )
            raise ValueError(
                f"{module.__file__} defines no class {self.class_name} (it has {defined}); "
                f"name the class of that file {self.class_name}."
            )
        return found

    def takes(self, name: str) -> bool:
        """Whether the class can be given `name`. Raises as `load` does."""
        return name in inspect.signature(self.load()).parameters

    def build(self, **extra: Any) -> Any:
        """An instance from the settings and what the program itself gives, such as `split`."""
        return self.load()(**self.settings, **extra)

    def with_settings(self, **changed: Any) -> "Plugin":
        """This recipe with some settings changed."""
        return replace(self, settings=self.settings | changed)

    def _import_named(self) -> ModuleType:
        names = plugin_names(self.package)
        if self.name in names:
            return importlib.import_module(f"{self.package}.{self.name}")
        raise ValueError(
            f"no {self.class_name} in {self.package.replace('.', '/')}/ is called {self.name!r}"
            f"{did_you_mean(self.name, names)} There are: {', '.join(names) or 'none'}. "
            "A file of your own is reached by `module: path/to/file.py`."
        )


def plugin_names(package: str) -> list[str]:
    """What may be named of a plugin folder, sorted: its files, but `base.py` and those that begin with `_`.

    package: import package of the folder, such as `envs.datasets`. Nothing is imported or read.
    """
    files = [Path(file.name) for file in resources.files(package).iterdir()]
    stems = [file.stem for file in files if file.suffix == ".py" and file.stem.isidentifier()]
    return sorted(stem for stem in stems if stem != "base" and not stem.startswith("_"))


def did_you_mean(name: str, names: Sequence[str]) -> str:
    """How to end a sentence about a wrong name: "; did you mean 'nearest'?", or "." where nothing is near."""
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else "."


def _import_file(path: Path) -> ModuleType:
    """Import a file by its path, once a process; its module name follows from the path, the same in every process."""
    path = path.resolve()
    if not path.is_file():
        raise FileNotFoundError(f"module: {path} is not a file; give the path of a Python file.")
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:16]
    name = f"polytrace_plugin_{path.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"module: {path} is not a Python file; its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their own module up while they are made, so it is registered first.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
