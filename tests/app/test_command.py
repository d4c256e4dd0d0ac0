"""`app.py` as it is typed."""

import os
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from talk2dino.app.request import Limits, read_names
from talk2dino.cli.app import App


def refused(capsys, *flags):
    """Run the command, which must fail before a model is loaded; returns the message."""
    assert App.main(list(flags)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "toy", "--max_queue", "0"], "--max_queue must be at least 1"),
        (["--model", "toy", "--max_upload_mb", "-1"], "--max_upload_mb must be at least 1"),
        (["--model", "toy", "--max_uploads_mb", "50"], "more than --max_upload_mb (50), got 50"),
        (["--model", "toy", "--max_pixels", "0"], "--max_pixels must be at least 1"),
        (["--model", "toy", "--server_port", "70000"], "between 1 and 65535, got 70000"),
        (["--model", "toy", "--examples", "nowhere"], "no folder nowhere"),
        (["--model", "toy", "--device", "abacus"], "abacus"),
        (
            ["--model", "toy", "--vocab", "ade"],
            "150 categories are too many for one request; at most 64",
        ),
        (["--model", "toy", "--vocab", "cityscapes"], "unknown vocabulary 'cityscapes'"),
        (["--model", "toy", "--vocab", "voc", "--categories", "cat"], "both fill the field"),
        (["--model", "nope"], "unknown model 'nope'"),
        (["--model", "toy", "vitbb"], "unknown model 'vitbb'"),
        (["--model", "toy", "mine.pth"], "no file or folder mine.pth"),
        (["--model", "toy", "ovsegmentor_vitb=nowhere"], "no OVSegmentor weights"),
        (["--model", "nowhere.yaml"], "nowhere.yaml"),
        (["--model", "toy=none.pth"], "no projection weights"),
        (["--weights", "none.pth"], "It went: --model <recipe>=<weights>"),
        (["--model", "configs/toy.yaml=none.pth"], "none.pth"),
        (["--model", "nowhere.yaml=seeded:0"], "nowhere.yaml"),
    ],
)
def test_wrong_flags_are_refused_before_a_model_is_loaded(flags, message, capsys):
    assert message in refused(capsys, *flags)


def test_a_folder_of_examples_without_pictures_is_refused(tmp_path, capsys):
    assert "holds no pictures" in refused(capsys, "--model", "toy", "--examples", str(tmp_path))


def test_without_gradio_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("talk2dino.cli.app.find_spec", lambda name: None)
    assert "pip install -r requirements-app.txt" in refused(capsys, "--model", "toy")


def parsed(*flags):
    return App.parse(list(flags))


def test_models_are_offered_in_the_order_of_the_flags():
    models = parsed("--model", "toy", "vitb", "--device", "cpu").check()[0].models
    assert list(models.entries) == ["toy", "vitb"]
    models = parsed("--model", "configs/toy.yaml=seeded:3", "vitb")
    assert list(models.check()[0].models.entries) == ["configs/toy.yaml=seeded:3", "vitb"]


def test_a_vocabulary_fills_the_field(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text("# mine\nbackground; wall\nsofa; red couch\ncat\n", encoding="utf-8")
    text = parsed("--vocab", str(file)).words(Limits())
    assert text == "background; wall, sofa; red couch, cat"
    assert read_names(text, True, Limits()).names == ("sofa", "cat")
    assert parsed("--vocab", "voc").words(Limits()).startswith("aeroplane, bicy")
    file.write_text("hello, world\n", encoding="utf-8")
    with pytest.raises(ValueError, match="commas separate categories here, see 'hello, world'"):
        parsed("--vocab", str(file)).words(Limits())


def test_examples_come_from_the_given_folder_or_the_checkout(tmp_path):
    for number in range(10):
        (tmp_path / f"{number}.png").touch()
    examples = parsed("--examples", str(tmp_path)).pictures("cat, dog")
    assert examples == [(tmp_path / f"{number}.png", "cat, dog") for number in range(8)]
    own = parsed().pictures("cat, dog")
    assert [path.name for path, _ in own] == ["coffee.png", "chelsea.png", "astronaut.png"]
    assert all(words for _, words in own)


# Gradio leaves the sockets open with which it has looked for a port.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_taken_port_is_named_with_the_flag_that_chooses_another(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert App.main(["--model", "toy", "--device", "cpu", "--server_port", str(port)]) == 1
    message = capsys.readouterr().err
    assert f"error: port {port} " in message
    assert "--server_port" in message
    assert "GRADIO" not in message


def test_the_help_names_every_flag_with_its_meaning_and_a_command_that_works(capsys):
    assert App.main(["--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    flags = shown.partition(" options: ")[2]
    for flag, meaning in (
        ("--model", "models to choose from, the first at once"),
        ("--device", "auto, cpu, cuda"),
        ("--categories", "what the field starts with"),
        ("--examples", "folder whose first 8 pictures are examples"),
        (
            "--max_pixels",
            "of a picture; larger ones are refused before they are decoded (default: 50000000)",
        ),
        ("--max_side", "pictures are segmented and shown (default: 1024)"),
        ("--max_categories", "in one request (default: 64)"),
        ("--max_upload_mb", "of one uploaded file (default: 50)"),
        ("--max_queue", "requests that may wait; more are told to come back (default: 32)"),
        ("--server_name", "0.0.0.0 for the whole network (default: 127.0.0.1)"),
        ("--server_port", "the first free from 7860"),
        ("--share", "public link"),
    ):
        assert meaning in flags.partition(f" {flag} ")[2][:200], flag
    assert shown.endswith("example: python app.py --model toy")
    parsed(*App.example.split()).check()


def test_without_weights_it_says_what_works_without(capsys):
    assert App.main(["--model", "vitb", "--device", "cpu"]) == 1  # tests have no network
    captured = capsys.readouterr()
    assert "--model toy" in captured.out
    assert "could not download" in captured.err


def test_the_script_serves_until_it_is_told_to_stop_and_leaves_no_files(root, tmp_path):
    folders = {name: tmp_path / name for name in ("work", "home", "temporary")}
    for folder in folders.values():
        folder.mkdir()
    environment = {
        **os.environ,
        "HOME": str(folders["home"]),
        "TMPDIR": str(folders["temporary"]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    environment.pop("GRADIO_TEMP_DIR", None)
    process = subprocess.Popen(
        [sys.executable, str(root / "app.py"), "--model", "toy"],
        cwd=folders["work"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        assert lines[0] == "loading toy on cpu\n"
        assert "untrained" in lines[1]
        address = lines[2].split()[1]
        assert address.startswith("http://127.0.0.1:")
        page = urllib.request.urlopen(address, timeout=20).read().decode()
        assert "Talk2DINO" in page
        assert "googleapis" not in page
    finally:
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=60)
    assert (process.returncode, rest) == (0, "stopped\n")
    left = [path for folder in folders.values() for path in folder.rglob("*") if path.is_file()]
    assert left == []
