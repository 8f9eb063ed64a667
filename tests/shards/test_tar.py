"""One tar: the same bytes every time, readable by the standard library, honest about damage."""

import contextlib
import hashlib
import io
import itertools
import re
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from shards.tar import Member, Source, header, read_tar, tar_sha256, walk, write_tar

BODIES = {"a.jpg": b"x" * 700, "a.json": b"{}", "b.png": b"", "c.jpg": b"y" * 512}


def pack() -> tuple[bytes, list]:
    out = io.BytesIO()
    placed = list(write_tar(out, [Member(name, body) for name, body in BODIES.items()]))
    return out.getvalue(), placed


def test_offsets_point_at_the_data_and_bytes_repeat():
    packed, placed = pack()
    assert packed == pack()[0]
    assert {p.name: packed[p.offset : p.offset + p.length] for p in placed} == BODIES


def test_the_standard_library_reads_it_and_finds_nothing_of_this_machine():
    packed, _ = pack()
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        infos = tar.getmembers()
        assert {i.name: tar.extractfile(i).read() for i in infos} == BODIES
    assert {(i.uid, i.gid, i.mtime, i.mode, i.uname) for i in infos} == {(0, 0, 0, 0o644, "")}


def test_spooled_bodies_are_written_from_disk(tmp_path):
    (tmp_path / "body").write_bytes(b"spooled")
    out = io.BytesIO()
    list(write_tar(out, [Member("k.jpg", tmp_path / "body")]))
    assert [(n, b) for n, _, b in read_tar(io.BytesIO(out.getvalue()))] == [("k.jpg", b"spooled")]


def test_reading_gives_names_offsets_and_bodies():
    packed, placed = pack()
    assert [(n, o, b) for n, o, b in read_tar(io.BytesIO(packed))] == [
        (p.name, p.offset, BODIES[p.name]) for p in placed
    ]


@pytest.mark.parametrize(("length", "what"), [(300, "without its end mark"), (900, "inside a.jpg"), (1536, "end mark")])
def test_a_cut_tar_says_where(length, what):
    with pytest.raises(ValueError, match=what):
        list(read_tar(io.BytesIO(pack()[0][:length])))


def test_rubbish_is_not_a_tar():
    with pytest.raises(ValueError, match="no valid header at byte 0"):
        list(read_tar(io.BytesIO(b"z" * 2048)))


@given(st.text(st.characters(codec="ascii", exclude_characters="\0"), min_size=1, max_size=100), st.integers(0, 8**12))
def test_headers_are_those_of_tarfile(name, length):
    info = tarfile.TarInfo(name)
    info.size = length
    try:
        expected = info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")
    except ValueError:
        return  # larger than ustar can say
    assert header(name, length) == expected


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=130)


