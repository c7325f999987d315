"""Generated documentation is never stale."""

from pathlib import Path

from launcher.pages.families import families_page
from launcher.pages.run_file import json_schema, markdown
from launcher.pages.tasks import tasks_page

DOCS = Path(__file__).parents[2] / "docs"


def test_reference_page_is_current():
    assert (DOCS / "run-file.md").read_text() == markdown(), "run: promptfleet schema --markdown > docs/run-file.md"


def test_json_schema_is_current():
    assert (DOCS / "run-file.schema.json").read_text() == json_schema(), (
        "run: promptfleet schema > docs/run-file.schema.json"
    )


def test_the_page_of_tasks_is_fresh():
    assert (DOCS / "tasks.md").read_text() == tasks_page(), "run: promptfleet tasks > docs/tasks.md"


def test_the_page_of_families_is_fresh():
    assert (DOCS / "families.md").read_text() == families_page(), "run: promptfleet families > docs/families.md"
