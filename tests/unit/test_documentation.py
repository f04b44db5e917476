"""The Python in the documents runs, and prints the errors that its comments promise."""

import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from models.structures.sizes import KINDS

ROOT = Path(__file__).parents[2]


def blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def section(text: str, title: str) -> str:
    """From this heading to the next of its level."""
    _, _, rest = text.partition(f"\n## {title}\n")
    return rest.partition("\n## ")[0]


def run(found: list[str], file: str) -> None:
    """One block after another, with the names of those before; torch's own numbers stay as is."""
    names: dict[str, object] = {}
    with torch.random.fork_rng():
        for block in found:
            exec(compile(block, file, "exec"), names)


def promised(found: list[str]) -> list[float]:
    """The numbers that comments write like .498, in their order."""
    comments = re.findall(r"# (.*)", "\n".join(found))
    return [float(number) for text in comments for number in re.findall(r"(?<!\d)\.\d{3}\b", text)]


def printed(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"\b\d+\.\d+\b", text)]


def test_the_page_of_the_structures_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    found = blocks((ROOT / "docs" / "structures.md").read_text(encoding="utf-8"))
    assert found
    run(found, "docs/structures.md")
    wanted, numbers = promised(found), printed(capsys.readouterr().out)
    assert wanted
    for number in wanted:
        assert number in [pytest.approx(one, abs=2e-3) for one in numbers]


def test_the_page_on_observing_verifies_what_is_sent() -> None:
    from service.credentials import new_webhook_secret
    from service.outgoing import signature

    (found,) = blocks((ROOT / "docs" / "observing.md").read_text(encoding="utf-8"))
    names: dict[str, Any] = {}
    exec(compile(found, "docs/observing.md", "exec"), names)
    secret, now = new_webhook_secret(), int(time.time())
    signed = signature(secret, message_id="msg_1", timestamp=now, body=b"{}")
    headers = {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(now),
        "webhook-signature": f"v1,other {signed}",
    }
    check = names["is_from_matnas"]
    assert check(secret, headers, b"{}")
    assert not check(secret, headers, b"{ }")
    assert not check(new_webhook_secret(), headers, b"{}")
    assert not check(secret, headers | {"webhook-timestamp": str(now - 600)}, b"{}")


def test_the_table_of_kinds_has_each_once() -> None:
    """`BLAST, 4 x 4`, `16 x 16` are two: the last words of a name stand for others."""
    page = (ROOT / "docs" / "structures.md").read_text(encoding="utf-8")
    listed: list[str] = []
    for row in re.findall(r"^\| (`.*?) \|", section(page, "Sizes"), re.MULTILINE):
        first, *others = re.findall(r"`(.*?)`", row)
        listed.append(first)
        for other in others:
            begins = re.sub(r"\d+( x \d+)?$", "", first)
            listed.append(other if begins == first else begins + other)
    assert sorted(listed) == sorted(KINDS)


def test_the_readme_shows_structures_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = blocks(section(readme, "Structures"))
    assert found
    run(found, "README.md")
    assert capsys.readouterr().out


def test_every_record_has_a_number_of_its_own() -> None:
    records = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    titles = [path.read_text().partition(". ")[0] for path in records]
    assert titles == [f"# {number + 1}" for number in range(len(records))]
    assert [path.name[:4] for path in records] == [f"{n + 1:04d}" for n in range(len(records))]