@given(
    st.dictionaries(NAMES, st.binary(max_size=1500), max_size=6),
    st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    st.integers(70, 3000),
)
@settings(max_examples=60, deadline=None)
def test_whatever_tar_wrote_it_names_and_places_are_those_of_tarfile(members, kind, piece):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=kind) as tar:
        folder, link = tarfile.TarInfo("folder/"), tarfile.TarInfo("link")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        link.type, link.linkname, link.size = tarfile.SYMTYPE, "x" * 150, 7
        if kind != tarfile.USTAR_FORMAT:
            tar.addfile(link)
        for name, body in members.items():
            info = tarfile.TarInfo(f"{name}.jpg")
            info.size, info.mtime, info.uname = len(body), 1.7e9, "someone"
            try:
                tar.addfile(info, io.BytesIO(body))
            except ValueError:
                return  # longer than ustar can say
    packed = out.getvalue()
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        expected = [(m.name, m.offset_data, m.size) for m in tar if m.isreg()]
    source = Source(memoryview(packed[at : at + piece]) for at in range(0, len(packed), piece))
    found = [(member, source.take(member.length // 2)) for member in walk(source)]
    assert [(m.name, m.offset, m.length) for m, _ in found] == expected
    assert [half for _, half in found] == [body[: len(body) // 2] for body in members.values()]
    source.drain()
    assert (source.size, source.sha256.digest()) == (len(packed), hashlib.sha256(packed).digest())


def by_hand(path: Path) -> str:
    """What the recipe in docs/design.md gives, which uses nothing of ours."""
    text = (Path(__file__).parents[2] / "docs" / "design.md").read_text()
    (recipe,) = re.findall(r"```python\n(import hashlib, pathlib, tarfile\n.*?)```", text, re.DOTALL)
    names: dict = {}
    exec(recipe, names)
    return names["tar_sha256"](path)


@pytest.mark.parametrize("piece", [1, 511, 700, 1 << 20])
def test_the_sha256_of_a_tar_is_that_of_the_recipe_however_it_is_read(tmp_path, piece):
    packed, _ = pack()
    (tmp_path / "a.tar").write_bytes(packed)
    read = (memoryview(packed)[at : at + piece] for at in range(0, len(packed), piece))
    assert tar_sha256(read) == by_hand(tmp_path / "a.tar") != hashlib.sha256(packed).hexdigest()


def test_every_byte_of_a_tar_is_in_its_sha256():
    packed, _ = pack()
    seen = {tar_sha256([memoryview(packed)])}
    for at in range(len(packed)):
        damaged = bytearray(packed)
        damaged[at] ^= 1
        source = Source([memoryview(damaged)])
        with contextlib.suppress(ValueError):  # a header is damaged: the rest is hashed as it is
            for member in walk(source):
                if not member.name.endswith(".json"):
                    source.picture(member.length)
        source.drain()
        seen.add(source.sha256.hexdigest())
    assert len(seen) == len(packed) + 1


def test_a_picture_is_handed_out_with_its_sha256():
    packed, placed = pack()
    source = Source(memoryview(packed)[at : at + 300] for at in range(0, len(packed), 300))
    found = {member.name: source.picture(member.length, keep=member.name != "a.jpg") for member in walk(source)}
    digests = {name: hashlib.sha256(body).hexdigest() for name, body in BODIES.items()}
    assert found == {n: (b"" if n == "a.jpg" else body, digests[n]) for n, body in BODIES.items()}
    assert source.at == placed[-1].offset + 512 + 512


def test_a_damaged_extended_header_is_no_name():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo("x" * 120))
    with pytest.raises(ValueError, match="no valid extended header at byte 0"):
        list(read_tar(io.BytesIO(out.getvalue().replace(b" path=", b"xpath="))))


def numbered(size: bytes) -> bytes:
    """An empty tar's only header, with this size field and a checksum that agrees."""
    head = bytearray(tarfile.TarInfo("a.jpg").tobuf(tarfile.GNU_FORMAT))
    head[124:136], head[148:156] = size, b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head) + bytes(1024)


def extended(record: bytes) -> bytes:
    """A member of 512 bytes, of which a pax header says this."""
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, len(record)
    return info.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0") + header("a.jpg", 512) + bytes(512 + 1024)


@pytest.mark.parametrize(
    ("tar", "what"),
    [
        (numbered(b"\xff" + (256**11 - 512).to_bytes(11, "big")), "header at byte 0: its member's size is -512"),
        (numbered(b"-0000000777\0"), "header at byte 0: its member's size is -511"),
        (extended(b"14 size=-1536\n"), "extended header at byte 0: its member's size is '-1536'"),
        (extended(b"12 size=abc\n"), "extended header at byte 0: its member's size is 'abc'"),
        (extended(b"0 path=b.jpg\n"), "extended header at byte 0$"),
        (extended(b"9" * 5000 + b" path=b.jpg\n"), "extended header at byte 0$"),
    ],
)
def test_lengths_that_lead_nowhere_are_damage(tar, what):
    with pytest.raises(ValueError, match=f"the tar has no valid {what}"):
        list(itertools.islice(walk(Source([memoryview(tar)])), 10))


def test_a_torn_member_with_a_wild_name_is_said_in_one_short_line():
    info = tarfile.TarInfo("new\nline\x1b[31m" + "x" * 3000)
    info.size = 4000
    head = info.tobuf(tarfile.GNU_FORMAT)
    with pytest.raises(ValueError, match=r"the tar ends inside 'new\\nline\\x1b\[31mx+' at byte \d+: it") as caught:
        list(walk(Source([memoryview(head + b"y" * 100)])))
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("at", [*range(0, 16, 5), 60, *range(99, 160), 257, 262, 340, 511])
def test_a_changed_header_is_read_as_tarfile_reads_it(at):
    good = header("n01440764_1.jpg", 0o12345)
    for value in (0, 32, ord("0"), ord("9"), 255):
        head = good[:at] + bytes([value]) + good[at + 1 :]
        try:
            info = tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            with pytest.raises(ValueError, match="has no valid header at byte 0"):
                list(walk(Source([memoryview(head + bytes(1 << 15))])))
        else:
            (member,) = walk(Source([memoryview(head + bytes(1 << 15))]))
            assert (member.name, member.length) == (info.name, info.size)
