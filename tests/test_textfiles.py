"""Text of every kind is opened in one way: marks, line ends, packing, repetitions, nesting."""

import gzip
import json
import tracemalloc

import pytest

from talk2dino import textfiles
from talk2dino.textfiles import check_once, parse_yaml, read_json, read_names, read_text, read_yaml


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_marks_and_packing_do_not_matter(tmp_path, encoding, pack):
    path = tmp_path / "a"
    assert read_json(write(path, pack('{"é": 1}'.encode(encoding)))) == {"é": 1}
    assert read_yaml(write(path, pack("é: 1\r\n".encode(encoding)))) == {"é": 1}
    assert read_names(write(path, pack("é\nb".encode(encoding)))) == ["é", "b"]


@pytest.mark.parametrize(
    "text", ["a\nb\nc", "a\nb\nc\n", "a\r\nb\r\nc\r\n", "a\rb\rc", "\na\n\nb \n c\n\n\n"]
)
def test_any_line_ends_give_the_same_names(tmp_path, text):
    assert read_names(write(tmp_path / "a.txt", text)) == ["a", "b", "c"]


def test_a_name_may_hold_what_only_python_takes_for_a_line_end(tmp_path):
    assert read_names(write(tmp_path / "a.txt", "a\u2028b\x0bc\n")) == ["a\u2028b\x0bc"]


def test_numbered_names_have_no_gaps(tmp_path):
    path = write(tmp_path / "a.txt", "a\nb\n\n")
    assert read_names(path, numbered=True) == ["a", "b"]
    with pytest.raises(ValueError, match=r"a\.txt has empty lines between the names"):
        read_names(write(path, "a\n\nb\n"), numbered=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty: it lists no names"),
        (" \n\n", "is empty: it lists no names"),
        ("a\nb\na\na\n", r"lists more than once: a \(3 times\)\. Leave"),
        (b"\x80\xff", "is no text in UTF-8"),
        (gzip.compress(b"abc" * 9, mtime=0)[:-9], "is packed with gzip and damaged"),
        (b"\x1f\x8bno", "is packed with gzip and damaged"),
    ],
)
def test_a_list_that_cannot_be_used_is_named(tmp_path, content, message):
    with pytest.raises(ValueError, match=r"a\.txt " + message):
        read_names(write(tmp_path / "a.txt", content))


def test_what_is_no_file_is_not_opened(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe")
    for read in (read_text, read_json, read_yaml, read_names):
        with pytest.raises(ValueError, match="pipe is a named pipe"):
            read(tmp_path / "pipe")


def test_many_repeated_names_are_counted():
    with pytest.raises(ValueError, match=r"0 \(2 times\), .* \.\.\. \(9 in all\)"):
        check_once([*range(9), *range(9)], "a list")


@pytest.mark.parametrize(
    "text",
    ['{"a": 1, "b": 2, "a": 1}', '[{"a": {"a": 1, "b": {}, "a": {}}}]', '{"a":1,"\\u0061":2}'],
)
def test_a_key_given_twice_in_json_is_named(tmp_path, text):
    with pytest.raises(ValueError, match=r"a\.json: 'a' is given twice.* Get it again"):
        read_json(write(tmp_path / "a.json", text), "Get it again.")


@pytest.mark.parametrize(
    ("text", "lines"),
    [("a: 1\nb: 2\n'a': 3\n", "1 and 3"),
     ("b:\n  a: 1\n  a: 1\n", "2 and 3"), ("{a: , a: }", "1 and 1"),
     ("- {b: [{a: 1}, {a: 2, a: 2}]}", "1 and 1"), ("x: &x {b: 1}\na: {<<: *x}\na: 2", "2 and 3")],
)  # fmt: skip
def test_a_key_given_twice_in_yaml_is_named_with_its_lines(text, lines):
    with pytest.raises(ValueError, match=f"r.yaml: 'a' is given twice, in lines {lines}"):
        parse_yaml(text, "r.yaml")


def test_anchors_and_merged_keys_stay_possible():
    text = "base: &base {a: 1, b: 2}\nother: {<<: *base, b: 3}\n"
    assert parse_yaml(text, "")["other"] == {"a": 1, "b": 3}


laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (laughs, "more than 10000 values"),
        ("a: &a [x, *a]", "more than 10000 values"),
        ("a: &a {b: *a}", "more than 10000 values"),
        ("[" + "x, " * 12_000 + "]", "more than 10000 values"),
        ("[" * 10_000, "nested too deeply"),
        ("{a: " * 10_000, "nested too deeply"),
        ("- " * 10_000, "nested too deeply"),
        ("a: !!timestamp x", "not valid YAML"),
        ("a: !!int ''", "not valid YAML"),
        ("a: !!bool x", "not valid YAML"),
        ("a: 2024-99-99", "not valid YAML"),
        ("a: 1" + "0" * 5000, "not valid YAML"),
        ("? [a]\n: b", "not valid YAML"),
    ],
)
def test_yaml_that_grows_is_refused_before_it_does(text, message):
    tracemalloc.start()
    with pytest.raises(ValueError, match=f"r.yaml.* {message}"):
        parse_yaml(text, "r.yaml")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64e6


@pytest.mark.parametrize("deep", ["[" * 100_000, '{"a":' * 100_000, '[{"a":' * 50_000 + "1"])
def test_deeply_nested_json_is_a_sentence(tmp_path, deep):
    with pytest.raises(ValueError, match=r"a\.json is nested too deeply to be read. Get it again"):
        read_json(write(tmp_path / "a.json", deep), "Get it again.")


def test_a_small_file_does_not_unpack_to_a_large_one(tmp_path, monkeypatch):
    path = write(tmp_path / "a.json", gzip.compress(json.dumps(["x" * 10_000_000]).encode()))
    assert len(read_json(path)[0]) == 10_000_000
    monkeypatch.setattr(textfiles, "_SMALL", 1000)
    with pytest.raises(ValueError, match=r"has more than .* bytes. Unpack it first"):
        read_json(path)


def test_a_large_configuration_is_not_read(tmp_path):
    with pytest.raises(ValueError, match=r"a\.yaml has 200000 characters; at most 65536 are read"):
        read_yaml(write(tmp_path / "a.yaml", gzip.compress(b"a" * 200_000, mtime=0)))
    with pytest.raises(ValueError, match=r"a\.yaml has 200000 bytes; at most 65536 are read"):
        read_yaml(write(tmp_path / "a.yaml", "a" * 200_000))
