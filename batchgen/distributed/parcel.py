"""What an engine's host is made from, on its way to another process, which may not find the user's own modules."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from ray import cloudpickle

from batchgen.errors import EngineStartError, UserError
from batchgen.fleet import HostConfig


@dataclass(frozen=True)
class Parcel:
    """A pickled config.

    A class of the user's own goes by its module's name, unless it is in the script itself or in a notebook. Ray lets an
    actor find modules in the script's folder and where the driver runs; those in folders that the driver has added to
    its path it would not find, and say nothing of them.

    Args:
        paths: folders of the driver's path, but for those of its Python.
    """

    data: bytes
    paths: tuple[str, ...]

    @classmethod
    def of(cls, config: HostConfig) -> Parcel:
        """A config, packed.

        Raises:
            UserError: something in it, which is of the user's own, cannot be pickled.
        """
        try:
            data = cloudpickle.dumps(config)
        except Exception as error:  # of any type: a class of the user's own may raise its own
            raise UserError(f"tasks: a class of your own cannot be sent to the engines' processes: {error}") from error
        folders = [Path(path).resolve() for path in sys.path]
        return cls(data, tuple(str(folder) for folder in folders if not _is_python_s(folder)))

    def opened(self) -> HostConfig:
        """The config.

        Raises:
            EngineStartError: a module that it names is not there, or fails.
        """
        sys.path.extend(path for path in self.paths if path not in sys.path)
        try:
            config: HostConfig = cloudpickle.loads(self.data)
        except Exception as error:  # of any type: it imports the user's own modules
            message = f"{type(error).__name__}: {error}; what your own tasks and steps import has to be there, too"
            raise EngineStartError(message, final=True) from error
        return config


def _is_python_s(folder: Path) -> bool:
    """Whether a folder belongs to an installation of Python, which the other process has one of."""
    packages = {"site-packages", "dist-packages"} & {*folder.parts}
    return bool(packages) or any(
        folder.is_relative_to(Path(prefix).resolve()) for prefix in (sys.prefix, sys.base_prefix)
    )
