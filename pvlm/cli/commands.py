"""Commands and groups of commands on typer, and parameters that stand for a set of options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import Any, get_type_hints

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from pvlm.cli.names import Names, check, completing
from pvlm.errors import PvlmError

SEVERAL = "..."
"""The end of a metavar: the option takes all words up to the next option."""
HELP_NAMES = ["-h", "--help"]
ASKING, MEASURING, HOSTS = "Ask", "Measure", "This host and others"
"""Panels of the commands."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base of a set of options that several commands share. A field is an option: ``Annotated[type, option(...)]``."""


def option(
    *names: str,
    metavar: str | None = None,
    help: str,
    panel: str | None = None,
    kind: str | None = None,
    **more: Any,
) -> Any:
    """An option of a command. ``help``: ``{NAME}`` in it stands for names that `Names` looks up.

    ``kind``: the value is a name, or names, of this kind (see `pvlm.cli.names.names`), which are completed and checked.
    """
    if kind is not None:
        more = {"callback": check(kind), "autocompletion": completing(kind), **more}
    more = {"show_default": False, **more}
    return typer.Option(*names, metavar=metavar, help=help, rich_help_panel=panel, **more)


class Command(TyperCommand):
    """A command whose help names installed plug-ins, and whose options may take several words."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As in the base class, after options of several words were repeated for each word."""
        several = [name for one in self.params if (one.metavar or "").endswith(SEVERAL) for name in one.opts]
        return super().parse_args(ctx, repeated(args, several))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """As in the base class, with the names that are known only now."""
        _prepare_help(self.get_params(ctx))
        super().format_help(ctx, formatter)


class Group(TyperGroup):
    """A group of commands, which shows its help if no command is given."""

    default = HELP_NAMES[1]
    """Stands before arguments that name no command."""

    def get_params(self, ctx: Any) -> list[Any]:
        """As in the base class, with a default for each flag: typer checks None with pydantic, which loads slowly."""
        parameters = super().get_params(ctx)
        for parameter in parameters:
            if isinstance(parameter, TyperOption) and parameter.is_flag:
                parameter.default = parameter.default or False
        return parameters

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As in the base class, after `default` was put before arguments without a command."""
        own = [name for one in self.get_params(ctx) for name in one.opts]
        if not ctx.resilient_parsing and (not args or (args[0].startswith("-") and args[0].split("=")[0] not in own)):
            args = [self.default, *args] if not args or self.default in self.commands else args
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """As in the base class, without types of flags."""
        _prepare_help(self.get_params(ctx))
        super().format_help(ctx, formatter)


def _prepare_help(parameters: Iterable[Any]) -> None:
    """Look up names, and show no type for a flag."""
    for parameter in parameters:
        if isinstance(parameter, TyperOption) and parameter.is_flag:
            parameter.metavar = ""
        if isinstance(parameter, TyperOption | TyperArgument) and parameter.help:
            parameter.help = parameter.help.format_map(Names())


def repeated(arguments: Sequence[str], names: Iterable[str]) -> list[str]:
    """Write ``--name 1 2`` as ``--name 1 --name 2``, up to the next word that begins with a dash."""
    names = set(names)
    written: list[str] = []
    current = ""
    words = iter(arguments)
    for word in words:
        if word == "--":
            return [*written, word, *words]
        if word in names:
            current = word
            written += [word, *([first] if (first := next(words, None)) is not None else [])]
        elif word.startswith("-") and len(word) > 1:
            current = ""
            written.append(word)
        else:
            written += [current, word] if current else [word]
    return written


def command(
    group: typer.Typer, name: str, panel: str | None = None, **more: Any
) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """A decorator that registers a function, which returns the exit status, as a command.

    A parameter whose type is a kind of `Options` stands for the options of that kind. Its docstring is the help.
    """

    def register(function: Callable[..., int]) -> Callable[..., int]:
        group.command(
            name, cls=Command, context_settings={"help_option_names": HELP_NAMES}, rich_help_panel=panel, **more
        )(_with_options(function))
        return function

    return register


@cache
def _parameters(kind: Any) -> list[inspect.Parameter]:
    """A keyword for each option of a kind."""
    types = get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(
            one.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if one.default is MISSING else one.default,
            annotation=types[one.name],
        )
        for one in fields(kind)
    ]


def _with_options(function: Callable[..., int]) -> Callable[..., int]:
    """A function with a keyword for each option, which calls ``function`` with sets of options."""
    hints = get_type_hints(function, include_extras=True)
    kinds: dict[str, Any] = {
        name: kind for name, kind in hints.items() if inspect.isclass(kind) and issubclass(kind, Options)
    }
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(function).parameters.values():
        if (kind := kinds.get(parameter.name)) is None:
            parameters.append(parameter.replace(kind=parameter.KEYWORD_ONLY, annotation=hints[parameter.name]))
            continue
        parameters += _parameters(kind)

    def called(**given: Any) -> int:
        sets = {name: kind(**{one.name: given.pop(one.name) for one in fields(kind)}) for name, kind in kinds.items()}
        try:
            return function(**given, **sets)
        except PvlmError as error:
            if error.__cause__ is not None and any(getattr(one, "verbose", False) for one in sets.values()):
                error.add_note(str(error.__cause__))
            raise

    called.__doc__ = "\n\n".join(" ".join(part.split()) for part in (function.__doc__ or "").split("\n\n"))
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return called
