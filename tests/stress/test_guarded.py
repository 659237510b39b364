"""What must not be is noticed, by name, and the tasks behind it are still done."""

import zlib

from guarded import Task, run_guarded


def test_what_must_not_be_is_noticed_and_the_rest_goes_on(tmp_path):
    bomb, table = tmp_path / "bomb", tmp_path / "t.csv"
    bomb.write_bytes(zlib.compress(bytes(500 << 20), 1))
    table.write_bytes(b"a,b\n1,2\n")
    readers = ("unlimited", "stuck", "failing", "crashing")
    tasks = [Task(reader, reader, bomb) for reader in readers]
    tasks += [Task("no table", "table", bomb), Task("a table", "table", table)]
    found = run_guarded(tasks, mib=300, seconds=1)
    assert {name: one.outcome for name, one in found.items()} == {
        "unlimited": "!MemoryError",
        "stuck": "!hang",
        "failing": "!IndexError",
        "crashing": "!SIGSEGV",
        "no table": "CaseError",
        "a table": "reads",
    }
