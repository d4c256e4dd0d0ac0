"""Flags of methods come from their options; `--refine` is another name for switches."""

import pytest

from talk2dino.cli.method_flags import MethodCommand


class Try(MethodCommand):
    """Takes models."""

    example = ""

    model: str = "toy"
    """Names with commas."""
    weights: str | None = None
    """Not an option of a method here."""


def options(*argv):
    """What is typed of the options of methods, by model."""
    found = Try.parse(argv)
    settings = found.settings_of(found.model.split(","))
    assert all(own.pop("protocol") == "native" for own in settings.values())
    return settings


@pytest.mark.parametrize(
    ("argv", "found"),
    [
        ([], {}),
        (["--pamr"], {"pamr": True}),
        (["--pamr", "off"], {"pamr": False}),
        (["--no_pamr"], {"pamr": False}),
        (["--refine", "pamr"], {"pamr": True}),
        (["--refine", "pamr", "--pamr"], {"pamr": True}),
        (["--refine", " pamr, ,"], {"pamr": True}),
        (["--precision", "fp32"], {"precision": "fp32"}),
    ],
)
def test_only_what_was_typed_is_given(argv, found):
    assert options(*argv) == {"toy": found}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--refine", "pamr", "--no_pamr"], "--refine pamr contradicts --no_pamr"),
        (["--refine", "pammr"], "unknown refinement 'pammr'.*pamr"),
        (
            ["--model", "ovsegmentor_toy", "--refine", "pamr"],
            "--pamr means nothing for ovseg.*vitb",
        ),
        (["--model", "ovsegmentor_toy", "--pamr"], "--pamr means nothing for ovsegmentor_toy"),
    ],
)
def test_what_cannot_be_meant_is_a_sentence(argv, message):
    with pytest.raises(ValueError, match=message):
        options(*argv)


def test_contradictory_switches_are_refused():
    with pytest.raises(ValueError, match="--pamr and --no_pamr contradict each other"):
        options("--pamr", "--no_pamr")


def test_an_option_of_some_models_goes_to_those_and_is_mentioned(capsys):
    found = options("--model", "toy,ovsegmentor_toy", "--pamr", "--template", "full")
    assert found["toy"] == {"pamr": True, "template": "full"}
    assert found["ovsegmentor_toy"] == {"template": "full"}
    assert "--pamr means nothing for ovsegmentor_toy" in capsys.readouterr().err
