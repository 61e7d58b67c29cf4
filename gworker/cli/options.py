"""The command line of one target, made from its arguments: `--help` shows them, and values come back typed."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from gworker import checks
from gworker.cli.arguments import Argument
from gworker.cli.exits import Failed

if TYPE_CHECKING:
    from gworker.functions import MethodSpec


@dataclass(frozen=True)
class Given:
    """What was given on the command line of a target.

    `values` belong to the method, `parameters` to the class, `own` to the command. `stdin`: inputs come from standard
    input.
    """

    values: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    own: dict[str, Any] = field(default_factory=dict)
    stdin: bool = False

    @property
    def as_json(self) -> bool:
        """Whether results are to be without colours."""
        return bool(self.own.get("as_json"))

    @property
    def deadline_s(self) -> float | None:
        """The limit of a whole call, in seconds."""
        return self.own.get("deadline_s")


@dataclass(frozen=True)
class Own:
    """An option of the command itself, which may also stand behind the target, where nothing of it has that name.

    `annotated` is what typer reads: Annotated[type, typer.Option(...)]; not given is None, or False for a flag.
    `brings_inputs`: the arguments that are required come from where it says.
    """

    name: str
    option: str
    annotated: Any
    brings_inputs: bool = False


# Those of `run` and `call`.
OF_CALLS = (
    Own("as_json", "--json", Annotated[bool, typer.Option("--json", help="JSON on one line, also at a terminal.")]),
    Own(
        "stdin",
        "--stdin",
        Annotated[
            bool,
            typer.Option("--stdin", help="One call for each line of standard input, which is JSON; so does a lone -."),
        ],
        brings_inputs=True,
    ),
    Own(
        "deadline_s",
        "--deadline-s",
        Annotated[
            float | None,
            typer.Option(
                "--deadline-s", help="Seconds for the whole call, queueing and cold start included.", min=0.001
            ),
        ],
    ),
)


def parse(
    arguments: Sequence[Argument],
    rest: Sequence[str],
    *,
    prog: str,
    about: str,
    method: MethodSpec,
    before: Mapping[str, Any],
    own: Sequence[Own] = OF_CALLS,
) -> Given:
    """Read what stands behind the target. Ends the process with code 2, or with 0 for `--help`, as typer does.

    `before` holds the values of own options that stood before the target; what stands behind has precedence.
    """
    taken = {argument.option for argument in arguments}
    caught: dict[str, Any] = {}
    _command(arguments, [each for each in own if each.option not in taken], prog, about, method, caught)(list(rest))
    words: list[str] = caught.pop("words") or []
    owned = {each.name: before.get(each.name) for each in own}
    owned |= {
        name: value for name, value in caught.items() if name in owned and value is not None and value is not False
    }
    elsewhere = words == ["-"] or any(each.brings_inputs and owned[each.name] for each in own)
    texts = {argument: caught[f"v{i}"] for i, argument in enumerate(arguments) if caught[f"v{i}"] is not None}
    if words and words != ["-"]:
        texts |= _by_position(arguments, words, texts)
    given = Given(
        values={a.name: _value(a, text) for a, text in texts.items() if a.kind == "argument"},
        parameters={a.name: _value(a, text) for a, text in texts.items() if a.kind == "parameter"},
        own=owned,
        stdin=words == ["-"] or bool(owned.get("stdin")),
    )
    missing = [a for a in arguments if a.required and a not in texts and not (elsewhere and a.kind == "argument")]
    if missing:
        lines = "\n".join(f"  {a.option} {'' if a.is_flag else a.metavar}".rstrip() for a in missing)
        raise Failed(f"{prog} needs a value for:\n{lines}\n`{prog} --help` explains them")
    return given


def _value(argument: Argument, text: Any) -> Any:
    return text if isinstance(text, bool) else argument.read(text)


def _by_position(
    arguments: Sequence[Argument], words: Sequence[str], taken: Mapping[Argument, Any]
) -> dict[Argument, Any]:
    """Words without an option go to the arguments of the method that were not given by name, in order."""
    free = [a for a in arguments if a.positional and a not in taken]
    if len(words) > len(free):
        takes = ", ".join(a.option for a in arguments) or "no arguments"
        raise Failed(f"unexpected argument {words[len(free)]!r}; it takes: {takes}")
    return {
        argument: _flag(argument, word) if argument.is_flag else word
        for argument, word in zip(free, words, strict=False)
    }


def _flag(argument: Argument, word: str) -> bool:
    if word.lower() not in ("true", "false"):
        raise Failed(f"{word!r} was given for {argument.option}: write {argument.option} or --no-{argument.option[2:]}")
    return word.lower() == "true"


def _command(
    arguments: Sequence[Argument],
    own: Sequence[Own],
    prog: str,
    about: str,
    method: MethodSpec,
    caught: dict[str, Any],
) -> Any:
    """A typer command with these options, which puts what it reads into `caught`."""

    def receive(**values: Any) -> None:
        caught.update(values)

    named = inspect.Parameter.KEYWORD_ONLY
    params = [
        inspect.Parameter("words", named, default=None, annotation=Annotated[list[str] | None, _WORDS]),
        *(
            inspect.Parameter(f"v{i}", named, default=None, annotation=Annotated[_kind(a), _option(a)])
            for i, a in enumerate(arguments)
        ),
        *(
            inspect.Parameter(
                each.name,
                named,
                default=False if get_args(each.annotated)[0] is bool else None,
                annotation=each.annotated,
            )
            for each in own
        ),
    ]
    receive.__signature__ = inspect.Signature(params)  # type: ignore[attr-defined]  # what typer reads
    receive.__annotations__ = {p.name: p.annotation for p in params}
    app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)
    batch = "" if method.batch is None else "\n\nOne input: gworker makes the batch."
    app.command(help=f"{about}\n\n`{method}`{batch}".strip())(receive)

    def run(rest: list[str]) -> None:
        try:
            app(args=rest, prog_name=prog, standalone_mode=True)
        except SystemExit as ended:
            if ended.code or not caught:
                raise typer.Exit(ended.code if isinstance(ended.code, int) else 0) from None

    return run


_WORDS = typer.Argument(
    metavar="VALUE", help="Values of the method's arguments in order, instead of by name; - for standard input."
)


def _kind(argument: Argument) -> Any:
    return bool | None if argument.is_flag else str | None


def _shown(default: Any) -> str:
    try:
        return json.dumps(getattr(default, "value", default), ensure_ascii=False)
    except (TypeError, ValueError):
        return checks.shown(default)


def _option(argument: Argument) -> Any:
    spelled = [argument.option]
    if argument.is_flag:
        spelled = [f"{argument.option}/--no-{argument.option[2:]}"]
    elif "_" in argument.name.strip("_"):
        spelled.append("--" + argument.name.strip("_"))
    default = "required" if argument.required else f"default {_shown(argument.default)}"
    if argument.star:
        default = "further ones, as a JSON list" if argument.star == "*" else "further ones, as a JSON object"
    return typer.Option(
        *spelled,
        metavar=None if argument.is_flag else argument.metavar,
        help=default,
        show_default=False,
        rich_help_panel="Arguments of the method" if argument.kind == "argument" else "Parameters of the class",
    )
