"""Tables of captions, record by record."""

import gzip

import pytest

from talk2dino.methods.ovsegmentor.data.metafile import MAX_RECORD, open_table


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows(table, start=None, stop=None):
    return [table.fields(record) for record in table.records(start, stop)]


@pytest.mark.parametrize(
    "header", ["image_id,caption\n", "\ufeffURL,Caption\r\n", "key,TEXT\n", ""]
)
def test_a_csv_is_read_with_and_without_a_header(tmp_path, header):
    table = open_table(write(tmp_path / "a.csv", header + '1.jpg,"a, ""b""\nc"\n\n2.jpg,d'))
    assert table.columns == ("image_id", "caption")
    assert rows(table) == [["1.jpg", 'a, "b"\nc'], ["2.jpg", "d"]]


def test_a_tsv_is_read_line_by_line_whatever_its_quotes(tmp_path):
    content = 'http://a\t5" of snow\nhttp://b\t"a ""b"""\r\nhttp://c\t"x" and "y"\n'
    table = open_table(write(tmp_path / "a.tsv", content))
    assert [caption for _, caption in rows(table)] == ['5" of snow', 'a "b"', '"x" and "y"']


def test_a_header_can_be_declared(tmp_path):
    path = write(tmp_path / "a.csv", "foo,bar\n1.jpg,a cat\n")
    assert rows(open_table(path, "no")) == [["foo", "bar"], ["1.jpg", "a cat"]]
    assert rows(open_table(path, "yes")) == [["1.jpg", "a cat"]]
    named = write(tmp_path / "b.csv", "image,caption\n")
    assert rows(open_table(named, "no")) == [["image", "caption"]]


def test_reading_can_start_and_stop_at_any_record(tmp_path):
    table = open_table(write(tmp_path / "a.csv", 'image_id,caption\n1,"a\nb"\n2,c\n3,d\n'))
    offsets = [record.offset for record in table.records()]
    assert rows(table, offsets[1]) == [["2", "c"], ["3", "d"]]
    assert rows(table, offsets[0], offsets[1]) == [["1", "a\nb"]]
    assert rows(table, offsets[0], offsets[1] + 1) == [["1", "a\nb"], ["2", "c"]]


def test_missing_columns_are_named_with_those_there(tmp_path):
    three = write(tmp_path / "a.csv", "id,image,words\n")
    with pytest.raises(ValueError, match="no header .*3 columns: id, image, words"):
        open_table(three)
    with pytest.raises(ValueError, match=r"no column 'caption'; it has: id, image_id, words"):
        open_table(three, "yes")
    table = open_table(write(tmp_path / "b.csv", "image_id,caption,entitys\n"))
    with pytest.raises(ValueError, match="Is it 'entitys'"):
        table.column("entity")


@pytest.mark.parametrize("first", ["foo,bar", "image_id,title2", "7.jpg,caption"])
def test_two_names_of_other_columns_are_no_image_and_caption(tmp_path, first):
    table = write(tmp_path / "a.csv", f"{first}\n1.jpg,a cat\n")
    with pytest.raises(ValueError, match=f"the first line, {first}, seems to name columns"):
        open_table(table)
    assert open_table(table, "no").columns == ("image_id", "caption")


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b"\n\n", "is empty"),
        ("a.txt", b"", "neither a .csv nor a .tsv"),
        ("a.csv", b"\xff\xfe,b\n", "the first record is not UTF-8"),
        ("a.csv", b'1,"a"b\n', "the first record is not valid csv"),
        ("a.csv", b'1,"a\n2,b\n', "the record at byte 0 has no end"),
        ("a.csv", b"image,caption,x,caption\n", r"a.csv: the header lists more than once: caption"),
        ("a.csv", b"url,url,text\n", r"the header lists more than once: url \(2 times\)"),
        (
            "a.csv",
            gzip.compress(b"a,b\n", mtime=0),
            "a.csv is packed with gzip. Unpack it first: gunzip",
        ),
        ("a.tsv.gz", gzip.compress(b"a\tb\n", mtime=0), "a.tsv.gz is packed with gzip"),
    ],
)
def test_a_file_that_is_no_table_says_what_it_is(tmp_path, name, content, problem):
    with pytest.raises(ValueError, match=problem):
        open_table(write(tmp_path / name, content))


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a\.csv: no such file"):
        open_table(tmp_path / "a.csv")


@pytest.mark.parametrize("body", ['"' + "x\n" * MAX_RECORD, "x" * (MAX_RECORD + 1)])
def test_a_quote_that_is_never_closed_does_not_fill_the_memory(tmp_path, body):
    table = open_table(write(tmp_path / "a.csv", "image_id,caption\n1,a\n2," + body))
    with pytest.raises(ValueError, match="the record at byte 21 has no end"):
        rows(table)


@pytest.mark.parametrize(
    ("name", "content", "header"),
    [
        ("a.tsv", "a cat, seen\thttp://x/1 2.jpg\na dog\thttp://x/3.jpg\n", "auto"),
        ("b.csv", '\ufeff"a cat, seen",1.JPG\na dog,2.jpg\n', "auto"),
        ("c.tsv", "words\tpicture\na cat, seen\thttps://x/1\na dog\thttps://x/2\n", "yes"),
    ],
)
def test_a_caption_before_the_address_is_seen_and_said(tmp_path, caplog, name, content, header):
    table = open_table(write(tmp_path / name, content), header)
    assert table.columns == ("caption", "image_id")
    assert [fields[0] for fields in rows(table)] == ["a cat, seen", "a dog"]
    open_table(tmp_path / name, header)
    (record,) = caplog.records
    assert "the first column is taken for the caption" in record.getMessage()


@pytest.mark.parametrize("first", ["1.jpg\t2.jpg", "http://x\thttp://y", "key 1\ta word"])
def test_columns_stay_as_they_are_where_nothing_speaks_for_an_exchange(tmp_path, first):
    assert open_table(write(tmp_path / "a.tsv", first)).columns == ("image_id", "caption")
