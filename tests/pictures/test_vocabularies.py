"""Class lists by name, from files, and as they are given."""

import numpy as np
import pytest

from talk2dino.pictures.vocabularies import find_vocabulary
from talk2dino.toy.scene import CLASS_NAMES, class_palette


def test_a_text_file_names_one_class_per_line(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("\ufeffbackground\n wine glass \n\n\u732b\n", encoding="utf-8")
    found = find_vocabulary([str(path)])
    assert found.names == ("wine glass", "\u732b")
    assert np.array_equal(found.colours, find_vocabulary(["wine glass", "\u732b"]).colours)


def test_a_file_that_cannot_be_read_as_names_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cupp\.txt: no such file"):
        find_vocabulary(["cupp.txt"])
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(ValueError, match=r"empty\.txt lists no classes"):
        find_vocabulary([str(tmp_path / "empty.txt")])
    (tmp_path / "odd.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"odd\.txt is no text in UTF-8"):
        find_vocabulary([str(tmp_path / "odd.txt")])


def test_the_drawn_world_is_a_list_in_its_own_colours():
    found = find_vocabulary(["drawn_world"])
    assert found.names == CLASS_NAMES and found.benchmark == "toy"
    assert np.array_equal(found.colours, class_palette())
