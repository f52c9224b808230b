"""A report in the form that is asked for -> text. The terminal's table alone is made in cli/."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from prunecli.report.page import report_page
from prunecli.report.text import to_csv, to_markdown
from prunecli.report.values import Report

FORMS: Final[Mapping[str, Callable[[Report, Sequence[str]], str]]] = {
    "html": report_page,
    "md": lambda report, checks: to_markdown(report),
    "csv": lambda report, checks: to_csv(report),
    "json": lambda report, checks: report.to_json(),
}
"""What writes a report, and what was checked of it, by the suffix of files."""
