"""`python -m benchmarks.quality [base] [lora] [plain]`: the built-in base and adapters on it, judged.

Writes `report.json` and picture sheets into the output folder and prints the report. Without a part
named, all are run: some forty minutes on two free CPU cores.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean

import torch

from recipes.builtin_base import sheet
from sdlora.loading import builtin, load_family
from sdlora.runtime import Runtime
from sdlora.training.run import Run

from . import base, judge, lora, painter, plain

HERE = Path(__file__).parent


def main() -> None:
    """Runs the parts named on the command line, each adding to the report."""
    options = _options()
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "report.json"
    report = json.loads(path.read_text()) if path.exists() else {}
    machine = Runtime.choose(options.device, "fp32")
    options.device = machine.device
    jury = judge.load(HERE / "judge.safetensors", machine.device)
    for part in options.parts or PARTS:
        told = PARTS[part](options, jury)
        report[part] = {**told, "machine": f"{machine.title}, torch {torch.__version__}"}
        path.write_text(json.dumps(report, indent=2) + "\n")
        print(json.dumps({part: report[part]}, indent=2), flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {', '.join(PARTS)}")
    parser.add_argument("--output", type=Path, default=HERE / "out")
    parser.add_argument("--device", default="auto", help="where to train, paint and judge: auto, cpu, cuda")
    parser.add_argument("--prompts", type=int, default=200, help="prompts of the base")
    parser.add_argument(
        "--subjects", type=int, default=100, help="subjects of the style, and prompts of others"
    )
    parser.add_argument("--trainings", type=int, default=3, help="seeds that are trained with")
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[1], help="of the plain loop, as parts of our learning rate"
    )
    parser.add_argument("--train", default="", help="further words for `sdlora train`, which win")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if wrong := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(wrong))}; there are {', '.join(PARTS)}")
    return options


def _base(options: argparse.Namespace, jury: judge.Jury) -> dict:
    model = painter.load(builtin(), device=options.device)
    requests = [base.Request(**r) for r in json.loads((HERE / "prompts.json").read_text())][: options.prompts]
    model.paint(base.SHOWN[:1], steps=2)  # what a process does once is not what a picture takes
    started = time.monotonic()
    report, pixels = base.measure(model, jury, requests, guidance=lora.GUIDANCE, seed=options.seed)
    report["seconds_a_picture"] = round((time.monotonic() - started) / len(requests), 2)
    started = time.monotonic()
    model.paint(base.SHOWN[:1], guidance=lora.GUIDANCE)
    report["seconds_one_picture_alone"] = round(time.monotonic() - started, 2)
    sheet.save(options.output / "asked.png", pixels[:80], [f"{r.subject} {r.set}" for r in requests[:80]])
    sheet.save(options.output / "shown.png", model.paint(base.SHOWN, guidance=lora.GUIDANCE), base.SHOWN)
    return {**report, "reference": json.loads((HERE / "reference.json").read_text())}


def _lora(options: argparse.Namespace, jury: judge.Jury) -> dict:
    family = load_family("builtin", device=options.device, dtype=torch.float32)
    bench = lora.Bench.of(family, painter.load(builtin(), device=options.device), jury)
    subjects, asked = _requests(options, jury)
    unstyled, pictures = lora.style(jury, bench.paint, subjects)
    alone = bench.paint([m.prompt for m in asked])
    trainings = [
        _of_one_training(options, bench, seed=seed, base_row=(subjects, pictures))
        for seed in range(options.trainings)
    ]
    return {
        "without_adapter": {"style": unstyled, "character": lora.character(jury, alone, asked)},
        **_averaged(trainings),
    }


def _requests(options: argparse.Namespace, jury: judge.Jury) -> tuple[list[str], list[lora.Meeting]]:
    """The subjects that a style is asked for, and the prompts with the character."""
    return lora.style_subjects(jury, options.subjects), lora.meetings(options.subjects * 2 // 5)


def _of_one_training(
    options: argparse.Namespace, bench: lora.Bench, *, seed: int, base_row: tuple[list[str], torch.Tensor]
) -> dict:
    words = (*options.train.split(), "--loop.device", str(options.device), "--loop.seed", str(seed))
    ink, figure = (lora.train(name, options.output, *words) for name in lora.RECIPES)
    jury, (subjects, asked) = bench.jury, _requests(options, bench.jury)
    styled, pictures = lora.style(jury, lambda p: bench.paint(p, ink.file), subjects)
    prompts = [m.prompt for m in asked]
    met = bench.paint(prompts, figure.file)
    untriggered = [f"an icon of {s.replace('-', ' ')}" for s in subjects[: len(asked)]]
    stacked = [f"an ink icon of zibbo {m.pose}" for m in asked if m.pose]
    mixed = bench.paint(stacked, ink.file, figure.file)
    _save_rows(
        options.output / f"adapters-{seed}.png",
        {
            "base": base_row,
            "ink": (subjects, pictures),
            "character": (prompts, met),
            "both": (stacked, mixed),
        },
    )
    return {
        "trained": {"ink-style": ink.report, "character": figure.report},
        "style": styled,
        "character": {
            **lora.character(jury, met, asked),
            "without_trigger": lora.both(jury, bench.paint(untriggered, figure.file))["character_top1"],
        },
        "stacked": lora.both(jury, mixed),
    }


def _save_rows(path: Path, rows: dict[str, tuple[list[str], torch.Tensor]]) -> None:
    """The first ten pictures of each title, a row each."""
    labels = [f"{title}: {text}" for title, (texts, _) in rows.items() for text in texts[:10]]
    sheet.save(path, torch.cat([pixels[:10] for _, pixels in rows.values()]), labels)


def _plain(options: argparse.Namespace, jury: judge.Jury) -> dict:
    """The plain loop at the steps of ours, and at its seconds; run after `lora`."""
    runs = [Run.open(path) for path in sorted((options.output / "runs").glob("ink-style-*"))]
    ways = [("equal steps", False), ("equal seconds", True)]
    return {
        f"{name} at {rate:g} of the rate": _averaged(
            [
                _of_one_plain_run(options, jury, run, rate=rate, timed=timed)
                for run in runs[-options.trainings :]
            ]
        )
        for name, timed in ways
        for rate in options.rates
    }


def _of_one_plain_run(
    options: argparse.Namespace, jury: judge.Jury, run: Run, *, rate: float, timed: bool
) -> dict:
    config = run.config
    told = plain.PlainRun(
        rank=config.adapter.rank,
        rate=config.optimizer.lr * rate,
        batch=config.loop.batch_size,
        steps=10**6 if timed else config.loop.steps,
        seconds=lora.seconds(run) if timed else float("inf"),
    )
    model = painter.load(builtin(), device=options.device)
    took = plain.train(model, lora.DATASETS / "ink-style", told, seed=config.loop.seed)

    def paint(prompts):
        return model.paint(prompts, guidance=lora.GUIDANCE, seed=lora.SEED)

    return {**took, **lora.style(jury, paint, lora.style_subjects(jury, options.subjects))[0]}


def _averaged(reports: list[dict]) -> dict:
    """Numbers as the mean, and their least and most when there are several reports; words of the first."""

    def average(values: list):
        if isinstance(values[0], dict):
            return {key: average([value[key] for value in values]) for key in values[0]}
        if isinstance(values[0], str) or len(values) == 1:
            return values[0]
        return {"mean": round(mean(values), 4), "least": min(values), "most": max(values)}

    return average(reports)


PARTS: dict[str, Callable[[argparse.Namespace, judge.Jury], dict]] = {
    "base": _base,
    "lora": _lora,
    "plain": _plain,
}


if __name__ == "__main__":
    main()
