"""Every reader of files from elsewhere: the seed that it is tried with, and how far a command would read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from prunecli.cli.tables import report_text
from prunecli.data import open_data
from prunecli.export.from_onnx import describe_onnx, read_onnx
from prunecli.importance.scores import Scores
from prunecli.pipeline.contents import contents_of
from prunecli.pipeline.finding import read
from prunecli.pipeline.journal import DiskJournal
from prunecli.pipeline.listener import Silent
from prunecli.pipeline.opening import open_model
from prunecli.pipeline.settings import Samples, Source
from prunecli.plan import Plan
from prunecli.report import Report, to_csv, to_markdown
from prunecli.report.page import report_page
from prunecli.report.sweep import SweepReport
from prunecli.spec import InputSpec, ModelSpec, read_spec
from prunecli.spec.hugging_face import is_folder, read_configuration
from prunecli.training import saving


@dataclass(frozen=True)
class Reader:
    """What reads a file."""

    seed: str
    """The valid file that is damaged, by its name among the seeds."""
    name: str
    """What the damaged file is called, beside the other seeds."""
    read: Callable[[Path], object]
    """Raises errors of the program, and no others."""


def _model(path: Path) -> object:
    opened = open_model(str(path), Source(spec=str(path.with_name("net.toml"))), Samples(), Silent())
    return opened.model(*opened.example[0])


def _contents(path: Path) -> object:
    return contents_of(read(str(path), Source()))


def _plan(path: Path) -> object:
    return Plan.from_json(path.read_text(errors="replace"))


def _report(path: Path) -> object:
    report = Report.from_json(path.read_text(errors="replace"))
    return report_text(report, "table"), to_markdown(report), to_csv(report), report_page(report)


def _sweep(path: Path) -> object:
    report = Report.from_json(path.with_name("net.pruned.json").read_text())
    trade_off = SweepReport.from_json(path.read_text(errors="replace")).trade_off
    return report_page(replace(report, trade_off=trade_off))


def _samples(source: str) -> Callable[[Path], object]:
    def read_samples(path: Path) -> object:
        spec = replace(read_spec(str(path.with_name("net.toml"))), base=path.parent)
        samples = open_data(source.format(path.name), spec)
        return samples.batch(range(min(len(samples), 4)))

    return read_samples


def _pictures(path: Path) -> object:
    spec = ModelSpec("net.py:net", {}, (InputSpec((3, 8, 8)),), base=path.parents[2])
    return open_data("imagefolder:pictures", spec).batch(range(2))


def _journal(path: Path) -> object:
    journal = DiskJournal({}, Silent(), path.parent)
    journal.path = path
    with journal:
        return journal


def _configuration(path: Path) -> object:
    return is_folder(path.parent), read_configuration(path)


READERS: Mapping[str, Reader] = {
    "torch zip": Reader("net.pt", "a.pt", _model),
    "torch legacy": Reader("old.pt", "a.pt", _model),
    "safetensors": Reader("net.safetensors", "a.safetensors", _model),
    "contents": Reader("net.safetensors", "a.safetensors", _contents),
    "index of shards": Reader("net.safetensors.index.json", "a.index.json", _contents),
    "distributed": Reader("dcp/.metadata", "dcp/.metadata", lambda path: _contents(path.parent)),
    "pruned file": Reader("net.pruned.safetensors", "a.safetensors", _model),
    "masked file": Reader("net.masked.safetensors", "a.safetensors", _model),
    "ONNX": Reader("net.pruned.onnx", "a.onnx", lambda path: describe_onnx(read_onnx(path))),
    "spec": Reader("net.toml", "a.toml", lambda path: read_spec(str(path))),
    "configuration": Reader("config.json", "config.json", _configuration),
    "plan": Reader("plan.json", "a.json", _plan),
    "scores": Reader("scores.safetensors", "a", lambda path: Scores.from_bytes(path.read_bytes())),
    "report": Reader("net.pruned.json", "a.json", _report),
    "report of training": Reader("tuned/net.finetuned.json", "a.json", _report),
    "sweep": Reader("swept/net.sweep.json", "a.json", _sweep),
    "state of a run": Reader(
        "tuned/net.finetuned.run/state.safetensors",
        "a",
        lambda path: saving.from_bytes(path.read_bytes(), "a"),
    ),
    "journal": Reader("scores.safetensors", "a", _journal),
    "npz": Reader("data.npz", "a.npz", _samples("npz:{}#train")),
    "PNG": Reader("pictures/x/0.png", "pictures/x/0.png", _pictures),
    "JPEG": Reader("pictures/x/1.jpg", "pictures/x/1.jpg", _pictures),
    "idx": Reader("images", "a", _samples("idx:{}")),
    "idx, gzipped": Reader("images.gz", "a.gz", _samples("idx:{}")),
}
