"""The verbs of `qil`. Nothing is imported here, so that `qil --help` and the help of each verb come at once."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Command:
    """A verb.

    Attributes:
      module: name of the module of this room whose `main(argv)` carries it out.
      about: what it does, in a line.
    """

    module: str
    about: str


COMMANDS = {
    "decompose": Command("decompose", "pictures into editable RGBA layers"),
    "infer": Command("decompose", "the same as decompose"),
    "export": Command("export", "layers to PSD, ORA, PPTX, ZIP or PNG, and back"),
    "edit": Command("edit", "edit layers by a script"),
    "view": Command("view", "results as one HTML page"),
    "app": Command("app", "decompose and edit in the browser, and by HTTP"),
    "convert": Command("convert", "a checkpoint between its layouts; also quantize, dequantize and export a run"),
    "quantize": Command("quantize", "store the linear maps of all blocks in one byte per weight"),
    "dequantize": Command("dequantize", "write a quantised checkpoint in full precision, rounded as it is"),
    "validate": Command("validate", "whether a checkpoint or a LoRA file is sound"),
    "train": Command("train", "train a stage, or go on with its run"),
    "export-run": Command("export_run", "export a run of training, finished or not, as a checkpoint"),
    "evaluate": Command("evaluate", "measure a checkpoint, or layers of other programs"),
    "plan": Command("plan", "what a program needs on accelerators that are not there"),
    "build-dataset": Command("build_dataset", "Photoshop documents to a dataset"),
    "make-scenes": Command("make_scenes", "scenes drawn from seeds, as a dataset or as files"),
    "cache-latents": Command("cache_latents", "encode a dataset once, before training"),
    "show-batch": Command("show_batch", "the first batch that training would see, as a picture"),
    "fetch-assets": Command("fetch_assets", "pictures and fonts for scenes, from public registries"),
    "convert-lpips": Command("convert_lpips", "weights of LPIPS as safetensors"),
}
"""Verbs in the order in which they are shown."""
