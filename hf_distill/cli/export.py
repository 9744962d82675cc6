"""The command that makes a file of a student."""

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hf_distill.cli.console import DebugOption, app, only_ours, print_sentence, print_table


class Format(StrEnum):
    """Of the file."""

    ONNX = "onnx"


class Integers(StrEnum):
    """To which the weights are rounded."""

    INT8 = "int8"


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The output folder of a finished `hf-distill train`.")],
    format: Annotated[Format, typer.Option("--format", help="For ONNX Runtime.")] = Format.ONNX,
    quantize: Annotated[Integers | None, typer.Option("--quantize", help="A second file, of 8-bit integers.")] = None,
    max_loss: Annotated[
        float, typer.Option("--max-loss", min=0, help="Points of metric and agreement that the 8-bit file may lose.")
    ] = 0.5,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else.")] = False,
    debug: DebugOption = False,
) -> None:
    r"""Write the student as a file for the edge, run it on the evaluation rows, and measure it as that file.

    It lies in RUN/student/onnx, and `push` takes it along. A file that predicts
    otherwise than the student is refused. It needs: pip install 'hf_distill\[onnx]'.
    """
    only_ours(debug=debug)
    from hf_distill.evaluation.tables import exported, exports_table
    from hf_distill.runs.export import FOLDER, export_student

    run = run.expanduser()
    found = export_student(run, quantize=quantize is not None, max_loss=max_loss, overwrite=overwrite)
    if as_json:
        typer.echo(json.dumps({name: asdict(model) for name, model in found.exports.items()}, indent=2))
        return
    print_table(*exports_table(found), spare=("of teacher",))
    sentence = exported(found)
    if sentence is not None:
        print_sentence(sentence)
    typer.echo(f"{format.value} files are in {run / 'student' / FOLDER}.")
