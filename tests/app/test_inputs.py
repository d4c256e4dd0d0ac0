import struct
import zlib

import pytest
from PIL import Image

from talk2dino.app.request import Limits, read_names, read_picture
from talk2dino.pictures.vocabularies import Vocabulary

LIMITS = Limits(max_pixels=10_000, max_side=50, max_categories=3)
pytestmark = pytest.mark.usefixtures("uploads")


def upload(path, name):
    return {"path": str(path), "orig_name": name}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("cat", ["cat"]),
        (" cat ,polar_bear\nsofa,", ["cat", "polar bear", "sofa"]),
        ("Cat, cat, CAT", ["Cat"]),
        ("cup\uff0ctable\u3001cat", ["cup", "table", "cat"]),
        ("red\tcar, été", ["red car", "été"]),
        ("<b>cat</b>\u202e", ["<b>cat</b>"]),
        ("background", ["background"]),
    ],
)
def test_free_text_becomes_names(text, names):
    assert read_names(text, False, LIMITS) == Vocabulary(tuple(names))


def test_semicolons_make_a_vocabulary_of_free_text():
    found = read_names("background; wall, sofa; red_couch\ncat", True, LIMITS)
    assert found.names == ("sofa", "cat")
    assert found.words == (("sofa", "red couch"), ("cat",))
    assert found.background == ("wall",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "at least one category"),
        ("", "at least one category"),
        (" , ,\n", "at least one category"),
        ("a,b,c,d", "4 categories are too many.*at most 3"),
        (",".join(map(str, range(300))), "300 categories are too many"),
        ("x" * 81, "81 characters.*commas"),
        ("cat, Background", "added by the switch"),
        ("cat; kitten, kitten", "line 2: 'kitten' is in line 1 already"),
        ("cat; " + "x" * 81, "81 characters"),
        ("cat;", "an empty word"),
    ],
)
def test_text_that_is_no_list_of_categories_says_why(text, message):
    with pytest.raises(ValueError, match=message):
        read_names(text, True, LIMITS)


def test_words_of_a_background_need_the_switch():
    with pytest.raises(ValueError, match="Switch it on"):
        read_names("background; wall, cat", False, LIMITS)


def test_a_large_picture_is_made_smaller_and_its_size_remembered(tmp_path):
    Image.new("RGB", (100, 60)).save(tmp_path / "large.png")
    picture = read_picture(upload(tmp_path / "large.png", "../my large: one.png"), LIMITS)
    assert picture.image.size == (50, 30)
    assert picture.full_hw == (60, 100)
    assert picture.stem == "my_large__one"


def test_a_small_picture_keeps_its_pixels(tmp_path):
    Image.new("RGB", (20, 10), (1, 2, 3)).save(tmp_path / "x.png")
    picture = read_picture(upload(tmp_path / "x.png", "..."), LIMITS)
    assert picture.image.getpixel((19, 9)) == (1, 2, 3)
    assert (picture.full_hw, picture.stem) == ((10, 20), "picture")


def test_a_turned_photograph_is_measured_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 10)).save(tmp_path / "x.jpg", exif=exif)
    assert read_picture(upload(tmp_path / "x.jpg", "x.jpg"), LIMITS).full_hw == (20, 10)


@pytest.mark.parametrize("payload", [None, {}, {"path": None}])
def test_without_a_picture_the_message_says_how_to_give_one(payload):
    with pytest.raises(ValueError, match="Choose a picture"):
        read_picture(payload, LIMITS)


def test_an_upload_without_a_name_is_called_like_its_file(tmp_path):
    with pytest.raises(ValueError, match=r"^cat\.png is no longer"):
        read_picture(upload(tmp_path / "x" / "cat.png", None), LIMITS)


@pytest.mark.parametrize("place", ["elsewhere", "behind a link", "above"])
def test_a_file_outside_the_folder_of_uploads_is_refused(photos, tmp_path, place):
    (tmp_path / "link.png").symlink_to(photos / "chelsea.png")
    paths = {
        "elsewhere": photos / "chelsea.png",
        "behind a link": tmp_path / "link.png",
        "above": f"{tmp_path}/../x.png",
    }
    with pytest.raises(ValueError, match="not uploaded"):
        read_picture(upload(paths[place], "x.png"), LIMITS)


def test_a_text_file_called_png_is_named_as_the_visitor_named_it(tmp_path):
    path = tmp_path / "0a1b.png"
    path.write_text("hello")
    with pytest.raises(ValueError, match=r"^notes\.png is not an image") as error:
        read_picture(upload(path, "notes.png"), LIMITS)
    assert str(tmp_path) not in str(error.value)


def test_a_picture_of_100_megapixels_is_refused_by_its_header(tmp_path):
    size = struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + size + struct.pack(">I", zlib.crc32(b"IHDR" + size))
    path = tmp_path / "huge.png"
    data = struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + data)  # no pixels at all behind the header
    with pytest.raises(ValueError, match="100 megapixels.*at most 50 megapixels"):
        read_picture(upload(path, "huge.png"), Limits())


def test_a_file_that_was_cleared_away_must_be_sent_again(tmp_path):
    with pytest.raises(ValueError, match=r"^cat\.png is no longer"):
        read_picture(upload(tmp_path / "gone.png", "cat.png"), LIMITS)


def test_a_damaged_picture_is_named(tmp_path, photos):
    path = tmp_path / "half.png"
    path.write_bytes((photos / "chelsea.png").read_bytes()[:20_000])
    with pytest.raises(ValueError, match=r"^half\.png is truncated"):
        read_picture(upload(path, "half.png"), Limits())


@pytest.mark.parametrize(
    ("values", "flag"),
    [
        ({"max_pixels": 0}, "--max_pixels"),
        ({"max_side": -1}, "--max_side"),
        ({"max_categories": 0}, "--max_categories"),
        ({"max_categories": 256}, "--max_categories must be at most 255"),
    ],
)
def test_limits_that_make_no_sense_name_their_flag(values, flag):
    with pytest.raises(ValueError, match=flag):
        Limits(**values)
