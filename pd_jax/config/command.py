"""What the command lines share: a config file, changes to it, and clear refusals."""

import importlib.metadata
import os
import pathlib
import re
import runpy
import sys
import traceback

from absl import flags
from ml_collections import ConfigDict, config_flags

from pd_jax import __version__
from pd_jax.runtime import registry
from pd_jax.runtime.errors import Refused

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Shipped config's name, or a file; then :VARIANT, if any"
)


def shipped() -> dict[str, pathlib.Path]:
    """The configs that come with pd_jax: name -> file."""
    package = pathlib.Path(__file__).parents[1]
    folder = (
        package / "configs"
    )  # where installed; a checkout has it beside the package
    folder = folder if folder.is_dir() else package.parent / "configs"
    return {file.stem: file for file in sorted(folder.glob("*.py"))}


def _no_config() -> Refused:
    return Refused(
        f"--config=NAME is missing: a file, or one of {', '.join(shipped())}"
    )


def _resolve(given: str) -> str:
    """A config as it was given, with the file in place of a shipped one's name."""
    name, colon, variant = given.partition(":")
    known = shipped()
    if pathlib.Path(name).is_file():
        return given
    if name in known:
        return f"{known[name]}{colon}{variant}"
    raise Refused(
        f"--config={given}: no such file; give a file's path, or the name of a config "
        f"that comes with pd_jax: {', '.join(known)}."
        + registry.suggest(pathlib.PurePath(name).stem, known)
    )


def _load(given: str) -> dict:
    """A config file's values, ahead of the flag; Refused says what is off."""
    file, _, variant = given.partition(":")
    try:
        get_config = runpy.run_path(file).get("get_config")
    except SyntaxError as error:
        raise Refused(f"{file} is not Python: {error}") from error
    except Exception as error:  # the file is a program, and can fail in any way
        raise Refused(_failed(file, error)) from error
    if get_config is None:
        raise Refused(f"{file}: defines no get_config(variant), so is no config file")
    try:
        values = get_config(variant) if variant else get_config()
    except (AttributeError, KeyError) as error:  # a key that a config does not have
        text, _, others = str(error.args[0]).partition(" Other fields")
        hint = re.search(r"Did you mean[^?]*\?", others)
        raise Refused(f"{file}: {text} {hint[0] if hint else ''}") from error
    except Exception as error:
        raise Refused(_failed(file, error)) from error
    if not isinstance(values, ConfigDict):
        raise Refused(
            f"{file}: get_config returns {type(values).__name__}; begin with "
            "pd_jax.config.default(data, model), change its keys and return it"
        )
    from pd_jax.config import flatten  # late, as it takes a second

    return dict(flatten(values))


def _failed(file: str, error: Exception) -> str:
    """An error within a config file, with its line there."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == file]
    at = f", line {lines[-1]}" if lines else ""
    # In Python's own words: Refused is a name of this package.
    kind = "ValueError" if isinstance(error, Refused) else type(error).__name__
    return f"{file}{at}: {kind}: {error}"


def _at_home(argument: str) -> str:
    """A flag with the home folder in place of a ~ that its value begins with."""
    flag, equals, value = argument.partition("=")
    if not flag.startswith("-") or not value.startswith("~"):
        return argument
    return flag + equals + os.path.expanduser(value)


def _parse(argv: list[str]) -> list[str]:
    """Parses flags; Refused says what is wrong with them."""
    argv, given, keys = list(map(_at_home, argv)), None, {}
    for i, argument in enumerate(argv):
        if re.fullmatch("--?config", argument) and i + 1 < len(argv):
            given = argv[i + 1]
            argv[i + 1] = file = _resolve(given)
        elif re.match("--?config=", argument):
            given = argument.split("=", 1)[1]
            file = _resolve(given)
            argv[i] = f"--config={file}"
    if given is not None:
        keys = _load(file)
    # Ahead of the flags' own parsing, for one clear line instead of a traceback.
    for argument in argv:
        key = re.match(r"--?config\.([^=\[]*)", argument)
        if key and given is None:
            raise _no_config()
        if key and key[1] not in keys:
            raise Refused(
                f"--config.{key[1]}: no such key in {given}."
                + registry.suggest(key[1], keys)
            )
    try:
        return flags.FLAGS(argv)[1:]
    except (flags.Error, IndexError, TypeError, ValueError) as error:
        raise Refused(f"{error}; flags are --name=value") from error


def parse(argv: list[str], usage: str) -> list[str]:
    """Parses a command line; flags have their values then.

    Args:
      argv: the program and its arguments.
      usage: what --help prints; it and --version end the program.

    Returns:
      The arguments that are not flags.

    Raises:
      Refused: for a flag, config file or key that is unknown or malformed.
    """
    if "--help" in argv or "-h" in argv:
        print(usage)
        sys.exit(0)
    if "--version" in argv:
        print(f"pd_jax {__version__}, jax {importlib.metadata.version('jax')}")
        sys.exit(0)
    return _parse(argv)


def no_more(rest: list[str]) -> None:
    """Refuses arguments that are not flags."""
    if rest:
        raise Refused(f"unexpected argument {rest[0]}: flags are --name=value")


def config() -> ConfigDict:
    """The config that was given; Refused where there is none."""
    if CONFIG.value is None:
        raise _no_config()
    return CONFIG.value


def name() -> str:
    """The config file's name without its suffix, and ":VARIANT" where one is given."""
    given = config_flags.get_config_filename(flags.FLAGS["config"])
    file, colon, variant = given.partition(":")
    return pathlib.Path(file).stem + (colon + variant if variant else "")
