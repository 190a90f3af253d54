"""Code of the user's on machines that have none of his files: what was imported for a study, sent through the store.

It is named by its content, which the controller sends, so a machine runs what the user's own process has imported, or
nothing: a store that gives other files than those of that name is not believed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kdnas.checksums import file_sha256
from kdnas.errors import ConfigError, RunFolderError
from kdnas.plugins import bring, load_plugin, plugin_folder, plugins_named, vouch
from kdnas.store import Store
from kdnas.study.config import StudyConfig
from kdnas.trust import code_named
from kdnas.user_code import load_user_object

_DATA = "data"
"""The folder of the functions that are looked for in the data root."""


@dataclass(frozen=True)
class TravellingCode:
    """The user's files that a study has imported, under `name` in a store; no name: none."""

    name: str = ""
    specs: tuple[str, ...] = ()
    """The plug-ins among it, which the user's own study named."""
    folders: Mapping[str, str] = field(default_factory=dict)
    """Where its plug-ins lie on the controller's machine, and in what is sent."""

    def arrive(self, store: Store, cache: Path) -> Path | None:
        """Have the code importable in this process and those that it starts; return what stands for the data root.

        Files of the same path that are here are used as they are. Raises RunFolderError where the store has other ones.
        """
        vouch(self.specs)
        if not self.name:
            return None
        here = cache / "code" / self.name
        if not here.exists() and not store.get(f"code/{self.name}", here):
            raise RunFolderError("the store does not have the study's own code any more: start the search again")
        if _digest(_files(here)) != self.name:
            shutil.rmtree(here, ignore_errors=True)
            raise RunFolderError("the store has other code than that of the study: it is not run")
        bring({folder: str(here / inside) for folder, inside in self.folders.items() if not Path(folder).is_dir()})
        return here / _DATA


def send_code(config: StudyConfig, family: str, data_root: Path, store: Store) -> TravellingCode:
    """Return what stands for the code that a study and the `family` of its space name, once `store` has it."""
    settings = {**config.model_dump(mode="json"), "family": family}
    plugins = plugins_named(settings)
    specs = tuple(plugin.spec for plugin in plugins)
    if not store.is_shared:
        return TravellingCode(specs=specs)
    files: dict[str, Path] = {}
    folders: dict[str, str] = {}
    for plugin in plugins:
        if folder := plugin_folder(plugin.spec):
            inside = folders.setdefault(folder, f"plugins{len(folders)}")
            files |= {f"{inside}/{place}": path for place, path in load_plugin(plugin.spec).sources.items()}
    for named in code_named(settings):
        if not named.plugin:
            try:
                sources = load_user_object(named.spec, data_root).sources
            except ConfigError:  # it lies where the workers are, or they report what is wrong with it
                continue
            files |= {f"{_DATA}/{place}": path for place, path in sources.items()}
    if not files:
        return TravellingCode(specs=specs)
    name = _digest(files)
    if not store.has(f"code/{name}"):
        with tempfile.TemporaryDirectory() as scratch:
            for place, path in files.items():
                (Path(scratch) / place).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, Path(scratch) / place)
            store.put(f"code/{name}", Path(scratch))
    return TravellingCode(name, specs, folders)


def _files(folder: Path) -> dict[str, Path]:
    return {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if path.is_file() and path.parent.name != "__pycache__"
    }


def _digest(files: Mapping[str, Path]) -> str:
    sums = {place: file_sha256(path) for place, path in files.items()}
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()[:24]
