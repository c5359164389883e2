"""Updates killed again and again leave the store that they would have left alone; 200 times: tests/kill_updates.py."""

from kill_updates import kill, same


def test_twenty_killed_updates_lose_nothing(tmp_path):
    alone, killed, count = kill(20, tmp_path)
    assert count == 20 and len(killed.folder.versions()) >= 2
    same(alone, killed)
