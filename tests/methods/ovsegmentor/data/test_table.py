"""Tables of captions, record by record."""

import gzip

import pytest

from talk2dino.methods.ovsegmentor.data.table import open_table


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows(table, *bounds):
    return [fields for _, fields in table.records(*bounds)]


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


def test_reading_can_start_and_stop_at_any_record(tmp_path):
    table = open_table(write(tmp_path / "a.csv", 'image_id,caption\n1,"a\nb"\n2,c\n3,d\n'))
    offsets = [place for place, _ in table.records()]
    assert rows(table, offsets[1]) == [["2", "c"], ["3", "d"]]
    assert rows(table, offsets[0], offsets[1]) == [["1", "a\nb"]]
    assert rows(table, offsets[0], offsets[1] + 1) == [["1", "a\nb"], ["2", "c"]]


def test_missing_columns_are_named_with_those_there(tmp_path):
    three = write(tmp_path / "a.csv", "id,image,words\n")
    with pytest.raises(ValueError, match="no header .*3 columns: id, image_id, words"):
        open_table(three)
    table = open_table(write(tmp_path / "b.csv", "image_id,caption,entitys\n"))
    with pytest.raises(
        ValueError, match="column of .*b.csv: 'entity'. Known: .*Did you mean 'entitys'"
    ):
        table.need("entity")


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b"\n\n", "is empty"),
        ("a.txt", b"", "neither a .csv nor a .tsv"),
        ("a.csv", b'1,"a"b\n', "the record at byte 0 is not valid csv"),
        ("a.csv", b'1,"a\n2,b\n', "byte 0 is not valid csv .*Is a quote not closed"),
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


@pytest.mark.parametrize("body", ['"' + "x\n" * 2**20, "x" * 2**20])
def test_a_quote_that_is_never_closed_does_not_fill_the_memory(tmp_path, body):
    table = open_table(write(tmp_path / "a.csv", "image_id,caption\n1,a\n2," + body))
    with pytest.raises(ValueError, match="the record at byte 21 is not valid csv .field larger"):
        rows(table)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", "a cat, seen\thttp://x/1 2.jpg\na dog\thttp://x/3.jpg\n"),
        ("b.csv", '\ufeff"a cat, seen",1.JPG\na dog,2.jpg\n'),
        ("c.tsv", "words\tpicture\na dog\thttps://x/2\n"),
    ],
)
def test_a_caption_before_the_address_is_seen_and_said(tmp_path, caplog, name, content):
    table = open_table(write(tmp_path / name, content))
    assert table.columns == ("caption", "image_id")
    assert [fields[0] for fields in rows(table)][1] == "a dog"
    open_table(tmp_path / name)
    (record,) = caplog.records
    assert "the first column is taken for the caption" in record.getMessage()


@pytest.mark.parametrize("first", ["1.jpg\t2.jpg", "http://x\thttp://y", "key 1\ta word"])
def test_columns_stay_as_they_are_where_nothing_speaks_for_an_exchange(tmp_path, first):
    assert open_table(write(tmp_path / "a.tsv", first)).columns == ("image_id", "caption")


def test_damaged_records_say_what_is_wrong(tmp_path):
    table = open_table(write(tmp_path / "a.tsv", b"1.jpg\ta\n2.jpg\ta\tb\n3.jpg\t\xff\n"))
    damage = [table.damage(fields) for fields in rows(table)]
    assert damage == ["", "has 3 fields instead of 2", "is not UTF-8 text"]
