import random
import tracemalloc

from rollout.archive.table import StoredIds


def test_ids_are_those_that_a_set_would_hold() -> None:
    draw, stored, plain = random.Random(0), StoredIds(), set()
    for _ in range(40):
        names = [f"scene {draw.randrange(30_000)}" for _ in range(500)]
        stored.add(names)
        plain |= set(names)
        asked = [f"scene {draw.randrange(30_000)}" for _ in range(50)]
        assert [name in stored for name in asked] == [name in plain for name in asked]
    assert all(name in stored for name in plain) and "scene 30000" not in stored


def test_an_id_takes_less_than_40_bytes_however_long_it_is() -> None:
    tracemalloc.start()
    stored = StoredIds()
    before, _ = tracemalloc.get_traced_memory()
    stored.add(f"a data set / a folder / the image of number {k} / annotation {k}" for k in range(100_000))
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (after - before) / 100_000 < 40
