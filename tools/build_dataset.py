"""Photoshop documents to a dataset of layered records, with a report of what was dropped and why (docs/data.md).

python tools/build_dataset.py SOURCE --out FOLDER [--runner DirectRunner] [Beam's own options]
"""

import argparse
import dataclasses
import functools
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions
from etils import epath
from rich.console import Console
from rich.table import Table

from qil_jax.data.captions import Captioner, EndpointCaptioner, EndpointConfig, SidecarCaptioner
from qil_jax.data.cleaning import CleaningConfig
from qil_jax.data.dataset import (
    NAME,
    VERSION,
    WORK,
    DatasetFacts,
    Workplace,
    caption_all,
    contents_of,
    prepare_all,
    sidecar,
    write_dataset,
)
from qil_jax.data.prepare import PrepareConfig, Row, find_documents
from qil_jax.data.psd import PSDLimits
from qil_jax.data.report import write_report
from qil_jax.data.sandbox import ProcessLimits


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("source", help="a folder (with subfolders), glob, bucket or file of .psd and .psb documents")
    parse.add_argument("--out", required=True, help="folder for the dataset, report.json and report.html")
    parse.add_argument("--runner", default="DirectRunner", help="of Apache Beam; 'none' is a plain loop")
    parse.add_argument("--max-layers", type=int, default=CleaningConfig.max_layers)
    parse.add_argument("--min-side", type=int, default=CleaningConfig.min_side, help="of a canvas, in pixels")
    parse.add_argument("--min-psnr", type=float, default=PSDLimits.recomposition_psnr, help="of the layers, in dB")
    parse.add_argument("--seconds", type=float, default=ProcessLimits.seconds, help="that a document may take")
    parse.add_argument("--memory-gib", type=float, default=ProcessLimits.memory / 2**30, help="that it may take")
    parse.add_argument("--caption-url", help="an OpenAI-compatible address; else captions are NAME.txt beside NAME.psd")
    parse.add_argument("--caption-model", default="Qwen/Qwen2.5-VL-7B-Instruct")
    parse.add_argument("--caption-prompt", default=None, help="a file with the instruction")
    parse.add_argument("--licence", default="", help="of the documents, where NAME.json does not say")
    parse.add_argument("--source-name", default="", help="where the documents come from, likewise")
    return parse


def main(arguments: list[str] | None = None) -> int:
    """Build the dataset; 0 if there is one at the end."""
    args, beam_arguments = parser().parse_known_args(arguments)
    out = epath.Path(args.out)
    try:
        documents = find_documents(args.source)
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(error, file=sys.stderr)
        return 2
    config = PrepareConfig(
        psd=PSDLimits(recomposition_psnr=args.min_psnr),
        cleaning=CleaningConfig(max_layers=args.max_layers, min_side=args.min_side),
        process=ProcessLimits(seconds=args.seconds, memory=int(args.memory_gib * 2**30)),
    )
    options = None if args.runner == "none" else PipelineOptions([f"--runner={args.runner}", *beam_arguments])
    place = Workplace(config=config, work=out / WORK, options=options)
    rows = caption_all(prepare_all(documents, place), documents, _make_captioner(args, place.work), place)
    facts = write_report(rows, place.done, out)
    _show(facts)
    if not facts["kept"]:
        print(f"no document is kept: {out / 'report.html'} says why", file=sys.stderr)
        return 1
    return _write(rows, documents, DatasetFacts(source=args.source_name, licence=args.licence), place, out)


def _write(rows: list[Row], documents: list[epath.Path], facts: DatasetFacts, place: Workplace, out: epath.Path) -> int:
    """Write the dataset unless the same one is there already."""
    told = [
        [row.document, row.digest, sidecar(str(path)), (place.done / f"{row.digest}.txt").read_text()]
        for row, path in zip(rows, documents, strict=True)
        if row.reason is None
    ]
    identity = json.dumps({"facts": repr(facts), "fingerprint": place.config.fingerprint, "told": told})
    stamp, folder = out / WORK / "written.json", out / NAME / VERSION
    if folder.exists():
        if stamp.exists() and stamp.read_text() == identity:
            print(f"{folder} is up to date")
            return 0
        print(
            f"{folder} was built from other documents or settings: remove it or choose another --out", file=sys.stderr
        )
        return 2
    stamp.write_text(identity)
    write_dataset(contents_of(rows, documents, facts, place), facts, out, place.options)
    print(f"wrote {folder}; see {out / 'report.html'}")
    return 0


def _make_captioner(args: argparse.Namespace, work: epath.Path) -> Callable[[], Captioner]:
    if args.caption_url is None:
        return SidecarCaptioner
    config = EndpointConfig(
        url=args.caption_url, model=args.caption_model, key=os.environ.get("CAPTION_API_KEY", "none")
    )
    if args.caption_prompt is not None:
        config = dataclasses.replace(config, prompt=epath.Path(args.caption_prompt).read_text())
    return functools.partial(EndpointCaptioner, config, work / "captions")


def _show(facts: dict[str, Any]) -> None:
    table = Table("", "documents")
    for name, count in [("in", facts["documents"]), ("kept", facts["kept"]), *facts["dropped"].items()]:
        table.add_row(name, str(count))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
