import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scanner.checkpoint.sources.ranges import MAX_GAP_BYTES, ByteRange, Sink, plan_reads, sink_of

NAMES = st.sampled_from(["a.safetensors", "b.safetensors"])
RANGES = st.lists(st.builds(ByteRange, name=NAMES, start=st.integers(0, 3000), size=st.integers(0, 500)), max_size=12)


@given(RANGES)
def test_every_range_is_in_one_read_and_gaps_are_a_small_part(ranges: list[ByteRange]) -> None:
    reads = plan_reads(ranges)
    assert sorted(index for read in reads for index in read.wanted) == [i for i, one in enumerate(ranges) if one.size]
    for read in reads:
        wanted = [ranges[index] for index in read.wanted]
        assert {one.name for one in wanted} == {read.name}
        assert min(one.start for one in wanted) == read.start
        assert max(one.start + one.size for one in wanted) == read.start + read.size
        assert 0 <= read.size - sum(one.size for one in wanted) <= 0.04 * read.size


@given(RANGES, st.integers(1, 700))
def test_the_bytes_of_a_read_arrive_where_they_belong(ranges: list[ByteRange], chunk: int) -> None:
    file = np.random.default_rng(0).integers(0, 256, 4000, dtype=np.uint8)
    contents = [np.zeros(one.size, dtype=np.uint8) for one in ranges]
    for read in plan_reads(ranges):
        sink = sink_of(read, ranges, contents)
        body = file[read.start : read.start + read.size].tobytes()
        for start in range(0, len(body), chunk):
            sink.write(body[start : start + chunk])
        assert (sink.missing, sink.done) == (0, read.size)
    for one, content in zip(ranges, contents, strict=True):
        assert np.array_equal(content, file[one.start : one.start + one.size])


def test_neighbours_are_one_read_and_distant_ranges_are_not() -> None:
    large = 20 * MAX_GAP_BYTES
    ranges = [
        ByteRange(name="a", start=large, size=large),
        ByteRange(name="a", start=0, size=large),
        ByteRange(name="a", start=2 * large + 100, size=large),
        ByteRange(name="a", start=3 * large + 101 + MAX_GAP_BYTES, size=large),
        ByteRange(name="b", start=0, size=large),
    ]
    assert [read.wanted for read in plan_reads(ranges)] == [(1, 0, 2), (3,), (4,)]


def test_more_bytes_than_expected_are_refused() -> None:
    sink = Sink([memoryview(bytearray(3)), memoryview(bytearray(0)), memoryview(bytearray(2))])
    sink.write(b"1234")
    with pytest.raises(ValueError, match="1 are missing"):
        sink.write(b"56")
