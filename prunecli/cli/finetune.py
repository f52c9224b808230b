"""`prunecli finetune`: a checkpoint -> the same model, trained on."""

from __future__ import annotations

from prunecli.cli.grouping import Given
from prunecli.cli.options import CheckpointPath, Shown, with_options
from prunecli.pipeline.settings import Choices, Files, Machine, Run, Source, TrainedFiles, TrainingData
from prunecli.recipe import Recipe

NAME = "finetune"
EXAMPLES = """Examples:
  prunecli finetune model.pruned.safetensors --epochs 20 --lr 0.01 --augment crop,flip
  prunecli finetune model.pruned.safetensors --epochs 40 --distill model.pt --ema 0.999 --resume"""


@with_options
def command(
    checkpoint: CheckpointPath,
    source: Source,
    data: TrainingData,
    recipe: Recipe,
    run: Run,
    machine: Machine,
    files: TrainedFiles,
    shown: Shown,
    given: Given,
) -> None:
    """Train a checkpoint on, pruned or not; Ctrl-C keeps the run, and --resume goes on with it."""
    from prunecli.cli.progress import reporting
    from prunecli.cli.tables import show_report
    from prunecli.pipeline.finetune import finetune
    from prunecli.pipeline.processes import joined

    choices = Choices(
        source=source,
        samples=data.as_samples(),
        machine=machine,
        files=Files(out=files.out, onnx=files.onnx, force=files.force),
        recipe=recipe,
        run=run,
        given=given,
    )
    with reporting(shown) as reporter, joined() as processes:
        finetuned = finetune(checkpoint, choices, reporter, processes)
    show_report(finetuned.report, finetuned.files, shown)
