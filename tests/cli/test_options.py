"""Options that derive from dataclasses: names, types, defaults, help, errors; and the same spelling in every verb."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer

from scanner.cli.main import application
from scanner.cli.options import register
from scanner.configuration import Option, declaration, docstrings, option, parameters
from scanner.errors import ConfigError, ScannerError

Order = Literal["before", "after"]


def pair(text: str) -> tuple[str, str]:
    """Parse NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"{text!r} is not NAME=VALUE")
    return name, value


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where."""

    roles: tuple[str, ...] = option((), choices=("query", "key"), aliases=("only",), identity="only", unordered=True)
    """Only these roles; empty: all."""
    layers: tuple[int, ...] = option((), metavar="0-5,7", min=0, identity="layers", unordered=True)
    """Only these blocks."""


@dataclass(frozen=True, kw_only=True)
class Base:
    """A configuration that others extend."""

    rate: float = option(5e-5, name="lr", min=0, identity="rate")
    """Highest learning rate."""


@dataclass(frozen=True, kw_only=True)
class Config(Base):
    """A configuration with an option of every type."""

    model: str = option(positional=True, metavar="REF")
    """A model: org/name[@revision]."""
    deciles: tuple[int, ...] = option((1, 5, 10), identity="deciles")
    """Tenths that are removed, `seeds` times."""
    alpha: tuple[float, ...] = (1.0, 15.0)
    """Scales."""
    orders: tuple[Order, ...] = option(("before", "after"), name="order")
    """Where."""
    order_of_all: Order = "before"
    """Where everything goes."""
    seeds: int = option(3, min=1, max=1000)
    """Networks of each kind."""
    workers: int | None = option(None, min=1)
    """Number of workers; None: one per GPU, else one per core."""
    where: tuple[str, str] | None = option(None, parse=pair, metavar="COLUMN=VALUE")
    """Only rows with this value. None: all rows."""
    keep: Path | None = option(None, flags=("-k",))
    """Folder of the models."""
    heads: bool = False
    """Attention heads one by one."""
    shuffle: bool = True
    """Shuffle the rows."""
    places: Places = field(default_factory=Places)
    later: int = option(0, identity="later", since="0.9")
    """A parameter that came later."""
    internal: str = option("x", exposed=False)


Call = Callable[..., Any]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """`call("m", "--seeds", "3")`: the configuration, or the exit status and what is on stderr; `--help` is on stdout."""

    def run(*arguments: str, function: Callable[..., None] | None = None) -> Any:
        received: list[Any] = []

        def verb(config: Config, store: Annotated[str, typer.Option(help="The store.")] = "results") -> None:
            """Do it."""
            received.append(config)

        app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode="rich")
        register(app, "verb", function or verb)
        try:
            app([*arguments], standalone_mode=True)
        except SystemExit as end:
            if not end.code and received:
                return received[0]
            out, err = capsys.readouterr()
            return end.code, " ".join("".join(char for char in out + err if char not in "│╭╮╰╯─").split())
        raise AssertionError("a command ends the process")

    return run


def test_without_options_a_configuration_has_its_defaults(call: Call) -> None:
    assert call("m") == Config(model="m")


def test_every_type_has_a_spelling(call: Call) -> None:
    given = [
        "m",
        "--lr",
        "0.1",
        "--deciles",
        "1-3,10",
        "--alpha",
        "1,4.5",
        "--order",
        "after",
        "--order-of-all",
        "after",
    ]
    given += ["--seeds", "5", "--workers", "2", "--where", "a=b=c", "-k", "kept", "--heads", "--no-shuffle"]
    given += ["--roles", "query, key,", "--layers", "0,2-2", "--later", "1"]
    assert call(*given) == Config(
        model="m",
        rate=0.1,
        deciles=(1, 2, 3, 10),
        alpha=(1.0, 4.5),
        orders=("after",),
        order_of_all="after",
        seeds=5,
        workers=2,
        where=("a", "b=c"),
        keep=Path("kept"),
        heads=True,
        shuffle=False,
        places=Places(roles=("query", "key"), layers=(0, 2)),
        later=1,
    )


@pytest.mark.parametrize("given", [["--only", "query"], ["--only=query"], ["--roles", "query"]])
def test_an_old_name_of_an_option_is_accepted(call: Call, given: list[str]) -> None:
    assert call("m", *given).places == Places(roles=("query",))


def test_the_help_is_made_of_docstrings_and_defaults(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 250)
    status, told = call("--help")
    assert status == 0
    for text in (
        "A model: org/name[@revision].",
        "Highest learning rate.",
        "[default: 5e-05]",
        "Tenths that are removed, --seeds times. [default: 1,5,10]",
        "Scales. [default: 1,15]",
        "Number of workers. [default: (one per GPU, else one per core)]",
        "Only rows with this value. [default: (all rows)]",
        "Only these roles. [default: (all)]",
        "COLUMN=VALUE",
        "--no-shuffle",
    ):
        assert text in told
    for hidden in ("--only", "--internal", "--no-heads"):
        assert hidden not in told


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--roles", "queries"], "'queries' is not one of query, key"),
        (["--layers", "5-3"], "'5-3' is not a layer or a range like 0-5"),
        (["--layers", "²"], "'²' is not a layer"),
        (["--layers", "0-99999999"], "'0-99999999' is a range of more than 10,000 layers"),
        (["--deciles", "one"], "'one' is not a decile"),
        (["--alpha", "rich"], "'rich' is not a number"),
        (["--order", "sideways"], "'sideways' is not one of before, after"),
        (["--order-of-all", "sideways"], "--order-of-all"),
        (["--where", "a"], "'a' is not NAME=VALUE"),
        (["--seeds", "0"], "--seeds"),
        (["--workers", "many"], "--workers"),
        (["--internal", "x"], "No such option"),
    ],
)
def test_what_an_option_does_not_accept_is_wrong_usage(call: Call, given: list[str], said: str) -> None:
    status, told = call("m", *given)
    assert status == 2
    assert said in told
    assert given[0] in told


def test_a_required_value_is_asked_for(call: Call) -> None:
    status, told = call()
    assert status == 2
    assert "REF" in told


def test_an_optional_configuration_is_none_unless_one_of_its_options_is_given(call: Call) -> None:
    received: list[Places | None] = []

    def verb(places: Places | None) -> None:
        """Do it."""
        received.append(places)

    for given in ([], ["--layers", "1"]):
        call(*given, function=verb)
    assert received == [None, Places(layers=(1,))]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConfigError("rate", "must be positive, got 0"), "error: --lr must be positive, got 0"),
        (ScannerError("the disk is full: choose another `store`"), "error: the disk is full: choose another --store"),
        (ScannerError("`model` and `other` differ"), "error: REF and `other` differ"),
    ],
)
def test_arguments_in_errors_of_the_library_are_flags_on_the_command_line(
    call: Call, error: ScannerError, said: str
) -> None:
    def verb(config: Config, store: Annotated[str, typer.Option(help="The store.")] = "results") -> None:
        """Do it."""
        raise error

    assert call("m", function=verb) == (1, said)


def test_a_configuration_error_survives_pickling() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(ConfigError("rate", "must be positive")))
    assert (error.argument, str(error)) == ("rate", "`rate` must be positive")


def test_two_fields_of_one_name_are_refused() -> None:
    def verb(one: Places, two: Places) -> None:
        """Do it."""

    with pytest.raises(TypeError, match="verb has two options 'layers'"):
        register(typer.Typer(), "verb", verb)


def test_docstrings_are_those_under_the_fields_of_the_class_and_its_bases() -> None:
    assert docstrings(Places)["layers"] == "Only these blocks."
    assert docstrings(Config)["rate"] == "Highest learning rate."
    assert "places" not in docstrings(Config)


def test_parameters_are_those_with_a_key_and_new_ones_only_when_they_are_not_at_their_default() -> None:
    config = Config(model="m", places=Places(roles=("query", "key", "query"), layers=(3, 1)))
    known = {"rate": 5e-5, "deciles": [1, 5, 10], "only": ["key", "query"], "layers": [1, 3]}
    assert parameters(config) == known
    assert parameters(Config(model="m", later=2)) == known | {"only": [], "layers": [], "later": 2}


def test_a_new_parameter_is_left_out_where_it_does_what_was_done_before() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Later:
        new: str = option("on", identity="new", since="0.9", before="off")

    assert parameters(Later(new="off")) == {}
    assert parameters(Later()) == {"new": "on"}


def test_a_field_without_a_declaration_is_a_plain_option() -> None:
    [alpha] = [one for one in Config.__dataclass_fields__.values() if one.name == "alpha"]
    assert declaration(alpha) == Option()


# ---- the options of the verbs

POOL = "--address --workers --gpus-per-worker --task-timeout --share-cores --log-format"
SELECTION = "--roles --layers --embeddings --heads --products"
WITH_VECTORS = "--sigma --null --scale --head-mass --metrics"
METHOD = f"{WITH_VECTORS} --values-only"
TABLE = "--columns --wide --rows --all --format"
ANSWER = f"{TABLE} --output --force"
TEXT = "--text --column --second --where"
MEASURE = f"{TEXT} --label --metric --tokens --window --examples --dtype"
OPTIONS = {
    "scan": f"--from --name --upgrade --store {SELECTION} {METHOD} --ensemble --control-draws --download --force {POOL} {TABLE}",
    "inspect": f"{SELECTION} --store {ANSWER}",
    "compare": f"--store {SELECTION} {WITH_VECTORS} --download --force {POOL} {TABLE}",
    "query": f"--param --list --store {ANSWER}",
    "sql": f"--store --timeout {ANSWER}",
    "models": f"--store {ANSWER}",
    "show": f"--revision --store {ANSWER}",
    "status": f"--store --running --watch {ANSWER}",
    "calibrate": f"--output --draws --seed {TABLE}",
    "activations": f"{TEXT} --store --tokens --window --roles --layers --dtype --sign-draws --halves --map {POOL} "
    f"--force {TABLE}",
    "ablate": f"{MEASURE} --store --roles --layers --by --sets --random --controls --control-draws --stride --prompt "
    f"--answers {POOL} --force {TABLE}",
    "finetune": f"{TEXT} --label --store --order --deciles --seeds --roles --examples --test-share --window --epochs --batch --lr "
    f"--remove --keep {POOL} --force {TABLE}",
    "lazy-learning": f"--data --store --alpha --frozen --hidden --normalize --seeds --epochs --lr --batch {POOL} --force {TABLE}",
    "slicing": f"{MEASURE} --store --prompt --answers --order --deciles --calibration --calibration-tokens {POOL} --force {TABLE}",
    "plot": "--output --list --model --revision --layer --role --head --expert --stack --tensor --side --k --ensemble --base "
    f"--tuned --centered --run --param --width --height --font-size --theme --scale --store {TABLE}",
    "report": "--output --store",
    "site": "--output --force",
    "serve": "--port --interval",
    "verify": f"--store {ANSWER}",
    "compact": f"--store --older-than --grace --group-bytes --dry-run {TABLE}",
    "merge": f"--into --dry-run {TABLE}",
    "rm": f"--store --yes --dry-run {TABLE}",
    "nightly": f"--config --init --dry-run {POOL} {TABLE}",
    "publish": f"--to --name --license --force --space {TABLE}",
    "export spectrum": "--output --by --top --roles --store --force",
    "export axolotl": "--output --by --top --roles --store --force",
    "export peft": "--output --least --most --alpha --init --roles --store --force",
    "export alphapruning": "--output --sparsity --epsilon --ww-metric --roles --store --force",
    "export csv": "--output --table --store --force",
    "export json": "--output --table --store --force",
    "export card": "--output --store --force",
    "export duckdb": "--output --store --force",
    "export wandb": "--project --entity --offline --store",
    "export mlflow": "--experiment --uri --store",
    "compress": "--output --budget --by --factored --roles --layers --text --column --where --tokens --window --calibration-tokens "
    f"--saved-dtype {TABLE}",
}
"""The options of every verb: users and scripts rely on these names."""
ALIASES = {
    "scan": {"--only": "--roles"},
    "inspect": {"--only": "--roles"},
    "compare": {"--only": "--roles"},
    "activations": {"--only": "--roles"},
    "finetune": {"--length": "--window"},
    "lazy-learning": {"--rate": "--lr"},
    "plot": {"--centred": "--centered", "--uncentred": "--uncentered"},
}
"""Names that are accepted and not shown."""
ONE_MEANING = (
    "store roles layers tokens window lr seeds epochs batch examples address workers dtype metric column where format "
    "columns wide rows"
)

VERBS: dict[str, Any] = {}
for name, command in typer.main.get_command(application()).commands.items():  # type: ignore[attr-defined]
    VERBS |= {f"{name} {part}": one for part, one in getattr(command, "commands", {"": command}).items()}
VERBS = {name.strip(): command for name, command in VERBS.items()}


def shown(verb: str) -> dict[str, Any]:
    """The options of a verb by their first long name."""
    params = [param for param in VERBS[verb].params if param.name != "help"]
    long = [([name for name in param.opts if name.startswith("--")], param) for param in params]
    return {names[0]: param for names, param in long if names}


@pytest.mark.parametrize("verb", OPTIONS)
def test_the_options_of_a_verb_keep_their_names(verb: str) -> None:
    assert sorted(shown(verb)) == sorted(OPTIONS[verb].split())
    assert {**VERBS[verb].aliases}.items() >= ALIASES.get(verb, {}).items()


def test_every_verb_is_in_the_list_of_options() -> None:
    assert set(VERBS) == set(OPTIONS)


@pytest.mark.parametrize("name", ONE_MEANING.split())
def test_an_option_has_one_type_and_one_placeholder_in_all_verbs(name: str) -> None:
    found = {verb: shown(verb).get(f"--{name}") for verb in OPTIONS}
    kinds = {(param.bare_type(), param.metavar) for param in found.values() if param is not None}
    assert len(kinds) == 1


@pytest.mark.parametrize("verb", [verb for verb in OPTIONS if verb not in {"scan", "plot"}])
def test_old_names_are_not_shown(verb: str) -> None:
    assert not {"--only", "--rate", "--length", "--centered"} & {
        name for param in VERBS[verb].params for name in param.opts
    }
