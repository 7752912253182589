"""`python -m recipes.builtin_base STAGE`: makes the built-in base, one restartable stage at a time.

Stages, in the order in which `all` runs them: fetch, render, words, vae, judge, diffuse, export,
datasets, reference (the judge on real pictures), samples (the judge and a sheet on the base's).
Each leaves its result in the work folder and does nothing when that is there already.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.quality import judge as jury_files

from . import datasets, diffuse, evaluate, export, icons, judging, scenes, synthetic, tokenizer, vae
from .models import FULL, TINY, Scale

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
STAGES = ("fetch", "render", "words", "vae", "judge", "diffuse", "export", "datasets", "reference", "samples")
SECONDS = {"vae": 150.0, "judge": 140.0, "diffuse": 900.0}
TINY_SECONDS = {"vae": 0.5, "judge": 0.5, "diffuse": 1.0}


def main(words: Sequence[str] | None = None) -> None:
    """Runs the stages named by `words`, or on the command line."""
    options = _options(words)
    scale = TINY if options.tiny else FULL
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("high")
    for stage in STAGES if options.stage == "all" else (options.stage,):
        started = time.monotonic()
        result = globals()[f"_{stage}"](options, scale)
        if result:
            with (options.work / "report.jsonl").open("a") as report:
                report.write(json.dumps({"stage": stage, **result}) + "\n")
        print(f"[{stage}] {time.monotonic() - started:.1f} s {result or ''}", flush=True)


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=(*STAGES, "all"))
    parser.add_argument("--tiny", action="store_true", help="made-up icons and networks, seconds on a CPU")
    parser.add_argument("--work", type=Path, default=HERE / "work")
    parser.add_argument("--assets", type=Path, default=ROOT / "sdlora" / "assets" / "builtin")
    parser.add_argument("--datasets", type=Path, default=ROOT / "datasets")
    parser.add_argument("--judge", type=Path, default=ROOT / "benchmarks" / "quality" / "judge.safetensors")
    parser.add_argument("--seconds", type=float, help="time for this stage's training")
    parser.add_argument("--deadline", type=float, help="wall clock time at which `diffuse` stops, instead")
    parser.add_argument("--begin", type=float, default=0.0, help="part of the rate schedule already done")
    parser.add_argument("--end", type=float, default=1.0, help="part of the rate schedule done afterwards")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="torch.compile the training steps")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(words)


def _seconds(options: argparse.Namespace, stage: str) -> float:
    return options.seconds or (TINY_SECONDS if options.tiny else SECONDS)[stage]


def _fetch(options: argparse.Namespace, scale: Scale) -> None:
    if options.tiny:
        synthetic.write(options.work)
    icons.fetch(options.work)


def _render(options: argparse.Namespace, scale: Scale) -> None:
    icons.render(options.work, scale.texture)


def _words(options: argparse.Namespace, scale: Scale) -> None:
    folder = options.work / "tokenizer"
    if not (folder / "vocab.json").exists():
        textures = icons.render(options.work, scale.texture)
        rows = textures.rows(*icons.PRETRAINING).repeat(8)
        tokenizer.learn(scenes.sample(textures, rows, seed=0).captions, folder, merges=scale.merges)


def _vae(options: argparse.Namespace, scale: Scale) -> dict | None:
    if (options.work / "vae.done").exists():
        return None
    textures = icons.render(options.work, scale.texture)
    trained, report = vae.train(
        textures, scale, device=options.device, seconds=_seconds(options, "vae"), seed=options.seed,
        compiled=options.compile,
    )  # fmt: skip
    trained.to("cpu", memory_format=torch.contiguous_format).save_pretrained(options.work / "vae")
    (options.work / "vae.done").touch()
    return report


def _judge(options: argparse.Namespace, scale: Scale) -> dict | None:
    if options.judge.exists():
        return None
    textures = icons.render(options.work, scale.texture)
    jury, report = judging.train(
        textures, scale, device=options.device, seconds=_seconds(options, "judge"), seed=options.seed
    )
    options.judge.parent.mkdir(parents=True, exist_ok=True)
    jury_files.save(jury, options.judge)
    return report


def _diffuse(options: argparse.Namespace, scale: Scale) -> dict:
    deadline = options.deadline or time.time() + _seconds(options, "diffuse")
    plan = diffuse.Plan(deadline=deadline, begin=options.begin, end=options.end)
    return diffuse.train(
        scale,
        work=options.work,
        plan=plan,
        device=options.device,
        seed=options.seed,
        compiled=options.compile,
    )


def _export(options: argparse.Namespace, scale: Scale) -> dict:
    return {"bytes": export.export(options.work, options.assets, scale)}


def _datasets(options: argparse.Namespace, scale: Scale) -> dict:
    return datasets.write(icons.render(options.work, scale.texture), options.datasets)


def _reference(options: argparse.Namespace, scale: Scale) -> dict:
    textures = icons.render(options.work, scale.texture)
    return evaluate.reference(
        textures, scale, assets=options.assets, judge=options.judge, device=options.device
    )


def _samples(options: argparse.Namespace, scale: Scale) -> dict:
    return evaluate.samples(
        work=options.work, assets=options.assets, judge=options.judge, device=options.device
    )


if __name__ == "__main__":
    main()
