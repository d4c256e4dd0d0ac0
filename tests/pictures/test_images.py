"""Reading every odd kind of image file."""

import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from talk2dino.benchmarks.data.labels import read_labels
from talk2dino.pictures.images import (
    as_rgb,
    check_image,
    check_whole,
    decode_rgb,
    list_images,
    read_rgb,
    rgb_tensor,
)


def save(tmp_path, image, name, **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


def pixel(image, x=0, y=0):
    return image.getpixel((x, y))


def photo(width=40, height=30):
    random = np.random.default_rng(0)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_an_rgb_png_is_read_unchanged(tmp_path):
    path = save(tmp_path, photo(), "a.png")
    assert read_rgb(path).tobytes() == photo().tobytes()


def test_red_stays_red_as_a_tensor(tmp_path):
    path = save(tmp_path, Image.new("RGB", (4, 3), (255, 0, 0)), "red.png")
    tensor = rgb_tensor(read_rgb(path))
    assert tensor.shape == (3, 3, 4)
    assert tensor.amin(dim=(1, 2)).tolist() == [255, 0, 0]


def test_grey_and_black_and_white_become_rgb(tmp_path):
    assert pixel(read_rgb(save(tmp_path, Image.new("L", (4, 4), 77), "l.png"))) == (77, 77, 77)
    assert pixel(read_rgb(save(tmp_path, Image.new("1", (4, 4), 1), "1.png"))) == (255, 255, 255)


def test_cmyk_becomes_rgb(tmp_path):
    path = save(tmp_path, Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "c.jpg", quality=100)
    red, green, blue = pixel(read_rgb(path), 8, 8)
    assert red > 240 and green < 15 and blue < 15


@pytest.mark.parametrize("name", ["deep.png", "deep.tif"])
def test_sixteen_bit_grey_keeps_its_high_byte(tmp_path, name):
    values = np.array([[0, 255, 256], [32768, 65279, 65535]], dtype=np.uint16)
    path = save(tmp_path, Image.fromarray(values), name)
    assert np.asarray(read_rgb(path))[..., 0].tolist() == [[0, 0, 1], [128, 254, 255]]


def test_thirty_two_bit_and_float_pixels_are_refused_with_a_way_out(tmp_path):
    for top in (255, 70000):
        wide = Image.fromarray(np.array([[0, top]], dtype=np.int32))
        with pytest.raises(ValueError, match=rf"i\.tif holds 32-bit .* to {top}.*8 or 16 bits"):
            read_rgb(save(tmp_path, wide, "i.tif"))
        with pytest.raises(ValueError, match="the image holds 32-bit pixels"):
            as_rgb(wide)
    real = save(tmp_path, Image.fromarray(np.array([[0.5]], dtype=np.float32)), "f.tif")
    with pytest.raises(ValueError, match=r"f\.tif holds floating point pixels"):
        read_rgb(real)


def test_sixteen_bit_grey_of_a_pgm_keeps_its_high_byte(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 2 1 65535\n" + bytes([1, 0, 255, 255]))
    assert np.asarray(read_rgb(tmp_path / "a.pgm"))[..., 0].tolist() == [[1, 255]]


def test_twelve_bit_grey_is_not_nearly_black(tmp_path):
    tags = {256: 2, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 3}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    pixels = bytes([0x80, 0x0F, 0xFF])  # 2048 and 4095
    start = b"II*\0" + struct.pack("<I", 12) + pixels + b"\0"
    (tmp_path / "a.tif").write_bytes(
        start + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    )
    assert np.asarray(read_rgb(tmp_path / "a.tif"))[..., 0].tolist() == [[128, 255]]


def test_a_palette_is_resolved(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    assert pixel(read_rgb(save(tmp_path, image, "p.png"))) == (10, 200, 30)


def test_transparent_pixels_lie_on_white_without_a_warning(tmp_path):
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([9, 9, 9, 10, 200, 30])
    palette.putpixel((1, 0), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = read_rgb(save(tmp_path, palette, "p.png", transparency=b"\x00\xff"))
    assert pixel(image, 0) == (255, 255, 255) and pixel(image, 1) == (10, 200, 30)
    half = Image.new("RGBA", (1, 1), (0, 0, 0, 128))
    assert pixel(read_rgb(save(tmp_path, half, "a.png"))) == (127, 127, 127)
    grey = Image.new("LA", (1, 1), (0, 0))
    assert pixel(read_rgb(save(tmp_path, grey, "la.png"))) == (255, 255, 255)


def test_the_first_frame_of_an_animation_is_taken(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    path = save(tmp_path, frames[0], "a.gif", save_all=True, append_images=frames[1:])
    assert pixel(read_rgb(path)) == (255, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path, photo(), "o.png", exif=exif)
    with Image.open(path) as stored:
        expected = ImageOps.exif_transpose(stored).convert("RGB")
    assert read_rgb(path).size == expected.size
    assert read_rgb(path).tobytes() == expected.tobytes()


def test_damaged_exif_data_does_not_cost_the_picture(tmp_path):
    path = save(tmp_path, photo(), "e.jpg", exif=b"Exif\x00\x00rubbish that is no TIFF header")
    assert read_rgb(path).size == (40, 30)


def test_a_missing_file_a_folder_and_an_empty_file_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.png: no such image"):
        read_rgb(tmp_path / "none.png")
    with pytest.raises(ValueError, match="is a folder"):
        read_rgb(tmp_path)
    (tmp_path / "zero.jpg").touch()
    with pytest.raises(ValueError, match=r"zero\.jpg is empty \(0 bytes\)"):
        read_rgb(tmp_path / "zero.jpg")


def test_a_file_that_is_no_image_is_named(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    for read in (read_rgb, check_image):
        with pytest.raises(ValueError, match=r"text\.png is not an image"):
            read(tmp_path / "text.png")


@pytest.mark.parametrize("name", ["t.jpg", "t.png", "t.gif", "t.bmp", "t.tif", "t.webp"])
def test_a_truncated_file_is_an_error_and_never_half_a_picture(tmp_path, name):
    path = save(tmp_path, photo(64, 64), name)
    data = path.read_bytes()
    for kept in (len(data) // 2, len(data) * 9 // 10, 20, 3):
        path.write_bytes(data[:kept])
        with pytest.raises(ValueError, match=f"{name} (is|has)"):
            read_rgb(path)


def chunk(kind, data, wrong=0):
    """A chunk of a PNG; `wrong` spoils its checksum."""
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body) ^ wrong)


def put_into(data, place, *chunks):
    """A PNG with more chunks: before its pixels, or at its end."""
    at = data.index(place) - 4
    return data[:at] + b"".join(chunks) + data[at:]


EXTRA = {
    "large text": chunk(b"zTXt", b"history\0\0" + zlib.compress(bytes(2 * 2**20))),
    "large profile": chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(2 * 2**20))),
    "spoiled EXIF": chunk(b"eXIf", b"MM\0*", wrong=1),
    "spoiled text": chunk(b"tEXt", b"a\0b", wrong=1),
    "spoiled density": chunk(b"pHYs", bytes(9), wrong=1),
}


@pytest.mark.parametrize("place", [b"IDAT", b"IEND"])
@pytest.mark.parametrize("extra", EXTRA)
def test_chunks_that_no_pixel_needs_cost_no_png(tmp_path, extra, place):
    image = photo().convert("P")
    path = save(tmp_path, image, "a.png", transparency=bytes([0, 128, 255] * 80))
    whole = read_rgb(path).tobytes()
    path.write_bytes(put_into(path.read_bytes(), place, EXTRA[extra]))
    assert check_image(path) == (30, 40)
    check_whole(path)
    assert read_rgb(path).tobytes() == decode_rgb(path.read_bytes(), "member").tobytes() == whole
    assert read_labels(path).tolist() == np.asarray(image).tolist()


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE", b"tRNS", b"IDAT"])
def test_a_chunk_that_pixels_need_is_named_when_it_is_damaged(tmp_path, kind):
    path = save(tmp_path, photo().convert("P"), "a.png", transparency=b"\0")
    data = bytearray(path.read_bytes())
    data[data.index(kind) + 4] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(
        ValueError, match=f"a.png is truncated or damaged: its chunk b'{kind.decode()}"
    ):
        read_rgb(path)


@pytest.mark.parametrize("interlaced", [0, 1])
@pytest.mark.parametrize("missing", [0, 1])
def test_a_png_whose_pixels_end_early_is_not_black_below(tmp_path, interlaced, missing):
    side = 8
    # The 8 x 8 pixels of interlaced grey come in passes of 1, 1, 2, 4, 8, 16 and 32, in 15 rows.
    rows = side * side + (15 if interlaced else side)
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, interlaced)
    pixels = zlib.compress(bytes(rows - missing))  # an intact stream, with intact checksums
    data = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    for read in (read_rgb, read_labels, check_whole):
        if missing:
            with pytest.raises(ValueError, match="a.png is truncated or damaged: .*last pixel"):
                read(tmp_path / "a.png")
        else:
            read(tmp_path / "a.png")


def huge_png(path, width, height):
    """A PNG whose header promises width x height pixels and holds none of them."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    )
    return path


@pytest.mark.parametrize("side", [13_400, 60_000])
@pytest.mark.parametrize("limit", [Image.MAX_IMAGE_PIXELS, None])
def test_a_huge_image_is_refused_from_its_header(tmp_path, monkeypatch, side, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)  # None: somebody lifted Pillow's limit
    path = huge_png(tmp_path / "huge.png", side, side)
    for read in (read_rgb, check_image):
        with pytest.raises(ValueError, match=r"huge\.png is too large.*smaller first"):
            read(path)


def test_a_large_photograph_below_the_limit_gives_no_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_image(huge_png(tmp_path / "big.png", 12_000, 10_000)) == (10_000, 12_000)


def test_encoded_bytes_are_read_like_files(tmp_path):
    data = save(tmp_path, photo(), "a.png").read_bytes()
    assert decode_rgb(data, "member").tobytes() == photo().tobytes()
    with pytest.raises(ValueError, match="member is empty"):
        decode_rgb(b"", "member")
    with pytest.raises(ValueError, match="member is truncated"):
        decode_rgb(data[: len(data) // 2], "member")


def test_a_drawing_that_only_a_program_could_read_is_refused_by_its_header(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "photo.png", format="EPS")
    with pytest.raises(ValueError, match="photo.png is an EPS drawing.*Save it as PNG"):
        check_image(tmp_path / "photo.png")


def test_a_folder_lists_its_images_in_order(tmp_path):
    for name in ("b.JPG", "a.png", ".hidden.png", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["a.png", "b.JPG"]


def test_pictures_that_a_folder_leaves_out_are_named(tmp_path, caplog):
    photo().save(tmp_path / "a.jfif", format="JPEG")
    photo().save(tmp_path / "no_suffix", format="PNG")
    photo().save(tmp_path / "b.png_original", format="PNG")
    for name in ("c.heic", "d.svg", "notes.txt", "._x.heic"):
        (tmp_path / name).write_text("x")
    os.mkfifo(tmp_path / "pipe")
    assert [path.name for path in list_images(tmp_path)] == ["a.jfif"]
    for name in ("no_suffix", "b.png_original", "c.heic", "d.svg"):
        assert repr(name) in caplog.text
    assert not any(name in caplog.text for name in ("notes", "._x", "pipe"))


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ValueError, match="a.png is a named pipe or a device"):
        read_rgb(tmp_path / "a.png")


def test_the_size_is_that_of_the_upright_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    assert check_image(save(tmp_path, photo(), "a.jpg", exif=exif)) == (40, 30)


def test_premultiplied_grey_is_laid_on_white_too():
    assert as_rgb(Image.new("LA", (1, 1), (0, 128)).convert("La")).getpixel((0, 0)) == (127,) * 3


def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    for read in (read_rgb, check_image):
        with pytest.raises(ValueError, match=r"a\.png is a named pipe or a device"):
            read(tmp_path / "a.png")
