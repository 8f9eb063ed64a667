"""The bench of tracing: its made run is read as a real one, and what it says is checked against the stream."""

from jobs.bench import trace


def test_what_was_made_is_found_and_right(tmp_path):
    config = trace.Config(rows=5_000, unit=500, samples=60_000, batch=64, words=30)
    assert trace.make(str(tmp_path), config)["steps"] == 938
    found = trace.measure(str(tmp_path), config)
    assert (found["found"], found["checked"]) == (30, found["right"]) == (30, trace.CHECKED)
    assert 20 < found["selected"] < 30, "some of the words name what the newer version leaves out"
    assert found["sightings"] > 13 * found["selected"]
