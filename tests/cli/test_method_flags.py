"""Flags of methods come from their options; `--refine` is another name for switches."""

import argparse

import pytest

from talk2dino.cli.method_flags import add_method_flags, given_options, options_of


def parse(*argv):
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--model", default="toy")
    parser.add_argument("--weights")
    parser.add_argument("--refine")
    add_method_flags(parser, argv)
    return parser.parse_args(argv)


def options(*argv):
    args = parse(*argv)
    return options_of(args, args.model.split(","))


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
    assert given_options(parse(*argv)) == found


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


def test_contradictory_switches_are_refused(capsys):
    with pytest.raises(SystemExit):
        parse("--pamr", "--no_pamr")
    assert "not allowed with argument --pamr" in capsys.readouterr().err


def test_an_option_of_some_models_goes_to_those_and_is_mentioned(capsys):
    found = options("--model", "toy,ovsegmentor_toy", "--pamr", "--template", "full")
    assert found["toy"] == {"pamr": True, "template": "full"}
    assert found["ovsegmentor_toy"] == {"template": "full"}
    assert "--pamr means nothing for ovsegmentor_toy" in capsys.readouterr().err
